//! Keys and values of the maps that the programs and the agent share.
//!
//! Every field is named for people who read `bpftool map dump`: addresses are four bytes in the order in which they
//! are written (`[192,168,100,10]`), ports and counters are numbers in host order. No struct has padding that is
//! not a field: a key with undefined bytes would never be found again.

/// Rules of all kinds that can exist at once: the size of the `rule` and `rule_stat` maps.
pub const MAX_RULES: u32 = 16384;

/// Version of everything in this file. A pinned map of another version is not touched.
pub const SCHEMA: u32 = 1;

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

/// Key of `flow4` and `half4`: the packet as it arrives at the program, before translation.
///
/// 16 bytes, so that in the kernel's hash element (48 bytes of header, then key, then value; kernel/bpf/hashtab.c
/// `struct htab_elem`) the value starts at byte 64 and fills one cache line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C, align(4))]
pub struct FlowKey {
    pub src: [u8; 4],
    pub dst: [u8; 4],
    /// ICMP echo: the identifier stands where the asking side's port would, the other port is 0.
    pub sport: u16,
    pub dport: u16,
    /// IANA number: 6, 17 or 1.
    pub proto: u8,
    /// [`Direction`]: 0 in, 1 out.
    pub direction: u8,
    /// Always 0.
    pub unused: u16,
}

/// One direction of a flow: connection tracking and translation in one record, 64 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Flow {
    pub to_src: [u8; 4],
    pub to_dst: [u8; 4],
    pub to_sport: u16,
    pub to_dport: u16,
    /// What the addresses add to a checksum that covers them, see [`crate::checksum`].
    pub address_difference: u16,
    /// What the ports add.
    pub port_difference: u16,
    /// Slot of the rule that made it, and that rule's generation then: another generation now means that the rule
    /// is gone, and the flow with it.
    pub rule: u32,
    pub generation: u32,
    /// Interface index of the uplink.
    pub uplink: u32,
    /// Seconds since boot.
    pub created: u32,
    /// When this direction last refreshed the other, in ticks of 2^32 ns.
    pub synced: u32,
    /// [`crate::tcp::FlowState`].
    pub state: u8,
    /// [`flag`]s.
    pub flags: u8,
    /// Always 0.
    pub unused: u16,
    /// As they would be on the wire: a segmented super-packet counts its segments.
    pub packets: u64,
    /// Of IP, as the stack saw them: a super-packet's headers count once.
    pub bytes: u64,
    /// Nanoseconds since boot (CLOCK_MONOTONIC, coarse).
    pub last_seen: u64,
}

/// Bits of [`Flow::flags`].
pub mod flag {
    /// The direction of the flow's first packet.
    pub const OPENER: u8 = 1;
    /// The other side has answered.
    pub const ANSWERED: u8 = 2;
    /// TCP: this direction has sent FIN.
    pub const FINISHED: u8 = 4;
}

/// Key of `forward4`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C, align(4))]
pub struct ForwardKey {
    pub uplink: u32,
    /// 0.0.0.0: any address of the host.
    pub address: [u8; 4],
    pub port: u16,
    pub proto: u8,
    /// Always 0.
    pub unused: u8,
}

/// Value of `forward4`: where a forwarded port leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Forward {
    pub address: [u8; 4],
    pub port: u16,
    /// Always 0.
    pub unused: u16,
    pub rule: u32,
    pub generation: u32,
}

/// Key of `masquerade4`, after the trie's own prefix length: all 32 bits of the uplink, then the network's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C, align(4))]
pub struct MasqueradeKey {
    pub uplink: u32,
    pub address: [u8; 4],
}

/// Value of `masquerade4`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Masquerade {
    pub rule: u32,
    pub generation: u32,
}

/// Value of `uplink4`, by interface index: the address that masquerade translates to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Uplink {
    pub address: [u8; 4],
}

/// Value of `rule`, by slot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Rule {
    /// Grows when a rule is put into the slot and when it is taken out.
    pub generation: u32,
    /// 1 while a rule is in the slot.
    pub used: u32,
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

const _: () = {
    assert!(size_of::<FlowKey>() == 16);
    assert!(size_of::<Flow>() == 64);
    assert!(size_of::<ForwardKey>() == 12);
    assert!(size_of::<Forward>() == 16);
    assert!(size_of::<MasqueradeKey>() == 8);
    assert!(size_of::<RuleStat>() == 40);
};
