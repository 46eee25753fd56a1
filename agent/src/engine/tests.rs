//! The engine over a machine in memory: whole or not at all, twice is once, foreign stays foreign.

mod batch;
mod drift;
mod links;
mod rules;
mod together;
mod uplink;
mod whole;

use super::*;
use crate::{
    kernel::{
        dataplane::{NatRule, NatType},
        links::{At, LinkKind, Place, PortState},
        routes::{Neighbour, Route},
        step::LinkStep,
    },
    model::{
        FlowTimeouts, ForwardProtocol, LinkName, TunType,
        firewall::{Chain, FirewallAction, FirewallProtocol},
    },
    store::Store,
};

fn name(name: &str) -> LinkName {
    LinkName::new(name).unwrap()
}

fn bridge(bridge: &str) -> Change {
    bridge_with(bridge, false)
}

fn bridge_with(bridge: &str, stp: bool) -> Change {
    let addresses = vec!["10.1.0.1/24".parse().unwrap()];
    Change::CreateBridge(BridgeSpec {
        kind: crate::model::BridgeType::Linux,
        backend: crate::model::BridgeType::Linux,
        name: name(bridge),
        stp,
        mtu: Some(1400),
        addresses,
        mac: None,
    })
}

fn veth_spec(a: &str, b: &str) -> VethSpec {
    VethSpec {
        name1: name(a),
        name2: name(b),
        bridge1: None,
        bridge2: None,
        namespace1: None,
        namespace2: None,
    }
}

fn veth(a: &str, b: &str, bridge1: Option<&str>, bridge2: Option<&str>, namespace2: Option<&str>) -> Change {
    Change::CreateVeth(VethSpec {
        bridge1: bridge1.map(name),
        bridge2: bridge2.map(name),
        namespace2: namespace2.map(|ns| NamespaceName::new(ns).unwrap()),
        ..veth_spec(a, b)
    })
}

fn tap_spec(tap: &str) -> TunSpec {
    TunSpec {
        name: name(tap),
        kind: TunType::Tap,
        owner: Some(1000),
        group: None,
        bridge: None,
        persistent: true,
        multi_queue: true,
        vnet_hdr: true,
        mtu: Some(1400),
        addresses: Vec::new(),
    }
}

fn tap(tap: &str, bridge: Option<&str>) -> Change {
    Change::CreateTun(TunSpec { bridge: bridge.map(name), ..tap_spec(tap) })
}

fn vlan_link(parent: &str, vlan_id: u16) -> Change {
    Change::CreateVlanLink(VlanLinkSpec {
        name: name(&format!("{parent}.{vlan_id}")),
        parent: name(parent),
        vlan_id,
        protocol: VlanProtocol::Dot1q,
        bridge: None,
    })
}

fn address(tap: &str) -> Change {
    Change::AddTunAddress { name: tap.into(), address: "10.2.0.1/24".parse().unwrap() }
}

fn request(port: u16, last: u8) -> ForwardRequest {
    ForwardRequest {
        interface: None,
        external_ip: None,
        external_port: port,
        external_port_end: None,
        internal_ip: IpAddr::from([10, 1, 0, last]),
        internal_port: 80,
        protocol: ForwardProtocol::Tcp,
        source_cidrs: Vec::new(),
        hairpin: true,
        new_flows_per_second: 0,
        timeouts: FlowTimeouts::default(),
        description: None,
        enabled: true,
    }
}

fn masquerade(enabled: bool) -> Change {
    // As it is when nothing else is asked for.
    let spec = serde_json::json!({ "source_network": "10.1.0.0/24", "output_interface": "ens3", "enabled": enabled });
    Change::CreateMasquerade(serde_json::from_value(spec).unwrap())
}

fn firewall(port: u16) -> Change {
    let spec = FirewallSpec {
        chain: Chain::Forward,
        action: FirewallAction::Drop,
        protocol: FirewallProtocol::Tcp,
        source: Some("10.0.0.0/8".parse().unwrap()),
        destination: None,
        port: Some(port),
        interface: None,
        description: None,
    };
    let caller = Caller { address: IpAddr::from([127, 0, 0, 1]), force: false };
    Change::CreateFirewall(NewFirewallRule { spec, caller })
}

