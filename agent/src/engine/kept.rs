//! Readings that take long serve everybody who asks meanwhile, and for some time after: a monitor that asks every second must
//! not keep a processor busy with a million flows.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// What is read faster is always read anew.
const LONG: Duration = Duration::from_millis(100);
/// Of the time, at most the tenth part is spent reading.
const SHARE: u32 = 10;

/// The last reading.
#[derive(Debug)]
pub(super) struct Kept<T>(Mutex<Option<Reading<T>>>);

#[derive(Debug)]
struct Reading<T> {
    begun: Instant,
    took: Duration,
    value: T,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Clone> Kept<T> {
    /// The last reading, when it will do and need not be made anew yet; else a new one. It may block.
    pub(super) fn get<E>(
        &self,
        will_do: impl FnOnce(&T) -> bool,
        read: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Reading { begun, took, value }) = &*last
            && serves(*took, begun.elapsed())
            && will_do(value)
        {
            return Ok(value.clone());
        }
        let begun = Instant::now();
        let value = read()?;
        *last = Some(Reading { begun, took: begun.elapsed(), value: value.clone() });
        Ok(value)
    }
}

/// Whether a reading that took so long, and began so long ago, still serves.
fn serves(took: Duration, age: Duration) -> bool {
    took >= LONG && age < took * SHARE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_long_serves_ten_times_as_long_and_what_did_not_is_read_anew() {
        let second = Duration::from_secs(1);
        assert!(serves(second, 9 * second) && !serves(second, 10 * second));
        assert!(!serves(LONG / 2, Duration::ZERO));
    }

    #[test]
    fn a_reading_serves_whom_it_will_do_for_and_a_failed_one_nobody() {
        let kept = Kept::default();
        let slow = |value| {
            move || -> Result<u32, ()> {
                std::thread::sleep(LONG);
                Ok(value)
            }
        };
        assert_eq!(kept.get(|_| true, || Err(())), Err(()));
        assert_eq!(kept.get(|_| true, slow(1)), Ok(1));
        assert_eq!(kept.get(|value| *value == 1, slow(2)), Ok(1));
        assert_eq!(kept.get(|value| *value == 2, slow(2)), Ok(2));
    }
}
