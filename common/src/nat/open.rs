//! A flow's first packet: which rule is it for, and what does that make of it.

use super::{
    Verdict, binding, life, limit, round,
    work::{Maker, PortRange, Prefixed, Search, Translation, Way, Work},
};
use crate::{
    drop::DropReason,
    family::Address,
    maps::{Direction, FlowKey, ForwardKey, Opening, PoolKey, RangeKey, SourceKey, Uplink, flag, rule},
    tables::{Claim, FlowRef, Tables},
    tcp::{opens, proto},
};

/// Ports that are tried before a flow is refused. Each costs a lookup or two; with half of all ports taken, one flow in
/// 2^16 is refused.
pub(super) const PROBES: u32 = 16;

/// Whether the first packet of a flow gets one, and which, or what becomes of it otherwise.
#[inline(always)]
pub(super) fn decide<T, A>(
    tables: &T,
    work: &mut Work<A>,
    direction: Direction,
    interface: u32,
    now: u64,
) -> Result<(), Verdict>
where
    T: Tables<A>,
    A: Address,
{
    if direction == Direction::Out {
        masquerade(tables, work, interface, now)?;
        work.peer = work.to.answers(&work.key);
        Ok(())
    } else if forward(tables, work, interface) {
        connect(tables, work, interface, now)
    } else if work.way() == Way::AROUND {
        Err(Verdict::Pass) // one of its own services, or nobody
    } else {
        binding::accept(tables, work, interface, now)
    }
}

/// From the inside out: the source becomes the uplink's address or one of the rule's pool, and a port of it.
#[inline(always)]
fn masquerade<T, A>(tables: &T, work: &mut Work<A>, interface: u32, now: u64) -> Result<(), Verdict>
where
    T: Tables<A>,
    A: Address,
{
    let src = work.key.src;
    let uplink = tables.uplink(interface);
    if uplink.is_some_and(|uplink| uplink.address.same(src)) {
        own(tables, work, interface, now)?;
    } else {
        work.to.src = uplink.map_or(A::ANY, |uplink| uplink.address);
        match tables.masquerade(interface, src) {
            Some(rule) if !work.is_turned() && is_spared(tables, work, rule.rule, work.key.dst) => {
                return Err(Verdict::Pass);
            }
            Some(rule) => {
                work.maker = Maker { rule: rule.rule, generation: rule.generation };
                if let Some(address) = pooled(tables, rule.rule, src) {
                    work.to.src = address;
                } else if uplink.is_none() {
                    return Err(Verdict::Drop(DropReason::NoUplinkAddress));
                }
            }
            // Whoever turns back to an inside server by a forward is seen under the uplink's address there, so that the
            // answers come back this way: then the forward makes the flow.
            None if work.is_turned() && uplink.is_some() => {}
            None => own(tables, work, interface, now)?,
        }
    }
    let key = &work.key;
    // an answer to a ping that did not come through here
    if key.proto == A::ICMP && key.sport == 0 && key.dport != 0 {
        return Err(Verdict::Drop(DropReason::Protocol));
    }
    work.to = Translation { src: work.to.src, dst: key.dst, sport: key.sport, dport: key.dport };
    work.rule_flags = tables.rule(work.maker.rule).map_or(0, |rule| rule.flags);
    let may_claim = key.proto != proto::TCP || opens(work.tcp_bits());
    if may_claim {
        limit::pace(tables, work, work.key.src, now).map_err(Verdict::Refuse)?;
    }
    binding::settle(tables, work, interface, may_claim, now);
    if work.is_turned() && round::has_socket(tables, work) {
        return Err(Verdict::Refuse(DropReason::PortsExhausted));
    }
    if !may_claim && !was_asked(tables, work, interface, now) {
        return Err(Verdict::Drop(DropReason::TcpNotSyn));
    }
    claimed(tables, work)
}

