//! Keys and values of the maps that the programs and the agent share.
//!
//! Every field is named for people who read `bpftool map dump`: addresses are four bytes in the order in which they
//! are written (`[192,168,100,10]`), ports and counters are numbers in host order. No struct has padding that is
//! not a field: a key with undefined bytes would never be found again.

use core::mem::offset_of;

use crate::packet::LinkHeader;

/// Rules of all kinds that can exist at once: the size of the `rule` and `rule_stat` maps.
pub const MAX_RULES: u32 = 16384;

/// Entries of `hop`, a power of two. Entry 0 is not used: a flow's hop 0 is none.
pub const HOPS: u32 = 16384;

/// Blocks of ports that the ranges of forwards are cut into, and networks that forwards are open to: the sizes of
/// `range4` and `source4`, and of their twins. Memory is taken for what is there only.
pub const MAX_BLOCKS: u32 = 65536;

/// Interfaces at which the fast path may begin and end: the size of `port`.
pub const MAX_PORTS: u32 = 8192;

/// Version of everything in this file. A pinned map of another version is not touched.
pub const SCHEMA: u32 = 9;

/// Places of the programs in the `stage` map, to which those on the hooks go on.
pub mod stage {
    pub const COUNT: u32 = 48;

    pub const NAT4_IN: u32 = 0;
    pub const NAT4_OUT: u32 = 1;
    pub const NAT6_IN: u32 = 2;
    pub const NAT6_OUT: u32 = 3;
    pub const FIRST4_IN: u32 = 4;
    pub const FIRST4_OUT: u32 = 5;
    pub const FIRST6_IN: u32 = 6;
    pub const FIRST6_OUT: u32 = 7;
    pub const MAKE4_IN: u32 = 8;
    pub const MAKE4_OUT: u32 = 9;
    pub const MAKE6_IN: u32 = 10;
    pub const MAKE6_OUT: u32 = 11;
    pub const ICMP4_IN: u32 = 12;
    pub const ICMP4_OUT: u32 = 13;
    pub const ICMP6_IN: u32 = 14;
    pub const ICMP6_OUT: u32 = 15;
    pub const NEXT6_IN: u32 = 16;
    pub const NEXT6_OUT: u32 = 17;
    pub const LAN6_IN: u32 = 18;
    pub const LAN6_OUT: u32 = 19;
    pub const TURN4_IN: u32 = 20;
    pub const TURN4_OUT: u32 = 21;
    pub const TURN6_IN: u32 = 22;
    pub const TURN6_OUT: u32 = 23;
    pub const FRAGMENT4_IN: u32 = 24;
    pub const FRAGMENT4_OUT: u32 = 25;
    pub const FRAGMENT6_IN: u32 = 26;
    pub const FRAGMENT6_OUT: u32 = 27;
    pub const REFUSE4: u32 = 28;
    pub const REFUSE6: u32 = 29;
    pub const DEPART4: u32 = 30;
    pub const DEPART6: u32 = 31;
    pub const LEAVE4: u32 = 32;
    pub const LEAVE6: u32 = 33;
    pub const AROUND4: u32 = 34;
    pub const AROUND6: u32 = 35;
    pub const HOME4: u32 = 36;
    pub const HOME6: u32 = 37;
}

/// Places of the programs in the `xdp_stage` map, to which those on the hooks of drivers go on.
pub mod xdp_stage {
    pub const COUNT: u32 = 2;

    pub const WAN6: u32 = 0;
    pub const LAN6: u32 = 1;
}

/// Nanoseconds to ticks: 2^20 ns, a little more than a millisecond. 32 bits of ticks are 52 days, and idle times are
/// told by the difference, so nothing happens when they wrap.
pub const TICK_BITS: u32 = 20;

/// Seconds to ticks; a little more than asked.
#[inline(always)]
pub const fn ticks(seconds: u32) -> u32 {
    seconds * 954
}

/// Which way a packet goes through the uplink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Direction {
    /// From the uplink to the inside.
    In = 0,
    /// From the inside to the uplink.
    Out = 1,
}

impl Direction {
    #[inline(always)]
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::In => Self::Out,
            Self::Out => Self::In,
        }
    }
}

