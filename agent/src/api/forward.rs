//! `/nat/forward`: ports of the uplink that lead to inside hosts.

#![expect(unused_qualifications, reason = "what utoipa makes of params() is spelt in full")]

use std::net::IpAddr;

use axum::extract::{Path, State};
use ipnet::IpNet;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    App,
    answer::{Answer, Gone},
    error::{Refusal, Refusals},
    extract::Lenient,
    fields::{Fields, FromFields},
    values::{self, MAX_NEW_FLOWS},
};
use crate::{
    engine::{Change, ForwardSelector, Object},
    error::{Code, Error, Result},
    model::{FlowTimeouts, ForwardProtocol, ForwardRequest, LinkName, RuleAction, RuleView},
};

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(create_forward, delete_forward))
        .routes(routes!(show_forward, delete_forward_by_id))
}

const PROTOCOLS: &[(&str, ForwardProtocol)] =
    &[("tcp", ForwardProtocol::Tcp), ("udp", ForwardProtocol::Udp), ("all", ForwardProtocol::All)];

/// A port of the uplink that leads to a port of an inside host.
#[derive(Debug, ToSchema)]
pub struct CreateForward {
    #[schema(minimum = 1, maximum = 65535, example = 2222)]
    pub external_port: u16,
    /// The last port of a range, which leads to as many ports from `internal_port` on; default: `external_port` alone.
    #[schema(minimum = 1, maximum = 65535)]
    pub external_port_end: Option<u16>,
    #[schema(value_type = String, example = "192.168.100.10")]
    pub internal_ip: IpAddr,
    #[schema(minimum = 1, maximum = 65535, example = 22)]
    pub internal_port: u16,
    /// `all` is tcp and udp.
    #[schema(required = false, default = "tcp")]
    pub protocol: ForwardProtocol,
    /// The uplink; default: the WAN interface.
    #[schema(value_type = Option<String>)]
    pub interface: Option<LinkName>,
    #[schema(max_length = 256)]
    pub description: Option<String>,
    /// One address of the uplink, of the same family as `internal_ip`; default: all of them.
    #[schema(value_type = Option<String>)]
    pub external_ip: Option<IpAddr>,
    /// The only networks that may use it, of the same family as `internal_ip`; for others it is as if it did not exist.
    /// Default: everybody.
    #[schema(required = false, value_type = Vec<String>, max_items = 256, example = json!(["198.51.100.0/24"]))]
    pub source_cidrs: Vec<IpNet>,
    /// Whether inside hosts may use it too, by the uplink's address.
    #[schema(required = false, default = true)]
    pub hairpin: bool,
    /// Flows that it may make in a second, and as many at once; 0: as `NEW_FLOWS_PER_RULE` says.
    #[schema(required = false, default = 0, minimum = 0, maximum = 1_000_000)]
    pub new_flows_per_second: u32,
    /// How long its flows may be idle.
    #[schema(required = false)]
    pub timeouts: FlowTimeouts,
    /// False keeps the rule and forwards nothing.
    #[schema(required = false, default = true)]
    pub enabled: bool,
}

impl FromFields for CreateForward {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let external_port = fields.required("external_port", values::port);
        let external_port_end = fields.optional("external_port_end", values::port);
        let internal_ip = fields.required("internal_ip", values::host_ip);
        let internal_port = fields.required("internal_port", values::port);
        let protocol = fields.or("protocol", ForwardProtocol::Tcp, values::choice(PROTOCOLS));
        let interface = fields.optional("interface", values::link_name);
        let description = fields.optional("description", values::description);
        let external_ip = fields.optional("external_ip", values::host_ip);
        let enabled = fields.or("enabled", true, values::boolean);
        let hairpin = fields.or("hairpin", true, values::boolean);
        let new_flows_per_second = fields.or("new_flows_per_second", 0, values::integer(0, MAX_NEW_FLOWS));
        let timeouts = fields.or("timeouts", FlowTimeouts::default(), values::timeouts);
        let source_cidrs = fields.or("source_cidrs", Vec::new(), values::list(values::network));
        Some(Self {
            external_port: external_port?,
            external_port_end,
            internal_ip: internal_ip?,
            internal_port: internal_port?,
            protocol,
            interface,
            description,
            external_ip,
            source_cidrs,
            hairpin,
            new_flows_per_second,
            timeouts,
            enabled,
        })
    }
}

