//! `cargo xtask test`: everything that must hold before a change goes in.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::build::{self, Profile};
use crate::leftovers::World;
use crate::setup::{self, Set};
use crate::sh::{cargo, need_root, say, shown, table};
use crate::{lint, schemathesis, vm};

/// What another kernel may do differently: its verifier, clsact, what NAT and fast path do on real packets; and what
/// this one may not have at all: VLAN links (8021q). In an emulator the others take too long for every run; `cargo xtask
/// vm-test` runs them all.
const ON_ANOTHER_KERNEL: [&str; 10] =
    ["cone", "engine", "fastpath", "icmp", "links", "mapping", "nat", "nat6", "programs", "readme"];

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

/// The workspace's tests, with the agent built for those that start it.
fn tests(filter: Option<&str>) -> Result<String> {
    let agent = build::agent(Profile::Dev)?;
    let strangers = schemathesis::program()?;
    say("testing");
    let mut test = cargo(["test", "--workspace", "--exclude", "telecluster-ebpf", "--no-fail-fast"]);
    test.args(filter).env("TELECLUSTER_WORKER_BIN", agent).env("SCHEMATHESIS", strangers);
    let mut running =
        test.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {}", shown(&test)))?;
    let stdout = running.stdout.take().context("cargo has no output")?;
    let mut count = Count::default();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        count.add(&line);
        println!("{line}");
    }
    let status = running.wait()?;
    if !status.success() {
        bail!("{count} ({status})");
    }
    if count.is_empty() {
        bail!("no test ran{}", filter.map(|filter| format!(": none is called {filter}")).unwrap_or_default());
    }
    Ok(count.to_string())
}

/// Sums of libtest's `test result:` lines.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Count {
    /// A run in which nothing was tried proves nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.passed + self.failed == 0
    }

    pub(crate) fn add(&mut self, line: &str) {
        let Some((_, result)) = line.split_once("test result: ") else { return };
        let words: Vec<&str> = result.split_whitespace().collect();
        for pair in words.windows(2) {
            let [number, what] = pair else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what.trim_end_matches(';') {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

impl std::fmt::Display for Count {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} ignored", self.passed, self.failed, self.ignored)
    }
}

/// Every step is tried; what failed is said at the end, together.
#[derive(Default)]
struct Report {
    rows: Vec<Vec<String>>,
    failed: Vec<String>,
}

impl Report {
    fn step(&mut self, name: &str, step: impl FnOnce() -> Result<String>) {
        let start = Instant::now();
        let (mark, words) = match step() {
            Ok(words) => ("ok", words),
            Err(error) => {
                eprintln!("error: {name}: {error:#}");
                self.failed.push(name.to_owned());
                ("FAILED", format!("{error:#}").lines().next().unwrap_or_default().to_owned())
            }
        };
        self.rows.push(vec![mark.into(), name.into(), seconds(start.elapsed()), words]);
    }

    fn finish(self) -> Result<()> {
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
    fn results_of_several_binaries_are_summed() {
        let mut count = Count::default();
        for line in [
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 9 filtered out; finished in 1.20s",
        ] {
            count.add(line);
        }
        assert_eq!(count, Count { passed: 7, failed: 2, ignored: 1 });
    }

    #[test]
    fn a_failed_step_fails_the_report_but_not_the_next_step() {
        let mut report = Report::default();
        report.step("one", || bail!("broken"));
        report.step("two", || Ok("fine".into()));
        assert_eq!(report.rows.len(), 2);
        assert_eq!(report.finish().unwrap_err().to_string(), "failed: one");
    }
}
