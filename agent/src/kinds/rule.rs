//! What port forwards and masquerade rules have in common: the uplink, the slot, the steps.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;

use crate::{
    error::{Code, Error, Result},
    kernel::{
        dataplane::{Counters, HostAddresses, NatRule, Slot},
        links::{Address, Link, LinkKind, Observed},
        routes::Route,
        step::LinkStep,
    },
    model::{LinkName, RuleView, roles::RoleSource},
    plan::{Installed, NatStep, Plan, Step, Subject, World},
    state::{Record, Rule, RuleSpec, State},
};

use super::{forward, lan, masquerade, roles};

/// Networks that one rule may name.
pub(super) const MAX_NETWORKS: usize = 256;

/// An interface that a rule names: 404 when it is not there, 409 when no packet from outside passes it.
pub(super) fn interface<'a>(name: &str, observed: &'a Observed) -> Result<&'a Link> {
    let Some(link) = observed.link(name) else {
        return Err(Error::new(Code::LinkNotFound, format!("there is no interface {name}")));
    };
    if link.kind == LinkKind::Loopback {
        return Err(Error::new(Code::WrongKind, format!("{name} leads to no other host and is no uplink"))
            .hint("name the interface to the outside"));
    }
    Ok(link)
}

/// The interface that is asked for, else the host's uplink.
pub(super) fn uplink<'a>(asked: Option<&LinkName>, world: World<'a>) -> Result<&'a Link> {
    if let Some(name) = asked {
        return interface(name.as_str(), world.observed);
    }
    let uplink = roles::wan(world.options, world.observed);
    uplink.link.ok_or_else(|| match uplink.source {
        RoleSource::Setting => {
            Error::new(Code::LinkNotFound, format!("there is no interface {}", uplink.name))
                .hint("set WAN_INTERFACE to an interface of this host")
        }
        RoleSource::Usual | RoleSource::Detected => {
            Error::new(Code::LinkNotFound, "this host has no IPv4 default route that would tell its uplink")
                .hint("say which interface, or set WAN_INTERFACE")
        }
    })
}

/// The interface that a stored rule's packets pass, when it is there.
pub fn l3_uplink(spec: &RuleSpec, observed: &Observed) -> Option<u32> {
    let link = observed.link(spec.interface().as_str())?;
    Some(observed.l3_owner(link).index)
}

/// Whether a stored rule is about the uplink whose L3 owner is `owner`; by name while its interface is away.
pub(super) fn same_uplink(spec: &RuleSpec, interface: &LinkName, owner: u32, observed: &Observed) -> bool {
    match l3_uplink(spec, observed) {
        Some(index) => index == owner,
        None => spec.interface() == interface,
    }
}

/// What the data plane should hold for a rule: nothing when it is disabled or its interface is away.
pub fn desired(spec: &RuleSpec, observed: &Observed) -> Option<NatRule> {
    desired_on(spec, l3_uplink(spec, observed))
}

fn desired_on(spec: &RuleSpec, uplink: Option<u32>) -> Option<NatRule> {
    let uplink = uplink.filter(|_| spec.enabled())?;
    Some(match spec {
        RuleSpec::Forward(spec) => forward::nat_rule(spec, uplink),
        RuleSpec::Masquerade(spec) => masquerade::nat_rule(spec, uplink),
    })
}

/// What every slot should hold, those included that should hold nothing any more.
pub fn all_desired(state: &State, observed: &Observed, nat: &Installed) -> BTreeMap<Slot, Option<NatRule>> {
    let mut wanted: BTreeMap<_, _> = nat.rules().keys().map(|slot| (*slot, None)).collect();
    // Thousands of rules share a few uplinks.
    let mut uplinks: HashMap<&LinkName, Option<u32>> = HashMap::new();
    for rule in state.rules.values() {
        let uplink = *uplinks.entry(rule.spec.interface()).or_insert_with(|| l3_uplink(&rule.spec, observed));
        wanted.insert(rule.slot, desired_on(&rule.spec, uplink));
    }
    wanted
}

/// The lowest slot that neither the store nor the kernel uses.
pub(super) fn free_slot(world: World<'_>) -> Result<Slot> {
    let mut taken = vec![false; Slot::COUNT as usize];
    let stored = world.state.rules.values().map(|rule| rule.slot);
    for Slot(slot) in stored.chain(world.nat.rules().keys().copied()) {
        if let Some(taken) = taken.get_mut(slot as usize) {
            *taken = true;
        }
    }
    let free = taken.iter().zip(0..).find_map(|(taken, slot)| (!taken).then_some(Slot(slot)));
    free.ok_or_else(|| {
        Error::new(Code::TooManyRules, format!("all {} rule slots are in use", Slot::COUNT))
            .hint("delete rules that are not needed")
    })
}

