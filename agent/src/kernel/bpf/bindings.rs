//! External ports whose time is over, freed.

use std::{collections::HashMap, path::Path};

use telecluster_common::{
    maps::{Binding, EndpointKey, Moved, Rule},
    nat::{HOLD_DOWN, collect::MARGIN},
};

use super::{
    collect::{Collected, Collector},
    family::Octets,
    flows::{Table, idle, now},
    object::Object,
};
use crate::kernel::{KernelError, dataplane::MapPressure};

/// `binding4` and `moved4`, and those of IPv6.
#[derive(Debug)]
pub(super) struct BindingTables {
    ipv4: Pair<[u8; 4]>,
    ipv6: Pair<[u8; 16]>,
}

#[derive(Debug)]
struct Pair<A> {
    bindings: Table,
    moved: Table,
    collector: Collector<EndpointKey<A>>,
}

impl BindingTables {
    /// `directory`: where the programs are pinned.
    pub(super) fn open(object: &Object, directory: &Path) -> Result<Self, KernelError> {
        Ok(Self {
            ipv4: Pair::open(object, directory, ["binding4", "moved4"])?,
            ipv6: Pair::open(object, directory, ["binding6", "moved6"])?,
        })
    }

    /// Frees what nobody can use any more; how many bindings. `rules`: what was in each slot a moment ago.
    pub(super) fn collect_garbage(&self, rules: &[Rule]) -> Result<usize, KernelError> {
        let now = now()?;
        Ok(self.ipv4.collect_garbage(rules, now)? + self.ipv6.collect_garbage(rules, now)?)
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

    fn collect_garbage(&self, rules: &[Rule], now: u64) -> Result<usize, KernelError> {
        // First, so that what is made meanwhile is not taken for something whose binding is gone.
        let mut moved = Vec::new();
        self.moved.for_each(|key: &EndpointKey<A>, to: &Moved<A>| moved.push((*key, *to)))?;
        let mut over = Vec::new();
        // Those that are over too: a binding may be its socket's again in a moment, and what leads to it goes after it.
        let mut holders: HashMap<EndpointKey<A>, (A, u16)> = HashMap::new();
        self.bindings.for_each(|key: &EndpointKey<A>, binding: &Binding<A>| {
            if is_over(binding, rules, now) {
                over.push(*key);
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
        self.collector.collect(&over)
    }
}

/// Whether the program is asked to remove it, which decides by what is there by then: its rule is gone, or it has expired and
/// nobody has to be kept from its port any more.
fn is_over<A>(binding: &Binding<A>, rules: &[Rule], now: u64) -> bool {
    let in_force = rules.get(binding.rule as usize).is_some_and(|rule| rule.generation == binding.generation);
    !in_force || idle(binding.expires, now) > u64::from(HOLD_DOWN + MARGIN)
}

#[cfg(test)]
mod tests {
    use telecluster_common::maps::{REMOTES, Timeouts, ticks};

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
        let rule = |generation| [Rule { generation, used: 1, uplink: 2, flags: 0, timeouts: Timeouts::RFC }];
        let over = |rules: &[Rule], seconds: u64| is_over(&binding, rules, seconds * 1_000_000_000);
        assert!(!over(&rule(5), 900));
        assert!(!over(&rule(5), 1120), "held down");
        assert!(over(&rule(5), 1140));
        assert!(over(&rule(6), 900), "the slot has another rule now");
        assert!(over(&[], 900), "there is no such slot");
    }
}
