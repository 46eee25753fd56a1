//! Forwards and masquerades: who owns a port, which rules are in the data plane.

use telecluster_common::maps::Timeouts;

use super::*;

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
async fn loopback_is_no_uplink() {
    let (engine, fake) = lab([]).await;
    let forward = ForwardRequest { interface: Some(name("lo")), ..request(2222, 2) };
    let (refused, message) = code(&engine, Change::CreateForward(forward)).await;
    assert_eq!(refused, Code::WrongKind);
    assert!(message.contains("lo leads to no other host"), "{message}");
    let Change::CreateMasquerade(spec) = masquerade(true) else { panic!("no masquerade") };
    let spec = MasqueradeSpec { output_interface: name("lo"), ..spec };
    assert_eq!(code(&engine, Change::CreateMasquerade(spec)).await.0, Code::WrongKind);
    assert!(fake.faults.take_steps().is_empty());
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

#[tokio::test(start_paused = true)]
async fn an_uplink_keeps_its_programs_a_little_longer_than_its_last_rule() {
    let (engine, fake) = lab([Change::CreateForward(request(8080, 5))]).await;
    let attached = || fake.dataplane.nat().attached.into_iter().collect::<Vec<_>>();
    engine.change(Change::DeleteForward(by_ports(8080, 5))).await.unwrap();
    // Whatever happens on the machine meanwhile.
    for _ in 0..10 {
        fake.kernel.notify();
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(attached(), [2]);
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert!(attached().is_empty());
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
        pool: Vec::new(),
        new_flows: 0,
        timeouts: Timeouts::RFC,
    };
    fake.dataplane.edit(|nat| drop(nat.rules.insert(Slot(0), foreign)));
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
#[expect(clippy::await_holding_lock, reason = "only the thread of a collection waits for it")]
async fn changes_do_not_wait_for_a_collection() {
    let (engine, fake) = lab([]).await;
    engine.change(masquerade(true)).await.unwrap();
    let held = fake.dataplane.hold_collections();
    tokio::time::pause();
    tokio::time::advance(std::time::Duration::from_secs(11)).await;
    tokio::time::resume();
    while fake.dataplane.nat().collections == 0 {
        tokio::task::yield_now().await;
    }
    // While it lasts, and no other one begins.
    let made = engine.change(Change::CreateForward(request(8080, 5)));
    assert!(tokio::time::timeout(std::time::Duration::from_secs(10), made).await.expect("an answer").is_ok());
    assert_eq!(fake.dataplane.nat().collections, 1);
    drop(held);
}
