//! The address family: what IPv4 and IPv6 do differently, so that everything else is written once.
//!
//! The parameter of the engine is the address itself: `[u8; 4]` or `[u8; 16]`, bytes in the order in which they are
//! written.

use core::{fmt::Debug, hash::Hash};

use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
};

use crate::{
    checksum,
    packet::{Addressed, FRAGMENT_OFFSET, Packet, Piece, Wire, icmp},
    tcp::proto,
    words::{load16, load32, store32},
};

/// Reserved (IANA).
pub(crate) const NO_PROTOCOL: u8 = 255;

/// An address of IPv4 or IPv6.
pub trait Address: Copy + Eq + Hash + Debug {
    /// The smallest IP header.
    type Header: Wire + Debug;

    /// As it stands in the Ethernet header.
    const ETHERTYPE: u16;
    /// 0.0.0.0 or ::, which stands for "any".
    const ANY: Self;
    /// The protocol number of this family's ICMP.
    const ICMP: u8;
    /// Whether the checksum of ICMP covers the addresses (RFC 4443 section 2.3; not so in RFC 792).
    const ICMP_HAS_PSEUDO_HEADER: bool;
    /// Type and code of "communication administratively prohibited".
    const PROHIBITED: (u8, u8);
    /// Bytes of a packet that an error may quote (RFC 1812 section 4.3.2.3, RFC 4443 section 2.4 (c)).
    const QUOTED: u32;
    /// To how many words of eight bytes behind its header a longer one is cut.
    const CUT: usize;
    /// Whether every fragment of a packet says what protocol it is of (RFC 791; not so in RFC 8200 section 4.5).
    const FRAGMENTS_NAME_PROTOCOL: bool;

    /// Reads an address of a map, word by word: LLVM would keep each of its bytes in a register of its own.
    ///
    /// # Safety
    /// Readable, and aligned to four bytes.
    unsafe fn load(from: *const Self) -> Self;

    /// The same address? By words; a comparison of arrays would be a call.
    fn same(self, other: Self) -> bool;

    /// Its last four bytes as a number: neighbours have neighbouring ones.
    fn number(self) -> u32;

    /// What replacing `from` by `to` adds to a checksum that covers it, not folded.
    fn difference(from: Self, to: Self) -> u32;

    /// Finds the transport header, and says why there is none that names a flow.
    fn locate<P: Packet>(packet: &mut P) -> Addressed<Self>;

    /// What a fragment says of itself. False: it is none, or cannot be read.
    fn piece<P: Packet>(packet: &mut P, piece: &mut Piece<Self>) -> bool;

    fn src(header: &Self::Header) -> Self;
    fn dst(header: &Self::Header) -> Self;

    /// An ICMP type that asks, and whose answer has the same identifier.
    fn asks(kind: u8) -> bool;

    /// An ICMP type that answers such a one.
    fn answers(kind: u8) -> bool;

    /// An ICMP type that embeds the packet it is about.
    fn is_error(kind: u8) -> bool;

    /// Protocol and length of a header that an ICMP error embeds. Protocol 255, which is none, when no transport header
    /// follows: an `Option` here becomes a register that the verifier finds unset.
    fn embedded(header: &Self::Header) -> (u8, usize);

    /// The same, and the place, behind what else may stand before the transport header, from `at` on.
    fn behind<P: Packet>(packet: &mut P, protocol: u8, at: usize) -> (u8, usize);

    /// The header's own checksum, if this family has one.
    fn check(header: &Self::Header) -> Option<[u8; 2]>;

    /// The sum of what the checksum of ICMP covers besides the message itself, which is so long; not folded.
    fn icmp_pseudo_header<P: Packet>(packet: &mut P, len: u16) -> Option<u32>;

    /// How many routers may still pass it on: TTL, hop limit.
    fn hops_left(header: &Self::Header) -> u8;

    /// The traffic class that routes may ask for (DSCP, in the upper six of eight bits).
    fn class(header: &Self::Header) -> u32;

    /// Counts one router; what that adds to a sum over the packet.
    fn hop(header: &mut Self::Header) -> u32;

    /// Bytes behind this header, as it says.
    fn payload_len(header: &Self::Header) -> u16;

    /// Writes the header of an ICMP packet of the host's own, with so many bytes behind it.
    fn compose(header: &mut Self::Header, src: Self, dst: Self, len: u16);

