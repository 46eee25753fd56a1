//! TUNs and TAPs: where a bridge meets the program that runs a virtual machine.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{
    error::{Code, Error, Result},
    kernel::{
        links::{At, Link, LinkKind, Observed, Place},
        step::{LinkStep, NewTun},
    },
    model::{TunMode, TunSpec, TunType, TunView},
    plan::{Plan, Subject, World},
    state::{Record, State},
    users::Names,
};

use super::{
    address_list, bridge, managed, mend_addresses, mend_master, mend_mtu, mend_up, name_taken,
    no_address_to_have, not_managed, problems, record_master, require_free_name, require_nothing_on_top,
    target_bridge,
};

/// A TUN or TAP by name.
pub fn find<'a>(name: &str, observed: &'a Observed) -> Result<(&'a Link, TunType)> {
    let Some(link) = observed.link(name) else {
        return Err(Error::new(Code::TunNotFound, format!("there is no TUN or TAP {name}")));
    };
    match kind(link) {
        Some(kind) => Ok((link, kind)),
        None => {
            let what = link.kind.label();
            Err(Error::new(Code::WrongKind, format!("{name} is no TUN or TAP but a {what} link")))
        }
    }
}

fn kind(link: &Link) -> Option<TunType> {
    match link.kind {
        LinkKind::Tun => Some(TunType::Tun),
        LinkKind::Tap => Some(TunType::Tap),
        LinkKind::Bridge { .. }
        | LinkKind::OvsBridge { .. }
        | LinkKind::Veth
        | LinkKind::Vlan
        | LinkKind::Bond
        | LinkKind::Loopback
        | LinkKind::Physical
        | LinkKind::Other(_) => None,
    }
}

pub(super) fn create(spec: &TunSpec, world: World<'_>) -> Result<Plan> {
    check(spec)?;
    let (name, what) = (spec.name.as_str(), spec.kind.name());
    let subject = Subject::Tun(name.to_owned());
    if let Some(link) = world.observed.link(name) {
        let stored = world.state.tuns.get(name).filter(|_| kind(link).is_some() && link.marked());
        let Some(stored) = stored else { return Err(name_taken(&At::here(name), link)) };
        return match difference(stored, spec) {
            None => Ok(Plan::new(subject, format!("{what} {name} is there already"))),
            Some(difference) => Err(Error::new(
                Code::LinkExists,
                format!("{} {name} exists with another spec: {difference}", stored.kind.name()),
            )
            .hint("delete it first, or ask for what it is")),
        };
    }
    require_free_name(name, "tuntap", world.state)?;
    let mut plan = Plan::new(subject, format!("{what} {name} was created"));
    make_in(spec, world, &mut plan)?;
    plan.put(Record::Tun(spec.clone()));
    Ok(plan)
}

/// Makes a stored device again when it is missing, and what was changed about it as it was.
pub(super) fn remake(spec: &TunSpec, world: World<'_>, plan: &mut Plan) -> Result<()> {
    match world.observed.link(spec.name.as_str()) {
        None => make_in(spec, world, plan),
        Some(link) if kind(link) == Some(spec.kind) && link.marked() => mend(spec, link, world, plan),
        Some(link) => Err(name_taken(&At::here(&link.name), link)),
    }
}

/// Who may open it, and with how many queues, can be changed by nobody but who has it open.
fn mend(spec: &TunSpec, link: &Link, world: World<'_>, plan: &mut Plan) -> Result<()> {
    mend_master(plan, world, link, spec.bridge.as_ref())?;
    mend_mtu(plan, link, spec.mtu);
    mend_addresses(plan, link, &spec.addresses);
    mend_up(plan, &At::here(&link.name), link);
    let tun = link.tun.unwrap_or_default();
    let same = (tun.owner, tun.group, tun.multi_queue) == (spec.owner, spec.group, spec.multi_queue);
    if plan.is_empty() && !same {
        let what = "has another owner, group or kind of queues than it was made with";
        return Err(Error::new(Code::LinkExists, format!("{} {what}", spec.name))
            .hint("delete it and create it again"));
    }
    Ok(())
}

fn check(spec: &TunSpec) -> Result<()> {
    if spec.kind == TunType::Tun && spec.bridge.is_some() {
        return Err(Error::field("bridge", "a tun carries IP packets and cannot be a port of a bridge"));
    }
    if spec.bridge.as_ref() == Some(&spec.name) {
        return Err(Error::field("bridge", format!("{} cannot be its own bridge", spec.name)));
    }
    Ok(())
}

