//! The engine over the real kernel. Each test has a network namespace of its own, on a thread of its own;
//! everything in it vanishes with the thread. Needs root.

#![expect(clippy::unwrap_used, reason = "a helper of a test that cannot go on has failed it")]

use std::{
    future::Future,
    net::{IpAddr, UdpSocket},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use telecluster_worker::{
    engine::{Change, Engine, Object, Options, teardown},
    error::Code,
    kernel::{
        Kernel, KernelError,
        dataplane::NatType,
        fake::{FakeDataPlane, FakeFilter, Faults},
        links::{At, LinkKind, Links, Observed, OperState, Place, PortState},
        listeners::Listener,
        netlink::NetlinkKernel,
        step::{LinkStep, NewBridge, NewTun},
    },
    model::{
        BridgeSpec, BridgeType, FlowTimeouts, LinkName, MasqueradeSpec, NamespaceName, TunSpec, TunType,
        VethSpec,
    },
    store::{MemoryStore, Store},
};
use tokio::sync::mpsc;

/// Runs a test in a new network namespace.
fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let run = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("these tests need root");
        run("ip", &["link", "set", "lo", "up"]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    };
    if let Err(panic) = std::thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
}

/// A namespace under `/run/netns` that is removed even when the test fails.
struct Named(String);

impl Named {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("tct-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        run("ip", &["netns", "add", &name]);
        Self(name)
    }

    fn name(&self) -> NamespaceName {
        NamespaceName::new(&self.0).unwrap()
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        drop(Command::new("ip").args(["netns", "del", &self.0]).output());
    }
}

/// The real kernel, with a step that fails.
#[derive(Debug)]
struct Faulty {
    kernel: NetlinkKernel,
    faults: Faults,
}

#[async_trait]
impl Kernel for Faulty {
    async fn observe(&self) -> Result<Arc<Observed>, KernelError> {
        self.kernel.observe().await
    }

    async fn apply(&self, step: &LinkStep) -> Result<(), KernelError> {
        self.faults.step(&step.to_string())?;
        self.kernel.apply(step).await
    }

    async fn reachable(&self, link: &str, host: IpAddr) -> Result<bool, KernelError> {
        self.kernel.reachable(link, host).await
    }

    async fn listeners(&self) -> Result<Vec<Listener>, KernelError> {
        self.kernel.listeners().await
    }

    fn events(&self) -> Result<mpsc::Receiver<()>, KernelError> {
        self.kernel.events()
    }
}

struct Lab {
    engine: Engine,
    kernel: Arc<Faulty>,
    dataplane: Arc<FakeDataPlane>,
    store: Arc<MemoryStore>,
}

impl Lab {
    async fn new() -> Self {
        Self::with(Arc::default()).await
    }

    async fn with(store: Arc<MemoryStore>) -> Self {
        let kernel = Arc::new(Faulty { kernel: NetlinkKernel::open().unwrap(), faults: Faults::default() });
        let dataplane = Arc::new(FakeDataPlane::new(Faults::default()));
        let engine =
            Engine::start(kernel.clone(), dataplane.clone(), no_filter(), store.clone(), Options::default())
                .await;
        Self { engine: engine.unwrap(), kernel, dataplane, store }
    }

    async fn change(&self, change: Change) -> telecluster_worker::engine::Outcome {
        self.engine.change(change).await.unwrap()
    }

    async fn code(&self, change: Change) -> Code {
        self.engine.change(change).await.unwrap_err().code
    }

    async fn links(&self) -> Links {
        self.kernel.observe().await.unwrap().links.clone()
    }
}

/// These tests ask for no firewall rules.
fn no_filter() -> Arc<FakeFilter> {
    Arc::new(FakeFilter::new(Faults::default()))
}

fn name(name: &str) -> LinkName {
    LinkName::new(name).unwrap()
}

fn bridge(bridge: &str) -> Change {
    Change::CreateBridge(BridgeSpec {
        kind: BridgeType::Linux,
        backend: BridgeType::Linux,
        name: name(bridge),
        stp: false,
        mtu: None,
        addresses: Vec::new(),
    })
}

fn veth(a: &str, b: &str, bridges: [Option<&str>; 2]) -> VethSpec {
    let [bridge1, bridge2] = bridges.map(|bridge| bridge.map(name));
    VethSpec { name1: name(a), name2: name(b), bridge1, bridge2, namespace1: None, namespace2: None }
}

fn tap(tap: &str, bridge: Option<&str>) -> TunSpec {
    TunSpec {
        name: name(tap),
        kind: TunType::Tap,
        owner: Some(1000),
        group: Some(1001),
        bridge: bridge.map(name),
        persistent: false,
        multi_queue: true,
        vnet_hdr: true,
        mtu: Some(1400),
        addresses: Vec::new(),
    }
}

fn delete(bridge: &str) -> Change {
    Change::DeleteBridge { name: bridge.into(), force: true }
}

/// Until it is so. Less than the time after which the kernel is read anew although it told of nothing.
async fn eventually<F: Future<Output = bool>>(what: &str, mut test: impl FnMut() -> F) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !test().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Packets that a link of this namespace has received.
fn received(link: &str) -> u64 {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line = table.lines().find_map(|line| line.trim().strip_prefix(&format!("{link}:"))).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Sends broadcasts out of the interface that has an address of 10.1.0.0/24.
fn broadcast(count: usize) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_broadcast(true).unwrap();
    for _ in 0..count {
        socket.send_to(b"hello", "10.1.0.255:9").unwrap();
    }
}

