//! The worker beside iptables, nft and the floors, in one run of the shared bench, which is no part of this
//! repository.

use std::env;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{Measured, Options, What, gates};
use crate::build::{self, Profile};
use crate::setup::{self, Set, bpf_clang};
use crate::sh::{command, run, say, search_path, shown, target_dir, workspace};

/// iptables is in every run of the bench, as the reference.
const DEVICES: &str = "nft,nat-floor-tc,redirect-floor-tc";
/// An agent that is built already: of every profile, the programs are optimised.
const AGENT: &str = "TELECLUSTER_WORKER_BIN";
const WORKLOADS: &str = "udp-snat-1k,udp-dnat-1k,tcp-1,tcp-8,\
    rules-fwd-1,rules-fwd-100,rules-fwd-1k,rules-fwd-10k";

pub(super) fn measure(options: &Options) -> Result<Measured> {
    let bench = find_bench()?;
    setup::ensure(&[Set::Build, Set::Bench])?;
    mount_bpffs()?;
    let agent = match env::var_os(AGENT) {
        Some(built) => PathBuf::from(built),
        None => build::agent(Profile::Release)?,
    };
    let json = target_dir().join("bench.json");
    let mut measure = command("python3", [&bench]);
    let gates = options.what == What::Gates;
    if gates {
        measure.args(["--dut", gates::DEVICES, "--rounds", gates::ROUNDS]);
    } else {
        measure.arg("--dut").arg(format!("{DEVICES},command:worker=tests/bench/dut.sh"));
    }
    if options.quick {
        measure.args(["--quick", "--work", "udp-snat-1k,udp-dnat-1k"]);
    } else {
        measure.args(["--work", &if gates { gates::workloads() } else { WORKLOADS.to_owned() }]);
    }
    // Later arguments win: `-- --work tcp --rounds 9`.
    measure.args(&options.args).arg("--json").arg(&json).current_dir(workspace());
    measure.env("PATH", search_path()).env(AGENT, agent).env("TCB_BUILD", target_dir().join("bench"));
    if let Some(clang) = bpf_clang() {
        measure.env("CLANG", clang);
    }
    measure.env("PYTHONDONTWRITEBYTECODE", "1");
    let _ = fs::remove_file(&json);
    say(shown(&measure));
    // A device that fails a workload fails the run, but the others' figures are still worth seeing.
    let done = run(&mut measure);
    let results =
        fs::read_to_string(&json).with_context(|| format!("the bench left no {}", json.display()))?;
    let results = serde_json::from_str(&results)?;
    let table = if gates { gates::markdown(&results)? } else { markdown(&results)? };
    Ok(Measured { table, done })
}

/// The bench pins its programs there; on a machine that never used BPF nobody has mounted it.
fn mount_bpffs() -> Result<()> {
    const WHERE: &str = "/sys/fs/bpf";
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mounted = |line: &str| line.split(' ').skip(1).take(2).eq([WHERE, "bpf"]);
    if mounts.lines().any(mounted) {
        return Ok(());
    }
    say(format!("mounting the BPF file system on {WHERE}"));
    run(&mut command("mount", ["-t", "bpf", "bpf", WHERE]))
}

fn find_bench() -> Result<PathBuf> {
    let named = env::var_os("TELECLUSTER_BENCH").map(PathBuf::from);
    let bench = named.unwrap_or_else(|| workspace().join("../shared/bench/bench.py"));
    if !bench.is_file() {
        bail!("no bench at {}; TELECLUSTER_BENCH names another bench.py", bench.display());
    }
    Ok(bench.canonicalize()?)
}

/// A row per workload, a column per device: how many times as good as the reference (above 1 is
/// better), and the router's CPU time per packet where the workload has one.
fn markdown(results: &Value) -> Result<String> {
    let summary = results["summary"].as_array().context("the bench's JSON has no summary")?;
    let names = |key: &str| -> Vec<&str> {
        let mut names = Vec::new();
        for name in summary.iter().filter_map(|row| row[key].as_str()) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    };
    let (workloads, devices) = (names("workload"), names("dut"));
    let mut text = format!("| workload | {} |\n|---|{}\n", devices.join(" | "), "---|".repeat(devices.len()));
    for workload in workloads {
        let cells = devices.iter().map(|device| {
            let row = summary.iter().find(|row| row["workload"] == workload && row["dut"] == **device);
            row.map_or_else(|| "-".to_owned(), cell)
        });
        text.push_str(&format!("| {workload} | {} |\n", cells.collect::<Vec<_>>().join(" | ")));
    }
    Ok(text)
}

fn cell(row: &Value) -> String {
    let Some(ratio) = row["ratio"].as_f64() else { return "failed".to_owned() };
    match row["ns"].as_f64() {
        Some(ns) => format!("{ratio:.2} ({ns:.0} ns)"),
        None => format!("{ratio:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_becomes_a_table() {
        let results = serde_json::json!({"summary": [
            {"workload": "udp-snat-1k", "dut": "worker", "ratio": 1.404, "ns": 912.3},
            {"workload": "udp-snat-1k", "dut": "iptables", "ratio": 1.0, "ns": 1281.0},
            {"workload": "tcp-1", "dut": "worker", "n": 0},
        ]});
        assert_eq!(
            markdown(&results).unwrap(),
            "| workload | worker | iptables |\n|---|---|---|\n\
             | udp-snat-1k | 1.40 (912 ns) | 1.00 (1281 ns) |\n| tcp-1 | failed | - |\n"
        );
    }
}
