//! What strangers may send: nothing without the token, and whatever they like without making the worker stumble.

use std::net::SocketAddr;

use axum::{body::Body, extract::ConnectInfo};

use super::*;
use crate::probe::Target;

/// How many hostile strings there are.
const STRINGS: usize = 10_000;
/// How many labs take turns with them, each on a thread of its own.
const LABS: usize = 4;

/// Every method and path of the OpenAPI document, and its request body's schema.
fn routes() -> Vec<(String, String, Value)> {
    let document = serde_json::to_value(document()).unwrap();
    let mut routes = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let body = &operation["requestBody"]["content"]["application/json"];
            let schema = match body["schema"]["$ref"].as_str() {
                Some(reference) => document.pointer(&reference[1..]).cloned().unwrap_or_default(),
                None => body["schema"].clone(),
            };
            let example = body["example"].clone();
            let body = json!({ "schema": schema, "example": example });
            routes.push((method.to_uppercase(), path.clone(), body));
        }
    }
    routes
}

#[tokio::test]
async fn every_route_is_closed_to_strangers_without_the_token() {
    let dir = tempfile::tempdir().unwrap();
    let token = Token::load_or_create(dir.path()).unwrap();
    let router = router(engine().await, ApiOptions { token: Some(token), ..options() });
    let mut routes: Vec<_> = routes().into_iter().map(|(method, path, _)| (method, path)).collect();
    assert!(routes.len() > 60, "{}", routes.len());
    routes.extend(["/docs/", "/openapi.json", "/nowhere"].map(|path| ("GET".to_owned(), path.to_owned())));
    for (method, path) in routes {
        let path = path.replace(['{', '}'], "");
        for authorization in [None, Some("Bearer 0000"), Some("Basic eDp5")] {
            let mut request = request(&method, &path);
            if let Some(text) = authorization {
                request = request.header(header::AUTHORIZATION, text);
            }
            let stranger = ConnectInfo(SocketAddr::from(([10, 0, 0, 9], 40000)));
            request.extensions_mut().unwrap().insert(stranger);
            send(&router, request.body(Body::empty()).unwrap()).await.refused(401, "UNAUTHORIZED");
        }
    }
}

