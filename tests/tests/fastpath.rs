//! The fast path on real packets: flows leave the kernel's way, and whatever changes there is followed.

use std::{
    io::{Read as _, Write as _},
    net::Shutdown,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use telecluster_tests::{
    conversation::{Conversation, masqueraded},
    lab::{GATEWAY, INSIDE, Lab, OUTSIDE, PATIENCE, WAN, Worker, eventually},
};

fn wait(lab: &Lab, what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: {}", lab.get("/nat/flows"));
        thread::sleep(Duration::from_millis(10));
    }
}

fn the_flow(lab: &Lab) -> Value {
    lab.get("/nat/flows")["flows"][0].clone()
}

/// Packets that a device of the router says it has received.
fn received(lab: &Lab, device: &str) -> u64 {
    let text = lab.router.sh("cat /proc/thread-self/net/dev");
    let line = text.lines().find_map(|line| line.trim().strip_prefix(&format!("{device}:")));
    let packets = line.and_then(|line| line.split_whitespace().nth(1)).expect("the device");
    packets.parse().expect("a number")
}

/// A worker that masquerades, and a fast flow.
fn warm_lab() -> (Lab, Worker, Conversation) {
    let (lab, worker, conversation) = masqueraded(Lab::new());
    conversation.becomes_fast(&lab);
    (lab, worker, conversation)
}

#[test]
fn a_conversation_leaves_the_bridge_and_is_still_counted_exactly() {
    let (lab, _worker, conversation) = warm_lab();
    // Not at once when something has just changed: in the first 16 ms of an epoch nothing is learned.
    eventually("the bridge carries the flow", || {
        let (flow, bridge) = (the_flow(&lab), received(&lab, "br-lab"));
        for _ in 0..200 {
            conversation.turn();
        }
        let after = the_flow(&lab);
        for counter in ["packets_in", "packets_out"] {
            let grown = after[counter].as_u64().unwrap() - flow[counter].as_u64().unwrap();
            assert_eq!(grown, 200, "{counter}: {after}");
        }
        // Neighbours are confirmed, leases renewed, and no more.
        received(&lab, "br-lab") - bridge < 40
    });
    assert_eq!(lab.get("/nat/status")["fast_path"], json!({"open": true, "reason": null}));
}

/// Puts a port of a bridge and the bridge itself into a VLAN, without tags.
fn into_vlan(lab: &Lab, bridge: &str, port: &str) {
    for port in [port, bridge] {
        let body = json!({"bridge_name": bridge, "port_name": port, "vlan_id": 100, "tagged": false});
        lab.post("/vlan/add-to-bridge", &body).ok();
    }
}

/// Packets that the host's own rules count, of those that it routes.
fn routed(lab: &Lab) -> u64 {
    let text = lab.router.sh("cat /proc/thread-self/net/snmp");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Ip: "));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let place = names.split(' ').position(|name| name == "ForwDatagrams").expect("a counter");
    values.split(' ').nth(place).and_then(|value| value.parse().ok()).expect("a number")
}

/// Its ports' frames are the VLAN filter's, so a flow begins and ends at the bridge: behind the filter.
#[test]
fn a_conversation_in_a_vlan_is_fast_and_still_kept_in_it() {
    for before in [true, false] {
        let lab = Lab::new();
        lab.router.ip("link del br-lab");
        let _worker = lab.start();
        lab.post("/bridge/create", &json!({"name": "br-lab"})).ok();
        lab.router.ip(&format!("addr add {GATEWAY}/24 dev br-lab"));
        lab.post("/bridge/add-port", &json!({"bridge_name": "br-lab", "port_name": "lan0"})).ok();
        if before {
            into_vlan(&lab, "br-lab", "lan0");
        }
        lab.masquerade();
        let conversation = Conversation::new(&lab);
        conversation.becomes_fast(&lab);
        if !before {
            into_vlan(&lab, "br-lab", "lan0");
            conversation.becomes_fast(&lab);
        }
        eventually("the host routes the flow", || {
            let begun = routed(&lab);
            for _ in 0..200 {
                conversation.turn();
            }
            routed(&lab) - begun < 40
        });
        let member = json!({"bridge_name": "br-lab", "port_name": "lan0", "vlan_id": 100});
        lab.post("/vlan/remove-from-bridge", &member).ok();
        let other = json!({"bridge_name": "br-lab", "port_name": "lan0", "vlan_id": 200, "tagged": false});
        lab.post("/vlan/add-to-bridge", &other).ok();
        assert!(!conversation.gets_through(), "from another VLAN");
        conversation.server.send_to(b"late", (WAN, 40000)).expect("send");
        conversation.client.set_read_timeout(Some(Duration::from_millis(100))).expect("set a timeout");
        assert!(conversation.client.recv(&mut [0; 64]).is_err(), "into another VLAN");
    }
}

