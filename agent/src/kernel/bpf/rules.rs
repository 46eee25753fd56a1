//! Rules and addresses into maps, counters out of them.
//!
//! The order of writes is what makes a change whole for packets that pass meanwhile: a rule's slot is ready before
//! anything points to it, and what points to it is gone before the slot is given up. Giving a slot up raises its
//! generation, and with that every flow of the rule is dead at once.

use std::{
    collections::{BTreeMap, HashMap as StdHashMap, HashSet},
    fmt,
    net::Ipv4Addr,
};

use aya::maps::{Array, HashMap, LpmTrie, MapData, MapError, PerCpuArray, PerCpuValues, lpm_trie::Key};
use ipnet::Ipv4Net;
use telecluster_common::{
    drop::DropReason,
    maps::{Forward, ForwardKey, MAX_RULES, Masquerade, MasqueradeKey, Rule, RuleStat, Uplink},
    tcp::proto,
};

use super::{
    Plain, batch, failed,
    object::{self, Object, take},
};
use crate::kernel::{
    KernelError,
    dataplane::{Counters, HostAddresses, MapPressure, NatRule, Slot, Transport},
};

type Result<T, E = KernelError> = std::result::Result<T, E>;

/// The maps that the agent writes.
pub(super) struct RuleMaps {
    forwards: HashMap<MapData, Plain<ForwardKey>, Plain<Forward>>,
    masquerades: LpmTrie<MapData, Plain<MasqueradeKey>, Plain<Masquerade>>,
    uplinks: HashMap<MapData, u32, Plain<Uplink>>,
    local: HashMap<MapData, [u8; 4], u32>,
    rules: Array<MapData, Plain<Rule>>,
    /// The same map, for reading all of it at once.
    rule_table: MapData,
    stats: PerCpuArray<MapData, Plain<RuleStat>>,
    drops: PerCpuArray<MapData, u64>,
    /// How many entries `forwards` has: counting them would mean to walk the map.
    forward_count: u64,
}

/// What the maps hold for one rule.
enum Entry {
    Forward(ForwardKey, Forward),
    Masquerade(Key<Plain<MasqueradeKey>>, Masquerade),
}

impl fmt::Debug for RuleMaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RuleMaps").field("forwards", &self.forward_count).finish_non_exhaustive()
    }
}

impl RuleMaps {
    pub(super) fn take(object: &mut Object) -> Result<Self> {
        let mut maps = Self {
            forwards: take(object, "forward4")?,
            masquerades: take(object, "masquerade4")?,
            uplinks: take(object, "uplink4")?,
            local: take(object, "local4")?,
            rule_table: object::duplicate(object, "rule")?,
            rules: take(object, "rule")?,
            stats: take(object, "rule_stat")?,
            drops: take(object, "drop_stat")?,
            forward_count: 0,
        };
        maps.forward_count = maps.forwards.keys().count() as u64;
        Ok(maps)
    }

