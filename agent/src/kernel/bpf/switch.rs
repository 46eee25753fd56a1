//! Ports and their VLANs into maps. [`held`] is what is in them, [`reads`] what programs have counted and learned.
//!
//! The order of writes is what keeps a change whole for frames that pass meanwhile: a port is nobody's target before
//! it knows what to let out, and no longer one before it forgets. Every change is a way from what the maps hold to
//! what they shall hold; when it fails on the way, the way back is one too.

mod held;
mod reads;

use std::{
    collections::{BTreeMap, BTreeSet},
    io, thread,
    time::Duration,
};

use aya::maps::{Array, HashMap, MapData, MapType, PerCpuArray, PerCpuHashMap, PerCpuValues};
use nix::errno::Errno;
use telecluster_common::vlan::maps::{
    Decision, FloodKey, MAX_DECISIONS, MAX_MEMBERS, MAX_PORTS, MAX_STATIONS, MAX_VLAN_PORTS, Member,
    MemberKey, PortConfig, PortStat, Station as Record, StationKey, VlanDrops, VlanStat, port as flag,
    station,
};

use self::held::Held;
pub use self::held::config;
use super::{
    Plain,
    attach::Attacher,
    batch, failed,
    hooks::Role,
    layout::{Entries, Layout, layout},
    object::{self, Object, take},
};
use crate::kernel::{KernelError, links::Mac, switch::SwitchPort};

/// BPF_NOEXIST: insert, and leave what is there alone.
const NOEXIST: u64 = 1;

/// For how many milliseconds memory is waited for. Entries for each processor come from a stock that the kernel only fills
/// up behind our back: when many are made at once on a busy machine, it may be empty for a moment.
const MEMORY_COMES: u32 = 500;

type Result<T> = std::result::Result<T, KernelError>;

pub(super) const LAYOUTS: [Layout; 10] = [
    layout::<u32, PortConfig>("port_cfg", MapType::Hash, Entries::Fixed(MAX_PORTS)),
    layout::<MemberKey, Member>("vlan_member", MapType::Hash, Entries::Fixed(MAX_MEMBERS)),
    layout::<FloodKey, u32>("vlan_flood", MapType::Hash, Entries::Fixed(MAX_MEMBERS)),
    layout::<u32, VlanStat>("vlan_stat", MapType::PerCpuArray, Entries::Fixed(MAX_MEMBERS)),
    layout::<MemberKey, VlanDrops>("vlan_drop", MapType::PerCpuHash, Entries::Fixed(MAX_MEMBERS)),
    layout::<u32, PortStat>("port_stat", MapType::PerCpuHash, Entries::Fixed(MAX_PORTS)),
    layout::<u32, u64>("port_stations", MapType::Hash, Entries::Fixed(MAX_PORTS)),
    layout::<u32, Decision>("vlan_decision", MapType::PerCpuArray, Entries::Fixed(MAX_DECISIONS)),
    layout::<u32, u64>("vlan_change", MapType::Array, Entries::Fixed(1)),
    layout::<StationKey, Record>("fdb", MapType::Hash, Entries::Fixed(MAX_STATIONS)),
];

/// The maps, and what is in those that only we write.
pub(super) struct SwitchMaps {
    configs: HashMap<MapData, u32, Plain<PortConfig>>,
    members: HashMap<MapData, Plain<MemberKey>, Plain<Member>>,
    floods: HashMap<MapData, Plain<FloodKey>, u32>,
    vlan_stats: PerCpuArray<MapData, Plain<VlanStat>>,
    vlan_drops: PerCpuHashMap<MapData, Plain<MemberKey>, Plain<VlanDrops>>,
    port_stats: PerCpuHashMap<MapData, u32, Plain<PortStat>>,
    counts: HashMap<MapData, u32, u64>,
    fdb: HashMap<MapData, Plain<StationKey>, Plain<Record>>,
    fdb_table: MapData,
    change: Array<MapData, u64>,
    /// What was last put there.
    changed: u64,
    held: Held,
}

impl std::fmt::Debug for SwitchMaps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SwitchMaps").field("ports", &self.held.configs.len()).finish_non_exhaustive()
    }
}

