//! The compiled programs and their maps: load, pin, adopt.

use std::{fs, io, os::fd::AsFd as _, path::Path};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData, MapInfo, MapType},
    programs::SchedClassifier,
};
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use telecluster_common::{
    drop::DropReason,
    maps::{
        Flow, FlowKey, Forward, ForwardKey, MAX_RULES, Masquerade, MasqueradeKey, Rule, RuleStat, SCHEMA,
        Uplink,
    },
};
use tracing::{info, warn};

use super::{Options, failed, switch};
use crate::kernel::KernelError;

/// What `build.rs` compiled.
static PROGRAMS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/telecluster"));

/// The programs, in the order in which they are loaded.
pub const PROGRAM_NAMES: [&str; 4] = ["tc_wan_in", "tc_wan_out", "tc_port_in", "tc_port_out"];

/// The programs and maps of this run. Dropping it leaves everything pinned in place.
pub type Object = Ebpf;

/// What a pinned map must look like to be ours.
pub(super) struct Layout {
    name: &'static str,
    kind: MapType,
    key: usize,
    value: usize,
    /// `None`: set by the operator.
    entries: Option<u32>,
}

const LAYOUTS: [Layout; 9] = [
    layout::<FlowKey, Flow>("flow4", MapType::Hash, None),
    layout::<FlowKey, Flow>("half4", MapType::LruHash, None),
    layout::<ForwardKey, Forward>("forward4", MapType::Hash, Some(2 * MAX_RULES)),
    layout::<(u32, MasqueradeKey), Masquerade>("masquerade4", MapType::LpmTrie, Some(MAX_RULES)),
    layout::<u32, Uplink>("uplink4", MapType::Hash, Some(256)),
    layout::<u32, u32>("local4", MapType::Hash, Some(4096)),
    layout::<u32, Rule>("rule", MapType::Array, Some(MAX_RULES)),
    layout::<u32, RuleStat>("rule_stat", MapType::PerCpuArray, Some(MAX_RULES)),
    layout::<u32, u64>("drop_stat", MapType::PerCpuArray, Some(DropReason::COUNT)),
];

pub(super) const fn layout<K, V>(name: &'static str, kind: MapType, entries: Option<u32>) -> Layout {
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
    // Both directions of a flow are entries of their own.
    let entries = options.flow_capacity.map(|flows| flows.saturating_mul(2));
    for layout in LAYOUTS.iter().chain(&switch::LAYOUTS) {
        let path = maps.join(layout.name);
        let entries = match adopted_entries(layout, &path, entries)? {
            Some(entries) => entries,
            None => layout.entries.or(entries).unwrap_or(1),
        };
        loader.map_max_entries(layout.name, entries).map_pin_path(layout.name, path);
    }
    loader.override_global(aya_log::LEVEL, &options.log_level, false);
    let mut object = loader.load(PROGRAMS).map_err(|error| failed("create the BPF maps", &error))?;
    for name in PROGRAM_NAMES {
        let program = classifier(&mut object, name)?;
        program.load().map_err(|error| failed(format!("load the BPF program {name}"), &error))?;
        let pin = directory.join("progs").join(name);
        // The programs are this run's own, the pins of the last run name its.
        match fs::remove_file(&pin) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed(format!("remove {}", pin.display()), &error));
            }
            Ok(()) | Err(_) => {}
        }
        program.pin(&pin).map_err(|error| failed(format!("pin the BPF program {name}"), &error))?;
    }
    info!(directory = %directory.display(), "programs loaded");
    Ok(object)
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
pub fn classifier<'a>(object: &'a mut Object, name: &str) -> Result<&'a mut SchedClassifier, KernelError> {
    let operation = || format!("find the BPF program {name}");
    let program =
        object.program_mut(name).ok_or_else(|| KernelError::other(operation(), "it is not in the object"))?;
    program.try_into().map_err(|error| failed(operation(), &error))
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
        && layout.entries.is_none_or(|entries| entries == info.max_entries());
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
    if let (None, Some(wanted)) = (layout.entries, wanted)
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
