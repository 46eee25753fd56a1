//! The NAT data plane as the rest of the agent sees it: rules by slot, counters, flows.
//!
//! `kernel::bpf` does it with programs and maps, `kernel::netfilter` with iptables, `kernel::fake` in memory. Nothing
//! here knows aya.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use ipnet::IpNet;
use telecluster_common::{
    drop::DropReason,
    maps::{Timeouts, rule},
    tables::HOLD_DOWN,
    tcp::{FlowState, proto},
};

use super::{
    KernelError,
    links::Mac,
    switch::VlanPlane,
    xdp::{Medium, XdpReport},
};

/// Index of a rule in the kernel's `rule` and `rule_stat` maps; assigned by the engine, kept in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Slot(pub u32);

impl Slot {
    /// One more than the largest slot.
    pub const COUNT: u32 = telecluster_common::maps::MAX_RULES;
}

/// TCP and UDP, the protocols with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    /// As iptables and people write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// IANA number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => proto::TCP,
            Self::Udp => proto::UDP,
        }
    }
}

/// Who outside may send to an external port that an inside socket has, and whether that has one port for all
/// (RFC 4787 sections 4 and 5).
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum NatType {
    /// One port for all destinations; every address that the inside has sent to may send to it.
    #[default]
    Restricted,
    /// One port for all destinations; everybody may send to it.
    FullCone,
    /// A port for each destination, which alone may send to it.
    Symmetric,
}

impl NatType {
    /// From a rule's slot.
    pub const fn from_flags(flags: u32) -> Self {
        if flags & rule::FULL_CONE != 0 {
            Self::FullCone
        } else if flags & rule::SYMMETRIC != 0 {
            Self::Symmetric
        } else {
            Self::Restricted
        }
    }

    /// As the maps have it.
    pub const fn flags(self) -> u32 {
        match self {
            Self::Restricted => 0,
            Self::FullCone => rule::FULL_CONE,
            Self::Symmetric => rule::SYMMETRIC,
        }
    }
}

/// How an external port waits that nobody uses any more, before another inside socket may have it (RFC 6888 REQ-8). Its own may at any
/// time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldDown {
    pub seconds: u32,
    /// As many of each address family may wait, the ones that have waited longest are free before their time; 0: all of them may.
    pub ports: u32,
}

impl HoldDown {
    /// A day. The programs' clock goes round in 52.
    pub const LONGEST: u32 = 86_400;
}

impl Default for HoldDown {
    fn default() -> Self {
        Self { seconds: HOLD_DOWN, ports: 0 }
    }
}

/// A rule in the terms of the data plane: interfaces by index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NatRule {
    Forward {
        uplink: u32,
        /// `None`: any address of the host.
        external_ip: Option<IpAddr>,
        external_port: u16,
        /// The last one of the range; `external_port` when that is alone.
        external_port_end: u16,
        internal_ip: IpAddr,
        /// Where the first port leads; the others follow.
        internal_port: u16,
        transports: Vec<Transport>,
        /// The only networks that it is open to, in order and none within another; none: to everybody.
        sources: Vec<IpNet>,
        /// For inside hosts too.
        hairpin: bool,
        /// Flows that it may make in a second; 0: as the setting for all rules says.
        new_flows: u32,
        timeouts: Timeouts,
    },
    Masquerade {
        uplink: u32,
        source: IpNet,
        nat: NatType,
        /// An even port stays even, an odd one odd.
        parity: bool,
        /// Destinations that it leaves alone, in order and none within another.
        except: Vec<IpNet>,
        /// What it translates to, in order, each once; none: to the uplink's address.
        pool: Vec<IpAddr>,
        /// As of a forward.
        new_flows: u32,
        timeouts: Timeouts,
    },
}

impl NatRule {
    /// Whether its packets are IPv6.
    pub fn is_ipv6(&self) -> bool {
        match self {
            Self::Forward { internal_ip, .. } => internal_ip.is_ipv6(),
            Self::Masquerade { source, .. } => source.addr().is_ipv6(),
        }
    }

    /// As the rule's slot has it.
    pub fn flags(&self) -> u32 {
        match self {
            Self::Forward { sources, hairpin, .. } => {
                let sources = if sources.is_empty() { 0 } else { rule::SOURCES };
                sources | if *hairpin { rule::HAIRPIN } else { 0 }
            }
            Self::Masquerade { nat, parity, except, .. } => {
                let except = if except.is_empty() { 0 } else { rule::EXCEPT };
                nat.flags() | except | if *parity { rule::PARITY } else { 0 }
            }
        }
    }

    /// What it translates to, when that is not the uplink's address.
    pub fn pool(&self) -> &[IpAddr] {
        match self {
            Self::Forward { .. } => &[],
            Self::Masquerade { pool, .. } => pool,
        }
    }

    /// How many flows it may make in a second; 0: as the setting for all rules says.
    pub fn new_flows(&self) -> u32 {
        match self {
            Self::Forward { new_flows, .. } | Self::Masquerade { new_flows, .. } => *new_flows,
        }
    }

    /// How long its flows may be idle.
    pub fn timeouts(&self) -> Timeouts {
        match self {
            Self::Forward { timeouts, .. } | Self::Masquerade { timeouts, .. } => *timeouts,
        }
    }

    pub fn uplink(&self) -> u32 {
        match self {
            Self::Forward { uplink, .. } | Self::Masquerade { uplink, .. } => *uplink,
        }
    }
}

