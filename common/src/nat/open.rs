//! A flow's first packet: which rule is it for, and which port does it get.

use super::{
    Verdict, life,
    work::{Maker, PortRange, Search, Translation, Work},
};
use crate::{
    drop::DropReason,
    family::Address,
    maps::{Direction, FlowKey, Forward, ForwardKey, flag},
    tables::{Claim, FlowRef, Tables},
    tcp::{opens, proto},
};

/// Ports that are tried before a flow is refused. Each costs a lookup or two; with half of all ports taken towards
/// one remote socket, one flow in 2^16 is refused.
const PROBES: u32 = 16;

/// Makes the flow of a first packet, or says what becomes of a packet that gets none.
#[inline(always)]
pub(super) fn open<T, A>(
    tables: &T,
    work: &mut Work<A>,
    interface: u32,
    now: u64,
) -> Result<FlowRef<A>, Verdict>
where
    T: Tables<A>,
    A: Address,
{
    let own_port = work.key.direction == Direction::Out as u8;
    if own_port {
        masquerade(tables, work, interface)?;
    } else {
        forward(tables, work, interface)?;
    }
    search_port(tables, work, interface, own_port, now);
    match work.search() {
        Search::CLAIMED => establish(tables, work, now).map_err(Verdict::Drop),
        Search::FULL => {
            // This packet comes too early; the next one finds room.
            life::make_room(tables, work);
            Err(Verdict::Drop(DropReason::FlowTableFull))
        }
        _ => Err(Verdict::Drop(DropReason::PortsExhausted)),
    }
}

/// From the inside out: the source becomes the uplink's address.
#[inline(always)]
fn masquerade<T, A>(tables: &T, work: &mut Work<A>, interface: u32) -> Result<(), Verdict>
where
    T: Tables<A>,
    A: Address,
{
    let tcp_bits = work.tcp_bits();
    let key = &work.key;
    let Some(rule) = tables.masquerade(interface, key.src) else {
        return Err(Verdict::Pass);
    };
    let Some(address) = tables.uplink_address(interface) else {
        return Err(Verdict::Drop(DropReason::NoUplinkAddress));
    };
    if key.src.same(address) {
        return Err(Verdict::Pass); // the host's own
    }
    // an answer to a ping that did not come through here
    if key.proto == A::ICMP && key.sport == 0 && key.dport != 0 {
        return Err(Verdict::Drop(DropReason::Protocol));
    }
    if key.proto == proto::TCP && !opens(tcp_bits) {
        return Err(Verdict::Drop(DropReason::TcpNotSyn));
    }
    work.to = Translation { src: address, dst: key.dst, sport: key.sport, dport: key.dport };
    work.maker = Maker { rule: rule.rule, generation: rule.generation };
    Ok(())
}

/// From the outside in: the destination becomes the inside host. Only for the host's own addresses, never transit.
#[inline(always)]
fn forward<T, A>(tables: &T, work: &mut Work<A>, interface: u32) -> Result<(), Verdict>
where
    T: Tables<A>,
    A: Address,
{
    let tcp_bits = work.tcp_bits();
    let key = &work.key;
    match key.proto {
        // no flow of ours: the host answers it, with a reset if it must
        proto::TCP if !opens(tcp_bits) => return Err(Verdict::Pass),
        proto::TCP | proto::UDP => {}
        _ => return Err(Verdict::Pass),
    }
    let Some(rule) = forward_for(tables, interface, key.dst, key.dport, key.proto) else {
        return Err(Verdict::Pass);
    };
    if !tables.is_local(key.dst) {
        return Err(Verdict::Pass);
    }
    work.to = Translation { src: key.src, dst: rule.address, sport: key.sport, dport: rule.port };
    work.maker = Maker { rule: rule.rule, generation: rule.generation };
    Ok(())
}

/// The forward of an external address and port: of this very address, or of any.
#[inline(always)]
fn forward_for<T, A>(tables: &T, uplink: u32, address: A, port: u16, protocol: u8) -> Option<Forward<A>>
where
    T: Tables<A>,
    A: Address,
{
    let mut key = ForwardKey { uplink, address: A::ANY, port, proto: protocol, unused: 0 };
    if let Some(rule) = tables.forward(&key) {
        return Some(rule);
    }
    key.address = address;
    tables.forward(&key)
}

/// Claims a source port for the answers, by making their direction of the flow.
#[inline(always)]
fn search_port<T, A>(tables: &T, work: &mut Work<A>, interface: u32, own_port: bool, now: u64)
where
    T: Tables<A>,
    A: Address,
{
    work.range = PortRange::around::<A>(work.key.sport, work.key.proto);
    work.search = Search::NONE;
    let start = tables.random();
    let mut attempt = 0;
    while attempt < PROBES {
        if attempt > 0 {
            work.to.sport = work.range.pick(start, attempt);
        }
        attempt += 1;
        work.peer = work.to.answers(&work.key);
        if own_port && port_is_taken(tables, interface, &work.peer) {
            continue;
        }
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

/// Makes the packet's own direction of the flow. The answers' is there.
#[inline(always)]
fn establish<T, A>(tables: &T, work: &mut Work<A>, now: u64) -> Result<FlowRef<A>, DropReason>
where
    T: Tables<A>,
    A: Address,
{
    work.to.record(&work.key, &mut work.flow, work.maker, now, flag::OPENER);
    match tables.claim(&work.key, &work.flow) {
        Claim::Ok => {
            tables.count_flow(work.maker.rule);
            life::enlist(tables, work, now);
        }
        // Another CPU has just made the same flow; its port is the flow's port.
        Claim::Exists => {}
        Claim::Full => {
            tables.remove(&work.peer);
            return Err(DropReason::FlowTableFull);
        }
    }
    let Some(flow) = tables.flow(&work.key) else {
        return Err(DropReason::FlowTableFull);
    };
    if flow.to_sport() != work.to.sport {
        tables.remove(&work.peer);
    }
    Ok(flow)
}

/// A port of the uplink's address that a forward or a socket of the host holds.
#[inline(always)]
fn port_is_taken<T, A>(tables: &T, interface: u32, answer: &FlowKey<A>) -> bool
where
    T: Tables<A>,
    A: Address,
{
    if answer.proto == A::ICMP {
        return false;
    }
    forward_for(tables, interface, answer.dst, answer.dport, answer.proto).is_some()
        || tables.host_socket(answer.proto, (answer.src, answer.sport), (answer.dst, answer.dport))
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
    // Somebody has the key: somebody dead, ourselves, or somebody else.
    if !life::is_alive(tables, holder, work.peer.proto, interface, now) {
        life::bury(tables, &work.peer, &mut work.oldest_peer, holder);
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
