//! Flows out of the tables: the two directions joined into one, the dead ones removed.

use std::{collections::HashMap, net::Ipv4Addr, time::Duration};

use aya::maps::MapData;
use nix::time::{ClockId, clock_gettime};
use telecluster_common::{
    maps::{Direction, Flow as Record, FlowKey, flag},
    tcp::{FlowState, timeout},
};

use super::{
    batch, failed,
    object::{self, Object},
};
use crate::kernel::{
    KernelError,
    dataplane::{Counters, Flow, MapPressure, Slot},
};

/// How long after its end a flow's memory is kept. The programs judge for themselves and revive nothing that is
/// over; the margin keeps the agent away from an entry that a packet may just have found alive.
const GRACE: u64 = 10_000_000_000;

/// `flow4` and `half4`.
#[derive(Debug)]
pub(super) struct FlowTables {
    proven: Table,
    unproven: Table,
}

#[derive(Debug)]
struct Table {
    name: &'static str,
    data: MapData,
    sizes: (usize, usize),
    capacity: u32,
}

impl Table {
    fn open(object: &Object, name: &'static str) -> Result<Self, KernelError> {
        let data = object::duplicate(object, name)?;
        let info = data.info().map_err(|error| failed(format!("describe the map {name}"), &error))?;
        let sizes = (info.key_size() as usize, info.value_size() as usize);
        Ok(Self { name, data, sizes, capacity: info.max_entries() })
    }

    fn for_each(&self, visit: impl FnMut(&FlowKey, &Record)) -> Result<(), KernelError> {
        batch::for_each(self.data.fd(), self.sizes, visit)
            .map_err(|error| failed(format!("read the map {}", self.name), &error))
    }
}

impl FlowTables {
    pub(super) fn open(object: &Object) -> Result<Self, KernelError> {
        Ok(Self { proven: Table::open(object, "flow4")?, unproven: Table::open(object, "half4")? })
    }

    fn tables(&self) -> [(&Table, bool); 2] {
        [(&self.proven, true), (&self.unproven, false)]
    }

    /// Every live flow. `generations`: by slot.
    pub(super) fn list(&self, generations: &[u32]) -> Result<Vec<Flow>, KernelError> {
        let now = now()?;
        let mut join = Join::default();
        for (table, proven) in self.tables() {
            table.for_each(|key, record| {
                if !over(key, record, generations, now, 0) {
                    join.add(key, record, proven, now);
                }
            })?;
        }
        Ok(join.flows)
    }

    /// Frees what is over; returns how many flows.
    pub(super) fn collect_garbage(&self, generations: &[u32]) -> Result<usize, KernelError> {
        let now = now()?;
        let mut collected = 0;
        for (table, _) in self.tables() {
            let mut dead = Vec::new();
            table.for_each(|key, record| {
                if over(key, record, generations, now, GRACE) {
                    dead.push((*key, record.flags));
                }
            })?;
            for (key, flags) in dead {
                if batch::delete(table.data.fd(), &key)
                    .map_err(|error| failed(format!("free an entry of {}", table.name), &error))?
                {
                    collected += usize::from(flags & flag::OPENER != 0);
                }
            }
        }
        Ok(collected)
    }

    pub(super) fn pressure(&self) -> Result<Vec<MapPressure>, KernelError> {
        let mut pressure = Vec::new();
        for (table, _) in self.tables() {
            let mut entries = 0;
            table.for_each(|_, _| entries += 1)?;
            pressure.push(MapPressure { map: table.name, entries, capacity: u64::from(table.capacity) });
        }
        Ok(pressure)
    }
}

/// The programs' clock.
fn now() -> Result<u64, KernelError> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)
        .map_err(|errno| KernelError::errno("read the clock", errno as i32))?;
    let (seconds, nanoseconds) = (time.tv_sec().unsigned_abs(), time.tv_nsec().unsigned_abs());
    Ok(seconds * 1_000_000_000 + nanoseconds)
}

/// Its rule is gone, or it has been idle for longer than its state allows.
fn over(key: &FlowKey, record: &Record, generations: &[u32], now: u64, grace: u64) -> bool {
    if generations.get(record.rule as usize) != Some(&record.generation) {
        return true;
    }
    let idle = now.saturating_sub(record.last_seen);
    // The programs' own tick of grace, see `nat::life`.
    idle > timeout(key.proto, FlowState::from_u8(record.state)) + (1 << 32) + grace
}

/// An address and a port.
type Socket = (Ipv4Addr, u16);

