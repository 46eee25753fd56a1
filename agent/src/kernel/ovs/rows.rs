//! Rows of OVS's database, read and written. Pure; the schema is ovs-vswitchd.conf.db(5).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{OvsBridge, OvsPort, OvsVlans, PARKED};
use crate::kernel::step::NewBridge;

/// In `external_ids` of everything that the worker made.
const OWNER: (&str, &str) = ("telecluster", "worker");

/// Everything that [`read`] needs.
pub(super) fn selects() -> Vec<Value> {
    let select = |table: &str, columns: &[&str]| json!({ "op": "select", "table": table, "where": [], "columns": columns });
    vec![
        select("Bridge", &["name", "ports", "external_ids", "stp_enable"]),
        select("Port", &["_uuid", "name", "tag", "trunks", "external_ids"]),
    ]
}

/// The bridges from the answer to [`selects`].
pub(super) fn read(results: &[Value]) -> Vec<OvsBridge> {
    let rows =
        |index: usize| results.get(index).and_then(|result| result["rows"].as_array()).into_iter().flatten();
    let ports: BTreeMap<&str, OvsPort> = rows(1)
        .filter_map(|row| {
            let tag = elements(&row["tag"]).next().and_then(vlan);
            let trunks: BTreeSet<u16> = elements(&row["trunks"]).filter_map(vlan).collect();
            let port = OvsPort { name: row["name"].as_str()?.to_owned(), tag, trunks, ours: ours(row) };
            Some((uuid(&row["_uuid"])?, port))
        })
        .collect();
    let mut bridges: Vec<OvsBridge> = rows(0)
        .filter_map(|row| {
            let name = row["name"].as_str()?.to_owned();
            let ids = elements(&row["ports"]).filter_map(uuid);
            // The bridge's own port bears its name.
            let mut ports: Vec<_> =
                ids.filter_map(|id| ports.get(id)).filter(|port| port.name != name).cloned().collect();
            ports.sort_by(|a, b| a.name.cmp(&b.name));
            Some(OvsBridge { ports, stp: row["stp_enable"] == true, ours: ours(row), name })
        })
        .collect();
    bridges.sort_by(|a, b| a.name.cmp(&b.name));
    bridges
}

pub(super) fn create_bridge(bridge: &NewBridge, datapath: &str) -> Vec<Value> {
    let NewBridge { name, stp, mtu, mac, index: _, ovs: _ } = bridge;
    let mut interface = json!({ "name": name, "type": "internal" });
    if let Some(mtu) = mtu {
        interface["mtu_request"] = json!(mtu);
    }
    let mut row = json!({
        "name": name,
        "ports": named("port"),
        "stp_enable": stp,
        "datapath_type": datapath,
        "external_ids": owner(),
    });
    if let Some(mac) = mac {
        row["other_config"] = json!(["map", [["hwaddr", mac.to_string()]]]);
    }
    vec![
        insert("Interface", "interface", &interface),
        insert(
            "Port",
            "port",
            &json!({ "name": name, "interfaces": named("interface"), "external_ids": owner() }),
        ),
        insert("Bridge", "bridge", &row),
        mutate("Open_vSwitch", &json!([]), &json!([["bridges", "insert", ["set", [named("bridge")]]]])),
    ]
}

pub(super) fn delete_bridge(name: &str, found: &Value) -> Option<Vec<Value>> {
    let id = first_uuid(found)?;
    let gone = json!([["bridges", "delete", ["set", [["uuid", id]]]]]);
    Some(vec![require("Bridge", name), mutate("Open_vSwitch", &json!([]), &gone)])
}

pub(super) fn add_port(bridge: &str, port: &str, vlans: &OvsVlans) -> Vec<Value> {
    let mut row = vlan_columns(vlans);
    row["name"] = json!(port);
    row["interfaces"] = named("interface");
    row["external_ids"] = owner();
    vec![
        require("Bridge", bridge),
        insert("Interface", "interface", &json!({ "name": port })),
        insert("Port", "port", &row),
        mutate(
            "Bridge",
            &json!([["name", "==", bridge]]),
            &json!([["ports", "insert", ["set", [named("port")]]]]),
        ),
    ]
}

