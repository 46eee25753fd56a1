//! The iptables data plane where it differs from eBPF's: chains of its own beside those of others, and the choice
//! between the two. What both do alike is tested with both, in `nat`, `nat6` and `icmp`.

#![expect(clippy::panic, reason = "a failure is a panic")]

use std::{
    fs,
    net::UdpSocket,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use telecluster_tests::lab::{INSIDE, INSIDE_NET6, Lab, OUTSIDE, WAN, Worker, eventually};

const SAVES: [&str; 2] = ["iptables-save", "ip6tables-save"];

/// Everything in iptables but counters, dates and what is ours.
fn others(lab: &Lab) -> Vec<String> {
    let saved = SAVES.map(|save| lab.sh(save)).concat();
    let lines = saved.lines().map(|line| line.split(" [").next().unwrap_or_default());
    lines.filter(|line| !line.starts_with('#') && !ours(line)).map(str::to_owned).collect()
}

fn ours(line: &str) -> bool {
    line.contains("TELECLUSTER")
}

fn chains(lab: &Lab) -> usize {
    SAVES.map(|save| lab.sh(save)).concat().lines().filter(|line| line.starts_with(":TELECLUSTER")).count()
}

/// Programs and pins of the eBPF data plane.
fn programs(lab: &Lab) -> String {
    lab.sh("find /sys/fs/bpf -mindepth 1 -name telecluster") + &lab.router.sh("bpftool net show dev wan0")
}

fn has_programs(lab: &Lab) -> bool {
    let found = programs(lab);
    found.contains("telecluster") || found.contains("tc_wan")
}

/// Sends until the answer comes, as the outside host sees the sender.
fn exchange(client: &UdpSocket, server: &UdpSocket) -> String {
    let short = Some(Duration::from_millis(200));
    client.set_read_timeout(short).expect("a timeout");
    server.set_read_timeout(short).expect("a timeout");
    let mut seen = String::new();
    eventually("no answer through the NAT", || {
        client.send_to(b"q", (OUTSIDE, 5300)).expect("send");
        let mut buffer = [0; 16];
        let Ok((_, from)) = server.recv_from(&mut buffer) else { return false };
        seen = from.to_string();
        server.send_to(b"a", from).expect("answer");
        client.recv(&mut buffer).is_ok()
    });
    seen
}

fn rule(lab: &Lab, list: &str, id: &str) -> Value {
    let status = lab.get("/nat/status");
    let rules = status[list].as_array().expect("rules");
    rules.iter().find(|rule| rule["id"] == id).unwrap_or_else(|| panic!("no {id} in {status}")).clone()
}

#[test]
fn rules_of_others_are_the_same_before_during_and_after() {
    let lab = Lab::on("iptables");
    for line in [
        "iptables -t nat -A PREROUTING -p tcp --dport 8080 -j REDIRECT --to-ports 80",
        "iptables -t nat -N DOCKER",
        "iptables -t nat -A POSTROUTING -s 10.99.0.0/16 -j MASQUERADE",
        "iptables -t mangle -A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu",
        "iptables -A INPUT -s 192.0.2.66 -j DROP",
        "ip6tables -t nat -A POSTROUTING -s fd99::/64 -j MASQUERADE",
        "ip6tables -t mangle -A OUTPUT -d 2001:db8:66::/48 -j DROP",
    ] {
        lab.router.sh(line);
    }
    let before = others(&lab);
    let worker = lab.start();
    assert_eq!(chains(&lab), 0, "a chain before a rule was asked for");
    lab.masquerade();
    let body = json!({"source_network": INSIDE_NET6, "output_interface": "wan0"});
    lab.post("/nat/masquerade", &body).ok();
    let forward = lab.forward("all", 5353, 53);
    assert_eq!(chains(&lab), 10 + 4, "of IPv4, and those of masquerade for IPv6");
    assert_eq!(others(&lab), before);
    lab.call("DELETE", &format!("/nat/forward/{forward}"), None).ok();
    assert_eq!(others(&lab), before);
    worker.stop();
    let done = lab.worker_command().arg("teardown").status().expect("run teardown");
    assert!(done.success());
    assert_eq!((chains(&lab), others(&lab)), (0, before));
}

#[test]
fn counters_of_a_rule_go_on_while_others_come_and_go() {
    let lab = Lab::on("iptables");
    let _worker = lab.start();
    let id = lab.masquerade();
    let (server, client) = (lab.outside.udp((OUTSIDE, 5300)), lab.inside.udp((INSIDE, 40000)));
    let counted = || {
        let rule = rule(&lab, "masquerade_rules", &id);
        (rule["packets_out"].clone(), rule["packets_in"].clone(), rule["active_flows"].clone())
    };
    let mut answer = [0; 16];
    for round in 1..=3 {
        client.send_to(b"q", (OUTSIDE, 5300)).expect("send");
        let (_, from) = server.recv_from(&mut answer).expect("a datagram");
        server.send_to(b"a", from).expect("answer");
        client.recv(&mut answer).expect("the answer");
        assert_eq!(counted(), (json!(round), json!(round), json!(1)));
        let other = lab.forward("tcp", 2222, 22);
        lab.call("DELETE", &format!("/nat/forward/{other}"), None).ok();
    }
    // A second flow: its first packet is counted by another line than the others.
    let other = lab.inside.udp((INSIDE, 40001));
    other.send_to(b"q", (OUTSIDE, 5300)).expect("send");
    server.recv(&mut answer).expect("a datagram");
    assert_eq!(counted(), (json!(4), json!(3), json!(2)));
}

#[test]
fn chains_that_somebody_flushes_are_put_back() {
    let lab = Lab::on("iptables");
    let _worker = lab.start();
    lab.masquerade();
    lab.forward("tcp", 2222, 22);
    let listener = lab.inside.listen((INSIDE, 22));
    let translated = |saved: &str| saved.matches("-j DNAT").count();
    let before = (chains(&lab), translated(&lab.sh("iptables-save -t nat")));
    for flush in
        ["iptables -t nat -F", "nft flush ruleset", "iptables -t nat -D PREROUTING -j TELECLUSTER-PREROUTING"]
    {
        lab.router.sh(flush);
        let began = Instant::now();
        eventually("the chains are not put back", || {
            let saved = lab.sh("iptables-save -t nat");
            (chains(&lab), translated(&saved)) == before
                && saved.contains("-A PREROUTING -j TELECLUSTER-PREROUTING")
        });
        println!("after {flush}: {:?}", began.elapsed());
        let _client = lab.outside.connect((WAN, 2222)).expect("connect through the forward");
        listener.accept().expect("accept");
    }
}

/// The old iptables tells nobody of a change; the worker looks from time to time.
#[test]
fn it_works_with_iptables_legacy_too() {
    let lab = Lab::on("iptables");
    lab.sh("mount --bind /usr/sbin/xtables-legacy-multi /usr/sbin/xtables-nft-multi");
    assert!(lab.sh("iptables --version").contains("legacy"));
    let worker = lab.start();
    let id = lab.masquerade();
    let (server, client) = (lab.outside.udp((OUTSIDE, 5300)), lab.inside.udp((INSIDE, 40000)));
    assert_eq!(exchange(&client, &server), format!("{WAN}:40000"));
    let counted = || rule(&lab, "masquerade_rules", &id)["packets_out"].as_u64().expect("a number");
    let first = counted();
    assert!(first > 0);
    worker.stop();
    let _worker = lab.start();
    assert_eq!(counted(), first, "a restart keeps the counters");
    lab.sh("iptables -t nat -F");
    eventually("the chains are not put back", || lab.sh("iptables-save -t nat").contains("-j MASQUERADE"));
    lab.call("DELETE", &format!("/nat/masquerade/{id}"), None).ok();
    assert_eq!(chains(&lab), 0);
}

#[test]
fn a_worker_that_may_load_no_programs_takes_iptables_and_says_why() {
    let lab = Lab::new();
    let restricted = || {
        let mut command = lab.command("setpriv");
        command.args(["--bounding-set=-bpf,-sys_admin", "--"]).arg(Worker::binary());
        let as_usual = lab.worker_command();
        let variables = as_usual.get_envs().filter_map(|(name, value)| Some((name, value?)));
        command.envs(variables).stdin(Stdio::null()).stdout(Stdio::null());
        command
    };
    let refused = restricted().env("DATAPLANE", "ebpf").stderr(Stdio::piped()).output().expect("run it");
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("CAP_BPF"), "{text}");

    let log = lab.state.path().join("log");
    let _worker = lab.start_command(restricted().stderr(fs::File::create(&log).expect("a log")));
    for (path, place) in [("/health", "/dataplane"), ("/network/status", "/dataplane")] {
        let body = lab.get(path);
        let dataplane = body.pointer(place).expect("a data plane");
        assert_eq!(dataplane["backend"], "iptables", "{dataplane}");
        let reason = dataplane["reason"].as_str().expect("a reason");
        assert!(reason.starts_with("eBPF cannot be used here"), "{reason}");
    }
    let said = fs::read_to_string(&log).expect("the log");
    let chosen = said.lines().find(|line| line.contains("data plane chosen")).unwrap_or_default();
    assert!(chosen.contains("iptables") && chosen.contains("eBPF cannot be used here"), "{said}");
    let differences = lab.get("/network/status")["dataplane"]["differences"].clone();
    assert!(differences.as_array().is_some_and(|list| !list.is_empty()), "{differences}");
    lab.masquerade();
    let (server, client) = (lab.outside.udp((OUTSIDE, 5300)), lab.inside.udp((INSIDE, 40000)));
    assert_eq!(exchange(&client, &server), format!("{WAN}:40000"));
    assert_eq!(lab.get("/health")["status"], "healthy", "{}", lab.get("/health"));
}