impl SwitchMaps {
    pub(super) fn take(object: &mut Object) -> Result<Self> {
        let mut maps = Self {
            fdb_table: object::duplicate(object, "fdb")?,
            configs: take(object, "port_cfg")?,
            members: take(object, "vlan_member")?,
            floods: take(object, "vlan_flood")?,
            vlan_stats: take(object, "vlan_stat")?,
            vlan_drops: take(object, "vlan_drop")?,
            port_stats: take(object, "port_stat")?,
            counts: take(object, "port_stations")?,
            fdb: take(object, "fdb")?,
            change: take(object, "vlan_change")?,
            changed: 0,
            held: Held::default(),
        };
        maps.held = maps.read()?;
        // An earlier run may have died before it could say so.
        maps.changed()?;
        // An earlier version counted drops for ports only.
        for (port, vlan) in maps.held.members.keys().copied().collect::<Vec<_>>() {
            maps.count_drops(port, vlan)?;
        }
        Ok(maps)
    }

    /// What an earlier run has left.
    fn read(&self) -> Result<Held> {
        let mut held = Held::default();
        for entry in self.configs.iter() {
            let (index, Plain(config)) = entry.map_err(|error| failed("list the ports", &error))?;
            held.configs.insert(index, config);
        }
        for entry in self.members.iter() {
            let (Plain(key), Plain(member)) =
                entry.map_err(|error| failed("list the VLAN members", &error))?;
            held.members.insert((key.port, key.vlan), member);
            held.stats.insert(member.stat);
        }
        let mut places: BTreeMap<(u32, u16), BTreeMap<u16, u32>> = BTreeMap::new();
        for entry in self.floods.iter() {
            let (Plain(key), port) = entry.map_err(|error| failed("list the ports of VLANs", &error))?;
            places.entry((key.bridge, key.vlan)).or_default().insert(key.place, port);
        }
        held.floods = places.into_iter().map(|(vlan, ports)| (vlan, ports.into_values().collect())).collect();
        self.for_each_station(|key, record| {
            if record.flags & station::STATIC != 0 {
                held.stations.insert((key.bridge, key.vlan, Mac(key.mac)), record.port);
            }
        })?;
        Ok(held)
    }

    /// Whatever programs have decided by what was there is void.
    fn changed(&mut self) -> Result<()> {
        // Time, because programs add one at their moves: no number comes twice, whichever of them is first.
        self.changed = reads::now()?.max(self.changed + 1);
        let done = self.change.set(0, self.changed, 0);
        done.map_err(|error| failed("void the decisions of the VLAN filter", &error))
    }

    /// Makes a port what it shall be, and leaves it as it was when that fails.
    pub(super) fn put(&mut self, attacher: &mut Attacher, port: &SwitchPort) -> Result<()> {
        let before = self.held.port(port.index);
        let moved = before.as_ref().is_some_and(|before| before.bridge != port.bridge);
        let done = if moved { self.clear(attacher, port.index) } else { Ok(()) };
        let done = done.and_then(|()| self.shape(attacher, port));
        let Err(error) = done else { return Ok(()) };
        let back = match &before {
            Some(before) => self.shape(attacher, before),
            None => self.clear(attacher, port.index),
        };
        Err(undone(error, back))
    }

    /// Takes a port out of everything, or leaves it as it was.
    pub(super) fn remove(&mut self, attacher: &mut Attacher, index: u32) -> Result<()> {
        let before = self.held.port(index);
        let Err(error) = self.clear(attacher, index) else { return Ok(()) };
        let Some(before) = before else { return Err(error) };
        Err(undone(error, self.shape(attacher, &before)))
    }