/// The steps after which the named slots hold the rules given, and the uplinks that need them have the programs.
///
/// Attached before the first rule, detached after the last one, but for those uplinks that `keep` them all the same; no slot
/// is overwritten, it is emptied first.
pub fn steps(
    changes: &BTreeMap<Slot, Option<NatRule>>,
    observed: &Observed,
    nat: &Installed,
    keep: &BTreeSet<u32>,
) -> Vec<Step> {
    let changes: BTreeMap<_, _> =
        changes.iter().filter(|(slot, rule)| nat.rules().get(slot) != rule.as_ref()).collect();
    // An uplink keeps its programs while a rule that does not change needs them.
    let leaving = |uplink: u32| {
        let slots = changes.keys().filter_map(|slot| nat.rules().get(slot));
        slots.filter(|rule| rule.uplink() == uplink).count()
    };
    let kept = nat.uplinks().filter(|uplink| nat.rules_of(*uplink) > leaving(*uplink));
    let needed = changes.values().filter_map(|rule| rule.as_ref()).map(NatRule::uplink);
    let uplinks: BTreeSet<u32> =
        kept.chain(needed).chain(keep.intersection(&nat.attached).copied()).collect();

    let mut insides = nat.insides().clone();
    for (slot, rule) in &changes {
        nat.rules().get(slot).inspect(|old| insides.remove(old));
        rule.iter().for_each(|new| insides.add(new));
    }

    let mut steps = Vec::new();
    // For rules that are there already too: somebody may have switched it off since.
    if !observed.ip_forward && insides.any(false) {
        steps.push(Step::Link(LinkStep::SetIpForwarding(true)));
    }
    if observed.ipv6_forward == Some(false) && insides.any(true) {
        steps.push(Step::Link(LinkStep::SetIpv6Forwarding(true)));
    }
    for uplink in uplinks.difference(&nat.attached) {
        steps.push(Step::Nat(NatStep::Attach(*uplink)));
    }
    let addresses = host_addresses(observed, &uplinks);
    if addresses != nat.addresses {
        steps.push(Step::Nat(NatStep::SetAddresses(addresses)));
    }
    let ports = lan::fast_ports(observed, &uplinks, &insides, |index| nat.ports.contains_key(&index));
    if ports != nat.fast_ports {
        steps.push(Step::Nat(NatStep::SetPorts(ports)));
    }
    let turns = lan::turns(observed, &uplinks);
    if turns != nat.turns {
        steps.push(Step::Nat(NatStep::SetTurns(turns)));
    }
    for (slot, rule) in changes {
        if let Some(old) = nat.rules().get(slot) {
            steps.push(Step::Nat(NatStep::RemoveRule(*slot, old.clone())));
        }
        if let Some(new) = rule {
            steps.push(Step::Nat(NatStep::PutRule(*slot, new.clone())));
        }
    }
    for uplink in nat.attached.difference(&uplinks) {
        steps.push(Step::Nat(NatStep::Detach(*uplink)));
    }
    steps
}

/// A plan that removes rules of any kind.
pub(super) fn remove(chosen: &[&Rule], world: World<'_>) -> Plan {
    let ids: Vec<_> = chosen.iter().map(|rule| rule.id.clone()).collect();
    let message = match ids.as_slice() {
        [id] => format!("rule {id} was removed"),
        ids => format!("rules {} were removed", ids.join(", ")),
    };
    let mut plan = Plan::new(Subject::Gone(ids), message);
    let changes: BTreeMap<_, _> = chosen.iter().map(|rule| (rule.slot, None)).collect();
    // What has become too much is taken off by a later look: the next rule may need it again.
    plan.steps = steps(&changes, world.observed, world.nat, &world.nat.attached);
    let keeps = |step: &Step| !matches!(step, Step::Nat(NatStep::SetPorts(_) | NatStep::SetTurns(_)));
    plan.steps.retain(keeps);
    for rule in chosen {
        plan.forget(Record::Rule((*rule).clone()));
    }
    plan
}

