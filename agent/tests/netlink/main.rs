//! The engine over the real kernel. Each test has a network namespace of its own, on a thread of its own;
//! everything in it vanishes with the thread. Needs root.

#![expect(clippy::unwrap_used, reason = "a helper of a test that cannot go on has failed it")]

mod lab;
mod places;
mod rings;

use std::{net::IpAddr, sync::Arc, time::Duration};

use telecluster_worker::{
    engine::{Change, Object, teardown},
    error::Code,
    kernel::{
        Kernel,
        links::{At, LinkKind, Links, Observed, OperState, Place, PortState},
        netlink::NetlinkKernel,
        step::{LinkStep, NewBridge, NewTun},
    },
    model::{BridgeSpec, BridgeType, NamespaceName, TunSpec, TunType, VethSpec},
    store::{MemoryStore, Store},
};

use self::lab::{
    Lab, Named, bridge, delete, eventually, in_namespace, masquerade, name, no_filter, run, tap, veth,
};

#[test]
fn a_bridge_is_what_the_kernel_says() {
    in_namespace(|| async {
        let lab = Lab::new().await;
        let spec = BridgeSpec {
            kind: BridgeType::Linux,
            backend: BridgeType::Linux,
            name: name("br-vm"),
            stp: true,
            mtu: Some(1400),
            addresses: vec!["10.1.0.1/24".parse().unwrap(), "fd00::1/64".parse().unwrap()],
            mac: None,
        };
        let outcome = lab.change(Change::CreateBridge(spec.clone())).await;
        let Object::Bridge(view) = outcome.object else { panic!("no bridge") };
        assert!(view.stp && view.managed);
        assert_eq!(view.mtu, 1400);
        assert!(view.addresses.contains(&"10.1.0.1/24".to_owned()), "{view:?}");
        assert!(view.addresses.contains(&"fd00::1/64".to_owned()), "{view:?}");
        assert!(!lab.change(Change::CreateBridge(spec)).await.changed);
        lab.change(delete("br-vm")).await;
        assert_eq!(lab.code(delete("br-vm")).await, Code::BridgeNotFound);
        assert_eq!(lab.links().await.len(), 1, "only lo is left");
    });
}

#[test]
fn a_pair_in_a_bridge_carries_and_goes_whole() {
    in_namespace(|| async {
        let lab = Lab::new().await;
        lab.change(bridge("br-vm")).await;
        lab.change(Change::CreateVeth(veth("v1", "v2", [Some("br-vm"), None]))).await;
        eventually("both ends are up", || async {
            let view = lab.engine.veth("v2").await.unwrap();
            view.status1 == "up" && view.status2.as_deref() == Some("up")
        })
        .await;
        let view = lab.engine.veth("v2").await.unwrap();
        assert_eq!((view.name1.as_str(), view.peer1.as_deref()), ("v1", Some("v2")));
        assert_eq!(view.bridge1.as_deref(), Some("br-vm"));
        lab.change(Change::MoveVethToBridge { veth: "v2".into(), bridge: "br-vm".into() }).await;
        lab.change(Change::DeleteVeth { name: "v2".into() }).await;
        assert_eq!(lab.links().await.len(), 2);
    });
}

