//! `/nat/masquerade`: inside networks whose hosts appear with the address of the uplink.

#![expect(unused_qualifications, reason = "what utoipa makes of params() is spelt in full")]

use axum::extract::{Path, State};
use ipnet::IpNet;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    App,
    answer::{Answer, Gone},
    error::{Refusal, Refusals},
    extract::Lenient,
    fields::{Fields, FromFields},
    values::{self, MAX_NEW_FLOWS},
};
use crate::{
    engine::{Change, MasqueradeSelector, Object},
    error::{Error, Result},
    kernel::dataplane::NatType,
    model::{FlowTimeouts, LinkName, MasqueradeSpec, RuleView},
};

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(create_masquerade, delete_masquerade))
        .routes(routes!(delete_masquerade_by_id))
}

const NAT_TYPES: &[(&str, NatType)] = &[
    ("restricted", NatType::Restricted),
    ("full_cone", NatType::FullCone),
    ("symmetric", NatType::Symmetric),
];

impl FromFields for MasqueradeSpec {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let source_network = fields.required("source_network", values::host_network);
        let output_interface = fields.required("output_interface", values::link_name);
        let enabled = fields.or("enabled", true, values::boolean);
        let nat_type = fields.or("nat_type", NatType::Restricted, values::choice(NAT_TYPES));
        let port_parity = fields.or("port_parity", false, values::boolean);
        let exclude_destinations =
            fields.or("exclude_destinations", Vec::new(), values::list(values::network));
        let external_ips = fields.or("external_ips", Vec::new(), values::list(values::ip));
        let new_flows_per_second = fields.or("new_flows_per_second", 0, values::integer(0, MAX_NEW_FLOWS));
        let timeouts = fields.or("timeouts", FlowTimeouts::default(), values::timeouts);
        Some(Self {
            source_network: source_network?,
            output_interface: output_interface?,
            enabled,
            nat_type,
            port_parity,
            exclude_destinations,
            external_ips,
            new_flows_per_second,
            timeouts,
        })
    }
}

/// Which masquerade rule: its id, or network and uplink.
#[derive(Debug, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct WhichMasquerade {
    pub rule_id: Option<String>,
    /// The same as `rule_id`.
    pub id: Option<String>,
    #[schema(value_type = Option<String>)]
    #[param(value_type = Option<String>)]
    pub source_network: Option<IpNet>,
    #[schema(value_type = Option<String>)]
    #[param(value_type = Option<String>)]
    pub output_interface: Option<LinkName>,
}

impl FromFields for WhichMasquerade {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let rule_id = fields.optional("rule_id", values::text);
        let id = fields.optional("id", values::text);
        if fields.has("rule_id") || fields.has("id") {
            for field in ["source_network", "output_interface"] {
                if fields.has(field) {
                    fields.conflict(field, "is given beside the rule's id");
                }
            }
            if rule_id.is_some() && id.is_some() && rule_id != id {
                fields.conflict("id", "differs from rule_id");
            }
            let source_network = fields.optional("source_network", values::host_network);
            let output_interface = fields.optional("output_interface", values::link_name);
            return Some(Self { rule_id, id, source_network, output_interface });
        }
        let source_network = fields.required("source_network", values::host_network);
        let output_interface = fields.required("output_interface", values::link_name);
        Some(Self { rule_id, id, source_network, output_interface })
    }
}

impl WhichMasquerade {
    fn selector(self) -> Result<MasqueradeSelector> {
        match self {
            Self { rule_id: Some(id), .. } | Self { id: Some(id), .. } => Ok(MasqueradeSelector::Id(id)),
            Self { source_network: Some(source_network), output_interface: Some(interface), .. } => {
                Ok(MasqueradeSelector::Spec { source_network, output_interface: interface.into() })
            }
            Self { .. } => {
                Err(Error::field("rule_id", "is required, or source_network and output_interface"))
            }
        }
    }
}

/// Masquerade an inside network
#[utoipa::path(
    post, path = "/nat/masquerade", tag = "nat",
    request_body(content = MasqueradeSpec, example = json!({
        "source_network": "192.168.100.0/24", "output_interface": "ens3"
    })),
    responses((status = 200, description = "The rule", body = Answer<RuleView>), Refusals),
)]
async fn create_masquerade(
    State(app): State<App>,
    request: Lenient<MasqueradeSpec>,
) -> Result<Answer<Object>, Refusal> {
    app.change(Change::CreateMasquerade(request.value), request.warnings).await
}

/// Stop masquerading a network
///
/// The fields may be in the query or in a JSON body.
#[utoipa::path(
    delete, path = "/nat/masquerade", tag = "nat", params(WhichMasquerade),
    responses((status = 200, description = "The rule is gone", body = Answer<Gone>), Refusals),
)]
async fn delete_masquerade(
    State(app): State<App>,
    request: Lenient<WhichMasquerade>,
) -> Result<Answer<Object>, Refusal> {
    let selector = request.value.selector()?;
    app.change(Change::DeleteMasquerade(selector), request.warnings).await
}

/// Stop masquerading a network, by id
#[utoipa::path(
    delete, path = "/nat/masquerade/{id}", tag = "nat",
    params(("id" = String, Path, description = "As /nat/status shows it")),
    responses((status = 200, description = "The rule is gone", body = Answer<Gone>), Refusals),
)]
async fn delete_masquerade_by_id(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Answer<Object>, Refusal> {
    app.change(Change::DeleteMasquerade(MasqueradeSelector::Id(id)), Vec::new()).await
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::fields::{assert_schema_matches, read};

    #[test]
    fn the_document_names_the_fields_that_are_read() {
        assert_schema_matches::<MasqueradeSpec>();
    }

    #[test]
    fn a_masquerade_rule_is_chosen_by_id_or_by_what_it_does() {
        let selector = |body| read::<WhichMasquerade>(body).and_then(WhichMasquerade::selector);
        assert_eq!(selector(json!({ "id": "a" })).unwrap(), MasqueradeSelector::Id("a".into()));
        assert_eq!(
            selector(json!({ "id": "a", "rule_id": "a" })).unwrap(),
            MasqueradeSelector::Id("a".into())
        );
        assert!(selector(json!({ "id": "a", "rule_id": "b" })).is_err());
        let spec = json!({ "source_network": "10.0.0.5/24", "output_interface": "ens3" });
        assert_eq!(
            selector(spec).unwrap(),
            MasqueradeSelector::Spec {
                source_network: "10.0.0.0/24".parse().unwrap(),
                output_interface: "ens3".into(),
            }
        );
    }
}
