//! Tells of changes of the kernel's packet filter, so that the worker's rules come back when somebody has flushed them.
//!
//! nf_tables tells of every change. The old iptables (`iptables-legacy`) tells nobody; there a look at how many rules each
//! of its tables has and how long they are costs one call for each, and no program. What changes neither is not seen.

use std::{
    fs, io,
    ops::ControlFlow,
    os::fd::{AsFd as _, AsRawFd as _},
    thread,
    time::Duration,
};

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use socket2::{Domain, Protocol, Socket, Type};
use tracing::error;

use crate::kernel::{
    KernelError,
    fastpath::{NFTABLES_EVENTS, drain, listen},
};

/// How often the tables of the old iptables are looked at.
const LEGACY: Duration = Duration::from_secs(1);

/// Starts a thread in this one's network namespace that says when nf_tables has changed, until it is told to stop. What comes
/// within `together` is one change.
pub(in crate::kernel) fn nf_tables(
    name: &str,
    together: Duration,
    mut changed: impl FnMut() -> ControlFlow<()> + Send + 'static,
) -> Result<(), KernelError> {
    let events = listen(NETLINK_NETFILTER, [NFTABLES_EVENTS])?;
    start(name, move || {
        loop {
            let mut ready = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => {
                    return error!(%errno, "nf_tables' events have ended: a flush of the rules goes unnoticed");
                }
            }
            thread::sleep(together);
            if drain(&events, |_| true) && changed().is_break() {
                return;
            }
        }
    })
}

/// The same for the tables of the old iptables, for as long as `wanted` says so.
pub(in crate::kernel) fn legacy(
    name: &str,
    wanted: impl Fn() -> bool + Send + 'static,
    mut changed: impl FnMut() -> ControlFlow<()> + Send + 'static,
) -> Result<(), KernelError> {
    let mut known = tables();
    start(name, move || {
        while wanted() {
            thread::sleep(LEGACY);
            let now = tables();
            if now == known {
                continue;
            }
            known = now;
            if changed().is_break() {
                return;
            }
        }
    })
}

fn start(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), KernelError> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map(drop)
        .map_err(|error| KernelError::other(format!("start {name}"), error.to_string()))
}

/// A table of the old iptables: its family's socket domain, its name, how many rules it has, and their bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Table {
    ipv6: bool,
    name: String,
    rules: u32,
    bytes: u32,
}

/// Whether the old iptables has tables here.
pub(super) fn has_legacy_tables() -> bool {
    !tables().is_empty()
}

/// The tables that are loaded in this thread's network namespace; to ask for another one would load it.
fn tables() -> Vec<Table> {
    let mut tables = Vec::new();
    for (ipv6, list) in [(false, "ip_tables_names"), (true, "ip6_tables_names")] {
        // Absent: this kernel has no such thing.
        let names = fs::read_to_string(format!("/proc/thread-self/net/{list}")).unwrap_or_default();
        let sizes = names.lines().filter_map(|name| {
            let (rules, bytes) = sizes(ipv6, name).ok()?;
            Some(Table { ipv6, name: name.to_owned(), rules, bytes })
        });
        tables.extend(sizes);
    }
    tables
}

/// linux/netfilter_ipv4/ip_tables.h: `struct ipt_getinfo`, which is that of IPv6 too.
#[repr(C)]
#[derive(Default)]
struct Info {
    name: [u8; 32],
    valid_hooks: u32,
    hook_entry: [u32; 5],
    underflow: [u32; 5],
    entries: u32,
    size: u32,
}

/// `IPT_SO_GET_INFO`, `IP6T_SO_GET_INFO`
const GET_INFO: libc::c_int = 64;

fn sizes(ipv6: bool, name: &str) -> io::Result<(u32, u32)> {
    let (domain, level) =
        if ipv6 { (Domain::IPV6, libc::IPPROTO_IPV6) } else { (Domain::IPV4, libc::IPPROTO_IP) };
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
    let mut info = Info::default();
    // The last byte stays 0.
    for (place, byte) in info.name.iter_mut().take(31).zip(name.bytes()) {
        *place = byte;
    }
    let mut length = libc::socklen_t::try_from(size_of::<Info>()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `length` bytes into `info`, which is that long and takes any bytes.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            GET_INFO,
            std::ptr::from_mut(&mut info).cast(),
            &raw mut length,
        )
    };
    Errno::result(done)?;
    Ok((info.entries, info.size))
}
