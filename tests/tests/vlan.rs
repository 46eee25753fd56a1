//! VLANs through the worker: machines in namespaces behind its bridge, real sockets, frames of our own making.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use telecluster_tests::{
    lab::{Lab, Netns, OUTSIDE, PATIENCE, WAN},
    switch::{
        frames::{BROADCAST, EXPERIMENT, ether, mac},
        wire::Wire,
    },
    tap::Tap,
};

/// A machine behind a port of `br-v`.
struct Machine {
    netns: Netns,
    port: String,
    address: Ipv4Addr,
}

impl Machine {
    /// Number `n` is 10.0.0.n, behind port `pn`, which is in no bridge yet.
    fn new(lab: &Lab, number: u8) -> Self {
        let netns = Netns::new();
        let port = format!("p{number}");
        lab.router.veth(&port, &netns, "eth0");
        netns.sh("sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1");
        netns.ip(&format!("link set eth0 address 02:00:00:00:00:{number:02x}"));
        netns.ip("link set eth0 up");
        let address = Ipv4Addr::new(10, 0, 0, number);
        netns.ip(&format!("addr add {address}/24 dev eth0"));
        Self { netns, port, address }
    }

    /// The same, in a VLAN of the bridge.
    fn in_vlan(lab: &Lab, number: u8, vlan: u16) -> Self {
        let machine = Self::new(lab, number);
        let body = json!({ "bridge_name": "br-v", "port_name": machine.port, "vlan": vlan });
        lab.post("/bridge/add-port", &body).ok();
        machine
    }

    fn wire(&self) -> Wire {
        self.netns.run(|| Wire::all("eth0"))
    }
}

/// A running worker's bridge `br-v`.
fn bridge(lab: &Lab) {
    lab.post("/bridge/create", &json!({ "name": "br-v" })).ok();
}

fn into_vlan(lab: &Lab, port: &str, vlan: u16, tagged: bool) -> Value {
    let body = json!({ "bridge_name": "br-v", "port_name": port, "vlan_id": vlan, "tagged": tagged });
    lab.post("/vlan/add-to-bridge", &body).ok()
}

/// A datagram there and back. It is sent until it is heard: what is sent before the kernel has seen the carrier of a
/// new pair is lost without a word.
#[track_caller]
fn talk(a: &Machine, b: &Machine) {
    let server = b.netns.udp((b.address, 7000));
    server.set_nonblocking(true).expect("not blocking");
    let client = a.netns.udp((a.address, 0));
    client.connect((b.address, 7000)).expect("connect");
    let mut buffer = [0; 16];
    let mut heard = None;
    eventually("the datagram did not come", || {
        client.send(b"hello").expect("send");
        thread::sleep(Duration::from_millis(1));
        heard = server.recv_from(&mut buffer).ok();
        heard.is_some()
    });
    let (length, from) = heard.expect("heard");
    server.send_to(&buffer[..length], from).expect("answer");
    assert_eq!(client.recv(&mut buffer).expect("the answer"), 5);
}