/// Addresses the programs need: which are the host's own, and what each uplink masquerades to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostAddresses {
    /// Every address of the host that others can send to.
    pub local: Vec<IpAddr>,
    /// (interface index, its address), at most one of each family.
    pub uplinks: Vec<(u32, IpAddr)>,
    /// (interface index, its address), all that uplinks have.
    pub external: Vec<(u32, IpAddr)>,
}

/// An interface at which the fast path may begin and end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FastPort {
    pub index: u32,
    /// The interface whose addresses answer for it: itself, or the bridge that it is a port of.
    pub owner: u32,
    pub mtu: u32,
    /// The owner's.
    pub mac: Mac,
    /// Towards inside hosts; else it is an uplink.
    pub inside: bool,
    pub medium: Medium,
}

/// Whether flows may take the fast path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FastPath {
    Open,
    /// Every packet takes the kernel's way, and why.
    Closed(String),
}

/// Packets and bytes of IP, by direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// From the uplink to the inside.
    pub packets_in: u64,
    pub bytes_in: u64,
    /// From the inside to the uplink.
    pub packets_out: u64,
    pub bytes_out: u64,
    /// Flows made so far (rules only).
    pub flows: u64,
}

/// One flow, both directions joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// IANA protocol number: 6, 17, 1 or 58.
    pub protocol: u8,
    pub inside: (IpAddr, u16),
    pub external: (IpAddr, u16),
    pub remote: (IpAddr, u16),
    pub counters: Counters,
    pub state: FlowState,
    pub proven: bool,
    /// Its packets, of both directions if both are used, take the fast path.
    pub fast: bool,
    pub age: Duration,
    pub idle: Duration,
    pub slot: Slot,
    pub uplink: u32,
}

/// Where the programs are attached, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    pub uplink: u32,
    /// `tcx`, `clsact` or `iptables`.
    pub mechanism: &'static str,
}

/// How full a map is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapPressure {
    pub map: &'static str,
    pub entries: u64,
    pub capacity: u64,
}

/// What is called with some of the flows.
pub type FlowVisitor<'a> = &'a (dyn Fn(&[Flow]) + Sync);

/// Rules, flows and counters of the NAT. Calls are short (microseconds, flows: milliseconds) and may block.
///
/// Every call either happens whole or changes nothing.
pub trait DataPlane: VlanPlane {
    /// `ebpf`, `iptables` or `fake`.
    fn backend(&self) -> &'static str;

    /// What it does not do as the programs do it, a sentence each.
    fn differences(&self) -> &'static [&'static str] {
        &[]
    }

    /// What this rule asks for and does not get.
    fn shortcoming(&self, _rule: &NatRule) -> Option<&'static str> {
        None
    }

    /// Attaches the programs to an uplink; nothing happens when they are attached already.
    fn attach(&self, uplink: u32) -> Result<(), KernelError>;

    /// Takes the programs off an uplink; nothing happens when they are not attached.
    fn detach(&self, uplink: u32) -> Result<(), KernelError>;

    fn attachments(&self) -> Vec<Attachment>;

    /// Puts a rule into an unused slot, or the same rule again.
    fn put_rule(&self, slot: Slot, rule: &NatRule) -> Result<(), KernelError>;

    /// Removes a rule. Its flows stop at once; its counters start at 0 when the slot is used again.
    fn remove_rule(&self, slot: Slot, rule: &NatRule) -> Result<(), KernelError>;

    /// Empties a slot of which only the number is known; slower than [`DataPlane::remove_rule`].
    fn clear_slot(&self, slot: Slot) -> Result<(), KernelError>;

    /// The rules as the kernel has them, by slot. `None`: the slot is taken, but what is in it is no whole rule.
    fn rules(&self) -> Result<BTreeMap<Slot, Option<NatRule>>, KernelError>;

    /// Replaces the addresses.
    fn set_addresses(&self, addresses: &HostAddresses) -> Result<(), KernelError>;

    /// Replaces the ports of the fast path. What flows have learned is forgotten.
    fn set_ports(&self, ports: &[FastPort]) -> Result<(), KernelError>;

    /// Replaces the interfaces where what inside hosts send to an uplink's address may turn back.
    fn set_turns(&self, interfaces: &BTreeSet<u32>) -> Result<(), KernelError>;

    fn fast_path(&self) -> FastPath;

    /// Which of the ports have the fast path in their drivers, and why the others have not.
    fn xdp(&self) -> Result<XdpReport, KernelError> {
        Ok(XdpReport::default())
    }

    fn counters(&self, slot: Slot) -> Result<Counters, KernelError>;

    /// The same for many rules, where one look may do for all.
    fn counters_of(&self, slots: &[Slot]) -> Result<BTreeMap<Slot, Counters>, KernelError> {
        slots.iter().map(|slot| Ok((*slot, self.counters(*slot)?))).collect()
    }

    /// Every live flow, part by part, by several threads at once: of a million no list is made that nobody needs.
    fn visit_flows(&self, visit: FlowVisitor<'_>) -> Result<(), KernelError>;

    /// Dropped packets by reason, reasons that never happened included.
    fn drops(&self) -> Result<Vec<(DropReason, u64)>, KernelError>;

    fn pressure(&self) -> Result<Vec<MapPressure>, KernelError>;

    /// Frees what has expired; returns how many flows.
    fn collect_garbage(&self) -> Result<usize, KernelError>;
}