#[test]
fn what_iptables_cannot_do_is_refused_or_warned_of() {
    let lab = Lab::on("iptables");
    let _worker = lab.start();
    lab.post("/bridge/create", &json!({"name": "br-vm"})).ok();
    lab.post("/veth/create", &json!({"name1": "vm1", "name2": "vm1p", "bridge1": "br-vm"})).ok();
    // Where the kernel's bridge keeps VLANs apart, there is something that it does not do.
    let tunnel = lab.bridges_filter_vlans();
    let vlan = json!({
        "bridge_name": "br-vm", "port_name": "vm1", "vlan_id": 100, "tagged": false, "tunnel": tunnel,
    });
    let refused = lab.post("/vlan/add-to-bridge", &vlan);
    assert_eq!(refused.status, 501, "{}", refused.body);
    assert!(
        refused.body["message"].as_str().is_some_and(|text| text.contains("iptables")),
        "{}",
        refused.body
    );
    let body = json!({
        "source_network": "10.7.0.0/16", "output_interface": "wan0", "nat_type": "full_cone",
    });
    let made = lab.post("/nat/masquerade", &body).ok();
    assert!(made["data"]["warnings"][0].as_str().is_some_and(|text| text.contains("full_cone")), "{made}");
}

/// They were kept apart by programs, which the worker takes away: somebody has to know.
#[test]
fn vlans_that_iptables_leaves_unfiltered_are_in_the_health() {
    let mut lab = Lab::on("ebpf");
    let worker = lab.start();
    lab.post("/bridge/create", &json!({"name": "br-vm"})).ok();
    lab.post("/veth/create", &json!({"name1": "vm1", "name2": "vm1p", "bridge1": "br-vm"})).ok();
    // Not even the kernel's own filter, where there is one, has tunnel ports.
    let vlan = json!({
        "bridge_name": "br-vm", "port_name": "vm1", "vlan_id": 100, "tagged": false, "tunnel": true,
    });
    lab.post("/vlan/add-to-bridge", &vlan).ok();
    let health = lab.get("/health");
    assert_eq!(health["status"], "healthy", "{health}");
    worker.stop();
    lab.set_dataplane("iptables");
    let worker = lab.start();
    let health = lab.get("/health");
    assert_eq!(health["status"], "degraded", "{health}");
    let problems = health["problems"].to_string();
    assert!(problems.contains("vm1") && problems.contains("iptables"), "{problems}");
    let metrics = lab.call("GET", "/metrics", None).body;
    let text = metrics.as_str().unwrap_or_default();
    assert!(text.lines().any(|line| line == "telecluster_drifted_objects 1"), "{text}");
    worker.stop();
    lab.set_dataplane("ebpf");
    let _worker = lab.start();
    eventually("they are not kept apart again", || lab.get("/health")["status"] == "healthy");
}

