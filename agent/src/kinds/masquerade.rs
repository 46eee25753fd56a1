//! Masquerade: what an inside network sends out of an uplink bears the uplink's address.

use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::{
    engine::MasqueradeSelector,
    error::{Code, Error, Result},
    kernel::dataplane::NatRule,
    model::{MasqueradeSpec, RuleAction, RuleView},
    plan::{Plan, Subject, World},
    state::{Record, Rule, RuleSpec},
};

use super::rule;

pub(super) fn create(spec: &MasqueradeSpec, world: World<'_>) -> Result<Plan> {
    let spec = MasqueradeSpec {
        source_network: spec.source_network.trunc(),
        exclude_destinations: rule::apart(&spec.exclude_destinations),
        ..spec.clone()
    };
    if spec.source_network.network().is_multicast() || spec.source_network.network().is_loopback() {
        return Err(Error::field("source_network", format!("{} holds no hosts", spec.source_network)));
    }
    check_excluded(&spec)?;
    rule::supported(spec.source_network.addr().is_ipv6(), world.observed)?;
    let link = rule::interface(spec.output_interface.as_str(), world.observed)?;
    let owner = world.observed.l3_owner(link);
    let existing = world.state.rules.values().find(|rule| {
        let RuleSpec::Masquerade(other) = &rule.spec else { return false };
        other.source_network == spec.source_network
            && rule::same_uplink(&rule.spec, &spec.output_interface, owner.index, world.observed)
    });
    let (id, slot) = match existing {
        Some(rule) => (rule.id.clone(), rule.slot),
        None => (format!("masq-{}", world.fresh_id), rule::free_slot(world)?),
    };
    let state =
        if spec.enabled { "is masqueraded" } else { "is not masqueraded now: the rule is kept, and off," };
    let message = format!("{} {state} on {}", spec.source_network, spec.output_interface);
    let mut plan = Plan::new(Subject::Rule(id.clone()), message);
    let ipv6 = spec.source_network.addr().is_ipv6();
    if !owner.ips().any(|(ip, address)| address.global && ip.is_ipv6() == ipv6) {
        let family = if ipv6 { "IPv6" } else { "IPv4" };
        plan.warnings.push(format!("{} has no {family} address yet to masquerade to", owner.name));
    }
    let new = Rule { id, slot, spec: RuleSpec::Masquerade(spec) };
    let wanted = rule::desired(&new.spec, world.observed);
    plan.steps = rule::steps(&BTreeMap::from([(slot, wanted)]), world.observed, world.nat);
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
        timeouts,
    } = spec;
    NatRule::Masquerade {
        uplink,
        source: *source_network,
        nat: *nat_type,
        parity: *port_parity,
        except: exclude_destinations.clone(),
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
        timeouts,
    } = spec;
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
        timeouts: timeouts.unusual(),
    }
}
