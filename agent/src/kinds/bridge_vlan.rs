//! VLANs on the ports of bridges.
//!
//! A bridge is filtered as soon as one of its ports has a VLAN; then all its ports are ports of the filter, and so is
//! the bridge itself, under its own name. What a port shall be follows from the store and from what is observed
//! ([`desired`]), so links that come and go, carriers and spanning tree need no plan of their own. Only a port with
//! VLANs on its way into a bridge does: its programs come first ([`follow`]).

use std::collections::{BTreeMap, BTreeSet};

use telecluster_common::vlan::{
    learn::AGEING,
    maps::{MAX_MEMBERS, MAX_PORTS},
};

use crate::{
    error::{Code, Error, Result},
    kernel::{
        links::{Link, LinkKind, Mac, Observed, OperState, Place, PortState},
        step::LinkStep,
        switch::{Station, SwitchPort},
        xdp::Door,
    },
    model::{
        LinkName,
        bridge_vlan::{BridgeVlanView, FixedStation, PortVlans, PortVlansChange, PortVlansView, StationView},
    },
    plan::{Installed, Plan, Step, Subject, VlanStep, World},
    state::{Record, State, Write},
};

use super::{bridge, lan, managed, ovs_vlan, target_bridge};

/// Stations of one port when nothing is said: more than a rack of containers, and far from filling the table.
const STATION_LIMIT: u32 = 1024;
/// Programs attached in one look of the engine. The kernel waits for all its processors each time (about 10 ms), and
/// requests wait meanwhile.
pub const ATTACH_BATCH: usize = 8;

/// Puts a port into VLANs, or changes how it treats tags.
pub(super) fn add(bridge: &str, port: &str, change: &PortVlansChange, world: World<'_>) -> Result<Plan> {
    let at = target_bridge(bridge, world)?;
    require_port(at, port, world.observed)?;
    let vlans = changed(stored(bridge, port, world)?, change)?;
    let message = format!("{port} of bridge {bridge} is in {}", sentence(&vlans));
    put(&vlans, message, Subject::PortVlans { bridge: bridge.into(), port: port.into() }, world)
}

/// Makes a link a port of a bridge with a native VLAN, or gives it that VLAN when it is one.
pub(super) fn add_port(bridge: &str, port: &str, vlan: u16, world: World<'_>) -> Result<Plan> {
    let at = target_bridge(bridge, world)?;
    let mut plan = bridge::add_port(bridge, port, world)?;
    let change = PortVlansChange { native: Some(vlan), ..PortVlansChange::default() };
    let vlans = changed(stored(bridge, port, world)?, &change)?;
    if ovs_vlan::is_ovs(at) {
        ovs_vlan::require_plain(at, port, &vlans.options)?;
    }
    plan.message = format!("{port} is a port of bridge {bridge}, in VLAN {vlan}");
    if plan.is_empty() {
        let Plan { message, subject, warnings, .. } = plan;
        let again = put(&vlans, message, subject, world)?;
        return Ok(Plan { warnings, ..again });
    }
    plan.put(Record::PortVlans(vlans));
    Ok(plan)
}

/// Takes a port out of VLANs; without any left it is back in the bridge's untagged domain.
pub(super) fn remove(bridge: &str, port: &str, gone: &BTreeSet<u16>, world: World<'_>) -> Result<Plan> {
    let at = target_bridge(bridge, world)?;
    require_port(at, port, world.observed)?;
    let mut vlans = stored(bridge, port, world)?;
    let all = vlans.all();
    if let Some(missing) = gone.iter().find(|vlan| !all.contains(vlan)) {
        return Err(Error::new(
            Code::VlanNotFound,
            format!("{port} of bridge {bridge} is not in VLAN {missing}"),
        )
        .hint("GET /vlan/bridge-vlans lists what is"));
    }
    vlans.tagged.retain(|vlan| !gone.contains(vlan));
    vlans.native = vlans.native.filter(|vlan| !gone.contains(vlan));
    vlans.stations.retain(|station| !gone.contains(&station.vlan));
    let message = format!("{port} of bridge {bridge} was taken out of VLAN {}", spans(gone));
    put(&vlans, message, Subject::PortVlans { bridge: bridge.into(), port: port.into() }, world)
}