/// The next frame of an experiment.
#[track_caller]
fn next(wire: &Wire) -> Vec<u8> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match wire.receive() {
            Some(frame)
                if frame[12..14] == EXPERIMENT.to_be_bytes() || frame[16..18] == EXPERIMENT.to_be_bytes() =>
            {
                return frame;
            }
            Some(_) => {}
            None => {
                assert!(Instant::now() < deadline, "the frame did not come");
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// What one sends to all reaches the second and not the third, to whom a fourth says when it is over.
#[track_caller]
fn apart(from: &Machine, to: &Machine, other: &Machine, others_neighbour: &Machine) {
    let (to, other) = (to.wire(), other.wire());
    let hello = |machine: &Machine| {
        let frame = ether(mac(machine.address.octets()[3]), BROADCAST).bytes();
        machine.wire().send(&frame);
        frame
    };
    let sent = hello(from);
    assert_eq!(next(&to), sent);
    let last = hello(others_neighbour);
    assert_eq!(next(&other), last, "a frame of another VLAN");
}

#[track_caller]
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn rows(lab: &Lab) -> Vec<(String, u64)> {
    let rows = lab.get("/vlan/bridge-vlans");
    let row = |row: &Value| Some((row["port_name"].as_str()?.to_owned(), row["vlan_id"].as_u64()?));
    rows.as_array().expect("a list").iter().filter_map(row).collect()
}

/// One series of `/metrics`.
#[track_caller]
fn counter(lab: &Lab, name: &str, labels: &str) -> u64 {
    let text = lab.get("/metrics");
    let text = text.as_str().expect("text");
    let series = format!("telecluster_{name}{labels} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&series));
    value.and_then(|value| value.parse().ok()).expect("a series of that name")
}

/// Sends everything through `from` and reads it at `to`; the bytes must be the same.
fn transfer(mut from: TcpStream, mut to: TcpStream, length: usize) {
    let data: Vec<u8> = (0..length).map(|i| (i.wrapping_mul(2_654_435_761) >> 11).to_le_bytes()[0]).collect();
    thread::scope(|scope| {
        scope.spawn(|| {
            from.write_all(&data).expect("send");
            from.shutdown(Shutdown::Write).expect("finish sending");
        });
        let mut received = Vec::with_capacity(length);
        to.read_to_end(&mut received).expect("receive");
        assert!(received == data, "{} of {length} bytes, and not the same", received.len());
    });
}

fn connection(from: &Machine, to: &Machine) -> (TcpStream, TcpStream) {
    let listener = to.netns.listen((to.address, 7001));
    let stream = from.netns.connect((to.address, 7001)).expect("connect");
    let (accepted, _) = listener.accept().expect("accept");
    (stream, accepted)
}

#[test]
fn machines_of_one_vlan_talk_and_those_of_another_hear_nothing_with_the_worker_or_without() {
    let lab = Lab::new();
    let worker = lab.start();
    bridge(&lab);
    let [a, b] = [1, 2].map(|number| Machine::in_vlan(&lab, number, 10));
    let [c, d] = [3, 4].map(|number| Machine::in_vlan(&lab, number, 20));
    let check = || {
        talk(&a, &b);
        talk(&c, &d);
        apart(&a, &b, &c, &d);
    };
    check();
    worker.murder();
    check();
    // Nobody is there to learn for: a machine that moves is found all the same.
    a.netns.ip("link set eth0 down");
    a.netns.ip("link set eth0 up");
    check();
    let worker = lab.start();
    check();
    assert_eq!(
        rows(&lab),
        [("p1", 10), ("p2", 10), ("p3", 20), ("p4", 20)].map(|(port, vlan)| (port.to_owned(), vlan))
    );
    worker.stop();
    check();
}

#[test]
fn two_machines_with_one_address_in_two_vlans_are_both_reached() {
    let lab = Lab::new();
    let _worker = lab.start();
    bridge(&lab);
    let [a, b] = [(1, 10), (2, 20)].map(|(number, vlan)| Machine::in_vlan(&lab, number, vlan));
    // A cloned machine: the same Ethernet and the same IP address.
    let [one, two] = [(7, 10), (8, 20)].map(|(number, vlan)| {
        let machine = Machine::in_vlan(&lab, number, vlan);
        machine.netns.ip("link set eth0 address 02:00:00:00:00:77");
        machine.netns.ip("addr flush dev eth0");
        machine.netns.ip("addr add 10.0.0.77/24 dev eth0");
        Machine { address: Ipv4Addr::new(10, 0, 0, 77), ..machine }
    });
    for _ in 0..3 {
        talk(&a, &one);
        talk(&b, &two);
    }
    let known = lab.get("/vlan/fdb?mac_address=02:00:00:00:00:77");
    let known: Vec<_> =
        known.as_array().expect("a list").iter().map(|row| (&row["vlan_id"], &row["port_name"])).collect();
    assert_eq!(known, [(&json!(10), &json!("p7")), (&json!(20), &json!("p8"))]);
}

#[test]
fn a_bulk_connection_through_a_trunk_arrives_whole() {
    let lab = Lab::new();
    let _worker = lab.start();
    bridge(&lab);
    lab.post("/bridge/create", &json!({ "name": "br-w" })).ok();
    lab.post("/veth/create", &json!({ "name1": "t1", "name2": "t2", "bridge1": "br-v", "bridge2": "br-w" }))
        .ok();
    let trunk =
        |bridge: &str, port: &str| json!({ "bridge_name": bridge, "port_name": port, "vlans": "10,20" });
    lab.post("/vlan/add-to-bridge", &trunk("br-v", "t1")).ok();
    lab.post("/vlan/add-to-bridge", &trunk("br-w", "t2")).ok();
    let a = Machine::in_vlan(&lab, 1, 10);
    let b = Machine::new(&lab, 2);
    lab.post("/bridge/add-port", &json!({ "bridge_name": "br-w", "port_name": "p2", "vlan": 10 })).ok();
    for (from, to) in [(&a, &b), (&b, &a)] {
        let (stream, accepted) = connection(from, to);
        transfer(stream, accepted, 32 << 20);
    }
    for machine in [&a, &b] {
        assert_eq!(machine.netns.snmp("Tcp", "InCsumErrors"), 0);
    }
    let labels = r#"{bridge="br-w",port="t2",vlan="10",direction="rx"}"#;
    let bytes = counter(&lab, "vlan_bytes_total", labels);
    assert!(bytes > 32 << 20, "{bytes}");
}

#[test]
fn a_tap_in_a_vlan_is_a_machine_like_the_others() {
    let lab = Lab::new();
    let _worker = lab.start();
    bridge(&lab);
    let a = Machine::in_vlan(&lab, 1, 100);
    let other = Machine::in_vlan(&lab, 2, 200);
    let others_neighbour = Machine::in_vlan(&lab, 3, 200);
    lab.post("/tuntap/create", &json!({ "name": "tap-vm1", "type": "tap", "bridge": "br-v" })).ok();
    into_vlan(&lab, "tap-vm1", 100, false);
    let mut vm = Tap::open(&lab.router, "tap-vm1", 0, 0).expect("open the TAP");
    let (wire, others) = (a.wire(), other.wire());
    let hello = ether(mac(9), BROADCAST).bytes();
    eventually("the TAP's port does not forward", || {
        vm.send(&hello);
        thread::sleep(Duration::from_millis(10));
        wire.pending().contains(&hello)
    });
    // Its own VLAN only, whatever it writes into its frames.
    vm.send(&ether(mac(9), BROADCAST).q(200).bytes());
    vm.send(&ether(mac(9), BROADCAST).q(100).q(200).bytes());
    vm.send(&ether(mac(9), mac(1)).bytes());
    assert_eq!(next(&wire), ether(mac(9), mac(1)).bytes());
    others_neighbour.wire().send(&ether(mac(3), BROADCAST).bytes());
    assert_eq!(next(&others), ether(mac(3), BROADCAST).bytes());
    // And back, by its address.
    let answer = ether(mac(1), mac(9)).bytes();
    wire.send(&answer);
    assert_eq!(vm.receive(|frame| frame == answer), answer);
    // More than ours: the host's own IPv6 on the TAP is in no VLAN either.
    for reason in ["not_member", "nested_tag"] {
        let labels = format!(r#"{{bridge="br-v",port="tap-vm1",reason="{reason}"}}"#);
        let dropped = counter(&lab, "vlan_dropped_packets_total", &labels);
        assert!(dropped >= 1, "{reason}: {dropped}");
    }
}

#[test]
fn a_port_that_somebody_adds_hears_nothing_of_any_vlan() {
    let lab = Lab::new();
    let _worker = lab.start();
    bridge(&lab);
    let [a, b] = [1, 2].map(|number| Machine::in_vlan(&lab, number, 10));
    let stranger = Machine::new(&lab, 3);
    let (heard, listener) = (stranger.wire(), b.wire());
    lab.router.ip("link set p3 up");
    let talker = a.wire();
    let frame = ether(mac(1), BROADCAST).bytes();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        // All the time, from before it is a port until the worker has noticed it.
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                talker.send(&frame);
                thread::sleep(Duration::from_micros(300));
            }
        });
        lab.router.ip("link set p3 master br-v");
        // And it cannot send into one either: tagged, before it is filtered.
        for _ in 0..20 {
            heard.send(&ether(mac(3), BROADCAST).q(10).bytes());
        }
        eventually("the new port is not filtered", || {
            let ports = lab.get("/vlan/bridge-ports");
            ports.as_array().expect("a list").iter().any(|port| port["port_name"] == "p3")
        });
        done.store(true, Ordering::Relaxed);
    });
    let experiment = |frame: &Vec<u8>| {
        frame[12..14] == EXPERIMENT.to_be_bytes() || frame[16..18] == EXPERIMENT.to_be_bytes()
    };
    assert!(!heard.pending().iter().any(experiment), "frames of a VLAN went to a port that is in none");
    let from_stranger = |frame: &Vec<u8>| frame[6..12] == mac(3);
    assert!(!listener.pending().iter().any(from_stranger), "frames went into a VLAN that the port is not in");
}

