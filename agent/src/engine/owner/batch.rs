//! Changes of rules that wait for each other share one commit: an fsync takes as long for sixteen as for one.
//!
//! Each is planned and made by itself, as if those before it in the batch were stored already. Nobody is answered and
//! nothing is shown to readers before the commit; when it fails, all of them are undone in reverse.

use std::sync::{Arc, PoisonError};

use tokio::sync::{mpsc, oneshot};
use tracing::info;

use super::{Owner, Undo, entry};
use crate::{
    engine::{Change, Outcome, Request, reads},
    error::{Error, Result},
    kernel::links::Observed,
    kinds,
    plan::{Plan, World},
};

/// So that nobody waits for too many others.
const MOST: usize = 32;

/// A change that is made and not stored yet.
struct Made {
    plan: Plan,
    undo: Undo,
    after: Arc<Observed>,
}

type Waiting = (Result<Made>, oneshot::Sender<Result<Outcome>>);

impl Owner {
    /// Serves a request, and with it those behind it that can share its commit. Gives back the first that cannot.
    pub(super) async fn serve(
        &mut self,
        first: Request,
        requests: &mut mpsc::Receiver<Request>,
    ) -> Option<Request> {
        if !shares_its_commit(&first.change) {
            let outcome = self.change(&first.change).await;
            // The caller may have gone away; what was done stays done.
            let _ = first.answer.send(outcome);
            return None;
        }
        let mut batch = Vec::new();
        let mut next = Some(first);
        let mut other = None;
        while let Some(Request { change, answer }) = next {
            batch.push((self.make(&change).await, answer));
            next = None;
            if batch.len() < MOST
                && let Ok(request) = requests.try_recv()
            {
                match shares_its_commit(&request.change) {
                    true => next = Some(request),
                    false => other = Some(request),
                }
            }
        }
        self.store(batch).await;
        other
    }

    /// Makes every step of a change, or none.
    async fn make(&mut self, change: &Change) -> Result<Made> {
        let observed = self.shared.observe().await?;
        let listeners = self.listeners(change).await?;
        let id = uuid::Uuid::new_v4().simple().to_string();
        let world = self.world(&observed, &self.ahead, &id[..12]);
        let plan = self.warned(kinds::plan(change, World { listeners: &listeners, ..world })?);
        let mut undo = Undo::new();
        for step in &plan.steps {
            if let Err(error) = self.step(step, &observed, &mut undo).await {
                return Err(self.undone(error.into(), undo).await);
            }
        }
        self.ahead.apply(&plan.writes);
        Ok(Made { plan, undo, after: observed })
    }

    /// Stores all that was made, and answers everybody.
    async fn store(&mut self, batch: Vec<Waiting>) {
        let made = || batch.iter().filter_map(|(made, _)| made.as_ref().ok());
        let writes: Result<Vec<_>> =
            made().map(|made| made.plan.writes.iter().map(entry).collect()).collect();
        let stored = match writes {
            Ok(changes) => self.write(changes).await,
            Err(error) => Err(error),
        };
        if let Err(error) = stored {
            return self.give_up(batch, &error).await;
        }
        {
            let mut state = self.shared.state.write().unwrap_or_else(PoisonError::into_inner);
            made().for_each(|made| state.apply(&made.plan.writes));
        }
        self.linger();
        for (made, answer) in batch {
            let outcome = match made {
                Ok(made) => self.outcome(made).await,
                Err(error) => Err(error),
            };
            let _ = answer.send(outcome);
        }
    }

    async fn outcome(&self, made: Made) -> Result<Outcome> {
        let Made { plan, undo: _, after } = made;
        let changed = !plan.is_empty();
        if changed {
            info!("{}", plan.message);
        }
        let object = reads::object(&self.shared, &plan.subject, &after).await?;
        let Plan { message, warnings, .. } = plan;
        Ok(Outcome { changed, message, object, warnings })
    }

    /// Undoes the whole batch. Also who found that nothing had to be done is told so: it may have been another one's.
    async fn give_up(&mut self, batch: Vec<Waiting>, error: &Error) {
        let (mut undo, mut answers) = (Undo::new(), Vec::new());
        for (made, answer) in batch {
            match made {
                Ok(made) => {
                    undo.extend(made.undo);
                    answers.push((error.clone(), answer));
                }
                Err(own) => answers.push((own, answer)),
            }
        }
        self.ahead = self.shared.state().clone();
        let mended = self.undone(error.clone(), undo).await;
        for (own, answer) in answers {
            let error = if own == *error { mended.clone() } else { own };
            let _ = answer.send(Err(error));
        }
    }
}

/// Changes of links take long by themselves, and what comes next is planned from what they have done.
fn shares_its_commit(change: &Change) -> bool {
    match change {
        Change::CreateForward(_)
        | Change::DeleteForward(_)
        | Change::CreateMasquerade(_)
        | Change::DeleteMasquerade(_) => true,
        Change::CreateBridge(_)
        | Change::DeleteBridge { .. }
        | Change::AddPort { .. }
        | Change::AddPortToVlan { .. }
        | Change::AddToVlans { .. }
        | Change::RemoveFromVlans { .. }
        | Change::FixStation { .. }
        | Change::RemovePort { .. }
        | Change::CreateVeth(_)
        | Change::DeleteVeth { .. }
        | Change::MoveVethToBridge { .. }
        | Change::MoveVethToNamespace { .. }
        | Change::CreateTun(_)
        | Change::DeleteTun { .. }
        | Change::AttachTap { .. }
        | Change::DetachTap { .. }
        | Change::AddTunAddress { .. }
        | Change::RemoveTunAddress { .. }
        | Change::CreateVlanLink(_)
        | Change::DeleteVlanLink { .. }
        | Change::FlushNat
        | Change::CreateFirewall(_)
        | Change::DeleteFirewall { .. }
        | Change::FlushFirewall => false,
    }
}
