//! The first packet of a flow in a driver: between hosts that know each other ([`pair`](crate::nat::pair)) it leaves there
//! too.
//!
//! [`early`](super::early) has seen that there is no flow and [prepares](prepare) what there is to know, [`first`] decides, and
//! [`make`] makes the flow and sends the packet on: three programs, as at the later hook. Whatever does not leave goes on
//! untouched and uncounted, and is decided about once more by that hook: what it drops or refuses is its to count and to
//! answer. What has been made for it by then (a port, a direction of the flow) it finds as its own.

use network_types::eth::EthHdr;

use super::{Doors, leave};
use crate::{
    family::Address,
    maps::Direction,
    nat::{
        Verdict, binding,
        depart::{hosts, set_out},
        fast::{Shape, is_plain, leads, present, takes},
        limit, open, pair, take_down,
        work::{Search, Way, Work},
    },
    packet::{Headers, Packet, carries_frames, headers_at},
    tables::Tables,
    tcp::{opens, proto},
};

/// Fills in [`Work`] for the packet of a flow that is not there. `None`: it cannot leave here, or need not.
#[inline(always)]
pub(super) fn prepare<T, A>(
    tables: &T,
    headers: &Headers<'_, A>,
    shape: Shape,
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
    match direction {
        Direction::In => {
            work.interface = from;
            work.from = from;
            work.way = Way::ARRIVES;
            work.turned = 0;
        }
        Direction::Out => {
            if headers.protocol == proto::TCP && !opens(headers.tcp_bits) {
                return None;
            }
            let pair = pair::recall(tables, &hosts(headers, from), tables.now())?;
            let hop = leads(tables, pair.hop, headers, shape, from)?;
            if !tables.points_at(hop.interface) {
                return None;
            }
            set_out(work, from, hop.interface);
            work.pair = pair;
        }
    }
    take_down(work, headers, direction);
    (!carries_frames(work.key.proto, work.key.dport)).then_some(())
}

/// Whether the packet gets a flow and may leave here, which [`make`] then does.
#[inline(always)]
pub fn first<P, T, A>(packet: &P, tables: &T, direction: Direction) -> bool
where
    P: Packet,
    T: Tables<A> + Doors,
    A: Address,
{
    decide(tables, Shape::of(packet), direction).is_some()
}

#[inline(always)]
fn decide<T, A>(tables: &T, shape: Shape, direction: Direction) -> Option<()>
where
    T: Tables<A> + Doors,
    A: Address,
{
    let mut work = tables.work()?;
    // SAFETY: as above.
    let work = unsafe { work.as_mut() };
    let now = tables.now();
    let interface = work.interface();
    if direction == Direction::Out {
        return open::decide(tables, work, direction, interface, now).ok();
    }
    // Where it leads is known when its translation is, and nothing is made for what cannot go there from here.
    if open::forward(tables, work, interface) {
        meet(tables, work, shape, now)?;
        open::connect(tables, work, interface, now).ok()
    } else {
        work.search = Search::NONE;
        let guest = binding::admit(tables, work, interface, now).ok()?;
        meet(tables, work, shape, now)?;
        binding::count(guest);
        Some(())
    }
}

/// Whether the hosts of a packet from the outside know each other, and it fits through a door to where that leads.
#[inline(always)]
fn meet<T, A>(tables: &T, work: &mut Work<A>, shape: Shape, now: u64) -> Option<()>
where
    T: Tables<A> + Doors,
    A: Address,
{
    work.pair = pair::ahead(tables, work, now)?;
    let hop = present(tables, work.pair.hop)?;
    (takes(&hop, work.from, shape.network_len) && tables.points_at(hop.interface)).then_some(())
}

/// Makes the flow that [`first`] has decided on, and sends its packet on. [`Verdict::Pass`]: it is as it was.
#[inline(always)]
pub fn make<P, T, A>(packet: &mut P, tables: &T) -> Verdict
where
    P: Packet,
    T: Tables<A> + Doors,
    A: Address,
{
    made(packet, tables).unwrap_or(Verdict::Pass)
}

#[inline(always)]
fn made<P, T, A>(packet: &mut P, tables: &T) -> Option<Verdict>
where
    P: Packet,
    T: Tables<A> + Doors,
    A: Address,
{
    let mut work = tables.work()?;
    // SAFETY: as above.
    let work = unsafe { work.as_mut() };
    let (now, shape) = (tables.now(), Shape::of(packet));
    // Without options, as `prepare` has seen.
    let place = EthHdr::LEN + size_of::<A::Header>();
    let headers = headers_at::<P, A>(packet, place, work.key.proto)?;
    let hop = leads(tables, work.pair.hop, &headers, shape, work.from)?;
    if !tables.points_at(hop.interface) {
        return None;
    }
    let interface = work.interface();
    let flow = open::establish(tables, work, interface, now).ok()?;
    // Else a port that was there lets it in.
    if work.search() == Search::CLAIMED {
        let outward = work.key.direction == Direction::Out as u8;
        limit::charge(tables, work, if outward { work.key.src } else { A::ANY }, now);
    }
    pair::go_with(flow, work.pair);
    leave(packet, tables, work, flow, &hop, now)
}