#[test]
fn an_interface_that_is_made_again_has_its_vlans_again() {
    let lab = Lab::new();
    let _worker = lab.start();
    bridge(&lab);
    let [a, b] = [1, 2].map(|number| Machine::in_vlan(&lab, number, 10));
    let [c, d] = [3, 4].map(|number| Machine::in_vlan(&lab, number, 20));
    talk(&a, &b);
    drop(b);
    eventually("the interface is still there", || !rows(&lab).contains(&("p2".to_owned(), 10)));
    let b = Machine::new(&lab, 2);
    lab.router.ip("link set p2 up");
    eventually("it has no VLAN again", || rows(&lab).contains(&("p2".to_owned(), 10)));
    talk(&a, &b);
    talk(&b, &a);
    apart(&a, &b, &c, &d);
}

#[test]
fn a_port_whose_carrier_comes_and_goes_is_what_it_was() {
    let lab = Lab::new();
    let _worker = lab.start();
    bridge(&lab);
    let [a, b] = [1, 2].map(|number| Machine::in_vlan(&lab, number, 10));
    let [c, d] = [3, 4].map(|number| Machine::in_vlan(&lab, number, 20));
    for _ in 0..10 {
        b.netns.ip("link set eth0 down");
        b.netns.ip("link set eth0 up");
    }
    eventually("the port does not forward", || {
        let ports = lab.get("/vlan/bridge-ports");
        let port = ports.as_array().expect("a list").iter().find(|port| port["port_name"] == "p2").cloned();
        port.is_some_and(|port| port["forwarding"] == true)
    });
    talk(&a, &b);
    apart(&a, &b, &c, &d);
}