/// Rows that no bridge refers to vanish by themselves.
pub(super) fn remove_port(found: &Value) -> Option<Vec<Value>> {
    let id = first_uuid(found)?;
    let holds = json!([["ports", "includes", ["uuid", id]]]);
    Some(vec![mutate("Bridge", &holds, &json!([["ports", "delete", ["set", [["uuid", id]]]]]))])
}

pub(super) fn set_vlans(port: &str, vlans: &OvsVlans) -> Vec<Value> {
    vec![require("Port", port), update("Port", port, &vlan_columns(vlans))]
}

pub(super) fn set_stp(bridge: &str, stp: bool) -> Vec<Value> {
    vec![require("Bridge", bridge), update("Bridge", bridge, &json!({ "stp_enable": stp }))]
}

pub(super) fn set_mtu(interface: &str, mtu: u32) -> Vec<Value> {
    vec![update("Interface", interface, &json!({ "mtu_request": mtu }))]
}

/// Says that the configuration is a new one; its number. ovs-vswitchd repeats the number when it is in force.
pub(super) fn announce() -> Vec<Value> {
    vec![
        mutate("Open_vSwitch", &json!([]), &json!([["next_cfg", "+=", 1]])),
        json!({ "op": "select", "table": "Open_vSwitch", "where": [], "columns": ["next_cfg"] }),
    ]
}

pub(super) fn progress() -> Vec<Value> {
    vec![json!({ "op": "select", "table": "Open_vSwitch", "where": [], "columns": ["cur_cfg"] })]
}

/// The number in the answer to [`announce`] or [`progress`].
pub(super) fn number(result: &Value, column: &str) -> Option<i64> {
    result["rows"][0][column].as_i64()
}

pub(super) fn find(table: &str, name: &str, column: &str) -> Value {
    json!({ "op": "select", "table": table, "where": [["name", "==", name]], "columns": [column] })
}

/// What ovs-vswitchd has against an interface.
pub(super) fn complaint(result: &Value) -> Option<String> {
    elements(&result["rows"][0]["error"]).find_map(|error| error.as_str().map(str::to_owned))
}

/// What a port's columns say about the VLANs of [`OvsVlans`].
fn vlan_columns(vlans: &OvsVlans) -> Value {
    let OvsVlans { native, tagged } = vlans;
    let trunks: Vec<_> = tagged.iter().collect();
    let trunks = json!(["set", trunks]);
    match (native, tagged.is_empty()) {
        // Without a tag OVS would carry every VLAN; ours is in the untagged domain, which OVS calls 0.
        (None, true) => json!({ "vlan_mode": "access", "tag": 0, "trunks": trunks }),
        (Some(native), true) => json!({ "vlan_mode": "access", "tag": native, "trunks": trunks }),
        (Some(native), false) => json!({ "vlan_mode": "native-untagged", "tag": native, "trunks": trunks }),
        (None, false) => json!({ "vlan_mode": "trunk", "tag": ["set", []], "trunks": trunks }),
    }
}

impl OvsPort {
    pub(super) fn is_parked(&self) -> bool {
        self.tag == Some(PARKED)
    }
}

fn owner() -> Value {
    json!(["map", [[OWNER.0, OWNER.1]]])
}

fn ours(row: &Value) -> bool {
    elements(&row["external_ids"]).any(|pair| pair[0] == OWNER.0 && pair[1] == OWNER.1)
}

fn named(name: &str) -> Value {
    json!(["named-uuid", name])
}

fn insert(table: &str, name: &str, row: &Value) -> Value {
    json!({ "op": "insert", "table": table, "uuid-name": name, "row": row })
}

fn update(table: &str, name: &str, row: &Value) -> Value {
    json!({ "op": "update", "table": table, "where": [["name", "==", name]], "row": row })
}

