//! What is being made while a packet is looked at.
//!
//! It is in a map, for two reasons. Two keys and a record of IPv6 would fill a stack of 512 bytes. And the verifier
//! follows every way through a program to its end, unless somewhere they all look the same to it: a number that comes
//! out of memory does.

use super::life;
use crate::{
    checksum,
    family::Address,
    maps::{
        Binding, EndpointKey, Flow, FlowKey, Forward, ForwardKey, FragmentKey, Fragmented, Moved, Pair,
        PlaceKey, RangeKey, SourceKey,
    },
    packet::Piece,
};

/// Memory of one CPU.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(8))]
pub struct Work<A> {
    /// The packet's.
    pub key: FlowKey<A>,
    /// Of the answers to it.
    pub peer: FlowKey<A>,
    /// Of another flow, one that may have to go.
    pub oldest: FlowKey<A>,
    /// Of the answers to that.
    pub oldest_peer: FlowKey<A>,
    /// About to be inserted.
    pub flow: Flow<A>,
    /// An external port, and whose it is to be.
    pub external: EndpointKey<A>,
    pub binding: Binding<A>,
    /// What a forward would match, and a range of ports.
    pub forward: ForwardKey<A>,
    pub range_key: Prefixed<RangeKey<A>>,
    /// Where the forward that was found leads.
    pub target: Forward<A>,
    /// What would let the sender in, where a forward is not open to everybody.
    pub source: Prefixed<SourceKey<A>>,
    /// The inside socket that it is for, and where that is to appear.
    pub inside: EndpointKey<A>,
    pub moved: Moved<A>,
    /// Where the inside host's next port is put down, and the port that is there.
    pub place: PlaceKey<A>,
    pub placed: EndpointKey<A>,
    /// When this CPU last told somebody that there is no room, in ticks, and how often it may again.
    pub spoke: u32,
    pub may_speak: u32,
    /// What a fragment says of itself, the packet that it is of, and what the first one of that has said.
    pub piece: Piece<A>,
    pub fragment: FragmentKey<A>,
    pub fragmented: Fragmented,
    /// Whom a binding has to know, to let the packet in.
    pub sender: A,
    /// What a new flow makes of the packet, and who makes it.
    pub to: Translation<A>,
    pub maker: Maker,
    /// Of the rule that makes it: [`crate::maps::rule`].
    pub rule_flags: u32,
    /// Where another source port is looked for.
    pub range: PortRange,
    /// How that went.
    pub search: u32,
    /// Index of the uplink that it is about.
    pub interface: u32,
    /// 1 when the packet is between two inside hosts, see [`super::turn`].
    pub turned: u32,
    /// Index of the interface whose addresses answer where the packet came in.
    pub from: u32,
    /// How it may leave: [`Way`].
    pub way: u32,
    /// What is known of its hosts, when it departs.
    pub pair: Pair,
    /// Its traffic class.
    pub class: u32,
    /// Where the packet's transport header is.
    pub transport_offset: u32,
    /// 0 unless TCP.
    pub tcp_bits: u32,
    /// Where the transport header of a packet is that an ICMP error embeds.
    pub embedded_offset: u32,
}

/// A key of a trie.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(4))]
pub struct Prefixed<K> {
    /// How many bits of it count.
    pub bits: u32,
    pub key: K,
}

/// How a packet may leave: [`Work::way`].
pub(super) struct Way;

impl Way {
    /// As the kernel decides.
    pub(super) const KERNEL: u32 = 0;
    /// From the uplink to an inside host, at once if that is known to be right.
    pub(super) const ONWARD: u32 = 1;
    /// From a port of the LAN out through the uplink, at once; else it is left as it is, and meets the uplink's own hook.
    pub(super) const DEPARTS: u32 = 2;
    /// From the host itself to an inside server, see [`super::round`].
    pub(super) const AROUND: u32 = 3;
    /// From the uplink to an inside host, in a driver, at once; else it is left as it is, and meets the uplink's own hook.
    pub(super) const ARRIVES: u32 = 4;
}

/// What has come of the search for a port: [`Work::search`].
pub(super) struct Search;

impl Search {
    pub(super) const NONE: u32 = 0;
    pub(super) const CLAIMED: u32 = 1;
    pub(super) const FULL: u32 = 2;
    /// The inside host has as many as it may have.
    pub(super) const QUOTA: u32 = 3;
}

impl<A: Address> Work<A> {
    /// The largest offset of a transport header, one less than a power of two: six extension headers of 2048 bytes.
    const OFFSET_MASK: u32 = 0x3fff;
    /// The same in a packet that an ICMP error embeds, which has as many before it.
    const EMBEDDED_MASK: u32 = 0x7fff;

