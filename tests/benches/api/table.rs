//! What was measured, as a table for people.

use std::{fmt, time::Duration};

/// How long the same thing took, again and again.
#[derive(Debug, Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn push(&mut self, took: Duration) {
        self.0.push(took);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The time that so many of a hundred did not exceed.
    fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let place = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
        sorted.get(place).copied().unwrap_or_default()
    }
}

impl FromIterator<Duration> for Times {
    fn from_iter<I: IntoIterator<Item = Duration>>(times: I) -> Self {
        Self(times.into_iter().collect())
    }
}

impl IntoIterator for Times {
    type Item = Duration;
    type IntoIter = std::vec::IntoIter<Duration>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// One line of the table.
pub(crate) struct Row {
    what: String,
    median: String,
    /// At the 99th percentile; of what was measured once, that.
    worst: String,
    asked: String,
}

impl Row {
    pub(crate) fn times(what: &str, times: &Times, asked: Option<Duration>) -> Self {
        Self {
            what: format!("{what} ({})", times.len()),
            median: Time(times.percentile(50)).to_string(),
            worst: Time(times.percentile(99)).to_string(),
            asked: asked.map(|limit| format!("< {}", Time(limit))).unwrap_or_default(),
        }
    }

    pub(crate) fn once(what: &str, took: Duration, asked: Option<Duration>) -> Self {
        Self {
            what: what.to_owned(),
            median: String::new(),
            ..Self::times("", &[took].into_iter().collect(), asked)
        }
    }

    pub(crate) fn memory(what: &str, kib: u64, asked_mib: Option<u64>) -> Self {
        Self {
            what: what.to_owned(),
            median: String::new(),
            worst: format!("{} MiB", kib.div_ceil(1024)),
            asked: asked_mib.map(|limit| format!("< {limit} MiB")).unwrap_or_default(),
        }
    }

    pub(crate) fn rate(what: &str, count: usize, took: Duration, asked: u64) -> Self {
        let rate = count as f64 / took.as_secs_f64();
        let (median, asked) = (String::new(), format!("> {asked}"));
        Self { what: what.to_owned(), median, worst: format!("{rate:.0}"), asked }
    }
}

pub(crate) fn markdown(rows: &[Row]) -> String {
    let mut text = String::from("| what (how often) | median | p99 | asked |\n|---|---|---|---|\n");
    for Row { what, median, worst, asked } in rows {
        text.push_str(&format!("| {what} | {median} | {worst} | {asked} |\n"));
    }
    text
}

/// Milliseconds, as many digits as matter.
struct Time(Duration);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = self.0.as_secs_f64() * 1000.0;
        let digits = if milliseconds < 9.95 && milliseconds.fract() != 0.0 { 1 } else { 0 };
        write!(f, "{milliseconds:.digits$} ms")
    }
}
