//! What is connected with what: a graph of host, bridges, interfaces, namespaces and forwards, and its pictures.
//!
//! All of it is pure: from one look at the machine to the same bytes every time.

pub mod picture;
mod svg;
mod text;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    kernel::links::{Link, LinkKind, Observed, Place},
    model::{BridgeView, InterfaceView, RouteView, RuleView},
};

pub use self::{
    svg::svg,
    text::{dot, mermaid},
};

/// The whole network of a host.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Topology {
    pub interfaces: Vec<InterfaceView>,
    pub bridges: Vec<BridgeView>,
    pub routes: Vec<RouteView>,
    pub graph: Graph,
}

/// Nodes and edges, each in an order of its own that does not change from call to call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Graph {
    pub nodes: Vec<Node>,
    pub edges: Vec<Edge>,
}

/// One thing of the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Node {
    /// Unique in the graph: `host`, `if:br-ex`, `ns:lab1`, `if:lab1/eth0`.
    pub id: String,
    pub kind: NodeKind,
    pub name: String,
    /// Interfaces: physical, bridge, veth, tun, tap, vlan, bond or virtual.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface_type: Option<String>,
    /// The namespace that it is in; absent for the host's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    pub addresses: Vec<String>,
    pub vlans: Vec<u16>,
    /// Operational state; absent for what has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// The port that the worker holds on a ring of bridges.
    pub held: bool,
    pub managed: bool,
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum NodeKind {
    /// Everything behind the uplink.
    Outside,
    /// The machine itself, where packets are routed.
    Host,
    Bridge,
    Interface,
    Namespace,
}

/// A connection of two nodes, by their ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Edge {
    pub from: String,
    pub to: String,
    pub kind: EdgeKind,
    /// Forwards: what is forwarded where.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// How two nodes are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EdgeKind {
    /// The default route leaves here.
    Uplink,
    /// A port and its bridge or bond.
    Port,
    /// Both ends of a veth pair.
    Veth,
    /// An interface in a namespace.
    Inside,
    /// The host routes packets of this interface.
    Route,
    /// A port forward, from the uplink to where its inside host is.
    Forward,
}

/// What the graph is made from.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    pub hostname: &'a str,
    pub observed: &'a Observed,
    /// The host's own interfaces as callers see them.
    pub interfaces: &'a [InterfaceView],
    pub forwards: &'a [RuleView],
}

pub const HOST: &str = "host";
pub const OUTSIDE: &str = "outside";

/// The id of an interface.
pub fn interface_id(place: &Place, name: &str) -> String {
    match place {
        Place::Here => format!("if:{name}"),
        // No name of an interface has a slash in it.
        Place::Named(namespace) => format!("if:{namespace}/{name}"),
    }
}

/// The id of a namespace.
pub fn namespace_id(name: &str) -> String {
    format!("ns:{name}")
}

/// The graph of a machine.
pub fn graph(source: Source<'_>) -> Graph {
    let Source { hostname, observed, .. } = source;
    let mut graph = Graph::default();
    graph.nodes.push(plain(HOST.to_owned(), NodeKind::Host, hostname));
    let views: BTreeMap<&str, &InterfaceView> =
        source.interfaces.iter().map(|view| (view.name.as_str(), view)).collect();
    for link in observed.links.iter().filter(|link| link.kind != LinkKind::Loopback) {
        graph.nodes.push(interface(&Place::Here, link, views.get(link.name.as_str()).copied()));
        let id = interface_id(&Place::Here, &link.name);
        if let Some(master) = observed.master_name(&Place::Here, link) {
            graph.edge(id.clone(), interface_id(&Place::Here, master), EdgeKind::Port);
        }
        if link.addresses.iter().any(|address| address.global) {
            graph.edge(id, HOST.to_owned(), EdgeKind::Route);
        }
    }
    namespaces(&mut graph, observed);
    pairs(&mut graph, observed);
    uplink(&mut graph, source);
    forwards(&mut graph, source);
    graph.edges.sort_by(|a, b| (a.kind, &a.from, &a.to, &a.label).cmp(&(b.kind, &b.from, &b.to, &b.label)));
    graph
}

impl Graph {
    fn edge(&mut self, from: String, to: String, kind: EdgeKind) {
        self.edges.push(Edge { from, to, kind, label: None });
    }

    pub fn edges_of(&self, kind: EdgeKind) -> impl Iterator<Item = &Edge> {
        self.edges.iter().filter(move |edge| edge.kind == kind)
    }
}

