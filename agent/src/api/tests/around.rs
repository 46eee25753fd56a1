//! What every request goes through, whatever it asks for.

use std::net::SocketAddr;

use axum::{body::Body, extract::ConnectInfo, http::header, routing};

use super::*;

#[tokio::test]
async fn an_unknown_path_and_a_wrong_method_have_the_envelope() {
    call("GET", "/vm/list", "").await.refused(404, "NO_SUCH_ROUTE");
    call("GET", "/docs/nothing.js", "").await.refused(404, "NO_SUCH_ROUTE");
    let got = call("PUT", "/bridge/create", "{}").await;
    got.refused(405, "METHOD_NOT_ALLOWED");
    assert_eq!(got.headers[header::ALLOW], "POST");
    assert!(got.json["message"].as_str().unwrap().contains("PUT"));
}

#[tokio::test]
async fn every_resource_is_there_under_both_names() {
    for path in ["/bridge/create", "/veth/create", "/nat/forward", "/nat/masquerade"] {
        call("POST", path, "{}").await.refused(422, "INVALID_FIELD");
        call("POST", &format!("/network{path}"), "{}").await.refused(422, "INVALID_FIELD");
    }
}

#[tokio::test]
async fn json_is_understood_under_any_content_type() {
    for kind in ["application/x-www-form-urlencoded", "application/json", "text/plain", ""] {
        let request = request("POST", "/bridge/create").header(header::CONTENT_TYPE, kind);
        let got =
            send(&router(engine().await, options()), request.body(r#"{"name": 5}"#.into()).unwrap()).await;
        got.refused(422, "INVALID_FIELD");
        assert_eq!(got.json["detail"][0]["loc"], serde_json::json!(["body", "name"]));
    }
}

#[tokio::test]
async fn malformed_bodies_are_400_and_large_ones_413() {
    for body in ["{", "{\"name\": \"br", "name=br0", "\u{0}"] {
        call("POST", "/bridge/create", body).await.refused(400, "MALFORMED_JSON");
    }
    call("POST", "/bridge/create", &" ".repeat(BODY_MAX + 1)).await.refused(413, "BODY_TOO_LARGE");
    call("DELETE", "/nat/forward/%ff", "").await.refused(422, "INVALID_FIELD");
}

#[tokio::test]
async fn body_and_query_must_agree() {
    let got = call("POST", "/bridge/create?name=br1", r#"{"name": "br0"}"#).await;
    got.refused(422, "INVALID_FIELD");
    assert_eq!(got.json["detail"][0]["type"], "conflict");
}

#[tokio::test]
async fn the_port_of_the_api_is_not_forwarded() {
    let body =
        r#"{"external_port": 8000, "internal_ip": "10.0.0.2", "internal_port": 22, "protocol": "all"}"#;
    call("POST", "/nat/forward", body).await.refused(409, "FORWARD_PORT_RESERVED");
}

#[tokio::test]
async fn web_pages_of_other_sites_are_kept_out() {
    let router = router(engine().await, options());
    let foreign = request("POST", "/bridge/create").header(header::ORIGIN, "http://evil.example");
    send(&router, foreign.body(r#"{"name": "br0"}"#.into()).unwrap()).await.refused(403, "FOREIGN_ORIGIN");

    let mut rebound = request("GET", "/nat/status").body(Body::empty()).unwrap();
    rebound.headers_mut().insert(header::HOST, "evil.example".parse().unwrap());
    send(&router, rebound).await.refused(421, "FOREIGN_HOST");
}

#[tokio::test]
async fn callers_from_elsewhere_need_the_token() {
    let dir = tempfile::tempdir().unwrap();
    let token = Token::load_or_create(dir.path()).unwrap();
    let secret = std::fs::read_to_string(Token::path(dir.path())).unwrap();
    let router = router(engine().await, ApiOptions { token: Some(token), ..options() });
    let from_elsewhere = |authorization: &str| {
        let mut request = request("GET", "/").header(header::AUTHORIZATION, authorization);
        request.extensions_mut().unwrap().insert(ConnectInfo(SocketAddr::from(([10, 0, 0, 9], 40000))));
        request.body(Body::empty()).unwrap()
    };
    let got = send(&router, from_elsewhere("")).await;
    got.refused(401, "UNAUTHORIZED");
    assert_eq!(got.headers[header::WWW_AUTHENTICATE], "Bearer");
    send(&router, from_elsewhere("Bearer 0")).await.refused(401, "UNAUTHORIZED");
    assert_eq!(send(&router, from_elsewhere(&format!("Bearer {}", secret.trim()))).await.status, 200);
}

#[tokio::test]
async fn a_request_id_is_echoed() {
    let request = request("GET", "/nowhere").header("x-request-id", "run-7").body(Body::empty()).unwrap();
    let got = send(&router(engine().await, options()), request).await;
    assert_eq!(got.refused(404, "NO_SUCH_ROUTE").json["request_id"], "run-7");
}

#[tokio::test]
async fn a_panic_is_a_500_and_the_next_request_is_served() {
    let routes = Router::new().route("/panic", routing::get(|| async { panic!("a bug") as () }));
    let router = around(routes, app().await, TIMEOUT);
    let ask = || request("GET", "/panic").body(Body::empty()).unwrap();
    send(&router, ask()).await.refused(500, "INTERNAL");
    send(&router, ask()).await.refused(500, "INTERNAL");
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_a_503() {
    let routes = Router::new().route("/slow", routing::get(std::future::pending::<()>));
    let router = around(routes, app().await, Duration::from_millis(10));
    let ask = request("GET", "/slow").body(Body::empty()).unwrap();
    send(&router, ask).await.refused(503, "NOT_READY");
}

#[tokio::test]
async fn the_documentation_is_complete_without_the_internet() {
    let got = call("GET", "/docs/", "").await;
    assert_eq!(got.status, 200);
    assert!(got.headers[header::CONTENT_TYPE].to_str().unwrap().starts_with("text/html"));
    assert!(!got.text.contains("https://"), "{}", got.text);
    for script in got.text.split("src=\"").skip(1) {
        let name = script.split('"').next().unwrap().trim_start_matches("./");
        assert_eq!(call("GET", &format!("/docs/{name}"), "").await.status, 200, "{name}");
    }
    // The same page, whose files are below it.
    let without_slash = call("GET", "/docs", "").await;
    assert_eq!(without_slash.status, 200);
    assert_eq!(without_slash.text.replacen("\n    <base href=\"docs/\" />", "", 1), got.text);
    assert_ne!(without_slash.text, got.text);
    let served = call("GET", "/openapi.json", "").await.json;
    assert_eq!(served, serde_json::to_value(document()).unwrap());
}

#[tokio::test]
async fn requests_are_counted_by_route_and_never_by_path() {
    let app = app().await;
    let routes = Router::new().route("/bridge/{name}", routing::get(|| async {}));
    let router = around(routes, app.clone(), TIMEOUT);
    for path in ["/bridge/br0", "/bridge/br1", "/made/up", "/made/up/too"] {
        send(&router, request("GET", path).body(Body::empty()).unwrap()).await;
    }
    let text = crate::metrics::render(crate::metrics::tests::sample(), &app.http, TIMEOUT).unwrap();
    for line in [
        r#"telecluster_http_requests_total{method="GET",route="/bridge/{name}",status="200"} 2"#,
        r#"telecluster_http_requests_total{method="GET",route="none",status="404"} 2"#,
    ] {
        assert!(text.contains(line), "{line}\nis not in\n{text}");
    }
    assert!(!text.contains("br0") && !text.contains("/made"));
}

#[tokio::test]
async fn the_roles_of_links_are_in_status_and_interfaces() {
    let lab = Lab::new().await;
    lab.post("/bridge/create", json!({ "name": "br-int" })).await.done(true);
    let roles = lab.get("/network/status").await.json["roles"].clone();
    assert_eq!(
        roles["wan_interface"],
        json!({ "name": "ens3", "source": "usual", "present": true, "problem": null })
    );
    assert_eq!(
        (&roles["lan_interface"]["name"], &roles["internal_bridge"]["present"]),
        (&json!("ens4"), &json!(true))
    );
    assert_eq!(
        (&roles["external_bridge"]["name"], &roles["external_bridge"]["present"]),
        (&json!("br-ex"), &json!(false))
    );
    let of = |name: &str| format!("/network/interface/{name}");
    for (name, roles) in [("ens3", json!(["wan"])), ("br-int", json!(["internal_bridge"])), ("lo", json!([]))]
    {
        assert_eq!(lab.get(&of(name)).await.done(false)["roles"], roles, "{name}");
    }
}
