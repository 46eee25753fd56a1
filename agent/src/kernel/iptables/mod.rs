//! The packet filter through `iptables-restore`: the only program that the worker ever runs, for firewall rules that
//! were asked for, and for the NAT where it is not eBPF's (`kernel::netfilter`).
//!
//! Rules go in by standard input, never as arguments. One call is one transaction of the kernel; it waits for
//! the lock of other programs (`-w`).

mod program;
mod script;
pub(super) mod watch;

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::errno::Errno;
use tokio::sync::mpsc::{self, error::TrySendError};
use tracing::{error, warn};

use self::script::Actual;
pub(super) use self::script::Family;
use super::{
    KernelError,
    filter::{FilterRule, Matched, PacketFilter},
};

/// Where programs of an administrator are; PATH of a service may lack them.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"];
/// Seconds that a call waits for the lock.
const LOCK_SECONDS: &str = "5";
/// How long it may take, the lock included. Ten thousand rules take a third of a second.
const DEADLINE: Duration = Duration::from_secs(10);

/// Runs the programs of the host's iptables.
#[derive(Debug, Clone)]
pub struct Iptables {
    /// For tests: where the programs are instead.
    directory: Option<PathBuf>,
    deadline: Duration,
    watch: Arc<Watch>,
}

impl Default for Iptables {
    fn default() -> Self {
        Self { directory: None, deadline: DEADLINE, watch: Arc::default() }
    }
}

/// Who is told of changes.
#[derive(Debug, Default)]
struct Watch {
    listener: Mutex<Option<mpsc::Sender<()>>>,
    look: Mutex<Look>,
}

/// The tables of the old iptables, which tell nobody.
#[derive(Debug, Default)]
struct Look {
    /// There are rules to look after.
    wanted: bool,
    /// A thread does.
    runs: bool,
}

impl Iptables {
    /// Looks for the programs in one directory only.
    pub fn in_directory(directory: impl Into<PathBuf>) -> Self {
        Self { directory: Some(directory.into()), ..Self::default() }
    }

    /// What happens to forwarded IPv4 packets that no rule names: `ACCEPT`, `DROP`. `None` without iptables.
    pub fn forward_policy(&self) -> Option<String> {
        let saved = self.save(Family::V4, &["-t", "filter"]).ok()?;
        let line = saved.lines().find_map(|line| line.strip_prefix(":FORWARD "))?;
        line.split(' ').next().map(str::to_owned)
    }

    fn program(&self, name: &str) -> Result<PathBuf, KernelError> {
        let usual = DIRECTORIES.iter().map(Path::new);
        let places: Vec<&Path> = match &self.directory {
            Some(directory) => vec![directory],
            None => usual.collect(),
        };
        places.iter().map(|place| place.join(name)).find(|path| path.is_file()).ok_or_else(|| KernelError {
            operation: format!("find {name}"),
            errno: Some(Errno::ENOPKG as i32),
            reason: "this needs the package iptables, which is not installed".to_owned(),
            extack: None,
        })
    }

    /// Runs one program to its end; what it wrote.
    pub(super) fn run(&self, name: &str, arguments: &[&str], input: &str) -> Result<String, KernelError> {
        let operation = format!("run {name}");
        let mut command = Command::new(self.program(name)?);
        // Its messages are parsed by nobody but people; nothing else of our environment is its business.
        command.args(arguments).env_clear().env("PATH", DIRECTORIES.join(":"));
        let done = program::run(command, input, self.deadline);
        let Some(Output { status, stdout, stderr }) =
            done.map_err(|error| super::rtnl::io_error(&operation, &error))?
        else {
            let seconds = self.deadline.as_secs_f32();
            let reason = format!(
                "it had not ended after {seconds} s and was killed; see whether another program holds \
                 /run/xtables.lock, and what `{name}` does when you run it yourself"
            );
            return Err(KernelError::other(operation, reason));
        };
        if !status.success() {
            let why = String::from_utf8_lossy(&stderr);
            let why = why.split_whitespace().collect::<Vec<_>>().join(" ");
            return Err(KernelError::other(operation, format!("{status}: {why}")));
        }
        Ok(String::from_utf8_lossy(&stdout).into_owned())
    }

    /// What there is in all tables, or in those that the arguments name, with counters.
    pub(super) fn save(&self, family: Family, arguments: &[&str]) -> Result<String, KernelError> {
        let name = match family {
            Family::V4 => "iptables-save",
            Family::V6 => "ip6tables-save",
        };
        let saved = self.run(name, &[&["-c"], arguments].concat(), "")?;
        // What is taken for no chains would be made a second time.
        match script::cut(&saved) {
            None => Ok(saved),
            Some(cut) => {
                Err(KernelError::other(format!("run {name}"), format!("its answer makes no sense: {cut}")))
            }
        }
    }

