//! The rule maps of one address family: `forward4`, `forwarded4`, `range4`, `source4`, `masquerade4`, `uplink4`, `local4`, `pool4`, or
//! those of IPv6.

use std::{
    collections::{BTreeMap, HashMap as StdHashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use aya::maps::{HashMap, LpmTrie, MapData, MapError, lpm_trie::Key};
use ipnet::IpNet;
use telecluster_common::{
    family::Address,
    maps::{
        Forward, ForwardKey, MAX_BLOCKS, MAX_RULES, Masquerade, MasqueradeKey, Opening, Range, RangeKey,
        Rule, SourceKey, Timeouts, Uplink, rule,
    },
};

use super::{
    Plain, failed,
    forwarded::{ForwardedPorts, Ports},
    forwards::{self, Parts},
    local::{self, LocalAddresses, Pooled},
    object::{Object, take},
};
use crate::kernel::{
    KernelError,
    dataplane::{MapPressure, NatRule, NatType, Slot},
};

type Result<T, E = KernelError> = std::result::Result<T, E>;

/// An address as the maps have it.
pub(super) trait Octets: Address + aya::Pod + Ord + Send + Sync {
    /// `forward4`, `masquerade4`, `uplink4`, `local4`, `range4`, `source4`, `pool4`, `forwarded4`.
    const MAPS: [&'static str; 8];

    /// `None`: of the other family.
    fn from_ip(ip: IpAddr) -> Option<Self>;
    fn ip(self) -> IpAddr;
}

impl Octets for [u8; 4] {
    const MAPS: [&'static str; 8] =
        ["forward4", "masquerade4", "uplink4", "local4", "range4", "source4", "pool4", "forwarded4"];

    fn from_ip(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(ip) => Some(ip.octets()),
            IpAddr::V6(_) => None,
        }
    }

    fn ip(self) -> IpAddr {
        Ipv4Addr::from(self).into()
    }
}

impl Octets for [u8; 16] {
    const MAPS: [&'static str; 8] =
        ["forward6", "masquerade6", "uplink6", "local6", "range6", "source6", "pool6", "forwarded6"];

    fn from_ip(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(_) => None,
            IpAddr::V6(ip) => Some(ip.octets()),
        }
    }

    fn ip(self) -> IpAddr {
        Ipv6Addr::from(self).into()
    }
}

/// The maps that the agent writes.
pub(super) struct FamilyMaps<A: Octets> {
    forwards: HashMap<MapData, Plain<ForwardKey<A>>, Plain<Forward<A>>>,
    ranges: LpmTrie<MapData, Plain<RangeKey<A>>, Plain<Range<A>>>,
    /// The ports of both.
    forwarded: ForwardedPorts,
    sources: LpmTrie<MapData, Plain<SourceKey<A>>, u32>,
    masquerades: LpmTrie<MapData, Plain<MasqueradeKey<A>>, Plain<Masquerade>>,
    uplinks: HashMap<MapData, u32, Plain<Uplink<A>>>,
    local: LocalAddresses<A>,
    /// What uplinks translated to that have no address at the moment: their flows go on when it comes back.
    gone: StdHashMap<u32, A>,
    /// How many entries `forwards`, `ranges` and `sources` have: counting them would mean to walk the maps.
    counts: [u64; 3],
}

/// What the maps hold for a part of a rule.
pub(super) enum Entry<A> {
    Forward(ForwardKey<A>, Forward<A>),
    Range(Key<Plain<RangeKey<A>>>, Range<A>),
    /// With the rule's generation.
    Source(Key<Plain<SourceKey<A>>>, u32),
    Masquerade(Key<Plain<MasqueradeKey<A>>>, Masquerade),
    Pool(Pooled<A>),
}

impl<A: Octets> FamilyMaps<A> {
    pub(super) fn take(object: &mut Object) -> Result<Self> {
        let [forward, masquerade, uplink, local, range, source, pool, forwarded] = A::MAPS;
        let mut maps = Self {
            forwards: take(object, forward)?,
            ranges: take(object, range)?,
            forwarded: ForwardedPorts::take(object, forwarded)?,
            sources: take(object, source)?,
            masquerades: take(object, masquerade)?,
            uplinks: take(object, uplink)?,
            local: LocalAddresses::take(object, local, pool)?,
            gone: StdHashMap::new(),
            counts: [0; 3],
        };
        let singles = maps.forwards.keys().filter_map(Result::<_, MapError>::ok).map(|key| single(&key.0));
        let blocks = maps.ranges.keys().filter_map(Result::<_, MapError>::ok).map(|key| block(&key));
        maps.forwarded.adopt(singles.chain(blocks))?;
        let counts = [maps.forwards.keys().count(), maps.ranges.keys().count(), maps.sources.keys().count()];
        maps.counts = counts.map(|count| count as u64);
        let listed = maps.masquerades.iter().filter_map(Result::<_, MapError>::ok);
        let uplinks: StdHashMap<u32, u32> =
            listed.map(|(key, value)| (value.0.rule, key.data().0.uplink)).collect();
        maps.local.adopt(&uplinks)?;
        Ok(maps)
    }

    /// Everything that the maps hold for a slot.
    pub(super) fn entries_of(&self, slot: Slot) -> Vec<Entry<A>> {
        let forwards = self
            .forwards
            .iter()
            .filter_map(|entry| entry.ok().filter(|(_, value)| value.0.rule == slot.0))
            .map(|(key, value)| Entry::Forward(key.0, value.0));
        let ranges = self
            .ranges
            .iter()
            .filter_map(|entry| entry.ok().filter(|(_, value)| value.0.rule == slot.0))
            .map(|(key, value)| Entry::Range(key, value.0));
        let sources = self
            .sources
            .iter()
            .filter_map(|entry| entry.ok().filter(|(key, _)| key.data().0.rule == slot.0))
            .map(|(key, generation)| Entry::Source(key, generation));
        let masquerades = self
            .masquerades
            .iter()
            .filter_map(|entry| entry.ok().filter(|(_, value)| value.0.rule == slot.0))
            .map(|(key, value)| Entry::Masquerade(key, value.0));
        let pool = self.local.pool(slot).map(Entry::Pool);
        sources.chain(pool).chain(forwards).chain(ranges).chain(masquerades).collect()
    }

    /// Adds to each slot the rule that the maps hold for it.
    pub(super) fn list(
        &self,
        rules: &[Rule],
        opening: impl Fn(Slot) -> Result<Opening>,
        found: &mut BTreeMap<Slot, Option<NatRule>>,
    ) -> Result<()> {
        let said = |slot: u32| {
            rules.get(slot as usize).map_or((0, Timeouts::RFC), |rule| (rule.flags, rule.timeouts))
        };
        let mut parts = self.forwards()?;
        for entry in self.masquerades.iter() {
            let (key, Plain(value)) = entry.map_err(|error| failed("list the masquerade rules", &error))?;
            let source = network(&key);
            let uplink = key.data().0.uplink;
            let (flags, timeouts) = said(value.rule);
            let nat = NatType::from_flags(flags);
            let parity = flags & rule::PARITY != 0;
            let except = parts.remove(&Slot(value.rule)).map(Parts::into_networks).unwrap_or_default();
            let pool: Vec<IpAddr> =
                self.local.pool(Slot(value.rule)).map(|pooled| pooled.address.ip()).collect();
            let Opening { pool: addresses, flows_per_second: new_flows } = opening(Slot(value.rule))?;
            let whole = (flags & rule::EXCEPT != 0) != except.is_empty()
                && u32::try_from(pool.len()) == Ok(addresses);
            let rule = source.filter(|_| whole);
            let rule = rule.map(|source| NatRule::Masquerade {
                uplink,
                source,
                nat,
                parity,
                except,
                pool,
                new_flows,
                timeouts,
            });
            found.insert(Slot(value.rule), rule);
        }
        for (slot, parts) in parts {
            let (flags, timeouts) = said(slot.0);
            let Opening { pool: _, flows_per_second } = opening(slot)?;
            found.insert(slot, parts.rule(flags, flows_per_second, timeouts));
        }
        Ok(())
    }

    /// What there is of the forward of each slot.
    fn forwards(&self) -> Result<BTreeMap<Slot, Parts<A>>> {
        let listed = |error: MapError| failed("list the forwards", &error);
        let mut parts: BTreeMap<Slot, Parts<A>> = BTreeMap::new();
        for entry in self.forwards.iter() {
            let (Plain(key), Plain(value)) = entry.map_err(listed)?;
            parts.entry(Slot(value.rule)).or_default().add_single(key, value);
        }
        for entry in self.ranges.iter() {
            let (key, Plain(value)) = entry.map_err(listed)?;
            parts.entry(Slot(value.rule)).or_default().add_block(&key, value);
        }
        for entry in self.sources.iter() {
            let (key, _) = entry.map_err(listed)?;
            parts.entry(Slot(key.data().0.rule)).or_default().add_source(&key);
        }
        Ok(parts)
    }

    /// The host's own addresses, each with the uplink that it is on, or 0.
    pub(super) fn set_local(&mut self, wanted: &StdHashMap<A, u32>) -> Result<()> {
        self.local.set(wanted)
    }

    /// Sets what uplinks translate to; returns those whose flows, if they have any, are to another address.
    pub(super) fn set_uplinks(&mut self, wanted: &StdHashMap<u32, A>) -> Result<Vec<u32>> {
        let present: StdHashMap<u32, A> = self
            .uplinks
            .iter()
            .filter_map(Result::<_, MapError>::ok)
            .map(|(uplink, value)| (uplink, value.0.address))
            .collect();
        let mut changed = Vec::new();
        for (uplink, address) in wanted {
            if present.get(uplink) == Some(address) {
                continue;
            }
            self.set_uplink(*uplink, *address)?;
            if self.gone.remove(uplink) != Some(*address) {
                changed.push(*uplink);
            }
        }
        for (uplink, address) in present.iter().filter(|(uplink, _)| !wanted.contains_key(*uplink)) {
            self.uplinks.remove(uplink).map_err(|error| failed("remove the address of an uplink", &error))?;
            self.gone.insert(*uplink, *address);
        }
        Ok(changed)
    }

    fn set_uplink(&mut self, uplink: u32, address: A) -> Result<()> {
        let to_it =
            self.masquerades_of(uplink).into_iter().filter(|(_, value)| !self.has_pool(Slot(value.rule)));
        let masquerades = u32::try_from(to_it.count()).unwrap_or(u32::MAX);
        self.uplinks
            .insert(uplink, Plain(Uplink { address, masquerades }), 0)
            .map_err(|error| failed("set the address of an uplink", &error))
    }

    /// After its masquerade rules have changed.
    fn count_masquerades(&mut self, uplink: u32) -> Result<()> {
        match self.uplinks.get(&uplink, 0) {
            Ok(Plain(present)) => self.set_uplink(uplink, present.address),
            // It has no address of this family.
            Err(MapError::KeyNotFound) => Ok(()),
            Err(error) => Err(failed("read the address of an uplink", &error)),
        }
    }

    /// The networks that a rule names belong to its next generation too.
    pub(super) fn renew_networks(&mut self, slot: Slot, generation: u32) -> Result<()> {
        let listed = self.sources.keys().filter_map(Result::<_, MapError>::ok);
        let keys: Vec<_> = listed.filter(|key| key.data().0.rule == slot.0).collect();
        for key in keys {
            self.sources
                .insert(&key, generation, 0)
                .map_err(|error| failed("renew a network of a rule", &error))?;
        }
        Ok(())
    }

    /// The masquerade rules of an uplink.
    pub(super) fn masquerades_of(&self, uplink: u32) -> Vec<(Key<Plain<MasqueradeKey<A>>>, Masquerade)> {
        self.masquerades
            .iter()
            .filter_map(Result::<_, MapError>::ok)
            .filter(|(key, _)| key.data().0.uplink == uplink)
            .map(|(key, value)| (key, value.0))
            .collect()
    }

    /// Whether a masquerade translates to addresses of its own.
    pub(super) fn has_pool(&self, slot: Slot) -> bool {
        self.local.pool(slot).next().is_some()
    }

    pub(super) fn holds(&self, entry: &Entry<A>) -> bool {
        match entry {
            Entry::Forward(key, value) => {
                self.forwards.get(&Plain(*key), 0).is_ok_and(|present| present.0 == *value)
            }
            // A shorter prefix would be found too: none of the same rule covers another one.
            Entry::Range(key, value) => self.ranges.get(key, 0).is_ok_and(|present| present.0 == *value),
            Entry::Source(key, generation) => {
                self.sources.get(key, 0).is_ok_and(|present| present == *generation)
            }
            Entry::Masquerade(key, value) => self.exact(key).is_some_and(|present| present == *value),
            Entry::Pool(pooled) => self.local.pool(pooled.slot()).any(|present| present == *pooled),
        }
    }

    pub(super) fn belongs_to(&self, entry: &Entry<A>, slot: Slot) -> bool {
        match entry {
            Entry::Forward(key, _) => {
                self.forwards.get(&Plain(*key), 0).is_ok_and(|present| present.0.rule == slot.0)
            }
            Entry::Range(key, _) => self.ranges.get(key, 0).is_ok_and(|present| present.0.rule == slot.0),
            Entry::Source(key, _) => self.sources.get(key, 0).is_ok(),
            Entry::Masquerade(key, _) => self.exact(key).is_some_and(|present| present.rule == slot.0),
            Entry::Pool(pooled) => self.local.pool(slot).any(|present| present.key == pooled.key),
        }
    }

    /// The value of this very prefix: a lookup in a trie would find a shorter one too.
    fn exact(&self, key: &Key<Plain<MasqueradeKey<A>>>) -> Option<Masquerade> {
        let same = |other: &Key<Plain<MasqueradeKey<A>>>| {
            other.prefix_len() == key.prefix_len() && other.data().0 == key.data().0
        };
        self.masquerades
            .iter()
            .filter_map(Result::<_, MapError>::ok)
            .find_map(|(other, value)| same(&other).then_some(value.0))
    }

    pub(super) fn insert(&mut self, entry: &Entry<A>) -> Result<()> {
        match entry {
            Entry::Forward(key, value) => {
                self.forwarded.add(&single(key))?;
                if let Err(error) = self.forwards.insert(Plain(*key), Plain(*value), 0) {
                    self.forwarded.remove(&single(key))?;
                    return Err(failed(format!("forward port {}", key.port), &error));
                }
                self.counts[0] += 1;
                Ok(())
            }
            Entry::Range(key, value) => {
                self.forwarded.add(&block(key))?;
                if let Err(error) = self.ranges.insert(key, Plain(*value), 0) {
                    self.forwarded.remove(&block(key))?;
                    return Err(failed(format!("forward the ports from {} on", first(key)), &error));
                }
                self.counts[1] += 1;
                Ok(())
            }
            Entry::Source(key, generation) => {
                self.sources
                    .insert(key, generation, 0)
                    .map_err(|error| failed("add a network to a rule", &error))?;
                self.counts[2] += 1;
                Ok(())
            }
            Entry::Masquerade(key, value) => {
                self.masquerades
                    .insert(key, Plain(*value), 0)
                    .map_err(|error| failed(format!("masquerade {}", label(key)), &error))?;
                self.count_masquerades(key.data().0.uplink)
            }
            Entry::Pool(pooled) => self.local.add(*pooled),
        }
    }

    pub(super) fn delete(&mut self, entry: &Entry<A>) -> Result<()> {
        match entry {
            Entry::Forward(key, _) => {
                self.forwards
                    .remove(&Plain(*key))
                    .map_err(|error| failed(format!("stop forwarding port {}", key.port), &error))?;
                self.counts[0] -= 1;
                self.forwarded.remove(&single(key))
            }
            Entry::Range(key, _) => {
                self.ranges.remove(key).map_err(|error| {
                    failed(format!("stop forwarding the ports from {} on", first(key)), &error)
                })?;
                self.counts[1] -= 1;
                self.forwarded.remove(&block(key))
            }
            Entry::Source(key, _) => {
                self.sources.remove(key).map_err(|error| failed("take a network from a rule", &error))?;
                self.counts[2] -= 1;
                Ok(())
            }
            Entry::Masquerade(key, _) => {
                self.masquerades
                    .remove(key)
                    .map_err(|error| failed(format!("stop masquerading {}", label(key)), &error))?;
                self.count_masquerades(key.data().0.uplink)
            }
            Entry::Pool(pooled) => self.local.forget(*pooled),
        }
    }

    pub(super) fn pressure(&self) -> [MapPressure; 3] {
        let [forward, _, _, _, range, source, _, _] = A::MAPS;
        let [forwards, ranges, sources] = self.counts;
        let pressure = |map, entries, capacity| MapPressure { map, entries, capacity: u64::from(capacity) };
        [
            pressure(forward, forwards, 2 * MAX_RULES),
            pressure(range, ranges, MAX_BLOCKS),
            pressure(source, sources, MAX_BLOCKS),
        ]
    }
}

/// A rule as map entries, when it is of this family: a pure function, so that what is put and what is removed cannot
/// differ.
pub(super) fn entries<A: Octets>(slot: Slot, generation: u32, rule: &NatRule) -> Vec<Entry<A>> {
    match rule {
        NatRule::Forward { .. } => forwards::entries(slot, generation, rule),
        NatRule::Masquerade {
            uplink,
            source,
            nat: _,
            parity: _,
            except,
            pool,
            new_flows: _,
            timeouts: _,
        } => {
            let Some(address) = A::from_ip(source.network()) else {
                return Vec::new();
            };
            let key = MasqueradeKey { uplink: *uplink, address };
            let key = Key::new(u32::BITS + u32::from(source.prefix_len()), Plain(key));
            // What it leaves alone, and what it translates to, before the rule itself.
            let mut entries = forwards::networks(slot, generation, except);
            entries.extend(local::pool(slot, *uplink, pool).map(Entry::Pool));
            entries.push(Entry::Masquerade(key, Masquerade { rule: slot.0, generation }));
            entries
        }
    }
}

fn single<A>(key: &ForwardKey<A>) -> Ports {
    (key.proto, key.port..=key.port)
}

fn block<A: Octets>(key: &Key<Plain<RangeKey<A>>>) -> Ports {
    (key.data().0.proto, forwards::ports(key))
}

/// The first port of a block.
fn first<A: Octets>(key: &Key<Plain<RangeKey<A>>>) -> u16 {
    u16::from_be_bytes(key.data().0.port)
}

fn network<A: Octets>(key: &Key<Plain<MasqueradeKey<A>>>) -> Option<IpNet> {
    let prefix = u8::try_from(key.prefix_len().saturating_sub(u32::BITS)).ok()?;
    IpNet::new(key.data().0.address.ip(), prefix).ok()
}

fn label<A: Octets>(key: &Key<Plain<MasqueradeKey<A>>>) -> String {
    network(key).map_or_else(|| "a network".to_owned(), |network| network.to_string())
}
