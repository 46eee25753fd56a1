//! New flows with the fast path in drivers, on real packets: between hosts that know each other they leave there from their
//! first packet on.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use serde_json::json;
use telecluster_tests::{
    drivers::{FLOWS, lab, sent_in_drivers, until_in_drivers, whole_checksums},
    lab::{
        INSIDE, INSIDE_NET, INSIDE_NET6, INSIDE6, Lab, OUTSIDE, OUTSIDE6, PATIENCE, WAN, WAN6, eventually,
    },
    sockets::asks,
};

fn masquerade6(lab: &Lab) {
    let body = json!({"source_network": INSIDE_NET6, "output_interface": "wan0"});
    lab.post("/nat/masquerade", &body).ok();
}

fn forward6(lab: &Lab, external: u16, internal: u16) {
    let body = json!({
        "external_port": external, "internal_ip": INSIDE6, "internal_port": internal, "protocol": "udp",
    });
    lab.post("/nat/forward", &body).ok();
}

#[test]
fn new_flows_from_inside_leave_in_drivers_and_are_counted_exactly() {
    let lab = lab();
    lab.ipv6();
    whole_checksums(&lab);
    let _worker = lab.start();
    lab.masquerade();
    masquerade6(&lab);
    for to in [IpAddr::from(OUTSIDE), OUTSIDE6.into()].map(|address| SocketAddr::new(address, 5300)) {
        let server = lab.outside.udp(to);
        let asked = std::cell::Cell::new(0);
        until_in_drivers(&lab, || {
            asks(&lab.inside, &server, to);
            asked.set(asked.get() + 1);
        });
        let flows = lab.get("/nat/flows?remote_port=5300&limit=1000");
        let flows = flows["flows"].as_array().expect("flows");
        let flows = flows.iter().filter(|flow| flow["remote_ip"] == to.ip().to_string());
        // Now and then a socket has the port of an earlier one, and goes on with its flow.
        for direction in ["packets_out", "packets_in"] {
            let packets: u64 = flows.clone().filter_map(|flow| flow[direction].as_u64()).sum();
            assert_eq!(packets, asked.get(), "{direction} to {to}");
        }
    }
}

#[test]
fn new_flows_through_a_forward_leave_in_drivers() {
    let lab = lab();
    lab.ipv6();
    whole_checksums(&lab);
    let _worker = lab.start();
    lab.forward("udp", 5353, 53);
    forward6(&lab, 5353, 53);
    for (inside, wan) in [(IpAddr::from(INSIDE), IpAddr::from(WAN)), (INSIDE6.into(), WAN6.into())] {
        let server = lab.inside.udp((inside, 53));
        until_in_drivers(&lab, || asks(&lab.outside, &server, (wan, 5353)));
    }
}

#[test]
fn whole_connections_leave_in_drivers() {
    let lab = lab();
    whole_checksums(&lab);
    let _worker = lab.start();
    lab.masquerade();
    let listener = lab.outside.listen((OUTSIDE, 80));
    let mut before = 0;
    eventually("no connection leaves in drivers as a whole", || {
        let mut client = lab.inside.connect((OUTSIDE, 80)).expect("connect");
        let port = client.local_addr().expect("an address").port();
        let (mut server, _) = listener.accept().expect("accept");
        client.write_all(b"question").expect("send");
        server.read_exact(&mut [0; 8]).expect("receive");
        server.write_all(b"answer").expect("answer");
        drop(server);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).expect("the answer");
        assert_eq!(answer, b"answer");
        drop(client);
        let flow = || lab.get(&format!("/nat/flows?external_port={port}"))["flows"][0].clone();
        eventually("a connection does not end", || flow()["state"] == "closed");
        let [inward, outward] = ["packets_in", "packets_out"].map(|name| flow()[name].as_u64().unwrap_or(0));
        let sent = sent_in_drivers(&lab) - before;
        before += sent;
        // At least a handshake, a question, an answer, and the end of both.
        inward + outward >= 8 && sent == inward + outward
    });
}

#[test]
fn first_packets_without_their_checksum_take_the_later_hook() {
    let lab = lab();
    let _worker = lab.start();
    lab.masquerade();
    let server = lab.outside.udp((OUTSIDE, 5300));
    for _ in 0..5 * FLOWS {
        asks(&lab.inside, &server, (OUTSIDE, 5300));
    }
    assert_eq!(sent_in_drivers(&lab), 0);
    assert_eq!(lab.outside.snmp("Udp", "InCsumErrors") + lab.inside.snmp("Udp", "InCsumErrors"), 0);
}

