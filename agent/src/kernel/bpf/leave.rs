//! Taking everything of the eBPF data plane away, so that another one can take over.

use std::{fs, io, path::Path};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use tracing::info;

use super::{attach::Attacher, failed, waiting};
use crate::kernel::KernelError;

/// Takes the programs of an earlier run off every interface and removes its pins, and with them rules and flows.
///
/// Programs need not load for that. What is not on a BPF file system is none of ours, and nothing else in the
/// directory is touched.
pub fn take_away(directory: &Path) -> Result<(), KernelError> {
    let ours = statfs(directory).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC);
    if !ours || !directory.join("links").exists() {
        return Ok(());
    }
    Attacher::detach_all(directory)?;
    waiting::take_away()?;
    let operation = || format!("remove the pins in {}", directory.display());
    for entry in fs::read_dir(directory).map_err(|error| failed(operation(), &error))? {
        let name = entry.map_err(|error| failed(operation(), &error))?.file_name();
        let text = name.to_string_lossy();
        if matches!(&*text, "maps" | "links" | "progs") || text.starts_with("schema-") {
            fs::remove_dir_all(directory.join(&name)).map_err(|error| failed(operation(), &error))?;
        }
    }
    info!(directory = %directory.display(), "the programs of the eBPF data plane were removed");
    match fs::remove_dir(directory) {
        // Somebody else keeps something there, or it is the mount itself.
        Ok(()) => Ok(()),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::ResourceBusy) =>
        {
            Ok(())
        }
        Err(error) => Err(failed(operation(), &error)),
    }
}
