//! Bridges, of the kernel and of Open vSwitch, and their ports.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    error::{Code, Error, Result},
    kernel::{
        links::{At, Link, LinkKind, Mac, Observed, Place, PortState},
        ovs::Presence,
        step::{LinkStep, NewBridge},
        switch::SwitchPort,
    },
    model::{BlockedPort, BridgeSpec, BridgeType, BridgeView, LinkName, TunSpec, VlanLinkSpec},
    plan::{Plan, Subject, World},
    state::{PortSpec, Record, State},
};

use super::{
    address_list, attach, bridge_vlan, managed, mend_addresses, mend_mtu, mend_up, name_taken,
    no_address_to_have, not_managed, problems, record_master, require_free_name, require_nothing_on_top,
    target_bridge, uplink,
};

/// Smallest MTU that IPv4 works with (RFC 791), and the largest of a bridge.
const MTU: std::ops::RangeInclusive<u32> = 68..=65535;

/// A bridge by name: 404 when there is none, 409 when the name is another link's.
pub fn find<'a>(name: &str, observed: &'a Observed) -> Result<&'a Link> {
    let Some(link) = observed.link(name) else {
        return Err(Error::new(Code::BridgeNotFound, format!("there is no bridge {name}")));
    };
    match link.kind {
        LinkKind::Bridge { .. } | LinkKind::OvsBridge { .. } => Ok(link),
        LinkKind::Veth
        | LinkKind::Vlan
        | LinkKind::Bond
        | LinkKind::Tun
        | LinkKind::Tap
        | LinkKind::Loopback
        | LinkKind::Physical
        | LinkKind::Other(_) => {
            Err(Error::new(Code::WrongKind, format!("{name} is no bridge but a {} link", link.kind.label())))
        }
    }
}

pub(super) fn create(spec: &BridgeSpec, world: World<'_>) -> Result<Plan> {
    let mut spec = normal(spec)?;
    let name = spec.name.as_str();
    let subject = Subject::Bridge(name.to_owned());
    let stored = world.state.bridges.get(name);
    match (world.observed.link(name), stored) {
        (Some(link), Some(stored)) if link.is_bridge() && link.marked() => {
            if let Some(difference) = difference(stored, &spec) {
                return Err(Error::new(
                    Code::LinkExists,
                    format!("bridge {name} exists with another spec: {difference}"),
                )
                .hint("delete it first, or ask for what it is"));
            }
            let mut plan = Plan::new(subject, format!("bridge {name} is there already"));
            warn_of_stand_in(stored, &mut plan);
            return Ok(plan);
        }
        (Some(link), _) => return Err(name_taken(&At::here(name), link)),
        (None, _) => {}
    }
    require_free_name(name, "bridge", world.state)?;
    let mut plan = Plan::new(subject, format!("bridge {name} was created"));
    spec.backend = backend(spec.kind, world)?;
    spec.mac = match spec.backend {
        BridgeType::Linux => Mac::own(world.fresh_id),
        BridgeType::Ovs => None,
    };
    warn_of_stand_in(&spec, &mut plan);
    for step in make(&spec) {
        plan.link(step);
    }
    plan.put(Record::Bridge(spec));
    Ok(plan)
}

/// What will carry a bridge: OVS where it is asked for and answers.
fn backend(kind: BridgeType, world: World<'_>) -> Result<BridgeType> {
    match (kind, &world.observed.ovs) {
        (BridgeType::Linux, _) => Ok(BridgeType::Linux),
        (BridgeType::Ovs, Presence::Present(_)) => Ok(BridgeType::Ovs),
        (BridgeType::Ovs, _) if world.options.require_ovs => Err(no_ovs(&world.observed.ovs)),
        (BridgeType::Ovs, Presence::Absent | Presence::Broken(_)) => Ok(BridgeType::Linux),
    }
}

