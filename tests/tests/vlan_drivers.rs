//! VLANs in drivers, through the worker: machines behind veth pairs, and TAPs, whose frames go on before they are socket buffers.

use std::{thread, time::Duration};

use serde_json::json;
use telecluster_tests::{
    drivers::{has_program, lab, mode, sent_in_drivers},
    lab::{Lab, eventually},
    machine::{Machine, apart, bridge, into_vlan, talk},
    switch::frames::{BROADCAST, Ether, ether, mac, with_datagram},
    tap::Tap,
};

/// A machine in a VLAN that takes frames of drivers, and sends none that lack a checksum.
fn machine(lab: &Lab, number: u8, vlan: u16) -> Machine {
    let machine = Machine::new(lab, number);
    machine.netns.sh("ethtool -K eth0 gro on tx off");
    let body = json!({ "bridge_name": "br-v", "port_name": machine.port, "vlan": vlan });
    lab.post("/bridge/add-port", &body).ok();
    machine
}

/// Until the programs are in the drivers of these ports.
fn native(lab: &Lab, ports: &[&str]) {
    for port in ports {
        eventually("no program in the driver", || mode(lab, port).0 == "native" && has_program(lab, port));
    }
}

/// Whether a question and its answer are both sent on in drivers, once their hosts know each other.
fn talk_in_drivers(lab: &Lab, one: &Machine, other: &Machine) {
    eventually("frames do not go from driver to driver", || {
        let before = sent_in_drivers(lab);
        talk(one, other);
        sent_in_drivers(lab) >= before + 2
    });
}

#[test]
fn machines_of_a_vlan_talk_from_driver_to_driver_and_to_no_other() {
    let lab = lab();
    let _worker = lab.start();
    bridge(&lab);
    let [a, b] = [1, 2].map(|number| machine(&lab, number, 100));
    let [other, others_neighbour] = [3, 4].map(|number| machine(&lab, number, 200));
    native(&lab, &["p1", "p2", "p3", "p4"]);
    talk_in_drivers(&lab, &a, &b);
    talk_in_drivers(&lab, &other, &others_neighbour);
    apart(&a, &b, &other, &others_neighbour);
    // Known stations of two VLANs, by address: not across either.
    let (before, wire) = (sent_in_drivers(&lab), other.wire());
    a.wire().send(&with_datagram(&ether(mac(1), mac(3)).bytes()));
    apart(&a, &b, &other, &others_neighbour);
    assert!(wire.pending().iter().all(|frame| frame[6..12] != mac(1)));
    assert_eq!(sent_in_drivers(&lab), before);
}

