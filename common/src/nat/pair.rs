//! Two hosts between which the kernel has just forwarded packets: the first packet of another flow between them goes
//! where those went.
//!
//! Routes ask for addresses, where a packet comes in, and its traffic class, and so does the key here. Whatever else may
//! decide about a packet (a host's own filter, a rule of the routing policy that names ports, an IPsec policy) the agent
//! looks for, and only while there is none of it are all packets between two hosts *alike* ([`Ways::are_alike`]).
//!
//! A pair is written down where a flow's way is ([`fast`](super::fast)), under the same epoch and with the same lease, so
//! it holds as long as what that flow has learned.

use super::{
    fast::{self, Ways},
    work::{Way, Work},
};
use crate::{
    family::Address,
    maps::{Direction, FlowKey, Pair, PairKey},
    tables::{FlowRef, Tables},
    tcp::proto,
};

/// What was learned of these two, if it still holds.
#[inline(always)]
pub(super) fn recall<T, A>(tables: &T, key: &PairKey<A>, now: u64) -> Option<Pair>
where
    T: Tables<A> + Ways,
    A: Address,
{
    let pair = tables.pair(key)?;
    fast::is_fast(pair.stamp, pair.lease, tables.epoch(), now).then_some(pair)
}

/// What the kernel's routes were asked for, for a packet of this flow: it translates nothing itself, and we do so before
/// or after it.
#[inline(always)]
pub(super) fn of<A: Address>(key: &FlowKey<A>, flow: FlowRef<A>, from: u32, class: u32) -> PairKey<A> {
    let (src, dst) = if key.direction == Direction::Out as u8 {
        (key.src, key.dst)
    } else {
        (flow.to_src(), flow.to_dst())
    };
    PairKey { src, dst, from, class }
}

/// Whether a first packet that takes the kernel's way is worth learning from. The next one of its flow always is, so this
/// is for flows of one packet: one in eight, so that those who ask again and again become known, and a flood of packets
/// between hosts that never meet again costs little more.
#[inline(always)]
pub(super) fn is_worth_a_look<T, A>(tables: &T, work: &Work<A>, flow: FlowRef<A>) -> bool
where
    T: Tables<A> + Ways,
    A: Address,
{
    let forwarded = work.key.proto == proto::UDP || work.key.proto == proto::TCP;
    tables.are_alike()
        && forwarded
        && work.way() != Way::DEPARTS
        && !work.is_turned()
        && flow.stamp() != tables.epoch()
        && tables.random() & 7 == 0
}

/// Lets a flow that has just been made go where others between its hosts go. Towards the outside that has been found out
/// where the packet came in; at the uplink it has taken the kernel's way.
#[inline(always)]
pub(super) fn follow<T, A>(tables: &T, work: &Work<A>, flow: FlowRef<A>, direction: Direction, now: u64)
where
    T: Tables<A> + Ways,
    A: Address,
{
    let way = work.way();
    let pair = if way == Way::DEPARTS {
        work.pair
    } else {
        let forwarded = work.key.proto == proto::UDP || work.key.proto == proto::TCP;
        if direction == Direction::Out || way != Way::ONWARD || !forwarded || !tables.are_alike() {
            return;
        }
        let Some(pair) = ahead(tables, work, now) else {
            return;
        };
        pair
    };
    go_with(flow, pair);
}

/// What was learned of the hosts of a packet from the outside, whose translation is decided.
#[inline(always)]
pub(super) fn ahead<T, A>(tables: &T, work: &Work<A>, now: u64) -> Option<Pair>
where
    T: Tables<A> + Ways,
    A: Address,
{
    let key = PairKey { src: work.to.src, dst: work.to.dst, from: work.interface(), class: work.class };
    recall(tables, &key, now)
}

#[inline(always)]
pub(super) fn go_with<A: Address>(flow: FlowRef<A>, pair: Pair) {
    flow.set_hop(pair.hop);
    flow.set_lease(pair.lease);
    flow.set_stamp(pair.stamp);
}