/// Says that a station is at a port whatever frames say, or no longer.
pub(super) fn fix_station(
    bridge: &str,
    port: &str,
    station: FixedStation,
    fixed: bool,
    world: World<'_>,
) -> Result<Plan> {
    let at = target_bridge(bridge, world)?;
    require_port(at, port, world.observed)?;
    if ovs_vlan::is_ovs(at) {
        return Err(Error::new(
            Code::Unsupported,
            format!("{bridge} is a bridge of Open vSwitch, which has no fixed stations here"),
        )
        .hint("use a bridge of type linux"));
    }
    let FixedStation { vlan, mac } = station;
    if mac.0[0] & 1 == 1 || mac.0 == [0; 6] {
        return Err(Error::field("mac_address", format!("{mac} is no station's address")));
    }
    let mut vlans = stored(bridge, port, world)?;
    if !vlans.all().contains(&vlan) {
        return Err(Error::new(
            Code::VlanNotFound,
            format!("{port} of bridge {bridge} is not in VLAN {vlan}"),
        )
        .hint("put it there first: POST /vlan/add-to-bridge"));
    }
    let elsewhere = world
        .state
        .port_vlans
        .values()
        .find(|other| other.bridge == *bridge && other.port != port && other.stations.contains(&station));
    if let Some(other) = elsewhere.filter(|_| fixed) {
        return Err(Error::new(
            Code::StationExists,
            format!("{mac} is fixed at {} in VLAN {vlan} of bridge {bridge}", other.port),
        )
        .hint("remove it there first"));
    }
    let known = if fixed { !vlans.stations.insert(station) } else { vlans.stations.remove(&station) };
    if !fixed && !known {
        return Err(Error::new(
            Code::StationNotFound,
            format!("{mac} is not fixed at {port} in VLAN {vlan} of bridge {bridge}"),
        ));
    }
    let message = match fixed {
        true => format!("{mac} is fixed at {port} in VLAN {vlan} of bridge {bridge}"),
        false => format!("{mac} is no longer fixed at {port} in VLAN {vlan} of bridge {bridge}"),
    };
    put(&vlans, message, Subject::PortVlans { bridge: bridge.into(), port: port.into() }, world)
}

/// The port of a filtered bridge by the name that the caller gave; the bridge's own name is the host's side.
fn require_port(bridge: &Link, port: &str, observed: &Observed) -> Result<()> {
    if port == bridge.name {
        return Ok(());
    }
    let Some(link) = observed.link(port) else {
        return Err(Error::new(Code::LinkNotFound, format!("there is no interface {port}")));
    };
    if link.master != Some(bridge.index) {
        return Err(Error::new(Code::NotAPort, format!("{port} is not a port of bridge {}", bridge.name))
            .hint("add it first: POST /bridge/add-port, which takes a vlan too"));
    }
    Ok(())
}

/// What the store has of a port of this very bridge; of another bridge it means nothing here.
fn stored(bridge: &str, port: &str, world: World<'_>) -> Result<PortVlans> {
    let known = world.state.port_vlans.get(port).filter(|vlans| vlans.bridge == *bridge);
    match known {
        Some(vlans) => Ok(vlans.clone()),
        None => Ok(PortVlans {
            port: port.to_owned(),
            bridge: LinkName::new(bridge).map_err(|error| Error::field("bridge_name", error.to_string()))?,
            native: None,
            tagged: BTreeSet::new(),
            options: Default::default(),
            stations: BTreeSet::new(),
        }),
    }
}