fn add_port(bridge: &str, port: &str) -> Change {
    Change::AddPort { bridge: bridge.into(), port: port.into() }
}

async fn lab(changes: impl IntoIterator<Item = Change>) -> (Engine, Fake) {
    let (engine, fake) = Engine::fake().await.unwrap();
    for change in changes {
        engine.change(change).await.unwrap();
    }
    fake.faults.take_steps();
    (engine, fake)
}

async fn code(engine: &Engine, change: Change) -> (Code, String) {
    let error = engine.change(change).await.unwrap_err();
    (error.code, error.message)
}

fn rule_id(outcome: &Outcome) -> String {
    match &outcome.object {
        Object::Rule(rule) => rule.id.clone(),
        other => panic!("{other:?} is no rule"),
    }
}

/// Every change, each with what must be there first.
fn every_change() -> Vec<(Vec<Change>, Change)> {
    let two = || vec![bridge("br-a"), bridge("br-b")];
    let with = |mut before: Vec<Change>, more: Vec<Change>| {
        before.extend(more);
        before
    };
    let pair = || veth("v1", "v2", Some("br-a"), None, None);
    let ring = || veth("v1", "v2", Some("br-a"), Some("br-a"), None);
    vec![
        (vec![], bridge("br-a")),
        (two(), Change::DeleteBridge { name: "br-a".into(), force: false }),
        (
            with(two(), vec![ring(), add_port("br-a", "ens4")]),
            Change::DeleteBridge { name: "br-a".into(), force: true },
        ),
        (two(), add_port("br-a", "ens4")),
        (with(two(), vec![pair()]), add_port("br-a", "v2")),
        (with(two(), vec![ring()]), Change::RemovePort { bridge: "br-a".into(), port: "v1".into() }),
        (with(two(), vec![ring()]), Change::RemovePort { bridge: "br-a".into(), port: "v2".into() }),
        (two(), pair()),
        (two(), ring()),
        (two(), veth("v1", "v2", Some("br-a"), None, Some("lab1"))),
        (with(two(), vec![ring()]), Change::DeleteVeth { name: "v2".into() }),
        (
            with(two(), vec![veth("v1", "v2", Some("br-a"), None, Some("lab1"))]),
            Change::DeleteVeth { name: "v1".into() },
        ),
        (with(two(), vec![pair()]), Change::MoveVethToBridge { veth: "v1".into(), bridge: "br-b".into() }),
        (with(two(), vec![ring()]), Change::MoveVethToBridge { veth: "v2".into(), bridge: "br-b".into() }),
        (
            with(two(), vec![veth("v1", "v2", Some("br-a"), Some("br-b"), None)]),
            Change::MoveVethToBridge { veth: "v2".into(), bridge: "br-a".into() },
        ),
        (
            with(two(), vec![veth("v1", "v2", Some("br-a"), None, Some("lab1"))]),
            Change::MoveVethToBridge { veth: "v2".into(), bridge: "br-a".into() },
        ),
        (with(two(), vec![ring()]), to_namespace("v1", "lab1")),
        (with(two(), vec![veth("v1", "v2", None, None, Some("lab1"))]), to_namespace("v2", "lab2")),
        (two(), tap("tap0", Some("br-a"))),
        (vec![], Change::CreateTun(TunSpec { kind: TunType::Tun, ..tap_spec("tun0") })),
        (
            with(two(), vec![tap("tap0", Some("br-a")), address("tap0")]),
            Change::DeleteTun { name: "tap0".into() },
        ),
        (with(two(), vec![tap("tap0", None)]), attach("tap0", "br-a")),
        (with(two(), vec![tap("tap0", Some("br-b"))]), Change::DetachTap { tap: "tap0".into() }),
        (vec![tap("tap0", None)], address("tap0")),
        (
            vec![tap("tap0", None), address("tap0")],
            Change::RemoveTunAddress { name: "tap0".into(), ip: [10, 2, 0, 1].into(), prefix: None },
        ),
        (
            with(two(), vec![tap("tap0", Some("br-a"))]),
            Change::DeleteBridge { name: "br-a".into(), force: true },
        ),
        (two(), add_port("br-a", "ens3")),
        (
            with(two(), vec![add_port("br-a", "ens3")]),
            Change::RemovePort { bridge: "br-a".into(), port: "ens3".into() },
        ),
        (
            with(two(), vec![add_port("br-a", "ens3"), add_port("br-a", "ens4")]),
            Change::DeleteBridge { name: "br-a".into(), force: true },
        ),
        (vec![], vlan_link("ens4", 100)),
        (vec![vlan_link("ens4", 100)], vlan_link("ens4.100", 7)),
        (vec![vlan_link("ens4", 100)], delete_vlan("ens4", 100)),
        (with(two(), vec![vlan_link("ens4", 100)]), add_port("br-a", "ens4.100")),
        (with(two(), vec![vlan_link("ens4", 100), add_port("br-a", "ens4.100")]), delete_vlan("ens4", 100)),
        (vec![], Change::CreateForward(request(8080, 5))),
        (vec![masquerade(true)], Change::CreateForward(request(8080, 5))),
        (
            vec![Change::CreateForward(request(8080, 5))],
            Change::CreateForward(ForwardRequest { enabled: false, ..request(8080, 5) }),
        ),
        (vec![Change::CreateForward(request(8080, 5))], Change::DeleteForward(by_ports(8080, 5))),
        (vec![], masquerade(true)),
        (vec![masquerade(true)], masquerade(false)),
        (vec![masquerade(true)], Change::DeleteMasquerade(by_spec())),
        (vec![masquerade(true), Change::CreateForward(request(8080, 5))], Change::FlushNat),
        (vec![], firewall(25)),
        (vec![firewall(25)], firewall(26)),
        (vec![firewall(25), firewall(26)], Change::FlushFirewall),
    ]
}

