//! Masquerade: what an inside network sends out of an uplink bears the uplink's address.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use crate::{
    engine::MasqueradeSelector,
    error::{Code, Error, Result},
    kernel::{
        dataplane::NatRule,
        links::{Link, Observed},
    },
    model::{MasqueradeSpec, RuleAction, RuleView},
    plan::{Plan, Subject, World},
    state::{Record, Rule, RuleSpec},
};

use super::{overlap, rule};

/// Addresses that one rule may translate to.
const MAX_POOL: usize = 64;

pub(super) fn create(spec: &MasqueradeSpec, world: World<'_>) -> Result<Plan> {
    let mut external_ips = spec.external_ips.clone();
    external_ips.sort_unstable();
    external_ips.dedup();
    let spec = MasqueradeSpec {
        external_ips,
        source_network: spec.source_network.trunc(),
        exclude_destinations: rule::apart(&spec.exclude_destinations),
        ..spec.clone()
    };
    if spec.source_network.network().is_multicast() || spec.source_network.network().is_loopback() {
        return Err(Error::field("source_network", format!("{} holds no hosts", spec.source_network)));
    }
    check_excluded(&spec)?;
    check_pool(&spec)?;
    rule::supported(spec.source_network.addr().is_ipv6(), world.observed)?;
    let link = rule::interface(spec.output_interface.as_str(), world.observed)?;
    let owner = world.observed.l3_owner(link);
    let existing = world.state.rules.values().find(|rule| {
        let RuleSpec::Masquerade(other) = &rule.spec else { return false };
        other.source_network == spec.source_network
            && rule::same_uplink(&rule.spec, &spec.output_interface, owner.index, world.observed)
    });
    let routed = pool_conflicts(&spec, owner, world)?;
    let (id, slot) = match existing {
        Some(rule) => (rule.id.clone(), rule.slot),
        None => (format!("masq-{}", world.fresh_id), rule::free_slot(world)?),
    };
    let state =
        if spec.enabled { "is masqueraded" } else { "is not masqueraded now: the rule is kept, and off," };
    let message = format!("{} {state} on {}", spec.source_network, spec.output_interface);
    let mut plan = Plan::new(Subject::Rule(id.clone()), message);
    let ipv6 = spec.source_network.addr().is_ipv6();
    if !routed.is_empty() {
        let warning = format!(
            "{} is no address of this host: whoever is outside has to route it here",
            routed.join(", ")
        );
        plan.warnings.push(warning);
    }
    if spec.external_ips.is_empty()
        && !owner.ips().any(|(ip, address)| address.global && ip.is_ipv6() == ipv6)
    {
        let family = if ipv6 { "IPv6" } else { "IPv4" };
        plan.warnings.push(format!("{} has no {family} address yet to masquerade to", owner.name));
    }
    plan.warnings.extend(overlap::told(&spec.source_network, owner, world.observed));
    let new = Rule { id, slot, spec: RuleSpec::Masquerade(spec) };
    let wanted = rule::desired(&new.spec, world.observed);
    let World { observed, nat, .. } = world;
    plan.steps = rule::steps(&BTreeMap::from([(slot, wanted)]), observed, nat, &nat.attached);
    if existing != Some(&new) {
        plan.put(Record::Rule(new));
    }
    Ok(plan)
}

fn check_excluded(spec: &MasqueradeSpec) -> Result<()> {
    let MasqueradeSpec { source_network, exclude_destinations, .. } = spec;
    let field = |why| Err(Error::field("exclude_destinations", why));
    let ipv6 = source_network.addr().is_ipv6();
    if let Some(other) = exclude_destinations.iter().find(|net| net.addr().is_ipv6() != ipv6) {
        return field(format!("{other} is of another address family than source_network"));
    }
    if exclude_destinations.iter().any(|net| net.prefix_len() == 0) {
        return field("leaves nothing to translate; a rule with enabled: false does that".to_owned());
    }
    if exclude_destinations.len() > rule::MAX_NETWORKS {
        let (count, most) = (exclude_destinations.len(), rule::MAX_NETWORKS);
        return field(format!("has {count} networks, at most {most} are possible"));
    }
    Ok(())
}

fn check_pool(spec: &MasqueradeSpec) -> Result<()> {
    let MasqueradeSpec { source_network, external_ips, .. } = spec;
    let field = |why| Err(Error::field("external_ips", why));
    let ipv6 = source_network.addr().is_ipv6();
    if let Some(other) = external_ips.iter().find(|ip| ip.is_ipv6() != ipv6) {
        return field(format!("{other} is of another address family than source_network"));
    }
    if let Some(ip) = external_ips.iter().find(|ip| !rule::is_host(**ip)) {
        return field(format!("{ip} is no address of a host"));
    }
    if let Some(ip) = external_ips.iter().find(|ip| source_network.contains(*ip)) {
        return field(format!("{ip} is in source_network"));
    }
    if external_ips.len() > MAX_POOL {
        return field(format!("has {} addresses, at most {MAX_POOL} are possible", external_ips.len()));
    }
    Ok(())
}

