//! `/vlan/...-bridge`, `/vlan/bridge-...`: VLANs on the ports of bridges, and the stations behind them.

#![expect(unused_qualifications, reason = "what utoipa makes of params() is spelt in full")]

use std::collections::BTreeSet;

use axum::{Json, extract::State};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    App,
    answer::Answer,
    error::{Refusal, Refusals},
    extract::Lenient,
    fields::{Fault, Fields, FromFields},
    values,
};
use crate::{
    engine::{Change, Object, StationQuery},
    kernel::links::Mac,
    model::{
        LinkName, VlanProtocol,
        bridge_vlan::{Accept, BridgeVlanView, FixedStation, PortVlansChange, PortVlansView, StationView},
    },
};

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(add_to_bridge))
        .routes(routes!(remove_from_bridge))
        .routes(routes!(list_bridge_vlans))
        .routes(routes!(list_bridge_ports))
        .routes(routes!(list_stations))
        .routes(routes!(fix_station))
        .routes(routes!(release_station))
}

const ACCEPTS: &[(&str, Accept)] =
    &[("all", Accept::All), ("tagged", Accept::Tagged), ("untagged", Accept::Untagged)];
const PROTOCOLS: &[(&str, VlanProtocol)] =
    &[("802.1Q", VlanProtocol::Dot1q), ("802.1ad", VlanProtocol::Dot1ad)];
/// More stations than fit in the table are no limit.
const STATIONS_MAX: i128 = telecluster_common::vlan::maps::MAX_STATIONS as i128;

/// A port of a bridge, and VLANs that it shall be in.
#[derive(Debug, ToSchema)]
pub struct AddToBridge {
    #[schema(value_type = String, example = "br-lab")]
    pub bridge_name: LinkName,
    /// A port of that bridge; the bridge's own name is the host's side.
    #[schema(value_type = String, example = "tap-vm1")]
    pub port_name: LinkName,
    /// Required unless `vlans` is there.
    #[schema(value_type = Option<u16>, minimum = 1, maximum = 4094, example = 100)]
    pub vlan_id: Option<u16>,
    /// More of them: `10,20-30`.
    #[schema(value_type = Option<String>, example = "10,20-30")]
    pub vlans: Option<BTreeSet<u16>>,
    /// True adds to the VLANs whose frames bear a tag. False makes it the VLAN of frames without one, in place of
    /// another.
    #[schema(required = false, default = true)]
    pub tagged: bool,
    /// Which frames the port lets in: `all`, only `tagged`, only `untagged`.
    pub accept: Option<Accept>,
    /// What its tags begin with.
    pub protocol: Option<VlanProtocol>,
    /// Whatever comes in is payload of the native VLAN, tags and all (QinQ).
    pub tunnel: Option<bool>,
    /// Whether the payload may begin with another tag. Default: on ports with tagged VLANs.
    pub nested: Option<bool>,
    /// Stations that may be learned on the port; 0: no limit. Default: 1024.
    #[schema(minimum = 0, maximum = 32768)]
    pub station_limit: Option<u32>,
}

impl FromFields for AddToBridge {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let bridge_name = fields.required("bridge_name", values::link_name);
        let port_name = fields.required("port_name", values::link_name);
        let (vlan_id, vlans) = vlans(fields);
        let tagged = fields.or("tagged", true, values::boolean);
        let accept = fields.optional("accept", values::choice(ACCEPTS));
        let protocol = fields.optional("protocol", values::choice(PROTOCOLS));
        let tunnel = fields.optional("tunnel", values::boolean);
        let nested = fields.optional("nested", values::boolean);
        let station_limit = fields.optional("station_limit", values::integer(0, STATIONS_MAX));
        let request = Self {
            bridge_name: bridge_name?,
            port_name: port_name?,
            vlan_id,
            vlans,
            tagged,
            accept,
            protocol,
            tunnel,
            nested,
            station_limit,
        };
        if !tagged && request.all().len() > 1 {
            fields.conflict("tagged", "a port has one untagged VLAN, and more were given");
        }
        Some(request)
    }
}

