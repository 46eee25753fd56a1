//! Puts our chains right when somebody has changed them.

use std::{
    ops::ControlFlow,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tracing::warn;

use super::tables::Tables;
use crate::kernel::{KernelError, iptables::watch};

/// Changes come in bursts: one look is enough for all that come within this time.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// Whoever changes them again and again is not fought without end: so many repairs in such a time, then one each.
const PATIENCE: (usize, Duration) = (8, Duration::from_secs(10));
/// When a look failed, the next one comes without a change.
const AGAIN: Duration = Duration::from_secs(1);

/// Starts a thread in this one's network namespace that looks after every change, for as long as the process lives.
pub(super) fn watch(tables: Arc<Mutex<Tables>>, legacy: bool) -> Result<(), KernelError> {
    let mut repairs: Vec<Instant> = Vec::new();
    let changed = move || {
        let repaired = loop {
            match look(&tables) {
                Ok(repaired) => break repaired,
                Err(Unseen) => thread::sleep(AGAIN),
            }
        };
        if repaired {
            let (most, within) = PATIENCE;
            repairs.retain(|when| when.elapsed() < within);
            repairs.push(Instant::now());
            if repairs.len() >= most {
                thread::sleep(within);
            }
        }
        ControlFlow::Continue(())
    };
    match legacy {
        true => watch::legacy("iptables-watch", || true, changed),
        false => watch::nf_tables("iptables-watch", DEBOUNCE, changed),
    }
}

/// The chains could not be looked at, which was said.
pub(super) struct Unseen;

/// One look; whether anything had to be put right.
pub(super) fn look(tables: &Mutex<Tables>) -> Result<bool, Unseen> {
    let mut tables = tables.lock().unwrap_or_else(PoisonError::into_inner);
    if tables.is_idle() {
        return Ok(false);
    }
    let repaired = tables.repair().map_err(|error| {
        warn!(%error, "the worker's iptables chains could not be looked at");
        Unseen
    })?;
    if repaired {
        warn!("somebody has changed the worker's iptables chains; they are as they were");
    }
    Ok(repaired)
}
