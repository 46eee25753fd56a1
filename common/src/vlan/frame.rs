//! What the VLAN filter needs of a frame, and what a frame's addresses and tags mean.

use core::ptr::NonNull;

use crate::{
    packet::Wire,
    words::{load16, load32},
};

/// An Ethernet frame on its way into or out of a bridge port.
///
/// Its outer VLAN tag may be in its bytes or beside them (the kernel takes it out on receipt and puts it back where
/// the hardware wants it): [`Frame::tag`] finds it in both places.
pub trait Frame {
    /// Index of the interface whose hook runs.
    fn port(&self) -> u32;

    /// It came in through no interface: the host made it.
    fn is_the_hosts_own(&self) -> bool;

    /// Bytes, Ethernet header included, a tag beside them not.
    fn bytes(&self) -> u32;

    /// Packets on the wire: more than one for a segmentation-offload super-packet.
    fn segments(&self) -> u32;

    /// The bytes from `offset` as a `T`, if there are so many.
    fn at<T: Wire>(&mut self, offset: usize) -> Option<NonNull<T>>;

    /// A tag beside the bytes.
    fn tag_beside(&self) -> Option<Tag>;

    /// Takes the outer tag off, wherever it is. Every pointer taken before is void.
    fn pop(&mut self) -> bool;

    /// Puts a tag on, outside of one that is there. Every pointer taken before is void.
    fn push(&mut self, tag: Tag) -> bool;

    /// What the way in has written for the way out; 0 when nothing.
    fn note(&self) -> Note;

    fn set_note(&mut self, note: Note);

    /// Sends a copy out of a port; up to the host when the port is the bridge itself.
    fn copy_to(&mut self, port: u32, host: bool);
}

/// A VLAN tag (IEEE 802.1Q clause 9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    /// TPID: 0x8100 or 0x88a8.
    pub protocol: u16,
    /// Priority, drop eligibility, VLAN id.
    pub control: u16,
}

impl Tag {
    pub const VLAN: u16 = 0x0fff;
    /// Kept by IEEE 802.1Q for itself.
    pub const RESERVED: u16 = 4095;

    #[inline(always)]
    #[must_use]
    pub const fn vlan(self) -> u16 {
        self.control & Self::VLAN
    }

    /// The same priority in another VLAN.
    #[inline(always)]
    #[must_use]
    pub const fn in_vlan(self, protocol: u16, vlan: u16) -> Self {
        Self { protocol, control: (self.control & !Self::VLAN) | vlan }
    }
}

/// What `port_in` tells `port_out` about a frame. It travels in `skb->tc_index`, which the kernel hands on with the
/// packet and with its copies, and which costs no change of the frame. Zero: not classified, so of no VLAN.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Note(pub u16);

impl Note {
    const CLASSIFIED: u16 = 0x8000;
    const ISOLATED: u16 = 0x4000;
    const TAGGED: u16 = 0x2000;

    #[inline(always)]
    #[must_use]
    pub const fn new(vlan: u16, tagged: bool, isolated: bool) -> Self {
        let tagged = if tagged { Self::TAGGED } else { 0 };
        let isolated = if isolated { Self::ISOLATED } else { 0 };
        Self(Self::CLASSIFIED | (vlan & Tag::VLAN) | tagged | isolated)
    }

    #[inline(always)]
    #[must_use]
    pub const fn vlan(self) -> Option<u16> {
        if self.0 & Self::CLASSIFIED == 0 { None } else { Some(self.0 & Tag::VLAN) }
    }

    /// The outer tag is the VLAN's, or one of priority only; otherwise a tag that is there is payload.
    #[inline(always)]
    #[must_use]
    pub const fn tagged(self) -> bool {
        self.0 & Self::TAGGED != 0
    }

    #[inline(always)]
    #[must_use]
    pub const fn isolated(self) -> bool {
        self.0 & Self::ISOLATED != 0
    }
}

