//! Rules and addresses into maps, counters out of them.
//!
//! The order of writes is what makes a change whole for packets that pass meanwhile: a rule's slot is ready before
//! anything points to it, and what points to it is gone before the slot is given up. Giving a slot up raises its
//! generation, and with that every flow of the rule is dead at once.

use std::{collections::BTreeMap, fmt};

use aya::maps::{MapData, PerCpuArray};
use telecluster_common::{
    drop::DropReason,
    maps::{MAX_RULES, Masquerade, Rule},
};

use super::{
    failed,
    family::{Entry, FamilyMaps, Octets, entries},
    object::{Object, take},
    slots::{self, Slots},
};
use crate::kernel::{
    KernelError,
    dataplane::{Counters, HostAddresses, MapPressure, NatRule, Slot},
};

type Result<T, E = KernelError> = std::result::Result<T, E>;

/// The maps that the agent writes.
pub(super) struct RuleMaps {
    slots: Slots,
    ipv4: FamilyMaps<[u8; 4]>,
    ipv6: FamilyMaps<[u8; 16]>,
    drops: PerCpuArray<MapData, u64>,
}

impl fmt::Debug for RuleMaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RuleMaps").finish_non_exhaustive()
    }
}

impl RuleMaps {
    pub(super) fn take(object: &mut Object) -> Result<Self> {
        Ok(Self {
            slots: Slots::take(object)?,
            ipv4: FamilyMaps::take(object)?,
            ipv6: FamilyMaps::take(object)?,
            drops: take(object, "drop_stat")?,
        })
    }

    /// Puts a rule into a slot. When the very same rule is there already, its flows and counters go on.
    pub(super) fn put(&mut self, slot: Slot, rule: &NatRule) -> Result<()> {
        if self.slots.get(slot)?.is_there() {
            let there = if rule.is_ipv6() {
                holds(&self.ipv6, &self.slots, slot, rule)?
            } else {
                holds(&self.ipv4, &self.slots, slot, rule)?
            };
            if there {
                return Ok(());
            }
            self.clear(slot)?;
        }
        if rule.is_ipv6() {
            put(&mut self.ipv6, &mut self.slots, slot, rule)
        } else {
            put(&mut self.ipv4, &mut self.slots, slot, rule)
        }
    }

    /// Takes a rule out of its slot; its flows are dead when this returns.
    pub(super) fn remove(&mut self, slot: Slot, rule: &NatRule) -> Result<()> {
        let generation = self.slots.get(slot)?.generation;
        if rule.is_ipv6() {
            remove(&mut self.ipv6, slot, &entries(slot, generation, rule))?;
        } else {
            remove(&mut self.ipv4, slot, &entries(slot, generation, rule))?;
        }
        self.slots.retire(slot)
    }

    /// Empties a slot of which only the number is known.
    pub(super) fn clear(&mut self, slot: Slot) -> Result<()> {
        let failed =
            |error: KernelError| KernelError { operation: format!("clear rule slot {}", slot.0), ..error };
        let found = self.ipv4.entries_of(slot);
        remove(&mut self.ipv4, slot, &found).map_err(failed)?;
        let found = self.ipv6.entries_of(slot);
        remove(&mut self.ipv6, slot, &found).map_err(failed)?;
        self.slots.retire(slot)
    }

    /// Every slot that is taken, with its rule as the maps have it; `None` when they have only half of it.
    pub(super) fn list(&self) -> Result<BTreeMap<Slot, Option<NatRule>>> {
        let used = |(slot, rule): (u32, Rule)| rule.is_there().then_some((Slot(slot), None));
        let mut found: BTreeMap<_, _> = (0..).zip(self.slots.all()?).filter_map(used).collect();
        let rules = self.slots.all()?;
        let opening = |slot| self.slots.opening(slot);
        self.ipv4.list(&rules, opening, &mut found)?;
        self.ipv6.list(&rules, opening, &mut found)?;
        Ok(found)
    }

