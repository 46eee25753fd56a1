//! Links of a real worker: TAPs as virtual machines use them, VLAN links with tagged frames.

use std::net::{Ipv4Addr, SocketAddr};

use nix::libc;
use serde_json::{Value, json};
use telecluster_tests::{
    lab::{GATEWAY, INSIDE, Lab, eventually},
    tap::Tap,
};

fn data(body: &Value) -> &Value {
    &body["data"]
}

/// An ARP request for an address, from a machine that is `10.0.5.2`.
fn who_has(target: Ipv4Addr) -> Vec<u8> {
    let mac = [2, 0, 0, 0, 5, 2];
    let mut frame = vec![0xff; 6];
    frame.extend(mac);
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend([10, 0, 5, 2]);
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}

#[test]
fn a_tap_is_opened_by_its_owner_and_carries_frames_of_its_bridge() {
    let lab = Lab::new();
    let _worker = lab.start();
    let bridge = json!({"name": "br-vm", "addresses": ["10.0.5.1/24"]});
    lab.post("/bridge/create", &bridge).ok();
    let tap = json!({"name": "tap-vm1", "type": "tap", "mode": "user", "owner": 1000, "bridge": "br-vm"});
    let made = lab.post("/tuntap/create", &tap).ok();
    assert_eq!(data(&made)["owner_id"], 1000);
    // The kernel puts off what it says about carriers for up to a second (net/core/link_watch.c).
    eventually("nobody has it open yet", || lab.get("/tuntap/tap-vm1")["data"]["status"] == "down");

    let refused = Tap::open(&lab.router, "tap-vm1", 0, 1001).expect_err("it is another user's");
    assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
    let mut vm = Tap::open(&lab.router, "tap-vm1", 0, 1000).expect("its owner may open it");
    eventually("the tap has a carrier", || lab.get("/tuntap/tap-vm1")["data"]["status"] == "up");

    let gateway = Ipv4Addr::new(10, 0, 5, 1);
    vm.send(&who_has(gateway));
    let answer = vm.receive(|frame| frame.len() >= 42 && frame[12..14] == [0x08, 0x06] && frame[21] == 2);
    assert_eq!(answer[28..32], gateway.octets(), "the bridge answers");

    // The program ends: the tap stays, for the next one.
    drop(vm);
    eventually("the carrier is gone", || lab.get("/tuntap/tap-vm1")["data"]["status"] == "down");
    lab.post("/tuntap/detach", &json!({"tap_name": "tap-vm1"})).ok();
    let attached = lab.post("/tuntap/attach", &json!({"tap_name": "tap-vm1", "bridge_name": "br-vm"})).ok();
    assert_eq!(data(&attached)["bridge"], "br-vm");
    assert!(lab.router.sh("ip -d link show tap-vm1").contains("persist on"));
    lab.post("/tuntap/delete", &json!({"name": "tap-vm1"})).ok();
    assert!(!lab.router.sh("ip -o link").contains("tap-vm1"));
}

#[test]
fn a_bridge_keeps_its_hardware_address_whatever_ports_come_and_go() {
    let lab = Lab::new();
    let _worker = lab.start();
    lab.post("/bridge/create", &json!({"name": "br-vm", "addresses": ["10.0.5.1/24"]})).ok();
    let mac = || data(&lab.get("/bridge/br-vm"))["mac_address"].clone();
    let own = mac();
    lab.post("/veth/create", &json!({"name1": "v1", "name2": "v2"})).ok();
    // The least that there is, which the kernel would choose for the bridge.
    lab.router.ip("link set v1 address 02:00:00:00:00:01");
    lab.post("/bridge/add-port", &json!({"bridge_name": "br-vm", "port_name": "v1"})).ok();
    assert_eq!(mac(), own);
    lab.post("/bridge/remove-port", &json!({"bridge_name": "br-vm", "port_name": "v1"})).ok();
    assert_eq!(mac(), own);
    assert!(lab.router.sh("ip link show br-vm").contains(own.as_str().expect("a text")));
}

#[test]
fn several_programs_open_a_tap_of_many_queues() {
    let lab = Lab::new();
    let _worker = lab.start();
    let tap = json!({"name": "tap-mq", "type": "tap", "group": 1000, "multi_queue": true, "vnet_hdr": true});
    let made = lab.post("/tuntap/create", &tap).ok();
    assert_eq!(data(&made)["mode"], "group");
    let flags = libc::IFF_MULTI_QUEUE | libc::IFF_VNET_HDR;
    let queues: Vec<_> = (0..2).map(|_| Tap::open(&lab.router, "tap-mq", flags, 1000)).collect();
    assert!(queues.iter().all(Result::is_ok), "{queues:?}");
    let single =
        Tap::open(&lab.router, "tap-mq", 0, 1000).expect_err("the kernel wants the same kind of queue");
    assert_eq!(single.raw_os_error(), Some(libc::EINVAL));
    let gone = lab.post("/tuntap/delete", &json!({"name": "tap-mq"})).ok();
    assert_eq!(gone["status"], "warning", "a program had it open: {gone}");
}

