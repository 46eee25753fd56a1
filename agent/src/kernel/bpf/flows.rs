//! Flows out of the tables: the two directions joined into one, the dead ones removed.

use std::{collections::HashMap, path::Path, time::Duration};

use aya::maps::MapData;
use nix::time::{ClockId, clock_gettime};
use telecluster_common::{
    maps::{Direction, Epoch, Flow as Record, FlowKey, Rule, TICK_BITS, flag, ticks},
    nat::{
        collect::MARGIN,
        fast::{is_ahead, is_fast},
    },
    tcp::{FlowState, proto, timeout},
};

use super::{
    batch,
    collect::Collector,
    failed,
    family::Octets,
    object::{self, Object},
};
use crate::kernel::{
    KernelError,
    dataplane::{Counters, Flow, MapPressure, Slot},
};

/// `flow4` and `flow6`.
#[derive(Debug)]
pub(super) struct FlowTables {
    ipv4: Table,
    ipv6: Table,
    collect4: Collector<[u8; 4]>,
    collect6: Collector<[u8; 16]>,
}

#[derive(Debug)]
pub(super) struct Table {
    name: &'static str,
    data: MapData,
    sizes: (usize, usize),
    capacity: u32,
}

impl Table {
    pub(super) fn open(object: &Object, name: &'static str) -> Result<Self, KernelError> {
        let data = object::duplicate(object, name)?;
        let info = data.info().map_err(|error| failed(format!("describe the map {name}"), &error))?;
        let sizes = (info.key_size() as usize, info.value_size() as usize);
        Ok(Self { name, data, sizes, capacity: info.max_entries() })
    }

    pub(super) fn for_each<K: Copy, V: Copy>(&self, visit: impl FnMut(&K, &V)) -> Result<(), KernelError> {
        batch::for_each(self.data.fd(), self.sizes, visit)
            .map_err(|error| failed(format!("read the map {}", self.name), &error))
    }

    /// Every live flow.
    fn list<A: Octets>(&self, rules: &[Rule], epoch: Epoch, now: u64) -> Result<Vec<Flow>, KernelError> {
        let mut join = Join::<A>::default();
        self.for_each(|key: &FlowKey<A>, record: &Record<A>| {
            if let Some(rule) = rule_of(key, record, rules, now, 0) {
                join.add(key, record, rule, epoch, now);
            }
        })?;
        Ok(join.flows)
    }

    /// What may be over.
    fn over<A: Octets>(&self, rules: &[Rule], now: u64) -> Result<Vec<FlowKey<A>>, KernelError> {
        let mut over = Vec::new();
        self.for_each(|key: &FlowKey<A>, record: &Record<A>| {
            if rule_of(key, record, rules, now, MARGIN).is_none() {
                over.push(*key);
            }
        })?;
        Ok(over)
    }

    /// Frees an entry; false when it was gone already.
    pub(super) fn delete<K: Copy>(&self, key: &K) -> Result<bool, KernelError> {
        batch::delete(self.data.fd(), key)
            .map_err(|error| failed(format!("free an entry of {}", self.name), &error))
    }

    pub(super) fn pressure<K: Copy, V: Copy>(&self) -> Result<MapPressure, KernelError> {
        let mut entries = 0;
        self.for_each::<K, V>(|_, _| entries += 1)?;
        Ok(MapPressure { map: self.name, entries, capacity: u64::from(self.capacity) })
    }
}

impl FlowTables {
    /// `directory`: where the programs are pinned.
    pub(super) fn open(object: &Object, directory: &Path) -> Result<Self, KernelError> {
        Ok(Self {
            ipv4: Table::open(object, "flow4")?,
            ipv6: Table::open(object, "flow6")?,
            collect4: Collector::open(directory)?,
            collect6: Collector::open(directory)?,
        })
    }

    /// Every live flow. `rules`: what is in each slot; `epoch`: what ways are learned under.
    pub(super) fn list(&self, rules: &[Rule], epoch: Epoch) -> Result<Vec<Flow>, KernelError> {
        let now = now()?;
        let mut flows = self.ipv4.list::<[u8; 4]>(rules, epoch, now)?;
        flows.extend(self.ipv6.list::<[u8; 16]>(rules, epoch, now)?);
        Ok(flows)
    }

