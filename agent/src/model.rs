//! The nouns: what callers ask for (specs), what they are shown (views).
//!
//! Specs are what the store keeps. Views are built from what the kernel says, never from a request.

pub mod bridge_vlan;
pub mod firewall;
pub mod roles;

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use telecluster_common::maps::Timeouts;
use utoipa::ToSchema;

use self::roles::Role;
use crate::kernel::{dataplane::NatType, links::Mac};

/// `linux`: the kernel's bridge. `ovs`: Open vSwitch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum BridgeType {
    #[default]
    Linux,
    Ovs,
}

impl BridgeType {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Linux => "linux",
            Self::Ovs => "ovs",
        }
    }
}

/// A bridge as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeSpec {
    pub name: LinkName,
    #[serde(default)]
    pub kind: BridgeType,
    /// What carries it: without OVS a Linux bridge stands in. Settled when it is made.
    #[serde(default)]
    pub backend: BridgeType,
    #[serde(default)]
    pub stp: bool,
    /// Kernel default when absent.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// Addresses in CIDR form, both families.
    #[serde(default)]
    pub addresses: Vec<IpNet>,
    /// The hardware address that it was made with, else the kernel's choice. Settled when it is made.
    #[serde(default)]
    pub mac: Option<Mac>,
}

/// A veth pair as it was asked for. `None` as bridge: no master. `None` as namespace: the worker's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VethSpec {
    pub name1: LinkName,
    pub name2: LinkName,
    #[serde(default)]
    pub bridge1: Option<LinkName>,
    #[serde(default)]
    pub bridge2: Option<LinkName>,
    #[serde(default)]
    pub namespace1: Option<NamespaceName>,
    #[serde(default)]
    pub namespace2: Option<NamespaceName>,
}

/// A TUN or TAP as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunSpec {
    pub name: LinkName,
    pub kind: TunType,
    /// The user who may open it, by number.
    #[serde(default)]
    pub owner: Option<u32>,
    #[serde(default)]
    pub group: Option<u32>,
    #[serde(default)]
    pub bridge: Option<LinkName>,
    /// Made again after a reboot.
    #[serde(default)]
    pub persistent: bool,
    #[serde(default)]
    pub multi_queue: bool,
    #[serde(default)]
    pub vnet_hdr: bool,
    /// Kernel default when absent.
    #[serde(default)]
    pub mtu: Option<u32>,
    #[serde(default)]
    pub addresses: Vec<IpNet>,
}

/// `tap`: Ethernet frames, can be a port of a bridge. `tun`: IP packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TunType {
    Tun,
    Tap,
}

impl TunType {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tun => "tun",
            Self::Tap => "tap",
        }
    }
}

/// A VLAN link as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VlanLinkSpec {
    pub name: LinkName,
    pub parent: LinkName,
    pub vlan_id: u16,
    #[serde(default)]
    pub protocol: VlanProtocol,
    #[serde(default)]
    pub bridge: Option<LinkName>,
}

/// Which tag a VLAN link uses: the customer's (0x8100) or the provider's (0x88a8).
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
pub enum VlanProtocol {
    #[default]
    #[serde(rename = "802.1Q")]
    Dot1q,
    #[serde(rename = "802.1ad")]
    Dot1ad,
}

impl VlanProtocol {
    /// The first two bytes of its tags.
    pub const fn number(self) -> u16 {
        match self {
            Self::Dot1q => 0x8100,
            Self::Dot1ad => 0x88a8,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Dot1q => "802.1Q",
            Self::Dot1ad => "802.1ad",
        }
    }
}

/// What an interface brought into its bridge: it goes back when the interface leaves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UplinkSpec {
    pub addresses: Vec<IpNet>,
    pub routes: Vec<RouteSpec>,
    /// The bridge's own hardware address.
    #[serde(default)]
    pub bridge_mac: Option<String>,
}

/// A route that moved with its interface's addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteSpec {
    pub destination: IpNet,
    #[serde(default)]
    pub gateway: Option<IpAddr>,
    #[serde(default)]
    pub source: Option<IpAddr>,
    #[serde(default)]
    pub metric: u32,
    pub table: u32,
    /// Who made it: `RTPROT_*`.
    pub protocol: u8,
}

