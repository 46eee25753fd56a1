//! `/vlan`: VLAN links, an interface for one VLAN of another interface.

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
    model::{LinkName, VlanLinkSpec, VlanLinkView, VlanProtocol},
};

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(create_vlan))
        .routes(routes!(delete_vlan))
        .routes(routes!(list_vlans))
        .routes(routes!(show_vlan))
}

const PROTOCOLS: &[(&str, VlanProtocol)] =
    &[("802.1Q", VlanProtocol::Dot1q), ("802.1ad", VlanProtocol::Dot1ad)];

/// A VLAN link to be.
#[derive(Debug, ToSchema)]
pub struct CreateVlan {
    /// The interface whose frames carry the tag.
    #[schema(value_type = String, example = "ens4")]
    pub parent_interface: LinkName,
    #[schema(minimum = 1, maximum = 4094, example = 100)]
    pub vlan_id: u16,
    /// Default: parent, dot, id.
    #[schema(value_type = Option<String>, min_length = 1, max_length = 15)]
    pub name: Option<LinkName>,
    /// `802.1ad` is the outer tag of stacked VLANs.
    #[schema(required = false)]
    pub protocol: VlanProtocol,
}

impl FromFields for CreateVlan {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let parent_interface = fields.required("parent_interface", values::link_name);
        let vlan_id = fields.required("vlan_id", values::vlan_id);
        let name = fields.optional("name", values::link_name);
        let protocol = fields.or("protocol", VlanProtocol::Dot1q, values::choice(PROTOCOLS));
        if let (Some(parent), Some(id), None) = (&parent_interface, vlan_id, &name) {
            let default = format!("{parent}.{id}");
            if default.len() > LinkName::MAX && !fields.has("name") {
                fields.conflict("name", &format!("is required: {default} is longer than 15 characters"));
            }
        }
        Some(Self { parent_interface: parent_interface?, vlan_id: vlan_id?, name, protocol })
    }
}

impl CreateVlan {
    fn spec(self) -> Result<VlanLinkSpec, Refusal> {
        let Self { parent_interface: parent, vlan_id, name, protocol } = self;
        let name = match name {
            Some(name) => name,
            None => LinkName::new(format!("{parent}.{vlan_id}"))
                .map_err(|why| crate::error::Error::field("name", why.to_string()))?,
        };
        Ok(VlanLinkSpec { name, parent, vlan_id, protocol, bridge: None })
    }
}

/// A VLAN link to delete, by what it is and not by its name.
#[derive(Debug, ToSchema)]
pub struct DeleteVlan {
    #[schema(value_type = String, example = "ens4")]
    pub parent_interface: LinkName,
    #[schema(minimum = 1, maximum = 4094, example = 100)]
    pub vlan_id: u16,
    /// Needed only where the parent has that id under both protocols.
    pub protocol: Option<VlanProtocol>,
}

impl FromFields for DeleteVlan {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let parent_interface = fields.required("parent_interface", values::link_name);
        let vlan_id = fields.required("vlan_id", values::vlan_id);
        let protocol = fields.optional("protocol", values::choice(PROTOCOLS));
        Some(Self { parent_interface: parent_interface?, vlan_id: vlan_id?, protocol })
    }
}

/// Create a VLAN link
///
/// 501 where the kernel has no module 8021q.
#[utoipa::path(
    post, path = "/vlan/create", tag = "vlan",
    request_body(content = CreateVlan, example = json!({ "parent_interface": "ens4", "vlan_id": 100 })),
    responses((status = 200, description = "The link as the kernel has it", body = Answer<VlanLinkView>), Refusals),
)]
async fn create_vlan(
    State(app): State<App>,
    request: Lenient<CreateVlan>,
) -> Result<Answer<Object>, Refusal> {
    app.change(Change::CreateVlanLink(request.value.spec()?), request.warnings).await
}

/// Delete a VLAN link
#[utoipa::path(
    post, path = "/vlan/delete", tag = "vlan",
    request_body(content = DeleteVlan, example = json!({ "parent_interface": "ens4", "vlan_id": 100 })),
    responses((status = 200, description = "The link is gone", body = Answer<Gone>), Refusals),
)]
async fn delete_vlan(
    State(app): State<App>,
    request: Lenient<DeleteVlan>,
) -> Result<Answer<Object>, Refusal> {
    let DeleteVlan { parent_interface, vlan_id, protocol } = request.value;
    let change = Change::DeleteVlanLink { parent: parent_interface.into(), vlan_id, protocol };
    app.change(change, request.warnings).await
}

/// Every VLAN link, the host's own too
#[utoipa::path(
    get, path = "/vlan/list", tag = "vlan",
    responses((status = 200, description = "Every VLAN link", body = Vec<VlanLinkView>), Refusals),
)]
async fn list_vlans(State(app): State<App>) -> Result<Json<Vec<VlanLinkView>>, Refusal> {
    Ok(Json(app.engine.vlan_links().await?))
}

/// One VLAN link
#[utoipa::path(
    get, path = "/vlan/{parent}/{vid}", tag = "vlan",
    params(
        ("parent" = String, Path, description = "The interface whose frames carry the tag"),
        ("vid" = u16, Path, description = "The VLAN id"),
    ),
    responses((status = 200, description = "The link", body = Answer<VlanLinkView>), Refusals),
)]
async fn show_vlan(
    State(app): State<App>,
    Path((parent, vid)): Path<(String, String)>,
) -> Result<Answer<Object>, Refusal> {
    // Read here, so that a word in its place is a 422 that says so.
    let vlan_id = values::vlan_id(&serde_json::Value::String(vid)).map_err(|fault| {
        let (super::fields::Fault::Type(why)
        | super::fields::Fault::Value(why)
        | super::fields::Fault::Unsupported(why)) = fault;
        super::fields::in_path("vid", &why)
    })?;
    let link = app.engine.vlan_link(&parent, vlan_id, None).await?;
    Ok(Answer::shown(format!("VLAN {vlan_id} of {parent}"), Object::VlanLink(link)))
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
        assert_schema_matches::<CreateVlan>();
        assert_schema_matches::<DeleteVlan>();
    }

    #[test]
    fn a_vlan_is_called_after_its_parent_unless_it_is_given_a_name() {
        let spec = |body| read::<CreateVlan>(body).unwrap().spec().unwrap();
        let plain = spec(json!({ "parent_interface": "ens4", "vlan_id": "100" }));
        assert_eq!((plain.name.as_str(), plain.protocol), ("ens4.100", VlanProtocol::Dot1q));
        let named =
            spec(json!({ "parent_interface": "ens4", "vlan_id": 1, "name": "lab", "protocol": "802.1AD" }));
        assert_eq!((named.name.as_str(), named.protocol), ("lab", VlanProtocol::Dot1ad));
    }

    #[test]
    fn ids_out_of_range_and_names_that_do_not_fit_are_refused() {
        for bad in [
            json!({ "parent_interface": "ens4", "vlan_id": 0 }),
            json!({ "parent_interface": "ens4", "vlan_id": 4095 }),
            json!({ "parent_interface": "enp101s0f10", "vlan_id": 4094 }),
            json!({ "parent_interface": "ens4", "vlan_id": 5, "protocol": "isl" }),
            json!({ "vlan_id": 5 }),
        ] {
            assert_eq!(read::<CreateVlan>(bad.clone()).unwrap_err().code, Code::InvalidField, "{bad}");
        }
    }
}