#[test]
fn the_host_is_in_a_vlan_and_masquerades_it() {
    let lab = Lab::new();
    let _worker = lab.start();
    lab.post("/bridge/create", &json!({ "name": "br-v", "addresses": ["10.0.0.254/24"] })).ok();
    into_vlan(&lab, "br-v", 10, false);
    let inside = Machine::in_vlan(&lab, 1, 10);
    let other = Machine::in_vlan(&lab, 2, 20);
    for machine in [&inside, &other] {
        machine.netns.ip("route add default via 10.0.0.254");
    }
    lab.post("/nat/masquerade", &json!({ "source_network": "10.0.0.0/24", "output_interface": "wan0" })).ok();
    let server = lab.outside.udp((OUTSIDE, 5300));
    let client = inside.netns.udp((inside.address, 40000));
    client.connect((OUTSIDE, 5300)).expect("connect");
    client.send(b"hello").expect("send");
    let mut buffer = [0; 16];
    let (length, from) = server.recv_from(&mut buffer).expect("the datagram");
    assert_eq!(from.to_string(), format!("{WAN}:40000"));
    server.send_to(&buffer[..length], from).expect("answer");
    assert_eq!(client.recv(&mut buffer).expect("the answer"), 5);
    // Of the other VLAN not even the question for the gateway's address arrives.
    let pinged = other.netns.command("ping").args(["-c1", "-W1", "10.0.0.254"]).output().expect("run ping");
    assert!(!pinged.status.success());
    let neighbours = lab.router.sh("ip neigh show dev br-v");
    assert!(neighbours.contains("10.0.0.1 ") && !neighbours.contains("10.0.0.2 "), "{neighbours}");
}