#[test]
fn a_tap_is_what_the_kernel_says() {
    in_namespace(|| async {
        let lab = Lab::new().await;
        lab.change(bridge("br-vm")).await;
        let Object::Tun(view) = lab.change(Change::CreateTun(tap("tap0", Some("br-vm")))).await.object else {
            panic!("no tap")
        };
        assert_eq!((view.owner_id, view.group_id, view.mtu), (Some(1000), Some(1001), 1400));
        assert!(view.multi_queue && view.vnet_hdr && view.managed && !view.persistent);
        assert_eq!((view.bridge.as_deref(), view.status.as_str()), (Some("br-vm"), "down"));
        assert!(!lab.change(Change::CreateTun(tap("tap0", Some("br-vm")))).await.changed);
        // Nobody has it open, and it is there.
        assert!(lab.kernel.observe().await.unwrap().link("tap0").unwrap().tun.unwrap().persist);

        let plain = TunSpec {
            owner: None,
            group: None,
            multi_queue: false,
            vnet_hdr: false,
            mtu: None,
            ..tap("tun0", None)
        };
        let tun = TunSpec { kind: TunType::Tun, ..plain };
        let Object::Tun(view) = lab.change(Change::CreateTun(tun)).await.object else { panic!("no tun") };
        assert_eq!((view.kind, view.owner, view.group, view.mac_address), (TunType::Tun, None, None, None));
        assert!(!view.multi_queue && !view.vnet_hdr);
        assert_eq!(view.mtu, 1500);

        // One that somebody else made, with a program that has it open no longer.
        run("ip", &["tuntap", "add", "dev", "tap9", "mode", "tap", "user", "12345"]);
        let view = lab.engine.tun("tap9").await.unwrap();
        assert_eq!((view.owner.as_deref(), view.persistent, view.managed), (Some("12345"), true, false));
        assert_eq!(lab.code(Change::CreateTun(tap("tap9", None))).await, Code::LinkExists);
        assert_eq!(lab.code(Change::DeleteTun { name: "tap9".into() }).await, Code::NotManaged);
        lab.change(Change::DeleteTun { name: "tap0".into() }).await;
        lab.change(Change::DeleteTun { name: "tun0".into() }).await;
        assert_eq!(lab.links().await.len(), 3, "lo, br-vm, tap9");
        // A name that is taken between the look and the step is refused by the kernel, and not adopted.
        let taken = LinkStep::CreateTun(NewTun { name: "tap9".into(), tap: true, ..NewTun::default() });
        let error = lab.kernel.kernel.apply(&taken).await.unwrap_err();
        assert_eq!(error.errno, Some(nix::errno::Errno::EEXIST as i32));
    });
}

#[test]
fn an_end_goes_to_a_namespace_and_back() {
    in_namespace(|| async {
        let (one, two) = (Named::new(), Named::new());
        let lab = Lab::new().await;
        lab.change(bridge("br-vm")).await;
        // The name of the far end is taken here, and free there.
        run("ip", &["link", "add", "eth0", "type", "bridge"]);
        let spec = VethSpec { namespace2: Some(one.name()), ..veth("v1", "eth0", [Some("br-vm"), None]) };
        let Object::Veth(view) = lab.change(Change::CreateVeth(spec.clone())).await.object else {
            panic!("no pair")
        };
        assert_eq!(view.namespace2.as_deref(), Some(one.0.as_str()));
        assert!(view.managed);
        assert!(!lab.change(Change::CreateVeth(spec)).await.changed);
        run("ip", &["netns", "exec", &one.0, "ip", "addr", "add", "10.1.0.2/24", "dev", "eth0"]);
        run("ip", &["addr", "add", "10.1.0.1/24", "dev", "br-vm"]);
        run("ping", &["-c", "1", "-W", "2", "10.1.0.2"]);

        // The near end too: now the pair joins two namespaces, and is still seen.
        lab.change(Change::MoveVethToNamespace { veth: "v1".into(), namespace: two.name() }).await;
        let view = lab.engine.veth("v1").await.unwrap();
        assert_eq!(view.namespace1.as_deref(), Some(two.0.as_str()));
        assert_eq!(view.namespace2.as_deref(), Some(one.0.as_str()));
        assert_eq!((view.bridge1, lab.engine.veths().await.unwrap().len()), (None, 1));

        let back = Change::MoveVethToBridge { veth: "v1".into(), bridge: "br-vm".into() };
        let Object::Veth(view) = lab.change(back).await.object else { panic!("no pair") };
        assert_eq!((view.namespace1, view.bridge1.as_deref()), (None, Some("br-vm")));
        lab.change(Change::DeleteVeth { name: "v1".into() }).await;
        assert!(lab.engine.veths().await.unwrap().is_empty());
        let missing = NamespaceName::new("tct-nobody").unwrap();
        let spec = VethSpec { namespace1: Some(missing), ..veth("v1", "v2", [None, None]) };
        assert_eq!(lab.code(Change::CreateVeth(spec)).await, Code::NamespaceNotFound);
    });
}

