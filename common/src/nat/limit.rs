//! How much one inside host, or one rule, may take (RFC 6888 REQ-4 and REQ-5): new flows in a second, and ports outside.
//!
//! The pace is kept as the time at which whoever starts flows as fast as allowed would start the next one (the generic cell
//! rate algorithm): one number, which no time makes wrong.
//!
//! Ports are not counted, because nothing tells when an expired one is gone. Each inside host has as many *places* as ports,
//! and a place is taken while the port that was put there is its, and has not expired. So a host never has more; when it has
//! nearly as many, it may be refused one although some place is free, of which only some are looked at.

use super::work::{Way, Work};
use crate::{
    drop::DropReason,
    family::Address,
    maps::{EndpointKey, Opening, PaceKey, PlaceKey, PlacedPort},
    tables::{Limits, Tables},
};

const SECOND: u64 = 1_000_000_000;

/// Places that are looked at for a port.
const PROBES: u32 = 16;

/// Whether another flow may be made now, of the rule that `work` names and for this inside host; `A::ANY`: for none.
///
/// A hook that decides for good charges it at once, so that what then finds no port is bounded too. One that may leave the packet
/// to the next hook does so when it has made the flow ([`charge`]): every packet is charged once.
#[inline(always)]
pub(super) fn pace<T, A>(tables: &T, work: &Work<A>, host: A, now: u64) -> Result<(), DropReason>
where
    T: Tables<A>,
    A: Address,
{
    let (own, whole) = turns(tables, work, host, now);
    if !own.is_in_time(now) || !whole.is_in_time(now) {
        return Err(DropReason::FlowRate);
    }
    let way = work.way();
    if way != Way::DEPARTS && way != Way::ARRIVES {
        pass(tables, work, host, (own, whole));
    }
    Ok(())
}

/// Charges a flow that was made where [`pace`] has not.
#[inline(always)]
pub(super) fn charge<T, A>(tables: &T, work: &Work<A>, host: A, now: u64)
where
    T: Tables<A>,
    A: Address,
{
    pass(tables, work, host, turns(tables, work, host, now));
}

/// Whose turn it is: the inside host's, and the rule's.
#[inline(always)]
fn turns<T, A>(tables: &T, work: &Work<A>, host: A, now: u64) -> (Turn, Turn)
where
    T: Tables<A>,
    A: Address,
{
    let rule = work.maker.rule;
    let Limits { flows_per_host, flows_per_rule, ports_per_host: _ } = tables.limits();
    let said = tables.opening(rule).map_or(0, |Opening { flows_per_second, pool: _ }| flows_per_second);
    let per_host = if host.same(A::ANY) { 0 } else { flows_per_host };
    let per_rule = if said == 0 { flows_per_rule } else { said };
    let own = turn(tables, &PaceKey { host, rule }, per_host, now);
    (own, turn(tables, &PaceKey { host: A::ANY, rule }, per_rule, now))
}

/// On to the next one, of each.
#[inline(always)]
fn pass<T, A>(tables: &T, work: &Work<A>, host: A, (own, whole): (Turn, Turn))
where
    T: Tables<A>,
    A: Address,
{
    let rule = work.maker.rule;
    own.pass(tables, &PaceKey { host, rule });
    whole.pass(tables, &PaceKey { host: A::ANY, rule });
}

/// When it is somebody's turn; where there is no limit, now, and `each` is 0.
#[derive(Debug, Clone, Copy)]
struct Turn {
    due: u64,
    /// From one flow to the next.
    each: u64,
}

#[inline(always)]
fn turn<T, A>(tables: &T, key: &PaceKey<A>, per_second: u32, now: u64) -> Turn
where
    T: Tables<A>,
    A: Address,
{
    if per_second == 0 {
        return Turn { due: now, each: 0 };
    }
    let next = tables.pace(key).unwrap_or(0);
    Turn { due: if next > now { next } else { now }, each: SECOND / u64::from(per_second) }
}

impl Turn {
    /// A second's worth may come at once.
    #[inline(always)]
    const fn is_in_time(self, now: u64) -> bool {
        self.due <= now + SECOND
    }

    /// On to the next one.
    #[inline(always)]
    fn pass<T, A>(self, tables: &T, key: &PaceKey<A>)
    where
        T: Tables<A>,
        A: Address,
    {
        if self.each != 0 {
            tables.set_pace(key, self.due + self.each);
        }
    }
}

/// Finds a place for another port of the packet's inside host, which [`place`] fills. False: it has all that it may have.
#[inline(always)]
pub(super) fn has_place<T, A>(tables: &T, work: &mut Work<A>, now: u64) -> bool
where
    T: Tables<A>,
    A: Address,
{
    let Limits { ports_per_host, .. } = tables.limits();
    if ports_per_host == 0 {
        return true;
    }
    let start = tables.random() % ports_per_host;
    let mut probe = 0;
    while probe < PROBES && probe < ports_per_host {
        work.place = PlaceKey { host: work.key.src, number: (start + probe) % ports_per_host };
        probe += 1;
        if !is_taken(tables, work, now) {
            return true;
        }
    }
    false
}

/// Its port is this host's still, and lives.
#[inline(always)]
fn is_taken<T, A>(tables: &T, work: &mut Work<A>, now: u64) -> bool
where
    T: Tables<A>,
    A: Address,
{
    let Some(PlacedPort { port, proto, unused: _ }) = tables.placed(&work.place) else {
        return false;
    };
    work.placed = EndpointKey { address: work.to.src, port, proto, unused: 0 };
    tables.binding(&work.placed).is_some_and(|binding| {
        binding.inside().same(work.key.src) && super::binding::is_in_force(tables, binding, now)
    })
}

/// Puts the external port that was just claimed into the place that was found for it.
#[inline(always)]
pub(super) fn place<T, A>(tables: &T, work: &Work<A>)
where
    T: Tables<A>,
    A: Address,
{
    if tables.limits().ports_per_host == 0 {
        return;
    }
    let EndpointKey { port, proto, .. } = work.external;
    tables.set_placed(&work.place, &PlacedPort { port, proto, unused: 0 });
}
