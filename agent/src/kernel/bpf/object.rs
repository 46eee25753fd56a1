//! The compiled programs and their maps: load, pin, adopt.

use std::{collections::BTreeMap, fs, io, os::fd::AsFd as _, path::Path};

use aya::{
    maps::{Map, MapData, ProgramArray},
    programs::{Program, SchedClassifier, Xdp},
};
use aya_obj::programs::XdpAttachType;
use telecluster_common::maps::{stage, xdp_stage};
use tracing::{info, warn};

use super::{
    Options, batch, failed,
    layout::{Entries, LAYOUTS, adopted_entries},
    place,
    record::{Identity, Record},
    source::{Constants, Sizes, Source},
    switch,
};
use crate::kernel::KernelError;

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
const STAGES: [(&str, u32); 44] = [
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
    ("tc_leave_error4", stage::LEAVE_ERROR4),
    ("tc_leave_error6", stage::LEAVE_ERROR6),
    ("tc_home_error4", stage::HOME_ERROR4),
    ("tc_home_error6", stage::HOME_ERROR6),
    ("tc_home_part4", stage::HOME_PART4),
    ("tc_home_part6", stage::HOME_PART6),
    ("tc_turn4_in", stage::TURN4_IN),
    ("tc_turn4_out", stage::TURN4_OUT),
    ("tc_turn6_in", stage::TURN6_IN),
    ("tc_turn6_out", stage::TURN6_OUT),
];

/// The programs that are run by the agent and hang nowhere.
pub(super) const RUN_NAMES: [&str; 4] = ["tc_collect4", "tc_collect6", "tc_release4", "tc_release6"];

/// The programs that hang in drivers.
const XDP_NAMES: [&str; 3] = ["xdp_wan_in", "xdp_lan_in", "xdp_port_in"];

/// The programs that those go on to, with their places in the `xdp_stage` map.
const XDP_STAGES: [(&str, u32); 10] = [
    ("xdp_wan6_in", xdp_stage::WAN6),
    ("xdp_lan6_in", xdp_stage::LAN6),
    ("xdp_first4_in", xdp_stage::FIRST4_IN),
    ("xdp_first4_out", xdp_stage::FIRST4_OUT),
    ("xdp_first6_in", xdp_stage::FIRST6_IN),
    ("xdp_first6_out", xdp_stage::FIRST6_OUT),
    ("xdp_make4", xdp_stage::MAKE4),
    ("xdp_make6", xdp_stage::MAKE6),
    ("xdp_notable4", xdp_stage::NOTABLE4),
    ("xdp_notable6", xdp_stage::NOTABLE6),
];

/// Where the programs' messages go (aya-log).
pub(super) const MESSAGES: &str = "AYA_LOGS";

type Maps = BTreeMap<&'static str, Map>;
type Numbers = BTreeMap<&'static str, u32>;

/// The programs and maps of this run. Dropping it leaves everything pinned in place.
#[derive(Debug)]
pub struct Object {
    programs: BTreeMap<&'static str, Program>,
    /// Those that nobody has taken.
    maps: Maps,
    /// The kernel's number of each map.
    numbers: Numbers,
    source: Source,
    record: Record,
}

/// Loads the programs. Maps that are pinned already and fit are used as they are, and so are programs that this version made
/// for them; nothing is ever wiped.
pub fn load(options: &Options) -> Result<Object, KernelError> {
    let directory = &options.directory;
    place::prepare(directory)?;
    let (sizes, half_size) = sizes(options)?;
    let constants = Constants::new(options, half_size);
    let mut source = Source::new(directory, sizes, constants);
    let (maps, numbers) = open_maps(&mut source, directory)?;
    let record = Record::open(&directory.join(place::schema_marker()), (source.made_of(), &numbers));
    let mut object = Object { programs: BTreeMap::new(), maps, numbers, source, record };
    let mut adopted = fill_stages(&mut object, directory, "stage", &STAGES)?;
    for name in PROGRAM_NAMES.into_iter().chain(RUN_NAMES) {
        adopted += usize::from(provide(&mut object, directory, name)?);
    }
    info!(directory = %directory.display(), adopted, loaded = object.programs.len() - adopted, "programs are there");
    Ok(object)
}