/// Key of `flow4` and `flow6`: the packet as it arrives at the program, before translation.
///
/// IPv4: 16 bytes, so that in the kernel's hash element (48 bytes of header, then key, then value;
/// kernel/bpf/hashtab.c `struct htab_elem`) the value starts at byte 64 and is one cache line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C, align(4))]
pub struct FlowKey<A> {
    pub src: A,
    pub dst: A,
    /// ICMP echo: the identifier stands where the asking side's port would, the other port is 0.
    pub sport: u16,
    pub dport: u16,
    /// IANA number: 6, 17, 1 or 58.
    pub proto: u8,
    /// [`Direction`]: 0 in, 1 out.
    pub direction: u8,
    /// Always 0.
    pub unused: u16,
}

impl<A: Copy> FlowKey<A> {
    /// The key of a packet that goes back the way that this one came.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(&self) -> Self {
        let &Self { src, dst, sport, dport, proto, direction, unused } = self;
        Self { src: dst, dst: src, sport: dport, dport: sport, proto, direction: 1 - (direction & 1), unused }
    }
}

/// One direction of a flow: connection tracking and translation in one record. IPv4: 64 bytes, one cache line, all
/// that a packet needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Flow<A> {
    pub to_src: A,
    pub to_dst: A,
    pub to_sport: u16,
    pub to_dport: u16,
    /// What the addresses add to a checksum that covers them, see [`crate::checksum`].
    pub address_difference: u16,
    /// What the ports add.
    pub port_difference: u16,
    /// Slot of the rule that made it, and that rule's generation then: another generation now means that the rule
    /// is gone, and the flow with it. The rule's slot knows the uplink and the timeouts.
    pub rule: u32,
    pub generation: u32,
    /// Where it goes without asking the stack; 0: the stack is asked.
    pub hop: u32,
    /// What `hop` was learned under: another stamp now means that it may be wrong.
    pub stamp: u32,
    /// Until when `hop` may be used, in ticks of 2^20 ns since boot.
    pub lease: u32,
    /// In ticks of 2^20 ns since boot.
    pub last_seen: u32,
    /// As they would be on the wire: a segmented super-packet counts its segments.
    pub packets: u64,
    /// Of IP, as the stack saw them: a super-packet's headers count once.
    pub bytes: u64,
    /// Seconds since boot.
    pub created: u32,
    /// [`crate::tcp::FlowState`].
    pub state: u8,
    /// [`flag`]s.
    pub flags: u8,
    /// When this direction last refreshed the other, in units of 2^32 ns.
    pub synced: u16,
}

/// Values of [`Flow::lease`] that are no time.
pub mod lease {
    /// A packet was seen to go that way, once. A bridge that does not know a station sends to every port, so one
    /// sight of it proves nothing.
    pub const SEEN: u32 = 0;
    /// The way is known, but that of the other direction is not.
    pub const WAITING: u32 = 1;
    /// Somebody is removing the entry.
    pub const OWNED: u32 = 2;
}

/// Bits of [`Flow::flags`].
pub mod flag {
    /// The direction of the flow's first packet.
    pub const OPENER: u8 = 1;
    /// The other side has answered.
    pub const ANSWERED: u8 = 2;
    /// TCP: this direction has sent FIN.
    pub const FINISHED: u8 = 4;
    /// It cannot come from a forged source: nothing pushes it out of the table.
    pub const PROVEN: u8 = 8;
    /// TCP: this direction has sent a reset, or somebody in its name.
    pub const ABORTED: u8 = 16;
}

/// An address and a port of one protocol. Key of `binding4` (the outside's view of an inside socket) and of `moved4`
/// (an inside socket), and of their twins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C, align(4))]
pub struct EndpointKey<A> {
    pub address: A,
    /// ICMP echo: the identifier.
    pub port: u16,
    pub proto: u8,
    /// Always 0.
    pub unused: u8,
}

/// Addresses outside that a binding remembers.
pub const REMOTES: usize = 8;

/// Value of `binding4` and `binding6`: whom an external port belongs to. Its existence is the ownership: it is inserted
/// only where none is, so two inside hosts never share a port (RFC 4787 REQ-1 and REQ-3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Binding<A> {
    pub inside: A,
    pub port: u16,
    /// Symmetric rules: the only port outside that it is for.
    pub remote_port: u16,
    pub rule: u32,
    pub generation: u32,
    /// In ticks of 2^20 ns since boot. Nobody else gets the port until 120 s later.
    pub expires: u32,
    /// Flows that it has carried.
    pub flows: u32,
    /// Where the next of `remotes` goes.
    pub next: u32,
    /// Whom the inside has sent to lately: who may send to it, unless the rule says otherwise.
    pub remotes: [A; REMOTES],
}