/// One VLAN is either the native one or a tagged one; the last word counts.
fn changed(mut vlans: PortVlans, change: &PortVlansChange) -> Result<PortVlans> {
    let PortVlansChange { native, tagged, accept, protocol, tunnel, nested, station_limit } = change;
    if let Some(native) = native {
        vlans.tagged.remove(native);
        vlans.native = Some(*native);
    }
    vlans.native = vlans.native.filter(|native| !tagged.contains(native));
    vlans.tagged.extend(tagged);
    let options = &mut vlans.options;
    options.accept = accept.unwrap_or(options.accept);
    options.protocol = protocol.unwrap_or(options.protocol);
    options.tunnel = tunnel.unwrap_or(options.tunnel);
    options.nested = nested.or(options.nested);
    options.station_limit = station_limit.or(options.station_limit);
    let all = vlans.all();
    vlans.stations.retain(|station| all.contains(&station.vlan));
    if vlans.options.tunnel && (vlans.native.is_none() || !vlans.tagged.is_empty()) {
        return Err(Error::field(
            "tunnel",
            "a tunnel port has one VLAN, untagged, for everything that comes in",
        ));
    }
    Ok(vlans)
}

/// The plan after which a port has these VLANs.
fn put(vlans: &PortVlans, message: String, subject: Subject, world: World<'_>) -> Result<Plan> {
    let at = target_bridge(vlans.bridge.as_str(), world)?;
    if ovs_vlan::is_ovs(at) {
        ovs_vlan::require_plain(at, &vlans.port, &vlans.options)?;
        return Ok(ovs_vlan::put(vlans, message, world));
    }
    let mut plan = Plan::new(subject, message);
    let stored = world.state.port_vlans.get(&vlans.port);
    if vlans.all().is_empty() {
        if let Some(stored) = stored {
            plan.forget(Record::PortVlans(stored.clone()));
        }
    } else if stored != Some(vlans) {
        plan.put(Record::PortVlans(vlans.clone()));
    }
    let mut state = world.state.without_rules();
    state.apply(&plan.writes);
    let wanted = desired(&state, world.observed);
    require_room(&wanted)?;
    let bridge = world.observed.link(vlans.bridge.as_str()).map(|link| link.index);
    let index = world.observed.link(&vlans.port).map(|link| link.index);
    // The port itself, and what else its bridge has in VLANs; the rest can follow by and by, see `ATTACH_BATCH`.
    let now = |step: &VlanStep| match step {
        VlanStep::Put(port) => {
            let known = world.nat.ports.contains_key(&port.index);
            Some(port.bridge) == bridge && (known || !port.vlans().is_empty())
        }
        VlanStep::Remove(port) => index == Some(*port),
        VlanStep::Prepare { .. } | VlanStep::Withdraw(_) => false,
    };
    plan.steps = steps(&wanted, world.nat).into_iter().filter(now).map(Step::Vlan).collect();
    Ok(plan)
}

/// Refuses what the kernel's maps have no room for.
fn require_room(wanted: &BTreeMap<u32, SwitchPort>) -> Result<()> {
    let members: usize = wanted.values().map(|port| port.vlans().len()).sum();
    if wanted.len() > MAX_PORTS as usize || members > MAX_MEMBERS as usize {
        return Err(Error::new(
            Code::TooManyVlans,
            format!(
                "{} ports in {members} VLANs are more than fit: {MAX_PORTS} ports, {MAX_MEMBERS} VLANs of ports",
                wanted.len()
            ),
        )
        .hint("give trunks only the VLANs that they need"));
    }
    Ok(())
}

/// What every port of every filtered bridge shall be, by index.
pub fn desired(state: &State, observed: &Observed) -> BTreeMap<u32, SwitchPort> {
    let mut wanted = BTreeMap::new();
    let bridges: BTreeSet<&str> = state.port_vlans.values().map(|vlans| vlans.bridge.as_str()).collect();
    for name in bridges {
        let bridge = observed.link(name).filter(|link| matches!(link.kind, LinkKind::Bridge { .. }));
        let Some(bridge) = bridge else { continue };
        if !managed(state, &Place::Here, bridge) {
            continue;
        }
        for link in observed.ports_of(bridge.index).chain([bridge]) {
            let vlans = state.port_vlans.get(&link.name).filter(|vlans| vlans.bridge == *name);
            let port = link.port;
            let stp = bridge.stp();
            // Without spanning tree the kernel disables a port while it is not in operation, and no longer: one that is and
            // is disabled was told so.
            let operates = link.up && matches!(link.operstate, OperState::Up | OperState::Unknown);
            let idle = !stp && !operates;
            let forwarding = port.is_none_or(|port| {
                !port.guarded
                    && (port.state == PortState::Forwarding || (idle && port.state == PortState::Disabled))
            });
            let learning =
                forwarding || port.is_some_and(|port| !port.guarded && port.state == PortState::Learning);
            let mut shape = switch_port(link, bridge, vlans);
            shape.forwarding = forwarding;
            shape.learning = learning;
            wanted.insert(link.index, shape);
        }
    }
    wanted
}

