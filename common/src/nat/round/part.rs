//! Parts of an inside server's answers to the host itself.

use super::{bring_home, goes_home, own};
use crate::{
    drop::DropReason,
    family::Address,
    maps::Direction,
    nat::{Verdict, fragment, take_down},
    packet::{Packet, Parsed, note, read_first_part},
    tables::Tables,
};

/// Whether a part from the inside is one of an answer to the host itself, and then what becomes of it; the kernel puts them
/// together behind loopback. They have to come in order, as all do that turn back: the waiting room is the uplink's.
#[inline(always)]
pub fn part_comes_home<P, T, A>(packet: &mut P, tables: &T) -> Option<Verdict>
where
    P: Packet,
    T: Tables<A>,
    A: Address,
{
    let mut work = tables.work()?;
    // SAFETY: this CPU's own, and nobody else's while this packet is looked at.
    let work = unsafe { work.as_mut() };
    if !A::piece(packet, &mut work.piece) {
        return None;
    }
    fragment::name(work, Direction::Out);
    let now = tables.now();
    if work.piece.place() == 0 {
        let Parsed::Flow(headers) =
            read_first_part::<P, A>(packet, work.piece.protocol(), work.piece.offset())
        else {
            return None;
        };
        if headers.protocol == A::ICMP {
            return None;
        }
        take_down(work, &headers, Direction::Out);
        let flow = own(tables, work, now)?;
        fragment::say(tables, work, now);
        return Some(bring_home(packet, tables, work, flow, now));
    }
    if !fragment::hear(tables, work, Direction::Out, now) {
        return None;
    }
    let flow = own(tables, work, now)?;
    let (packets, bytes) = (packet.segments(), packet.network_len());
    tables.touch(flow, now, packets, bytes);
    tables.count(flow.rule(), Direction::Out, packets, bytes);
    packet.set_note(note::NONE);
    if !goes_home(packet) {
        return Some(Verdict::Drop(DropReason::Rewrite));
    }
    Some(match fragment::address(packet, flow) {
        Verdict::Pass => Verdict::Home,
        refused => refused,
    })
}