fn no_ovs(presence: &Presence) -> Error {
    match presence {
        Presence::Broken(reason) => {
            Error::new(Code::Unsupported, format!("Open vSwitch does not answer: {reason}"))
                .hint("look at ovsdb-server and at the setting OVS_SOCKET")
        }
        Presence::Absent | Presence::Present(_) => Error::new(
            Code::Unsupported,
            "Open vSwitch is not running on this host",
        )
        .hint("install and start the package openvswitch-switch, or set OVS_SOCKET to where its database is"),
    }
}

fn warn_of_stand_in(spec: &BridgeSpec, plan: &mut Plan) {
    if spec.kind == BridgeType::Ovs && spec.backend == BridgeType::Linux {
        plan.warnings.push(format!(
            "Open vSwitch is not running on this host: a Linux bridge stands in for {}",
            spec.name
        ));
    }
}

/// Makes a stored bridge again when it is missing, and what was changed about it as it was.
pub(super) fn remake(spec: &BridgeSpec, world: World<'_>, plan: &mut Plan) -> Result<()> {
    match world.observed.link(spec.name.as_str()) {
        None if spec.backend == BridgeType::Ovs && world.observed.ovs.is_away() => {
            return Err(no_ovs(&world.observed.ovs));
        }
        None => make(spec).into_iter().for_each(|step| plan.link(step)),
        Some(link) if link.is_bridge() && link.marked() => mend(spec, link, world, plan),
        Some(link) => return Err(name_taken(&At::here(&link.name), link)),
    }
    Ok(())
}

/// What is more than was asked for, such as another address, stays.
fn mend(spec: &BridgeSpec, link: &Link, world: World<'_>, plan: &mut Plan) {
    set_mac(plan, link, mac(spec, link, world.observed.ports_of(link.index), world.state));
    if link.stp() != spec.stp {
        plan.link(LinkStep::SetStp { bridge: link.name.clone(), stp: spec.stp });
    }
    mend_mtu(plan, link, spec.mtu);
    mend_addresses(plan, link, &spec.addresses);
    mend_up(plan, &At::here(&link.name), link);
}

/// The hardware address that a bridge shall have with these ports: its own, so that what guests remember of their gateway
/// stays true whatever ports come and go (the kernel gives it the least of its ports' addresses). With a port to the
/// outside, that one's: the switch there, or a cloud, may know no other.
fn mac<'a>(
    spec: &BridgeSpec,
    bridge: &Link,
    ports: impl Iterator<Item = &'a Link>,
    state: &State,
) -> Option<Mac> {
    let own = spec.mac?;
    let uplink = |port: &Link| state.ports.get(&port.name).is_some_and(|spec| spec.uplink.is_some());
    let outside = ports.filter(|port| uplink(port) || is_card(port));
    let first = outside.min_by_key(|port| (!uplink(port), port.mac != bridge.mac, port.index));
    Some(first.and_then(|port| port.mac).unwrap_or(own))
}

/// Whether the link is a network card, or several of them.
fn is_card(link: &Link) -> bool {
    match link.kind {
        LinkKind::Physical | LinkKind::Bond => true,
        LinkKind::Bridge { .. }
        | LinkKind::OvsBridge { .. }
        | LinkKind::Vlan
        | LinkKind::Veth
        | LinkKind::Tun
        | LinkKind::Tap
        | LinkKind::Loopback
        | LinkKind::Other(_) => false,
    }
}

fn set_mac(plan: &mut Plan, bridge: &Link, mac: Option<Mac>) {
    if let Some(mac) = mac.filter(|mac| bridge.mac != Some(*mac)) {
        plan.link(LinkStep::SetMac { link: bridge.name.clone(), mac });
    }
}

/// Puts a link that is not ours back into the bridge that it was told to be a port of.
pub(super) fn remake_port(spec: &PortSpec, world: World<'_>, plan: &mut Plan) -> Result<()> {
    let bridge = target_bridge(spec.bridge.as_str(), world)?;
    let Some(port) = world.observed.link(&spec.port) else {
        return Err(Error::new(Code::LinkNotFound, format!("there is no interface {}", spec.port)));
    };
    match port.master {
        Some(master) if master == bridge.index => {
            if let Some(uplink) = &spec.uplink {
                uplink::mend(plan, world, port, bridge, uplink);
            }
        }
        // Someone has put it elsewhere since; that is their decision.
        Some(_) => {
            return Err(Error::new(Code::PortInUse, format!("{} is a port of another bridge", spec.port)));
        }
        None => {
            attach(plan, world, port, bridge);
            uplink::move_in(plan, world, port, bridge);
        }
    }
    Ok(())
}

