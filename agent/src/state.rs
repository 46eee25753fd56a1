//! What the worker was told to make: the desired state, as the store keeps it.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    kernel::{
        dataplane::Slot,
        links::{At, Place},
    },
    model::{
        BridgeSpec, ForwardSpec, LinkName, MasqueradeSpec, TunSpec, UplinkSpec, VethSpec, VlanLinkSpec,
        bridge_vlan::PortVlans, firewall::FirewallSpec,
    },
};

/// A link that is not ours and was told to be a port of one of our bridges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortSpec {
    pub port: String,
    pub bridge: LinkName,
    /// It carried the host's addresses: what it brought into the bridge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<UplinkSpec>,
}

impl PortSpec {
    /// `None` when the bridge's name is none that the worker gives.
    pub fn new(port: &str, bridge: &str) -> Option<Self> {
        let bridge = LinkName::new(bridge).ok()?;
        Some(Self { port: port.to_owned(), bridge, uplink: None })
    }
}

/// A NAT rule: its id, its place in the data plane's maps, what it is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// `fwd-` or `masq-` and 12 hexadecimal digits.
    pub id: String,
    pub slot: Slot,
    pub spec: RuleSpec,
}

/// What a rule is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum RuleSpec {
    Forward(ForwardSpec),
    Masquerade(MasqueradeSpec),
}

impl RuleSpec {
    /// The uplink by the name that the caller gave it.
    pub fn interface(&self) -> &LinkName {
        match self {
            Self::Forward(spec) => &spec.interface,
            Self::Masquerade(spec) => &spec.output_interface,
        }
    }

    pub fn enabled(&self) -> bool {
        match self {
            Self::Forward(spec) => spec.enabled,
            Self::Masquerade(spec) => spec.enabled,
        }
    }
}

/// A firewall rule, and its place among the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirewallRule {
    /// `fw-` and 12 hexadecimal digits.
    pub id: String,
    /// Rules are asked in this order.
    pub order: u64,
    pub spec: FirewallSpec,
}

/// One object of the desired state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    Bridge(BridgeSpec),
    Veth(VethSpec),
    Tun(TunSpec),
    VlanLink(VlanLinkSpec),
    Port(PortSpec),
    PortVlans(PortVlans),
    Rule(Rule),
    Firewall(FirewallRule),
}

/// A change to the desired state; the writes of one request are stored together or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    Put(Record),
    Forget(Record),
}

/// Instead of an object's key: rules, addresses and ports that the data plane could not be given.
pub const DATAPLANE: &str = "dataplane";

/// The desired state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    pub bridges: BTreeMap<String, BridgeSpec>,
    /// By [`veth_key`].
    pub veths: BTreeMap<String, VethSpec>,
    /// TUNs and TAPs, by name.
    pub tuns: BTreeMap<String, TunSpec>,
    /// By the name of the link.
    pub vlan_links: BTreeMap<String, VlanLinkSpec>,
    pub ports: BTreeMap<String, PortSpec>,
    /// By the name of the port.
    pub port_vlans: BTreeMap<String, PortVlans>,
    pub rules: BTreeMap<String, Rule>,
    pub firewall: BTreeMap<String, FirewallRule>,
    /// What is wrong with an object and cannot be put right just now, by its key; observed, not stored.
    problems: BTreeMap<String, String>,
    /// Which pair is meant to have an end where; follows from `veths`, and saves going through all of them.
    ends: HashMap<At, String>,
}

/// A stored value that this version cannot read.
#[derive(Debug, thiserror::Error)]
#[error("the stored object {key:?} cannot be read: {reason}")]
pub struct UnreadableRecord {
    pub key: String,
    pub reason: String,
}

/// Names are unique per namespace only, so the first end's place is part of the key.
pub fn veth_key(spec: &VethSpec) -> String {
    match &spec.namespace1 {
        None => spec.name1.to_string(),
        Some(namespace) => format!("{namespace}/{}", spec.name1),
    }
}

/// Where a pair's ends are meant to be.
pub fn veth_ends(spec: &VethSpec) -> [At; 2] {
    [
        At::new(Place::of(spec.namespace1.as_ref()), spec.name1.as_str()),
        At::new(Place::of(spec.namespace2.as_ref()), spec.name2.as_str()),
    ]
}

impl Record {
    /// Kind and name: `bridge/br-ex`.
    pub fn key(&self) -> String {
        match self {
            Self::Bridge(spec) => format!("bridge/{}", spec.name),
            Self::Veth(spec) => format!("veth/{}", veth_key(spec)),
            Self::Tun(spec) => format!("tuntap/{}", spec.name),
            Self::VlanLink(spec) => format!("vlan/{}", spec.name),
            Self::Port(spec) => format!("port/{}", spec.port),
            Self::PortVlans(vlans) => format!("port-vlans/{}", vlans.port),
            Self::Rule(rule) => format!("rule/{}", rule.id),
            Self::Firewall(rule) => format!("firewall/{}", rule.id),
        }
    }