    /// Lets whoever forwards a datagram of the host's own cut it into parts, as its kernel would have done, had it known the way.
    fn allow_parts(header: &mut Self::Header);

    /// Writes the addresses, whose difference is `difference`, and what the header itself has of a checksum.
    fn rewrite(header: &mut Self::Header, src: Self, dst: Self, difference: u16);
}

impl Address for [u8; 4] {
    type Header = Ipv4Hdr;

    const ETHERTYPE: u16 = 0x0800;
    const ANY: Self = [0; 4];
    const ICMP: u8 = proto::ICMP;
    const ICMP_HAS_PSEUDO_HEADER: bool = false;
    const PROHIBITED: (u8, u8) = (icmp::UNREACHABLE, 13);
    const QUOTED: u32 = 576 - 28;
    const CUT: usize = 66;
    const FRAGMENTS_NAME_PROTOCOL: bool = true;

    #[inline(always)]
    unsafe fn load(from: *const Self) -> Self {
        // SAFETY: by the caller's contract.
        unsafe { from.cast::<u32>().read_volatile() }.to_ne_bytes()
    }

    #[inline(always)]
    fn same(self, other: Self) -> bool {
        u32::from_ne_bytes(self) == u32::from_ne_bytes(other)
    }

    #[inline(always)]
    fn number(self) -> u32 {
        u32::from_be_bytes(self)
    }

    #[inline(always)]
    fn difference(from: Self, to: Self) -> u32 {
        checksum::difference_word(u32::from_ne_bytes(from), u32::from_ne_bytes(to))
    }

    #[inline(always)]
    fn locate<P: Packet>(packet: &mut P) -> Addressed<Self> {
        crate::packet::locate4(packet)
    }

    #[inline(always)]
    fn piece<P: Packet>(packet: &mut P, piece: &mut Piece<Self>) -> bool {
        crate::packet::piece4(packet, piece)
    }

    #[inline(always)]
    fn src(header: &Ipv4Hdr) -> Self {
        load32(&header.src_addr).to_ne_bytes()
    }

    #[inline(always)]
    fn dst(header: &Ipv4Hdr) -> Self {
        load32(&header.dst_addr).to_ne_bytes()
    }

    #[inline(always)]
    fn asks(kind: u8) -> bool {
        kind == icmp::ECHO || kind == icmp::TIMESTAMP
    }