impl CreateForward {
    /// The forward, unless it would take the port that the API is reached by.
    fn request(self, api_port: u16) -> Result<ForwardRequest> {
        let takes_tcp = match self.protocol {
            ForwardProtocol::Tcp | ForwardProtocol::All => true,
            ForwardProtocol::Udp => false,
        };
        let ports = self.external_port..=self.external_port_end.unwrap_or(self.external_port);
        if takes_tcp && ports.contains(&api_port) {
            let message = format!("port {api_port} is the worker's own: forwarding it would cut off the API");
            return Err(Error::new(Code::ForwardPortReserved, message).hint("choose another external_port"));
        }
        let Self {
            external_port,
            external_port_end,
            internal_ip,
            internal_port,
            protocol,
            interface,
            description,
            external_ip,
            source_cidrs,
            hairpin,
            new_flows_per_second,
            timeouts,
            enabled,
        } = self;
        Ok(ForwardRequest {
            interface,
            external_ip,
            external_port,
            external_port_end,
            internal_ip,
            internal_port,
            protocol,
            source_cidrs,
            hairpin,
            new_flows_per_second,
            timeouts,
            description,
            enabled,
        })
    }
}

/// Which forward: `rule_id`, or both ports and the inside host.
#[derive(Debug, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct WhichForward {
    pub rule_id: Option<String>,
    #[schema(minimum = 1, maximum = 65535)]
    pub external_port: Option<u16>,
    #[schema(value_type = Option<String>)]
    #[param(value_type = Option<String>)]
    pub internal_ip: Option<IpAddr>,
    #[schema(minimum = 1, maximum = 65535)]
    pub internal_port: Option<u16>,
    /// Only the forward of this protocol.
    pub protocol: Option<ForwardProtocol>,
}

impl FromFields for WhichForward {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let rule_id = fields.optional("rule_id", values::text);
        let protocol = fields.optional("protocol", values::choice(PROTOCOLS));
        if fields.has("rule_id") {
            // Which of two rules was meant is not ours to guess.
            for field in ["external_port", "internal_ip", "internal_port", "protocol"] {
                if fields.has(field) {
                    fields.conflict(field, "is given beside rule_id");
                }
            }
            let external_port = fields.optional("external_port", values::port);
            let internal_ip = fields.optional("internal_ip", values::ip);
            let internal_port = fields.optional("internal_port", values::port);
            return Some(Self { rule_id, external_port, internal_ip, internal_port, protocol });
        }
        let external_port = fields.required("external_port", values::port);
        let internal_ip = fields.required("internal_ip", values::ip);
        let internal_port = fields.required("internal_port", values::port);
        Some(Self { rule_id, external_port, internal_ip, internal_port, protocol })
    }
}

impl WhichForward {
    fn selector(self) -> Result<ForwardSelector> {
        let Self { rule_id, external_port, internal_ip, internal_port, protocol } = self;
        match (rule_id, external_port, internal_ip, internal_port) {
            (Some(id), ..) => Ok(ForwardSelector::Id(id)),
            (None, Some(external_port), Some(internal_ip), Some(internal_port)) => {
                Ok(ForwardSelector::Ports { external_port, internal_ip, internal_port, protocol })
            }
            (None, ..) => {
                Err(Error::field("rule_id", "is required, or external_port, internal_ip and internal_port"))
            }
        }
    }
}

/// Forward a port
#[utoipa::path(
    post, path = "/nat/forward", tag = "nat",
    request_body(content = CreateForward, example = json!({
        "external_port": 2222, "internal_ip": "192.168.100.10", "internal_port": 22,
        "protocol": "tcp", "description": "SSH access to VM1"
    })),
    responses((status = 200, description = "The rule", body = Answer<RuleView>), Refusals),
)]
async fn create_forward(
    State(app): State<App>,
    request: Lenient<CreateForward>,
) -> Result<Answer<Object>, Refusal> {
    let forward = request.value.request(app.options.port)?;
    app.change(Change::CreateForward(forward), request.warnings).await
}

/// Stop forwarding a port
///
/// The fields may be in the query or in a JSON body.
#[utoipa::path(
    delete, path = "/nat/forward", tag = "nat", params(WhichForward),
    responses((status = 200, description = "The rule is gone", body = Answer<Gone>), Refusals),
)]
async fn delete_forward(
    State(app): State<App>,
    request: Lenient<WhichForward>,
) -> Result<Answer<Object>, Refusal> {
    let selector = request.value.selector()?;
    app.change(Change::DeleteForward(selector), request.warnings).await
}

/// One port forward
#[utoipa::path(
    get, path = "/nat/forward/{rule_id}", tag = "nat",
    params(("rule_id" = String, Path, description = "As /nat/status shows it")),
    responses((status = 200, description = "The rule", body = Answer<RuleView>), Refusals),
)]
async fn show_forward(
    State(app): State<App>,
    Path(rule_id): Path<String>,
) -> Result<Answer<Object>, Refusal> {
    let rule = app.engine.rule(&rule_id).await?;
    match rule.action {
        RuleAction::Dnat => Ok(Answer::shown(format!("port forward {rule_id}"), Object::Rule(rule))),
        RuleAction::Snat | RuleAction::Masquerade => {
            Err(Error::new(Code::RuleNotFound, format!("rule {rule_id} is no port forward")).into())
        }
    }
}

