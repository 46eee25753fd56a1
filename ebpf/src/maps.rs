//! The maps. Their names are what is pinned under `/sys/fs/bpf/telecluster/maps`; keys and values are laid out in
//! `telecluster_common::maps`. The agent sets the sizes of the flow tables when it loads.

use aya_ebpf::{
    btf_maps::{Array, DevMapHash, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray},
    macros::btf_map,
};
use telecluster_common::{
    drop::DropReason,
    maps::{
        Binding, EndpointKey, Epoch, FORWARDED, Flow, FlowKey, Forward, ForwardKey, FragmentKey, Fragmented,
        HOPS, Hop, Local, MAX_BLOCKS, MAX_FRAGMENTED, MAX_PACED, MAX_PAIRS, MAX_PLACED, MAX_POOLED,
        MAX_PORTS, MAX_RULES, MAX_WAITING_ROOMS, Masquerade, MasqueradeKey, Moved, Opening, PaceKey, Pair,
        PairKey, PlaceKey, PlacedPort, PoolKey, Port, Range, RangeKey, Rule, RuleStat, SourceKey, Uplink,
        stage, xdp_stage,
    },
    nat::work::Work,
};

type A4 = [u8; 4];
type A6 = [u8; 16];

/// Twice as many forwards as rules: `all` is tcp and udp.
const FORWARDS: usize = 2 * MAX_RULES as usize;
const RULES: usize = MAX_RULES as usize;
const BLOCKS: usize = MAX_BLOCKS as usize;
const UPLINKS: usize = 256;
const ADDRESSES: usize = 4096;

#[btf_map(name = "flow4")]
pub static FLOW4: HashMap<FlowKey<A4>, Flow<A4>, 1024> = HashMap::new();

#[btf_map(name = "flow6")]
pub static FLOW6: HashMap<FlowKey<A6>, Flow<A6>, 1024> = HashMap::new();

/// Keys of flows that nobody has proven yet, in the order in which they came.
#[btf_map(name = "half4")]
pub static HALF4: PerCpuArray<FlowKey<A4>, 1024> = PerCpuArray::new();

#[btf_map(name = "half6")]
pub static HALF6: PerCpuArray<FlowKey<A6>, 1024> = PerCpuArray::new();

/// Where the next one goes: `half4`, `half6`.
#[btf_map(name = "half_next")]
pub static HALF_NEXT: PerCpuArray<u32, 2> = PerCpuArray::new();

/// External ports, and whose they are.
#[btf_map(name = "binding4")]
pub static BINDING4: HashMap<EndpointKey<A4>, Binding<A4>, 1024> = HashMap::new();

#[btf_map(name = "binding6")]
pub static BINDING6: HashMap<EndpointKey<A6>, Binding<A6>, 1024> = HashMap::new();

/// Inside sockets whose external port is not their own.
#[btf_map(name = "moved4")]
pub static MOVED4: HashMap<EndpointKey<A4>, Moved<A4>, 1024> = HashMap::new();

#[btf_map(name = "moved6")]
pub static MOVED6: HashMap<EndpointKey<A6>, Moved<A6>, 1024> = HashMap::new();

#[btf_map(name = "work4")]
pub static WORK4: PerCpuArray<Work<A4>, 1> = PerCpuArray::new();

#[btf_map(name = "work6")]
pub static WORK6: PerCpuArray<Work<A6>, 1> = PerCpuArray::new();

/// What the first parts of packets have said.
#[btf_map(name = "fragment4")]
pub static FRAGMENT4: LruHashMap<FragmentKey<A4>, Fragmented, { MAX_FRAGMENTED as usize }> =
    LruHashMap::new();

#[btf_map(name = "fragment6")]
pub static FRAGMENT6: LruHashMap<FragmentKey<A6>, Fragmented, { MAX_FRAGMENTED as usize }> =
    LruHashMap::new();

/// When who may make another flow.
#[btf_map(name = "pace4")]
pub static PACE4: LruHashMap<PaceKey<A4>, u64, { MAX_PACED as usize }> = LruHashMap::new();

#[btf_map(name = "pace6")]
pub static PACE6: LruHashMap<PaceKey<A6>, u64, { MAX_PACED as usize }> = LruHashMap::new();

/// The external ports of inside hosts that may not have as many as they like.
#[btf_map(name = "placed4")]
pub static PLACED4: LruHashMap<PlaceKey<A4>, PlacedPort, { MAX_PLACED as usize }> = LruHashMap::new();

#[btf_map(name = "placed6")]
pub static PLACED6: LruHashMap<PlaceKey<A6>, PlacedPort, { MAX_PLACED as usize }> = LruHashMap::new();

/// Of an uplink, the interface through which parts go that have to wait for their first one; of the interface where they
/// come out again, the uplink.
#[btf_map(name = "waiting_room")]
pub static WAITING_ROOM: HashMap<u32, u32, { MAX_WAITING_ROOMS as usize }> = HashMap::new();

