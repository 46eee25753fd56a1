//! Where a packet's bytes are, and what its headers mean.

use core::ptr::NonNull;

use network_types::{eth::EthHdr, ip::Ipv4Hdr};

use crate::{
    drop::DropReason,
    maps::{Direction, FlowKey},
    tcp::proto,
};

/// A packet on its way through an interface: an Ethernet frame whose outer VLAN tag, if any, is not in its bytes.
pub trait Packet {
    /// The frame carries IPv4, and no VLAN tag: a tagged frame belongs to the VLAN's own interface.
    fn is_untagged_ipv4(&self) -> bool;

    /// Index of the interface whose hook runs.
    fn interface(&self) -> u32;

    /// Bytes of the frame without its Ethernet header.
    fn network_len(&self) -> u32;

    /// Packets on the wire: more than one for a segmentation-offload super-packet.
    fn segments(&self) -> u32;

    /// Makes the first `len` bytes of the frame reachable for [`Packet::at`], as far as it has so many.
    /// Every pointer taken before is void.
    fn make_linear(&mut self, len: usize);

    /// The bytes from `offset` as a `T`, if they are reachable.
    fn at<T: Wire>(&mut self, offset: usize) -> Option<NonNull<T>>;

    /// Adjusts the transport checksum, whatever the checksum offload has made of it. The last thing to happen to a
    /// packet. False: the kernel refused, and the packet must not go on.
    fn commit(&mut self, fix: ChecksumFix) -> bool;
}

/// Types that may be laid over packet bytes.
///
/// # Safety
/// Alignment 1, no padding, every bit pattern valid.
pub unsafe trait Wire {}

// SAFETY: bytes and byte arrays only (network-types 0.2).
unsafe impl Wire for Ipv4Hdr {}
// SAFETY: byte arrays only.
unsafe impl Wire for Transport {}
// SAFETY: bytes.
unsafe impl Wire for TcpHeader {}

const _: () = assert!(align_of::<Ipv4Hdr>() == 1 && align_of::<Transport>() == 1);

/// The first eight bytes of TCP, UDP or an ICMP query.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Transport {
    /// Source port; ICMP: type and code.
    pub first: [u8; 2],
    /// Destination port; ICMP: checksum.
    pub second: [u8; 2],
    /// ICMP: identifier.
    pub third: [u8; 2],
    /// UDP: checksum; ICMP: sequence number.
    pub fourth: [u8; 2],
}

/// A TCP header without options (RFC 9293 section 3.1).
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct TcpHeader {
    ports: [u8; 4],
    numbers: [u8; 8],
    offset: u8,
    bits: u8,
    rest: [u8; 6],
}

/// How a transport checksum has to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChecksumFix {
    /// Where the checksum is, from the start of the frame.
    pub offset: usize,
    /// What the addresses in the pseudo header add; 0: nothing, or no pseudo header.
    pub pseudo: u16,
    /// What changed in the transport header itself adds.
    pub body: u16,
    /// A checksum of 0 means "none" and stays (UDP, RFC 768).
    pub optional: bool,
}

/// What the headers of a frame are.
#[derive(Debug)]
pub enum Parsed<'a> {
    /// Nothing that is translated here: no IPv4, or tagged.
    Other,
    /// IPv4 that cannot be told to a flow, and why.
    Flowless {
        src: [u8; 4],
        why: DropReason,
    },
    Flow(Headers<'a>),
}

/// The headers of a packet that belongs to a flow: TCP, UDP, or an ICMP echo.
#[derive(Debug)]
pub struct Headers<'a> {
    pub ip: &'a mut Ipv4Hdr,
    pub transport: &'a mut Transport,
    /// Where the transport header is, from the start of the frame.
    pub transport_offset: usize,
    /// 0 unless TCP.
    pub tcp_bits: u8,
}

/// ICMP types (RFC 792).
pub mod icmp {
    pub const ECHO_REPLY: u8 = 0;
    pub const ECHO: u8 = 8;
}

const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;

/// Reads the headers: one bounds check each, everything from strangers checked.
#[inline(always)]
pub fn parse<P: Packet>(packet: &mut P) -> Parsed<'_> {
    if !packet.is_untagged_ipv4() {
        return Parsed::Other;
    }
    packet.make_linear(EthHdr::LEN + Ipv4Hdr::LEN);
    let Some(ip) = packet.at::<Ipv4Hdr>(EthHdr::LEN) else {
        return Parsed::Other;
    };
    // SAFETY: `at` checked the bounds, `Wire` the layout; nothing else holds the packet.
    let (vihl, protocol, fragment, src) = unsafe {
        let ip = ip.as_ref();
        (ip.vihl, ip.proto, u16::from_be_bytes(ip.frags), ip.src_addr)
    };
    if vihl >> 4 != 4 || vihl & 15 < 5 {
        return Parsed::Other;
    }
    if fragment & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0 {
        return Parsed::Flowless { src, why: DropReason::Fragment };
    }
    let transport_offset = EthHdr::LEN + ((vihl & 15) as usize) * 4;
    let transport_len = match protocol {
        proto::TCP => size_of::<TcpHeader>(),
        proto::UDP | proto::ICMP => size_of::<Transport>(),
        _ => return Parsed::Flowless { src, why: DropReason::Protocol },
    };
    packet.make_linear(transport_offset + transport_len);
    let (Some(mut ip), Some(mut transport)) =
        (packet.at::<Ipv4Hdr>(EthHdr::LEN), packet.at::<Transport>(transport_offset))
    else {
        return Parsed::Flowless { src, why: DropReason::Malformed };
    };
    let mut tcp_bits = 0;
    if protocol == proto::TCP {
        let Some(header) = packet.at::<TcpHeader>(transport_offset) else {
            return Parsed::Flowless { src, why: DropReason::Malformed };
        };
        // SAFETY: `at` checked the bounds.
        tcp_bits = unsafe { header.as_ref().bits };
    }
    // SAFETY: `at` checked the bounds, the two do not overlap (the transport header starts where the IP header
    // ends, at 20 bytes or more), and both live as long as the borrow of the packet.
    let (ip, transport) = unsafe { (ip.as_mut(), transport.as_mut()) };
    if protocol == proto::ICMP && !matches!(transport.first, [icmp::ECHO | icmp::ECHO_REPLY, 0]) {
        return Parsed::Flowless { src, why: DropReason::Protocol };
    }
    Parsed::Flow(Headers { ip, transport, transport_offset, tcp_bits })
}

impl Headers<'_> {
    /// The flow table's key of this packet.
    #[inline(always)]
    pub fn key(&self, direction: Direction) -> FlowKey {
        let (sport, dport) = match self.ip.proto {
            proto::ICMP if self.transport.first[0] == icmp::ECHO => {
                (u16::from_be_bytes(self.transport.third), 0)
            }
            proto::ICMP => (0, u16::from_be_bytes(self.transport.third)),
            _ => (u16::from_be_bytes(self.transport.first), u16::from_be_bytes(self.transport.second)),
        };
        FlowKey {
            src: self.ip.src_addr,
            dst: self.ip.dst_addr,
            sport,
            dport,
            proto: self.ip.proto,
            direction: direction as u8,
            unused: 0,
        }
    }
}