    pub(super) fn restore_with(&self, family: Family, script: &str) -> Result<(), KernelError> {
        let name = match family {
            Family::V4 => "iptables-restore",
            Family::V6 => "ip6tables-restore",
        };
        self.run(name, &["--noflush", "-w", LOCK_SECONDS], script).map(drop)
    }

    fn read(&self, family: Family) -> Result<Actual, KernelError> {
        Ok(script::read(&self.save(family, &["-t", "filter"])?))
    }

    /// Rule by rule where our chains are as we left them, so that counters go on; else all of them anew.
    fn change_one(
        &self,
        family: Family,
        before: &[FilterRule],
        after: &[FilterRule],
    ) -> Result<(), KernelError> {
        let actual = self.read(family)?;
        let script = match script::rebuild(family, &actual, before) {
            None => script::change(family, before, after),
            Some(_) => script::rebuild(family, &actual, after),
        };
        script.map_or(Ok(()), |script| self.restore_with(family, &script))
    }

    /// Brings one family in line, whatever is there.
    fn settle(&self, family: Family, rules: &[FilterRule]) -> Result<bool, KernelError> {
        match script::rebuild(family, &self.read(family)?, rules) {
            Some(script) => self.restore_with(family, &script).map(|()| true),
            None => Ok(false),
        }
    }

    /// Whatever kept the first attempt from it may be over with the second.
    fn put_back(&self, family: Family, rules: &[FilterRule]) {
        if let Err(error) = self.settle(family, rules).or_else(|_| self.settle(family, rules)) {
            error!(%error, "the firewall chains could not be put back; they will be with the next look");
        }
    }
}

impl Iptables {
    /// Where the old iptables has the rules, somebody has to look; where it has none, nobody does.
    fn look_after(&self, rules: &[FilterRule]) {
        let mut look = lock(&self.watch.look);
        look.wanted = !rules.is_empty();
        if look.runs || !look.wanted || !watch::has_legacy_tables() {
            return;
        }
        let Some(listener) = lock(&self.watch.listener).clone() else { return };
        let watch = Arc::clone(&self.watch);
        let wanted = move || {
            let mut look = lock(&watch.look);
            look.runs = look.wanted;
            look.runs
        };
        match watch::legacy("firewall-look", wanted, teller(listener)) {
            Ok(()) => look.runs = true,
            Err(error) => {
                warn!(%error, "what others do to the firewall rules is seen at the next change only")
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn teller(listener: mpsc::Sender<()>) -> impl FnMut() -> ControlFlow<()> + Send + 'static {
    move || match listener.try_send(()) {
        Ok(()) | Err(TrySendError::Full(())) => ControlFlow::Continue(()),
        Err(TrySendError::Closed(())) => ControlFlow::Break(()),
    }
}

impl PacketFilter for Iptables {
    fn change(&self, before: &[FilterRule], after: &[FilterRule]) -> Result<(), KernelError> {
        let mut touched: Vec<Family> = Vec::new();
        for family in families() {
            if script::change(family, before, after).is_none() {
                continue;
            }
            touched.push(family);
            if let Err(error) = self.change_one(family, before, after) {
                // This one too: it may be done, and only the answer lost.
                touched.into_iter().for_each(|family| self.put_back(family, before));
                return Err(error);
            }
        }
        self.look_after(after);
        Ok(())
    }

    fn restore(&self, rules: &[FilterRule]) -> Result<bool, KernelError> {
        let mut changed = false;
        for family in families() {
            changed |= self.settle(family, rules)?;
        }
        self.look_after(rules);
        Ok(changed)
    }

    fn events(&self) -> Result<mpsc::Receiver<()>, KernelError> {
        // One message in the channel says it all: look again.
        let (sender, receiver) = mpsc::channel(1);
        let tell = teller(sender.clone());
        watch::nf_tables("firewall-watch", Duration::ZERO, tell)?;
        *lock(&self.watch.listener) = Some(sender);
        Ok(receiver)
    }

    fn matched(&self) -> Result<BTreeMap<String, Matched>, KernelError> {
        let mut sum: BTreeMap<String, Matched> = BTreeMap::new();
        for family in families() {
            for (id, matched) in self.read(family)?.matched {
                let total = sum.entry(id).or_default();
                total.packets = total.packets.saturating_add(matched.packets);
                total.bytes = total.bytes.saturating_add(matched.bytes);
            }
        }
        Ok(sum)
    }
}

/// The families that the kernel has: `ipv6.disable=1` leaves no tables to put anything into.
pub(super) fn families() -> impl Iterator<Item = Family> {
    let v6 = Path::new("/proc/sys/net/ipv6").exists();
    Family::ALL.into_iter().filter(move |family| match family {
        Family::V4 => true,
        Family::V6 => v6,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_iptables_is_told_which_package_it_lacks() {
        let nowhere = tempfile::tempdir().unwrap();
        let error = Iptables::in_directory(nowhere.path()).restore(&[]).unwrap_err();
        assert_eq!(error.errno, Some(Errno::ENOPKG as i32));
        assert!(error.to_string().contains("package iptables"), "{error}");
    }
}
