//! What links may be made, deleted, and are shown as.

use super::*;

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

#[tokio::test(start_paused = true)]
async fn a_bridge_has_an_address_of_its_own_or_that_of_its_first_network_card() {
    let (engine, fake) = lab([bridge("br-a")]).await;
    let mac = async |link: &str| fake.kernel.observe().await.unwrap().link(link).unwrap().mac.unwrap();
    let own = mac("br-a").await;
    assert_eq!(own.0[0] & 0b11, 0b10, "{own} is locally administered, and of one station");
    engine.change(tap("tap0", Some("br-a"))).await.unwrap();
    assert_eq!(mac("br-a").await, own);

    // What somebody changes or deletes comes back as it was.
    let other = crate::kernel::links::Mac([2, 0, 0, 0, 0, 9]);
    for drift in
        [LinkStep::SetMac { link: "br-a".into(), mac: other }, LinkStep::DeleteLink(At::here("br-a"))]
    {
        fake.kernel.act(&drift).unwrap();
        told(&fake).await;
        assert_eq!(mac("br-a").await, own, "{drift}");
    }

    let before = fake.kernel.observe().await.unwrap();
    engine.change(add_port("br-a", "ens4")).await.unwrap();
    assert_eq!(mac("br-a").await, mac("ens4").await);
    told(&fake).await;
    assert_eq!(mac("br-a").await, mac("ens4").await);
    engine.change(Change::RemovePort { bridge: "br-a".into(), port: "ens4".into() }).await.unwrap();
    assert_eq!(mac("br-a").await, own);
    assert_eq!(fake.kernel.observe().await.unwrap(), before);
}

#[tokio::test]
async fn a_pair_is_the_same_told_from_either_end() {
    let (engine, fake) = lab([bridge("br-a"), veth("v1", "v2", Some("br-a"), None, None)]).await;
    let again = engine.change(veth("v2", "v1", None, Some("br-a"), None)).await.unwrap();
    assert!(!again.changed);
    let Object::Veth(shown) = again.object else { panic!("no pair") };
    assert_eq!((shown.name1.as_str(), shown.bridge1.as_deref()), ("v1", Some("br-a")));
    let (refused, message) = code(&engine, veth("v2", "v1", Some("br-a"), None, None)).await;
    assert_eq!(refused, Code::LinkExists);
    assert!(message.contains("name1 is v1, not v2"), "{message}");
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
