//! VLANs on the ports of bridges, as the rest of the agent sees them: ports with their VLANs, counters, stations.
//!
//! `kernel::bpf` does it with programs and maps, `kernel::fake` in memory. Nothing here knows aya.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use telecluster_common::vlan::VlanDrop;

use super::{KernelError, links::Mac, xdp::Door};
use crate::model::{VlanProtocol, bridge_vlan::Accept};

/// A port of a bridge that has VLANs, or such a bridge itself: interfaces by index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwitchPort {
    pub index: u32,
    /// Its own index when it is the bridge itself: the host's side.
    pub bridge: u32,
    /// VLAN of frames without a tag. With no tagged VLAN either, the port is left to the kernel's bridge.
    pub native: Option<u16>,
    pub tagged: BTreeSet<u16>,
    pub accept: Accept,
    pub protocol: VlanProtocol,
    pub tunnel: bool,
    pub nested: bool,
    pub forwarding: bool,
    pub learning: bool,
    pub isolated: bool,
    pub hairpin: bool,
    /// The bridge runs spanning tree.
    pub stp: bool,
    pub mtu: u32,
    /// 0: none.
    pub station_limit: u32,
    /// Milliseconds for which a silent station is remembered: the bridge's ageing time.
    pub ageing: u32,
    /// Stations that are here whatever frames say: VLAN and address.
    pub stations: BTreeSet<(u16, Mac)>,
}

impl SwitchPort {
    pub fn is_host(&self) -> bool {
        self.index == self.bridge
    }

    /// Every VLAN that it is in, and whether its frames leave without a tag.
    pub fn vlans(&self) -> BTreeMap<u16, bool> {
        let tagged = self.tagged.iter().map(|vlan| (*vlan, false));
        // Last, so that the native VLAN is untagged whatever else was said.
        tagged.chain(self.native.map(|vlan| (vlan, true))).collect()
    }
}

/// What has passed a port in one of its VLANs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VlanCounters {
    pub port: u32,
    pub vlan: u16,
    /// From the port into the bridge.
    pub rx_packets: u64,
    pub rx_bytes: u64,
    /// From the bridge out of the port.
    pub tx_packets: u64,
    pub tx_bytes: u64,
}

/// What was dropped on a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortDrops {
    pub port: u32,
    pub dropped: Vec<DropCount>,
    /// Frames whose sender could not be learned.
    pub not_learned: u64,
}

/// How many frames were dropped for a reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DropCount {
    /// A VLAN that the port is in, reasons that never happened left out; `None`: frames of no such VLAN, every reason.
    pub vlan: Option<u16>,
    pub reason: VlanDrop,
    pub count: u64,
}

/// A station, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Station {
    pub bridge: u32,
    pub vlan: u16,
    pub mac: Mac,
    pub port: u32,
    /// Neither ages nor moves.
    pub fixed: bool,
    /// Since its last frame, to the second.
    pub idle: Duration,
}

/// The VLAN filter. Calls are short and may block; every call either happens whole or changes nothing.
pub trait VlanPlane: Send + Sync + std::fmt::Debug {
    /// Makes a port what it shall be, programs attached. It may be on its way into the bridge: the programs are there
    /// when this returns.
    fn put_switch_port(&self, port: &SwitchPort) -> Result<(), KernelError>;

    /// All ports, as they shall be, before each of them is put: where the kernel filters bridges as a whole, and to put right
    /// what others have changed there.
    fn bring_in_line(&self, _ports: &BTreeMap<u32, SwitchPort>) -> Result<(), KernelError> {
        Ok(())
    }

    /// Takes the programs off a port, and forgets it and its stations. Nothing happens when it is not there.
    fn remove_switch_port(&self, index: u32) -> Result<(), KernelError>;

    /// Says which ports there are, by index, and what matters of them in their drivers, where frames may be switched too. What cannot be
    /// had there is no error.
    fn set_doors(&self, _doors: &BTreeMap<u32, Door>) {}

    /// Every port as the kernel has it, by index.
    fn switch_ports(&self) -> Result<BTreeMap<u32, SwitchPort>, KernelError>;

    fn vlan_counters(&self) -> Result<Vec<VlanCounters>, KernelError>;

    fn port_drops(&self) -> Result<Vec<PortDrops>, KernelError>;

    /// Every station that is not forgotten yet.
    fn stations(&self) -> Result<Vec<Station>, KernelError>;

    /// Frees what has aged; returns how many stations.
    fn age_stations(&self) -> Result<usize, KernelError>;
}
