//! Docker's rules on the host: flows that they let pass take the fast path, and those that they do not never do.
//!
//! The rules are those that Docker's own documentation of its iptables shows (moby, integration/network/bridge/iptablesdoc):
//! with one published port, of before version 28 and of those since.

use std::io::{Read as _, Write as _};

use serde_json::json;
use telecluster_tests::{
    conversation::{Conversation, masqueraded},
    lab::{Lab, OUTSIDE, Worker, eventually},
};

/// Before 28: `FORWARD` has a part for each network.
const BEFORE: &[&str] = &[
    "-P FORWARD DROP",
    "-N DOCKER",
    "-N DOCKER-ISOLATION-STAGE-1",
    "-N DOCKER-ISOLATION-STAGE-2",
    "-N DOCKER-USER",
    "-A FORWARD -j DOCKER-USER",
    "-A FORWARD -j DOCKER-ISOLATION-STAGE-1",
    "-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    "-A FORWARD -o docker0 -j DOCKER",
    "-A FORWARD -i docker0 ! -o docker0 -j ACCEPT",
    "-A FORWARD -i docker0 -o docker0 -j ACCEPT",
    "-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT",
    "-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2",
    "-A DOCKER-ISOLATION-STAGE-1 -j RETURN",
    "-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP",
    "-A DOCKER-ISOLATION-STAGE-2 -j RETURN",
    "-A DOCKER-USER -j RETURN",
];

/// Since 28: `FORWARD` leads to a chain of Docker's, and that to one for each purpose.
const SINCE: &[&str] = &[
    "-P FORWARD DROP",
    "-N DOCKER",
    "-N DOCKER-BRIDGE",
    "-N DOCKER-CT",
    "-N DOCKER-FORWARD",
    "-N DOCKER-INTERNAL",
    "-N DOCKER-USER",
    "-A FORWARD -j DOCKER-USER",
    "-A FORWARD -j DOCKER-FORWARD",
    "-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT",
    "-A DOCKER ! -i docker0 -o docker0 -j DROP",
    "-A DOCKER-BRIDGE -o docker0 -j DOCKER",
    "-A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    "-A DOCKER-FORWARD -j DOCKER-CT",
    "-A DOCKER-FORWARD -j DOCKER-INTERNAL",
    "-A DOCKER-FORWARD -j DOCKER-BRIDGE",
    "-A DOCKER-FORWARD -i docker0 -j ACCEPT",
    // Nobody reaches a container past its published ports.
    "-t raw -A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP",
];

/// Of both: published ports, and the masquerade of containers.
const NAT: &[&str] = &[
    "-t nat -N DOCKER",
    "-t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
    "-t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER",
    "-t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
    "-t nat -A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80",
];

/// What Docker's documentation has who runs a router beside it write: his own networks pass.
const OURS: [&str; 2] = [
    "-I DOCKER-USER -i br-lab -j ACCEPT",
    "-I DOCKER-USER -o br-lab -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
];

const LIBERAL: &str = "net.netfilter.nf_conntrack_tcp_be_liberal";

fn iptables(lab: &Lab, rules: &[&str]) {
    for rule in rules {
        lab.router.sh(&format!("iptables {rule}"));
    }
}

/// A host with Docker, whose connection tracking forgives missing packets, and a worker.
fn host(docker: &[&str]) -> (Lab, Worker, Conversation) {
    let lab = Lab::on("ebpf");
    lab.router.ip("link add docker0 type bridge");
    lab.router.ip("link set docker0 up");
    iptables(&lab, docker);
    iptables(&lab, NAT);
    lab.router.sh(&format!("sysctl -q -w {LIBERAL}=1"));
    masqueraded(lab)
}

/// Why all packets take the kernel's way, if they do.
fn reason(lab: &Lab) -> Option<String> {
    let path = lab.get("/nat/status")["fast_path"].clone();
    assert_eq!(path["open"] == json!(true), path["reason"].is_null(), "{path}");
    path["reason"].as_str().map(str::to_owned)
}

fn what_they_accept_is_fast_and_what_they_drop_is_dropped(docker: &[&str]) {
    let (lab, _worker, conversation) = host(docker);
    assert_eq!(reason(&lab), None);
    // Docker drops what it does not know, and a flow that is dropped is not learned.
    assert!(!conversation.gets_through());
    iptables(&lab, &OURS);
    eventually("the host's rule is not obeyed", || conversation.gets_through());
    conversation.becomes_fast(&lab);

    let other = Conversation::to(&lab, 40001, 5301);
    other.becomes_fast(&lab);
    let rule = format!("DOCKER-USER -p udp -d {OUTSIDE} --dport 5301 -j DROP");
    iptables(&lab, &[&format!("-I {rule}")]);
    eventually("the rule is passed by", || !other.gets_through());
    assert_eq!(other.flow(&lab)["path"], "kernel");
    // The others are none of its business.
    conversation.becomes_fast(&lab);
    assert_eq!(reason(&lab), None);
    iptables(&lab, &[&format!("-D {rule}")]);
    eventually("the rule is obeyed though it is gone", || other.gets_through());
    other.becomes_fast(&lab);
}

