//! The NAT on real packets: hosts and worker in namespaces, real sockets, real offloads.

#![expect(clippy::panic, reason = "a failure is a panic")]

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpStream, UdpSocket},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use telecluster_tests::{
    lab::{INSIDE, Lab, OUTSIDE, PATIENCE, WAN, Worker, eventually},
    on_each_data_plane,
};

on_each_data_plane!(
    masqueraded_datagrams_leave_with_the_uplink_address_and_are_counted_exactly,
    a_ping_gets_through,
    a_forwarded_tcp_port_carries_bulk_both_ways_with_every_offload_on,
    masqueraded_bulk_is_intact_whatever_the_offloads,
    a_deleted_rule_stops_its_flows_and_takes_its_programs_along,
    traffic_goes_on_without_the_agent_and_a_restart_loses_nothing,
    a_changed_uplink_address_is_followed,
    a_port_that_a_program_of_the_host_listens_on_is_not_forwarded_until_it_stops,
);

/// Echoes datagrams, prefixed with the address that they came from, until the socket times out.
fn echo_once(socket: &UdpSocket) -> String {
    let mut buffer = [0; 2048];
    let (len, from) = socket.recv_from(&mut buffer).expect("a datagram");
    socket.send_to(&buffer[..len], from).expect("answer");
    from.to_string()
}

fn flows(lab: &Lab) -> Vec<Value> {
    lab.get("/nat/flows")["flows"].as_array().expect("a list").clone()
}

/// Programs of ours on the uplink: pinned TCX links, or filters of clsact.
fn attached(lab: &Lab) -> bool {
    let filters = |hook| lab.router.sh(&format!("tc filter show dev wan0 {hook}")).contains("tc_wan");
    let links = "find /sys/fs/bpf -path */telecluster/links/*";
    !lab.sh(links).is_empty() || filters("ingress") || filters("egress") || chains(lab)
}

/// Chains of ours in iptables.
fn chains(lab: &Lab) -> bool {
    ["iptables-save", "ip6tables-save"].iter().any(|save| lab.router.sh(save).contains("TELECLUSTER"))
}

/// Sends everything through `from` and reads it at `to`; the bytes must be the same.
fn transfer(mut from: TcpStream, mut to: TcpStream, len: usize) {
    let data: Vec<u8> = (0..len).map(|i| (i.wrapping_mul(2_654_435_761) >> 11).to_le_bytes()[0]).collect();
    thread::scope(|scope| {
        scope.spawn(|| {
            from.write_all(&data).expect("send");
            from.shutdown(Shutdown::Write).expect("finish sending");
        });
        let mut received = Vec::with_capacity(len);
        to.read_to_end(&mut received).expect("receive");
        assert!(received == data, "{} of {len} bytes, and not the same", received.len());
    });
}

