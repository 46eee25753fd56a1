//! From a frame to the headers of its flow.

use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
};

use super::{
    Packet,
    header::{EXTENSIONS, Extension, FRAGMENT_OFFSET, MORE_FRAGMENTS, TcpHeader, Transport, extension},
    icmp,
};
use crate::{
    drop::DropReason,
    family::Address,
    maps::{Direction, FlowKey},
    tcp::proto,
    words::load16,
};

/// What the headers of a frame are.
#[derive(Debug)]
pub enum Parsed<'a, A: Address> {
    /// Nothing that is translated here: another family, tagged, or the business of neighbours only.
    Other,
    /// A packet that cannot be told to a flow, and why.
    Flowless {
        src: A,
        why: DropReason,
    },
    /// A part of a packet: [`crate::nat::fragment`].
    Fragment,
    Flow(Headers<'a, A>),
    /// An ICMP error, whose header is at `offset`: it belongs to the flow of the packet that it embeds.
    IcmpError {
        src: A,
        offset: usize,
    },
}

/// Where the transport header is.
#[derive(Debug, Clone, Copy)]
pub enum Addressed<A> {
    Other,
    Flowless {
        src: A,
        why: DropReason,
    },
    Fragment,
    Transport {
        protocol: u8,
        /// From the start of the frame.
        offset: usize,
    },
}

/// The headers of a packet that belongs to a flow: TCP, UDP, or an ICMP query and its answer.
#[derive(Debug)]
pub struct Headers<'a, A: Address> {
    pub ip: &'a mut A::Header,
    pub transport: &'a mut Transport,
    /// Where the transport header is, from the start of the frame.
    pub transport_offset: usize,
    pub protocol: u8,
    /// 0 unless TCP.
    pub tcp_bits: u8,
    /// Length of the transport header with its options, in bytes; as the packet says.
    pub transport_len: u8,
}

impl<A: Address> Headers<'_, A> {
    /// Bytes of IP before the payload.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "headers are shorter than 64 KiB")]
    pub fn header_len(&self) -> u32 {
        (self.transport_offset - EthHdr::LEN) as u32 + u32::from(self.transport_len)
    }

    /// IP options or extension headers, which every router on the way may want to see.
    #[inline(always)]
    pub fn has_options(&self) -> bool {
        self.transport_offset != EthHdr::LEN + size_of::<A::Header>()
    }

    /// The flow table's key of this packet.
    #[inline(always)]
    pub fn key(&self, direction: Direction) -> FlowKey<A> {
        let (sport, dport) = if self.protocol == A::ICMP {
            let identifier = u16::from_be_bytes(self.transport.third);
            if A::asks(self.transport.first[0]) { (identifier, 0) } else { (0, identifier) }
        } else {
            (u16::from_be(load16(&self.transport.first)), u16::from_be(load16(&self.transport.second)))
        };
        let key = FlowKey {
            src: A::src(self.ip),
            dst: A::dst(self.ip),
            sport,
            dport,
            proto: self.protocol,
            direction: direction as u8,
            unused: 0,
        };
        key.by_words()
    }
}

/// Reads the headers: one bounds check each, everything from strangers checked.
#[inline(always)]
pub fn parse<P: Packet, A: Address>(packet: &mut P) -> Parsed<'_, A> {
    if !packet.carries(A::ETHERTYPE) {
        return Parsed::Other;
    }
    let (protocol, transport_offset) = match A::locate(packet) {
        Addressed::Other => return Parsed::Other,
        Addressed::Flowless { src, why } => return Parsed::Flowless { src, why },
        Addressed::Fragment => return Parsed::Fragment,
        Addressed::Transport { protocol, offset } => (protocol, offset),
    };
    read(packet, protocol, transport_offset)
}

/// Reads the transport header of the first part of a packet, which may be of any protocol.
#[inline(always)]
pub(crate) fn read_first_part<P: Packet, A: Address>(
    packet: &mut P,
    protocol: u8,
    transport_offset: usize,
) -> Parsed<'_, A> {
    if protocol == proto::TCP || protocol == proto::UDP || protocol == A::ICMP {
        return read(packet, protocol, transport_offset);
    }
    let Some(ip) = packet.at::<A::Header>(EthHdr::LEN) else {
        return Parsed::Other;
    };
    // SAFETY: `at` checked the bounds, `Wire` the layout; nothing else holds the packet.
    Parsed::Flowless { src: A::src(unsafe { ip.as_ref() }), why: DropReason::Protocol }
}

