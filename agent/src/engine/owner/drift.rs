//! Drift: what others did to the worker's objects is put right as soon as the kernel tells of it.
//!
//! Looked at are the objects whose links have changed since the last look, and those that are known to be
//! wrong: with thousands of links a look costs what has changed, and not what there is. Whoever changes the
//! same object again and again wins for a while: repairs are rationed, and the quarrel is reported.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use tracing::{info, warn};

use crate::{
    kernel::links::{At, Link, Observed, Place},
    kinds,
    state::{PortSpec, Record, State, Write},
};

use super::Owner;

/// How many repairs of one object may follow each other at once.
const BURST: u32 = 8;
/// How often there is one more.
const REFILL: Duration = Duration::from_secs(10);
/// When a repair that the kernel refused is tried again, if no event asks for it before.
pub(super) const RETRY: Duration = Duration::from_secs(5);
/// One repair may be what another one waits for: a port needs its bridge, a VLAN its parent.
const PASSES: usize = 4;

/// What is known about drift between two looks.
#[derive(Debug, Default)]
pub(super) struct Drift {
    /// The machine as it was at the last look.
    seen: Option<Arc<Observed>>,
    /// Objects that were not as they should be when they were last looked at, and those written since: what
    /// came and went between two looks is in neither.
    open: BTreeSet<String>,
    credit: HashMap<String, Credit>,
}

/// How many more repairs an object may have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Credit {
    left: u32,
    since: Instant,
}

impl Credit {
    pub(super) fn new(now: Instant) -> Self {
        Self { left: BURST, since: now }
    }

    /// Takes one; otherwise when there will be one.
    pub(super) fn take(&mut self, now: Instant) -> Result<(), Instant> {
        while self.left < BURST && now.duration_since(self.since) >= REFILL {
            self.left += 1;
            self.since += REFILL;
        }
        if self.left == BURST {
            self.since = now;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(self.since + REFILL),
        }
    }

    fn is_full(&self, now: Instant) -> bool {
        now.duration_since(self.since) >= REFILL * (BURST - self.left)
    }
}

/// What looking at one object came to.
enum Mended {
    Right,
    /// Something was done; what was observed afterwards.
    Done(Arc<Observed>),
    /// It cannot be put right now, and why; when to try again, if not at the next event.
    Wrong(String, Option<Instant>),
}

impl Owner {
    /// Looks at the machine and puts right what others changed. Answers when to look again without an event.
    pub(super) async fn look(&mut self) -> Option<Instant> {
        let mut observed = match self.shared.observe().await {
            Ok(observed) => observed,
            Err(error) => {
                warn!(%error, "the kernel could not be observed");
                return Some(Instant::now() + RETRY);
            }
        };
        let mut again = None;
        let mut records = self.concerned(&observed);
        for _ in 0..PASSES {
            let mut changed = false;
            for record in records.values() {
                match self.mend(record, &observed).await {
                    Mended::Right => self.right(record),
                    Mended::Done(after) => (observed, changed) = (after, true),
                    Mended::Wrong(problem, due) => {
                        self.wrong(record, problem);
                        again = [again, due].into_iter().flatten().min();
                    }
                }
            }
            if !changed {
                break;
            }
            records.extend(self.concerned(&observed));
        }
        self.drift.seen = Some(observed);
        let now = Instant::now();
        self.drift.credit.retain(|_, credit| !credit.is_full(now));
        let due = self.refresh().await;
        [again, due].into_iter().flatten().min()
    }

    /// The objects to look at, in the order in which they can be made.
    fn concerned(&self, observed: &Observed) -> BTreeMap<(u8, String), Record> {
        let state = self.shared.state();
        let records = match &self.drift.seen {
            None => state.link_records(),
            Some(seen) => {
                let changed = differences(seen, observed);
                let touched = changed.iter().flat_map(|at| state.link_records_at(at));
                touched.chain(self.drift.open.iter().filter_map(|key| state.link_record(key))).collect()
            }
        };
        records.into_iter().map(|record| ((rank(&record), record.key()), record)).collect()
    }

    async fn mend(&mut self, record: &Record, observed: &Arc<Observed>) -> Mended {
        let plan = {
            let state = self.shared.state();
            kinds::remake(record, self.world(observed, &state, ""))
        };
        let plan = match plan {
            Ok(plan) if plan.is_empty() => return Mended::Right,
            Ok(plan) => plan,
            Err(error) => return Mended::Wrong(error.to_string(), None),
        };
        let (now, key) = (Instant::now(), record.key());
        let credit = self.drift.credit.entry(key.clone()).or_insert_with(|| Credit::new(now));
        if let Err(due) = credit.take(now) {
            let problem =
                "it is changed again and again by someone else; the worker waits before it repairs it";
            return Mended::Wrong(problem.to_owned(), Some(due));
        }
        match self.carry_out(&plan, observed).await {
            Ok(after) => {
                let steps: Vec<_> = plan.steps.iter().map(ToString::to_string).collect();
                info!(object = key, steps = steps.join("; "), "put right");
                Mended::Done(after)
            }
            Err(error) => Mended::Wrong(error.to_string(), Some(now + RETRY)),
        }
    }