/// How long flows of a rule may be idle, in seconds; what is not said is what the RFCs ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct FlowTimeouts {
    /// TCP, while both sides may speak, or one of them.
    #[schema(required = false, minimum = 5, maximum = 604_800, default = 7440)]
    pub tcp_established: u32,
    /// TCP, while it opens or closes.
    #[schema(required = false, minimum = 5, maximum = 604_800, default = 240)]
    pub tcp_transitory: u32,
    #[schema(required = false, minimum = 5, maximum = 604_800, default = 300)]
    pub udp: u32,
    /// Pings.
    #[schema(required = false, minimum = 5, maximum = 604_800, default = 60)]
    pub icmp: u32,
}

impl FlowTimeouts {
    pub const LEAST: u32 = 5;
    /// A week. The programs' clock goes round in 52 days.
    pub const MOST: u32 = 604_800;

    /// `None`: the usual ones.
    pub fn unusual(self) -> Option<Self> {
        (self != Self::default()).then_some(self)
    }
}

impl Default for FlowTimeouts {
    fn default() -> Self {
        Timeouts::RFC.into()
    }
}

impl From<Timeouts> for FlowTimeouts {
    fn from(timeouts: Timeouts) -> Self {
        let Timeouts { tcp_open, tcp_change, udp, icmp } = timeouts;
        Self { tcp_established: tcp_open, tcp_transitory: tcp_change, udp, icmp }
    }
}

impl From<FlowTimeouts> for Timeouts {
    fn from(timeouts: FlowTimeouts) -> Self {
        let FlowTimeouts { tcp_established, tcp_transitory, udp, icmp } = timeouts;
        Self { tcp_open: tcp_established, tcp_change: tcp_transitory, udp, icmp }
    }
}

/// The transport a port forward is for. `all` is tcp and udp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ForwardProtocol {
    Tcp,
    Udp,
    All,
}

impl ForwardProtocol {
    /// As the API has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::All => "all",
        }
    }
}

/// A port forward as it was asked for, with its uplink settled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardSpec {
    /// The uplink whose packets it is for.
    pub interface: LinkName,
    /// `None`: any address of the host.
    #[serde(default)]
    pub external_ip: Option<IpAddr>,
    pub external_port: u16,
    /// The last port of a range; `None`: `external_port` alone.
    #[serde(default)]
    pub external_port_end: Option<u16>,
    pub internal_ip: IpAddr,
    /// Where the first port leads; the others follow.
    pub internal_port: u16,
    pub protocol: ForwardProtocol,
    /// The only networks that it is open to, in order and none within another; none: to everybody.
    #[serde(default)]
    pub source_cidrs: Vec<IpNet>,
    /// For inside hosts too.
    #[serde(default = "yes")]
    pub hairpin: bool,
    /// Flows that it may make in a second; 0: as the setting for all rules says.
    #[serde(default)]
    pub new_flows_per_second: u32,
    #[serde(default)]
    pub timeouts: FlowTimeouts,
    #[serde(default)]
    pub description: Option<String>,
    #[serde(default = "yes")]
    pub enabled: bool,
}

/// A port forward before its uplink is settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardRequest {
    /// `None`: the uplink of the host.
    pub interface: Option<LinkName>,
    pub external_ip: Option<IpAddr>,
    pub external_port: u16,
    pub external_port_end: Option<u16>,
    pub internal_ip: IpAddr,
    pub internal_port: u16,
    pub protocol: ForwardProtocol,
    pub source_cidrs: Vec<IpNet>,
    pub hairpin: bool,
    pub new_flows_per_second: u32,
    pub timeouts: FlowTimeouts,
    pub description: Option<String>,
    pub enabled: bool,
}

