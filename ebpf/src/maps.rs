//! The maps. Their names are what is pinned under `/sys/fs/bpf/telecluster/maps`; keys and values are laid out in
//! `telecluster_common::maps`. The agent sets the sizes of the flow tables when it loads.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray},
    macros::btf_map,
};
use telecluster_common::{
    drop::DropReason,
    maps::{
        Flow, FlowKey, Forward, ForwardKey, MAX_RULES, Masquerade, MasqueradeKey, Rule, RuleStat, Uplink,
    },
};

/// Twice as many forwards as rules: `all` is tcp and udp.
const FORWARDS: usize = 2 * MAX_RULES as usize;
const UPLINKS: usize = 256;
const ADDRESSES: usize = 4096;

/// Flows that were answered.
#[btf_map(name = "flow4")]
pub static FLOW4: HashMap<FlowKey, Flow, 1024> = HashMap::new();

/// Flows that nobody has answered yet.
#[btf_map(name = "half4")]
pub static HALF4: LruHashMap<FlowKey, Flow, 1024> = LruHashMap::new();

#[btf_map(name = "forward4")]
pub static FORWARD4: HashMap<ForwardKey, Forward, FORWARDS> = HashMap::new();

#[btf_map(name = "masquerade4")]
pub static MASQUERADE4: LpmTrie<MasqueradeKey, Masquerade, { MAX_RULES as usize }> = LpmTrie::new();

#[btf_map(name = "uplink4")]
pub static UPLINK4: HashMap<u32, Uplink, UPLINKS> = HashMap::new();

/// The host's own addresses; the value means nothing.
#[btf_map(name = "local4")]
pub static LOCAL4: HashMap<[u8; 4], u32, ADDRESSES> = HashMap::new();

#[btf_map(name = "rule")]
pub static RULE: Array<Rule, { MAX_RULES as usize }> = Array::new();

#[btf_map(name = "rule_stat")]
pub static RULE_STAT: PerCpuArray<RuleStat, { MAX_RULES as usize }> = PerCpuArray::new();

/// Dropped packets by [`DropReason`].
#[btf_map(name = "drop_stat")]
pub static DROP_STAT: PerCpuArray<u64, { DropReason::COUNT as usize }> = PerCpuArray::new();

#[inline(always)]
pub fn count_drop(reason: DropReason) {
    if let Some(count) = DROP_STAT.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's own slot; the hooks run with softirqs off, so nothing interrupts the addition.
        unsafe { *count += 1 }
    }
}
