//! The systemd unit: sound by systemd's own judgement, and with rights that are enough for everything and none too many.

#![expect(clippy::panic, reason = "a failure is a panic")]

use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Child, Command, Output},
};

use serde_json::json;
use telecluster_tests::lab::{INSIDE, INSIDE_NET, Lab, OUTSIDE, PATIENCE, WAN, Worker, eventually};

const UNIT: &str = include_str!("../../agent/systemd/telecluster-worker.service");
/// Of 10, as `systemd-analyze security` counts; what is left is the network, root, and namespaces.
const EXPOSURE: &str = "35";

/// The values of a setting, all its lines.
fn setting(name: &str) -> Vec<&str> {
    let assigned = UNIT.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    assigned.flat_map(str::split_whitespace).collect()
}

/// The unit in a directory, with the worker that was just built.
fn installed(directory: &Path) -> PathBuf {
    let unit = directory.join("telecluster-worker.service");
    let [program] = setting("ExecStart")[..] else { panic!("one program") };
    let text = UNIT.replace(program, Worker::binary().to_str().expect("a path"));
    fs::write(&unit, text).expect("write the unit");
    unit
}

fn systemd_analyze(arguments: &[&str], unit: &Path) -> String {
    let Output { status, stdout, stderr } =
        Command::new("systemd-analyze").args(arguments).arg(unit).output().expect("systemd-analyze");
    let text = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{text}");
    text
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit() {
    if std::env::var_os("TELECLUSTER_VM").is_some() {
        eprintln!(
            "not in the VM: there is no systemd, and what it says of a file does not depend on the kernel"
        );
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let unit = installed(directory.path());
    let said = systemd_analyze(&["verify", "--man=no"], &unit);
    assert!(!said.contains("telecluster-worker.service"), "{said}");
    systemd_analyze(&["security", "--offline=yes", "--threshold", EXPOSURE], &unit);
}

/// A worker with these capabilities and no way to more; systemd is told by `socket`.
fn confined(lab: &Lab, capabilities: &[&str], socket: &Path) -> Command {
    let bounding: String = capabilities
        .iter()
        .map(|name| format!(",+{}", name.trim_start_matches("CAP_").to_lowercase()))
        .collect();
    let worker = lab.worker_command();
    let mut command = lab.command("setpriv");
    command
        .args(["--no-new-privs", &format!("--bounding-set=-all{bounding}")])
        .arg(Worker::binary())
        .envs(worker.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .env("NOTIFY_SOCKET", socket);
    command
}

/// The socket at which systemd would listen, and where it is.
fn service_manager(lab: &Lab) -> (UnixDatagram, PathBuf) {
    let path = lab.state.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    (socket, path)
}

/// Whether it gets ready; else it has ended.
fn comes_up(socket: &UnixDatagram, worker: &mut Child) -> bool {
    socket.set_nonblocking(true).expect("not blocking");
    let mut ready = false;
    eventually("it neither ends nor gets ready", || {
        ready = socket.recv(&mut [0; 256]).is_ok();
        ready || worker.try_wait().expect("look at the worker").is_some()
    });
    ready
}

/// What systemd hears.
fn hears(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 256];
    let length = socket.recv(&mut buffer).expect("a word to systemd");
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

/// Everything that needs a right of its own; the calls that failed.
fn refused(lab: &Lab) -> Vec<String> {
    lab.sh("ip netns add guest");
    let calls = [
        ("/bridge/create", json!({ "name": "br-u" })),
        ("/veth/create", json!({ "name1": "veth-u1", "name2": "veth-u2", "bridge1": "br-u" })),
        ("/veth/move-to-namespace", json!({ "veth_name": "veth-u2", "target_namespace": "guest" })),
        ("/tuntap/create", json!({ "name": "tap-u", "type": "tap", "bridge": "br-u" })),
        ("/vlan/add-to-bridge", json!({ "bridge_name": "br-u", "port_name": "tap-u", "vlan_id": 100 })),
        ("/nat/masquerade", json!({ "source_network": INSIDE_NET, "output_interface": "wan0" })),
        ("/nat/forward", json!({ "external_port": 2222, "internal_ip": INSIDE, "internal_port": 22 })),
        ("/nat/firewall", json!({ "chain": "FORWARD", "action": "DROP", "protocol": "tcp", "port": 25 })),
        ("/network/ping", json!({ "target": OUTSIDE, "count": 1 })),
        ("/network/traceroute", json!({ "target": OUTSIDE })),
    ];
    let answers = calls.map(|(path, body)| (path, lab.post(path, &body)));
    let failed = answers.into_iter().filter(|(_, answer)| answer.body["data"]["success"] != true);
    failed.map(|(path, answer)| format!("{path}: {}", answer.body)).collect()
}

#[test]
fn the_unit_s_capabilities_are_enough_and_systemd_is_told() {
    let lab = Lab::new();
    let (socket, path) = service_manager(&lab);
    let worker = lab.start_command(&mut confined(&lab, &setting("CapabilityBoundingSet"), &path));
    assert_eq!(hears(&socket), "READY=1\n");
    assert_eq!(refused(&lab), [""; 0]);
    let server = lab.outside.udp((OUTSIDE, 5300));
    let client = lab.inside.udp((INSIDE, 40000));
    client.send_to(b"hello", (OUTSIDE, 5300)).expect("send");
    let (_, from) = server.recv_from(&mut [0; 16]).expect("the datagram");
    assert_eq!(from.to_string(), format!("{WAN}:40000"));
    worker.stop();
    assert_eq!(hears(&socket), "STOPPING=1\n");
}

#[test]
fn without_any_of_its_capabilities_something_is_refused_or_said() {
    let capabilities = setting("CapabilityBoundingSet");
    for without in &capabilities {
        let lab = Lab::new();
        let (socket, path) = service_manager(&lab);
        let kept: Vec<&str> = capabilities.iter().copied().filter(|name| name != without).collect();
        let log = lab.state.path().join("log");
        let mut command = confined(&lab, &kept, &path);
        let mut worker =
            command.stderr(fs::File::create(&log).expect("a log")).spawn().expect("start the worker");
        // It says at once that it cannot work, or it works and cannot do everything.
        let missed = !comes_up(&socket, &mut worker)
            || !refused(&lab).is_empty()
            || fs::read_to_string(&log).expect("read the log").contains(without);
        assert!(missed, "{without} is needed for nothing");
        let _ = worker.kill();
        let _ = worker.wait();
    }
}