#[test]
fn what_goes_on_in_drivers_is_counted_where_it_comes_in_and_leaves() {
    let lab = lab();
    let _worker = lab.start();
    bridge(&lab);
    let [a, b] = [1, 2].map(|number| machine(&lab, number, 100));
    native(&lab, &["p1", "p2"]);
    talk_in_drivers(&lab, &a, &b);
    let counter = |port: &str, direction: &str| {
        let text = lab.get("/metrics");
        let labels = format!(r#"{{bridge="br-v",port="{port}",vlan="100",direction="{direction}"}} "#);
        let series = format!("telecluster_vlan_packets_total{labels}");
        let text = text.as_str().expect("text");
        let value = text.lines().find_map(|line| line.strip_prefix(&series)).expect("the series");
        value.parse::<u64>().expect("a number")
    };
    let counts =
        || [("p1", "rx"), ("p2", "tx"), ("p2", "rx"), ("p1", "tx")].map(|(port, way)| counter(port, way));
    let (before, sent) = (counts(), sent_in_drivers(&lab));
    let wire = a.wire();
    let frame = with_datagram(&ether(mac(1), mac(2)).bytes());
    // A pair's queue has room for some 250, and on a busy machine it may be long until they are looked at.
    for batch in 1..=10 {
        (0..50).for_each(|_| wire.send(&frame));
        eventually("not all of them are counted", || counter("p2", "tx") >= before[1] + 50 * batch);
    }
    // Hosts ask for their neighbours now and then.
    let more: Vec<u64> = counts().iter().zip(before).map(|(after, before)| after - before).collect();
    assert!((500..510).contains(&more[0]) && more[2] < 10, "{more:?}");
    assert_eq!((more[0], more[2]), (more[1], more[3]), "what came in went out");
    let sent = sent_in_drivers(&lab) - sent;
    // One of them a time is decided about by the later hook, when nothing is known any more.
    assert!((480..=510).contains(&sent), "{sent} of 500");
}

#[test]
fn a_veth_with_tagged_vlans_is_left_to_traffic_control() {
    let lab = lab();
    let _worker = lab.start();
    bridge(&lab);
    let [a, b, c] = [1, 2, 3].map(|number| machine(&lab, number, 100));
    native(&lab, &["p1", "p2", "p3"]);
    into_vlan(&lab, "p2", 300, true);
    eventually("it is still in the driver", || mode(&lab, "p2").0 == "off" && !has_program(&lab, "p2"));
    assert!(mode(&lab, "p2").1.contains("beside"), "{:?}", mode(&lab, "p2"));
    talk(&a, &b);
    talk_in_drivers(&lab, &a, &c);
}

#[test]
fn taps_are_trunks_in_drivers_too() {
    let lab = lab();
    let _worker = lab.start();
    bridge(&lab);
    for tap in ["tap-a", "tap-b", "tap-c"] {
        lab.post("/tuntap/create", &json!({ "name": tap, "type": "tap", "bridge": "br-v" })).ok();
    }
    into_vlan(&lab, "tap-a", 100, false);
    for (tap, vlan) in [("tap-b", 100), ("tap-b", 200), ("tap-c", 100)] {
        into_vlan(&lab, tap, vlan, true);
    }
    let open = |name: &str| Tap::open(&lab.router, name, 0, 0).expect("open the TAP");
    let [mut a, mut b, mut c] = ["tap-a", "tap-b", "tap-c"].map(open);
    native(&lab, &["tap-a", "tap-b", "tap-c"]);
    let bytes = |frame: Ether| with_datagram(&frame.bytes());
    // All know each other.
    for (tap, number) in [(&mut a, 1), (&mut b, 2), (&mut c, 3)] {
        let hello = || ether(mac(number), BROADCAST);
        let hello = if number == 1 { hello() } else { hello().q(100) }.bytes();
        eventually("the port does not forward", || {
            tap.send(&hello);
            thread::sleep(Duration::from_millis(10));
            let stations = lab.get("/vlan/fdb?vlan_id=100");
            let mut stations = stations.as_array().expect("a list").iter();
            stations.any(|station| station["mac_address"] == format!("02:00:00:00:00:0{number}"))
        });
    }
    // Into a trunk with a tag, out of one without, from one to the other with its priority.
    let plain = |from, to| bytes(ether(mac(from), mac(to)));
    let tagged = |from, to, control| bytes(ether(mac(from), mac(to)).q(control));
    let before = sent_in_drivers(&lab);
    for _ in 0..20 {
        a.send(&plain(1, 2));
        let expected = tagged(1, 2, 100);
        assert_eq!(b.receive(|frame| frame[6..12] == mac(1) && frame[..6] == mac(2)), expected);
        b.send(&tagged(2, 1, 0xa000 | 100));
        assert_eq!(a.receive(|frame| frame[6..12] == mac(2) && frame[..6] == mac(1)), plain(2, 1));
        b.send(&tagged(2, 3, 0xa000 | 100));
        let expected = tagged(2, 3, 0xa000 | 100);
        assert_eq!(c.receive(|frame| frame[6..12] == mac(2) && frame[..6] == mac(3)), expected);
        // A VLAN that the receiver is not in, and one that the sender is not in.
        b.send(&tagged(2, 1, 200));
        a.send(&tagged(1, 2, 200));
    }
    let sent = sent_in_drivers(&lab) - before;
    assert!((50..=60).contains(&sent), "{sent} of 60");
}

#[test]
fn they_outlive_the_worker_and_go_with_the_vlans() {
    let lab = lab();
    let worker = lab.start();
    bridge(&lab);
    let [a, b] = [1, 2].map(|number| machine(&lab, number, 100));
    native(&lab, &["p1", "p2"]);
    talk_in_drivers(&lab, &a, &b);
    worker.murder();
    assert!(has_program(&lab, "p1") && has_program(&lab, "p2"));
    talk(&a, &b);
    let worker = lab.start();
    native(&lab, &["p1", "p2"]);
    talk_in_drivers(&lab, &a, &b);
    // By itself a port could send frames nowhere.
    let leave = |port: &str| json!({ "bridge_name": "br-v", "port_name": port, "vlan_id": 100 });
    lab.post("/vlan/remove-from-bridge", &leave("p1")).ok();
    eventually("they stay", || !has_program(&lab, "p1") && !has_program(&lab, "p2"));
    assert!(mode(&lab, "p2").1.contains("by itself"), "{:?}", mode(&lab, "p2"));
    into_vlan(&lab, "p1", 100, false);
    native(&lab, &["p1", "p2"]);
    worker.murder();
    // Nobody saw the VLANs go.
    let mut off = lab.worker_command();
    off.env("XDP", "off");
    let worker = lab.start_command(&mut off);
    eventually("XDP=off leaves them", || !has_program(&lab, "p1") && !has_program(&lab, "p2"));
    talk(&a, &b);
    worker.stop();
    let worker = lab.start();
    native(&lab, &["p1", "p2"]);
    worker.stop();
    let done = lab.worker_command().arg("teardown").status().expect("run the teardown");
    assert!(done.success());
    eventually("a teardown leaves them", || !has_program(&lab, "p1") && !has_program(&lab, "p2"));
}

#[test]
fn nothing_of_software_is_touched_unless_somebody_asked_for_it() {
    let mut lab = lab();
    lab.environment.retain(|(name, _)| *name != "XDP");
    let _worker = lab.start();
    bridge(&lab);
    let [a, b] = [1, 2].map(|number| machine(&lab, number, 100));
    talk(&a, &b);
    for port in ["p1", "p2"] {
        let (mode, reason) = mode(&lab, port);
        assert!(mode == "off" && reason.contains("offload") && !has_program(&lab, port), "{mode} {reason}");
    }
}
