//! Keeps web pages away from a root daemon on localhost.
//!
//! A page that someone on this machine visits can make the browser send requests here: across sites, which
//! `Origin` and `Sec-Fetch-Site` give away, or under a name of its own that it points at this machine (DNS
//! rebinding), which `Host` gives away. The lenient content type of [`super::extract`] relies on this.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, Method, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::error::Refusal;
use crate::error::{Code, Error, Result};

/// The names under which this machine may be called, beside addresses and `localhost`.
#[derive(Debug, Clone, Default)]
pub struct Names(Arc<[String]>);

impl Names {
    /// The machine's host name, its first label, and what the operator allows.
    pub fn new(hostname: &str, allowed: &[String]) -> Self {
        let label = hostname.split('.').next().unwrap_or_default();
        let names = [hostname, label].into_iter().chain(allowed.iter().map(String::as_str));
        Self(names.filter_map(Authority::parse).map(|authority| authority.host).collect())
    }

    fn has(&self, host: &str) -> bool {
        host == "localhost" || host.parse::<IpAddr>().is_ok() || self.0.iter().any(|name| name == host)
    }
}

/// Refuses what a web page of another site sent.
pub async fn guard(State(names): State<Names>, request: Request, next: Next) -> Response {
    match check(&names, request.method(), request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => Refusal(error).into_response(),
    }
}

fn check(names: &Names, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<()> {
    let mut hosts = Vec::new();
    for value in headers.get_all(header::HOST) {
        hosts.push(Authority::parse(value.to_str().unwrap_or_default()));
    }
    // `GET http://name/ HTTP/1.1`, and HTTP/2's :authority
    if let Some(authority) = uri.authority() {
        hosts.push(Authority::parse(authority.as_str()));
    }
    for host in &hosts {
        if !host.as_ref().is_some_and(|host| names.has(&host.host)) {
            return Err(Error::new(Code::ForeignHost, "the Host header names another machine")
                .hint("use an address, localhost or the host name, or list the name in ALLOWED_HOSTS"));
        }
    }
    if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) {
        return Ok(());
    }
    let foreign = |what: &str| {
        Err(Error::new(
            Code::ForeignOrigin,
            format!("a page of another site must not change anything here ({what})"),
        ))
    };
    for origin in headers.get_all(header::ORIGIN) {
        let origin = Authority::of_origin(origin.to_str().unwrap_or_default());
        let own = hosts.iter().flatten().next();
        if origin.is_none() || origin.as_ref() != own {
            return foreign("Origin");
        }
    }
    for site in headers.get_all("sec-fetch-site") {
        if site != "none" && site != "same-origin" {
            return foreign("Sec-Fetch-Site");
        }
    }
    Ok(())
}

/// A host in its one spelling, and a port. The worker speaks plain HTTP: no port is port 80.
#[derive(Debug, PartialEq, Eq)]
struct Authority {
    host: String,
    port: u16,
}

impl Authority {
    /// `name`, `name:port`, `1.2.3.4:port`, `[::1]:port`. Anything else, user names too, is none.
    fn parse(text: &str) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, rest) = rest.split_once(']')?;
                let address: std::net::Ipv6Addr = address.parse().ok()?;
                (address.to_string(), rest)
            }
            None => {
                let end = text.find(':').unwrap_or(text.len());
                let (name, rest) = text.split_at(end);
                let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
                if name.is_empty() || !name.bytes().all(good) {
                    return None;
                }
                (plain(name), rest)
            }
        };
        let port = match port.strip_prefix(':') {
            Some(digits) if digits.bytes().all(|digit| digit.is_ascii_digit()) => digits.parse().ok()?,
            Some(_) => return None,
            None if port.is_empty() => 80,
            None => return None,
        };
        Some(Self { host, port })
    }

    /// From `http://host:port`. `null` and other schemes are none of ours.
    fn of_origin(origin: &str) -> Option<Self> {
        let (scheme, rest) = origin.split_at_checked("http://".len())?;
        if scheme.eq_ignore_ascii_case("http://") { Self::parse(rest) } else { None }
    }
}