/// The host's own packet: it passes, unless an inside socket has its port there and would get the answers. Then it moves to
/// another port of the same address.
#[inline(always)]
fn own<T, A>(tables: &T, work: &mut Work<A>, interface: u32, now: u64) -> Result<(), Verdict>
where
    T: Tables<A>,
    A: Address,
{
    if !binding::collides(tables, work, interface, now) {
        return Err(Verdict::Pass);
    }
    work.to.src = work.key.src;
    Ok(())
}

/// The address of a rule's pool that an inside host appears under: the same for all that it sends (RFC 4787 REQ-2, "paired"),
/// as nothing but its own address decides. `None`: the rule has no pool.
#[inline(always)]
fn pooled<T, A>(tables: &T, slot: u32, inside: A) -> Option<A>
where
    T: Tables<A>,
    A: Address,
{
    let Opening { pool, flows_per_second: _ } = tables.opening(slot)?;
    if pool == 0 {
        return None;
    }
    tables.pooled(&PoolKey { rule: slot, number: inside.number() % pool })
}

/// The address that an inside host appears under outside.
#[inline(always)]
pub(super) fn outside_of<T, A>(tables: &T, interface: u32, inside: A) -> Option<A>
where
    T: Tables<A>,
    A: Address,
{
    if let Some(rule) = tables.masquerade(interface, inside)
        && let Some(address) = pooled(tables, rule.rule, inside)
    {
        return Some(address);
    }
    let Uplink { address, masquerades: _ } = tables.uplink(interface)?;
    Some(address)
}

/// Whether the rule leaves what goes there as it is (RFC 6888 REQ-6): then it is routed with its inside address.
#[inline(always)]
pub(super) fn is_spared<T, A>(tables: &T, work: &mut Work<A>, slot: u32, dst: A) -> bool
where
    T: Tables<A>,
    A: Address,
{
    let excepts = tables.rule(slot).is_some_and(|rule| rule.flags & rule::EXCEPT != 0);
    if !excepts {
        return false;
    }
    work.source = Prefixed { bits: SourceKey::<A>::WHOLE, key: SourceKey { rule: slot, address: dst } };
    tables.is_source(&work.source)
}

/// A segment that opens nothing is the answer to one that came in.
#[inline(always)]
fn was_asked<T, A>(tables: &T, work: &mut Work<A>, interface: u32, now: u64) -> bool
where
    T: Tables<A>,
    A: Address,
{
    work.peer = work.to.answers(&work.key);
    tables.flow(&work.peer).is_some_and(|flow| life::is_alive(tables, flow, work.key.proto, interface, now))
}

/// How the search for a port went.
#[inline(always)]
fn claimed<T, A>(tables: &T, work: &mut Work<A>) -> Result<(), Verdict>
where
    T: Tables<A>,
    A: Address,
{
    match work.search() {
        Search::CLAIMED => Ok(()),
        Search::FULL => Err(no_room(tables, work)),
        Search::QUOTA => Err(Verdict::Refuse(DropReason::PortQuota)),
        _ => Err(Verdict::Refuse(DropReason::PortsExhausted)),
    }
}

/// This packet comes too early when the next one finds room; else there is none.
#[inline(always)]
fn no_room<T, A>(tables: &T, work: &mut Work<A>) -> Verdict
where
    T: Tables<A>,
    A: Address,
{
    if life::make_room(tables, work) {
        Verdict::Drop(DropReason::FlowTableFull)
    } else {
        Verdict::Refuse(DropReason::FlowTableFull)
    }
}

/// A flow of the forward that was found gets a port towards the inside server.
#[inline(always)]
pub(super) fn connect<T, A>(tables: &T, work: &mut Work<A>, interface: u32, now: u64) -> Result<(), Verdict>
where
    T: Tables<A>,
    A: Address,
{
    limit::pace(tables, work, A::ANY, now).map_err(Verdict::Drop)?;
    search_port(tables, work, interface, now);
    claimed(tables, work)
}

