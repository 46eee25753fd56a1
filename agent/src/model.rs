//! The nouns: what callers ask for (specs), what they are shown (views).
//!
//! Specs are what the store keeps. Views are built from what the kernel says, never from a request.

pub mod bridge_vlan;
pub mod firewall;
mod link;
mod name;
pub mod roles;
mod rule;

pub use self::{
    link::{
        BlockedPort, BridgeSpec, BridgeType, BridgeView, InterfaceView, RouteSpec, RouteView, TunMode,
        TunSpec, TunType, TunView, UplinkSpec, VethSpec, VethView, VlanLinkSpec, VlanLinkView, VlanProtocol,
    },
    name::{LinkName, NameError, NamespaceName},
    rule::{
        FastPathView, FlowTimeouts, FlowView, ForwardProtocol, ForwardRequest, ForwardSpec, MasqueradeSpec,
        NatStatusView, RuleAction, RuleView,
    },
};
