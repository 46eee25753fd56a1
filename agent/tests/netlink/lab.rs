//! An engine over the real kernel, in a namespace of its own.

use std::{
    future::Future,
    net::IpAddr,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use serde_json::json;
use telecluster_worker::{
    engine::{Change, Engine, Options},
    error::Code,
    kernel::{
        Kernel, KernelError,
        fake::{FakeDataPlane, FakeFilter, Faults},
        links::{Links, Observed},
        listeners::Listener,
        netlink::NetlinkKernel,
        step::LinkStep,
    },
    model::{BridgeSpec, BridgeType, LinkName, NamespaceName, TunSpec, TunType, VethSpec},
    store::MemoryStore,
};
use tokio::sync::mpsc;

/// Runs a test in a new network namespace.
pub(crate) fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
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

pub(crate) fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
}

/// A namespace under `/run/netns` that is removed even when the test fails.
pub(crate) struct Named(pub(crate) String);

impl Named {
    pub(crate) fn new() -> Self {
        let named = Self::unmade();
        run("ip", &["netns", "add", &named.0]);
        named
    }

    /// A name for the namespace of this thread.
    pub(crate) fn of_this_thread() -> Self {
        let named = Self::unmade();
        run("ip", &["netns", "attach", &named.0, &nix::unistd::gettid().to_string()]);
        named
    }

    fn unmade() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        Self(format!("tct-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)))
    }

    pub(crate) fn name(&self) -> NamespaceName {
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
pub(crate) struct Faulty {
    pub(crate) kernel: NetlinkKernel,
    pub(crate) faults: Faults,
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

pub(crate) struct Lab {
    pub(crate) engine: Engine,
    pub(crate) kernel: Arc<Faulty>,
    pub(crate) dataplane: Arc<FakeDataPlane>,
    pub(crate) store: Arc<MemoryStore>,
}

impl Lab {
    pub(crate) async fn new() -> Self {
        Self::with(Arc::default()).await
    }

    pub(crate) async fn with(store: Arc<MemoryStore>) -> Self {
        let kernel = Arc::new(Faulty { kernel: NetlinkKernel::open().unwrap(), faults: Faults::default() });
        let dataplane = Arc::new(FakeDataPlane::new(Faults::default()));
        let engine =
            Engine::start(kernel.clone(), dataplane.clone(), no_filter(), store.clone(), Options::default())
                .await;
        Self { engine: engine.unwrap(), kernel, dataplane, store }
    }

    pub(crate) async fn change(&self, change: Change) -> telecluster_worker::engine::Outcome {
        self.engine.change(change).await.unwrap()
    }

    pub(crate) async fn code(&self, change: Change) -> Code {
        self.engine.change(change).await.unwrap_err().code
    }

    pub(crate) async fn links(&self) -> Links {
        self.kernel.observe().await.unwrap().links.clone()
    }
}

/// These tests ask for no firewall rules.
pub(crate) fn no_filter() -> Arc<FakeFilter> {
    Arc::new(FakeFilter::new(Faults::default()))
}

pub(crate) fn name(name: &str) -> LinkName {
    LinkName::new(name).unwrap()
}

pub(crate) fn bridge(bridge: &str) -> Change {
    Change::CreateBridge(BridgeSpec {
        kind: BridgeType::Linux,
        backend: BridgeType::Linux,
        name: name(bridge),
        stp: false,
        mtu: None,
        addresses: Vec::new(),
        mac: None,
    })
}

pub(crate) fn veth(a: &str, b: &str, bridges: [Option<&str>; 2]) -> VethSpec {
    let [bridge1, bridge2] = bridges.map(|bridge| bridge.map(name));
    VethSpec { name1: name(a), name2: name(b), bridge1, bridge2, namespace1: None, namespace2: None }
}

pub(crate) fn tap(tap: &str, bridge: Option<&str>) -> TunSpec {
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

/// As it is when nothing else is asked for.
pub(crate) fn masquerade(uplink: &str) -> Change {
    let spec = json!({ "source_network": "10.1.0.0/24", "output_interface": uplink });
    Change::CreateMasquerade(serde_json::from_value(spec).unwrap())
}

pub(crate) fn delete(bridge: &str) -> Change {
    Change::DeleteBridge { name: bridge.into(), force: true }
}

/// Until it is so. Less than the time after which the kernel is read anew although it told of nothing.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut test: impl FnMut() -> F) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !test().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
