//! How much one inside host, or one rule, may take (RFC 6888 REQ-4 and REQ-5): new flows in a second, and ports outside.
//!
//! The pace is kept as the time at which whoever starts flows as fast as allowed would start the next one (the generic cell
//! rate algorithm): one number, which no time makes wrong.
//!
//! Ports are not counted, because nothing tells when an expired one is gone. Each inside host has as many *places* as ports,
//! and a place is taken while the port that was put there is its, and has not expired. So a host never has more; when it has
//! nearly as many, it may be refused one although some place is free, of which only some are looked at.

use super::work::Work;
use crate::{
    drop::DropReason,
    family::Address,
    maps::{EndpointKey, Opening, PaceKey, PlaceKey, PlacedPort},
    tables::{Limits, Tables},
};

const SECOND: u64 = 1_000_000_000;

/// Places that are looked at for a port.
const PROBES: u32 = 16;

/// Whether another flow may be made now, of this rule and for this inside host; `A::ANY`: for none.
#[inline(always)]
pub(super) fn pace<T, A>(tables: &T, rule: u32, host: A, now: u64) -> Result<(), DropReason>
where
    T: Tables<A>,
    A: Address,
{
    let Limits { flows_per_host, flows_per_rule, ports_per_host: _ } = tables.limits();
    if flows_per_host != 0 && !host.same(A::ANY) && !goes(tables, host, rule, flows_per_host, now) {
        return Err(DropReason::FlowRate);
    }
    let own = tables.opening(rule).map_or(0, |Opening { flows_per_second, pool: _ }| flows_per_second);
    let flows_per_rule = if own == 0 { flows_per_rule } else { own };
    if flows_per_rule != 0 && !goes(tables, A::ANY, rule, flows_per_rule, now) {
        return Err(DropReason::FlowRate);
    }
    Ok(())
}

/// One more in time. A second's worth may come at once.
#[inline(always)]
fn goes<T, A>(tables: &T, host: A, rule: u32, per_second: u32, now: u64) -> bool
where
    T: Tables<A>,
    A: Address,
{
    let key = PaceKey { host, rule };
    let next = tables.pace(&key).unwrap_or(0);
    if next > now + SECOND {
        return false;
    }
    let next = if next > now { next } else { now };
    tables.set_pace(&key, next + SECOND / u64::from(per_second));
    true
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
