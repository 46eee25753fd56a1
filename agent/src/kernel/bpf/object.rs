//! The compiled programs and their maps: load, pin, adopt.

use std::{fs, io, os::fd::AsFd as _, path::Path};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData, MapInfo, MapType, ProgramArray},
    programs::{Program, ProgramError, SchedClassifier},
};
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use telecluster_common::{
    drop::DropReason,
    maps::{
        Binding, EndpointKey, Epoch, Flow, FlowKey, Forward, ForwardKey, FragmentKey, Fragmented, HOPS, Hop,
        Local, MAX_BLOCKS, MAX_FRAGMENTED, MAX_PACED, MAX_PAIRS, MAX_PLACED, MAX_POOLED, MAX_PORTS,
        MAX_RULES, MAX_WAITING_ROOMS, Masquerade, MasqueradeKey, Moved, Opening, PaceKey, Pair, PairKey,
        PlaceKey, PlacedPort, PoolKey, Port, Range, RangeKey, Rule, RuleStat, SCHEMA, SourceKey, Uplink,
        stage, xdp_stage,
    },
    nat::work::Work,
    tables::Limits,
};
use tracing::{info, warn};

use super::{Options, failed, switch};
use crate::kernel::KernelError;

/// What `build.rs` compiled.
static PROGRAMS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/telecluster"));

/// The programs that hang on hooks.
pub const PROGRAM_NAMES: [&str; 10] = [
    "tc_wan_in",
    "tc_wan_out",
    "tc_lan_in",
    "tc_lan_out",
    "tc_turn_in",
    "tc_turn_out",
    "tc_lo_out",
    "tc_port_in",
    "tc_port_out",
    "tc_waited",
];

/// The programs that those go on to, with their places in the `stage` map.
const STAGES: [(&str, u32); 38] = [
    ("tc_nat4_in", stage::NAT4_IN),
    ("tc_nat4_out", stage::NAT4_OUT),
    ("tc_nat6_in", stage::NAT6_IN),
    ("tc_nat6_out", stage::NAT6_OUT),
    ("tc_first4_in", stage::FIRST4_IN),
    ("tc_first4_out", stage::FIRST4_OUT),
    ("tc_first6_in", stage::FIRST6_IN),
    ("tc_first6_out", stage::FIRST6_OUT),
    ("tc_make4_in", stage::MAKE4_IN),
    ("tc_make4_out", stage::MAKE4_OUT),
    ("tc_make6_in", stage::MAKE6_IN),
    ("tc_make6_out", stage::MAKE6_OUT),
    ("tc_icmp4_in", stage::ICMP4_IN),
    ("tc_icmp4_out", stage::ICMP4_OUT),
    ("tc_icmp6_in", stage::ICMP6_IN),
    ("tc_icmp6_out", stage::ICMP6_OUT),
    ("tc_next6_in", stage::NEXT6_IN),
    ("tc_next6_out", stage::NEXT6_OUT),
    ("tc_lan6_in", stage::LAN6_IN),
    ("tc_lan6_out", stage::LAN6_OUT),
    ("tc_fragment4_in", stage::FRAGMENT4_IN),
    ("tc_fragment4_out", stage::FRAGMENT4_OUT),
    ("tc_fragment6_in", stage::FRAGMENT6_IN),
    ("tc_fragment6_out", stage::FRAGMENT6_OUT),
    ("tc_refuse4", stage::REFUSE4),
    ("tc_refuse6", stage::REFUSE6),
    ("tc_depart4", stage::DEPART4),
    ("tc_depart6", stage::DEPART6),
    ("tc_leave4", stage::LEAVE4),
    ("tc_leave6", stage::LEAVE6),
    ("tc_around4", stage::AROUND4),
    ("tc_around6", stage::AROUND6),
    ("tc_home4", stage::HOME4),
    ("tc_home6", stage::HOME6),
    ("tc_turn4_in", stage::TURN4_IN),
    ("tc_turn4_out", stage::TURN4_OUT),
    ("tc_turn6_in", stage::TURN6_IN),
    ("tc_turn6_out", stage::TURN6_OUT),
];

/// The programs that are run by the agent and hang nowhere.
pub(super) const RUN_NAMES: [&str; 2] = ["tc_collect4", "tc_collect6"];

/// The programs that hang in drivers.
const XDP_NAMES: [&str; 2] = ["xdp_wan_in", "xdp_lan_in"];

/// The programs that those go on to, with their places in the `xdp_stage` map.
const XDP_STAGES: [(&str, u32); 2] = [("xdp_wan6_in", xdp_stage::WAN6), ("xdp_lan6_in", xdp_stage::LAN6)];

/// The programs and maps of this run. Dropping it leaves everything pinned in place.
pub type Object = Ebpf;