/// An Ethernet address in the words in which it is read, compared and looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The first four bytes, as this machine reads them.
    pub first: u32,
    /// The other two.
    pub last: u16,
}

impl Address {
    #[inline(always)]
    #[must_use]
    pub const fn bytes(self) -> [u8; 6] {
        let ([a, b, c, d], [e, f]) = (self.first.to_ne_bytes(), self.last.to_ne_bytes());
        [a, b, c, d, e, f]
    }

    /// To more than one station (IEEE 802 clause 8.2: the group bit).
    #[inline(always)]
    #[must_use]
    pub const fn is_group(self) -> bool {
        self.first.to_ne_bytes()[0] & 1 == 1
    }

    #[inline(always)]
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.first == 0 && self.last == 0
    }
}

/// An Ethernet header as it is on the wire.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Ethernet {
    dst: WireAddress,
    src: WireAddress,
    kind: [u8; 2],
}

/// An [`Address`] there.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct WireAddress {
    first: [u8; 4],
    last: [u8; 2],
}

impl WireAddress {
    #[inline(always)]
    fn load(&self) -> Address {
        Address { first: load32(&self.first), last: load16(&self.last) }
    }
}

/// What follows the first two bytes of a tag.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct TagRest {
    control: [u8; 2],
    kind: [u8; 2],
}

// SAFETY: byte arrays only.
unsafe impl Wire for Ethernet {}
// SAFETY: byte arrays only.
unsafe impl Wire for TagRest {}

/// What the filter wants to know of a frame, read once.
#[derive(Debug, Clone, Copy)]
pub struct Headers {
    pub dst: Address,
    pub src: Address,
    /// The outer tag.
    pub tag: Option<Tag>,
    /// EtherType behind the outer tag.
    pub kind: u16,
    /// Where what it announces begins.
    pub payload: usize,
}

pub const TAG_8021Q: u16 = 0x8100;
pub const TAG_8021AD: u16 = 0x88a8;

#[inline(always)]
#[must_use]
pub const fn is_tag(kind: u16) -> bool {
    kind == TAG_8021Q || kind == TAG_8021AD
}

const ETHERNET: usize = size_of::<Ethernet>();

/// `None`: it has not even an Ethernet header, or says that it has a tag and has none.
#[inline(always)]
pub fn read<F: Frame>(frame: &mut F) -> Option<Headers> {
    let beside = frame.tag_beside();
    let ethernet = frame.at::<Ethernet>(0)?;
    // SAFETY: `at` checked the bounds of the whole header; read before anything else touches the frame.
    let ethernet = unsafe { ethernet.as_ref() };
    let (dst, src, kind) = (ethernet.dst.load(), ethernet.src.load(), u16::from_be(load16(&ethernet.kind)));
    if beside.is_some() || !is_tag(kind) {
        return Some(Headers { dst, src, tag: beside, kind, payload: ETHERNET });
    }
    let rest = frame.at::<TagRest>(ETHERNET)?;
    // SAFETY: as above.
    let TagRest { control, kind: inner } = unsafe { rest.as_ref() };
    let (tag, inner) = (Tag { protocol: kind, control: u16::from_be(load16(control)) }, load16(inner));
    let payload = ETHERNET + size_of::<TagRest>();
    Some(Headers { dst, src, tag: Some(tag), kind: u16::from_be(inner), payload })
}

/// 01:80:c2:00:00:00 to 0f: for the bridge itself, which never forwards them (IEEE 802.1Q table 8-1). Without spanning
/// tree the kernel's bridge takes the first of them for an ordinary group, and so do we.
#[inline(always)]
#[must_use]
pub const fn is_control(dst: Address, stp: bool) -> bool {
    let [e, f] = dst.last.to_ne_bytes();
    let reserved = dst.first == u32::from_ne_bytes([0x01, 0x80, 0xc2, 0]) && e == 0 && f & 0xf0 == 0;
    reserved && (f != 0 || stp)
}