/// The steps that make a bridge from nothing.
fn make(spec: &BridgeSpec) -> Vec<LinkStep> {
    let at = At::here(spec.name.as_str());
    let mut steps = vec![LinkStep::CreateBridge(NewBridge {
        name: at.name.clone(),
        stp: spec.stp,
        mtu: spec.mtu,
        mac: spec.mac,
        index: None,
        ovs: spec.backend == BridgeType::Ovs,
    })];
    for address in &spec.addresses {
        steps.push(LinkStep::AddAddress { link: at.clone(), address: *address });
    }
    steps.push(LinkStep::SetUp { link: at, up: true });
    steps
}

/// Checks the values, and puts what has no order into one.
fn normal(spec: &BridgeSpec) -> Result<BridgeSpec> {
    let mut spec = spec.clone();
    if let Some(mtu) = spec.mtu.filter(|mtu| !MTU.contains(mtu)) {
        return Err(Error::field("mtu", format!("{mtu} is not within {} and {}", MTU.start(), MTU.end())));
    }
    for address in &spec.addresses {
        if let Some(why) = no_address_to_have(*address) {
            return Err(Error::field("addresses", why));
        }
    }
    spec.addresses.sort();
    spec.addresses.dedup();
    Ok(spec)
}

fn difference(is: &BridgeSpec, asked: &BridgeSpec) -> Option<String> {
    // What carries it was settled when it was made.
    let BridgeSpec { name: _, kind, backend: _, stp, mtu, addresses, mac: _ } = is;
    let mut parts = Vec::new();
    if *kind != asked.kind {
        parts.push(format!("type is {}, not {}", kind.name(), asked.kind.name()));
    }
    if *stp != asked.stp {
        parts.push(format!("stp is {stp}, not {}", asked.stp));
    }
    if *mtu != asked.mtu {
        let said =
            |mtu: &Option<u32>| mtu.map_or("the kernel's own choice".to_owned(), |mtu| mtu.to_string());
        parts.push(format!("mtu is {}, not {}", said(mtu), said(&asked.mtu)));
    }
    if *addresses != asked.addresses {
        let said = |nets: &[ipnet::IpNet]| match nets {
            [] => "none".to_owned(),
            nets => nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        };
        parts.push(format!("addresses are {}, not {}", said(addresses), said(&asked.addresses)));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

pub(super) fn delete(name: &str, force: bool, world: World<'_>) -> Result<Plan> {
    let stored = world.state.bridges.get(name);
    let mut plan = Plan::new(Subject::Gone(vec![name.to_owned()]), format!("bridge {name} was deleted"));
    match (find(name, world.observed), stored) {
        (Ok(link), Some(_)) if managed(world.state, &Place::Here, link) => {
            let ports: Vec<_> = world.observed.ports_of(link.index).collect();
            let names: Vec<_> = ports.iter().map(|port| port.name.as_str()).collect();
            if !ports.is_empty() && !force {
                return Err(Error::new(
                    Code::BridgeHasPorts,
                    format!("bridge {name} still has the ports {}", names.join(", ")),
                )
                .hint("remove the ports first, or delete with force"));
            }
            require_nothing_on_top(&Place::Here, link, world.observed)?;
            for port in ports {
                uplink::move_out(&mut plan, world, port, link);
            }
            plan.link(LinkStep::DeleteLink(At::here(name)));
        }
        (Ok(link), _) => return Err(not_managed("bridge", link)),
        // Someone else deleted it already: forget it.
        (Err(error), Some(_)) if error.code == Code::BridgeNotFound => {}
        (Err(error), _) => return Err(error),
    }
    if let Some(spec) = stored {
        plan.forget(Record::Bridge(spec.clone()));
    }
    forget_ports(&mut plan, name, world);
    for rule in world.state.rules.values().filter(|rule| rule.spec.interface() == name) {
        plan.warnings.push(format!("rule {} sleeps until its interface {name} is there again", rule.id));
    }
    Ok(plan)
}

fn forget_ports(plan: &mut Plan, bridge: &str, world: World<'_>) {
    for spec in world.state.ports.values().filter(|spec| spec.bridge == *bridge) {
        plan.forget(Record::Port(spec.clone()));
    }
    for spec in world.state.veths.values() {
        let mut changed = spec.clone();
        changed.bridge1 = changed.bridge1.filter(|name| name != bridge);
        changed.bridge2 = changed.bridge2.filter(|name| name != bridge);
        if changed != *spec {
            plan.put(Record::Veth(changed));
        }
    }
    let here = |master: &Option<LinkName>| master.as_ref().is_some_and(|master| *master == *bridge);
    for spec in world.state.tuns.values().filter(|spec| here(&spec.bridge)) {
        plan.put(Record::Tun(TunSpec { bridge: None, ..spec.clone() }));
    }
    for spec in world.state.vlan_links.values().filter(|spec| here(&spec.bridge)) {
        plan.put(Record::VlanLink(VlanLinkSpec { bridge: None, ..spec.clone() }));
    }
}

pub(super) fn add_port(bridge_name: &str, port_name: &str, world: World<'_>) -> Result<Plan> {
    let bridge = target_bridge(bridge_name, world)?;
    let Some(port) = world.observed.link(port_name) else {
        return Err(Error::new(Code::LinkNotFound, format!("there is no interface {port_name}")));
    };
    if port.is_bridge() || matches!(port.kind, LinkKind::Loopback | LinkKind::Tun) {
        return Err(Error::new(
            Code::WrongKind,
            format!("{port_name} is a {} link and cannot be a port of a bridge", port.kind.label()),
        ));
    }
    let mut plan = Plan::new(
        Subject::Bridge(bridge_name.to_owned()),
        format!("{port_name} is a port of bridge {bridge_name}"),
    );
    match world.observed.master_name(&Place::Here, port) {
        Some(master) if master == bridge_name => {}
        Some(master) => {
            return Err(Error::new(
                Code::PortInUse,
                format!("{port_name} is a port of {master}, so it cannot be one of {bridge_name}"),
            )
            .hint(format!("remove it from {master} first")));
        }
        None => {
            let addresses = address_list(port);
            attach(&mut plan, world, port, bridge);
            record_master(&mut plan, world, port_name, Some(bridge_name))?;
            uplink::move_in(&mut plan, world, port, bridge);
            // An uplink has brought its own.
            let spec = world.state.bridges.get(bridge_name).filter(|_| !uplink::carries_addresses(port));
            if let Some(spec) = spec {
                let ports = world.observed.ports_of(bridge.index).chain([port]);
                set_mac(&mut plan, bridge, mac(spec, bridge, ports, world.state));
            }
            // One of the worker's own keeps the addresses that it was given.
            if uplink::carries_addresses(port) && managed(world.state, &Place::Here, port) {
                plan.warnings.push(format!(
                    "{port_name} has the addresses {}; as a port of a bridge it answers to none of them",
                    addresses.join(", ")
                ));
            }
            return Ok(plan);
        }
    }
    record_master(&mut plan, world, port_name, Some(bridge_name))?;
    Ok(plan)
}

pub(super) fn remove_port(bridge_name: &str, port_name: &str, world: World<'_>) -> Result<Plan> {
    let bridge = target_bridge(bridge_name, world)?;
    let port = world.observed.link(port_name).filter(|port| port.master == Some(bridge.index));
    let Some(port) = port else {
        // Somebody else took it out, or it is gone for good: it is no longer wanted here.
        if let Some(spec) = world.state.ports.get(port_name).filter(|spec| spec.bridge == *bridge_name) {
            let subject = Subject::Bridge(bridge_name.to_owned());
            let mut plan = Plan::new(subject, format!("{port_name} is no longer wanted in {bridge_name}"));
            plan.forget(Record::Port(spec.clone()));
            return Ok(plan);
        }
        return Err(Error::new(Code::NotAPort, format!("{port_name} is not a port of bridge {bridge_name}")));
    };
    let mut plan = Plan::new(
        Subject::Bridge(bridge_name.to_owned()),
        format!("{port_name} was taken out of bridge {bridge_name}"),
    );
    uplink::move_out(&mut plan, world, port, bridge);
    let brought = world.state.ports.get(port_name).is_some_and(|spec| spec.uplink.is_some());
    if let Some(spec) = world.state.bridges.get(bridge_name).filter(|_| !brought) {
        let staying = world.observed.ports_of(bridge.index).filter(|other| other.index != port.index);
        set_mac(&mut plan, bridge, mac(spec, bridge, staying, world.state));
    }
    record_master(&mut plan, world, port_name, None)?;
    Ok(plan)
}

/// A bridge as callers see it.
pub fn view(
    link: &Link,
    observed: &Observed,
    state: &State,
    vlans: &BTreeMap<u32, SwitchPort>,
) -> BridgeView {
    let stp = link.stp();
    let (kind, backend) = kind_and_backend(link, state);
    let ports: Vec<_> = observed.ports_of(link.index).collect();
    BridgeView {
        name: link.name.clone(),
        kind,
        backend: backend.name().to_owned(),
        stp,
        ports: ports.iter().map(|port| port.name.clone()).collect(),
        blocked_ports: ports.iter().filter_map(|port| blocked(port, stp)).collect(),
        vlans: vlan_ids(link, observed, vlans),
        status: link.operstate.name().to_owned(),
        mtu: link.mtu,
        mac_address: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        addresses: address_list(link),
        managed: managed(state, &Place::Here, link),
        problems: problems(state, &format!("bridge/{}", link.name)),
    }
}

/// What was asked for, and what carries it: a Linux bridge may stand in for one of OVS.
fn kind_and_backend(link: &Link, state: &State) -> (BridgeType, BridgeType) {
    let backend = match link.kind {
        LinkKind::OvsBridge { .. } => BridgeType::Ovs,
        _ => BridgeType::Linux,
    };
    let stored = state.bridges.get(&link.name).filter(|_| managed(state, &Place::Here, link));
    (stored.map_or(backend, |spec| spec.kind), backend)
}

/// VLAN ids of the ports, as OVS or the VLAN filter has them.
fn vlan_ids(link: &Link, observed: &Observed, filtered: &BTreeMap<u32, SwitchPort>) -> Vec<u16> {
    let Some(bridge) = observed.ovs.bridge(&link.name) else {
        return bridge_vlan::ids(link, filtered);
    };
    let mut ids = BTreeSet::new();
    for port in &bridge.ports {
        let vlans = port.vlans();
        ids.extend(vlans.tagged);
        ids.extend(vlans.native);
    }
    ids.into_iter().collect()
}

/// Why a port that is up does not forward.
fn blocked(port: &Link, stp: bool) -> Option<BlockedPort> {
    let state = port.port.filter(|_| port.up)?;
    let reason = match (state.guarded, state.state) {
        (true, _) => "held by the worker: it would close a loop of bridges without spanning tree",
        // Disabled: no carrier, which is the link's own affair and not the bridge's.
        (false, PortState::Forwarding | PortState::Disabled) => return None,
        (false, PortState::Listening | PortState::Learning) => "spanning tree is still looking for loops",
        (false, PortState::Blocking) if stp => "spanning tree has found a loop",
        (false, PortState::Blocking) => "someone has set it so",
    };
    // Its guard makes it what spanning tree calls blocking, whatever name the kernel has for its state.
    let shown = if state.guarded { PortState::Blocking } else { state.state };
    Some(BlockedPort { port: port.name.clone(), state: shown.name().to_owned(), reason: reason.to_owned() })
}
