//! ICMP errors: about a packet of a flow, translated outside and inside the packet that they embed (RFC 5508 section 4.2,
//! RFC 4787 REQ-12). They belong to the flow, and tell nothing about it: nothing is refreshed, ended or counted by them.
//!
//! What is embedded is a packet as it was after translation in the other direction, so that reversed it is the key of
//! the flow's direction that the error itself goes.

use super::{
    Verdict, flowless, icmp_check, life,
    open::outside_of,
    work::{Maker, Translation, Work},
};
use crate::{
    checksum,
    drop::DropReason,
    family::Address,
    maps::{Direction, EndpointKey, FlowKey},
    packet::{Checksum, Packet, Transport, note},
    tables::Tables,
    tcp::proto,
};

const ETHERNET: usize = 14;
/// Type, code, checksum and four bytes that depend on the type (RFC 792, RFC 4443 section 2.1).
const ICMP_HEADER: usize = 8;

/// Keeps what [`icmp_error`] needs.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "an offset in a packet's headers")]
pub(super) fn take_down<A: Address>(work: &mut Work<A>, src: A, offset: usize) {
    work.key.src = src;
    work.transport_offset = offset as u32;
}

/// Translates an ICMP error, of which [`super::translate`] has found the header.
#[inline(always)]
pub fn icmp_error<P, T, A>(packet: &mut P, tables: &T, direction: Direction) -> Verdict
where
    P: Packet,
    T: Tables<A>,
    A: Address,
{
    let Some(mut work) = tables.work() else {
        return Verdict::Drop(DropReason::Program);
    };
    // SAFETY: this CPU's own, and nobody else's while this packet is looked at.
    let work = unsafe { work.as_mut() };
    let (interface, sender) = (work.interface(), work.key.src);
    if embedded(packet, work, direction).is_none() || !find(tables, work, interface, direction) {
        // About nothing of ours: the host's, or from an inside host that must not show its address.
        return flowless(packet, tables, work, direction, sender, DropReason::Protocol);
    }
    if direction == Direction::In && work.is_turned() {
        packet.set_note(note::turn(work.maker.rule));
    }
    match rewrite(packet, work, direction) {
        Some(()) => Verdict::Pass,
        None => Verdict::Drop(DropReason::Malformed),
    }
}

/// Reads the embedded packet: reversed, it is the key of a flow.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "an offset in a packet's headers")]
pub(super) fn embedded<P, A>(packet: &mut P, work: &mut Work<A>, direction: Direction) -> Option<()>
where
    P: Packet,
    A: Address,
{
    let start = work.transport_offset() + ICMP_HEADER;
    packet.make_linear(start + size_of::<A::Header>());
    let header = packet.at::<A::Header>(start)?;
    // SAFETY: `at` checked the bounds; nothing else holds the packet.
    let ((protocol, len), src, dst) = unsafe {
        let header = header.as_ref();
        (A::embedded(header), A::src(header), A::dst(header))
    };
    let (protocol, at) = A::behind(packet, protocol, start + len);
    if protocol != proto::TCP && protocol != proto::UDP && protocol != A::ICMP {
        return None;
    }
    work.key.src = dst;
    work.key.dst = src;
    work.key.proto = protocol;
    work.embedded_offset = at as u32;

    let at = work.embedded_offset();
    packet.make_linear(at + size_of::<Transport>());
    let transport = packet.at::<Transport>(at)?;
    // SAFETY: as above.
    let transport = unsafe { *transport.as_ref() };
    let (sport, dport) = if protocol == A::ICMP {
        let identifier = u16::from_be_bytes(transport.third);
        match transport.first {
            [kind, 0] if A::asks(kind) => (identifier, 0),
            [kind, 0] if A::answers(kind) => (0, identifier),
            _ => return None, // never an error about an error
        }
    } else {
        (u16::from_be_bytes(transport.first), u16::from_be_bytes(transport.second))
    };
    work.key.sport = dport;
    work.key.dport = sport;
    work.key.direction = direction as u8;
    work.key.unused = 0;
    Some(())
}