/// An inside network whose hosts appear with the address of the uplink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = CreateMasquerade)]
pub struct MasqueradeSpec {
    /// CIDR form; host bits are cleared.
    #[schema(value_type = String, example = "192.168.100.0/24")]
    pub source_network: IpNet,
    /// The uplink.
    #[schema(value_type = String, example = "ens3")]
    pub output_interface: LinkName,
    /// False keeps the rule and translates nothing.
    #[serde(default = "yes")]
    #[schema(default = true)]
    pub enabled: bool,
    /// Who may send to a port outside that an inside socket has. `restricted`: every address that it has sent to;
    /// `full_cone`: everybody; both give one port for all destinations. `symmetric`: a port for each destination, which
    /// alone may answer.
    #[serde(default)]
    #[schema(default = "restricted")]
    pub nat_type: NatType,
    /// An even port stays even, an odd one odd (RTP and RTCP).
    #[serde(default)]
    #[schema(default = false)]
    pub port_parity: bool,
    /// Networks that are reached without translation, with the inside address: other sites by a tunnel, say. Host bits are
    /// cleared; at most 256.
    #[serde(default)]
    #[schema(value_type = Vec<String>, default = json!([]), example = json!(["10.0.0.0/8"]))]
    pub exclude_destinations: Vec<IpNet>,
    /// The addresses that inside hosts appear under, instead of the uplink's: those of this host, or such as are routed to
    /// it; at most 64. An inside host has the same one for all that it sends.
    #[serde(default)]
    #[schema(value_type = Vec<String>, default = json!([]), example = json!(["203.0.113.5", "203.0.113.6"]))]
    pub external_ips: Vec<IpAddr>,
    /// Flows that it may make in a second, and as many at once; 0: as `NEW_FLOWS_PER_RULE` says.
    #[serde(default)]
    #[schema(default = 0, minimum = 0, maximum = 1_000_000)]
    pub new_flows_per_second: u32,
    /// How long its flows may be idle.
    #[serde(default)]
    #[schema(required = false)]
    pub timeouts: FlowTimeouts,
}

fn yes() -> bool {
    true
}

/// An interface name that the worker may create: 1 to 15 bytes of `A-Z a-z 0-9 _ . -`,
/// not starting with `-` or `.` (linux: `dev_valid_name`, narrowed so that no name is an option or a path).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LinkName(String);

/// The name of a network namespace under `/run/netns`, the same alphabet, up to 255 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NamespaceName(String);

/// Why a name is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("is empty")]
    Empty,
    #[error("has {0} bytes, the most is {1}")]
    TooLong(usize, usize),
    #[error("starts with '{0}'")]
    BadStart(char),
    #[error("contains {0:?}; only A-Z a-z 0-9 _ . - are allowed")]
    BadCharacter(char),
    #[error("is taken: the kernel keeps its settings for every interface under {0:?}")]
    Reserved(String),
}

fn check_name(name: &str, max: usize, reserved: &[&str]) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > max {
        return Err(NameError::TooLong(name.len(), max));
    }
    if let Some(c) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))) {
        return Err(NameError::BadCharacter(c));
    }
    match name.chars().next() {
        Some(c @ ('-' | '.')) => Err(NameError::BadStart(c)),
        _ if reserved.contains(&name) => Err(NameError::Reserved(name.to_owned())),
        _ => Ok(()),
    }
}

macro_rules! name_type {
    ($name:ident, $max:expr, $reserved:expr) => {
        impl $name {
            /// Longest name in bytes.
            pub const MAX: usize = $max;

            pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
                let name = name.into();
                check_name(&name, Self::MAX, $reserved)?;
                Ok(Self(name))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(name: String) -> Result<Self, NameError> {
                Self::new(name)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                self.0 == other
            }
        }
    };
}

// /proc/sys/net/ipv4/conf/all and default: the kernel makes no interface of these names.
name_type!(LinkName, 15, &["all", "default"]); // IFNAMSIZ - 1
name_type!(NamespaceName, 255, &[]); // NAME_MAX

/// A bridge as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct BridgeView {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: BridgeType,
    /// What carries it: `linux` or `ovs`.
    pub backend: String,
    pub stp: bool,
    /// Names of the ports.
    pub ports: Vec<String>,
    /// Ports that do not forward although they are up, and why.
    pub blocked_ports: Vec<BlockedPort>,
    /// VLAN ids configured on its ports.
    pub vlans: Vec<u16>,
    /// Operational state: `up`, `down`, `unknown`, `lowerlayerdown`.
    pub status: String,
    pub mtu: u32,
    pub mac_address: String,
    /// CIDR form.
    pub addresses: Vec<String>,
    /// Made by the worker.
    pub managed: bool,
    /// What is not as it was told to be, and cannot be put right just now.
    pub problems: Vec<String>,
}