#[test]
fn another_data_plane_takes_everything_of_the_one_before_away() {
    let mut lab = Lab::on("ebpf");
    let (server, client) = (lab.outside.udp((OUTSIDE, 5300)), lab.inside.udp((INSIDE, 40000)));
    let worker = lab.start();
    lab.masquerade();
    let forward = lab.forward("tcp", 2222, 22);
    let listener = lab.inside.listen((INSIDE, 22));
    exchange(&client, &server);
    assert!(has_programs(&lab));
    worker.murder();
    for (dataplane, other) in [("iptables", "ebpf"), ("ebpf", "iptables"), ("iptables", "ebpf")] {
        lab.set_dataplane(dataplane);
        let worker = lab.start();
        // Answered when everything is in place.
        assert_eq!(rule(&lab, "port_forwards", &forward)["backend"], dataplane, "the rule is the same");
        assert_eq!(chains(&lab) > 0, dataplane == "iptables", "{other} before: {}", lab.sh("iptables-save"));
        assert_eq!(has_programs(&lab), dataplane == "ebpf", "{other} before: {}", programs(&lab));
        assert_eq!(exchange(&client, &server), format!("{WAN}:40000"));
        let _client = lab.outside.connect((WAN, 2222)).expect("connect through the forward");
        listener.accept().expect("accept");
        worker.murder();
    }
    // whichever it is, teardown removes both
    let mut teardown: Command = lab.worker_command();
    let done = teardown.arg("teardown").env("DATAPLANE", "auto").status().expect("run teardown");
    assert!(done.success());
    assert_eq!((chains(&lab), has_programs(&lab)), (0, false));
}
