//! One caller with a connection of its own. A refusal ends the bench: a figure of what failed is none.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use telecluster_tests::lab::{PATIENCE, Worker};

pub(crate) struct Client {
    agent: ureq::Agent,
}

pub(crate) struct Answered {
    pub(crate) took: Duration,
    pub(crate) body: Value,
}

impl Answered {
    pub(crate) fn rule_id(&self) -> &str {
        self.body["data"]["rule_id"].as_str().expect("an answer with a rule_id")
    }
}

impl Client {
    /// In the network namespace of this thread.
    pub(crate) fn new() -> Self {
        let config = ureq::Agent::config_builder().http_status_as_error(false);
        Self { agent: config.timeout_global(Some(PATIENCE)).build().into() }
    }

    pub(crate) fn get(&self, path: &str) -> Answered {
        self.ask("GET", path, String::new())
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answered {
        self.ask("POST", path, body.to_string())
    }

    pub(crate) fn delete(&self, path: &str) -> Answered {
        self.ask("DELETE", path, String::new())
    }

    /// The forward of a number: another external port, another inside host.
    pub(crate) fn forward(&self, number: usize) -> Answered {
        let inside = format!("10.99.{}.{}", number / 250 % 250, 1 + number % 250);
        let body = json!({
            "external_port": 10_000 + number, "internal_ip": inside, "internal_port": 22, "protocol": "tcp",
            "description": format!("SSH of machine {number}"),
        });
        self.post("/nat/forward", &body)
    }

    pub(crate) fn masquerade(&self, network: &str) -> Answered {
        self.post("/nat/masquerade", &json!({ "source_network": network, "output_interface": "wan0" }))
    }

    fn ask(&self, method: &str, path: &str, body: String) -> Answered {
        let url = format!("http://127.0.0.1:{}{path}", Worker::PORT);
        let request = ureq::http::Request::builder().method(method).uri(&url).body(body).expect("a request");
        let began = Instant::now();
        let mut response = self.agent.run(request).expect("an answer");
        let text = response.body_mut().read_to_string().expect("a body");
        let took = began.elapsed();
        assert_eq!(response.status(), 200, "{method} {path}: {text}");
        Answered { took, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) }
    }
}