    fn right(&mut self, record: &Record) {
        let key = record.key();
        self.drift.open.remove(&key);
        let was_wrong = self.shared.state().problem(&key).is_some();
        if was_wrong {
            info!(object = key, "is as it should be again");
            self.shared.set_problem(&key, None);
        }
    }

    fn wrong(&mut self, record: &Record, problem: String) {
        let key = record.key();
        let known = self.shared.state().problem(&key).is_some_and(|known| known == problem);
        if !known {
            warn!(object = key, problem, "is not as it should be");
        }
        self.shared.set_problem(&key, Some(problem));
        self.drift.open.insert(key);
    }

    /// Sees to it that what was just written is looked at, and what was forgotten is not.
    pub(super) fn note_writes(&mut self, writes: &[Write]) {
        for write in writes {
            match write {
                // They have no link of their own.
                Write::Put(Record::Rule(_) | Record::Firewall(_) | Record::PortVlans(_)) => {}
                Write::Put(record) => drop(self.drift.open.insert(record.key())),
                Write::Forget(record) => drop(self.drift.open.remove(&record.key())),
            }
        }
    }
}

/// What must be there before something else can lie on it comes first.
fn rank(record: &Record) -> u8 {
    match record {
        Record::Bridge(_) => 0,
        Record::Veth(_) | Record::Tun(_) => 1,
        Record::VlanLink(_) => 2,
        Record::Port(_) => 3,
        Record::PortVlans(_) | Record::Rule(_) | Record::Firewall(_) => 4,
    }
}

/// The links that came, went, or are different.
fn differences(before: &Observed, after: &Observed) -> BTreeSet<At> {
    let mut names = BTreeSet::new();
    let places = |observed: &Observed| -> BTreeSet<Place> {
        let named = observed.namespaces.iter().map(|ns| Place::Named(ns.name.clone()));
        std::iter::once(Place::Here).chain(named).collect()
    };
    for place in places(before).union(&places(after)) {
        let (mut old, mut new) = (before.links_at(place).shared(), after.links_at(place).shared());
        let mut note = |link: &Link| {
            names.insert(At::new(place.clone(), &link.name));
        };
        // Both are in the order of their indexes.
        loop {
            let order = match (old.first(), new.first()) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(a), Some(b)) => a.index.cmp(&b.index),
            };
            match (order, old, new) {
                (Ordering::Less, [gone, rest @ ..], _) => {
                    note(gone);
                    old = rest;
                }
                (Ordering::Greater, _, [came, rest @ ..]) => {
                    note(came);
                    new = rest;
                }
                (Ordering::Equal, [a, old_rest @ ..], [b, new_rest @ ..]) => {
                    // One that was not read again is the same to begin with.
                    if !Arc::ptr_eq(a, b) && a != b {
                        note(a);
                        note(b);
                    }
                    (old, new) = (old_rest, new_rest);
                }
                _ => break,
            }
        }
    }
    names
}

impl State {
    /// The objects that have a link there, and those that brought their addresses to it.
    fn link_records_at(&self, at: &At) -> Vec<Record> {
        let mut records: Vec<_> = self.veth_at(at).cloned().map(Record::Veth).into_iter().collect();
        if at.place == Place::Here {
            let name = &at.name;
            records.extend(self.bridges.get(name).cloned().map(Record::Bridge));
            records.extend(self.tuns.get(name).cloned().map(Record::Tun));
            records.extend(self.vlan_links.get(name).cloned().map(Record::VlanLink));
            let brought =
                |spec: &&PortSpec| spec.port == *name || spec.uplink.is_some() && spec.bridge == **name;
            records.extend(self.ports.values().filter(brought).cloned().map(Record::Port));
        }
        records
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{
        Kernel as _,
        fake::{FakeKernel, Faults},
        step::{LinkStep, NewBridge},
    };

    #[tokio::test]
    async fn links_that_came_went_or_changed_are_differences() {
        let kernel = FakeKernel::new(Faults::default());
        let first = kernel.observe().await.unwrap();
        assert!(differences(&first, &first).is_empty());
        let bridge = NewBridge { name: "b".into(), ..NewBridge::default() };
        kernel.act(&LinkStep::CreateBridge(bridge)).unwrap();
        kernel.act(&LinkStep::SetUp { link: At::here("ens4"), up: false }).unwrap();
        kernel.edit(|world| world.namespaces.retain(|ns| ns.name != "lab2"));
        let second = kernel.observe().await.unwrap();
        let named: Vec<_> = differences(&first, &second).iter().map(ToString::to_string).collect();
        assert_eq!(named, ["b", "ens4", "lo in namespace lab2"]);
        assert_eq!(differences(&second, &first), differences(&first, &second));
    }

    #[tokio::test(start_paused = true)]
    async fn repairs_come_in_a_burst_and_then_one_by_one() {
        let mut credit = Credit::new(Instant::now());
        for _ in 0..BURST {
            credit.take(Instant::now()).unwrap();
        }
        let due = credit.take(Instant::now()).unwrap_err();
        assert_eq!(due.duration_since(Instant::now()), REFILL);
        tokio::time::advance(REFILL).await;
        credit.take(Instant::now()).unwrap();
        assert!(credit.take(Instant::now()).is_err());
        assert!(!credit.is_full(Instant::now()));
        tokio::time::advance(REFILL * BURST).await;
        assert!(credit.is_full(Instant::now()));
    }
}