fn attach(tap: &str, bridge: &str) -> Change {
    Change::AttachTap { tap: tap.into(), bridge: bridge.into() }
}

fn delete_vlan(parent: &str, vlan_id: u16) -> Change {
    Change::DeleteVlanLink { parent: parent.into(), vlan_id, protocol: None }
}

fn to_namespace(veth: &str, namespace: &str) -> Change {
    Change::MoveVethToNamespace { veth: veth.into(), namespace: NamespaceName::new(namespace).unwrap() }
}

fn by_ports(port: u16, last: u8) -> ForwardSelector {
    ForwardSelector::Ports {
        external_port: port,
        internal_ip: IpAddr::from([10, 1, 0, last]),
        internal_port: 80,
        protocol: None,
    }
}

fn by_spec() -> MasqueradeSelector {
    MasqueradeSelector::Spec {
        source_network: "10.1.0.0/24".parse().unwrap(),
        output_interface: "ens3".into(),
    }
}

/// A machine but for the numbers that a link made anew has.
fn by_name(observed: &Observed) -> Vec<String> {
    let name = |place: &Place, index: Option<u32>| {
        index.and_then(|index| observed.by_index(place, index)).map(|link| link.name.clone())
    };
    let mut lines: Vec<_> = observed
        .everywhere()
        .map(|(place, link)| {
            let (master, parent) = (name(&place, link.master), name(&place, link.parent));
            let addresses: Vec<_> = link.addresses.iter().map(|address| address.net.to_string()).collect();
            let at = At::new(place, &link.name);
            let guarded = link.port.map(|port| port.guarded);
            format!(
                "{at} {:?} up={} {:?} mtu={} {:?} {master:?} {parent:?} {addresses:?} {guarded:?}",
                link.kind, link.up, link.operstate, link.mtu, link.alias
            )
        })
        .collect();
    lines.sort();
    lines
}

async fn told(fake: &Fake) {
    fake.kernel.notify();
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
}