/// The same strings in every run: what has broken parsers, shells, terminals, SQL, C and people before, and mixtures.
fn hostile(index: usize) -> String {
    const SEEDS: &[&str] = &[
        "",
        " ",
        "\0",
        "a\0b",
        "\n",
        "\r\nSet-Cookie: x",
        "\u{1b}[2J",
        "\u{202e}",
        "\u{feff}",
        "\u{fffd}",
        "\u{1f4a9}",
        "é",
        "-",
        "--help",
        "-rf",
        ".",
        "..",
        "../../etc/passwd",
        "/",
        "//",
        "\\",
        "\\\\host\\share",
        "%",
        "%s%s%n",
        "%00",
        "%2e%2e",
        "'",
        "\"",
        "`id`",
        "$(reboot)",
        ";reboot",
        "|cat",
        "&&",
        "{}",
        "[]",
        "null",
        "true",
        "NaN",
        "Infinity",
        "-1",
        "0",
        "1e999",
        "18446744073709551616",
        "-9223372036854775809",
        "0x10",
        "٣",
        "1;DROP TABLE rules",
        "<script>alert(1)</script>",
        "{{7*7}}",
        "${jndi:ldap://x}",
        "eth0",
        "lo",
        "ens3",
        "br-vm",
        "all",
        "default",
        "if:ens3",
        "ens3/../lo",
        "ens3\u{0}",
        "ENS3",
        "0.0.0.0",
        "255.255.255.255",
        "127.0.0.1",
        "::",
        "::1",
        "fe80::1%lo",
        "::ffff:1.2.3.4",
        "1.2.3.4/33",
        "1.2.3.4/-1",
        "/0",
        "10.0.0.0/8",
        "999.1.1.1",
        "1.2.3",
        "0177.0.0.1",
        "01",
        "4094",
        "4095",
        "65535",
        "65536",
        "1-2",
        "5-3",
        "1,2,3",
        ",",
        "10,20-30",
        "aaaaaaaaaaaaaaa",
        "aaaaaaaaaaaaaaaa",
        "fwd-000000000000",
        "masq-",
        "fw-",
        "tcp",
        "udp",
        "icmp",
        "TCP\n",
        "ovs",
        "802.1Q",
    ];
    let seed = |at: usize| SEEDS[at % SEEDS.len()];
    match index % 5 {
        0 => seed(index / 5).to_owned(),
        1 => format!("{}{}", seed(index / 5), seed(index / 7)),
        2 => seed(index / 5).repeat(1 + index % 40),
        3 => seed(index / 5).chars().rev().chain(seed(index / 11).chars()).collect(),
        _ => {
            // Knuth's multiplicative hash: any bytes, as text.
            let bytes = (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
            String::from_utf8_lossy(&bytes).into_owned()
        }
    }
}

fn string_fields(schema: &Value) -> Vec<String> {
    let is_string = |property: &Value| {
        let types = match &property["type"] {
            Value::Array(types) => types.clone(),
            other => vec![other.clone()],
        };
        types.contains(&json!("string")) || !property["$ref"].is_null() || property["oneOf"].is_array()
    };
    let properties = schema["properties"].as_object().into_iter().flatten();
    properties.filter(|(_, property)| is_string(property)).map(|(name, _)| name.clone()).collect()
}

/// A ping must not ask name servers for what is hostile and still a name.
fn fit_for(path: &str, text: &str) -> bool {
    !(path.ends_with("/ping") || path.ends_with("/traceroute")) || Target::new(text).is_err()
}

/// All of the strings to all of the fields: a minute of one processor.
#[test]
fn ten_thousand_hostile_strings_in_string_fields_are_no_500() {
    let targets: Vec<_> = (routes().into_iter())
        // The second spelling leads to the same handlers.
        .filter(|(_, path, _)| {
            !path.starts_with("/network/") || path.ends_with("/ping") || path.ends_with("/traceroute")
        })
        .filter_map(|(method, path, body)| {
            let fields = string_fields(&body["schema"]);
            (!fields.is_empty()).then_some((method, path, fields, body["example"].clone()))
        })
        .collect();
    assert!(targets.len() > 10, "{targets:?}");
    std::thread::scope(|scope| {
        for first in 0..LABS {
            let targets = &targets;
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let lab = Lab::new().await;
                    for index in (first..STRINGS).step_by(LABS) {
                        for target in targets {
                            send_hostile(&lab, target, index).await;
                        }
                    }
                });
            });
        }
    });
}

/// One string, in turn in one field beside good ones, which gets further in, and in all of them.
async fn send_hostile(
    lab: &Lab,
    (method, path, fields, example): &(String, String, Vec<String>, Value),
    index: usize,
) {
    let text = hostile(index);
    if !fit_for(path, &text) {
        return;
    }
    let has_example = example.as_object().is_some_and(|fields| !fields.is_empty());
    let (mut body, chosen) = if has_example && (index / LABS).is_multiple_of(3) {
        (example.clone(), &fields[index / 3 % fields.len()..][..1])
    } else {
        (json!({}), &fields[..])
    };
    for field in chosen {
        body[field] = json!(text);
    }
    let got = lab.ask(method, &path.replace(['{', '}'], ""), body.clone()).await;
    assert!(got.status < 500 || got.status == 501, "{method} {path} {body}: {}", got.text);
}

#[tokio::test]
async fn hostile_strings_in_paths_and_queries_are_no_500() {
    let lab = Lab::new().await;
    let routes = routes();
    for index in 0..STRINGS {
        let text: String = url::form_urlencoded::byte_serialize(hostile(index).as_bytes()).collect();
        let text = text.replace('+', "%20");
        let (method, path, _) = &routes[index % routes.len()];
        if path.ends_with("/ping") || path.ends_with("/traceroute") {
            continue;
        }
        let path = match path.split_once('{') {
            Some((head, tail)) => {
                format!("{head}{text}{}", tail.split_once('}').map_or("", |(_, rest)| rest))
            }
            None => format!("{path}?name={text}&{text}={text}"),
        };
        let path = path.replace(['{', '}'], "");
        // What is no path for HTTP cannot be sent.
        if path.parse::<axum::http::Uri>().is_err() {
            continue;
        }
        let got = lab.ask(method, &path, Value::Null).await;
        let healthy = path.contains("/health") && got.status == 503;
        assert!(got.status < 500 || got.status == 501 || healthy, "{method} {path}: {}", got.text);
    }
}
