//! The kinds of resources, one file each: what a request must satisfy, what it comes to, how it is shown.
//!
//! Everything here is pure. A new kind is a new file and the arms that the compiler then asks for.

pub mod bridge;
pub mod bridge_vlan;
pub mod firewall;
pub mod forward;
pub mod interface;
pub mod lan;
pub mod masquerade;
pub mod overlap;
pub mod ovs_vlan;
pub mod roles;
pub mod route;
pub mod rule;
pub mod tuntap;
pub mod uplink;
pub mod veth;
pub mod vlan_link;

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{
    engine::Change,
    error::{Code, Error, Result},
    kernel::links::{At, Link, Observed, Place},
    loops,
    model::{LinkName, TunSpec, VlanLinkSpec},
    plan::{Plan, Step, Subject, World},
    state::{PortSpec, Record, State},
};

/// What a change comes to, or why it must not happen.
pub fn plan(change: &Change, world: World<'_>) -> Result<Plan> {
    let mut plan = plan_itself(change, world)?;
    bridge_vlan::follow(&mut plan, world);
    ovs_vlan::follow(&mut plan, world);
    Ok(plan)
}

fn plan_itself(change: &Change, world: World<'_>) -> Result<Plan> {
    match change {
        Change::CreateBridge(spec) => bridge::create(spec, world),
        Change::DeleteBridge { name, force } => bridge::delete(name, *force, world),
        Change::AddPort { bridge, port } => bridge::add_port(bridge, port, world),
        Change::AddPortToVlan { bridge, port, vlan } => bridge_vlan::add_port(bridge, port, *vlan, world),
        Change::AddToVlans { bridge, port, change } => bridge_vlan::add(bridge, port, change, world),
        Change::RemoveFromVlans { bridge, port, vlans } => bridge_vlan::remove(bridge, port, vlans, world),
        Change::FixStation { bridge, port, station, fixed } => {
            bridge_vlan::fix_station(bridge, port, *station, *fixed, world)
        }
        Change::RemovePort { bridge, port } => bridge::remove_port(bridge, port, world),
        Change::CreateVeth(spec) => veth::create(spec, world),
        Change::DeleteVeth { name } => veth::delete(name, world),
        Change::MoveVethToBridge { veth, bridge } => veth::move_to_bridge(veth, bridge, world),
        Change::MoveVethToNamespace { veth, namespace } => veth::move_to_namespace(veth, namespace, world),
        Change::CreateTun(spec) => tuntap::create(spec, world),
        Change::DeleteTun { name } => tuntap::delete(name, world),
        Change::AttachTap { tap, bridge } => tuntap::attach(tap, bridge, world),
        Change::DetachTap { tap } => tuntap::detach(tap, world),
        Change::AddTunAddress { name, address } => tuntap::add_address(name, *address, world),
        Change::RemoveTunAddress { name, ip, prefix } => tuntap::remove_address(name, *ip, *prefix, world),
        Change::CreateVlanLink(spec) => vlan_link::create(spec, world),
        Change::DeleteVlanLink { parent, vlan_id, protocol } => {
            vlan_link::delete(parent, *vlan_id, *protocol, world)
        }
        Change::CreateForward(request) => forward::create(request, world),
        Change::DeleteForward(selector) => forward::delete(selector, world),
        Change::CreateMasquerade(spec) => masquerade::create(spec, world),
        Change::DeleteMasquerade(selector) => masquerade::delete(selector, world),
        Change::FlushNat => Ok(rule::flush(world)),
        Change::CreateFirewall(request) => firewall::create(request, world),
        Change::DeleteFirewall { id, caller } => firewall::delete(id, *caller, world),
        Change::FlushFirewall => Ok(firewall::flush(world)),
    }
}

/// What makes a stored object again that is missing, and puts right what was changed about it; empty when it
/// is as it should be. An error says what is wrong and cannot be put right.
pub fn remake(record: &Record, world: World<'_>) -> Result<Plan> {
    let mut plan = Plan::new(Subject::Gone(Vec::new()), format!("{} was made again", record.key()));
    match record {
        Record::Bridge(spec) => bridge::remake(spec, world, &mut plan)?,
        Record::Veth(spec) => veth::remake(spec, world, &mut plan)?,
        Record::Tun(spec) => tuntap::remake(spec, world, &mut plan)?,
        Record::VlanLink(spec) => vlan_link::remake(spec, world, &mut plan)?,
        Record::Port(spec) => bridge::remake_port(spec, world, &mut plan)?,
        // They follow from the links, see `bridge_vlan::desired`; with Open vSwitch, they go with their port.
        Record::PortVlans(_) => {}
        // Rules follow from the interfaces, see `rule::desired`.
        Record::Rule(_) => {}
        // All together and in order, see `firewall::wanted`.
        Record::Firewall(_) => {}
    }
    ovs_vlan::mend_ports_of(record, world, &mut plan);
    bridge_vlan::prepare(&mut plan, world);
    ovs_vlan::follow(&mut plan, world);
    Ok(plan)
}

