//! Named network namespaces: the files under `/run/netns`.

use std::{
    fs::{File, Metadata},
    io,
    os::linux::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use nix::sched::{CloneFlags, setns};

use super::{KernelError, rtnl::io_error};

const DIRECTORY: &str = "/run/netns";

/// Tells a namespace from all others that exist: device and inode of its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Identity(u64, u64);

impl From<Metadata> for Identity {
    fn from(file: Metadata) -> Self {
        Self(file.st_dev(), file.st_ino())
    }
}

/// The names, sorted; none when nobody has made a namespace yet.
pub(super) fn names() -> Result<Vec<String>, KernelError> {
    let failed = |error: io::Error| io_error(&format!("list {DIRECTORY}"), &error);
    let entries = match std::fs::read_dir(DIRECTORY) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

pub(super) fn identity(namespace: &File) -> Result<Identity, KernelError> {
    let failed = |error: io::Error| io_error("identify a network namespace", &error);
    namespace.metadata().map(Identity::from).map_err(failed)
}

/// The same of a name, without opening it.
pub(super) fn identity_of(name: &str) -> io::Result<Identity> {
    std::fs::metadata(Path::new(DIRECTORY).join(name)).map(Identity::from)
}

/// Opens a namespace; the file keeps it alive.
pub(super) fn open(name: &str) -> Result<File, KernelError> {
    let path: PathBuf = Path::new(DIRECTORY).join(name);
    File::open(&path).map_err(|error| io_error(&format!("open network namespace {name}"), &error))
}

/// Does something in another namespace: on a thread of its own, because a thread that has changed its
/// namespace and fails to change back would do every later request in the wrong one.
pub(super) fn inside<T: Send>(
    namespace: &File,
    name: &str,
    task: impl FnOnce() -> Result<T, KernelError> + Send,
) -> Result<T, KernelError> {
    std::thread::scope(|scope| {
        let work = || {
            setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| {
                KernelError::errno(format!("enter network namespace {name}"), errno as i32)
            })?;
            task()
        };
        // There may be no thread to be had, which is no reason to panic.
        let thread = std::thread::Builder::new()
            .spawn_scoped(scope, work)
            .map_err(|error| io_error(&format!("enter network namespace {name}"), &error))?;
        thread.join().unwrap_or_else(|_| {
            Err(KernelError::other(format!("work in network namespace {name}"), "it panicked"))
        })
    })
}
