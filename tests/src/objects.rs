//! Objects of every kind that a worker makes, for workloads that create and delete them at random.

use proptest::{prelude::RngExt as _, test_runner::TestRng};
use serde_json::{Value, json};

use crate::lab::{INSIDE, Lab};

/// What may be there or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    Bridge(u8),
    /// On a bridge that is always there.
    Pair(u8),
    Tap(u8),
    Forward(u8),
    Masquerade(u8),
    /// The VLAN of a TAP that is always there.
    Vlan(u8),
}

/// What is always there: a bridge and a TAP on it.
pub fn prepare(lab: &Lab) {
    lab.post("/bridge/create", &json!({ "name": "br-0" })).ok();
    lab.post("/tuntap/create", &json!({ "name": "tap-0", "type": "tap", "bridge": "br-0" })).ok();
}

impl Object {
    /// One of each kind.
    pub const KINDS: [Self; 6] =
        [Self::Bridge(0), Self::Pair(0), Self::Tap(0), Self::Forward(0), Self::Masquerade(0), Self::Vlan(0)];

    pub fn any(random: &mut TestRng) -> Self {
        let number = random.random_range(0..4);
        match random.random_range(0..6) {
            0 => Self::Bridge(number),
            1 => Self::Pair(number),
            2 => Self::Tap(number),
            3 => Self::Forward(number),
            4 => Self::Masquerade(number),
            _ => Self::Vlan(number),
        }
    }

    pub fn create(self) -> (&'static str, Value) {
        match self {
            Self::Bridge(n) => ("/bridge/create", json!({ "name": format!("br-k{n}"), "mtu": 1400 })),
            Self::Pair(n) => (
                "/veth/create",
                json!({ "name1": format!("va-k{n}"), "name2": format!("vb-k{n}"), "bridge1": "br-0" }),
            ),
            Self::Tap(n) => {
                ("/tuntap/create", json!({ "name": format!("tap-k{n}"), "type": "tap", "bridge": "br-0" }))
            }
            Self::Forward(n) => (
                "/nat/forward",
                json!({ "external_port": 1000 + u16::from(n), "internal_ip": INSIDE, "internal_port": 80 }),
            ),
            Self::Masquerade(n) => (
                "/nat/masquerade",
                json!({ "source_network": format!("10.{n}.0.0/16"), "output_interface": "wan0" }),
            ),
            Self::Vlan(n) => (
                "/vlan/add-to-bridge",
                json!({ "bridge_name": "br-0", "port_name": "tap-0", "vlan_id": 100 + u16::from(n), "tagged": true }),
            ),
        }
    }

    pub fn delete(self) -> (&'static str, &'static str, Value) {
        match self {
            Self::Bridge(n) => ("POST", "/bridge/delete", json!({ "name": format!("br-k{n}") })),
            Self::Pair(n) => ("POST", "/veth/delete", json!({ "name": format!("va-k{n}") })),
            Self::Tap(n) => ("POST", "/tuntap/delete", json!({ "name": format!("tap-k{n}") })),
            Self::Forward(_) => ("DELETE", "/nat/forward", self.create().1),
            Self::Masquerade(_) => ("DELETE", "/nat/masquerade", self.create().1),
            Self::Vlan(n) => (
                "POST",
                "/vlan/remove-from-bridge",
                json!({ "bridge_name": "br-0", "port_name": "tap-0", "vlan_id": 100 + u16::from(n) }),
            ),
        }
    }
}

/// What of the objects is there, as the worker tells.
#[track_caller]
pub fn present(lab: &Lab) -> Vec<Object> {
    try_present(lab).unwrap_or_else(|row| panic!("not whole, or not known to be the worker's: {row}"))
}

/// The same, or the first one that is not as it should be.
pub fn try_present(lab: &Lab) -> Result<Vec<Object>, Value> {
    let mut there = Vec::new();
    let rows = |path: &str, list: &str| {
        let answer = lab.get(path);
        let rows = if list.is_empty() { answer } else { answer[list].clone() };
        rows.as_array().unwrap_or_else(|| panic!("a list in {path}")).clone()
    };
    let number = |name: &str, prefix: &str| name.strip_prefix(prefix).and_then(|number| number.parse().ok());
    let whole =
        |row: &Value, right: bool| match row["problems"] == json!([]) && row["managed"] == true && right {
            true => Ok(()),
            false => Err(row.clone()),
        };
    for row in rows("/bridge/list", "bridges") {
        if let Some(n) = number(row["name"].as_str().expect("a name"), "br-k") {
            whole(&row, row["mtu"] == 1400)?;
            there.push(Object::Bridge(n));
        }
    }
    for row in rows("/veth/list", "") {
        if let Some(n) = number(row["name1"].as_str().expect("a name"), "va-k") {
            whole(&row, row["bridge1"] == "br-0" && row["name2"] == format!("vb-k{n}"))?;
            there.push(Object::Pair(n));
        }
    }
    for row in rows("/tuntap/list", "") {
        if let Some(n) = number(row["name"].as_str().expect("a name"), "tap-k") {
            whole(&row, row["bridge"] == "br-0")?;
            there.push(Object::Tap(n));
        }
    }
    let status = lab.get("/nat/status");
    for row in status["port_forwards"].as_array().expect("a list") {
        let port = row["source_port"].as_u64().expect("a port");
        there.push(Object::Forward(u8::try_from(port - 1000).expect("one of ours")));
    }
    for row in status["masquerade_rules"].as_array().expect("a list") {
        let net = row["source_ip"].as_str().expect("a network");
        let n = net.strip_prefix("10.").and_then(|rest| rest.strip_suffix(".0.0/16")).expect("one of ours");
        there.push(Object::Masquerade(n.parse().expect("a number")));
    }
    for row in rows("/vlan/bridge-vlans", "") {
        if row["port_name"] == "tap-0" {
            let vlan = row["vlan_id"].as_u64().expect("a VLAN");
            there.push(Object::Vlan(u8::try_from(vlan - 100).expect("one of ours")));
        }
    }
    there.sort();
    Ok(there)
}

/// Links of these tests' names in the kernel.
pub fn links(lab: &Lab) -> Vec<String> {
    let shown: Value = serde_json::from_str(&lab.router.sh("ip -j link show")).expect("JSON");
    let names = shown.as_array().expect("a list").iter().filter_map(|link| link["ifname"].as_str());
    let mut names: Vec<String> = names.filter(|name| name.contains("-k")).map(str::to_owned).collect();
    names.sort();
    names
}

/// The links that these objects are.
pub fn links_of(objects: &[Object]) -> Vec<String> {
    let mut names: Vec<String> = objects
        .iter()
        .flat_map(|object| match object {
            Object::Bridge(n) => vec![format!("br-k{n}")],
            Object::Pair(n) => vec![format!("va-k{n}"), format!("vb-k{n}")],
            Object::Tap(n) => vec![format!("tap-k{n}")],
            Object::Forward(_) | Object::Masquerade(_) | Object::Vlan(_) => Vec::new(),
        })
        .collect();
    names.sort();
    names
}
