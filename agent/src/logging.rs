//! Where the log goes: stderr, one line per event. For people `time - worker - LEVEL - message`, coloured on a
//! terminal; for programs one JSON object. What belongs to a request bears its id.

use std::{
    fmt,
    io::{IsTerminal, stderr},
    time::SystemTime,
};

use tracing::{Event, Level, Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    filter::Targets,
    fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields, format::Writer, layer},
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};

use crate::config::{LogFormat, LogLevel};

/// The name in front of every line.
const NAME: &str = "telecluster-worker";

/// Starts the log. Called once, before anything is worth logging.
pub fn start(level: LogLevel, format: LogFormat) {
    let colours = stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let registry = tracing_subscriber::registry().with(filter(level));
    // A subscriber that is set already (a test's) is left in place.
    let _ = match format {
        LogFormat::Text => {
            registry.with(layer().with_writer(stderr).with_ansi(colours).event_format(Lines)).try_init()
        }
        LogFormat::Json => {
            let objects = layer().json().flatten_event(true).with_span_list(false).with_target(false);
            registry.with(objects.with_writer(stderr)).try_init()
        }
    };
    // A panic is a bug, and goes to the log like one instead of over several lines of stderr.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        tracing::error!(place, reason = panic_text(panic.payload()), "bug: a request or task panicked");
    }));
}

/// A line for people.
struct Lines;

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        write!(out, "{} - {NAME} - ", time.trim_end_matches('Z').replace('T', " "))?;
        let level = *event.metadata().level();
        let (colour, word) = match level {
            Level::ERROR => ("31", "ERROR"),
            Level::WARN => ("33", "WARNING"),
            Level::INFO => ("32", "INFO"),
            Level::DEBUG => ("36", "DEBUG"),
            Level::TRACE => ("90", "TRACE"),
        };
        if out.has_ansi_escapes() {
            write!(out, "\u{1b}[{colour}m{word}\u{1b}[0m - ")?;
        } else {
            write!(out, "{word} - ")?;
        }
        context.field_format().format_fields(out.by_ref(), event)?;
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(fields) =
                span.extensions().get::<FormattedFields<N>>().filter(|fields| !fields.is_empty())
            {
                write!(out, " [{} {fields}]", span.name())?;
            }
        }
        out.write_char('\n')
    }
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
        // The layout of the topology's picture tells its every step at info.
        .with_target("rust_sugiyama", level.min(LevelFilter::WARN))
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