/// Ports whose VLANs are stored and which are in their bridge, but whose frames nobody filters so: keys with what is
/// wrong. `present`: what the data plane does.
pub fn unfiltered(
    state: &State,
    observed: &Observed,
    present: &BTreeMap<u32, SwitchPort>,
    backend: &str,
) -> Vec<(String, String)> {
    let wanted = desired(state, observed);
    let ports = state.port_vlans.values().filter_map(|vlans| {
        let wanted = wanted.get(&observed.link(&vlans.port)?.index)?;
        let filtered = present
            .get(&wanted.index)
            .is_some_and(|found| (found.native, &found.tagged) == (wanted.native, &wanted.tagged));
        (!filtered).then(|| {
            let why = match backend {
                "iptables" => {
                    "this worker runs with iptables, and the kernel's bridge does not do it: the log says why"
                }
                _ => "the log says why",
            };
            let problem =
                format!("the VLANs of {} in {} are not kept apart: {why}", vlans.port, vlans.bridge);
            (format!("vlan/{}", vlans.port), problem)
        })
    });
    ports.collect()
}

/// A link as a port of a bridge that forwards.
fn switch_port(link: &Link, bridge: &Link, vlans: Option<&PortVlans>) -> SwitchPort {
    let host = link.index == bridge.index;
    let native = vlans.and_then(|vlans| vlans.native);
    let tagged = vlans.map(|vlans| vlans.tagged.clone()).unwrap_or_default();
    let options = vlans.map(|vlans| vlans.options.clone()).unwrap_or_default();
    let mut stations: BTreeSet<(u16, Mac)> =
        vlans.iter().flat_map(|vlans| &vlans.stations).map(|station| (station.vlan, station.mac)).collect();
    if let Some(mac) = link.mac.filter(|_| host) {
        stations.extend(tagged.iter().copied().chain(native).map(|vlan| (vlan, mac)));
    }
    SwitchPort {
        index: link.index,
        bridge: bridge.index,
        accept: options.accept,
        protocol: options.protocol,
        tunnel: options.tunnel,
        nested: options.nested.unwrap_or(!tagged.is_empty()),
        native,
        tagged,
        forwarding: true,
        learning: true,
        isolated: link.port.is_some_and(|port| port.isolated),
        hairpin: link.port.is_some_and(|port| port.hairpin),
        stp: bridge.stp(),
        mtu: link.mtu,
        station_limit: options.station_limit.unwrap_or(STATION_LIMIT),
        ageing: bridge.ageing.unwrap_or(AGEING),
        stations,
    }
}

/// What brings the filter in line: ports that are there already first, then those whose programs have to be attached,
/// then those that are ports no longer.
pub fn steps(wanted: &BTreeMap<u32, SwitchPort>, installed: &Installed) -> Vec<VlanStep> {
    let changed = wanted.values().filter(|port| installed.ports.get(&port.index) != Some(*port));
    let (old, new): (Vec<_>, Vec<_>) =
        changed.cloned().partition(|port| installed.ports.contains_key(&port.index));
    let gone = installed.ports.keys().filter(|index| !wanted.contains_key(index));
    old.into_iter().chain(new).map(VlanStep::Put).chain(gone.map(|index| VlanStep::Remove(*index))).collect()
}

