//! Firewall rules: in the order in which they were asked for, and never such that the caller locks himself out.

use std::net::IpAddr;

use crate::{
    engine::NewFirewallRule,
    error::{Code, Error, Result},
    kernel::filter::{FilterRule, Matched},
    model::firewall::{Chain, FirewallAction, FirewallProtocol, FirewallSpec, FirewallView},
    plan::{FilterStep, Plan, Step, Subject, World},
    state::{FirewallRule, Record, State},
};

/// As many as a person can look through; each packet of a chain is compared with all of them.
const MOST: usize = 1000;

/// Who asks for a change, as far as the change could cut him off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    pub address: IpAddr,
    /// He knows that he may lose the worker.
    pub force: bool,
}

pub(super) fn create(request: &NewFirewallRule, world: World<'_>) -> Result<Plan> {
    let NewFirewallRule { spec, caller } = request;
    check(spec)?;
    let stored = world.state.firewall.values().find(|rule| same(&rule.spec, spec));
    if let Some(rule) = stored {
        let mut plan = Plan::new(Subject::Firewall(rule.id.clone()), sentence(&rule.spec));
        if rule.spec != *spec {
            // Only for people: the kernel's rule stays.
            plan.put(Record::Firewall(FirewallRule { spec: spec.clone(), ..rule.clone() }));
        } else if !world.nat.filter.iter().any(|installed| installed.id == rule.id) {
            settle(&mut plan, wanted(world.state), world);
        }
        return Ok(plan);
    }
    if world.state.firewall.len() >= MOST {
        return Err(Error::new(Code::TooManyRules, format!("there are {MOST} firewall rules already"))
            .hint("delete rules that are not needed, or match whole networks"));
    }
    let order = world.state.firewall.values().map(|rule| rule.order).max().map_or(0, |last| last + 1);
    let rule = FirewallRule { id: format!("fw-{}", world.fresh_id), order, spec: spec.clone() };
    let mut plan = Plan::new(Subject::Firewall(rule.id.clone()), sentence(spec));
    let mut after = wanted(world.state);
    after.push(filter_rule(&rule));
    keep_caller(&after, *caller, world)?;
    if let Some(port) = world.options.api_port.filter(|port| may_cut_somebody(spec, *port)) {
        plan.warnings.push(format!("the rule also keeps callers away from the worker's own port {port}"));
    }
    if let Some(name) = spec.interface.as_ref().filter(|name| world.observed.link(name.as_str()).is_none()) {
        plan.warnings.push(format!("there is no interface {name} now; the rule waits for one of that name"));
    }
    settle(&mut plan, after, world);
    plan.put(Record::Firewall(rule));
    Ok(plan)
}

pub(super) fn delete(id: &str, caller: Caller, world: World<'_>) -> Result<Plan> {
    let Some(rule) = world.state.firewall.get(id) else {
        return Err(Error::new(Code::RuleNotFound, format!("there is no firewall rule {id}"))
            .hint("GET /nat/status lists them"));
    };
    let mut after = wanted(world.state);
    after.retain(|kept| kept.id != id);
    keep_caller(&after, caller, world)?;
    let mut plan = Plan::new(Subject::Gone(vec![id.to_owned()]), format!("firewall rule {id} was removed"));
    settle(&mut plan, after, world);
    plan.forget(Record::Firewall(rule.clone()));
    Ok(plan)
}

pub(super) fn flush(world: World<'_>) -> Plan {
    let rules: Vec<FirewallRule> = ordered(world.state);
    let ids: Vec<String> = rules.iter().map(|rule| rule.id.clone()).collect();
    let message = format!("{} firewall rules were removed", ids.len());
    let mut plan = Plan::new(Subject::Gone(ids), message);
    settle(&mut plan, Vec::new(), world);
    for rule in rules {
        plan.forget(Record::Firewall(rule));
    }
    plan
}

/// What the packet filter should hold.
pub fn wanted(state: &State) -> Vec<FilterRule> {
    ordered(state).iter().map(filter_rule).collect()
}

