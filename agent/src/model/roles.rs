//! The roles of a server's links, as they are told and shown.

use serde::Serialize;
use utoipa::ToSchema;

/// What a link is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The uplink: of forwards that name no interface.
    Wan,
    /// To the other servers of the cluster.
    Lan,
    ExternalBridge,
    InternalBridge,
}

impl Role {
    /// The setting that names it.
    pub const fn setting(self) -> &'static str {
        match self {
            Self::Wan => "WAN_INTERFACE",
            Self::Lan => "LAN_INTERFACE",
            Self::ExternalBridge => "EXTERNAL_BRIDGE",
            Self::InternalBridge => "INTERNAL_BRIDGE",
        }
    }
}

/// Why it is this link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RoleSource {
    /// A setting names it.
    Setting,
    /// It has the usual name.
    Usual,
    /// By the default route, or as the only network card beside the uplink's.
    Detected,
}

/// Which link has a role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct RoleView {
    #[schema(example = "ens3")]
    pub name: String,
    pub source: RoleSource,
    /// Whether an interface of that name is there.
    pub present: bool,
    /// What is wrong with what the setting names.
    pub problem: Option<String>,
}

/// Which link has which role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct RolesView {
    pub wan_interface: RoleView,
    pub lan_interface: RoleView,
    pub external_bridge: RoleView,
    pub internal_bridge: RoleView,
}
