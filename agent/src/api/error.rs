//! From the domain's errors to HTTP: the one place that knows status codes.

use std::collections::BTreeMap;

use axum::{
    extract::OriginalUri,
    http::{Method, StatusCode},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::Value;
use utoipa::{
    IntoResponses, PartialSchema, ToSchema,
    openapi::{ComponentsBuilder, Content, Ref, RefOr, Response as Documented, ResponseBuilder},
};

use super::fields::invalid;
use crate::error::{Code, Error, FieldError};

/// The status that a refusal is answered with.
pub fn status(code: Code) -> StatusCode {
    match code {
        Code::MalformedJson => StatusCode::BAD_REQUEST,
        Code::Unauthorized => StatusCode::UNAUTHORIZED,
        Code::ForeignOrigin => StatusCode::FORBIDDEN,
        Code::NoSuchRoute
        | Code::BridgeNotFound
        | Code::LinkNotFound
        | Code::VethNotFound
        | Code::TunNotFound
        | Code::VlanNotFound
        | Code::StationNotFound
        | Code::AddressNotFound
        | Code::RuleNotFound
        | Code::NamespaceNotFound
        | Code::NotAPort => StatusCode::NOT_FOUND,
        Code::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        Code::LinkExists
        | Code::WrongKind
        | Code::NotManaged
        | Code::PortInUse
        | Code::BridgeHasPorts
        | Code::LinkInUse
        | Code::ForwardPortInUse
        | Code::ForwardPortReserved
        | Code::MasqueradeExists
        | Code::PoolAddressInUse
        | Code::PoolAddressAbsent
        | Code::TooManyRules
        | Code::TooManyVlans
        | Code::StationExists
        | Code::FirewallLockout
        | Code::GatewayLost
        | Code::KernelRefused => StatusCode::CONFLICT,
        Code::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Code::ForeignHost => StatusCode::MISDIRECTED_REQUEST,
        Code::InvalidField => StatusCode::UNPROCESSABLE_ENTITY,
        Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        Code::Unsupported => StatusCode::NOT_IMPLEMENTED,
        Code::DataplaneDown | Code::NotReady => StatusCode::SERVICE_UNAVAILABLE,
        Code::StoreUnwritable => StatusCode::INSUFFICIENT_STORAGE,
    }
}

/// An error on its way out. It travels beside an empty response; [`super::trace`] writes the body,
/// because only there the request id is known.
#[derive(Debug)]
pub struct Refusal(pub Error);

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = status(self.0.code).into_response();
        response.extensions_mut().insert(self.0);
        response
    }
}

/// What the caller gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Failure {
    /// Always `error`.
    #[schema(example = "error")]
    status: &'static str,
    /// The status code in words.
    #[schema(example = "HTTP 409")]
    error: String,
    /// What and why, with names.
    message: String,
    code: Code,
    detail: Detail,
    /// What to do about it.
    hint: String,
    request_id: String,
}

/// Field by field for 422, one text otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Detail {
    Fields(Vec<FieldError>),
    Text(String),
}

impl Failure {
    pub fn new(error: Error, request_id: String) -> Self {
        let Error { code, message, hint, fields } = error;
        let detail = match code {
            Code::InvalidField if fields.is_empty() => Detail::Fields(vec![FieldError {
                loc: vec!["body".into()],
                msg: message.clone(),
                kind: "value_error".into(),
            }]),
            Code::InvalidField => Detail::Fields(fields),
            _ => Detail::Text(message.clone()),
        };
        let error = format!("HTTP {}", status(code).as_u16());
        let hint = hint.unwrap_or_else(|| usual_hint(code).to_owned());
        Self { status: "error", error, message, code, detail, hint, request_id }
    }
}

