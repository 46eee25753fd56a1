//! Links: bridges, pairs, TUNs, VLAN links, what carries the host's addresses; and how they are shown.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{LinkName, NamespaceName, roles::Role};
use crate::kernel::links::Mac;

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
