//! The two directions of each flow, joined into one.

use std::{collections::HashMap, hash::BuildHasher as _, time::Duration};

use foldhash::fast::RandomState;
use telecluster_common::{
    maps::{Direction, Epoch, Flow as Record, FlowKey, Rule, TICK_BITS, flag},
    nat::fast::{is_ahead, is_fast},
    tcp::{FlowState, proto},
};

use super::{family::Octets, flows::idle};
use crate::kernel::dataplane::{Counters, Flow, FlowVisitor, Slot};

/// An address and a port.
type Socket<A> = (A, u16);

/// What both directions of a flow have in common: protocol, external and remote socket.
type Tuple<A> = (u8, Socket<A>, Socket<A>);

/// A direction of a flow.
type Half<A> = (FlowKey<A>, Record<A>);

/// Heaps that halves are sorted into.
const HEAPS: usize = 64;

/// What a look at the tables is told by.
pub(super) struct Look<'a> {
    /// What is in each slot.
    pub(super) rules: &'a [Rule],
    /// What ways are learned under.
    pub(super) epoch: Epoch,
    pub(super) now: u64,
}

/// Halves are first sorted into heaps, so that both of a flow are in one, and then joined heap by heap: what is at hand then fits
/// into the processor's cache, and the heaps do not concern each other.
///
/// Strangers choose what is hashed, so the hash is seeded, but it need not be a cryptographer's.
#[derive(Default)]
pub(super) struct Sorter(RandomState);

impl Sorter {
    pub(super) fn heaps<A>(&self) -> Vec<Vec<Half<A>>> {
        (0..HEAPS).map(|_| Vec::new()).collect()
    }

    pub(super) fn put<A: Octets>(&self, heaps: &mut [Vec<Half<A>>], key: &FlowKey<A>, record: &Record<A>) {
        // Neither of the bits that a hash map begins with.
        let heap = self.0.hash_one(tuple(key, record)) >> 32;
        let heap = usize::try_from(heap).unwrap_or_default() % HEAPS;
        if let Some(heap) = heaps.get_mut(heap) {
            heap.push((*key, *record));
        }
    }

    /// Shows the flows of some heaps, heap by heap; each is gone with that.
    pub(super) fn join<A: Octets>(
        &self,
        heaps: Vec<[Vec<Half<A>>; 2]>,
        look: &Look<'_>,
        visit: FlowVisitor<'_>,
    ) {
        let mut join = Join { flows: Vec::new(), places: HashMap::with_hasher(self.0.clone()) };
        for heap in heaps {
            join.flows.clear();
            join.places.clear();
            for (key, record) in heap.iter().flatten() {
                join.add(key, record, look);
            }
            visit(&join.flows);
        }
    }
}

/// The heaps of two readers, each beside the other's.
pub(super) fn merge<A>(one: Vec<Vec<Half<A>>>, other: Vec<Vec<Half<A>>>) -> Vec<[Vec<Half<A>>; 2]> {
    one.into_iter().zip(other).map(|(one, other)| [one, other]).collect()
}

fn tuple<A: Copy>(key: &FlowKey<A>, record: &Record<A>) -> Tuple<A> {
    let (src, dst) = ((key.src, key.sport), (key.dst, key.dport));
    let (to_src, to_dst) = ((record.to_src, record.to_sport), (record.to_dst, record.to_dport));
    if is_out(key) { (key.proto, to_src, to_dst) } else { (key.proto, dst, src) }
}

fn is_out<A>(key: &FlowKey<A>) -> bool {
    key.direction == Direction::Out as u8
}

/// Both directions of a flow meet here, in whichever order the maps give them; one that is met twice counts once.
struct Join<A> {
    flows: Vec<Flow>,
    places: HashMap<Tuple<A>, usize, RandomState>,
}

impl<A: Octets> Join<A> {
    fn add(&mut self, key: &FlowKey<A>, record: &Record<A>, look: &Look<'_>) {
        let Some(rule) = look.rules.get(record.rule as usize) else {
            return;
        };
        let (epoch, now, out) = (look.epoch, look.now, is_out(key));
        let (_, external, remote) = tuple(key, record);
        let inside = if out { (key.src, key.sport) } else { (record.to_dst, record.to_dport) };
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
            flow.counters.packets_out = record.packets;
            flow.counters.bytes_out = record.bytes;
        } else {
            flow.counters.packets_in = record.packets;
            flow.counters.bytes_in = record.bytes;
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
pub(super) mod tests {
    use std::{
        net::{IpAddr, Ipv4Addr},
        sync::Mutex,
    };

    use telecluster_common::maps::{Timeouts, rule, ticks};

    use super::*;

    type A = [u8; 4];

    const INSIDE: A = [192, 168, 100, 10];
    const OUTSIDE: A = [203, 0, 113, 1];
    const REMOTE: A = [198, 51, 100, 7];
    pub(in super::super) const SECOND: u64 = 1_000_000_000;

    pub(in super::super) fn key(direction: Direction) -> FlowKey<A> {
        let (src, dst, sport, dport) = match direction {
            Direction::Out => (INSIDE, REMOTE, 4000, 53),
            Direction::In => (REMOTE, OUTSIDE, 53, 5000),
        };
        FlowKey { src, dst, sport, dport, proto: 17, direction: direction as u8, unused: 0 }
    }

    pub(in super::super) fn record(direction: Direction) -> Record<A> {
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

    pub(in super::super) fn rule(generation: u32) -> Rule {
        Rule { generation, uplink: 2, flags: rule::THERE, timeouts: Timeouts::RFC }
    }

    fn socket(address: A, port: u16) -> (IpAddr, u16) {
        (Ipv4Addr::from(address).into(), port)
    }

    #[test]
    fn both_directions_become_one_flow_in_either_order() {
        for order in [[Direction::In, Direction::Out], [Direction::Out, Direction::In]] {
            let sorter = Sorter::default();
            let rules = [0, 0, 0, 1].map(rule);
            let look = Look { rules: &rules, epoch: Epoch::default(), now: 15 * SECOND };
            let read = |directions: &[Direction]| {
                let mut heaps = sorter.heaps();
                for direction in directions {
                    sorter.put(&mut heaps, &key(*direction), &record(*direction));
                }
                heaps
            };
            // Where two readers meet, both have read the same.
            let flows = Mutex::new(Vec::new());
            sorter.join(merge(read(&order[..1]), read(&order)), &look, &|part| {
                flows.lock().unwrap().extend_from_slice(part);
            });
            let flows = flows.into_inner().unwrap();
            let [flow] = &flows[..] else { panic!("{flows:?}") };
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
}
