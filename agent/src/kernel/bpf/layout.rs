//! What the pinned maps must look like, so that they may be taken over.

use std::path::Path;

use aya::maps::{MapData, MapInfo, MapType};
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

use super::{failed, object::MESSAGES, shape};
use crate::kernel::KernelError;

/// Of each map whose key and value BTF describes, their fields, as `build.rs` found them in the object.
const FIELDS: &[(&str, shape::Fields)] = include!(concat!(env!("OUT_DIR"), "/fields.rs"));

const MESSAGES_SIZE: u32 = 128 << 10;

/// What a pinned map must look like to be ours.
pub(super) struct Layout {
    pub(super) name: &'static str,
    kind: MapType,
    key: usize,
    value: usize,
    pub(super) entries: Entries,
}

/// How many entries a map has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Entries {
    Fixed(u32),
    /// Both directions of as many flows as the operator wants.
    Flows,
    /// As many as flows.
    Bindings,
    /// A part of the flows, on each CPU.
    Unproven,
}

type A4 = [u8; 4];
type A6 = [u8; 16];

pub(super) const LAYOUTS: [Layout; 48] = [
    layout::<FlowKey<A4>, Flow<A4>>("flow4", MapType::Hash, Entries::Flows),
    layout::<FlowKey<A6>, Flow<A6>>("flow6", MapType::Hash, Entries::Flows),
    layout::<EndpointKey<A4>, Binding<A4>>("binding4", MapType::Hash, Entries::Bindings),
    layout::<EndpointKey<A6>, Binding<A6>>("binding6", MapType::Hash, Entries::Bindings),
    layout::<EndpointKey<A4>, Moved<A4>>("moved4", MapType::Hash, Entries::Bindings),
    layout::<EndpointKey<A6>, Moved<A6>>("moved6", MapType::Hash, Entries::Bindings),
    layout::<u32, FlowKey<A4>>("half4", MapType::PerCpuArray, Entries::Unproven),
    layout::<u32, FlowKey<A6>>("half6", MapType::PerCpuArray, Entries::Unproven),
    layout::<u32, u32>("half_next", MapType::PerCpuArray, Entries::Fixed(2)),
    layout::<u32, Work<A4>>("work4", MapType::PerCpuArray, Entries::Fixed(1)),
    layout::<u32, Work<A6>>("work6", MapType::PerCpuArray, Entries::Fixed(1)),
    layout::<FragmentKey<A4>, Fragmented>("fragment4", MapType::LruHash, Entries::Fixed(MAX_FRAGMENTED)),
    layout::<FragmentKey<A6>, Fragmented>("fragment6", MapType::LruHash, Entries::Fixed(MAX_FRAGMENTED)),
    layout::<PaceKey<A4>, u64>("pace4", MapType::LruHash, Entries::Fixed(MAX_PACED)),
    layout::<PaceKey<A6>, u64>("pace6", MapType::LruHash, Entries::Fixed(MAX_PACED)),
    layout::<PlaceKey<A4>, PlacedPort>("placed4", MapType::LruHash, Entries::Fixed(MAX_PLACED)),
    layout::<PlaceKey<A6>, PlacedPort>("placed6", MapType::LruHash, Entries::Fixed(MAX_PLACED)),
    layout::<u32, u32>("waiting_room", MapType::Hash, Entries::Fixed(MAX_WAITING_ROOMS)),
    layout::<ForwardKey<A4>, Forward<A4>>("forward4", MapType::Hash, Entries::Fixed(2 * MAX_RULES)),
    layout::<ForwardKey<A6>, Forward<A6>>("forward6", MapType::Hash, Entries::Fixed(2 * MAX_RULES)),
    layout::<u32, u64>("forwarded4", MapType::Array, Entries::Fixed(FORWARDED)),
    layout::<u32, u64>("forwarded6", MapType::Array, Entries::Fixed(FORWARDED)),
    layout::<(u32, RangeKey<A4>), Range<A4>>("range4", MapType::LpmTrie, Entries::Fixed(MAX_BLOCKS)),
    layout::<(u32, RangeKey<A6>), Range<A6>>("range6", MapType::LpmTrie, Entries::Fixed(MAX_BLOCKS)),
    layout::<(u32, SourceKey<A4>), u32>("source4", MapType::LpmTrie, Entries::Fixed(MAX_BLOCKS)),
    layout::<(u32, SourceKey<A6>), u32>("source6", MapType::LpmTrie, Entries::Fixed(MAX_BLOCKS)),
    layout::<(u32, MasqueradeKey<A4>), Masquerade>(
        "masquerade4",
        MapType::LpmTrie,
        Entries::Fixed(MAX_RULES),
    ),
    layout::<(u32, MasqueradeKey<A6>), Masquerade>(
        "masquerade6",
        MapType::LpmTrie,
        Entries::Fixed(MAX_RULES),
    ),
    layout::<u32, Uplink<A4>>("uplink4", MapType::Hash, Entries::Fixed(256)),
    layout::<u32, Uplink<A6>>("uplink6", MapType::Hash, Entries::Fixed(256)),
    layout::<A4, Local>("local4", MapType::Hash, Entries::Fixed(4096)),
    layout::<A6, Local>("local6", MapType::Hash, Entries::Fixed(4096)),
    layout::<PoolKey, A4>("pool4", MapType::Hash, Entries::Fixed(MAX_POOLED)),
    layout::<PoolKey, A6>("pool6", MapType::Hash, Entries::Fixed(MAX_POOLED)),
    layout::<u32, Opening>("opening", MapType::Array, Entries::Fixed(MAX_RULES)),
    layout::<u32, Rule>("rule", MapType::Array, Entries::Fixed(MAX_RULES)),
    layout::<u32, RuleStat>("rule_stat", MapType::PerCpuArray, Entries::Fixed(MAX_RULES)),
    layout::<u32, u64>("drop_stat", MapType::PerCpuArray, Entries::Fixed(DropReason::COUNT)),
    layout::<u32, Epoch>("epoch", MapType::Array, Entries::Fixed(1)),
    layout::<u32, Hop>("hop", MapType::Array, Entries::Fixed(HOPS)),
    layout::<PairKey<A4>, Pair>("pair4", MapType::LruHash, Entries::Fixed(MAX_PAIRS)),
    layout::<PairKey<A6>, Pair>("pair6", MapType::LruHash, Entries::Fixed(MAX_PAIRS)),
    layout::<u32, Port>("port", MapType::Hash, Entries::Fixed(MAX_PORTS)),
    layout::<u32, u32>("stage", MapType::ProgramArray, Entries::Fixed(stage::COUNT)),
    layout::<u32, u32>("xdp_stage", MapType::ProgramArray, Entries::Fixed(xdp_stage::COUNT)),
    // struct bpf_devmap_val: an interface, and the program that would meet packets there
    layout::<u32, [u32; 2]>("xdp_port", MapType::DevMapHash, Entries::Fixed(MAX_PORTS)),
    layout::<u32, u64>("xdp_stat", MapType::PerCpuArray, Entries::Fixed(1)),
    layout::<(), ()>(MESSAGES, MapType::RingBuf, Entries::Fixed(MESSAGES_SIZE)),
];

