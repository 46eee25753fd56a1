//! What the fast path has to know of the kernel.
//!
//! A packet on the fast path passes no bridge, no route and no netfilter hook. That is right only as long as these
//! would have decided as they did when the flow was learned, so a thread of its own listens to the kernel:
//!
//! | file | question |
//! |---|---|
//! | [`changes`] | has anything changed that packets are forwarded by? |
//! | [`netfilter`] | has the host rules of its own, which must see every packet? |
//! | [`docker`] | are they Docker's, and would they say the same about the next packet? |
//! | [`alike`] | does anything but addresses decide where a packet goes? |
//!
//! While the worker is not running nobody answers them; that is what the short leases of fast flows are for.

mod alike;
mod changes;
mod docker;
pub(super) mod netfilter;

use std::{
    os::fd::AsFd as _,
    thread,
    time::{Duration, Instant},
};

use netlink_sys::{
    Socket, SocketAddr,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
};
use rtnetlink::MulticastGroup;
use tracing::{error, warn};

use self::changes::Changes;
use super::KernelError;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// Something that packets are forwarded by: what was learned before does not hold any more.
    Changed,
    /// Nothing, for a while: what is known holds.
    Quiet,
    /// What the host has that may decide about forwarded packets. Everything that was learned before does not hold any
    /// more.
    Deciders {
        /// Whether flows under way may pass the host's packet filter by, and if not, why not.
        filter: Result<(), String>,
        /// Whether nothing but addresses and traffic class decides where a packet goes, and if not, what else.
        alike: Result<(), String>,
    },
}

/// What becomes of the fast path when the host has filter rules of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Every packet passes them.
    Respect,
    /// Packets of flows under way do not.
    Bypass,
}

/// Group of nf_tables' own events (linux/netfilter/nfnetlink.h NFNLGRP_NFTABLES).
pub(super) const NFTABLES_EVENTS: u32 = 7;

const ROUTE_EVENTS: [MulticastGroup; 9] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
    MulticastGroup::Ipv4Netconf,
    MulticastGroup::Ipv6Netconf,
    MulticastGroup::Nexthop,
];

/// How often the programs hear that somebody still listens, in milliseconds: several times before they stop to believe it.
const AWAKE: u16 = 5000;

/// Bursts of events must fit; when they do not, everything counts as changed.
const RECEIVE_BUFFER: usize = 1 << 20;

/// Tells once how things are, then starts a thread in this one's network namespace that tells what changes, for as
/// long as the process lives.
pub fn watch(policy: Policy, tell: impl Fn(Notice) + Send + 'static) -> Result<(), KernelError> {
    let routes = listen(NETLINK_ROUTE, ROUTE_EVENTS.map(|group| group as u32))?;
    let filters = listen(NETLINK_NETFILTER, [NFTABLES_EVENTS])?;
    let (rules, policies) = alike::events()?;
    tell(deciders(policy));
    let run = move || {
        let mut changes = Changes::default();
        let mut told = Instant::now();
        loop {
            let mut ready = [
                PollFd::new(routes.as_fd(), PollFlags::POLLIN),
                PollFd::new(filters.as_fd(), PollFlags::POLLIN),
                PollFd::new(rules.as_fd(), PollFlags::POLLIN),
                // without IPsec: the one before, once more
                PollFd::new(policies.as_ref().unwrap_or(&rules).as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut ready, AWAKE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => {
                    return error!(%errno, "the kernel's events have ended: no flow is fast any more");
                }
            }
            let [routes_ready, filters_ready, rules_ready, policies_ready] =
                ready.map(|fd| fd.any().unwrap_or(false));
            if routes_ready && drain(&routes, |message| changes.matters(message)) {
                tell(Notice::Changed);
            }
            let decides = [
                filters_ready && drain(&filters, |_| true),
                rules_ready && drain(&rules, |_| true),
                policies_ready && policies.as_ref().is_some_and(|policies| drain(policies, |_| true)),
            ];
            if decides.contains(&true) {
                tell(deciders(policy));
            }
            if told.elapsed() >= Duration::from_millis(u64::from(AWAKE)) {
                told = Instant::now();
                tell(Notice::Quiet);
            }
        }
    };
    thread::Builder::new()
        .name("fast-path-watch".to_owned())
        .spawn(run)
        .map(drop)
        .map_err(|error| KernelError::other("start the fast path's watch", error.to_string()))
}

fn deciders(policy: Policy) -> Notice {
    let filter = match policy {
        Policy::Respect => netfilter::clear(),
        Policy::Bypass => Ok(()),
    };
    Notice::Deciders { filter, alike: alike::alike() }
}

pub(super) fn listen<const N: usize>(protocol: isize, groups: [u32; N]) -> Result<Socket, KernelError> {
    let failed = |error: std::io::Error| {
        KernelError::errno("listen to the kernel's events", error.raw_os_error().unwrap_or_default())
    };
    let mut socket = Socket::new(protocol).map_err(failed)?;
    socket.bind(&SocketAddr::new(0, 0)).map_err(failed)?;
    for group in groups {
        socket.add_membership(group).map_err(failed)?;
    }
    socket.set_rx_buf_sz(RECEIVE_BUFFER).map_err(failed)?;
    socket.set_non_blocking(true).map_err(failed)?;
    Ok(socket)
}

/// Reads what there is; whether any of it mattered. What was lost or cannot be read does.
pub(super) fn drain(socket: &Socket, mut matters: impl FnMut(&[u8]) -> bool) -> bool {
    let mut any = false;
    loop {
        match socket.recv_from_full() {
            Ok((bytes, _)) => any |= matters(&bytes),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return any,
            Err(error) => {
                if error.raw_os_error() != Some(Errno::ENOBUFS as i32) {
                    warn!(%error, "an event of the kernel could not be read");
                }
                return true;
            }
        }
    }
}
