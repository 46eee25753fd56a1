//! The fast path before the kernel has made a socket buffer of the packet.
//!
//! A packet of a flow that is fast already is translated and sent on where it comes in, on the same conditions as at
//! the later hook, and so are the [first one](first()) of a flow between hosts that know each other and those that
//! [say something](notable()) about it. Everything else goes on untouched: not a byte is changed before it is sure that the packet leaves. Nothing is learned here.
//!
//! What a guest sends may lack its checksum, because its own card would fill it in. Nobody tells us here, and where it
//! leaves nobody would do it; so what looks like that goes on too (see [`lacks_checksum`]).

mod first;
mod notable;

pub use self::{
    first::{first, make},
    notable::notable,
};

use network_types::eth::EthHdr;

use super::{
    Verdict,
    binding::VXLAN,
    fast::{Shape, Ways, is_for, send, way},
    life, rewrite,
    work::Work,
};
use crate::{
    checksum::fold,
    family::Address,
    maps::{Direction, Hop},
    packet::{Checksum, Headers, Packet, Parsed, headers_at, parse},
    tables::{FlowRef, Tables},
    tcp::proto,
};

/// Of GENEVE (RFC 8926).
const GENEVE: u16 = 6081;

/// What this hook needs beyond the fast path's maps.
pub trait Doors: Ways {
    /// Points a packet at an interface, for when it is redirected. False: it cannot leave there from this hook.
    fn points_at(&self, interface: u32) -> bool;
}

/// What becomes of a packet in a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Early {
    Done(Verdict),
    /// It may be the first one of a flow: [`first`], with [`Work`] filled in.
    First,
    /// It says something about its flow: [`notable`], the same.
    Notable,
}

/// Sends on a packet of a flow whose way is known. [`Verdict::Pass`], and the packet as it was, for others.
#[inline(always)]
pub fn early<P, T, A>(packet: &mut P, tables: &T, direction: Direction) -> Early
where
    P: Packet,
    T: Tables<A> + Doors,
    A: Address,
{
    shorten(packet, tables, direction).unwrap_or(Early::Done(Verdict::Pass))
}

#[inline(always)]
fn shorten<P, T, A>(packet: &mut P, tables: &T, direction: Direction) -> Option<Early>
where
    P: Packet,
    T: Tables<A> + Doors,
    A: Address,
{
    let port = tables.port(packet.interface())?;
    if tables.epoch() == 0 || !is_for(packet, port.mac) {
        return None;
    }
    let shape = Shape::of(packet);
    let headers = match parse::<P, A>(packet) {
        Parsed::Other | Parsed::Flowless { .. } | Parsed::Fragment | Parsed::IcmpError { .. } => return None,
        Parsed::Flow(headers) => headers,
    };
    let key = headers.key(direction);
    let Some(flow) = tables.flow(&key) else {
        first::prepare(tables, &headers, shape, port.owner, direction)?;
        let pseudo = pseudo_header(&headers);
        return is_whole::<P, A>(packet, key.proto, pseudo)?.then_some(Early::First);
    };
    let now = tables.now();
    let Some(hop) = simply(tables, flow, &headers, shape, (port.owner, direction), now) else {
        notable::prepare(tables, flow, &headers, port.owner, direction)?;
        let pseudo = pseudo_header(&headers);
        return is_whole::<P, A>(packet, key.proto, pseudo)?.then_some(Early::Notable);
    };
    let pseudo = pseudo_header(&headers);
    // `way` refuses options, so that is where its checksum is.
    if carries_frames(key.proto, key.dport)
        || !is_whole::<P, A>(packet, key.proto, pseudo)?
        || !tables.points_at(hop.interface)
    {
        return None;
    }
    let place = EthHdr::LEN + size_of::<A::Header>();
    let headers = headers_at::<P, A>(packet, place, key.proto)?;
    tables.touch(flow, now, 1, shape.network_len);
    tables.count(flow.rule(), direction, 1, shape.network_len);
    let hop_adds = A::hop(headers.ip);
    let fix = rewrite(headers, flow).and(hop_adds);
    Some(Early::Done(send(packet, &hop, fix)))
}

