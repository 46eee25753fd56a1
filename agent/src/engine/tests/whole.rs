//! A change happens whole or not at all, twice is once, and survives what the machine does.

use super::*;

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

fn renumbered((view, like): (TunView, &TunView)) -> TunView {
    TunView { ifindex: like.ifindex, mac_address: like.mac_address.clone(), ..view }
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
