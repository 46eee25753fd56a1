//! The hooks that a packet meets, in their order, and between them a kernel that only forwards.

use std::cell::Cell;

use telecluster_common::{
    checksum::{apply, difference16, fold},
    drop::DropReason,
    maps::Direction,
    nat::{
        Departure, Next, Verdict, depart, established,
        fast::lan_out,
        first, fragment, icmp_error, lan_in, make, translate,
        xdp::{self, Early, early, notable},
    },
    packet::{LinkHeader, Packet as _, note},
    tables::Tables as _,
};

use super::{Bytes, Front, Host, HostTables, INSIDE_INTERFACE, Side, ways::link};
use crate::vectors::UPLINK;

const ETHERNET: usize = 14;

impl Host {
    pub(super) fn meet<A: Side>(&self, direction: Direction, bytes: &mut Vec<u8>) -> Verdict {
        match direction {
            Direction::In => self.comes_in::<A>(bytes),
            Direction::Out => self.goes_out::<A>(bytes),
        }
    }

    fn comes_in<A: Side>(&self, bytes: &mut Vec<u8>) -> Verdict {
        if let Some(sent) = self.in_driver::<A>(bytes, UPLINK, Direction::In) {
            return sent;
        }
        let mut packet = Bytes::coming(bytes, UPLINK);
        let verdict = at_uplink::<A>(&mut packet, &self.tables, Direction::In);
        match verdict {
            Verdict::Redirect(_) => count(&self.sent.later),
            Verdict::Pass if packet.note() == note::LEARN => {
                let note = packet.note();
                forwarded(bytes, INSIDE_INTERFACE, |bytes| {
                    let mut packet = Bytes::leaving(bytes, UPLINK, INSIDE_INTERFACE, note);
                    lan_out::<_, _, A>(&mut packet, &self.tables);
                });
            }
            _ => {}
        }
        verdict
    }

    fn goes_out<A: Side>(&self, bytes: &mut Vec<u8>) -> Verdict {
        let own = self.is_own::<A>(bytes);
        if !own {
            if let Some(sent) = self.in_driver::<A>(bytes, INSIDE_INTERFACE, Direction::Out) {
                return sent;
            }
            if self.tables.front != Front::Uplink {
                let came = bytes.clone();
                match departs::<A>(&mut Bytes::coming(bytes, INSIDE_INTERFACE), &self.tables) {
                    Verdict::Pass => assert_eq!(*bytes, came, "it takes the kernel's way, and is changed"),
                    verdict => {
                        count(&self.sent.later);
                        return verdict;
                    }
                }
            }
        }
        let from = if own { 0 } else { INSIDE_INTERFACE };
        forwarded(bytes, UPLINK, |bytes| {
            let mut packet = Bytes::leaving(bytes, from, UPLINK, note::NONE);
            at_uplink::<A>(&mut packet, &self.tables, Direction::Out)
        })
    }

    /// What becomes of it in a driver; `None`: there it is none, or it goes on to the next hook.
    fn in_driver<A: Side>(
        &self,
        bytes: &mut Vec<u8>,
        interface: u32,
        direction: Direction,
    ) -> Option<Verdict> {
        if !matches!(self.tables.front, Front::Drivers(_)) {
            return None;
        }
        let (came, tables) = (bytes.clone(), &self.tables);
        let mut packet = Bytes::coming(bytes, interface);
        let (verdict, sent) = match early::<_, _, A>(&mut packet, tables, direction) {
            Early::Done(verdict) => (verdict, &self.sent.next),
            Early::First if xdp::first::<_, _, A>(&packet, tables, direction) => {
                (xdp::make::<_, _, A>(&mut packet, tables), &self.sent.first)
            }
            Early::First => (Verdict::Pass, &self.sent.first),
            Early::Notable => (notable::<_, _, A>(&mut packet, tables), &self.sent.notable),
        };
        match verdict {
            Verdict::Pass => {
                assert_eq!(*bytes, came, "it goes on to the next hook, and is changed");
                None
            }
            Verdict::Redirect(_) => {
                count(sent);
                Some(verdict)
            }
            other => panic!("a driver sends packets on or lets them be: {other:?}"),
        }
    }