fn ordered(state: &State) -> Vec<FirewallRule> {
    let mut rules: Vec<FirewallRule> = state.firewall.values().cloned().collect();
    rules.sort_by_key(|rule| rule.order);
    rules
}

fn filter_rule(rule: &FirewallRule) -> FilterRule {
    FilterRule { id: rule.id.clone(), spec: rule.spec.clone() }
}

fn settle(plan: &mut Plan, after: Vec<FilterRule>, world: World<'_>) {
    if after != world.nat.filter {
        plan.steps.push(Step::Filter(FilterStep { before: world.nat.filter.clone(), after }));
    }
}

/// Descriptions are for people and make no other rule.
fn same(a: &FirewallSpec, b: &FirewallSpec) -> bool {
    FirewallSpec { description: None, ..a.clone() } == FirewallSpec { description: None, ..b.clone() }
}

fn sentence(spec: &FirewallSpec) -> String {
    let FirewallSpec { chain, action, protocol, source, destination, port, interface, description: _ } = spec;
    let mut text = format!("{} of {}: {}", chain.name(), protocol.name(), action.name());
    let part = |name: &str, value: Option<String>| value.map(|value| format!(", {name} {value}"));
    for part in [
        part("from", source.map(|net| net.to_string())),
        part("to", destination.map(|net| net.to_string())),
        part("port", port.map(|port| port.to_string())),
        part("on", interface.as_ref().map(ToString::to_string)),
    ] {
        text.extend(part);
    }
    text
}

fn check(spec: &FirewallSpec) -> Result<()> {
    let ported = matches!(spec.protocol, FirewallProtocol::Tcp | FirewallProtocol::Udp);
    if spec.port.is_some() && !ported {
        return Err(Error::field("port", format!("{} has no ports; use tcp or udp", spec.protocol.name())));
    }
    let v4 = |net: &ipnet::IpNet| matches!(net, ipnet::IpNet::V4(_));
    let addresses: Vec<bool> = [&spec.source, &spec.destination].into_iter().flatten().map(v4).collect();
    if addresses.windows(2).any(|pair| pair[0] != pair[1]) {
        return Err(Error::field("destination", "is of another IP version than the source"));
    }
    let wrong = match (spec.protocol, addresses.first()) {
        (FirewallProtocol::Icmp, Some(false)) => "icmp is IPv4's; use icmpv6",
        (FirewallProtocol::Icmpv6, Some(true)) => "icmpv6 is IPv6's; use icmp",
        _ => return Ok(()),
    };
    Err(Error::field("protocol", wrong))
}

/// Refuses a change after which the caller's requests would not reach the worker any more.
fn keep_caller(after: &[FilterRule], caller: Caller, world: World<'_>) -> Result<()> {
    let Some(port) = world.options.api_port else { return Ok(()) };
    let cut = |rules| cutting(rules, caller.address, port);
    let Some(rule) = cut(after).filter(|_| !caller.force) else { return Ok(()) };
    if cutting(&world.nat.filter, caller.address, port).is_some() {
        return Ok(());
    }
    Err(Error::new(
        Code::FirewallLockout,
        format!("{} would keep {} away from the worker's port {port}", sentence(rule), caller.address),
    )
    .hint(way_out(caller.address, port)))
}

fn way_out(caller: IpAddr, port: u16) -> String {
    if caller.to_canonical().is_loopback() {
        "first ACCEPT everything on interface lo, in INPUT and in OUTPUT, or ask with force".to_owned()
    } else {
        format!(
            "first ACCEPT tcp from {caller} to port {port} in INPUT, and tcp to it in OUTPUT, or ask with force"
        )
    }
}

/// A packet between the caller and the worker's port, as far as it is known.
#[derive(Debug, Clone, Copy)]
struct Packet {
    chain: Chain,
    caller: IpAddr,
    /// From the caller to the worker, or back.
    request: bool,
}