#[test]
fn a_rule_of_the_hosts_own_filter_is_obeyed_by_new_flows() {
    let lab = lab();
    whole_checksums(&lab);
    let _worker = lab.start();
    lab.masquerade();
    let (server, other) = (lab.outside.udp((OUTSIDE, 5300)), lab.outside.udp((OUTSIDE, 5301)));
    until_in_drivers(&lab, || asks(&lab.inside, &server, (OUTSIDE, 5300)));
    lab.router.sh("iptables -A FORWARD -p udp --dport 5301 -j DROP");
    other.set_read_timeout(Some(Duration::from_millis(100))).expect("set a timeout");
    let is_new = || lab.inside.udp((INSIDE, 0)).send_to(b"new", (OUTSIDE, 5301)).expect("send");
    // Until the worker has heard of the rule, what has been learned is what is done.
    eventually("the rule is passed by", || {
        is_new();
        other.recv(&mut [0; 64]).is_err()
    });
    let before = sent_in_drivers(&lab);
    for _ in 0..FLOWS {
        asks(&lab.inside, &server, (OUTSIDE, 5300));
        is_new();
    }
    assert!(other.recv(&mut [0; 64]).is_err(), "the rule is passed by");
    assert_eq!(sent_in_drivers(&lab), before, "every packet has to meet the rule now");
    lab.router.sh("iptables -F FORWARD");
    other.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
    until_in_drivers(&lab, || asks(&lab.inside, &server, (OUTSIDE, 5300)));
}

/// Those that drivers have made count too, and what they leave to the later hooks counts there.
#[test]
fn flows_that_leave_in_drivers_are_paced() {
    let lab = lab();
    whole_checksums(&lab);
    let _worker = lab.start();
    let masquerade =
        json!({"source_network": INSIDE_NET, "output_interface": "wan0", "new_flows_per_second": 2});
    lab.post("/nat/masquerade", &masquerade).ok();
    let server = lab.outside.udp((OUTSIDE, 5300));
    keep_known(&lab, &server);
    let before = sent_in_drivers(&lab);
    // So many at once that the time that it takes allows few of them.
    let sockets: Vec<_> = (0..200).map(|_| lab.inside.udp((INSIDE, 0))).collect();
    eventually("none of the flows has left in a driver", || {
        for socket in &sockets {
            socket.send_to(b"new", (OUTSIDE, 5300)).expect("send");
        }
        sent_in_drivers(&lab) > before
    });
    eventually("nobody is refused", || dropped(&lab, "flow_rate") > 100);
}

/// An inside host and the server know each other from now on.
fn keep_known(lab: &Lab, server: &UdpSocket) {
    let keeper = lab.inside.udp((INSIDE, 0));
    keeper.connect((OUTSIDE, 5300)).expect("connect");
    eventually("the first flow does not reach the drivers", || {
        let before = sent_in_drivers(lab);
        keeper.send(b"known").expect("send");
        server.recv(&mut [0; 64]).expect("a datagram");
        sent_in_drivers(lab) > before
    });
}

/// Packets that were dropped for this reason.
fn dropped(lab: &Lab, reason: &str) -> u64 {
    let metrics = lab.get("/metrics");
    let reason = format!(r#"reason="{reason}""#);
    let line = metrics.as_str().and_then(|text| text.lines().find(|line| line.contains(&reason)));
    line.and_then(|line| line.rsplit(' ').next()).map_or(0, |count| count.parse().expect("a number"))
}

#[test]
fn flows_beyond_a_limit_are_refused_and_counted_once() {
    let lab = lab();
    whole_checksums(&lab);
    let _worker = lab.start_command(lab.worker_command().env("PORTS_PER_HOST", "30"));
    lab.masquerade();
    let server = lab.outside.udp((OUTSIDE, 5300));
    keep_known(&lab, &server);
    let before = sent_in_drivers(&lab);
    let sockets: Vec<_> = (0..60).map(|_| lab.inside.udp((INSIDE, 0))).collect();
    let mut told = 0;
    for socket in &sockets {
        socket.connect((OUTSIDE, 5300)).expect("connect");
        socket.send(b"new").expect("send");
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("set a timeout");
        let answer = socket.recv(&mut [0; 64]).expect_err("nobody answers");
        told += u32::from(answer.kind() == std::io::ErrorKind::HostUnreachable);
    }
    assert!(told > 0, "who is refused is told");
    let made = lab.get("/nat/flows?limit=1000")["total"].as_u64().expect("a number");
    assert!((20..=30).contains(&made), "{made}");
    assert_eq!(dropped(&lab, "port_quota"), 61 - made);
    assert!(sent_in_drivers(&lab) > before, "none of those that were made has left in a driver");
}