fn masqueraded_datagrams_leave_with_the_uplink_address_and_are_counted_exactly(lab: &Lab) {
    let _worker = lab.start();
    let rule = lab.masquerade();
    let server = lab.outside.udp((OUTSIDE, 5300));
    let client = lab.inside.udp((INSIDE, 40000));
    client.connect((OUTSIDE, 5300)).expect("connect");
    for length in 1..=100 {
        client.send(&vec![7; length]).expect("send");
        assert_eq!(echo_once(&server), format!("{WAN}:40000"));
        let mut buffer = [0; 2048];
        assert_eq!(client.recv(&mut buffer).expect("the answer"), length);
    }
    let bytes = (1..=100).map(|length| length + 28).sum::<u64>();

    let [flow] = &flows(lab)[..] else { panic!("one flow") };
    assert_eq!((&flow["packets_out"], &flow["packets_in"]), (&json!(100), &json!(100)));
    assert_eq!((&flow["bytes_out"], &flow["bytes_in"]), (&json!(bytes), &json!(bytes)));
    assert_eq!(flow["inside_ip"], json!(INSIDE));
    assert_eq!(flow["external_ip"], json!(WAN));
    assert_eq!(flow["rule_id"], json!(rule));
    assert_eq!(flow["state"], "established");

    let status = &lab.get("/nat/status")["masquerade_rules"][0];
    assert_eq!((&status["packets"], &status["bytes"]), (&json!(200), &json!(2 * bytes)));
    assert_eq!(status["active_flows"], 1);
    assert_eq!(status["backend"], json!(lab.dataplane()));

    // and what Prometheus reads
    let metrics = lab.get("/metrics");
    let metrics = metrics.as_str().expect("text");
    let line = |start: &str, part: &str| {
        metrics
            .lines()
            .find(|line| line.starts_with(start) && line.contains(part))
            .unwrap_or_else(|| panic!("no {start} with {part} in {metrics}"))
            .to_owned()
    };
    assert!(line("telecluster_rule_packets_total", r#"direction="out""#).ends_with(" 100"));
    assert!(line("telecluster_rule_bytes_total", r#"direction="in""#).ends_with(&format!(" {bytes}")));
    assert!(line("telecluster_flow_packets_total", r#"direction="out""#).ends_with(" 100"));
}

#[test]
fn maps_show_flows_by_name_and_no_iptables_rule_is_made_for_them() {
    let lab = Lab::on("ebpf");
    let _worker = lab.start();
    lab.masquerade();
    let server = lab.outside.udp((OUTSIDE, 5300));
    let client = lab.inside.udp((INSIDE, 40000));
    client.connect((OUTSIDE, 5300)).expect("connect");
    for length in 1..=100 {
        client.send(&vec![7; length]).expect("send");
        echo_once(&server);
        client.recv(&mut [0; 2048]).expect("the answer");
    }
    let bytes = (1..=100).map(|length| length + 28).sum::<u64>();

    // what bpftool shows to people, by name
    let entries = lab.dump("flow4");
    assert_eq!(entries.len(), 2);
    for entry in entries {
        let (key, value) = (&entry["formatted"]["key"], &entry["formatted"]["value"]);
        assert_eq!(value["packets"], 100);
        assert_eq!(value["bytes"], bytes);
        let out = key["direction"] == 1;
        assert_eq!(key["src"], if out { json!([192, 168, 100, 10]) } else { json!([203, 0, 113, 2]) });
        assert_eq!(value["to_src"], if out { json!([203, 0, 113, 1]) } else { json!([203, 0, 113, 2]) });
        assert_eq!(key["sport"], if out { 40000 } else { 5300 });
    }

    assert_eq!(lab.router.sh("nft list ruleset"), "", "no nft or iptables rule while it works");
}

fn a_ping_gets_through(lab: &Lab) {
    let _worker = lab.start();
    lab.masquerade();
    let text = lab.inside.sh(&format!("ping -n -c 3 -i 0.2 -W 2 {OUTSIDE}"));
    assert!(text.contains("3 received"), "{text}");
    let [flow] = &flows(lab)[..] else { panic!("one flow") };
    assert_eq!((&flow["protocol"], &flow["packets_in"]), (&json!("icmp"), &json!(3)));
}

fn a_forwarded_tcp_port_carries_bulk_both_ways_with_every_offload_on(lab: &Lab) {
    let _worker = lab.start();
    lab.forward("tcp", 2222, 22);
    let listener = lab.inside.listen((INSIDE, 22));
    for inward in [true, false] {
        let client = lab.outside.connect((WAN, 2222)).expect("connect through the forward");
        let (server, peer) = listener.accept().expect("accept");
        assert_eq!(peer.ip(), OUTSIDE, "the server sees the client's own address");
        let (from, to) = if inward { (client, server) } else { (server, client) };
        transfer(from, to, 20_000_000);
    }
    for host in [&lab.inside, &lab.outside, &lab.router] {
        assert_eq!(host.snmp("Tcp", "InCsumErrors"), 0);
    }
    let status = &lab.get("/nat/status")["port_forwards"][0];
    let bytes = status["bytes"].as_u64().expect("a number");
    assert!(bytes > 40_000_000, "{bytes}");
}

fn masqueraded_bulk_is_intact_whatever_the_offloads(lab: &Lab) {
    let _worker = lab.start();
    lab.masquerade();
    let listener = lab.outside.listen((OUTSIDE, 9000));
    for offload in ["on", "off"] {
        for (host, device) in [(&lab.inside, "eth0"), (&lab.outside, "eth0"), (&lab.router, "wan0")] {
            // one at a time: turning checksums off turns the others off by itself, and ethtool then fails on them
            for feature in ["tx", "tso", "gso", "gro"] {
                let mut ethtool = host.command("ethtool");
                let done = ethtool.args(["-K", device, feature, offload]).stderr(Stdio::null()).status();
                done.expect("run ethtool");
            }
        }
        let client = lab.inside.connect((OUTSIDE, 9000)).expect("connect through masquerade");
        let (server, peer) = listener.accept().expect("accept");
        assert_eq!(peer.ip(), WAN);
        transfer(client, server, 20_000_000);
    }
    for host in [&lab.inside, &lab.outside, &lab.router] {
        assert_eq!(host.snmp("Tcp", "InCsumErrors"), 0);
    }
}

fn a_deleted_rule_stops_its_flows_and_takes_its_programs_along(lab: &Lab) {
    let _worker = lab.start();
    let rule = lab.forward("udp", 5353, 53);
    let server = lab.inside.udp((INSIDE, 53));
    let client = lab.outside.udp((OUTSIDE, 6000));
    client.send_to(b"q", (WAN, 5353)).expect("send");
    assert_eq!(echo_once(&server), format!("{OUTSIDE}:6000"));
    assert!(attached(lab));

    lab.call("DELETE", &format!("/nat/forward/{rule}"), None).ok();
    client.send_to(b"q", (WAN, 5353)).expect("send");
    server.set_read_timeout(Some(Duration::from_millis(300))).expect("set a timeout");
    assert!(server.recv(&mut [0; 16]).is_err(), "the flow outlived its rule");
    assert!(flows(lab).is_empty());
    eventually("the programs are taken off a little later", || !attached(lab));
    assert_eq!(lab.get("/nat/status")["port_forwards"], json!([]));
}

fn traffic_goes_on_without_the_agent_and_a_restart_loses_nothing(lab: &Lab) {
    let worker = lab.start();
    lab.masquerade();
    lab.forward("tcp", 2222, 22);
    let before = lab.get("/nat/status");
    let listener = lab.inside.listen((INSIDE, 22));
    let mut client = lab.outside.connect((WAN, 2222)).expect("connect");
    let (mut server, _) = listener.accept().expect("accept");
    let mut exchange = |text: &[u8]| {
        client.write_all(text).expect("send");
        let mut buffer = vec![0; text.len()];
        server.read_exact(&mut buffer).expect("receive");
        assert_eq!(buffer, text);
    };
    exchange(b"with the agent");
    worker.murder();
    exchange(b"without it");
    let text = lab.inside.sh(&format!("ping -n -c 1 -W 2 {OUTSIDE}"));
    assert!(text.contains("1 received"), "new flows are made without the agent: {text}");

    let worker = lab.start();
    exchange(b"with another");
    let after = lab.get("/nat/status");
    assert_eq!(after["port_forwards"][0]["id"], before["port_forwards"][0]["id"]);
    assert_eq!(after["masquerade_rules"][0]["id"], before["masquerade_rules"][0]["id"]);
    assert_eq!(after["port_forwards"][0]["active_flows"], 1, "the flow was adopted");
    assert_eq!(after["masquerade_rules"][0]["packets"], 2, "the counters went on");
    worker.stop();
    exchange(b"after a stop");
}

fn a_changed_uplink_address_is_followed(lab: &Lab) {
    let _worker = lab.start();
    lab.masquerade();
    let server = lab.outside.udp((OUTSIDE, 5300));
    let client = lab.inside.udp((INSIDE, 40000));
    client.send_to(b"q", (OUTSIDE, 5300)).expect("send");
    assert_eq!(echo_once(&server), format!("{WAN}:40000"));
    lab.router.ip(&format!("addr del {WAN}/24 dev wan0"));
    lab.router.ip("addr add 203.0.113.9/24 dev wan0");
    let deadline = Instant::now() + PATIENCE;
    loop {
        client.send_to(b"q", (OUTSIDE, 5300)).expect("send");
        let from = echo_once(&server);
        if from == "203.0.113.9:40000" {
            break;
        }
        assert!(Instant::now() < deadline, "it still leaves as {from}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn a_port_that_a_program_of_the_host_listens_on_is_not_forwarded_until_it_stops(lab: &Lab) {
    let _worker = lab.start();
    let listener = lab.router.listen((Ipv4Addr::UNSPECIFIED, 7100));
    let socket = lab.router.udp((WAN, 7100));
    let forward = |protocol: &str| {
        let body = json!({
            "external_port": 7100, "internal_ip": INSIDE, "internal_port": 7200, "protocol": protocol,
        });
        lab.post("/nat/forward", &body).status
    };
    assert_eq!((forward("tcp"), forward("udp"), forward("all")), (409, 409, 409));
    assert_eq!(lab.get("/nat/status")["port_forwards"], json!([]));
    let _client = lab.outside.connect((WAN, 7100)).expect("connect to the host");
    let (connection, _) = listener.accept().expect("accept");
    // a connection that lives on holds nothing: its packets open no flow
    drop(listener);
    drop(socket);
    assert_eq!((forward("tcp"), forward("udp")), (200, 200));
    let inside = lab.inside.listen((INSIDE, 7200));
    let _forwarded = lab.outside.connect((WAN, 7100)).expect("connect through the forward");
    inside.accept().expect("accept inside");
    drop(connection);
}

#[test]
fn what_others_have_attached_to_the_uplink_stays_and_still_runs() {
    let lab = Lab::new();
    lab.router.ip("link add foreign type bridge");
    lab.router.sh("tc qdisc add dev wan0 clsact");
    // matches nothing of ours: a clsact filter that accepts ends the chain for those behind it, whoever they are
    lab.router
        .sh("tc filter add dev wan0 ingress prio 7 protocol ip u32 match ip dst 10.9.9.9/32 flowid 1:1");
    let foreign = |lab: &Lab| {
        let filters = lab.router.sh("tc filter show dev wan0 ingress prio 7");
        (lab.router.sh("ip -o link show foreign"), lab.router.sh("tc qdisc show dev wan0 clsact"), filters)
    };
    let before = foreign(&lab);
    let worker = lab.start();
    lab.masquerade();
    let rule = lab.forward("tcp", 2222, 22);
    assert!(lab.inside.sh(&format!("ping -n -c 1 -W 2 {OUTSIDE}")).contains("1 received"));
    assert_eq!(foreign(&lab), before);
    lab.call("DELETE", &format!("/nat/forward/{rule}"), None).ok();
    worker.stop();
    let status = lab.worker_command().arg("teardown").status().expect("run teardown");
    assert!(status.success());
    assert_eq!(foreign(&lab), before);
    assert!(!attached(&lab));
    assert_eq!(lab.sh("find /sys/fs/bpf -mindepth 1 -name telecluster"), "");
}

#[test]
fn bad_days_are_one_line_and_leave_nothing() {
    let lab = Lab::new();
    let fails = |variables: &[(&str, &str)], wanted: &str| {
        let mut command = lab.worker_command();
        let output = command.envs(variables.iter().copied()).stderr(Stdio::piped()).output().expect("run");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{variables:?} was accepted");
        let errors: Vec<_> = text.lines().filter(|line| line.starts_with("telecluster-worker: ")).collect();
        assert_eq!(errors.len(), 1, "{text}");
        assert!(errors[0].contains(wanted), "{}", errors[0]);
    };
    fails(&[("WAN_INTERFACE", "wan7")], "wan7");
    fails(&[("PORT", "http")], "PORT");
    fails(&[("FLOW_CAPACITY", "many")], "FLOW_CAPACITY");
    fails(&[("BPF_DIR", "/tmp/telecluster-none"), ("DATAPLANE", "ebpf")], "BPF");
    assert_eq!(lab.sh("find /sys/fs/bpf -mindepth 1 -name telecluster"), "", "a failed start left pins");
    let _worker = lab.start();
    fails(&[("STATE_DIR", "/tmp/telecluster-none")], "8000");

    // a user without rights
    let mut command = lab.command("setpriv");
    command.args(["--reuid=65534", "--clear-groups", "--"]).arg(Worker::binary()).env("PORT", "8001");
    let output = command.output().expect("run");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && text.contains("missing permissions") && text.lines().count() == 1,
        "{text}"
    );
}
