//! Why a packet was dropped: shared by the programs that count and the agent that shows.

/// A reason to drop a packet. The number is its index in the `drop_stat` map and never changes its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum DropReason {
    /// From a masqueraded network, and no external port was free.
    PortsExhausted = 0,
    /// From a masqueraded network, and the flow table is full.
    FlowTableFull = 1,
    /// From a masqueraded network: a TCP segment of no known flow that does not open one.
    TcpNotSyn = 2,
    /// From a masqueraded network: a fragment, which cannot be told to a flow.
    Fragment = 3,
    /// From a masqueraded network: a protocol that has no ports and is not ICMP echo.
    Protocol = 4,
    /// From a masqueraded network: shorter than its own headers say. From either side: an ICMP error about a flow whose checksum, or that
    /// of the IP header that it embeds, is wrong.
    Malformed = 5,
    /// From a masqueraded network, and the uplink has no address to translate to.
    NoUplinkAddress = 6,
    /// The kernel refused to write the packet's checksum or headers.
    Rewrite = 7,
    /// The program for this kind of packet is missing: a bug of ours.
    Program = 8,
    /// From outside, to a port that belongs to an inside host which has not sent to this sender.
    Filtered = 9,
    /// From outside: a TCP connection to a port of a masquerading uplink that nobody has. A reset would end what an
    /// inside host may be about to open to that peer (RFC 5382 REQ-4).
    Unsolicited = 10,
    /// From a masqueraded network: the inside host has as many external ports as it may have.
    PortQuota = 11,
    /// More new flows in a second than a rule, or one inside host, may make.
    FlowRate = 12,
    /// Of the host itself, to a forward whose server is not behind an interface towards inside hosts.
    NoRoute = 13,
}

impl DropReason {
    pub const COUNT: u32 = 14;

    /// Every reason, in the order of its number.
    pub const ALL: [Self; Self::COUNT as usize] = [
        Self::PortsExhausted,
        Self::FlowTableFull,
        Self::TcpNotSyn,
        Self::Fragment,
        Self::Protocol,
        Self::Malformed,
        Self::NoUplinkAddress,
        Self::Rewrite,
        Self::Program,
        Self::Filtered,
        Self::Unsolicited,
        Self::PortQuota,
        Self::FlowRate,
        Self::NoRoute,
    ];

    /// The label in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PortsExhausted => "ports_exhausted",
            Self::FlowTableFull => "flow_table_full",
            Self::TcpNotSyn => "tcp_not_syn",
            Self::Fragment => "fragment",
            Self::Protocol => "protocol",
            Self::Malformed => "malformed",
            Self::NoUplinkAddress => "no_uplink_address",
            Self::Rewrite => "rewrite",
            Self::Program => "program",
            Self::Filtered => "filtered",
            Self::Unsolicited => "unsolicited",
            Self::PortQuota => "port_quota",
            Self::FlowRate => "flow_rate",
            Self::NoRoute => "no_route",
        }
    }
}
