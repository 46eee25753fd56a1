//! Tells of changes of the kernel's packet filter, so that the worker's rules come back when somebody has flushed them.
//!
//! nf_tables tells of every change; the old iptables (`iptables-legacy`) tells nobody.

use std::{os::fd::AsFd as _, thread};

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use tokio::sync::mpsc::{self, error::TrySendError};
use tracing::error;

use crate::kernel::{
    KernelError,
    fastpath::{NFTABLES_EVENTS, drain, listen},
};

/// Starts a thread in this one's network namespace that tells of every change, as long as somebody listens.
pub(super) fn watch() -> Result<mpsc::Receiver<()>, KernelError> {
    let events = listen(NETLINK_NETFILTER, [NFTABLES_EVENTS])?;
    // One message in the channel says it all: look again.
    let (sender, receiver) = mpsc::channel(1);
    let run = move || {
        loop {
            let mut ready = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => {
                    return error!(%errno, "nf_tables' events have ended: a flush of the rules goes unnoticed");
                }
            }
            let changed = drain(&events, |_| true);
            if changed && matches!(sender.try_send(()), Err(TrySendError::Closed(()))) {
                return;
            }
        }
    };
    thread::Builder::new()
        .name("firewall-watch".to_owned())
        .spawn(run)
        .map(|_| receiver)
        .map_err(|error| KernelError::other("start the watch over the firewall", error.to_string()))
}