/// What matters in the drivers of ports, by index; the host's side has none.
pub fn doors(ports: &BTreeMap<u32, SwitchPort>, observed: &Observed) -> BTreeMap<u32, Door> {
    let trunks = lan::trunks(observed);
    let door = |port: &SwitchPort| {
        let link = observed.by_index(&Place::Here, port.index)?;
        let tags = !port.tagged.is_empty() || port.tunnel;
        Some((port.index, Door { bridge: port.bridge, medium: lan::medium(&trunks, link), tags }))
    };
    // In no VLAN: its frames are the kernel's bridge's.
    let switched = ports.values().filter(|port| !port.is_host() && !port.vlans().is_empty());
    switched.filter_map(door).collect()
}

/// A link on its way into a bridge, when both are there.
pub fn prepared(vlans: &PortVlans, held: bool, observed: &Observed) -> Option<SwitchPort> {
    let (link, bridge) = (observed.link(&vlans.port)?, observed.link(vlans.bridge.as_str())?);
    let port = switch_port(link, bridge, Some(vlans));
    Some(SwitchPort { forwarding: !held, learning: !held, ..port })
}

/// What a plan about links means for VLANs: a port that leaves its bridge forgets its VLANs.
pub(super) fn follow(plan: &mut Plan, world: World<'_>) {
    if world.state.port_vlans.is_empty()
        && !plan.writes.iter().any(|write| matches!(write, Write::Put(Record::PortVlans(_))))
    {
        return;
    }
    let mut after = world.state.without_rules();
    after.apply(&plan.writes);
    let gone: Vec<PortVlans> =
        after.port_vlans.values().filter(|vlans| !stays(vlans, plan, world.state, &after)).cloned().collect();
    for vlans in gone {
        plan.forget(Record::PortVlans(vlans));
    }
    prepare(plan, world);
}

fn stays(vlans: &PortVlans, plan: &Plan, before: &State, after: &State) -> bool {
    let bridge = vlans.bridge.as_str();
    if !after.bridges.contains_key(bridge) {
        return false;
    }
    if vlans.port == bridge {
        return true;
    }
    match (before.master_of(&vlans.port), after.master_of(&vlans.port)) {
        (_, Some(master)) => master.is_some_and(|master| *master == *bridge),
        (Some(_), None) => false,
        // Somebody else's link, put into the bridge by somebody else.
        (None, None) => {
            let last = plan.steps.iter().rev().find_map(|step| match step {
                Step::Link(LinkStep::SetMaster { port, master }) if *port == vlans.port => {
                    Some(master.as_deref())
                }
                _ => None,
            });
            last.is_none_or(|master| master == Some(bridge))
        }
    }
}

/// The programs of a port with VLANs come before the port is one.
pub(super) fn prepare(plan: &mut Plan, world: World<'_>) {
    let mut after = world.state.without_rules();
    after.apply(&plan.writes);
    if after.port_vlans.is_empty() {
        return;
    }
    let held: BTreeSet<String> = (plan.steps.iter())
        .filter_map(|step| match step {
            Step::Link(LinkStep::Hold { port, hold: true, .. }) => Some(port.clone()),
            _ => None,
        })
        .collect();
    let mut steps = Vec::with_capacity(plan.steps.len());
    for step in plan.steps.drain(..) {
        if let Step::Link(LinkStep::SetMaster { port, master: Some(master) }) = &step
            && world.observed.ovs.bridge(master).is_none()
            && let Some(vlans) = after.port_vlans.get(port).filter(|vlans| vlans.bridge == **master)
        {
            let held = held.contains(port);
            let known = prepared(vlans, held, world.observed).map(VlanStep::Put);
            steps.push(Step::Vlan(known.unwrap_or(VlanStep::Prepare { vlans: vlans.clone(), held })));
        }
        steps.push(step);
    }
    plan.steps = steps;
}

/// Names of ports and bridges by index, for people.
fn name(index: u32, observed: &Observed) -> Option<String> {
    observed.by_index(&Place::Here, index).map(|link| link.name.clone())
}