/// Stop forwarding a port, by id
#[utoipa::path(
    delete, path = "/nat/forward/{rule_id}", tag = "nat",
    params(("rule_id" = String, Path, description = "As /nat/status shows it")),
    responses((status = 200, description = "The rule is gone", body = Answer<Gone>), Refusals),
)]
async fn delete_forward_by_id(
    State(app): State<App>,
    Path(rule_id): Path<String>,
) -> Result<Answer<Object>, Refusal> {
    app.change(Change::DeleteForward(ForwardSelector::Id(rule_id)), Vec::new()).await
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::api::fields::{assert_schema_matches, read};

    fn readme() -> Value {
        json!({
            "external_port": 2222,
            "internal_ip": "192.168.100.10",
            "internal_port": 22,
            "protocol": "tcp",
            "description": "SSH access to VM1",
        })
    }

    fn with(field: &str, value: Value) -> Value {
        let mut body = readme();
        body[field] = value;
        body
    }

    fn code(body: Value) -> Option<Code> {
        read::<CreateForward>(body).err().map(|error| error.code)
    }

    #[test]
    fn the_document_names_the_fields_that_are_read() {
        assert_schema_matches::<CreateForward>();
    }

    #[test]
    fn the_readmes_forward_is_understood() {
        let forward = read::<CreateForward>(readme()).unwrap().request(8000).unwrap();
        assert_eq!(forward.external_port, 2222);
        assert_eq!(forward.internal_ip, IpAddr::from([192, 168, 100, 10]));
        assert_eq!(forward.protocol, ForwardProtocol::Tcp);
        assert!(
            forward.enabled
                && forward.hairpin
                && forward.interface.is_none()
                && forward.external_ip.is_none()
        );
    }

    #[test]
    fn what_would_open_more_than_asked_is_refused() {
        for sources in [json!(["10.0.0.0/33"]), json!([7]), json!({}), json!("10.0.0.0/8,everybody")] {
            assert_eq!(code(with("source_cidrs", sources)), Some(Code::InvalidField));
        }
        assert_eq!(code(with("hairpin", json!("perhaps"))), Some(Code::InvalidField));
    }

    #[test]
    fn sources_are_a_list_or_separated_by_commas() {
        let sources = |value| read::<CreateForward>(with("source_cidrs", value)).unwrap().source_cidrs;
        let expected = ["10.0.0.0/8", "198.51.100.7/32"].map(|net| net.parse::<IpNet>().unwrap());
        assert_eq!(sources(json!(["10.0.0.0/8", "198.51.100.7"])), expected);
        assert_eq!(sources(json!("10.0.0.0/8, 198.51.100.7")), expected);
        assert!(sources(json!([])).is_empty());
    }

    #[test]
    fn icmp_has_no_ports_to_forward() {
        let error = read::<CreateForward>(with("protocol", json!("icmp"))).unwrap_err();
        assert_eq!(error.code, Code::InvalidField);
        assert!(error.message.contains("tcp, udp, all"), "{}", error.message);
    }

    #[test]
    fn the_port_of_the_api_is_not_given_away() {
        let request = |protocol| {
            let mut body = with("external_port", json!(8000));
            body["protocol"] = json!(protocol);
            read::<CreateForward>(body).unwrap().request(8000).map_err(|error| error.code)
        };
        assert_eq!(request("tcp").unwrap_err(), Code::ForwardPortReserved);
        assert_eq!(request("all").unwrap_err(), Code::ForwardPortReserved);
        assert!(request("udp").is_ok());
        let mut around = with("external_port", json!(7990));
        around["external_port_end"] = json!(8010);
        let refused = read::<CreateForward>(around).unwrap().request(8000).unwrap_err();
        assert_eq!(refused.code, Code::ForwardPortReserved);
    }

    #[test]
    fn a_forward_is_chosen_by_id_or_by_ports_not_by_both() {
        assert!(read::<WhichForward>(json!({ "rule_id": "a" })).is_ok());
        assert!(
            read::<WhichForward>(
                json!({ "external_port": 1, "internal_ip": "10.0.0.1", "internal_port": 2 })
            )
            .is_ok()
        );
        let both = read::<WhichForward>(json!({ "rule_id": "a", "external_port": 1 })).unwrap_err();
        assert_eq!(both.fields[0].kind, "conflict");
        let neither = read::<WhichForward>(json!({})).unwrap_err();
        assert_eq!(neither.fields.len(), 3);
    }
}