/// From the outside in: the destination becomes the inside host. Only for the host's own addresses, never transit.
/// False: no forward is for this packet.
#[inline(always)]
pub(super) fn forward<T, A>(tables: &T, work: &mut Work<A>, interface: u32) -> bool
where
    T: Tables<A>,
    A: Address,
{
    let key = &work.key;
    match key.proto {
        // no flow of ours: the host answers it, with a reset if it must
        proto::TCP if !opens(work.tcp_bits()) => return false,
        proto::TCP | proto::UDP => {}
        _ => return false,
    }
    let (address, port, proto) = (key.dst, key.dport, key.proto);
    if !forward_for(tables, work, interface, (address, port), proto) || !tables.is_local(work.key.dst) {
        return false;
    }
    work.maker = Maker { rule: work.target.rule, generation: work.target.generation };
    if !is_open(tables, work) {
        return false;
    }
    let (key, target) = (&work.key, &work.target);
    work.to = Translation { src: key.src, dst: target.address, sport: key.sport, dport: target.port };
    true
}

/// Whether the forward that was found is for this sender. For others it is as if it did not exist.
#[inline(always)]
fn is_open<T, A>(tables: &T, work: &mut Work<A>) -> bool
where
    T: Tables<A>,
    A: Address,
{
    let Some(rule) = tables.rule(work.maker.rule) else {
        return false;
    };
    if work.is_turned() && rule.flags & rule::HAIRPIN == 0 {
        return false;
    }
    if rule.flags & rule::SOURCES == 0 {
        return true;
    }
    let key = SourceKey { rule: work.maker.rule, address: work.key.src };
    work.source = Prefixed { bits: SourceKey::<A>::WHOLE, key };
    tables.is_source(&work.source)
}

/// Finds the forward of an external address and port, into `work.target`: of any address of the host, or of this very
/// one; of the port alone, or of a range that it is in.
#[inline(always)]
pub(super) fn forward_for<T, A>(
    tables: &T,
    work: &mut Work<A>,
    uplink: u32,
    external: (A, u16),
    proto: u8,
) -> bool
where
    T: Tables<A>,
    A: Address,
{
    let (address, port) = external;
    if !tables.is_forwarded(proto, port) {
        return false;
    }
    work.forward = ForwardKey { uplink, address: A::ANY, port, proto, unused: 0 };
    if let Some(target) = tables.forward(&work.forward) {
        work.target = target;
        return true;
    }
    work.forward.address = address;
    if let Some(target) = tables.forward(&work.forward) {
        work.target = target;
        return true;
    }
    let key = RangeKey { uplink, address: A::ANY, proto, unused: 0, port: port.to_be_bytes() };
    work.range_key = Prefixed { bits: RangeKey::<A>::WHOLE, key };
    if let Some(range) = tables.range(&work.range_key) {
        range.resolve(port, &mut work.target);
        return true;
    }
    work.range_key.key.address = address;
    if let Some(range) = tables.range(&work.range_key) {
        range.resolve(port, &mut work.target);
        return true;
    }
    false
}

/// Claims a source port towards the inside server, by making the answers' direction of the flow. The client's own is
/// only taken when it uses that port towards another forward of the same server.
#[inline(always)]
fn search_port<T, A>(tables: &T, work: &mut Work<A>, interface: u32, now: u64)
where
    T: Tables<A>,
    A: Address,
{
    work.range = PortRange::around::<A>(work.key.sport, work.key.proto, false);
    work.search = Search::NONE;
    let start = tables.random();
    let mut attempt = 0;
    while attempt < PROBES {
        if attempt > 0 {
            work.to.sport = work.range.pick(start, attempt);
        }
        attempt += 1;
        if work.way() == Way::AROUND && binding::is_an_insiders(tables, work, now) {
            continue;
        }
        work.peer = work.to.answers(&work.key);
        match claim_answer(tables, work, interface, now) {
            Claim::Ok => {
                work.search = Search::CLAIMED;
                return;
            }
            Claim::Full => {
                work.search = Search::FULL;
                return;
            }
            Claim::Exists => {}
        }
    }
}

