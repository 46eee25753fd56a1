//! How long flows may be idle, where a rule says so: with real sockets and short times.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, UdpSocket},
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use telecluster_tests::lab::{INSIDE, INSIDE_NET, Lab, OUTSIDE, WAN, eventually};

/// The least that a rule may say.
const SHORT: u64 = 5;

/// Longer than a flow may be idle that has [`SHORT`]: by the four seconds of grace within which its two directions tell
/// each other.
const SILENCE: Duration = Duration::from_secs(SHORT + 7);

fn masquerade(lab: &Lab, timeouts: &Value) -> Value {
    let body = json!({"source_network": INSIDE_NET, "output_interface": "wan0", "timeouts": timeouts});
    lab.post("/nat/masquerade", &body).ok()
}

/// The flows of one rule's external port.
fn flows(lab: &Lab, port: u16) -> Vec<Value> {
    let flows = lab.get("/nat/flows")["flows"].as_array().expect("a list").clone();
    flows.into_iter().filter(|flow| flow["external_port"] == port).collect()
}

/// There and back, until it is heard.
#[track_caller]
fn converse(client: &UdpSocket, to: (impl Into<std::net::IpAddr>, u16), server: &UdpSocket) {
    let to = SocketAddr::new(to.0.into(), to.1);
    for socket in [client, server] {
        socket.set_read_timeout(Some(Duration::from_millis(300))).expect("set a timeout");
    }
    eventually("no answer", || {
        client.send_to(b"q", to).expect("send");
        let mut buffer = [0; 8];
        let Ok((_, from)) = server.recv_from(&mut buffer) else { return false };
        server.send_to(b"a", from).expect("answer");
        client.recv_from(&mut buffer).is_ok()
    });
}

#[test]
fn flows_of_a_rule_end_after_the_time_that_it_says_and_others_do_not() {
    let lab = Lab::new();
    let worker = lab.start();
    let made = masquerade(&lab, &json!({"udp": SHORT}));
    assert_eq!(made["data"]["timeouts"]["udp"], SHORT);
    assert_eq!(made["data"]["timeouts"]["tcp_established"], 7440);
    lab.forward("udp", 5353, 53);
    let (client, server) = (lab.inside.udp((INSIDE, 40000)), lab.outside.udp((OUTSIDE, 5300)));
    let (caller, service) = (lab.outside.udp((OUTSIDE, 6000)), lab.inside.udp((INSIDE, 53)));
    converse(&client, (OUTSIDE, 5300), &server);
    converse(&caller, (WAN, 5353), &service);
    assert_eq!((flows(&lab, 40000).len(), flows(&lab, 5353).len()), (1, 1));
    // the next worker finds the very rule: flows go on
    worker.stop();
    let _worker = lab.start();
    assert_eq!(flows(&lab, 5353).len(), 1);
    converse(&client, (OUTSIDE, 5300), &server);
    eventually("it is still there", || flows(&lab, 40000).is_empty());
    // soon the port is not open any more either: what nobody answers keeps it open no longer
    client.set_read_timeout(Some(Duration::from_millis(500))).expect("set a timeout");
    eventually("it may still be sent to", || {
        server.send_to(b"late", (WAN, 40000)).expect("send");
        client.recv(&mut [0; 8]).is_err()
    });
    assert_eq!(flows(&lab, 5353).len(), 1, "another rule's");
    converse(&client, (OUTSIDE, 5300), &server);
}

/// A half-closed connection is an open one: only the times of opening and closing are short here.
#[test]
fn a_half_closed_connection_carries_data_for_longer_than_a_closing_one_lives() {
    let lab = Lab::new();
    let _worker = lab.start();
    let timeouts = json!({"tcp_transitory": SHORT, "tcp_established": 3600});
    masquerade(&lab, &timeouts);
    let body = json!({
        "external_port": 2222, "internal_ip": INSIDE, "internal_port": 22, "timeouts": timeouts,
    });
    lab.post("/nat/forward", &body).ok();
    let (listeners, ways) = (
        [lab.outside.listen((OUTSIDE, 5301)), lab.inside.listen((INSIDE, 22))],
        [(&lab.inside, (OUTSIDE, 5301)), (&lab.outside, (WAN, 2222))],
    );
    let mut open = Vec::new();
    for (listener, (host, to)) in listeners.iter().zip(ways) {
        let near = host.connect(to).expect("connect");
        let (far, _) = listener.accept().expect("accept");
        near.shutdown(Shutdown::Write).expect("say that this was all");
        open.push((near, far));
    }
    eventually("both are half-closed", || {
        let flows = lab.get("/nat/flows?protocol=tcp");
        let flows = flows["flows"].as_array().expect("a list");
        flows.iter().filter(|flow| flow["state"] == "half_closed").count() == 2
    });
    thread::sleep(SILENCE);
    let sent = vec![7; 100_000];
    for (near, far) in &mut open {
        thread::scope(|scope| {
            scope.spawn(|| far.write_all(&sent).expect("send"));
            let mut heard = vec![0; sent.len()];
            near.read_exact(&mut heard).expect("it arrives");
            assert!(heard == sent, "other bytes");
        });
        far.shutdown(Shutdown::Write).expect("say that this was all");
        assert_eq!(near.read(&mut [0; 1]).expect("the end"), 0);
    }
    // and when both have said so, it is over soon
    eventually("they are still there", || {
        lab.get("/nat/flows?protocol=tcp")["flows"].as_array().expect("a list").is_empty()
    });
}

#[test]
fn with_iptables_a_rule_with_times_of_its_own_works_and_says_that_it_has_the_host_s() {
    let lab = Lab::on("iptables");
    let worker = lab.start();
    let made = masquerade(&lab, &json!({"udp": SHORT}));
    let warnings = made["data"]["warnings"].to_string() + &made["warnings"].to_string();
    assert!(warnings.contains("iptables has no timeouts for a rule"), "{made}");
    let (client, server) = (lab.inside.udp((INSIDE, 40000)), lab.outside.udp((OUTSIDE, 5300)));
    converse(&client, (OUTSIDE, 5300), &server);
    worker.stop();
    // what the lines say is the very rule
    let _worker = lab.start();
    let status = lab.get("/nat/status");
    assert_eq!(status["masquerade_rules"][0]["timeouts"]["udp"], SHORT, "{status}");
    converse(&client, (OUTSIDE, 5300), &server);
}
