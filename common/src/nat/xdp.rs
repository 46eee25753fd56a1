//! The fast path before the kernel has made a socket buffer of the packet.
//!
//! A packet of a flow that is fast already is translated and sent on where it comes in, on the same conditions as at
//! the later hook. Everything else goes on untouched: not a byte is changed before it is sure that the packet leaves.
//! Nothing is learned here.
//!
//! What a guest sends may lack its checksum, because its own card would fill it in. Nobody tells us here, and where it
//! leaves nobody would do it; so what looks like that goes on too (see [`lacks_checksum`]).

use network_types::eth::EthHdr;

use super::{
    Verdict,
    binding::VXLAN,
    fast::{Shape, Ways, is_for, send, way},
    life, rewrite,
};
use crate::{
    checksum::fold,
    family::Address,
    maps::Direction,
    packet::{Checksum, Headers, Packet, Parsed, headers_at, parse},
    tables::Tables,
    tcp::proto,
};

/// Of GENEVE (RFC 8926).
const GENEVE: u16 = 6081;

/// What this hook needs beyond the fast path's maps.
pub trait Doors: Ways {
    /// Points a packet at an interface, for when it is redirected. False: it cannot leave there from this hook.
    fn points_at(&self, interface: u32) -> bool;
}

/// Sends on a packet of a flow whose way is known. [`Verdict::Pass`], and the packet as it was, for all others.
#[inline(always)]
pub fn early<P, T, A>(packet: &mut P, tables: &T, direction: Direction) -> Verdict
where
    P: Packet,
    T: Tables<A> + Doors,
    A: Address,
{
    shorten(packet, tables, direction).unwrap_or(Verdict::Pass)
}

#[inline(always)]
fn shorten<P, T, A>(packet: &mut P, tables: &T, direction: Direction) -> Option<Verdict>
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
    let flow = tables.flow(&key)?;
    let now = tables.now();
    let hop = way(tables, flow, &headers, shape, port.owner, now)?;
    let uplink = match direction {
        Direction::In => port.owner,
        Direction::Out => hop.interface,
    };
    if !life::is_alive(tables, flow, key.proto, uplink, now)
        || life::is_noteworthy(flow, headers.tcp_bits, now)
        || carries_frames(key.proto, key.dport)
    {
        return None;
    }
    let pseudo = pseudo_header(&headers);
    // `way` refuses options, so that is where it is.
    let place = EthHdr::LEN + size_of::<A::Header>();
    let field = packet.at::<Checksum>(place + if key.proto == proto::TCP { 16 } else { 6 })?;
    // SAFETY: `at` checked the bounds; nothing else holds the packet.
    if lacks_checksum(unsafe { field.as_ref() }.0, pseudo) || !tables.points_at(hop.interface) {
        return None;
    }
    let headers = headers_at::<P, A>(packet, place, key.proto)?;
    tables.touch(flow, now, 1, shape.network_len);
    tables.count(flow.rule(), direction, 1, shape.network_len);
    let hop_adds = A::hop(headers.ip);
    let fix = rewrite(headers, flow).and(hop_adds);
    Some(send(packet, &hop, fix))
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