/// Value of `moved4` and `moved6`: where an inside socket appears outside whose own port was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Moved<A> {
    pub address: A,
    pub port: u16,
    /// Always 0.
    pub unused: u16,
}

/// Packets in parts that can be on their way at once: the size of `fragment4` and of `fragment6`.
pub const MAX_FRAGMENTED: u32 = 8192;

/// Inside hosts and rules whose pace is known at once: the size of `pace4` and of `pace6`.
pub const MAX_PACED: u32 = 16384;

/// Ports of limited inside hosts that are known at once: the size of `placed4` and of `placed6`.
pub const MAX_PLACED: u32 = 65536;

/// Uplinks at which fragments can wait: the size of `waiting_room`.
pub const MAX_WAITING_ROOMS: u32 = 512;

/// Key of `pace4` and `pace6`; the value is when the next flow may be made, in nanoseconds since boot, were there no second
/// that may come at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C, align(4))]
pub struct PaceKey<A> {
    /// 0.0.0.0 or ::, the rule as a whole.
    pub host: A,
    pub rule: u32,
}

/// Key of `placed4` and `placed6`: one of the ports that an inside host may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C, align(4))]
pub struct PlaceKey<A> {
    pub host: A,
    pub number: u32,
}

/// Value of `placed4` and `placed6`: which one it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct PlacedPort {
    pub port: u16,
    pub proto: u8,
    /// Always 0.
    pub unused: u8,
}

/// Key of `fragment4` and `fragment6`: a packet that comes in parts, as its sender has named it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C, align(4))]
pub struct FragmentKey<A> {
    pub src: A,
    pub dst: A,
    pub id: u32,
    /// IPv4: the protocol; IPv6: 0, only the first part is sure to know it.
    pub proto: u8,
    /// [`Direction`]: 0 in, 1 out.
    pub direction: u8,
    /// Always 0.
    pub unused: u16,
}

/// Value of `fragment4` and `fragment6`: what only the first part says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Fragmented {
    /// As in [`FlowKey`].
    pub sport: u16,
    pub dport: u16,
    /// In ticks of 2^20 ns since boot.
    pub expires: u32,
    pub proto: u8,
    /// Always 0.
    pub unused: [u8; 3],
}

/// Key of `forward4` and `forward6`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C, align(4))]
pub struct ForwardKey<A> {
    pub uplink: u32,
    /// 0.0.0.0 or ::, any address of the host.
    pub address: A,
    pub port: u16,
    pub proto: u8,
    /// Always 0.
    pub unused: u8,
}

/// Value of `forward4` and `forward6`: where a forwarded port leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Forward<A> {
    pub address: A,
    pub port: u16,
    /// Always 0.
    pub unused: u16,
    pub rule: u32,
    pub generation: u32,
}

/// Key of `range4` and `range6`, after the trie's own prefix length: everything but the port, then as many bits of that
/// as the ports of a block have in common. A range is cut into such blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C, align(4))]
pub struct RangeKey<A> {
    pub uplink: u32,
    /// 0.0.0.0 or ::, any address of the host.
    pub address: A,
    pub proto: u8,
    /// Always 0.
    pub unused: u8,
    /// In network order: a trie compares from the first bit.
    pub port: [u8; 2],
}

impl<A> RangeKey<A> {
    /// Bits of everything but the port.
    #[expect(clippy::cast_possible_truncation, reason = "an address is not that long")]
    pub const FIXED: u32 = 8 * (size_of::<u32>() + size_of::<A>() + 2) as u32;
    /// Bits of a single port's key.
    pub const WHOLE: u32 = Self::FIXED + u16::BITS;
}

/// Value of `range4` and `range6`: where the ports of a block lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Range<A> {
    pub address: A,
    /// What the inside port is further up than the one outside, on a circle of 65536.
    pub shift: u16,
    /// Always 0.
    pub unused: u16,
    pub rule: u32,
    pub generation: u32,
}

/// Key of `source4` and `source6`, after the trie's own prefix length: all 32 bits of the rule's slot, then the network's.
/// Of a forward it is a source that it is open to, of a masquerade a destination that it leaves alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C, align(4))]
pub struct SourceKey<A> {
    pub rule: u32,
    pub address: A,
}

