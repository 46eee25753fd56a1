//! Packets in, packets and verdicts out. The host's engine and the loaded programs run the same list and must give
//! the same bytes.

mod errors;
mod forwarded;
mod left_alone;
mod masqueraded;
mod parts;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use ipnet::IpNet;
use telecluster_common::{
    drop::DropReason,
    maps::{Direction, RuleStat},
};

use crate::frame::{Frame, udp};

/// Loopback: the interface that `BPF_PROG_TEST_RUN` pretends a packet is on.
pub const UPLINK: u32 = 1;
pub const UPLINK_ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub const UPLINK_ADDRESS6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
/// The host's own addresses.
pub const LOCAL: [IpAddr; 4] = [IPV4.uplink, IPV4.gateway, IPV6.uplink, IPV6.gateway];

const INSIDE: Ipv4Addr = Ipv4Addr::new(192, 168, 100, 10);
const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
/// Of no rule.
const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 9, 8, 7);

/// Who takes part, in one address family.
#[derive(Debug, Clone, Copy)]
pub struct Cast {
    pub uplink: IpAddr,
    /// The host's address on the inside.
    pub gateway: IpAddr,
    pub inside: IpAddr,
    pub other_inside: IpAddr,
    pub remote: IpAddr,
    /// Of no rule.
    pub stranger: IpAddr,
    pub echo: u8,
    pub echo_reply: u8,
}

pub const IPV4: Cast = Cast {
    uplink: IpAddr::V4(UPLINK_ADDRESS),
    gateway: IpAddr::V4(Ipv4Addr::new(192, 168, 100, 1)),
    inside: IpAddr::V4(INSIDE),
    other_inside: IpAddr::V4(Ipv4Addr::new(192, 168, 100, 11)),
    remote: IpAddr::V4(REMOTE),
    stranger: IpAddr::V4(STRANGER),
    echo: 8,
    echo_reply: 0,
};

pub const IPV6: Cast = Cast {
    uplink: IpAddr::V6(UPLINK_ADDRESS6),
    gateway: IpAddr::V6(Ipv6Addr::new(0xfd00, 100, 0, 0, 0, 0, 0, 1)),
    inside: IpAddr::V6(Ipv6Addr::new(0xfd00, 100, 0, 0, 0x1234, 0x5678, 0x9abc, 10)),
    other_inside: IpAddr::V6(Ipv6Addr::new(0xfd00, 100, 0, 0, 0, 0, 0, 11)),
    remote: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0xeeee, 0xdddd, 0xcccc, 0xbbbb, 7)),
    stranger: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 9, 9, 0, 0, 0, 7)),
    echo: 128,
    echo_reply: 129,
};

impl Cast {
    pub fn masquerade(&self) -> Rule {
        let prefix = if self.inside.is_ipv4() { 24 } else { 64 };
        let source = IpNet::new(self.inside, prefix).expect("a network").trunc();
        Rule::Masquerade { source, nat: 0, except: Vec::new(), pool: Vec::new() }
    }

    /// Two addresses that no interface has, in order.
    pub fn pool(&self) -> [IpAddr; 2] {
        match self.uplink {
            IpAddr::V4(_) => {
                [Ipv4Addr::new(198, 51, 100, 100), Ipv4Addr::new(198, 51, 100, 101)].map(IpAddr::V4)
            }
            IpAddr::V6(_) => [8, 9].map(|last| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, last))),
        }
    }

    /// A masqueraded UDP exchange: out, and back.
    pub fn udp_exchange(&self, sport: u16, payload: &[u8]) -> [Step; 2] {
        let (remote, inside, external) = ((self.remote, 53), (self.inside, sport), (self.uplink, sport));
        [
            out(&udp(inside, remote, payload), &udp(external, remote, payload)),
            inward(&udp(remote, external, payload), &udp(remote, inside, payload)),
        ]
    }
}

