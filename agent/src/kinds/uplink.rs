//! An interface that carries the host's addresses, as port of a bridge: its addresses, routes and static
//! neighbours belong on the bridge then, in one go, or the host would answer to nobody any more.

use std::net::IpAddr;

use crate::{
    engine::Change,
    error::{Code, Error, Result},
    kernel::{
        links::{Address, At, Link, LinkKind, Mac, Observed, Place},
        routes::{Neighbour, Route},
        step::LinkStep,
    },
    model::{RouteSpec, UplinkSpec},
    plan::{Plan, World},
    state::{PortSpec, Record, State},
};

use super::managed;

/// How many gateways are asked before and after.
const GATEWAYS: usize = 4;

/// The gateways that a change could cut off, and the link through which they are reached now.
pub fn at_risk(change: &Change, observed: &Observed, state: &State) -> Vec<(String, IpAddr)> {
    let through =
        |link: &Link| gateways(link, observed).into_iter().map(|ip| (link.name.clone(), ip)).collect();
    match change {
        Change::AddPort { port, .. }
        | Change::AddPortToVlan { port, .. }
        | Change::AttachTap { tap: port, .. }
        | Change::MoveVethToBridge { veth: port, .. } => {
            let link = observed.link(port).filter(|link| link.master.is_none() && !has_record(link, state));
            link.filter(|link| carries_addresses(link)).map(through).unwrap_or_default()
        }
        Change::RemovePort { bridge, port } => {
            let uplink = state.ports.get(port).is_some_and(|spec| spec.uplink.is_some());
            observed.link(bridge).filter(|_| uplink).map(through).unwrap_or_default()
        }
        Change::DetachTap { tap } => {
            let spec = state.ports.get(tap).filter(|spec| spec.uplink.is_some());
            spec.and_then(|spec| observed.link(spec.bridge.as_str())).map(through).unwrap_or_default()
        }
        Change::DeleteBridge { name, force: true } => {
            let uplink = state.ports.values().any(|spec| spec.bridge == **name && spec.uplink.is_some());
            observed.link(name).filter(|_| uplink).map(through).unwrap_or_default()
        }
        _ => Vec::new(),
    }
}

fn gateways(link: &Link, observed: &Observed) -> Vec<IpAddr> {
    let mut routes: Vec<_> = observed.routes.iter().filter(|route| route.interface == link.index).collect();
    // The default route's first.
    routes.sort_by_key(|route| (!route.is_default(), route.metric));
    let mut gateways: Vec<_> = Vec::new();
    for gateway in routes.into_iter().filter_map(|route| route.gateway) {
        if !gateways.contains(&gateway) {
            gateways.push(gateway);
        }
    }
    gateways.truncate(GATEWAYS);
    gateways
}

/// Whether the store has an object of its own for the link; only a stranger's is kept as an uplink.
fn has_record(link: &Link, state: &State) -> bool {
    managed(state, &Place::Here, link)
}

pub(super) fn carries_addresses(link: &Link) -> bool {
    link.addresses.iter().any(|address| address.global)
}

/// Refuses to take a port from one bridge to another together with the addresses that it brought: these go back to it
/// first, so that a gateway that is lost on the way is found again.
pub(super) fn require_empty_handed(world: World<'_>, port: &Link) -> Result<()> {
    match world.state.ports.get(&port.name) {
        Some(PortSpec { bridge, uplink: Some(_), .. }) => Err(Error::new(
            Code::PortInUse,
            format!("{} is a port of {bridge}, which has its addresses and routes", port.name),
        )
        .hint(format!("remove it from {bridge} first: POST /bridge/remove-port"))),
        Some(PortSpec { uplink: None, .. }) | None => Ok(()),
    }
}

