//! Whose an external port is to give away, when the time of its binding is over.
//!
//! As with flows (see [`super::collect`]), a table deletes by key, whatever is under that key by then. So whoever removes a
//! binding takes it first, by an exchange of its expiry that fails when its inside socket has come back since it was looked at,
//! or when somebody else has taken it: another CPU that wants the port for another socket, or the agent's collection.

use super::{binding, work::Work};
use crate::{
    family::Address,
    maps::RELEASED,
    tables::{BindingRef, Tables},
};

/// Keys of IPv4 that one run of the program takes, see [`super::collect::BATCH4`].
pub const BATCH4: usize = 128;
/// The same of IPv6.
pub const BATCH6: usize = 64;

/// Removes the binding of `work.external` if its rule is gone, or if it has been over for more than `held_down` ticks. True: it was so.
#[inline(always)]
pub fn release<T, A>(tables: &T, work: &Work<A>, held_down: u32, now: u64) -> bool
where
    T: Tables<A>,
    A: Address,
{
    let Some(binding) = tables.binding(&work.external) else {
        return false;
    };
    if !take(tables, binding, held_down, now) {
        return false;
    }
    tables.remove_binding(&work.external);
    true
}

/// Takes a binding whose rule is gone, or that has expired and been held down for so many ticks. The caller has to remove it, at
/// once.
#[inline(always)]
pub(super) fn take<T, A>(tables: &T, binding: BindingRef<A>, held_down: u32, now: u64) -> bool
where
    T: Tables<A>,
    A: Address,
{
    let seen = binding.expires();
    let in_place = tables.rule(binding.rule()).is_some_and(|rule| rule.generation == binding.generation());
    if seen == RELEASED || (in_place && binding::over(binding, now) <= i64::from(held_down)) {
        return false;
    }
    tables.exchange_expiry(binding, seen, RELEASED)
}

/// Lets a binding live on that was not in force when it expired at `seen`. False: somebody has taken it. Another packet of its
/// socket may have done the same; who looks at it sees what was written before.
#[inline(always)]
pub(super) fn revive<T, A>(tables: &T, binding: BindingRef<A>, seen: u32, until: u32) -> bool
where
    T: Tables<A>,
    A: Address,
{
    if seen == RELEASED {
        return false;
    }
    // With the very same time, who looked before would take it all the same.
    let until = if until == seen { until.wrapping_add(1) | 1 } else { until };
    tables.exchange_expiry(binding, seen, until) || binding.expires() != RELEASED
}
