//! VLANs through the worker on both data planes: by its programs, and by the filter of the kernel's bridge where it has
//! one. What only the programs do is in `vlan`.

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use serde_json::json;
use telecluster_tests::{
    lab::{Lab, OUTSIDE, WAN, Worker, eventually},
    machine::{Machine, apart, bridge, filtered, into_vlan, rows, talk},
    on_each_data_plane,
    switch::frames::{BROADCAST, EXPERIMENT, ether, mac},
};

on_each_data_plane!(
    machines_of_one_vlan_talk_and_those_of_another_hear_nothing_with_the_worker_or_without,
    two_machines_with_one_address_in_two_vlans_are_both_reached,
    a_port_that_somebody_adds_hears_nothing_of_any_vlan,
    an_interface_that_is_made_again_has_its_vlans_again,
    a_port_whose_carrier_comes_and_goes_is_what_it_was,
    the_host_is_in_a_vlan_and_masquerades_it,
);

/// Two machines in VLAN 10, two in VLAN 20.
fn two_vlans(lab: &Lab) -> (Worker, [Machine; 2], [Machine; 2]) {
    let worker = lab.start();
    bridge(lab);
    let machines = |numbers: [u8; 2], vlan| numbers.map(|number| Machine::in_vlan(lab, number, vlan));
    (worker, machines([1, 2], 10), machines([3, 4], 20))
}

fn machines_of_one_vlan_talk_and_those_of_another_hear_nothing_with_the_worker_or_without(lab: &Lab) {
    if !filtered(lab) {
        return;
    }
    let (worker, [a, b], [c, d]) = two_vlans(lab);
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
        rows(lab),
        [("p1", 10), ("p2", 10), ("p3", 20), ("p4", 20)].map(|(port, vlan)| (port.to_owned(), vlan))
    );
    worker.stop();
    check();
}