/// What helps whoever gets this code, where nothing better is known.
fn usual_hint(code: Code) -> &'static str {
    match code {
        Code::MalformedJson => "send a JSON object such as {\"name\": \"br-vm\"}",
        Code::InvalidField => "correct the fields that detail names; /docs shows what each may be",
        Code::Unauthorized => "send the token of the worker's state directory: Authorization: Bearer <token>",
        Code::ForeignOrigin => "call from the worker's own page, or from a program that is no browser",
        Code::ForeignHost => "use an address, localhost or the host name, or list the name in ALLOWED_HOSTS",
        Code::NoSuchRoute => "GET /docs lists what there is",
        Code::MethodNotAllowed => "the Allow header names the methods",
        Code::BodyTooLarge => "send only the fields that /docs shows",
        Code::BridgeNotFound => "GET /bridge/list lists the bridges",
        Code::LinkNotFound => "GET /network/interfaces lists the interfaces",
        Code::VethNotFound => "GET /veth/list lists the pairs",
        Code::TunNotFound => "GET /tuntap/list lists them",
        Code::VlanNotFound => "GET /vlan/list lists VLAN links, GET /vlan/bridge-vlans the VLANs of ports",
        Code::StationNotFound => "GET /vlan/fdb lists the stations",
        Code::AddressNotFound => "GET /network/interfaces shows the addresses of each interface",
        Code::RuleNotFound => "GET /nat/status lists the rules",
        Code::NamespaceNotFound => "make it first: ip netns add",
        Code::NotAPort => "GET /bridge/list shows the ports of each bridge",
        Code::LinkExists => "choose another name, or delete that link first",
        Code::WrongKind => "GET /network/interfaces shows what kind each interface is of",
        Code::NotManaged => "change it with the tool that made it",
        Code::PortInUse => "remove it from that bridge first: POST /bridge/remove-port",
        Code::BridgeHasPorts => "remove the ports first, or delete with force",
        Code::LinkInUse => "delete first what lies on it",
        Code::ForwardPortInUse => "choose another external port, or stop who has it",
        Code::ForwardPortReserved => "choose another external port",
        Code::PoolAddressInUse => "an address leads to one uplink; take it out of the other rule first",
        Code::PoolAddressAbsent => "give the address to an interface of this host first",
        Code::MasqueradeExists => "delete that rule first, or ask for what it is",
        Code::TooManyRules => "delete rules that are not needed",
        Code::TooManyVlans => "remove ports or VLANs that are not needed",
        Code::StationExists => "remove it there first: POST /vlan/fdb/remove",
        Code::FirewallLockout => "first ACCEPT what must go on working, or ask with force",
        Code::Unsupported => "telecluster-worker check says what this host can do",
        Code::DataplaneDown => "look at GET /health and at the worker's log",
        Code::StoreUnwritable => "look at the free space and the permissions of the state directory",
        Code::NotReady => "ask again in a moment",
        Code::GatewayLost => "everything was put back; look at the switch and at the cable",
        Code::KernelRefused => "nothing was changed; the message has what the kernel said",
        Code::Internal => "the worker's log has this request id",
    }
}

/// 404 for a path that is no route.
pub async fn no_such_route(OriginalUri(uri): OriginalUri) -> Refusal {
    let path: String = uri.path().chars().take(200).collect();
    Refusal(
        Error::new(Code::NoSuchRoute, format!("there is no {path}")).hint("GET /docs lists what there is"),
    )
}

/// 405; axum adds `Allow`.
pub async fn method_not_allowed(method: Method, OriginalUri(uri): OriginalUri) -> Refusal {
    let path: String = uri.path().chars().take(200).collect();
    Refusal(
        Error::new(Code::MethodNotAllowed, format!("{path} has no {method}"))
            .hint("the Allow header names the methods"),
    )
}

/// What an error response of a library means in our words.
pub fn of_status(status: StatusCode) -> Error {
    match status {
        StatusCode::NOT_FOUND => Error::new(Code::NoSuchRoute, "there is no such page"),
        StatusCode::METHOD_NOT_ALLOWED => Error::new(Code::MethodNotAllowed, "that method is not there"),
        StatusCode::PAYLOAD_TOO_LARGE => Error::new(Code::BodyTooLarge, "the body is too large"),
        StatusCode::SERVICE_UNAVAILABLE => {
            Error::new(Code::NotReady, "no answer in time; a change may still have been made")
                .hint("look at the object before asking again")
        }
        // What axum refuses before a handler sees it is a path with bytes that are no text.
        status if status.is_client_error() => invalid(vec![FieldError {
            loc: vec!["path".into()],
            msg: "is not understood".into(),
            kind: "value_error".into(),
        }]),
        _ => Error::new(Code::Internal, "a bug of the worker").hint("the worker's log has this request id"),
    }
}

