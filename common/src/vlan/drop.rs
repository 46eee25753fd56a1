//! Why a frame was dropped by the VLAN filter: shared by the programs that count and the agent that shows.

/// A reason to drop a frame. The number is its index in `vlan_drop` and `port_stat` and never changes its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum VlanDrop {
    /// The port is not in the frame's VLAN.
    NotMember = 0,
    /// The port takes no frames with a tag, or none without.
    NotAccepted = 1,
    /// Without a tag, on a port that has no VLAN for such frames.
    NoNative = 2,
    /// VLAN 4095, which IEEE 802.1Q keeps for itself.
    ReservedVlan = 3,
    /// A tag within the VLAN's payload.
    NestedTag = 4,
    /// The sender's address is no station's.
    SourceAddress = 5,
    /// The sender's address belongs to another port: the host's, a static one, or one that is in use there.
    StolenAddress = 6,
    /// It came in where its receiver is.
    SamePort = 7,
    /// Spanning tree, or the worker, keeps the port from forwarding.
    Blocked = 8,
    /// From an isolated port to an isolated port.
    Isolated = 9,
    /// Larger than the port's MTU.
    TooBig = 10,
    /// The VLAN has no other port.
    NobodyThere = 11,
    /// Shorter than its own headers say.
    Malformed = 12,
    /// The kernel refused to change the frame's tag.
    Rewrite = 13,
}

/// A frame that goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dropped {
    pub reason: VlanDrop,
    /// The VLAN that it was in, or said to be in; 0: in none.
    pub vlan: u16,
}

impl VlanDrop {
    pub const COUNT: u32 = 14;

    /// Every reason, in the order of its number.
    pub const ALL: [Self; Self::COUNT as usize] = [
        Self::NotMember,
        Self::NotAccepted,
        Self::NoNative,
        Self::ReservedVlan,
        Self::NestedTag,
        Self::SourceAddress,
        Self::StolenAddress,
        Self::SamePort,
        Self::Blocked,
        Self::Isolated,
        Self::TooBig,
        Self::NobodyThere,
        Self::Malformed,
        Self::Rewrite,
    ];

    /// The same, of a frame of a VLAN.
    #[inline(always)]
    #[must_use]
    pub const fn within(self, vlan: u16) -> Dropped {
        Dropped { reason: self, vlan }
    }

    /// The label in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotMember => "not_member",
            Self::NotAccepted => "not_accepted",
            Self::NoNative => "no_native",
            Self::ReservedVlan => "reserved_vlan",
            Self::NestedTag => "nested_tag",
            Self::SourceAddress => "source_address",
            Self::StolenAddress => "stolen_address",
            Self::SamePort => "same_port",
            Self::Blocked => "blocked",
            Self::Isolated => "isolated",
            Self::TooBig => "too_big",
            Self::NobodyThere => "nobody_there",
            Self::Malformed => "malformed",
            Self::Rewrite => "rewrite",
        }
    }
}
