//! Hairpin: an inside host sends to an external address and port that lead inside, by a forward or as another inside
//! socket's (RFC 4787 REQ-9, RFC 5382 REQ-8, RFC 5508 REQ-7).
//!
//! The packet turns back where it comes in. There it is translated as if it had come from outside ([`turn_in`]): its
//! destination becomes the inside server. Then it takes the kernel's way, so that routes, the hop count and the host's own
//! filter see it; and where it leaves it is translated as if it left for the outside ([`turn_out`]): its source becomes
//! the uplink's address, so that answers come back, from the sender's own network too. Both halves cannot be made at once:
//! the kernel drops what comes in with one of its own addresses as the source.
//!
//! So a connection that turns is two flows: one from outside to the server, whose remote side is the inside client, and
//! one of the client to the outside, whose remote side is the inside server. Everything else that is known about flows
//! is true for each of them.
//!
//! From the one hook to the other the packet carries a note with the slot of the rule that turned it.

use super::{
    Next, Verdict,
    fast::Ways,
    icmp_error, whole,
    work::{Maker, Way},
};
use crate::{
    drop::DropReason,
    family::Address,
    maps::Direction,
    packet::{Packet, Transport},
    tables::Tables,
};

const ETHERNET: usize = 14;

/// Whether a packet from the inside is for an address of an uplink; [`Work`](super::work::Work) then says which.
#[inline(always)]
pub fn is_for_uplink<P, T, A>(packet: &mut P, tables: &T) -> bool
where
    P: Packet,
    T: Tables<A>,
    A: Address,
{
    if !packet.carries(A::ETHERTYPE) {
        return false;
    }
    packet.make_linear(ETHERNET + size_of::<A::Header>());
    let Some(header) = packet.at::<A::Header>(ETHERNET) else {
        return false;
    };
    // SAFETY: `at` checked the bounds; nothing else holds the packet.
    let dst = A::dst(unsafe { header.as_ref() });
    let uplink = tables.uplink_of(dst);
    let Some(mut work) = tables.work() else {
        return false;
    };
    // SAFETY: this CPU's own, and nobody else's while this packet is looked at.
    let work = unsafe { work.as_mut() };
    work.interface = uplink;
    work.way = Way::KERNEL;
    work.turned = 1;
    uplink != 0
}

/// The half that makes the inside server the destination, of a packet that [`is_for_uplink`] has found.
#[inline(always)]
pub fn turn_in<P, T, A>(packet: &mut P, tables: &T) -> Next
where
    P: Packet,
    T: Tables<A> + Ways,
    A: Address,
{
    half(packet, tables, Direction::In)
}

/// Whether the rule that turned a packet is still there; [`Work`](super::work::Work) then says which uplink it is for.
#[inline(always)]
pub fn is_turned_by<T, A>(tables: &T, slot: u32) -> bool
where
    T: Tables<A>,
    A: Address,
{
    let Some(rule) = tables.rule(slot) else {
        return false;
    };
    let Some(mut work) = tables.work() else {
        return false;
    };
    // SAFETY: as above.
    let work = unsafe { work.as_mut() };
    work.interface = rule.uplink;
    work.way = Way::KERNEL;
    work.turned = 1;
    work.maker = Maker { rule: slot, generation: rule.generation };
    rule.is_there()
}

/// Whether this is an ICMP error of the router's own (the hops are used up, the way is too narrow). What it embeds is a packet
/// between the two halves, and may be one that has turned back: [`super::icmp_error`] then finds the flow, and with it the uplink.
/// For the sender it has to be about what he has sent, from the address that he has sent it to.
#[inline(always)]
pub fn is_own_error<P, T, A>(packet: &mut P, tables: &T) -> bool
where
    P: Packet,
    T: Tables<A>,
    A: Address,
{
    let offset = ETHERNET + size_of::<A::Header>();
    if packet.came_in_through() != 0 || !packet.carries(A::ETHERTYPE) {
        return false;
    }
    packet.make_linear(offset + size_of::<Transport>());
    let Some(header) = packet.at::<A::Header>(ETHERNET) else {
        return false;
    };
    // SAFETY: `at` checked the bounds; nothing else holds the packet.
    let ((protocol, len), src) = unsafe { (A::embedded(header.as_ref()), A::src(header.as_ref())) };
    // The kernel puts no options and no extension headers into its own.
    if protocol != A::ICMP || len != size_of::<A::Header>() {
        return false;
    }
    let Some(icmp) = packet.at::<Transport>(offset) else {
        return false;
    };
    // SAFETY: as above.
    let [kind, _code] = unsafe { icmp.as_ref() }.first;
    let Some(mut work) = tables.work() else {
        return false;
    };
    // SAFETY: this CPU's own, and nobody else's while this packet is looked at.
    let work = unsafe { work.as_mut() };
    work.interface = 0;
    work.turned = 1;
    icmp_error::take_down(work, src, offset);
    A::is_error(kind)
}

/// The half that makes the uplink's address the source, of a packet that [`is_turned_by`] has found.
#[inline(always)]
pub fn turn_out<P, T, A>(packet: &mut P, tables: &T) -> Next
where
    P: Packet,
    T: Tables<A> + Ways,
    A: Address,
{
    half(packet, tables, Direction::Out)
}

#[inline(always)]
fn half<P, T, A>(packet: &mut P, tables: &T, direction: Direction) -> Next
where
    P: Packet,
    T: Tables<A> + Ways,
    A: Address,
{
    let Some(mut work) = tables.work() else {
        return Next::Done(Verdict::Drop(DropReason::Program));
    };
    // SAFETY: as above.
    whole(packet, tables, unsafe { work.as_mut() }, direction)
}
