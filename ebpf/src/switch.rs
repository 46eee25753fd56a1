//! The maps of the VLAN filter. Their names are what is pinned under `/sys/fs/bpf/telecluster/maps`; keys and values
//! are laid out in `telecluster_common::vlan::maps`.

use core::ptr::NonNull;

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST},
    btf_maps::{Array, HashMap, PerCpuArray, PerCpuHashMap},
    helpers::{bpf_jiffies64, bpf_ktime_get_coarse_ns},
    macros::btf_map,
};
use telecluster_common::vlan::{
    Dropped,
    decision::DecisionRef,
    maps::{
        Decision, FloodKey, MAX_DECISIONS, MAX_MEMBERS, MAX_PORTS, MAX_STATIONS, Member, MemberKey,
        PortConfig, PortStat, Station, StationKey, VlanDrops, VlanStat,
    },
    tables::{StationRef, Switch},
};

use crate::atomic::atomic_add;

/// Only the agent inserts into these, so that nothing has to be allocated while packets pass.
const LAZY: usize = BPF_F_NO_PREALLOC as usize;
const EEXIST: i32 = -17;

#[btf_map(name = "port_cfg")]
pub static PORT_CFG: HashMap<u32, PortConfig, { MAX_PORTS as usize }, LAZY> = HashMap::new();

#[btf_map(name = "vlan_member")]
pub static VLAN_MEMBER: HashMap<MemberKey, Member, { MAX_MEMBERS as usize }, LAZY> = HashMap::new();

/// Every member again, by VLAN and place.
#[btf_map(name = "vlan_flood")]
pub static VLAN_FLOOD: HashMap<FloodKey, u32, { MAX_MEMBERS as usize }, LAZY> = HashMap::new();

#[btf_map(name = "vlan_stat")]
pub static VLAN_STAT: PerCpuArray<VlanStat, { MAX_MEMBERS as usize }> = PerCpuArray::new();

/// Dropped frames of each member.
#[btf_map(name = "vlan_drop")]
pub static VLAN_DROP: PerCpuHashMap<MemberKey, VlanDrops, { MAX_MEMBERS as usize }, LAZY> =
    PerCpuHashMap::new();

#[btf_map(name = "port_stat")]
pub static PORT_STAT: PerCpuHashMap<u32, PortStat, { MAX_PORTS as usize }, LAZY> = PerCpuHashMap::new();

/// Stations learned on each port.
#[btf_map(name = "port_stations")]
pub static PORT_STATIONS: HashMap<u32, u64, { MAX_PORTS as usize }, LAZY> = HashMap::new();

#[btf_map(name = "fdb")]
pub static FDB: HashMap<StationKey, Station, { MAX_STATIONS as usize }> = HashMap::new();

#[btf_map(name = "vlan_decision")]
pub static VLAN_DECISION: PerCpuArray<Decision, { MAX_DECISIONS as usize }> = PerCpuArray::new();

/// A number for each state that decisions were made in: the agent puts the time here, in nanoseconds, we add one.
#[btf_map(name = "vlan_change")]
pub static VLAN_CHANGE: Array<u64, 1> = Array::new();

/// Counted for its VLAN when the port is in that, else for the port: whatever VLANs strangers write into frames, there
/// are no more counters than the agent has made.
#[inline(always)]
pub fn count_drop(port: u32, dropped: Dropped) {
    let Dropped { reason, vlan } = dropped;
    let counters = if let Some(of_vlan) = VLAN_DROP.get_ptr_mut(MemberKey { port, vlan, unused: 0 }) {
        // SAFETY: map memory; no reference is made.
        unsafe { &raw mut (*of_vlan).dropped }
    } else if let Some(of_port) = PORT_STAT.get_ptr_mut(port) {
        // SAFETY: as above.
        unsafe { &raw mut (*of_port).dropped }
    } else {
        return;
    };
    // SAFETY: this CPU's own value; the hooks run with softirqs off, so nothing interrupts the addition. The pointer
    // is to the reason's own counter: an index would have to be checked for the verifier's sake.
    unsafe { *counters.cast::<u64>().add(reason as usize) += 1 }
}

