//! `/nat/firewall`, `/nat/flush-firewall`, `/nat/flush-nat`: the worker's own filter rules, and how to be rid of
//! all rules of a kind at once.

#![expect(unused_qualifications, reason = "what utoipa makes of params() is spelt in full")]

use std::net::SocketAddr;

use axum::extract::{ConnectInfo, Path, State};
use ipnet::IpNet;
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    App,
    answer::{Answer, Gone},
    error::{Refusal, Refusals},
    extract::Lenient,
    fields::{Fault, Fields, FromFields},
    values,
};
use crate::{
    engine::{Change, NewFirewallRule, Object},
    kinds::firewall::Caller,
    model::{
        LinkName,
        firewall::{Chain, FirewallAction, FirewallProtocol, FirewallSpec, FirewallView},
    },
};

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(create_firewall_rule))
        .routes(routes!(delete_firewall_rule))
        .routes(routes!(flush_firewall))
        .routes(routes!(flush_nat))
}

/// A firewall rule to be. What is not given matches everything.
#[derive(Debug, ToSchema)]
pub struct CreateFirewallRule {
    pub chain: Chain,
    pub action: FirewallAction,
    pub protocol: FirewallProtocol,
    /// CIDR form; host bits are cleared.
    #[schema(value_type = Option<String>, example = "10.0.0.0/8")]
    pub source: Option<IpNet>,
    /// CIDR form; host bits are cleared.
    #[schema(value_type = Option<String>)]
    pub destination: Option<IpNet>,
    /// Destination port; tcp and udp only.
    #[schema(minimum = 1, maximum = 65535, example = 22)]
    pub port: Option<u16>,
    /// Where packets come in; for OUTPUT, where they leave.
    #[schema(value_type = Option<String>)]
    pub interface: Option<LinkName>,
    #[schema(max_length = 256)]
    pub description: Option<String>,
    /// Also when it would keep the caller away from the worker.
    #[schema(required = false, default = false)]
    pub force: bool,
}

impl FromFields for CreateFirewallRule {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let chain = fields.required("chain", chain);
        let action = fields.required("action", action);
        let protocol = fields.required("protocol", protocol);
        let source = fields.optional("source", network);
        let destination = fields.optional("destination", network);
        let port = fields.optional("port", values::port);
        let interface = fields.optional("interface", values::link_name);
        let description = fields.optional("description", values::description);
        let force = fields.or("force", false, values::boolean);
        Some(Self {
            chain: chain?,
            action: action?,
            protocol: protocol?,
            source,
            destination,
            port,
            interface,
            description,
            force,
        })
    }
}

fn chain(value: &Value) -> Result<Chain, Fault> {
    values::choice(&[("INPUT", Chain::Input), ("OUTPUT", Chain::Output), ("FORWARD", Chain::Forward)])(value)
}

fn action(value: &Value) -> Result<FirewallAction, Fault> {
    values::choice(&[
        ("ACCEPT", FirewallAction::Accept),
        ("DROP", FirewallAction::Drop),
        ("REJECT", FirewallAction::Reject),
    ])(value)
}

fn protocol(value: &Value) -> Result<FirewallProtocol, Fault> {
    values::choice(&[
        ("all", FirewallProtocol::All),
        ("tcp", FirewallProtocol::Tcp),
        ("udp", FirewallProtocol::Udp),
        ("icmp", FirewallProtocol::Icmp),
        ("icmpv6", FirewallProtocol::Icmpv6),
    ])(value)
}

/// A network whose zero prefix is everything: what a rule without it matches, too.
fn network(value: &Value) -> Result<IpNet, Fault> {
    values::network(value).map(|net| net.trunc())
}

/// Whether the caller may cut himself off.
#[derive(Debug, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DeleteFirewallRule {
    /// Also when it would keep the caller away from the worker.
    #[schema(required = false, default = false)]
    #[param(required = false, default = false)]
    pub force: bool,
}

impl FromFields for DeleteFirewallRule {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        Some(Self { force: fields.or("force", false, values::boolean) })
    }
}

