//! From the inside, at a port of the LAN: what has a fast way to the uplink takes it there, and is translated here as it
//! would have been at the uplink.
//!
//! The next packet of a flow is dealt with on the spot ([`lan_in`]). One that opens a flow between hosts that know each
//! other ([`pair`](super::pair)) goes on to the programs for first packets, and one that says something about its flow
//! (that it ends, say) to [`depart`]. Whatever they cannot do takes the kernel's way, as it came, and is judged at the
//! uplink.

use super::{
    Verdict,
    fast::{self, Shape, Ways, is_for, leads, way},
    finish, life, pair, rewrite, take_down,
    work::{Way, Work},
};
use crate::{
    family::Address,
    maps::{Direction, PairKey},
    packet::{Headers, Packet, Parsed, parse},
    tables::{FlowRef, Tables},
    tcp::{opens, proto},
};

/// What becomes of a packet at a port of the LAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Departure {
    Done(Verdict),
    /// It opens a flow: [`first`](super::first), with [`Work`] filled in.
    First,
    /// [`depart`].
    Whole,
}

/// What is on a fast flow leaves through the uplink at once.
#[inline(always)]
pub fn lan_in<P, T, A>(packet: &mut P, tables: &T) -> Departure
where
    P: Packet,
    T: Tables<A> + Ways,
    A: Address,
{
    shorten(packet, tables).unwrap_or(Departure::Done(Verdict::Pass))
}

#[inline(always)]
fn shorten<P, T, A>(packet: &mut P, tables: &T) -> Option<Departure>
where
    P: Packet,
    T: Tables<A> + Ways,
    A: Address,
{
    let port = tables.port(packet.interface())?;
    if tables.epoch() == 0 || !is_for(packet, port.mac) {
        return None;
    }
    let (packets, shape) = (packet.segments(), Shape::of(packet));
    let headers = match parse::<P, A>(packet) {
        Parsed::Other | Parsed::Flowless { .. } | Parsed::Fragment | Parsed::IcmpError { .. } => return None,
        Parsed::Flow(headers) => headers,
    };
    let key = headers.key(Direction::Out);
    let now = tables.now();
    let Some(flow) = tables.flow(&key) else {
        return open(tables, &headers, shape, port.owner, now);
    };
    let Some(hop) = way(tables, flow, &headers, shape, port.owner, now) else {
        return notable(tables, flow, &headers, port.owner, now);
    };
    if !life::is_simple(tables, flow, (key.proto, headers.tcp_bits), hop.interface, now) {
        return notable(tables, flow, &headers, port.owner, now);
    }
    tables.touch(flow, now, packets, shape.network_len);
    tables.count(flow.rule(), Direction::Out, packets, shape.network_len);
    let hop_adds = A::hop(headers.ip);
    let fix = rewrite(headers, flow).and(hop_adds);
    Some(Departure::Done(fast::send(packet, &hop, fix)))
}

/// There is more to do, and it is worth while: the flow has a way, or its hosts have.
#[inline(always)]
fn notable<T, A>(
    tables: &T,
    flow: FlowRef<A>,
    headers: &Headers<'_, A>,
    from: u32,
    now: u64,
) -> Option<Departure>
where
    T: Tables<A> + Ways,
    A: Address,
{
    if !tables.are_alike() {
        return None;
    }
    if !fast::is_fast(flow.stamp(), flow.lease(), tables.epoch(), now) {
        pair::recall(tables, &hosts(headers, from), now)?;
    }
    Some(Departure::Whole)
}

/// What the kernel's routes would be asked for.
#[inline(always)]
pub(super) fn hosts<A: Address>(headers: &Headers<'_, A>, from: u32) -> PairKey<A> {
    PairKey { src: A::src(headers.ip), dst: A::dst(headers.ip), from, class: A::class(headers.ip) }
}

/// The first packet of a flow between hosts that know each other.
#[inline(always)]
fn open<T, A>(tables: &T, headers: &Headers<'_, A>, shape: Shape, from: u32, now: u64) -> Option<Departure>
where
    T: Tables<A> + Ways,
    A: Address,
{
    let begins = match headers.protocol {
        proto::UDP => true,
        proto::TCP => opens(headers.tcp_bits),
        _ => false,
    };
    if !begins || !tables.are_alike() {
        return None;
    }
    let pair = pair::recall(tables, &hosts(headers, from), now)?;
    let hop = leads(tables, pair.hop, headers, shape, from)?;
    let mut work = tables.work()?;
    // SAFETY: this CPU's own, and nobody else's while this packet is looked at.
    let work = unsafe { work.as_mut() };
    set_out(work, from, hop.interface);
    work.pair = pair;
    take_down(work, headers, Direction::Out);
    Some(Departure::First)
}

/// A packet of a flow that has a way, but says something about the flow, or is not like most.
#[inline(always)]
pub fn depart<P, T, A>(packet: &mut P, tables: &T) -> Verdict
where
    P: Packet,
    T: Tables<A> + Ways,
    A: Address,
{
    whole(packet, tables).unwrap_or(Verdict::Pass)
}

#[inline(always)]
fn whole<P, T, A>(packet: &mut P, tables: &T) -> Option<Verdict>
where
    P: Packet,
    T: Tables<A> + Ways,
    A: Address,
{
    let from = tables.port(packet.interface())?.owner;
    let shape = Shape::of(packet);
    let mut work = tables.work()?;
    // SAFETY: as above.
    let work = unsafe { work.as_mut() };
    let headers = match parse::<P, A>(packet) {
        Parsed::Other | Parsed::Flowless { .. } | Parsed::Fragment | Parsed::IcmpError { .. } => return None,
        Parsed::Flow(headers) => headers,
    };
    take_down(work, &headers, Direction::Out);
    let (flow, now) = (tables.flow(&work.key)?, tables.now());
    if !fast::is_fast(flow.stamp(), flow.lease(), tables.epoch(), now) {
        pair::go_with(flow, pair::recall(tables, &hosts(&headers, from), now)?);
    }
    let hop = leads(tables, flow.hop(), &headers, shape, from)?;
    set_out(work, from, hop.interface);
    let interface = work.interface();
    if !life::is_alive(tables, flow, work.key.proto, interface, now) {
        return None;
    }
    life::advance(tables, work, flow, now);
    Some(finish(packet, tables, work, flow, Direction::Out, now))
}

#[inline(always)]
pub(super) fn set_out<A>(work: &mut Work<A>, from: u32, uplink: u32) {
    work.interface = uplink;
    work.from = from;
    work.way = Way::DEPARTS;
    work.turned = 0;
}
