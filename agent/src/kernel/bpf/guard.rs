//! Somebody takes the programs off an interface: they are put back.
//!
//! That needs no ill will. Below kernel 6.6 the programs are filters of the clsact qdisc, which others use too, and `tc qdisc
//! del dev ens3 clsact` is how many of them tidy up. TCX links are the worker's own, and nobody takes them away by accident.

use std::{collections::BTreeSet, os::fd::AsFd as _, sync::Arc, thread, time::Duration};

use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use tracing::error;

use super::{BpfDataPlane, hooks::is_priority};
use crate::kernel::{
    KernelError,
    fastpath::{drain, listen},
};

/// linux/rtnetlink.h, `RTNLGRP_TC`.
const GROUP: u32 = 4;

/// Whoever tidies up goes from interface to interface.
const BURST: Duration = Duration::from_millis(50);

/// Starts a thread that listens for it.
pub fn watch(plane: Arc<BpfDataPlane>) -> Result<(), KernelError> {
    let events = listen(NETLINK_ROUTE, [GROUP])?;
    let run = move || {
        loop {
            match poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => {
                    return error!(%errno, "the kernel's events have ended: filters that somebody removes stay away");
                }
            }
            let mut bare = BTreeSet::new();
            let mut lost = hear(&events, &mut bare);
            if lost || !bare.is_empty() {
                thread::sleep(BURST);
                lost |= hear(&events, &mut bare);
                plane.put_back(if lost { None } else { Some(&bare) });
            }
        }
    };
    thread::Builder::new()
        .name("filter-guard".to_owned())
        .spawn(run)
        .map(drop)
        .map_err(|error| KernelError::other("start the watch of filters", error.to_string()))
}

/// Reads what there is; whether something could not be read.
fn hear(events: &Socket, bare: &mut BTreeSet<u32>) -> bool {
    drain(events, |message| {
        bare.extend(bared(message));
        false
    })
}

/// The interface that has lost a clsact qdisc, or a filter at one of our priorities: ours, unless it was the worker itself.
///
/// An event is `struct nlmsghdr` and `struct tcmsg` (linux/rtnetlink.h): family, index, handle, parent, and of a filter its
/// priority in the upper half of `info`.
fn bared(message: &[u8]) -> Option<u32> {
    /// linux/pkt_sched.h, `TC_H_CLSACT` as a qdisc's handle.
    const CLSACT: u32 = 0xffff_0000;
    let word = |at: usize| {
        let bytes = message.get(at..at + 4)?;
        bytes.try_into().ok().map(u32::from_ne_bytes)
    };
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    let (index, handle, info) = (word(20)?, word(24)?, word(32)?);
    let ours = match kind {
        libc::RTM_DELQDISC => handle == CLSACT,
        libc::RTM_DELTFILTER => u16::try_from(info >> 16).is_ok_and(is_priority),
        _ => false,
    };
    ours.then_some(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u16, handle: u32, info: u32) -> Vec<u8> {
        let header = [36u32.to_ne_bytes().to_vec(), kind.to_ne_bytes().to_vec(), vec![0; 10]].concat();
        let body = [0u32, 7, handle, 0, info].map(u32::to_ne_bytes).concat();
        [header, body].concat()
    }

    #[test]
    fn what_takes_programs_off_is_told_from_what_does_not() {
        assert_eq!(bared(&event(libc::RTM_DELQDISC, 0xffff_0000, 0)), Some(7));
        assert_eq!(bared(&event(libc::RTM_DELQDISC, 0x8001_0000, 0)), None);
        assert_eq!(bared(&event(libc::RTM_DELTFILTER, 0, 0x7c1 << 16 | 3)), Some(7));
        assert_eq!(bared(&event(libc::RTM_DELTFILTER, 0, 1 << 16)), None);
        assert_eq!(bared(&event(libc::RTM_NEWTFILTER, 0, 0x7c1 << 16)), None);
        assert_eq!(bared(&event(libc::RTM_DELQDISC, 0xffff_0000, 0)[..30]), None);
        assert_eq!(bared(&[]), None);
    }
}