#[test]
fn a_change_that_fails_at_any_step_leaves_the_kernel_as_it_was() {
    in_namespace(|| async {
        let named = Named::new();
        let lab = Lab::new().await;
        lab.change(bridge("br-a")).await;
        lab.change(Change::CreateVeth(veth("v1", "v2", [Some("br-a"), Some("br-a")]))).await;
        lab.change(bridge("br-b")).await;
        run("ip", &["addr", "add", "10.1.0.1/24", "dev", "br-a"]);
        let far = VethSpec { namespace2: Some(named.name()), ..veth("w1", "w2", [Some("br-b"), None]) };
        lab.change(Change::CreateTun(tap("tap0", Some("br-b")))).await;
        let address = "10.3.0.1/24".parse().unwrap();
        lab.change(Change::AddTunAddress { name: "tap0".into(), address }).await;
        for change in [
            Change::CreateTun(tap("tap1", Some("br-b"))),
            Change::DetachTap { tap: "tap0".into() },
            Change::DeleteTun { name: "tap0".into() },
            Change::CreateBridge(BridgeSpec {
                kind: BridgeType::Linux,
                backend: BridgeType::Linux,
                name: name("br-c"),
                stp: false,
                mtu: Some(1300),
                addresses: vec!["10.2.0.1/24".parse().unwrap()],
                mac: None,
            }),
            Change::CreateVeth(far),
            Change::CreateVeth(veth("x1", "x2", [Some("br-b"), Some("br-b")])),
            Change::MoveVethToBridge { veth: "v2".into(), bridge: "br-b".into() },
            Change::MoveVethToNamespace { veth: "v1".into(), namespace: named.name() },
            Change::DeleteVeth { name: "w1".into() },
            delete("br-a"),
            masquerade("br-b"),
        ] {
            let before = essence(lab.kernel.observe().await.unwrap(), &[&named]);
            let stored = lab.store.load().unwrap();
            // First every step works and the store does not; then one step after the other fails.
            for n in std::iter::once(None).chain((0..).map(Some)) {
                lab.kernel.faults.take_steps();
                lab.store.set_broken(n.is_none());
                n.inspect(|n| lab.kernel.faults.fail_after(*n));
                let outcome = lab.engine.change(change.clone()).await;
                lab.kernel.faults.disarm();
                lab.store.set_broken(false);
                let Err(error) = outcome else {
                    assert!(n > Some(0), "{change:?}");
                    break;
                };
                let steps = lab.kernel.faults.take_steps();
                assert!(!error.message.contains("undone"), "{change:?} at {n:?}: {error}");
                assert_eq!(
                    essence(lab.kernel.observe().await.unwrap(), &[&named]),
                    before,
                    "{change:?} at {n:?} {steps:#?}"
                );
                assert_eq!(lab.store.load().unwrap(), stored);
            }
        }
    });
}

#[test]
fn foreign_links_are_told_by_their_kind_and_left_alone() {
    in_namespace(|| async {
        let lab = Lab::new().await;
        run("ip", &["link", "add", "virbr0", "type", "bridge"]);
        run("ip", &["link", "add", "f1", "type", "veth", "peer", "name", "f2"]);
        for change in [
            delete("virbr0"),
            Change::DeleteVeth { name: "f1".into() },
            Change::AddPort { bridge: "virbr0".into(), port: "f1".into() },
        ] {
            assert_eq!(lab.code(change).await, Code::NotManaged);
        }
        assert_eq!(lab.code(bridge("virbr0")).await, Code::LinkExists);
        assert_eq!(lab.code(Change::DeleteVeth { name: "virbr0".into() }).await, Code::WrongKind);
        let seen = lab.kernel.observe().await.unwrap();
        assert_eq!(seen.link("f1").unwrap().kind, LinkKind::Veth);
        assert_eq!(seen.link("lo").unwrap().kind, LinkKind::Loopback);
        assert!(!lab.engine.veth("f2").await.unwrap().managed);
        let report = teardown(lab.kernel.clone(), lab.dataplane.clone(), no_filter(), lab.store.clone())
            .await
            .unwrap();
        assert_eq!(report.removed.len() + report.left.len(), 0);
        assert_eq!(lab.links().await.len(), 4);
    });
}

