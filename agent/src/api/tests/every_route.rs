//! Every route of the document is walked once, under both of its names, with what it documents; and none is left out.

use std::collections::BTreeSet;

use super::*;

/// Calls that follow from each other: method, route, what its parameters are and its query, body. A body that is null
/// is the documented example. `RULE` is the id of the rule that was made last.
fn walk() -> Vec<(&'static str, &'static str, &'static str, Value)> {
    let example = || Value::Null;
    let lab = |fields: Value| -> Value {
        let mut body = json!({ "bridge_name": "br-lab", "port_name": "tap-vm1", "vlan_id": 100 });
        fields.as_object().into_iter().flatten().for_each(|(key, value)| body[key] = value.clone());
        body
    };
    let station = || lab(json!({ "mac_address": "02:00:00:00:00:01" }));
    vec![
        ("POST", "/bridge/create", "", example()),
        ("POST", "/bridge/create", "", json!({ "name": "br-lab", "type": "ovs" })),
        ("GET", "/bridge/list", "", example()),
        ("GET", "/bridge/{name}", "br-vm", example()),
        ("POST", "/veth/create", "", example()),
        ("GET", "/veth/list", "", example()),
        ("GET", "/veth/{name}", "veth-vm2", example()),
        ("POST", "/bridge/remove-port", "", example()),
        ("POST", "/bridge/add-port", "", example()),
        ("POST", "/veth/move-to-bridge", "", json!({ "veth_name": "veth-vm1", "target_bridge": "br-lab" })),
        (
            "POST",
            "/veth/move-to-namespace",
            "",
            json!({ "veth_name": "veth-vm1", "target_namespace": "lab1" }),
        ),
        ("POST", "/veth/delete", "", json!({ "name": "veth-vm2" })),
        ("POST", "/tuntap/create", "", json!({ "name": "tap-vm1", "type": "tap", "owner": 1000 })),
        ("POST", "/tuntap/attach", "", example()),
        ("GET", "/tuntap/list", "", example()),
        ("GET", "/tuntap/{name}", "tap-vm1", example()),
        ("POST", "/vlan/add-to-bridge", "", example()),
        ("GET", "/vlan/bridge-vlans", "", example()),
        ("GET", "/vlan/bridge-ports", "", example()),
        ("POST", "/vlan/fdb/add", "", station()),
        ("GET", "/vlan/fdb", "?vlan_id=100", example()),
        ("POST", "/vlan/fdb/remove", "", station()),
        ("POST", "/vlan/remove-from-bridge", "", lab(json!({}))),
        ("POST", "/tuntap/detach", "", example()),
        ("POST", "/tuntap/{name}/set-ip", "tap-vm1", example()),
        ("DELETE", "/tuntap/{name}/remove-ip", "tap-vm1", example()),
        ("POST", "/tuntap/delete", "", example()),
        ("POST", "/vlan/create", "", example()),
        ("GET", "/vlan/list", "", example()),
        ("GET", "/vlan/{parent}/{vid}", "ens4/100", example()),
        ("POST", "/vlan/delete", "", example()),
        ("POST", "/nat/forward", "", example()),
        ("GET", "/nat/forward/{rule_id}", "RULE", example()),
        ("DELETE", "/nat/forward/{rule_id}", "RULE", example()),
        ("POST", "/nat/forward", "", example()),
        (
            "DELETE",
            "/nat/forward",
            "?external_port=2222&internal_ip=192.168.100.10&internal_port=22",
            example(),
        ),
        ("POST", "/nat/masquerade", "", example()),
        ("DELETE", "/nat/masquerade/{id}", "RULE", example()),
        ("POST", "/nat/masquerade", "", example()),
        ("DELETE", "/nat/masquerade", "?source_network=192.168.100.0/24&output_interface=ens3", example()),
        ("POST", "/nat/firewall", "", example()),
        ("DELETE", "/nat/firewall/{id}", "RULE", example()),
        ("GET", "/nat/status", "", example()),
        ("GET", "/nat/flows", "?sort=bytes&limit=10", example()),
        ("POST", "/nat/flush-nat", "", example()),
        ("POST", "/nat/flush-firewall", "", example()),
        ("POST", "/bridge/delete", "", example()),
        ("POST", "/bridge/delete", "", json!({ "name": "br-lab" })),
        ("GET", "/network/interfaces", "", example()),
        ("GET", "/network/interface/{name}", "ens3", example()),
        ("GET", "/network/bridges", "", example()),
        ("GET", "/network/routes", "", example()),
        ("GET", "/network/status", "", example()),
        ("GET", "/network/topology", "?format=svg", example()),
        ("GET", "/", "", example()),
        ("GET", "/metrics", "", example()),
    ]
}

/// They need sockets or the machine itself: tests/tests/probe.rs, and `health.rs` beside the route.
const ELSEWHERE: [(&str, &str); 3] =
    [("POST", "/network/ping"), ("POST", "/network/traceroute"), ("GET", "/health")];

#[tokio::test]
async fn every_documented_route_answers_as_documented_under_both_names() {
    let document = serde_json::to_value(document()).unwrap();
    let mut left: BTreeSet<(String, String)> = (document["paths"].as_object().unwrap().iter())
        .flat_map(|(path, item)| {
            item.as_object().unwrap().keys().map(|method| (method.to_uppercase(), path.clone()))
        })
        .collect();
    for (method, route) in ELSEWHERE {
        assert!(left.remove(&(method.to_owned(), route.to_owned())), "{method} {route} is not documented");
    }
    for prefix in ["", "/network"] {
        let lab = Lab::new().await;
        let mut rule = String::new();
        for (method, route, parameters, body) in walk() {
            let own = format!("{prefix}{route}");
            let operation = &document["paths"][&own][method.to_lowercase()];
            if operation.is_null() && !prefix.is_empty() {
                // Not every route has a second name.
                continue;
            }
            let body = match body {
                Value::Null => operation["requestBody"]["content"]["application/json"]["example"].clone(),
                body => body,
            };
            let (values, query) = match parameters.strip_prefix('?') {
                Some(_) => ("", parameters),
                None => (parameters, ""),
            };
            let mut values = values.split('/');
            let filled: Vec<_> = (own.split('/'))
                .map(|part| if part.starts_with('{') { values.next().unwrap() } else { part })
                .collect();
            let path = format!("{}{query}", filled.join("/").replace("RULE", &rule));
            let got = lab.ask(method, &path, body.clone()).await;
            assert_eq!(got.status, 200, "{method} {path} {body}: {}", got.text);
            assert!(!operation["responses"]["200"].is_null(), "{method} {own}: 200 is not documented");
            if method != "GET" && !route.contains("flush") {
                assert_eq!(got.json["data"]["changed"], true, "{method} {path} {body}: {}", got.text);
            }
            if let Some(id) = got.json["data"]["rule_id"].as_str() {
                id.clone_into(&mut rule);
            }
            left.remove(&(method.to_owned(), own));
        }
    }
    assert!(left.is_empty(), "walked by no test: {left:?}");
}