impl AddToBridge {
    fn all(&self) -> BTreeSet<u16> {
        self.vlan_id.into_iter().chain(self.vlans.iter().flatten().copied()).collect()
    }
}

impl From<AddToBridge> for Change {
    fn from(request: AddToBridge) -> Self {
        let all = request.all();
        let AddToBridge {
            bridge_name,
            port_name,
            vlan_id: _,
            vlans: _,
            tagged,
            accept,
            protocol,
            tunnel,
            nested,
            station_limit,
        } = request;
        let (native, tagged) = if tagged { (None, all) } else { (all.first().copied(), BTreeSet::new()) };
        let change = PortVlansChange { native, tagged, accept, protocol, tunnel, nested, station_limit };
        Self::AddToVlans { bridge: bridge_name.into(), port: port_name.into(), change }
    }
}

/// A port of a bridge, and VLANs that it shall not be in any more.
#[derive(Debug, ToSchema)]
pub struct RemoveFromBridge {
    #[schema(value_type = String, example = "br-lab")]
    pub bridge_name: LinkName,
    #[schema(value_type = String, example = "tap-vm1")]
    pub port_name: LinkName,
    /// Required unless `vlans` is there.
    #[schema(value_type = Option<u16>, minimum = 1, maximum = 4094, example = 100)]
    pub vlan_id: Option<u16>,
    #[schema(value_type = Option<String>, example = "10,20-30")]
    pub vlans: Option<BTreeSet<u16>>,
}

impl FromFields for RemoveFromBridge {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let bridge_name = fields.required("bridge_name", values::link_name);
        let port_name = fields.required("port_name", values::link_name);
        let (vlan_id, vlans) = vlans(fields);
        Some(Self { bridge_name: bridge_name?, port_name: port_name?, vlan_id, vlans })
    }
}

/// One VLAN, or several, or both; not none.
fn vlans(fields: &mut Fields) -> (Option<u16>, Option<BTreeSet<u16>>) {
    let (vlan_id, vlans) = (fields.optional("vlan_id", values::vlan_id), fields.optional("vlans", vlan_ids));
    if !fields.has("vlan_id") && !fields.has("vlans") {
        fields.conflict("vlan_id", "is required where vlans is absent");
    }
    (vlan_id, vlans)
}

/// `10,20-30`, or a list of such.
fn vlan_ids(value: &Value) -> Result<BTreeSet<u16>, Fault> {
    let ranges = match value {
        Value::Number(_) => vec![vec![values::vlan_id(value)?]],
        _ => values::list(range)(value)?,
    };
    let ids: BTreeSet<u16> = ranges.into_iter().flatten().collect();
    if ids.is_empty() {
        return Err(Fault::Value("names no VLAN".into()));
    }
    Ok(ids)
}

fn range(value: &Value) -> Result<Vec<u16>, Fault> {
    let Some((first, last)) = value.as_str().and_then(|text| text.split_once('-')) else {
        return Ok(vec![values::vlan_id(value)?]);
    };
    let end = |text: &str| values::vlan_id(&Value::String(text.trim().to_owned()));
    let (first, last) = (end(first)?, end(last)?);
    if first > last {
        return Err(Fault::Value(format!("has the range {first}-{last}, which is empty")));
    }
    Ok((first..=last).collect())
}

/// A station that stays where it is whatever frames say.
#[derive(Debug, ToSchema)]
pub struct StationAt {
    #[schema(value_type = String, example = "br-lab")]
    pub bridge_name: LinkName,
    #[schema(value_type = String, example = "tap-vm1")]
    pub port_name: LinkName,
    #[schema(minimum = 1, maximum = 4094, example = 100)]
    pub vlan_id: u16,
    #[schema(value_type = String, example = "02:00:00:00:00:01")]
    pub mac_address: Mac,
}

impl FromFields for StationAt {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        let bridge_name = fields.required("bridge_name", values::link_name);
        let port_name = fields.required("port_name", values::link_name);
        let vlan_id = fields.required("vlan_id", values::vlan_id);
        let mac_address = fields.required("mac_address", mac);
        Some(Self {
            bridge_name: bridge_name?,
            port_name: port_name?,
            vlan_id: vlan_id?,
            mac_address: mac_address?,
        })
    }
}