    /// Every slot, by its number.
    pub(super) fn slots(&self) -> Result<Vec<Rule>> {
        self.slots.all()
    }

    /// The host's own addresses, and what each uplink translates to. When that changes, flows to the old address
    /// are dead: nobody could answer them any more.
    pub(super) fn set_addresses(&mut self, addresses: &HostAddresses) -> Result<()> {
        set_addresses(&mut self.ipv4, &mut self.slots, addresses)?;
        set_addresses(&mut self.ipv6, &mut self.slots, addresses)
    }

    pub(super) fn counters(&self, slot: Slot) -> Result<Counters> {
        self.slots.counters(slot)
    }

    pub(super) fn drops(&self) -> Result<Vec<(DropReason, u64)>> {
        let count = |reason: DropReason| {
            let values = self
                .drops
                .get(&(reason as u32), 0)
                .map_err(|error| failed(format!("read drops for {}", reason.name()), &error))?;
            Ok((reason, values.iter().sum()))
        };
        DropReason::ALL.into_iter().map(count).collect()
    }

    pub(super) fn pressure(&self) -> Result<Vec<MapPressure>> {
        let rules = self.slots.all()?.iter().map(|rule| u64::from(rule.is_there())).sum();
        let mut pressure = Vec::from(self.ipv4.pressure());
        pressure.extend(self.ipv6.pressure());
        pressure.push(MapPressure { map: "rule", entries: rules, capacity: u64::from(MAX_RULES) });
        Ok(pressure)
    }
}

/// Whether the maps hold the very rule.
fn holds<A: Octets>(maps: &FamilyMaps<A>, slots: &Slots, slot: Slot, rule: &NatRule) -> Result<bool> {
    let present = slots.get(slot)?;
    let entries = entries(slot, present.generation, rule);
    let same = (present.uplink, present.flags, present.timeouts) == slots::said(rule)
        && slots.opening(slot)? == slots::opening(rule);
    Ok(same && entries.iter().all(|entry| maps.holds(entry)))
}

fn put<A: Octets>(maps: &mut FamilyMaps<A>, slots: &mut Slots, slot: Slot, rule: &NatRule) -> Result<()> {
    let generation = slots.begin(slot, rule)?;
    let entries = entries(slot, generation, rule);
    for (done, entry) in entries.iter().enumerate() {
        if let Err(error) = maps.insert(entry) {
            for entry in entries.iter().take(done).rev() {
                maps.delete(entry)?;
            }
            slots.retire(slot)?;
            return Err(error);
        }
    }
    Ok(())
}

fn remove<A: Octets>(maps: &mut FamilyMaps<A>, slot: Slot, entries: &[Entry<A>]) -> Result<()> {
    // What leads to the rule goes before the networks that it names.
    for entry in entries.iter().rev() {
        if maps.belongs_to(entry, slot) {
            maps.delete(entry)?;
        }
    }
    Ok(())
}

fn set_addresses<A: Octets>(
    maps: &mut FamilyMaps<A>,
    slots: &mut Slots,
    addresses: &HostAddresses,
) -> Result<()> {
    let plain = addresses.local.iter().map(|ip| (0, ip));
    let external = addresses.external.iter().map(|(uplink, ip)| (*uplink, ip));
    let local = plain.chain(external).filter_map(|(uplink, ip)| Some((A::from_ip(*ip)?, uplink)));
    maps.set_local(&local.collect())?;
    let of_family = |(uplink, ip): &(u32, _)| A::from_ip(*ip).map(|address| (*uplink, address));
    for uplink in maps.set_uplinks(&addresses.uplinks.iter().filter_map(of_family).collect())? {
        for (key, value) in maps.masquerades_of(uplink) {
            // It goes on translating to what it did before.
            if maps.has_pool(Slot(value.rule)) {
                continue;
            }
            let generation = slots.renew(Slot(value.rule))?;
            maps.renew_networks(Slot(value.rule), generation)?;
            maps.insert(&Entry::Masquerade(key, Masquerade { generation, ..value }))?;
        }
    }
    Ok(())
}