    /// Frees what is over; returns how many flows.
    pub(super) fn collect_garbage(&self, rules: &[Rule]) -> Result<usize, KernelError> {
        let now = now()?;
        let ipv4 = self.collect4.collect(&self.ipv4.over(rules, now)?)?;
        let ipv6 = self.collect6.collect(&self.ipv6.over(rules, now)?)?;
        Ok(ipv4 + ipv6)
    }

    pub(super) fn pressure(&self) -> Result<Vec<MapPressure>, KernelError> {
        Ok(vec![
            self.ipv4.pressure::<FlowKey<[u8; 4]>, Record<[u8; 4]>>()?,
            self.ipv6.pressure::<FlowKey<[u8; 16]>, Record<[u8; 16]>>()?,
        ])
    }
}

/// The programs' clock.
pub(super) fn now() -> Result<u64, KernelError> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)
        .map_err(|errno| KernelError::errno("read the clock", errno as i32))?;
    let (seconds, nanoseconds) = (time.tv_sec().unsigned_abs(), time.tv_nsec().unsigned_abs());
    Ok(seconds * 1_000_000_000 + nanoseconds)
}

/// The rule that made a live flow; `None` when it is over: its rule is gone, or it has been idle for longer than its
/// state allows.
fn rule_of<'a, A: Octets>(
    key: &FlowKey<A>,
    record: &Record<A>,
    rules: &'a [Rule],
    now: u64,
    grace: u32,
) -> Option<&'a Rule> {
    let rule = rules.get(record.rule as usize).filter(|rule| rule.generation == record.generation)?;
    let allowed = timeout(&rule.timeouts, key.proto, FlowState::from_u8(record.state));
    // The programs' own tick of grace, see `nat::life`.
    let limit = u64::from(ticks(allowed)) + (1 << (32 - TICK_BITS)) + u64::from(grace);
    (idle(record.last_seen, now) <= limit).then_some(rule)
}

/// Ticks since a flow was seen; a program may have seen it after we looked at the clock.
#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "a clock that wraps")]
pub(super) fn idle(last_seen: u32, now: u64) -> u64 {
    let idle = ((now >> TICK_BITS) as u32).wrapping_sub(last_seen) as i32;
    u64::try_from(idle).unwrap_or(0)
}

/// An address and a port.
type Socket<A> = (A, u16);

/// Both directions of a flow meet here, in whichever order the maps give them.
struct Join<A> {
    flows: Vec<Flow>,
    /// (protocol, external, remote) to its place in `flows`. Strangers choose what is in it, so the hash is seeded, but it need
    /// not be a cryptographer's: with a million flows that would be half of the work.
    places: HashMap<(u8, Socket<A>, Socket<A>), usize, foldhash::fast::RandomState>,
}

impl<A> Default for Join<A> {
    fn default() -> Self {
        Self { flows: Vec::new(), places: HashMap::default() }
    }
}

