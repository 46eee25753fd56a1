//! `/network`: what the host has, ours or not.

use axum::{
    Json,
    extract::{Path, State},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    App,
    answer::{Answer, Data, Status},
    error::{Refusal, Refusals},
};
use crate::{
    error::{Code, Error},
    model::{BridgeView, InterfaceView},
};

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list_interfaces))
        .routes(routes!(show_interface))
        .routes(routes!(list_network_bridges))
}

/// Every interface of the host
#[utoipa::path(
    get, path = "/network/interfaces", tag = "network",
    responses((status = 200, description = "Every interface", body = Vec<InterfaceView>), Refusals),
)]
async fn list_interfaces(State(app): State<App>) -> Result<Json<Vec<InterfaceView>>, Refusal> {
    Ok(Json(app.engine.interfaces().await?))
}

/// One interface
#[utoipa::path(
    get, path = "/network/interface/{name}", tag = "network",
    params(("name" = String, Path, description = "Its name")),
    responses((status = 200, description = "The interface", body = Answer<InterfaceView>), Refusals),
)]
async fn show_interface(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Answer<InterfaceView>, Refusal> {
    let interfaces = app.engine.interfaces().await?;
    let Some(object) = interfaces.into_iter().find(|interface| interface.name == name) else {
        return Err(Error::new(Code::LinkNotFound, format!("there is no interface {name}"))
            .hint("GET /network/interfaces lists them")
            .into());
    };
    let data = Data { object, rule_id: None, success: true, changed: false, warnings: Vec::new() };
    Ok(Answer { status: Status::Ok, message: format!("interface {name}"), data, error: () })
}

/// Every bridge of the host, as a bare list
#[utoipa::path(
    get, path = "/network/bridges", tag = "network",
    responses((status = 200, description = "Every bridge", body = Vec<BridgeView>), Refusals),
)]
async fn list_network_bridges(State(app): State<App>) -> Result<Json<Vec<BridgeView>>, Refusal> {
    Ok(Json(app.engine.bridges().await?))
}