/// A port that the bridge holds back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct BlockedPort {
    pub port: String,
    /// As the kernel calls it: `blocking`, `listening`, `learning`. A port that the worker holds on a loop is
    /// `blocking`; the kernel itself has it listening, because without spanning tree it keeps no port blocking.
    pub state: String,
    pub reason: String,
}

/// A veth pair as the kernel has it. `None` as namespace: the worker's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct VethView {
    pub name1: String,
    /// Absent when the other end is in a namespace that has no name.
    pub name2: Option<String>,
    /// The peer of `name1`, that is `name2`: clients read either.
    pub peer1: Option<String>,
    pub peer2: Option<String>,
    pub bridge1: Option<String>,
    pub bridge2: Option<String>,
    pub namespace1: Option<String>,
    pub namespace2: Option<String>,
    pub status1: String,
    pub status2: Option<String>,
    pub managed: bool,
    /// What is not as it was told to be, and cannot be put right just now.
    pub problems: Vec<String>,
}

/// A TUN or TAP as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct TunView {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: TunType,
    /// Who may open it beside root: `user`, `group`, or `root` for nobody.
    pub mode: TunMode,
    /// The user's name; the number when it has none. Null: root only.
    pub owner: Option<String>,
    pub group: Option<String>,
    pub owner_id: Option<u32>,
    pub group_id: Option<u32>,
    /// The bridge it is a port of.
    pub bridge: Option<String>,
    /// Made again after a reboot. Of one that the worker did not make: it stays when its program closes it.
    pub persistent: bool,
    pub multi_queue: bool,
    pub vnet_hdr: bool,
    /// Operational state: `up` when a program has it open, else `down`.
    pub status: String,
    pub mtu: u32,
    pub mac_address: Option<String>,
    /// CIDR form.
    pub ip_addresses: Vec<String>,
    pub ifindex: u32,
    pub managed: bool,
    /// What is not as it was told to be, and cannot be put right just now.
    pub problems: Vec<String>,
}

/// Who may open a TUN or TAP beside root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TunMode {
    User,
    Group,
    Root,
}

/// A VLAN link as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct VlanLinkView {
    /// Null when it is in another namespace.
    pub parent_interface: Option<String>,
    pub vlan_id: u16,
    pub interface_name: String,
    pub protocol: VlanProtocol,
    /// Operational state.
    pub status: String,
    pub mtu: u32,
    pub mac_address: Option<String>,
    /// The bridge it is a port of.
    pub bridge: Option<String>,
    /// CIDR form.
    pub ip_addresses: Vec<String>,
    pub ifindex: u32,
    pub managed: bool,
    /// What is not as it was told to be, and cannot be put right just now.
    pub problems: Vec<String>,
}

/// A network interface as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct InterfaceView {
    pub name: String,
    /// physical, bridge, veth, tun, tap, vlan, bond or virtual: from the link kind, never from the name.
    #[serde(rename = "type")]
    pub kind: String,
    /// Operational state: `up`, `down`, `unknown`, `lowerlayerdown`, ...
    pub status: String,
    pub mtu: u32,
    pub mac_address: Option<String>,
    /// CIDR form.
    pub ip_addresses: Vec<String>,
    /// The bridge it is a port of.
    pub bridge: Option<String>,
    pub vlans: Vec<u16>,
    pub ifindex: u32,
    pub managed: bool,
    /// What it is for on this server; most are for nothing in particular.
    pub roles: Vec<Role>,
}