/// Makes the packet's own direction of the flow: the one that opens it, or the answer to one that is there.
#[inline(always)]
pub(super) fn establish<T, A>(
    tables: &T,
    work: &mut Work<A>,
    interface: u32,
    now: u64,
) -> Result<FlowRef<A>, Verdict>
where
    T: Tables<A>,
    A: Address,
{
    let (mut flags, mut state) = (flag::OPENER, 0);
    if let Some(peer) = tables.flow(&work.peer) {
        let clock = peer.clock();
        if !life::is_alive(tables, peer, work.key.proto, interface, now) || !is_answer(peer, &work.key) {
            life::bury(tables, &work.peer, &mut work.oldest_peer, peer, clock);
        } else if peer.flags() & flag::OPENER != 0 {
            (flags, state) = (0, peer.state());
        }
    }
    work.to.record(&work.key, &mut work.flow, work.maker, now, flags);
    work.flow.state = state;
    match tables.claim(&work.key, &work.flow) {
        Claim::Ok if flags != 0 => {
            tables.count_flow(work.maker.rule);
            life::enlist(tables, work, now);
        }
        // Another CPU may just have made the same flow.
        Claim::Ok | Claim::Exists => {}
        Claim::Full => {
            return Err(no_room(tables, work));
        }
    }
    let Some(flow) = tables.flow(&work.key) else {
        return Err(Verdict::Drop(DropReason::FlowTableFull));
    };
    // What was there is over, and somebody is just removing it.
    if flow.is_owned() {
        return Err(Verdict::Drop(DropReason::FlowTableFull));
    }
    if flow.to_sport() != work.to.sport {
        life::take_back(tables, &work.peer);
    }
    if flags == 0 {
        life::advance(tables, work, flow, now);
    }
    Ok(flow)
}

/// Whether what the flow translates comes back to the sender of `key`: its port may have been another one's.
#[inline(always)]
fn is_answer<A: Address>(flow: FlowRef<A>, key: &FlowKey<A>) -> bool {
    flow.to_dst().same(key.src)
        && flow.to_dport() == key.sport
        && flow.to_src().same(key.dst)
        && flow.to_sport() == key.dport
}

/// Inserts the direction of the answers, `work.peer`, where nobody else has it.
///
/// The claim is an insert that fails when the key exists, so two CPUs cannot win one port.
#[inline(always)]
fn claim_answer<T, A>(tables: &T, work: &mut Work<A>, interface: u32, now: u64) -> Claim
where
    T: Tables<A>,
    A: Address,
{
    let key = &work.key;
    let back = Translation { src: key.dst, dst: key.src, sport: key.dport, dport: key.sport };
    back.record(&work.peer, &mut work.flow, work.maker, now, 0);
    let result = tables.claim(&work.peer, &work.flow);
    if result != Claim::Exists {
        return result;
    }
    let Some(holder) = tables.flow(&work.peer) else {
        return Claim::Exists; // gone this instant: the next port will do
    };
    let clock = holder.clock();
    // Somebody has the key: somebody dead, ourselves, or somebody else.
    if !life::is_alive(tables, holder, work.peer.proto, interface, now) {
        life::bury(tables, &work.peer, &mut work.oldest_peer, holder, clock);
        return tables.claim(&work.peer, &work.flow);
    }
    // Our own answers: only the first direction had been lost.
    let wanted = &work.flow;
    let ours = holder.to_dst().same(wanted.to_dst)
        && holder.to_dport() == wanted.to_dport
        && holder.to_src().same(wanted.to_src)
        && holder.to_sport() == wanted.to_sport
        && holder.rule() == wanted.rule;
    if ours { Claim::Ok } else { Claim::Exists }
}
