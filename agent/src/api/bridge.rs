//! `/bridge`: bridges and their ports.

use axum::{
    Json,
    extract::{Path, State},
};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    App,
    answer::{Answer, Gone},
    error::{Refusal, Refusals},
    extract::Lenient,
    fields::{Fault, Fields, FromFields},
    values,
};
use crate::{
    engine::{Change, Object},
    model::{BridgeSpec, BridgeType, BridgeView, LinkName},
};

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(create_bridge))
        .routes(routes!(delete_bridge))
        .routes(routes!(add_port))
        .routes(routes!(remove_port))
        .routes(routes!(list_bridges))
        .routes(routes!(show_bridge))
}

/// A bridge to be.
#[derive(Debug, ToSchema)]
pub struct CreateBridge {
    #[schema(value_type = String, min_length = 1, max_length = 15, example = "br-vm")]
    pub name: LinkName,
    /// `ovs`: Open vSwitch where it is installed; elsewhere a Linux bridge stands in (`backend` tells), or the call is
    /// refused, as the setting `OVS` says.
    #[schema(rename = "type", required = false, default = "linux")]
    pub kind: BridgeType,
    /// Spanning tree: needed where bridges can form a loop.
    #[schema(required = false, default = false)]
    pub stp: bool,
    #[schema(minimum = 68, maximum = 65535)]
    pub mtu: Option<u32>,
    /// The bridge's own addresses, CIDR form.
    #[schema(value_type = Vec<String>, required = false)]
    pub addresses: Vec<ipnet::IpNet>,
}

impl FromFields for CreateBridge {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let name = fields.required("name", values::link_name);
        let kind = fields.or("type", BridgeType::Linux, bridge_type);
        let stp = fields.or("stp", false, values::boolean);
        let mtu = fields.optional("mtu", values::mtu);
        let addresses = fields.or("addresses", Vec::new(), values::list(values::interface_address));
        Some(Self { name: name?, kind, stp, mtu, addresses })
    }
}

impl From<CreateBridge> for Change {
    fn from(request: CreateBridge) -> Self {
        let CreateBridge { name, kind, stp, mtu, addresses } = request;
        // What carries it is for the plan to settle, which knows whether OVS is there; its hardware address too.
        Self::CreateBridge(BridgeSpec { name, kind, backend: kind, stp, mtu, addresses, mac: None })
    }
}

fn bridge_type(value: &Value) -> Result<BridgeType, Fault> {
    values::choice(&[("linux", BridgeType::Linux), ("ovs", BridgeType::Ovs)])(value)
}

/// A bridge to delete.
#[derive(Debug, ToSchema)]
pub struct DeleteBridge {
    #[schema(value_type = String, example = "br-vm")]
    pub name: LinkName,
    /// Also when it has ports; they are taken out first.
    #[schema(required = false, default = false)]
    pub force: bool,
}

impl FromFields for DeleteBridge {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let name = fields.required("name", values::link_name);
        let force = fields.or("force", false, values::boolean);
        Some(Self { name: name?, force })
    }
}

/// A link to put into a bridge.
#[derive(Debug, ToSchema)]
pub struct AddPort {
    #[schema(value_type = String, example = "br-vm")]
    pub bridge_name: LinkName,
    #[schema(value_type = String, example = "veth-vm1")]
    pub port_name: LinkName,
    /// The VLAN of frames without a tag. Absent: the VLANs of the port stay as they are.
    #[schema(minimum = 1, maximum = 4094)]
    pub vlan: Option<u16>,
}

impl FromFields for AddPort {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let bridge_name = fields.required("bridge_name", values::link_name);
        let port_name = fields.required("port_name", values::link_name);
        let vlan = fields.optional("vlan", values::vlan_id);
        Some(Self { bridge_name: bridge_name?, port_name: port_name?, vlan })
    }
}

impl From<AddPort> for Change {
    fn from(request: AddPort) -> Self {
        let (bridge, port) = (request.bridge_name.into(), request.port_name.into());
        match request.vlan {
            Some(vlan) => Self::AddPortToVlan { bridge, port, vlan },
            None => Self::AddPort { bridge, port },
        }
    }
}

/// A port to take out of a bridge.
#[derive(Debug, ToSchema)]
pub struct BridgePort {
    #[schema(value_type = String, example = "br-vm")]
    pub bridge_name: LinkName,
    #[schema(value_type = String, example = "veth-vm1")]
    pub port_name: LinkName,
}

impl FromFields for BridgePort {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let bridge_name = fields.required("bridge_name", values::link_name);
        let port_name = fields.required("port_name", values::link_name);
        Some(Self { bridge_name: bridge_name?, port_name: port_name? })
    }
}