/// The steps that make a device from nothing. It has no other end, so it closes no ring.
fn make_in(spec: &TunSpec, world: World<'_>, plan: &mut Plan) -> Result<()> {
    let at = At::here(spec.name.as_str());
    if let Some(bridge) = &spec.bridge {
        target_bridge(bridge.as_str(), world)?;
    }
    plan.link(LinkStep::CreateTun(NewTun {
        name: at.name.clone(),
        tap: spec.kind == TunType::Tap,
        owner: spec.owner,
        group: spec.group,
        multi_queue: spec.multi_queue,
        vnet_hdr: spec.vnet_hdr,
        mtu: spec.mtu,
        mac: None,
        index: None,
    }));
    if let Some(bridge) = &spec.bridge {
        plan.link(LinkStep::SetMaster { port: at.name.clone(), master: Some(bridge.to_string()) });
    }
    for address in &spec.addresses {
        plan.link(LinkStep::AddAddress { link: at.clone(), address: *address });
    }
    plan.link(LinkStep::SetUp { link: at, up: true });
    Ok(())
}

/// Addresses come and go by calls of their own, so a create does not compare them.
fn difference(is: &TunSpec, asked: &TunSpec) -> Option<String> {
    fn text<T: ToString>(value: &Option<T>) -> String {
        value.as_ref().map_or("none".to_owned(), T::to_string)
    }
    let TunSpec { name: _, kind, owner, group, bridge, persistent, multi_queue, vnet_hdr, mtu, addresses: _ } =
        is;
    let pairs = [
        ("type", kind.name().to_owned(), asked.kind.name().to_owned()),
        ("owner", text(owner), text(&asked.owner)),
        ("group", text(group), text(&asked.group)),
        ("bridge", text(bridge), text(&asked.bridge)),
        ("persistent", persistent.to_string(), asked.persistent.to_string()),
        ("multi_queue", multi_queue.to_string(), asked.multi_queue.to_string()),
        ("vnet_hdr", vnet_hdr.to_string(), asked.vnet_hdr.to_string()),
        ("mtu", text(mtu), text(&asked.mtu)),
    ];
    let parts: Vec<_> = pairs
        .into_iter()
        .filter(|(_, is, asked)| is != asked)
        .map(|(field, is, asked)| format!("{field} is {is}, not {asked}"))
        .collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// A device that the worker made, with its spec.
fn own<'a>(name: &str, world: World<'a>) -> Result<(&'a Link, &'a TunSpec)> {
    let (link, kind) = find(name, world.observed)?;
    let stored = world.state.tuns.get(name).filter(|_| link.marked());
    stored.map(|spec| (link, spec)).ok_or_else(|| not_managed(kind.name(), link))
}

pub(super) fn delete(name: &str, world: World<'_>) -> Result<Plan> {
    let stored = world.state.tuns.get(name);
    let mut plan = Plan::new(Subject::Gone(vec![name.to_owned()]), format!("{name} was deleted"));
    match (own(name, world), stored) {
        (Ok((link, _)), _) => {
            require_nothing_on_top(&Place::Here, link, world.observed)?;
            plan.link(LinkStep::DeleteLink(At::here(name)));
            if link.tun.is_some_and(|tun| tun.open) {
                plan.warnings.push(format!("a program had {name} open; it has lost it"));
            }
        }
        // Someone else deleted it already: forget it.
        (Err(error), Some(_)) if error.code == Code::TunNotFound => {}
        (Err(error), _) => return Err(error),
    }
    if let Some(spec) = stored {
        plan.forget(Record::Tun(spec.clone()));
    }
    Ok(plan)
}

pub(super) fn attach(name: &str, bridge_name: &str, world: World<'_>) -> Result<Plan> {
    find(name, world.observed)?;
    let mut plan = bridge::add_port(bridge_name, name, world)?;
    plan.subject = Subject::Tun(name.to_owned());
    Ok(plan)
}

pub(super) fn detach(name: &str, world: World<'_>) -> Result<Plan> {
    let (link, kind) = find(name, world.observed)?;
    let master = link.master.and_then(|master| world.observed.by_index(&Place::Here, master));
    let Some(master) = master else {
        return Err(Error::new(Code::NotAPort, format!("{name} is not a port of any bridge")));
    };
    if !managed(world.state, &Place::Here, link) && !managed(world.state, &Place::Here, master) {
        return Err(not_managed(kind.name(), link));
    }
    let subject = Subject::Tun(name.to_owned());
    if managed(world.state, &Place::Here, master) {
        // With what it brought, if it came as an uplink.
        return Ok(Plan { subject, ..bridge::remove_port(&master.name, name, world)? });
    }
    let message = format!("{name} was taken out of bridge {}", master.name);
    let mut plan = Plan::new(subject, message);
    plan.link(LinkStep::SetMaster { port: name.to_owned(), master: None });
    record_master(&mut plan, world, name, None)?;
    Ok(plan)
}

