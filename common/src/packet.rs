//! Where a packet's bytes are, and what its headers mean.

use core::ptr::NonNull;

use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
};

use crate::{
    drop::DropReason,
    family::Address,
    maps::{Direction, FlowKey},
    tcp::proto,
};

/// A packet on its way through an interface: an Ethernet frame whose outer VLAN tag, if any, is not in its bytes.
pub trait Packet {
    /// The frame carries this EtherType, and no VLAN tag: a tagged frame belongs to the VLAN's own interface.
    fn carries(&self, ethertype: u16) -> bool;

    /// Index of the interface whose hook runs.
    fn interface(&self) -> u32;

    /// Bytes of the frame without its Ethernet header.
    fn network_len(&self) -> u32;

    /// Packets on the wire: more than one for a segmentation-offload super-packet.
    fn segments(&self) -> u32;

    /// Payload of each packet on the wire of a segmentation-offload super-packet; 0 for others.
    fn segment_payload(&self) -> u32;

    /// Index of the interface that it came in through, of the one whose addresses answered for it; 0: the host's own.
    fn came_in_through(&self) -> u32;

    /// What a program of ours at another hook has said of it, see [`note`].
    fn note(&self) -> u32;

    fn set_note(&mut self, note: u32);

    /// Makes the first `len` bytes of the frame reachable for [`Packet::at`], as far as it has so many.
    /// Every pointer taken before is void.
    fn make_linear(&mut self, len: usize);

    /// The bytes from `offset` as a `T`, if they are reachable.
    fn at<T: Wire>(&mut self, offset: usize) -> Option<NonNull<T>>;

    /// Cuts the frame to its first `keep` bytes and makes room for `room` bytes behind its Ethernet header; all of it is
    /// reachable then. False: the kernel refused.
    fn quote(&mut self, keep: u32, room: u32) -> bool;

    /// Bytes have changed that no checksum in the packet makes up for; `difference` is theirs. Devices may have summed
    /// the packet up before.
    fn resum(&mut self, difference: u16);

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
// SAFETY: bytes and byte arrays only (network-types 0.2).
unsafe impl Wire for Ipv6Hdr {}
// SAFETY: byte arrays only.
unsafe impl Wire for LinkHeader {}
// SAFETY: byte arrays only.
unsafe impl Wire for Transport {}
// SAFETY: bytes.
unsafe impl Wire for Extension {}
// SAFETY: bytes.
unsafe impl Wire for Checksum {}
// SAFETY: bytes.
unsafe impl Wire for TcpHeader {}
// SAFETY: bytes.
unsafe impl Wire for [u8; 4] {}

const _: () = {
    assert!(align_of::<Ipv4Hdr>() == 1 && align_of::<Ipv6Hdr>() == 1);
    assert!(align_of::<Transport>() == 1 && align_of::<TcpHeader>() == 1 && align_of::<Extension>() == 1);
};

/// Words about a packet from one hook to another. In the kernel they are kept in `skb->tc_index`, which packet
/// classifiers used to pass on from ingress to egress, and nobody else does.
pub mod note {
    pub const NONE: u32 = 0;
    /// It is translated and where it should be; leave it alone.
    pub const DONE: u32 = 0x7c1;
    /// The way that it takes should be written down.
    pub const LEARN: u32 = 0x7c2;

