//! The host's own addresses, and those that masquerades translate to beside them: `local4` and `pool4`, or those of IPv6.
//!
//! The programs ask `local4` about each address that first packets come to. An address may be there for two reasons, because
//! an interface has it and because a pool has it, and either may come and go by itself: so both are kept here, and what the
//! map says follows from them.

use std::{
    collections::{BTreeMap, HashMap as StdHashMap},
    net::IpAddr,
};

use aya::maps::{HashMap, MapData};
use telecluster_common::maps::{Local, PoolKey, local};

use super::{
    Plain, failed,
    family::Octets,
    mirror::Mirrored,
    object::{Object, take},
};
use crate::kernel::{KernelError, dataplane::Slot};

type Result<T, E = KernelError> = std::result::Result<T, E>;

/// One address of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pooled<A> {
    pub(super) key: PoolKey,
    pub(super) address: A,
    /// Where its packets leave.
    uplink: u32,
}

impl<A> Pooled<A> {
    pub(super) const fn slot(&self) -> Slot {
        Slot(self.key.rule)
    }
}

/// A rule's pool, those of this family.
pub(super) fn pool<A: Octets>(slot: Slot, uplink: u32, pool: &[IpAddr]) -> impl Iterator<Item = Pooled<A>> {
    let addresses = pool.iter().filter_map(|ip| A::from_ip(*ip));
    (0..).zip(addresses).map(move |(number, address)| Pooled {
        key: PoolKey { rule: slot.0, number },
        address,
        uplink,
    })
}

/// The two maps, and why an address is in them.
pub(super) struct LocalAddresses<A: Octets> {
    local: Mirrored<A, Plain<Local>>,
    pools: HashMap<MapData, Plain<PoolKey>, A>,
    /// Of the host's interfaces: the uplink that each is on, or 0.
    own: StdHashMap<A, u32>,
    /// By rule and number.
    pooled: BTreeMap<(u32, u32), Pooled<A>>,
}

impl<A: Octets> LocalAddresses<A> {
    pub(super) fn take(object: &mut Object, local: &str, pool: &str) -> Result<Self> {
        let local = Mirrored::take(object, local, "local address")?;
        Ok(Self { local, pools: take(object, pool)?, own: StdHashMap::new(), pooled: BTreeMap::new() })
    }

    /// Reads what an earlier run has left. `uplinks`: that of each masquerade, by slot.
    pub(super) fn adopt(&mut self, uplinks: &StdHashMap<u32, u32>) -> Result<()> {
        for entry in self.pools.iter() {
            let (Plain(key), address) = entry.map_err(|error| failed("list the pools", &error))?;
            let uplink = uplinks.get(&key.rule).copied().unwrap_or(0);
            self.pooled.insert((key.rule, key.number), Pooled { key, address, uplink });
        }
        let own = self.local.iter().filter(|(_, Plain(known))| known.flags & local::ABSENT == 0);
        self.own = own.map(|(address, Plain(known))| (*address, known.uplink)).collect();
        Ok(())
    }

    /// The pool of a rule, in order.
    pub(super) fn pool(&self, slot: Slot) -> impl Iterator<Item = Pooled<A>> {
        self.pooled.range((slot.0, 0)..=(slot.0, u32::MAX)).map(|(_, pooled)| *pooled)
    }

    /// Makes the host's own addresses what is given, each with the uplink that it is on, or 0.
    pub(super) fn set(&mut self, own: &StdHashMap<A, u32>) -> Result<()> {
        self.own.clone_from(own);
        self.settle()
    }

    pub(super) fn add(&mut self, pooled: Pooled<A>) -> Result<()> {
        self.pools
            .insert(Plain(pooled.key), pooled.address, 0)
            .map_err(|error| failed(format!("add {} to a pool", pooled.address.ip()), &error))?;
        self.pooled.insert((pooled.key.rule, pooled.key.number), pooled);
        self.settle()
    }

    pub(super) fn forget(&mut self, pooled: Pooled<A>) -> Result<()> {
        self.pools
            .remove(&Plain(pooled.key))
            .map_err(|error| failed(format!("take {} from a pool", pooled.address.ip()), &error))?;
        self.pooled.remove(&(pooled.key.rule, pooled.key.number));
        self.settle()
    }

    /// Writes what is known of each address now, where that is not what the map says.
    fn settle(&mut self) -> Result<()> {
        let plain =
            self.own.iter().map(|(address, uplink)| (*address, Plain(Local { uplink: *uplink, flags: 0 })));
        let pooled = self.pooled.values().map(|pooled| {
            let absent = if self.own.contains_key(&pooled.address) { 0 } else { local::ABSENT };
            (pooled.address, Plain(Local { uplink: pooled.uplink, flags: local::POOL | absent }))
        });
        let wanted: StdHashMap<_, _> = plain.chain(pooled).collect();
        self.local.add(&wanted)?;
        self.local.retain(&wanted)
    }
}