impl<A> SourceKey<A> {
    /// Bits of a single address' key.
    #[expect(clippy::cast_possible_truncation, reason = "an address is not that long")]
    pub const WHOLE: u32 = 8 * (size_of::<u32>() + size_of::<A>()) as u32;
}

/// Key of `masquerade4` and `masquerade6`, after the trie's own prefix length: all 32 bits of the uplink, then the
/// network's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C, align(4))]
pub struct MasqueradeKey<A> {
    pub uplink: u32,
    pub address: A,
}

/// Value of `masquerade4` and `masquerade6`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Masquerade {
    pub rule: u32,
    pub generation: u32,
}

/// Value of `uplink4` and `uplink6`, by interface index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Uplink<A> {
    /// What masquerade translates to, but for rules with a pool.
    pub address: A,
    /// How many masquerade rules translate to it.
    pub masquerades: u32,
}

/// Value of `local4` and `local6`, by address: the host's own addresses, and those of pools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Local {
    /// Index of the uplink that it is on, or 0.
    pub uplink: u32,
    /// [`local`] bits.
    pub flags: u32,
}

/// Bits of [`Local::flags`].
pub mod local {
    /// A masquerade has it in its pool.
    pub const POOL: u32 = 1;
    /// No interface has it, it is only routed here: what nobody inside has asked for has nowhere to go.
    pub const ABSENT: u32 = 2;
}

/// Addresses of pools that there can be at once: the size of `pool4` and of `pool6`.
pub const MAX_POOLED: u32 = 4096;

/// Key of `pool4` and `pool6`; the value is an address that a masquerade translates to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C, align(4))]
pub struct PoolKey {
    pub rule: u32,
    /// Its place among the rule's, from 0 on.
    pub number: u32,
}

/// Value of `opening`, by slot: what only the first packet of a flow asks of the rule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Opening {
    /// Masquerade: how many addresses it has in `pool4` or its twin; 0: it translates to the uplink's.
    pub pool: u32,
    /// Flows that it may make in a second; 0: as many as the agent's setting says of every rule.
    pub flows_per_second: u32,
}

/// How long a flow may be idle, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Timeouts {
    /// TCP, while both sides may speak.
    pub tcp_open: u32,
    /// TCP, while it opens or closes.
    pub tcp_change: u32,
    pub udp: u32,
    pub icmp: u32,
}

impl Timeouts {
    /// The RFCs' own: 5382 REQ-5 (2 h 4 min, 4 min), 4787 REQ-5 (five minutes recommended), 5508 REQ-2 (one minute).
    pub const RFC: Self = Self { tcp_open: 7440, tcp_change: 240, udp: 300, icmp: 60 };
}

/// Value of `rule`, by slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Rule {
    /// Grows when a rule is put into the slot and when it is taken out.
    pub generation: u32,
    /// 1 while a rule is in the slot.
    pub used: u32,
    /// Interface index of the uplink that its flows go through.
    pub uplink: u32,
    /// [`rule`] bits.
    pub flags: u32,
    pub timeouts: Timeouts,
}

/// Bits of [`Rule::flags`].
pub mod rule {
    /// Masquerade: whoever knows an external port may send to it (RFC 4787 section 5, endpoint-independent filtering).
    pub const FULL_CONE: u32 = 1;
    /// Masquerade: a port for each destination, which alone may answer (address and port-dependent, both).
    pub const SYMMETRIC: u32 = 2;
    /// Masquerade: an even port stays even, an odd one odd (RFC 4787 REQ-4).
    pub const PARITY: u32 = 4;
    /// Forward: only for the sources that `source4` or its twin has for the slot.
    pub const SOURCES: u32 = 8;
    /// Forward: for inside hosts too.
    pub const HAIRPIN: u32 = 16;
    /// Masquerade: not towards the destinations that `source4` or its twin has for the slot.
    pub const EXCEPT: u32 = 32;
}

/// Value of `rule_stat`, by slot and CPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct RuleStat {
    pub packets_in: u64,
    pub bytes_in: u64,
    pub packets_out: u64,
    pub bytes_out: u64,
    /// Flows that the rule has made.
    pub flows: u64,
}

type A4 = [u8; 4];
type A6 = [u8; 16];

