//! What the agent writes about rules and addresses, and what rules have counted.

use crate::tcp::proto;

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

/// Words of `forwarded4` and of `forwarded6`: a bit for each port of TCP, then for each one of UDP.
pub const FORWARDED: u32 = 2 * (1 << 16) / u64::BITS;

/// Which word of them a port's bit is in, and which bit of that.
#[inline(always)]
pub const fn forwarded(protocol: u8, port: u16) -> (u32, u32) {
    let place = ((protocol == proto::UDP) as u32) << 16 | port as u32;
    (place / u64::BITS, place % u64::BITS)
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
    /// TCP, while it opens.
    pub tcp_opening: u32,
    /// TCP, while it closes, or after a reset.
    pub tcp_closing: u32,
    pub udp: u32,
    pub icmp: u32,
}

impl Timeouts {
    /// The RFCs' own: 5382 REQ-5 and 7857 section 2.1 (2 h 4 min, 4 min), 4787 REQ-5 (five minutes recommended), 5508 REQ-2 (one minute).
    pub const RFC: Self = Self { tcp_open: 7440, tcp_opening: 240, tcp_closing: 240, udp: 300, icmp: 60 };
}

/// Value of `rule`, by slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Rule {
    /// Grows when a rule is put into the slot and when it is taken out.
    pub generation: u32,
    /// Interface index of the uplink that its flows go through.
    pub uplink: u32,
    /// [`rule`] bits.
    pub flags: u32,
    pub timeouts: Timeouts,
}

impl Rule {
    /// There is one in the slot.
    #[inline(always)]
    pub const fn is_there(&self) -> bool {
        self.flags & rule::THERE != 0
    }
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
    /// A rule is in the slot.
    pub const THERE: u32 = 64;
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
