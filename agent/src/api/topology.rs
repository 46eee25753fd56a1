//! `/network/topology`: what is connected with what, as JSON and as pictures. `/network/routes`.

#![expect(unused_qualifications, reason = "what utoipa makes of params() is spelt in full")]

use axum::{
    Json,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    App,
    error::{Refusal, Refusals},
    extract::Lenient,
    fields::{Fault, Fields, FromFields},
    values,
};
use crate::{
    error::{Code, Error},
    model::RouteView,
    topology::{self, Graph, Topology},
};

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(show_topology)).routes(routes!(list_routes))
}

/// The form of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum Format {
    Json,
    Svg,
    Dot,
    Mermaid,
}

/// How the topology is wanted.
#[derive(Debug, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct HowTopology {
    #[schema(required = false, default = "json")]
    #[param(required = false, inline)]
    pub format: Format,
}

impl FromFields for HowTopology {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        Some(Self { format: fields.or("format", Format::Json, format) })
    }
}

fn format(value: &Value) -> Result<Format, Fault> {
    values::choice(&[
        ("json", Format::Json),
        ("svg", Format::Svg),
        ("dot", Format::Dot),
        ("mermaid", Format::Mermaid),
    ])(value)
}

/// What is connected with what
///
/// As JSON, or as a picture: `svg` follows the reader's light or dark mode, `dot` is for Graphviz, `mermaid` for
/// Markdown. The same network is the same bytes every time.
#[utoipa::path(
    get, path = "/network/topology", tag = "network", params(HowTopology),
    responses(
        (status = 200, description = "The network of the host", content(
            (Topology = "application/json"),
            (String = "image/svg+xml"),
            (String = "text/vnd.graphviz"),
            (String = "text/plain"),
        )),
        Refusals,
    ),
)]
async fn show_topology(State(app): State<App>, request: Lenient<HowTopology>) -> Result<Response, Refusal> {
    let topology = app.engine.topology().await?;
    let (kind, draw): (_, fn(&Graph) -> String) = match request.value.format {
        Format::Json => return Ok(Json(topology).into_response()),
        Format::Svg => ("image/svg+xml", topology::svg),
        Format::Dot => ("text/vnd.graphviz", topology::dot),
        Format::Mermaid => ("text/plain; charset=utf-8", topology::mermaid),
    };
    // A layout of hundreds of cards takes a moment.
    let text = tokio::task::spawn_blocking(move || draw(&topology.graph))
        .await
        .map_err(|error| Error::new(Code::Internal, format!("drawing ended early: {error}")))?;
    let headers = [
        (header::CONTENT_TYPE, kind),
        // A picture loads nothing and runs nothing, whatever is in its names.
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'"),
    ];
    Ok((headers, text).into_response())
}

/// Every route of the host
///
/// Of the main tables of both families; a route with several next hops is there once for each.
#[utoipa::path(
    get, path = "/network/routes", tag = "network",
    responses((status = 200, description = "Every route", body = Vec<RouteView>), Refusals),
)]
async fn list_routes(State(app): State<App>) -> Result<Json<Vec<RouteView>>, Refusal> {
    Ok(Json(app.engine.routes().await?))
}