    #[inline(always)]
    fn answers(kind: u8) -> bool {
        kind == icmp::ECHO_REPLY || kind == icmp::TIMESTAMP_REPLY
    }

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        // A redirect is about the link that it is sent on, and never forwarded.
        matches!(
            kind,
            icmp::UNREACHABLE | icmp::SOURCE_QUENCH | icmp::TIME_EXCEEDED | icmp::PARAMETER_PROBLEM
        )
    }

    #[inline(always)]
    fn embedded(header: &Ipv4Hdr) -> (u8, usize) {
        let first = u16::from_be_bytes(header.frags) & FRAGMENT_OFFSET == 0;
        let whole = header.vihl >> 4 == 4 && header.vihl & 15 >= 5;
        let protocol = if first && whole { header.proto } else { NO_PROTOCOL };
        (protocol, ((header.vihl & 15) as usize) * 4)
    }

    #[inline(always)]
    fn behind<P: Packet>(_packet: &mut P, protocol: u8, at: usize) -> (u8, usize) {
        (protocol, at)
    }

    #[inline(always)]
    fn check(header: &Ipv4Hdr) -> Option<[u8; 2]> {
        Some(header.check)
    }

    #[inline(always)]
    fn icmp_pseudo_header<P: Packet>(_packet: &mut P, _len: u16) -> Option<u32> {
        Some(0)
    }

    #[inline(always)]
    fn hops_left(header: &Ipv4Hdr) -> u8 {
        header.ttl
    }

    #[inline(always)]
    fn class(header: &Ipv4Hdr) -> u32 {
        u32::from(header.tos & 0xfc)
    }

    #[inline(always)]
    fn hop(header: &mut Ipv4Hdr) -> u32 {
        let ttl = header.ttl.wrapping_sub(1);
        // The protocol shares the word with it, and does not change.
        let word = |ttl| u16::from_ne_bytes([ttl, 0]);
        let difference = checksum::fold(checksum::difference16(word(header.ttl), word(ttl)));
        checksum::adjust(&mut header.check, difference);
        header.ttl = ttl;
        0 // the header's own checksum makes up for it
    }

    #[inline(always)]
    fn payload_len(header: &Ipv4Hdr) -> u16 {
        u16::from_be(load16(&header.tot_len)).wrapping_sub(u16::from(header.vihl & 15) * 4)
    }

    #[inline(always)]
    fn compose(header: &mut Ipv4Hdr, src: Self, dst: Self, len: u16) {
        // Internetwork control, as Linux sends errors (RFC 1812 section 4.3.2.5); not to be cut into parts.
        let (vihl, tos, [len0, len1], frags, ttl) = (0x45, 0xc0, (len + 20).to_be_bytes(), [0x40, 0], 64);
        header.vihl = vihl;
        header.tos = tos;
        header.tot_len = [len0, len1];
        header.id = [0; 2];
        header.frags = frags;
        header.ttl = ttl;
        header.proto = proto::ICMP;
        header.src_addr = src;
        header.dst_addr = dst;
        let word = |high, low| u32::from(u16::from_ne_bytes([high, low]));
        let sum = word(vihl, tos)
            + word(len0, len1)
            + word(frags[0], frags[1])
            + word(ttl, proto::ICMP)
            + Self::difference(Self::ANY, src)
            + Self::difference(Self::ANY, dst);
        header.check = (!checksum::fold(sum)).to_ne_bytes();
    }

    /// Linux forbids it to every datagram that fits where it leaves, and gives those a number all the same whose socket does not
    /// forbid it (include/net/ip.h `ip_select_ident_segs`; connected sockets number all of theirs).
    #[inline(always)]
    fn allow_parts(header: &mut Ipv4Hdr) {
        const FORBIDDEN: u16 = u16::from_ne_bytes([0x40, 0]);
        if header.proto != proto::UDP || u16::from_ne_bytes(header.frags) != FORBIDDEN || header.id == [0; 2]
        {
            return;
        }
        header.frags = [0; 2];
        header.check = checksum::apply(header.check, checksum::fold(checksum::difference16(FORBIDDEN, 0)));
    }

    #[inline(always)]
    fn rewrite(header: &mut Ipv4Hdr, src: Self, dst: Self, difference: u16) {
        store32(&mut header.src_addr, u32::from_ne_bytes(src));
        store32(&mut header.dst_addr, u32::from_ne_bytes(dst));
        checksum::adjust(&mut header.check, difference);
    }
}

impl Address for [u8; 16] {
    type Header = Ipv6Hdr;

    const ETHERTYPE: u16 = 0x86dd;
    const ANY: Self = [0; 16];
    const ICMP: u8 = proto::ICMP6;
    const ICMP_HAS_PSEUDO_HEADER: bool = true;
    const PROHIBITED: (u8, u8) = (icmp::ERROR6_FIRST, 1);
    const QUOTED: u32 = 1280 - 48;
    const CUT: usize = 149;
    const FRAGMENTS_NAME_PROTOCOL: bool = false;

    #[inline(always)]
    unsafe fn load(from: *const Self) -> Self {
        let from = from.cast::<u32>();
        // SAFETY: by the caller's contract.
        let words = unsafe {
            [
                from.read_volatile(),
                from.add(1).read_volatile(),
                from.add(2).read_volatile(),
                from.add(3).read_volatile(),
            ]
        };
        bytes(words)
    }

    #[inline(always)]
    fn same(self, other: Self) -> bool {
        let ([a, b, c, d], [e, f, g, h]) = (words(self), words(other));
        (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) == 0
    }

    #[inline(always)]
    fn number(self) -> u32 {
        let [_, _, _, last] = words(self);
        u32::from_be(last)
    }

    #[inline(always)]
    fn difference(from: Self, to: Self) -> u32 {
        let ([a, b, c, d], [e, f, g, h]) = (words(from), words(to));
        checksum::difference_word(a, e)
            + checksum::difference_word(b, f)
            + checksum::difference_word(c, g)
            + checksum::difference_word(d, h)
    }

    #[inline(always)]
    fn locate<P: Packet>(packet: &mut P) -> Addressed<Self> {
        crate::packet::locate6(packet)
    }

    #[inline(always)]
    fn piece<P: Packet>(packet: &mut P, piece: &mut Piece<Self>) -> bool {
        crate::packet::piece6(packet, piece)
    }