pub(super) const fn layout<K, V>(name: &'static str, kind: MapType, entries: Entries) -> Layout {
    Layout { name, kind, key: size_of::<K>(), value: size_of::<V>(), entries }
}

const TEARDOWN: &str =
    "`telecluster-worker teardown` of the version that made it removes it, and with it every live flow";

/// What is different in the fields of a pinned map, where the kernel knows fields of maps and this kind of map has them.
fn differing_field(name: &str, path: &Path) -> Result<Option<String>, Box<dyn std::error::Error>> {
    let Some((_, wanted)) = FIELDS.iter().find(|(map, _)| *map == name) else { return Ok(None) };
    if aya::features().btf().is_none() {
        return Ok(None);
    }
    Ok(shape::difference(MapData::from_pin(path)?.fd(), *wanted)?)
}

/// Capacity of a pinned map that fits; `None` when there is none.
pub(super) fn adopted_entries(layout: &Layout, path: &Path) -> Result<Option<u32>, KernelError> {
    if !path.exists() {
        return Ok(None);
    }
    let operation = format!("adopt the pinned map {}", path.display());
    let info = MapInfo::from_pin(path).map_err(|error| failed(&operation, &error))?;
    let kind = info.map_type().map_err(|error| failed(&operation, &error))?;
    let found = (kind, info.key_size() as usize, info.value_size() as usize);
    let fits = found == (layout.kind, layout.key, layout.value)
        && match layout.entries {
            Entries::Fixed(entries) => entries == info.max_entries(),
            Entries::Flows | Entries::Bindings => true,
            Entries::Unproven => info.max_entries().is_power_of_two(),
        };
    if !fits {
        return Err(KernelError::other(
            operation,
            format!(
                "it is {found:?} with {} entries, this version has {:?}; {TEARDOWN}",
                info.max_entries(),
                (layout.kind, layout.key, layout.value)
            ),
        ));
    }
    if let Some(difference) =
        differing_field(layout.name, path).map_err(|error| failed(&operation, &*error))?
    {
        return Err(KernelError::other(operation, format!("{difference}; {TEARDOWN}")));
    }
    Ok(Some(info.max_entries()))
}
