//! The object that `build.rs` compiled: read only when something of it is missing in the kernel, because that alone takes tens
//! of milliseconds and megabytes.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader,
    programs::{Program, ProgramError},
};
use telecluster_common::{maps::ticks, tables::Limits};

use super::{Options, failed};
use crate::{kernel::KernelError, memory};

/// What `build.rs` compiled.
static PROGRAMS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/telecluster"));

/// What is set in the programs before they are loaded.
#[derive(Debug, Clone, Copy, Hash)]
pub(super) struct Constants {
    log_level: u8,
    half_size: u32,
    ports_per_host: u32,
    flows_per_host: u32,
    flows_per_rule: u32,
    /// In ticks.
    hold_down: u32,
}

impl Constants {
    pub(super) const fn new(options: &Options, half_size: u32) -> Self {
        let Limits { ports_per_host, flows_per_host, flows_per_rule } = options.limits;
        let hold_down = ticks(options.hold_down.seconds);
        let log_level = options.log_level;
        Self { log_level, half_size, ports_per_host, flows_per_host, flows_per_rule, hold_down }
    }
}

/// Entries of each map.
pub(super) type Sizes = Vec<(&'static str, u32)>;

/// The object, and how it is to be loaded.
pub(super) struct Source {
    directory: PathBuf,
    sizes: Sizes,
    constants: Constants,
    object: Option<Ebpf>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("constants", &self.constants).finish_non_exhaustive()
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        // SAFETY: it is a static of this program, and not written.
        unsafe { memory::forget(PROGRAMS) };
    }
}

impl Source {
    pub(super) fn new(directory: &Path, sizes: Sizes, constants: Constants) -> Self {
        Self { directory: directory.to_owned(), sizes, constants, object: None }
    }

    /// All that programs are made of, but for the maps.
    pub(super) const fn made_of(&self) -> (&'static [u8], Constants) {
        (PROGRAMS, self.constants)
    }

    /// Reads it, and makes and pins the maps that are missing.
    pub(super) fn read(&mut self) -> Result<&mut Ebpf, KernelError> {
        let object = match self.object.take() {
            Some(object) => object,
            None => self.create()?,
        };
        Ok(self.object.insert(object))
    }

    fn create(&self) -> Result<Ebpf, KernelError> {
        let maps = self.directory.join("maps");
        let mut loader = EbpfLoader::new();
        for (name, entries) in &self.sizes {
            loader.map_max_entries(name, *entries).map_pin_path(name, maps.join(name));
        }
        // Every field is named, so that a new one is not forgotten here.
        let Constants { log_level, half_size, ports_per_host, flows_per_host, flows_per_rule, hold_down } =
            &self.constants;
        loader.override_global(aya_log::LEVEL, log_level, false);
        loader.override_global("HALF_SIZE", half_size, true);
        loader.override_global("PORTS_PER_HOST", ports_per_host, true);
        loader.override_global("FLOWS_PER_HOST", flows_per_host, true);
        loader.override_global("FLOWS_PER_RULE", flows_per_rule, true);
        loader.override_global("HOLD_DOWN", hold_down, true);
        loader.load(PROGRAMS).map_err(|error| failed("create the BPF maps", &error))
    }

    /// Loads a program, and puts its pin in place of the one that is there.
    pub(super) fn load(&mut self, name: &str, pin: &Path) -> Result<(), KernelError> {
        let program = self.read()?.program_mut(name).ok_or_else(|| {
            KernelError::other(format!("find the BPF program {name}"), "it is not in the object")
        })?;
        match program {
            Program::SchedClassifier(program) => program.load(),
            Program::Xdp(program) => program.load(),
            _ => Err(ProgramError::UnexpectedProgramType),
        }
        .map_err(|error| failed(format!("load the BPF program {name}"), &error))?;
        match fs::remove_file(pin) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed(format!("remove {}", pin.display()), &error));
            }
            Ok(()) | Err(_) => {}
        }
        program.pin(pin).map_err(|error| failed(format!("pin the BPF program {name}"), &error))
    }
}
