//! Which external port an inside socket has: one for all destinations (RFC 4787 REQ-1), its own where that is free,
//! and nobody else's (REQ-3). The binding outlives its flows, so that the next one gets the same port; after it has
//! expired nobody else gets the port for a while (RFC 6888 REQ-8).
//!
//! Where the inside socket's own port was taken, `moved4` says which one it got instead. Without an entry there, it has
//! its own: so a new flow costs two inserts, the binding and the flow; the other direction of the flow is made by the
//! first answer.

use super::{
    Verdict, life, limit,
    open::{PROBES, forward_for, outside_of},
    release, round, unclaimed,
    work::{Maker, PortRange, Search, Translation, Work},
};
use crate::{
    drop::DropReason,
    family::Address,
    maps::{Binding, Direction, EndpointKey, Moved, RELEASED, REMOTES, Rule, local, rule},
    tables::{BindingRef, Claim, FlowRef, Tables},
    tcp::{FlowState, opens, proto, timeout},
};

/// VXLAN of today and of Linux's beginnings: between the hosts of a cluster, never an inside host's.
pub const VXLAN: [u16; 2] = [4789, 8472];

/// Finds the external port of the packet's inside socket, or claims one; says in `work.search` how that went.
/// `work.to.src` is the address outside.
#[inline(always)]
pub(super) fn settle<T, A>(tables: &T, work: &mut Work<A>, interface: u32, may_claim: bool, now: u64)
where
    T: Tables<A>,
    A: Address,
{
    work.search = Search::NONE;
    let key = &work.key;
    work.external = EndpointKey { address: work.to.src, port: key.sport, proto: key.proto, unused: 0 };
    if take_mine(tables, work, now) {
        return;
    }
    let key = &work.key;
    work.inside = EndpointKey { address: key.src, port: key.sport, proto: key.proto, unused: 0 };
    if work.rule_flags & rule::SYMMETRIC == 0
        && let Some(moved) = tables.moved(&work.inside)
        && moved.address.same(work.to.src)
    {
        work.external.port = moved.port;
        if take_mine(tables, work, now) {
            return;
        }
    }
    if may_claim {
        claim(tables, work, interface, now);
    }
}

/// Uses the binding of `work.external` when it is this inside socket's.
#[inline(always)]
fn take_mine<T, A>(tables: &T, work: &mut Work<A>, now: u64) -> bool
where
    T: Tables<A>,
    A: Address,
{
    let Some(binding) = tables.binding(&work.external) else {
        return false;
    };
    let key = &work.key;
    let mine = binding.port() == key.sport && binding.inside().same(key.src);
    let symmetric = work.rule_flags & rule::SYMMETRIC != 0;
    if !mine || (symmetric && !(binding.remote_port() == key.dport && binding.knows(key.dst))) {
        return false;
    }
    let Some(rule) = tables.rule(work.maker.rule) else {
        return false;
    };
    // Expired or of another rule meanwhile: it is this socket's all the same, but those whom it knew have no right to it.
    let seen = binding.expires();
    let in_force = is_in_force(tables, binding, now);
    if !in_force {
        binding.forget();
    }
    binding.set_rule(work.maker.rule);
    binding.set_generation(work.maker.generation);
    binding.remember(key.dst);
    binding.set_flows(binding.flows().wrapping_add(1));
    let until = until(&rule, key.proto, FlowState::New, now);
    if in_force {
        prolong(binding, until);
    } else if !release::revive(tables, binding, seen, until) {
        return false;
    }
    work.to.sport = work.external.port;
    work.search = Search::CLAIMED;
    true
}

