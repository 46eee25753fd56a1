//! Firewall rules on real packets, beside rules of others.

#![expect(clippy::panic, reason = "a failure is a panic")]

use std::{io::ErrorKind, net::Ipv4Addr, thread};

use serde_json::{Value, json};
use telecluster_tests::lab::{GATEWAY, INSIDE, Lab, OUTSIDE, eventually};

/// Everything that iptables and nft have, without counters and dates.
fn ruleset(lab: &Lab) -> String {
    ["iptables-save", "ip6tables-save", "nft -s list ruleset"]
        .map(|line| lab.router.sh(line))
        .concat()
        .lines()
        .map(|line| line.split('[').next().unwrap_or_default().trim())
        .filter(|line| !line.starts_with('#'))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Rules of somebody else, in both worlds.
fn foreign(lab: &Lab) {
    for line in [
        "iptables -A INPUT -s 192.0.2.66 -j DROP",
        "iptables -N DOCKER-USER",
        "iptables -A FORWARD -j DOCKER-USER",
        "iptables -t nat -A POSTROUTING -s 10.99.0.0/16 -j MASQUERADE",
        "ip6tables -A OUTPUT -d 2001:db8:66::/48 -j DROP",
        "ip6tables -N THEIRS",
        "nft add table inet theirs",
        "nft add chain inet theirs c",
        "nft add rule inet theirs c ip saddr 192.0.2.77 drop",
    ] {
        lab.router.sh(line);
    }
}

fn add(lab: &Lab, rule: &Value) -> String {
    let body = lab.post("/nat/firewall", rule).ok();
    assert_eq!(body["data"]["changed"], true, "{body}");
    body["data"]["rule_id"].as_str().expect("an id").to_owned()
}

fn forward_drop(port: u16) -> Value {
    json!({ "chain": "FORWARD", "action": "DROP", "protocol": "udp", "source": INSIDE, "port": port })
}

/// Whether a datagram of the inside host arrives at the outside one.
fn passes(lab: &Lab, port: u16) -> bool {
    let receiver = lab.outside.udp((OUTSIDE, port));
    receiver.set_read_timeout(Some(std::time::Duration::from_millis(500))).expect("a timeout");
    lab.inside.udp((INSIDE, 0)).send_to(b"x", (OUTSIDE, port)).expect("send");
    match receiver.recv(&mut [0; 8]) {
        Ok(_) => true,
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => false,
        Err(error) => panic!("receive: {error}"),
    }
}

fn rule_of(lab: &Lab, id: &str) -> Value {
    let status = lab.get("/nat/status");
    let rules = status["firewall_rules"].as_array().expect("rules");
    rules.iter().find(|rule| rule["id"] == id).unwrap_or_else(|| panic!("{id} is not in {status}")).clone()
}

#[test]
fn a_rule_filters_and_counts_what_it_names_and_nothing_else() {
    let lab = Lab::new();
    let _worker = lab.start();
    lab.masquerade();
    let empty = ruleset(&lab);
    assert!(!empty.contains("TELECLUSTER"), "a rule before one was asked for:\n{empty}");
    assert!(passes(&lab, 7001));

    let id = add(&lab, &forward_drop(7001));
    assert!(!passes(&lab, 7001));
    assert!(passes(&lab, 7002), "another port");
    let rule = rule_of(&lab, &id);
    assert_eq!((&rule["packets"], &rule["bytes"]), (&json!(1), &json!(29)), "{rule}");

    // A second rule leaves the counters of the first.
    let second = add(&lab, &forward_drop(7002));
    assert!(!passes(&lab, 7002));
    assert_eq!(rule_of(&lab, &id)["packets"], 1);
    lab.call("DELETE", &format!("/nat/firewall/{second}"), None).ok();
    assert_eq!(rule_of(&lab, &id)["packets"], 1);
    assert!(passes(&lab, 7002) && !passes(&lab, 7001));

    lab.call("DELETE", &format!("/nat/firewall/{id}"), None).ok();
    assert!(passes(&lab, 7001));
    assert!(!ruleset(&lab).contains("TELECLUSTER"), "{}", ruleset(&lab));
}

#[test]
fn rules_of_others_are_the_same_before_during_and_after() {
    let lab = Lab::new();
    foreign(&lab);
    // The tables that iptables makes for its first rule are there now: what changes is ours.
    for chain in ["INPUT", "OUTPUT", "FORWARD"] {
        for program in ["iptables", "ip6tables"] {
            lab.router.sh(&format!("{program} -A {chain} -j ACCEPT"));
        }
    }
    let before = ruleset(&lab);
    let _worker = lab.start();
    for chain in ["INPUT", "OUTPUT", "FORWARD"] {
        for source in [json!(null), json!("10.7.0.0/16"), json!("2001:db8:7::/48")] {
            add(
                &lab,
                &json!({ "chain": chain, "action": "REJECT", "protocol": "tcp", "port": 25, "source": source }),
            );
        }
    }
    let ours = |line: &&str| line.contains("TELECLUSTER") || line.contains("telecluster:");
    let during = ruleset(&lab);
    assert!(during.lines().filter(ours).count() > 18, "{during}");
    // iptables shows its own tables to nft as well, with our rules unrolled: compare what is told by iptables.
    let saved = |text: &str| {
        text.lines()
            .take_while(|line| !line.starts_with("table "))
            .filter(|line| !ours(line))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(saved(&during), saved(&before));
    let removed = lab.post("/nat/flush-firewall", &json!({})).ok();
    assert_eq!(removed["data"]["removed"].as_array().map(Vec::len), Some(9));
    assert_eq!(ruleset(&lab), before);
}

#[test]
fn rules_are_there_again_after_a_restart_and_after_a_flush_by_somebody_else() {
    let lab = Lab::new();
    let worker = lab.start();
    lab.masquerade();
    let id = add(&lab, &forward_drop(7001));
    let first = ruleset(&lab);
    worker.murder();
    assert!(!passes(&lab, 7001), "without the worker");
    let worker = lab.start();
    assert_eq!(rule_of(&lab, &id)["packets"], 1, "a restart keeps the counters");
    assert_eq!(ruleset(&lab), first, "and adds nothing");

    worker.stop();
    lab.router.sh("iptables -F");
    lab.router.sh("iptables -X");
    let _worker = lab.start();
    assert_eq!(rule_of(&lab, &id)["installed"], true);
    assert_eq!(ruleset(&lab), first);
    // Flushed while the worker runs: back without being asked, together with what is asked for next.
    lab.router.sh("iptables -D FORWARD -j TELECLUSTER-FORWARD");
    eventually("the jump is back", || rule_of(&lab, &id)["installed"] == true);
    lab.router.sh("iptables -F");
    eventually("the rule is back", || ruleset(&lab) == first);
    let other = add(&lab, &forward_drop(7002));
    assert_eq!(rule_of(&lab, &id)["installed"], true);
    assert!(!passes(&lab, 7001) && !passes(&lab, 7002));
    lab.call("DELETE", &format!("/nat/firewall/{other}"), None).ok();
}

/// It tells nobody of a change.
#[test]
fn rules_that_somebody_flushes_with_the_old_iptables_are_there_again() {
    let lab = Lab::new();
    lab.sh("mount --bind /usr/sbin/xtables-legacy-multi /usr/sbin/xtables-nft-multi");
    assert!(lab.sh("iptables --version").contains("legacy"));
    let rules = || lab.sh("iptables-save -t filter");
    let worker = lab.start();
    let id = add(&lab, &forward_drop(7001));
    let is_there = || rules().contains("--dport 7001 ");
    assert!(is_there(), "{}", rules());
    lab.sh("iptables -F");
    eventually("the rule is back", is_there);
    lab.call("DELETE", &format!("/nat/firewall/{id}"), None).ok();
    // And of one that comes when there has been none for a while.
    add(&lab, &forward_drop(7001));
    worker.murder();
    let _worker = lab.start();
    lab.sh("iptables -F");
    eventually("the rule is back after a restart", is_there);
}

#[test]
fn the_caller_keeps_his_way_to_the_worker() {
    let lab = Lab::new();
    let _worker = lab.start();
    let drop = json!({ "chain": "INPUT", "action": "DROP", "protocol": "tcp" });
    let refused = lab.post("/nat/firewall", &drop);
    assert_eq!(
        (refused.status, &refused.body["code"]),
        (409, &json!("FIREWALL_LOCKOUT")),
        "{}",
        refused.body
    );
    let accept = json!({ "chain": "INPUT", "action": "ACCEPT", "protocol": "all", "interface": "lo" });
    add(&lab, &accept);
    add(&lab, &drop);
    // Whoever is not on loopback is cut off, and the worker still answers us.
    let listener = lab.router.listen((GATEWAY, 7100));
    let knock = thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            lab.inside.run(|| {
                std::net::TcpStream::connect_timeout(
                    &(GATEWAY, 7100).into(),
                    std::time::Duration::from_millis(500),
                )
            })
        });
        waiting.join().expect("a thread")
    });
    assert!(knock.is_err());
    lab.post("/nat/flush-firewall", &json!({})).ok();
    lab.inside.connect((GATEWAY, 7100)).expect("open again");
    let _ = listener.accept().expect("a connection");
}

#[test]
fn teardown_takes_the_chains_away() {
    let lab = Lab::new();
    foreign(&lab);
    let before = ruleset(&lab);
    let worker = lab.start();
    add(
        &lab,
        &json!({ "chain": "INPUT", "action": "DROP", "protocol": "tcp", "port": 23, "source": Ipv4Addr::new(192, 0, 2, 9) }),
    );
    assert_ne!(ruleset(&lab), before);
    worker.stop();
    let done = lab.worker_command().arg("teardown").status().expect("run teardown");
    assert!(done.success());
    assert_eq!(ruleset(&lab), before);
}