/// Maps and clock of the running kernel.
pub struct Maps;

impl Switch for Maps {
    #[inline(always)]
    fn port(&self, index: u32) -> Option<PortConfig> {
        // SAFETY: read at once; the agent replaces entries whole, and an old one is as good as a new one here.
        unsafe { PORT_CFG.get(index) }.copied()
    }

    #[inline(always)]
    fn member(&self, key: &MemberKey) -> Option<Member> {
        // SAFETY: as above.
        unsafe { VLAN_MEMBER.get(key) }.copied()
    }

    #[inline(always)]
    fn flood(&self, key: &FloodKey) -> Option<u32> {
        // SAFETY: four bytes, read at once.
        unsafe { VLAN_FLOOD.get(key) }.copied()
    }

    #[inline(always)]
    fn station(&self, key: &StationKey) -> Option<StationRef> {
        let station = FDB.get_ptr_mut(key)?;
        // SAFETY: map memory stays mapped while the program runs (RCU), as this station's or as another's.
        NonNull::new(station).map(|station| unsafe { StationRef::new(station) })
    }

    #[inline(always)]
    fn add_station(&self, key: &StationKey, station: &Station) -> bool {
        matches!(FDB.insert(key, station, u64::from(BPF_NOEXIST)), Ok(()) | Err(EEXIST))
    }

    #[inline(always)]
    fn stations_on(&self, port: u32) -> u32 {
        // SAFETY: eight bytes, read at once.
        unsafe { PORT_STATIONS.get(port) }.map_or(0, |count| *count as u32)
    }

    #[inline(always)]
    fn count_station(&self, port: u32, more: bool) {
        if let Some(count) = PORT_STATIONS.get_ptr_mut(port) {
            // SAFETY: map memory, eight bytes aligned.
            unsafe { atomic_add(count, if more { 1 } else { u64::MAX }) }
        }
    }

    #[inline(always)]
    fn count_not_learned(&self, port: u32) {
        if let Some(stat) = PORT_STAT.get_ptr_mut(port) {
            // SAFETY: as in `count_drop`.
            unsafe { (*stat).not_learned += 1 }
        }
    }

    #[inline(always)]
    fn count_rx(&self, stat: u32, packets: u32, bytes: u32) {
        if let Some(stat) = VLAN_STAT.get_ptr_mut(stat) {
            // SAFETY: as in `count_drop`.
            let stat = unsafe { &mut *stat };
            stat.rx_packets += u64::from(packets);
            stat.rx_bytes += u64::from(bytes);
        }
    }

    #[inline(always)]
    fn count_tx(&self, stat: u32, packets: u32, bytes: u32) {
        if let Some(stat) = VLAN_STAT.get_ptr_mut(stat) {
            // SAFETY: as in `count_drop`.
            let stat = unsafe { &mut *stat };
            stat.tx_packets += u64::from(packets);
            stat.tx_bytes += u64::from(bytes);
        }
    }

    #[inline(always)]
    fn changes(&self) -> u64 {
        // SAFETY: eight bytes, aligned; read once, and now.
        VLAN_CHANGE.get_ptr(0).map_or(0, |changes| unsafe { changes.read_volatile() })
    }

    #[inline(always)]
    fn changed(&self) {
        if let Some(changes) = VLAN_CHANGE.get_ptr_mut(0) {
            // SAFETY: map memory, eight bytes aligned.
            unsafe { atomic_add(changes, 1) }
        }
    }

    #[inline(always)]
    fn decision(&self, place: u32) -> Option<DecisionRef> {
        let decision = NonNull::new(VLAN_DECISION.get_ptr_mut(place)?)?;
        // SAFETY: this CPU's own value; the hooks run with softirqs off, so nothing interrupts, and nobody else writes here.
        Some(unsafe { DecisionRef::new(decision) })
    }

    #[inline(always)]
    fn ticks(&self) -> u64 {
        // SAFETY: reads a counter.
        unsafe { bpf_jiffies64() }
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: reads a clock.
        unsafe { bpf_ktime_get_coarse_ns() }
    }
}