    fn shape(&mut self, attacher: &mut Attacher, port: &SwitchPort) -> Result<()> {
        let wanted = port.vlans();
        let present: BTreeSet<u16> = self.held.vlans_of(port.index).collect();
        let gone: Vec<u16> = present.iter().copied().filter(|vlan| !wanted.contains_key(vlan)).collect();
        for vlan in &gone {
            self.leave(port.bridge, *vlan, port.index)?;
        }
        for (vlan, untagged) in &wanted {
            self.set_member(port.index, *vlan, *untagged)?;
        }
        self.make_counters(port.index)?;
        let stopped = self.held.configs.get(&port.index).is_some_and(|old| old.flags & flag::FORWARDING != 0)
            && !port.forwarding;
        // Every VLAN that it is in has counters by now.
        let native = port.native.and_then(|vlan| self.held.members.get(&(port.index, vlan)));
        self.set_config(port.index, config(port, native.map_or(0, |member| member.stat)))?;
        let role = if port.is_host() { Role::Host } else { Role::Port };
        attacher.attach(role, port.index)?;
        self.set_stations(port)?;
        for vlan in wanted.keys() {
            self.join(port.bridge, *vlan, port.index)?;
        }
        for vlan in &gone {
            self.drop_member(port.index, *vlan)?;
        }
        if stopped || !gone.is_empty() {
            // What was learned there is elsewhere now: spanning tree has found another way, or the VLAN is gone.
            self.forget_learned(|key, record| {
                record.port == port.index && (stopped || gone.contains(&key.vlan))
            })?;
        }
        Ok(())
    }

    /// Takes a port out of everything. Goes on after a failure: half gone is better than not at all.
    pub(super) fn clear(&mut self, attacher: &mut Attacher, index: u32) -> Result<()> {
        let mut result = Ok(());
        let mut note = |done: Result<()>| {
            if result.is_ok() {
                result = done;
            }
        };
        let bridge = self.held.configs.get(&index).map(|config| config.bridge);
        let vlans: Vec<u16> = self.held.vlans_of(index).collect();
        for vlan in &vlans {
            note(bridge.map_or(Ok(()), |bridge| self.leave(bridge, *vlan, index)));
        }
        note(attacher.detach(Role::Port, index));
        note(attacher.detach(Role::Host, index));
        for vlan in vlans {
            note(self.drop_member(index, vlan));
        }
        let fixed: Vec<_> =
            self.held.stations.iter().filter(|(_, port)| **port == index).map(|(key, _)| *key).collect();
        for key in fixed {
            note(self.drop_station(key));
        }
        if self.counts.get(&index, 0).is_ok_and(|count| count != 0) {
            note(self.forget_learned(|_, record| record.port == index).map(drop));
        }
        if bridge.is_some() {
            note(gone_is_fine(self.configs.remove(&index), || format!("forget port {index}")));
            note(self.changed());
            note(gone_is_fine(self.port_stats.remove(&index), || {
                format!("forget the counters of port {index}")
            }));
            note(gone_is_fine(self.counts.remove(&index), || format!("forget the stations of port {index}")));
            self.held.configs.remove(&index);
        }
        result
    }

    /// Every port as the maps have it.
    pub(super) fn ports(&self) -> Result<BTreeMap<u32, SwitchPort>> {
        let held = self.read()?;
        Ok(held.configs.keys().filter_map(|index| Some((*index, held.port(*index)?))).collect())
    }

    /// The ports that an earlier run has left and whose programs are gone with their interface.
    pub(super) fn stale(&self, attacher: &Attacher) -> Vec<u32> {
        let live: BTreeSet<u32> = attacher.indexes(Role::Port).chain(attacher.indexes(Role::Host)).collect();
        self.held.configs.keys().copied().filter(|index| !live.contains(index)).collect()
    }

    fn for_each_station(&self, mut visit: impl FnMut(&StationKey, &Record)) -> Result<()> {
        let sizes = (size_of::<StationKey>(), size_of::<Record>());
        batch::for_each(self.fdb_table.fd(), sizes, |key: &StationKey, record: &Record| visit(key, record))
            .map_err(|error| failed("list the stations", &error))
    }

    /// Forgets learned stations. One that is heard again meanwhile is learned again with its next frame.
    fn forget_learned(&mut self, which: impl Fn(&StationKey, &Record) -> bool) -> Result<usize> {
        let mut gone = Vec::new();
        self.for_each_station(|key, record| {
            if record.flags & station::STATIC == 0 && which(key, record) {
                gone.push(*key);
            }
        })?;
        if gone.is_empty() {
            return Ok(0);
        }
        let forgotten = gone.iter().try_for_each(|key| {
            gone_is_fine(self.fdb.remove(&Plain(*key)), || format!("forget station {}", Mac(key.mac)))
        });
        self.changed()?;
        forgotten.map(|()| gone.len())
    }