/// What a pinned map must look like to be ours.
pub(super) struct Layout {
    name: &'static str,
    kind: MapType,
    key: usize,
    value: usize,
    entries: Entries,
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

const LAYOUTS: [Layout; 45] = [
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
];

pub(super) const fn layout<K, V>(name: &'static str, kind: MapType, entries: Entries) -> Layout {
    Layout { name, kind, key: size_of::<K>(), value: size_of::<V>(), entries }
}

/// Loads the programs. Maps that are pinned already and fit are used as they are; nothing is ever wiped.
pub fn load(options: &Options) -> Result<Object, KernelError> {
    let directory = &options.directory;
    ensure_bpffs(directory)?;
    check_schema(directory)?;
    let maps = directory.join("maps");
    for name in ["maps", "links", "progs"] {
        make_directory(&directory.join(name))?;
    }
    make_directory(&directory.join(schema_marker()))?;

    let mut loader = EbpfLoader::new();
    // Without a wish: what is there, and otherwise as little as possible.
    let flow_capacity = options.flow_capacity.unwrap_or(1);
    let asked = options.flow_capacity.map(|flows| flows.saturating_mul(2));
    let half_size = half_size(flow_capacity)?;
    let mut adopted_half_size = half_size;
    for layout in LAYOUTS.iter().chain(&switch::LAYOUTS) {
        let path = maps.join(layout.name);
        let wanted = match layout.entries {
            Entries::Fixed(entries) => entries,
            // Both directions of a flow are entries of their own.
            Entries::Flows => flow_capacity.saturating_mul(2),
            Entries::Bindings => flow_capacity,
            Entries::Unproven => half_size,
        };
        let entries = adopted_entries(layout, &path, asked)?.unwrap_or(wanted);
        if layout.entries == Entries::Unproven {
            adopted_half_size = entries;
        }
        loader.map_max_entries(layout.name, entries).map_pin_path(layout.name, path);
    }
    loader.override_global(aya_log::LEVEL, &options.log_level, false);
    loader.override_global("HALF_SIZE", &adopted_half_size, true);
    let Limits { ports_per_host, flows_per_host, flows_per_rule } = &options.limits;
    loader.override_global("PORTS_PER_HOST", ports_per_host, true);
    loader.override_global("FLOWS_PER_HOST", flows_per_host, true);
    loader.override_global("FLOWS_PER_RULE", flows_per_rule, true);
    let mut object = loader.load(PROGRAMS).map_err(|error| failed("create the BPF maps", &error))?;
    fill_stages(&mut object, directory, "stage", &STAGES)?;
    for name in PROGRAM_NAMES.into_iter().chain(RUN_NAMES) {
        load_program(&mut object, directory, name)?;
    }
    info!(directory = %directory.display(), "programs loaded");
    Ok(object)
}

/// Loads the programs for drivers too.
pub(super) fn load_xdp(object: &mut Object, directory: &Path) -> Result<(), KernelError> {
    fill_stages(object, directory, "xdp_stage", &XDP_STAGES)?;
    XDP_NAMES.into_iter().try_for_each(|name| load_program(object, directory, name))
}

/// Whether maps that are pinned already, if there are any, are such as this version makes. Nothing is changed.
pub fn adoptable(options: &Options) -> Result<(), KernelError> {
    check_schema(&options.directory)?;
    let maps = options.directory.join("maps");
    for layout in LAYOUTS.iter().chain(&switch::LAYOUTS) {
        adopted_entries(layout, &maps.join(layout.name), None)?;
    }
    Ok(())
}

/// The programs that those on hooks go on to. They are in place before anything hangs on a hook; those of an earlier
/// run are replaced one by one, and each is as good as the one before: the maps have the same layout.
fn fill_stages(
    object: &mut Object,
    directory: &Path,
    map: &str,
    programs: &[(&str, u32)],
) -> Result<(), KernelError> {
    for (name, _) in programs {
        load_program(object, directory, name)?;
    }
    for (name, place) in programs {
        let operation = || format!("put the BPF program {name} into its place");
        let fd = program(object, name)?.fd().map_err(|error| failed(operation(), &error))?;
        let fd = fd.try_clone().map_err(|error| failed(operation(), &error))?;
        let stages =
            object.map_mut(map).ok_or_else(|| KernelError::other(operation(), "there is no map for it"))?;
        let mut stages = ProgramArray::try_from(stages).map_err(|error| failed(operation(), &error))?;
        stages.set(*place, &fd, 0).map_err(|error| failed(operation(), &error))?;
    }
    Ok(())
}

fn load_program(object: &mut Object, directory: &Path, name: &str) -> Result<(), KernelError> {
    let program = program(object, name)?;
    match program {
        Program::SchedClassifier(program) => program.load(),
        Program::Xdp(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
    .map_err(|error| failed(format!("load the BPF program {name}"), &error))?;
    let pin = directory.join("progs").join(name);
    // The programs are this run's own, the pins of the last run name its.
    match fs::remove_file(&pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed(format!("remove {}", pin.display()), &error));
        }
        Ok(()) | Err(_) => {}
    }
    program.pin(&pin).map_err(|error| failed(format!("pin the BPF program {name}"), &error))
}

/// Places on each CPU for flows without proof: on all of them together a quarter of the capacity, and a power of two.
fn half_size(capacity: u32) -> Result<u32, KernelError> {
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| failed("count the CPUs", &error))?;
    let share = capacity / 4 / u32::try_from(cpus).unwrap_or(u32::MAX);
    Ok(1 << share.max(64).ilog2())
}

