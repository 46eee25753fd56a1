//! Port forwards on real packets: ranges, and who may use them.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use serde_json::{Value, json};
use telecluster_tests::{
    lab::{INSIDE, INSIDE6, Lab, Netns, OUTSIDE, OUTSIDE6, WAN, WAN6, eventually, rule_id},
    on_each_data_plane,
};

/// Long enough for a datagram that was not lost, short enough to send again.
const PAUSE: Duration = Duration::from_millis(200);

/// Sends until an answer comes, from the very address that was sent to; what it says.
fn asks(client: &UdpSocket, server: SocketAddr) -> String {
    client.set_read_timeout(Some(PAUSE)).expect("set a timeout");
    let mut answer = None;
    eventually(&format!("no answer from {server}"), || {
        client.send_to(b"who", server).expect("send");
        let mut buffer = [0; 256];
        answer = client.recv_from(&mut buffer).ok().map(|(len, from)| {
            assert_eq!(from, server, "the answer comes from elsewhere");
            String::from_utf8_lossy(&buffer[..len]).into_owned()
        });
        answer.is_some()
    });
    answer.unwrap_or_default()
}

/// Answers datagrams with the port that they came to and the address that they came from, for as long as the test lives.
fn answering(host: &Netns, address: impl Into<SocketAddr>) {
    let address = address.into();
    let socket = host.udp(address);
    std::thread::spawn(move || {
        let mut buffer = [0; 256];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("{} {from}", address.port()).as_bytes(), from);
        }
    });
}

fn forward(lab: &Lab, ports: (u16, u16), to: (impl Into<IpAddr>, u16), more: &Value) -> String {
    let mut body = json!({
        "external_port": ports.0, "external_port_end": ports.1, "internal_ip": to.0.into(), "internal_port": to.1,
        "protocol": "udp",
    });
    for (name, value) in more.as_object().expect("an object") {
        body[name] = value.clone();
    }
    rule_id(&lab.post("/nat/forward", &body).ok())
}

on_each_data_plane!(
    a_range_leads_inside_port_by_port_and_survives_a_restart,
    a_forward_is_open_to_its_sources_only_and_a_restart_does_not_open_it,
);

fn a_range_leads_inside_port_by_port_and_survives_a_restart(lab: &Lab) {
    lab.ipv6();
    let worker = lab.start();
    let rule = forward(lab, (5001, 6998), (INSIDE, 101), &json!({}));
    forward(lab, (5001, 6998), (INSIDE6, 101), &json!({}));
    let ebpf = lab.dataplane() == Some("ebpf");
    assert!(!ebpf || lab.dump("range4").len() <= 30, "a range is a few entries");
    let client = lab.outside.udp((OUTSIDE, 50000));
    for (outside, inside) in [(5001, 101), (5500, 600), (6998, 2098)] {
        answering(&lab.inside, (INSIDE, inside));
        assert_eq!(asks(&client, (WAN, outside).into()), format!("{inside} {OUTSIDE}:50000"));
    }
    let client6 = lab.outside.udp((OUTSIDE6, 50000));
    answering(&lab.inside, (INSIDE6, 600));
    assert_eq!(asks(&client6, (WAN6, 5500).into()), format!("600 [{OUTSIDE6}]:50000"));

    worker.murder();
    let _worker = lab.start();
    let status = &lab.get("/nat/status")["port_forwards"];
    let shown = status.as_array().expect("a list").iter().find(|shown| shown["id"] == json!(rule));
    let shown = shown.expect("the rule");
    assert_eq!((&shown["source_port"], &shown["external_port_end"]), (&json!(5001), &json!(6998)));
    assert!(shown["active_flows"].as_u64() >= Some(3), "it is the same rule, with its flows: {shown}");
    assert_eq!(asks(&client, (WAN, 5500).into()), format!("600 {OUTSIDE}:50000"));

    lab.call("DELETE", &format!("/nat/forward/{rule}"), None).ok();
    assert!(!ebpf || lab.dump("range4").is_empty());
    let again = lab.outside.udp((OUTSIDE, 50001));
    again.set_read_timeout(Some(PAUSE)).expect("set a timeout");
    for socket in [&client, &again] {
        socket.send_to(b"who", (WAN, 5500)).expect("send");
        let answer = socket.recv_from(&mut [0; 256]);
        assert!(answer.is_err(), "the range is gone, for old flows and new ones: {answer:?}");
    }
}

fn a_forward_is_open_to_its_sources_only_and_a_restart_does_not_open_it(lab: &Lab) {
    lab.ipv6();
    let worker = lab.start();
    let (other, other6) = ("203.0.113.77", "2001:db8::77");
    lab.outside.ip(&format!("addr add {other}/24 dev eth0"));
    lab.outside.ip(&format!("addr add {other6}/64 dev eth0 nodad"));
    answering(&lab.inside, (INSIDE, 600));
    answering(&lab.inside, (INSIDE6, 600));
    forward(lab, (5500, 5500), (INSIDE, 600), &json!({"source_cidrs": [format!("{OUTSIDE}/32")]}));
    forward(lab, (5500, 5500), (INSIDE6, 600), &json!({"source_cidrs": [format!("{OUTSIDE6}/128")]}));
    let socket = |address: &str, port: u16| lab.outside.udp((address.parse::<IpAddr>().expect("one"), port));
    let refused = |strangers: [(UdpSocket, IpAddr); 2]| {
        for (stranger, server) in strangers {
            stranger.set_read_timeout(Some(PAUSE)).expect("set a timeout");
            stranger.send_to(b"who", (server, 5500)).expect("send");
            let answer = stranger.recv_from(&mut [0; 256]);
            assert!(answer.is_err(), "a stranger is answered: {answer:?}");
        }
    };
    let guests = [
        (lab.outside.udp((OUTSIDE, 50000)), IpAddr::from(WAN)),
        (lab.outside.udp((OUTSIDE6, 50000)), IpAddr::from(WAN6)),
    ];
    for (guest, server) in &guests {
        assert!(asks(guest, (*server, 5500).into()).starts_with("600 "));
    }
    refused([(socket(other, 50001), WAN.into()), (socket(other6, 50001), WAN6.into())]);

    worker.murder();
    let _worker = lab.start();
    refused([(socket(other, 50002), WAN.into()), (socket(other6, 50002), WAN6.into())]);
    for (guest, server) in &guests {
        assert!(asks(guest, (*server, 5500).into()).starts_with("600 "));
    }
    // The stranger is let in, and the guest's flow ends at once.
    forward(lab, (5500, 5500), (INSIDE, 600), &json!({"source_cidrs": [other]}));
    let stranger = socket(other, 50003);
    assert!(asks(&stranger, (WAN, 5500).into()).starts_with("600 "));
    let (guest, _) = &guests[0];
    guest.send_to(b"who", (WAN, 5500)).expect("send");
    let answer = guest.recv_from(&mut [0; 256]);
    assert!(answer.is_err(), "a flow outlives what allowed it: {answer:?}");
}