impl StationAt {
    fn change(self, fixed: bool) -> Change {
        let Self { bridge_name, port_name, vlan_id: vlan, mac_address: mac } = self;
        let station = FixedStation { vlan, mac };
        Change::FixStation { bridge: bridge_name.into(), port: port_name.into(), station, fixed }
    }
}

fn mac(value: &Value) -> Result<Mac, Fault> {
    values::text(value)?.parse().map_err(|why| Fault::Value(format!("is wrong: {why}")))
}

/// Which stations. What is absent matches everything.
#[derive(Debug, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct StationFilter {
    pub bridge_name: Option<String>,
    pub port_name: Option<String>,
    pub vlan_id: Option<u16>,
    #[schema(value_type = Option<String>)]
    #[param(value_type = Option<String>)]
    pub mac_address: Option<Mac>,
}

impl FromFields for StationFilter {
    fn from_fields(fields: &mut Fields) -> Option<Self> {
        Some(Self {
            bridge_name: fields.optional("bridge_name", values::text),
            port_name: fields.optional("port_name", values::text),
            vlan_id: fields.optional("vlan_id", values::vlan_id),
            mac_address: fields.optional("mac_address", mac),
        })
    }
}

/// Put a port of a bridge into a VLAN
#[utoipa::path(
    post, path = "/vlan/add-to-bridge", tag = "vlan",
    request_body(content = AddToBridge, example = json!({
        "bridge_name": "br-lab", "port_name": "tap-vm1", "vlan_id": 100, "tagged": false
    })),
    responses(
        (status = 200, description = "The port with its VLANs", body = Answer<PortVlansView>),
        Refusals,
    ),
)]
async fn add_to_bridge(
    State(app): State<App>,
    request: Lenient<AddToBridge>,
) -> Result<Answer<Object>, Refusal> {
    app.change(request.value.into(), request.warnings).await
}

/// Take a port of a bridge out of a VLAN
///
/// Without any VLAN left, it is back in the bridge's untagged domain.
#[utoipa::path(
    post, path = "/vlan/remove-from-bridge", tag = "vlan",
    request_body(content = RemoveFromBridge, example = json!({
        "bridge_name": "br-lab", "port_name": "tap-vm1", "vlan_id": 100
    })),
    responses(
        (status = 200, description = "The port with its VLANs", body = Answer<PortVlansView>),
        Refusals,
    ),
)]
async fn remove_from_bridge(
    State(app): State<App>,
    request: Lenient<RemoveFromBridge>,
) -> Result<Answer<Object>, Refusal> {
    let RemoveFromBridge { bridge_name, port_name, vlan_id, vlans } = request.value;
    let vlans = vlan_id.into_iter().chain(vlans.into_iter().flatten()).collect();
    let change = Change::RemoveFromVlans { bridge: bridge_name.into(), port: port_name.into(), vlans };
    app.change(change, request.warnings).await
}

/// Every VLAN of every port of a bridge
#[utoipa::path(
    get, path = "/vlan/bridge-vlans", tag = "vlan",
    responses((status = 200, description = "One row for each port and VLAN", body = Vec<BridgeVlanView>), Refusals),
)]
async fn list_bridge_vlans(State(app): State<App>) -> Result<Json<Vec<BridgeVlanView>>, Refusal> {
    Ok(Json(app.engine.bridge_vlans().await?))
}

/// Every port of the bridges that have VLANs, with how it treats tags
#[utoipa::path(
    get, path = "/vlan/bridge-ports", tag = "vlan",
    responses((status = 200, description = "One row for each port", body = Vec<PortVlansView>), Refusals),
)]
async fn list_bridge_ports(State(app): State<App>) -> Result<Json<Vec<PortVlansView>>, Refusal> {
    Ok(Json(app.engine.switch_ports().await?))
}

