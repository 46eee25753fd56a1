//! Port forwards: a port of the host's own addresses leads to a host inside.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
};

use ipnet::IpNet;
use telecluster_common::nat::VXLAN;

use crate::{
    engine::ForwardSelector,
    error::{Code, Error, Result},
    kernel::{
        dataplane::{NatRule, Transport},
        links::Link,
        listeners::Listener,
    },
    model::{ForwardProtocol, ForwardRequest, ForwardSpec, LinkName, RuleAction, RuleView},
    plan::{Plan, Subject, World},
    state::{Record, Rule, RuleSpec},
};

use super::rule::{self, MAX_NETWORKS, apart, is_host};

pub(super) fn create(request: &ForwardRequest, world: World<'_>) -> Result<Plan> {
    check(request, world)?;
    let uplink = rule::uplink(request.interface.as_ref(), world)?;
    let owner = world.observed.l3_owner(uplink).index;
    let interface = LinkName::new(&uplink.name)
        .map_err(|error| Error::field("interface", format!("{} {error}", uplink.name)))?;
    let ForwardRequest {
        interface: _,
        external_ip,
        external_port,
        external_port_end,
        internal_ip,
        internal_port,
        protocol,
        source_cidrs,
        hairpin,
        new_flows_per_second,
        timeouts,
        description,
        enabled,
    } = request.clone();
    let spec = ForwardSpec {
        interface,
        external_ip,
        external_port,
        external_port_end: external_port_end.filter(|end| *end != external_port),
        internal_ip,
        internal_port,
        protocol,
        source_cidrs: apart(&source_cidrs),
        hairpin,
        new_flows_per_second,
        timeouts,
        description,
        enabled,
    };

    let existing = conflict(&spec, owner, world)?;
    if spec.enabled && !existing.is_some_and(|rule| rule.spec.enabled()) {
        unheard(&spec, world.observed.links.iter().find(|link| link.index == owner), world.listeners)?;
    }
    let (id, slot) = match existing {
        Some(rule) => (rule.id.clone(), rule.slot),
        None => (format!("fwd-{}", world.fresh_id), rule::free_slot(world)?),
    };
    let target = format!(
        "{}:{} -> {}",
        spec.interface,
        dashed(&ports(&spec)),
        SocketAddr::new(internal_ip, internal_port)
    );
    let state = if spec.enabled { "is in place" } else { "is kept, and off" };
    let mut plan = Plan::new(Subject::Rule(id.clone()), format!("port forward {target} {state}"));
    let new = Rule { id, slot, spec: RuleSpec::Forward(spec) };
    let wanted = rule::desired(&new.spec, world.observed);
    let World { observed, nat, .. } = world;
    plan.steps = rule::steps(&BTreeMap::from([(slot, wanted)]), observed, nat, &nat.attached);
    if existing != Some(&new) {
        plan.put(Record::Rule(new));
    }
    if let Some(ip) = external_ip {
        let local = world.observed.links.iter().flat_map(Link::ips).any(|(own, _)| own == ip);
        if !local {
            plan.warnings.push(format!("{ip} is no address of this host; the forward sleeps until it is"));
        }
    }
    Ok(plan)
}

fn check(request: &ForwardRequest, world: World<'_>) -> Result<()> {
    if request.external_port == 0 {
        return Err(Error::field("external_port", "0 is no port; 1 to 65535"));
    }
    if request.internal_port == 0 {
        return Err(Error::field("internal_port", "0 is no port; 1 to 65535"));
    }
    let ports = request.external_port..=request.external_port_end.unwrap_or(request.external_port);
    if ports.is_empty() {
        let why = format!("{} is before external_port, {}", ports.end(), ports.start());
        return Err(Error::field("external_port_end", why));
    }
    if request.internal_port.checked_add(ports.end() - ports.start()).is_none() {
        let why =
            format!("{} is too high: the last port of the range would be above 65535", request.internal_port);
        return Err(Error::field("internal_port", why));
    }
    if let Some(other) =
        request.source_cidrs.iter().find(|net| net.addr().is_ipv6() != request.internal_ip.is_ipv6())
    {
        let why = format!("{other} is of another address family than internal_ip");
        return Err(Error::field("source_cidrs", why));
    }
    if request.source_cidrs.len() > MAX_NETWORKS {
        let why = format!("has {} networks, at most {MAX_NETWORKS} are possible", request.source_cidrs.len());
        return Err(Error::field("source_cidrs", why));
    }
    if !is_host(request.internal_ip) {
        return Err(Error::field("internal_ip", format!("{} is no address of a host", request.internal_ip)));
    }
    if let Some(ip) = request.external_ip.filter(|ip| !is_host(*ip)) {
        return Err(Error::field("external_ip", format!("{ip} is no address of a host")));
    }
    if request.external_ip.is_some_and(|ip| ip.is_ipv6() != request.internal_ip.is_ipv6()) {
        return Err(Error::field("external_ip", "is of another address family than internal_ip"));
    }
    rule::supported(request.internal_ip.is_ipv6(), world.observed)?;
    reserved(&ports, &transports(request.protocol), world.options.api_port)
}