    pub fn to_json(&self) -> serde_json::Result<Value> {
        match self {
            Self::Bridge(spec) => serde_json::to_value(spec),
            Self::Veth(spec) => serde_json::to_value(spec),
            Self::Tun(spec) => serde_json::to_value(spec),
            Self::VlanLink(spec) => serde_json::to_value(spec),
            Self::Port(spec) => serde_json::to_value(spec),
            Self::PortVlans(vlans) => serde_json::to_value(vlans),
            Self::Rule(rule) => serde_json::to_value(rule),
            Self::Firewall(rule) => serde_json::to_value(rule),
        }
    }

    fn from_json(key: &str, value: Value) -> Result<Self, UnreadableRecord> {
        fn read<T: DeserializeOwned>(key: &str, value: Value) -> Result<T, UnreadableRecord> {
            serde_json::from_value(value)
                .map_err(|error| UnreadableRecord { key: key.to_owned(), reason: error.to_string() })
        }
        match key.split_once('/').map(|(kind, _)| kind) {
            Some("bridge") => read(key, value).map(Self::Bridge),
            Some("veth") => read(key, value).map(Self::Veth),
            Some("tuntap") => read(key, value).map(Self::Tun),
            Some("vlan") => read(key, value).map(Self::VlanLink),
            Some("port") => read(key, value).map(Self::Port),
            Some("port-vlans") => read(key, value).map(Self::PortVlans),
            Some("rule") => read(key, value).map(Self::Rule),
            Some("firewall") => read(key, value).map(Self::Firewall),
            _ => Err(UnreadableRecord { key: key.to_owned(), reason: "unknown kind".to_owned() }),
        }
    }
}

impl State {
    /// From the store's keys and values.
    pub fn read(entries: impl IntoIterator<Item = (String, Value)>) -> Result<Self, UnreadableRecord> {
        let mut state = Self::default();
        for (key, value) in entries {
            state.put(Record::from_json(&key, value)?);
        }
        Ok(state)
    }

    pub fn apply(&mut self, writes: &[Write]) {
        for write in writes {
            match write {
                Write::Put(record) => self.put(record.clone()),
                Write::Forget(record) => self.forget(record),
            }
        }
    }

    fn put(&mut self, record: Record) {
        match record {
            Record::Bridge(spec) => drop(self.bridges.insert(spec.name.to_string(), spec)),
            Record::Veth(spec) => {
                let key = veth_key(&spec);
                self.forget_ends(&key);
                for end in veth_ends(&spec) {
                    self.ends.insert(end, key.clone());
                }
                self.veths.insert(key, spec);
            }
            Record::Tun(spec) => drop(self.tuns.insert(spec.name.to_string(), spec)),
            Record::VlanLink(spec) => drop(self.vlan_links.insert(spec.name.to_string(), spec)),
            Record::Port(spec) => drop(self.ports.insert(spec.port.clone(), spec)),
            Record::PortVlans(vlans) => drop(self.port_vlans.insert(vlans.port.clone(), vlans)),
            Record::Rule(rule) => drop(self.rules.insert(rule.id.clone(), rule)),
            Record::Firewall(rule) => drop(self.firewall.insert(rule.id.clone(), rule)),
        }
    }

    fn forget(&mut self, record: &Record) {
        self.problems.remove(&record.key());
        match record {
            Record::Bridge(spec) => drop(self.bridges.remove(spec.name.as_str())),
            Record::Veth(spec) => {
                let key = veth_key(spec);
                self.forget_ends(&key);
                self.veths.remove(&key);
            }
            Record::Tun(spec) => drop(self.tuns.remove(spec.name.as_str())),
            Record::VlanLink(spec) => drop(self.vlan_links.remove(spec.name.as_str())),
            Record::Port(spec) => drop(self.ports.remove(&spec.port)),
            Record::PortVlans(vlans) => drop(self.port_vlans.remove(&vlans.port)),
            Record::Rule(rule) => drop(self.rules.remove(&rule.id)),
            Record::Firewall(rule) => drop(self.firewall.remove(&rule.id)),
        }
    }

    fn forget_ends(&mut self, key: &str) {
        for end in self.veths.get(key).into_iter().flat_map(veth_ends) {
            self.ends.remove(&end);
        }
    }

    /// Links only: what a plan about rings needs to know, without a copy of every rule.
    pub fn without_rules(&self) -> Self {
        let Self {
            bridges,
            veths,
            tuns,
            vlan_links,
            ports,
            port_vlans,
            rules: _,
            firewall: _,
            problems: _,
            ends,
        } = self;
        Self {
            bridges: bridges.clone(),
            veths: veths.clone(),
            tuns: tuns.clone(),
            vlan_links: vlan_links.clone(),
            ports: ports.clone(),
            port_vlans: port_vlans.clone(),
            rules: BTreeMap::new(),
            firewall: BTreeMap::new(),
            problems: BTreeMap::new(),
            ends: ends.clone(),
        }
    }

