//! `/veth`: veth pairs.

use axum::{
    Json,
    extract::{Path, State},
};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    App,
    answer::{Answer, Gone},
    error::{Refusal, Refusals},
    extract::Lenient,
    fields::{Fields, FromFields},
    values,
};
use crate::{
    engine::{Change, Object},
    model::{LinkName, NamespaceName, VethSpec, VethView},
};

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(create_veth))
        .routes(routes!(delete_veth))
        .routes(routes!(move_veth_to_bridge))
        .routes(routes!(move_veth_to_namespace))
        .routes(routes!(list_veths))
        .routes(routes!(show_veth))
}

/// A veth pair to be.
#[derive(Debug, ToSchema)]
pub struct CreateVeth {
    #[schema(value_type = String, min_length = 1, max_length = 15, example = "veth-vm1")]
    pub name1: LinkName,
    #[schema(value_type = String, min_length = 1, max_length = 15, example = "veth-vm2")]
    pub name2: LinkName,
    /// The bridge of the first end.
    #[schema(value_type = Option<String>)]
    pub bridge1: Option<LinkName>,
    #[schema(value_type = Option<String>)]
    pub bridge2: Option<LinkName>,
    /// The network namespace of the first end, as `ip netns` names it.
    #[schema(value_type = Option<String>)]
    pub namespace1: Option<NamespaceName>,
    #[schema(value_type = Option<String>)]
    pub namespace2: Option<NamespaceName>,
}

impl FromFields for CreateVeth {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let name1 = fields.required("name1", values::link_name);
        let name2 = fields.required("name2", values::link_name);
        let bridge1 = fields.optional("bridge1", values::link_name);
        let bridge2 = fields.optional("bridge2", values::link_name);
        let namespace1 = fields.optional("namespace1", values::namespace_name);
        let namespace2 = fields.optional("namespace2", values::namespace_name);
        // Two namespaces may each have a link of that name, one may not.
        if name1.is_some() && name1 == name2 && namespace1 == namespace2 {
            fields.conflict("name2", "is the name of the other end");
        }
        Some(Self { name1: name1?, name2: name2?, bridge1, bridge2, namespace1, namespace2 })
    }
}

impl From<CreateVeth> for Change {
    fn from(request: CreateVeth) -> Self {
        let CreateVeth { name1, name2, bridge1, bridge2, namespace1, namespace2 } = request;
        Self::CreateVeth(VethSpec { name1, name2, bridge1, bridge2, namespace1, namespace2 })
    }
}

/// A veth pair to delete.
#[derive(Debug, ToSchema)]
pub struct DeleteVeth {
    /// Either end.
    #[schema(value_type = String, example = "veth-vm1")]
    pub name: LinkName,
}

impl FromFields for DeleteVeth {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let name = fields.required("name", values::link_name);
        Some(Self { name: name? })
    }
}

/// An end of a pair, and the bridge it shall be a port of.
#[derive(Debug, ToSchema)]
pub struct MoveToBridge {
    #[schema(value_type = String, example = "veth-vm1")]
    pub veth_name: LinkName,
    #[schema(value_type = String, example = "br-vm")]
    pub target_bridge: LinkName,
}

impl FromFields for MoveToBridge {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let veth_name = fields.required("veth_name", values::link_name);
        let target_bridge = fields.required("target_bridge", values::link_name);
        Some(Self { veth_name: veth_name?, target_bridge: target_bridge? })
    }
}

/// An end of a pair, and the network namespace it shall be in.
#[derive(Debug, ToSchema)]
pub struct MoveToNamespace {
    #[schema(value_type = String, example = "veth-vm1")]
    pub veth_name: LinkName,
    #[schema(value_type = String, max_length = 255, example = "vm1")]
    pub target_namespace: NamespaceName,
}

impl FromFields for MoveToNamespace {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let veth_name = fields.required("veth_name", values::link_name);
        let target_namespace = fields.required("target_namespace", values::namespace_name);
        Some(Self { veth_name: veth_name?, target_namespace: target_namespace? })
    }
}

/// Create a veth pair
#[utoipa::path(
    post, path = "/veth/create", tag = "veth",
    request_body(content = CreateVeth, example = json!({
        "name1": "veth-vm1", "name2": "veth-vm2", "bridge1": "br-vm", "bridge2": "br-vm"
    })),
    responses((status = 200, description = "The pair as the kernel has it", body = Answer<VethView>), Refusals),
)]
async fn create_veth(
    State(app): State<App>,
    request: Lenient<CreateVeth>,
) -> Result<Answer<Object>, Refusal> {
    app.change(request.value.into(), request.warnings).await
}