/// Ports that no forward may take: the API's, and those of tunnels between hosts.
fn reserved(ports: &RangeInclusive<u16>, transports: &[Transport], api_port: Option<u16>) -> Result<()> {
    if let Some(own) = api_port.filter(|own| ports.contains(own) && transports.contains(&Transport::Tcp)) {
        return Err(Error::new(Code::ForwardPortReserved, format!("tcp port {own} is the worker's own"))
            .hint("choose another external port, or run the worker on another one"));
    }
    let tunnel = VXLAN.iter().find(|port| ports.contains(port) && transports.contains(&Transport::Udp));
    if let Some(port) = tunnel {
        let message = format!("udp port {port} is VXLAN's, by which hosts reach each other");
        return Err(Error::new(Code::ForwardPortReserved, message).hint("choose another external port"));
    }
    Ok(())
}

/// The ports outside.
fn ports(spec: &ForwardSpec) -> RangeInclusive<u16> {
    spec.external_port..=spec.external_port_end.unwrap_or(spec.external_port)
}

/// `2222`, or `5000-5009`.
fn dashed(ports: &RangeInclusive<u16>) -> String {
    let (first, last) = (ports.start(), ports.end());
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

/// The rule that is this one already; an error when the port belongs to another one.
fn conflict<'a>(spec: &ForwardSpec, owner: u32, world: World<'a>) -> Result<Option<&'a Rule>> {
    for rule in world.state.rules.values() {
        let RuleSpec::Forward(other) = &rule.spec else { continue };
        let same_target = (other.internal_ip, other.internal_port) == (spec.internal_ip, spec.internal_port);
        let (theirs, ours) = (ports(other), ports(spec));
        if theirs.end() < ours.start()
            || ours.end() < theirs.start()
            || !rule::same_uplink(&rule.spec, &spec.interface, owner, world.observed)
            || other.internal_ip.is_ipv6() != spec.internal_ip.is_ipv6()
            || !overlap(other, spec)
        {
            continue;
        }
        let same_outside = theirs == ours && other.external_ip == spec.external_ip;
        if same_target && same_outside && other.protocol == spec.protocol {
            return Ok(Some(rule));
        }
        let (noun, verb) = if theirs.start() == theirs.end() { ("port", "is") } else { ("ports", "are") };
        return Err(Error::new(
            Code::ForwardPortInUse,
            format!(
                "{noun} {} on {} {verb} forwarded to {} by rule {}",
                dashed(&theirs),
                other.interface,
                SocketAddr::new(other.internal_ip, other.internal_port),
                rule.id
            ),
        )
        .hint(format!("delete rule {} first, or choose another external port", rule.id)));
    }
    Ok(None)
}

/// No program of the host listens where the forward would take the packets. What is bound to loopback or to an address
/// of another interface is reached from there, past the uplink's programs.
fn unheard(spec: &ForwardSpec, uplink: Option<&Link>, listeners: &[Listener]) -> Result<()> {
    let addresses: Vec<IpAddr> = match spec.external_ip {
        Some(ip) => vec![ip],
        None => uplink.into_iter().flat_map(Link::ips).map(|(ip, _)| ip).collect(),
    };
    let transports = transports(spec.protocol);
    let ports = ports(spec);
    let robbed = listeners.iter().find(|listener| {
        ports.contains(&listener.local.port())
            && transports.contains(&listener.transport)
            && listener.takes(spec.internal_ip.is_ipv6(), &addresses)
    });
    let Some(Listener { transport, local }) = robbed else { return Ok(()) };
    let name = transport.name();
    let flag = &name[..1];
    Err(Error::new(
        Code::ForwardPortInUse,
        format!("a program of this host listens on {name} {local}: the forward would take its packets"),
    )
    .hint(format!(
        "`ss -ln{flag}p sport = :{}` tells which; stop it, choose another external port, or create the forward with enabled: false",
        local.port()
    )))
}