    fn set_member(&mut self, port: u32, vlan: u16, untagged: bool) -> Result<()> {
        let operation = || format!("put port {port} into VLAN {vlan}");
        let present = self.held.members.get(&(port, vlan)).copied();
        let stat = match present {
            Some(member) if (member.untagged == 1) == untagged => return Ok(()),
            Some(member) => member.stat,
            None => self.free_stat().ok_or_else(|| KernelError::errno(operation(), Errno::ENOSPC as i32))?,
        };
        if present.is_none() {
            let zero = per_cpu(VlanStat::default()).map_err(|error| failed(operation(), &error))?;
            self.vlan_stats.set(stat, zero, 0).map_err(|error| failed(operation(), &error))?;
        }
        let member = Member { untagged: u32::from(untagged), stat };
        self.members
            .insert(Plain(MemberKey { port, vlan, unused: 0 }), Plain(member), 0)
            .map_err(|error| failed(operation(), &error))?;
        self.held.members.insert((port, vlan), member);
        self.held.stats.insert(stat);
        self.changed()?;
        self.count_drops(port, vlan)
    }

    /// Begins to count what is dropped of a VLAN; until then it is counted for the port.
    fn count_drops(&mut self, port: u32, vlan: u16) -> Result<()> {
        let operation = || format!("count the drops of port {port} in VLAN {vlan}");
        let key = Plain(MemberKey { port, vlan, unused: 0 });
        let mut patience = MEMORY_COMES;
        loop {
            let zero = per_cpu(VlanDrops::default()).map_err(|error| failed(operation(), &error))?;
            let Err(error) = self.vlan_drops.insert(key, zero, NOEXIST) else { return Ok(()) };
            let error = failed(operation(), &error);
            match error.errno.map(Errno::from_raw) {
                Some(Errno::EEXIST) => return Ok(()),
                Some(Errno::ENOMEM) if patience > 0 => {
                    patience -= 1;
                    thread::sleep(Duration::from_millis(1));
                }
                _ => return Err(error),
            }
        }
    }

    fn drop_member(&mut self, port: u32, vlan: u16) -> Result<()> {
        let key = Plain(MemberKey { port, vlan, unused: 0 });
        gone_is_fine(self.members.remove(&key), || format!("take port {port} out of VLAN {vlan}"))?;
        if let Some(member) = self.held.members.remove(&(port, vlan)) {
            self.held.stats.remove(&member.stat);
        }
        self.changed()?;
        gone_is_fine(self.vlan_drops.remove(&key), || {
            format!("forget the drops of port {port} in VLAN {vlan}")
        })
    }

    /// The lowest counters that nobody has.
    fn free_stat(&self) -> Option<u32> {
        let mut free = 0;
        for taken in &self.held.stats {
            if *taken != free {
                break;
            }
            free += 1;
        }
        (free < MAX_MEMBERS).then_some(free)
    }

    fn set_config(&mut self, port: u32, config: PortConfig) -> Result<()> {
        if self.held.configs.get(&port) == Some(&config) {
            return Ok(());
        }
        self.configs
            .insert(port, Plain(config), 0)
            .map_err(|error| failed(format!("configure port {port}"), &error))?;
        self.held.configs.insert(port, config);
        self.changed()
    }

    fn make_counters(&mut self, port: u32) -> Result<()> {
        if self.held.configs.contains_key(&port) {
            return Ok(());
        }
        let operation = || format!("make the counters of port {port}");
        let zero = per_cpu(PortStat::default()).map_err(|error| failed(operation(), &error))?;
        self.port_stats.insert(port, zero, 0).map_err(|error| failed(operation(), &error))?;
        self.counts.insert(port, 0, 0).map_err(|error| failed(operation(), &error))
    }