/// Whether a link is the worker's: the store and the link's own mark agree.
pub fn managed(state: &State, place: &Place, link: &Link) -> bool {
    let stored = match place {
        Place::Here => {
            state.bridges.contains_key(&link.name)
                || state.tuns.contains_key(&link.name)
                || state.vlan_links.contains_key(&link.name)
                || state.veth_at(&At::here(&link.name)).is_some()
        }
        Place::Named(_) => state.veth_at(&At::new(place.clone(), &link.name)).is_some(),
    };
    stored && link.marked()
}

/// Whether the worker may hold this port: it made it, or it made the bridge.
pub fn ours(state: &State, observed: &Observed, link: &Link) -> bool {
    let master = link.master.and_then(|master| observed.by_index(&Place::Here, master));
    managed(state, &Place::Here, link) || master.is_some_and(|master| managed(state, &Place::Here, master))
}

fn not_managed(what: &str, link: &Link) -> Error {
    let why = match link.marked() {
        true => "bears a worker's mark but is not in this worker's store; it is left alone",
        false => "was not made by the worker, which leaves it alone",
    };
    Error::new(Code::NotManaged, format!("{what} {} {why}", link.name))
        .hint("change it with the tool that made it")
}

fn name_taken(name: &At, link: &Link) -> Error {
    Error::new(Code::LinkExists, format!("a {} link of the name {name} exists already", link.kind.label()))
        .hint("choose another name, or delete that link first")
}

/// Refuses a name that another kind of object has in the store, though its link is missing just now.
fn require_free_name(name: &str, kind: &str, state: &State) -> Result<()> {
    let holders = [
        ("bridge", state.bridges.contains_key(name)),
        ("tuntap", state.tuns.contains_key(name)),
        ("vlan", state.vlan_links.contains_key(name)),
        ("veth", state.veth_at(&At::here(name)).is_some()),
    ];
    match holders.iter().find(|(holder, has)| *has && *holder != kind) {
        None => Ok(()),
        Some((holder, _)) => Err(Error::new(
            Code::LinkExists,
            format!("{name} is the name of a {holder} that the worker made and that is missing just now"),
        )
        .hint("delete it first, or choose another name")),
    }
}

/// Refuses to delete a link that others lie on: the kernel would delete them with it.
fn require_nothing_on_top(place: &Place, link: &Link, observed: &Observed) -> Result<()> {
    let on_top: Vec<_> = observed.on_top_of(place, link).map(|other| other.name.as_str()).collect();
    if on_top.is_empty() {
        return Ok(());
    }
    Err(Error::new(Code::LinkInUse, format!("{} still carries {}", link.name, on_top.join(", ")))
        .hint("delete these first: they would go with it"))
}

/// A bridge that ports may be put into.
fn target_bridge<'a>(name: &str, world: World<'a>) -> Result<&'a Link> {
    let link = bridge::find(name, world.observed)?;
    if !managed(world.state, &Place::Here, link) {
        return Err(not_managed("bridge", link));
    }
    Ok(link)
}

/// The steps that make an existing link a port of a bridge and bring it up, held where it would close a ring.
fn attach(plan: &mut Plan, world: World<'_>, port: &Link, bridge: &Link) {
    use crate::kernel::step::LinkStep::{Hold, SetMaster, SetUp};
    let set_up = |up| SetUp { link: At::here(&port.name), up };
    if port.master.is_some() {
        // Two steps, so that a refusal by the new bridge leaves a clean way back.
        plan.link(SetMaster { port: port.name.clone(), master: None });
    }
    let ring = loops::closes_ring(world.observed, port, bridge);
    // Not for a moment may a port that closes a ring forward: it is down until its guard is on.
    if ring && port.up {
        plan.link(set_up(false));
    }
    plan.link(SetMaster { port: port.name.clone(), master: Some(bridge.name.clone()) });
    let hold = Hold { port: port.name.clone(), bridge: bridge.name.clone(), hold: true };
    if ring {
        plan.link(hold.clone());
    }
    if ring || !port.up {
        plan.link(set_up(true));
    }
    if ring {
        plan.link(hold);
        plan.warnings.push(ring_warning(&port.name, &bridge.name));
    }
}

/// Puts one of the worker's own links back into its bridge, wherever it is now.
fn mend_master(plan: &mut Plan, world: World<'_>, link: &Link, bridge: Option<&LinkName>) -> Result<()> {
    // In a bridge though none was asked for: that is more than was asked for, and stays.
    let Some(bridge) = bridge else { return Ok(()) };
    let bridge = target_bridge(bridge.as_str(), world)?;
    if link.master != Some(bridge.index) {
        attach(plan, world, link, bridge);
    }
    Ok(())
}

fn mend_up(plan: &mut Plan, at: &At, link: &Link) {
    let planned = plan.steps.iter().any(|step| {
        matches!(step, Step::Link(crate::kernel::step::LinkStep::SetUp { link, up: true }) if link == at)
    });
    if !link.up && !planned {
        plan.link(crate::kernel::step::LinkStep::SetUp { link: at.clone(), up: true });
    }
}