#[test]
fn everything_is_there_again_after_a_reboot() {
    let store = Arc::new(MemoryStore::default());
    let kept = Arc::clone(&store);
    in_namespace(|| async move {
        let lab = Lab::with(kept).await;
        lab.change(bridge("br-a")).await;
        lab.change(Change::CreateVeth(veth("v1", "v2", [Some("br-a"), Some("br-a")]))).await;
        run("ip", &["link", "add", "f1", "type", "veth", "peer", "name", "f2"]);
        lab.change(Change::AddPort { bridge: "br-a".into(), port: "f1".into() }).await;
    });
    in_namespace(|| async move {
        run("ip", &["link", "add", "f1", "type", "veth", "peer", "name", "f2"]);
        let lab = Lab::with(store).await;
        let view = lab.engine.bridge("br-a").await.unwrap();
        assert_eq!((view.ports.len(), view.blocked_ports.len(), view.managed), (3, 1, true));
        // A running worker would make again what is torn down.
        let Lab { engine, kernel, dataplane, store } = lab;
        drop(engine);
        tokio::time::sleep(Duration::from_millis(200)).await;
        let report = teardown(kernel.clone(), dataplane, no_filter(), store).await.unwrap();
        assert!(report.left.is_empty(), "{report:?}");
        let observed = kernel.observe().await.unwrap();
        let names: Vec<_> = observed.links.iter().map(|link| link.name.clone()).collect();
        assert_eq!(names, ["lo", "f2", "f1"]);
    });
}

/// What a kernel that has looked before sees is what one sees that looks for the first time.
#[test]
fn a_second_look_sees_what_a_first_one_would() {
    in_namespace(|| async {
        let named = Named::new();
        let kernel = NetlinkKernel::open().unwrap();
        let ns = &named.0;
        for line in [
            "ip link add br0 type bridge".to_owned(),
            "ip link add a0 type veth peer name a1".to_owned(),
            "ip link add b0 type veth peer name b1".to_owned(),
            "ip link set br0 up".to_owned(),
            "ip link set a1 up".to_owned(),
            "ip link set a0 up master br0".to_owned(),
            "ip link set a0 address 02:00:00:00:00:01".to_owned(),
            "ip link set a0 mtu 1400".to_owned(),
            "ip link set br0 type bridge stp_state 1".to_owned(),
            "bridge link set dev a0 learning off flood off bcast_flood off".to_owned(),
            "ip addr add 10.1.0.1/24 dev br0".to_owned(),
            "ip addr add 10.1.0.2/24 dev br0".to_owned(),
            "ip addr add 2001:db8::1/64 dev br0 nodad".to_owned(),
            "ip route add 10.2.0.0/16 via 10.1.0.9".to_owned(),
            "ip -6 route add 2001:db8:1::/64 via 2001:db8::9".to_owned(),
            "ip route add default via 10.1.0.9".to_owned(),
            "ip neigh add 10.1.0.9 lladdr 02:00:00:00:00:09 dev br0".to_owned(),
            "ip neigh replace 10.1.0.9 lladdr 02:00:00:00:00:08 dev br0 nud stale".to_owned(),
            "ip addr del 10.1.0.1/24 dev br0".to_owned(),
            "ip link set br0 down".to_owned(),
            "ip link set br0 up".to_owned(),
            format!("ip link set b1 netns {ns}"),
            format!("ip netns exec {ns} ip link set b1 up"),
            format!("ip netns exec {ns} ip link set b1 name c1"),
            format!("ip netns exec {ns} ip addr add 10.3.0.1/24 dev c1"),
            "ip link set b0 alias mine".to_owned(),
            "ip link set b0 name b9".to_owned(),
            "ip link set b9 up".to_owned(),
            "ip tuntap add t0 mode tap user 1000".to_owned(),
            "ip link set a0 nomaster".to_owned(),
            "ip link del br0".to_owned(),
            "ip link del a0".to_owned(),
            "ip link del t0".to_owned(),
        ] {
            let words: Vec<_> = line.split(' ').collect();
            run(words[0], &words[1..]);
            // Carriers come by themselves and a little later.
            eventually(&line, async || {
                let known = essence(kernel.observe().await.unwrap(), &[&named]);
                known == essence(NetlinkKernel::open().unwrap().observe().await.unwrap(), &[&named])
            })
            .await;
        }
    });
}

