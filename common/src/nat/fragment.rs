//! Parts of packets (RFC 4787 REQ-14). Only the first one names the flow, so it leaves behind what the others need: the
//! ports. With them, every other one is a packet of that flow whose addresses are to be written, and nothing else: the
//! transport checksum is in the first one, and changes there by what the addresses of the whole packet change.
//!
//! One that comes before its first has to wait. No program can keep a packet, so it is sent once through the uplink's
//! *waiting room*, a pair of interfaces with a slow queue between them, and comes back to where it was; and again, for a
//! second at most. What the queue has no room for is lost: a flood of orphans costs other orphans their place, and no more
//! time than the queue lets through.

use super::{
    Next, Verdict, flowless, icmp_error, life,
    work::{Way, Work},
};
use crate::{
    drop::DropReason,
    family::Address,
    maps::{Direction, FlowKey, FragmentKey, Fragmented, ticks},
    packet::{Packet, Parsed, note, read_first_part},
    tables::{FlowRef, Tables},
};

const ETHERNET: usize = 14;

/// For how long later parts find what the first has said. Senders give a packet another number each, of which IPv4 has
/// 65,536 towards one address: after some seconds a fast one begins again.
const LIFE: u32 = ticks(5);

/// For how long a part waits for the first, in units of about 17 ms: a second.
const PATIENCE: u32 = 60;

/// Translates a fragment.
#[inline(always)]
pub fn fragment<P, T, A>(packet: &mut P, tables: &T, direction: Direction) -> Next
where
    P: Packet,
    T: Tables<A>,
    A: Address,
{
    let Some(mut work) = tables.work() else {
        return Next::Done(Verdict::Drop(DropReason::Program));
    };
    // SAFETY: this CPU's own, and nobody else's while this packet is looked at.
    let work = unsafe { work.as_mut() };
    if !A::piece(packet, &mut work.piece) {
        return Next::Done(Verdict::Drop(DropReason::Malformed));
    }
    // Not for this host: transit traffic.
    if direction == Direction::In && !tables.is_local(work.piece.dst) {
        return Next::Done(Verdict::Pass);
    }
    name(work, direction);
    let now = tables.now();
    if work.piece.place() == 0 {
        head(packet, tables, work, direction, now)
    } else {
        Next::Done(tail(packet, tables, work, direction, now))
    }
}

/// Says which packet `work.piece` is of.
#[inline(always)]
pub(super) fn name<A: Address>(work: &mut Work<A>, direction: Direction) {
    let piece = &work.piece;
    work.fragment = FragmentKey {
        src: piece.src,
        dst: piece.dst,
        id: piece.id,
        proto: if A::FRAGMENTS_NAME_PROTOCOL { work.piece.protocol() } else { 0 },
        direction: direction as u8,
        unused: 0,
    };
}

/// The first one, with the transport header: a packet like any other, and what it says is kept for those that follow.
#[inline(always)]
fn head<P, T, A>(packet: &mut P, tables: &T, work: &mut Work<A>, direction: Direction, now: u64) -> Next
where
    P: Packet,
    T: Tables<A>,
    A: Address,
{
    let interface = work.interface();
    match read_first_part::<P, A>(packet, work.piece.protocol(), work.piece.offset()) {
        Parsed::Other | Parsed::Fragment => return Next::Done(Verdict::Pass),
        Parsed::Flowless { src, why } => {
            return Next::Done(flowless(packet, tables, work, direction, src, why));
        }
        Parsed::IcmpError { src, offset } => {
            icmp_error::take_down(work, src, offset);
            return Next::IcmpError;
        }
        Parsed::Flow(headers) => super::take_down(work, &headers, direction),
    }
    say(tables, work, now);
    // The others have no ports to be told by, and take the kernel's way: so does this one.
    if work.way() != Way::AROUND {
        work.way = Way::KERNEL;
    }
    let Some(flow) = life::find(tables, work, interface, now) else {
        return Next::First;
    };
    life::advance(tables, work, flow, now);
    Next::Done(super::onward(work, super::here(packet, tables, work, flow, direction, now)))
}

