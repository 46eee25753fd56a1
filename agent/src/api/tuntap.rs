//! `/tuntap`: TUNs and TAPs.

use std::net::IpAddr;

use axum::{
    Json,
    extract::{Path, State},
};
use ipnet::IpNet;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    App,
    answer::{Answer, Gone},
    error::{Refusal, Refusals},
    extract::Lenient,
    fields::{Fields, FromFields},
    values,
};
use crate::{
    engine::{Change, Object},
    model::{LinkName, TunMode, TunSpec, TunType, TunView},
};

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(create_tuntap))
        .routes(routes!(delete_tuntap))
        .routes(routes!(attach_tap))
        .routes(routes!(detach_tap))
        .routes(routes!(set_tuntap_ip))
        .routes(routes!(remove_tuntap_ip))
        .routes(routes!(list_tuntaps))
        .routes(routes!(show_tuntap))
}

/// A TUN or TAP to be.
#[derive(Debug, ToSchema)]
pub struct CreateTunTap {
    #[schema(value_type = String, min_length = 1, max_length = 15, example = "tap-vm1")]
    pub name: LinkName,
    /// `tap` for a virtual machine on a bridge, `tun` for IP packets only.
    #[schema(rename = "type")]
    pub kind: TunType,
    /// Who may open it beside root. Default: what `owner` and `group` say.
    pub mode: Option<TunMode>,
    /// A user of this host, by name or number.
    #[schema(value_type = Option<String>)]
    pub owner: Option<u32>,
    /// A group of this host, by name or number.
    #[schema(value_type = Option<String>)]
    pub group: Option<u32>,
    /// The bridge that a tap shall be a port of.
    #[schema(value_type = Option<String>)]
    pub bridge: Option<LinkName>,
    /// Make it again after a reboot. Until then it stays in any case.
    #[schema(required = false, default = false)]
    pub persistent: bool,
    /// As many queues as the program that opens it wants.
    #[schema(required = false, default = false)]
    pub multi_queue: bool,
    /// Packets carry a header with checksum and segmentation offload.
    #[schema(required = false, default = false)]
    pub vnet_hdr: bool,
    #[schema(minimum = 68, maximum = 65535)]
    pub mtu: Option<u32>,
}

const TYPES: &[(&str, TunType)] = &[("tap", TunType::Tap), ("tun", TunType::Tun)];
const MODES: &[(&str, TunMode)] =
    &[("user", TunMode::User), ("group", TunMode::Group), ("root", TunMode::Root)];

impl FromFields for CreateTunTap {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let name = fields.required("name", values::link_name);
        let kind = fields.required("type", values::choice(TYPES));
        let mode = fields.optional("mode", values::choice(MODES));
        let owner = fields.optional("owner", values::user);
        let group = fields.optional("group", values::group);
        let bridge = fields.optional("bridge", values::link_name);
        let persistent = fields.or("persistent", false, values::boolean);
        let multi_queue = fields.or("multi_queue", false, values::boolean);
        let vnet_hdr = fields.or("vnet_hdr", false, values::boolean);
        let mtu = fields.optional("mtu", values::mtu);
        match mode {
            Some(TunMode::User) if !fields.has("owner") => {
                fields.conflict("owner", "is required with the mode user");
            }
            Some(TunMode::Group) if !fields.has("group") => {
                fields.conflict("group", "is required with the mode group");
            }
            Some(TunMode::Root) if fields.has("owner") || fields.has("group") => {
                fields.conflict("mode", "is root, so there is no owner and no group");
            }
            Some(TunMode::User | TunMode::Group | TunMode::Root) | None => {}
        }
        if kind == Some(TunType::Tun) && bridge.is_some() {
            fields.conflict("bridge", "is for taps: a tun carries IP packets and cannot be a port");
        }
        Some(Self {
            name: name?,
            kind: kind?,
            mode,
            owner,
            group,
            bridge,
            persistent,
            multi_queue,
            vnet_hdr,
            mtu,
        })
    }
}

impl From<CreateTunTap> for Change {
    fn from(request: CreateTunTap) -> Self {
        // The mode says nothing that owner and group do not say.
        let CreateTunTap {
            name,
            kind,
            mode: _,
            owner,
            group,
            bridge,
            persistent,
            multi_queue,
            vnet_hdr,
            mtu,
        } = request;
        let addresses = Vec::new();
        Self::CreateTun(TunSpec {
            name,
            kind,
            owner,
            group,
            bridge,
            persistent,
            multi_queue,
            vnet_hdr,
            mtu,
            addresses,
        })
    }
}

/// A TUN or TAP to delete.
#[derive(Debug, ToSchema)]
pub struct DeleteTunTap {
    #[schema(value_type = String, example = "tap-vm1")]
    pub name: LinkName,
}

impl FromFields for DeleteTunTap {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let name = fields.required("name", values::link_name);
        Some(Self { name: name? })
    }
}

