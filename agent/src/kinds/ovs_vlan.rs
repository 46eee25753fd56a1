//! VLANs on the ports of Open vSwitch's bridges: OVS filters itself, by `tag` and `trunks`.
//!
//! They are stored as those of Linux bridges are; a port enters its bridge with them ([`follow`]).

use crate::{
    error::{Code, Error, Result},
    kernel::{
        links::{Link, LinkKind, Observed},
        ovs::OvsVlans,
        step::LinkStep,
    },
    model::{
        VlanProtocol,
        bridge_vlan::{Accept, BridgeVlanView, PortOptions, PortVlans, PortVlansView},
    },
    plan::{Plan, Step, Subject, World},
    state::{Record, Write},
};

pub(super) fn is_ovs(bridge: &Link) -> bool {
    matches!(bridge.kind, LinkKind::OvsBridge { .. })
}

/// What OVS's ports do not have is refused, and never left out.
pub(super) fn require_plain(bridge: &Link, port: &str, options: &PortOptions) -> Result<()> {
    let unsupported = |what: &str| {
        Err(Error::new(
            Code::Unsupported,
            format!("{what} of Open vSwitch's bridge {} is not in this version", bridge.name),
        )
        .hint("use a bridge of type linux, or ovs-vsctl"))
    };
    if port == bridge.name {
        return unsupported("a VLAN on the host's side");
    }
    if *options != PortOptions::default() {
        return unsupported("anything but native and tagged VLANs on a port");
    }
    Ok(())
}

/// Stores the VLANs of a port that is there, and sets them.
pub(super) fn put(vlans: &PortVlans, message: String, world: World<'_>) -> Plan {
    let subject = Subject::PortVlans { bridge: vlans.bridge.to_string(), port: vlans.port.clone() };
    let mut plan = Plan::new(subject, message);
    let stored = world.state.port_vlans.get(&vlans.port);
    match stored {
        Some(stored) if vlans.all().is_empty() => plan.forget(Record::PortVlans(stored.clone())),
        Some(stored) if stored == vlans => {}
        None if vlans.all().is_empty() => {}
        Some(_) | None => plan.put(Record::PortVlans(vlans.clone())),
    }
    mend(vlans, world.observed, &mut plan);
    plan
}

/// Puts right what the database says of the ports that a stored object is about.
pub(super) fn mend_ports_of(record: &Record, world: World<'_>, plan: &mut Plan) {
    let names: Vec<&str> = match record {
        Record::Port(spec) => vec![&spec.port],
        Record::Veth(spec) => vec![spec.name1.as_str(), spec.name2.as_str()],
        Record::Tun(spec) => vec![spec.name.as_str()],
        Record::VlanLink(spec) => vec![spec.name.as_str()],
        Record::Bridge(_) | Record::PortVlans(_) | Record::Rule(_) | Record::Firewall(_) => return,
    };
    for vlans in names.iter().filter_map(|name| world.state.port_vlans.get(*name)) {
        mend(vlans, world.observed, plan);
    }
}

fn mend(vlans: &PortVlans, observed: &Observed, plan: &mut Plan) {
    let Some((bridge, port)) = observed.ovs.port(&vlans.port) else { return };
    let wanted = wanted(vlans);
    if vlans.bridge == *bridge.name && bridge.ours && !port.is_held() && port.vlans() != wanted {
        plan.link(LinkStep::SetPortVlans { port: port.name.clone(), vlans: wanted });
    }
}

/// Before a port enters a bridge of OVS it is told its VLANs: not for a moment is it in others.
pub(super) fn follow(plan: &mut Plan, world: World<'_>) {
    if world.observed.ovs.bridges().is_empty() {
        return;
    }
    let mut after = world.state.port_vlans.clone();
    for write in &plan.writes {
        match write {
            Write::Put(Record::PortVlans(vlans)) => drop(after.insert(vlans.port.clone(), vlans.clone())),
            Write::Forget(Record::PortVlans(vlans)) => drop(after.remove(&vlans.port)),
            Write::Put(_) | Write::Forget(_) => {}
        }
    }
    let mut steps = Vec::with_capacity(plan.steps.len());
    for step in plan.steps.drain(..) {
        if let Step::Link(LinkStep::SetMaster { port, master: Some(master) }) = &step
            && world.observed.ovs.bridge(master).is_some()
            && let Some(vlans) = after.get(port).filter(|vlans| vlans.bridge == **master)
        {
            steps.push(Step::Link(LinkStep::SetPortVlans { port: port.clone(), vlans: wanted(vlans) }));
        }
        steps.push(step);
    }
    plan.steps = steps;
}

fn wanted(vlans: &PortVlans) -> OvsVlans {
    OvsVlans { native: vlans.native, tagged: vlans.tagged.clone() }
}

/// A port as the database has it.
pub fn view(bridge: &str, port: &str, observed: &Observed) -> Option<PortVlansView> {
    let (found, port) = observed.ovs.port(port).filter(|(found, _)| found.name == bridge)?;
    let OvsVlans { native, tagged } = port.vlans();
    Some(PortVlansView {
        bridge_name: found.name.clone(),
        port_name: port.name.clone(),
        native_vlan: native,
        tagged_vlans: tagged.into_iter().collect(),
        accept: Accept::All,
        protocol: VlanProtocol::default(),
        tunnel: false,
        nested: true,
        station_limit: 0,
        forwarding: !port.is_held(),
    })
}

/// A row for each VLAN of each port, of others' bridges too.
pub fn list(observed: &Observed) -> Vec<BridgeVlanView> {
    let mut rows = Vec::new();
    for bridge in observed.ovs.bridges() {
        for port in &bridge.ports {
            let OvsVlans { native, tagged } = port.vlans();
            let row = |vlan_id, tagged| BridgeVlanView {
                bridge_name: bridge.name.clone(),
                port_name: port.name.clone(),
                vlan_id,
                tagged,
            };
            rows.extend(native.map(|vlan| row(vlan, false)));
            rows.extend(tagged.into_iter().map(|vlan| row(vlan, true)));
        }
    }
    rows
}
