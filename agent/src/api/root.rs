//! `/`, `/metrics`, `/docs`, `/openapi.json`. `/health` is in [`super::health`].

use axum::{Json, Router, extract::State, http::header, response::IntoResponse};
use serde::Serialize;
use utoipa::{ToSchema, openapi::OpenApi};
use utoipa_axum::{router::OpenApiRouter, routes};
use utoipa_swagger_ui::SwaggerUi;

use super::{
    App,
    error::{Refusal, Refusals},
};
use crate::{
    error::{Code, Error},
    metrics,
};

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(root)).routes(routes!(metrics_text)).merge(super::health::router())
}

/// `/openapi.json`, and the Swagger UI that reads it; both are in the binary.
pub fn docs(document: OpenApi) -> Router<App> {
    // `/docs` redirects to `/docs/`, relative to the worker: it works under any name.
    let ui = SwaggerUi::new("/docs").url("/openapi.json", document);
    Router::from(ui)
}

/// Who answers here.
#[derive(Debug, Serialize, ToSchema)]
pub struct Root {
    #[schema(example = "telecluster-worker")]
    service: &'static str,
    version: &'static str,
    #[schema(example = "running")]
    status: &'static str,
    description: &'static str,
    #[schema(example = "/docs")]
    docs_url: &'static str,
    #[schema(example = "/health")]
    health_check: &'static str,
}

/// Who answers here
#[utoipa::path(
    get, path = "/", tag = "root",
    responses((status = 200, description = "Service and version", body = Root), Refusals),
)]
async fn root() -> Json<Root> {
    Json(Root {
        service: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        status: "running",
        description: env!("CARGO_PKG_DESCRIPTION"),
        docs_url: "/docs",
        health_check: "/health",
    })
}

/// Counters for Prometheus
#[utoipa::path(
    get, path = "/metrics", tag = "root",
    responses((status = 200, description = "OpenMetrics text", body = String, content_type = "application/openmetrics-text"), Refusals),
)]
async fn metrics_text(State(app): State<App>) -> Result<impl IntoResponse, Refusal> {
    let measurements = app.engine.measurements().await?;
    let text = metrics::render(measurements, app.options.flow_metrics_max, &app.http, app.started.elapsed())
        .map_err(|_| Error::new(Code::Internal, "the metrics cannot be written down"))?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text))
}