fn mutate(table: &str, conditions: &Value, mutations: &Value) -> Value {
    json!({ "op": "mutate", "table": table, "where": conditions, "mutations": mutations })
}

/// Fails the transaction when there is no such row.
fn require(table: &str, name: &str) -> Value {
    json!({
        "op": "wait", "timeout": 0, "table": table, "where": [["name", "==", name]],
        "columns": ["name"], "until": "==", "rows": [{ "name": name }],
    })
}

/// A set of one element is written as the element; a map is a set of pairs.
fn elements(value: &Value) -> impl Iterator<Item = &Value> {
    let many = match value.as_array().map(Vec::as_slice) {
        Some([kind, Value::Array(items)]) if kind == "set" || kind == "map" => Some(items),
        _ => None,
    };
    let single = many.is_none().then_some(value);
    many.into_iter().flatten().chain(single)
}

fn uuid(value: &Value) -> Option<&str> {
    match value.as_array().map(Vec::as_slice) {
        Some([kind, Value::String(id)]) if kind == "uuid" => Some(id),
        _ => None,
    }
}

fn first_uuid(found: &Value) -> Option<&str> {
    uuid(&found["rows"][0]["_uuid"])
}

fn vlan(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|number| u16::try_from(number).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_element_and_many_are_read_alike() {
        let results = [
            json!({ "rows": [
                { "name": "br-b", "ports": ["uuid", "1"], "external_ids": ["map", []], "stp_enable": true },
                { "name": "br-a", "ports": ["set", [["uuid", "2"], ["uuid", "3"], ["uuid", "4"]]],
                  "external_ids": ["map", [["x", "y"], ["telecluster", "worker"]]], "stp_enable": false },
            ]}),
            json!({ "rows": [
                { "_uuid": ["uuid", "1"], "name": "br-b", "tag": ["set", []], "trunks": ["set", []], "external_ids": ["map", []] },
                { "_uuid": ["uuid", "2"], "name": "br-a", "tag": ["set", []], "trunks": ["set", []], "external_ids": ["map", []] },
                { "_uuid": ["uuid", "3"], "name": "tap1", "tag": 10, "trunks": 20, "external_ids": ["map", [["telecluster", "worker"]]] },
                { "_uuid": ["uuid", "4"], "name": "tap0", "tag": ["set", []], "trunks": ["set", [1, 2]], "external_ids": ["map", []] },
            ]}),
        ];
        let bridges = read(&results);
        assert_eq!(
            bridges.iter().map(|bridge| (&*bridge.name, bridge.ours)).collect::<Vec<_>>(),
            [("br-a", true), ("br-b", false)]
        );
        assert!(bridges[1].ports.is_empty() && bridges[1].stp, "a bridge's own port is no port");
        let [tap0, tap1] = &bridges[0].ports[..] else { panic!("{bridges:?}") };
        assert_eq!((tap0.tag, tap0.trunks.len(), tap0.ours), (None, 2, false));
        assert_eq!((tap1.tag, tap1.trunks.len(), tap1.ours), (Some(10), 1, true));
    }

    #[test]
    fn what_is_no_row_is_left_out_and_does_not_panic() {
        assert!(read(&[]).is_empty());
        assert!(read(&[json!({ "rows": [{ "name": 5 }, null, []] }), json!({ "rows": "x" })]).is_empty());
        assert!(delete_bridge("br0", &json!({ "rows": [] })).is_none());
    }

    #[test]
    fn a_port_without_vlans_is_in_the_untagged_domain_only() {
        let columns = |native, tagged: &[u16]| {
            vlan_columns(&OvsVlans { native, tagged: tagged.iter().copied().collect() })
        };
        assert_eq!(columns(None, &[])["tag"], 0);
        assert_eq!(columns(Some(10), &[])["vlan_mode"], "access");
        assert_eq!(columns(Some(10), &[20])["vlan_mode"], "native-untagged");
        assert_eq!(
            columns(None, &[20, 30]),
            json!({ "vlan_mode": "trunk", "tag": ["set", []], "trunks": ["set", [20, 30]] })
        );
    }
}
