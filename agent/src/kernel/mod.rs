//! Everything that touches the kernel, behind traits that have a fake.

pub mod bpf;
mod bridge_filter;
pub mod dataplane;
mod dump;
mod ethtool;
pub mod fake;
pub mod fastpath;
pub mod filter;
mod forwarding;
pub mod host;
pub mod iptables;
pub mod links;
pub mod listeners;
mod names;
pub mod netdev;
pub mod netfilter;
pub mod netlink;
mod netns;
mod observe;
pub mod ovs;
mod places;
mod queue;
mod reach;
pub mod routes;
mod rtnl;
pub mod step;
pub mod switch;
mod tun;
mod view;
pub mod xdp;

use std::{net::IpAddr, sync::Arc};

use async_trait::async_trait;
use tokio::sync::mpsc;

use self::{links::Observed, listeners::Listener, step::LinkStep};

/// Lets loopback take packets from the host's own addresses.
pub const ACCEPT_LOCAL: &str = "/proc/sys/net/ipv4/conf/lo/accept_local";

/// Links, addresses and namespaces of the machine. `netlink` does it for real, `fake` in memory.
#[async_trait]
pub trait Kernel: Send + Sync + std::fmt::Debug {
    /// Everything, or an error: a listing that fails half-way has failed.
    async fn observe(&self) -> Result<Arc<Observed>, KernelError>;

    /// The same, and who owns each TUN just now, of which the kernel sends no word when it changes.
    async fn observe_owners(&self) -> Result<Arc<Observed>, KernelError> {
        self.observe().await
    }

    /// Does one step whole, or changes nothing.
    async fn apply(&self, step: &LinkStep) -> Result<(), KernelError>;

    /// Whether a host answers on the link itself, by ARP or neighbour discovery. May take a few seconds.
    async fn reachable(&self, link: &str, host: IpAddr) -> Result<bool, KernelError>;

    /// The sockets of the host that wait for strangers.
    async fn listeners(&self) -> Result<Vec<Listener>, KernelError>;

    /// Says that a link, an address or a route has changed; what exactly is for `observe` to tell.
    /// More than one change may come as one message.
    fn events(&self) -> Result<mpsc::Receiver<()>, KernelError>;
}

/// A kernel operation that failed: what was tried, on what, and what the kernel answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{operation}: {reason}{}", extack.as_deref().map(|text| format!(" ({text})")).unwrap_or_default())]
pub struct KernelError {
    /// What was tried on what: `create bridge br-vm`.
    pub operation: String,
    /// The errno, when there was one.
    pub errno: Option<i32>,
    /// errno name and text, or what else went wrong: `EBUSY: Device or resource busy`.
    pub reason: String,
    /// The kernel's own explanation (netlink extended acknowledgement).
    pub extack: Option<String>,
}

impl KernelError {
    /// From an errno.
    pub fn errno(operation: impl Into<String>, errno: i32) -> Self {
        let name = nix::errno::Errno::from_raw(errno);
        Self {
            operation: operation.into(),
            errno: Some(errno),
            reason: format!("{name:?}: {}", name.desc()),
            extack: None,
        }
    }

    /// From anything else.
    pub fn other(operation: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { operation: operation.into(), errno: None, reason: reason.into(), extack: None }
    }
}
