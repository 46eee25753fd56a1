//! Which of the pinned programs a start may take as they are. To have the verifier go through all of them again would be most
//! of the time that a start takes.
//!
//! A pin does not say who put it there, or what of. So whoever loads a program notes its number, which the kernel gives to no
//! other one, and its tag, in a directory whose name stands for all that the program was made of. What was made of anything
//! else, or is pinned under the name of one of ours, is loaded anew.
//!
//! A note is an empty directory: a BPF file system holds nothing else that has no program in it.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher as _},
    io,
    path::{Path, PathBuf},
};

use aya::programs::ProgramInfo;
use tracing::{debug, warn};

const LABEL: &str = "made-of-";

/// The notes about programs that are made of the same as those of this run.
#[derive(Debug)]
pub(super) struct Record(PathBuf);

/// By its number the kernel tells a program from every other one, by its tag what its instructions are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Identity {
    pub(super) number: u32,
    pub(super) tag: u64,
}

impl Identity {
    pub(super) const fn of(program: &ProgramInfo) -> Self {
        Self { number: program.id(), tag: program.tag() }
    }

    fn note(self, name: &str) -> String {
        format!("{name}-{}-{:016x}", self.number, self.tag)
    }
}

impl Record {
    /// Notes of programs that were made of anything else are removed: those are about to be replaced.
    pub(super) fn open(directory: &Path, made_of: impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        made_of.hash(&mut hasher);
        let name = format!("{LABEL}{:016x}", hasher.finish());
        remove(directory, |other| other.starts_with(LABEL) && other != name);
        let directory = directory.join(name);
        if let Err(error) = fs::create_dir_all(&directory) {
            warn!(directory = %directory.display(), %error, "cannot make it: the next start will take longer");
        }
        Self(directory)
    }

    pub(super) fn knows(&self, name: &str, identity: Identity) -> bool {
        self.0.join(identity.note(name)).is_dir()
    }

    /// Of this name there is this program now.
    pub(super) fn put(&self, name: &str, identity: Identity) {
        remove(&self.0, |other| other.split_once('-').is_some_and(|(noted, _)| noted == name));
        let note = self.0.join(identity.note(name));
        if let Err(error) = fs::create_dir(&note) {
            warn!(note = %note.display(), %error, "cannot be noted: the next start will load it again");
        }
    }
}

fn remove(directory: &Path, unwanted: impl Fn(&str) -> bool) {
    let removed = fs::read_dir(directory).and_then(|entries| {
        for entry in entries {
            let entry = entry?;
            if unwanted(&entry.file_name().to_string_lossy()) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    });
    match removed {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // A note that stays names a program that no pin leads to.
        Err(error) => debug!(directory = %directory.display(), %error, "old notes stay"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THIS: Identity = Identity { number: 7, tag: 0xabc };

    #[test]
    fn only_this_program_made_of_the_same_is_known() {
        let directory = tempfile::tempdir().expect("a directory");
        let record = Record::open(directory.path(), ("object", 3));
        assert!(!record.knows("tc_wan_in", THIS));
        record.put("tc_wan_in", THIS);
        let again = Record::open(directory.path(), ("object", 3));
        assert!(again.knows("tc_wan_in", THIS));
        assert!(!again.knows("tc_wan_out", THIS));
        assert!(!again.knows("tc_wan_in", Identity { number: 8, ..THIS }));
        assert!(!again.knows("tc_wan_in", Identity { tag: 0xabd, ..THIS }));
    }

    #[test]
    fn what_was_made_of_something_else_is_forgotten_for_good() {
        let directory = tempfile::tempdir().expect("a directory");
        Record::open(directory.path(), ("object", 3)).put("tc_wan_in", THIS);
        let other = Record::open(directory.path(), ("object", 4));
        assert!(!other.knows("tc_wan_in", THIS));
        assert!(!Record::open(directory.path(), ("object", 3)).knows("tc_wan_in", THIS));
    }

    #[test]
    fn a_name_has_one_program() {
        let directory = tempfile::tempdir().expect("a directory");
        let record = Record::open(directory.path(), "object");
        record.put("tc_wan_in", THIS);
        record.put("tc_nat4_in", THIS);
        record.put("tc_wan_in", Identity { number: 8, ..THIS });
        assert!(!record.knows("tc_wan_in", THIS));
        assert!(record.knows("tc_nat4_in", THIS));
    }
}