/// A route of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct RouteView {
    /// CIDR form, or `default`.
    pub destination: String,
    /// Null when the hosts are on the link itself.
    pub gateway: Option<String>,
    /// Null for a route that refuses.
    pub interface: Option<String>,
    /// The address that the host itself sends from, where the route says so.
    pub source: Option<String>,
    /// inet or inet6.
    pub family: String,
    pub metric: u32,
    /// unicast, blackhole, unreachable or prohibit.
    #[serde(rename = "type")]
    pub kind: String,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum RuleAction {
    Dnat,
    Snat,
    Masquerade,
}

impl RuleAction {
    /// As clients and metrics see it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dnat => "DNAT",
            Self::Snat => "SNAT",
            Self::Masquerade => "MASQUERADE",
        }
    }
}

/// A NAT rule with what it has done so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct RuleView {
    pub id: String,
    pub action: RuleAction,
    /// tcp, udp or all.
    pub protocol: String,
    /// CIDR form; `0.0.0.0/0` or `::/0` when any. Several are separated by commas.
    pub source_ip: String,
    /// The port on the outside of a forward, the first one of a range; absent for masquerade.
    pub source_port: Option<u16>,
    /// The inside host of a forward; absent for masquerade.
    pub dest_ip: Option<String>,
    pub dest_port: Option<u16>,
    pub interface: String,
    pub enabled: bool,
    pub description: Option<String>,
    /// Packets in both directions.
    pub packets: u64,
    /// Bytes of IP in both directions.
    pub bytes: u64,
    /// From the uplink to the inside.
    pub packets_in: u64,
    pub bytes_in: u64,
    /// From the inside to the uplink.
    pub packets_out: u64,
    pub bytes_out: u64,
    pub active_flows: u64,
    /// `ebpf` or `iptables`.
    pub backend: String,
    /// Forwards only, as in the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_ip: Option<String>,
    /// Forwards of a range only: its last port outside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_port_end: Option<u16>,
    /// Forwards only: the networks that it is open to; absent when to everybody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_cidrs: Option<Vec<String>>,
    /// Forwards only: whether inside hosts may use it, by the uplink's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hairpin: Option<bool>,
    /// Masquerade only: `restricted`, `full_cone` or `symmetric`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nat_type: Option<NatType>,
    /// Masquerade only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port_parity: Option<bool>,
    /// Masquerade only: the networks that are reached without translation; absent when there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude_destinations: Option<Vec<String>>,
    /// Masquerade only: the addresses that inside hosts appear under; absent when that is the uplink's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_ips: Option<Vec<String>>,
    /// Flows that it may make in a second; absent when that is as the setting for all rules says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_flows_per_second: Option<u32>,
    /// How long its flows may be idle, in seconds; absent when that is as usual.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<FlowTimeouts>,
}

/// Whether flows may go past bridge, routes and netfilter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FastPathView {
    pub open: bool,
    /// Why not.
    pub reason: Option<String>,
}

/// `GET /nat/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct NatStatusView {
    pub fast_path: FastPathView,
    pub port_forwards: Vec<RuleView>,
    pub masquerade_rules: Vec<RuleView>,
    /// In the order in which they are asked.
    pub firewall_rules: Vec<firewall::FirewallView>,
}

/// One live flow, both directions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FlowView {
    /// tcp, udp, icmp or icmpv6.
    pub protocol: String,
    /// The host behind the worker.
    pub inside_ip: String,
    pub inside_port: u16,
    /// The worker's own address and port, as the outside sees it.
    pub external_ip: String,
    pub external_port: u16,
    /// The host on the outside.
    pub remote_ip: String,
    pub remote_port: u16,
    /// From the uplink to the inside.
    pub packets_in: u64,
    pub bytes_in: u64,
    /// From the inside to the uplink.
    pub packets_out: u64,
    pub bytes_out: u64,
    /// new, established, closing, ...
    pub state: String,
    /// Seconds since its first packet.
    pub age: u64,
    /// Seconds since its last packet.
    pub idle: u64,
    /// Answered, so that no flood can push it out.
    pub proven: bool,
    /// `fast`: its packets go past bridge, routes and netfilter; `kernel`: they pass them.
    pub path: String,
    /// Why they take the kernel's way.
    pub path_reason: Option<String>,
    /// The rule that made it.
    pub rule_id: Option<String>,
    pub interface: Option<String>,
}