/// Every bridge of the host.
#[derive(Debug, Serialize, ToSchema)]
pub struct BridgeList {
    pub bridges: Vec<BridgeView>,
}

/// Create a bridge
#[utoipa::path(
    post, path = "/bridge/create", tag = "bridge",
    request_body(content = CreateBridge, example = json!({ "name": "br-vm", "type": "linux", "stp": false })),
    responses((status = 200, description = "The bridge as the kernel has it", body = Answer<BridgeView>), Refusals),
)]
async fn create_bridge(
    State(app): State<App>,
    request: Lenient<CreateBridge>,
) -> Result<Answer<Object>, Refusal> {
    app.change(request.value.into(), request.warnings).await
}

/// Delete a bridge
#[utoipa::path(
    post, path = "/bridge/delete", tag = "bridge",
    request_body(content = DeleteBridge, example = json!({ "name": "br-vm", "force": false })),
    responses((status = 200, description = "The bridge is gone", body = Answer<Gone>), Refusals),
)]
async fn delete_bridge(
    State(app): State<App>,
    request: Lenient<DeleteBridge>,
) -> Result<Answer<Object>, Refusal> {
    let DeleteBridge { name, force } = request.value;
    app.change(Change::DeleteBridge { name: name.into(), force }, request.warnings).await
}

/// Put a link into a bridge
#[utoipa::path(
    post, path = "/bridge/add-port", tag = "bridge",
    request_body(content = AddPort, example = json!({ "bridge_name": "br-vm", "port_name": "veth-vm1" })),
    responses((status = 200, description = "The bridge with its ports", body = Answer<BridgeView>), Refusals),
)]
async fn add_port(State(app): State<App>, request: Lenient<AddPort>) -> Result<Answer<Object>, Refusal> {
    app.change(request.value.into(), request.warnings).await
}

/// Take a port out of a bridge
#[utoipa::path(
    post, path = "/bridge/remove-port", tag = "bridge",
    request_body(content = BridgePort, example = json!({ "bridge_name": "br-vm", "port_name": "veth-vm1" })),
    responses((status = 200, description = "The bridge with its ports", body = Answer<BridgeView>), Refusals),
)]
async fn remove_port(
    State(app): State<App>,
    request: Lenient<BridgePort>,
) -> Result<Answer<Object>, Refusal> {
    let BridgePort { bridge_name, port_name } = request.value;
    app.change(Change::RemovePort { bridge: bridge_name.into(), port: port_name.into() }, request.warnings)
        .await
}

/// Every bridge, the host's own too
#[utoipa::path(
    get, path = "/bridge/list", tag = "bridge",
    responses((status = 200, description = "Every bridge", body = BridgeList), Refusals),
)]
async fn list_bridges(State(app): State<App>) -> Result<Json<BridgeList>, Refusal> {
    Ok(Json(BridgeList { bridges: app.engine.bridges().await? }))
}

/// One bridge
#[utoipa::path(
    get, path = "/bridge/{name}", tag = "bridge",
    params(("name" = String, Path, description = "Its name")),
    responses((status = 200, description = "The bridge", body = Answer<BridgeView>), Refusals),
)]
async fn show_bridge(State(app): State<App>, Path(name): Path<String>) -> Result<Answer<Object>, Refusal> {
    let bridge = app.engine.bridge(&name).await?;
    Ok(Answer::shown(format!("bridge {}", bridge.name), Object::Bridge(bridge)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        api::fields::{assert_schema_matches, read},
        error::Code,
    };

    #[test]
    fn the_document_names_the_fields_that_are_read() {
        assert_schema_matches::<CreateBridge>();
        assert_schema_matches::<DeleteBridge>();
        assert_schema_matches::<AddPort>();
        assert_schema_matches::<BridgePort>();
    }

    #[test]
    fn the_readmes_bridge_is_understood() {
        let request: CreateBridge = read(json!({ "name": "br-vm", "type": "linux", "stp": false })).unwrap();
        let Change::CreateBridge(spec) = request.into() else { panic!("another change") };
        assert_eq!(spec.name.as_str(), "br-vm");
        assert!(!spec.stp && spec.mtu.is_none() && spec.addresses.is_empty());
    }

    #[test]
    fn what_cannot_be_done_is_refused_and_not_ignored() {
        let code = |body| read::<CreateBridge>(body).unwrap_err().code;
        assert_eq!(code(json!({ "name": "br-lab", "type": "vde" })), Code::InvalidField);
        assert_eq!(code(json!({ "name": "br-lab", "mtu": 67 })), Code::InvalidField);
        let port = json!({ "bridge_name": "br-lab", "port_name": "tap0", "vlan": 4095 });
        assert_eq!(read::<AddPort>(port).unwrap_err().code, Code::InvalidField);
    }
}
