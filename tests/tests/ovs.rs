//! Bridges of Open vSwitch through its database, with a real switch and real packets.

use serde_json::{Value, json};
use telecluster_tests::{
    lab::{Answer, Lab, Netns},
    ovs::Ovs,
};

/// A lab whose worker finds an Open vSwitch.
fn lab() -> (Lab, Ovs) {
    let mut lab = Lab::new();
    let ovs = Ovs::start(&lab.router);
    lab.environment.push(("OVS_SOCKET", ovs.socket().display().to_string()));
    (lab, ovs)
}

fn bridge(lab: &Lab, name: &str) -> Value {
    let list = lab.get("/bridge/list");
    let bridges = list["bridges"].as_array().expect("a list");
    bridges.iter().find(|bridge| bridge["name"] == name).cloned().unwrap_or_default()
}

/// A host with an address, on a cable whose other end is `port`.
fn host(lab: &Lab, port: &str, address: &str) -> Netns {
    let host = Netns::new();
    lab.router.veth(port, &host, "eth0");
    lab.router.ip(&format!("link set {port} up"));
    host.ip(&format!("addr add {address}/24 dev eth0"));
    host.ip("link set eth0 up");
    host
}

fn reaches(from: &Netns, address: &str) -> bool {
    let mut ping = from.command("ping");
    ping.args(["-c", "3", "-i", "0.2", "-W", "2", "-q", address]);
    ping.output().expect("run ping").status.success()
}

fn add_port(lab: &Lab, bridge: &str, port: &str) -> Answer {
    lab.post("/bridge/add-port", &json!({ "bridge_name": bridge, "port_name": port }))
}

#[test]
fn a_bridge_of_ovs_carries_packets_and_is_one_of_ovs_s_own() {
    let (lab, ovs) = lab();
    let (a, b) = (host(&lab, "pa", "10.5.0.1"), host(&lab, "pb", "10.5.0.2"));
    let _worker = lab.start();
    let made = lab
        .post("/bridge/create", &json!({ "name": "br-lab2", "type": "ovs", "addresses": ["10.5.0.254/24"] }))
        .ok();
    assert_eq!((&made["data"]["type"], &made["data"]["backend"]), (&json!("ovs"), &json!("ovs")), "{made}");
    assert_eq!((&made["status"], &made["data"]["managed"]), (&json!("ok"), &json!(true)), "{made}");
    let datapath = if std::env::var_os("TELECLUSTER_VM").is_some() { "system" } else { "netdev" };
    assert_eq!(ovs.vsctl(&lab.router, "get bridge br-lab2 datapath_type").trim(), datapath);
    for port in ["pa", "pb"] {
        add_port(&lab, "br-lab2", port).ok();
    }
    assert_eq!(bridge(&lab, "br-lab2")["ports"], json!(["pa", "pb"]));
    assert!(reaches(&a, "10.5.0.2") && reaches(&b, "10.5.0.254"));
    assert_eq!(ovs.vsctl(&lab.router, "list-br").trim(), "br-lab2");
    assert_eq!(ovs.vsctl(&lab.router, "br-get-external-id br-lab2 telecluster").trim(), "worker");

    // The same again, another spec, ports in the way.
    let again = json!({ "name": "br-lab2", "type": "ovs", "addresses": ["10.5.0.254/24"] });
    assert_eq!(lab.post("/bridge/create", &again).ok()["data"]["changed"], false);
    assert_eq!(lab.post("/bridge/create", &json!({ "name": "br-lab2" })).status, 409);
    assert_eq!(lab.post("/bridge/delete", &json!({ "name": "br-lab2" })).status, 409);

    let port = json!({ "bridge_name": "br-lab2", "port_name": "pb" });
    lab.post("/bridge/remove-port", &port).ok();
    assert!(!reaches(&a, "10.5.0.2"));
    assert_eq!(ovs.vsctl(&lab.router, "list-ports br-lab2").trim(), "pa");
    lab.post("/bridge/delete", &json!({ "name": "br-lab2", "force": true })).ok();
    assert_eq!(ovs.vsctl(&lab.router, "list-br").trim(), "");
    assert_eq!(bridge(&lab, "br-lab2"), Value::Null);
}