#[btf_map(name = "forward4")]
pub static FORWARD4: HashMap<ForwardKey<A4>, Forward<A4>, FORWARDS> = HashMap::new();

#[btf_map(name = "forward6")]
pub static FORWARD6: HashMap<ForwardKey<A6>, Forward<A6>, FORWARDS> = HashMap::new();

/// Which ports any forward has.
#[btf_map(name = "forwarded4")]
pub static FORWARDED4: Array<u64, { FORWARDED as usize }> = Array::new();

#[btf_map(name = "forwarded6")]
pub static FORWARDED6: Array<u64, { FORWARDED as usize }> = Array::new();

#[btf_map(name = "range4")]
pub static RANGE4: LpmTrie<RangeKey<A4>, Range<A4>, BLOCKS> = LpmTrie::new();

#[btf_map(name = "range6")]
pub static RANGE6: LpmTrie<RangeKey<A6>, Range<A6>, BLOCKS> = LpmTrie::new();

#[btf_map(name = "source4")]
pub static SOURCE4: LpmTrie<SourceKey<A4>, u32, BLOCKS> = LpmTrie::new();

#[btf_map(name = "source6")]
pub static SOURCE6: LpmTrie<SourceKey<A6>, u32, BLOCKS> = LpmTrie::new();

#[btf_map(name = "masquerade4")]
pub static MASQUERADE4: LpmTrie<MasqueradeKey<A4>, Masquerade, RULES> = LpmTrie::new();

#[btf_map(name = "masquerade6")]
pub static MASQUERADE6: LpmTrie<MasqueradeKey<A6>, Masquerade, RULES> = LpmTrie::new();

#[btf_map(name = "uplink4")]
pub static UPLINK4: HashMap<u32, Uplink<A4>, UPLINKS> = HashMap::new();

#[btf_map(name = "uplink6")]
pub static UPLINK6: HashMap<u32, Uplink<A6>, UPLINKS> = HashMap::new();

/// The host's own addresses, and those of pools.
#[btf_map(name = "local4")]
pub static LOCAL4: HashMap<A4, Local, ADDRESSES> = HashMap::new();

#[btf_map(name = "local6")]
pub static LOCAL6: HashMap<A6, Local, ADDRESSES> = HashMap::new();

/// Addresses that masquerades translate to which have several.
#[btf_map(name = "pool4")]
pub static POOL4: HashMap<PoolKey, A4, { MAX_POOLED as usize }> = HashMap::new();

#[btf_map(name = "pool6")]
pub static POOL6: HashMap<PoolKey, A6, { MAX_POOLED as usize }> = HashMap::new();

/// What only the first packet of a flow asks of a rule.
#[btf_map(name = "opening")]
pub static OPENING: Array<Opening, RULES> = Array::new();

#[btf_map(name = "rule")]
pub static RULE: Array<Rule, RULES> = Array::new();

#[btf_map(name = "rule_stat")]
pub static RULE_STAT: PerCpuArray<RuleStat, RULES> = PerCpuArray::new();

#[btf_map(name = "epoch")]
pub static EPOCH: Array<Epoch, 1> = Array::new();

#[btf_map(name = "hop")]
pub static HOP: Array<Hop, { HOPS as usize }> = Array::new();

/// Hosts between which packets have been forwarded lately.
#[btf_map(name = "pair4")]
pub static PAIR4: LruHashMap<PairKey<A4>, Pair, { MAX_PAIRS as usize }> = LruHashMap::new();

#[btf_map(name = "pair6")]
pub static PAIR6: LruHashMap<PairKey<A6>, Pair, { MAX_PAIRS as usize }> = LruHashMap::new();

#[btf_map(name = "port")]
pub static PORT: HashMap<u32, Port, { MAX_PORTS as usize }> = HashMap::new();

/// Dropped packets by [`DropReason`].
#[btf_map(name = "drop_stat")]
pub static DROP_STAT: PerCpuArray<u64, { DropReason::COUNT as usize }> = PerCpuArray::new();

/// Programs that those on the hooks go on to, by [`stage`].
#[btf_map(name = "stage")]
pub static STAGE: ProgramArray<{ stage::COUNT as usize }> = ProgramArray::new();

/// The same for those on the hooks of drivers, by [`xdp_stage`]: the two kinds do not mix.
#[btf_map(name = "xdp_stage")]
pub static XDP_STAGE: ProgramArray<{ xdp_stage::COUNT as usize }> = ProgramArray::new();

/// Interfaces that our programs are in the drivers of: between them packets are sent there.
#[btf_map(name = "xdp_port")]
pub static XDP_PORT: DevMapHash<{ MAX_PORTS as usize }> = DevMapHash::new();

/// Packets sent there.
#[btf_map(name = "xdp_stat")]
pub static XDP_STAT: PerCpuArray<u64, 1> = PerCpuArray::new();

#[inline(always)]
pub fn count_drop(reason: DropReason) {
    if let Some(count) = DROP_STAT.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's own slot; the hooks run with softirqs off, so nothing interrupts the addition.
        unsafe { *count += 1 }
    }
}
