//! The task that owns the state: makes changes one after the other, undoes what fails, and keeps the machine
//! as it was told to be.

mod batch;
mod drift;
mod filter;
mod garbage;
mod unfinished;
mod vlans;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Arc, PoisonError},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tracing::{error, info, warn};

use crate::{
    error::{Code, Error, Result},
    kernel::{
        KernelError,
        links::{Link, Observed},
        listeners::Listener,
        step::LinkStep,
    },
    kinds::{self, rule, uplink},
    loops,
    plan::{FilterStep, Installed, NatStep, Plan, Step, World},
    state::{DATAPLANE, Record, State, Write},
    store::{Entry, Store},
};

use self::{drift::Drift, filter::Watch, garbage::Garbage};
use super::{Change, Outcome, Request, Shared, reads};

/// Kernel events come in bursts: one look is enough for all that come within this time.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// How long an uplink keeps its programs after its last rule: to attach them takes tens of milliseconds.
const LINGER: Duration = Duration::from_secs(2);

/// The one owner of the state.
#[derive(Debug)]
pub(super) struct Owner {
    shared: Arc<Shared>,
    store: Arc<dyn Store>,
    /// The state with what is made and about to be stored.
    ahead: State,
    nat: Installed,
    drift: Drift,
    filter: Watch,
    /// When to look at the machine next.
    look_again: Option<Instant>,
    /// Until when uplinks keep their programs without a rule.
    lingers: Option<Instant>,
}

/// What undoes the steps so far, in the order that they were made.
type Undo = Vec<Vec<Step>>;

impl Owner {
    /// Takes stock of the data plane.
    pub(super) fn new(
        shared: Arc<Shared>,
        store: Arc<dyn Store>,
        filter: mpsc::Receiver<()>,
    ) -> Result<Self> {
        let mut nat = Installed::default();
        nat.ports = shared.dataplane.switch_ports()?;
        nat.attached = shared.dataplane.attachments().iter().map(|attachment| attachment.uplink).collect();
        for (slot, rule) in shared.dataplane.rules()? {
            match rule {
                Some(rule) => nat.put(slot, rule),
                None => {
                    warn!(slot = slot.0, "the data plane has half a rule; it is cleared");
                    shared.dataplane.clear_slot(slot)?;
                }
            }
        }
        let ahead = shared.state().clone();
        let (drift, filter) = (Drift::default(), Watch::new(filter));
        Ok(Self { shared, store, ahead, nat, drift, filter, look_again: None, lingers: None })
    }

    /// Makes the machine what the stored state says. After a reboot that is everything, else next to nothing.
    pub(super) async fn catch_up(&mut self) -> Result<()> {
        let observed = self.remove_unfinished().await?;
        self.forget_transient(&observed).await?;
        self.restore_filter().await;
        self.look_again = self.look().await;
        self.take_off_left_over();
        Ok(())
    }

    /// Takes off what an earlier run has left at interfaces towards inside hosts: one that was killed between the removal of
    /// its last rule and the look that comes after. The books begin without any, so that no plan would; with rules, the
    /// look makes them those that are wanted and no others.
    fn take_off_left_over(&self) {
        if !self.nat.rules().is_empty() {
            return;
        }
        let dataplane = &self.shared.dataplane;
        let taken_off = dataplane.set_ports(&[]).and_then(|()| dataplane.set_turns(&BTreeSet::new()));
        if let Err(error) = taken_off {
            warn!(%error, "what an earlier run has left stays where it is");
        }
    }

    /// What was not to outlive a reboot is forgotten when it did not.
    async fn forget_transient(&mut self, observed: &Observed) -> Result<()> {
        let gone: Vec<_> = {
            let state = self.shared.state();
            let transient = state.tuns.values().filter(|spec| !spec.persistent);
            let missing = transient.filter(|spec| observed.link(spec.name.as_str()).is_none());
            let vlans = |name: &str| state.port_vlans.get(name).cloned().map(Record::PortVlans);
            let records =
                missing.flat_map(|spec| [Some(Record::Tun(spec.clone())), vlans(spec.name.as_str())]);
            records.flatten().map(Write::Forget).collect()
        };
        self.commit(&gone).await
    }