/// A tap, and the bridge it shall be a port of.
#[derive(Debug, ToSchema)]
pub struct AttachTap {
    #[schema(value_type = String, example = "tap-vm1")]
    pub tap_name: LinkName,
    #[schema(value_type = String, example = "br-lab")]
    pub bridge_name: LinkName,
}

impl FromFields for AttachTap {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let tap_name = fields.required("tap_name", values::link_name);
        let bridge_name = fields.required("bridge_name", values::link_name);
        Some(Self { tap_name: tap_name?, bridge_name: bridge_name? })
    }
}

/// A tap to take out of its bridge.
#[derive(Debug, ToSchema)]
pub struct DetachTap {
    #[schema(value_type = String, example = "tap-vm1")]
    pub tap_name: LinkName,
}

impl FromFields for DetachTap {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let tap_name = fields.required("tap_name", values::link_name);
        Some(Self { tap_name: tap_name? })
    }
}

/// An address of a TUN or TAP.
#[derive(Debug, ToSchema)]
pub struct TunTapAddress {
    /// Of either family; may bring its prefix length: `10.0.0.1/24`.
    #[schema(value_type = String, example = "10.0.0.1")]
    pub ip_address: IpAddr,
    /// `24`, `/24` or `255.255.255.0`. Default: what `ip_address` brings, else 24, for IPv6 64.
    #[schema(value_type = Option<String>, example = "24")]
    pub netmask: Option<u8>,
}

impl FromFields for TunTapAddress {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let address = fields.required("ip_address", values::address);
        let netmask = fields.optional("netmask", values::netmask);
        let (ip, brought) = address?;
        if brought.is_some() && netmask.is_some() && brought != netmask {
            fields.conflict("netmask", "differs from the prefix length in ip_address");
        }
        let netmask = brought.or(netmask);
        if netmask.is_some_and(|prefix| prefix == 0 || IpNet::new(ip, prefix).is_err()) {
            fields.conflict("netmask", "is no prefix length for an address of that family");
        }
        Some(Self { ip_address: ip, netmask })
    }
}

impl TunTapAddress {
    fn net(&self) -> Result<IpNet, Refusal> {
        let prefix = self.netmask.unwrap_or(if self.ip_address.is_ipv4() { 24 } else { 64 });
        IpNet::new(self.ip_address, prefix)
            .map_err(|error| crate::error::Error::field("netmask", error.to_string()).into())
    }
}

/// Create a TUN or TAP
///
/// It is there for the program that runs the virtual machine to open, whoever that is: `owner` and `group` may.
#[utoipa::path(
    post, path = "/tuntap/create", tag = "tuntap",
    request_body(content = CreateTunTap, example = json!({
        "name": "tap-vm1", "type": "tap", "owner": "libvirt-qemu", "bridge": "br-lab"
    })),
    responses((status = 200, description = "The device as the kernel has it", body = Answer<TunView>), Refusals),
)]
async fn create_tuntap(
    State(app): State<App>,
    request: Lenient<CreateTunTap>,
) -> Result<Answer<Object>, Refusal> {
    app.change(request.value.into(), request.warnings).await
}

/// Delete a TUN or TAP
#[utoipa::path(
    post, path = "/tuntap/delete", tag = "tuntap",
    request_body(content = DeleteTunTap, example = json!({ "name": "tap-vm1" })),
    responses((status = 200, description = "It is gone", body = Answer<Gone>), Refusals),
)]
async fn delete_tuntap(
    State(app): State<App>,
    request: Lenient<DeleteTunTap>,
) -> Result<Answer<Object>, Refusal> {
    app.change(Change::DeleteTun { name: request.value.name.into() }, request.warnings).await
}

/// Put a tap into a bridge
#[utoipa::path(
    post, path = "/tuntap/attach", tag = "tuntap",
    request_body(content = AttachTap, example = json!({ "tap_name": "tap-vm1", "bridge_name": "br-lab" })),
    responses((status = 200, description = "The tap as the kernel has it", body = Answer<TunView>), Refusals),
)]
async fn attach_tap(State(app): State<App>, request: Lenient<AttachTap>) -> Result<Answer<Object>, Refusal> {
    let AttachTap { tap_name, bridge_name } = request.value;
    app.change(Change::AttachTap { tap: tap_name.into(), bridge: bridge_name.into() }, request.warnings).await
}

/// Take a tap out of its bridge
#[utoipa::path(
    post, path = "/tuntap/detach", tag = "tuntap",
    request_body(content = DetachTap, example = json!({ "tap_name": "tap-vm1" })),
    responses((status = 200, description = "The tap as the kernel has it", body = Answer<TunView>), Refusals),
)]
async fn detach_tap(State(app): State<App>, request: Lenient<DetachTap>) -> Result<Answer<Object>, Refusal> {
    app.change(Change::DetachTap { tap: request.value.tap_name.into() }, request.warnings).await
}

