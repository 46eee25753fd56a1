//! Around every request: its id, its line in the log, its time, and the envelope of its error.

use std::time::Instant;

use axum::{
    Json,
    body::Body,
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use tracing::Instrument;

use super::{
    App,
    error::{Failure, Refusal, of_status, status},
};
use crate::{
    error::{Code, Error},
    logging::panic_text,
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The outermost layer.
pub async fn trace(State(app): State<App>, request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let method = request.method().clone();
    // The route, never the path: a path is the caller's to make up, a route is one of ours.
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let span = tracing::info_span!("request", id, %method, path = request.uri().path());
    let start = Instant::now();

    let response = next.run(request).instrument(span.clone()).await;
    let response = span.in_scope(|| enveloped(response, &id, &method, start));

    let elapsed = start.elapsed();
    app.http.observe(&method, route.as_deref(), response.status(), elapsed);
    response
}

/// Gives an error its body, and every response its id.
fn enveloped(mut response: Response, id: &str, method: &Method, start: Instant) -> Response {
    let code = response.status();
    let error = response.extensions_mut().remove::<Error>();
    let error = error.or_else(|| {
        let failed = code.is_client_error() || code.is_server_error();
        let json =
            response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
        // A body in JSON is our own, such as /health's: it says already what is wrong.
        (failed && !json).then(|| of_status(code))
    });
    if let Some(error) = error {
        log(&error);
        *response.status_mut() = status(error.code);
        let (parts, body) = Json(Failure::new(error, id.to_owned())).into_response().into_parts();
        for name in [header::CONTENT_TYPE, header::CONTENT_LENGTH] {
            response.headers_mut().remove(&name);
        }
        response.headers_mut().extend(parts.headers);
        *response.body_mut() = if *method == Method::HEAD { Body::empty() } else { body };
    }
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(id) {
        headers.insert(REQUEST_ID, value);
    }
    // No page may show /docs inside itself and lead clicks there, nor read an answer as a script.
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let status = response.status().as_u16();
    let micros = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
    if matches!(*method, Method::GET | Method::HEAD) {
        tracing::debug!(status, micros, "answered");
    } else {
        tracing::info!(status, micros, "answered");
    }
    response
}

fn log(error: &Error) {
    let Error { code, message, .. } = error;
    match code {
        Code::Internal | Code::StoreUnwritable | Code::DataplaneDown | Code::KernelRefused => {
            tracing::warn!(?code, why = message, "refused");
        }
        _ => tracing::debug!(?code, why = message, "refused"),
    }
}

/// What a panic is answered with. The panic hook has logged where it was.
#[expect(clippy::needless_pass_by_value, reason = "the layer hands it over")]
pub fn panicked(payload: Box<dyn std::any::Any + Send>) -> Response {
    tracing::error!(reason = panic_text(&*payload), "a request panicked");
    let error =
        Error::new(Code::Internal, "a bug of the worker").hint("the worker's log has this request id");
    Refusal(error).into_response()
}

/// The caller's id where it is harmless to log and to echo, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let sane = |id: &&str| {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        (1..=64).contains(&id.len()) && id.bytes().all(good)
    };
    match headers.get(REQUEST_ID).and_then(|value| value.to_str().ok()).filter(sane) {
        Some(id) => id.to_owned(),
        None => uuid::Uuid::new_v4().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id_for(given: &str) -> String {
        request_id(&HeaderMap::from_iter([(REQUEST_ID, HeaderValue::from_str(given).unwrap())]))
    }

    #[test]
    fn a_harmless_id_is_kept() {
        assert_eq!(id_for("run-7.a_B"), "run-7.a_B");
        assert_eq!(id_for(&"a".repeat(64)), "a".repeat(64));
    }

    #[test]
    fn another_id_is_replaced() {
        for bad in ["", "a b", "a\tb", "<script>", "é", &"a".repeat(65)] {
            let id = id_for(bad);
            assert_ne!(id, bad);
            assert_eq!(id.len(), 36);
        }
        assert_eq!(request_id(&HeaderMap::new()).len(), 36);
    }
}
