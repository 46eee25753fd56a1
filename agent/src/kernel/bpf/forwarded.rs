//! Which ports have a forward, a bit for each: nearly every first packet of a flow is for none of them, and learns it here from
//! eight kilobytes instead of from four lookups in tables made for every rule that there may be.
//!
//! A bit more than needed costs those lookups, a bit less would hide a forward: so it is set before its forward is in the maps, and
//! taken away after.

use std::{collections::BTreeSet, ops::RangeInclusive};

use aya::maps::{Array, MapData};
use telecluster_common::maps::{FORWARDED, forwarded};

use super::{
    failed,
    object::{Object, take},
};
use crate::kernel::KernelError;

/// Ports of a protocol (IANA number) that an entry of the forwards' maps is for.
pub(super) type Ports = (u8, RangeInclusive<u16>);

/// `forwarded4` or `forwarded6`.
pub(super) struct ForwardedPorts {
    map: Array<MapData, u64>,
    uses: Uses,
}

impl ForwardedPorts {
    pub(super) fn take(object: &mut Object, name: &str) -> Result<Self, KernelError> {
        Ok(Self { map: take(object, name)?, uses: Uses::default() })
    }

    /// What an earlier run has left, by the entries that there are.
    pub(super) fn adopt(&mut self, there: impl Iterator<Item = Ports>) -> Result<(), KernelError> {
        for ports in there {
            self.uses.change(&ports, u32::saturating_add);
        }
        self.write(0..FORWARDED)
    }

    /// Before an entry is added; with an error nothing has changed that matters.
    pub(super) fn add(&mut self, ports: &Ports) -> Result<(), KernelError> {
        let words = self.uses.change(ports, u32::saturating_add);
        self.write(words).inspect_err(|_| drop(self.uses.change(ports, u32::saturating_sub)))
    }

    /// After it is gone.
    pub(super) fn remove(&mut self, ports: &Ports) -> Result<(), KernelError> {
        let words = self.uses.change(ports, u32::saturating_sub);
        self.write(words)
    }

    fn write(&mut self, words: impl IntoIterator<Item = u32>) -> Result<(), KernelError> {
        let operation = "write which ports have a forward";
        for word in words {
            let wanted = self.uses.bits(word);
            let present = self.map.get(&word, 0).map_err(|error| failed(operation, &error))?;
            if present != wanted {
                self.map.set(word, wanted, 0).map_err(|error| failed(operation, &error))?;
            }
        }
        Ok(())
    }
}

/// How many entries each port has, in the order of the bits.
struct Uses(Vec<u32>);

impl Default for Uses {
    fn default() -> Self {
        // Pages that nobody writes to are no memory.
        Self(vec![0; (FORWARDED * u64::BITS) as usize])
    }
}

impl Uses {
    /// One entry more or less for these; the words in which that may be seen.
    fn change(&mut self, (proto, ports): &Ports, step: impl Fn(u32, u32) -> u32) -> BTreeSet<u32> {
        let mut words = BTreeSet::new();
        for port in ports.clone() {
            let (word, bit) = forwarded(*proto, port);
            if let Some(uses) = self.0.get_mut((word * u64::BITS + bit) as usize) {
                *uses = step(*uses, 1);
            }
            words.insert(word);
        }
        words
    }

    fn bits(&self, word: u32) -> u64 {
        let first = (word * u64::BITS) as usize;
        let uses = self.0.iter().skip(first).take(u64::BITS as usize);
        (0..).zip(uses).fold(0, |bits, (place, uses)| bits | u64::from(*uses > 0) << place)
    }
}

#[cfg(test)]
mod tests {
    use telecluster_common::tcp::proto;

    use super::*;

    #[test]
    fn a_port_has_its_bit_for_as_long_as_any_entry_has_it() {
        let mut uses = Uses::default();
        let has = |uses: &Uses, proto, port| {
            let (word, bit) = forwarded(proto, port);
            uses.bits(word) >> bit & 1 == 1
        };
        let (range, single) = ((proto::TCP, 100..=200), (proto::TCP, 150..=150));
        assert_eq!(uses.change(&range, u32::saturating_add), BTreeSet::from([1, 2, 3]));
        assert_eq!(uses.change(&single, u32::saturating_add), BTreeSet::from([2]));
        for port in 0..=u16::MAX {
            assert_eq!(has(&uses, proto::TCP, port), (100..=200).contains(&port), "{port}");
            assert!(!has(&uses, proto::UDP, port), "{port}");
        }
        uses.change(&range, u32::saturating_sub);
        assert!(has(&uses, proto::TCP, 150) && !has(&uses, proto::TCP, 151));
        uses.change(&single, u32::saturating_sub);
        assert!((0..FORWARDED).all(|word| uses.bits(word) == 0));
        let last = (proto::UDP, u16::MAX..=u16::MAX);
        assert_eq!(uses.change(&last, u32::saturating_add), BTreeSet::from([FORWARDED - 1]));
        assert!(has(&uses, proto::UDP, u16::MAX) && !has(&uses, proto::TCP, u16::MAX));
    }
}
