//! NAT: rules, and how they and their flows are shown.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use telecluster_common::maps::Timeouts;
use utoipa::ToSchema;

use super::{LinkName, firewall::FirewallView};
use crate::kernel::dataplane::NatType;

/// How long flows of a rule may be idle, in seconds; what is not said is what the RFCs ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct FlowTimeouts {
    /// TCP, while both sides may speak, or one of them.
    #[schema(required = false, minimum = 5, maximum = 604_800, default = 7440)]
    pub tcp_established: u32,
    /// TCP, while it closes, and while it opens where `tcp_opening` does not say otherwise.
    #[schema(required = false, minimum = 5, maximum = 604_800, default = 240)]
    pub tcp_transitory: u32,
    /// TCP, until its handshake is complete.
    #[schema(required = false, minimum = 5, maximum = 604_800)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_opening: Option<u32>,
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
        let Timeouts { tcp_open, tcp_opening, tcp_closing, udp, icmp } = timeouts;
        let apart = (tcp_opening != tcp_closing).then_some(tcp_opening);
        Self { tcp_established: tcp_open, tcp_transitory: tcp_closing, tcp_opening: apart, udp, icmp }
    }
}

impl From<FlowTimeouts> for Timeouts {
    fn from(timeouts: FlowTimeouts) -> Self {
        let FlowTimeouts { tcp_established, tcp_transitory, tcp_opening, udp, icmp } = timeouts;
        Self {
            tcp_open: tcp_established,
            tcp_opening: tcp_opening.unwrap_or(tcp_transitory),
            tcp_closing: tcp_transitory,
            udp,
            icmp,
        }
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
    pub firewall_rules: Vec<FirewallView>,
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
