//! An uplink in a bridge, and its way back.

use super::*;

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

/// A veth that somebody else made is the uplink of a container.
fn container() -> Fake {
    let fake = Fake::new();
    fake.kernel.edit(|world| {
        world.links.iter_mut().filter(|link| link.name == "ens3").for_each(|link| link.kind = LinkKind::Veth);
    });
    enrich(&fake);
    fake
}

#[tokio::test]
async fn an_uplink_that_is_a_veth_moves_with_what_it_carries_or_not_at_all() {
    let fake = container();
    let engine = fake.start(Options::default()).await.unwrap();
    for name in ["br-ex", "br-in"] {
        engine.change(bridge(name)).await.unwrap();
    }
    let before = fake.kernel.observe().await.unwrap();
    let move_to = |bridge: &str| Change::MoveVethToBridge { veth: "ens3".into(), bridge: bridge.into() };
    engine.change(move_to("br-ex")).await.unwrap();
    let moved = fake.kernel.observe().await.unwrap();
    assert!(moved.link("ens3").unwrap().addresses.is_empty());
    assert_eq!(moved.default_route, Some(moved.link("br-ex").unwrap().index));

    assert_eq!(code(&engine, move_to("br-in")).await.0, Code::PortInUse);
    assert_eq!(fake.kernel.observe().await.unwrap(), moved);

    engine.change(Change::RemovePort { bridge: "br-ex".into(), port: "ens3".into() }).await.unwrap();
    assert_eq!(fake.kernel.observe().await.unwrap(), before);

    fake.kernel.deafen("br-ex");
    assert_eq!(code(&engine, move_to("br-ex")).await.0, Code::GatewayLost);
    assert_eq!(fake.kernel.observe().await.unwrap(), before);
}

#[tokio::test]
async fn an_uplink_that_is_a_tap_gets_back_what_it_brought_when_it_is_detached() {
    let fake = Fake::new();
    fake.kernel.edit(|world| {
        world.links.iter_mut().filter(|link| link.name == "ens3").for_each(|link| link.kind = LinkKind::Tap);
    });
    enrich(&fake);
    let engine = fake.start(Options::default()).await.unwrap();
    engine.change(bridge("br-ex")).await.unwrap();
    let before = fake.kernel.observe().await.unwrap();
    engine.change(Change::AttachTap { tap: "ens3".into(), bridge: "br-ex".into() }).await.unwrap();
    assert!(fake.kernel.observe().await.unwrap().link("ens3").unwrap().addresses.is_empty());
    let detach = || Change::DetachTap { tap: "ens3".into() };

    fake.kernel.deafen("ens3");
    assert_eq!(code(&engine, detach()).await.0, Code::GatewayLost);
    fake.kernel.hear("ens3");
    engine.change(detach()).await.unwrap();
    assert_eq!(fake.kernel.observe().await.unwrap(), before);
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
    assert!(engine.measurements(0).await.unwrap().drift.is_empty());
    drop(engine);
    let report =
        teardown(fake.kernel.clone(), fake.dataplane.clone(), fake.filter.clone(), fake.store.clone());
    assert!(report.await.unwrap().left.is_empty());
    assert!(has(fake.kernel.observe().await.unwrap(), "ens3").contains(&"192.0.2.77/24".to_owned()));
}
