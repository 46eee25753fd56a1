//! TUNs, TAPs and VLAN links.

use super::*;

/// The README's tap on its bridge.
async fn readme() -> (Lab, Got) {
    let lab = Lab::new().await;
    lab.post("/bridge/create", json!({ "name": "br-lab" })).await.done(true);
    let tap =
        lab.post("/tuntap/create", json!({ "name": "tap-vm1", "type": "tap", "bridge": "br-lab" })).await;
    (lab, tap)
}

#[tokio::test]
async fn a_tap_is_made_in_its_bridge_detached_and_attached() {
    let (lab, tap) = readme().await;
    let data = tap.done(true);
    assert_eq!((&data["type"], &data["bridge"]), (&json!("tap"), &json!("br-lab")));
    assert_eq!(
        (&data["mode"], &data["owner"], &data["persistent"]),
        (&json!("root"), &json!(null), &json!(false))
    );
    assert_eq!(lab.get("/bridge/br-lab").await.json["data"]["ports"], json!(["tap-vm1"]));

    let detached = lab.post("/network/tuntap/detach", json!({ "tap_name": "tap-vm1" })).await;
    assert_eq!(detached.done(true)["bridge"], Value::Null);
    lab.post("/tuntap/detach", json!({ "tap_name": "tap-vm1" })).await.refused(404, "NOT_A_PORT");
    let port = json!({ "tap_name": "tap-vm1", "bridge_name": "br-lab" });
    assert_eq!(lab.post("/tuntap/attach", port.clone()).await.done(true)["bridge"], "br-lab");
    lab.post("/tuntap/attach", port).await.done(false);
    let other = json!({ "tap_name": "ens3", "bridge_name": "br-lab" });
    lab.post("/tuntap/attach", other).await.refused(409, "WRONG_KIND");

    lab.post("/tuntap/delete", json!({ "name": "tap-vm1" })).await.done(true);
    lab.post("/tuntap/delete", json!({ "name": "tap-vm1" })).await.refused(404, "TUN_NOT_FOUND");
}

#[tokio::test]
async fn who_may_open_a_tap_is_shown_by_name_and_number() {
    let lab = Lab::new().await;
    let body =
        json!({ "name": "tap0", "type": "tap", "owner": "root", "group": 4_000_000_000_u32, "mode": "user" });
    let data = lab.post("/tuntap/create", body).await.json["data"].clone();
    assert_eq!(
        (&data["mode"], &data["owner"], &data["owner_id"]),
        (&json!("user"), &json!("root"), &json!(0))
    );
    assert_eq!((&data["group"], &data["group_id"]), (&json!("4000000000"), &json!(4_000_000_000_u32)));
    let shown = lab.get("/tuntap/tap0").await;
    assert_eq!(shown.done(false)["owner"], "root");
    let unknown = json!({ "name": "tap1", "type": "tap", "owner": "no such user" });
    lab.post("/tuntap/create", unknown).await.refused(422, "INVALID_FIELD");
}

#[tokio::test]
async fn the_same_tap_again_is_no_change_and_another_is_a_conflict() {
    let (lab, _) = readme().await;
    let mut body = json!({ "name": "tap-vm1", "type": "tap", "bridge": "br-lab" });
    lab.post("/tuntap/create", body.clone()).await.done(false);
    body["multi_queue"] = json!(true);
    let refused = lab.post("/tuntap/create", body).await;
    refused.refused(409, "LINK_EXISTS");
    assert!(refused.json["message"].as_str().unwrap().contains("multi_queue is false, not true"));
    lab.post("/tuntap/create", json!({ "name": "ens4", "type": "tap" })).await.refused(409, "LINK_EXISTS");
}

#[tokio::test]
async fn addresses_come_and_go() {
    let lab = Lab::new().await;
    lab.post("/tuntap/create", json!({ "name": "tun0", "type": "tun" })).await.done(true);
    let set = |body| lab.post("/tuntap/tun0/set-ip", body);
    let address = json!({ "ip_address": "10.9.0.1", "netmask": "255.255.255.0" });
    assert_eq!(set(address.clone()).await.done(true)["ip_addresses"], json!(["10.9.0.1/24"]));
    set(address).await.done(false);
    set(json!({ "ip_address": "fd00::1/64" })).await.done(true);
    set(json!({ "ip_address": "here" })).await.refused(422, "INVALID_FIELD");
    // As clients in the field do it: the fields of a DELETE in the query.
    let removed = lab.delete("/tuntap/tun0/remove-ip?ip_address=10.9.0.1&netmask=24", Value::Null).await;
    assert_eq!(removed.done(true)["ip_addresses"], json!(["fd00::1/64"]));
    let again = lab.delete("/network/tuntap/tun0/remove-ip", json!({ "ip_address": "10.9.0.1" })).await;
    again.refused(404, "ADDRESS_NOT_FOUND");
    lab.post("/tuntap/ens3/set-ip", json!({ "ip_address": "10.9.0.1" })).await.refused(409, "WRONG_KIND");
    lab.post("/tuntap/nope/set-ip", json!({ "ip_address": "10.9.0.1" })).await.refused(404, "TUN_NOT_FOUND");
}

#[tokio::test]
async fn the_list_of_taps_is_a_bare_array_and_has_foreign_ones_too() {
    let (lab, _) = readme().await;
    let foreign = crate::kernel::step::NewTun { name: "tap9".into(), tap: true, ..Default::default() };
    lab.fake.kernel.act(&crate::kernel::step::LinkStep::CreateTun(foreign)).unwrap();
    let list = lab.get("/tuntap/list").await.json;
    assert_eq!(list, lab.get("/network/tuntap/list").await.json);
    let of = |name: &str| list.as_array().unwrap().iter().find(|tap| tap["name"] == name).unwrap().clone();
    assert_eq!((&of("tap-vm1")["managed"], &of("tap9")["managed"]), (&json!(true), &json!(false)));
    lab.post("/tuntap/delete", json!({ "name": "tap9" })).await.refused(409, "NOT_MANAGED");
    let set = lab.post("/tuntap/tap9/set-ip", json!({ "ip_address": "10.9.0.1" })).await;
    set.refused(409, "NOT_MANAGED");
}

#[tokio::test]
async fn a_vlan_link_is_found_by_what_it_is() {
    let lab = Lab::new().await;
    let body = json!({ "parent_interface": "ens4", "vlan_id": 100, "name": "lab", "protocol": "802.1ad" });
    let made = lab.post("/vlan/create", body.clone()).await;
    let data = made.done(true);
    assert_eq!((&data["interface_name"], &data["protocol"]), (&json!("lab"), &json!("802.1ad")));
    lab.post("/network/vlan/create", body).await.done(false);
    let list = lab.get("/vlan/list").await.json;
    assert_eq!((&list[0]["parent_interface"], &list[0]["vlan_id"]), (&json!("ens4"), &json!(100)));
    assert_eq!(list, lab.get("/network/vlan/list").await.json);
    assert_eq!(lab.get("/vlan/ens4/100").await.done(false)["interface_name"], "lab");
    lab.get("/vlan/ens4/101").await.refused(404, "VLAN_NOT_FOUND");
    lab.get("/vlan/ens4/all").await.refused(422, "INVALID_FIELD");
    assert_eq!(lab.get("/network/interface/lab").await.json["data"]["vlans"], json!([100]));
    let delete = json!({ "parent_interface": "ens4", "vlan_id": 100 });
    lab.post("/vlan/delete", delete.clone()).await.done(true);
    lab.post("/vlan/delete", delete).await.refused(404, "VLAN_NOT_FOUND");
}
