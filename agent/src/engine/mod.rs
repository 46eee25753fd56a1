//! The one owner of the state. A change is planned, applied step by step, undone in reverse on failure,
//! observed, committed to the store, and answered from what was observed.

mod flows;
mod kept;
mod owner;
mod reads;
mod switching;
mod teardown;
#[cfg(test)]
mod tests;
mod topology;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use serde::Serialize;
use telecluster_common::{drop::DropReason, tcp::FlowState};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;
use utoipa::ToSchema;

use self::kept::Kept;
use crate::{
    error::{Code, Error, Result},
    kernel::{
        Kernel, KernelError,
        dataplane::{Attachment, Counters, DataPlane, Flow, MapPressure, Slot},
        fake::{FakeDataPlane, FakeFilter, FakeKernel, Faults},
        filter::PacketFilter,
        links::Observed,
    },
    kinds::firewall::Caller,
    model::{
        BridgeSpec, BridgeView, FlowView, ForwardProtocol, ForwardRequest, MasqueradeSpec, NamespaceName,
        RuleView, TunSpec, TunView, VethSpec, VethView, VlanLinkSpec, VlanLinkView, VlanProtocol,
        bridge_vlan::{FixedStation, PortVlansChange, PortVlansView},
        firewall::{FirewallSpec, FirewallView},
    },
    state::State,
    store::{MemoryStore, Store, StoreError},
};

pub use switching::{PortLabel, StationQuery, Switching};
pub use teardown::{Teardown, teardown};

/// What a caller can ask to be changed.
#[derive(Debug, Clone)]
pub enum Change {
    CreateBridge(BridgeSpec),
    DeleteBridge {
        name: String,
        force: bool,
    },
    AddPort {
        bridge: String,
        port: String,
    },
    /// The VLAN is its native one.
    AddPortToVlan {
        bridge: String,
        port: String,
        vlan: u16,
    },
    AddToVlans {
        bridge: String,
        port: String,
        change: PortVlansChange,
    },
    RemoveFromVlans {
        bridge: String,
        port: String,
        vlans: BTreeSet<u16>,
    },
    FixStation {
        bridge: String,
        port: String,
        station: FixedStation,
        /// False: no longer.
        fixed: bool,
    },
    RemovePort {
        bridge: String,
        port: String,
    },
    CreateVeth(VethSpec),
    DeleteVeth {
        name: String,
    },
    MoveVethToBridge {
        veth: String,
        bridge: String,
    },
    MoveVethToNamespace {
        veth: String,
        namespace: NamespaceName,
    },
    CreateTun(TunSpec),
    DeleteTun {
        name: String,
    },
    AttachTap {
        tap: String,
        bridge: String,
    },
    DetachTap {
        tap: String,
    },
    AddTunAddress {
        name: String,
        address: ipnet::IpNet,
    },
    /// Without a prefix length: whichever address has that IP.
    RemoveTunAddress {
        name: String,
        ip: IpAddr,
        prefix: Option<u8>,
    },
    CreateVlanLink(VlanLinkSpec),
    DeleteVlanLink {
        parent: String,
        vlan_id: u16,
        protocol: Option<VlanProtocol>,
    },
    CreateForward(ForwardRequest),
    DeleteForward(ForwardSelector),
    CreateMasquerade(MasqueradeSpec),
    DeleteMasquerade(MasqueradeSelector),
    /// All forwards and masquerade rules.
    FlushNat,
    CreateFirewall(NewFirewallRule),
    DeleteFirewall {
        id: String,
        caller: Caller,
    },
    FlushFirewall,
}

/// A firewall rule, and who asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewFirewallRule {
    pub spec: FirewallSpec,
    pub caller: Caller,
}

/// Which forward a delete means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForwardSelector {
    Id(String),
    /// Exact match of all that is given.
    Ports {
        external_port: u16,
        internal_ip: IpAddr,
        internal_port: u16,
        /// `None`: whatever the protocol.
        protocol: Option<ForwardProtocol>,
    },
}

/// Which masquerade rule a delete means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MasqueradeSelector {
    Id(String),
    Spec { source_network: ipnet::IpNet, output_interface: String },
}

/// What a change came to.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// False when everything was so already.
    pub changed: bool,
    /// One sentence with names.
    pub message: String,
    pub object: Object,
    /// What the caller should know although it worked.
    pub warnings: Vec<String>,
}