/// Reads the transport header of this protocol at this offset.
#[inline(always)]
fn read<P: Packet, A: Address>(packet: &mut P, protocol: u8, transport_offset: usize) -> Parsed<'_, A> {
    let transport_len = if protocol == proto::TCP { size_of::<TcpHeader>() } else { size_of::<Transport>() };
    packet.make_linear(transport_offset + transport_len);
    let Some(mut ip) = packet.at::<A::Header>(EthHdr::LEN) else {
        return Parsed::Other;
    };
    // SAFETY: `at` checked the bounds, `Wire` the layout; nothing else holds the packet.
    let src = A::src(unsafe { ip.as_ref() });
    let Some(mut transport) = packet.at::<Transport>(transport_offset) else {
        return Parsed::Flowless { src, why: DropReason::Malformed };
    };
    let (mut tcp_bits, mut transport_header) = (0, 8);
    if protocol == proto::TCP {
        let Some(header) = packet.at::<TcpHeader>(transport_offset) else {
            return Parsed::Flowless { src, why: DropReason::Malformed };
        };
        // SAFETY: `at` checked the bounds.
        let header = unsafe { header.as_ref() };
        (tcp_bits, transport_header) = (header.bits, (header.offset >> 4) * 4);
    }
    // SAFETY: `at` checked the bounds, the two do not overlap (the transport header starts where the IP header
    // ends or later), and both live as long as the borrow of the packet.
    let (ip, transport) = unsafe { (ip.as_mut(), transport.as_mut()) };
    if protocol == A::ICMP {
        let [kind, code] = transport.first;
        if A::ICMP == proto::ICMP6 && (icmp::ND_FIRST..=icmp::ND_LAST).contains(&kind) {
            return Parsed::Other;
        }
        if A::is_error(kind) {
            return Parsed::IcmpError { src, offset: transport_offset };
        }
        if !(A::asks(kind) || A::answers(kind)) || code != 0 {
            return Parsed::Flowless { src, why: DropReason::Protocol };
        }
    }
    Parsed::Flow(Headers {
        ip,
        transport,
        transport_offset,
        protocol,
        tcp_bits,
        transport_len: transport_header,
    })
}

/// The headers again, of a packet that `parse` has found to have them at this offset.
#[inline(always)]
pub fn headers_at<P: Packet, A: Address>(
    packet: &mut P,
    transport_offset: usize,
    protocol: u8,
) -> Option<Headers<'_, A>> {
    let mut ip = packet.at::<A::Header>(EthHdr::LEN)?;
    let mut transport = packet.at::<Transport>(transport_offset)?;
    if transport_offset < EthHdr::LEN + size_of::<A::Header>() {
        return None;
    }
    // SAFETY: `at` checked the bounds, the two do not overlap, and both live as long as the borrow of the packet.
    let (ip, transport) = unsafe { (ip.as_mut(), transport.as_mut()) };
    Some(Headers { ip, transport, transport_offset, protocol, tcp_bits: 0, transport_len: 0 })
}

/// Behind IPv4's header and its options.
#[inline(always)]
pub(crate) fn locate4<P: Packet>(packet: &mut P) -> Addressed<[u8; 4]> {
    packet.make_linear(EthHdr::LEN + Ipv4Hdr::LEN);
    let Some(ip) = packet.at::<Ipv4Hdr>(EthHdr::LEN) else {
        return Addressed::Other;
    };
    // SAFETY: `at` checked the bounds, `Wire` the layout; nothing else holds the packet.
    let (vihl, protocol, fragment, src) = unsafe {
        let ip = ip.as_ref();
        (ip.vihl, ip.proto, u16::from_be(load16(&ip.frags)), ip.src_addr)
    };
    if vihl >> 4 != 4 || vihl & 15 < 5 {
        return Addressed::Other;
    }
    if fragment & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0 {
        return Addressed::Fragment;
    }
    match protocol {
        proto::TCP | proto::UDP | proto::ICMP => {
            Addressed::Transport { protocol, offset: EthHdr::LEN + ((vihl & 15) as usize) * 4 }
        }
        _ => Addressed::Flowless { src, why: DropReason::Protocol },
    }
}

/// Behind IPv6's header and those extension headers that may stand before a transport header.
#[inline(always)]
pub(crate) fn locate6<P: Packet>(packet: &mut P) -> Addressed<[u8; 16]> {
    packet.make_linear(EthHdr::LEN + Ipv6Hdr::LEN);
    let Some(ip) = packet.at::<Ipv6Hdr>(EthHdr::LEN) else {
        return Addressed::Other;
    };
    // SAFETY: `at` checked the bounds, `Wire` the layout; nothing else holds the packet.
    let (first, mut next, src) = unsafe {
        let ip = ip.as_ref();
        (ip.vcf[0], ip.next_hdr, ip.src_addr)
    };
    if first >> 4 != 6 {
        return Addressed::Other;
    }
    let mut offset = EthHdr::LEN + Ipv6Hdr::LEN;
    let mut seen = 0;
    while seen < EXTENSIONS {
        match next {
            proto::TCP | proto::UDP | proto::ICMP6 => return Addressed::Transport { protocol: next, offset },
            extension::HOP_BY_HOP | extension::ROUTING | extension::DESTINATION => {}
            extension::FRAGMENT => return Addressed::Fragment,
            _ => return Addressed::Flowless { src, why: DropReason::Protocol },
        }
        packet.make_linear(offset + size_of::<Extension>());
        let Some(header) = packet.at::<Extension>(offset) else {
            return Addressed::Flowless { src, why: DropReason::Malformed };
        };
        // SAFETY: `at` checked the bounds.
        let Extension { next: following, len, rest: _ } = unsafe { *header.as_ref() };
        next = following;
        offset += (len as usize + 1) * 8;
        seen += 1;
    }
    match next {
        proto::TCP | proto::UDP | proto::ICMP6 => Addressed::Transport { protocol: next, offset },
        _ => Addressed::Flowless { src, why: DropReason::Protocol },
    }
}