/// Every code, in the order of the enum.
pub const CODES: &[Code] = &[
    Code::MalformedJson,
    Code::InvalidField,
    Code::Unauthorized,
    Code::ForeignOrigin,
    Code::ForeignHost,
    Code::NoSuchRoute,
    Code::MethodNotAllowed,
    Code::BodyTooLarge,
    Code::BridgeNotFound,
    Code::LinkNotFound,
    Code::VethNotFound,
    Code::TunNotFound,
    Code::VlanNotFound,
    Code::StationNotFound,
    Code::AddressNotFound,
    Code::RuleNotFound,
    Code::NamespaceNotFound,
    Code::NotAPort,
    Code::LinkExists,
    Code::WrongKind,
    Code::NotManaged,
    Code::PortInUse,
    Code::BridgeHasPorts,
    Code::LinkInUse,
    Code::ForwardPortInUse,
    Code::ForwardPortReserved,
    Code::PoolAddressInUse,
    Code::PoolAddressAbsent,
    Code::MasqueradeExists,
    Code::TooManyRules,
    Code::TooManyVlans,
    Code::StationExists,
    Code::FirewallLockout,
    Code::Unsupported,
    Code::DataplaneDown,
    Code::StoreUnwritable,
    Code::NotReady,
    Code::GatewayLost,
    Code::KernelRefused,
    Code::Internal,
];

/// The name of a code as clients see it.
fn name(code: Code) -> String {
    serde_json::to_value(code).ok().as_ref().and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// The refusals that any endpoint may answer with, for the OpenAPI document.
#[derive(Debug)]
pub struct Refusals;

impl IntoResponses for Refusals {
    fn responses() -> BTreeMap<String, RefOr<Documented>> {
        let refer =
            |status: u16| (status.to_string(), RefOr::Ref(Ref::from_response_name(component(status))));
        by_status().into_keys().map(refer).collect()
    }
}

/// What [`Refusals`] refers to: one response for each status, and the schemas of its body.
pub fn components() -> ComponentsBuilder {
    let mut schemas = vec![(Failure::name().into_owned(), Failure::schema())];
    Failure::schemas(&mut schemas);
    let responses = by_status().into_iter().map(|(status, codes)| {
        let failure = Content::new(Some(Ref::from_schema_name(Failure::name())));
        let response =
            ResponseBuilder::new().description(codes.join(", ")).content("application/json", failure);
        (component(status), response.build())
    });
    ComponentsBuilder::new().schemas_from_iter(schemas).responses_from_iter(responses)
}

fn component(status: u16) -> String {
    format!("Http{status}")
}

fn by_status() -> BTreeMap<u16, Vec<String>> {
    let mut by_status: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    for code in CODES {
        by_status.entry(status(*code).as_u16()).or_default().push(format!("`{}`", name(*code)));
    }
    by_status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_listed() {
        let schema = serde_json::to_value(Code::schema()).unwrap();
        let mut documented: Vec<String> = match &schema["enum"] {
            Value::Array(names) => serde_json::from_value(Value::Array(names.clone())).unwrap(),
            _ => (schema["oneOf"].as_array().unwrap().iter())
                .map(|variant| variant["enum"][0].as_str().unwrap().to_owned())
                .collect(),
        };
        let mut listed: Vec<String> = CODES.iter().map(|code| name(*code)).collect();
        documented.sort_unstable();
        listed.sort_unstable();
        assert_eq!(listed, documented);
    }

    #[test]
    fn a_422_carries_its_fields_and_others_a_text() {
        let failure = Failure::new(Error::field("name", "is empty"), "r1".into());
        assert_eq!(failure.error, "HTTP 422");
        let Detail::Fields(fields) = failure.detail else { panic!("no fields") };
        assert_eq!(fields[0].loc, ["body", "name"]);

        let failure = Failure::new(Error::new(Code::BridgeNotFound, "there is no bridge br0"), "r1".into());
        assert_eq!(failure.detail, Detail::Text("there is no bridge br0".into()));
        assert_eq!(failure.error, "HTTP 404");
    }

    #[test]
    fn a_422_without_fields_still_has_an_array() {
        let failure = Failure::new(Error::new(Code::InvalidField, "no"), "r1".into());
        assert!(matches!(failure.detail, Detail::Fields(fields) if fields.len() == 1));
    }
}
