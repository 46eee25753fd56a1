//! The worker dies, stops, comes back and is replaced while many flows run: none of them notices.

use std::time::{Duration, Instant};

use serde_json::Value;
use telecluster_tests::{
    lab::{Lab, Worker, eventually},
    traffic::Traffic,
};

/// How often the programs are replaced by those of a new worker.
const REPLACEMENTS: u32 = 100;
/// In an emulated machine, where one may take minutes beside other work: for how long, each of the two kinds once at least.
const EMULATED: (Duration, u32) = (Duration::from_secs(600), 2);

fn sum(rows: &Value, of: &str) -> u64 {
    let rows = rows.as_array().expect("a list");
    rows.iter().map(|row| row[of].as_u64().expect("a number")).sum()
}

/// Every datagram was counted, there and back, however many workers have come and gone.
fn counted(lab: &Lab, datagrams: u64) {
    let flows = &lab.get("/nat/flows?protocol=udp&limit=1000")["flows"];
    for counter in ["packets_in", "packets_out"] {
        assert_eq!(sum(flows, counter), datagrams, "{counter}");
    }
}

/// A worker, and flows through it.
fn busy(lab: &Lab) -> (Worker, Traffic) {
    let worker = lab.start();
    let traffic = Traffic::start(lab);
    traffic.goes_on();
    (worker, traffic)
}

#[test]
fn a_killed_worker_is_missed_by_no_flow_and_neither_is_its_return() {
    let lab = Lab::new();
    let (mut worker, traffic) = busy(&lab);
    for _ in 0..3 {
        worker.murder();
        traffic.goes_on();
        worker = lab.start();
        traffic.goes_on();
    }
    let datagrams = traffic.finish();
    counted(&lab, datagrams);
    drop(worker);
}

#[test]
fn programs_are_replaced_again_and_again_and_no_packet_is_lost() {
    let lab = Lab::new();
    let (mut worker, traffic) = busy(&lab);
    let (began, emulated) = (Instant::now(), std::env::var_os("TELECLUSTER_VM").is_some());
    let enough = |number| emulated && number >= EMULATED.1 && began.elapsed() > EMULATED.0;
    for number in (0..REPLACEMENTS).take_while(|number| !enough(*number)) {
        let before = lab.programs();
        worker.stop();
        // With another constant they are other programs.
        let level = if number % 2 == 0 { "WARNING" } else { "INFO" };
        worker = lab.start_command(lab.worker_command().env("LOG_LEVEL", level));
        // It answers when the programs are there.
        lab.get("/nat/status");
        let after = lab.programs();
        assert!(before.iter().all(|(name, number)| after[name] != *number), "{before:?}, then {after:?}");
        println!("replaced {} times, {:?}", number + 1, began.elapsed());
    }
    traffic.goes_on();
    let datagrams = traffic.finish();
    counted(&lab, datagrams);
    drop(worker);
}

/// Killed before the programs were taken off that nobody needs any more: the next worker does it.
#[test]
fn a_worker_that_was_killed_after_its_last_rule_leaves_no_program_behind() {
    let lab = Lab::new();
    let worker = lab.start();
    lab.masquerade();
    let links = || lab.sh("ls /sys/fs/bpf/telecluster/links");
    let with_rules = links();
    assert!(with_rules.contains("lan"), "at interfaces towards inside hosts too: {with_rules}");
    lab.post("/nat/flush-nat", &serde_json::json!({})).ok();
    worker.murder();
    let _worker = lab.start();
    eventually("programs stay where no rule needs them", || links().trim().is_empty());
}
