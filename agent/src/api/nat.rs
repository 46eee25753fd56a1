//! `/nat`: forwards, masquerade, firewall, flows, and the status of all rules.

use axum::{Json, extract::State};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    App,
    error::{Refusal, Refusals},
    firewall, flows, forward, masquerade,
};
use crate::model::NatStatusView;

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .merge(forward::router())
        .merge(masquerade::router())
        .merge(firewall::router())
        .routes(routes!(nat_status))
        .merge(flows::router())
}

/// Every rule with its counters
#[utoipa::path(
    get, path = "/nat/status", tag = "nat",
    responses((status = 200, description = "Every rule", body = NatStatusView), Refusals),
)]
async fn nat_status(State(app): State<App>) -> Result<Json<NatStatusView>, Refusal> {
    Ok(Json(app.engine.nat_status().await?))
}