fn plain(id: String, kind: NodeKind, name: &str) -> Node {
    Node {
        id,
        kind,
        name: name.to_owned(),
        interface_type: None,
        namespace: None,
        addresses: Vec::new(),
        vlans: Vec::new(),
        status: None,
        held: false,
        managed: false,
    }
}

fn interface(place: &Place, link: &Link, view: Option<&InterfaceView>) -> Node {
    Node {
        id: interface_id(place, &link.name),
        kind: if link.is_bridge() { NodeKind::Bridge } else { NodeKind::Interface },
        name: link.name.clone(),
        interface_type: Some(link.kind.label().to_owned()),
        namespace: place.name().map(str::to_owned),
        addresses: (link.addresses.iter())
            .filter(|address| address.global)
            .map(|address| address.net.to_string())
            .collect(),
        vlans: view.map(|view| view.vlans.clone()).unwrap_or_default(),
        status: Some(link.operstate.name().to_owned()),
        held: link.port.is_some_and(|port| port.guarded),
        managed: view.is_some_and(|view| view.managed),
    }
}

fn namespaces(graph: &mut Graph, observed: &Observed) {
    for namespace in &observed.namespaces {
        let place = Place::Named(namespace.name.clone());
        graph.nodes.push(plain(namespace_id(&namespace.name), NodeKind::Namespace, &namespace.name));
        for link in namespace.links.iter().filter(|link| link.kind != LinkKind::Loopback) {
            graph.nodes.push(interface(&place, link, None));
            let id = interface_id(&place, &link.name);
            if let Some(master) = observed.master_name(&place, link) {
                graph.edge(id.clone(), interface_id(&place, master), EdgeKind::Port);
            }
            graph.edge(id, namespace_id(&namespace.name), EdgeKind::Inside);
        }
    }
}

/// Each pair once, whichever of its ends is met first.
fn pairs(graph: &mut Graph, observed: &Observed) {
    let mut seen = BTreeSet::new();
    for (place, link) in observed.everywhere() {
        let Some((peer_place, peer)) = observed.peer_of(link) else { continue };
        let (a, b) = (interface_id(&place, &link.name), interface_id(peer_place, &peer.name));
        if seen.insert(if a < b { (a.clone(), b.clone()) } else { (b.clone(), a.clone()) }) {
            graph.edge(a, b, EdgeKind::Veth);
        }
    }
}

fn uplink(graph: &mut Graph, source: Source<'_>) {
    let by_index = |index| source.observed.links.iter().find(|link| link.index == index);
    let Some(link) = source.observed.default_route.and_then(by_index) else { return };
    graph.nodes.push(plain(OUTSIDE.to_owned(), NodeKind::Outside, "outside"));
    graph.edge(OUTSIDE.to_owned(), interface_id(&Place::Here, &link.name), EdgeKind::Uplink);
}

fn forwards(graph: &mut Graph, source: Source<'_>) {
    for rule in source.forwards.iter().filter(|rule| rule.enabled) {
        let (Some(inside), Some(port), Some(external)) = (&rule.dest_ip, rule.dest_port, rule.source_port)
        else {
            continue;
        };
        let to = owner(inside, source.observed);
        let from = interface_id(&Place::Here, &rule.interface);
        let label = format!("{} {external} → {inside}:{port}", rule.protocol);
        graph.edges.push(Edge { from, to, kind: EdgeKind::Forward, label: Some(label) });
    }
}

