//! The number under which flows have learned their ways: raised, and they have to learn them anew; 0, and every
//! packet takes the kernel's way.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use aya::maps::{Array, MapData};
use telecluster_common::maps::Epoch as Value;
use tracing::{info, warn};

use super::{Plain, failed, object::Object};
use crate::kernel::{KernelError, dataplane::FastPath, fastpath::Notice};

/// The `epoch` map, shared with the thread that hears of changes.
pub struct Epoch(Mutex<Inner>);

struct Inner {
    map: Array<MapData, Plain<Value>>,
    /// Why every packet takes the kernel's way.
    closed: Option<String>,
    /// Why the first packet of each flow does.
    unlike: Option<String>,
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Epoch").field("fast_path", &self.fast_path()).finish_non_exhaustive()
    }
}

impl Epoch {
    /// Closed until somebody has looked at the host.
    pub(super) fn take(object: &mut Object) -> Result<Self, KernelError> {
        let inner = Inner {
            map: super::object::take(object, "epoch")?,
            closed: Some("not looked at yet".to_owned()),
            unlike: Some("not looked at yet".to_owned()),
        };
        Ok(Self(Mutex::new(inner)))
    }

    /// Something has happened after which a learned way may be wrong.
    pub fn hear(&self, notice: Notice) {
        let mut inner = self.inner();
        match notice {
            Notice::Changed => {}
            Notice::Deciders { filter, alike } => {
                let (closed, unlike) = (filter.err(), alike.err());
                if closed != inner.closed {
                    match &closed {
                        None => info!("flows may take the fast path"),
                        Some(why) => info!(why, "every packet takes the kernel's way"),
                    }
                }
                if closed.is_none() && unlike != inner.unlike {
                    match &unlike {
                        None => info!("so may their first packets, between hosts that know each other"),
                        Some(why) => info!(why, "first packets take the kernel's way"),
                    }
                }
                (inner.closed, inner.unlike) = (closed, unlike);
            }
        }
        if let Err(error) = inner.raise() {
            warn!(%error, "what flows have learned could not be forgotten; their leases end in seconds");
        }
    }

    pub(super) fn raise(&self) -> Result<(), KernelError> {
        self.inner().raise()
    }

    pub(super) fn fast_path(&self) -> FastPath {
        self.inner().closed.clone().map_or(FastPath::Open, FastPath::Closed)
    }

    pub(super) fn current(&self) -> Result<Value, KernelError> {
        self.inner().read()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn read(&self) -> Result<Value, KernelError> {
        self.map.get(&0, 0).map(|value| value.0).map_err(|error| failed("read the epoch", &error))
    }

    fn raise(&mut self) -> Result<(), KernelError> {
        let next = after(self.read()?, self.closed.is_none(), self.unlike.is_none());
        self.map.set(0, Plain(next), 0).map_err(|error| failed("raise the epoch", &error))
    }
}

/// No number is used twice, closed or not, and 0 never: it would be the stamp of a flow that has learned nothing.
fn after(before: Value, open: bool, alike: bool) -> Value {
    let last = before.last.checked_add(1).unwrap_or(1);
    Value { current: if open { last } else { 0 }, last, alike: u32::from(open && alike) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_not_used_again_after_the_path_was_closed() {
        let first = after(Value::default(), true, false);
        let closed = after(first, false, true);
        let second = after(closed, true, true);
        assert_eq!((first.current, closed.current), (1, 0));
        assert_ne!(second.current, first.current);
        assert_eq!((first.alike, closed.alike, second.alike), (0, 0, 1));
        assert_eq!(after(Value { current: u32::MAX, last: u32::MAX, alike: 0 }, true, false).current, 1);
    }
}