/// The packets without which no request is answered. On loopback, each passes both chains.
fn packets(caller: IpAddr) -> impl Iterator<Item = Packet> {
    let all = [(Chain::Input, true), (Chain::Output, false), (Chain::Input, false), (Chain::Output, true)];
    let number = if caller.is_loopback() { 4 } else { 2 };
    all.into_iter().take(number).map(move |(chain, request)| Packet { chain, caller, request })
}

/// The rule that would drop packets between the caller and the worker's port, if there is one.
fn cutting(rules: &[FilterRule], caller: IpAddr, port: u16) -> Option<&FirewallSpec> {
    packets(caller.to_canonical()).find_map(|packet| dropping(rules, packet, port))
}

/// The rule that would drop a packet. One that accepts counts only when it surely matches; one that drops,
/// when it may.
fn dropping(rules: &[FilterRule], packet: Packet, port: u16) -> Option<&FirewallSpec> {
    let Packet { chain, caller, request } = packet;
    for FilterRule { spec, .. } in rules.iter().filter(|rule| rule.spec.chain == chain) {
        let FirewallSpec { source, destination, interface, .. } = spec;
        let (near, far) = if request { (destination, source) } else { (source, destination) };
        // The caller's own port is any; no rule is meant for it.
        let right_port = spec.port.is_none_or(|named| request && named == port);
        let protocol = matches!(spec.protocol, FirewallProtocol::All | FirewallProtocol::Tcp);
        let family = match caller {
            IpAddr::V4(_) => spec.families().0,
            IpAddr::V6(_) => spec.families().1,
        };
        let local = caller.is_loopback();
        let on_lo = interface.as_ref().map(|name| name.as_str() == "lo");
        let right_near = near.is_none_or(|net| !local || net.contains(&caller));
        let may = protocol
            && family
            && right_port
            && right_near
            && on_lo.is_none_or(|lo| lo == local)
            && far.is_none_or(|net| net.contains(&caller));
        let surely = may && (near.is_none() || local) && (on_lo.is_none() || local);
        match spec.action {
            FirewallAction::Accept if surely => return None,
            FirewallAction::Drop | FirewallAction::Reject if may => return Some(spec),
            FirewallAction::Accept | FirewallAction::Drop | FirewallAction::Reject => {}
        }
    }
    None
}

/// Whether a rule by itself would keep anybody away from the worker.
fn may_cut_somebody(spec: &FirewallSpec, port: u16) -> bool {
    spec.chain == Chain::Input
        && spec.action != FirewallAction::Accept
        && matches!(spec.protocol, FirewallProtocol::All | FirewallProtocol::Tcp)
        && spec.port.is_none_or(|named| named == port)
}

