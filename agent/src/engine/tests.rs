//! The engine over a machine in memory: whole or not at all, twice is once, foreign stays foreign.

mod batch;

use super::*;
use crate::{
    kernel::{
        dataplane::{NatRule, NatType},
        links::{At, LinkKind, Place, PortState},
        routes::{Neighbour, Route},
        step::LinkStep,
    },
    model::{
        ForwardProtocol, LinkName, TunType,
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
        description: None,
        enabled: true,
    }
}

fn masquerade(enabled: bool) -> Change {
    Change::CreateMasquerade(MasqueradeSpec {
        source_network: "10.1.0.0/24".parse().unwrap(),
        output_interface: name("ens3"),
        enabled,
        nat_type: NatType::Restricted,
        port_parity: false,
        exclude_destinations: Vec::new(),
    })
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
    }
}

fn by_spec() -> MasqueradeSelector {
    MasqueradeSelector::Spec {
        source_network: "10.1.0.0/24".parse().unwrap(),
        output_interface: "ens3".into(),
    }
}

#[tokio::test(start_paused = true)]
async fn flushed_firewall_rules_come_back_and_nobody_is_fought_without_end() {
    let (engine, fake) = Engine::fake().await.unwrap();
    // Without rules of ours nobody is asked.
    fake.faults.take_steps();
    fake.filter.flush();
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert!(fake.faults.take_steps().is_empty());
    engine.change(firewall(25)).await.unwrap();
    let rules = fake.filter.rules();
    let mut back = 0;
    for _ in 0..12 {
        fake.filter.flush();
        tokio::time::sleep(std::time::Duration::from_millis(700)).await;
        back += usize::from(fake.filter.rules() == rules);
    }
    assert!((8..11).contains(&back), "{back} of 12 flushes within 8.4 s were mended");
    tokio::time::sleep(std::time::Duration::from_secs(11)).await;
    assert_eq!(fake.filter.rules(), rules, "the last flush is mended too, later");
}