/// Removes every pin, and with the last one the maps and what is in them.
pub fn unpin(directory: &Path) -> Result<(), KernelError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed(format!("remove {}", directory.display()), &error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// One of our programs.
pub fn program<'a>(object: &'a mut Object, name: &str) -> Result<&'a mut Program, KernelError> {
    let missing = || KernelError::other(format!("find the BPF program {name}"), "it is not in the object");
    object.program_mut(name).ok_or_else(missing)
}

/// One of those for traffic control.
pub fn classifier<'a>(object: &'a mut Object, name: &str) -> Result<&'a mut SchedClassifier, KernelError> {
    let operation = format!("find the BPF program {name}");
    program(object, name)?.try_into().map_err(|error| failed(operation, &error))
}

/// Takes a map out of the object, as the type that its user wants.
pub(super) fn take<T>(object: &mut Object, name: &str) -> Result<T, KernelError>
where
    T: TryFrom<Map>,
    T::Error: std::error::Error + 'static,
{
    let operation = || format!("open the BPF map {name}");
    let map =
        object.take_map(name).ok_or_else(|| KernelError::other(operation(), "it is not in the object"))?;
    T::try_from(map).map_err(|error| failed(operation(), &error))
}

/// A map by a descriptor of its own, for the batch calls.
pub(super) fn duplicate(object: &Object, name: &str) -> Result<MapData, KernelError> {
    let operation = || format!("open the BPF map {name}");
    let Some(Map::HashMap(data) | Map::LruHashMap(data) | Map::Array(data)) = object.map(name) else {
        return Err(KernelError::other(operation(), "the object has no such hash map or array"));
    };
    let fd = data.fd().as_fd().try_clone_to_owned().map_err(|error| failed(operation(), &error))?;
    MapData::from_fd(fd).map_err(|error| failed(operation(), &error))
}

/// Capacity of a pinned map that fits; `None` when there is none.
fn adopted_entries(layout: &Layout, path: &Path, wanted: Option<u32>) -> Result<Option<u32>, KernelError> {
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
                "it is {found:?} with {} entries, this version has {:?}; `telecluster-worker teardown` of the \
                 version that made it removes it, and with it every live flow",
                info.max_entries(),
                (layout.kind, layout.key, layout.value)
            ),
        ));
    }
    if let (Entries::Flows, Some(wanted)) = (layout.entries, wanted)
        && info.max_entries() != wanted
    {
        warn!(
            map = layout.name,
            capacity = info.max_entries(),
            wanted,
            "FLOW_CAPACITY is not applied to a table that has flows; `telecluster-worker teardown` first"
        );
    }
    Ok(Some(info.max_entries()))
}

fn schema_marker() -> String {
    format!("schema-{SCHEMA}")
}

/// Refuses pins of another version, whatever their sizes.
fn check_schema(directory: &Path) -> Result<(), KernelError> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Ok(()); // not there yet
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("schema-") && name != schema_marker() {
            return Err(KernelError::other(
                format!("adopt the pins in {}", directory.display()),
                format!(
                    "they are of {name}, this version has {}; `telecluster-worker teardown` of the version that \
                     made them removes them, and with them every live flow",
                    schema_marker()
                ),
            ));
        }
    }
    Ok(())
}

fn make_directory(path: &Path) -> Result<(), KernelError> {
    fs::create_dir_all(path).map_err(|error| failed(format!("make {}", path.display()), &error))
}

/// Pins need a BPF file system. The usual place is mounted if it is not; another place must be there.
fn ensure_bpffs(directory: &Path) -> Result<(), KernelError> {
    const USUAL: &str = "/sys/fs/bpf";
    let existing = directory.ancestors().find(|path| path.exists()).unwrap_or(directory);
    let operation = format!("pin below {}", directory.display());
    let found = statfs(existing).map_err(|errno| KernelError::errno(&operation, errno as i32))?;
    if found.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    if !directory.starts_with(USUAL) {
        return Err(KernelError::other(
            operation,
            format!(
                "{} is no BPF file system; choose a BPF_DIR below {USUAL}, or: mount -t bpf bpf {}",
                existing.display(),
                existing.display()
            ),
        ));
    }
    mount(Some("bpf"), USUAL, Some("bpf"), MsFlags::empty(), None::<&str>).map_err(|errno| {
        KernelError::other(
            operation,
            format!("{USUAL} is no BPF file system and mounting one failed ({errno}); as root: mount -t bpf bpf {USUAL}"),
        )
    })?;
    info!(path = USUAL, "mounted the BPF file system");
    Ok(())
}
