//! The host's own uplink in a bridge: its addresses, routes and neighbours move in one go, and come back when
//! the gateway is lost.

use std::net::Ipv4Addr;

use serde_json::{Value, json};
use telecluster_tests::lab::{Answer, Lab, OUTSIDE, WAN, eventually};

/// An uplink with everything that one can have, and a bridge for it.
fn lab() -> Lab {
    let lab = Lab::new();
    for line in [
        "addr add 203.0.113.9/24 dev wan0",
        "addr add 2001:db8::1/64 dev wan0 nodad",
        "route add 198.51.100.0/24 via 203.0.113.2 src 203.0.113.9 metric 50",
        "route add default via 203.0.113.2 table 100",
        "route add 192.0.2.0/24 dev wan0 mtu 1400",
        "-6 route add default via 2001:db8::2 metric 10",
        "neigh add 203.0.113.77 lladdr 02:00:00:00:00:77 dev wan0 nud permanent",
    ] {
        lab.router.ip(line);
    }
    lab.outside.ip("addr add 2001:db8::2/64 dev eth0 nodad");
    lab
}

/// What the host has of addresses, routes and static neighbours, with names of links; nothing that comes and
/// goes by itself.
fn essence(lab: &Lab) -> Vec<String> {
    let mut lines = Vec::new();
    for line in [
        "ip -o addr show scope global",
        "ip route show table all type unicast",
        "ip -6 route show table all type unicast",
        "ip neigh show nud permanent",
        "bridge link show",
    ] {
        lines.extend(lab.router.sh(line).lines().filter(|line| !line.contains("fe80")).map(normal));
    }
    lines.sort();
    lines
}

fn normal(line: &str) -> String {
    // The number of the link, and what a route says while its link has no carrier yet.
    let words = line.split_whitespace().filter(|word| *word != "linkdown" && *word != "\\");
    let words = words.skip_while(|word| word.trim_end_matches(':').parse::<u32>().is_ok());
    words.collect::<Vec<_>>().join(" ")
}

fn add(lab: &Lab) -> Answer {
    lab.post("/bridge/add-port", &json!({"bridge_name": "br-ex", "port_name": "wan0"}))
}

fn outside_answers(lab: &Lab) {
    lab.router.sh("ping -c 1 -W 5 203.0.113.2");
    lab.router.sh("ping -c 1 -W 5 2001:db8::2");
}

#[test]
fn an_uplink_moves_into_its_bridge_and_back_with_everything_that_hangs_on_it() {
    let lab = lab();
    let _worker = lab.start();
    lab.post("/bridge/create", &json!({"name": "br-ex", "addresses": ["10.0.5.1/24"]})).ok();
    lab.masquerade();
    outside_answers(&lab);
    let before = essence(&lab);

    let answer = add(&lab).ok();
    let message = answer["message"].as_str().expect("a message");
    assert!(message.contains("203.0.113.1/24") && message.contains("on br-ex now"), "{message}");
    let moved: Vec<_> = before
        .iter()
        .filter(|line| !line.contains(" master "))
        .map(|line| line.replace("wan0", "br-ex"))
        .collect();
    let mut now = essence(&lab);
    now.retain(|line| !line.contains(" master "));
    let mut expected = moved;
    expected.sort();
    assert_eq!(now, expected);
    let address = |link: &str| lab.sh(&format!("cat /sys/class/net/{link}/address"));
    assert_eq!(address("br-ex"), address("wan0"), "the switch sees what it knows");
    outside_answers(&lab);
    // The masquerade rule has followed its uplink.
    let (inside, outside) =
        (lab.inside.udp((Ipv4Addr::new(192, 168, 100, 10), 4000)), lab.outside.udp((OUTSIDE, 53)));
    inside.send_to(b"question", (OUTSIDE, 53)).expect("send");
    let mut text = [0; 16];
    let (_, from) = outside.recv_from(&mut text).expect("it arrives");
    assert_eq!(from.ip(), WAN);
    let routes = lab.get("/network/routes");
    let default = &routes.as_array().expect("a list")[0];
    assert_eq!((&default["gateway"], &default["interface"]), (&json!("203.0.113.2"), &json!("br-ex")));

    // Asked again: nothing to do. Taken out: all is as it was.
    assert_eq!(add(&lab).ok()["data"]["changed"], false);
    lab.post("/bridge/remove-port", &json!({"bridge_name": "br-ex", "port_name": "wan0"})).ok();
    assert_eq!(essence(&lab), before);
    outside_answers(&lab);
}

#[test]
fn a_gateway_that_is_lost_in_the_bridge_puts_everything_back() {
    let lab = lab();
    let _worker = lab.start();
    lab.post("/bridge/create", &json!({"name": "br-ex"})).ok();
    outside_answers(&lab);
    // A queue without room lets nothing out of the bridge.
    lab.router.sh("tc qdisc add dev br-ex root pfifo limit 0");
    let before = essence(&lab);
    let refused = add(&lab);
    assert_eq!((refused.status, &refused.body["code"]), (409, &json!("GATEWAY_LOST")), "{}", refused.body);
    assert!(
        refused.body["message"].as_str().is_some_and(|text| text.contains("203.0.113.2")),
        "{}",
        refused.body
    );
    assert_eq!(essence(&lab), before);
    outside_answers(&lab);
    assert_eq!(lab.get("/bridge/br-ex")["data"]["ports"], Value::Array(Vec::new()));

    // One that did not answer before is not waited for.
    lab.outside.ip("link set eth0 down");
    lab.outside.ip("link set eth0 up");
    lab.outside.ip("link set eth0 arp off");
    lab.outside.ip("-6 addr flush dev eth0");
    add(&lab).ok();
    assert!(lab.router.sh("ip addr show br-ex").contains("203.0.113.1/24"));
}

#[test]
fn an_uplink_that_somebody_takes_out_or_whose_bridge_goes_is_put_back() {
    let lab = lab();
    let _worker = lab.start();
    lab.post("/bridge/create", &json!({"name": "br-ex"})).ok();
    add(&lab).ok();
    let before = essence(&lab);
    for line in ["link set wan0 nomaster", "addr del 203.0.113.1/24 dev br-ex"] {
        lab.router.ip(line);
        eventually(line, || {
            essence(&lab).iter().any(|line| line.contains("203.0.113.1/24")) && {
                lab.get("/network/interface/wan0")["data"]["bridge"] == "br-ex"
            }
        });
    }
    lab.router.ip("link del br-ex");
    // A static neighbour and a route's extras are the operator's to make again.
    let essential = |lines: &[String]| -> Vec<String> {
        let wanted = |line: &&String| line.contains(" inet") || line.starts_with("default via");
        let words = |line: &String| line.split_whitespace().take(5).collect::<Vec<_>>().join(" ");
        lines
            .iter()
            .filter(wanted)
            .map(words)
            .map(|line| line.replace(" brd 203.0.113.255", " scope global"))
            .collect()
    };
    eventually("the uplink is back", || essential(&essence(&lab)) == essential(&before));
    outside_answers(&lab);
}