/// What must be the same again after an undo: everything but what comes and goes by itself.
fn essence(observed: Arc<Observed>, named: &Named) -> Observed {
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
    observed.namespaces.retain(|ns| ns.name == named.0);
    observed
}

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
fn a_ring_on_one_bridge_stays_quiet() {
    in_namespace(|| async {
        let lab = Lab::new().await;
        lab.change(Change::CreateBridge(BridgeSpec {
            kind: BridgeType::Linux,
            backend: BridgeType::Linux,
            name: name("br-vm"),
            stp: false,
            mtu: None,
            addresses: vec!["10.1.0.1/24".parse().unwrap()],
        }))
        .await;
        let outcome = lab.change(Change::CreateVeth(veth("v1", "v2", [Some("br-vm"); 2]))).await;
        assert_eq!(outcome.warnings.len(), 1, "{outcome:?}");
        let view = lab.engine.bridge("br-vm").await.unwrap();
        assert_eq!(view.blocked_ports.len(), 1);
        assert_eq!(
            (view.blocked_ports[0].port.as_str(), view.blocked_ports[0].state.as_str()),
            ("v2", "blocking")
        );
        // In the kernel, not only in the view. Listening is what blocks without spanning tree.
        let held = || async {
            let port = lab.kernel.observe().await.unwrap().link("v2").unwrap().port.unwrap();
            assert!(port.guarded);
            port.state == PortState::Listening
        };
        assert!(held().await);

        broadcast(10);
        tokio::time::sleep(Duration::from_millis(200)).await;
        let quiet = received("v1") + received("v2");
        assert!(quiet < 100, "{quiet} packets");

        // The carrier goes and comes: the kernel forgets the state, the guard stays, the worker sets it again.
        for state in ["down", "up"] {
            run("ip", &["link", "set", "v1", state]);
        }
        broadcast(10);
        eventually("v2 is held again", held).await;
        let quiet = received("v1") + received("v2");
        assert!(quiet < 200, "{quiet} packets");

        // And the guard is what keeps it quiet: without it there is a storm.
        let hold = |hold| LinkStep::Hold { port: "v2".into(), bridge: "br-vm".into(), hold };
        lab.kernel.kernel.apply(&hold(false)).await.unwrap();
        broadcast(10);
        let began = Instant::now();
        while received("v1") + received("v2") < 10_000 && began.elapsed() < Duration::from_secs(2) {}
        run("ip", &["link", "set", "v1", "down"]);
        assert!(received("v1") + received("v2") >= 10_000, "the control experiment must storm");

        // When the reason goes away the port is let go.
        run("ip", &["link", "set", "v1", "up"]);
        lab.kernel.kernel.apply(&hold(true)).await.unwrap();
        lab.change(Change::RemovePort { bridge: "br-vm".into(), port: "v1".into() }).await;
        let port = lab.kernel.observe().await.unwrap().link("v2").unwrap().port.unwrap();
        assert_eq!((port.guarded, port.state), (false, PortState::Forwarding));
        assert!(lab.engine.bridge("br-vm").await.unwrap().blocked_ports.is_empty());
    });
}

#[test]
fn a_ring_over_two_bridges_stays_quiet() {
    in_namespace(|| async {
        let lab = Lab::new().await;
        for bridge_name in ["br-a", "br-b"] {
            lab.change(bridge(bridge_name)).await;
        }
        run("ip", &["addr", "add", "10.1.0.1/24", "dev", "br-a"]);
        lab.change(Change::CreateVeth(veth("a1", "b1", [Some("br-a"), Some("br-b")]))).await;
        // The second pair exists, and is up, before it closes the ring.
        lab.change(Change::CreateVeth(veth("a2", "b2", [Some("br-a"), None]))).await;
        broadcast(1);
        let outcome = lab.change(Change::AddPort { bridge: "br-b".into(), port: "b2".into() }).await;
        assert_eq!(outcome.warnings.len(), 1, "{outcome:?}");
        broadcast(10);
        tokio::time::sleep(Duration::from_millis(200)).await;
        let quiet: u64 = ["a1", "a2", "b1", "b2"].into_iter().map(received).sum();
        assert!(quiet < 500, "{quiet} packets");
        // The other way round the ring breaks: the held port forwards.
        lab.change(Change::DeleteVeth { name: "a1".into() }).await;
        eventually("b2 forwards", || async {
            lab.engine.bridge("br-b").await.unwrap().blocked_ports.is_empty()
        })
        .await;
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
            }),
            Change::CreateVeth(far),
            Change::CreateVeth(veth("x1", "x2", [Some("br-b"), Some("br-b")])),
            Change::MoveVethToBridge { veth: "v2".into(), bridge: "br-b".into() },
            Change::MoveVethToNamespace { veth: "v1".into(), namespace: named.name() },
            Change::DeleteVeth { name: "w1".into() },
            delete("br-a"),
            Change::CreateMasquerade(MasqueradeSpec {
                source_network: "10.1.0.0/24".parse().unwrap(),
                output_interface: name("br-b"),
                enabled: true,
                nat_type: NatType::Restricted,
                port_parity: false,
                exclude_destinations: Vec::new(),
                timeouts: FlowTimeouts::default(),
            }),
        ] {
            let before = essence(lab.kernel.observe().await.unwrap(), &named);
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
                    essence(lab.kernel.observe().await.unwrap(), &named),
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
                let known = essence(kernel.observe().await.unwrap(), &named);
                known == essence(NetlinkKernel::open().unwrap().observe().await.unwrap(), &named)
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
        lab.change(Change::CreateMasquerade(MasqueradeSpec {
            source_network: "10.1.0.0/24".parse().unwrap(),
            output_interface: name("wan"),
            enabled: true,
            nat_type: NatType::Restricted,
            port_parity: false,
            exclude_destinations: Vec::new(),
            timeouts: FlowTimeouts::default(),
        }))
        .await;
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
