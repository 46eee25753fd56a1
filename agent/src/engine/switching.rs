//! What callers are shown of VLANs on bridge ports: as the kernel's maps have it.

use std::collections::BTreeMap;

use super::{Engine, Shared};
use crate::{
    error::Result,
    kernel::{
        links::{Mac, Observed, Place},
        switch::{DropCount, SwitchPort, VlanCounters},
    },
    kinds::{bridge_vlan, ovs_vlan},
    model::bridge_vlan::{BridgeVlanView, PortVlansView, StationView},
};

/// Which stations are asked for. `None` matches everything.
#[derive(Debug, Clone, Default)]
pub struct StationQuery {
    pub bridge: Option<String>,
    pub port: Option<String>,
    pub vlan: Option<u16>,
    pub mac: Option<Mac>,
}

/// What the VLAN filter has counted, by name.
#[derive(Debug, Clone, Default)]
pub struct Switching {
    pub vlans: Vec<(PortLabel, VlanCounters)>,
    pub drops: Vec<(PortLabel, Vec<DropCount>)>,
    /// Frames whose sender could not be learned.
    pub not_learned: Vec<(PortLabel, u64)>,
    /// Learned and fixed ones.
    pub stations: Vec<(PortLabel, u64)>,
}

/// A port and its bridge.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortLabel {
    pub bridge: String,
    pub port: String,
}

impl Engine {
    pub async fn bridge_vlans(&self) -> Result<Vec<BridgeVlanView>> {
        let observed = self.shared.observe().await?;
        let mut rows = bridge_vlan::list(&self.shared.switch_ports().await?, &observed);
        rows.extend(ovs_vlan::list(&observed));
        Ok(rows)
    }

    pub async fn switch_ports(&self) -> Result<Vec<PortVlansView>> {
        let observed = self.shared.observe().await?;
        bridge_vlan::views(&self.shared.switch_ports().await?, &observed)
    }

    pub async fn stations(&self, query: &StationQuery) -> Result<Vec<StationView>> {
        let StationQuery { bridge, port, vlan, mac } = query;
        let found = self.shared.blocking(|dataplane| dataplane.stations()).await?;
        let observed = self.shared.observe().await?;
        let by_number = found.iter().filter(|station| {
            vlan.is_none_or(|vlan| station.vlan == vlan) && mac.is_none_or(|mac| station.mac == mac)
        });
        let named = by_number.filter_map(|station| bridge_vlan::station_view(station, &observed));
        let matches = |asked: &Option<String>, name: &str| asked.as_ref().is_none_or(|asked| asked == name);
        Ok(named
            .filter(|view| matches(bridge, &view.bridge_name) && matches(port, &view.port_name))
            .collect())
    }
}

impl Shared {
    pub(super) async fn switch_ports(&self) -> Result<BTreeMap<u32, SwitchPort>> {
        self.blocking(|dataplane| dataplane.switch_ports()).await
    }

    pub(super) async fn switching(&self, observed: &Observed) -> Result<Switching> {
        let (ports, counters, drops, stations) = self
            .blocking(|plane| {
                Ok((plane.switch_ports()?, plane.vlan_counters()?, plane.port_drops()?, plane.stations()?))
            })
            .await?;
        let name = |index: u32| observed.by_index(&Place::Here, index).map(|link| link.name.clone());
        let label = |index: &u32| {
            let bridge = name(ports.get(index)?.bridge)?;
            Some(PortLabel { bridge, port: name(*index)? })
        };
        let mut count: BTreeMap<u32, u64> = ports.keys().map(|index| (*index, 0)).collect();
        for station in stations {
            *count.entry(station.port).or_default() += 1;
        }
        Ok(Switching {
            vlans: counters
                .into_iter()
                .filter_map(|counters| Some((label(&counters.port)?, counters)))
                .collect(),
            not_learned: drops
                .iter()
                .filter_map(|drops| Some((label(&drops.port)?, drops.not_learned)))
                .collect(),
            drops: drops.into_iter().filter_map(|drops| Some((label(&drops.port)?, drops.dropped))).collect(),
            stations: count.into_iter().filter_map(|(index, count)| Some((label(&index)?, count))).collect(),
        })
    }
}