impl<A: Octets> Join<A> {
    fn add(&mut self, key: &FlowKey<A>, record: &Record<A>, rule: &Rule, epoch: Epoch, now: u64) {
        let [src, dst, to_src, to_dst] = [
            (key.src, key.sport),
            (key.dst, key.dport),
            (record.to_src, record.to_sport),
            (record.to_dst, record.to_dport),
        ];
        let out = key.direction == Direction::Out as u8;
        let (inside, external, remote) = if out { (src, to_src, to_dst) } else { (to_dst, dst, src) };
        let place = *self.places.entry((key.proto, external, remote)).or_insert_with(|| {
            self.flows.push(Flow {
                protocol: key.proto,
                inside: (inside.0.ip(), inside.1),
                external: (external.0.ip(), external.1),
                remote: (remote.0.ip(), remote.1),
                counters: Counters::default(),
                state: FlowState::from_u8(record.state),
                proven: false,
                fast: true,
                age: Duration::ZERO,
                idle: Duration::MAX,
                slot: Slot(record.rule),
                uplink: rule.uplink,
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
        // A direction that nobody uses takes no way at all; a connection that ends takes the kernel's, if that may track it.
        let ends = key.proto == proto::TCP && record.state != FlowState::Established as u8;
        let may_be_fast = !ends || is_ahead(epoch.alike, now);
        flow.fast &=
            record.packets == 0 || (may_be_fast && is_fast(record.stamp, record.lease, epoch.current, now));
        flow.proven |= record.flags & flag::PROVEN != 0;
        let age = (now / 1_000_000_000).saturating_sub(u64::from(record.created));
        flow.age = flow.age.max(Duration::from_secs(age));
        flow.idle = flow.idle.min(Duration::from_nanos(idle(record.last_seen, now) << TICK_BITS));
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use telecluster_common::maps::Timeouts;

    use super::*;

    type A = [u8; 4];

    const INSIDE: A = [192, 168, 100, 10];
    const OUTSIDE: A = [203, 0, 113, 1];
    const REMOTE: A = [198, 51, 100, 7];
    const SECOND: u64 = 1_000_000_000;

    fn key(direction: Direction) -> FlowKey<A> {
        let (src, dst, sport, dport) = match direction {
            Direction::Out => (INSIDE, REMOTE, 4000, 53),
            Direction::In => (REMOTE, OUTSIDE, 53, 5000),
        };
        FlowKey { src, dst, sport, dport, proto: 17, direction: direction as u8, unused: 0 }
    }

    fn record(direction: Direction) -> Record<A> {
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
            hop: 0,
            stamp: 0,
            lease: 0,
            last_seen: ticks(12),
            packets: if direction == Direction::Out { 7 } else { 5 },
            bytes: 100,
            created: 10,
            state: 1,
            flags: flag::PROVEN,
            synced: 0,
        }
    }

    fn rule(generation: u32) -> Rule {
        Rule { generation, used: 1, uplink: 2, flags: 0, timeouts: Timeouts::RFC }
    }

    fn socket(address: A, port: u16) -> (IpAddr, u16) {
        (Ipv4Addr::from(address).into(), port)
    }

    #[test]
    fn both_directions_become_one_flow_in_either_order() {
        for order in [[Direction::In, Direction::Out], [Direction::Out, Direction::In]] {
            let mut join = Join::default();
            for direction in order {
                join.add(&key(direction), &record(direction), &rule(1), Epoch::default(), 15 * SECOND);
            }
            let [flow] = &join.flows[..] else { panic!("{:?}", join.flows) };
            assert_eq!(flow.inside, socket(INSIDE, 4000));
            assert_eq!(flow.external, socket(OUTSIDE, 5000));
            assert_eq!(flow.remote, socket(REMOTE, 53));
            assert_eq!((flow.counters.packets_out, flow.counters.packets_in), (7, 5));
            assert_eq!(
                (flow.age.as_secs(), flow.idle.as_millis() / 100),
                (5, 29),
                "12 s of ticks are longer"
            );
            assert_eq!((flow.proven, flow.uplink), (true, 2));
        }
    }

    #[test]
    fn a_flow_ends_with_its_rule_or_with_its_time() {
        let (key, record) = (key(Direction::Out), record(Direction::Out));
        let rules = |generation| [rule(0), rule(0), rule(0), rule(generation)];
        let lives = |rules: &[Rule], seconds: u64, grace| {
            rule_of(&key, &record, rules, (12 + seconds) * SECOND, grace).is_some()
        };
        assert!(lives(&rules(1), 299, 0));
        assert!(!lives(&rules(2), 299, 0), "the slot has another rule now");
        assert!(!lives(&[], 299, 0), "there is no such slot");
        assert!(!lives(&rules(1), 306, 0), "UDP idles 300 s");
        assert!(lives(&rules(1), 306, MARGIN));
    }

    #[test]
    fn a_flow_that_was_seen_after_we_looked_at_the_clock_is_not_idle() {
        assert_eq!(idle(ticks(12), 11 * SECOND), 0);
        assert_eq!(idle(u32::MAX, 0), 1, "the clock of ticks wraps");
    }
}
