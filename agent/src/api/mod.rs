//! The HTTP side: `request -> extract -> validate -> change`, and back.
//!
//! One file per resource. Routes and the OpenAPI document are made from the same declarations. A new resource
//! is a file like [`bridge`] and a line in [`resources`].

pub mod answer;
pub mod auth;
pub mod bridge;
pub mod bridge_vlan;
pub mod document;
pub mod error;
pub mod extract;
pub mod fields;
pub mod firewall;
pub mod flows;
pub mod forward;
pub mod guard;
pub mod health;
pub mod masquerade;
pub mod nat;
pub mod network;
pub mod probe;
pub mod root;
pub mod status;
pub mod topology;
pub mod trace;
pub mod tuntap;
pub mod values;
pub mod veth;
pub mod vlan_link;

#[cfg(test)]
mod tests;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Router, extract::DefaultBodyLimit, http::StatusCode, middleware::from_fn_with_state};
use tokio::sync::Semaphore;
use tower_http::{catch_panic::CatchPanicLayer, timeout::TimeoutLayer};
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use self::{answer::Answer, auth::Token, error::Refusal, guard::Names};
use crate::{
    engine::{Change, Engine, Object},
    metrics::HttpMetrics,
};

/// Largest body in bytes: a thousand times what any request needs.
pub const BODY_MAX: usize = 1024 * 1024;

/// How long a request may take, its body's arrival included.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What the API has to know beside the engine.
#[derive(Debug, Clone)]
pub struct ApiOptions {
    /// The port that the API is served on: no forward may take it.
    pub port: u16,
    /// What callers from other machines show. `None`: they are refused.
    pub token: Option<Token>,
    /// Names of this machine beside `localhost`.
    pub names: Names,
    /// Where the worker keeps its state: the disk whose room matters.
    pub state_dir: PathBuf,
    /// How many flows have series of their own on `/metrics`.
    pub flow_metrics_max: usize,
}

/// What handlers share.
#[derive(Debug, Clone)]
pub struct App {
    pub(crate) engine: Engine,
    pub(crate) options: Arc<ApiOptions>,
    pub(crate) http: HttpMetrics,
    pub(crate) started: Instant,
    pub(crate) probes: Arc<Semaphore>,
}

impl App {
    fn new(engine: Engine, options: ApiOptions) -> Self {
        Self {
            engine,
            options: Arc::new(options),
            http: HttpMetrics::default(),
            started: Instant::now(),
            probes: Arc::new(Semaphore::new(probe::PROBES)),
        }
    }

    /// Asks the engine for a change and wraps what came of it.
    pub(crate) async fn change(
        &self,
        change: Change,
        unknown_fields: Vec<String>,
    ) -> Result<Answer<Object>, Refusal> {
        let outcome = self.engine.change(change).await?;
        Ok(Answer::of(outcome, unknown_fields))
    }
}

/// The whole API. Serve it with connect info: callers from loopback are told by their address.
pub fn router(engine: Engine, options: ApiOptions) -> Router {
    let app = App::new(engine, options);
    let (routes, mut document) = routes().split_for_parts();
    document::name_aliases(&mut document);
    around(routes.merge(root::docs(document)), app, TIMEOUT)
}

/// What every request goes through, whatever its route.
fn around(routes: Router<App>, app: App, timeout: Duration) -> Router {
    (routes.fallback(error::no_such_route).method_not_allowed_fallback(error::method_not_allowed))
        // From the inside out: the last layer sees a request first.
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, timeout))
        .layer(from_fn_with_state(app.options.token.clone(), auth::require_token))
        .layer(from_fn_with_state(app.options.names.clone(), guard::guard))
        .layer(CatchPanicLayer::custom(trace::panicked))
        .layer(from_fn_with_state(app.clone(), trace::trace))
        .with_state(app)
}

/// The OpenAPI document of every route.
pub fn document() -> OpenApi {
    let mut document = routes().into_openapi();
    document::name_aliases(&mut document);
    document
}

/// The document as it is checked in.
pub fn document_text() -> String {
    // Through a value: keys sorted, so that a difference is a difference.
    let text = serde_json::to_value(document()).and_then(|document| serde_json::to_string_pretty(&document));
    text.map(|text| text + "\n").unwrap_or_default()
}

fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(document::skeleton())
        .merge(root::router())
        .merge(network::router())
        .merge(probe::router())
        .merge(status::router())
        .merge(topology::router())
        .merge(resources())
        .nest("/network", resources())
}

/// The resources that are there under `/...` and under `/network/...`: existing clients use both.
fn resources() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .merge(bridge::router())
        .merge(veth::router())
        .merge(vlan_link::router())
        .merge(bridge_vlan::router())
        .merge(tuntap::router())
        .merge(nat::router())
}