/// The stations of bridges with VLANs: who is where
#[utoipa::path(
    get, path = "/vlan/fdb", tag = "vlan", params(StationFilter),
    responses((status = 200, description = "Learned and fixed ones", body = Vec<StationView>), Refusals),
)]
async fn list_stations(
    State(app): State<App>,
    filter: Lenient<StationFilter>,
) -> Result<Json<Vec<StationView>>, Refusal> {
    let StationFilter { bridge_name, port_name, vlan_id, mac_address } = filter.value;
    let query = StationQuery { bridge: bridge_name, port: port_name, vlan: vlan_id, mac: mac_address };
    Ok(Json(app.engine.stations(&query).await?))
}

/// Fix a station at a port, whatever frames say
#[utoipa::path(
    post, path = "/vlan/fdb/add", tag = "vlan",
    request_body(content = StationAt, example = json!({
        "bridge_name": "br-lab", "port_name": "tap-vm1", "vlan_id": 100, "mac_address": "02:00:00:00:00:01"
    })),
    responses(
        (status = 200, description = "The port with its VLANs", body = Answer<PortVlansView>),
        Refusals,
    ),
)]
async fn fix_station(State(app): State<App>, request: Lenient<StationAt>) -> Result<Answer<Object>, Refusal> {
    app.change(request.value.change(true), request.warnings).await
}

/// Let a fixed station go where it wants again
#[utoipa::path(
    post, path = "/vlan/fdb/remove", tag = "vlan",
    request_body(content = StationAt, example = json!({
        "bridge_name": "br-lab", "port_name": "tap-vm1", "vlan_id": 100, "mac_address": "02:00:00:00:00:01"
    })),
    responses(
        (status = 200, description = "The port with its VLANs", body = Answer<PortVlansView>),
        Refusals,
    ),
)]
async fn release_station(
    State(app): State<App>,
    request: Lenient<StationAt>,
) -> Result<Answer<Object>, Refusal> {
    app.change(request.value.change(false), request.warnings).await
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
        assert_schema_matches::<AddToBridge>();
        assert_schema_matches::<RemoveFromBridge>();
        assert_schema_matches::<StationAt>();
        assert_schema_matches::<StationFilter>();
    }

    #[test]
    fn the_readmes_vlan_is_understood() {
        let body =
            json!({ "bridge_name": "br-lab", "port_name": "tap-vm1", "vlan_id": 100, "tagged": false });
        let request: AddToBridge = read(body).unwrap();
        let Change::AddToVlans { bridge, port, change } = request.into() else { panic!("another change") };
        assert_eq!((bridge.as_str(), port.as_str()), ("br-lab", "tap-vm1"));
        assert_eq!(change, PortVlansChange { native: Some(100), ..PortVlansChange::default() });
    }

    #[test]
    fn several_vlans_may_be_ranges() {
        let ids = |value| vlan_ids(&value).map(|ids| ids.into_iter().collect::<Vec<_>>());
        assert_eq!(ids(json!("10,20-22, 12")), Ok(vec![10, 12, 20, 21, 22]));
        assert_eq!(ids(json!([10, "20-21"])), Ok(vec![10, 20, 21]));
        assert_eq!(ids(json!(7)), Ok(vec![7]));
        for bad in
            [json!("22-20"), json!("0"), json!("4095"), json!(""), json!("1-5000"), json!("a-b"), json!({})]
        {
            assert!(ids(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_vlan_has_to_be_named_and_only_one_is_untagged() {
        let port = |more: Value| {
            let mut body = json!({ "bridge_name": "br-lab", "port_name": "tap-vm1" });
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            read::<AddToBridge>(body)
        };
        assert_eq!(port(json!({})).unwrap_err().fields[0].loc[1], "vlan_id");
        assert_eq!(port(json!({ "vlan_id": 4095 })).unwrap_err().code, Code::InvalidField);
        assert_eq!(port(json!({ "vlans": "1-2", "tagged": false })).unwrap_err().fields[0].kind, "conflict");
        assert!(port(json!({ "vlans": "1-2" })).is_ok());
    }
}