/// Inside of the VLAN filter addresses are inside ones, whichever came first.
#[test]
fn an_uplink_that_is_a_bridge_with_vlans_translates_and_is_fast() {
    for before in [true, false] {
        let lab = Lab::new();
        let _worker = lab.start();
        lab.post("/bridge/create", &json!({"name": "br-ex"})).ok();
        lab.post("/bridge/add-port", &json!({"bridge_name": "br-ex", "port_name": "wan0"})).ok();
        let masquerade = json!({"source_network": "192.168.100.0/24", "output_interface": "br-ex"});
        if before {
            into_vlan(&lab, "br-ex", "wan0");
            lab.post("/nat/masquerade", &masquerade).ok();
        } else {
            lab.post("/nat/masquerade", &masquerade).ok();
            into_vlan(&lab, "br-ex", "wan0");
        }
        Conversation::new(&lab).becomes_fast(&lab);
    }
}

#[test]
fn a_flow_that_nobody_answers_becomes_fast_in_either_direction() {
    let lab = Lab::new();
    let _worker = lab.start();
    lab.masquerade();
    let forward =
        json!({"external_port": 5353, "internal_ip": INSIDE, "internal_port": 53, "protocol": "udp"});
    lab.post("/nat/forward", &forward).ok();
    let collector = lab.outside.udp((OUTSIDE, 5300));
    let sensor = lab.inside.udp((INSIDE, 40000));
    wait(&lab, "outwards", || {
        sensor.send_to(b"measured", (OUTSIDE, 5300)).expect("send");
        collector.recv(&mut [0; 64]).expect("a datagram");
        lab.get("/nat/flows?external_port=40000")["flows"][0]["path"] == "fast"
    });
    let resolver = lab.inside.udp((INSIDE, 53));
    let asker = lab.outside.udp((OUTSIDE, 6000));
    wait(&lab, "inwards", || {
        asker.send_to(b"asked", (WAN, 5353)).expect("send");
        resolver.recv(&mut [0; 64]).expect("a datagram");
        lab.get("/nat/flows?external_port=5353")["flows"][0]["path"] == "fast"
    });
}

