//! The engine on the host: a frame is a `Vec<u8>`, the tables are hash maps.

mod bytes;
mod hooks;
mod round;
mod tables;
mod ways;

use std::{
    cell::{Cell, UnsafeCell},
    net::IpAddr,
};

use ipnet::IpNet;
use telecluster_common::{
    drop::DropReason,
    family::Address as _,
    maps::{Direction, Forward, ForwardKey, Masquerade, Opening, PoolKey, Range, RangeKey, RuleStat, rule},
    nat::{Verdict, refuse},
    packet::{Packet as _, Parsed, parse},
};

use self::bytes::Bytes;
pub use self::round::Gate;
pub use self::tables::{Family, HostTables, Left, Side};
pub use self::ways::{Front, Hosts};
use crate::vectors::{Machine, Outcome, Rule, UPLINK};

/// Where packets come from that go out.
pub const INSIDE_INTERFACE: u32 = 7;

/// What fits there.
pub const INSIDE_MTU: u32 = 1500;

/// Places for unproven flows: enough that only a test that wants it sees one go.
pub const HALF_SIZE: usize = 1024;

/// The engine with its tables, as the vectors want it.
#[derive(Debug, Default)]
pub struct Host {
    pub tables: HostTables,
    pub sent: Sent,
}

/// Packets that have gone their way at once.
#[derive(Debug, Default)]
pub struct Sent {
    /// From a driver: the next one of a flow, the first one, one that says something about its flow.
    pub next: Cell<usize>,
    pub first: Cell<usize>,
    pub notable: Cell<usize>,
    /// From traffic control.
    pub later: Cell<usize>,
}

impl Host {
    /// One with these hooks.
    pub fn behind(front: Front) -> Self {
        let mut host = Self::default();
        host.tables.front = front;
        host
    }

    fn put_forward<A: Side>(&mut self, slot: u32, rule: &Rule) {
        let Rule::Forward { proto, ports, to, address, sources } = rule else { return };
        let sources_only = if sources.is_empty() { 0 } else { rule::SOURCES };
        let flags = sources_only | rule::HAIRPIN;
        self.tables.flags.insert(slot, flags);
        let (uplink, proto, unused) = (UPLINK, *proto, 0);
        let (address, inside) = (address.map_or(A::ANY, A::from_ip), A::from_ip(to.0));
        let side = A::of_mut(&mut self.tables);
        side.sources.extend(sources.iter().map(|net| (slot, *net)));
        if ports.start() == ports.end() {
            let key = ForwardKey { uplink, address, port: *ports.start(), proto, unused: 0 };
            let value = Forward { address: inside, port: to.1, unused, rule: slot, generation: 1 };
            side.forwards.insert(key, value);
        } else {
            let key = RangeKey { uplink, address, proto, unused: 0, port: [0; 2] };
            let shift = to.1.wrapping_sub(*ports.start());
            let value = Range { address: inside, shift, unused, rule: slot, generation: 1 };
            side.ranges.push((key, ports.clone(), Box::new(UnsafeCell::new(value))));
        }
    }

    fn put_pool<A: Side>(&mut self, slot: u32, pool: &[IpAddr]) {
        let opening =
            Opening { pool: u32::try_from(pool.len()).expect("few addresses"), flows_per_second: 0 };
        self.tables.openings.insert(slot, opening);
        let entry = |(number, ip): (u32, &IpAddr)| (PoolKey { rule: slot, number }, A::from_ip(*ip));
        A::of_mut(&mut self.tables).pools.extend((0..).zip(pool).map(entry));
    }

    fn forget_rule<A: Side>(&mut self, slot: u32) {
        let side = A::of_mut(&mut self.tables);
        side.forwards.retain(|_, value| value.rule != slot);
        side.ranges.retain_mut(|(_, _, range)| range.get_mut().rule != slot);
        side.sources.retain(|(rule, _)| *rule != slot);
        side.masquerades.retain(|(_, value)| value.rule != slot);
        side.pools.retain(|key, _| key.rule != slot);
    }
}

