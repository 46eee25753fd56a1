//! The directory of pins: on a BPF file system, and of this version.

use std::{fs, path::Path};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use telecluster_common::maps::SCHEMA;
use tracing::info;

use super::failed;
use crate::kernel::KernelError;

/// Makes it, with what will be in it. Nothing is ever wiped.
pub(super) fn prepare(directory: &Path) -> Result<(), KernelError> {
    ensure_bpffs(directory)?;
    check_schema(directory)?;
    for name in ["maps", "links", "progs", &schema_marker()] {
        let path = directory.join(name);
        fs::create_dir_all(&path).map_err(|error| failed(format!("make {}", path.display()), &error))?;
    }
    Ok(())
}

/// Of the directory that says which version the pins are of.
pub(super) fn schema_marker() -> String {
    format!("schema-{SCHEMA}")
}

/// Refuses pins of another version, whatever their sizes.
pub(super) fn check_schema(directory: &Path) -> Result<(), KernelError> {
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