/// Loads the programs for drivers too.
pub(super) fn load_xdp(object: &mut Object, directory: &Path) -> Result<(), KernelError> {
    fill_stages(object, directory, "xdp_stage", &XDP_STAGES)?;
    XDP_NAMES.into_iter().try_for_each(|name| provide(object, directory, name).map(drop))
}

/// How many entries each map has or will have, and how many of them those have that are for flows without proof.
fn sizes(options: &Options) -> Result<(Sizes, u32), KernelError> {
    let maps = options.directory.join("maps");
    // Without a wish: what is there, and otherwise as little as possible.
    let flow_capacity = options.flow_capacity.unwrap_or(1);
    let half_size = half_size(flow_capacity, options.unproven_flows)?;
    let mut adopted_half_size = half_size;
    let mut sizes = Sizes::new();
    for layout in LAYOUTS.iter().chain(&switch::LAYOUTS) {
        let (wanted, setting) = match layout.entries {
            Entries::Fixed(entries) => (entries, None),
            // Both directions of a flow are entries of their own.
            Entries::Flows => {
                (flow_capacity.saturating_mul(2), options.flow_capacity.map(|_| "FLOW_CAPACITY"))
            }
            Entries::Bindings => (flow_capacity, None),
            Entries::Unproven => (half_size, (options.unproven_flows != 0).then_some("UNPROVEN_FLOWS")),
        };
        let entries = adopted_entries(layout, &maps.join(layout.name))?.unwrap_or(wanted);
        if let Some(setting) = setting
            && entries != wanted
        {
            warn!(
                map = layout.name,
                capacity = entries,
                wanted,
                "{setting} is not applied to a table that is there; `telecluster-worker teardown` first"
            );
        }
        if layout.entries == Entries::Unproven {
            adopted_half_size = entries;
        }
        sizes.push((layout.name, entries));
    }
    Ok((sizes, adopted_half_size))
}

/// The pinned maps; those that are missing are made and pinned.
fn open_maps(source: &mut Source, directory: &Path) -> Result<(Maps, Numbers), KernelError> {
    let directory = directory.join("maps");
    let names = || LAYOUTS.iter().chain(&switch::LAYOUTS).map(|layout| layout.name);
    if names().any(|name| !directory.join(name).exists()) {
        source.read()?;
    }
    let (mut maps, mut numbers) = (Maps::new(), Numbers::new());
    for name in names() {
        let operation = || format!("open the BPF map {name}");
        let data = MapData::from_pin(directory.join(name)).map_err(|error| failed(operation(), &error))?;
        numbers.insert(name, data.info().map_err(|error| failed(operation(), &error))?.id());
        maps.insert(name, Map::from_map_data(data).map_err(|error| failed(operation(), &error))?);
    }
    Ok((maps, numbers))
}

/// Whether maps that are pinned already, if there are any, are such as this version makes. Nothing is changed.
pub fn adoptable(options: &Options) -> Result<(), KernelError> {
    place::check_schema(&options.directory)?;
    let maps = options.directory.join("maps");
    for layout in LAYOUTS.iter().chain(&switch::LAYOUTS) {
        adopted_entries(layout, &maps.join(layout.name))?;
    }
    Ok(())
}

