//! A packet filter in memory.

use std::{collections::BTreeMap, sync::Mutex};

use nix::errno::Errno;
use tokio::sync::mpsc;

use super::{Faults, lock};
use crate::kernel::{
    KernelError,
    filter::{FilterRule, Matched, PacketFilter},
};

/// The rules that are in force.
#[derive(Debug)]
pub struct FakeFilter {
    rules: Mutex<Vec<FilterRule>>,
    listeners: Mutex<Vec<mpsc::Sender<()>>>,
    faults: Faults,
}

impl FakeFilter {
    pub fn new(faults: Faults) -> Self {
        Self { rules: Mutex::default(), listeners: Mutex::default(), faults }
    }

    /// As `iptables -F` of somebody else.
    pub fn flush(&self) {
        lock(&self.rules).clear();
        for listener in lock(&self.listeners).iter() {
            // One message says it all: a full channel has it.
            let _ = listener.try_send(());
        }
    }

    pub fn rules(&self) -> Vec<FilterRule> {
        lock(&self.rules).clone()
    }
}

impl PacketFilter for FakeFilter {
    fn change(&self, before: &[FilterRule], after: &[FilterRule]) -> Result<(), KernelError> {
        self.faults.step("change the firewall")?;
        let mut rules = lock(&self.rules);
        if *rules != before {
            return Err(KernelError::errno("change the firewall", Errno::ESTALE as i32));
        }
        *rules = after.to_vec();
        Ok(())
    }

    fn events(&self) -> Result<mpsc::Receiver<()>, KernelError> {
        let (sender, receiver) = mpsc::channel(1);
        lock(&self.listeners).push(sender);
        Ok(receiver)
    }

    fn restore(&self, rules: &[FilterRule]) -> Result<bool, KernelError> {
        self.faults.step("restore the firewall")?;
        let mut held = lock(&self.rules);
        let changed = *held != rules;
        *held = rules.to_vec();
        Ok(changed)
    }

    fn matched(&self) -> Result<BTreeMap<String, Matched>, KernelError> {
        Ok(lock(&self.rules).iter().map(|rule| (rule.id.clone(), Matched::default())).collect())
    }
}