/// A rule, in the terms of the vectors.
#[derive(Debug, Clone)]
pub enum Rule {
    /// `to`: where the first of the ports leads. Without sources it is open to everybody.
    Forward {
        proto: u8,
        ports: RangeInclusive<u16>,
        to: (IpAddr, u16),
        address: Option<IpAddr>,
        sources: Vec<IpNet>,
    },
    Masquerade {
        source: IpNet,
        /// Its kind, as the maps have it: `rule::FULL_CONE`, `rule::SYMMETRIC`, or neither.
        nat: u32,
        except: Vec<IpNet>,
        /// In order; none: the uplink's address.
        pool: Vec<IpAddr>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Dropped(DropReason),
    /// Out through this interface at once.
    Sent(u32),
}

/// Something that runs packets: the host's engine, or the kernel's programs.
pub trait Machine {
    fn put(&mut self, slot: u32, rule: &Rule);
    fn remove(&mut self, slot: u32, rule: &Rule);
    /// The verdict and the frame afterwards.
    fn run(&mut self, direction: Direction, frame: &[u8]) -> (Outcome, Vec<u8>);
    fn counters(&mut self, slot: u32) -> RuleStat;
}

/// One thing that happens.
#[derive(Debug, Clone)]
pub enum Step {
    /// This frame goes in, that one comes out.
    Becomes {
        direction: Direction,
        frame: Vec<u8>,
        expected: Vec<u8>,
    },
    Dropped {
        direction: Direction,
        frame: Vec<u8>,
        reason: DropReason,
    },
    /// The rule of this slot (its place in `rules`) goes.
    Remove(u32),
}

/// A story: rules, then packets in order.
#[derive(Debug, Clone)]
pub struct Vector {
    pub name: &'static str,
    pub rules: Vec<Rule>,
    pub steps: Vec<Step>,
}

/// Plays a story on a machine whose tables are empty.
pub fn play(vector: &Vector, machine: &mut impl Machine) {
    let slot = |place: usize| u32::try_from(place).expect("few rules");
    for (place, rule) in vector.rules.iter().enumerate() {
        machine.put(slot(place), rule);
    }
    for (number, step) in vector.steps.iter().enumerate() {
        let label = format!("{}, step {}", vector.name, number + 1);
        match step {
            Step::Becomes { direction, frame, expected } => {
                let (outcome, bytes) = machine.run(*direction, frame);
                assert_eq!(outcome, Outcome::Passed, "{label}");
                assert_eq!(hex(&bytes), hex(expected), "{label}");
            }
            Step::Dropped { direction, frame, reason } => {
                let (outcome, _) = machine.run(*direction, frame);
                assert_eq!(outcome, Outcome::Dropped(*reason), "{label}");
            }
            Step::Remove(gone) => machine.remove(*gone, &vector.rules[*gone as usize]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ")
}

fn out(frame: &Frame, expected: &Frame) -> Step {
    Step::Becomes { direction: Direction::Out, frame: frame.bytes(), expected: expected.bytes() }
}

fn inward(frame: &Frame, expected: &Frame) -> Step {
    Step::Becomes { direction: Direction::In, frame: frame.bytes(), expected: expected.bytes() }
}

fn untouched(direction: Direction, frame: Vec<u8>) -> Step {
    Step::Becomes { direction, expected: frame.clone(), frame }
}

fn dropped(frame: Vec<u8>, reason: DropReason) -> Step {
    Step::Dropped { direction: Direction::Out, frame, reason }
}

fn dropped_in(frame: Vec<u8>, reason: DropReason) -> Step {
    Step::Dropped { direction: Direction::In, frame, reason }
}

pub fn masquerade() -> Rule {
    IPV4.masquerade()
}

pub fn forward(proto: u8, port: u16, to: (IpAddr, u16)) -> Rule {
    range(proto, port..=port, to)
}

pub fn range(proto: u8, ports: RangeInclusive<u16>, to: (IpAddr, u16)) -> Rule {
    Rule::Forward { proto, ports, to, address: None, sources: Vec::new() }
}

/// A masqueraded UDP exchange of IPv4.
pub fn udp_exchange(sport: u16, payload: &[u8]) -> [Step; 2] {
    IPV4.udp_exchange(sport, payload)
}

/// Every story.
pub fn all() -> Vec<Vector> {
    let mut all = Vec::new();
    for cast in [IPV4, IPV6] {
        all.extend(masqueraded::masquerade_vectors(cast));
        all.extend(forwarded::forward_vectors(cast));
        all.extend(forwarded::range_vectors(cast));
        all.extend(forwarded::source_vectors(cast));
        all.extend(masqueraded::cone_vectors(cast));
        all.extend(masqueraded::except_vectors(cast));
        all.extend(masqueraded::pool_vectors(cast));
        all.extend(errors::icmp_error_vectors(cast));
        all.extend(errors::checked_vectors(cast));
        all.extend(parts::fragment_vectors(cast));
    }
    all.extend(masqueraded::options_vectors());
    all.push(errors::errors_about_options());
    all.extend(errors::errors_about_extensions());
    all.extend(left_alone::untouched_vectors());
    all.extend(left_alone::refused_vectors());
    all
}
