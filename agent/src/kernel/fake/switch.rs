//! The VLAN filter in memory.

use std::collections::BTreeMap;

use telecluster_common::vlan::VlanDrop;

use super::{FakeDataPlane, lock};
use crate::kernel::{
    KernelError,
    switch::{DropCount, PortDrops, Station, SwitchPort, VlanCounters, VlanPlane},
};

impl VlanPlane for FakeDataPlane {
    fn put_switch_port(&self, port: &SwitchPort) -> Result<(), KernelError> {
        self.faults.step(&format!("put switch port {}", port.index))?;
        lock(&self.switch).insert(port.index, port.clone());
        Ok(())
    }

    fn remove_switch_port(&self, index: u32) -> Result<(), KernelError> {
        self.faults.step(&format!("remove switch port {index}"))?;
        lock(&self.switch).remove(&index);
        Ok(())
    }

    fn switch_ports(&self) -> Result<BTreeMap<u32, SwitchPort>, KernelError> {
        Ok(lock(&self.switch).clone())
    }

    fn vlan_counters(&self) -> Result<Vec<VlanCounters>, KernelError> {
        let counters = |port: u32, vlan: u16| VlanCounters {
            port,
            vlan,
            rx_packets: 0,
            rx_bytes: 0,
            tx_packets: 0,
            tx_bytes: 0,
        };
        let ports = lock(&self.switch);
        Ok(ports
            .values()
            .flat_map(|port| port.vlans().into_keys().map(|vlan| counters(port.index, vlan)))
            .collect())
    }

    fn port_drops(&self) -> Result<Vec<PortDrops>, KernelError> {
        let none = |port: &u32| PortDrops {
            port: *port,
            dropped: VlanDrop::ALL.map(|reason| DropCount { vlan: None, reason, count: 0 }).to_vec(),
            not_learned: 0,
        };
        Ok(lock(&self.switch).keys().map(none).collect())
    }

    /// The fixed ones: nobody sends a frame here.
    fn stations(&self) -> Result<Vec<Station>, KernelError> {
        let ports = lock(&self.switch);
        Ok(ports
            .values()
            .flat_map(|port| {
                port.stations.iter().map(|(vlan, mac)| Station {
                    bridge: port.bridge,
                    vlan: *vlan,
                    mac: *mac,
                    port: port.index,
                    fixed: true,
                    idle: std::time::Duration::ZERO,
                })
            })
            .collect())
    }

    fn age_stations(&self) -> Result<usize, KernelError> {
        Ok(0)
    }
}