/// Every VLAN of every port, as the kernel's maps have it.
pub fn list(ports: &BTreeMap<u32, SwitchPort>, observed: &Observed) -> Vec<BridgeVlanView> {
    let mut rows = Vec::new();
    for port in ports.values() {
        let (Some(bridge), Some(name)) = (name(port.bridge, observed), name(port.index, observed)) else {
            continue;
        };
        rows.extend(port.vlans().into_iter().map(|(vlan_id, untagged)| BridgeVlanView {
            bridge_name: bridge.clone(),
            port_name: name.clone(),
            vlan_id,
            tagged: !untagged,
        }));
    }
    rows.sort_by(|a, b| {
        (&a.bridge_name, &a.port_name, a.vlan_id).cmp(&(&b.bridge_name, &b.port_name, b.vlan_id))
    });
    rows
}

/// The VLANs of a port, or of all ports of a bridge.
pub fn ids(link: &Link, ports: &BTreeMap<u32, SwitchPort>) -> Vec<u16> {
    let of = ports
        .values()
        .filter(|port| port.index == link.index || (link.is_bridge() && port.bridge == link.index));
    of.flat_map(|port| port.vlans().into_keys()).collect::<BTreeSet<_>>().into_iter().collect()
}

/// A port as callers see it; without VLANs when the filter does not know it.
pub fn view(
    bridge: &str,
    port: &str,
    ports: &BTreeMap<u32, SwitchPort>,
    observed: &Observed,
) -> Result<PortVlansView> {
    let Some(link) = observed.link(port) else {
        return Err(Error::new(Code::LinkNotFound, format!("there is no interface {port}")));
    };
    let known = ports.get(&link.index);
    Ok(PortVlansView {
        bridge_name: bridge.to_owned(),
        port_name: port.to_owned(),
        native_vlan: known.and_then(|port| port.native),
        tagged_vlans: known.map(|port| port.tagged.iter().copied().collect()).unwrap_or_default(),
        accept: known.map(|port| port.accept).unwrap_or_default(),
        protocol: known.map(|port| port.protocol).unwrap_or_default(),
        tunnel: known.is_some_and(|port| port.tunnel),
        nested: known.is_some_and(|port| port.nested),
        station_limit: known.map_or(0, |port| port.station_limit),
        forwarding: known.is_none_or(|port| port.forwarding),
    })
}

/// Every port of the filter.
pub fn views(ports: &BTreeMap<u32, SwitchPort>, observed: &Observed) -> Result<Vec<PortVlansView>> {
    let named = ports.values().filter_map(|port| name(port.bridge, observed).zip(name(port.index, observed)));
    named.map(|(bridge, port)| view(&bridge, &port, ports, observed)).collect()
}

/// A station as callers see it; `None` when its port has just gone.
pub fn station_view(station: &Station, observed: &Observed) -> Option<StationView> {
    Some(StationView {
        bridge_name: name(station.bridge, observed)?,
        vlan_id: station.vlan,
        mac_address: station.mac.to_string(),
        port_name: name(station.port, observed)?,
        fixed: station.fixed,
        idle: station.idle.as_secs(),
    })
}

fn sentence(vlans: &PortVlans) -> String {
    let tagged = &vlans.tagged;
    match (vlans.native, tagged.is_empty()) {
        (Some(native), true) => format!("VLAN {native}, untagged"),
        (Some(native), false) => format!("VLAN {native}, untagged, and {}, tagged", spans(tagged)),
        (None, false) => format!("VLAN {}, tagged", spans(tagged)),
        (None, true) => "no VLAN".to_owned(),
    }
}

/// `10, 20-30`, as callers may write it too: a trunk of all VLANs in one word and not in 4,094.
fn spans(vlans: &BTreeSet<u16>) -> String {
    let mut spans: Vec<(u16, u16)> = Vec::new();
    for vlan in vlans {
        match spans.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*vlan) => *last = *vlan,
            _ => spans.push((*vlan, *vlan)),
        }
    }
    let text = |(first, last): (u16, u16)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    spans.into_iter().map(text).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vlans_in_a_row_are_one_span() {
        let text = |vlans: &[u16]| spans(&vlans.iter().copied().collect());
        assert_eq!(text(&[10, 20, 21, 22, 4094]), "10, 20-22, 4094");
        assert_eq!(text(&[1, 2]), "1-2");
        assert_eq!(spans(&(1..=4094).collect()), "1-4094");
        assert_eq!(text(&[]), "");
    }
}
