//! External ports whose time is over, freed.

use std::collections::HashMap;

use telecluster_common::{
    maps::{Binding, EndpointKey, Moved, Rule},
    nat::{HOLD_DOWN, collect::MARGIN},
};

use super::{
    family::Octets,
    flows::{Table, idle, now},
    object::Object,
};
use crate::kernel::{KernelError, dataplane::MapPressure};

/// `binding4` and `moved4`, and those of IPv6.
#[derive(Debug)]
pub(super) struct BindingTables {
    ipv4: Pair,
    ipv6: Pair,
}

#[derive(Debug)]
struct Pair {
    bindings: Table,
    moved: Table,
}

impl BindingTables {
    pub(super) fn open(object: &Object) -> Result<Self, KernelError> {
        let pair = |bindings, moved| {
            Ok(Pair { bindings: Table::open(object, bindings)?, moved: Table::open(object, moved)? })
        };
        Ok(Self { ipv4: pair("binding4", "moved4")?, ipv6: pair("binding6", "moved6")? })
    }

    /// Frees what nobody can use any more. `rules`: what is in each slot.
    pub(super) fn collect_garbage(&self, rules: &[Rule]) -> Result<(), KernelError> {
        let now = now()?;
        self.ipv4.collect_garbage::<[u8; 4]>(rules, now)?;
        self.ipv6.collect_garbage::<[u8; 16]>(rules, now)
    }

    pub(super) fn pressure(&self) -> Result<Vec<MapPressure>, KernelError> {
        Ok(vec![
            self.ipv4.bindings.pressure::<EndpointKey<[u8; 4]>, Binding<[u8; 4]>>()?,
            self.ipv6.bindings.pressure::<EndpointKey<[u8; 16]>, Binding<[u8; 16]>>()?,
        ])
    }
}

impl Pair {
    fn collect_garbage<A: Octets>(&self, rules: &[Rule], now: u64) -> Result<(), KernelError> {
        // First, so that what is made meanwhile is not taken for something whose binding is gone.
        let mut moved = Vec::new();
        self.moved.for_each(|key: &EndpointKey<A>, to: &Moved<A>| moved.push((*key, *to)))?;
        let mut dead = Vec::new();
        let mut holders: HashMap<EndpointKey<A>, (A, u16)> = HashMap::new();
        self.bindings.for_each(|key: &EndpointKey<A>, binding: &Binding<A>| {
            if is_over(binding, rules, now) {
                dead.push(*key);
            } else {
                holders.insert(*key, (binding.inside, binding.port));
            }
        })?;
        let is_lost = |(key, to): &(EndpointKey<A>, Moved<A>)| {
            let external = EndpointKey { address: to.address, port: to.port, proto: key.proto, unused: 0 };
            holders.get(&external) != Some(&(key.address, key.port))
        };
        // What leads to a binding goes first: without it, its socket would be taken for one that has its own port.
        for (key, _) in moved.iter().filter(|entry| is_lost(entry)) {
            self.moved.delete(key)?;
        }
        for key in dead {
            self.bindings.delete(&key)?;
        }
        Ok(())
    }
}

/// Its rule is gone, or it has expired and nobody has to be kept from its port any more. The margin keeps the agent
/// away from a binding that its inside socket may just be using again.
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
