//! VLANs on the ports of bridges: what callers ask for, what they are shown.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{LinkName, VlanProtocol};
use crate::kernel::links::Mac;

/// Which frames a port lets in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Accept {
    #[default]
    All,
    /// Only with a VLAN tag.
    Tagged,
    /// Only without one, or with a priority tag.
    Untagged,
}

/// The VLANs of a port of a bridge, as they were asked for. The port may be the bridge itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortVlans {
    pub port: String,
    pub bridge: LinkName,
    /// VLAN of frames without a tag.
    #[serde(default)]
    pub native: Option<u16>,
    #[serde(default)]
    pub tagged: BTreeSet<u16>,
    #[serde(flatten)]
    pub options: PortOptions,
    #[serde(default)]
    pub stations: BTreeSet<FixedStation>,
}

impl PortVlans {
    /// Every VLAN of the port.
    pub fn all(&self) -> BTreeSet<u16> {
        self.tagged.iter().copied().chain(self.native).collect()
    }
}

/// How a port treats tags.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortOptions {
    #[serde(default)]
    pub accept: Accept,
    #[serde(default)]
    pub protocol: VlanProtocol,
    /// Whatever comes in is payload of the native VLAN, tags and all (QinQ).
    #[serde(default)]
    pub tunnel: bool,
    /// Whether the payload may begin with another tag. `None`: on ports with tagged VLANs only.
    #[serde(default)]
    pub nested: Option<bool>,
    /// Stations that may be learned; 0: no limit. `None`: the default.
    #[serde(default)]
    pub station_limit: Option<u32>,
}

/// A change to the VLANs of a port: what is not said stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortVlansChange {
    pub native: Option<u16>,
    pub tagged: BTreeSet<u16>,
    pub accept: Option<Accept>,
    pub protocol: Option<VlanProtocol>,
    pub tunnel: Option<bool>,
    pub nested: Option<bool>,
    pub station_limit: Option<u32>,
}

/// A station that is at a port whatever frames say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FixedStation {
    pub vlan: u16,
    pub mac: Mac,
}

/// One VLAN of one port, as the kernel's maps have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct BridgeVlanView {
    pub bridge_name: String,
    /// The bridge's own name: the host's side.
    pub port_name: String,
    pub vlan_id: u16,
    /// Its frames leave with a tag. False: it is the VLAN of frames without one.
    pub tagged: bool,
}

/// A port with all its VLANs, as the kernel's maps have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct PortVlansView {
    pub bridge_name: String,
    pub port_name: String,
    /// VLAN of frames without a tag.
    pub native_vlan: Option<u16>,
    pub tagged_vlans: Vec<u16>,
    pub accept: Accept,
    pub protocol: VlanProtocol,
    pub tunnel: bool,
    pub nested: bool,
    /// 0: no limit.
    pub station_limit: u32,
    /// Spanning tree and the worker let it forward.
    pub forwarding: bool,
}

/// A station of a bridge with VLANs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct StationView {
    pub bridge_name: String,
    pub vlan_id: u16,
    pub mac_address: String,
    pub port_name: String,
    /// Neither ages nor moves: the bridge's own address.
    #[serde(rename = "static")]
    pub fixed: bool,
    /// Seconds since its last frame.
    pub idle: u64,
}