impl Machine for Host {
    fn put(&mut self, slot: u32, rule: &Rule) {
        self.tables.generations.borrow_mut().insert(slot, 1);
        match rule {
            Rule::Forward { to, .. } if to.0.is_ipv4() => self.put_forward::<[u8; 4]>(slot, rule),
            Rule::Forward { .. } => self.put_forward::<[u8; 16]>(slot, rule),
            Rule::Masquerade { source, nat, except, pool } => {
                match source {
                    IpNet::V4(_) => self.put_pool::<[u8; 4]>(slot, pool),
                    IpNet::V6(_) => self.put_pool::<[u8; 16]>(slot, pool),
                }
                let excepts = if except.is_empty() { 0 } else { rule::EXCEPT };
                self.tables.flags.insert(slot, nat | excepts);
                let networks = except.iter().map(|net| (slot, *net));
                match source {
                    IpNet::V4(_) => self.tables.ipv4.sources.extend(networks),
                    IpNet::V6(_) => self.tables.ipv6.sources.extend(networks),
                }
                let rule = (*source, Masquerade { rule: slot, generation: 1 });
                match source {
                    IpNet::V4(_) => self.tables.ipv4.masquerades.push(rule),
                    IpNet::V6(_) => self.tables.ipv6.masquerades.push(rule),
                }
            }
        }
    }

    fn remove(&mut self, slot: u32, _rule: &Rule) {
        self.tables.generations.borrow_mut().insert(slot, 2);
        self.forget_rule::<[u8; 4]>(slot);
        self.forget_rule::<[u8; 16]>(slot);
    }

    /// As the programs do it, one hook after the other. What one of them sends on has been routed too: that is looked at, and undone.
    fn run(&mut self, direction: Direction, frame: &[u8]) -> (Outcome, Vec<u8>) {
        let mut bytes = frame.to_vec();
        let ipv4 = Bytes::at_uplink(&mut bytes).carries(<[u8; 4]>::ETHERTYPE);
        let verdict = if ipv4 {
            self.meet::<[u8; 4]>(direction, &mut bytes)
        } else {
            self.meet::<[u8; 16]>(direction, &mut bytes)
        };
        match verdict {
            Verdict::Pass => (Outcome::Passed, bytes),
            Verdict::Drop(reason) => (Outcome::Dropped(reason), bytes),
            Verdict::Refuse(reason) => {
                let mut packet = Bytes::at_uplink(&mut bytes);
                let told = direction == Direction::Out
                    && if ipv4 {
                        refuse::<_, _, [u8; 4]>(&mut packet, &self.tables).is_some()
                    } else {
                        refuse::<_, _, [u8; 16]>(&mut packet, &self.tables).is_some()
                    };
                if told {
                    self.tables.told.borrow_mut().push(bytes.clone());
                }
                (Outcome::Dropped(reason), bytes)
            }
            Verdict::Redirect(interface) => {
                hooks::unroute(direction, interface, frame, &mut bytes);
                (Outcome::Passed, bytes)
            }
            Verdict::Neighbour(interface) => (Outcome::Sent(interface), bytes),
            Verdict::Around | Verdict::Home => panic!("nothing here is the host's own: {verdict:?}"),
        }
    }

    fn counters(&mut self, slot: u32) -> RuleStat {
        self.tables.stats.borrow().get(&slot).copied().unwrap_or_default()
    }
}

/// Where the transport header of a frame is that can be told to a flow, or the ICMP error.
pub fn transport_offset(frame: &mut Vec<u8>) -> Option<usize> {
    fn offset<A: Side>(packet: &mut Bytes<'_>) -> Option<usize> {
        match parse::<_, A>(packet) {
            Parsed::Flow(headers) => Some(headers.transport_offset),
            Parsed::IcmpError { offset, .. } => Some(offset),
            Parsed::Other | Parsed::Flowless { .. } | Parsed::Fragment => None,
        }
    }
    let mut packet = Bytes::at_uplink(frame);
    offset::<[u8; 4]>(&mut packet).or_else(|| offset::<[u8; 16]>(&mut packet))
}

/// So that a reason that the vectors never see does not go unnoticed.
pub const REASONS: [DropReason; DropReason::COUNT as usize] = DropReason::ALL;
