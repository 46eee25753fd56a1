//! What a test run may leave on the machine by mistake: namespaces, links, pins, processes.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::sh::{command, output, target_dir};

/// Veths vanish a moment after their namespace does.
const PATIENCE: Duration = Duration::from_secs(5);

/// The machine at one moment.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct World(BTreeSet<String>);

impl World {
    pub(crate) fn now() -> Self {
        let mut things = BTreeSet::new();
        let mut add = |what: &str, names: Vec<String>| {
            things.extend(names.into_iter().map(|name| format!("{what} {name}")));
        };
        add("network namespace", entries(Path::new("/run/netns")));
        add("link", links());
        let pins = entries(Path::new("/sys/fs/bpf"));
        add("pin /sys/fs/bpf", pins.into_iter().filter(|name| name.starts_with("telecluster")).collect());
        add("process", processes());
        Self(things)
    }

    /// Fails naming whatever is there now and was not then.
    pub(crate) fn check(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = self.new_in(&Self::now());
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("left over: {}", left.join(", "));
            }
            sleep(Duration::from_millis(200));
        }
    }

    fn new_in(&self, later: &Self) -> Vec<String> {
        later.0.difference(&self.0).cloned().collect()
    }
}

fn entries(dir: &Path) -> Vec<String> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Links of this namespace, asked by netlink: /sys may show another namespace's.
fn links() -> Vec<String> {
    let listing = output(&mut command("ip", ["-o", "link", "show"])).unwrap_or_default();
    listing.lines().filter_map(|line| line.split(": ").nth(1)).map(str::to_owned).collect()
}

/// Processes whose program was built here, ourselves excepted. A deleted one counts too.
fn processes() -> Vec<String> {
    let (target, me) = (target_dir(), std::process::id().to_string());
    let ours = |pid: &String| -> Option<String> {
        let exe = fs::read_link(Path::new("/proc").join(pid).join("exe")).ok()?;
        let name = exe.file_name()?.to_string_lossy().into_owned();
        (exe.starts_with(&target) && *pid != me && !name.starts_with("xtask"))
            .then(|| format!("{pid} ({name})"))
    };
    let pids = entries(Path::new("/proc"));
    pids.iter().filter(|name| name.bytes().all(|b| b.is_ascii_digit())).filter_map(ours).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(things: &[&str]) -> World {
        World(things.iter().map(|thing| (*thing).to_owned()).collect())
    }

    #[test]
    fn only_what_is_new_is_left_over() {
        let before = world(&["link lo", "link docker0"]);
        assert_eq!(before.new_in(&world(&["link lo", "link tc-1"])), ["link tc-1"]);
        assert!(before.new_in(&world(&["link lo"])).is_empty());
    }

    #[test]
    fn loopback_is_always_there() {
        assert!(World::now().0.contains("link lo"));
    }
}
