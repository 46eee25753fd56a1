//! VLANs on bridge ports: what callers ask for, and what the filter then holds.

use super::*;
use crate::{
    engine::Options,
    kernel::{
        Kernel as _,
        links::Observed,
        step::LinkStep,
        switch::{SwitchPort, VlanPlane as _},
    },
};

/// A bridge with a TAP on it, and `ens4`.
async fn lab() -> Lab {
    let lab = Lab::new().await;
    lab.post("/bridge/create", json!({ "name": "br-lab" })).await.done(true);
    lab.post("/tuntap/create", json!({ "name": "tap-vm1", "type": "tap", "bridge": "br-lab" }))
        .await
        .done(true);
    lab.post("/bridge/add-port", json!({ "bridge_name": "br-lab", "port_name": "ens4" })).await.done(true);
    lab
}

fn in_vlan(port: &str, vlan: u16, tagged: bool) -> Value {
    json!({ "bridge_name": "br-lab", "port_name": port, "vlan_id": vlan, "tagged": tagged })
}

fn port(name: &str) -> Value {
    json!({ "bridge_name": "br-lab", "port_name": name })
}

async fn rows(lab: &Lab) -> Vec<(String, u64, bool)> {
    let rows = lab.get("/vlan/bridge-vlans").await.json;
    let row = |row: &Value| {
        assert_eq!(row["bridge_name"], "br-lab");
        let name = row["port_name"].as_str().unwrap().to_owned();
        (name, row["vlan_id"].as_u64().unwrap(), row["tagged"].as_bool().unwrap())
    };
    rows.as_array().unwrap().iter().map(row).collect()
}

fn row(port: &str, vlan: u64, tagged: bool) -> (String, u64, bool) {
    (port.to_owned(), vlan, tagged)
}

