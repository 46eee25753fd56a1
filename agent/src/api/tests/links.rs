//! Bridges and veth pairs.

use super::*;

/// The README's first example, word by word.
async fn readme() -> (Lab, Got, Got) {
    let lab = Lab::new().await;
    let bridge = lab.post("/bridge/create", json!({ "name": "br-vm", "type": "linux", "stp": false })).await;
    let pair = json!({ "name1": "veth-vm1", "name2": "veth-vm2", "bridge1": "br-vm", "bridge2": "br-vm" });
    let veth = lab.post("/veth/create", pair).await;
    (lab, bridge, veth)
}

#[tokio::test]
async fn the_readmes_bridge_and_pair_are_made_and_its_loop_is_warned_about() {
    let (lab, bridge, veth) = readme().await;
    let data = bridge.done(true);
    assert_eq!(
        (&data["name"], &data["type"], &data["stp"]),
        (&json!("br-vm"), &json!("linux"), &json!(false))
    );
    assert_eq!(data["managed"], true);

    let data = veth.done(true);
    assert_eq!(veth.json["status"], "warning");
    assert_eq!(data["warnings"].as_array().unwrap().len(), 1);
    assert_eq!((&data["bridge1"], &data["bridge2"]), (&json!("br-vm"), &json!("br-vm")));

    let shown = lab.get("/bridge/br-vm").await;
    let shown = shown.done(false);
    assert_eq!(shown["ports"], json!(["veth-vm1", "veth-vm2"]));
    assert_eq!(shown["blocked_ports"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn the_same_again_changes_nothing_and_another_spec_is_a_conflict() {
    let (lab, ..) = readme().await;
    lab.post("/network/bridge/create", json!({ "name": "br-vm" })).await.done(false);
    lab.post("/bridge/create", json!({ "name": "br-vm", "stp": true })).await.refused(409, "LINK_EXISTS");
    lab.post("/bridge/create", json!({ "name": "ens3" })).await.refused(409, "LINK_EXISTS");
}

#[tokio::test]
async fn lists_have_the_shapes_that_clients_know() {
    let (lab, ..) = readme().await;
    let bridges = lab.get("/bridge/list").await.json;
    assert_eq!(bridges["bridges"][0]["name"], "br-vm");
    assert_eq!(lab.get("/network/bridge/list").await.json, bridges);
    assert_eq!(lab.get("/network/bridges").await.json, bridges["bridges"]);

    let veths = lab.get("/veth/list").await.json;
    assert_eq!(veths[0]["name1"], "veth-vm1");
    assert_eq!(veths[0]["peer1"], "veth-vm2");
    assert_eq!(lab.get("/network/veth/list").await.json, veths);

    let interfaces = lab.get("/network/interfaces").await.json;
    let named =
        |name: &str| interfaces.as_array().unwrap().iter().find(|i| i["name"] == name).unwrap().clone();
    assert_eq!(named("ens3")["type"], "physical");
    assert_eq!(named("ens3")["managed"], false);
    assert_eq!(named("br-vm")["type"], "bridge");
    assert_eq!(named("veth-vm1")["bridge"], "br-vm");

    let one = lab.get("/network/interface/ens3").await;
    assert_eq!(one.done(false)["ip_addresses"], named("ens3")["ip_addresses"]);
}

#[tokio::test]
async fn what_is_not_there_is_404_by_its_kind() {
    let lab = Lab::new().await;
    lab.get("/bridge/br-no").await.refused(404, "BRIDGE_NOT_FOUND");
    lab.get("/veth/veth-no").await.refused(404, "VETH_NOT_FOUND");
    lab.get("/network/interface/no").await.refused(404, "LINK_NOT_FOUND");
    lab.get("/network/interface/a%20name%20that%20is%20none").await.refused(404, "LINK_NOT_FOUND");
    lab.post("/bridge/delete", json!({ "name": "br-no" })).await.refused(404, "BRIDGE_NOT_FOUND");
    let port = json!({ "bridge_name": "br-no", "port_name": "ens4" });
    lab.post("/bridge/add-port", port).await.refused(404, "BRIDGE_NOT_FOUND");
    // Something else of that name: who looks for a bridge does not find one, who deletes one is told what it is.
    lab.get("/bridge/ens3").await.refused(404, "BRIDGE_NOT_FOUND");
    lab.get("/veth/ens3").await.refused(404, "VETH_NOT_FOUND");
    lab.get("/tuntap/ens3").await.refused(404, "TUN_NOT_FOUND");
    lab.post("/bridge/delete", json!({ "name": "ens3" })).await.refused(409, "WRONG_KIND");
    let vid = lab.get("/vlan/ens4/many").await;
    assert_eq!(vid.refused(422, "INVALID_FIELD").json["detail"][0]["loc"], json!(["path", "vid"]));
}

#[tokio::test]
async fn another_spec_is_told_in_words() {
    let lab = Lab::new().await;
    lab.post("/bridge/create", json!({ "name": "br-vm", "addresses": ["10.1.0.1/24"] })).await.done(true);
    let other = json!({ "name": "br-vm", "mtu": 1400, "addresses": [] });
    let refused = lab.post("/bridge/create", other).await;
    assert_eq!(
        refused.refused(409, "LINK_EXISTS").json["message"],
        "bridge br-vm exists with another spec: mtu is the kernel's own choice, not 1400; addresses are 10.1.0.1/24, not none"
    );
    // No link can have these names: the kernel's settings for all interfaces are kept under them.
    for name in ["all", "default"] {
        lab.post("/bridge/create", json!({ "name": name })).await.refused(422, "INVALID_FIELD");
    }
}

#[tokio::test]
async fn ports_come_and_go_and_hold_their_bridge() {
    let (lab, ..) = readme().await;
    let port = json!({ "bridge_name": "br-vm", "port_name": "ens4" });
    let added = lab.post("/bridge/add-port", port.clone()).await;
    assert!(added.done(true)["ports"].as_array().unwrap().contains(&json!("ens4")));
    lab.post("/bridge/delete", json!({ "name": "br-vm" })).await.refused(409, "BRIDGE_HAS_PORTS");
    lab.post("/bridge/remove-port", port.clone()).await.done(true);
    lab.post("/bridge/remove-port", port).await.refused(404, "NOT_A_PORT");

    lab.post("/veth/delete", json!({ "name": "veth-vm2" })).await.done(true);
    lab.post("/bridge/delete", json!({ "name": "br-vm" })).await.done(true);
    assert_eq!(lab.get("/bridge/list").await.json, json!({ "bridges": [] }));
}

#[tokio::test]
async fn an_end_moves_to_a_bridge_and_to_a_namespace() {
    let (lab, ..) = readme().await;
    lab.post("/bridge/create", json!({ "name": "br-2" })).await.done(true);
    let moved = lab.post("/veth/move-to-bridge?veth_name=veth-vm2&target_bridge=br-2", Value::Null).await;
    assert_eq!(moved.done(true)["bridge2"], "br-2");
    let body = json!({ "veth_name": "veth-vm2", "target_namespace": "lab1" });
    let moved = lab.post("/veth/move-to-namespace", body).await;
    assert_eq!(moved.done(true)["namespace2"], "lab1");
    let body = json!({ "veth_name": "veth-vm1", "target_namespace": "nowhere" });
    lab.post("/veth/move-to-namespace", body).await.refused(404, "NAMESPACE_NOT_FOUND");
}

#[tokio::test]
async fn a_typo_is_reported_and_does_not_change_the_status() {
    let lab = Lab::new().await;
    let got = lab.post("/bridge/create", json!({ "name": "br0", "spt": true })).await;
    assert_eq!(got.done(true)["warnings"], json!(["unknown field 'spt' was ignored"]));
    assert_eq!(got.json["status"], "ok");
}

#[tokio::test]
async fn a_refused_request_leaves_the_host_as_it_was() {
    let lab = Lab::new().await;
    let before = lab.get("/network/interfaces").await.json;
    for body in
        [json!({ "name": "a-name-of-16-byt" }), json!({ "name": "br0", "mtu": 0 }), json!({ "name": "-br" })]
    {
        lab.post("/bridge/create", body).await.refused(422, "INVALID_FIELD");
    }
    lab.fake.faults.fail_after(1);
    let pair = json!({ "name1": "a", "name2": "b", "namespace2": "lab1" });
    lab.post("/veth/create", pair).await.refused(409, "KERNEL_REFUSED");
    assert_eq!(lab.get("/network/interfaces").await.json, before);
}

#[tokio::test]
async fn the_topology_shows_links_routes_and_forwards_in_every_form() {
    let (lab, ..) = readme().await;
    let pair = json!({ "name1": "a1", "name2": "a2", "bridge1": "br-vm", "namespace2": "lab1" });
    lab.post("/veth/create", pair).await.done(true);
    let forward =
        json!({ "external_port": 2222, "internal_ip": "192.0.2.77", "internal_port": 22, "protocol": "tcp" });
    lab.post("/nat/forward", forward).await.done(true);

    let got = lab.get("/network/topology").await.json;
    assert_eq!(got["interfaces"], lab.get("/network/interfaces").await.json);
    assert_eq!(got["bridges"], lab.get("/network/bridges").await.json);
    assert_eq!(got["routes"], lab.get("/network/routes").await.json);
    assert_eq!(got["routes"][0]["destination"], "default");
    assert_eq!(
        (&got["routes"][0]["gateway"], &got["routes"][0]["interface"]),
        (&json!("192.0.2.1"), &json!("ens3"))
    );
    let edges = got["graph"]["edges"].as_array().unwrap();
    for edge in [
        json!({ "from": "if:a1", "to": "if:br-vm", "kind": "port" }),
        json!({ "from": "if:a1", "to": "if:lab1/a2", "kind": "veth" }),
        json!({ "from": "if:lab1/a2", "to": "ns:lab1", "kind": "inside" }),
        json!({ "from": "outside", "to": "if:ens3", "kind": "uplink" }),
        json!({ "from": "if:ens3", "to": "if:ens3", "kind": "forward", "label": "tcp 2222 → 192.0.2.77:22" }),
    ] {
        assert!(edges.contains(&edge), "{edge} is not in {edges:#?}");
    }
    for (format, kind, begin) in [
        ("svg", "image/svg+xml", "<svg"),
        ("dot", "text/vnd.graphviz", "digraph"),
        ("mermaid", "text/plain; charset=utf-8", "flowchart"),
    ] {
        let path = format!("/network/topology?format={format}");
        let picture = lab.get(&path).await;
        assert_eq!((picture.status, picture.headers[header::CONTENT_TYPE].to_str().unwrap()), (200, kind));
        assert!(picture.text.starts_with(begin) && picture.text.contains("br-vm"), "{}", picture.text);
        assert_eq!(lab.get(&path).await.text, picture.text, "the same network, the same bytes");
    }
    lab.get("/network/topology?format=png").await.refused(422, "INVALID_FIELD");
}