#[test]
fn a_forwarded_connection_keeps_its_bytes_and_its_checksums() {
    let lab = Lab::new();
    let _worker = lab.start();
    let forward =
        json!({"external_port": 2222, "internal_ip": INSIDE, "internal_port": 22, "protocol": "tcp"});
    lab.post("/nat/forward", &forward).ok();
    let listener = lab.inside.listen((INSIDE, 22));
    let mut client = lab.outside.connect((WAN, 2222)).expect("connect");
    let (mut server, _) = listener.accept().expect("accept");
    wait(&lab, "the connection does not become fast", || {
        client.write_all(b"there").expect("send");
        server.read_exact(&mut [0; 5]).expect("receive");
        server.write_all(b"back").expect("answer");
        client.read_exact(&mut [0; 4]).expect("the answer");
        the_flow(&lab)["path"] == "fast"
    });
    let data: Vec<u8> = (0..32 << 20).map(|i: u32| i.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    let mut received = Vec::with_capacity(data.len());
    thread::scope(|scope| {
        scope.spawn(|| {
            client.write_all(&data).expect("send");
            client.shutdown(Shutdown::Write).expect("finish sending");
        });
        server.read_to_end(&mut received).expect("receive");
    });
    assert!(received == data, "{} of {} bytes, and not the same", received.len(), data.len());
    for host in [&lab.inside, &lab.outside] {
        assert_eq!(host.snmp("Tcp", "InCsumErrors"), 0);
    }
    // It has begun to close. Nobody tracks connections here, so that is no business of the kernel's.
    assert_eq!(the_flow(&lab)["state"], "half_closed");
    wait(&lab, "what is half closed does not become fast", || {
        server.write_all(b"more").expect("send");
        client.read_exact(&mut [0; 4]).expect("receive");
        the_flow(&lab)["path"] == "fast"
    });
}

#[test]
fn a_packet_loses_exactly_one_hop() {
    let (_lab, _worker, conversation) = warm_lab();
    conversation.client.set_ttl(2).expect("set the TTL");
    assert!(conversation.gets_through());
    conversation.client.set_ttl(1).expect("set the TTL");
    assert!(!conversation.gets_through());
}

#[test]
fn a_rule_of_the_hosts_own_filter_is_obeyed_at_once_and_forgotten_when_it_is_gone() {
    let (lab, _worker, conversation) = warm_lab();
    lab.router.sh("nft add table inet foreign");
    lab.router.sh("nft add chain inet foreign c { type filter hook forward priority 0; }");
    // An empty chain is in nobody's way.
    conversation.becomes_fast(&lab);
    lab.router.sh("nft add rule inet foreign c udp dport 5300 counter drop");
    wait(&lab, "the rule is passed by", || !conversation.gets_through());
    wait(&lab, "no reason is given", || {
        let flow = the_flow(&lab);
        flow["path"] == "kernel" && flow["path_reason"].as_str().is_some_and(|why| why.contains("foreign"))
    });
    assert_eq!(lab.get("/nat/status")["fast_path"]["open"], false);
    lab.router.sh("nft delete table inet foreign");
    conversation.becomes_fast(&lab);
}

#[test]
fn a_route_that_changes_is_followed() {
    let (lab, _worker, conversation) = warm_lab();
    lab.router.ip(&format!("route add blackhole {OUTSIDE}/32"));
    wait(&lab, "the route is passed by", || !conversation.gets_through());
    lab.router.ip(&format!("route del blackhole {OUTSIDE}/32"));
    conversation.becomes_fast(&lab);
}

#[test]
fn a_neighbour_that_gets_another_card_is_followed() {
    let (lab, _worker, conversation) = warm_lab();
    lab.outside.ip("link set eth0 address 02:00:00:00:00:77");
    lab.router.ip(&format!("neigh replace {OUTSIDE} lladdr 02:00:00:00:00:77 dev wan0"));
    wait(&lab, "packets go to the old card", || conversation.gets_through());
    conversation.becomes_fast(&lab);
}

#[test]
fn an_inside_host_that_moves_to_another_port_is_followed() {
    let (lab, _worker, conversation) = warm_lab();
    // The same card, plugged in elsewhere, says so.
    let mac = lab.inside.sh("cat /proc/thread-self/net/arp");
    assert!(!mac.is_empty());
    lab.router.veth("lan1", &lab.inside, "eth1");
    lab.router.ip("link set lan1 master br-lab");
    lab.router.ip("link set lan1 up");
    let address = lab.inside.sh("ip -o link show eth0");
    let address = address.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a MAC");
    lab.inside.ip("link set eth0 down");
    lab.inside.ip(&format!("link set eth1 address {address}"));
    lab.inside.ip(&format!("addr add {INSIDE}/24 dev eth1"));
    lab.inside.ip("link set eth1 up");
    lab.inside.ip(&format!("route replace default via {} dev eth1", GATEWAY));
    conversation.becomes_fast(&lab);
}

#[test]
fn a_link_that_gets_narrower_sends_back_what_does_not_fit() {
    let (lab, _worker, conversation) = warm_lab();
    lab.router.ip("link set wan0 mtu 1400");
    // The kernel's own answer: the sender is told, and its next datagram is refused where it is sent.
    wait(&lab, "a datagram that does not fit is not refused", || {
        conversation.client.send(&[7; 1450]).is_err()
    });
}

#[test]
fn flows_stay_fast_when_the_worker_dies_and_when_it_comes_back() {
    let (lab, worker, conversation) = warm_lab();
    worker.murder();
    // What it has heard of last may have begun an epoch, in whose first 16 ms nothing is learned.
    eventually("the bridge carries the flow", || {
        let bridge = received(&lab, "br-lab");
        for _ in 0..100 {
            conversation.turn();
        }
        received(&lab, "br-lab") - bridge < 20
    });
    let _worker = lab.start();
    conversation.becomes_fast(&lab);
}
