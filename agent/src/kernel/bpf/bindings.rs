//! External ports whose time is over, freed.

use std::{cmp::Reverse, collections::HashMap, path::Path};

use telecluster_common::{
    maps::{Binding, EndpointKey, Moved, RELEASED, Rule, ticks},
    nat::collect::MARGIN,
};

use super::{
    collect::{Collected, Collector},
    family::Octets,
    flows::{Table, idle, now},
    object::Object,
};
use crate::kernel::{
    KernelError,
    dataplane::{HoldDown, MapPressure},
};

/// `binding4` and `moved4`, and those of IPv6.
#[derive(Debug)]
pub(super) struct BindingTables {
    ipv4: Pair<[u8; 4]>,
    ipv6: Pair<[u8; 16]>,
    hold_down: HoldDown,
}

#[derive(Debug)]
struct Pair<A> {
    bindings: Table,
    moved: Table,
    collector: Collector<EndpointKey<A>>,
}

impl BindingTables {
    /// `directory`: where the programs are pinned.
    pub(super) fn open(object: &Object, directory: &Path, hold_down: HoldDown) -> Result<Self, KernelError> {
        Ok(Self {
            ipv4: Pair::open(object, directory, ["binding4", "moved4"])?,
            ipv6: Pair::open(object, directory, ["binding6", "moved6"])?,
            hold_down,
        })
    }

    /// Frees what nobody can use any more; how many bindings. `rules`: what was in each slot a moment ago.
    pub(super) fn collect_garbage(&self, rules: &[Rule]) -> Result<usize, KernelError> {
        let now = now()?;
        Ok(self.ipv4.collect_garbage(rules, self.hold_down, now)?
            + self.ipv6.collect_garbage(rules, self.hold_down, now)?)
    }

    pub(super) fn pressure(&self) -> Result<Vec<MapPressure>, KernelError> {
        Ok(vec![
            self.ipv4.bindings.pressure::<EndpointKey<[u8; 4]>, Binding<[u8; 4]>>()?,
            self.ipv6.bindings.pressure::<EndpointKey<[u8; 16]>, Binding<[u8; 16]>>()?,
        ])
    }
}

impl<A: Octets> Pair<A>
where
    EndpointKey<A>: Collected,
{
    fn open(
        object: &Object,
        directory: &Path,
        [bindings, moved]: [&'static str; 2],
    ) -> Result<Self, KernelError> {
        Ok(Self {
            bindings: Table::open(object, bindings)?,
            moved: Table::open(object, moved)?,
            collector: Collector::open(directory)?,
        })
    }

    fn collect_garbage(&self, rules: &[Rule], hold_down: HoldDown, now: u64) -> Result<usize, KernelError> {
        // First, so that what is made meanwhile is not taken for something whose binding is gone.
        let mut moved = Vec::new();
        self.moved.for_each(|key: &EndpointKey<A>, to: &Moved<A>| moved.push((*key, *to)))?;
        let longest = ticks(hold_down.seconds) + MARGIN;
        let mut over = Vec::new();
        let mut held = Vec::new();
        // Those that are over too: a binding may be its socket's again in a moment, and what leads to it goes after it.
        let mut holders: HashMap<EndpointKey<A>, (A, u16)> = HashMap::new();
        self.bindings.for_each(|key: &EndpointKey<A>, binding: &Binding<A>| {
            match over_for(binding, rules, now) {
                None => {}
                Some(time) if time > u64::from(longest) => over.push(*key),
                Some(time) if hold_down.ports > 0 => held.push((time, *key)),
                Some(_) => {}
            }
            if !moved.is_empty() {
                holders.insert(*key, (binding.inside, binding.port));
            }
        })?;
        let is_lost = |(key, to): &&(EndpointKey<A>, Moved<A>)| {
            let external = EndpointKey { address: to.address, port: to.port, proto: key.proto, unused: 0 };
            holders.get(&external) != Some(&(key.address, key.port))
        };
        for (key, to) in moved.iter().filter(is_lost) {
            self.moved.delete(key, to)?;
        }
        let freed = self.collector.collect(&over, longest)?;
        Ok(freed + self.collector.collect(&surplus(held, hold_down.ports as usize), 0)?)
    }
}

/// For how many ticks a binding has been over, all of them when its rule is gone; `None`: it is not, or somebody is removing it. The
/// program that is asked to remove it decides by what is there by then.
fn over_for<A>(binding: &Binding<A>, rules: &[Rule], now: u64) -> Option<u64> {
    let in_force = rules.get(binding.rule as usize).is_some_and(|rule| rule.generation == binding.generation);
    let time = if in_force { idle(binding.expires, now) } else { u64::MAX };
    (time > 0 && binding.expires != RELEASED).then_some(time)
}

/// Of ports that wait, those that have waited longest, where there are more than may wait. `held`: for how long, and which.
fn surplus<K>(mut held: Vec<(u64, K)>, most: usize) -> Vec<K> {
    held.sort_unstable_by_key(|(time, _)| Reverse(*time));
    held.truncate(held.len().saturating_sub(most));
    held.into_iter().map(|(_, key)| key).collect()
}

#[cfg(test)]
mod tests {
    use telecluster_common::maps::{REMOTES, Timeouts, rule};

    use super::*;

    #[test]
    fn a_binding_ends_with_its_rule_or_after_its_hold_down() {
        let binding = Binding {
            inside: [192, 168, 100, 10],
            port: 40000,
            remote_port: 443,
            rule: 0,
            generation: 5,
            expires: ticks(1000),
            flows: 1,
            next: 1,
            remotes: [[0; 4]; REMOTES],
        };
        let rule = |generation| [Rule { generation, uplink: 2, flags: rule::THERE, timeouts: Timeouts::RFC }];
        let over = |rules: &[Rule], seconds: u64| over_for(&binding, rules, seconds * 1_000_000_000);
        assert_eq!(over(&rule(5), 900), None);
        let held = over(&rule(5), 1120).expect("it has expired");
        assert!((u64::from(ticks(119))..=u64::from(ticks(121))).contains(&held), "{held}");
        assert_eq!(over(&rule(6), 900), Some(u64::MAX), "the slot has another rule now");
        assert_eq!(over(&[], 900), Some(u64::MAX), "there is no such slot");
        let released = Binding { expires: RELEASED, ..binding };
        assert_eq!(over_for(&released, &rule(5), 900), None, "somebody is removing it");
    }

    #[test]
    fn where_more_ports_wait_than_may_the_first_ones_are_free() {
        let held = vec![(5, 'b'), (1, 'd'), (9, 'a'), (3, 'c')];
        assert_eq!(surplus(held.clone(), 2), ['a', 'b']);
        assert!(surplus(held.clone(), 4).is_empty() && surplus(held, 100).is_empty());
    }
}
