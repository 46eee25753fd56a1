//! Headers as they are on the wire.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::words::{load32, store32};

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
unsafe impl<const N: usize> Wire for [u8; N] {}

const _: () = {
    assert!(align_of::<Ipv4Hdr>() == 1 && align_of::<Ipv6Hdr>() == 1);
    assert!(align_of::<Transport>() == 1 && align_of::<TcpHeader>() == 1 && align_of::<Extension>() == 1);
};

/// The addresses of an Ethernet frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct LinkHeader {
    pub dst: [u8; 6],
    pub src: [u8; 6],
}

impl LinkHeader {
    /// Reads those of a map, word by word: LLVM would keep each byte in a register of its own.
    ///
    /// # Safety
    /// Readable, and aligned to four bytes.
    #[inline(always)]
    pub unsafe fn load(from: *const Self) -> Self {
        let from = from.cast::<u32>();
        // SAFETY: by the caller's contract.
        Self::from_words(unsafe {
            [from.read_volatile(), from.add(1).read_volatile(), from.add(2).read_volatile()]
        })
    }

    /// Those of a frame, whose first bytes these are.
    #[inline(always)]
    #[must_use]
    pub fn read(frame: &[u8; 12]) -> Self {
        let mut words = [0; 3];
        for (word, bytes) in words.iter_mut().zip(frame.as_chunks::<4>().0) {
            *word = load32(bytes);
        }
        Self::from_words(words)
    }

    /// Gives them to a frame.
    #[inline(always)]
    pub fn write(self, frame: &mut [u8; 12]) {
        for (bytes, word) in frame.as_chunks_mut::<4>().0.iter_mut().zip(self.words()) {
            store32(bytes, word);
        }
    }

    /// The same addresses?
    #[inline(always)]
    #[must_use]
    pub fn same(self, other: Self) -> bool {
        let ([a, b, c], [d, e, f]) = (self.words(), other.words());
        (a ^ d) | (b ^ e) | (c ^ f) == 0
    }

    /// The last four bytes of the destination as a number: neighbours differ there.
    #[inline(always)]
    #[must_use]
    pub fn number(self) -> u32 {
        let [first, second, _] = self.words();
        first.to_be() << 16 | second.to_be() >> 16
    }

    #[inline(always)]
    const fn words(self) -> [u32; 3] {
        // SAFETY: as many bytes, and every bit pattern is valid.
        unsafe { core::mem::transmute(self) }
    }

    #[inline(always)]
    const fn from_words(words: [u32; 3]) -> Self {
        // SAFETY: as many bytes, and every bit pattern is valid.
        unsafe { core::mem::transmute(words) }
    }
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
    pub(super) offset: u8,
    pub(super) bits: u8,
    rest: [u8; 6],
}

/// A checksum by itself.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Checksum(pub [u8; 2]);

/// The start of an IPv6 extension header (RFC 8200 section 4).
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Extension {
    pub(super) next: u8,
    /// In units of 8 bytes, the first 8 not counted.
    pub(super) len: u8,
    pub(super) rest: [u8; 6],
}

/// IPv6 extension headers that are looked behind (RFC 8200 section 4.1 orders them; nobody sends more).
pub(super) const EXTENSIONS: u32 = 6;

/// Extension headers of IPv6, by IANA number.
pub(super) mod extension {
    pub(in crate::packet) const HOP_BY_HOP: u8 = 0;
    pub(in crate::packet) const ROUTING: u8 = 43;
    pub(in crate::packet) const FRAGMENT: u8 = 44;
    pub(in crate::packet) const DESTINATION: u8 = 60;
}

pub(crate) const MORE_FRAGMENTS: u16 = 0x2000;
pub(crate) const FRAGMENT_OFFSET: u16 = 0x1fff;
