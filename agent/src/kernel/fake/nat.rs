//! A NAT data plane in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard},
};

use nix::errno::Errno;
use telecluster_common::drop::DropReason;

use super::{Faults, lock};
use crate::kernel::{
    KernelError,
    dataplane::{
        Attachment, Counters, DataPlane, FastPath, FastPort, Flow, FlowVisitor, HostAddresses, MapPressure,
        NatRule, Slot,
    },
    switch::SwitchPort,
};

/// Its rules, flows and VLAN ports.
#[derive(Debug)]
pub struct FakeDataPlane {
    nat: Mutex<Nat>,
    collecting: Mutex<()>,
    pub(super) switch: Mutex<BTreeMap<u32, SwitchPort>>,
    pub(super) faults: Faults,
}

/// What the fake data plane holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nat {
    pub attached: BTreeSet<u32>,
    pub rules: BTreeMap<Slot, NatRule>,
    pub addresses: HostAddresses,
    pub ports: Vec<FastPort>,
    pub turns: BTreeSet<u32>,
    pub counters: BTreeMap<Slot, Counters>,
    pub flows: Vec<Flow>,
    /// Times that garbage was collected.
    pub collections: usize,
}

impl FakeDataPlane {
    pub fn new(faults: Faults) -> Self {
        Self { nat: Mutex::default(), collecting: Mutex::default(), switch: Mutex::default(), faults }
    }

    pub fn nat(&self) -> Nat {
        lock(&self.nat).clone()
    }

    /// No collection of garbage ends before this is dropped.
    pub fn hold_collections(&self) -> MutexGuard<'_, ()> {
        lock(&self.collecting)
    }

    pub fn edit(&self, change: impl FnOnce(&mut Nat)) {
        change(&mut lock(&self.nat));
    }
}

impl DataPlane for FakeDataPlane {
    fn backend(&self) -> &'static str {
        "fake"
    }

    fn attach(&self, uplink: u32) -> Result<(), KernelError> {
        self.faults.step(&format!("attach to {uplink}"))?;
        lock(&self.nat).attached.insert(uplink);
        Ok(())
    }

    fn detach(&self, uplink: u32) -> Result<(), KernelError> {
        self.faults.step(&format!("detach from {uplink}"))?;
        lock(&self.nat).attached.remove(&uplink);
        Ok(())
    }

    fn attachments(&self) -> Vec<Attachment> {
        lock(&self.nat)
            .attached
            .iter()
            .map(|uplink| Attachment { uplink: *uplink, mechanism: "fake" })
            .collect()
    }

    fn put_rule(&self, slot: Slot, rule: &NatRule) -> Result<(), KernelError> {
        let operation = format!("put rule {}", slot.0);
        self.faults.step(&operation)?;
        let mut nat = lock(&self.nat);
        match nat.rules.get(&slot) {
            Some(other) if other != rule => Err(KernelError::errno(operation, Errno::EEXIST as i32)),
            Some(_) => Ok(()),
            None => {
                nat.rules.insert(slot, rule.clone());
                Ok(())
            }
        }
    }

    fn remove_rule(&self, slot: Slot, rule: &NatRule) -> Result<(), KernelError> {
        let operation = format!("remove rule {}", slot.0);
        self.faults.step(&operation)?;
        let mut nat = lock(&self.nat);
        if nat.rules.get(&slot) != Some(rule) {
            return Err(KernelError::errno(operation, Errno::ENOENT as i32));
        }
        nat.rules.remove(&slot);
        nat.counters.remove(&slot);
        nat.flows.retain(|flow| flow.slot != slot);
        Ok(())
    }

    fn clear_slot(&self, slot: Slot) -> Result<(), KernelError> {
        self.faults.step(&format!("clear slot {}", slot.0))?;
        lock(&self.nat).rules.remove(&slot);
        Ok(())
    }

    fn rules(&self) -> Result<BTreeMap<Slot, Option<NatRule>>, KernelError> {
        Ok(lock(&self.nat).rules.iter().map(|(slot, rule)| (*slot, Some(rule.clone()))).collect())
    }

    fn set_addresses(&self, addresses: &HostAddresses) -> Result<(), KernelError> {
        self.faults.step("set addresses")?;
        lock(&self.nat).addresses = addresses.clone();
        Ok(())
    }

    fn set_ports(&self, ports: &[FastPort]) -> Result<(), KernelError> {
        self.faults.step("set fast ports")?;
        lock(&self.nat).ports = ports.to_vec();
        Ok(())
    }

    fn set_turns(&self, interfaces: &BTreeSet<u32>) -> Result<(), KernelError> {
        self.faults.step("set where packets turn back")?;
        lock(&self.nat).turns.clone_from(interfaces);
        Ok(())
    }

    fn fast_path(&self) -> FastPath {
        FastPath::Open
    }

    fn counters(&self, slot: Slot) -> Result<Counters, KernelError> {
        Ok(lock(&self.nat).counters.get(&slot).copied().unwrap_or_default())
    }

    fn visit_flows(&self, visit: FlowVisitor<'_>) -> Result<(), KernelError> {
        let flows = lock(&self.nat).flows.clone();
        flows.chunks(2).for_each(visit);
        Ok(())
    }

    fn drops(&self) -> Result<Vec<(DropReason, u64)>, KernelError> {
        Ok(DropReason::ALL.iter().map(|reason| (*reason, 0)).collect())
    }

    fn pressure(&self) -> Result<Vec<MapPressure>, KernelError> {
        let entries = lock(&self.nat).flows.len() as u64;
        Ok(vec![MapPressure { map: "flow4", entries, capacity: 65536 }])
    }

    fn collect_garbage(&self) -> Result<usize, KernelError> {
        lock(&self.nat).collections += 1;
        drop(lock(&self.collecting));
        Ok(0)
    }
}