/// Both directions of a flow meet here, in whichever order the maps give them.
#[derive(Default)]
struct Join {
    flows: Vec<Flow>,
    /// (protocol, external, remote) to its place in `flows`.
    places: HashMap<(u8, Socket, Socket), usize>,
}

impl Join {
    fn add(&mut self, key: &FlowKey, record: &Record, proven: bool, now: u64) {
        let [src, dst, to_src, to_dst] = [
            (Ipv4Addr::from(key.src), key.sport),
            (Ipv4Addr::from(key.dst), key.dport),
            (Ipv4Addr::from(record.to_src), record.to_sport),
            (Ipv4Addr::from(record.to_dst), record.to_dport),
        ];
        let out = key.direction == Direction::Out as u8;
        let (inside, external, remote) = if out { (src, to_src, to_dst) } else { (to_dst, dst, src) };
        let place = *self.places.entry((key.proto, external, remote)).or_insert_with(|| {
            self.flows.push(Flow {
                protocol: key.proto,
                inside,
                external,
                remote,
                counters: Counters::default(),
                state: FlowState::from_u8(record.state),
                proven: false,
                age: Duration::ZERO,
                idle: Duration::MAX,
                slot: Slot(record.rule),
                uplink: record.uplink,
            });
            self.flows.len() - 1
        });
        let Some(flow) = self.flows.get_mut(place) else {
            return;
        };
        if out {
            flow.counters.packets_out += record.packets;
            flow.counters.bytes_out += record.bytes;
        } else {
            flow.counters.packets_in += record.packets;
            flow.counters.bytes_in += record.bytes;
        }
        flow.proven |= proven;
        let age = (now / 1_000_000_000).saturating_sub(u64::from(record.created));
        flow.age = flow.age.max(Duration::from_secs(age));
        flow.idle = flow.idle.min(Duration::from_nanos(now.saturating_sub(record.last_seen)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSIDE: [u8; 4] = [192, 168, 100, 10];
    const OUTSIDE: [u8; 4] = [203, 0, 113, 1];
    const REMOTE: [u8; 4] = [198, 51, 100, 7];

    fn key(direction: Direction) -> FlowKey {
        let (src, dst, sport, dport) = match direction {
            Direction::Out => (INSIDE, REMOTE, 4000, 53),
            Direction::In => (REMOTE, OUTSIDE, 53, 5000),
        };
        FlowKey { src, dst, sport, dport, proto: 17, direction: direction as u8, unused: 0 }
    }

    fn record(direction: Direction) -> Record {
        let (to_src, to_dst, to_sport, to_dport) = match direction {
            Direction::Out => (OUTSIDE, REMOTE, 5000, 53),
            Direction::In => (REMOTE, INSIDE, 53, 4000),
        };
        Record {
            to_src,
            to_dst,
            to_sport,
            to_dport,
            address_difference: 0,
            port_difference: 0,
            rule: 3,
            generation: 1,
            uplink: 2,
            created: 10,
            synced: 0,
            state: 1,
            flags: 0,
            unused: 0,
            packets: if direction == Direction::Out { 7 } else { 5 },
            bytes: 100,
            last_seen: 12_000_000_000,
        }
    }

    #[test]
    fn both_directions_become_one_flow_in_either_order() {
        for order in [[Direction::In, Direction::Out], [Direction::Out, Direction::In]] {
            let mut join = Join::default();
            for direction in order {
                join.add(&key(direction), &record(direction), true, 15_000_000_000);
            }
            let [flow] = &join.flows[..] else { panic!("{:?}", join.flows) };
            assert_eq!(flow.inside, (INSIDE.into(), 4000));
            assert_eq!(flow.external, (OUTSIDE.into(), 5000));
            assert_eq!(flow.remote, (REMOTE.into(), 53));
            assert_eq!((flow.counters.packets_out, flow.counters.packets_in), (7, 5));
            assert_eq!((flow.age.as_secs(), flow.idle.as_secs()), (5, 3));
        }
    }

    #[test]
    fn a_flow_ends_with_its_rule_or_with_its_time() {
        let (key, record) = (key(Direction::Out), record(Direction::Out));
        let now = record.last_seen + 299_000_000_000;
        assert!(!over(&key, &record, &[0, 0, 0, 1], now, 0));
        assert!(over(&key, &record, &[0, 0, 0, 2], now, 0), "the slot has another rule now");
        assert!(over(&key, &record, &[], now, 0), "there is no such slot");
        assert!(over(&key, &record, &[0, 0, 0, 1], now + 6_000_000_000, 0), "UDP idles 300 s");
        assert!(!over(&key, &record, &[0, 0, 0, 1], now + 6_000_000_000, GRACE));
    }
}