    pub(super) async fn run(mut self, mut requests: mpsc::Receiver<Request>, mut events: mpsc::Receiver<()>) {
        let mut next_garbage = Instant::now() + garbage::PERIOD;
        let mut garbage = Garbage::default();
        let dataplane = Arc::clone(&self.shared.dataplane);
        let mut listening = true;
        loop {
            let look_at_filter = self.filter.due;
            tokio::select! {
                request = requests.recv() => {
                    let Some(request) = request else { return };
                    let mut next = Some(request);
                    while let Some(request) = next {
                        next = self.serve(request, &mut requests).await;
                    }
                }
                event = events.recv(), if listening => match event {
                    Some(()) => {
                        self.look_not_after(Some(Instant::now() + DEBOUNCE));
                    }
                    None => {
                        error!("the kernel's events have ended; changes from outside go unnoticed");
                        listening = false;
                    }
                },
                () = self.filter.heard() => self.filter_changed(),
                () = until(look_at_filter), if look_at_filter.is_some() => self.look_at_filter().await,
                () = until(self.look_again), if self.look_again.is_some() => {
                    self.look_again = self.look().await;
                }
                () = garbage.collected() => {}
                () = sleep_until(next_garbage), if !self.nat.rules().is_empty() || !self.nat.ports.is_empty() => {
                    next_garbage = Instant::now() + garbage::PERIOD;
                    if garbage.is_due() {
                        garbage.collect(&dataplane);
                    }
                    if !self.nat.ports.is_empty() {
                        self.age_stations().await;
                    }
                }
            }
        }
    }

    fn world<'a>(&'a self, observed: &'a Observed, state: &'a State, fresh_id: &'a str) -> World<'a> {
        let (nat, options) = (&self.nat, &self.shared.options);
        World { observed, state, nat, options, fresh_id, reachable: &[], listeners: &[] }
    }

    /// Which of the gateways that a change could cut off answer now.
    async fn reachable(&self, change: &Change, observed: &Observed) -> Vec<IpAddr> {
        let at_risk = uplink::at_risk(change, observed, &self.shared.state());
        let mut reachable = Vec::new();
        for (link, gateway) in at_risk {
            match self.shared.kernel.reachable(&link, gateway).await {
                Ok(true) => reachable.push(gateway),
                Ok(false) => info!(%gateway, link, "a gateway does not answer, so it is not waited for"),
                Err(error) => warn!(%gateway, link, %error, "a gateway could not be asked"),
            }
        }
        reachable
    }

    /// Who listens on the host, when a change could take packets from them.
    async fn listeners(&self, change: &Change) -> Result<Vec<Listener>> {
        match change {
            Change::CreateForward(request) if request.enabled => Ok(self.shared.kernel.listeners().await?),
            _ => Ok(Vec::new()),
        }
    }

    /// What a change is planned from. The kernel does not tell when a program opens a TUN, which has to be warned of.
    async fn observe_for(&self, change: &Change) -> Result<Arc<Observed>> {
        match change {
            Change::CreateTun(_)
            | Change::DeleteTun { .. }
            | Change::AttachTap { .. }
            | Change::DetachTap { .. } => Ok(self.shared.kernel.observe_owners().await?),
            _ => self.shared.observe().await,
        }
    }

    async fn change(&mut self, change: &Change) -> Result<Outcome> {
        let before = self.observe_for(change).await?;
        let reachable = self.reachable(change, &before).await;
        let listeners = self.listeners(change).await?;
        let id = uuid::Uuid::new_v4().simple().to_string();
        let plan = {
            let state = self.shared.state();
            let world = self.world(&before, &state, &id[..12]);
            self.warned(kinds::plan(change, World { reachable: &reachable, listeners: &listeners, ..world })?)
        };
        let changed = !plan.is_empty();
        let after = if changed { self.carry_out(&plan, &before).await? } else { before };
        if changed {
            info!("{}", plan.message);
        }
        // Rules may follow an interface that has changed. A change of rules has done its own steps.
        if plan.is_about_links() {
            let due = self.refresh_nat(&after).await;
            self.look_not_after(due);
        } else if changed {
            self.linger();
        }
        if changed {
            let due = self.refresh_vlans(&after).await;
            self.look_not_after(due);
        }
        self.note_writes(&plan.writes);
        let object = reads::object(&self.shared, &plan.subject, &after).await?;
        let Plan { message, warnings, .. } = plan;
        Ok(Outcome { changed, message, object, warnings })
    }

    /// The same plan, with a word about what its rules ask for and this data plane does not do.
    fn warned(&self, mut plan: Plan) -> Plan {
        let shortcomings = plan.steps.iter().filter_map(|step| match step {
            Step::Nat(NatStep::PutRule(_, rule)) => self.shared.dataplane.shortcoming(rule),
            Step::Nat(_) | Step::Link(_) | Step::Filter(_) | Step::Vlan(_) => None,
        });
        let shortcomings: Vec<_> = shortcomings.map(str::to_owned).collect();
        plan.warnings.extend(shortcomings);
        plan
    }