#[tokio::test]
async fn a_change_that_fails_at_any_step_leaves_everything_as_it_was() {
    for (before, change) in every_change() {
        for n in 0.. {
            let (engine, fake) = lab(before.clone()).await;
            let kernel = fake.kernel.observe().await.unwrap();
            let (nat, stored) = (fake.dataplane.nat(), fake.store.load().unwrap());
            let filter = fake.filter.rules();
            fake.faults.fail_after(n);
            let outcome = engine.change(change.clone()).await;
            fake.faults.disarm();
            let steps = fake.faults.take_steps();
            // Past its last step, or in the upkeep that follows the answer and is tried again later.
            let Err(error) = outcome else {
                assert!(n > 0, "{change:?} made no step");
                break;
            };
            assert!(!error.message.contains("undone"), "{change:?} at {n}: {error}\n{steps:#?}");
            assert_eq!(fake.kernel.observe().await.unwrap(), kernel, "{change:?} at {n}\n{steps:#?}");
            assert_eq!(fake.dataplane.nat(), nat, "{change:?} at {n}\n{steps:#?}");
            assert_eq!(fake.filter.rules(), filter, "{change:?} at {n}");
            assert_eq!(fake.store.load().unwrap(), stored, "{change:?} at {n}");
            // And the engine has not lost count: the same change works now.
            engine.change(change.clone()).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_store_that_cannot_be_written_undoes_the_change() {
    for (before, change) in every_change() {
        let (engine, fake) = lab(before).await;
        let kernel = fake.kernel.observe().await.unwrap();
        let (nat, stored) = (fake.dataplane.nat(), fake.store.load().unwrap());
        let filter = fake.filter.rules();
        fake.store.set_broken(true);
        let error = engine.change(change.clone()).await.unwrap_err();
        assert_eq!(error.code, Code::StoreUnwritable, "{change:?}");
        assert_eq!(fake.kernel.observe().await.unwrap(), kernel, "{change:?}");
        assert_eq!(fake.dataplane.nat(), nat, "{change:?}");
        assert_eq!(fake.filter.rules(), filter, "{change:?}");
        fake.store.set_broken(false);
        assert_eq!(fake.store.load().unwrap(), stored);
    }
}

#[tokio::test]
async fn the_same_create_twice_changes_nothing_the_second_time() {
    let creates = every_change().into_iter().filter(|(_, change)| {
        matches!(
            change,
            Change::CreateBridge(_)
                | Change::CreateVeth(_)
                | Change::CreateForward(_)
                | Change::CreateMasquerade(_)
                | Change::CreateFirewall(_)
                | Change::AddPort { .. }
                | Change::MoveVethToBridge { .. }
                | Change::MoveVethToNamespace { .. }
                | Change::CreateTun(_)
                | Change::AttachTap { .. }
                | Change::AddTunAddress { .. }
                | Change::CreateVlanLink(_)
        )
    });
    for (before, change) in creates {
        let (engine, fake) = lab(before).await;
        assert!(engine.change(change.clone()).await.unwrap().changed, "{change:?}");
        fake.faults.take_steps();
        assert!(!engine.change(change.clone()).await.unwrap().changed, "{change:?}");
        assert!(fake.faults.take_steps().is_empty(), "{change:?}");
    }
}

#[tokio::test]
async fn everything_is_there_again_after_a_restart_and_after_a_reboot() {
    for (before, change) in every_change() {
        let (engine, fake) = lab(before).await;
        engine.change(change.clone()).await.unwrap();
        drop(engine);
        let (kernel, nat) = (fake.kernel.observe().await.unwrap(), fake.dataplane.nat());
        let filter = fake.filter.rules();
        fake.faults.take_steps();
        let engine = fake.start(Options::default()).await.unwrap();
        let steps = fake.faults.take_steps();
        assert_eq!(fake.kernel.observe().await.unwrap(), kernel, "{change:?}: {steps:?}");
        assert_eq!(fake.dataplane.nat().rules, nat.rules, "{change:?}");
        let (bridges, veths) = (engine.bridges().await.unwrap(), engine.veths().await.unwrap());
        let (tuns, vlans) = (engine.tuns().await.unwrap(), engine.vlan_links().await.unwrap());
        drop(engine);

        let rebooted = Fake { store: Arc::clone(&fake.store), ..Fake::new() };
        let engine = rebooted.start(Options::default()).await.unwrap();
        assert_eq!(rebooted.dataplane.nat().rules, nat.rules, "{change:?}");
        let needed: BTreeSet<_> = nat.rules.values().map(NatRule::uplink).collect();
        assert_eq!(rebooted.dataplane.nat().attached, needed, "{change:?}");
        assert_eq!(rebooted.filter.rules(), filter, "{change:?}");
        let views =
            |list: Vec<BridgeView>| list.into_iter().map(|b| (b.name, b.ports.len(), b.blocked_ports.len()));
        let again: Vec<_> = views(engine.bridges().await.unwrap()).collect();
        assert_eq!(again, views(bridges).collect::<Vec<_>>(), "{change:?}");
        assert_eq!(engine.veths().await.unwrap(), veths, "{change:?}");
        // But for what a new machine numbers anew.
        let tuns_again: Vec<_> =
            engine.tuns().await.unwrap().into_iter().zip(&tuns).map(renumbered).collect();
        assert_eq!(tuns_again, tuns, "{change:?}");
        let names = |list: Vec<VlanLinkView>| -> Vec<_> {
            list.into_iter().map(|v| (v.interface_name, v.parent_interface, v.vlan_id, v.bridge)).collect()
        };
        assert_eq!(names(engine.vlan_links().await.unwrap()), names(vlans), "{change:?}");
    }
}

/// An uplink with two addresses, a route of its own and a static neighbour.
fn enrich(fake: &Fake) {
    fake.kernel
        .act(&LinkStep::AddAddress { link: At::here("ens3"), address: "192.0.2.11/24".parse().unwrap() })
        .unwrap();
    let route = Route::new("198.51.100.0/24".parse().unwrap(), Some([192, 0, 2, 7].into()), 2);
    fake.kernel.act(&LinkStep::AddRoute(route)).unwrap();
    let mac = crate::kernel::links::Mac([2, 0, 0, 0, 0, 7]);
    let neighbour = Neighbour { interface: 2, ip: [192, 0, 2, 7].into(), mac };
    fake.kernel.act(&LinkStep::AddNeighbour(neighbour)).unwrap();
}

#[tokio::test]
async fn an_uplink_brings_its_addresses_routes_and_neighbours_and_takes_them_back() {
    let (engine, fake) = lab([bridge("br-ex")]).await;
    enrich(&fake);
    let before = fake.kernel.observe().await.unwrap();
    engine.change(add_port("br-ex", "ens3")).await.unwrap();
    let moved = fake.kernel.observe().await.unwrap();
    let (port, br) = (moved.link("ens3").unwrap(), moved.link("br-ex").unwrap());
    assert!(port.addresses.is_empty());
    assert_eq!(br.mac, port.mac, "the switch sees the address that it knows");
    let nets: Vec<_> = br.addresses.iter().map(|address| address.net.to_string()).collect();
    assert_eq!(nets, ["10.1.0.1/24", "192.0.2.10/24", "192.0.2.11/24"]);
    assert!(moved.routes.len() == 2 && moved.routes.iter().all(|route| route.interface == br.index));
    assert_eq!((moved.neighbours[0].interface, moved.default_route), (br.index, Some(br.index)));
    assert_eq!(engine.routes().await.unwrap()[0].interface.as_deref(), Some("br-ex"));

    let remove = Change::RemovePort { bridge: "br-ex".into(), port: "ens3".into() };
    engine.change(remove).await.unwrap();
    let after = fake.kernel.observe().await.unwrap();
    assert_eq!(after, before);
}

#[tokio::test]
async fn a_gateway_that_no_longer_answers_undoes_everything() {
    let remove = || Change::RemovePort { bridge: "br-ex".into(), port: "ens3".into() };
    let force = || Change::DeleteBridge { name: "br-ex".into(), force: true };
    for (before, change, deaf) in [
        (vec![bridge("br-ex")], add_port("br-ex", "ens3"), "br-ex"),
        (vec![bridge("br-ex"), add_port("br-ex", "ens3")], remove(), "ens3"),
        (vec![bridge("br-ex"), add_port("br-ex", "ens3")], force(), "ens3"),
    ] {
        let (engine, fake) = lab(before).await;
        enrich(&fake);
        let (kernel, stored) = (fake.kernel.observe().await.unwrap(), fake.store.load().unwrap());
        fake.kernel.deafen(deaf);
        let error = engine.change(change.clone()).await.unwrap_err();
        assert_eq!(error.code, Code::GatewayLost, "{change:?}: {error}");
        assert!(error.message.contains("192.0.2.1"), "{error}");
        assert_eq!(fake.kernel.observe().await.unwrap(), kernel, "{change:?}");
        assert_eq!(fake.store.load().unwrap(), stored);
    }
}

#[tokio::test]
async fn a_gateway_that_did_not_answer_before_is_not_waited_for() {
    let (engine, fake) = lab([bridge("br-ex")]).await;
    for link in ["ens3", "br-ex"] {
        fake.kernel.deafen(link);
    }
    engine.change(add_port("br-ex", "ens3")).await.unwrap();
    assert!(!fake.faults.take_steps().iter().any(|step| step.starts_with("reach")));
}

#[tokio::test(start_paused = true)]
async fn addresses_that_come_to_an_uplink_later_follow_it_and_lost_ones_come_back() {
    let (engine, fake) = lab([bridge("br-ex"), add_port("br-ex", "ens3")]).await;
    let has = |observed: Arc<Observed>, link: &str| -> Vec<String> {
        let link = observed.link(link).unwrap();
        link.addresses.iter().map(|address| address.net.to_string()).collect()
    };
    // What the host's own scripts do at boot.
    let address = "192.0.2.77/24".parse().unwrap();
    fake.kernel.act(&LinkStep::AddAddress { link: At::here("ens3"), address }).unwrap();
    told(&fake).await;
    let seen = fake.kernel.observe().await.unwrap();
    assert!(has(seen.clone(), "ens3").is_empty() && has(seen, "br-ex").contains(&"192.0.2.77/24".to_owned()));
    // And what somebody takes from the bridge, or the bridge itself.
    fake.kernel.act(&LinkStep::DeleteLink(At::here("br-ex"))).unwrap();
    told(&fake).await;
    let seen = fake.kernel.observe().await.unwrap();
    assert_eq!(has(seen.clone(), "br-ex"), ["10.1.0.1/24", "192.0.2.10/24", "192.0.2.77/24"]);
    assert_eq!(seen.default_route, Some(seen.link("br-ex").unwrap().index));
    assert!(engine.measurements().await.unwrap().drift.is_empty());
    drop(engine);
    let report =
        teardown(fake.kernel.clone(), fake.dataplane.clone(), fake.filter.clone(), fake.store.clone());
    assert!(report.await.unwrap().left.is_empty());
    assert!(has(fake.kernel.observe().await.unwrap(), "ens3").contains(&"192.0.2.77/24".to_owned()));
}

fn renumbered((view, like): (TunView, &TunView)) -> TunView {
    TunView { ifindex: like.ifindex, mac_address: like.mac_address.clone(), ..view }
}

#[tokio::test]
async fn a_tap_that_is_not_persistent_is_not_made_again_after_a_reboot_and_forgotten() {
    let spec = TunSpec { persistent: false, ..tap_spec("tap0") };
    let (engine, fake) = lab([Change::CreateTun(spec.clone())]).await;
    drop(engine);
    let engine = fake.start(Options::default()).await.unwrap();
    assert!(engine.tun("tap0").await.unwrap().managed, "a restart is no reboot");
    drop(engine);
    let rebooted = Fake { store: Arc::clone(&fake.store), ..Fake::new() };
    let engine = rebooted.start(Options::default()).await.unwrap();
    assert_eq!(engine.tun("tap0").await.unwrap_err().code, Code::TunNotFound);
    assert!(rebooted.store.load().unwrap().is_empty());
    // Its name is free again, for a bridge too.
    engine.change(bridge("tap0")).await.unwrap();
}

#[tokio::test]
async fn a_link_that_others_lie_on_is_not_deleted() {
    let (engine, fake) = lab([
        bridge("br-a"),
        tap("tap0", None),
        veth("v1", "v2", None, None, None),
        vlan_link("br-a", 5),
        vlan_link("tap0", 5),
        vlan_link("v2", 5),
        vlan_link("v2.5", 6),
    ])
    .await;
    for change in [
        Change::DeleteBridge { name: "br-a".into(), force: true },
        Change::DeleteTun { name: "tap0".into() },
        Change::DeleteVeth { name: "v1".into() },
        delete_vlan("v2", 5),
    ] {
        let (refused, message) = code(&engine, change.clone()).await;
        assert_eq!(refused, Code::LinkInUse, "{change:?}");
        assert!(message.contains(".5"), "{message}");
    }
    assert!(fake.faults.take_steps().is_empty());
}

#[tokio::test]
async fn a_vlan_is_one_per_parent_id_and_protocol() {
    let (engine, _fake) = lab([vlan_link("ens4", 5)]).await;
    let spec = |link: &str, protocol| {
        Change::CreateVlanLink(VlanLinkSpec {
            name: name(link),
            parent: name("ens4"),
            vlan_id: 5,
            protocol,
            bridge: None,
        })
    };
    let (refused, message) = code(&engine, spec("lab5", VlanProtocol::Dot1q)).await;
    assert_eq!(refused, Code::LinkExists);
    assert!(message.contains("ens4.5"), "{message}");
    engine.change(spec("outer", VlanProtocol::Dot1ad)).await.unwrap();
    // Two of that id: the delete has to say which.
    assert_eq!(code(&engine, delete_vlan("ens4", 5)).await.0, Code::InvalidField);
    let protocol = Some(VlanProtocol::Dot1ad);
    engine.change(Change::DeleteVlanLink { parent: "ens4".into(), vlan_id: 5, protocol }).await.unwrap();
    assert_eq!(engine.vlan_link("ens4", 5, None).await.unwrap().interface_name, "ens4.5");
    for (change, wanted) in [
        (vlan_link("lo", 5), Code::WrongKind),
        (vlan_link("nope", 5), Code::LinkNotFound),
        (vlan_link("ens4", 4095), Code::InvalidField),
        (delete_vlan("ens4", 6), Code::VlanNotFound),
        (delete_vlan("nope", 6), Code::VlanNotFound),
    ] {
        assert_eq!(code(&engine, change.clone()).await.0, wanted, "{change:?}");
    }
}

#[tokio::test]
async fn an_address_is_removed_by_what_names_it_alone() {
    let (engine, _fake) = lab([tap("tap0", None), address("tap0")]).await;
    let wide = Change::AddTunAddress { name: "tap0".into(), address: "10.2.0.1/16".parse().unwrap() };
    engine.change(wide).await.unwrap();
    let remove = |prefix| Change::RemoveTunAddress { name: "tap0".into(), ip: [10, 2, 0, 1].into(), prefix };
    assert_eq!(code(&engine, remove(None)).await.0, Code::InvalidField);
    assert_eq!(code(&engine, remove(Some(8))).await.0, Code::AddressNotFound);
    engine.change(remove(Some(16))).await.unwrap();
    engine.change(remove(None)).await.unwrap();
    assert!(engine.tun("tap0").await.unwrap().ip_addresses.is_empty());
}

#[tokio::test]
async fn names_that_are_taken_are_refused_with_the_difference() {
    let (engine, fake) = lab([bridge("br-a"), veth("v1", "v2", None, None, None)]).await;
    let (refused, message) = code(&engine, bridge_with("br-a", true)).await;
    assert_eq!(refused, Code::LinkExists);
    assert!(message.contains("stp is false, not true"), "{message}");
    let (refused, message) = code(&engine, veth("v1", "v3", None, None, None)).await;
    assert_eq!(refused, Code::LinkExists);
    assert!(message.contains("name2 is v2, not v3"), "{message}");
    assert_eq!(code(&engine, bridge("ens4")).await.0, Code::LinkExists);
    assert_eq!(code(&engine, bridge("v1")).await.0, Code::LinkExists);
    assert_eq!(code(&engine, veth("ens3", "v9", None, None, None)).await.0, Code::LinkExists);
    assert!(fake.faults.take_steps().is_empty());
}

#[tokio::test]
async fn foreign_links_are_shown_and_left_alone() {
    let (engine, fake) = lab([bridge("br-a")]).await;
    for step in [
        LinkStep::CreateBridge(crate::kernel::step::NewBridge {
            name: "virbr0".into(),
            ..Default::default()
        }),
        LinkStep::CreateVeth(["f1", "f2"].map(|end| crate::kernel::step::NewEnd::new(At::here(end)))),
    ] {
        fake.kernel.act(&step).unwrap();
    }
    // One is unmarked; the other bears the mark but is not in the store: neither is enough.
    fake.kernel.edit(|world| {
        world.links.iter_mut().filter(|link| link.name == "virbr0").for_each(|link| link.alias = None);
    });
    assert!(!engine.bridge("virbr0").await.unwrap().managed);
    assert!(!engine.veth("f2").await.unwrap().managed);
    for change in [
        Change::DeleteBridge { name: "virbr0".into(), force: true },
        add_port("virbr0", "ens4"),
        Change::DeleteVeth { name: "f1".into() },
        to_namespace("f1", "lab1"),
    ] {
        assert_eq!(code(&engine, change.clone()).await.0, Code::NotManaged, "{change:?}");
    }
    // Told to: a foreign link may become a port of ours.
    assert!(engine.change(add_port("br-a", "f1")).await.unwrap().changed);
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let (engine, _fake) = lab([bridge("br-a")]).await;
    let remove = Change::RemovePort { bridge: "br-a".into(), port: "ens4".into() };
    for (change, wanted) in [
        (Change::DeleteBridge { name: "nope".into(), force: false }, Code::BridgeNotFound),
        (Change::DeleteBridge { name: "ens3".into(), force: false }, Code::WrongKind),
        (add_port("nope", "ens4"), Code::BridgeNotFound),
        (add_port("br-a", "nope"), Code::LinkNotFound),
        (add_port("br-a", "lo"), Code::WrongKind),
        (remove, Code::NotAPort),
        (Change::DeleteVeth { name: "nope".into() }, Code::VethNotFound),
        (Change::DeleteVeth { name: "ens3".into() }, Code::WrongKind),
        (veth("v1", "v2", Some("nope"), None, None), Code::BridgeNotFound),
        (veth("v1", "v2", None, None, Some("nope")), Code::NamespaceNotFound),
        (Change::DeleteForward(ForwardSelector::Id("fwd-0".into())), Code::RuleNotFound),
        (Change::DeleteMasquerade(by_spec()), Code::RuleNotFound),
        (
            Change::CreateForward(ForwardRequest { interface: Some(name("nope")), ..request(1, 1) }),
            Code::LinkNotFound,
        ),
        (Change::CreateForward(request(0, 1)), Code::InvalidField),
        (veth("v1", "v2", None, Some("br-a"), Some("lab1")), Code::InvalidField),
        (veth("v1", "v1", None, None, None), Code::InvalidField),
    ] {
        assert_eq!(code(&engine, change.clone()).await.0, wanted, "{change:?}");
    }
}

#[tokio::test]
async fn a_bridge_with_ports_is_deleted_by_force_only_and_lets_its_ports_go() {
    let (engine, fake) = lab([bridge("br-a"), veth("v1", "v2", Some("br-a"), None, None)]).await;
    engine.change(add_port("br-a", "ens4")).await.unwrap();
    let (refused, message) = code(&engine, Change::DeleteBridge { name: "br-a".into(), force: false }).await;
    assert_eq!(refused, Code::BridgeHasPorts);
    assert!(message.contains("ens4, v1"), "{message}");
    engine.change(Change::DeleteBridge { name: "br-a".into(), force: true }).await.unwrap();
    let seen = fake.kernel.observe().await.unwrap();
    assert!(seen.link("br-a").is_none() && seen.link("v1").is_some() && seen.link("ens4").is_some());
    assert_eq!(engine.veth("v1").await.unwrap().bridge1, None);
}

#[tokio::test]
async fn both_ends_on_one_bridge_are_a_warning_and_a_held_port() {
    let (engine, fake) = lab([bridge("br-a")]).await;
    let outcome = engine.change(veth("v1", "v2", Some("br-a"), Some("br-a"), None)).await.unwrap();
    assert_eq!(outcome.warnings.len(), 1);
    let seen = engine.bridge("br-a").await.unwrap();
    assert_eq!((seen.ports.len(), seen.blocked_ports.len()), (2, 1));
    assert_eq!(seen.blocked_ports[0].state, "blocking");
    // Up only after its guard is on.
    let steps = fake.faults.take_steps();
    let position = |wanted: &str| steps.iter().position(|step| step == wanted).unwrap();
    assert!(position("hold port v2 of bridge br-a") < position("bring up v2"), "{steps:?}");
    // Let go when the ring is gone.
    engine.change(Change::RemovePort { bridge: "br-a".into(), port: "v1".into() }).await.unwrap();
    assert!(engine.bridge("br-a").await.unwrap().blocked_ports.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_held_port_that_slipped_is_held_again_on_an_event() {
    let (_engine, fake) = lab([bridge("br-a"), veth("v1", "v2", Some("br-a"), Some("br-a"), None)]).await;
    for up in [false, true] {
        fake.kernel.act(&LinkStep::SetUp { link: At::here("v1"), up }).unwrap();
    }
    let state = |seen: Arc<Observed>| seen.link("v2").unwrap().port.unwrap().state;
    assert_eq!(state(fake.kernel.observe().await.unwrap()), PortState::Forwarding);
    fake.kernel.notify();
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert_eq!(state(fake.kernel.observe().await.unwrap()), PortState::Listening);
}

/// What others do to our objects, each to a machine with one of every kind.
fn every_drift() -> Vec<(&'static str, LinkStep)> {
    let delete = |link: &str| LinkStep::DeleteLink(At::here(link));
    let down = |link: &str| LinkStep::SetUp { link: At::here(link), up: false };
    let out = |port: &str| LinkStep::SetMaster { port: port.into(), master: None };
    let flush = |link: &str, address: &str| LinkStep::RemoveAddress {
        link: At::here(link),
        address: address.parse().unwrap(),
    };
    let set_mtu = |link: &str| LinkStep::SetMtu { link: At::here(link), mtu: 1300 };
    vec![
        ("a bridge is deleted", delete("br-a")),
        ("a pair is deleted", delete("v1")),
        ("a ring is deleted", delete("w2")),
        ("a tap is deleted", delete("tap0")),
        ("a VLAN link is deleted", delete("tap0.5")),
        ("the parent of VLANs is deleted", delete("tap0")),
        ("a bridge is set down", down("br-a")),
        ("an end is set down", down("v1")),
        ("a held end is set down", down("w2")),
        (
            "a far end is set down",
            LinkStep::SetUp { link: At::new(Place::Named("lab1".into()), "v2"), up: false },
        ),
        ("a tap is set down", down("tap0")),
        ("an end is taken out", out("v1")),
        ("a held end is taken out", out("w2")),
        ("a tap is taken out", out("tap0")),
        ("a foreign port is taken out", out("ens4")),
        ("a VLAN link is taken out", out("ens4.9")),
        ("a bridge loses its address", flush("br-a", "10.1.0.1/24")),
        ("a tap loses its address", flush("tap0", "10.2.0.1/24")),
        ("a bridge has another mtu", set_mtu("br-a")),
        ("a tap has another mtu", set_mtu("tap0")),
        ("spanning tree is turned on", LinkStep::SetStp { bridge: "br-a".into(), stp: true }),
        (
            "an end is put into another bridge",
            LinkStep::SetMaster { port: "v1".into(), master: Some("br-b".into()) },
        ),
    ]
}

/// One of every kind, on `br-a`.
async fn everything() -> (Engine, Fake) {
    lab([
        bridge("br-a"),
        bridge("br-b"),
        veth("v1", "v2", Some("br-a"), None, Some("lab1")),
        veth("w1", "w2", Some("br-a"), Some("br-a"), None),
        tap("tap0", Some("br-a")),
        address("tap0"),
        vlan_link("tap0", 5),
        vlan_link("tap0.5", 6),
        vlan_link("ens4", 9),
        add_port("br-a", "ens4.9"),
        add_port("br-a", "ens4"),
    ])
    .await
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

#[tokio::test(start_paused = true)]
async fn what_others_do_to_our_objects_is_put_right_when_the_kernel_tells() {
    for (what, drift) in every_drift() {
        let (engine, fake) = everything().await;
        let before = fake.kernel.observe().await.unwrap();
        fake.kernel.act(&drift).unwrap();
        assert_ne!(by_name(&fake.kernel.observe().await.unwrap()), by_name(&before), "{what}: no drift");
        told(&fake).await;
        let steps = fake.faults.take_steps();
        assert_eq!(by_name(&fake.kernel.observe().await.unwrap()), by_name(&before), "{what}: {steps:#?}");
        assert!(engine.measurements().await.unwrap().drift.is_empty(), "{what}");
        // And that is all: the worker's own repair is nothing to repair.
        told(&fake).await;
        assert!(fake.faults.take_steps().is_empty(), "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_repair_that_fails_at_any_step_is_undone_and_tried_again() {
    for (what, drift) in every_drift() {
        for n in 0.. {
            let (_engine, fake) = everything().await;
            let before = by_name(&fake.kernel.observe().await.unwrap());
            fake.kernel.act(&drift).unwrap();
            fake.faults.fail_after(n);
            told(&fake).await;
            let failed = !fake.faults.disarm();
            // No event: the worker comes back to it by itself.
            tokio::time::sleep(std::time::Duration::from_secs(20)).await;
            assert_eq!(by_name(&fake.kernel.observe().await.unwrap()), before, "{what} at {n}");
            if !failed {
                break;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_changes_the_same_thing_again_and_again_is_not_fought_without_end() {
    let (engine, fake) = lab([bridge("br-a"), bridge("br-b")]).await;
    let mut repaired = 0;
    for _ in 0..60 {
        if fake.kernel.observe().await.unwrap().link("br-a").is_some() {
            fake.kernel.act(&LinkStep::DeleteLink(At::here("br-a"))).unwrap();
            repaired += 1;
        }
        fake.kernel.notify();
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
    assert!((8..=16).contains(&repaired), "{repaired} repairs in a minute");
    let drift = engine.measurements().await.unwrap().drift;
    assert!(
        matches!(drift.as_slice(), [(key, problem)] if key == "bridge/br-a" && problem.contains("again"))
    );
    // Another object is not punished for it.
    fake.kernel.act(&LinkStep::SetUp { link: At::here("br-b"), up: false }).unwrap();
    told(&fake).await;
    assert!(fake.kernel.observe().await.unwrap().link("br-b").unwrap().up);
    // And when the quarrel is over, all is well.
    tokio::time::sleep(std::time::Duration::from_secs(30)).await;
    assert!(fake.kernel.observe().await.unwrap().link("br-a").is_some());
    assert!(engine.measurements().await.unwrap().drift.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_put_right_is_reported_until_it_is() {
    let (engine, fake) = everything().await;
    let drifted = || async {
        let drift = engine.measurements().await.unwrap().drift;
        drift.into_iter().map(|(key, _)| key).collect::<Vec<_>>()
    };
    // A port that is not ours is gone; an end was given to another namespace; a stranger has our name.
    let v2 = At::new(Place::Named("lab1".into()), "v2");
    let to = Place::Named("lab2".into());
    fake.kernel.act(&LinkStep::Move { name: "v2".into(), from: v2.place.clone(), to: to.clone() }).unwrap();
    fake.kernel.act(&LinkStep::DeleteLink(At::here("br-b"))).unwrap();
    fake.kernel
        .act(&LinkStep::CreateBridge(crate::kernel::step::NewBridge {
            name: "br-b".into(),
            ..Default::default()
        }))
        .unwrap();
    fake.kernel.edit(|world| {
        world.links.iter_mut().filter(|link| link.name == "br-b").for_each(|link| link.alias = None);
        world.links.retain(|link| !link.name.starts_with("ens4"));
    });
    told(&fake).await;
    assert_eq!(drifted().await, ["bridge/br-b", "port/ens4", "veth/v1", "vlan/ens4.9"]);
    assert!(!engine.bridge("br-b").await.unwrap().managed, "the stranger's bridge is left alone");
    let problems = engine.veth("v1").await.unwrap().problems;
    assert!(problems[0].contains("it is now v2 in namespace lab2"), "{problems:?}");

    // Each is over when its reason is: brought back, deleted by those who made it, no longer wanted.
    fake.kernel.act(&LinkStep::Move { name: "v2".into(), from: to, to: v2.place }).unwrap();
    fake.kernel.act(&LinkStep::DeleteLink(At::here("br-b"))).unwrap();
    engine.change(Change::RemovePort { bridge: "br-a".into(), port: "ens4".into() }).await.unwrap();
    engine.change(delete_vlan("ens4", 9)).await.unwrap();
    told(&fake).await;
    assert!(drifted().await.is_empty(), "{:?}", drifted().await);
    assert!(engine.bridge("br-b").await.unwrap().managed);
    assert!(engine.veth("v1").await.unwrap().problems.is_empty());
}

#[tokio::test]
async fn one_external_port_has_one_owner() {
    let (engine, _fake) = lab([]).await;
    let owner = rule_id(&engine.change(Change::CreateForward(request(8080, 5))).await.unwrap());
    assert!(owner.starts_with("fwd-") && owner.len() == 16, "{owner}");
    for other in [
        request(8080, 6),
        ForwardRequest { protocol: ForwardProtocol::All, ..request(8080, 6) },
        ForwardRequest { external_ip: Some(IpAddr::from([192, 0, 2, 10])), ..request(8080, 6) },
        ForwardRequest { interface: Some(name("ens3")), ..request(8080, 6) },
    ] {
        let (refused, message) = code(&engine, Change::CreateForward(other)).await;
        assert_eq!(refused, Code::ForwardPortInUse);
        assert!(message.contains(&owner), "{message}");
    }
    for other in [
        ForwardRequest { protocol: ForwardProtocol::Udp, ..request(8080, 6) },
        ForwardRequest { interface: Some(name("ens4")), ..request(8080, 6) },
        request(8081, 6),
    ] {
        assert!(engine.change(Change::CreateForward(other)).await.unwrap().changed);
    }
}

#[tokio::test]
async fn ranges_that_meet_have_one_owner() {
    let (engine, _fake) = lab([]).await;
    let range = |first, last, host| ForwardRequest { external_port_end: Some(last), ..request(first, host) };
    let owner = rule_id(&engine.change(Change::CreateForward(range(5000, 5099, 5))).await.unwrap());
    for other in [
        request(5000, 6),
        request(5050, 5),
        request(5099, 6),
        range(4000, 5000, 6),
        range(5099, 6000, 6),
        range(5010, 5020, 6),
        range(4000, 6000, 6),
        range(5000, 5098, 5),
        ForwardRequest { protocol: ForwardProtocol::All, ..range(5050, 5060, 6) },
    ] {
        let (refused, message) = code(&engine, Change::CreateForward(other)).await;
        assert_eq!(refused, Code::ForwardPortInUse);
        assert!(message.contains(&owner) && message.contains("ports 5000-5099"), "{message}");
    }
    for other in [
        range(4000, 4999, 6),
        request(5100, 6),
        ForwardRequest { protocol: ForwardProtocol::Udp, ..range(5050, 5060, 6) },
        ForwardRequest { interface: Some(name("ens4")), ..range(5050, 5060, 6) },
    ] {
        assert!(engine.change(Change::CreateForward(other)).await.unwrap().changed);
    }
    assert!(!engine.change(Change::CreateForward(range(5000, 5099, 5))).await.unwrap().changed);
    engine.change(Change::DeleteForward(by_ports(5000, 5))).await.unwrap();
    assert!(engine.change(Change::CreateForward(request(5050, 5))).await.unwrap().changed);
}

#[tokio::test]
async fn other_sources_update_the_rule_and_end_its_flows() {
    let (engine, fake) = lab([]).await;
    let first = engine.change(Change::CreateForward(request(8080, 5))).await.unwrap();
    let some = ForwardRequest { source_cidrs: vec!["198.51.100.0/24".parse().unwrap()], ..request(8080, 5) };
    fake.faults.take_steps();
    let second = engine.change(Change::CreateForward(some)).await.unwrap();
    assert_eq!(rule_id(&first), rule_id(&second));
    let steps = fake.faults.take_steps();
    assert!(steps.iter().any(|step| step.contains("remove rule 0")), "{steps:?}");
    let rules = fake.dataplane.nat().rules;
    use telecluster_common::maps::rule;
    let flags: Vec<u32> = rules.values().map(NatRule::flags).collect();
    assert_eq!(flags, [rule::SOURCES | rule::HAIRPIN]);
}

#[tokio::test]
async fn tunnels_between_hosts_are_not_forwarded() {
    let (engine, _fake) = lab([]).await;
    for (first, last) in [(4789, 4789), (8000, 9000)] {
        let range = ForwardRequest { external_port_end: Some(last), ..request(first, 5) };
        let udp = ForwardRequest { protocol: ForwardProtocol::Udp, ..range.clone() };
        assert_eq!(code(&engine, Change::CreateForward(udp)).await.0, Code::ForwardPortReserved);
        assert!(engine.change(Change::CreateForward(range)).await.unwrap().changed, "VXLAN is udp");
    }
}

#[tokio::test]
async fn another_description_updates_the_rule_in_its_place() {
    let (engine, fake) = lab([]).await;
    let first = engine.change(Change::CreateForward(request(8080, 5))).await.unwrap();
    let described = ForwardRequest { description: Some("web".into()), ..request(8080, 5) };
    let second = engine.change(Change::CreateForward(described)).await.unwrap();
    assert!(second.changed);
    assert_eq!(rule_id(&first), rule_id(&second));
    assert_eq!(fake.dataplane.nat().rules.len(), 1);
    let rule = engine.rule(&rule_id(&first)).await.unwrap();
    assert_eq!(rule.description.as_deref(), Some("web"));
}

#[tokio::test(start_paused = true)]
async fn the_first_rule_attaches_and_some_time_after_the_last_one_they_are_detached() {
    let (engine, fake) = lab([]).await;
    engine.change(Change::CreateForward(request(8080, 5))).await.unwrap();
    engine.change(masquerade(true)).await.unwrap();
    let nat = fake.dataplane.nat();
    assert_eq!(nat.attached.len(), 1);
    assert_eq!(nat.addresses.uplinks, [(2, IpAddr::from([192, 0, 2, 10]))]);
    assert!(fake.kernel.observe().await.unwrap().ip_forward);
    engine.change(Change::DeleteForward(by_ports(8080, 5))).await.unwrap();
    assert_eq!(fake.dataplane.nat().attached.len(), 1);
    engine.change(Change::DeleteMasquerade(by_spec())).await.unwrap();
    assert_eq!(fake.dataplane.nat().attached.len(), 1, "the next rule may come soon");
    tokio::time::sleep(std::time::Duration::from_secs(15)).await;
    assert!(fake.dataplane.nat().attached.is_empty());
}

#[tokio::test]
async fn a_disabled_rule_is_stored_and_not_in_the_data_plane() {
    let (engine, fake) = lab([masquerade(false)]).await;
    assert!(fake.dataplane.nat().rules.is_empty() && fake.dataplane.nat().attached.is_empty());
    assert_eq!(engine.nat_status().await.unwrap().masquerade_rules.len(), 1);
    assert!(engine.change(masquerade(true)).await.unwrap().changed);
    assert_eq!(fake.dataplane.nat().rules.len(), 1);
}

#[tokio::test]
async fn the_workers_own_port_is_not_forwarded() {
    let fake = Fake::new();
    let engine = fake.start(Options { api_port: Some(8000), ..Options::default() }).await.unwrap();
    assert_eq!(code(&engine, Change::CreateForward(request(8000, 5))).await.0, Code::ForwardPortReserved);
    let udp = ForwardRequest { protocol: ForwardProtocol::Udp, ..request(8000, 5) };
    assert!(engine.change(Change::CreateForward(udp)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn rules_follow_their_uplink_into_a_bridge() {
    let (engine, fake) = lab([bridge("br-ex"), Change::CreateForward(request(8080, 5))]).await;
    let uplink = |nat: &crate::kernel::fake::Nat| nat.rules.values().next().map(|rule| rule.uplink());
    assert_eq!(uplink(&fake.dataplane.nat()), Some(2));
    let outcome = engine.change(add_port("br-ex", "ens3")).await.unwrap();
    assert!(outcome.message.contains("192.0.2.10/24"), "{}", outcome.message);
    let bridge = fake.kernel.observe().await.unwrap().link("br-ex").unwrap().index;
    assert_eq!(uplink(&fake.dataplane.nat()), Some(bridge));
    assert_eq!(fake.dataplane.nat().attached.into_iter().collect::<Vec<_>>(), [bridge]);
    // The interface vanishes: the rule sleeps, and wakes up when it is back.
    fake.kernel.edit(|world| world.links.retain(|link| link.name != "ens3"));
    fake.kernel.notify();
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert!(fake.dataplane.nat().rules.is_empty() && fake.dataplane.nat().attached.is_empty());
    assert!(engine.nat_status().await.unwrap().port_forwards[0].enabled);
}

#[tokio::test]
async fn slots_that_the_kernel_uses_are_never_given_away() {
    let fake = Fake::new();
    let foreign = NatRule::Masquerade {
        uplink: 2,
        source: "10.9.0.0/24".parse().unwrap(),
        nat: NatType::Restricted,
        parity: false,
        except: Vec::new(),
    };
    fake.dataplane.edit(|nat| drop(nat.rules.insert(crate::kernel::dataplane::Slot(0), foreign)));
    let engine = fake.start(Options::default()).await.unwrap();
    // Known by the kernel only: left by a worker that died before its commit, so it goes.
    assert!(fake.dataplane.nat().rules.is_empty());
    engine.change(masquerade(true)).await.unwrap();
    assert_eq!(fake.dataplane.nat().rules.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn garbage_is_collected_only_while_there_are_rules() {
    let (engine, fake) = lab([]).await;
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    assert_eq!(fake.dataplane.nat().collections, 0);
    engine.change(masquerade(true)).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(35)).await;
    assert!(fake.dataplane.nat().collections >= 3);
}

#[tokio::test]
async fn a_teardown_takes_ours_and_leaves_the_rest() {
    let clean = Fake::new();
    let before = clean.kernel.observe().await.unwrap();
    let (engine, fake) = lab([
        bridge("br-a"),
        veth("v1", "v2", Some("br-a"), None, Some("lab1")),
        add_port("br-a", "ens4"),
        Change::CreateForward(request(8080, 5)),
        masquerade(true),
    ])
    .await;
    drop(engine);
    let report =
        teardown(fake.kernel.clone(), fake.dataplane.clone(), fake.filter.clone(), fake.store.clone())
            .await
            .unwrap();
    assert!(report.left.is_empty(), "{report:?}");
    let after = fake.kernel.observe().await.unwrap();
    assert_eq!(after.links, before.links);
    assert_eq!(after.namespaces, before.namespaces);
    assert!(fake.dataplane.nat().rules.is_empty() && fake.dataplane.nat().attached.is_empty());
    assert!(fake.store.load().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_at_once_end_as_if_they_had_come_one_after_the_other() {
    let (engine, fake) = lab([]).await;
    let calls: Vec<_> = (0..64u8)
        .map(|n| {
            let engine = engine.clone();
            // Four targets compete for each of four ports.
            let wanted = Change::CreateForward(request(8000 + u16::from(n % 4), n / 16));
            tokio::spawn(async move { engine.change(wanted).await })
        })
        .collect();
    let mut made = 0;
    for call in calls {
        match call.await.unwrap() {
            Ok(outcome) => made += usize::from(outcome.changed),
            Err(error) => assert_eq!(error.code, Code::ForwardPortInUse),
        }
    }
    assert_eq!((made, fake.dataplane.nat().rules.len(), fake.store.load().unwrap().len()), (4, 4, 4));
}

/// Conflicting requests about the same few links.
fn quarrel(client: usize) -> Change {
    let bridges = ["br-a", "br-b"];
    let (one, other) = (bridges[client % 2], bridges[(client + 1) % 2]);
    match client % 8 {
        0 => bridge_with(one, client.is_multiple_of(3)),
        1 => Change::DeleteBridge { name: one.into(), force: client.is_multiple_of(3) },
        2 => tap("tap0", Some(one)),
        3 => attach("tap0", other),
        4 => Change::DetachTap { tap: "tap0".into() },
        5 => veth("v1", "v2", Some(one), Some(bridges[client / 8 % 2]), None),
        6 => Change::MoveVethToBridge { veth: "v2".into(), bridge: bridges[client / 8 % 2].into() },
        _ if client.is_multiple_of(3) => Change::DeleteTun { name: "tap0".into() },
        _ => Change::DeleteVeth { name: "v1".into() },
    }
}

/// What a change would come to on that machine: its writes, or why not.
async fn planned(fake: &Fake, change: &Change) -> Result<Vec<(String, Option<serde_json::Value>)>, Code> {
    let observed = fake.kernel.observe().await.unwrap();
    let state = State::read(fake.store.load().unwrap()).unwrap();
    let (nat, options) = (crate::plan::Installed::default(), Options::default());
    let world = crate::plan::World {
        observed: &observed,
        state: &state,
        nat: &nat,
        options: &options,
        fresh_id: "",
        reachable: &[],
        listeners: &[],
    };
    let plan = crate::kinds::plan(change, world).map_err(|error| error.code)?;
    let entry = |write: crate::state::Write| match write {
        crate::state::Write::Put(record) => (record.key(), Some(record.to_json().unwrap())),
        crate::state::Write::Forget(record) => (record.key(), None),
    };
    Ok(plan.writes.into_iter().map(entry).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn conflicting_requests_about_links_end_as_some_order_explains() {
    let (engine, fake) = lab([bridge("br-a")]).await;
    let first = fake.store.commits().len();
    let calls: Vec<_> = (0..64)
        .map(|client| {
            let engine = engine.clone();
            tokio::spawn(async move { (quarrel(client), engine.change(quarrel(client)).await) })
        })
        .collect();
    let (mut done, mut idle) = (Vec::new(), Vec::new());
    for call in calls {
        match call.await.unwrap() {
            (change, Ok(outcome)) if outcome.changed => done.push(change),
            (change, Ok(_)) => idle.push((change, None)),
            (change, Err(error)) => idle.push((change, Some(error.code))),
        }
    }
    // The same again, one after the other, in the order of the commits.
    let (serial, again) = lab([bridge("br-a")]).await;
    let mut commits = fake.store.commits().split_off(first).into_iter();
    loop {
        // Who was refused or had nothing to do must have come at a moment at which that is right.
        let mut unexplained = Vec::new();
        for (change, code) in idle {
            let explained = match (planned(&again, &change).await, code) {
                (Ok(writes), None) => writes.is_empty(),
                (Err(why), Some(code)) => why == code,
                (Ok(_), Some(_)) | (Err(_), None) => false,
            };
            if !explained {
                unexplained.push((change, code));
            }
        }
        idle = unexplained;
        let Some(commit) = commits.next() else { break };
        let mut whose = None;
        for (position, change) in done.iter().enumerate() {
            if planned(&again, change).await.is_ok_and(|writes| writes == commit) {
                whose = Some(position);
                break;
            }
        }
        let whose = whose.unwrap_or_else(|| panic!("nobody asked for {commit:?}"));
        assert!(serial.change(done.remove(whose)).await.unwrap().changed);
    }
    assert!(done.is_empty() && idle.is_empty(), "no order explains {done:?} {idle:?}");
    assert_eq!(
        by_name(&fake.kernel.observe().await.unwrap()),
        by_name(&again.kernel.observe().await.unwrap())
    );
    assert_eq!(fake.store.load().unwrap(), again.store.load().unwrap());
}

#[tokio::test]
async fn interfaces_are_told_by_their_kind() {
    let (engine, _fake) = lab([bridge("tap0"), veth("br1", "vlan5", None, None, None)]).await;
    let kinds: Vec<_> =
        engine.interfaces().await.unwrap().into_iter().map(|link| (link.name, link.kind)).collect();
    for (name, kind) in [("tap0", "bridge"), ("br1", "veth"), ("ens3", "physical"), ("lo", "virtual")] {
        assert!(kinds.contains(&(name.to_owned(), kind.to_owned())), "{name}: {kinds:?}");
    }
    assert_eq!(LinkKind::Physical.label(), "physical");
}