/// Keeps what the first one says, for those that follow.
#[inline(always)]
pub(super) fn say<T, A>(tables: &T, work: &mut Work<A>, now: u64)
where
    T: Tables<A>,
    A: Address,
{
    work.fragmented = Fragmented {
        sport: work.key.sport,
        dport: work.key.dport,
        expires: life::tick(now).wrapping_add(LIFE),
        proto: work.key.proto,
        unused: [0; 3],
    };
    tables.set_fragmented(&work.fragment, &work.fragmented);
}

/// What the first one has said, into `work.key`. False: it has not come yet.
#[inline(always)]
pub(super) fn hear<T, A>(tables: &T, work: &mut Work<A>, direction: Direction, now: u64) -> bool
where
    T: Tables<A>,
    A: Address,
{
    let Some(said) = tables.fragmented(&work.fragment).filter(|said| is_current(*said, now)) else {
        return false;
    };
    work.key = FlowKey {
        src: work.fragment.src,
        dst: work.fragment.dst,
        sport: said.sport,
        dport: said.dport,
        proto: said.proto,
        direction: direction as u8,
        unused: 0,
    };
    true
}

/// Any other one, which has no ports.
#[inline(always)]
fn tail<P, T, A>(packet: &mut P, tables: &T, work: &mut Work<A>, direction: Direction, now: u64) -> Verdict
where
    P: Packet,
    T: Tables<A>,
    A: Address,
{
    let interface = work.interface();
    if !hear(tables, work, direction, now) {
        return wait(packet, tables, work, direction, now);
    }
    packet.set_note(note::NONE);
    match tables.flow(&work.key) {
        Some(flow) if life::is_alive(tables, flow, work.key.proto, interface, now) => {
            let (packets, bytes) = (packet.segments(), packet.network_len());
            tables.touch(flow, now, packets, bytes);
            tables.count(flow.rule(), direction, packets, bytes);
            if direction == Direction::In && work.is_turned() {
                packet.set_note(note::turn(flow.rule()));
            }
            super::onward(work, address(packet, flow))
        }
        // What the first one is not translated by, the others are not either.
        Some(_) | None => {
            let src = work.fragment.src;
            flowless(packet, tables, work, direction, src, DropReason::Fragment)
        }
    }
}

/// Writes the translated addresses.
#[inline(always)]
pub(super) fn address<P: Packet, A: Address>(packet: &mut P, flow: FlowRef<A>) -> Verdict {
    let difference = flow.address_difference();
    let Some(mut header) = packet.at::<A::Header>(ETHERNET) else {
        return Verdict::Drop(DropReason::Malformed);
    };
    // SAFETY: `at` checked the bounds; nothing else holds the packet.
    A::rewrite(unsafe { header.as_mut() }, flow.to_src(), flow.to_dst(), difference);
    // IPv4's own checksum makes up for its addresses.
    if A::ICMP_HAS_PSEUDO_HEADER {
        packet.resum(difference);
    }
    Verdict::Pass
}

/// Nobody has said yet what flow it is of.
#[inline(always)]
fn wait<P, T, A>(packet: &mut P, tables: &T, work: &mut Work<A>, direction: Direction, now: u64) -> Verdict
where
    P: Packet,
    T: Tables<A>,
    A: Address,
{
    let (interface, src) = (work.interface(), work.fragment.src);
    let known = packet.note();
    let waits = note::is_waiting(known);
    let in_vain = waits && note::waited(known, now) > PATIENCE;
    let own =
        direction == Direction::Out && tables.uplink(interface).is_some_and(|own| own.address.same(src));
    // What turns back does not wait: it would come out at the uplink.
    if !(own || in_vain || work.is_turned())
        && let Some(room) = tables.waiting_room(interface)
    {
        if !waits {
            packet.set_note(note::waiting(direction == Direction::Out, now));
        }
        return Verdict::Redirect(room);
    }
    packet.set_note(note::NONE);
    flowless(packet, tables, work, direction, src, DropReason::Fragment)
}

#[inline(always)]
#[expect(clippy::cast_possible_wrap, reason = "a difference on a clock that wraps")]
fn is_current(said: Fragmented, now: u64) -> bool {
    said.expires.wrapping_sub(life::tick(now)) as i32 > 0
}
