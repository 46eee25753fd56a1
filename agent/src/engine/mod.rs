//! The one owner of the state. A change is planned, applied step by step, undone in reverse on failure,
//! observed, committed to the store, and answered from what was observed.

use std::net::Ipv4Addr;

use serde::Serialize;
use telecluster_common::drop::DropReason;
use utoipa::ToSchema;

use crate::{
    error::{Code, Error, Result},
    kernel::dataplane::{Attachment, Counters, Flow, MapPressure},
    model::{
        BridgeSpec, BridgeView, FlowView, ForwardRequest, InterfaceView, MasqueradeSpec, NamespaceName,
        NatStatusView, RuleView, VethSpec, VethView,
    },
};

/// What a caller can ask to be changed.
#[derive(Debug, Clone)]
pub enum Change {
    CreateBridge(BridgeSpec),
    DeleteBridge { name: String, force: bool },
    AddPort { bridge: String, port: String },
    RemovePort { bridge: String, port: String },
    CreateVeth(VethSpec),
    DeleteVeth { name: String },
    MoveVethToBridge { veth: String, bridge: String },
    MoveVethToNamespace { veth: String, namespace: NamespaceName },
    CreateForward(ForwardRequest),
    DeleteForward(ForwardSelector),
    CreateMasquerade(MasqueradeSpec),
    DeleteMasquerade(MasqueradeSelector),
}

/// Which forward a delete means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForwardSelector {
    Id(String),
    /// Exact match of all three, whatever the protocol.
    Ports {
        external_port: u16,
        internal_ip: Ipv4Addr,
        internal_port: u16,
    },
}

/// Which masquerade rule a delete means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MasqueradeSelector {
    Id(String),
    Spec { source_network: ipnet::Ipv4Net, output_interface: String },
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
    Rule(RuleView),
    /// Deleted: its name or id.
    Gone {
        removed: Vec<String>,
    },
}

/// What `/nat/flows` is asked for. `None` matches everything.
#[derive(Debug, Clone, Default)]
pub struct FlowQuery {
    pub protocol: Option<String>,
    pub inside_ip: Option<Ipv4Addr>,
    pub remote_ip: Option<Ipv4Addr>,
    pub external_port: Option<u16>,
    pub rule_id: Option<String>,
    pub state: Option<String>,
    pub sort: FlowSort,
    pub offset: usize,
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

/// What `/metrics` and `/health` are made from.
#[derive(Debug, Clone)]
pub struct Measurements {
    pub backend: &'static str,
    pub attachments: Vec<Attachment>,
    pub pressure: Vec<MapPressure>,
    pub drops: Vec<(DropReason, u64)>,
    /// Rule by rule, with id.
    pub rules: Vec<(RuleView, Counters)>,
    pub flows: Vec<Flow>,
    pub bridges: usize,
    pub interfaces: usize,
}

/// The handle that everybody holds; cheap to clone.
#[derive(Debug, Clone)]
pub struct Engine {}

fn not_ready<T>() -> Result<T> {
    Err(Error::new(Code::NotReady, "the engine is not there yet"))
}

impl Engine {
    /// Does one change whole, or not at all. Returns when it is durable.
    pub async fn change(&self, _change: Change) -> Result<Outcome> {
        not_ready()
    }

    pub async fn bridges(&self) -> Result<Vec<BridgeView>> {
        not_ready()
    }

    pub async fn bridge(&self, _name: &str) -> Result<BridgeView> {
        not_ready()
    }

    pub async fn veths(&self) -> Result<Vec<VethView>> {
        not_ready()
    }

    /// By either end.
    pub async fn veth(&self, _name: &str) -> Result<VethView> {
        not_ready()
    }

    pub async fn interfaces(&self) -> Result<Vec<InterfaceView>> {
        not_ready()
    }

    pub async fn nat_status(&self) -> Result<NatStatusView> {
        not_ready()
    }

    pub async fn rule(&self, _id: &str) -> Result<RuleView> {
        not_ready()
    }

    pub async fn flows(&self, _query: &FlowQuery) -> Result<FlowPage> {
        not_ready()
    }

    pub async fn measurements(&self) -> Result<Measurements> {
        not_ready()
    }
}