    /// Into the list of a VLAN's ports.
    fn join(&mut self, bridge: u32, vlan: u16, port: u32) -> Result<()> {
        let ports = self.held.floods.entry((bridge, vlan)).or_default();
        if ports.contains(&port) {
            return Ok(());
        }
        let operation = || format!("list port {port} in VLAN {vlan}");
        let place = u16::try_from(ports.len()).ok().filter(|place| *place < MAX_VLAN_PORTS);
        let place = place.ok_or_else(|| KernelError::errno(operation(), Errno::ENOSPC as i32))?;
        self.floods
            .insert(Plain(FloodKey { bridge, vlan, place }), port, 0)
            .map_err(|error| failed(operation(), &error))?;
        ports.push(port);
        Ok(())
    }

    /// Out of the list: the last one takes its place, so that a frame that is being flooded meanwhile may reach that
    /// one twice, but nobody is left out.
    fn leave(&mut self, bridge: u32, vlan: u16, port: u32) -> Result<()> {
        let Some(ports) = self.held.floods.get_mut(&(bridge, vlan)) else { return Ok(()) };
        let Some(position) = ports.iter().position(|other| *other == port) else { return Ok(()) };
        let operation = || format!("take port {port} off the list of VLAN {vlan}");
        let last = ports.len() - 1;
        let key = |place: usize| {
            let place = u16::try_from(place).unwrap_or(u16::MAX);
            Plain(FloodKey { bridge, vlan, place })
        };
        if position != last {
            self.floods.insert(key(position), ports[last], 0).map_err(|error| failed(operation(), &error))?;
        }
        gone_is_fine(self.floods.remove(&key(last)), operation)?;
        ports.swap_remove(position);
        if ports.is_empty() {
            self.held.floods.remove(&(bridge, vlan));
        }
        Ok(())
    }

    fn set_stations(&mut self, port: &SwitchPort) -> Result<()> {
        let old: Vec<_> = (self.held.stations.iter())
            .filter(|((_, vlan, mac), at)| **at == port.index && !port.stations.contains(&(*vlan, *mac)))
            .map(|(key, _)| *key)
            .collect();
        for key in old {
            self.drop_station(key)?;
        }
        for (vlan, mac) in &port.stations {
            let key = (port.bridge, *vlan, *mac);
            if self.held.stations.get(&key) == Some(&port.index) {
                continue;
            }
            let record = Record { port: port.index, flags: station::STATIC, ..Record::default() };
            self.fdb
                .insert(Plain(station_key(key)), Plain(record), 0)
                .map_err(|error| failed(format!("fix station {mac} in VLAN {vlan}"), &error))?;
            self.held.stations.insert(key, port.index);
            self.changed()?;
        }
        Ok(())
    }

    fn drop_station(&mut self, key: (u32, u16, Mac)) -> Result<()> {
        gone_is_fine(self.fdb.remove(&Plain(station_key(key))), || format!("forget station {}", key.2))?;
        self.held.stations.remove(&key);
        self.changed()
    }
}

fn station_key((bridge, vlan, mac): (u32, u16, Mac)) -> StationKey {
    StationKey { bridge, mac: mac.0, vlan }
}

fn per_cpu<T: Copy>(value: T) -> io::Result<PerCpuValues<Plain<T>>>
where
    Plain<T>: aya::Pod,
{
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
    PerCpuValues::try_from(vec![Plain(value); cpus])
}

/// A key that is not there any more is what was wanted.
fn gone_is_fine(
    result: std::result::Result<(), aya::maps::MapError>,
    operation: impl Fn() -> String,
) -> Result<()> {
    match result {
        Ok(()) | Err(aya::maps::MapError::KeyNotFound) => Ok(()),
        Err(error) => {
            let error = failed(operation(), &error);
            if error.errno == Some(Errno::ENOENT as i32) { Ok(()) } else { Err(error) }
        }
    }
}

/// The error, with what went wrong when everything was put back.
fn undone(error: KernelError, back: Result<()>) -> KernelError {
    match back {
        Ok(()) => error,
        Err(second) => {
            KernelError { reason: format!("{}; and it could not be undone: {second}", error.reason), ..error }
        }
    }
}
