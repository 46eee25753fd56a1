//! Flows out of the tables: the live ones listed, the dead ones removed.

use std::{panic, path::Path, thread};

use aya::maps::MapData;
use nix::time::{ClockId, clock_gettime};
use telecluster_common::{
    maps::{Epoch, Flow as Record, FlowKey, Rule, TICK_BITS},
    nat::collect::MARGIN,
    nat::life,
    tcp::{FlowState, timeout},
};

use super::{
    batch,
    collect::Collector,
    failed,
    family::Octets,
    join::{self, Look, Sorter},
    object::{self, Object},
};
use crate::kernel::{
    KernelError,
    dataplane::{FlowVisitor, MapPressure},
};

/// `flow4` and `flow6`.
#[derive(Debug)]
pub(super) struct FlowTables {
    ipv4: Table,
    ipv6: Table,
    collect4: Collector<FlowKey<[u8; 4]>>,
    collect6: Collector<FlowKey<[u8; 16]>>,
}

#[derive(Debug)]
pub(super) struct Table {
    name: &'static str,
    data: MapData,
    sizes: (usize, usize),
    capacity: u32,
}

impl Table {
    pub(super) fn open(object: &Object, name: &'static str) -> Result<Self, KernelError> {
        let data = object::duplicate(object, name)?;
        let info = data.info().map_err(|error| failed(format!("describe the map {name}"), &error))?;
        let sizes = (info.key_size() as usize, info.value_size() as usize);
        Ok(Self { name, data, sizes, capacity: info.max_entries() })
    }

    pub(super) fn for_each<K: Copy, V: Copy>(&self, visit: impl FnMut(&K, &V)) -> Result<(), KernelError> {
        batch::for_each(self.data.fd(), self.sizes, visit)
            .map_err(|error| failed(format!("read the map {}", self.name), &error))
    }

    /// Every live flow. Of a million, a thread would read for half a second, and join for as long: two do both.
    fn visit<A: Octets>(
        &self,
        rules: &[Rule],
        epoch: Epoch,
        now: u64,
        visit: FlowVisitor<'_>,
    ) -> Result<(), KernelError> {
        let sorter = Sorter::default();
        let middle = self.capacity.next_power_of_two() / 2;
        let read = |buckets| {
            let mut heaps = sorter.heaps::<A>();
            batch::for_each_in(
                self.data.fd(),
                self.sizes,
                buckets,
                |key: &FlowKey<A>, record: &Record<A>| {
                    if is_alive(key, record, rules, now, 0) {
                        sorter.put(&mut heaps, key, record);
                    }
                },
            )
            .map_err(|error| failed(format!("read the map {}", self.name), &error))?;
            Ok(heaps)
        };
        let (low, high) = both(|| read(0..middle), || read(middle..u32::MAX));
        let mut heaps = join::merge(low?, high?);
        let others = heaps.split_off(heaps.len() / 2);
        let look = Look { rules, epoch, now };
        both(|| sorter.join(heaps, &look, visit), || sorter.join(others, &look, visit));
        Ok(())
    }

    /// What may be over.
    fn over<A: Octets>(&self, rules: &[Rule], now: u64) -> Result<Vec<FlowKey<A>>, KernelError> {
        let mut over = Vec::new();
        self.for_each(|key: &FlowKey<A>, record: &Record<A>| {
            if !is_alive(key, record, rules, now, MARGIN) {
                over.push(*key);
            }
        })?;
        Ok(over)
    }

    /// Frees an entry, if it still is what it was. Another one is put back: for a moment it was not there, unless the key was
    /// given another value in that very moment.
    pub(super) fn delete<K: Copy, V: Copy + PartialEq>(&self, key: &K, value: &V) -> Result<(), KernelError> {
        let freed = batch::take(self.data.fd(), self.sizes, key).and_then(|taken: Option<V>| match taken {
            Some(taken) if taken != *value => batch::put(self.data.fd(), self.sizes, key, &taken),
            Some(_) | None => Ok(()),
        });
        freed.map_err(|error| failed(format!("free an entry of {}", self.name), &error))
    }

    pub(super) fn pressure<K: Copy, V: Copy>(&self) -> Result<MapPressure, KernelError> {
        let mut entries = 0;
        self.for_each::<K, V>(|_, _| entries += 1)?;
        Ok(MapPressure { map: self.name, entries, capacity: u64::from(self.capacity) })
    }
}