    /// Makes every step and the commit, or nothing; answers what was observed after the last step.
    async fn carry_out(&mut self, plan: &Plan, before: &Arc<Observed>) -> Result<Arc<Observed>> {
        let mut undo = Undo::new();
        match self.try_out(plan, before, &mut undo).await {
            Ok(after) => Ok(after),
            Err(error) => {
                self.ahead = self.shared.state().clone();
                Err(self.undone(error, undo).await)
            }
        }
    }

    /// Undoes what was made; the error, with what could not be undone.
    async fn undone(&mut self, mut error: Error, undo: Undo) -> Error {
        for failure in self.undo(undo).await {
            error.message.push_str(&format!("; and it could not be undone: {failure}"));
        }
        // A held port whose carrier went and came back with an undone step has to be held again.
        let due = self.refresh().await;
        self.look_not_after(due);
        error
    }

    fn look_not_after(&mut self, due: Option<Instant>) {
        self.look_again = [self.look_again, due].into_iter().flatten().min();
    }

    async fn try_out(
        &mut self,
        plan: &Plan,
        before: &Arc<Observed>,
        undo: &mut Undo,
    ) -> Result<Arc<Observed>> {
        self.note_making(&plan.steps).await?;
        for step in &plan.steps {
            self.step(step, before, undo).await?;
        }
        if !plan.is_about_links() {
            self.commit(&plan.writes).await?;
            return Ok(Arc::clone(before));
        }
        let mut after = self.shared.observe().await?;
        // A port may have to be held, or let go, because of what has just changed elsewhere on its ring.
        self.ahead.apply(&plan.writes);
        let holds = holds(&self.ahead, &after);
        if !holds.is_empty() {
            for step in holds {
                self.step(&Step::Link(step), before, undo).await?;
            }
            after = self.shared.observe().await?;
        }
        self.commit(&plan.writes).await?;
        Ok(after)
    }

    async fn step(&mut self, step: &Step, before: &Observed, undo: &mut Undo) -> Result<(), KernelError> {
        let inverse = step.inverse(before, &self.nat);
        self.act(step).await?;
        undo.push(inverse);
        Ok(())
    }

    async fn act(&mut self, step: &Step) -> Result<(), KernelError> {
        match step {
            Step::Link(step) => self.shared.kernel.apply(step).await,
            Step::Filter(step) => self.filter(step).await,
            Step::Vlan(step) => self.vlan(step).await,
            Step::Nat(step) => self.nat(step).await,
        }
    }

    /// Where it may block: iptables is a program, and waits for the lock of others.
    async fn nat(&mut self, step: &NatStep) -> Result<(), KernelError> {
        let (dataplane, todo) = (Arc::clone(&self.shared.dataplane), step.clone());
        let act = move || match &todo {
            NatStep::Attach(uplink) => dataplane.attach(*uplink),
            NatStep::Detach(uplink) => dataplane.detach(*uplink),
            NatStep::PutRule(slot, rule) => dataplane.put_rule(*slot, rule),
            NatStep::RemoveRule(slot, rule) => dataplane.remove_rule(*slot, rule),
            NatStep::SetAddresses(addresses) => dataplane.set_addresses(addresses),
            NatStep::SetPorts(ports) => dataplane.set_ports(ports),
            NatStep::SetTurns(interfaces) => dataplane.set_turns(interfaces),
        };
        tokio::task::spawn_blocking(act)
            .await
            .unwrap_or_else(|error| Err(KernelError::other("change the data plane", error.to_string())))?;
        self.nat.note(step);
        Ok(())
    }

    async fn filter(&mut self, step: &FilterStep) -> Result<(), KernelError> {
        let FilterStep { before, after } = step.clone();
        let (filter, rules) = (Arc::clone(&self.shared.filter), after.clone());
        let done = tokio::task::spawn_blocking(move || filter.change(&before, &rules))
            .await
            .unwrap_or_else(|error| Err(KernelError::other("change the firewall", error.to_string())));
        match &done {
            Ok(()) => self.nat.filter = after,
            Err(error) => self.filter.suspect(error),
        }
        done
    }

    /// Undoes in reverse; goes on after a failure, because half undone is better than not at all.
    async fn undo(&mut self, undo: Undo) -> Vec<KernelError> {
        let mut failures = Vec::new();
        for step in undo.into_iter().rev().flatten() {
            let mut done = self.act(&step).await;
            if done.is_err() {
                // Whatever kept the kernel from it may be over.
                done = self.act(&step).await;
            }
            if let Err(error) = done
                && !step.finds_it_done(&error)
            {
                error!(%step, %error, "a step could not be undone");
                failures.push(error);
            }
        }
        failures
    }

