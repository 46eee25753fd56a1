//! Parts of packets.

use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
};

use super::{
    Packet,
    header::{EXTENSIONS, Extension, FRAGMENT_OFFSET, extension},
};
use crate::family::{Address as _, NO_PROTOCOL};

/// What a fragment says of itself.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(4))]
pub struct Piece<A> {
    pub src: A,
    pub dst: A,
    /// The sender's number of the packet that it is a part of.
    pub id: u32,
    /// Where in the packet it belongs, in units of 8 bytes.
    pub place: u32,
    /// What follows its headers, and where; of the transport header when it is the packet's first.
    pub protocol: u32,
    pub offset: u32,
}

impl<A> Piece<A> {
    /// As memory has it: the verifier would follow what was written along every way that leads here.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "a byte was written")]
    pub fn protocol(&self) -> u8 {
        // SAFETY: a reference is readable.
        unsafe { (&raw const self.protocol).read_volatile() as u8 }
    }

    /// As memory has it.
    #[inline(always)]
    pub fn place(&self) -> u32 {
        // SAFETY: a reference is readable.
        unsafe { (&raw const self.place).read_volatile() }
    }

    /// As memory has it, with a bound that the verifier knows: six extension headers of 2048 bytes.
    #[inline(always)]
    pub fn offset(&self) -> usize {
        // SAFETY: a reference is readable.
        let offset = unsafe { (&raw const self.offset).read_volatile() };
        (offset & 0x3fff) as usize
    }
}

/// Reads what an IPv4 fragment says of itself.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "an offset in a packet's headers")]
pub(crate) fn piece4<P: Packet>(packet: &mut P, piece: &mut Piece<[u8; 4]>) -> bool {
    packet.make_linear(EthHdr::LEN + Ipv4Hdr::LEN);
    let Some(ip) = packet.at::<Ipv4Hdr>(EthHdr::LEN) else {
        return false;
    };
    // SAFETY: `at` checked the bounds, `Wire` the layout; nothing else holds the packet.
    let ip = unsafe { ip.as_ref() };
    *piece = Piece {
        src: ip.src_addr,
        dst: ip.dst_addr,
        id: u32::from(u16::from_be_bytes(ip.id)),
        place: u32::from(u16::from_be_bytes(ip.frags) & FRAGMENT_OFFSET),
        protocol: u32::from(ip.proto),
        offset: (EthHdr::LEN + ((ip.vihl & 15) as usize) * 4) as u32,
    };
    true
}

/// Reads what an IPv6 fragment says of itself, in a header of its own (RFC 8200 section 4.5).
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "an offset in a packet's headers")]
pub(crate) fn piece6<P: Packet>(packet: &mut P, piece: &mut Piece<[u8; 16]>) -> bool {
    packet.make_linear(EthHdr::LEN + Ipv6Hdr::LEN);
    let Some(ip) = packet.at::<Ipv6Hdr>(EthHdr::LEN) else {
        return false;
    };
    // SAFETY: `at` checked the bounds, `Wire` the layout; nothing else holds the packet.
    let mut next = unsafe {
        let ip = ip.as_ref();
        (piece.src, piece.dst) = (<[u8; 16]>::src(ip), <[u8; 16]>::dst(ip));
        ip.next_hdr
    };
    let mut offset = EthHdr::LEN + Ipv6Hdr::LEN;
    let (mut seen, mut found) = (0, false);
    while seen < EXTENSIONS {
        match next {
            extension::HOP_BY_HOP | extension::ROUTING | extension::DESTINATION | extension::FRAGMENT => {}
            _ => break,
        }
        packet.make_linear(offset + size_of::<Extension>());
        let Some(header) = packet.at::<Extension>(offset) else {
            return false;
        };
        // SAFETY: `at` checked the bounds.
        let Extension { next: following, len, rest } = unsafe { *header.as_ref() };
        offset += (if next == extension::FRAGMENT { 1 } else { len as usize + 1 }) * 8;
        if next == extension::FRAGMENT {
            let [high, low, a, b, c, d] = rest;
            piece.id = u32::from_be_bytes([a, b, c, d]);
            piece.place = u32::from(u16::from_be_bytes([high, low]) >> 3);
            found = true;
        }
        next = following;
        if found && piece.place != 0 {
            break;
        }
        seen += 1;
    }
    piece.protocol = u32::from(next);
    piece.offset = offset as u32;
    found
}

/// What follows the extension headers of a packet that an ICMP error embeds, and where; the error may end before, and only the first
/// part of a packet has a transport header.
#[inline(always)]
pub(crate) fn behind6<P: Packet>(packet: &mut P, mut next: u8, mut offset: usize) -> (u8, usize) {
    let mut seen = 0;
    while seen < EXTENSIONS {
        match next {
            extension::HOP_BY_HOP | extension::ROUTING | extension::DESTINATION | extension::FRAGMENT => {}
            _ => break,
        }
        packet.make_linear(offset + size_of::<Extension>());
        let Some(header) = packet.at::<Extension>(offset) else {
            return (NO_PROTOCOL, offset);
        };
        // SAFETY: `at` checked the bounds; nothing else holds the packet.
        let Extension { next: following, len, rest: [high, low, ..] } = unsafe { *header.as_ref() };
        if next != extension::FRAGMENT {
            offset += (len as usize + 1) * 8;
        } else if u16::from_be_bytes([high, low]) >> 3 == 0 {
            offset += size_of::<Extension>();
        } else {
            return (NO_PROTOCOL, offset);
        }
        next = following;
        seen += 1;
    }
    (next, offset)
}