#[test]
fn a_tunnel_to_another_server_is_a_port_like_the_others() {
    let lab = Lab::new();
    let _worker = lab.start();
    bridge(&lab);
    let a = Machine::in_vlan(&lab, 1, 10);
    let other = Machine::in_vlan(&lab, 2, 20);
    for (netns, local, remote) in [(&lab.router, WAN, OUTSIDE), (&lab.outside, OUTSIDE, WAN)] {
        netns.ip(&format!("link add vx0 type vxlan id 42 local {local} remote {remote} dstport 4789"));
        netns.ip("link set vx0 up");
    }
    lab.outside.ip("addr add 10.0.0.9/24 dev vx0");
    lab.post("/bridge/add-port", &json!({ "bridge_name": "br-v", "port_name": "vx0", "vlan": 10 })).ok();
    let far = lab.outside.udp((Ipv4Addr::new(10, 0, 0, 9), 7000));
    let client = a.netns.udp((a.address, 7000));
    client.connect((Ipv4Addr::new(10, 0, 0, 9), 7000)).expect("connect");
    client.send(b"hello").expect("send");
    let mut buffer = [0; 16];
    let (length, from) = far.recv_from(&mut buffer).expect("the datagram");
    far.send_to(&buffer[..length], from).expect("answer");
    assert_eq!(client.recv(&mut buffer).expect("the answer"), 5);
    let known = lab.get("/vlan/fdb?port_name=vx0");
    assert_eq!(known[0]["vlan_id"], 10);
    drop(other);
}

#[test]
fn the_maps_explain_themselves() {
    let lab = Lab::new();
    let _worker = lab.start();
    bridge(&lab);
    let [a, b] = [1, 2].map(|number| Machine::in_vlan(&lab, number, 10));
    talk(&a, &b);
    let entries = |map: &str| {
        let dump = lab.dump(map);
        dump.into_iter().map(|entry| entry.get("formatted").cloned().unwrap_or(entry)).collect::<Vec<_>>()
    };
    let station = entries("fdb")
        .into_iter()
        .find(|entry| entry["key"]["mac"] == json!([2, 0, 0, 0, 0, 1]))
        .expect("a station");
    assert_eq!(station["key"]["vlan"], 10);
    let port = &station["value"]["port"];
    let member =
        entries("vlan_member").into_iter().find(|entry| entry["key"]["port"] == *port).expect("a member");
    assert_eq!((&member["key"]["vlan"], &member["value"]["untagged"]), (&json!(10), &json!(1)));
    let config = entries("port_cfg").into_iter().find(|entry| entry["key"] == *port).expect("a port");
    assert_eq!((&config["value"]["native"], &config["value"]["mtu"]), (&json!(10), &json!(1500)));
}

/// Where the kernel has VLAN interfaces: the kernels of the VMs have, the build machine's may not.
#[test]
fn a_router_on_a_stick_joins_two_vlans() {
    let lab = Lab::new();
    let _worker = lab.start();
    bridge(&lab);
    let router = Machine::new(&lab, 254);
    lab.post("/bridge/add-port", &json!({ "bridge_name": "br-v", "port_name": router.port })).ok();
    let trunk = json!({ "bridge_name": "br-v", "port_name": router.port, "vlans": "10,20" });
    lab.post("/vlan/add-to-bridge", &trunk).ok();
    let line = "ip link add link eth0 name v10 type vlan id 10";
    let made = router.netns.command("ip").args(line.split(' ').skip(1)).output().expect("run ip");
    if !made.status.success() {
        assert!(std::env::var_os("TELECLUSTER_VM").is_none(), "the kernels of the VMs have VLAN interfaces");
        eprintln!("this kernel has no VLAN interfaces (8021q): routed in the VM only");
        return;
    }
    router.netns.ip("link add link eth0 name v20 type vlan id 20");
    router.netns.ip("addr add 10.1.0.254/24 dev v10");
    router.netns.ip("addr add 10.2.0.254/24 dev v20");
    router.netns.ip("link set v10 up");
    router.netns.ip("link set v20 up");
    router.netns.sh("sysctl -qw net.ipv4.ip_forward=1");
    let [a, b] = [(1, 10), (2, 20)].map(|(number, vlan): (u8, u16)| {
        let machine = Machine::in_vlan(&lab, number, vlan);
        let net = vlan / 10;
        machine.netns.ip("addr flush dev eth0");
        machine.netns.ip(&format!("addr add 10.{net}.0.1/24 dev eth0"));
        machine.netns.ip(&format!("route add default via 10.{net}.0.254"));
        Machine { address: Ipv4Addr::new(10, u8::try_from(net).expect("a small number"), 0, 1), ..machine }
    });
    talk(&a, &b);
    let (stream, accepted) = connection(&a, &b);
    transfer(stream, accepted, 8 << 20);
    assert_eq!(b.netns.snmp("Tcp", "InCsumErrors"), 0);
}
