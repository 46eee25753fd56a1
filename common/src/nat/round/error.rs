//! ICMP errors about what goes between the host itself and its own forwards.

use super::goes_home;
use crate::{
    checksum,
    drop::DropReason,
    family::Address,
    maps::Direction,
    nat::{Verdict, icmp_error, work::Work},
    packet::{Packet, Transport, icmp},
    tables::Tables,
    tcp::proto,
};

/// What every link of IPv6 takes (RFC 8200 section 5): the kernel does not believe less.
const LEAST6: u32 = 1280;

/// One that goes out of loopback, from one address of the uplink to another.
///
/// When it is about an answer, whose socket is gone, it goes to the server. When it is about what the host has sent, of
/// which the kernel could not find the server or which was too long for the way there, it stays, and becomes one about what the
/// socket has sent. Any other is the host's own business.
#[inline(always)]
pub fn error_leaves<P, T, A>(packet: &mut P, tables: &T) -> Verdict
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
    let (interface, now) = (work.interface(), tables.now());
    if icmp_error::embedded(packet, work, Direction::In).is_none() {
        return Verdict::Pass;
    }
    let mut direction = Direction::In;
    if icmp_error::find_flow(tables, work, interface, now) != Some(true) {
        direction = Direction::Out;
        work.key.direction = Direction::Out as u8;
        if icmp_error::find_flow(tables, work, interface, now) != Some(true) {
            return Verdict::Pass;
        }
    }
    if icmp_error::rewrite(packet, work, direction).is_none() {
        return Verdict::Drop(DropReason::Malformed);
    }
    match direction {
        Direction::In => Verdict::Around,
        Direction::Out => {
            make_believable(packet, tables, work);
            Verdict::Pass
        }
    }
}

/// Whether one from the inside is about what the host itself has sent, and then what becomes of it; else it may be about what
/// has turned back. For the socket it comes from the address that was asked.
#[inline(always)]
pub fn error_comes_home<P, T, A>(packet: &mut P, tables: &T) -> Option<Verdict>
where
    P: Packet,
    T: Tables<A>,
    A: Address,
{
    let mut work = tables.work()?;
    // SAFETY: as above.
    let work = unsafe { work.as_mut() };
    let (interface, now, sender) = (work.interface(), tables.now(), work.key.src);
    if icmp_error::embedded(packet, work, Direction::Out).is_none()
        || icmp_error::find_flow(tables, work, interface, now) != Some(true)
    {
        // As it was.
        work.key.src = sender;
        return None;
    }
    let made = icmp_error::rewrite(packet, work, Direction::Out).is_some() && goes_home(packet);
    make_believable(packet, tables, work);
    Some(if made { Verdict::Home } else { Verdict::Drop(DropReason::Malformed) })
}

/// Over IPv6 the kernel learns how narrow the way to an address of its own is only where that is less than what the address' own
/// interface takes (net/ipv6/route.c `rt6_insert_exception`), which is not where its packets go: so it is told a little less. Parts
/// are multiples of eight bytes long.
#[inline(always)]
fn make_believable<P, T, A>(packet: &mut P, tables: &T, work: &Work<A>)
where
    P: Packet,
    T: Tables<A>,
    A: Address,
{
    let Some(mut header) = packet.at::<Transport>(work.transport_offset()) else {
        return;
    };
    // SAFETY: `at` checked the bounds; nothing else holds the packet.
    let header = unsafe { header.as_mut() };
    let [kind, _code] = header.first;
    if A::ICMP != proto::ICMP6 || kind != icmp::TOO_BIG6 {
        return;
    }
    let ([a, b], [c, d]) = (header.third, header.fourth);
    let told = u32::from_be_bytes([a, b, c, d]);
    let Some(own) = tables.mtu(work.interface()) else {
        return;
    };
    let most = own.saturating_sub(1) & !7;
    if told < own || most < LEAST6 {
        return;
    }
    let [e, f, g, h] = most.to_be_bytes();
    let difference =
        checksum::difference_word(u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]));
    (header.third, header.fourth) = ([e, f], [g, h]);
    header.second = checksum::apply(header.second, checksum::fold(difference));
}