fn two_machines_with_one_address_in_two_vlans_are_both_reached(lab: &Lab) {
    if !filtered(lab) {
        return;
    }
    let _worker = lab.start();
    bridge(lab);
    let [a, b] = [(1, 10), (2, 20)].map(|(number, vlan)| Machine::in_vlan(lab, number, vlan));
    // A cloned machine: the same Ethernet and the same IP address.
    let [one, two] = [(7, 10), (8, 20)].map(|(number, vlan)| {
        let machine = Machine::in_vlan(lab, number, vlan);
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

fn a_port_that_somebody_adds_hears_nothing_of_any_vlan(lab: &Lab) {
    if !filtered(lab) {
        return;
    }
    let _worker = lab.start();
    bridge(lab);
    let [a, b] = [1, 2].map(|number| Machine::in_vlan(lab, number, 10));
    let stranger = Machine::new(lab, 3);
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

fn an_interface_that_is_made_again_has_its_vlans_again(lab: &Lab) {
    if !filtered(lab) {
        return;
    }
    let (_worker, [a, b], [c, d]) = two_vlans(lab);
    talk(&a, &b);
    drop(b);
    eventually("the interface is still there", || !rows(lab).contains(&("p2".to_owned(), 10)));
    let b = Machine::new(lab, 2);
    lab.router.ip("link set p2 up");
    eventually("it has no VLAN again", || rows(lab).contains(&("p2".to_owned(), 10)));
    talk(&a, &b);
    talk(&b, &a);
    apart(&a, &b, &c, &d);
}

fn a_port_whose_carrier_comes_and_goes_is_what_it_was(lab: &Lab) {
    if !filtered(lab) {
        return;
    }
    let (_worker, [a, b], [c, d]) = two_vlans(lab);
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

fn the_host_is_in_a_vlan_and_masquerades_it(lab: &Lab) {
    if !filtered(lab) {
        return;
    }
    let _worker = lab.start();
    lab.post("/bridge/create", &json!({ "name": "br-v", "addresses": ["10.0.0.254/24"] })).ok();
    into_vlan(lab, "br-v", 10, false);
    let inside = Machine::in_vlan(lab, 1, 10);
    let other = Machine::in_vlan(lab, 2, 20);
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

/// A bridge of the kernel's as `ip` and `bridge` show it.
fn shown(lab: &Lab) -> (bool, bool, String) {
    let link = lab.router.sh("ip -d link show br-v");
    (
        link.contains("vlan_filtering 1"),
        link.contains("vlan_default_pvid 1 "),
        lab.router.sh("bridge vlan show dev p1"),
    )
}

#[test]
fn what_somebody_does_to_the_kernels_filter_is_put_right() {
    let lab = Lab::on("iptables");
    if !filtered(&lab) {
        return;
    }
    let (_worker, [a, b], [c, d]) = two_vlans(&lab);
    talk(&a, &b);
    let right = shown(&lab);
    for change in [
        "bridge vlan del dev p1 vid 10",
        "bridge vlan add dev p1 vid 20 pvid untagged",
        "ip link set br-v type bridge vlan_filtering 0",
    ] {
        lab.router.sh(change);
        eventually(&format!("it is not put right after {change}"), || shown(&lab) == right);
    }
    talk(&a, &b);
    apart(&a, &b, &c, &d);
    assert_eq!(lab.get("/health")["status"], "healthy", "{}", lab.get("/health"));
}

#[test]
fn the_last_vlan_leaves_the_kernels_bridge_as_it_was_and_so_does_the_other_data_plane() {
    let mut lab = Lab::on("iptables");
    if !filtered(&lab) {
        return;
    }
    let worker = lab.start();
    bridge(&lab);
    let a = Machine::new(&lab, 1);
    let b = Machine::new(&lab, 2);
    for port in ["p1", "p2"] {
        lab.post("/bridge/add-port", &json!({ "bridge_name": "br-v", "port_name": port })).ok();
    }
    let plain = shown(&lab);
    talk(&a, &b);
    into_vlan(&lab, "p1", 10, false);
    assert!(shown(&lab).0, "{:?}", shown(&lab));
    let body = json!({ "bridge_name": "br-v", "port_name": "p1", "vlan_id": 10 });
    lab.post("/vlan/remove-from-bridge", &body).ok();
    eventually("the bridge still filters", || shown(&lab) == plain);
    talk(&a, &b);

    into_vlan(&lab, "p1", 10, false);
    let tunnel =
        json!({ "bridge_name": "br-v", "port_name": "p2", "vlan_id": 10, "tagged": false, "tunnel": true });
    let refused = lab.post("/vlan/add-to-bridge", &tunnel);
    assert_eq!(refused.status, 501, "{}", refused.body);
    assert_eq!(rows(&lab), [("p1".to_owned(), 10)], "what is refused leaves everything as it was");
    worker.murder();
    lab.set_dataplane("ebpf");
    let worker = lab.start();
    // Answered when everything is in place.
    assert_eq!(rows(&lab), [("p1".to_owned(), 10)]);
    assert_eq!(shown(&lab), plain);
    worker.stop();
    lab.set_dataplane("iptables");
    let _worker = lab.start();
    assert_eq!(rows(&lab), [("p1".to_owned(), 10)]);
    assert!(shown(&lab).0, "the kernel's bridge does not filter");
}

/// A restart finds everything in place: between the two workers, nothing passes that should not, and nothing is lost.
#[test]
fn a_new_worker_changes_nothing_in_the_kernels_filter() {
    let lab = Lab::on("iptables");
    if !filtered(&lab) {
        return;
    }
    let worker = lab.start();
    bridge(&lab);
    let [_a, _b] = [(1, 10), (2, 4094)].map(|(number, vlan)| Machine::in_vlan(&lab, number, vlan));
    let c = Machine::new(&lab, 3);
    lab.post("/bridge/add-port", &json!({ "bridge_name": "br-v", "port_name": c.port })).ok();
    eventually("the port without a VLAN has none of its own", || {
        lab.router.sh("bridge vlan show dev p3").contains("4093")
    });
    worker.murder();
    let mut watch = lab.router.command("bridge");
    let mut watch =
        watch.args(["monitor", "vlan"]).stdout(std::process::Stdio::piped()).spawn().expect("bridge monitor");
    let before = lab.router.sh("bridge vlan show");
    let _worker = lab.start();
    assert_eq!(rows(&lab), [("p1".to_owned(), 10), ("p2".to_owned(), 4094)]);
    assert_eq!(lab.router.sh("bridge vlan show"), before);
    watch.kill().expect("end it");
    let told = watch.wait_with_output().expect("what it heard").stdout;
    assert_eq!(String::from_utf8_lossy(&told), "", "it changed something and changed it back");
}
