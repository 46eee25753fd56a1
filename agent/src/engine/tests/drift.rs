//! What others do to our objects.

use super::*;

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

#[tokio::test(start_paused = true)]
async fn a_held_port_stays_held_while_spanning_tree_is_on_that_nobody_asked_for() {
    let (engine, fake) = lab([bridge("br-a"), veth("v1", "v2", Some("br-a"), Some("br-a"), None)]).await;
    let guarded = async |link: &str| {
        fake.kernel.observe().await.unwrap().link(link).unwrap().port.is_some_and(|port| port.guarded)
    };
    fake.kernel.act(&LinkStep::SetStp { bridge: "br-a".into(), stp: true }).unwrap();
    // Before the worker has heard of it.
    engine.change(bridge("br-b")).await.unwrap();
    assert!(guarded("v2").await);
    told(&fake).await;
    assert!(!fake.kernel.observe().await.unwrap().link("br-a").unwrap().stp());
    assert!(guarded("v2").await && !guarded("v1").await);
}

#[tokio::test(start_paused = true)]
async fn forwarding_that_somebody_switches_off_is_switched_on_again_while_rules_need_it() {
    let (engine, fake) = lab([masquerade(true)]).await;
    let forwarding = async |on: bool| {
        fake.kernel.edit(|world| (world.ip_forward, world.ipv6_forward) = (on, Some(false)));
        told(&fake).await;
        let seen = fake.kernel.observe().await.unwrap();
        (seen.ip_forward, seen.ipv6_forward)
    };
    assert_eq!(forwarding(false).await, (true, Some(false)), "IPv6 has no rule");
    engine.change(Change::FlushNat).await.unwrap();
    assert_eq!(forwarding(false).await, (false, Some(false)));
}

#[tokio::test(start_paused = true)]
async fn what_the_data_plane_does_not_take_is_reported_until_it_does() {
    let (engine, fake) = lab([masquerade(true)]).await;
    let address = crate::kernel::links::Address::plain("203.0.113.77/24".parse().unwrap());
    fake.kernel.edit(|world| {
        world.links.iter_mut().find(|link| link.name == "ens3").unwrap().addresses = vec![address];
    });
    let drift = async || engine.measurements(0).await.unwrap().drift;
    fake.faults.fail_after(0);
    told(&fake).await;
    assert!(!fake.faults.disarm());
    let [(what, problem)] = drift().await.try_into().unwrap();
    assert!(what == "dataplane" && problem.contains("address"), "{what}: {problem}");
    tokio::time::sleep(std::time::Duration::from_secs(10)).await;
    assert!(drift().await.is_empty());
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
        assert!(engine.measurements(0).await.unwrap().drift.is_empty(), "{what}");
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
    let drift = engine.measurements(0).await.unwrap().drift;
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
    assert!(engine.measurements(0).await.unwrap().drift.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_put_right_is_reported_until_it_is() {
    let (engine, fake) = everything().await;
    let drifted = || async {
        let drift = engine.measurements(0).await.unwrap().drift;
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
