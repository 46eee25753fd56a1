//! The programs' own messages (aya-log) into the agent's log, so many a second and no more: what strangers send
//! must not fill the disk.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use aya_log::EbpfLogger;
use log::{Level, Log, Metadata, Record};
use tokio::io::unix::AsyncFd;

use super::{
    failed,
    object::{self, Object},
};
use crate::kernel::KernelError;

/// Messages in a second.
const MOST: u32 = 50;

/// Starts a task that reads the programs' messages for as long as the agent runs.
pub fn forward(object: &Object) -> Result<(), KernelError> {
    let operation = "read the programs' messages";
    let speaker =
        object::speaker(object).ok_or_else(|| KernelError::other(operation, "no program has any"))?;
    let logger = EbpfLogger::init_from_id_with_logger(speaker, Limited::default())
        .map_err(|error| KernelError::other(operation, error.to_string()))?;
    // SAFETY: the logger owns the ring buffer's descriptor and hands out the same one until it is dropped.
    let logger = unsafe { AsyncFd::register(logger) };
    let mut logger = logger.map_err(|error| failed(operation, &std::io::Error::from(error)))?;
    tokio::spawn(async move {
        loop {
            match logger.readable_mut().await {
                Ok(mut ready) => {
                    ready.get_inner_mut().flush();
                    ready.clear_ready();
                }
                Err(error) => return tracing::warn!(%error, "the programs' messages have ended"),
            }
        }
    });
    Ok(())
}

/// Hands messages on to `tracing` until there were too many this second, then counts.
#[derive(Debug, Default)]
struct Limited {
    window: Mutex<Window>,
}

#[derive(Debug, Default)]
struct Window {
    since: Option<Instant>,
    passed: u32,
    suppressed: u32,
}

/// What becomes of a message.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Pass,
    /// The first of a new second, after this many were not shown.
    PassAfter(u32),
    Suppress,
}

impl Window {
    fn judge(&mut self, now: Instant) -> Fate {
        if self.since.is_none_or(|since| now.duration_since(since) >= Duration::from_secs(1)) {
            let suppressed = self.suppressed;
            *self = Self { since: Some(now), passed: 1, suppressed: 0 };
            return if suppressed == 0 { Fate::Pass } else { Fate::PassAfter(suppressed) };
        }
        if self.passed < MOST {
            self.passed += 1;
            return Fate::Pass;
        }
        self.suppressed += 1;
        Fate::Suppress
    }
}

impl Log for Limited {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let fate = self.window.lock().unwrap_or_else(PoisonError::into_inner).judge(Instant::now());
        match fate {
            Fate::Suppress => return,
            Fate::PassAfter(suppressed) => tracing::warn!(suppressed, "more messages from the programs"),
            Fate::Pass => {}
        }
        let message = record.args();
        match record.level() {
            Level::Error => tracing::error!(target: "ebpf", "{message}"),
            Level::Warn => tracing::warn!(target: "ebpf", "{message}"),
            Level::Info => tracing::info!(target: "ebpf", "{message}"),
            Level::Debug => tracing::debug!(target: "ebpf", "{message}"),
            Level::Trace => tracing::trace!(target: "ebpf", "{message}"),
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_off_and_counted() {
        let mut window = Window::default();
        let start = Instant::now();
        for _ in 0..MOST {
            assert_eq!(window.judge(start), Fate::Pass);
        }
        for _ in 0..7 {
            assert_eq!(window.judge(start), Fate::Suppress);
        }
        assert_eq!(window.judge(start + Duration::from_secs(1)), Fate::PassAfter(7));
        assert_eq!(window.judge(start + Duration::from_secs(2)), Fate::Pass);
    }
}