impl FlowTables {
    /// `directory`: where the programs are pinned.
    pub(super) fn open(object: &Object, directory: &Path) -> Result<Self, KernelError> {
        Ok(Self {
            ipv4: Table::open(object, "flow4")?,
            ipv6: Table::open(object, "flow6")?,
            collect4: Collector::open(directory)?,
            collect6: Collector::open(directory)?,
        })
    }

    /// Every live flow, part by part. `rules`: what is in each slot; `epoch`: what ways are learned under.
    pub(super) fn visit(
        &self,
        rules: &[Rule],
        epoch: Epoch,
        visit: FlowVisitor<'_>,
    ) -> Result<(), KernelError> {
        let now = now()?;
        self.ipv4.visit::<[u8; 4]>(rules, epoch, now, visit)?;
        self.ipv6.visit::<[u8; 16]>(rules, epoch, now, visit)
    }

    /// Frees what is over; returns how many flows.
    pub(super) fn collect_garbage(&self, rules: &[Rule]) -> Result<usize, KernelError> {
        let now = now()?;
        let ipv4 = self.collect4.collect(&self.ipv4.over(rules, now)?, 0)?;
        let ipv6 = self.collect6.collect(&self.ipv6.over(rules, now)?, 0)?;
        Ok(ipv4 + ipv6)
    }

    pub(super) fn pressure(&self) -> Result<Vec<MapPressure>, KernelError> {
        Ok(vec![
            self.ipv4.pressure::<FlowKey<[u8; 4]>, Record<[u8; 4]>>()?,
            self.ipv6.pressure::<FlowKey<[u8; 16]>, Record<[u8; 16]>>()?,
        ])
    }
}

/// Two results at once.
fn both<T: Send>(one: impl FnOnce() -> T, other: impl FnOnce() -> T + Send) -> (T, T) {
    thread::scope(|scope| {
        let other = scope.spawn(other);
        let one = one();
        (one, other.join().unwrap_or_else(|panic| panic::resume_unwind(panic)))
    })
}

/// The programs' clock.
pub(super) fn now() -> Result<u64, KernelError> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)
        .map_err(|errno| KernelError::errno("read the clock", errno as i32))?;
    let (seconds, nanoseconds) = (time.tv_sec().unsigned_abs(), time.tv_nsec().unsigned_abs());
    Ok(seconds * 1_000_000_000 + nanoseconds)
}

/// False when it is over: its rule is gone, or it has been idle for longer than its state allows.
fn is_alive<A: Octets>(key: &FlowKey<A>, record: &Record<A>, rules: &[Rule], now: u64, grace: u32) -> bool {
    let rule = rules.get(record.rule as usize).filter(|rule| rule.generation == record.generation);
    rule.is_some_and(|rule| {
        let allowed = timeout(&rule.timeouts, key.proto, FlowState::from_u8(record.state));
        let limit = u64::from(life::memory(allowed)) + u64::from(grace);
        idle(record.last_seen, now) <= limit
    })
}

/// Ticks since a flow was seen; a program may have seen it after we looked at the clock.
#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "a clock that wraps")]
pub(super) fn idle(last_seen: u32, now: u64) -> u64 {
    let idle = ((now >> TICK_BITS) as u32).wrapping_sub(last_seen) as i32;
    u64::try_from(idle).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use telecluster_common::maps::{Direction, ticks};

    use super::{
        super::join::tests::{SECOND, key, record, rule},
        *,
    };

    #[test]
    fn a_flow_ends_with_its_rule_or_with_its_time() {
        let (key, record) = (key(Direction::Out), record(Direction::Out));
        let rules = |generation| [rule(0), rule(0), rule(0), rule(generation)];
        let lives = |rules: &[Rule], seconds: u64, grace| {
            is_alive(&key, &record, rules, (12 + seconds) * SECOND, grace)
        };
        assert!(lives(&rules(1), 299, 0));
        assert!(!lives(&rules(2), 299, 0), "the slot has another rule now");
        assert!(!lives(&[], 299, 0), "there is no such slot");
        // UDP idles 300 s, and the other direction may have been busy for 17 more.
        assert!(lives(&rules(1), 316, 0) && !lives(&rules(1), 319, 0));
        assert!(lives(&rules(1), 319, MARGIN));
    }

    #[test]
    fn a_flow_that_was_seen_after_we_looked_at_the_clock_is_not_idle() {
        assert_eq!(idle(ticks(12), 11 * SECOND), 0);
        assert_eq!(idle(u32::MAX, 0), 1, "the clock of ticks wraps");
    }
}