    /// Puts a rule into a slot. When the very same rule is there already, its flows and counters go on.
    pub(super) fn put(&mut self, slot: Slot, rule: &NatRule) -> Result<()> {
        let present = self.rule(slot)?;
        if present.used == 1 {
            let entries = entries(slot, present.generation, rule);
            if entries.iter().all(|entry| self.holds(entry)) {
                return Ok(());
            }
            self.clear(slot)?;
        }
        let generation = self.rule(slot)?.generation.wrapping_add(1);
        self.reset_counters(slot)?;
        self.set_rule(slot, Rule { generation, used: 1 })?;
        let entries = entries(slot, generation, rule);
        for (done, entry) in entries.iter().enumerate() {
            if let Err(error) = self.insert(entry) {
                for entry in entries.iter().take(done) {
                    self.delete(entry)?;
                }
                self.set_rule(slot, Rule { generation: generation.wrapping_add(1), used: 0 })?;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Takes a rule out of its slot; its flows are dead when this returns.
    pub(super) fn remove(&mut self, slot: Slot, rule: &NatRule) -> Result<()> {
        let present = self.rule(slot)?;
        for entry in entries(slot, present.generation, rule) {
            if self.belongs_to(&entry, slot) {
                self.delete(&entry)?;
            }
        }
        self.retire(slot)
    }

    /// Empties a slot of which only the number is known.
    pub(super) fn clear(&mut self, slot: Slot) -> Result<()> {
        let operation = || format!("clear rule slot {}", slot.0);
        let forwards: Vec<_> = self
            .forwards
            .iter()
            .filter_map(|entry| entry.ok().filter(|(_, value)| value.0.rule == slot.0))
            .map(|(key, value)| Entry::Forward(key.0, value.0))
            .collect();
        let masquerades: Vec<_> = self
            .masquerades
            .iter()
            .filter_map(|entry| entry.ok().filter(|(_, value)| value.0.rule == slot.0))
            .map(|(key, value)| Entry::Masquerade(key, value.0))
            .collect();
        for entry in forwards.iter().chain(&masquerades) {
            self.delete(entry).map_err(|error| KernelError { operation: operation(), ..error })?;
        }
        self.retire(slot)
    }

    fn retire(&mut self, slot: Slot) -> Result<()> {
        let present = self.rule(slot)?;
        if present.used == 0 {
            return Ok(());
        }
        self.set_rule(slot, Rule { generation: present.generation.wrapping_add(1), used: 0 })
    }

    /// Every slot that is taken, with its rule as the maps have it; `None` when they have only half of it.
    pub(super) fn list(&self) -> Result<BTreeMap<Slot, Option<NatRule>>> {
        let mut found = BTreeMap::new();
        self.for_each_rule(|slot, rule| {
            if rule.used == 1 {
                found.insert(slot, None);
            }
        })?;
        for entry in self.forwards.iter() {
            let (Plain(key), Plain(value)) = entry.map_err(|error| failed("list the forwards", &error))?;
            add_forward(found.entry(Slot(value.rule)).or_default(), key, value);
        }
        for entry in self.masquerades.iter() {
            let (key, Plain(value)) = entry.map_err(|error| failed("list the masquerade rules", &error))?;
            let MasqueradeKey { uplink, address } = key.data().0;
            let prefix = u8::try_from(key.prefix_len().saturating_sub(u32::BITS)).unwrap_or(u8::MAX);
            let source = Ipv4Net::new(address.into(), prefix).ok();
            found.insert(Slot(value.rule), source.map(|source| NatRule::Masquerade { uplink, source }));
        }
        Ok(found)
    }

    /// The generation of every slot, by slot.
    pub(super) fn generations(&self) -> Result<Vec<u32>> {
        let mut generations = vec![0; MAX_RULES as usize];
        self.for_each_rule(|slot, rule| {
            if let Some(generation) = generations.get_mut(slot.0 as usize) {
                *generation = rule.generation;
            }
        })?;
        Ok(generations)
    }

    fn for_each_rule(&self, mut visit: impl FnMut(Slot, Rule)) -> Result<()> {
        let sizes = (size_of::<u32>(), size_of::<Rule>());
        batch::for_each(self.rule_table.fd(), sizes, |slot: &u32, rule: &Rule| visit(Slot(*slot), *rule))
            .map_err(|error| failed("read the rule slots", &error))
    }

    /// The host's own addresses, and what each uplink translates to. When that changes, flows to the old address
    /// are dead: nobody could answer them any more.
    pub(super) fn set_addresses(&mut self, addresses: &HostAddresses) -> Result<()> {
        let wanted: HashSet<[u8; 4]> = addresses.local.iter().map(Ipv4Addr::octets).collect();
        let present: HashSet<[u8; 4]> = self.local.keys().filter_map(Result::<_, MapError>::ok).collect();
        for address in wanted.difference(&present) {
            self.local.insert(address, 1, 0).map_err(|error| failed("add a local address", &error))?;
        }
        for address in present.difference(&wanted) {
            self.local.remove(address).map_err(|error| failed("remove a local address", &error))?;
        }

        let wanted: StdHashMap<u32, [u8; 4]> =
            addresses.uplinks.iter().map(|(uplink, address)| (*uplink, address.octets())).collect();
        let present: StdHashMap<u32, [u8; 4]> = self
            .uplinks
            .iter()
            .filter_map(Result::<_, MapError>::ok)
            .map(|(uplink, value)| (uplink, value.0.address))
            .collect();
        for (uplink, address) in &wanted {
            if present.get(uplink) == Some(address) {
                continue;
            }
            self.uplinks
                .insert(uplink, Plain(Uplink { address: *address }), 0)
                .map_err(|error| failed("set the address of an uplink", &error))?;
            if present.contains_key(uplink) {
                self.renew_masquerades(*uplink)?;
            }
        }
        for uplink in present.keys().filter(|uplink| !wanted.contains_key(uplink)) {
            self.uplinks.remove(uplink).map_err(|error| failed("remove the address of an uplink", &error))?;
        }
        Ok(())
    }

    /// A new generation for every masquerade rule of an uplink.
    fn renew_masquerades(&mut self, uplink: u32) -> Result<()> {
        let stale: Vec<_> = self
            .masquerades
            .iter()
            .filter_map(Result::<_, MapError>::ok)
            .filter(|(key, _)| key.data().0.uplink == uplink)
            .collect();
        for (key, Plain(value)) in stale {
            let slot = Slot(value.rule);
            let generation = self.rule(slot)?.generation.wrapping_add(1);
            self.set_rule(slot, Rule { generation, used: 1 })?;
            self.insert(&Entry::Masquerade(key, Masquerade { generation, ..value }))?;
        }
        Ok(())
    }

    pub(super) fn counters(&self, slot: Slot) -> Result<Counters> {
        let values = self
            .stats
            .get(&slot.0, 0)
            .map_err(|error| failed(format!("read counters of slot {}", slot.0), &error))?;
        let mut sum = Counters::default();
        for Plain(stat) in values.iter() {
            let RuleStat { packets_in, bytes_in, packets_out, bytes_out, flows } = *stat;
            sum.packets_in += packets_in;
            sum.bytes_in += bytes_in;
            sum.packets_out += packets_out;
            sum.bytes_out += bytes_out;
            sum.flows += flows;
        }
        Ok(sum)
    }

    pub(super) fn drops(&self) -> Result<Vec<(DropReason, u64)>> {
        let count = |reason: DropReason| {
            let values = self
                .drops
                .get(&(reason as u32), 0)
                .map_err(|error| failed(format!("read drops for {}", reason.name()), &error))?;
            Ok((reason, values.iter().sum()))
        };
        DropReason::ALL.into_iter().map(count).collect()
    }

    pub(super) fn pressure(&self) -> Result<Vec<MapPressure>> {
        let mut rules = 0;
        self.for_each_rule(|_, rule| rules += u64::from(rule.used))?;
        Ok(vec![
            MapPressure { map: "forward4", entries: self.forward_count, capacity: u64::from(2 * MAX_RULES) },
            MapPressure { map: "rule", entries: rules, capacity: u64::from(MAX_RULES) },
        ])
    }

    fn rule(&self, slot: Slot) -> Result<Rule> {
        let rule = self
            .rules
            .get(&slot.0, 0)
            .map_err(|error| failed(format!("read rule slot {}", slot.0), &error))?;
        Ok(rule.0)
    }

    fn set_rule(&mut self, slot: Slot, rule: Rule) -> Result<()> {
        self.rules
            .set(slot.0, Plain(rule), 0)
            .map_err(|error| failed(format!("write rule slot {}", slot.0), &error))
    }

    fn reset_counters(&mut self, slot: Slot) -> Result<()> {
        let operation = || format!("reset counters of slot {}", slot.0);
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| failed(operation(), &error))?;
        let zero = PerCpuValues::try_from(vec![Plain(RuleStat::default()); cpus])
            .map_err(|error| failed(operation(), &error))?;
        self.stats.set(slot.0, zero, 0).map_err(|error| failed(operation(), &error))
    }

    fn holds(&self, entry: &Entry) -> bool {
        match entry {
            Entry::Forward(key, value) => {
                self.forwards.get(&Plain(*key), 0).is_ok_and(|present| present.0 == *value)
            }
            Entry::Masquerade(key, value) => self.exact(key).is_some_and(|present| present == *value),
        }
    }

    fn belongs_to(&self, entry: &Entry, slot: Slot) -> bool {
        match entry {
            Entry::Forward(key, _) => {
                self.forwards.get(&Plain(*key), 0).is_ok_and(|present| present.0.rule == slot.0)
            }
            Entry::Masquerade(key, _) => self.exact(key).is_some_and(|present| present.rule == slot.0),
        }
    }

    /// The value of this very prefix: a lookup in a trie would find a shorter one too.
    fn exact(&self, key: &Key<Plain<MasqueradeKey>>) -> Option<Masquerade> {
        let same = |other: &Key<Plain<MasqueradeKey>>| {
            other.prefix_len() == key.prefix_len() && other.data().0 == key.data().0
        };
        self.masquerades
            .iter()
            .filter_map(Result::<_, MapError>::ok)
            .find_map(|(other, value)| same(&other).then_some(value.0))
    }

    fn insert(&mut self, entry: &Entry) -> Result<()> {
        match entry {
            Entry::Forward(key, value) => {
                self.forwards
                    .insert(Plain(*key), Plain(*value), 0)
                    .map_err(|error| failed(format!("forward port {}", key.port), &error))?;
                self.forward_count += 1;
                Ok(())
            }
            Entry::Masquerade(key, value) => self
                .masquerades
                .insert(key, Plain(*value), 0)
                .map_err(|error| failed(format!("masquerade {}", network(key)), &error)),
        }
    }

    fn delete(&mut self, entry: &Entry) -> Result<()> {
        match entry {
            Entry::Forward(key, _) => {
                self.forwards
                    .remove(&Plain(*key))
                    .map_err(|error| failed(format!("stop forwarding port {}", key.port), &error))?;
                self.forward_count -= 1;
                Ok(())
            }
            Entry::Masquerade(key, _) => self
                .masquerades
                .remove(key)
                .map_err(|error| failed(format!("stop masquerading {}", network(key)), &error)),
        }
    }
}

/// Adds an entry of `forward4` to the rule that it is part of: tcp and udp are entries of their own.
fn add_forward(rule: &mut Option<NatRule>, key: ForwardKey, value: Forward) {
    let transport = if key.proto == proto::TCP { Transport::Tcp } else { Transport::Udp };
    match rule {
        Some(NatRule::Forward { transports, .. }) => {
            transports.push(transport);
            transports.sort_unstable();
        }
        Some(NatRule::Masquerade { .. }) => {}
        None => {
            *rule = Some(NatRule::Forward {
                uplink: key.uplink,
                external_ip: (key.address != [0; 4]).then(|| key.address.into()),
                external_port: key.port,
                internal_ip: value.address.into(),
                internal_port: value.port,
                transports: vec![transport],
            });
        }
    }
}

/// A rule as map entries: a pure function, so that what is put and what is removed cannot differ.
fn entries(slot: Slot, generation: u32, rule: &NatRule) -> Vec<Entry> {
    match rule {
        NatRule::Forward { uplink, external_ip, external_port, internal_ip, internal_port, transports } => {
            let value = Forward {
                address: internal_ip.octets(),
                port: *internal_port,
                unused: 0,
                rule: slot.0,
                generation,
            };
            let key = |transport: &Transport| ForwardKey {
                uplink: *uplink,
                address: external_ip.map_or([0; 4], |address| address.octets()),
                port: *external_port,
                proto: match transport {
                    Transport::Tcp => proto::TCP,
                    Transport::Udp => proto::UDP,
                },
                unused: 0,
            };
            transports.iter().map(|transport| Entry::Forward(key(transport), value)).collect()
        }
        NatRule::Masquerade { uplink, source } => {
            let key = MasqueradeKey { uplink: *uplink, address: source.network().octets() };
            let key = Key::new(u32::BITS + u32::from(source.prefix_len()), Plain(key));
            vec![Entry::Masquerade(key, Masquerade { rule: slot.0, generation })]
        }
    }
}

fn network(key: &Key<Plain<MasqueradeKey>>) -> String {
    let MasqueradeKey { uplink: _, address } = key.data().0;
    format!("{}/{}", Ipv4Addr::from(address), key.prefix_len().saturating_sub(u32::BITS))
}