/// Where the next packet of a flow goes, which says nothing about it.
#[inline(always)]
fn simply<T, A>(
    tables: &T,
    flow: FlowRef<A>,
    headers: &Headers<'_, A>,
    shape: Shape,
    (from, direction): (u32, Direction),
    now: u64,
) -> Option<Hop>
where
    T: Tables<A> + Doors,
    A: Address,
{
    let hop = way(tables, flow, headers, shape, from, now)?;
    let uplink = match direction {
        Direction::In => from,
        Direction::Out => hop.interface,
    };
    let simple = life::is_alive(tables, flow, headers.protocol, uplink, now)
        && !life::is_noteworthy(flow, headers.tcp_bits, now);
    simple.then_some(hop)
}

/// Sends a packet without options on, of which [`Work`] says all.
#[inline(always)]
fn leave<P, T, A>(
    packet: &mut P,
    tables: &T,
    work: &Work<A>,
    flow: FlowRef<A>,
    hop: &Hop,
    now: u64,
) -> Option<Verdict>
where
    P: Packet,
    T: Tables<A> + Doors,
    A: Address,
{
    let bytes = packet.network_len();
    let direction = if work.key.direction == Direction::In as u8 { Direction::In } else { Direction::Out };
    let headers = headers_at::<P, A>(packet, EthHdr::LEN + size_of::<A::Header>(), work.key.proto)?;
    tables.touch(flow, now, 1, bytes);
    tables.count(flow.rule(), direction, 1, bytes);
    let hop_adds = A::hop(headers.ip);
    let fix = rewrite(headers, flow).and(hop_adds);
    Some(send(packet, hop, fix))
}

/// Whether a packet without options has its checksum.
#[inline(always)]
fn is_whole<P: Packet, A: Address>(packet: &mut P, protocol: u8, pseudo: u16) -> Option<bool> {
    let place = EthHdr::LEN + size_of::<A::Header>();
    let field = packet.at::<Checksum>(place + if protocol == proto::TCP { 16 } else { 6 })?;
    // SAFETY: `at` checked the bounds; nothing else holds the packet.
    Some(!lacks_checksum(unsafe { field.as_ref() }.0, pseudo))
}

/// A tunnel of whole frames: the checksum that is missing may be one of those inside.
#[inline(always)]
const fn carries_frames(protocol: u8, dport: u16) -> bool {
    protocol == proto::UDP && (dport == VXLAN[0] || dport == VXLAN[1] || dport == GENEVE)
}

/// Sum of the pseudo header (RFC 768, RFC 9293 section 3.1, RFC 8200 section 8.1).
#[inline(always)]
fn pseudo_header<A: Address>(headers: &Headers<'_, A>) -> u16 {
    let sum = A::difference(A::ANY, A::src(headers.ip))
        + A::difference(A::ANY, A::dst(headers.ip))
        + u32::from(u16::from(headers.protocol).to_be())
        + u32::from(A::payload_len(headers.ip).to_be());
    fold(sum)
}

/// Whether a checksum is to be filled in by the card: then there is only the pseudo header's sum in it (Linux calls it
/// `CHECKSUM_PARTIAL`). One of 65536 whole ones looks the same, and takes the later hook.
#[inline(always)]
const fn lacks_checksum(field: [u8; 2], pseudo: u16) -> bool {
    let field = u16::from_ne_bytes(field);
    // 0 has two forms in one's complement
    field == pseudo || (field.wrapping_add(1) <= 1 && pseudo.wrapping_add(1) <= 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_the_same_in_either_form() {
        let zeros = [[0, 0], [0xff, 0xff]];
        for field in zeros {
            assert!(zeros.iter().all(|pseudo| lacks_checksum(field, u16::from_ne_bytes(*pseudo))));
            assert!(!lacks_checksum(field, 1) && !lacks_checksum(field, 0xfffe));
        }
        assert!(lacks_checksum([0x12, 0x34], u16::from_ne_bytes([0x12, 0x34])));
        assert!(!lacks_checksum([0x12, 0x34], u16::from_ne_bytes([0x12, 0x35])));
    }

    #[test]
    fn tunnels_of_frames_are_known_by_where_they_lead() {
        assert!([4789, 8472, 6081].into_iter().all(|port| carries_frames(proto::UDP, port)));
        assert!(!carries_frames(proto::TCP, 4789) && !carries_frames(proto::UDP, 53));
    }
}
