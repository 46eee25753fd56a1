//! When the tables are looked through for what is over. The programs judge for themselves, and only memory waits for it: so of
//! large tables less often, and never for more than a small share of a core.

use std::time::Duration;

/// How often at most, while there are rules.
pub(super) const PERIOD: Duration = Duration::from_secs(10);

/// How many times as long as it took the next one waits.
const REST: u32 = 30;

/// Periods that it waits at most, however long it took.
const LONGEST: u128 = 6;

#[derive(Debug, Default)]
pub(super) struct Garbage {
    skip: u128,
}

impl Garbage {
    /// Asked once in each period.
    pub(super) fn is_due(&mut self) -> bool {
        let due = self.skip == 0;
        self.skip = self.skip.saturating_sub(1);
        due
    }

    pub(super) fn took(&mut self, time: Duration) {
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