/// Delete a veth pair, by either end
#[utoipa::path(
    post, path = "/veth/delete", tag = "veth",
    request_body(content = DeleteVeth, example = json!({ "name": "veth-vm1" })),
    responses((status = 200, description = "Both ends are gone", body = Answer<Gone>), Refusals),
)]
async fn delete_veth(
    State(app): State<App>,
    request: Lenient<DeleteVeth>,
) -> Result<Answer<Object>, Refusal> {
    app.change(Change::DeleteVeth { name: request.value.name.into() }, request.warnings).await
}

/// Make an end the port of another bridge
#[utoipa::path(
    post, path = "/veth/move-to-bridge", tag = "veth",
    request_body(content = MoveToBridge, example = json!({ "veth_name": "veth-vm1", "target_bridge": "br-vm" })),
    responses((status = 200, description = "The pair as the kernel has it", body = Answer<VethView>), Refusals),
)]
async fn move_veth_to_bridge(
    State(app): State<App>,
    request: Lenient<MoveToBridge>,
) -> Result<Answer<Object>, Refusal> {
    let MoveToBridge { veth_name, target_bridge } = request.value;
    let change = Change::MoveVethToBridge { veth: veth_name.into(), bridge: target_bridge.into() };
    app.change(change, request.warnings).await
}

/// Put an end into a network namespace
#[utoipa::path(
    post, path = "/veth/move-to-namespace", tag = "veth",
    request_body(content = MoveToNamespace, example = json!({ "veth_name": "veth-vm1", "target_namespace": "vm1" })),
    responses((status = 200, description = "The pair as the kernel has it", body = Answer<VethView>), Refusals),
)]
async fn move_veth_to_namespace(
    State(app): State<App>,
    request: Lenient<MoveToNamespace>,
) -> Result<Answer<Object>, Refusal> {
    let MoveToNamespace { veth_name, target_namespace } = request.value;
    let change = Change::MoveVethToNamespace { veth: veth_name.into(), namespace: target_namespace };
    app.change(change, request.warnings).await
}

/// Every veth pair, the host's own too
#[utoipa::path(
    get, path = "/veth/list", tag = "veth",
    responses((status = 200, description = "Every pair", body = Vec<VethView>), Refusals),
)]
async fn list_veths(State(app): State<App>) -> Result<Json<Vec<VethView>>, Refusal> {
    Ok(Json(app.engine.veths().await?))
}

/// One veth pair, by either end
#[utoipa::path(
    get, path = "/veth/{name}", tag = "veth",
    params(("name" = String, Path, description = "Either end")),
    responses((status = 200, description = "The pair", body = Answer<VethView>), Refusals),
)]
async fn show_veth(State(app): State<App>, Path(name): Path<String>) -> Result<Answer<Object>, Refusal> {
    let veth = app.engine.veth(&name).await?;
    Ok(Answer::shown(format!("veth pair of {name}"), Object::Veth(veth)))
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
        assert_schema_matches::<CreateVeth>();
        assert_schema_matches::<DeleteVeth>();
        assert_schema_matches::<MoveToBridge>();
        assert_schema_matches::<MoveToNamespace>();
    }

    #[test]
    fn the_readmes_pair_is_understood() {
        let body =
            json!({ "name1": "veth-vm1", "name2": "veth-vm2", "bridge1": "br-vm", "bridge2": "br-vm" });
        let pair: CreateVeth = read(body).unwrap();
        assert_eq!(pair.bridge1, pair.bridge2);
        assert_eq!(pair.name2.as_str(), "veth-vm2");
    }

    #[test]
    fn two_ends_of_one_name_need_two_namespaces() {
        let body = json!({ "name1": "eth0", "name2": "eth0" });
        assert_eq!(read::<CreateVeth>(body).unwrap_err().fields[0].kind, "conflict");
        let body = json!({ "name1": "eth0", "name2": "eth0", "namespace1": "a", "namespace2": "b" });
        assert!(read::<CreateVeth>(body).is_ok());
    }

    #[test]
    fn a_name_that_would_be_an_option_is_refused() {
        let body = json!({ "name1": "-all", "name2": "veth-of-16-bytes" });
        let error = read::<CreateVeth>(body).unwrap_err();
        assert_eq!(error.code, Code::InvalidField);
        assert_eq!(error.fields.len(), 2);
    }
}