/// The object a change was about, as the kernel has it afterwards.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Object {
    Bridge(BridgeView),
    Veth(VethView),
    Tun(TunView),
    VlanLink(VlanLinkView),
    PortVlans(PortVlansView),
    Rule(RuleView),
    Firewall(FirewallView),
    /// Deleted: its name or id.
    Gone {
        removed: Vec<String>,
    },
}

/// What `/nat/flows` is asked for. `None` matches everything.
#[derive(Debug, Clone, Default)]
pub struct FlowQuery {
    pub protocol: Option<String>,
    pub inside_ip: Option<IpAddr>,
    pub remote_ip: Option<IpAddr>,
    pub external_port: Option<u16>,
    pub rule_id: Option<String>,
    pub state: Option<String>,
    pub sort: FlowSort,
    pub offset: usize,
    /// 0: no limit.
    pub limit: usize,
}

/// Order of `/nat/flows`, largest first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FlowSort {
    #[default]
    Bytes,
    Packets,
    Age,
    Idle,
}

/// A page of flows.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FlowPage {
    /// Flows that match, on all pages.
    pub total: usize,
    pub flows: Vec<FlowView>,
}

/// The fast path in drivers.
#[derive(Debug, Clone, Default)]
pub struct XdpMeasured {
    /// Name, whether it is in the driver, and why or why not.
    pub ports: Vec<(String, bool, String)>,
    /// Packets sent on there.
    pub packets: u64,
}

/// The flows in figures: of a million, no list is made.
#[derive(Debug, Clone, Default)]
pub struct Census {
    pub total: usize,
    pub by_rule: HashMap<Slot, u64>,
    /// By protocol number and state.
    pub by_state: BTreeMap<(u8, FlowState), u64>,
    /// Those with the most bytes, the largest first; so many as were asked for, or more.
    pub largest: Vec<Flow>,
    /// How many were asked for.
    pub top: usize,
}

/// What `/metrics` and `/health` are made from.
#[derive(Debug, Clone)]
pub struct Measurements {
    pub backend: &'static str,
    /// Why it is this one.
    pub backend_reason: String,
    /// What it does not do as the programs do it.
    pub backend_differences: &'static [&'static str],
    pub attachments: Vec<Attachment>,
    /// The fast path in drivers: the ports by name.
    pub xdp: XdpMeasured,
    pub pressure: Vec<MapPressure>,
    pub drops: Vec<(DropReason, u64)>,
    /// Rule by rule, with id.
    pub rules: Vec<(RuleView, Counters)>,
    pub flows: Census,
    /// The VLAN filter's.
    pub switching: Switching,
    pub bridges: usize,
    pub interfaces: usize,
    /// Objects that are not as they were told to be: their key, and why they cannot be put right.
    pub drift: Vec<(String, String)>,
    /// Rules whose inside has addresses in common with their uplink's networks.
    pub overlaps: Vec<String>,
}

/// What the engine needs to know beyond the requests.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `WAN_INTERFACE`, when it is set: the uplink that is meant when a forward names none.
    pub wan_interface: Option<String>,
    /// `LAN_INTERFACE`, `EXTERNAL_BRIDGE` and `INTERNAL_BRIDGE`, when they are set.
    pub lan_interface: Option<String>,
    pub external_bridge: Option<String>,
    pub internal_bridge: Option<String>,
    /// The TCP port that the worker itself listens on; it is never forwarded.
    pub api_port: Option<u16>,
    /// Why the data plane is the one that it is.
    pub dataplane_reason: String,
    /// `OVS=require`: no Linux bridge stands in where Open vSwitch is missing.
    pub require_ovs: bool,
}

/// The handle that everybody holds; cheap to clone. The engine ends when the last one is gone.
#[derive(Debug, Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Request>,
}

/// What the owner of the state shares with readers.
#[derive(Debug)]
struct Shared {
    kernel: Arc<dyn Kernel>,
    dataplane: Arc<dyn DataPlane>,
    filter: Arc<dyn PacketFilter>,
    /// Written by the owner only, after a commit. Never locked across an await.
    state: RwLock<State>,
    options: Options,
    census: Arc<Kept<Census>>,
    pressure: Arc<Kept<Vec<MapPressure>>>,
}

#[derive(Debug)]
struct Request {
    change: Change,
    answer: oneshot::Sender<Result<Outcome>>,
}