/// Give a TUN or TAP an address
#[utoipa::path(
    post, path = "/tuntap/{name}/set-ip", tag = "tuntap",
    params(("name" = String, Path, description = "Its name")),
    request_body(content = TunTapAddress, example = json!({ "ip_address": "10.0.0.1", "netmask": "24" })),
    responses((status = 200, description = "The device as the kernel has it", body = Answer<TunView>), Refusals),
)]
async fn set_tuntap_ip(
    State(app): State<App>,
    Path(name): Path<String>,
    request: Lenient<TunTapAddress>,
) -> Result<Answer<Object>, Refusal> {
    let address = request.value.net()?;
    app.change(Change::AddTunAddress { name, address }, request.warnings).await
}

/// Take an address from a TUN or TAP
#[utoipa::path(
    delete, path = "/tuntap/{name}/remove-ip", tag = "tuntap",
    params(("name" = String, Path, description = "Its name")),
    request_body(content = TunTapAddress, example = json!({ "ip_address": "10.0.0.1", "netmask": "24" })),
    responses((status = 200, description = "The device as the kernel has it", body = Answer<TunView>), Refusals),
)]
async fn remove_tuntap_ip(
    State(app): State<App>,
    Path(name): Path<String>,
    request: Lenient<TunTapAddress>,
) -> Result<Answer<Object>, Refusal> {
    let TunTapAddress { ip_address: ip, netmask: prefix } = request.value;
    app.change(Change::RemoveTunAddress { name, ip, prefix }, request.warnings).await
}

/// Every TUN and TAP, the host's own too
#[utoipa::path(
    get, path = "/tuntap/list", tag = "tuntap",
    responses((status = 200, description = "Every TUN and TAP", body = Vec<TunView>), Refusals),
)]
async fn list_tuntaps(State(app): State<App>) -> Result<Json<Vec<TunView>>, Refusal> {
    Ok(Json(app.engine.tuns().await?))
}

/// One TUN or TAP
#[utoipa::path(
    get, path = "/tuntap/{name}", tag = "tuntap",
    params(("name" = String, Path, description = "Its name")),
    responses((status = 200, description = "The device", body = Answer<TunView>), Refusals),
)]
async fn show_tuntap(State(app): State<App>, Path(name): Path<String>) -> Result<Answer<Object>, Refusal> {
    let tun = app.engine.tun(&name).await?;
    Ok(Answer::shown(format!("{} {name}", tun.kind.name()), Object::Tun(tun)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        api::fields::{assert_schema_matches, read},
        error::Code,
    };

    #[test]
    fn the_document_names_the_fields_that_are_read() {
        assert_schema_matches::<CreateTunTap>();
        assert_schema_matches::<DeleteTunTap>();
        assert_schema_matches::<AttachTap>();
        assert_schema_matches::<DetachTap>();
        assert_schema_matches::<TunTapAddress>();
    }

    #[test]
    fn the_readmes_tap_is_understood() {
        let body = json!({ "name": "tap-vm1", "type": "tap", "bridge": "br-lab" });
        let Change::CreateTun(spec) = read::<CreateTunTap>(body).unwrap().into() else { panic!("another") };
        assert_eq!((spec.kind, spec.owner, spec.persistent), (TunType::Tap, None, false));
    }

    #[test]
    fn a_mode_needs_its_owner_and_a_tun_has_no_bridge() {
        let field = |body| read::<CreateTunTap>(body).unwrap_err().fields[0].loc[1].clone();
        assert_eq!(field(json!({ "name": "t" })), "type");
        assert_eq!(field(json!({ "name": "t", "type": "tap", "mode": "user" })), "owner");
        assert_eq!(field(json!({ "name": "t", "type": "tap", "mode": "group" })), "group");
        assert_eq!(field(json!({ "name": "t", "type": "tap", "mode": "root", "owner": "root" })), "mode");
        assert_eq!(field(json!({ "name": "t", "type": "tun", "bridge": "br0" })), "bridge");
        assert!(
            read::<CreateTunTap>(json!({ "name": "t", "type": "tap", "mode": "user", "owner": 5 })).is_ok()
        );
    }

    #[test]
    fn an_address_has_one_prefix_of_its_family() {
        let net = |body| read::<TunTapAddress>(body).map(|address| address.net().unwrap().to_string());
        assert_eq!(net(json!({ "ip_address": "10.0.0.1" })).unwrap(), "10.0.0.1/24");
        assert_eq!(net(json!({ "ip_address": "fd00::1" })).unwrap(), "fd00::1/64");
        assert_eq!(net(json!({ "ip_address": "10.0.0.1/8" })).unwrap(), "10.0.0.1/8");
        assert_eq!(
            net(json!({ "ip_address": "10.0.0.1", "netmask": "255.255.0.0" })).unwrap(),
            "10.0.0.1/16"
        );
        for bad in [
            json!({ "ip_address": "10.0.0.1/8", "netmask": 24 }),
            json!({ "ip_address": "10.0.0.1", "netmask": 33 }),
            json!({ "ip_address": "10.0.0.1", "netmask": 0 }),
            json!({ "netmask": 24 }),
        ] {
            assert_eq!(read::<TunTapAddress>(bad.clone()).unwrap_err().code, Code::InvalidField, "{bad}");
        }
    }
}
