//! The host's iptables, whose n-th call from now on goes wrong in some way.
//!
//! A small script stands where the programs are, in the worker's mounts only, and runs the real ones.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, thread, time::Duration};

use crate::lab::{Lab, eventually};

/// Where Debian's `iptables-restore` and its siblings lead to.
const PLACE: &str = "/usr/sbin/xtables-nft-multi";

/// How a call goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// It says that it could not, as when another one holds the lock.
    Refused,
    /// It does what it was told, and says that it could not.
    Lost,
    /// It is killed before it has done anything.
    Killed,
    /// It is killed when it has done everything.
    KilledLate,
    /// What it saves ends early; what it restores, after the first table.
    Half,
    /// It saves what nobody can read.
    Garbage,
    /// It never ends.
    Hangs,
}

impl Wrong {
    /// Those that take no time.
    pub const QUICK: [Self; 6] =
        [Self::Refused, Self::Lost, Self::Killed, Self::KilledLate, Self::Half, Self::Garbage];

    const fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Lost => "lost",
            Self::Killed => "killed",
            Self::KilledLate => "killed-late",
            Self::Half => "half",
            Self::Garbage => "garbage",
            Self::Hangs => "hangs",
        }
    }
}

/// Which iptables stands behind the names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    Nft,
    Legacy,
}

/// The script and what it is told, while this lives.
#[derive(Debug)]
pub struct FaultyIptables {
    directory: tempfile::TempDir,
}

impl FaultyIptables {
    /// Puts the script in the worker's way.
    pub fn place(lab: &Lab, variant: Variant) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let this = Self { directory };
        let real = match variant {
            Variant::Nft => PLACE,
            Variant::Legacy => "/usr/sbin/xtables-legacy-multi",
        };
        fs::copy(real, this.path("real")).expect("copy iptables");
        let script = SCRIPT.replace("@DIRECTORY@", &this.path("").display().to_string());
        fs::write(this.path("script"), script).expect("write the script");
        fs::set_permissions(this.path("script"), fs::Permissions::from_mode(0o755))
            .expect("make it a program");
        lab.sh(&format!("mount --bind {} {PLACE}", this.path("script").display()));
        this
    }

    /// The n-th call from now on goes wrong, once.
    pub fn arm(&self, n: usize, wrong: Wrong) {
        let _ = fs::remove_file(self.path("happened"));
        // Whole at once for a script that looks just now.
        fs::write(self.path("fault.new"), format!("{n} {}\n", wrong.name())).expect("arm");
        fs::rename(self.path("fault.new"), self.path("fault")).expect("arm");
    }

    /// Waits until the worker has not called for a second: after a change it looks whether others have made one.
    pub fn rest(&self) {
        let calls = || fs::read(self.path("calls")).map_or(0, |calls| calls.len());
        let mut before = calls();
        eventually("iptables is called without end", || {
            thread::sleep(Duration::from_secs(1));
            let now = calls();
            std::mem::replace(&mut before, now) == now
        });
    }

    /// Nothing goes wrong any more; the program that went wrong, if one did.
    pub fn disarm(&self) -> Option<String> {
        let _ = fs::remove_file(self.path("fault"));
        fs::read_to_string(self.path("happened")).ok()
    }

    /// What the real program says.
    pub fn saved(&self, lab: &Lab) -> String {
        let real = self.path("real").display().to_string();
        ["iptables-save", "ip6tables-save"].map(|program| lab.sh(&format!("{real} {program}"))).concat()
    }

    /// Runs the real program.
    pub fn real(&self, lab: &Lab, line: &str) {
        lab.sh(&format!("{} {line}", self.path("real").display()));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// Asks under a lock whether it is this call's turn: more than one thread of the worker may run a program.
const SCRIPT: &str = r#"#!/bin/sh
dir=@DIRECTORY@
name=${0##*/}
real() { "$dir/real" "$name" "$@"; }
exec 9>"$dir/lock"
flock 9
printf . >>"$dir/calls"
wrong=
if read -r n how 2>/dev/null <"$dir/fault"; then
  if [ "$n" -le 1 ]; then
    wrong=$how
    echo "$name" >"$dir/happened"
    rm -f "$dir/fault"
  else
    echo "$((n - 1)) $how" >"$dir/fault"
  fi
fi
exec 9>&-
case $wrong in
"") exec "$dir/real" "$name" "$@" ;;
killed) kill -9 $$ ;;
killed-late) real "$@"; kill -9 $$ ;;
lost) real "$@" ;;
hangs) exec sleep 3600 ;;
half)
  case $name in
  *-restore) sed '/^COMMIT/q' | real "$@" ;;
  *) real "$@" >"$dir/saved.$$"
     sed '/^COMMIT/,$d' "$dir/saved.$$"
     [ -s "$dir/saved.$$" ] && exit 0 ;;
  esac ;;
garbage) case $name in *-save) echo 'Segmentation fault'; exit 0 ;; esac ;;
esac
echo "$name: it went wrong ($wrong)" >&2
exit 4
"#;