/// That answers to the addresses of its pool can come back here, to this uplink. Those that only a route outside can bring.
fn pool_conflicts(spec: &MasqueradeSpec, owner: &Link, world: World<'_>) -> Result<Vec<String>> {
    let mut routed = Vec::new();
    for ip in &spec.external_ips {
        if let Some(other) = holder_elsewhere(*ip, owner.index, world) {
            return Err(Error::new(
                Code::PoolAddressInUse,
                format!("{ip} is in the pool of rule {}, on {}", other.id, other.spec.interface()),
            )
            .hint("an address leads to one uplink: take it out of the other rule first"));
        }
        if is_own(*ip, world.observed) {
            continue;
        }
        // Neighbours would ask for it, and nobody would answer.
        if let Some(link) = world.observed.links.iter().find(|link| is_neighbour(*ip, link)) {
            return Err(Error::new(
                Code::PoolAddressAbsent,
                format!(
                    "{ip} is in a network of {}, and no address of this host: nobody would answer for it",
                    link.name
                ),
            )
            .hint(format!("`ip address add {ip} dev {}`, then ask again", link.name)));
        }
        routed.push(ip.to_string());
    }
    Ok(routed)
}

fn is_own(ip: IpAddr, observed: &Observed) -> bool {
    observed.links.iter().flat_map(Link::ips).any(|(own, _)| own == ip)
}

fn is_neighbour(ip: IpAddr, link: &Link) -> bool {
    link.ips().any(|(_, address)| address.net.contains(&ip))
}

/// A rule on another uplink that has the address in its pool.
fn holder_elsewhere<'a>(ip: IpAddr, owner: u32, world: World<'a>) -> Option<&'a Rule> {
    world.state.rules.values().find(|rule| {
        let RuleSpec::Masquerade(other) = &rule.spec else { return false };
        other.external_ips.contains(&ip)
            && rule::l3_uplink(&rule.spec, world.observed).is_some_and(|index| index != owner)
    })
}

pub(super) fn delete(selector: &MasqueradeSelector, world: World<'_>) -> Result<Plan> {
    let chosen: Vec<&Rule> = world.state.rules.values().filter(|rule| selects(selector, rule)).collect();
    if chosen.is_empty() {
        let what = match selector {
            MasqueradeSelector::Id(id) => format!("there is no masquerade rule {id}"),
            MasqueradeSelector::Spec { source_network, output_interface } => {
                format!("{source_network} is not masqueraded on {output_interface}")
            }
        };
        return Err(Error::new(Code::RuleNotFound, what));
    }
    Ok(rule::remove(&chosen, world))
}

fn selects(selector: &MasqueradeSelector, rule: &Rule) -> bool {
    let RuleSpec::Masquerade(spec) = &rule.spec else { return false };
    match selector {
        MasqueradeSelector::Id(id) => rule.id == *id,
        MasqueradeSelector::Spec { source_network, output_interface } => {
            spec.source_network == source_network.trunc() && spec.output_interface == **output_interface
        }
    }
}

pub(super) fn nat_rule(spec: &MasqueradeSpec, uplink: u32) -> NatRule {
    let MasqueradeSpec {
        source_network,
        output_interface: _,
        enabled: _,
        nat_type,
        port_parity,
        exclude_destinations,
        external_ips,
        new_flows_per_second,
        timeouts,
    } = spec;
    NatRule::Masquerade {
        uplink,
        source: *source_network,
        nat: *nat_type,
        parity: *port_parity,
        except: exclude_destinations.clone(),
        pool: external_ips.clone(),
        new_flows: *new_flows_per_second,
        timeouts: (*timeouts).into(),
    }
}

/// What of the view comes from the spec.
pub(super) fn view(spec: &MasqueradeSpec) -> RuleView {
    let MasqueradeSpec {
        source_network,
        output_interface,
        enabled,
        nat_type,
        port_parity,
        exclude_destinations,
        external_ips,
        new_flows_per_second,
        timeouts,
    } = spec;
    let pool: Vec<String> = external_ips.iter().map(IpAddr::to_string).collect();
    let excluded: Vec<String> = exclude_destinations.iter().map(IpNet::to_string).collect();
    RuleView {
        id: String::new(),
        action: RuleAction::Masquerade,
        protocol: "all".to_owned(),
        source_ip: source_network.to_string(),
        source_port: None,
        dest_ip: None,
        dest_port: None,
        interface: output_interface.to_string(),
        enabled: *enabled,
        description: None,
        packets: 0,
        bytes: 0,
        packets_in: 0,
        bytes_in: 0,
        packets_out: 0,
        bytes_out: 0,
        active_flows: 0,
        backend: String::new(),
        external_ip: None,
        external_port_end: None,
        source_cidrs: None,
        hairpin: None,
        nat_type: Some(*nat_type),
        port_parity: Some(*port_parity),
        exclude_destinations: (!excluded.is_empty()).then_some(excluded),
        external_ips: (!pool.is_empty()).then_some(pool),
        new_flows_per_second: (*new_flows_per_second != 0).then_some(*new_flows_per_second),
        timeouts: timeouts.unusual(),
    }
}
