//! A worker that starts again takes the programs that are pinned when they are its own to the last bit, and no others.

use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, TcpStream},
    process::Command,
    time::Duration,
};

use serde_json::Value;
use telecluster_tests::lab::{Lab, OUTSIDE, WAN, Worker, eventually};

/// Those that are not what they were.
fn changed(before: &BTreeMap<String, u32>, after: &BTreeMap<String, u32>) -> Vec<String> {
    assert_eq!(before.len(), after.len());
    before.keys().filter(|name| before[*name] != after[*name]).cloned().collect()
}

/// What hangs at the uplink.
fn attached(lab: &Lab) -> String {
    lab.sh("bpftool -j net show dev wan0")
}

/// The programs that others go on to: number by place.
fn stages(lab: &Lab) -> BTreeMap<String, String> {
    let entries = lab.dump("stage");
    let text = |entry: &Value, of: &str| entry[of].to_string();
    entries.iter().map(|entry| (text(entry, "key"), text(entry, "value"))).collect()
}

/// A worker that has begun its work, and not only to listen.
fn start(lab: &Lab, command: &mut Command) -> Worker {
    let worker = lab.start_command(command);
    lab.get("/nat/status");
    worker
}

/// A lab whose worker was killed, with a rule in force.
fn orphaned() -> Lab {
    let lab = Lab::on("ebpf");
    let worker = lab.start();
    lab.masquerade();
    worker.murder();
    lab
}

/// An outside host is reached through the masquerade.
fn translates(lab: &Lab) {
    let listener = lab.outside.listen((OUTSIDE, 5000));
    let _stream = lab.inside.connect((OUTSIDE, 5000)).expect("connect");
    let (_, from) = listener.accept().expect("a connection");
    assert_eq!(from.ip(), WAN);
}

#[test]
fn a_start_takes_its_own_programs_as_they_are() {
    let lab = orphaned();
    let (before, hooks, places) = (lab.programs(), attached(&lab), stages(&lab));
    assert!(before.len() > 50 && !places.is_empty(), "{before:?} {places:?}");
    for _ in 0..2 {
        start(&lab, &mut lab.worker_command()).murder();
        assert_eq!(lab.programs(), before);
        assert_eq!(attached(&lab), hooks);
        assert_eq!(stages(&lab), places);
    }
    let _worker = start(&lab, &mut lab.worker_command());
    translates(&lab);
}

#[test]
fn programs_with_other_constants_are_replaced_everywhere() {
    let lab = orphaned();
    let (before, hooks) = (lab.programs(), attached(&lab));
    let mut worker = start(&lab, lab.worker_command().env("PORTS_PER_HOST", "500"));
    let after = lab.programs();
    assert_eq!(changed(&before, &after).len(), before.len());
    assert_ne!(attached(&lab), hooks);
    translates(&lab);
    // And back: what was made of the first constants is not remembered.
    worker.murder();
    worker = start(&lab, &mut lab.worker_command());
    assert_eq!(changed(&after, &lab.programs()).len(), before.len());
    translates(&lab);
    drop(worker);
}

#[test]
fn programs_that_use_another_map_are_replaced() {
    let lab = orphaned();
    let before = lab.programs();
    fs::remove_file(lab.pinned("pace4")).expect("unpin a map");
    let _worker = start(&lab, &mut lab.worker_command());
    assert_eq!(changed(&before, &lab.programs()).len(), before.len());
    translates(&lab);
}

#[test]
fn a_program_that_is_gone_or_is_not_the_one_that_was_noted_is_loaded_anew() {
    let lab = orphaned();
    let before = lab.programs();
    let pins = lab.pins("progs");
    fs::remove_file(pins.join("tc_nat4_in")).expect("unpin a program");
    // Somebody else's under our name.
    fs::remove_file(pins.join("tc_wan_in")).expect("unpin a program");
    let other = before["tc_waited"];
    lab.sh(&format!("bpftool prog pin id {other} /sys/fs/bpf/telecluster/progs/tc_wan_in"));
    // Nobody says what this one is.
    let noted = format!("tc_first4_in-{}-", before["tc_first4_in"]);
    let note = lab.sh(&format!("find /sys/fs/bpf/telecluster -name {noted}*"));
    fs::remove_dir(lab.pins("").join(note.trim().trim_start_matches("/sys/fs/bpf/telecluster/")))
        .expect("a note");
    let _worker = start(&lab, &mut lab.worker_command());
    assert_eq!(changed(&before, &lab.programs()), ["tc_first4_in", "tc_nat4_in", "tc_wan_in"]);
    translates(&lab);
}

#[test]
fn places_that_somebody_has_emptied_are_filled() {
    let lab = orphaned();
    let (before, places) = (lab.programs(), stages(&lab));
    lab.sh("bpftool map delete pinned /sys/fs/bpf/telecluster/maps/stage key hex 00 00 00 00");
    assert_ne!(stages(&lab), places);
    let _worker = start(&lab, &mut lab.worker_command());
    assert_eq!((lab.programs(), stages(&lab)), (before, places));
    translates(&lab);
}

#[test]
fn what_adopted_programs_say_is_heard() {
    let mut lab = Lab::on("ebpf");
    lab.environment.push(("LOG_LEVEL", "DEBUG".to_owned()));
    let worker = lab.start();
    lab.masquerade();
    let before = lab.programs();
    worker.murder();
    let log = lab.state.path().join("log");
    let file = fs::File::create(&log).expect("a log");
    let _worker = start(&lab, lab.worker_command().stderr(file));
    assert_eq!(lab.programs(), before);
    eventually("no word of a dropped packet", || {
        // Nobody listens there, and nobody is told so.
        let closed = SocketAddr::from((WAN, 81));
        let _ = lab.outside.run(|| TcpStream::connect_timeout(&closed, Duration::from_millis(100)));
        fs::read_to_string(&log)
            .expect("the log")
            .lines()
            .any(|line| line.contains("dropped") && line.contains("reason"))
    });
}

/// Flows live in them: whoever updates decides.
#[test]
fn pins_of_another_version_are_refused_with_what_to_do_and_nothing_is_wiped() {
    let pins = "/sys/fs/bpf/telecluster";
    let flow4 = format!("{pins}/maps/flow4");
    let other_map =
        format!("rm {flow4} && bpftool map create {flow4} type hash key 4 value 4 entries 16 name flow4");
    let other_schema = format!("mkdir {pins}/schema-1");
    // As large, but of what nobody knows.
    let epoch = format!("{pins}/maps/epoch");
    let nameless =
        format!("rm {epoch} && bpftool map create {epoch} type array key 4 value 16 entries 1 name epoch");
    for (changed, said) in [(other_map, "flow4"), (other_schema, "schema-1"), (nameless, "no BTF")] {
        for dataplane in ["ebpf", "auto"] {
            let mut lab = orphaned();
            lab.set_dataplane(dataplane);
            lab.sh(&format!("test -e {flow4}"));
            let done = lab.command("sh").args(["-c", &changed]).status().expect("a shell");
            assert!(done.success(), "{changed}");
            let there = || lab.sh(&format!("find {pins}")) + &attached(&lab);
            let before = there();
            let Err(words) = lab.try_start(&mut lab.worker_command()) else {
                unreachable!("it has started: {changed}")
            };
            assert!(words.contains(said) && words.contains("telecluster-worker teardown"), "{words}");
            assert_eq!(there(), before, "{words}");
        }
    }
}
