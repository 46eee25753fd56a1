//! What the worker writes apart from its store: the token, pins and notes in the BPF file system, settings of the kernel. Where that
//! cannot be, a start or a change says what and why, nothing is half there, and the next one works.

use std::{fs, process::Command};

use nix::errno::Errno;
use proptest::{
    prelude::RngExt as _,
    test_runner::{RngAlgorithm, TestRng},
};
use serde_json::{Value, json};
use telecluster_tests::lab::{INSIDE_NET, Lab, Worker, eventually};

fn shell(lab: &Lab, line: &str) {
    let status = lab.command("sh").args(["-c", line]).status().expect("a shell");
    assert!(status.success(), "{line}");
}

fn masquerade() -> Value {
    json!({ "source_network": INSIDE_NET, "output_interface": "wan0" })
}

/// Refused with what could not be written and why; and neither a rule nor a program of one is there.
#[track_caller]
fn refused(lab: &Lab, what: &str) {
    let answer = lab.post("/nat/masquerade", &masquerade());
    let message = answer.body["message"].as_str().unwrap_or_default();
    assert!(answer.status == 409 && message.contains("EROFS") && message.contains(what), "{answer:?}");
    assert_eq!(lab.get("/nat/status")["masquerade_rules"], json!([]), "{answer:?}");
    let hooks = lab.router.sh("bpftool net show dev wan0");
    assert!(!hooks.contains("tc_wan"), "after {answer:?}: {hooks}");
}

#[test]
fn settings_of_the_kernel_that_are_read_only_refuse_a_rule_whole() {
    for dataplane in ["ebpf", "iptables"] {
        let lab = Lab::on(dataplane);
        lab.router.sh("sysctl -qw net.ipv4.ip_forward=0");
        let _worker = lab.start();
        shell(&lab, "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys");
        refused(&lab, "ip_forward");
        let chains = lab.sh("iptables-save");
        assert!(!chains.contains("TELECLUSTER"), "{chains}");
        shell(&lab, "umount /proc/sys");
        lab.post("/nat/masquerade", &masquerade()).ok();
        assert_eq!(lab.router.sh("cat /proc/sys/net/ipv4/ip_forward").trim(), "1");
    }
}

#[test]
fn a_bpf_file_system_that_is_read_only_stops_a_start_and_refuses_a_rule() {
    let lab = Lab::on("ebpf");
    shell(&lab, "mount -o remount,bind,ro /sys/fs/bpf");
    let Err(said) = lab.try_start(&mut lab.worker_command()) else {
        unreachable!("it has started without pins")
    };
    assert!(said.contains("/sys/fs/bpf/telecluster") && said.contains("EROFS"), "{said}");
    shell(&lab, "mount -o remount,bind,rw /sys/fs/bpf");
    let _worker = lab.start();
    // When it answers, its pins are there.
    lab.get("/health");
    shell(&lab, "mount -o remount,bind,ro /sys/fs/bpf");
    refused(&lab, "wan0");
    shell(&lab, "mount -o remount,bind,rw /sys/fs/bpf");
    lab.post("/nat/masquerade", &masquerade()).ok();
    assert_eq!(lab.get("/health")["status"], "healthy");
}

#[test]
fn a_state_directory_that_is_full_or_read_only_is_named_and_leaves_no_half_token() {
    let lab = Lab::new();
    let state = lab.state.path().display().to_string();
    shell(&lab, &format!("mount -t tmpfs -o size=8m state {state}"));
    lab.start().stop();
    let open = || {
        let mut command = lab.worker_command();
        command.env("HOST", "0.0.0.0");
        command
    };
    for (broken, mended, why) in [
        (
            format!("cat /dev/zero >{state}/filler 2>/dev/null; test -s {state}/filler"),
            format!("rm {state}/filler"),
            "No space left on device",
        ),
        (
            format!("mount -o remount,ro {state}"),
            format!("mount -o remount,rw {state}"),
            "Read-only file system",
        ),
    ] {
        shell(&lab, &broken);
        let Err(said) = lab.try_start(&mut open()) else { unreachable!("it has started: {why}") };
        assert!(said.contains(&state) && said.contains(why), "{said}");
        shell(&lab, &mended);
        shell(&lab, &format!("test ! -e {state}/token"));
    }
    let _worker = lab.try_start(&mut open()).expect("it starts");
    let token = lab.sh(&format!("cat {state}/token"));
    assert_eq!(token.trim().len(), 64, "{token}");
}

