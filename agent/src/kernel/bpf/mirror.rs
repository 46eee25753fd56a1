//! A map that only the worker writes, and what is in it: with thousands of entries, reading them for each one that comes
//! or goes would be most of the work.

use std::{collections::HashMap as StdHashMap, fmt, hash::Hash};

use aya::{
    Pod,
    maps::{HashMap, MapData},
};

use super::{
    failed,
    object::{self, Object},
};
use crate::kernel::KernelError;

/// A hash map of the programs and its copy here.
#[derive(Debug)]
pub(super) struct Mirrored<K, V> {
    map: HashMap<MapData, K, V>,
    present: StdHashMap<K, V>,
    /// What an entry is, for what is said when it cannot be written.
    what: &'static str,
}

impl<K: Pod + Eq + Hash + fmt::Debug, V: Pod + PartialEq> Mirrored<K, V> {
    /// With what an earlier run has left in it.
    pub(super) fn take(object: &mut Object, name: &str, what: &'static str) -> Result<Self, KernelError> {
        let map: HashMap<_, K, V> = object::take(object, name)?;
        let present: Result<_, _> = map.iter().collect();
        Ok(Self { present: present.map_err(|error| failed(format!("read each {what}"), &error))?, map, what })
    }

    /// What is in it.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.present.iter()
    }

    /// Writes what is missing or different.
    pub(super) fn add(&mut self, wanted: &StdHashMap<K, V>) -> Result<(), KernelError> {
        for (key, value) in wanted {
            if self.present.get(key) != Some(value) {
                self.map
                    .insert(key, value, 0)
                    .map_err(|error| failed(format!("make {key:?} a {}", self.what), &error))?;
                self.present.insert(*key, *value);
            }
        }
        Ok(())
    }

    /// Removes what is not among these.
    pub(super) fn retain(&mut self, wanted: &StdHashMap<K, V>) -> Result<(), KernelError> {
        let gone: Vec<K> = self.present.keys().filter(|key| !wanted.contains_key(*key)).copied().collect();
        for key in gone {
            self.map
                .remove(&key)
                .map_err(|error| failed(format!("forget the {} {key:?}", self.what), &error))?;
            self.present.remove(&key);
        }
        Ok(())
    }
}