/// Lower case, without the root's dot.
fn plain(name: &str) -> String {
    let lower = name.trim().to_ascii_lowercase();
    lower.strip_suffix('.').unwrap_or(&lower).to_owned()
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn names() -> Names {
        Names::new("worker1.lab.example", &["Cluster.Example.:8000".into(), "no name".into()])
    }

    fn ask(method: &Method, uri: &str, headers: &[(&'static str, &str)]) -> Result<(), Code> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        check(&names(), method, &uri.parse().unwrap(), &map).map_err(|error| error.code)
    }

    #[test]
    fn addresses_and_own_names_are_hosts() {
        for host in [
            "127.0.0.1",
            "127.0.0.1:8000",
            "[::1]",
            "[::1]:8000",
            "10.0.0.5:8000",
            "localhost",
            "LOCALHOST:8000",
            "localhost.",
            "worker1",
            "Worker1.Lab.Example:8000",
            "cluster.example",
        ] {
            assert_eq!(ask(&Method::GET, "/", &[("host", host)]), Ok(()), "{host}");
        }
    }

    #[test]
    fn other_names_are_foreign_even_for_reading() {
        for host in [
            "evil.example",
            "worker1.evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "lab.example",
            "",
            ":8000",
            "localhost:x",
            "localhost:80:80",
            "user@localhost",
            "localhost@evil.example",
            "[::1",
            "[::1]x",
            "::1",
            "[localhost]",
            "localhost/",
            "localhost evil",
            "127.1",
            "localhost:99999",
            "localhost:+80",
        ] {
            assert_eq!(ask(&Method::GET, "/", &[("host", host)]), Err(Code::ForeignHost), "{host}");
        }
    }

    #[test]
    fn a_second_host_does_not_hide_behind_the_first() {
        let headers = [("host", "localhost"), ("host", "evil.example")];
        assert_eq!(ask(&Method::GET, "/", &headers), Err(Code::ForeignHost));
        assert_eq!(ask(&Method::GET, "http://evil.example/", &headers[..1]), Err(Code::ForeignHost));
    }

    #[test]
    fn http_1_0_has_no_host() {
        assert_eq!(ask(&Method::GET, "/", &[]), Ok(()));
        assert_eq!(ask(&Method::POST, "/bridge/create", &[]), Ok(()));
    }

    #[test]
    fn a_page_of_the_worker_itself_may_change_things() {
        for (host, origin) in [
            ("localhost:8000", "http://localhost:8000"),
            ("LOCALHOST:8000", "HTTP://localhost.:8000"),
            ("[::1]:8000", "http://[0:0::1]:8000"),
            ("127.0.0.1", "http://127.0.0.1:80"),
        ] {
            let headers = [("host", host), ("origin", origin), ("sec-fetch-site", "same-origin")];
            assert_eq!(ask(&Method::POST, "/", &headers), Ok(()), "{origin}");
        }
    }

    #[test]
    fn a_page_of_another_site_may_not() {
        for origin in [
            "null",
            "",
            "http://evil.example",
            "http://localhost",
            "http://localhost:8001",
            "https://localhost:8000",
            "http://127.0.0.1:8000",
            "http://localhost:8000@evil.example",
            "http://evil@localhost:8000",
            "http://localhost:8000/",
            "localhost:8000",
            "http://",
            "é",
        ] {
            let headers = [("host", "localhost:8000"), ("origin", origin)];
            for method in [Method::POST, Method::DELETE, Method::PUT, Method::PATCH] {
                assert_eq!(ask(&method, "/", &headers), Err(Code::ForeignOrigin), "{origin}");
            }
            assert_eq!(ask(&Method::GET, "/", &headers), Ok(()), "{origin}");
        }
    }

    #[test]
    fn an_origin_without_a_host_to_compare_is_foreign() {
        assert_eq!(ask(&Method::POST, "/", &[("origin", "http://localhost:8000")]), Err(Code::ForeignOrigin));
    }

    #[test]
    fn a_browser_that_says_cross_site_is_believed() {
        for (site, answer) in [
            ("none", Ok(())),
            ("same-origin", Ok(())),
            ("same-site", Err(Code::ForeignOrigin)),
            ("cross-site", Err(Code::ForeignOrigin)),
            ("", Err(Code::ForeignOrigin)),
        ] {
            let headers = [("host", "localhost:8000"), ("sec-fetch-site", site)];
            assert_eq!(ask(&Method::POST, "/", &headers), answer, "{site}");
        }
    }
}
