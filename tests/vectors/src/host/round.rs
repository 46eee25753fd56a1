//! The host's own packets to its forwards, as the programs at loopback and at an interface towards inside hosts do it.

use telecluster_common::{
    family::Address as _,
    maps::Direction,
    nat::{
        Next, Verdict, first, fragment, icmp_error, make,
        round::{Round, around, error_comes_home, error_leaves, home, leaves, part_comes_home},
        turn::{is_for_uplink, turn_in},
    },
    packet::Packet as _,
};

use super::{Bytes, Host, HostTables, Side};
use crate::vectors::Outcome;

/// Where such a packet is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Loopback, as it goes out.
    Loopback,
    /// An interface towards inside hosts, as it comes in.
    Inside,
}

/// Where it goes in again.
const LOOPBACK: u32 = 1;

impl Host {
    pub fn run_round(&mut self, gate: Gate, frame: &[u8]) -> (Outcome, Vec<u8>) {
        let mut frame = frame.to_vec();
        let mut packet = Bytes::at_uplink(&mut frame);
        let verdict = if packet.carries(<[u8; 4]>::ETHERTYPE) {
            meet::<[u8; 4]>(&mut packet, &self.tables, gate)
        } else {
            meet::<[u8; 16]>(&mut packet, &self.tables, gate)
        };
        let outcome = match verdict {
            Verdict::Pass => Outcome::Passed,
            Verdict::Drop(reason) | Verdict::Refuse(reason) => Outcome::Dropped(reason),
            Verdict::Redirect(interface) | Verdict::Neighbour(interface) => Outcome::Sent(interface),
            Verdict::Home => Outcome::Sent(LOOPBACK),
            Verdict::Around => panic!("nobody has asked where it goes"),
        };
        (outcome, frame)
    }
}

fn meet<A: Side>(packet: &mut Bytes<'_>, tables: &HostTables, gate: Gate) -> Verdict {
    let verdict = match gate {
        Gate::Loopback => match leaves::<_, _, A>(packet, tables) {
            Round::Done(verdict) => verdict,
            Round::Turn => turn::<A>(packet, tables),
            Round::IcmpError => error_leaves::<_, _, A>(packet, tables),
            Round::Part => part::<A>(packet, tables),
        },
        Gate::Inside if !is_for_uplink::<_, _, A>(packet, tables) => Verdict::Pass,
        Gate::Inside => match home::<_, _, A>(packet, tables) {
            Round::Done(verdict) => verdict,
            Round::Turn => turn::<A>(packet, tables),
            Round::IcmpError => error_comes_home::<_, _, A>(packet, tables)
                .unwrap_or_else(|| icmp_error::<_, _, A>(packet, tables, Direction::In)),
            Round::Part => {
                part_comes_home::<_, _, A>(packet, tables).unwrap_or_else(|| part::<A>(packet, tables))
            }
        },
    };
    if verdict == Verdict::Around { around::<_, _, A>(packet, tables) } else { verdict }
}

fn turn<A: Side>(packet: &mut Bytes<'_>, tables: &HostTables) -> Verdict {
    match turn_in::<_, _, A>(packet, tables) {
        Next::Fragment => part::<A>(packet, tables),
        next => go_on::<A>(packet, tables, next),
    }
}

fn part<A: Side>(packet: &mut Bytes<'_>, tables: &HostTables) -> Verdict {
    let next = fragment::<_, _, A>(packet, tables, Direction::In);
    go_on::<A>(packet, tables, next)
}

fn go_on<A: Side>(packet: &mut Bytes<'_>, tables: &HostTables, next: Next) -> Verdict {
    match next {
        Next::Done(verdict) => verdict,
        Next::First => first::<_, A>(tables, Direction::In)
            .unwrap_or_else(|| make::<_, _, A>(packet, tables, Direction::In)),
        Next::IcmpError => icmp_error::<_, _, A>(packet, tables, Direction::In),
        Next::Fragment => panic!("never a part of a part"),
    }
}