/// The ports of the filter by name, when the engine has done what it does by and by.
async fn settled(lab: &Lab, count: usize) -> Vec<(String, SwitchPort)> {
    for _ in 0..500 {
        let ports = lab.fake.dataplane.switch_ports().unwrap();
        if ports.len() == count {
            let observed = lab.fake.kernel.observe().await.unwrap();
            return ports.into_values().map(|port| (name(&observed, port.index), port)).collect();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{:?}", lab.fake.dataplane.switch_ports());
}

fn name(observed: &Observed, index: u32) -> String {
    observed.links.iter().find(|link| link.index == index).unwrap().name.clone()
}

#[tokio::test]
async fn the_readmes_vlan_is_on_the_tap_and_in_every_list() {
    let lab = lab().await;
    let added = lab.post("/vlan/add-to-bridge", in_vlan("tap-vm1", 100, false)).await;
    let data = added.done(true);
    assert_eq!((&data["native_vlan"], &data["tagged_vlans"]), (&json!(100), &json!([])));
    assert_eq!(data["port_name"], "tap-vm1");

    assert_eq!(rows(&lab).await, [row("tap-vm1", 100, false)]);
    assert_eq!(lab.get("/network/vlan/bridge-vlans").await.json[0]["vlan_id"], 100);
    assert_eq!(lab.get("/bridge/list").await.json["bridges"][0]["vlans"], json!([100]));
    let tap = lab.get("/network/interface/tap-vm1").await;
    assert_eq!(tap.done(false)["vlans"], json!([100]));

    // Every port of the bridge, and the bridge itself, is filtered.
    let ports = settled(&lab, 3).await;
    let plain = |(_, port): &&(String, SwitchPort)| port.vlans().is_empty();
    assert_eq!(ports.iter().filter(plain).count(), 2);
    lab.post("/vlan/add-to-bridge", in_vlan("tap-vm1", 100, false)).await.done(false);
}

#[tokio::test]
async fn a_second_tagged_vlan_adds_and_a_second_untagged_one_replaces() {
    let lab = lab().await;
    for (vlan, tagged) in [(10, true), (20, true), (30, false), (40, false)] {
        lab.post("/vlan/add-to-bridge", in_vlan("ens4", vlan, tagged)).await.done(true);
    }
    assert_eq!(rows(&lab).await, [row("ens4", 10, true), row("ens4", 20, true), row("ens4", 40, false)]);
    // One VLAN is either the one or the other.
    lab.post("/vlan/add-to-bridge", in_vlan("ens4", 10, false)).await.done(true);
    assert_eq!(rows(&lab).await, [row("ens4", 10, false), row("ens4", 20, true)]);
    lab.post("/vlan/add-to-bridge", in_vlan("ens4", 10, true)).await.done(true);
    let body = json!({ "bridge_name": "br-lab", "port_name": "ens4", "vlans": "30,32-33" });
    let trunk = lab.post("/vlan/add-to-bridge", body).await;
    assert_eq!(trunk.done(true)["tagged_vlans"], json!([10, 20, 30, 32, 33]));
    assert_eq!(trunk.json["data"]["native_vlan"], Value::Null);
}

#[tokio::test]
async fn without_its_last_vlan_a_port_is_as_before_and_so_is_the_bridge() {
    let lab = lab().await;
    lab.post("/vlan/add-to-bridge", in_vlan("ens4", 10, true)).await.done(true);
    lab.post("/vlan/add-to-bridge", in_vlan("ens4", 20, false)).await.done(true);
    settled(&lab, 3).await;
    lab.post("/vlan/remove-from-bridge", in_vlan("ens4", 30, true)).await.refused(404, "VLAN_NOT_FOUND");
    lab.post("/vlan/remove-from-bridge", in_vlan("ens4", 10, true)).await.done(true);
    assert_eq!(rows(&lab).await, [row("ens4", 20, false)]);
    lab.post("/vlan/remove-from-bridge", in_vlan("ens4", 20, true)).await.done(true);
    assert!(rows(&lab).await.is_empty());
    settled(&lab, 0).await;
}

#[tokio::test]
async fn a_port_that_leaves_its_bridge_forgets_its_vlans() {
    let lab = lab().await;
    let pair = json!({ "name1": "v1", "name2": "v2", "bridge1": "br-lab" });
    lab.post("/veth/create", pair.clone()).await.done(true);
    lab.post("/bridge/create", json!({ "name": "br-2" })).await.done(true);
    let leave: [(&str, Value); 4] = [
        ("/bridge/remove-port", port("v1")),
        ("/veth/move-to-bridge", json!({ "veth_name": "v1", "target_bridge": "br-2" })),
        ("/veth/move-to-namespace", json!({ "veth_name": "v1", "target_namespace": "lab1" })),
        ("/veth/delete", json!({ "name": "v1" })),
    ];
    for (path, body) in leave {
        lab.post("/vlan/add-to-bridge", in_vlan("v1", 10, false)).await.done(true);
        lab.post(path, body).await.done(true);
        assert!(rows(&lab).await.is_empty(), "{path}");
        settled(&lab, 0).await;
        lab.post("/veth/delete", json!({ "name": "v2" })).await;
        lab.post("/veth/create", pair.clone()).await.done(true);
        assert!(rows(&lab).await.is_empty(), "{path}");
    }
    lab.post("/vlan/add-to-bridge", in_vlan("v1", 10, false)).await.done(true);
    lab.post("/bridge/delete", json!({ "name": "br-lab", "force": true })).await.done(true);
    lab.post("/bridge/create", json!({ "name": "br-lab" })).await.done(true);
    lab.post("/bridge/add-port", port("v1")).await.done(true);
    assert!(rows(&lab).await.is_empty());
}

#[tokio::test]
async fn the_programs_are_there_before_the_port_is() {
    let lab = lab().await;
    lab.post("/bridge/remove-port", port("ens4")).await.done(true);
    lab.fake.faults.take_steps();
    let mut body = port("ens4");
    body["vlan"] = json!(100);
    let added = lab.post("/bridge/add-port", body.clone()).await;
    assert_eq!(added.done(true)["vlans"], json!([100]));
    let steps = lab.fake.faults.take_steps();
    let place = |text: &str| steps.iter().position(|step| step.contains(text));
    assert!(place("put switch port 3") < place("add port ens4 to bridge br-lab"), "{steps:?}");
    assert!(place("put switch port 3").is_some());
    lab.post("/bridge/add-port", body.clone()).await.done(false);
    // Another native VLAN for a port that is there; without one, it keeps what it has.
    body["vlan"] = json!(200);
    lab.post("/bridge/add-port", body).await.done(true);
    lab.post("/bridge/add-port", port("ens4")).await.done(false);
    assert_eq!(rows(&lab).await, [row("ens4", 200, false)]);
}

#[tokio::test]
async fn links_that_are_made_again_are_filtered_before_they_are_ports() {
    let lab = lab().await;
    let pair = json!({ "name1": "v1", "name2": "v2", "bridge1": "br-lab" });
    lab.post("/veth/create", pair).await.done(true);
    lab.post("/vlan/add-to-bridge", in_vlan("v1", 10, false)).await.done(true);
    let Lab { router, fake } = lab;
    drop(router);
    // A reboot: links and programs are gone.
    fake.kernel.edit(|world| world.links.retain(|link| link.alias.is_none()));
    for port in fake.dataplane.switch_ports().unwrap().into_keys() {
        fake.dataplane.remove_switch_port(port).unwrap();
    }
    fake.faults.take_steps();
    let engine = fake.start(Options::default()).await.unwrap();
    let steps = fake.faults.take_steps();
    let made = steps.iter().position(|step| step == "create veth pair v1 and v2").expect("made");
    let enslaved = steps.iter().position(|step| step == "add port v1 to bridge br-lab").expect("enslaved");
    let filtered = steps.iter().position(|step| step.starts_with("put switch port")).expect("filtered");
    assert!(made < filtered && filtered < enslaved, "{steps:?}");
    let rows = engine.bridge_vlans().await.unwrap();
    assert_eq!((rows.len(), rows[0].vlan_id, rows[0].tagged), (1, 10, false));
}

#[tokio::test]
async fn a_link_that_somebody_puts_back_has_its_vlans_again() {
    let lab = lab().await;
    lab.post("/vlan/add-to-bridge", in_vlan("ens4", 10, false)).await.done(true);
    settled(&lab, 3).await;
    lab.fake.kernel.edit(|world| {
        let old = world.links.iter().position(|link| link.name == "ens4").unwrap();
        world.links[old].index = 77;
    });
    lab.fake.kernel.notify();
    for _ in 0..500 {
        if lab.fake.dataplane.switch_ports().unwrap().contains_key(&77) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let ports = settled(&lab, 3).await;
    let (_, port) = ports.iter().find(|(name, _)| name == "ens4").expect("it is filtered again");
    assert_eq!((port.index, port.native), (77, Some(10)));
}

#[tokio::test]
async fn a_port_that_closes_a_ring_does_not_forward_in_its_vlan() {
    let lab = lab().await;
    let pair = json!({ "name1": "v1", "name2": "v2", "bridge1": "br-lab", "bridge2": "br-lab" });
    lab.post("/veth/create", pair).await.done(true);
    lab.post("/vlan/add-to-bridge", in_vlan("v1", 10, false)).await.done(true);
    lab.post("/vlan/add-to-bridge", in_vlan("v2", 10, false)).await.done(true);
    let ports = settled(&lab, 5).await;
    let forwards = |name: &str| ports.iter().find(|(other, _)| other == name).unwrap().1.forwarding;
    assert!(forwards("v1") && !forwards("v2"));
}

#[tokio::test]
async fn what_is_asked_wrongly_is_refused_by_its_kind() {
    let lab = lab().await;
    lab.post("/vlan/add-to-bridge", in_vlan("no", 10, true)).await.refused(404, "LINK_NOT_FOUND");
    lab.post("/vlan/add-to-bridge", in_vlan("ens3", 10, true)).await.refused(404, "NOT_A_PORT");
    let mut body = in_vlan("ens4", 10, true);
    body["bridge_name"] = json!("br-no");
    lab.post("/vlan/add-to-bridge", body.clone()).await.refused(404, "BRIDGE_NOT_FOUND");
    for vlan in [json!(0), json!(4095), json!("ten")] {
        body["vlan_id"] = vlan;
        lab.post("/vlan/add-to-bridge", body.clone()).await.refused(422, "INVALID_FIELD");
    }
    let mut tunnel = in_vlan("ens4", 10, true);
    tunnel["tunnel"] = json!(true);
    lab.post("/vlan/add-to-bridge", tunnel).await.refused(422, "INVALID_FIELD");
    assert!(lab.fake.dataplane.switch_ports().unwrap().is_empty());
}

#[tokio::test]
async fn the_bridge_itself_is_a_port_whose_own_address_is_fixed() {
    let lab = lab().await;
    lab.post("/vlan/add-to-bridge", in_vlan("br-lab", 10, false)).await.done(true);
    let stations = lab.get("/vlan/fdb?bridge_name=br-lab&vlan_id=10").await.json;
    assert_eq!((&stations[0]["port_name"], &stations[0]["static"]), (&json!("br-lab"), &json!(true)));
    assert_eq!(stations.as_array().unwrap().len(), 1);
    assert_eq!(lab.get("/vlan/fdb?vlan_id=11").await.json, json!([]));
    let ports = lab.get("/vlan/bridge-ports").await.json;
    let host = ports.as_array().unwrap().iter().find(|port| port["port_name"] == "br-lab").unwrap();
    assert_eq!(host["native_vlan"], 10);
}

#[tokio::test]
async fn a_station_can_be_fixed_where_its_vlan_is() {
    let lab = lab().await;
    let station = |port: &str| json!({ "bridge_name": "br-lab", "port_name": port, "vlan_id": 10, "mac_address": "02:00:00:00:00:07" });
    lab.post("/vlan/fdb/add", station("ens4")).await.refused(404, "VLAN_NOT_FOUND");
    lab.post("/vlan/add-to-bridge", in_vlan("ens4", 10, false)).await.done(true);
    lab.post("/vlan/add-to-bridge", in_vlan("tap-vm1", 10, false)).await.done(true);
    lab.post("/vlan/fdb/add", station("ens4")).await.done(true);
    lab.post("/vlan/fdb/add", station("ens4")).await.done(false);
    lab.post("/vlan/fdb/add", station("tap-vm1")).await.refused(409, "STATION_EXISTS");
    assert_eq!(lab.get("/vlan/fdb").await.json[0]["mac_address"], "02:00:00:00:00:07");
    lab.post("/vlan/fdb/remove", station("ens4")).await.done(true);
    lab.post("/vlan/fdb/remove", station("ens4")).await.refused(404, "STATION_NOT_FOUND");
    let mut group = station("ens4");
    group["mac_address"] = json!("01:00:00:00:00:07");
    lab.post("/vlan/fdb/add", group).await.refused(422, "INVALID_FIELD");
}

#[tokio::test]
async fn a_change_that_fails_at_any_step_leaves_nothing() {
    let mut add_port = port("ens4");
    add_port["vlan"] = json!(100);
    let changes = [
        ("/vlan/add-to-bridge", in_vlan("tap-vm1", 20, true)),
        ("/vlan/add-to-bridge", in_vlan("br-lab", 10, false)),
        ("/vlan/remove-from-bridge", in_vlan("tap-vm1", 10, true)),
        ("/bridge/add-port", add_port),
        ("/bridge/remove-port", port("tap-vm1")),
        ("/tuntap/delete", json!({ "name": "tap-vm1" })),
    ];
    for (path, body) in changes {
        for step in 0.. {
            let lab = lab().await;
            lab.post("/bridge/remove-port", port("ens4")).await.done(true);
            lab.post("/vlan/add-to-bridge", in_vlan("tap-vm1", 10, false)).await.done(true);
            settled(&lab, 2).await;
            let before =
                (lab.fake.kernel.observe().await.unwrap(), lab.fake.dataplane.switch_ports().unwrap());
            let listed = rows(&lab).await;
            lab.fake.faults.fail_after(step);
            let got = lab.post(path, body.clone()).await;
            if got.status == 200 {
                // What fails after that is put right later, and is no part of the change.
                assert!(step > 0, "{path} does nothing");
                break;
            }
            got.refused(409, "KERNEL_REFUSED");
            let after =
                (lab.fake.kernel.observe().await.unwrap(), lab.fake.dataplane.switch_ports().unwrap());
            assert_eq!(after, before, "{path}, step {step}");
            assert_eq!(rows(&lab).await, listed);
        }
    }
}

#[tokio::test]
async fn hundreds_of_ports_do_not_hold_up_a_request() {
    let lab = lab().await;
    for number in 0..40 {
        let pair =
            json!({ "name1": format!("a{number}"), "name2": format!("b{number}"), "bridge1": "br-lab" });
        lab.post("/veth/create", pair).await.done(true);
    }
    lab.fake.faults.take_steps();
    lab.post("/vlan/add-to-bridge", in_vlan("a0", 10, false)).await.done(true);
    let steps = lab.fake.faults.take_steps();
    let attached = steps.iter().filter(|step| step.starts_with("put switch port")).count();
    // The rest follows between requests, of which it may have done some by now.
    assert!(attached < 40, "{attached}");
    settled(&lab, 43).await;
}

#[tokio::test]
async fn what_the_filter_does_not_know_it_does_not_touch() {
    let lab = lab().await;
    lab.fake
        .kernel
        .act(&LinkStep::CreateBridge(crate::kernel::step::NewBridge {
            name: "br-foreign".into(),
            ..Default::default()
        }))
        .unwrap();
    let body = json!({ "bridge_name": "br-foreign", "port_name": "br-foreign", "vlan_id": 10 });
    lab.post("/vlan/add-to-bridge", body).await.refused(409, "NOT_MANAGED");
    assert!(lab.fake.dataplane.switch_ports().unwrap().is_empty());
}