#[test]
fn a_vlan_link_carries_tagged_frames_or_says_what_the_kernel_lacks() {
    let lab = Lab::new();
    let _worker = lab.start();
    let before = lab.get("/network/interfaces");
    let wanted = json!({"parent_interface": "lan0", "vlan_id": 100});
    if !lab.router.makes_vlan_links("lan0") {
        // The rest of this test runs in the VM, whose kernels have the module.
        println!("this kernel has no module 8021q: what is tested here is the refusal");
        let answer = lab.post("/vlan/create", &wanted);
        assert_eq!((answer.status, &answer.body["code"]), (501, &json!("UNSUPPORTED")), "{}", answer.body);
        assert!(answer.body["message"].as_str().expect("a message").contains("8021q"), "{}", answer.body);
        assert_eq!(lab.get("/network/interfaces"), before);
        assert_eq!(lab.get("/vlan/list"), json!([]));
        return;
    }
    let made = lab.post("/vlan/create", &wanted).ok();
    assert_eq!(data(&made)["interface_name"], "lan0.100");
    assert_eq!(lab.post("/vlan/create", &wanted).ok()["data"]["changed"], false);
    lab.router.ip("addr add 10.0.5.1/24 dev lan0.100");
    lab.inside.ip("link add link eth0 name eth0.100 type vlan id 100");
    lab.inside.ip("link set eth0.100 up");
    lab.inside.ip("addr add 10.0.5.2/24 dev eth0.100");
    let near: SocketAddr = (Ipv4Addr::new(10, 0, 5, 1), 5000).into();
    let (server, client) = (lab.router.udp(near), lab.inside.udp((Ipv4Addr::new(10, 0, 5, 2), 5000)));
    client.send_to(b"tagged", near).expect("send");
    let mut text = [0; 16];
    let (length, from) = server.recv_from(&mut text).expect("it arrives over the VLAN");
    assert_eq!((&text[..length], from.ip()), (&b"tagged"[..], Ipv4Addr::new(10, 0, 5, 2).into()));
    // The untagged network is another one.
    let plain = lab.inside.udp((INSIDE, 5001));
    let gateway = lab.router.udp((GATEWAY, 5001));
    plain.send_to(b"plain", (GATEWAY, 5001)).expect("send");
    assert_eq!(gateway.recv_from(&mut text).expect("it arrives untagged").1.ip(), INSIDE);

    // 802.1ad, a VLAN in a VLAN, a link under a bridge, all found by attributes.
    let outer = json!({"parent_interface": "wan0", "vlan_id": 7, "protocol": "802.1ad", "name": "outer"});
    assert_eq!(data(&lab.post("/vlan/create", &outer).ok())["protocol"], "802.1ad");
    lab.post("/vlan/create", &json!({"parent_interface": "outer", "vlan_id": 8})).ok();
    let details = lab.router.sh("ip -d link show outer");
    assert!(details.contains("protocol 802.1ad id 7"), "{details}");
    assert_eq!(lab.get("/vlan/wan0/7")["data"]["interface_name"], "outer");
    assert_eq!(lab.get("/network/interface/outer")["data"]["type"], "vlan");
    let in_use = lab.post("/vlan/delete", &json!({"parent_interface": "wan0", "vlan_id": 7}));
    assert_eq!((in_use.status, &in_use.body["code"]), (409, &json!("LINK_IN_USE")));
    lab.post("/bridge/create", &json!({"name": "br-vlan"})).ok();
    lab.post("/bridge/add-port", &json!({"bridge_name": "br-vlan", "port_name": "outer.8"})).ok();
    assert_eq!(lab.get("/vlan/outer/8")["data"]["bridge"], "br-vlan");

    // Somebody else's is shown and left alone, whatever its name says.
    lab.router.ip("link add link wan0 name wan0.5 type vlan id 55");
    assert_eq!(lab.get("/vlan/wan0/55")["data"]["managed"], false);
    assert_eq!(lab.call("GET", "/vlan/wan0/5", None).status, 404);
    let foreign = lab.post("/vlan/delete", &json!({"parent_interface": "wan0", "vlan_id": 55}));
    assert_eq!((foreign.status, &foreign.body["code"]), (409, &json!("NOT_MANAGED")));

    for (parent, id) in [("outer", 8), ("wan0", 7), ("lan0", 100)] {
        lab.post("/vlan/delete", &json!({"parent_interface": parent, "vlan_id": id})).ok();
    }
    assert_eq!(lab.get("/vlan/list").as_array().map(Vec::len), Some(1), "the foreign one");
}
