//! When the tables are looked through for what is over. The programs judge for themselves, and only memory waits for it: so of
//! large tables less often, and never for more than a small share of a core.

use std::{
    future::pending,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::{JoinHandle, spawn_blocking};
use tracing::{debug, error, warn};

use crate::kernel::dataplane::DataPlane;

/// How often at most, while there are rules.
pub(super) const PERIOD: Duration = Duration::from_secs(10);

/// How many times as long as it took the next one waits.
const REST: u32 = 30;

/// Periods that it waits at most, however long it took.
const LONGEST: u128 = 6;

#[derive(Debug, Default)]
pub(super) struct Garbage {
    skip: u128,
    /// The collection that is under way: how long it will have taken.
    running: Option<JoinHandle<Duration>>,
}

impl Garbage {
    /// Asked once in each period.
    pub(super) fn is_due(&mut self) -> bool {
        let due = self.skip == 0 && self.running.is_none();
        self.skip = self.skip.saturating_sub(1);
        due
    }

    /// Begins a collection. Changes do not wait for it: what is over, the data plane decides when it removes it.
    pub(super) fn collect(&mut self, dataplane: &Arc<dyn DataPlane>) {
        let dataplane = Arc::clone(dataplane);
        self.running = Some(spawn_blocking(move || {
            let began = Instant::now();
            match dataplane.collect_garbage() {
                Ok(freed) => debug!(freed, "expired flows were freed"),
                Err(error) => warn!(%error, "expired flows could not be freed"),
            }
            began.elapsed()
        }));
    }

    /// Waits for the end of the collection that is under way; without one, for ever.
    pub(super) async fn collected(&mut self) {
        let Some(running) = &mut self.running else { return pending().await };
        match running.await {
            Ok(time) => self.took(time),
            Err(error) => error!(%error, "the garbage collection ended early"),
        }
        self.running = None;
    }

    fn took(&mut self, time: Duration) {
        let periods = (time * REST).as_nanos().div_ceil(PERIOD.as_nanos());
        self.skip = periods.clamp(1, LONGEST) - 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_long_is_done_less_often() {
        for (millis, periods) in [(0, 1), (300, 1), (600, 2), (1000, 3), (60_000, 6)] {
            let mut garbage = Garbage::default();
            assert!(garbage.is_due());
            garbage.took(Duration::from_millis(millis));
            let waits = (1..).find(|_| garbage.is_due());
            assert_eq!(waits, Some(periods), "after {millis} ms");
        }
    }
}
