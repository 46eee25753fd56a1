//! `/`, `/metrics`, `/docs`, `/openapi.json`. `/health` is in [`super::health`].

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{HeaderMap, header},
    middleware::{Next, from_fn},
    response::{Html, IntoResponse, Response},
};
use serde::Serialize;
use utoipa::{ToSchema, openapi::OpenApi};
use utoipa_axum::{router::OpenApiRouter, routes};
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::{
    App,
    error::{Refusal, Refusals},
};
use crate::{
    error::{Code, Error},
    metrics::{self, exposition::Format},
};

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(root)).routes(routes!(metrics_text)).merge(super::health::router())
}

/// `/openapi.json`, and the Swagger UI that reads it; both are in the binary.
pub fn docs(document: OpenApi) -> Router<App> {
    let ui = SwaggerUi::new("/docs").url("/openapi.json", document);
    Router::from(ui).layer(from_fn(without_slash))
}

/// The library redirects `/docs` to `/docs/`; who follows no redirect (`curl`) shall see the page too. Its files are
/// named relative to it, so that it works behind a proxy under another path.
async fn without_slash(request: Request, next: Next) -> Response {
    match index().filter(|_| request.uri().path() == "/docs") {
        Some(page) => Html(page).into_response(),
        None => next.run(request).await,
    }
}

fn index() -> Option<String> {
    let page = utoipa_swagger_ui::serve("index.html", Arc::new(Config::from("/openapi.json"))).ok()??;
    Some(String::from_utf8_lossy(&page.bytes).replacen("<head>", "<head>\n    <base href=\"docs/\" />", 1))
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
///
/// OpenMetrics where the `Accept` header asks for it, as Prometheus does, else the older text format.
#[utoipa::path(
    get, path = "/metrics", tag = "root",
    responses(
        (status = 200, description = "Series", content(
            (String = "text/plain"), (String = "application/openmetrics-text"),
        )),
        Refusals,
    ),
)]
async fn metrics_text(State(app): State<App>, headers: HeaderMap) -> Result<impl IntoResponse, Refusal> {
    let accept = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let format = Format::wanted(&accept.collect::<Vec<_>>().join(","));
    let measurements = app.engine.measurements(app.options.flow_metrics_max).await?;
    let text = metrics::render(measurements, &app.http, app.started.elapsed())
        .map_err(|_| Error::new(Code::Internal, "the metrics cannot be written down"))?;
    Ok(([(header::CONTENT_TYPE, format.content_type())], format.write(text)))
}