    /// Is its sender the host itself?
    fn is_own<A: Side>(&self, bytes: &mut Vec<u8>) -> bool {
        let Some(header) = Bytes::at_uplink(bytes).at::<A::Header>(ETHERNET) else { return false };
        // SAFETY: `at` checked the bounds; nothing else holds the packet.
        self.tables.is_local(A::src(unsafe { header.as_ref() }))
    }
}

fn count(packets: &Cell<usize>) {
    packets.set(packets.get() + 1);
}

/// While the kernel has given a frame the addresses of its next link, which nobody looks at who only wants it translated.
fn forwarded<T>(bytes: &mut Vec<u8>, interface: u32, then: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    let came: [u8; 12] = *bytes.first_chunk().expect("a frame");
    let LinkHeader { dst, src } = link(interface);
    bytes[..6].copy_from_slice(&dst);
    bytes[6..12].copy_from_slice(&src);
    let what = then(bytes);
    bytes[..12].copy_from_slice(&came);
    what
}

/// Takes back what is done to a frame that is sent on: by its link's addresses, and by one hop of those that it has left.
pub(super) fn unroute(direction: Direction, interface: u32, came: &[u8], bytes: &mut [u8]) {
    let wanted = if direction == Direction::In { INSIDE_INTERFACE } else { UPLINK };
    assert_eq!(interface, wanted, "it is sent where nobody is");
    let LinkHeader { dst, src } = link(interface);
    assert_eq!(bytes[..12], [dst, src].concat(), "its link's addresses");
    bytes[..12].copy_from_slice(&came[..12]);
    let hops = if came[12..14] == [8, 0] { 22 } else { 21 };
    assert_eq!(bytes[hops], came[hops] - 1, "it has one hop less");
    bytes[hops] += 1;
    if hops == 22 {
        let word = |hops| u16::from_ne_bytes([hops, 0]);
        let difference = fold(difference16(word(came[hops] - 1), word(came[hops])));
        let sum = apply([bytes[24], bytes[25]], difference);
        bytes[24..26].copy_from_slice(&sum);
    }
}

/// From the inside, at the port of the LAN.
fn departs<A: Side>(packet: &mut Bytes<'_>, tables: &HostTables) -> Verdict {
    match lan_in::<_, _, A>(packet, tables) {
        Departure::Done(verdict) => verdict,
        Departure::First => first::<_, A>(tables, Direction::Out)
            .unwrap_or_else(|| make::<_, _, A>(packet, tables, Direction::Out)),
        Departure::Whole => depart::<_, _, A>(packet, tables),
    }
}

/// The short way first, then the whole one.
fn at_uplink<A: Side>(packet: &mut Bytes<'_>, tables: &HostTables, direction: Direction) -> Verdict {
    established::<_, _, A>(packet, tables, direction).unwrap_or_else(|| whole::<A>(packet, tables, direction))
}

/// The programs behind the one on the hook, one after the other.
fn whole<A: Side>(packet: &mut Bytes<'_>, tables: &HostTables, direction: Direction) -> Verdict {
    let mut next = translate::<_, _, A>(packet, tables, direction);
    if next == Next::Fragment {
        next = fragment::<_, _, A>(packet, tables, direction);
    }
    match next {
        Next::Done(verdict) => verdict,
        Next::Fragment => Verdict::Drop(DropReason::Program),
        Next::First => {
            first::<_, A>(tables, direction).unwrap_or_else(|| make::<_, _, A>(packet, tables, direction))
        }
        Next::IcmpError => icmp_error::<_, _, A>(packet, tables, direction),
    }
}
