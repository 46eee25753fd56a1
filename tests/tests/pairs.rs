//! Flows between hosts that know each other: their first packets too go past the kernel's way, unless something there
//! would tell them apart.

use std::{
    io::{Read as _, Write as _},
    thread,
    time::Duration,
};

use telecluster_tests::{
    lab::{INSIDE, Lab, OUTSIDE, PATIENCE, WAN, eventually},
    sockets::asks,
};

/// Flows of one attempt.
const FLOWS: u16 = 20;

/// Packets that the router's kernel has forwarded.
fn forwarded(lab: &Lab) -> u64 {
    lab.router.snmp("Ip", "ForwDatagrams")
}

/// Repeats `flows` until the kernel has seen none of their packets: neighbours that are just being confirmed, say, and the
/// end of a lease send some its way.
fn until_the_kernel_sees_none(lab: &Lab, mut flows: impl FnMut()) {
    eventually("the kernel forwards new flows", || {
        let before = forwarded(lab);
        flows();
        forwarded(lab) == before
    });
}

#[test]
fn new_flows_from_inside_do_not_take_the_kernels_way() {
    let lab = Lab::new();
    let _worker = lab.start();
    lab.masquerade();
    let server = lab.outside.udp((OUTSIDE, 5300));
    let mut asked = 0;
    until_the_kernel_sees_none(&lab, || {
        for _ in 0..FLOWS {
            asks(&lab.inside, &server, (OUTSIDE, 5300));
            asked += 1;
        }
    });
    let flows = lab.get("/nat/flows?remote_port=5300&limit=1000");
    let flows = flows["flows"].as_array().expect("flows");
    assert!(flows.len() >= usize::from(FLOWS), "{flows:?}");
    // Now and then a socket has the port of an earlier one, and goes on with its flow.
    for direction in ["packets_out", "packets_in"] {
        let packets: u64 = flows.iter().filter_map(|flow| flow[direction].as_u64()).sum();
        assert_eq!(packets, asked, "{direction}: {flows:?}");
    }
    for flow in flows {
        assert_eq!(flow["external_port"], flow["inside_port"], "ports are kept: {flow}");
    }
}

#[test]
fn new_flows_through_a_forward_do_not_take_the_kernels_way() {
    let lab = Lab::new();
    let _worker = lab.start();
    lab.forward("udp", 5353, 53);
    let server = lab.inside.udp((INSIDE, 53));
    until_the_kernel_sees_none(&lab, || {
        for _ in 0..FLOWS {
            asks(&lab.outside, &server, (WAN, 5353));
        }
    });
}

#[test]
fn whole_connections_do_not_take_the_kernels_way() {
    let lab = Lab::new();
    let _worker = lab.start();
    lab.masquerade();
    let listener = lab.outside.listen((OUTSIDE, 80));
    until_the_kernel_sees_none(&lab, || {
        let mut client = lab.inside.connect((OUTSIDE, 80)).expect("connect");
        let (mut server, from) = listener.accept().expect("accept");
        assert_eq!(from.ip(), WAN);
        client.write_all(b"question").expect("send");
        server.read_exact(&mut [0; 8]).expect("receive");
        server.write_all(b"answer").expect("answer");
        drop(server);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).expect("the answer");
        assert_eq!(answer, b"answer");
    });
    eventually("a connection does not end", || {
        let flows = lab.get("/nat/flows?remote_port=80");
        let flows = flows["flows"].as_array().expect("flows");
        flows.iter().all(|flow| flow["state"] == "closed" || flow["state"] == "reset")
    });
}

#[test]
fn a_routing_rule_that_asks_for_ports_is_obeyed() {
    let lab = Lab::new();
    let _worker = lab.start();
    lab.masquerade();
    let (server, other) = (lab.outside.udp((OUTSIDE, 5300)), lab.outside.udp((OUTSIDE, 5301)));
    let warm = || {
        until_the_kernel_sees_none(&lab, || asks(&lab.inside, &server, (OUTSIDE, 5300)));
        asks(&lab.inside, &other, (OUTSIDE, 5301));
    };
    warm();
    lab.router.ip("rule add priority 100 ipproto 17 dport 5301 blackhole");
    other.set_read_timeout(Some(Duration::from_millis(100))).expect("set a timeout");
    // Until the worker has heard of the rule, what has been learned is what is done.
    eventually("the rule is passed by", || {
        asks(&lab.inside, &server, (OUTSIDE, 5300));
        lab.inside.udp((INSIDE, 0)).send_to(b"new", (OUTSIDE, 5301)).expect("send");
        other.recv(&mut [0; 64]).is_err()
    });
    for _ in 0..FLOWS {
        let before = forwarded(&lab);
        asks(&lab.inside, &server, (OUTSIDE, 5300));
        assert!(forwarded(&lab) >= before + 2, "the kernel has to see every first packet now");
        lab.inside.udp((INSIDE, 0)).send_to(b"new", (OUTSIDE, 5301)).expect("send");
    }
    assert!(other.recv(&mut [0; 64]).is_err(), "the rule is passed by");
    lab.router.ip("rule del priority 100");
    other.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
    warm();
}

