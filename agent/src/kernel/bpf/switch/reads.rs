//! Counters and stations out of the maps, and what is forgotten of them with time.

use std::{collections::BTreeMap, time::Duration};

use nix::time::{ClockId, clock_gettime};
use telecluster_common::vlan::{
    VlanDrop,
    maps::{Member, MemberKey, VlanStat, station},
};

use super::{
    super::{Plain, failed},
    Result, SwitchMaps,
};
use crate::kernel::{
    KernelError,
    links::Mac,
    switch::{DropCount, PortDrops, Station, VlanCounters},
};

impl SwitchMaps {
    pub(in crate::kernel::bpf) fn vlan_counters(&self) -> Result<Vec<VlanCounters>> {
        let counters = |(&(port, vlan), member): (&(u32, u16), &Member)| {
            let values = self
                .vlan_stats
                .get(&member.stat, 0)
                .map_err(|error| failed(format!("read the counters of port {port}"), &error))?;
            let mut sum = VlanCounters { port, vlan, rx_packets: 0, rx_bytes: 0, tx_packets: 0, tx_bytes: 0 };
            for Plain(VlanStat { rx_packets, rx_bytes, tx_packets, tx_bytes }) in values.iter() {
                sum.rx_packets += rx_packets;
                sum.rx_bytes += rx_bytes;
                sum.tx_packets += tx_packets;
                sum.tx_bytes += tx_bytes;
            }
            Ok(sum)
        };
        self.held.members.iter().map(counters).collect()
    }

    pub(in crate::kernel::bpf) fn drops(&self) -> Result<Vec<PortDrops>> {
        let drops = |&port: &u32| {
            let values = self
                .port_stats
                .get(&port, 0)
                .map_err(|error| failed(format!("read the drops of port {port}"), &error))?;
            let sum = |reason: VlanDrop| values.iter().map(|Plain(stat)| stat.dropped[reason as usize]).sum();
            let mut dropped =
                VlanDrop::ALL.map(|reason| DropCount { vlan: None, reason, count: sum(reason) }).to_vec();
            for vlan in self.held.vlans_of(port) {
                dropped.extend(self.drops_in(port, vlan)?);
            }
            Ok(PortDrops {
                port,
                dropped,
                not_learned: values.iter().map(|Plain(stat)| stat.not_learned).sum(),
            })
        };
        self.held.configs.keys().map(drops).collect()
    }

    /// What has happened, and nothing else: a port may be in many VLANs.
    fn drops_in(&self, port: u32, vlan: u16) -> Result<Vec<DropCount>> {
        let values = self
            .vlan_drops
            .get(&Plain(MemberKey { port, vlan, unused: 0 }), 0)
            .map_err(|error| failed(format!("read the drops of port {port} in VLAN {vlan}"), &error))?;
        let sum = |reason: VlanDrop| values.iter().map(|Plain(drops)| drops.dropped[reason as usize]).sum();
        let counts = VlanDrop::ALL.into_iter().map(|reason| DropCount {
            vlan: Some(vlan),
            reason,
            count: sum(reason),
        });
        Ok(counts.filter(|drops| drops.count != 0).collect())
    }

    pub(in crate::kernel::bpf) fn stations(&self) -> Result<Vec<Station>> {
        let now = now()?;
        let mut found = Vec::new();
        self.for_each_station(|key, record| {
            let fixed = record.flags & station::STATIC != 0;
            let idle = now.saturating_sub(record.updated);
            if fixed || idle <= self.held.memory(record.port) {
                found.push(Station {
                    bridge: key.bridge,
                    vlan: key.vlan,
                    mac: Mac(key.mac),
                    port: record.port,
                    fixed,
                    idle: if fixed { Duration::ZERO } else { Duration::from_nanos(idle) },
                });
            }
        })?;
        found.sort_unstable_by_key(|station| (station.bridge, station.vlan, station.mac));
        Ok(found)
    }

    /// Frees what has aged, and counts the rest anew: the programs' own counting is only nearly exact.
    pub(in crate::kernel::bpf) fn age(&mut self) -> Result<usize> {
        let now = now()?;
        let memories: BTreeMap<u32, u64> =
            self.held.configs.iter().map(|(port, config)| (*port, config.memory())).collect();
        let freed = self.forget_learned(|_, record| {
            // Of a port that is gone nothing is remembered.
            let memory = memories.get(&record.port).copied().unwrap_or(0);
            now.saturating_sub(record.updated) > memory
        })?;
        let mut counts: BTreeMap<u32, u64> = self.held.configs.keys().map(|port| (*port, 0)).collect();
        self.for_each_station(|_, record| {
            if record.flags & station::STATIC == 0
                && let Some(count) = counts.get_mut(&record.port)
            {
                *count += 1;
            }
        })?;
        for (port, count) in counts {
            self.counts
                .insert(port, count, 0)
                .map_err(|error| failed(format!("count the stations of port {port}"), &error))?;
        }
        Ok(freed)
    }
}

/// The clock of the programs.
pub(super) fn now() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_err(|errno| KernelError::errno("read the clock", errno as i32))?;
    Ok(Duration::from(now).as_nanos().try_into().unwrap_or(u64::MAX))
}
