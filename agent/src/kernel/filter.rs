//! The packet filter as the rest of the agent sees it: the worker's own rules, in order.
//!
//! `kernel::iptables` does it for real, `kernel::fake` in memory.

use std::collections::BTreeMap;

use tokio::sync::mpsc;

use super::KernelError;
use crate::model::firewall::FirewallSpec;

/// A rule and the id by which it is found again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterRule {
    pub id: String,
    pub spec: FirewallSpec,
}

/// What a rule has matched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Matched {
    pub packets: u64,
    pub bytes: u64,
}

/// The worker's own filter rules. Calls run a program and may block for as long as another one holds the lock.
pub trait PacketFilter: Send + Sync + std::fmt::Debug {
    /// Makes the rules `after` of the rules `before`; whole or not at all. Foreign rules are not touched.
    fn change(&self, before: &[FilterRule], after: &[FilterRule]) -> Result<(), KernelError>;

    /// Makes the rules what is given, whatever is there; answers whether anything had to be done.
    fn restore(&self, rules: &[FilterRule]) -> Result<bool, KernelError>;

    /// Says that somebody, the worker too perhaps, has changed rules of the kernel's; whether ours are as they should be is for
    /// `restore` to find out. Never, where the kernel tells nobody.
    fn events(&self) -> Result<mpsc::Receiver<()>, KernelError>;

    /// What every rule that is there has matched, by id.
    fn matched(&self) -> Result<BTreeMap<String, Matched>, KernelError>;
}
