//! Firewall rules: what callers ask for, and what they are shown.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::LinkName;

/// Whose packets: to the host, from it, or through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Chain {
    Input,
    Output,
    Forward,
}

impl Chain {
    pub const ALL: [Self; 3] = [Self::Input, Self::Output, Self::Forward];

    /// As iptables calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Input => "INPUT",
            Self::Output => "OUTPUT",
            Self::Forward => "FORWARD",
        }
    }
}

/// What happens to a packet that a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum FirewallAction {
    Accept,
    Drop,
    Reject,
}

impl FirewallAction {
    /// As iptables calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accept => "ACCEPT",
            Self::Drop => "DROP",
            Self::Reject => "REJECT",
        }
    }
}

/// The protocol of the packets that a rule is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FirewallProtocol {
    All,
    Tcp,
    Udp,
    /// Of IPv4. ICMPv6 is another word, because without it IPv6 itself stops working.
    Icmp,
    Icmpv6,
}

impl FirewallProtocol {
    pub const fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
            Self::Icmpv6 => "icmpv6",
        }
    }
}

/// A firewall rule as it was asked for. `None` matches everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirewallSpec {
    pub chain: Chain,
    pub action: FirewallAction,
    pub protocol: FirewallProtocol,
    #[serde(default)]
    pub source: Option<IpNet>,
    #[serde(default)]
    pub destination: Option<IpNet>,
    /// Destination port.
    #[serde(default)]
    pub port: Option<u16>,
    /// Where packets come in; for OUTPUT, where they leave.
    #[serde(default)]
    pub interface: Option<LinkName>,
    #[serde(default)]
    pub description: Option<String>,
}

impl FirewallSpec {
    /// Whether the rule is for IPv4 packets, and whether it is for IPv6 ones.
    pub fn families(&self) -> (bool, bool) {
        let address = self.source.or(self.destination);
        match (address, self.protocol) {
            (Some(IpNet::V4(_)), _) | (None, FirewallProtocol::Icmp) => (true, false),
            (Some(IpNet::V6(_)), _) | (None, FirewallProtocol::Icmpv6) => (false, true),
            (None, FirewallProtocol::All | FirewallProtocol::Tcp | FirewallProtocol::Udp) => (true, true),
        }
    }
}

/// A firewall rule with what it has matched so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FirewallView {
    pub id: String,
    pub chain: Chain,
    pub action: FirewallAction,
    /// all, tcp, udp, icmp or icmpv6.
    pub protocol: String,
    /// CIDR form; null when any.
    pub source_ip: Option<String>,
    /// Always null: rules match the destination's port.
    #[schema(value_type = Option<u16>)]
    pub source_port: (),
    /// CIDR form; null when any.
    pub dest_ip: Option<String>,
    pub dest_port: Option<u16>,
    pub interface: Option<String>,
    /// Always true.
    pub enabled: bool,
    /// The kernel has it; false when someone has flushed the worker's chains.
    pub installed: bool,
    pub description: Option<String>,
    pub packets: u64,
    pub bytes: u64,
    /// Always 0: a filter keeps no flows.
    pub active_flows: u64,
    /// Always `iptables`.
    pub backend: String,
}
