//! Where the log goes: stderr, one line per event, with time, level, fields.

use std::io::{IsTerminal, stderr};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{filter::Targets, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::LogLevel;

/// Starts the log. Called once, before anything is worth logging.
pub fn start(level: LogLevel) {
    let colours = stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let lines = fmt::layer().with_writer(stderr).with_ansi(colours).with_target(false);
    // A subscriber that is set already (a test's) is left in place.
    let _ = tracing_subscriber::registry().with(lines).with(filter(level)).try_init();
    // A panic is a bug, and goes to the log like one instead of over several lines of stderr.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        tracing::error!(place, reason = panic_text(panic.payload()), "bug: a request or task panicked");
    }));
}

/// What a panic said.
pub(crate) fn panic_text(payload: &(dyn std::any::Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("unknown")
}

fn filter(level: LogLevel) -> Targets {
    let level = LevelFilter::from(level);
    // At debug our decisions are of interest, not the sockets' state machines.
    Targets::new()
        .with_default(level)
        .with_target("hyper", level.min(LevelFilter::INFO))
        .with_target("hyper_util", level.min(LevelFilter::INFO))
        .with_target("mio", level.min(LevelFilter::INFO))
}

impl LogLevel {
    /// The same threshold in aya-log's numbers: 1 error to 5 trace.
    pub fn programs(self) -> u8 {
        match self {
            Self::Debug => 4,
            Self::Info => 3,
            Self::Warning => 2,
            Self::Error | Self::Critical => 1,
        }
    }
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Info => Self::INFO,
            LogLevel::Warning => Self::WARN,
            LogLevel::Error | LogLevel::Critical => Self::ERROR,
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn libraries_do_not_flood_the_log_at_debug() {
        let filter = filter(LogLevel::Debug);
        assert!(filter.would_enable("telecluster_worker::engine", &Level::DEBUG));
        assert!(!filter.would_enable("hyper_util::client", &Level::DEBUG));
    }

    #[test]
    fn libraries_are_not_louder_than_the_level() {
        assert!(!filter(LogLevel::Error).would_enable("hyper", &Level::INFO));
    }
}