/// Takes the socket's own port if nobody has it, else one at random. The claim is an insert that fails when the key
/// exists, so two CPUs cannot win one port.
#[inline(always)]
fn claim<T, A>(tables: &T, work: &mut Work<A>, interface: u32, now: u64)
where
    T: Tables<A>,
    A: Address,
{
    let Some(rule) = tables.rule(work.maker.rule) else {
        return;
    };
    if !limit::has_place(tables, work, now) {
        work.search = Search::QUOTA;
        return;
    }
    let key = &work.key;
    let mut remotes = [A::ANY; REMOTES];
    remotes[0] = key.dst;
    work.binding = Binding {
        inside: key.src,
        port: key.sport,
        remote_port: key.dport,
        rule: work.maker.rule,
        generation: work.maker.generation,
        expires: until(&rule, key.proto, FlowState::New, now),
        flows: 1,
        next: 1,
        remotes,
    };
    work.range = PortRange::around::<A>(key.sport, key.proto, work.rule_flags & rule::PARITY != 0);
    work.external.port = key.sport;
    let start = tables.random();
    let mut attempt = 0;
    while attempt < PROBES {
        if attempt > 0 {
            work.external.port = work.range.pick(start, attempt);
        }
        attempt += 1;
        if is_taken(tables, work, interface) {
            continue;
        }
        let mut claimed = tables.claim_binding(&work.external, &work.binding);
        if claimed == Claim::Exists
            && let Some(holder) = tables.binding(&work.external)
            && release::take(tables, holder, tables.hold_down(), now)
        {
            tables.remove_binding(&work.external);
            claimed = tables.claim_binding(&work.external, &work.binding);
        }
        match claimed {
            Claim::Ok => {
                work.search = Search::CLAIMED;
                break;
            }
            Claim::Full => {
                work.search = Search::FULL;
                break;
            }
            Claim::Exists => {}
        }
    }
    if work.search() == Search::CLAIMED {
        work.to.sport = work.external.port;
        limit::place(tables, work);
        announce(tables, work);
    }
}

/// Writes down that the inside socket appears under another port than its own.
#[inline(always)]
fn announce<T, A>(tables: &T, work: &mut Work<A>)
where
    T: Tables<A>,
    A: Address,
{
    if work.to.sport == work.key.sport || work.rule_flags & rule::SYMMETRIC != 0 {
        return;
    }
    work.moved = Moved { address: work.to.src, port: work.to.sport, unused: 0 };
    if !tables.set_moved(&work.inside, &work.moved) {
        tables.remove_binding(&work.external);
        work.search = Search::FULL;
    }
}

/// A port that a forward or a socket of the host holds, or that tunnels between hosts use.
#[inline(always)]
fn is_taken<T, A>(tables: &T, work: &mut Work<A>, interface: u32) -> bool
where
    T: Tables<A>,
    A: Address,
{
    let EndpointKey { address, port, proto, unused: _ } = work.external;
    if proto == A::ICMP {
        return false;
    }
    (proto == proto::UDP && is_tunnel(port))
        || forward_for(tables, work, interface, (address, port), proto)
        || tables.host_socket(proto, (work.key.dst, work.key.dport), (address, port))
        || (work.is_turned() && round::has_socket(tables, work))
}

/// Of the host's own packet to a forward: whether an inside socket has the port that it would be seen under. The server
/// answers both at one address, and could not be told whom.
#[inline(always)]
pub(super) fn is_an_insiders<T, A>(tables: &T, work: &mut Work<A>, now: u64) -> bool
where
    T: Tables<A>,
    A: Address,
{
    let key = &work.key;
    work.external = EndpointKey { address: key.src, port: work.to.sport, proto: key.proto, unused: 0 };
    tables
        .binding(&work.external)
        .is_some_and(|binding| !binding.inside().same(work.key.src) && is_in_force(tables, binding, now))
}

/// A port of VXLAN.
#[inline(always)]
pub(super) fn is_tunnel(port: u16) -> bool {
    port == VXLAN[0] || port == VXLAN[1]
}

/// Its rule is there still, and it has not expired.
#[inline(always)]
pub(super) fn is_in_force<T, A>(tables: &T, binding: BindingRef<A>, now: u64) -> bool
where
    T: Tables<A>,
    A: Address,
{
    over(binding, now) <= 0
        && tables.rule(binding.rule()).is_some_and(|rule| rule.generation == binding.generation())
}

/// Ticks since it expired; negative while it has not. Who is removing it needs no more than that it has.
#[inline(always)]
#[expect(clippy::cast_possible_wrap, reason = "a difference on a clock that wraps")]
pub(super) fn over<A: Address>(binding: BindingRef<A>, now: u64) -> i64 {
    match binding.expires() {
        RELEASED => 1,
        expires => i64::from(life::tick(now).wrapping_sub(expires) as i32),
    }
}