impl Shared {
    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says, or no longer says, what is wrong with an object of the store.
    fn set_problem(&self, key: &str, problem: Option<String>) {
        self.state.write().unwrap_or_else(PoisonError::into_inner).set_problem(key, problem);
    }

    async fn observe(&self) -> Result<Arc<Observed>> {
        Ok(self.kernel.observe().await?)
    }
}

impl Engine {
    /// Loads the state, makes what is missing of it, and starts to serve changes.
    ///
    /// Fails when the state or the kernel cannot be read; a stored object that cannot be made again is
    /// logged, and the rest goes on.
    pub async fn start(
        kernel: Arc<dyn Kernel>,
        dataplane: Arc<dyn DataPlane>,
        filter: Arc<dyn PacketFilter>,
        store: Arc<dyn Store>,
        options: Options,
    ) -> Result<Self> {
        let state = store.load()?;
        let state =
            State::read(state).map_err(|error| Error::new(Code::StoreUnwritable, error.to_string()))?;
        // Before the first look, so that no change falls between the two.
        let events = kernel.events()?;
        let shared = Arc::new(Shared {
            kernel,
            dataplane,
            filter,
            state: RwLock::new(state),
            options,
            census: Arc::default(),
            pressure: Arc::default(),
        });
        let filter_events = shared.filter.events().unwrap_or_else(|error| {
            warn!(%error, "what others do to the firewall rules is not heard of");
            mpsc::channel(1).1
        });
        let mut owner = owner::Owner::new(Arc::clone(&shared), store, filter_events)?;
        owner.catch_up().await?;
        let (requests, receiver) = mpsc::channel(64);
        tokio::spawn(owner.run(receiver, events));
        Ok(Self { shared, requests })
    }

    /// An engine over a machine in memory, with a store in memory.
    pub async fn fake() -> Result<(Self, Fake)> {
        let fake = Fake::new();
        Ok((fake.start(Options::default()).await?, fake))
    }

    /// Does one change whole, or not at all. Returns when it is durable.
    pub async fn change(&self, change: Change) -> Result<Outcome> {
        let gone = |_| Error::new(Code::NotReady, "the worker is shutting down");
        let (answer, outcome) = oneshot::channel();
        self.requests
            .send(Request { change, answer })
            .await
            .map_err(|_| Error::new(Code::NotReady, "the worker is shutting down"))?;
        outcome.await.map_err(gone)?
    }
}

/// The parts of a machine in memory, for tests to look at and to break.
#[derive(Debug, Clone)]
pub struct Fake {
    pub kernel: Arc<FakeKernel>,
    pub dataplane: Arc<FakeDataPlane>,
    pub filter: Arc<FakeFilter>,
    pub store: Arc<MemoryStore>,
    pub faults: Faults,
}

impl Default for Fake {
    fn default() -> Self {
        Self::new()
    }
}

impl Fake {
    pub fn new() -> Self {
        let faults = Faults::default();
        Self {
            kernel: Arc::new(FakeKernel::new(faults.clone())),
            dataplane: Arc::new(FakeDataPlane::new(faults.clone())),
            filter: Arc::new(FakeFilter::new(faults.clone())),
            store: Arc::default(),
            faults,
        }
    }

    /// Starts an engine over it; a second one after the first was dropped is a restart.
    pub async fn start(&self, options: Options) -> Result<Engine> {
        let Self { kernel, dataplane, filter, store, faults: _ } = self.clone();
        Engine::start(kernel, dataplane, filter, store, options).await
    }
}

impl From<KernelError> for Error {
    fn from(error: KernelError) -> Self {
        use nix::errno::Errno;
        let errno = error.errno.map(Errno::from_raw);
        match errno {
            Some(Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT) => {
                Self::new(Code::Unsupported, error.to_string()).hint("this kernel cannot do it")
            }
            Some(Errno::ENOPKG) => {
                Self::new(Code::Unsupported, error.to_string()).hint("install the package, then ask again")
            }
            Some(Errno::EPERM) => Self::new(Code::KernelRefused, error.to_string())
                .hint("the worker needs CAP_NET_ADMIN and CAP_SYS_ADMIN: run it as root"),
            Some(Errno::EHOSTUNREACH) => Self::new(Code::GatewayLost, error.to_string())
                .hint("it answered before, so everything was put back; look at the switch and at the cable"),
            _ => Self::new(Code::KernelRefused, error.to_string()),
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Self::new(Code::StoreUnwritable, error.to_string())
            .hint("look at the free space and the permissions of the state directory")
    }
}