/// Moves everything from a port to its bridge, after the port was attached. Does nothing for a link of the
/// worker's own or one without addresses.
pub(super) fn move_in(plan: &mut Plan, world: World<'_>, port: &Link, bridge: &Link) {
    if !carries_addresses(port) || has_record(port, world.state) {
        return;
    }
    let stored = world.state.ports.get(&port.name);
    let mut uplink = stored.and_then(|spec| spec.uplink.clone()).unwrap_or_default();
    if port.master != Some(bridge.index) {
        // It comes with what the host gives it today, whatever that was the last time.
        (uplink.addresses, uplink.routes) = (Vec::new(), Vec::new());
    }
    keep_mac(plan, port, bridge);
    let load = Load {
        addresses: port.addresses.iter().filter(|address| address.global).collect(),
        routes: own_routes(port, world.observed),
        neighbours: own_neighbours(port, world.observed),
    };
    for step in load.take_from(port).into_iter().chain(load.give_to(port, bridge)) {
        plan.link(step);
    }
    let Load { addresses, routes, neighbours: _ } = &load;
    check(plan, world, bridge, bridge);

    let texts: Vec<_> = addresses.iter().map(|address| address.net.to_string()).collect();
    plan.message.push_str(&format!(
        "; its addresses {} and {} routes are on {} now",
        texts.join(", "),
        routes.len(),
        bridge.name
    ));
    let leased: Vec<_> = addresses.iter().filter(|address| address.dynamic).collect();
    for address in &leased {
        plan.warnings.push(format!(
            "{} was leased (DHCP or router advertisement): on {} nobody renews it unless a client runs there",
            address.net, bridge.name
        ));
    }
    // What was leased is not to be made again: somebody else may have it then.
    uplink.addresses.extend(addresses.iter().filter(|address| !address.dynamic).map(|address| address.net));
    uplink.addresses.sort();
    uplink.addresses.dedup();
    for route in routes.iter().map(spec).filter(|_| leased.is_empty()) {
        if !uplink.routes.contains(&route) {
            uplink.routes.push(route);
        }
    }
    uplink.bridge_mac = uplink.bridge_mac.or_else(|| bridge.mac.map(|mac| mac.to_string()));
    write_uplink(plan, port, bridge, stored, uplink);
}

/// The port's record, whether this plan writes it already or not.
fn write_uplink(plan: &mut Plan, port: &Link, bridge: &Link, stored: Option<&PortSpec>, uplink: UplinkSpec) {
    use crate::state::Write;
    for write in &mut plan.writes {
        if let Write::Put(Record::Port(spec)) = write
            && spec.port == port.name
        {
            spec.uplink = Some(uplink);
            return;
        }
    }
    let known = stored.cloned().or_else(|| PortSpec::new(&port.name, &bridge.name));
    if let Some(spec) = known {
        plan.put(Record::Port(PortSpec { uplink: Some(uplink), ..spec }));
    }
}

/// Takes a port out, after what the bridge has beyond its own addresses went back to it.
pub(super) fn move_out(plan: &mut Plan, world: World<'_>, port: &Link, bridge: &Link) {
    let uplink = world.state.ports.get(&port.name).is_some_and(|spec| spec.uplink.is_some());
    for step in release(world.observed, world.state, port, bridge) {
        plan.link(step);
    }
    if uplink {
        check(plan, world, bridge, port);
        plan.message.push_str(&format!("; {} has its addresses and routes back", port.name));
    }
}

/// The steps that take a port out and give back what it brought.
pub fn release(observed: &Observed, state: &State, port: &Link, bridge: &Link) -> Vec<LinkStep> {
    let out = LinkStep::SetMaster { port: port.name.clone(), master: None };
    let Some(uplink) = state.ports.get(&port.name).and_then(|spec| spec.uplink.as_ref()) else {
        return vec![out];
    };
    let kept = state.bridges.get(&bridge.name).map(|spec| spec.addresses.as_slice()).unwrap_or_default();
    let (stays, goes): (Vec<_>, Vec<_>) = bridge
        .addresses
        .iter()
        .filter(|address| address.global)
        .partition(|address| kept.contains(&address.net) && !uplink.addresses.contains(&address.net));
    // What leads to a network that the bridge keeps stays with it.
    let stays_with = |gateway: IpAddr| stays.iter().any(|address| address.net.contains(&gateway));
    let mut routes = own_routes(bridge, observed);
    routes.retain(|route| match route.gateway {
        Some(gateway) => !stays_with(gateway),
        None => uplink.routes.contains(&spec(route)),
    });
    let mut neighbours = own_neighbours(bridge, observed);
    neighbours.retain(|neighbour| goes.iter().any(|address| address.net.contains(&neighbour.ip)));
    let load = Load { addresses: goes, routes, neighbours };
    // Before the bridge gets its own hardware address back: the kernel forgets neighbours then.
    let mut steps = load.take_from(bridge);
    steps.push(out);
    if let Some(mac) = uplink.bridge_mac.as_deref().and_then(Mac::parse)
        && bridge.mac != Some(mac)
    {
        steps.push(LinkStep::SetMac { link: bridge.name.clone(), mac });
    }
    steps.extend(load.give_to(bridge, port));
    steps
}