/// The rule of a binding that is in force.
#[inline(always)]
fn rule_of<T, A>(tables: &T, binding: BindingRef<A>, interface: u32, now: u64) -> Option<Rule>
where
    T: Tables<A>,
    A: Address,
{
    let rule = tables.rule(binding.rule())?;
    (rule.generation == binding.generation() && rule.uplink == interface && over(binding, now) <= 0)
        .then_some(rule)
}

/// From the outside to an external port that an inside socket has.
///
/// An answer to what the inside has sent comes in, and what the rule's filtering allows. Everything else goes to the
/// host when that has a socket for it, and nowhere otherwise: a reset would end what the inside may be about to open
/// (RFC 5382 REQ-4).
#[inline(always)]
pub(super) fn accept<T, A>(tables: &T, work: &mut Work<A>, interface: u32, now: u64) -> Result<(), Verdict>
where
    T: Tables<A>,
    A: Address,
{
    count(admit(tables, work, interface, now)?);
    Ok(())
}

/// A flow that a port has let in is one of the port's.
#[inline(always)]
pub(super) fn count<A: Address>(guest: Option<BindingRef<A>>) {
    if let Some(binding) = guest {
        binding.set_flows(binding.flows().wrapping_add(1));
    }
}

/// Whether it comes in, and what it becomes. The port, when that lets it in without having been asked: to [`count`] it.
#[inline(always)]
pub(super) fn admit<T, A>(
    tables: &T,
    work: &mut Work<A>,
    interface: u32,
    now: u64,
) -> Result<Option<BindingRef<A>>, Verdict>
where
    T: Tables<A>,
    A: Address,
{
    if work.is_turned() {
        introduce(tables, work, interface);
    }
    let key = &work.key;
    work.external = EndpointKey { address: key.dst, port: key.dport, proto: key.proto, unused: 0 };
    let Some(binding) = tables.binding(&work.external) else {
        return Err(unsolicited(tables, work, interface));
    };
    let Some(rule) = rule_of(tables, binding, interface, now) else {
        return Err(unsolicited(tables, work, interface));
    };
    work.to = Translation { src: key.src, dst: binding.inside(), sport: key.sport, dport: binding.port() };
    work.maker = Maker { rule: binding.rule(), generation: binding.generation() };
    work.peer = work.to.answers(key);
    if let Some(asked) = tables.flow(&work.peer)
        && asked.to_sport() == key.dport
        && asked.to_src().same(key.dst)
        && life::is_alive(tables, asked, key.proto, interface, now)
    {
        return Ok(None);
    }
    if key.proto == A::ICMP {
        return Err(unclaimed(tables, key.dst)); // an answer to a ping of the host's own
    }
    if tables.host_socket(key.proto, (key.src, key.sport), (key.dst, key.dport)) {
        return Err(Verdict::Pass);
    }
    let allowed = rule.flags & rule::SYMMETRIC == 0
        && (rule.flags & rule::FULL_CONE != 0 || binding.knows(work.sender));
    if !allowed || (key.proto == proto::TCP && !opens(work.tcp_bits())) {
        return Err(Verdict::Drop(DropReason::Filtered));
    }
    Ok(Some(binding))
}

/// An inside socket sends to the external port of another one: that will see it under its external address, and its own
/// external port is open to that from now on (RFC 4787 REQ-9).
#[inline(always)]
fn introduce<T, A>(tables: &T, work: &mut Work<A>, interface: u32)
where
    T: Tables<A>,
    A: Address,
{
    let Some(address) = outside_of(tables, interface, work.key.src) else {
        return;
    };
    work.sender = address;
    let key = &work.key;
    work.inside = EndpointKey { address: key.src, port: key.sport, proto: key.proto, unused: 0 };
    work.external = EndpointKey { address, port: key.sport, proto: key.proto, unused: 0 };
    if let Some(moved) = tables.moved(&work.inside)
        && moved.address.same(address)
    {
        work.external.port = moved.port;
    }
    let Some(binding) = tables.binding(&work.external) else {
        return;
    };
    let key = &work.key;
    if binding.port() == key.sport && binding.inside().same(key.src) {
        binding.remember(key.dst);
    }
}