/// A request without fields.
#[derive(Debug)]
struct Nothing;

impl FromFields for Nothing {
    fn from_fields(_: &mut Fields) -> Option<Self> {
        Some(Self)
    }
}

/// Add a firewall rule
///
/// Rules are asked in the order in which they were added, before those of others. A rule that would keep the
/// caller himself away from the worker is refused unless `force` is set.
#[utoipa::path(
    post, path = "/nat/firewall", tag = "nat",
    request_body(content = CreateFirewallRule, example = json!({
        "chain": "FORWARD", "action": "DROP", "protocol": "tcp", "source": "10.0.0.0/8", "port": 25
    })),
    responses((status = 200, description = "The rule", body = Answer<FirewallView>), Refusals),
)]
async fn create_firewall_rule(
    State(app): State<App>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Lenient<CreateFirewallRule>,
) -> Result<Answer<Object>, Refusal> {
    let CreateFirewallRule {
        chain,
        action,
        protocol,
        source,
        destination,
        port,
        interface,
        description,
        force,
    } = request.value;
    let spec = FirewallSpec { chain, action, protocol, source, destination, port, interface, description };
    let caller = Caller { address: peer.ip(), force };
    app.change(Change::CreateFirewall(NewFirewallRule { spec, caller }), request.warnings).await
}

/// Remove a firewall rule
#[utoipa::path(
    delete, path = "/nat/firewall/{id}", tag = "nat",
    params(("id" = String, Path, description = "As /nat/status shows it"), DeleteFirewallRule),
    responses((status = 200, description = "The rule is gone", body = Answer<Gone>), Refusals),
)]
async fn delete_firewall_rule(
    State(app): State<App>,
    Path(id): Path<String>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Lenient<DeleteFirewallRule>,
) -> Result<Answer<Object>, Refusal> {
    let caller = Caller { address: peer.ip(), force: request.value.force };
    app.change(Change::DeleteFirewall { id, caller }, request.warnings).await
}

/// Remove all firewall rules of the worker
///
/// Rules of others stay. The answer lists what was removed.
#[utoipa::path(
    post, path = "/nat/flush-firewall", tag = "nat",
    responses((status = 200, description = "The rules are gone", body = Answer<Gone>), Refusals),
)]
async fn flush_firewall(
    State(app): State<App>,
    request: Lenient<Nothing>,
) -> Result<Answer<Object>, Refusal> {
    app.change(Change::FlushFirewall, request.warnings).await
}

/// Remove all forwards and masquerade rules of the worker
///
/// Rules of others stay. The answer lists what was removed.
#[utoipa::path(
    post, path = "/nat/flush-nat", tag = "nat",
    responses((status = 200, description = "The rules are gone", body = Answer<Gone>), Refusals),
)]
async fn flush_nat(State(app): State<App>, request: Lenient<Nothing>) -> Result<Answer<Object>, Refusal> {
    app.change(Change::FlushNat, request.warnings).await
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::fields::{assert_schema_matches, read};

    #[test]
    fn the_document_names_the_fields_that_are_read() {
        assert_schema_matches::<CreateFirewallRule>();
        assert_schema_matches::<DeleteFirewallRule>();
    }

    #[test]
    fn words_are_understood_in_any_case_and_typos_are_refused() {
        let rule = json!({ "chain": "input", "action": "Drop", "protocol": "TCP", "source": "10.1.2.3/8" });
        let rule: CreateFirewallRule = read(rule).unwrap();
        assert_eq!((rule.chain, rule.action), (Chain::Input, FirewallAction::Drop));
        assert_eq!(rule.source.unwrap().to_string(), "10.0.0.0/8");
        for (field, bad) in
            [("chain", "PREROUTING"), ("action", "LOG"), ("protocol", "sctp"), ("source", "lan")]
        {
            let mut rule = json!({ "chain": "INPUT", "action": "DROP", "protocol": "tcp" });
            rule[field] = json!(bad);
            assert!(read::<CreateFirewallRule>(rule).is_err(), "{field}");
        }
    }
}