/// What a start calls to write, and what may come of it. `bpf` pins too.
const CALLS: [(&str, &[Errno]); 6] = [
    ("mkdir", &[Errno::EROFS, Errno::EACCES, Errno::ENOSPC]),
    ("bpf", &[Errno::EPERM, Errno::ENOSPC, Errno::ENOMEM]),
    ("openat", &[Errno::EROFS, Errno::EACCES, Errno::EMFILE]),
    ("unlink", &[Errno::EROFS, Errno::EACCES]),
    ("rmdir", &[Errno::EROFS, Errno::EACCES]),
    ("rename", &[Errno::EROFS, Errno::EACCES, Errno::ENOSPC]),
];
/// Starts for each call, unless `FAULTS=all`, and the last call that those may hit.
const SAMPLE: (usize, u32) = (3, 60);

/// A worker whose n-th call of a thread fails while it starts.
fn failing(lab: &Lab, log: &str, call: &str, error: Errno, n: u32) -> Command {
    let mut command = lab.command("strace");
    // -D: the worker is what is started, and ends when it is told to.
    command.args(["-D", "-f", "-qq", "-o", log, "-e", &format!("trace={call}")]);
    command.args(["-e", &format!("inject={call}:error={error:?}:when={n}")]).arg(Worker::binary());
    let as_usual = lab.worker_command();
    command.envs(as_usual.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

/// Whether a strace that writes there still runs.
fn watches(log: &str) -> bool {
    let processes = fs::read_dir("/proc").expect("the processes").filter_map(Result::ok);
    let mut commands = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    commands.any(|command| {
        let mut words = command.split(|byte| *byte == 0);
        words.next() == Some(b"strace") && words.any(|word| word == log.as_bytes())
    })
}

#[test]
fn a_start_in_which_a_call_fails_works_or_says_why_and_the_next_one_has_everything() {
    let lab = Lab::on("ebpf");
    let worker = lab.start();
    lab.masquerade();
    lab.forward("tcp", 2222, 22);
    worker.murder();
    let rules = || {
        // The call that fails may be one of a thread that has answered nothing yet.
        let mut status = Value::Null;
        eventually("the rules are not shown", || {
            let answer = lab.call("GET", "/nat/status", None);
            status = answer.body;
            answer.status == 200
        });
        ["masquerade_rules", "port_forwards"].map(|list| status[list].as_array().map(Vec::len))
    };
    let log = tempfile::NamedTempFile::new().expect("a file for what strace sees");
    let path = log.path().to_str().expect("a path");
    let mut random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let (mut failed, mut ended) = (0, 0);
    let mut start = |call: &str, error: Errno, n: u32| {
        let what = format!("{call} {n} {error:?}");
        let started = lab.try_start(&mut failing(&lab, path, call, error, n)).map(|worker| {
            assert_eq!(rules(), [Some(1), Some(1)], "{what}");
            worker.murder();
        });
        // All of it is written when strace has ended.
        eventually("strace stays behind", || !watches(path));
        let seen = fs::read_to_string(path).expect("what strace saw");
        let happened = seen.lines().any(|line| line.contains("(INJECTED)"));
        failed += usize::from(happened);
        if let Err(said) = started {
            ended += 1;
            assert!(happened, "{what}: nothing has failed: {said}");
            // The last is how the loader of its libraries says it, before there is a worker.
            let words = [format!("{error:?}"), error.desc().to_owned(), format!(": Error {}", error as i32)];
            assert!(words.iter().any(|words| said.contains(words)), "{what}: {said}");
            assert!(!said.contains("panicked"), "{what}: {said}");
        }
        happened
    };
    for (call, errors) in CALLS {
        if std::env::var_os("FAULTS").is_some() {
            for error in errors {
                let _ = (1..).find(|n| !start(call, *error, *n));
            }
            continue;
        }
        let mut last = SAMPLE.1;
        for _ in 0..SAMPLE.0 {
            let n = random.random_range(1..=last);
            // Beyond the last one: not so far again.
            if !start(call, errors[random.random_range(0..errors.len())], n) {
                last = (n / 4).max(1);
            }
        }
    }
    println!("{failed} starts in which a call failed, {ended} of them ended with it");
    assert!(failed > 0);
    let _worker = lab.start();
    assert_eq!(rules(), [Some(1), Some(1)]);
    assert_eq!(lab.get("/health")["status"], "healthy");
}
