//! What others do to the worker's links, and what a reboot takes away: both come back.

use std::{thread, time::Duration};

use serde_json::{Value, json};
use telecluster_tests::lab::{Lab, eventually};

/// A worker's host with one of every kind of link: a bridge with an address, a pair into a namespace, a ring,
/// a TAP with an address, a foreign link as port.
fn everything(lab: &Lab) {
    lab.sh("ip netns add vm1");
    lab.router.ip("link add ens4 type veth peer name far4");
    lab.router.ip("link set far4 up");
    for (path, body) in [
        (
            "/bridge/create",
            json!({"name": "br-vm", "mtu": 1400, "addresses": ["10.0.5.1/24", "fd00:5::1/64"]}),
        ),
        ("/veth/create", json!({"name1": "v1", "name2": "eth0", "bridge1": "br-vm", "namespace2": "vm1"})),
        ("/veth/create", json!({"name1": "w1", "name2": "w2", "bridge1": "br-vm", "bridge2": "br-vm"})),
        (
            "/tuntap/create",
            json!({"name": "tap0", "type": "tap", "bridge": "br-vm", "owner": 1000, "persistent": true}),
        ),
        ("/tuntap/tap0/set-ip", json!({"ip_address": "10.0.6.1"})),
        ("/bridge/add-port", json!({"bridge_name": "br-vm", "port_name": "ens4"})),
    ] {
        lab.post(path, &body).ok();
    }
}

/// Everything that callers see of it, without what a new link has anew: its number, and, but for bridges, its address of
/// hardware.
fn seen(lab: &Lab) -> Vec<Value> {
    let mut all = vec![lab.get("/bridge/br-vm")["data"].clone(), lab.get("/tuntap/tap0")["data"].clone()];
    let mut pairs = lab.get("/veth/list").as_array().expect("a list").clone();
    pairs.retain(|pair| pair["managed"] == true);
    pairs.sort_by_key(|pair| pair["name1"].to_string());
    all.extend(pairs);
    for object in &mut all {
        let object = object.as_object_mut().expect("an object");
        object.remove("ifindex");
        if object.get("name").is_none_or(|name| name != "br-vm") {
            object.remove("mac_address");
        }
        for sets in ["ports", "addresses"] {
            if let Some(Value::Array(items)) = object.get_mut(sets) {
                items.retain(|item| !item.as_str().is_some_and(|text| text.starts_with("fe80")));
                items.sort_by_key(Value::to_string);
            }
        }
    }
    all
}

/// What is seen when nothing changes any more: on a slow machine carriers and states of ports come one by one.
fn settled(lab: &Lab) -> Vec<Value> {
    let mut last = seen(lab);
    eventually("everything is at rest", || {
        thread::sleep(Duration::from_millis(500));
        let now = seen(lab);
        std::mem::replace(&mut last, now.clone()) == now
    });
    last
}

#[test]
fn what_others_do_to_links_is_put_right_within_a_second() {
    let lab = Lab::new();
    let _worker = lab.start();
    everything(&lab);
    // The carriers come a little later than the answers.
    eventually("the pair carries", || lab.get("/veth/v1")["data"]["status1"] == "up");
    let before = settled(&lab);
    let mut slowest = Duration::ZERO;
    for line in [
        "ip link del br-vm",
        "ip link del v1",
        "ip link del w1",
        "ip link del tap0",
        "ip addr flush dev br-vm",
        "ip addr del 10.0.6.1/24 dev tap0",
        "ip link set br-vm down",
        "ip link set tap0 down",
        "ip link set v1 down",
        "ip netns exec vm1 ip link set eth0 down",
        "ip link set v1 nomaster",
        "ip link set w2 nomaster",
        "ip link set tap0 nomaster",
        "ip link set ens4 nomaster",
        "ip link set br-vm mtu 1300",
        "ip link set br-vm type bridge stp_state 1",
    ] {
        lab.sh(line);
        let took = eventually(line, || {
            lab.call("GET", "/bridge/br-vm", None).status == 200 && {
                lab.call("GET", "/tuntap/tap0", None).status == 200 && seen(&lab) == before
            }
        });
        println!("{line}: {took:?}");
        slowest = slowest.max(took);
    }
    println!("the slowest repair was seen after {slowest:?}");
    assert_eq!(lab.get("/health")["status"], "healthy");
    // The kernel agrees, and the ring is still held.
    assert!(lab.router.sh("ip addr show br-vm").contains("10.0.5.1/24"));
    assert!(lab.router.sh("bridge -d link show dev w2").contains("locked on"));
}