/// A plan that removes every rule.
pub(super) fn flush(world: World<'_>) -> Plan {
    let rules: Vec<&Rule> = world.state.rules.values().collect();
    let message = match rules.len() {
        1 => "1 rule was removed".to_owned(),
        count => format!("{count} rules were removed"),
    };
    Plan { message, ..remove(&rules, world) }
}

/// The host's own addresses, and what each uplink translates to.
pub fn host_addresses(observed: &Observed, uplinks: &BTreeSet<u32>) -> HostAddresses {
    let mut local: Vec<IpAddr> = observed
        .links
        .iter()
        .flat_map(Link::ips)
        .map(|(ip, _)| ip)
        // Nobody outside can send to 127.0.0.0/8.
        .filter(|ip| !ip.is_loopback())
        .collect();
    local.sort_unstable();
    local.dedup();
    let default_route = |link: &Link, ipv6: bool| {
        let through = |route: &&Route| {
            route.is_default() && route.interface == link.index && route.destination.addr().is_ipv6() == ipv6
        };
        observed.routes.iter().filter(through).min_by_key(|route| route.metric)
    };
    // Of IPv6, a secondary address is a temporary one (RFC 8981), which goes away with flows still on it.
    let primary = |link: &Link, ipv6: bool| {
        let usable =
            |(ip, address): &(IpAddr, &Address)| ip.is_ipv6() == ipv6 && address.global && !address.secondary;
        // A bridge may have an address for the inside beside the uplink's: the default route tells them apart.
        let towards = default_route(link, ipv6);
        let outside = |(ip, address): &(IpAddr, &Address)| {
            towards.is_some_and(|route| match route.source {
                Some(source) => source == *ip,
                None => route.gateway.is_some_and(|gateway| address.net.contains(&gateway)),
            })
        };
        let chosen = link.ips().filter(usable).find(outside).or_else(|| link.ips().find(usable));
        chosen.map(|(ip, _)| (link.index, ip))
    };
    let links = observed.links.iter().filter(|link| uplinks.contains(&link.index));
    let external = links.clone().flat_map(|link| link.ips().map(|(ip, _)| (link.index, ip))).collect();
    let uplinks = links.flat_map(|link| [primary(link, false), primary(link, true)]).flatten().collect();
    HostAddresses { local, uplinks, external }
}

/// 501 where the kernel has no IPv6.
pub(super) fn supported(ipv6: bool, observed: &Observed) -> Result<()> {
    if ipv6 && observed.ipv6_forward.is_none() {
        return Err(Error::new(Code::Unsupported, "this kernel has IPv6 turned off")
            .hint("boot without ipv6.disable=1, or use IPv4 addresses"));
    }
    Ok(())
}

/// A rule as callers see it.
pub fn view(rule: &Rule, counters: &Counters, active_flows: u64, backend: &str) -> RuleView {
    let mut view = match &rule.spec {
        RuleSpec::Forward(spec) => forward::view(spec),
        RuleSpec::Masquerade(spec) => masquerade::view(spec),
    };
    let Counters { packets_in, bytes_in, packets_out, bytes_out, flows: _ } = *counters;
    view.id.clone_from(&rule.id);
    (view.packets_in, view.bytes_in) = (packets_in, bytes_in);
    (view.packets_out, view.bytes_out) = (packets_out, bytes_out);
    view.packets = packets_in.saturating_add(packets_out);
    view.bytes = bytes_in.saturating_add(bytes_out);
    view.active_flows = active_flows;
    backend.clone_into(&mut view.backend);
    view
}

/// An address that one host may have.
pub(super) fn is_host(ip: IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || broadcast)
}

/// The same addresses as networks in order, none within another.
pub(super) fn apart(networks: &[IpNet]) -> Vec<IpNet> {
    let mut networks: Vec<IpNet> = networks.iter().map(IpNet::trunc).collect();
    // A wider one comes before those within it.
    networks.sort_unstable();
    let mut apart: Vec<IpNet> = Vec::new();
    for network in networks {
        if !apart.last().is_some_and(|wider| wider.contains(&network)) {
            apart.push(network);
        }
    }
    apart
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_within_another_one_says_nothing_more() {
        let networks =
            |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNet>>();
        let given = ["198.51.100.7/24", "10.1.0.0/16", "10.0.0.0/8", "198.51.100.0/24", "10.1.2.3/32"];
        assert_eq!(apart(&networks(&given)), networks(&["10.0.0.0/8", "198.51.100.0/24"]));
    }
}
