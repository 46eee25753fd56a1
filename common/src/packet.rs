//! Where a packet's bytes are, and what its headers mean.

mod header;
pub mod icmp;
pub mod note;
mod parse;
mod partial;
mod piece;

use core::ptr::NonNull;

pub(crate) use self::{
    header::FRAGMENT_OFFSET,
    parse::{locate4, locate6, read_first_part},
    partial::{carries_frames, lacks_checksum, pseudo_header},
    piece::{behind6, piece4, piece6},
};
pub use self::{
    header::{Checksum, LinkHeader, TcpHeader, Transport, Wire},
    parse::{Addressed, Headers, Parsed, headers_at, parse},
    piece::Piece,
};
use crate::{
    checksum,
    words::{load16, store16},
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

    /// The one's complement sum of the bytes of a `T` from `offset`, and of `sum`; not folded. They are a multiple of four, and 512 at
    /// most. `None`: they are not reachable.
    fn add_up<T: Wire>(&mut self, offset: usize, sum: u32) -> Option<u32>;

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
    /// What changed adds where no checksum makes up for it: in the IP header (IPv6), and in the ports of a datagram without one. A
    /// device that has summed up the whole packet has summed that up too; the helper for transport checksums takes it for IPv4, and does
    /// nothing where there is none.
    pub uncovered: u16,
}

impl ChecksumFix {
    /// With something more that nothing makes up for.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, uncovered: u32) -> Self {
        Self { uncovered: checksum::fold(self.uncovered as u32 + uncovered), ..self }
    }

    /// Changes a checksum that is whole.
    #[inline(always)]
    pub fn apply(self, field: &mut [u8; 2]) {
        let old = load16(field);
        if self.optional && old == 0 {
            return;
        }
        let difference = checksum::fold(u32::from(self.pseudo) + u32::from(self.body));
        let new = checksum::changed(old, difference);
        // 0 would say that there is none (RFC 768).
        store16(field, if self.optional && new == 0 { 0xffff } else { new });
    }
}
