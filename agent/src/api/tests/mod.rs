//! The API as its callers see it: requests against the router over a machine in memory, without a socket.

mod around;
mod bridge_vlan;
mod every_route;
mod links;
mod rules;
mod security;
mod tuntap;

use std::net::SocketAddr;

use axum::{
    body::{Body, to_bytes},
    extract::ConnectInfo,
    http::{HeaderMap, Request, header},
};
use serde_json::{Value, json};
use tower::ServiceExt;

use super::*;
use crate::engine::Fake;

/// An answer: status, headers, JSON (null when it is none).
#[derive(Debug)]
struct Got {
    status: u16,
    headers: HeaderMap,
    json: Value,
    text: String,
}

impl Got {
    #[track_caller]
    fn refused(&self, status: u16, code: &str) -> &Self {
        assert_eq!((self.status, self.json["code"].as_str()), (status, Some(code)), "{}", self.text);
        assert_eq!(self.json["status"], "error");
        assert_eq!(self.json["error"], format!("HTTP {status}"));
        assert_eq!(self.json["request_id"].as_str().unwrap(), self.headers["x-request-id"]);
        assert_eq!(self.json["detail"].is_array(), status == 422, "{}", self.text);
        for told in ["message", "hint"] {
            assert!(self.json[told].as_str().is_some_and(|text| !text.is_empty()), "{told}: {}", self.text);
        }
        self
    }

    /// The data of a mutation that went well.
    #[track_caller]
    fn done(&self, changed: bool) -> &Value {
        assert_eq!(self.status, 200, "{}", self.text);
        assert!(self.json["status"] == "ok" || self.json["status"] == "warning", "{}", self.text);
        assert_eq!(self.json["error"], Value::Null);
        assert_eq!(self.json["data"]["success"], true);
        assert_eq!(self.json["data"]["changed"], changed, "{}", self.text);
        assert!(self.json["data"]["warnings"].is_array());
        &self.json["data"]
    }
}

fn options() -> ApiOptions {
    ApiOptions {
        port: 8000,
        token: None,
        names: Names::default(),
        state_dir: "/".into(),
        flow_metrics_max: 500,
    }
}

/// An engine over a machine in memory.
async fn engine() -> Engine {
    Engine::fake().await.unwrap().0
}

async fn app() -> App {
    App::new(engine().await, options())
}

/// A request as curl sends it from this machine.
fn request(method: &str, path: &str) -> axum::http::request::Builder {
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "localhost:8000")
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .extension(ConnectInfo(SocketAddr::from(([127, 0, 0, 1], 40000))))
}

async fn send(router: &Router, request: Request<Body>) -> Got {
    let response = router.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let text = String::from_utf8(to_bytes(body, usize::MAX).await.unwrap().to_vec()).unwrap();
    let json = serde_json::from_str(&text).unwrap_or_default();
    Got { status: parts.status.as_u16(), headers: parts.headers, json, text }
}

async fn call(method: &str, path: &str, body: &str) -> Got {
    send(&router(engine().await, options()), request(method, path).body(body.to_owned().into()).unwrap())
        .await
}

/// A worker on a machine in memory: uplink `ens3` with a default route, `ens4`, namespaces `lab1` and `lab2`.
struct Lab {
    router: Router,
    fake: Fake,
}

impl Lab {
    async fn new() -> Self {
        let (engine, fake) = Engine::fake().await.unwrap();
        Self { router: router(engine, options()), fake }
    }

    async fn get(&self, path: &str) -> Got {
        self.ask("GET", path, Value::Null).await
    }

    async fn post(&self, path: &str, body: Value) -> Got {
        self.ask("POST", path, body).await
    }

    async fn delete(&self, path: &str, body: Value) -> Got {
        self.ask("DELETE", path, body).await
    }

    async fn ask(&self, method: &str, path: &str, body: Value) -> Got {
        let body = if body.is_null() { Body::empty() } else { body.to_string().into() };
        send(&self.router, request(method, path).body(body).unwrap()).await
    }
}