#[test]
fn a_route_that_changes_is_followed_by_new_flows() {
    let lab = Lab::new();
    let _worker = lab.start();
    lab.masquerade();
    let server = lab.outside.udp((OUTSIDE, 5300));
    until_the_kernel_sees_none(&lab, || asks(&lab.inside, &server, (OUTSIDE, 5300)));
    lab.router.ip(&format!("route add blackhole {OUTSIDE}/32"));
    server.set_read_timeout(Some(Duration::from_millis(100))).expect("set a timeout");
    eventually("the route is passed by", || {
        lab.inside.udp((INSIDE, 0)).send_to(b"new", (OUTSIDE, 5300)).expect("send");
        server.recv(&mut [0; 64]).is_err()
    });
    for _ in 0..FLOWS {
        lab.inside.udp((INSIDE, 0)).send_to(b"new", (OUTSIDE, 5300)).expect("send");
        thread::sleep(Duration::from_millis(1));
    }
    assert!(server.recv(&mut [0; 64]).is_err(), "the route is passed by");
    lab.router.ip(&format!("route del blackhole {OUTSIDE}/32"));
    server.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
    until_the_kernel_sees_none(&lab, || asks(&lab.inside, &server, (OUTSIDE, 5300)));
}

#[test]
fn new_flows_are_within_their_limits() {
    let lab = Lab::new();
    let _worker = lab.start_command(lab.worker_command().env("PORTS_PER_HOST", "30"));
    lab.masquerade();
    let server = lab.outside.udp((OUTSIDE, 5300));
    let keeper = lab.inside.udp((INSIDE, 0));
    keeper.connect((OUTSIDE, 5300)).expect("connect");
    until_the_kernel_sees_none(&lab, || {
        keeper.send(b"known").expect("send");
        server.recv(&mut [0; 64]).expect("a datagram");
    });
    let sockets: Vec<_> = (0..60).map(|_| lab.inside.udp((INSIDE, 0))).collect();
    for socket in &sockets {
        socket.send_to(b"new", (OUTSIDE, 5300)).expect("send");
    }
    let flows = lab.get("/nat/flows?limit=1000");
    assert!(flows["total"].as_u64().is_some_and(|total| (20..=30).contains(&total)), "{}", flows["total"]);
    let metrics = lab.get("/metrics");
    assert!(metrics.as_str().is_some_and(|text| text.contains(r#"reason="port_quota""#)), "{metrics}");
}

#[test]
fn a_rule_that_comes_when_the_worker_is_dead_is_obeyed_by_new_flows_before_long() {
    let lab = Lab::new();
    let worker = lab.start();
    lab.masquerade();
    let (server, other) = (lab.outside.udp((OUTSIDE, 5300)), lab.outside.udp((OUTSIDE, 5301)));
    until_the_kernel_sees_none(&lab, || asks(&lab.inside, &server, (OUTSIDE, 5300)));
    worker.murder();
    lab.router.sh("nft add table inet foreign");
    lab.router.sh("nft add chain inet foreign c { type filter hook forward priority 0; }");
    lab.router.sh("nft add rule inet foreign c udp dport 5301 drop");
    other.set_read_timeout(Some(Duration::from_millis(100))).expect("set a timeout");
    let mut refused = 0;
    // Those to the other port keep their hosts known to each other.
    eventually("the rule is passed by", || {
        asks(&lab.inside, &server, (OUTSIDE, 5300));
        lab.inside.udp((INSIDE, 0)).send_to(b"new", (OUTSIDE, 5301)).expect("send");
        refused = if other.recv(&mut [0; 64]).is_err() { refused + 1 } else { 0 };
        refused == FLOWS
    });
}
