//! What can go wrong with a request, in the words of the domain.
//!
//! Nothing here knows HTTP: `api::error` maps a [`Code`] to a status. Text is for people,
//! the code is for programs.

use std::fmt;

use serde::Serialize;
use utoipa::ToSchema;

/// Why a request was refused or failed. Stable: clients branch on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Code {
    /// The body is no JSON.
    MalformedJson,
    /// A field is missing, of the wrong type or out of range.
    InvalidField,
    /// A caller from another machine without the token.
    Unauthorized,
    /// A page of another site, or another site's name, tried to use the worker.
    ForeignOrigin,
    /// The `Host` header names a machine that is not this one.
    ForeignHost,
    /// No such route.
    NoSuchRoute,
    /// The route exists, the method does not.
    MethodNotAllowed,
    /// The body is larger than the worker accepts.
    BodyTooLarge,
    BridgeNotFound,
    LinkNotFound,
    VethNotFound,
    TunNotFound,
    VlanNotFound,
    StationNotFound,
    /// The link does not have that address.
    AddressNotFound,
    RuleNotFound,
    NamespaceNotFound,
    /// The port is not a port of that bridge.
    NotAPort,
    /// A link of that name exists and is something else, or is the same kind with another spec.
    LinkExists,
    /// The link is not of the kind that the call is about.
    WrongKind,
    /// The object was not made by the worker and is not changed by it.
    NotManaged,
    /// The link is a port of another bridge.
    PortInUse,
    /// Other links lie on the link and would go with it.
    LinkInUse,
    /// The bridge still has ports.
    BridgeHasPorts,
    /// The external port is forwarded already, or a program of the host listens on it.
    ForwardPortInUse,
    /// The external port is the worker's own.
    ForwardPortReserved,
    /// An address that the rule is to translate to is another uplink's.
    PoolAddressInUse,
    /// An address that the rule is to translate to is nobody's in a network of this host.
    PoolAddressAbsent,
    /// The same network is masqueraded there with another spec.
    MasqueradeExists,
    /// Every rule slot of the data plane is taken.
    TooManyRules,
    /// The VLAN filter has no room for more ports or VLANs.
    TooManyVlans,
    /// The station is fixed at another port.
    StationExists,
    /// The rule would keep the caller himself away from the worker.
    FirewallLockout,
    /// The kernel, or a component that is missing, cannot do it.
    Unsupported,
    /// The data plane is not running.
    DataplaneDown,
    /// The state cannot be written.
    StoreUnwritable,
    /// The worker is shutting down or did not answer in time.
    NotReady,
    /// A gateway that answered before the change did not answer after it; everything was undone.
    GatewayLost,
    /// The kernel refused a step; everything done before it was undone.
    KernelRefused,
    /// A bug of ours.
    Internal,
}

/// A refusal or failure: what and why with names, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    pub code: Code,
    /// One sentence with the names of the objects involved.
    pub message: String,
    /// What the caller can do about it.
    pub hint: Option<String>,
    /// The fields that are wrong, for [`Code::InvalidField`].
    pub fields: Vec<FieldError>,
}

/// One wrong field of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldError {
    /// Where: `["body", "external_port"]`.
    pub loc: Vec<String>,
    /// What is wrong, for people.
    pub msg: String,
    /// What is wrong, for programs: `missing`, `type_error`, `value_error`, `conflict`.
    #[serde(rename = "type")]
    pub kind: String,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None, fields: Vec::new() }
    }

    /// A value that is out of range: 422 with the field named.
    pub fn field(field: &str, msg: impl Into<String>) -> Self {
        let msg = msg.into();
        Self {
            code: Code::InvalidField,
            message: format!("{field}: {msg}"),
            hint: None,
            fields: vec![FieldError {
                loc: vec!["body".into(), field.into()],
                msg,
                kind: "value_error".into(),
            }],
        }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}