    /// A fragment that waits for its first one: in the lowest eight bits since when, above them which way it goes.
    const WAITING: u32 = 0x3e00;
    const WAITING_MASK: u32 = 0xfe00;
    const OUT: u32 = 0x100;
    const SINCE: u32 = 0xff;
    /// Nanoseconds to the units of `SINCE`: about 17 ms, so that they wrap after 4.3 s.
    const UNIT_BITS: u32 = 24;

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "masked to eight bits")]
    const fn units(now: u64) -> u32 {
        (now >> UNIT_BITS) as u32 & SINCE
    }

    /// It waits from now on.
    #[inline(always)]
    pub const fn waiting(out: bool, now: u64) -> u32 {
        WAITING | if out { OUT } else { 0 } | units(now)
    }

    #[inline(always)]
    pub const fn is_waiting(note: u32) -> bool {
        note & WAITING_MASK == WAITING
    }

    /// Whether it goes out.
    #[inline(always)]
    pub const fn is_out(note: u32) -> bool {
        note & OUT != 0
    }

    /// For how long it has waited, in units of about 17 ms.
    #[inline(always)]
    pub const fn waited(note: u32, now: u64) -> u32 {
        units(now).wrapping_sub(note) & SINCE
    }

    /// It turns back inside by the rule of a slot, and has only half of its translation.
    #[inline(always)]
    pub const fn turn(slot: u32) -> u32 {
        TURN | (slot & (TURN - 1))
    }

    /// The slot of [`turn`], if it is that.
    #[inline(always)]
    pub const fn turned_by(note: u32) -> Option<u32> {
        if note & !(TURN - 1) == TURN { Some(note & (TURN - 1)) } else { None }
    }

    /// Above all slots, and below the notes of the VLAN filter.
    const TURN: u32 = crate::maps::MAX_RULES;
    const _: () = assert!(TURN == 1 << 14, "16 bits are kept, and the VLAN filter has the highest");
    const _: () = assert!(turned_by(WAITING | OUT | SINCE).is_none(), "one note is no other");
}

/// The addresses of an Ethernet frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct LinkHeader {
    pub dst: [u8; 6],
    pub src: [u8; 6],
}

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

/// A checksum by itself.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Checksum(pub [u8; 2]);

/// The start of an IPv6 extension header (RFC 8200 section 4).
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Extension {
    next: u8,
    /// In units of 8 bytes, the first 8 not counted.
    len: u8,
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

/// ICMP types (RFC 792, RFC 4443).
pub mod icmp {
    pub const ECHO_REPLY: u8 = 0;
    pub const ECHO: u8 = 8;
    pub const TIMESTAMP: u8 = 13;
    pub const TIMESTAMP_REPLY: u8 = 14;
    pub const UNREACHABLE: u8 = 3;
    pub const SOURCE_QUENCH: u8 = 4;
    pub const TIME_EXCEEDED: u8 = 11;
    pub const PARAMETER_PROBLEM: u8 = 12;
    /// Unreachable, the first error of ICMPv6.
    pub const ERROR6_FIRST: u8 = 1;
    /// Parameter problem, the last one that is in use.
    pub const ERROR6_LAST: u8 = 4;
    pub const ECHO6: u8 = 128;
    pub const ECHO_REPLY6: u8 = 129;
    /// Router solicitation, the first of neighbour discovery (RFC 4861).
    pub const ND_FIRST: u8 = 133;
    /// Redirect, the last of it.
    pub const ND_LAST: u8 = 137;
}

/// IPv6 extension headers that are looked behind (RFC 8200 section 4.1 orders them; nobody sends more).
const EXTENSIONS: u32 = 6;

/// Extension headers of IPv6, by IANA number.
mod extension {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const DESTINATION: u8 = 60;
}

pub(crate) const MORE_FRAGMENTS: u16 = 0x2000;
pub(crate) const FRAGMENT_OFFSET: u16 = 0x1fff;

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

/// Reads the transport header of this protocol at this offset.
#[inline(always)]
pub(crate) fn read<P: Packet, A: Address>(
    packet: &mut P,
    protocol: u8,
    transport_offset: usize,
) -> Parsed<'_, A> {
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
        (ip.vihl, ip.proto, u16::from_be_bytes(ip.frags), ip.src_addr)
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
            (u16::from_be_bytes(self.transport.first), u16::from_be_bytes(self.transport.second))
        };
        FlowKey {
            src: A::src(self.ip),
            dst: A::dst(self.ip),
            sport,
            dport,
            proto: self.protocol,
            direction: direction as u8,
            unused: 0,
        }
    }
}