#[test]
fn pairs_and_taps_are_made_into_a_bridge_of_ovs_and_leave_it_with_their_end() {
    let (lab, ovs) = lab();
    let _worker = lab.start();
    lab.post("/bridge/create", &json!({ "name": "br-o", "type": "ovs" })).ok();
    lab.post("/veth/create", &json!({ "name1": "va", "name2": "vb", "bridge1": "br-o" })).ok();
    lab.post("/tuntap/create", &json!({ "name": "tap-vm1", "type": "tap", "bridge": "br-o" })).ok();
    assert_eq!(bridge(&lab, "br-o")["ports"], json!(["va", "tap-vm1"]));
    let pairs = lab.get("/veth/list");
    let pair =
        pairs.as_array().and_then(|list| list.iter().find(|pair| pair["name1"] == "va")).expect("the pair");
    assert_eq!((&pair["bridge1"], &pair["bridge2"]), (&json!("br-o"), &Value::Null));

    lab.post("/bridge/create", &json!({ "name": "br-l" })).ok();
    let moved = json!({ "veth_name": "va", "target_bridge": "br-l" });
    assert_eq!(lab.post("/veth/move-to-bridge", &moved).ok()["data"]["bridge1"], "br-l");
    assert_eq!(ovs.vsctl(&lab.router, "list-ports br-o").trim(), "tap-vm1");
    let back = json!({ "veth_name": "va", "target_bridge": "br-o" });
    assert_eq!(lab.post("/veth/move-to-bridge", &back).ok()["data"]["bridge1"], "br-o");

    lab.post("/veth/delete", &json!({ "name": "vb" })).ok();
    lab.post("/tuntap/delete", &json!({ "name": "tap-vm1" })).ok();
    assert_eq!(ovs.vsctl(&lab.router, "list-ports br-o").trim(), "", "ports whose links are gone");
}

#[test]
fn a_pair_with_both_ends_on_one_bridge_of_ovs_is_no_storm() {
    let (lab, ovs) = lab();
    let a = host(&lab, "pa", "10.6.0.1");
    let _worker = lab.start();
    lab.post("/bridge/create", &json!({ "name": "br-o", "type": "ovs", "addresses": ["10.6.0.254/24"] }))
        .ok();
    add_port(&lab, "br-o", "pa").ok();
    let pair = json!({ "name1": "va", "name2": "vb", "bridge1": "br-o", "bridge2": "br-o" });
    let made = lab.post("/veth/create", &pair).ok();
    assert_eq!(made["status"], "warning", "{made}");
    assert_eq!(bridge(&lab, "br-o")["blocked_ports"][0]["port"], "vb");
    assert!(reaches(&a, "10.6.0.254"));
    let before = ovs.vsctl(&lab.router, "get Interface vb statistics:tx_packets");
    assert!(reaches(&a, "10.6.0.254"));
    let count = |text: &str| text.trim().parse::<u64>().unwrap_or(0);
    let after = ovs.vsctl(&lab.router, "get Interface vb statistics:tx_packets");
    assert!(count(&after) < count(&before) + 1000, "frames turn: {before} {after}");
}

#[test]
fn vlans_of_ports_keep_hosts_apart_and_trunks_carry_several() {
    let (lab, ovs) = lab();
    let hosts: Vec<_> = [("p1", "10.5.0.1"), ("p2", "10.5.0.2"), ("p3", "10.5.0.3"), ("p4", "10.5.0.4")]
        .map(|(port, address)| host(&lab, port, address))
        .into();
    let worker = lab.start();
    lab.post("/bridge/create", &json!({ "name": "br-o", "type": "ovs" })).ok();
    for (port, vlan) in [("p1", 10), ("p2", 10), ("p3", 20)] {
        let body = json!({ "bridge_name": "br-o", "port_name": port, "vlan": vlan });
        lab.post("/bridge/add-port", &body).ok();
    }
    add_port(&lab, "br-o", "p4").ok();
    let apart = |when: &str| {
        let shown = ovs.vsctl(&lab.router, "show");
        assert!(reaches(&hosts[0], "10.5.0.2"), "both are in VLAN 10, {when}: {shown}");
        assert!(!reaches(&hosts[0], "10.5.0.3") && !reaches(&hosts[0], "10.5.0.4"), "others are not");
    };
    apart("as made");
    assert_eq!(ovs.vsctl(&lab.router, "get Port p3 tag").trim(), "20");
    assert_eq!(bridge(&lab, "br-o")["vlans"], json!([10, 20]));

    // Another native VLAN takes the place of the first; without any it is in the untagged domain.
    let vlan = |port: &str, id: u16, tagged: bool| json!({ "bridge_name": "br-o", "port_name": port, "vlan_id": id, "tagged": tagged });
    let moved = lab.post("/vlan/add-to-bridge", &vlan("p3", 10, false)).ok();
    assert_eq!(moved["data"]["native_vlan"], 10, "{moved}");
    assert!(reaches(&hosts[0], "10.5.0.3"));
    lab.post("/vlan/remove-from-bridge", &vlan("p3", 10, false)).ok();
    assert!(reaches(&hosts[2], "10.5.0.4") && !reaches(&hosts[0], "10.5.0.3"));

    lab.post("/vlan/add-to-bridge", &vlan("p4", 10, true)).ok();
    let trunk = lab.post("/vlan/add-to-bridge", &vlan("p4", 20, true)).ok();
    assert_eq!(trunk["data"]["tagged_vlans"], json!([10, 20]), "{trunk}");
    assert_eq!(ovs.vsctl(&lab.router, "get Port p4 trunks").trim(), "[10, 20]");
    let rows = lab.get("/vlan/bridge-vlans");
    let row = json!({ "bridge_name": "br-o", "port_name": "p4", "vlan_id": 20, "tagged": true });
    assert!(rows.as_array().is_some_and(|rows| rows.contains(&row)), "{rows}");

    // What others change in the meantime is put right at the next start.
    worker.stop();
    ovs.vsctl(&lab.router, "set Port p2 tag=20");
    ovs.vsctl(&lab.router, "del-port p1");
    let _worker = lab.start();
    lab.get("/health");
    apart("after a restart");
    let refused = lab.post("/vlan/add-to-bridge", &vlan("br-o", 10, true));
    assert_eq!(refused.status, 501, "{}", refused.body);
}

