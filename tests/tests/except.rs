//! Destinations that a masquerade leaves alone (RFC 6888 REQ-6), with real sockets.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use serde_json::{Value, json};
use telecluster_tests::{
    lab::{INSIDE, INSIDE_NET, INSIDE_NET6, INSIDE6, Lab, OUTSIDE, OUTSIDE6, WAN, WAN6, eventually},
    on_each_data_plane,
};

on_each_data_plane!(an_excluded_network_sees_inside_addresses_and_a_restart_changes_nothing);

/// Another site, which has a route to the inside.
const SITE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const SITE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 7);

/// Who a datagram seems to come from, and that its answer comes back; sent again until it does.
fn appears_as(lab: &Lab, client: &UdpSocket, server: IpAddr) -> IpAddr {
    let listener = lab.outside.udp((server, 5300));
    for socket in [client, &listener] {
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("set a timeout");
    }
    let mut seen = None;
    eventually(&format!("no answer from {server}"), || {
        client.send_to(b"who", (server, 5300)).expect("send");
        let Ok((_, from)) = listener.recv_from(&mut [0; 16]) else { return false };
        listener.send_to(b"you", from).expect("answer");
        seen = Some(from.ip());
        matches!(client.recv_from(&mut [0; 16]), Ok((_, by)) if by == SocketAddr::new(server, 5300))
    });
    seen.expect("somebody")
}

fn rule(lab: &Lab, network: &str) -> Value {
    let status = lab.get("/nat/status");
    let mut rules = status["masquerade_rules"].as_array().expect("a list").iter();
    let mut rule = rules.find(|rule| rule["source_ip"] == network).expect("the rule").clone();
    // What is counted goes on.
    rule.as_object_mut().expect("a rule").retain(|name, _| {
        !name.starts_with("packets") && !name.starts_with("bytes") && name != "active_flows"
    });
    rule
}

fn an_excluded_network_sees_inside_addresses_and_a_restart_changes_nothing(lab: &Lab) {
    lab.ipv6();
    lab.outside.ip(&format!("addr add {SITE}/32 dev lo"));
    lab.outside.ip(&format!("addr add {SITE6}/128 dev lo nodad"));
    lab.outside.ip(&format!("route add {INSIDE_NET} via {WAN}"));
    lab.outside.ip(&format!("-6 route add {INSIDE_NET6} via {WAN6}"));
    lab.router.ip(&format!("-6 route add default via {OUTSIDE6}"));
    let masquerade = |network: &str, excluded: Value| {
        let body = json!({ "source_network": network, "output_interface": "wan0",
                           "exclude_destinations": excluded });
        lab.post("/nat/masquerade", &body).ok()["data"].clone()
    };
    let excluded = [json!(["198.51.100.7/24"]), json!(["2001:db8:77::/48", "2001:db8:77:1::/64"])];
    let worker = lab.start();
    let made = masquerade(INSIDE_NET, excluded[0].clone());
    assert_eq!(made["exclude_destinations"], json!(["198.51.100.0/24"]), "without host bits");
    let made = masquerade(INSIDE_NET6, excluded[1].clone());
    assert_eq!(made["exclude_destinations"], json!(["2001:db8:77::/48"]), "without what says nothing more");
    let clients = [lab.inside.udp((INSIDE, 40000)), lab.inside.udp((INSIDE6, 40000))];
    let appears = || {
        let sites = [IpAddr::from(SITE), SITE6.into()];
        let others = [IpAddr::from(OUTSIDE), OUTSIDE6.into()];
        [0, 1].map(|family| {
            (
                appears_as(lab, &clients[family], sites[family]),
                appears_as(lab, &clients[family], others[family]),
            )
        })
    };
    let expected = [(INSIDE.into(), WAN.into()), (INSIDE6.into(), WAN6.into())];
    assert_eq!(appears(), expected);
    let before = [INSIDE_NET, INSIDE_NET6].map(|network| rule(lab, network));

    worker.stop();
    let _worker = lab.start();
    assert_eq!([INSIDE_NET, INSIDE_NET6].map(|network| rule(lab, network)), before);
    assert_eq!(appears(), expected);
    for (network, excluded) in [INSIDE_NET, INSIDE_NET6].into_iter().zip(excluded) {
        let body = json!({ "source_network": network, "output_interface": "wan0",
                           "exclude_destinations": excluded });
        assert_eq!(lab.post("/nat/masquerade", &body).ok()["data"]["changed"], false, "asked for again");
    }

    // The network's own address elsewhere: its rule goes on, and so do its exceptions.
    lab.router.ip(&format!("addr del {WAN}/24 dev wan0"));
    lab.router.ip("addr add 203.0.113.7/24 dev wan0");
    lab.router.ip(&format!("route add default via {OUTSIDE}"));
    lab.outside.ip(&format!("route replace {INSIDE_NET} via 203.0.113.7"));
    eventually("the new address is not followed", || {
        appears_as(lab, &clients[0], OUTSIDE.into()) == IpAddr::from([203, 0, 113, 7])
    });
    assert_eq!(appears_as(lab, &clients[0], SITE.into()), IpAddr::from(INSIDE));

    // Without them everything is translated, at once.
    masquerade(INSIDE_NET, json!([]));
    assert!(rule(lab, INSIDE_NET).get("exclude_destinations").is_none());
    // By another socket: to iptables a flow that it has not translated is none of the rule's.
    let client = lab.inside.udp((INSIDE, 40001));
    assert_eq!(appears_as(lab, &client, SITE.into()), IpAddr::from([203, 0, 113, 7]));
}