/// Finds what the embedded packet was before translation, into `work.to`.
#[inline(always)]
fn find<T, A>(tables: &T, work: &mut Work<A>, interface: u32, direction: Direction) -> bool
where
    T: Tables<A>,
    A: Address,
{
    let now = tables.now();
    if let Some(alive) = find_flow(tables, work, interface, now) {
        return alive;
    }
    // Nobody has gone that way yet: the binding knows, and the flow's other direction must be there.
    match direction {
        Direction::In => find_inside(tables, work),
        Direction::Out => find_outside(tables, work, interface),
    }
    work.peer = FlowKey {
        src: work.to.src,
        dst: work.to.dst,
        sport: work.to.sport,
        dport: work.to.dport,
        proto: work.key.proto,
        direction: direction.opposite() as u8,
        unused: 0,
    };
    let Some(flow) = tables.flow(&work.peer) else {
        return false;
    };
    work.maker = Maker { rule: flow.rule(), generation: flow.generation() };
    flow.to_sport() == work.key.dport && life::is_alive(tables, flow, work.key.proto, interface, now)
}

/// The same by the flow that goes the error's own way, if there is one; false: its time is over.
#[inline(always)]
pub(super) fn find_flow<T, A>(tables: &T, work: &mut Work<A>, interface: u32, now: u64) -> Option<bool>
where
    T: Tables<A>,
    A: Address,
{
    let flow = tables.flow(&work.key)?;
    // About what has turned back, see `turn::is_own_error`.
    let interface = match interface {
        0 => tables.rule(flow.rule()).map_or(0, |rule| rule.uplink),
        known => known,
    };
    if !life::is_alive(tables, flow, work.key.proto, interface, now) {
        return Some(false);
    }
    work.maker = Maker { rule: flow.rule(), generation: flow.generation() };
    work.to = Translation {
        src: flow.to_dst(),
        dst: flow.to_src(),
        sport: flow.to_dport(),
        dport: flow.to_sport(),
    };
    Some(true)
}

/// Whose the external port is that the embedded packet came from.
#[inline(always)]
fn find_inside<T, A>(tables: &T, work: &mut Work<A>)
where
    T: Tables<A>,
    A: Address,
{
    let key = &work.key;
    work.external = EndpointKey { address: key.dst, port: key.dport, proto: key.proto, unused: 0 };
    work.to = Translation { src: key.dst, dst: key.src, sport: key.dport, dport: key.sport };
    if let Some(binding) = tables.binding(&work.external) {
        work.to.src = binding.inside();
        work.to.sport = binding.port();
    }
}

/// Which external port the inside socket has that the embedded packet went to.
#[inline(always)]
fn find_outside<T, A>(tables: &T, work: &mut Work<A>, interface: u32)
where
    T: Tables<A>,
    A: Address,
{
    let key = &work.key;
    work.inside = EndpointKey { address: key.src, port: key.sport, proto: key.proto, unused: 0 };
    work.to = Translation { src: key.dst, dst: key.src, sport: key.dport, dport: key.sport };
    if let Some(moved) = tables.moved(&work.inside) {
        work.to.dst = moved.address;
        work.to.dport = moved.port;
    } else if let Some(address) = outside_of(tables, interface, key.src) {
        work.to.dst = address;
    }
}

