//! `/network/ping`, `/network/traceroute`: whether another host can be reached, asked by the worker itself.

use axum::extract::State;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    App,
    answer::{Answer, Data, Status},
    error::{Refusal, Refusals},
    extract::Lenient,
    fields::{Fault, Fields, FromFields},
    values,
};
use crate::{
    error::{Code, Error},
    probe::{self, Hop, PingReport, Target, TraceReport},
};

/// Probes at a time; further ones wait. Each holds a raw socket, which hears all ICMP of the host.
pub const PROBES: usize = 64;
const COUNT: u16 = 4;
const HOPS: u8 = 30;

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(ping)).routes(routes!(traceroute))
}

/// A host to ping.
#[derive(Debug, ToSchema)]
pub struct Ping {
    /// An address of either family, or a name.
    #[schema(value_type = String, min_length = 1, max_length = 253, example = "8.8.8.8")]
    pub target: Target,
    #[schema(required = false, default = 4, minimum = 1, maximum = 20)]
    pub count: u16,
}

impl FromFields for Ping {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let target = fields.required("target", target);
        let count = fields.or("count", COUNT, values::integer(1, 20));
        Some(Self { target: target?, count })
    }
}

/// A host to find the way to.
#[derive(Debug, ToSchema)]
pub struct Traceroute {
    /// An address of either family, or a name.
    #[schema(value_type = String, min_length = 1, max_length = 253, example = "8.8.8.8")]
    pub target: Target,
    #[schema(required = false, default = 30, minimum = 1, maximum = 64)]
    pub max_hops: u8,
}

impl FromFields for Traceroute {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let target = fields.required("target", target);
        let max_hops = fields.or("max_hops", HOPS, values::integer(1, 64));
        Some(Self { target: target?, max_hops })
    }
}

fn target(value: &Value) -> Result<Target, Fault> {
    Target::new(&values::text(value)?).map_err(|why| Fault::Value(why.to_string()))
}

/// Ping a host
///
/// An unreachable host is an answer too: 200, with `status` "warning" and `data.success` false.
#[utoipa::path(
    post, path = "/network/ping", tag = "network",
    request_body(content = Ping, example = json!({ "target": "8.8.8.8", "count": 3 })),
    responses((status = 200, description = "What came back", body = Answer<PingReport>), Refusals),
)]
async fn ping(State(app): State<App>, request: Lenient<Ping>) -> Result<Answer<PingReport>, Refusal> {
    let Ping { target, count } = request.value;
    let _permit = app.probe_permit().await?;
    let report = probe::ping(&target, count).await;
    let message = pinged(&target, &report);
    Ok(answer(message, report.reached(), report, request.warnings))
}

/// Find the way to a host
#[utoipa::path(
    post, path = "/network/traceroute", tag = "network",
    request_body(content = Traceroute, example = json!({ "target": "8.8.8.8" })),
    responses((status = 200, description = "The routers on the way", body = Answer<TraceReport>), Refusals),
)]
async fn traceroute(
    State(app): State<App>,
    request: Lenient<Traceroute>,
) -> Result<Answer<TraceReport>, Refusal> {
    let Traceroute { target, max_hops } = request.value;
    let _permit = app.probe_permit().await?;
    let report = probe::trace(&target, max_hops).await;
    let message = traced(&target, &report);
    Ok(answer(message, report.reached, report, request.warnings))
}

/// What a ping has shown, or why none was sent.
fn pinged(target: &Target, report: &PingReport) -> String {
    match report.packets_sent {
        0 => report.output.clone(),
        sent => format!("{target}: {} of {sent} echoes were answered", report.packets_received),
    }
}

/// How far the way was followed, or why it was not.
fn traced(target: &Target, report: &TraceReport) -> String {
    let hops = |count: usize| if count == 1 { "1 hop".to_owned() } else { format!("{count} hops") };
    match (report.reached, report.hops.as_slice()) {
        (false, []) => report.output.clone(),
        (true, all) => format!("{target} is {} away", hops(all.len())),
        (false, [.., Hop { hop, address: Some(address), problem: Some(why), .. }]) => {
            format!("{target} was not reached: at hop {hop}, {address} says: {why}")
        }
        (false, all) => format!("{target} was not reached within {}", hops(all.len())),
    }
}

impl App {
    async fn probe_permit(&self) -> Result<tokio::sync::SemaphorePermit<'_>, Error> {
        self.probes.acquire().await.map_err(|_| Error::new(Code::NotReady, "the worker is shutting down"))
    }
}

fn answer<T>(message: String, success: bool, object: T, warnings: Vec<String>) -> Answer<T> {
    let status = if success { Status::Ok } else { Status::Warning };
    let data = Data { object, rule_id: None, success, changed: false, warnings };
    Answer { status, message, data, error: () }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::fields::{assert_schema_matches, read};

    #[test]
    fn the_document_names_the_fields_that_are_read() {
        assert_schema_matches::<Ping>();
        assert_schema_matches::<Traceroute>();
    }

    fn hop(number: u8, problem: Option<&str>) -> Hop {
        let address = Some("10.0.0.1".to_owned());
        Hop { hop: number, address, rtt: vec![Some(1.0)], problem: problem.map(str::to_owned) }
    }

    #[test]
    fn a_message_says_how_far_the_way_goes_and_why_it_ends() {
        let target = Target::new("vm1").unwrap();
        let said = |reached, hops, output: &str| {
            let output = output.to_owned();
            traced(&target, &TraceReport { target: "vm1".into(), address: None, reached, hops, output })
        };
        assert_eq!(said(true, vec![hop(1, None)], ""), "vm1 is 1 hop away");
        assert_eq!(said(true, vec![hop(1, None), hop(2, None)], ""), "vm1 is 2 hops away");
        assert_eq!(said(false, vec![hop(1, None), hop(2, None)], ""), "vm1 was not reached within 2 hops");
        assert_eq!(
            said(false, vec![hop(1, Some("Packet filtered"))], ""),
            "vm1 was not reached: at hop 1, 10.0.0.1 says: Packet filtered"
        );
        assert_eq!(
            said(false, vec![], "vm1: the name cannot be resolved"),
            "vm1: the name cannot be resolved"
        );
    }

    #[tokio::test]
    async fn a_name_that_nobody_knows_is_said_to_be_one() {
        let target = Target::new("192.0.2.1%lo").unwrap();
        let message = pinged(&target, &probe::ping(&target, 1).await);
        assert!(message.contains("only a link-local IPv6 address"), "{message}");
    }

    #[test]
    fn the_count_is_1_to_20() {
        assert_eq!(read::<Ping>(json!({ "target": "8.8.8.8" })).unwrap().count, 4);
        for bad in [0, 21, -1] {
            assert!(read::<Ping>(json!({ "target": "8.8.8.8", "count": bad })).is_err(), "{bad}");
        }
        for bad in ["-f", "a b", ""] {
            assert!(read::<Ping>(json!({ "target": bad })).is_err(), "{bad}");
        }
    }
}
