//! Every system call by which the worker changes the machine fails once: what was asked for is then there whole or not at
//! all, and the worker goes on.
//!
//! `strace` makes the n-th call of each thread fail (`FAULTS=all`, or the name of a call: n from 1 until the workload no longer
//! reaches it; else a sample, `FAULTS_SEED`). A run ends with the first request that is not answered with success.

use std::collections::BTreeSet;

use proptest::{
    prelude::RngExt as _,
    test_runner::{RngAlgorithm, TestRng},
};
use serde_json::json;
use telecluster_tests::{
    lab::{Lab, Worker, eventually},
    objects::{Object, links, links_of, prepare, present, try_present},
    on_each_data_plane,
    strace::{Fault, Faults},
};

/// Netlink and HTTP (both sockets), BPF, files, devices; each with what the kernel may say. ETIMEDOUT stands for an answer that does
/// not come: EAGAIN would be a lie to whoever waits for the next byte of a request, and hang him.
const CALLS: [(&str, &[&str]); 7] = [
    ("sendto", &["EPERM", "EBUSY", "ENOMEM", "ENOBUFS", "EINTR"]),
    ("recvfrom", &["ETIMEDOUT", "ENOMEM", "EINTR"]),
    ("bpf", &["EPERM", "EBUSY", "ENOSPC", "ENOMEM", "EINTR"]),
    ("pwrite64", &["ENOSPC", "EIO", "EINTR"]),
    ("fdatasync", &["EIO", "ENOSPC"]),
    ("openat", &["EPERM", "ENOMEM", "EMFILE"]),
    ("ioctl", &["EPERM", "EBUSY", "ENOMEM", "EINTR"]),
];
/// Runs unless told otherwise: about a second each.
const SAMPLE: usize = 14;
/// The last call of a thread that a sample may hit.
const LATEST: u32 = 12;

/// Keeps the programs on the uplink.
const ALWAYS: Object = Object::Masquerade(u8::MAX);

/// What came of runs.
#[derive(Debug, Default)]
struct Tally {
    runs: usize,
    faults: usize,
    /// Requests that failed and left everything as it was.
    undone: usize,
    /// Requests that failed to answer, but not to do what was asked.
    done: usize,
}

on_each_data_plane!(a_call_that_fails_leaves_a_request_done_or_undone);

fn a_call_that_fails_leaves_a_request_done_or_undone(lab: &Lab) {
    let worker = lab.start();
    prepare(lab);
    let (path, body) = ALWAYS.create();
    lab.post(path, &body).ok();
    let mut tally = Tally::default();
    match std::env::var("FAULTS").as_deref() {
        Ok(calls) => everything(calls, lab, &worker, &mut tally),
        Err(_) => sample(lab, &worker, &mut tally),
    }
    println!("{tally:?}");
    assert!(tally.faults > 0 && tally.undone > 0, "nothing failed: {tally:?}");
    let there = present(lab);
    worker.murder();
    let _worker = lab.start();
    assert_eq!(present(lab), there, "what was acknowledged is lost");
}