/// The interface on whose network an inside host is; the host itself when it is on none.
fn owner(inside: &str, observed: &Observed) -> String {
    let Ok(inside) = inside.parse::<IpAddr>() else { return HOST.to_owned() };
    (observed.links.iter())
        .filter(|link| link.kind != LinkKind::Loopback)
        .flat_map(|link| link.addresses.iter().map(move |address| (address.net, link)))
        .filter(|(net, _)| net.contains(&inside))
        .max_by_key(|(net, _)| net.prefix_len())
        .map_or(HOST.to_owned(), |(_, link)| interface_id(&Place::Here, &link.name))
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    fn node(id: &str, kind: NodeKind, name: &str) -> Node {
        Node { status: Some("up".into()), managed: true, ..plain(id.into(), kind, name) }
    }

    /// A host of `ports` taps and veths on bridges of at most 64 ports each; one name is hostile.
    pub(crate) fn sample(ports: usize) -> Graph {
        let mut graph = Graph::default();
        graph.nodes.push(plain(HOST.into(), NodeKind::Host, "worker-1"));
        graph.nodes.push(plain(OUTSIDE.into(), NodeKind::Outside, "outside"));
        let mut uplink = node("if:ens3", NodeKind::Interface, "ens3");
        uplink.interface_type = Some("physical".into());
        uplink.addresses = vec!["203.0.113.10/24".into(), "2001:db8::10/64".into()];
        graph.nodes.push(uplink);
        graph.edge(OUTSIDE.into(), "if:ens3".into(), EdgeKind::Uplink);
        graph.edge("if:ens3".into(), HOST.into(), EdgeKind::Route);
        for bridge in 0..ports.div_ceil(64) {
            let id = format!("if:br-{bridge}");
            let mut card = node(&id, NodeKind::Bridge, &format!("br-{bridge}"));
            card.addresses = vec![format!("192.168.{bridge}.1/24")];
            graph.nodes.push(card);
            graph.edge(id.clone(), HOST.into(), EdgeKind::Route);
            for port in (bridge * 64)..ports.min(bridge * 64 + 64) {
                let name = if port == 1 { "<&\"'>".into() } else { format!("tap-vm{port}") };
                let mut cell = node(&format!("if:{name}"), NodeKind::Interface, &name);
                cell.interface_type = Some(if port % 3 == 0 { "veth" } else { "tap" }.into());
                cell.vlans = match port % 5 {
                    0 => vec![],
                    1 => vec![100],
                    2 => vec![200],
                    3 => vec![100, 200, 300],
                    _ => vec![u16::try_from(port).unwrap() + 1000],
                };
                cell.held = port == 3;
                if port % 7 == 4 {
                    cell.status = Some("down".into());
                }
                graph.edge(cell.id.clone(), id.clone(), EdgeKind::Port);
                if port % 3 == 0 {
                    let namespace = if port % 2 == 0 { format!("lab{port}") } else { "router".into() };
                    let end = format!("if:{namespace}/eth{port}");
                    if !graph.nodes.iter().any(|node| node.id == namespace_id(&namespace)) {
                        graph.nodes.push(plain(namespace_id(&namespace), NodeKind::Namespace, &namespace));
                    }
                    let mut inner = node(&end, NodeKind::Interface, &format!("eth{port}"));
                    inner.namespace = Some(namespace.clone());
                    inner.interface_type = Some("veth".into());
                    graph.nodes.push(inner);
                    graph.edge(end.clone(), namespace_id(&namespace), EdgeKind::Inside);
                    graph.edge(cell.id.clone(), end, EdgeKind::Veth);
                }
                graph.nodes.push(cell);
            }
            for forward in 0..3 {
                graph.edges.push(Edge {
                    from: "if:ens3".into(),
                    to: id.clone(),
                    kind: EdgeKind::Forward,
                    label: Some(format!(
                        "tcp {} → 192.168.{bridge}.{}:22",
                        2200 + bridge * 10 + forward,
                        10 + forward
                    )),
                });
            }
        }
        for name in ["ens4", "wg0"] {
            let mut other = node(&format!("if:{name}"), NodeKind::Interface, name);
            other.interface_type = Some("physical".into());
            other.managed = false;
            graph.nodes.push(other);
        }
        graph
    }

    #[test]
    fn a_forward_leads_to_the_network_of_its_inside_host() {
        let kernel = crate::kernel::fake::FakeKernel::new(crate::kernel::fake::Faults::default());
        kernel.edit(|world| {
            let ens4 = world.links.iter_mut().find(|link| link.name == "ens4").unwrap();
            ens4.addresses.push(crate::kernel::links::Address::plain("10.1.0.1/24".parse().unwrap()));
        });
        let observed =
            futures_util::FutureExt::now_or_never(crate::kernel::Kernel::observe(&kernel)).unwrap().unwrap();
        assert_eq!(owner("10.1.0.9", &observed), "if:ens4");
        assert_eq!(owner("10.2.0.9", &observed), HOST);
        assert_eq!(owner("nonsense", &observed), HOST);
        let source = Source { hostname: "w", observed: &observed, interfaces: &[], forwards: &[] };
        let graph = graph(source);
        assert_eq!(
            graph.edges_of(EdgeKind::Uplink).map(|edge| edge.to.as_str()).collect::<Vec<_>>(),
            ["if:ens3"]
        );
        assert!(!graph.nodes.iter().any(|node| node.name == "lo"));
        assert_eq!(serde_json::to_value(&graph.nodes[0]).unwrap()["kind"], json!("host"));
    }
}
