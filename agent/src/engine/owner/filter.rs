//! The firewall rules, kept as they were asked for: put in place at the start, and again when somebody has flushed them.

use std::{sync::Arc, time::Duration};

use nix::errno::Errno;
use tokio::{sync::mpsc, time::Instant};
use tracing::{error, info, warn};

use crate::{kernel::KernelError, kinds::firewall};

use super::{DEBOUNCE, Owner, drift::Credit};

/// A look runs two programs: whoever changes rules of his own again and again costs no more than four looks a second.
const LOOKS: Duration = Duration::from_millis(250);
/// When rules that could not be put in place are tried again, if no event asks for it before.
const AGAIN: Duration = Duration::from_secs(2);

/// What is heard of the kernel's packet filter.
#[derive(Debug)]
pub(super) struct Watch {
    events: mpsc::Receiver<()>,
    listening: bool,
    /// When to look, if there is a reason to.
    pub(super) due: Option<Instant>,
    /// Not before then.
    rested: Option<Instant>,
    /// A change failed: what there is may be neither what was nor what should be.
    doubt: bool,
    credit: Credit,
}

impl Watch {
    pub(super) fn new(events: mpsc::Receiver<()>) -> Self {
        let credit = Credit::new(Instant::now());
        Self { events, listening: true, due: None, rested: None, doubt: false, credit }
    }

    /// A change failed, and may have left something: to be looked at soon, whatever is heard. Not where there is no iptables:
    /// nothing has been done, nor will be.
    pub(super) fn suspect(&mut self, error: &KernelError) {
        if error.errno != Some(Errno::ENOPKG as i32) {
            self.doubt = true;
            self.due = Some(Instant::now() + AGAIN);
        }
    }

    /// Waits for the next change; never ends where the kernel tells of none.
    pub(super) async fn heard(&mut self) {
        while self.listening {
            match self.events.recv().await {
                Some(()) => return,
                None => self.listening = false,
            }
        }
        std::future::pending().await
    }
}

impl Owner {
    /// Puts the firewall rules in place that are stored; whether they were not. Without one no program is run.
    pub(super) async fn restore_filter(&mut self) -> bool {
        let wanted = firewall::wanted(&self.shared.state());
        if wanted.is_empty() && !self.filter.doubt {
            return false;
        }
        let (filter, rules) = (Arc::clone(&self.shared.filter), wanted.clone());
        match tokio::task::spawn_blocking(move || filter.restore(&rules)).await {
            Ok(Ok(changed)) => {
                if changed {
                    info!(rules = wanted.len(), "the firewall rules were put in place again");
                }
                self.nat.filter = wanted;
                self.filter.doubt = false;
                return changed;
            }
            Ok(Err(error)) => {
                warn!(%error, "the firewall rules could not be put in place");
                self.filter.suspect(&error);
            }
            Err(error) => error!(%error, "putting the firewall rules in place ended early"),
        }
        false
    }

    /// Somebody, this worker too, has changed rules: plans to look at ours, when there are any.
    pub(super) fn filter_changed(&mut self) {
        if self.shared.state().firewall.is_empty() {
            return;
        }
        let soon = Instant::now() + DEBOUNCE;
        let due = self.filter.rested.map_or(soon, |rested| soon.max(rested));
        self.filter.due.get_or_insert(due);
    }

    pub(super) async fn look_at_filter(&mut self) {
        self.filter.due = None;
        let changed = self.restore_filter().await;
        let now = Instant::now();
        self.filter.rested = Some(now + LOOKS);
        if !changed {
            return;
        }
        warn!("somebody has changed the worker's firewall chains; they are as they were");
        // Whoever changes them again and again is not fought without end.
        if let Err(due) = self.filter.credit.take(now) {
            self.filter.rested = Some(due);
        }
    }
}