#[test]
fn dockers_rules_of_before_28_let_flows_be_fast() {
    what_they_accept_is_fast_and_what_they_drop_is_dropped(BEFORE);
}

#[test]
fn dockers_rules_since_28_let_flows_be_fast() {
    what_they_accept_is_fast_and_what_they_drop_is_dropped(SINCE);
}

#[test]
fn a_rule_that_must_see_every_packet_does() {
    let (lab, _worker, conversation) = host(SINCE);
    iptables(&lab, &OURS);
    eventually("the host's rule is not obeyed", || conversation.gets_through());
    conversation.becomes_fast(&lab);
    for rule in [
        "DOCKER-USER -m limit --limit 1000/second -j ACCEPT",
        "FORWARD -m mark --mark 7 -j DROP",
        "DOCKER-USER -m conntrack --ctstate ESTABLISHED -j RETURN",
        "FORWARD -p tcp --tcp-flags SYN SYN -j ACCEPT",
    ] {
        iptables(&lab, &[&format!("-A {rule}")]);
        eventually("a rule by rate, mark or state is passed by", || reason(&lab).is_some());
        let why = reason(&lab).expect("a reason");
        assert!(why.contains("must see every packet"), "{rule}: {why}");
        conversation.turn();
        assert_eq!(conversation.flow(&lab)["path"], "kernel");
        iptables(&lab, &[&format!("-D {rule}")]);
        eventually("the rule is gone", || reason(&lab).is_none());
    }
    conversation.becomes_fast(&lab);
}

#[test]
fn rules_of_others_beside_dockers_still_see_every_packet() {
    let (lab, _worker, _conversation) = host(SINCE);
    iptables(&lab, &["-N THEIRS", "-A DOCKER-USER -j THEIRS"]);
    eventually("a chain of others is passed by", || reason(&lab).is_some_and(|why| why.contains("THEIRS")));
    iptables(&lab, &["-D DOCKER-USER -j THEIRS"]);
    eventually("it is gone", || reason(&lab).is_none());
    iptables(&lab, &["-t mangle -A FORWARD -j ACCEPT"]);
    eventually("another table is passed by", || reason(&lab).is_some_and(|why| why.contains("mangle")));
}

/// Most of a fast connection's bytes go by connection tracking unseen. When its packets take the kernel's way again,
/// their numbers are far from those that were seen last.
#[test]
fn a_connection_goes_on_when_its_packets_pass_dockers_rules_again() {
    let (lab, _worker, _conversation) = host(SINCE);
    iptables(&lab, &OURS);
    lab.router.sh("iptables -I DOCKER-USER -m conntrack --ctstate NEW -o br-lab -j ACCEPT");
    eventually("new connections are asked for one by one", || reason(&lab).is_some());
    lab.router.sh("iptables -D DOCKER-USER -m conntrack --ctstate NEW -o br-lab -j ACCEPT");
    eventually("the rule is gone", || reason(&lab).is_none());
    let listener = lab.outside.listen((OUTSIDE, 80));
    let mut client = lab.inside.connect((OUTSIDE, 80)).expect("connect");
    let (mut server, _) = listener.accept().expect("accept");
    let is_fast = || lab.get("/nat/flows?protocol=tcp")["flows"][0]["path"] == "fast";
    let data = vec![7; 256 << 10];
    let mut received = vec![0; data.len()];
    for round in 0..3 {
        eventually("the connection does not become fast", || {
            client.write_all(b"there").expect("send");
            server.read_exact(&mut [0; 5]).expect("receive");
            server.write_all(b"back").expect("answer");
            client.read_exact(&mut [0; 4]).expect("the answer");
            is_fast()
        });
        for _ in 0..16 {
            std::thread::scope(|scope| {
                scope.spawn(|| client.write_all(&data).expect("send"));
                server.read_exact(&mut received).expect("receive");
            });
        }
        // Everybody has to pass the rules again.
        lab.router.ip(&format!("route add blackhole 192.0.2.{round}/32"));
    }
    client.write_all(b"the end").expect("send");
    server.read_exact(&mut [0; 7]).expect("receive");
}

#[test]
fn connection_tracking_that_forgives_nothing_keeps_everything_on_the_kernels_way() {
    let (lab, worker, conversation) = host(SINCE);
    iptables(&lab, &OURS);
    eventually("the host's rule is not obeyed", || conversation.gets_through());
    worker.stop();
    lab.router.sh(&format!("sysctl -q -w {LIBERAL}=0"));
    let _worker = lab.start();
    eventually("it is not said", || reason(&lab).is_some_and(|why| why.contains(LIBERAL)));
    conversation.turn();
    assert_eq!(conversation.flow(&lab)["path"], "kernel");
}
