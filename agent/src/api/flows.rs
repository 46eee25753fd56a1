//! `/nat/flows`: live flows, filtered, sorted, paged.

#![expect(unused_qualifications, reason = "what utoipa makes of params() is spelt in full")]

use std::net::IpAddr;

use axum::{Json, extract::State};
use serde::Serialize;
use telecluster_common::tcp::FlowState;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    App,
    error::{Refusal, Refusals},
    extract::Lenient,
    fields::{Fields, FromFields},
    values,
};
use crate::engine::{FlowPage, FlowQuery, FlowSort};

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list_flows))
}

const PROTOCOLS: &[(&str, &str)] = &[("tcp", "tcp"), ("udp", "udp"), ("icmp", "icmp"), ("icmpv6", "icmpv6")];

const SORTS: &[(&str, FlowSort)] = &[
    ("bytes", FlowSort::Bytes),
    ("packets", FlowSort::Packets),
    ("age", FlowSort::Age),
    ("idle", FlowSort::Idle),
];

const STATES: &[(&str, FlowState)] = &[
    (FlowState::New.name(), FlowState::New),
    (FlowState::Established.name(), FlowState::Established),
    (FlowState::HalfClosed.name(), FlowState::HalfClosed),
    (FlowState::Closed.name(), FlowState::Closed),
    (FlowState::Reset.name(), FlowState::Reset),
];

/// Flows on a page when nothing is said.
const LIMIT: usize = 1000;

/// Which flows, in which order. What is absent matches everything.
#[derive(Debug, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct FlowFilter {
    /// tcp, udp, icmp or icmpv6.
    pub protocol: Option<String>,
    #[schema(value_type = Option<String>)]
    #[param(value_type = Option<String>)]
    pub inside_ip: Option<IpAddr>,
    #[schema(value_type = Option<String>)]
    #[param(value_type = Option<String>)]
    pub remote_ip: Option<IpAddr>,
    pub external_port: Option<u16>,
    pub rule_id: Option<String>,
    /// new, established, half_closed, closed or reset.
    pub state: Option<String>,
    /// bytes (default), packets, age or idle; the largest first.
    #[schema(value_type = Option<String>)]
    #[param(value_type = Option<String>)]
    pub sort: FlowSort,
    /// 1 to 100000, default 1000.
    #[schema(required = false)]
    #[param(required = false)]
    pub limit: usize,
    #[schema(required = false)]
    #[param(required = false)]
    pub offset: usize,
}

impl FromFields for FlowFilter {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        Some(Self {
            protocol: fields.optional("protocol", values::choice(PROTOCOLS)).map(str::to_owned),
            inside_ip: fields.optional("inside_ip", values::ip),
            remote_ip: fields.optional("remote_ip", values::ip),
            // ICMP identifiers may be 0.
            external_port: fields.optional("external_port", values::integer(0, u16::MAX.into())),
            rule_id: fields.optional("rule_id", values::text),
            state: fields.optional("state", values::choice(STATES)).map(|state| state.name().to_owned()),
            sort: fields.or("sort", FlowSort::Bytes, values::choice(SORTS)),
            limit: fields.or("limit", LIMIT, values::integer(1, 100_000)),
            offset: fields.or("offset", 0, values::integer(0, u32::MAX.into())),
        })
    }
}

impl From<FlowFilter> for FlowQuery {
    fn from(filter: FlowFilter) -> Self {
        let FlowFilter { protocol, inside_ip, remote_ip, external_port, rule_id, state, sort, limit, offset } =
            filter;
        Self { protocol, inside_ip, remote_ip, external_port, rule_id, state, sort, offset, limit }
    }
}

/// A page of flows.
#[derive(Debug, Serialize, ToSchema)]
pub struct Flows {
    #[serde(flatten)]
    page: FlowPage,
    /// Parameters that nobody asked for: a typo in a filter would show too much.
    warnings: Vec<String>,
}

/// Live flows with exact counters in both directions
#[utoipa::path(
    get, path = "/nat/flows", tag = "nat", params(FlowFilter),
    responses((status = 200, description = "A page of flows", body = Flows), Refusals),
)]
async fn list_flows(State(app): State<App>, request: Lenient<FlowFilter>) -> Result<Json<Flows>, Refusal> {
    let page = app.engine.flows(&request.value.into()).await?;
    Ok(Json(Flows { page, warnings: request.warnings }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::fields::{assert_schema_matches, read};

    #[test]
    fn the_document_names_the_fields_that_are_read() {
        assert_schema_matches::<FlowFilter>();
    }

    #[test]
    fn nothing_asked_is_the_first_page_of_everything() {
        let query = FlowQuery::from(read::<FlowFilter>(json!({})).unwrap());
        assert_eq!((query.limit, query.offset, query.sort), (1000, 0, FlowSort::Bytes));
        assert!(query.protocol.is_none() && query.state.is_none());
    }

    #[test]
    fn filters_of_a_query_are_text() {
        let filter = json!({ "protocol": "TCP", "external_port": "2222", "sort": "idle", "limit": "5", "state": "new" });
        let query = FlowQuery::from(read::<FlowFilter>(filter).unwrap());
        assert_eq!(query.protocol.as_deref(), Some("tcp"));
        assert_eq!((query.external_port, query.limit, query.sort), (Some(2222), 5, FlowSort::Idle));
    }

    #[test]
    fn a_limit_beyond_the_largest_page_is_refused() {
        assert!(read::<FlowFilter>(json!({ "limit": 100_001 })).is_err());
        assert!(read::<FlowFilter>(json!({ "limit": 0 })).is_err());
        assert!(read::<FlowFilter>(json!({ "state": "open" })).is_err());
    }
}
