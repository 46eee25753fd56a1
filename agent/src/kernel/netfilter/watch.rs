//! Puts our chains right when somebody has changed them.
//!
//! nf_tables tells of every change; the old iptables (`iptables-legacy`) tells nobody, so there the worker looks with
//! every garbage collection.

use std::{
    os::fd::AsFd as _,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use tracing::{error, warn};

use crate::kernel::{
    KernelError,
    fastpath::{NFTABLES_EVENTS, drain, listen},
};

use super::tables::Tables;

/// Changes come in bursts: one look is enough for all that come within this time.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// Whoever changes them again and again is not fought without end: so many repairs in such a time, then one each.
const PATIENCE: (usize, Duration) = (8, Duration::from_secs(10));

/// Starts a thread in this one's network namespace that looks after every change, for as long as the process lives.
pub(super) fn watch(tables: Arc<Mutex<Tables>>) -> Result<(), KernelError> {
    let events = listen(NETLINK_NETFILTER, [NFTABLES_EVENTS])?;
    let run = move || {
        let mut repairs: Vec<Instant> = Vec::new();
        loop {
            let mut ready = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => {
                    return error!(%errno, "nf_tables' events have ended: a flush of the rules goes unnoticed");
                }
            }
            thread::sleep(DEBOUNCE);
            if !drain(&events, |_| true) || !look(&tables) {
                continue;
            }
            let (most, within) = PATIENCE;
            repairs.retain(|when| when.elapsed() < within);
            repairs.push(Instant::now());
            if repairs.len() >= most {
                thread::sleep(within);
            }
        }
    };
    thread::Builder::new()
        .name("iptables-watch".to_owned())
        .spawn(run)
        .map(drop)
        .map_err(|error| KernelError::other("start the watch over iptables", error.to_string()))
}

/// One look; whether anything had to be put right.
pub(super) fn look(tables: &Mutex<Tables>) -> bool {
    let mut tables = tables.lock().unwrap_or_else(PoisonError::into_inner);
    if tables.rules().is_empty() {
        return false;
    }
    match tables.repair() {
        Ok(false) => false,
        Ok(true) => {
            warn!("somebody has changed the worker's iptables chains; they are as they were");
            true
        }
        Err(error) => {
            warn!(%error, "the worker's iptables chains could not be looked at");
            false
        }
    }
}