pub(super) fn add_address(name: &str, address: IpNet, world: World<'_>) -> Result<Plan> {
    let (link, spec) = own(name, world)?;
    if let Some(why) = no_address_to_have(address) {
        return Err(Error::field("ip_address", why));
    }
    let mut plan = Plan::new(Subject::Tun(name.to_owned()), format!("{name} has the address {address}"));
    if !link.addresses.iter().any(|known| known.net == address) {
        plan.link(LinkStep::AddAddress { link: At::here(name), address });
    }
    if !spec.addresses.contains(&address) {
        let mut spec = spec.clone();
        spec.addresses.push(address);
        plan.put(Record::Tun(spec));
    }
    if let Some(bridge) = world.observed.master_name(&Place::Here, link) {
        plan.warnings.push(format!("{name} is a port of {bridge}; as a port it answers to no address"));
    }
    Ok(plan)
}

/// By the address and its prefix length; without one there must be a single address that matches.
pub(super) fn remove_address(name: &str, ip: IpAddr, prefix: Option<u8>, world: World<'_>) -> Result<Plan> {
    let (link, spec) = own(name, world)?;
    let meant = |net: &IpNet| net.addr() == ip && prefix.is_none_or(|prefix| net.prefix_len() == prefix);
    let in_kernel = link.addresses.iter().map(|known| known.net);
    let mut found: Vec<_> = in_kernel.chain(spec.addresses.iter().copied()).filter(meant).collect();
    found.sort();
    found.dedup();
    let address = match found.as_slice() {
        [address] => *address,
        [] => {
            let wanted = prefix.map_or(ip.to_string(), |prefix| format!("{ip}/{prefix}"));
            return Err(Error::new(Code::AddressNotFound, format!("{name} has no address {wanted}"))
                .hint(format!("GET /tuntap/{name} lists them")));
        }
        several => {
            let several = several.iter().map(IpNet::to_string).collect::<Vec<_>>().join(" and ");
            return Err(Error::field("netmask", format!("{name} has {several}: say which")));
        }
    };
    let message = format!("{name} no longer has the address {address}");
    let mut plan = Plan::new(Subject::Tun(name.to_owned()), message);
    if link.addresses.iter().any(|known| known.net == address) {
        plan.link(LinkStep::RemoveAddress { link: At::here(name), address });
    }
    if spec.addresses.contains(&address) {
        let mut spec = spec.clone();
        spec.addresses.retain(|known| *known != address);
        plan.put(Record::Tun(spec));
    }
    Ok(plan)
}

/// Every TUN and TAP of the worker's namespace.
pub fn list(observed: &Observed, state: &State, names: &Names) -> Vec<TunView> {
    observed.links.iter().filter_map(|link| view(link, observed, state, names)).collect()
}

/// A TUN or TAP as callers see it; `None` when the link is something else.
pub fn view(link: &Link, observed: &Observed, state: &State, names: &Names) -> Option<TunView> {
    let kind = kind(link)?;
    let tun = link.tun.unwrap_or_default();
    let managed = managed(state, &Place::Here, link);
    let stored = state.tuns.get(&link.name).filter(|_| managed);
    let master = link.master.and_then(|master| observed.by_index(&Place::Here, master));
    Some(TunView {
        name: link.name.clone(),
        kind,
        mode: match (tun.owner, tun.group) {
            (Some(_), _) => TunMode::User,
            (None, Some(_)) => TunMode::Group,
            (None, None) => TunMode::Root,
        },
        owner: tun.owner.map(|id| names.user(id)),
        group: tun.group.map(|id| names.group(id)),
        owner_id: tun.owner,
        group_id: tun.group,
        bridge: master.filter(|master| master.is_bridge()).map(|master| master.name.clone()),
        // The worker's own stay in the kernel in any case, so that a program can open them.
        persistent: stored.map_or(tun.persist, |spec| spec.persistent),
        multi_queue: tun.multi_queue,
        vnet_hdr: tun.vnet_hdr,
        status: link.operstate.name().to_owned(),
        mtu: link.mtu,
        mac_address: link.mac.map(|mac| mac.to_string()),
        ip_addresses: address_list(link),
        ifindex: link.index,
        managed,
        problems: problems(state, &format!("tuntap/{}", link.name)),
    })
}