/// Whether one packet could match both.
fn overlap(a: &ForwardSpec, b: &ForwardSpec) -> bool {
    let addresses = match (a.external_ip, b.external_ip) {
        (Some(a), Some(b)) => a == b,
        (None, _) | (_, None) => true,
    };
    let b_transports = transports(b.protocol);
    addresses && transports(a.protocol).iter().any(|transport| b_transports.contains(transport))
}

fn transports(protocol: ForwardProtocol) -> Vec<Transport> {
    match protocol {
        ForwardProtocol::Tcp => vec![Transport::Tcp],
        ForwardProtocol::Udp => vec![Transport::Udp],
        ForwardProtocol::All => vec![Transport::Tcp, Transport::Udp],
    }
}

pub(super) fn delete(selector: &ForwardSelector, world: World<'_>) -> Result<Plan> {
    let chosen: Vec<&Rule> = world.state.rules.values().filter(|rule| selects(selector, rule)).collect();
    if chosen.is_empty() {
        let what = match selector {
            ForwardSelector::Id(id) => format!("there is no port forward {id}"),
            ForwardSelector::Ports { external_port, internal_ip, internal_port, protocol } => {
                let protocol = protocol.map_or(String::new(), |protocol| format!("{} ", protocol.name()));
                let inside = SocketAddr::new(*internal_ip, *internal_port);
                format!("there is no forward from {protocol}port {external_port} to {inside}")
            }
        };
        return Err(Error::new(Code::RuleNotFound, what).hint("GET /nat/status lists the rules"));
    }
    Ok(rule::remove(&chosen, world))
}

fn selects(selector: &ForwardSelector, rule: &Rule) -> bool {
    let RuleSpec::Forward(spec) = &rule.spec else { return false };
    match selector {
        ForwardSelector::Id(id) => rule.id == *id,
        ForwardSelector::Ports { external_port, internal_ip, internal_port, protocol } => {
            (spec.external_port, spec.internal_ip, spec.internal_port)
                == (*external_port, *internal_ip, *internal_port)
                && protocol.is_none_or(|protocol| protocol == spec.protocol)
        }
    }
}

pub(super) fn nat_rule(spec: &ForwardSpec, uplink: u32) -> NatRule {
    NatRule::Forward {
        uplink,
        external_ip: spec.external_ip,
        external_port: spec.external_port,
        external_port_end: *ports(spec).end(),
        internal_ip: spec.internal_ip,
        internal_port: spec.internal_port,
        transports: transports(spec.protocol),
        sources: spec.source_cidrs.clone(),
        hairpin: spec.hairpin,
        new_flows: spec.new_flows_per_second,
        timeouts: spec.timeouts.into(),
    }
}

/// What of the view comes from the spec.
pub(super) fn view(spec: &ForwardSpec) -> RuleView {
    let ForwardSpec {
        interface,
        external_ip,
        external_port,
        external_port_end,
        internal_ip,
        internal_port,
        protocol,
        source_cidrs,
        hairpin,
        new_flows_per_second,
        timeouts,
        description,
        enabled,
    } = spec;
    let sources: Vec<String> = source_cidrs.iter().map(IpNet::to_string).collect();
    let anybody = if internal_ip.is_ipv6() { "::/0" } else { "0.0.0.0/0" };
    RuleView {
        id: String::new(),
        action: RuleAction::Dnat,
        protocol: protocol.name().to_owned(),
        source_ip: if sources.is_empty() { anybody.to_owned() } else { sources.join(",") },
        source_port: Some(*external_port),
        dest_ip: Some(internal_ip.to_string()),
        dest_port: Some(*internal_port),
        interface: interface.to_string(),
        enabled: *enabled,
        description: description.clone(),
        packets: 0,
        bytes: 0,
        packets_in: 0,
        bytes_in: 0,
        packets_out: 0,
        bytes_out: 0,
        active_flows: 0,
        backend: String::new(),
        external_ip: external_ip.map(|ip| ip.to_string()),
        external_port_end: *external_port_end,
        source_cidrs: (!sources.is_empty()).then_some(sources),
        hairpin: Some(*hairpin),
        nat_type: None,
        port_parity: None,
        exclude_destinations: None,
        external_ips: None,
        new_flows_per_second: (*new_flows_per_second != 0).then_some(*new_flows_per_second),
        timeouts: timeouts.unusual(),
    }
}
