//! VLANs of bridge ports by the kernel's own filter (`vlan_filtering`), for hosts where eBPF cannot be.
//!
//! | file | what |
//! |---|---|
//! | [`shape`] | what a bridge should hold, and how it gets there |
//! | [`wire`] | bridges and their tables over rtnetlink |
//!
//! Known is what every port should be; a bridge is compared with that as a whole and brought in line, so whoever changed it
//! meanwhile does not matter. What this filter cannot do as the programs do it is in `docs/fallback.md`.

mod shape;
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use nix::errno::Errno;
use tracing::{error, info};

use self::shape::{Shape, Unfit};
use super::{
    KernelError,
    rtnl::Rtnl,
    switch::{Station, SwitchPort},
};

/// How often a bridge is looked at again that others change while it is brought in line.
const ATTEMPTS: usize = 6;

type Ports = BTreeMap<u32, SwitchPort>;

/// The bridges of the namespace of the thread that opens it.
#[derive(Debug)]
pub(super) struct BridgeFilter(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    rtnl: Rtnl,
    known: Ports,
}

impl BridgeFilter {
    pub(super) fn open() -> Result<Self, KernelError> {
        Ok(Self(Mutex::new(Inner { rtnl: Rtnl::open()?, known: Ports::new() })))
    }

    /// Every change begins with a look at the kernel, so a panic elsewhere leaves nothing that is not found.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn put(&self, port: &SwitchPort) -> Result<(), KernelError> {
        let mut inner = self.inner();
        if inner.known.get(&port.index) == Some(port) {
            return Ok(());
        }
        let left = inner.known.get(&port.index).map(|known| known.bridge);
        let mut after = inner.known.clone();
        after.insert(port.index, port.clone());
        inner.become_as(&after, |bridge| bridge == port.bridge || Some(bridge) == left)
    }

    pub(super) fn remove(&self, index: u32) -> Result<(), KernelError> {
        let mut inner = self.inner();
        let mut after = inner.known.clone();
        let Some(gone) = after.remove(&index) else { return Ok(()) };
        inner.become_as(&after, |bridge| bridge == gone.bridge)
    }

    /// Brings every bridge in line, each by itself, whatever was known before: at the start, and after others have changed
    /// something.
    pub(super) fn settle(&self, wanted: &Ports) -> Result<(), KernelError> {
        self.inner().become_as(wanted, |_| true)
    }

    /// Ports that are known and in their bridge, with the VLANs that the kernel has for them.
    pub(super) fn ports(&self) -> Result<Ports, KernelError> {
        let mut inner = self.inner();
        let Inner { rtnl, known } = &mut *inner;
        let bridges: BTreeSet<u32> = known.values().map(|port| port.bridge).collect();
        let mut shapes = BTreeMap::new();
        for bridge in bridges {
            if let Some(shape) = wire::read(rtnl, bridge)? {
                shapes.insert(bridge, shape);
            }
        }
        let found = known.values().filter_map(|port| shape::found(port, shapes.get(&port.bridge)?));
        Ok(found.map(|port| (port.index, port)).collect())
    }

    pub(super) fn stations(&self) -> Result<Vec<Station>, KernelError> {
        let mut inner = self.inner();
        let Inner { rtnl, known } = &mut *inner;
        if known.is_empty() {
            return Ok(Vec::new());
        }
        // The untagged domain is no VLAN, whatever the kernel calls it.
        let vlans: BTreeMap<u32, BTreeSet<u16>> = shape::vlans(known);
        let shown =
            |station: &Station| vlans.get(&station.bridge).is_some_and(|vlans| vlans.contains(&station.vlan));
        Ok(wire::stations(rtnl)?.into_iter().filter(shown).collect())
    }
}

impl Inner {
    /// Makes the ports of some bridges what is given; of each bridge all or none. The first error.
    fn become_as(&mut self, after: &Ports, concerned: impl Fn(u32) -> bool) -> Result<(), KernelError> {
        let bridges: BTreeSet<u32> =
            self.known.values().chain(after.values()).map(|port| port.bridge).collect();
        let mut result = Ok(());
        for bridge in bridges.into_iter().filter(|bridge| concerned(*bridge)) {
            match settle(&mut self.rtnl, bridge, after) {
                Ok(()) => {
                    self.known.retain(|_, port| port.bridge != bridge);
                    let own = after.iter().filter(|(_, port)| port.bridge == bridge);
                    self.known.extend(own.map(|(index, port)| (*index, port.clone())));
                }
                Err(error) => {
                    // What cannot be is refused before anything is changed.
                    if error.errno != Some(Errno::EOPNOTSUPP as i32)
                        && let Err(error) = settle(&mut self.rtnl, bridge, &self.known)
                    {
                        error!(%error, bridge, "VLANs could not be put back; they will be with the next look");
                    }
                    result = result.and(Err(error));
                }
            }
        }
        result
    }
}

/// Brings one bridge in line.
fn settle(rtnl: &mut Rtnl, bridge: u32, known: &Ports) -> Result<(), KernelError> {
    let operation = || format!("filter the VLANs of bridge {bridge}");
    let mut failed = None;
    for _ in 0..ATTEMPTS {
        // A bridge that is gone has no ports.
        let Some(actual) = wire::read(rtnl, bridge)? else { return Ok(()) };
        let wanted = match shape::wanted(bridge, known, &actual) {
            Ok(Some(wanted)) => wanted,
            Ok(None) => return Ok(()),
            Err(unfit) => return Err(refusal(operation(), unfit)),
        };
        let steps = shape::next(&actual, &wanted);
        if steps.is_empty() {
            return Ok(());
        }
        // Who changed something meanwhile is found with the next look.
        failed = steps.iter().find_map(|step| wire::apply(rtnl, bridge, step).err()).or(failed);
    }
    Err(failed.unwrap_or_else(|| KernelError::other(operation(), "it does not stay as it is made")))
}

fn refusal(operation: String, unfit: Unfit) -> KernelError {
    let reason =
        format!("{unfit}; this worker runs with iptables, and VLANs are kept apart by the kernel's bridge");
    KernelError { extack: None, errno: Some(Errno::EOPNOTSUPP as i32), operation, reason }
}

/// Makes bridges of the worker's what they were before an iptables data plane filtered them, for another one to take over.
pub(super) fn take_away() -> Result<(), KernelError> {
    let mut rtnl = Rtnl::open()?;
    let none = Ports::new();
    for bridge in wire::own_bridges(&mut rtnl)? {
        let filtered = wire::read(&mut rtnl, bridge)?.is_some_and(|shape: Shape| shape.is_ours());
        if filtered {
            settle(&mut rtnl, bridge, &none)?;
            info!(bridge, "a bridge's own VLAN filter was turned off");
        }
    }
    Ok(())
}
