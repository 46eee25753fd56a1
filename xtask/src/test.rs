//! `cargo xtask test`: everything that must hold before a change goes in.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::build::{self, Profile};
use crate::leftovers::World;
use crate::libtest::Tally;
use crate::setup::{self, Set};
use crate::sh::{cargo, need_root, say, shown, table};
use crate::{lint, schemathesis, vm};

/// What another kernel may do differently: its verifier, clsact, what NAT and fast path do on real packets; and what
/// this one may not have at all: VLAN links (8021q), a bridge's own VLAN filter. What needs no kernel is not for it, and in an
/// emulator the others take too long for every run; `cargo xtask vm-test` runs them all.
const ON_ANOTHER_KERNEL: [&str; 9] =
    ["bridge_filter", "fastpath", "foreign", "icmp", "links", "nat", "nat6", "programs", "readme"];

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only tests whose name contains this; then nothing else is checked
    filter: Option<String>,
    /// Leave out the tests under another kernel
    #[arg(long)]
    no_vm: bool,
    /// Under which kernel they run
    #[arg(long, default_value = "6.1")]
    kernel: String,
}

pub(crate) fn main(options: &Options) -> Result<()> {
    need_root("test")?;
    setup::ensure(&[Set::Build, Set::Test])?;
    let whole = options.filter.is_none();
    let mut report = Report::default();
    if whole {
        report.step("lint", || lint::main().map(|()| "formatted, no warnings".to_owned()));
    }
    let before = World::now();
    report.step("tests on this kernel", || tests(options.filter.as_deref()));
    report.step("nothing left over", || {
        before.check().map(|()| "namespaces, links, pins, processes".to_owned())
    });
    if whole && !options.no_vm {
        let name = format!("tests under Linux {}", options.kernel);
        let vm = vm::Options {
            kernel: options.kernel.clone(),
            exec: None,
            filter: None,
            only: &ON_ANOTHER_KERNEL,
        };
        report.step(&name, || vm::main(&vm).map(|count| count.to_string()));
    }
    report.finish()
}

/// The workspace's tests, with the agent built for those that start it. What fails is tried once more, alone: on a
/// busy machine a test of real sockets can be unlucky, and then it is named in the summary instead of stopping
/// everybody. More than a few that fail are no bad luck.
fn tests(filter: Option<&str>) -> Result<String> {
    const UNLUCKY: usize = 3;
    let agent = build::agent(Profile::Dev)?;
    let strangers = schemathesis::program()?;
    let test = |filter: &[&str]| {
        let mut test = cargo(["test", "--workspace", "--exclude", "telecluster-ebpf", "--no-fail-fast"]);
        test.args(filter).env("TELECLUSTER_WORKER_BIN", &agent).env("SCHEMATHESIS", &strangers);
        test
    };
    say("testing");
    let (tally, status) = tallied(test(filter.as_slice()))?;
    if status.success() {
        if tally.is_empty() {
            bail!(
                "no test ran{}",
                filter.map(|filter| format!(": none is called {filter}")).unwrap_or_default()
            );
        }
        return Ok(tally.to_string());
    }
    let again: Vec<&str> = tally.failed().collect();
    if (1..=UNLUCKY).contains(&again.len()) {
        say(format!("trying again, alone: {}", again.join(", ")));
        let alone = [&["--", "--exact", "--test-threads=1"], again.as_slice()].concat();
        let (second, status) = tallied(test(&alone))?;
        if status.success() && !second.is_empty() {
            return Ok(format!("{tally}; alone: {second}\n{}", tally.complaints()));
        }
    }
    bail!("{tally} ({status})\n{}", tally.complaints())
}

/// Runs it with its output shown, and counted.
fn tallied(mut test: Command) -> Result<(Tally, ExitStatus)> {
    let mut running =
        test.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {}", shown(&test)))?;
    let stdout = running.stdout.take().context("cargo has no output")?;
    let mut tally = Tally::default();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        tally.add(&line);
        println!("{line}");
    }
    Ok((tally, running.wait()?))
}

/// Every step is tried; what failed is said at the end, together.
#[derive(Default)]
struct Report {
    rows: Vec<Vec<String>>,
    /// What does not fit into a row, of steps that have more to say
    details: Vec<String>,
    failed: Vec<String>,
}

impl Report {
    /// The first line of what the step says goes into the table, the others above it.
    fn step(&mut self, name: &str, step: impl FnOnce() -> Result<String>) {
        let start = Instant::now();
        let (mark, words) = match step() {
            Ok(words) => ("ok", words),
            Err(error) => {
                eprintln!("error: {name}: {error:#}");
                self.failed.push(name.to_owned());
                ("FAILED", format!("{error:#}"))
            }
        };
        let (short, more) = words.split_once('\n').unwrap_or((&words, ""));
        if !more.trim().is_empty() {
            self.details.push(format!("==> {name}\n{more}"));
        }
        self.rows.push(vec![mark.into(), name.into(), seconds(start.elapsed()), short.into()]);
    }

    fn finish(self) -> Result<()> {
        self.details.iter().for_each(|more| println!("{more}"));
        say("summary");
        print!("{}", table(&self.rows));
        if !self.failed.is_empty() {
            bail!("failed: {}", self.failed.join(", "));
        }
        Ok(())
    }
}

fn seconds(time: Duration) -> String {
    format!("{} s", time.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_fails_the_report_but_not_the_next_step() {
        let mut report = Report::default();
        report.step("one", || bail!("broken\nin many words"));
        report.step("two", || Ok("fine".into()));
        assert_eq!(report.rows.len(), 2);
        assert_eq!(report.rows[0][3], "broken");
        assert_eq!(report.details, ["==> one\nin many words"]);
        assert_eq!(report.finish().unwrap_err().to_string(), "failed: one");
    }
}