    /// Where the packet's transport header is, as memory has it.
    #[inline(always)]
    pub fn transport_offset(&self) -> usize {
        // SAFETY: a reference is readable.
        let offset = unsafe { (&raw const self.transport_offset).read_volatile() };
        (offset & Self::OFFSET_MASK) as usize
    }

    /// Where the transport header of the embedded packet is, as memory has it.
    #[inline(always)]
    pub fn embedded_offset(&self) -> usize {
        // SAFETY: a reference is readable.
        let offset = unsafe { (&raw const self.embedded_offset).read_volatile() };
        (offset & Self::EMBEDDED_MASK) as usize
    }

    /// The uplink, as memory has it.
    #[inline(always)]
    pub fn interface(&self) -> u32 {
        // SAFETY: a reference is readable.
        unsafe { (&raw const self.interface).read_volatile() }
    }

    /// Whether the packet is between two inside hosts, as memory has it.
    #[inline(always)]
    pub fn is_turned(&self) -> bool {
        // SAFETY: a reference is readable.
        unsafe { (&raw const self.turned).read_volatile() != 0 }
    }

    /// How the packet may leave, as memory has it.
    #[inline(always)]
    pub fn way(&self) -> u32 {
        // SAFETY: a reference is readable.
        unsafe { (&raw const self.way).read_volatile() }
    }

    /// The TCP flags, as memory has them.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "a byte was written")]
    pub fn tcp_bits(&self) -> u8 {
        // SAFETY: a reference is readable.
        unsafe { (&raw const self.tcp_bits).read_volatile() as u8 }
    }

    /// How the search for a port went, as memory has it.
    #[inline(always)]
    pub fn search(&self) -> u32 {
        // SAFETY: a reference is readable.
        unsafe { (&raw const self.search).read_volatile() }
    }
}

/// Who made a flow.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Maker {
    pub rule: u32,
    pub generation: u32,
}

/// The addresses and ports that something is turned into.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(4))]
pub struct Translation<A> {
    pub src: A,
    pub dst: A,
    pub sport: u16,
    pub dport: u16,
}

impl<A: Address> Translation<A> {
    /// The key of the packets that answer those of `key`.
    #[inline(always)]
    pub(super) fn answers(&self, key: &FlowKey<A>) -> FlowKey<A> {
        FlowKey {
            src: self.dst,
            dst: self.src,
            sport: self.dport,
            dport: self.sport,
            proto: key.proto,
            direction: 1 - (key.direction & 1),
            unused: 0,
        }
    }

    /// Writes the record of the flow's one direction, which turns `key` into this.
    #[inline(always)]
    pub(super) fn record(&self, key: &FlowKey<A>, flow: &mut Flow<A>, maker: Maker, now: u64, flags: u8) {
        *flow = Flow {
            to_src: self.src,
            to_dst: self.dst,
            to_sport: self.sport,
            to_dport: self.dport,
            address_difference: checksum::fold(
                A::difference(key.src, self.src) + A::difference(key.dst, self.dst),
            ),
            port_difference: checksum::fold(
                checksum::difference_port(key.sport, self.sport)
                    + checksum::difference_port(key.dport, self.dport),
            ),
            rule: maker.rule,
            generation: maker.generation,
            hop: 0,
            stamp: 0,
            lease: 0,
            last_seen: life::tick(now),
            packets: 0,
            bytes: 0,
            created: life::second(now),
            state: 0,
            flags,
            synced: life::beat(now),
        };
    }
}

/// The ports among which a source port is replaced (RFC 4787 REQ-3: well-known ports among themselves).
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct PortRange {
    pub first: u16,
    /// A power of two, less one: a choice is a mask.
    pub mask: u16,
    /// What the lowest bits must be, and which: 0 when it does not matter.
    pub parity: u16,
    pub parity_mask: u16,
}

impl PortRange {
    #[inline(always)]
    pub(super) fn around<A: Address>(port: u16, protocol: u8, keep_parity: bool) -> Self {
        let (first, mask) = if protocol == A::ICMP {
            (0, (1 << 15) - 1)
        } else if port < 1024 {
            (512, 511)
        } else {
            (1 << 15, (1 << 15) - 1)
        };
        let parity_mask = u16::from(keep_parity);
        Self { first, mask, parity: port & parity_mask, parity_mask }
    }

    /// The `attempt`th choice: from a random start in odd strides, which never meet twice.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "masked to the size of the range")]
    pub(super) fn pick(self, start: u32, attempt: u32) -> u16 {
        let stride = (start >> 16) | 1;
        let offset = start.wrapping_add(attempt.wrapping_mul(stride)) as u16;
        self.first + ((offset & self.mask & !self.parity_mask) | self.parity)
    }
}