#[test]
fn the_data_plane_learns_of_addresses_that_others_set() {
    in_namespace(|| async {
        let lab = Lab::new().await;
        run("ip", &["link", "add", "wan", "type", "veth", "peer", "name", "wan-peer"]);
        for end in ["wan", "wan-peer"] {
            run("ip", &["link", "set", end, "up"]);
        }
        lab.change(masquerade("wan")).await;
        let seen = lab.kernel.observe().await.unwrap();
        assert!(seen.ip_forward);
        for address in ["192.0.2.10/24", "192.0.2.11/24"] {
            run("ip", &["addr", "add", address, "dev", "wan"]);
        }
        let (first, second) = (IpAddr::from([192, 0, 2, 10]), IpAddr::from([192, 0, 2, 11]));
        let wan = seen.link("wan").unwrap().index;
        eventually("the addresses are known", || async {
            let addresses = lab.dataplane.nat().addresses;
            let ipv4: Vec<_> = addresses.local.iter().copied().filter(IpAddr::is_ipv4).collect();
            addresses.uplinks == [(wan, first)] && ipv4 == [first, second]
        })
        .await;
        run("ip", &["route", "add", "default", "via", "192.0.2.1"]);
        assert_eq!(lab.kernel.observe().await.unwrap().default_route, Some(wan));
    });
}

#[test]
fn a_refusal_says_what_the_kernel_said() {
    in_namespace(|| async {
        let kernel = NetlinkKernel::open().unwrap();
        let error = kernel.apply(&LinkStep::DeleteLink(At::here("nope"))).await.unwrap_err();
        assert_eq!(error.errno, Some(nix::errno::Errno::ENODEV as i32));
        assert!(error.to_string().starts_with("delete link nope: ENODEV"), "{error}");
        let bridge = NewBridge { name: "br".into(), mtu: Some(1), ..NewBridge::default() };
        let error = kernel.apply(&LinkStep::CreateBridge(bridge)).await.unwrap_err();
        assert!(error.extack.is_some(), "{error:?}");
        let at = At::new(Place::Named("tct-nobody".into()), "x");
        let error = kernel.apply(&LinkStep::SetUp { link: at, up: true }).await.unwrap_err();
        assert!(error.to_string().contains("tct-nobody: ENOENT"), "{error}");
    });
}

/// What must be the same again after an undo: everything but what comes and goes by itself.
fn essence(observed: Arc<Observed>, own: &[&Named]) -> Observed {
    let mut observed = Arc::unwrap_or_clone(observed);
    let all =
        std::iter::once(&mut observed.links).chain(observed.namespaces.iter_mut().map(|ns| &mut ns.links));
    for link in all.flat_map(Links::iter_mut) {
        link.addresses.retain(|address| address.global);
        link.operstate = OperState::Unknown;
        if let Some(port) = &mut link.port {
            port.state = if port.guarded { PortState::Listening } else { PortState::Forwarding };
        }
        // A bridge takes the least MAC of its ports, unless it was given one.
        if link.is_bridge() {
            link.mac = None;
        }
    }
    // These follow the carriers.
    observed.routes.retain(|route| !route.destination.to_string().starts_with("fe80"));
    observed.routes.sort_by_key(|route| (route.interface, route.destination, route.metric));
    // Other tests make and remove theirs meanwhile.
    observed.namespaces.retain(|ns| own.iter().any(|named| named.0 == ns.name));
    observed
}