#[test]
fn bridges_of_others_are_shown_and_left_alone() {
    let (lab, ovs) = lab();
    ovs.vsctl(&lab.router, "add-br br-theirs -- set bridge br-theirs datapath_type=netdev");
    let _host = host(&lab, "pa", "10.5.0.1");
    ovs.vsctl(&lab.router, "add-port br-theirs pa tag=7");
    let _worker = lab.start();
    let seen = bridge(&lab, "br-theirs");
    assert_eq!((&seen["managed"], &seen["backend"]), (&json!(false), &json!("ovs")), "{seen}");
    assert_eq!((&seen["ports"], &seen["vlans"]), (&json!(["pa"]), &json!([7])));
    let delete = lab.post("/bridge/delete", &json!({ "name": "br-theirs", "force": true }));
    assert_eq!((delete.status, &delete.body["code"]), (409, &json!("NOT_MANAGED")), "{}", delete.body);
    assert_eq!(add_port(&lab, "br-theirs", "lan0").status, 409);
    assert_eq!(ovs.vsctl(&lab.router, "list-br").trim(), "br-theirs");
}

#[test]
fn a_restart_and_a_lost_database_row_are_put_right() {
    let (lab, ovs) = lab();
    let (a, _b) = (host(&lab, "pa", "10.5.0.1"), host(&lab, "pb", "10.5.0.2"));
    let worker = lab.start();
    lab.post("/bridge/create", &json!({ "name": "br-o", "type": "ovs" })).ok();
    for port in ["pa", "pb"] {
        add_port(&lab, "br-o", port).ok();
    }
    worker.murder();
    assert!(reaches(&a, "10.5.0.2"), "without the worker");
    ovs.vsctl(&lab.router, "del-port pb");
    let _worker = lab.start();
    assert_eq!(bridge(&lab, "br-o")["ports"], json!(["pa", "pb"]));
    assert!(reaches(&a, "10.5.0.2"));
}

#[test]
fn without_ovs_a_linux_bridge_stands_in_unless_ovs_is_required() {
    let mut lab = Lab::new();
    lab.environment.push(("OVS_SOCKET", "/nonexistent/db.sock".into()));
    let worker = lab.start();
    let made = lab.post("/bridge/create", &json!({ "name": "br-o", "type": "ovs" })).ok();
    assert_eq!((&made["data"]["type"], &made["data"]["backend"]), (&json!("ovs"), &json!("linux")), "{made}");
    assert_eq!(made["status"], "warning");
    assert!(made["data"]["warnings"][0].as_str().is_some_and(|text| text.contains("stands in")), "{made}");
    worker.stop();
    lab.environment.push(("OVS", "require".into()));
    let _worker = lab.start();
    let refused = lab.post("/bridge/create", &json!({ "name": "br-p", "type": "ovs" }));
    assert_eq!((refused.status, &refused.body["code"]), (501, &json!("UNSUPPORTED")), "{}", refused.body);
    assert!(refused.body["hint"].as_str().is_some_and(|hint| hint.contains("openvswitch-switch")));
    assert_eq!(bridge(&lab, "br-o")["backend"], "linux", "what stood in stays");
}