/// A rule as callers see it. `None`: the kernel does not have it.
pub fn view(rule: &FirewallRule, matched: Option<Matched>) -> FirewallView {
    let FirewallSpec { chain, action, protocol, source, destination, port, interface, description } =
        &rule.spec;
    let Matched { packets, bytes } = matched.unwrap_or_default();
    FirewallView {
        id: rule.id.clone(),
        chain: *chain,
        action: *action,
        protocol: protocol.name().to_owned(),
        source_ip: source.map(|net| net.to_string()),
        source_port: (),
        dest_ip: destination.map(|net| net.to_string()),
        dest_port: *port,
        interface: interface.as_ref().map(ToString::to_string),
        enabled: true,
        installed: matched.is_some(),
        description: description.clone(),
        packets,
        bytes,
        active_flows: 0,
        backend: "iptables".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::LinkName;

    const PORT: u16 = 8000;

    fn spec(chain: Chain, action: FirewallAction) -> FirewallSpec {
        FirewallSpec {
            chain,
            action,
            protocol: FirewallProtocol::Tcp,
            source: None,
            destination: None,
            port: None,
            interface: None,
            description: None,
        }
    }

    fn cut(rules: &[FirewallSpec], caller: &str) -> bool {
        let rules: Vec<_> =
            rules.iter().map(|spec| FilterRule { id: String::new(), spec: spec.clone() }).collect();
        cutting(&rules, caller.parse().unwrap(), PORT).is_some()
    }

    #[test]
    fn a_drop_that_may_match_the_caller_cuts_him() {
        let drop = spec(Chain::Input, FirewallAction::Drop);
        let from = |net: &str| FirewallSpec { source: Some(net.parse().unwrap()), ..drop.clone() };
        let ported = |port| FirewallSpec { port: Some(port), ..drop.clone() };
        let on = |name| FirewallSpec { interface: Some(LinkName::new(name).unwrap()), ..drop.clone() };
        for (rule, remote, local) in [
            (drop.clone(), true, true),
            (from("10.0.0.0/8"), true, false),
            (from("10.9.0.0/16"), false, false),
            (from("127.0.0.0/8"), false, true),
            (from("::/0"), false, false),
            (ported(PORT), true, true),
            (ported(22), false, false),
            (on("ens3"), true, false),
            (on("lo"), false, true),
            (FirewallSpec { protocol: FirewallProtocol::Udp, ..drop.clone() }, false, false),
            (FirewallSpec { protocol: FirewallProtocol::All, ..drop.clone() }, true, true),
        ] {
            let rule = std::slice::from_ref(&rule);
            assert_eq!(cut(rule, "10.0.0.7"), remote, "{rule:?}");
            assert_eq!(cut(rule, "::ffff:10.0.0.7"), remote, "{rule:?}");
            assert_eq!(cut(rule, "127.0.0.1"), local, "{rule:?}");
        }
    }

    #[test]
    fn an_earlier_accept_that_surely_matches_keeps_him() {
        let drop = spec(Chain::Input, FirewallAction::Reject);
        let accept = FirewallSpec { port: Some(PORT), ..spec(Chain::Input, FirewallAction::Accept) };
        assert!(!cut(&[accept.clone(), drop.clone()], "10.0.0.7"));
        assert!(cut(&[drop.clone(), accept.clone()], "10.0.0.7"));
        // It may be another interface that he comes by.
        let on = |name| FirewallSpec { interface: Some(LinkName::new(name).unwrap()), ..accept.clone() };
        assert!(cut(&[on("ens3"), drop.clone()], "10.0.0.7"));
        // On loopback the replies come in as well, to a port that no rule can name.
        assert!(cut(&[accept.clone(), drop.clone()], "127.0.0.1"));
        assert!(!cut(&[FirewallSpec { port: None, ..on("lo") }, drop], "127.0.0.1"));
    }

    #[test]
    fn replies_leave_by_no_port_that_a_rule_can_name() {
        let out = spec(Chain::Output, FirewallAction::Drop);
        assert!(cut(std::slice::from_ref(&out), "10.0.0.7"));
        assert!(!cut(&[FirewallSpec { port: Some(PORT), ..out.clone() }], "10.0.0.7"));
        let elsewhere = FirewallSpec { destination: Some("192.0.2.0/24".parse().unwrap()), ..out };
        assert!(!cut(&[elsewhere], "10.0.0.7"));
    }

    #[test]
    fn contradictions_are_named() {
        let wrong = |change: &dyn Fn(&mut FirewallSpec)| {
            let mut rule = spec(Chain::Forward, FirewallAction::Drop);
            change(&mut rule);
            check(&rule).unwrap_err().fields[0].loc[1].clone()
        };
        assert_eq!(wrong(&|rule| (rule.protocol, rule.port) = (FirewallProtocol::Icmp, Some(8))), "port");
        assert_eq!(
            wrong(&|rule| {
                rule.source = Some("10.0.0.0/8".parse().unwrap());
                rule.destination = Some("2001:db8::/32".parse().unwrap());
            }),
            "destination"
        );
        assert_eq!(
            wrong(&|rule| {
                rule.source = Some("10.0.0.0/8".parse().unwrap());
                rule.protocol = FirewallProtocol::Icmpv6;
            }),
            "protocol"
        );
    }
}