    #[inline(always)]
    fn src(header: &Ipv6Hdr) -> Self {
        by_words(&header.src_addr)
    }

    #[inline(always)]
    fn dst(header: &Ipv6Hdr) -> Self {
        by_words(&header.dst_addr)
    }

    #[inline(always)]
    fn asks(kind: u8) -> bool {
        kind == icmp::ECHO6
    }

    #[inline(always)]
    fn answers(kind: u8) -> bool {
        kind == icmp::ECHO_REPLY6
    }

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        (icmp::ERROR6_FIRST..=icmp::ERROR6_LAST).contains(&kind)
    }

    #[inline(always)]
    fn embedded(header: &Ipv6Hdr) -> (u8, usize) {
        let protocol = if header.vcf[0] >> 4 == 6 { header.next_hdr } else { NO_PROTOCOL };
        (protocol, size_of::<Ipv6Hdr>())
    }

    #[inline(always)]
    fn behind<P: Packet>(packet: &mut P, protocol: u8, at: usize) -> (u8, usize) {
        crate::packet::behind6(packet, protocol, at)
    }

    #[inline(always)]
    fn check(_header: &Ipv6Hdr) -> Option<[u8; 2]> {
        None
    }

    #[inline(always)]
    fn icmp_pseudo_header<P: Packet>(packet: &mut P, len: u16) -> Option<u32> {
        /// Both addresses, where they are in the packet: a copy of them would be too much for the stacks of some programs.
        const ADDRESSES: usize = EthHdr::LEN + 8;
        let rest = u32::from(u16::from_ne_bytes([0, proto::ICMP6])) + u32::from(len.to_be());
        packet.add_up::<[u8; 32]>(ADDRESSES, rest)
    }

    #[inline(always)]
    fn hops_left(header: &Ipv6Hdr) -> u8 {
        header.hop_limit
    }

    #[inline(always)]
    fn class(header: &Ipv6Hdr) -> u32 {
        u32::from((header.vcf[0] << 4 | header.vcf[1] >> 4) & 0xfc)
    }

    #[inline(always)]
    fn hop(header: &mut Ipv6Hdr) -> u32 {
        let before = header.hop_limit;
        header.hop_limit = before.wrapping_sub(1);
        // What follows shares the word with it, and does not change.
        let word = |hops| u16::from_ne_bytes([0, hops]);
        checksum::difference16(word(before), word(header.hop_limit))
    }

    #[inline(always)]
    fn payload_len(header: &Ipv6Hdr) -> u16 {
        u16::from_be(load16(&header.payload_len))
    }

    #[inline(always)]
    fn compose(header: &mut Ipv6Hdr, src: Self, dst: Self, len: u16) {
        header.vcf = [0x60, 0, 0, 0];
        header.payload_len = len.to_be_bytes();
        header.next_hdr = proto::ICMP6;
        header.hop_limit = 64;
        header.src_addr = src;
        header.dst_addr = dst;
    }

    /// Nobody but the sender may (RFC 8200 section 5): he is told.
    #[inline(always)]
    fn allow_parts(_header: &mut Ipv6Hdr) {}

    #[inline(always)]
    fn rewrite(header: &mut Ipv6Hdr, src: Self, dst: Self, _difference: u16) {
        write_words(&mut header.src_addr, src);
        write_words(&mut header.dst_addr, dst);
    }
}

#[inline(always)]
const fn words(address: [u8; 16]) -> [u32; 4] {
    // SAFETY: as many bytes, and every bit pattern is valid.
    unsafe { core::mem::transmute(address) }
}

#[inline(always)]
const fn bytes(words: [u32; 4]) -> [u8; 16] {
    // SAFETY: as many bytes, and every bit pattern is valid.
    unsafe { core::mem::transmute(words) }
}

/// A copy out of a packet.
#[inline(always)]
fn by_words(address: &[u8; 16]) -> [u8; 16] {
    let [a, b, c, d] = address.as_chunks::<4>().0 else { return [0; 16] };
    bytes([load32(a), load32(b), load32(c), load32(d)])
}

/// A copy into a packet.
#[inline(always)]
fn write_words(address: &mut [u8; 16], new: [u8; 16]) {
    for (at, word) in address.as_chunks_mut::<4>().0.iter_mut().zip(words(new)) {
        store32(at, word);
    }
}
