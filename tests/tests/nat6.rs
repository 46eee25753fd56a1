//! The NAT of IPv6 on real packets.

#![expect(clippy::panic, reason = "a failure is a panic")]

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr},
    thread,
};

use serde_json::{Value, json};
use telecluster_tests::{
    lab::{INSIDE_NET6, INSIDE6, Lab, OUTSIDE6, WAN6},
    on_each_data_plane,
};

on_each_data_plane!(
    masqueraded_datagrams_and_pings_leave_with_the_uplink_address,
    a_forward_carries_bulk_both_ways_with_every_offload_on,
    one_port_is_forwarded_once_for_each_family,
);

fn masquerade(lab: &Lab) {
    let body = json!({"source_network": INSIDE_NET6, "output_interface": "wan0"});
    lab.post("/nat/masquerade", &body).ok();
}

fn flows(lab: &Lab) -> Vec<Value> {
    lab.get("/nat/flows")["flows"].as_array().expect("a list").clone()
}

fn masqueraded_datagrams_and_pings_leave_with_the_uplink_address(lab: &Lab) {
    lab.ipv6();
    let _worker = lab.start();
    masquerade(lab);
    let server = lab.outside.udp((OUTSIDE6, 5300));
    let client = lab.inside.udp((INSIDE6, 40000));
    for length in 1..=20 {
        client.send_to(&vec![7; length], (OUTSIDE6, 5300)).expect("send");
        let mut buffer = [0; 64];
        let (len, from) = server.recv_from(&mut buffer).expect("a datagram");
        assert_eq!(from, SocketAddr::from((WAN6, 40000)));
        server.send_to(&buffer[..len], from).expect("answer");
        assert_eq!(client.recv(&mut buffer).expect("the answer"), length);
    }
    let text = lab.inside.sh(&format!("ping -n -c 2 -i 0.2 -W 2 {OUTSIDE6}"));
    assert!(text.contains("2 received"), "{text}");

    let flows = flows(lab);
    let [udp] = &flows.iter().filter(|flow| flow["protocol"] == "udp").collect::<Vec<_>>()[..] else {
        panic!("{flows:?}")
    };
    assert_eq!((&udp["packets_out"], &udp["packets_in"]), (&json!(20), &json!(20)));
    assert_eq!((&udp["inside_ip"], &udp["external_ip"]), (&json!(INSIDE6), &json!(WAN6)));
    let ping = flows.iter().find(|flow| flow["protocol"] == "icmpv6").expect("the ping");
    assert_eq!(ping["packets_in"], 2);
    if lab.dataplane() == Some("ebpf") {
        assert_eq!(lab.dump("flow6").len(), 4, "two directions of two flows");
    }
}

fn a_forward_carries_bulk_both_ways_with_every_offload_on(lab: &Lab) {
    lab.ipv6();
    let _worker = lab.start();
    let body = json!({
        "external_port": 2222, "internal_ip": INSIDE6, "internal_port": 22, "protocol": "tcp",
    });
    lab.post("/nat/forward", &body).ok();
    let listener = lab.inside.listen((INSIDE6, 22));
    let data: Vec<u8> = (0..10_000_000usize).map(|i| ((i * 31) >> 3).to_le_bytes()[0]).collect();
    for inward in [true, false] {
        let client = lab.outside.connect((WAN6, 2222)).expect("connect through the forward");
        let (server, peer) = listener.accept().expect("accept");
        assert_eq!(peer.ip(), OUTSIDE6, "the server sees the client's own address");
        let (mut from, mut to) = if inward { (client, server) } else { (server, client) };
        thread::scope(|scope| {
            scope.spawn(|| {
                from.write_all(&data).expect("send");
                from.shutdown(Shutdown::Write).expect("finish sending");
            });
            let mut received = Vec::with_capacity(data.len());
            to.read_to_end(&mut received).expect("receive");
            assert!(received == data, "{} of {} bytes, and not the same", received.len(), data.len());
        });
    }
    let status = &lab.get("/nat/status")["port_forwards"][0];
    assert_eq!((&status["dest_ip"], &status["source_ip"]), (&json!(INSIDE6), &json!("::/0")));
    assert!(status["bytes"].as_u64().expect("a number") > 20_000_000);
}

#[test]
fn forwarding_is_turned_on_without_losing_what_routers_advertise() {
    let lab = Lab::new();
    lab.ipv6();
    let read = |name: &str| lab.router.sh(&format!("sysctl -n net.ipv6.conf.{name}")).trim().to_owned();
    lab.router.sh("sysctl -q -w net.ipv6.conf.wan0.accept_ra=1");
    lab.router.sh("sysctl -q -w net.ipv6.conf.br-lab.accept_ra=0");
    let _worker = lab.start();
    assert_eq!(read("all.forwarding"), "0");
    masquerade(&lab);
    assert_eq!(read("all.forwarding"), "1");
    assert_eq!((read("wan0.accept_ra"), read("br-lab.accept_ra")), ("2".to_owned(), "0".to_owned()));
}

fn one_port_is_forwarded_once_for_each_family(lab: &Lab) {
    lab.ipv6();
    let _worker = lab.start();
    lab.forward("tcp", 2222, 22);
    let body =
        |ip: &str| json!({"external_port": 2222, "internal_ip": ip, "internal_port": 22, "protocol": "tcp"});
    assert_eq!(lab.post("/nat/forward", &body("fd00:100::10")).ok()["data"]["changed"], true);
    assert_eq!(lab.post("/nat/forward", &body("fd00:100::10")).ok()["data"]["changed"], false);
    assert_eq!(lab.post("/nat/forward", &body("fd00:100::11")).status, 409);
    let mut mixed = body("fd00:100::10");
    mixed["external_port"] = json!(2223);
    mixed["external_ip"] = json!("203.0.113.1");
    assert_eq!(lab.post("/nat/forward", &mixed).status, 422, "an address of the other family");
    for bad in ["fe80::1", "ff02::1", "::", "::1", "::ffff:192.168.100.10"] {
        assert_eq!(lab.post("/nat/forward", &body(bad)).status, 422, "{bad}");
    }
}