/// Writes everything, by arithmetic: no checksum of an ICMP error is ever left to a device, and every change is made up
/// for by a checksum in the packet, so that the sum over all of it stays the same. `None`, and the packet as it was: it is not what
/// its sender has sent.
#[inline(always)]
pub(super) fn rewrite<P, A>(packet: &mut P, work: &mut Work<A>, direction: Direction) -> Option<()>
where
    P: Packet,
    A: Address,
{
    if !icmp_check::is_sound(packet, work) {
        return None;
    }
    let (offset, at) = (work.transport_offset(), work.embedded_offset());
    let to = &work.to;
    let mut sum = embedded_header(packet, work, offset + ICMP_HEADER)?;
    sum += embedded_transport(packet, work, at)?;

    let mut outer = packet.at::<A::Header>(ETHERNET)?;
    // SAFETY: `at` checked the bounds; nothing else holds the packet.
    let header = unsafe { outer.as_mut() };
    let (src, dst) = (A::src(header), A::dst(header));
    let (new_src, new_dst) = match direction {
        Direction::In => (src, to.src),
        Direction::Out => (to.dst, dst),
    };
    let difference = A::difference(src, new_src) + A::difference(dst, new_dst);
    A::rewrite(header, new_src, new_dst, checksum::fold(difference));
    if A::ICMP_HAS_PSEUDO_HEADER {
        sum += u32::from(checksum::fold(difference));
    }

    let mut check = packet.at::<Checksum>(offset + 2)?;
    // SAFETY: as above.
    let check = unsafe { check.as_mut() };
    check.0 = checksum::apply(check.0, checksum::fold(sum));
    Some(())
}

/// The embedded IP header; what it adds to the checksum around it.
#[inline(always)]
fn embedded_header<P, A>(packet: &mut P, work: &Work<A>, start: usize) -> Option<u32>
where
    P: Packet,
    A: Address,
{
    let mut header = packet.at::<A::Header>(start)?;
    // SAFETY: `at` checked the bounds; nothing else holds the packet.
    let header = unsafe { header.as_mut() };
    let difference = addresses(work);
    let before = A::check(header);
    A::rewrite(header, work.to.src, work.to.dst, difference);
    let own = match (before, A::check(header)) {
        (Some(before), Some(after)) => changed(before, after),
        (None, _) | (_, None) => 0,
    };
    Some(u32::from(difference) + own)
}

/// The embedded ports and their checksum, as far as it is there; what they add to the checksum around them.
#[inline(always)]
fn embedded_transport<P, A>(packet: &mut P, work: &Work<A>, at: usize) -> Option<u32>
where
    P: Packet,
    A: Address,
{
    let to = &work.to;
    let ports = checksum::fold(
        checksum::difference_port(work.key.dport, to.sport)
            + checksum::difference_port(work.key.sport, to.dport),
    );
    let covered = checksum::fold(u32::from(addresses(work)) + u32::from(ports));
    let mut transport = packet.at::<Transport>(at)?;
    // SAFETY: `at` checked the bounds; nothing else holds the packet.
    let transport = unsafe { transport.as_mut() };
    let (sport, dport) = (to.sport.to_be_bytes(), to.dport.to_be_bytes());
    let mut sum = u32::from(ports);
    if work.key.proto == A::ICMP {
        transport.third = if A::asks(transport.first[0]) { sport } else { dport };
        let before = transport.second;
        let covered = if A::ICMP_HAS_PSEUDO_HEADER { covered } else { ports };
        transport.second = checksum::apply(before, covered);
        return Some(sum + changed(before, transport.second));
    }
    transport.first = sport;
    transport.second = dport;
    if work.key.proto == proto::UDP {
        let before = transport.fourth;
        if before != [0, 0] {
            transport.fourth = checksum::apply(before, covered);
            if transport.fourth == [0, 0] {
                transport.fourth = [0xff, 0xff];
            }
            sum += changed(before, transport.fourth);
        }
        return Some(sum);
    }
    // TCP's is beyond the eight bytes that everybody embeds.
    packet.make_linear(at + 18);
    if let Some(mut check) = packet.at::<Checksum>(at + 16) {
        // SAFETY: as above.
        let check = unsafe { check.as_mut() };
        let before = check.0;
        check.0 = checksum::apply(before, covered);
        sum += changed(before, check.0);
    }
    Some(sum)
}

/// What the embedded addresses add.
#[inline(always)]
fn addresses<A: Address>(work: &Work<A>) -> u16 {
    checksum::fold(A::difference(work.key.dst, work.to.src) + A::difference(work.key.src, work.to.dst))
}

#[inline(always)]
fn changed(before: [u8; 2], after: [u8; 2]) -> u32 {
    checksum::difference16(u16::from_ne_bytes(before), u16::from_ne_bytes(after))
}