/// Addresses and routes that somebody took from the bridge since, or that came to its port.
pub(super) fn mend(plan: &mut Plan, world: World<'_>, port: &Link, bridge: &Link, uplink: &UplinkSpec) {
    if carries_addresses(port) {
        move_in(plan, world, port, bridge);
        return;
    }
    keep_mac(plan, port, bridge);
    for net in &uplink.addresses {
        if !bridge.addresses.iter().any(|known| known.net == *net) {
            let address = Address::plain(*net);
            plan.link(LinkStep::CarryAddress { link: At::here(&bridge.name), address });
        }
    }
    let present: Vec<_> = own_routes(bridge, world.observed).iter().map(spec).collect();
    for route in uplink.routes.iter().filter(|route| !present.contains(route)) {
        plan.link(LinkStep::AddRoute(route.route(bridge.index)));
    }
}

/// Else the switch on the other side, or a cloud that allows one address per port, would see a stranger.
fn keep_mac(plan: &mut Plan, port: &Link, bridge: &Link) {
    if let Some(mac) = port.mac.filter(|mac| bridge.mac != Some(*mac)) {
        plan.link(LinkStep::SetMac { link: bridge.name.clone(), mac });
    }
}

/// What moves from one link to another. It is taken from the one first and given to the other then: two links
/// with one address confuse everybody.
struct Load<'a> {
    addresses: Vec<&'a Address>,
    routes: Vec<Route>,
    neighbours: Vec<Neighbour>,
}

impl Load<'_> {
    fn take_from(&self, from: &Link) -> Vec<LinkStep> {
        let mut steps: Vec<_> = self.neighbours.iter().copied().map(LinkStep::RemoveNeighbour).collect();
        steps.extend(self.routes.iter().rev().cloned().map(LinkStep::RemoveRoute));
        // Secondary ones go with their primary, so they go first.
        for address in self.addresses.iter().rev() {
            steps.push(LinkStep::RemoveAddress { link: At::here(&from.name), address: address.net });
        }
        steps
    }

    fn give_to(&self, from: &Link, to: &Link) -> Vec<LinkStep> {
        let mut steps = Vec::new();
        for address in &self.addresses {
            if !to.addresses.iter().any(|known| known.net == address.net) {
                steps.push(LinkStep::CarryAddress { link: At::here(&to.name), address: (*address).clone() });
            }
        }
        steps.extend(self.routes.iter().map(|route| LinkStep::AddRoute(route.moved(from.index, to.index))));
        for neighbour in &self.neighbours {
            steps.push(LinkStep::AddNeighbour(Neighbour { interface: to.index, ..*neighbour }));
        }
        steps
    }
}

/// Whoever answered before must answer afterwards, or everything is put back.
fn check(plan: &mut Plan, world: World<'_>, bridge: &Link, through: &Link) {
    let stp = matches!(bridge.kind, LinkKind::Bridge { stp: true } | LinkKind::OvsBridge { stp: true });
    let waits = stp && through.index == bridge.index;
    if waits && !world.reachable.is_empty() {
        plan.warnings.push(format!(
            "spanning tree keeps the port from forwarding for half a minute, so whether the gateway still answers \
             through {} was not checked",
            bridge.name
        ));
        return;
    }
    for gateway in world.reachable {
        plan.link(LinkStep::Reach { link: through.name.clone(), gateway: *gateway });
    }
}

/// The routes over a link that are not made by the kernel itself; those without a gateway first, because the
/// others need them.
fn own_routes(link: &Link, observed: &Observed) -> Vec<Route> {
    let mut routes: Vec<_> = observed
        .routes
        .iter()
        .filter(|route| route.leads_through(link.index) && !route.is_automatic(link))
        .cloned()
        .collect();
    routes.sort_by_key(|route| route.gateway.is_some());
    routes
}

fn own_neighbours(link: &Link, observed: &Observed) -> Vec<Neighbour> {
    observed.neighbours.iter().filter(|neighbour| neighbour.interface == link.index).copied().collect()
}

fn spec(route: &Route) -> RouteSpec {
    let Route { destination, gateway, source, metric, table, protocol, .. } = route;
    RouteSpec {
        destination: *destination,
        gateway: *gateway,
        source: *source,
        metric: *metric,
        table: *table,
        protocol: *protocol,
    }
}

impl RouteSpec {
    fn route(&self, interface: u32) -> Route {
        let Self { destination, gateway, source, metric, table, protocol } = *self;
        Route { source, metric, table, protocol, ..Route::new(destination, gateway, interface) }
    }
}