/// The calls that this data plane makes. What iptables itself does is in `faults_iptables`.
fn calls(lab: &Lab) -> Vec<(&'static str, &'static [&'static str])> {
    let iptables = lab.dataplane() == Some("iptables");
    CALLS.into_iter().filter(|(call, _)| !(iptables && *call == "bpf")).collect()
}

/// One object of each kind that there can be.
fn kinds(lab: &Lab) -> impl Iterator<Item = Object> {
    let vlans = lab.dataplane() != Some("iptables") || lab.bridges_filter_vlans();
    Object::KINDS.into_iter().filter(move |object| vlans || !matches!(object, Object::Vlan(_)))
}

/// What cannot be synced may be in the file all the same.
#[test]
fn a_commit_that_was_refused_does_not_come_back_with_the_next_start() {
    let lab = Lab::new();
    let mut refused = 0;
    let mut worker = lab.start();
    for when in 1..=3 {
        // It answers when it has read its state.
        assert_eq!(present(&lab), []);
        let faults = Faults::inject(&worker, Fault { call: "fdatasync", error: "EIO", when });
        let (path, body) = Object::Forward(0).create();
        let made = lab.post(path, &body).status == 200;
        drop(faults);
        refused += usize::from(!made);
        worker.murder();
        worker = lab.start();
        assert_eq!(present(&lab).contains(&Object::Forward(0)), made, "the {when}th sync of a thread failed");
        if made {
            let (method, path, body) = Object::Forward(0).delete();
            lab.call(method, path, Some(&body)).ok();
        }
    }
    assert!(refused > 0, "nothing was refused");
}

fn everything(named: &str, lab: &Lab, worker: &Worker, tally: &mut Tally) {
    let mut random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    for (call, errors) in calls(lab).into_iter().filter(|(call, _)| named == "all" || named == *call) {
        for error in errors {
            for when in 1.. {
                if run(lab, worker, Fault { call, error, when }, &mut random, tally) == 0 {
                    println!("{call} {error}: {} calls of a thread", when - 1);
                    break;
                }
            }
        }
    }
}

fn sample(lab: &Lab, worker: &Worker, tally: &mut Tally) {
    let seed = std::env::var("FAULTS_SEED").map_or(0, |seed| seed.parse().expect("FAULTS_SEED is a number"));
    let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
    for (call, errors) in calls(lab).into_iter().cycle().take(SAMPLE) {
        let error = errors[random.random_range(0..errors.len())];
        let when = random.random_range(1..=LATEST);
        run(lab, worker, Fault { call, error, when }, &mut random, tally);
    }
}

/// Makes and deletes one object of each kind, in some order, until a request fails; how many calls did.
fn run(lab: &Lab, worker: &Worker, fault: Fault, random: &mut TestRng, tally: &mut Tally) -> usize {
    let mut requests: Vec<(Object, bool)> = Vec::new();
    for object in kinds(lab) {
        let place = random.random_range(0..=requests.len());
        requests.insert(place, (object, true));
        let later = random.random_range(place + 1..=requests.len());
        requests.insert(later, (object, false));
    }
    let mut there: BTreeSet<Object> = BTreeSet::new();
    let faults = match lab.dataplane() {
        Some("iptables") => Faults::inject_into_threads(worker, fault),
        _ => Faults::inject(worker, fault),
    };
    let mut failed = None;
    for (object, create) in requests {
        let (path, body) = object.create();
        let (method, path, body) = if create { ("POST", path, body) } else { object.delete() };
        let before = faults.count();
        match lab.try_call(method, path, Some(&body)) {
            Ok(answer) if answer.status == 200 => {
                if create {
                    there.insert(object)
                } else {
                    there.remove(&object)
                };
            }
            other => {
                let many = faults.count() > before + 1;
                failed = Some((object, create, many, format!("{other:?}")));
                break;
            }
        }
    }
    let count = faults.end();
    tally.runs += 1;
    tally.faults += count;
    let why = format!("{fault:?}: {failed:?}");
    if let Some((object, create, many, _)) = failed {
        assert!(count > 0, "{why}: and nothing has failed");
        let mut done = there.clone();
        if create {
            done.insert(object)
        } else {
            done.remove(&object)
        };
        let whole = || {
            let Some(found) = found(lab) else { return false };
            (found == there || found == done) && links(lab) == links_of(&Vec::from_iter(found))
        };
        match many {
            false => assert!(whole(), "{why}: {:?}, {:?}", try_present(lab), links(lab)),
            // When undoing failed too, the worker puts it right by and by.
            true => drop(eventually(&why, whole)),
        }
        match found(lab).is_some_and(|found| found == there) {
            true => tally.undone += 1,
            false => (there, tally.done) = (done, tally.done + 1),
        }
    }
    eventually(&why, || found(lab).is_some_and(|found| found == there));
    for object in there {
        let (method, path, body) = object.delete();
        let answer = lab.call(method, path, Some(&body));
        assert_eq!(answer.status, 200, "{why}: then {object:?}: {}", answer.body);
    }
    assert_eq!((found(lab), links(lab)), (Some(BTreeSet::new()), Vec::new()), "{why}");
    eventually(&format!("{why}: it is not healthy again"), || {
        lab.get("/health")["status"] == json!("healthy")
    });
    count
}

/// What is there and whole, beside what always is; `None` while something is not.
fn found(lab: &Lab) -> Option<BTreeSet<Object>> {
    let found = try_present(lab).ok()?;
    Some(found.into_iter().filter(|object| *object != ALWAYS).collect())
}

/// What a look has read before it failed is not taken for known by the next one.
#[test]
fn a_link_that_came_during_a_look_that_failed_is_seen() {
    let lab = Lab::new();
    let worker = lab.start();
    // It listens before it has looked for the first time.
    lab.get("/nat/status");
    // Of each thread the first; what a look reads before is the links.
    let faults = Faults::inject(&worker, Fault { call: "openat", error: "EMFILE", when: 1 });
    lab.router.ip("link add late type bridge");
    eventually("no look has failed", || faults.has_failed("/run/netns"));
    faults.end();
    let interfaces = lab.get("/network/interfaces");
    let names: Vec<_> = interfaces.as_array().expect("a list").iter().map(|one| &one["name"]).collect();
    assert!(names.iter().any(|name| **name == "late"), "{names:?}");
}