    /// Everything, what others need first.
    pub fn records(&self) -> Vec<Record> {
        let mut records = self.link_records();
        records.extend(self.port_vlans.values().cloned().map(Record::PortVlans));
        records.extend(self.rules.values().cloned().map(Record::Rule));
        records.extend(self.firewall.values().cloned().map(Record::Firewall));
        records
    }

    /// What is made of links, what others need first.
    pub fn link_records(&self) -> Vec<Record> {
        let bridges = self.bridges.values().cloned().map(Record::Bridge);
        let veths = self.veths.values().cloned().map(Record::Veth);
        let tuns = self.tuns.values().cloned().map(Record::Tun);
        let vlan_links = self.vlan_links.values().cloned().map(Record::VlanLink);
        let ports = self.ports.values().cloned().map(Record::Port);
        bridges.chain(veths).chain(tuns).chain(vlan_links).chain(ports).collect()
    }

    /// One that [`State::link_records`] has, by its key.
    pub fn link_record(&self, key: &str) -> Option<Record> {
        let (kind, name) = key.split_once('/')?;
        match kind {
            "bridge" => self.bridges.get(name).cloned().map(Record::Bridge),
            "veth" => self.veths.get(name).cloned().map(Record::Veth),
            "tuntap" => self.tuns.get(name).cloned().map(Record::Tun),
            "vlan" => self.vlan_links.get(name).cloned().map(Record::VlanLink),
            "port" => self.ports.get(name).cloned().map(Record::Port),
            _ => None,
        }
    }

    /// What is known to be wrong with an object.
    pub fn problem(&self, key: &str) -> Option<&str> {
        self.problems.get(key).map(String::as_str)
    }

    /// Everything that is known to be wrong, by key.
    pub fn problems(&self) -> Vec<(String, String)> {
        self.problems.iter().map(|(key, problem)| (key.clone(), problem.clone())).collect()
    }

    pub fn set_problem(&mut self, key: &str, problem: Option<String>) {
        match problem {
            Some(problem) if key == DATAPLANE || self.link_record(key).is_some() => {
                drop(self.problems.insert(key.to_owned(), problem));
            }
            Some(_) | None => drop(self.problems.remove(key)),
        }
    }

    /// The bridge that a link of the worker's namespace is meant to be a port of. `None`: it is not in the store.
    pub fn master_of(&self, name: &str) -> Option<Option<&LinkName>> {
        if let Some(spec) = self.veth_at(&At::here(name)) {
            let first = spec.namespace1.is_none() && *name == *spec.name1.as_str();
            return Some(if first { spec.bridge1.as_ref() } else { spec.bridge2.as_ref() });
        }
        let tun = self.tuns.get(name).map(|spec| spec.bridge.as_ref());
        let vlan = || self.vlan_links.get(name).map(|spec| spec.bridge.as_ref());
        let port = || self.ports.get(name).map(|spec| Some(&spec.bridge));
        tun.or_else(vlan).or_else(port)
    }

    /// The pair that has an end meant to be at `at`.
    pub fn veth_at(&self, at: &At) -> Option<&VethSpec> {
        self.veths.get(self.ends.get(at)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        let spec = VethSpec {
            name1: LinkName::new("v1").unwrap(),
            name2: LinkName::new("v2").unwrap(),
            bridge1: Some(LinkName::new("br-ex").unwrap()),
            bridge2: None,
            namespace1: None,
            namespace2: Some(crate::model::NamespaceName::new("lab").unwrap()),
        };
        let record = Record::Veth(spec.clone());
        let state = State::read([(record.key(), record.to_json().unwrap())]).unwrap();
        assert_eq!(state.veths["v1"], spec);
        assert!(state.veth_at(&At::new(Place::Named("lab".into()), "v2")).is_some());
    }

    #[test]
    fn an_end_that_has_moved_is_found_at_its_new_place_only() {
        let spec = |namespace2: Option<&str>| VethSpec {
            name1: LinkName::new("v1").unwrap(),
            name2: LinkName::new("v2").unwrap(),
            bridge1: None,
            bridge2: None,
            namespace1: None,
            namespace2: namespace2.map(|name| crate::model::NamespaceName::new(name).unwrap()),
        };
        let mut state = State::default();
        state.apply(&[Write::Put(Record::Veth(spec(None)))]);
        state.apply(&[Write::Put(Record::Veth(spec(Some("lab"))))]);
        assert!(state.veth_at(&At::here("v2")).is_none());
        assert!(state.veth_at(&At::new(Place::Named("lab".into()), "v2")).is_some());
        state.apply(&[Write::Forget(Record::Veth(spec(Some("lab"))))]);
        assert_eq!(state, State::default());
    }

    #[test]
    fn an_unknown_kind_is_an_error_and_not_dropped() {
        let error = State::read([("vxlan/v1".to_owned(), Value::Null)]).unwrap_err();
        assert!(error.to_string().contains("vxlan/v1"), "{error}");
    }
}
