//! Telling an inside host that there is no room for its flow: the packet becomes the ICMP error that quotes it, type 3
//! code 13 or its twin of ICMPv6, and goes back (RFC 5508 REQ-8, RFC 6888 REQ-11).
//!
//! The error's checksum covers what is quoted, yet hardly any of that has to be read: a transport header and all that
//! follows add up to the complement of the pseudo header's sum, because that is what the checksum in it is for. So they do
//! where a device is yet to write it: the pseudo header's sum is in its place then, and whoever passes the error on
//! completes what is quoted. Only what is cut off, or has no checksum, is summed up here.

use super::{life, work::Work};
use crate::{
    checksum::fold,
    family::Address,
    packet::{Checksum, Packet, Transport},
    tables::Tables,
    tcp::proto,
};

const ETHERNET: usize = 14;
const ICMP_HEADER: usize = 8;

/// Errors that a CPU sends at once at most, and how many more it may send after each tick of about a millisecond: as
/// many as Linux sends by default (`icmp_msgs_burst`, `icmp_msgs_per_sec`).
const BURST: u32 = 50;

/// Turns the packet into the error. The interface through which it goes back; `None`: nobody is told.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "lengths of what is quoted")]
pub fn refuse<P, T, A>(packet: &mut P, tables: &T) -> Option<u32>
where
    P: Packet,
    T: Tables<A>,
    A: Address,
{
    let mut work = tables.work()?;
    // SAFETY: this CPU's own, and nobody else's while this packet is looked at.
    let work = unsafe { work.as_mut() };
    let (back, own) = (packet.came_in_through(), tables.uplink(packet.interface())?.address);
    let header = size_of::<A::Header>();
    // The host's own have a socket to tell; of what has options the rest is not where it is looked for here.
    if back == 0 || work.key.src.same(own) || work.transport_offset() != ETHERNET + header {
        return None;
    }
    if !may_speak(work, tables.now()) {
        return None;
    }
    let ip = packet.at::<A::Header>(ETHERNET)?;
    // SAFETY: `at` checked the bounds; nothing else holds the packet.
    let len = u32::from(A::payload_len(unsafe { ip.as_ref() }));
    let covered = pseudo(work.key.src, work.key.dst, work.key.proto, len);
    let stored = stored(packet, work, ETHERNET + header)?;
    let whole = header as u32 + len == packet.network_len() && packet.network_len() <= A::QUOTED;
    let long = packet.network_len() >= (header + A::CUT * 8) as u32;
    let rest = if whole && stored != Stored::NONE {
        len
    } else if long {
        (A::CUT * 8) as u32
    } else {
        8
    };
    let quoted = header as u32 + rest;
    if !packet.quote(ETHERNET as u32 + quoted, (header + ICMP_HEADER) as u32) {
        return None;
    }

    let start = ETHERNET + header + ICMP_HEADER;
    let mut sum = words(packet, start, header / 4)?;
    // Without a pseudo header the checksum of ICMP makes up for itself alone.
    let complement =
        if work.key.proto == A::ICMP && !A::ICMP_HAS_PSEUDO_HEADER { 0xffff } else { !fold(covered) };
    sum += if (whole && stored != Stored::NONE) || stored == u32::from(fold(covered)) {
        u32::from(complement)
    } else if long {
        words(packet, start + header, A::CUT * 2)?
    } else {
        words(packet, start + header, 2)?
    };
    let (kind, code) = A::PROHIBITED;
    sum += u32::from(u16::from_ne_bytes([kind, code]));
    if A::ICMP_HAS_PSEUDO_HEADER {
        sum += pseudo(own, work.key.src, A::ICMP, quoted + ICMP_HEADER as u32);
    }
    let check = (!fold(sum)).to_ne_bytes();
    let mut icmp = packet.at::<Transport>(ETHERNET + header)?;
    // SAFETY: `at` checked the bounds; nothing else holds the packet.
    unsafe {
        *icmp.as_mut() = Transport { first: [kind, code], second: check, third: [0; 2], fourth: [0; 2] };
    }
    let mut outer = packet.at::<A::Header>(ETHERNET)?;
    // SAFETY: as above.
    A::compose(unsafe { outer.as_mut() }, own, work.key.src, (quoted + ICMP_HEADER as u32) as u16);
    let mut ethertype = packet.at::<Checksum>(12)?;
    // SAFETY: as above.
    unsafe { ethertype.as_mut() }.0 = A::ETHERTYPE.to_be_bytes();
    Some(back)
}

/// Not more often than others do, or a flood is answered by another one.
#[inline(always)]
fn may_speak<A: Address>(work: &mut Work<A>, now: u64) -> bool {
    let tick = life::tick(now);
    let passed = tick.wrapping_sub(work.spoke);
    work.spoke = tick;
    let saved = if passed < BURST { work.may_speak.wrapping_add(passed) } else { BURST };
    let saved = if saved < BURST { saved } else { BURST };
    work.may_speak = saved.saturating_sub(1);
    saved > 0
}

/// Values of a transport checksum that are none.
struct Stored;

impl Stored {
    /// UDP of IPv4 may go without (RFC 768).
    const NONE: u32 = 0;
    /// ICMP's, which no device writes.
    const OTHER: u32 = u32::MAX;
}

/// The transport checksum as it is in the packet.
#[inline(always)]
fn stored<P, A>(packet: &mut P, work: &Work<A>, transport: usize) -> Option<u32>
where
    P: Packet,
    A: Address,
{
    let place = match work.key.proto {
        proto::TCP => transport + 16,
        proto::UDP => transport + 6,
        _ => return Some(Stored::OTHER),
    };
    let check = packet.at::<Checksum>(place)?;
    // SAFETY: `at` checked the bounds; nothing else holds the packet.
    let check = u32::from(u16::from_ne_bytes(unsafe { check.as_ref() }.0));
    // Only UDP says by it that there is none.
    Some(if check == Stored::NONE && work.key.proto == proto::TCP { Stored::OTHER } else { check })
}

/// The sum of so many words of four bytes.
#[inline(always)]
fn words<P: Packet>(packet: &mut P, from: usize, count: usize) -> Option<u32> {
    let (mut sum, mut place) = (0u32, 0);
    while place < count {
        let word = packet.at::<[u8; 4]>(from + place * 4)?;
        // SAFETY: `at` checked the bounds; nothing else holds the packet.
        let [a, b, c, d] = unsafe { *word.as_ref() };
        sum += u32::from(u16::from_ne_bytes([a, b])) + u32::from(u16::from_ne_bytes([c, d]));
        place += 1;
    }
    Some(sum)
}

/// The sum of a pseudo header.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "no packet here is longer than 64 KiB")]
fn pseudo<A: Address>(src: A, dst: A, protocol: u8, len: u32) -> u32 {
    A::difference(A::ANY, src)
        + A::difference(A::ANY, dst)
        + u32::from(u16::from_ne_bytes([0, protocol]))
        + u32::from((len as u16).to_be())
}