#[test]
fn forwarding_that_somebody_switches_off_is_on_again() {
    let lab = Lab::new();
    lab.ipv6();
    let _worker = lab.start();
    lab.masquerade();
    lab.post("/nat/masquerade", &json!({"source_network": "fd00:1::/64", "output_interface": "wan0"})).ok();
    for switch in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        lab.router.sh(&format!("sysctl -qw {switch}=0"));
        eventually(switch, || lab.router.sh(&format!("sysctl -n {switch}")).trim() == "1");
    }
}

#[test]
fn what_cannot_be_put_right_is_reported_where_people_look() {
    let lab = Lab::new();
    let _worker = lab.start();
    everything(&lab);
    lab.sh("ip netns exec vm1 ip link set eth0 down");
    lab.sh("ip netns exec vm1 ip link set eth0 name renamed0");
    lab.router.ip("link del ens4");
    let problems = || lab.get("/health")["problems"].to_string();
    eventually("both are reported", || problems().contains("port/ens4") && problems().contains("veth/v1"));
    assert_eq!(lab.get("/health")["status"], "degraded");
    let shown = lab.get("/veth/v1")["data"]["problems"].to_string();
    assert!(shown.contains("renamed0 in namespace vm1"), "{shown}");
    // It comes back: the worker takes it up again.
    lab.router.ip("link add ens4 type veth peer name far4");
    eventually("the port is in its bridge", || {
        lab.get("/network/interface/ens4")["data"]["bridge"] == "br-vm"
    });
    lab.sh("ip netns exec vm1 ip link set renamed0 name eth0");
    eventually("all is well", || lab.get("/health")["status"] == "healthy");
}

/// With the namespace goes the end of the pair that is in it, and so the pair.
#[test]
fn a_namespace_that_is_deleted_is_reported_and_its_pair_is_made_again_when_it_is_back() {
    let lab = Lab::new();
    let _worker = lab.start();
    everything(&lab);
    eventually("the pair carries", || lab.get("/veth/v1")["data"]["status1"] == "up");
    let before = settled(&lab);
    lab.sh("ip netns del vm1");
    eventually("nobody misses it", || {
        let health = lab.get("/health");
        health["status"] == "degraded" && health["problems"].to_string().contains("vm1")
    });
    // Everything else goes on.
    lab.post("/bridge/create", &json!({"name": "br-after"})).ok();
    lab.post("/bridge/delete", &json!({"name": "br-after"})).ok();
    lab.sh("ip netns add vm1");
    eventually("all is as before", || lab.get("/health")["status"] == "healthy" && seen(&lab) == before);
}

#[test]
fn after_a_reboot_everything_is_there_again() {
    let lab = Lab::new();
    let worker = lab.start();
    everything(&lab);
    let transient = json!({"name": "tap1", "type": "tap", "bridge": "br-vm"});
    lab.post("/tuntap/create", &transient).ok();
    lab.masquerade();
    lab.forward("tcp", 8080, 80);
    lab.post("/tuntap/delete", &json!({"name": "tap1"})).ok();
    eventually("the pair carries", || lab.get("/veth/v1")["data"]["status1"] == "up");
    let (links, rules) = (seen(&lab), lab.get("/nat/status"));
    lab.post("/tuntap/create", &transient).ok();
    worker.murder();

    // Another host with the same disk: every namespace, link, address and map is new.
    let mut again = Lab::new();
    again.environment.push(("STATE_DIR", lab.state.path().to_str().expect("a path").to_owned()));
    again.sh("ip netns add vm1");
    again.router.ip("link add ens4 type veth peer name far4");
    again.router.ip("link set far4 up");
    let _worker = again.start();
    eventually("the same links", || seen(&again) == links);
    assert_eq!(again.get("/nat/status"), rules);
    assert_eq!(again.call("GET", "/tuntap/tap1", None).status, 404, "it was not to outlive a reboot");
    assert_eq!(again.get("/health")["status"], "healthy", "{}", again.get("/health")["problems"]);
}
