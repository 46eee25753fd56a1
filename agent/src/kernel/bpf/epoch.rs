//! The number under which flows have learned their ways: raised, and they have to learn them anew; 0, and every
//! packet takes the kernel's way.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use aya::maps::{Array, MapData};
use telecluster_common::maps::{Epoch as Value, TICK_BITS, ticks};
use tracing::{info, warn};

use super::{Plain, failed, object::Object};
use crate::kernel::{KernelError, dataplane::FastPath, fastpath::Notice};

/// For how long packets are taken to be alike when nobody listens any more whether they are: 16 s.
const ALIKE: u32 = ticks(16);

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
            Notice::Quiet => {
                if let Err(error) = inner.go_on() {
                    warn!(%error, "first packets will take the kernel's way");
                }
                return;
            }
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
        let next = after(self.read()?, self.closed.is_none(), self.alike_until()?, tick()?);
        self.map.set(0, Plain(next), 0).map_err(|error| failed("raise the epoch", &error))
    }

    /// The same epoch, for longer.
    fn go_on(&mut self) -> Result<(), KernelError> {
        let mut next = self.read()?;
        if next.alike != 0 {
            next.alike = self.alike_until()?;
            self.map.set(0, Plain(next), 0).map_err(|error| failed("prolong the epoch", &error))?;
        }
        Ok(())
    }

    /// In ticks; 0 when packets are not alike.
    fn alike_until(&self) -> Result<u32, KernelError> {
        if self.unlike.is_some() {
            return Ok(0);
        }
        Ok(tick()?.wrapping_add(ALIKE).max(1))
    }
}

/// Now, as the programs count.
#[expect(clippy::cast_possible_truncation, reason = "ticks wrap")]
fn tick() -> Result<u32, KernelError> {
    Ok((super::flows::now()? >> TICK_BITS) as u32)
}

/// No number is used twice, closed or not, and 0 never: it would be the stamp of a flow that has learned nothing.
fn after(before: Value, open: bool, alike: u32, now: u32) -> Value {
    let last = before.last.checked_add(1).unwrap_or(1);
    Value { current: if open { last } else { 0 }, last, alike: if open { alike } else { 0 }, begun: now }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_not_used_again_after_the_path_was_closed() {
        let first = after(Value::default(), true, 0, 100);
        let closed = after(first, false, 7, 101);
        let second = after(closed, true, 7, 102);
        assert_eq!((first.current, closed.current), (1, 0));
        assert_ne!(second.current, first.current);
        assert_eq!((first.alike, closed.alike, second.alike), (0, 0, 7));
        assert_eq!((first.begun, second.begun), (100, 102));
        assert_eq!(after(Value { last: u32::MAX, ..first }, true, 0, 103).current, 1);
    }
}