fn mend_mtu(plan: &mut Plan, link: &Link, mtu: Option<u32>) {
    if let Some(mtu) = mtu.filter(|mtu| *mtu != link.mtu) {
        plan.link(crate::kernel::step::LinkStep::SetMtu { link: At::here(&link.name), mtu });
    }
}

fn mend_addresses(plan: &mut Plan, link: &Link, addresses: &[IpNet]) {
    for address in addresses {
        if !link.addresses.iter().any(|known| known.net == *address) {
            plan.link(crate::kernel::step::LinkStep::AddAddress {
                link: At::here(&link.name),
                address: *address,
            });
        }
    }
}

fn ring_warning(port: &str, bridge: &str) -> String {
    format!(
        "{port} would close a loop through bridge {bridge}, which runs no spanning tree: \
         {port} is held in blocking state"
    )
}

/// Writes down which bridge a link is meant to be a port of.
fn record_master(plan: &mut Plan, world: World<'_>, port: &str, bridge: Option<&str>) -> Result<()> {
    let bridge = match bridge {
        None => None,
        Some(name) => Some(LinkName::new(name).map_err(|error| Error::field("bridge", error.to_string()))?),
    };
    match world.state.veth_at(&At::here(port)) {
        Some(spec) => {
            let mut changed = spec.clone();
            if spec.namespace1.is_none() && *port == *spec.name1.as_str() {
                changed.bridge1 = bridge;
            } else {
                changed.bridge2 = bridge;
            }
            if changed != *spec {
                plan.put(Record::Veth(changed));
            }
        }
        None if world.state.tuns.contains_key(port) => {
            let spec = &world.state.tuns[port];
            if spec.bridge != bridge {
                plan.put(Record::Tun(TunSpec { bridge, ..spec.clone() }));
            }
        }
        None if world.state.vlan_links.contains_key(port) => {
            let spec = &world.state.vlan_links[port];
            if spec.bridge != bridge {
                plan.put(Record::VlanLink(VlanLinkSpec { bridge, ..spec.clone() }));
            }
        }
        None => {
            let stored = world.state.ports.get(port);
            match (stored, bridge) {
                (_, Some(bridge)) => {
                    if stored.is_none_or(|stored| stored.bridge != bridge) {
                        plan.put(Record::Port(PortSpec { port: port.to_owned(), bridge, uplink: None }));
                    }
                }
                (Some(spec), None) => plan.forget(Record::Port(spec.clone())),
                (None, None) => {}
            }
        }
    }
    Ok(())
}

/// Why no interface should have an address, for those that the kernel would give it all the same.
fn no_address_to_have(address: IpNet) -> Option<String> {
    let ip = address.addr();
    let why = match (ip, address) {
        _ if ip.is_unspecified() || ip.is_multicast() => "is no address of a host",
        _ if ip.is_loopback() => "is a loopback address: whatever is sent to it stays on this host",
        (IpAddr::V4(ip), _) if ip.octets()[0] == 0 || ip.octets()[0] >= 240 => {
            "is a reserved or broadcast address"
        }
        (IpAddr::V6(ip), _) if ip.to_ipv4_mapped().is_some() => {
            "is an IPv4 address in IPv6's clothes; write it as IPv4"
        }
        // Networks of two hosts and of one have neither (RFC 3021).
        (_, IpNet::V4(net)) if net.prefix_len() < 31 && net.addr() == net.network() => {
            "is the network itself and no host in it"
        }
        (_, IpNet::V4(net)) if net.prefix_len() < 31 && net.addr() == net.broadcast() => {
            "is the broadcast address of its network"
        }
        (IpAddr::V4(_) | IpAddr::V6(_), _) => return None,
    };
    Some(format!("{address} {why}"))
}

/// What is known to be wrong with a stored object.
fn problems(state: &State, key: &str) -> Vec<String> {
    state.problem(key).map(str::to_owned).into_iter().collect()
}

fn address_list(link: &Link) -> Vec<String> {
    link.addresses.iter().map(|address| address.net.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_gets_the_address_of_one_host() {
        for good in ["10.7.0.1/24", "10.7.0.0/31", "10.7.0.1/31", "10.7.0.0/32", "fd00::/64", "fe80::1/64"] {
            assert_eq!(no_address_to_have(good.parse().unwrap()), None, "{good}");
        }
        for (bad, why) in [
            ("10.7.0.0/24", "the network itself"),
            ("10.7.0.255/24", "the broadcast address"),
            ("127.0.0.5/8", "loopback"),
            ("::1/128", "loopback"),
            ("0.0.0.0/8", "no address of a host"),
            ("0.1.2.3/8", "reserved"),
            ("255.255.255.255/32", "reserved or broadcast"),
            ("224.0.0.1/24", "no address of a host"),
            ("::ffff:10.1.1.1/96", "write it as IPv4"),
        ] {
            let said = no_address_to_have(bad.parse().unwrap()).unwrap();
            assert!(said.starts_with(bad) && said.contains(why), "{said}");
        }
    }
}
