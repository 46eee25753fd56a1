//! A packet in a driver that says something about its flow (that it is answered, that it ends, that it is there still), or
//! whose flow has no way of its own: where hosts know each other it leaves there too.
//!
//! [`early`](super::early) [prepares](prepare) what there is to know, and [`notable`] takes note of what the packet says once
//! it is sure that it leaves.

use network_types::eth::EthHdr;

use super::{Doors, leave};
use crate::{
    family::Address,
    maps::{Direction, Pair},
    nat::{
        Verdict,
        fast::{Shape, is_fast, is_plain, leads},
        life, pair, take_down,
        work::Way,
    },
    packet::{Headers, Packet, carries_frames, headers_at},
    tables::{FlowRef, Tables},
};

/// Fills in what [`notable`] needs. `None`: it cannot leave here.
#[inline(always)]
pub(super) fn prepare<T, A>(
    tables: &T,
    flow: FlowRef<A>,
    headers: &Headers<'_, A>,
    from: u32,
    direction: Direction,
) -> Option<()>
where
    T: Tables<A> + Doors,
    A: Address,
{
    if !tables.are_alike() || !is_plain(headers) {
        return None;
    }
    let mut work = tables.work()?;
    // SAFETY: this CPU's own, and nobody else's while this packet is looked at.
    let work = unsafe { work.as_mut() };
    take_down(work, headers, direction);
    if carries_frames(work.key.proto, work.key.dport) {
        return None;
    }
    let (now, own) = (tables.now(), Pair { hop: flow.hop(), stamp: flow.stamp(), lease: flow.lease() });
    work.pair = if is_fast(own.stamp, own.lease, tables.epoch(), now) {
        own
    } else {
        pair::recall(tables, &pair::of(&work.key, flow, from, work.class), now)?
    };
    work.from = from;
    work.way = Way::KERNEL;
    work.turned = 0;
    Some(())
}

/// Takes note of what the packet says, and sends it on. [`Verdict::Pass`]: it is as it was, and so is its flow.
#[inline(always)]
pub fn notable<P, T, A>(packet: &mut P, tables: &T) -> Verdict
where
    P: Packet,
    T: Tables<A> + Doors,
    A: Address,
{
    noted(packet, tables).unwrap_or(Verdict::Pass)
}

#[inline(always)]
fn noted<P, T, A>(packet: &mut P, tables: &T) -> Option<Verdict>
where
    P: Packet,
    T: Tables<A> + Doors,
    A: Address,
{
    let mut work = tables.work()?;
    // SAFETY: as above.
    let work = unsafe { work.as_mut() };
    let (now, shape) = (tables.now(), Shape::of(packet));
    let headers = headers_at::<P, A>(packet, EthHdr::LEN + size_of::<A::Header>(), work.key.proto)?;
    let hop = leads(tables, work.pair.hop, &headers, shape, work.from)?;
    if !tables.points_at(hop.interface) {
        return None;
    }
    let inward = work.key.direction == Direction::In as u8;
    work.interface = if inward { work.from } else { hop.interface };
    let interface = work.interface();
    let flow = tables.flow(&work.key)?;
    // What is over is the later hook's to bury.
    if !life::is_alive(tables, flow, work.key.proto, interface, now)
        || (inward && life::is_in_vain(tables, work, flow, interface, now))
    {
        return None;
    }
    pair::go_with(flow, work.pair);
    life::advance(tables, work, flow, now);
    leave(packet, tables, work, flow, &hop, now)
}