/// Value of `epoch`, of which there is one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Epoch {
    /// What flows learn their ways under; 0: no packet takes the fast path.
    pub current: u32,
    /// The last number that was not 0.
    pub last: u32,
    /// Until when nothing but hosts and traffic class decides where a packet goes, in ticks of 2^20 ns since boot; 0: there
    /// is more. The agent moves it on while it is there to hear of changes.
    pub alike: u32,
    /// Since when `current` is what it is, in the same ticks.
    pub begun: u32,
}

/// Pairs of hosts that are known at once: the size of `pair4` and of `pair6`.
pub const MAX_PAIRS: u32 = 32768;

/// Key of `pair4` and `pair6`: what the kernel's routes are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C, align(4))]
pub struct PairKey<A> {
    pub src: A,
    pub dst: A,
    /// Index of the interface whose addresses answer where packets come in.
    pub from: u32,
    /// DSCP, in the upper six of eight bits.
    pub class: u32,
}

/// Value of `pair4` and `pair6`: what a flow between them has learned, as in [`Flow`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Pair {
    pub hop: u32,
    pub stamp: u32,
    pub lease: u32,
}

/// Value of `hop`: where the packets of many flows go next, see [`crate::nat::fast`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Hop {
    /// The epoch in which it was written; another one now means that it is free.
    pub stamp: u64,
    /// Index of the interface where they leave.
    pub interface: u32,
    /// Of the one whose addresses answer where they come in.
    pub from: u32,
    /// Longest IP packet that may leave there.
    pub mtu: u32,
    /// Addresses of the frame.
    pub link: LinkHeader,
}

/// Value of `port`, by interface index: where the fast path may begin and end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Port {
    /// Index of the interface whose addresses answer for it: itself, or its bridge.
    pub owner: u32,
    pub mtu: u32,
    /// The owner's.
    pub mac: [u8; 6],
    /// Always 0.
    pub unused: u16,
}

const _: () = {
    assert!(size_of::<Hop>() == 32);
    assert!(size_of::<Port>() == 16);
    assert!(size_of::<PairKey<A4>>() == 16 && size_of::<PairKey<A6>>() == 40);
    assert!(size_of::<FlowKey<A4>>() == 16);
    assert!(size_of::<Flow<A4>>() == 64);
    // One exchange takes both, see `crate::nat::collect`.
    assert!(offset_of!(Flow<A4>, last_seen) == offset_of!(Flow<A4>, lease) + 4);
    assert!(offset_of!(Flow<A6>, last_seen) == offset_of!(Flow<A6>, lease) + 4);
    assert!(offset_of!(Flow<A4>, lease) % 8 == 0 && offset_of!(Flow<A6>, lease) % 8 == 0);
    assert!(size_of::<FlowKey<A6>>() == 40);
    assert!(size_of::<Flow<A6>>() == 88);
    assert!(size_of::<ForwardKey<A4>>() == 12);
    assert!(size_of::<ForwardKey<A6>>() == 24);
    assert!(size_of::<Forward<A4>>() == 16);
    assert!(size_of::<Forward<A6>>() == 28);
    assert!(size_of::<RangeKey<A4>>() == 12 && size_of::<RangeKey<A6>>() == 24);
    assert!(size_of::<Range<A4>>() == 16 && size_of::<Range<A6>>() == 28);
    assert!(size_of::<SourceKey<A4>>() == 8 && size_of::<SourceKey<A6>>() == 20);
    assert!(size_of::<MasqueradeKey<A4>>() == 8);
    assert!(size_of::<MasqueradeKey<A6>>() == 20);
    assert!(size_of::<EndpointKey<A4>>() == 8 && size_of::<EndpointKey<A6>>() == 20);
    assert!(size_of::<Binding<A4>>() == 60 && size_of::<Binding<A6>>() == 168);
    assert!(size_of::<Moved<A4>>() == 8 && size_of::<Moved<A6>>() == 20);
    assert!(size_of::<FragmentKey<A4>>() == 16 && size_of::<FragmentKey<A6>>() == 40);
    assert!(size_of::<Fragmented>() == 12);
    assert!(size_of::<PaceKey<A4>>() == 8 && size_of::<PaceKey<A6>>() == 20);
    assert!(size_of::<PlaceKey<A4>>() == 8 && size_of::<PlaceKey<A6>>() == 20);
    assert!(size_of::<PlacedPort>() == 4);
    assert!(size_of::<Rule>() == 32);
    assert!(size_of::<Local>() == 8 && size_of::<PoolKey>() == 8);
    assert!(size_of::<RuleStat>() == 40);
};
