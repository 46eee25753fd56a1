//! VLANs through the worker: machines in namespaces behind its bridge, real sockets, frames of our own making.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpStream},
    thread,
    time::Duration,
};

use serde_json::json;
use telecluster_common::vlan::VlanDrop;
use telecluster_tests::{
    lab::{Lab, OUTSIDE, WAN, eventually},
    machine::{Machine, bridge, into_vlan, next, talk},
    switch::frames::{BROADCAST, ether, mac},
    tap::Tap,
};

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
    for (vlan, reason) in [("none", "not_member"), ("100", "nested_tag")] {
        let labels = format!(r#"{{bridge="br-v",port="tap-vm1",vlan="{vlan}",reason="{reason}"}}"#);
        let dropped = counter(&lab, "vlan_dropped_packets_total", &labels);
        assert!(dropped >= 1, "{reason}: {dropped}");
    }
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
    a.wire().send(&ether(mac(1), BROADCAST).q(10).q(20).bytes());
    let nested = |value: &serde_json::Value| value["value"]["dropped"][VlanDrop::NestedTag as usize] == 1;
    eventually("a second tag is not counted", || {
        let ours = |entry: &&serde_json::Value| entry["key"]["port"] == *port && entry["key"]["vlan"] == 10;
        let drops = lab.dump("vlan_drop");
        let entry = drops.iter().map(|entry| entry.get("formatted").unwrap_or(entry)).find(ours).cloned();
        entry.is_some_and(|entry| entry["values"].as_array().expect("of each CPU").iter().any(nested))
    });
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