/// To a port that no inside socket has: the host's business. Only a connection to nobody is dropped without a word
/// where inside hosts may be about to open it from their side.
#[inline(always)]
fn unsolicited<T, A>(tables: &T, work: &Work<A>, interface: u32) -> Verdict
where
    T: Tables<A>,
    A: Address,
{
    let key = &work.key;
    // To inside hosts it answers with a reset, as to any other of its own addresses.
    if key.proto != proto::TCP
        || !opens(work.tcp_bits())
        || work.is_turned()
        || !is_masqueraded_to(tables, interface, key.dst)
        || tables.host_socket(key.proto, (key.src, key.sport), (key.dst, key.dport))
    {
        return unclaimed(tables, key.dst);
    }
    Verdict::Drop(DropReason::Unsolicited)
}

/// Whether inside hosts appear under this address.
#[inline(always)]
fn is_masqueraded_to<T, A>(tables: &T, interface: u32, address: A) -> bool
where
    T: Tables<A>,
    A: Address,
{
    if tables.uplink(interface).is_some_and(|uplink| uplink.address.same(address)) {
        return tables.uplink(interface).is_some_and(|uplink| uplink.masquerades != 0);
    }
    tables.local(address).is_some_and(|known| known.flags & local::POOL != 0)
}

/// The host's own packet, whose port an inside socket has and whose answers that would get: the host's socket then has
/// to move. Fills in who makes the flow.
#[inline(always)]
pub(super) fn collides<T, A>(tables: &T, work: &mut Work<A>, interface: u32, now: u64) -> bool
where
    T: Tables<A>,
    A: Address,
{
    let key = &work.key;
    work.external = EndpointKey { address: key.src, port: key.sport, proto: key.proto, unused: 0 };
    let Some(binding) = tables.binding(&work.external) else {
        return false;
    };
    let Some(rule) = rule_of(tables, binding, interface, now) else {
        return false;
    };
    work.maker = Maker { rule: binding.rule(), generation: binding.generation() };
    !binding.inside().same(key.src)
        && (rule.flags & rule::FULL_CONE != 0 || binding.knows(key.dst))
        && (key.proto != proto::TCP || opens(work.tcp_bits()))
}

/// A packet of the flow has passed: its binding lives on. The end of its only flow shortens it.
#[inline(always)]
pub(super) fn refresh<T, A>(tables: &T, work: &mut Work<A>, flow: FlowRef<A>, now: u64)
where
    T: Tables<A>,
    A: Address,
{
    let key = &work.key;
    let (address, port) = if key.direction == Direction::Out as u8 {
        (flow.to_src(), flow.to_sport())
    } else {
        (key.dst, key.dport)
    };
    work.external = EndpointKey { address, port, proto: key.proto, unused: 0 };
    let Some(binding) = tables.binding(&work.external) else {
        return;
    };
    let Some(rule) = tables.rule(flow.rule()) else {
        return;
    };
    if binding.rule() != flow.rule() || binding.generation() != flow.generation() {
        return;
    }
    let state = FlowState::from_u8(flow.state());
    let until = until(&rule, work.key.proto, state, now);
    if matches!(state, FlowState::Closed | FlowState::Reset) && binding.flows() <= 1 {
        binding.set_expires(until);
    } else {
        prolong(binding, until);
    }
}

/// When a binding expires whose flow is in this state: not before the flow, which tells it now and then that it is busy.
#[inline(always)]
fn until(rule: &Rule, protocol: u8, state: FlowState, now: u64) -> u32 {
    let seconds = timeout(&rule.timeouts, protocol, state);
    match life::tick(now).wrapping_add(life::memory(seconds) + life::grace(seconds)) {
        RELEASED => RELEASED + 1,
        until => until,
    }
}

#[inline(always)]
#[expect(clippy::cast_possible_wrap, reason = "a difference on a clock that wraps")]
fn prolong<A: Address>(binding: BindingRef<A>, until: u32) {
    if until.wrapping_sub(binding.expires()) as i32 > 0 {
        binding.set_expires(until);
    }
}