/// The programs that those on hooks go on to. They are in place before anything hangs on a hook; those of an earlier
/// run are replaced one by one, and each is as good as the one before: the maps have the same layout. How many of them were
/// adopted.
fn fill_stages(
    object: &mut Object,
    directory: &Path,
    map: &str,
    programs: &[(&'static str, u32)],
) -> Result<usize, KernelError> {
    let mut adopted = 0;
    for (name, _) in programs {
        adopted += usize::from(provide(object, directory, name)?);
    }
    let Object { programs: ready, maps, .. } = object;
    let operation = |name: &str| format!("put the BPF program {name} into its place");
    let missing = || KernelError::other(operation(map), "there is no map for it");
    let stages = maps.get_mut(map).ok_or_else(missing)?;
    for (name, place) in programs {
        let program = find(ready, name)?;
        let number = program.info().map_err(|error| failed(operation(name), &error))?.id();
        let Map::ProgramArray(array) = &*stages else { return Err(missing()) };
        let present = batch::program_at(array.fd(), *place);
        if present.map_err(|error| failed(operation(name), &error))? == Some(number) {
            continue;
        }
        let fd = program.fd().map_err(|error| failed(operation(name), &error))?;
        let fd = fd.try_clone().map_err(|error| failed(operation(name), &error))?;
        let mut array =
            ProgramArray::try_from(&mut *stages).map_err(|error| failed(operation(name), &error))?;
        array.set(*place, &fd, 0).map_err(|error| failed(operation(name), &error))?;
    }
    Ok(adopted)
}

/// Makes a program ready: adopts the one that is pinned, or loads it and pins it. Whether it was adopted.
fn provide(object: &mut Object, directory: &Path, name: &'static str) -> Result<bool, KernelError> {
    let Object { programs, source, record, .. } = object;
    let pin = directory.join("progs").join(name);
    let adopted = open_program(name, &pin)
        .ok()
        .filter(|program| program.info().is_ok_and(|info| record.knows(name, Identity::of(&info))));
    let was_adopted = adopted.is_some();
    let program = match adopted {
        Some(program) => program,
        None => {
            source.load(name, &pin)?;
            let program = open_program(name, &pin)?;
            let info = program.info().map_err(|error| failed(format!("look at {name}"), &error))?;
            record.put(name, Identity::of(&info));
            program
        }
    };
    programs.insert(name, program);
    Ok(was_adopted)
}

fn open_program(name: &str, pin: &Path) -> Result<Program, KernelError> {
    let program = if name.starts_with("xdp_") {
        Xdp::from_pin(pin, XdpAttachType::Interface).map(Program::Xdp)
    } else {
        SchedClassifier::from_pin(pin).map(Program::SchedClassifier)
    };
    program.map_err(|error| failed(format!("open {}", pin.display()), &error))
}

/// Places on each CPU for flows without proof: on all of them together as many as were asked for, else a quarter of the capacity,
/// and a power of two.
fn half_size(capacity: u32, asked: u32) -> Result<u32, KernelError> {
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| failed("count the CPUs", &error))?;
    let all = if asked == 0 { capacity / 4 } else { asked };
    let share = all / u32::try_from(cpus).unwrap_or(u32::MAX);
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
    find(&mut object.programs, name)
}

fn find<'a>(
    programs: &'a mut BTreeMap<&'static str, Program>,
    name: &str,
) -> Result<&'a mut Program, KernelError> {
    let missing = || KernelError::other(format!("find the BPF program {name}"), "it is not loaded");
    programs.get_mut(name).ok_or_else(missing)
}

/// The number of a program that has messages: by it aya-log finds where they go.
pub(super) fn speaker(object: &Object) -> Option<u32> {
    let messages = object.numbers.get(MESSAGES)?;
    let speaks = |program: &&Program| {
        let maps = program.info().ok().and_then(|info| info.map_ids().ok().flatten());
        maps.is_some_and(|maps| maps.contains(messages))
    };
    let program = object.programs.values().find(speaks)?;
    program.info().ok().map(|info| info.id())
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
    let missing = || KernelError::other(operation(), "it is not there, or somebody has taken it");
    let map = object.maps.remove(name).ok_or_else(missing)?;
    T::try_from(map).map_err(|error| failed(operation(), &error))
}

/// A map by a descriptor of its own, for the batch calls.
pub(super) fn duplicate(object: &Object, name: &str) -> Result<MapData, KernelError> {
    let operation = || format!("open the BPF map {name}");
    let Some(Map::HashMap(data) | Map::LruHashMap(data) | Map::Array(data)) = object.maps.get(name) else {
        return Err(KernelError::other(operation(), "the object has no such hash map or array"));
    };
    let fd = data.fd().as_fd().try_clone_to_owned().map_err(|error| failed(operation(), &error))?;
    MapData::from_fd(fd).map_err(|error| failed(operation(), &error))
}