    /// Stores the writes, and only then shows them to readers.
    async fn commit(&mut self, writes: &[Write]) -> Result<()> {
        let entries = writes.iter().map(entry).collect::<Result<Vec<_>>>()?;
        self.write(vec![entries]).await?;
        self.ahead.apply(writes);
        self.shared.state.write().unwrap_or_else(PoisonError::into_inner).apply(writes);
        Ok(())
    }

    /// Durable when it returns, the entries of every change or of none.
    async fn write(&self, mut changes: Vec<Vec<Entry>>) -> Result<()> {
        changes.retain(|entries| !entries.is_empty());
        if changes.is_empty() {
            return Ok(());
        }
        let store = Arc::clone(&self.store);
        tokio::task::spawn_blocking(move || store.commit(&changes))
            .await
            .map_err(|error| Error::new(Code::Internal, format!("the commit ended early: {error}")))??;
        Ok(())
    }

    /// Looks at the machine and repairs what may be repaired without being asked: held ports, rules, addresses.
    /// Answers when to look again without an event.
    async fn refresh(&mut self) -> Option<Instant> {
        let observed = match self.shared.observe().await {
            Ok(observed) => observed,
            Err(error) => {
                warn!(%error, "the kernel could not be observed");
                return Some(Instant::now() + Duration::from_secs(1));
            }
        };
        let holds = {
            let state = self.shared.state();
            holds(&state, &observed)
        };
        for step in holds {
            match self.act(&Step::Link(step.clone())).await {
                Ok(()) => info!("{step}"),
                Err(error) => warn!(%error, "a port on a ring of bridges could not be settled"),
            }
        }
        self.lingers = self.lingers.filter(|until| Instant::now() < *until);
        let rules = self.refresh_nat(&observed).await;
        let vlans = self.refresh_vlans(&observed).await;
        [rules, vlans, self.lingers].into_iter().flatten().min()
    }

    /// After a change of rules: what nobody needs any more is taken off a little later.
    fn linger(&mut self) {
        self.lingers = Some(Instant::now() + LINGER);
        self.look_not_after(self.lingers);
    }

    /// Brings rules and addresses in line with the interfaces as they are now. What is made and about to be stored counts:
    /// a change of the same batch may just have failed. Answers when to try again what could not be done.
    async fn refresh_nat(&mut self, observed: &Observed) -> Option<Instant> {
        let mut problem = None;
        let wanted = rule::all_desired(&self.ahead, observed, &self.nat);
        // Without a rule already: one whose rules go elsewhere now is not waited for.
        let bare = |uplink: &u32| self.lingers.is_some() && self.nat.rules_of(*uplink) == 0;
        let keep = self.nat.attached.iter().copied().filter(bare).collect();
        let steps = rule::steps(&wanted, observed, &self.nat, &keep);
        for step in steps {
            match (self.act(&step).await, &step) {
                (Ok(()), Step::Link(_)) => info!(%step, "put right"),
                (Ok(()), Step::Nat(_) | Step::Filter(_) | Step::Vlan(_)) => {}
                (Err(error), _) => {
                    warn!(%step, %error, "the data plane could not be brought in line");
                    problem.get_or_insert_with(|| format!("{step}: {error}"));
                }
            }
        }
        let again = problem.is_some().then(|| Instant::now() + drift::RETRY);
        self.shared.set_problem(DATAPLANE, problem);
        again
    }
}

/// The steps after which every ring of bridges is held by one port.
fn holds(state: &State, observed: &Observed) -> Vec<LinkStep> {
    let mut steps = loops::settle(observed, |link| kinds::ours(state, observed, link));
    // Spanning tree that somebody else has switched on is about to be switched off again: who let a port forward for that
    // long would have to hold one anew then, and perhaps the other one.
    let without_tree = |bridge: &str| {
        let seen = observed.link(bridge).is_some_and(Link::stp);
        seen && state.bridges.get(bridge).is_some_and(|spec| !spec.stp)
    };
    steps.retain(|step| !matches!(step, LinkStep::Hold { bridge, hold: false, .. } if without_tree(bridge)));
    steps
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

fn entry(write: &Write) -> Result<Entry> {
    match write {
        Write::Put(record) => match record.to_json() {
            Ok(value) => Ok((record.key(), Some(value))),
            Err(error) => Err(Error::new(Code::Internal, format!("{}: {error}", record.key()))),
        },
        Write::Forget(record) => Ok((record.key(), None)),
    }
}
