//! The two formats that scrapers read, and which of them a scraper wants.
//!
//! Prometheus asks for OpenMetrics. Whoever does not (curl, Telegraf, `promtool check metrics`) reads the older text
//! format, and stops at what is only in OpenMetrics: a family of the type `info`, and `# EOF`.

use std::fmt::Write as _;

/// How metrics are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0, as the encoder writes it.
    OpenMetrics,
    /// Prometheus' text format 0.0.4.
    Text,
}

impl Format {
    /// OpenMetrics for those who ask for it at least as much as for plain text.
    pub fn wanted(accept: &str) -> Self {
        let mut best = (0.0, 0.0);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
            let weight = parts.find_map(|part| part.strip_prefix("q=")?.parse::<f32>().ok()).unwrap_or(1.0);
            match kind.as_str() {
                "application/openmetrics-text" => best.0 = weight.max(best.0),
                "text/plain" | "text/*" => best.1 = weight.max(best.1),
                _ => {}
            }
        }
        if best.0 > 0.0 && best.0 >= best.1 { Self::OpenMetrics } else { Self::Text }
    }

    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// OpenMetrics text in this format.
    pub fn write(self, openmetrics: String) -> String {
        match self {
            Self::OpenMetrics => openmetrics,
            Self::Text => as_text(&openmetrics),
        }
    }
}

/// The series are written alike in both; what is said about their families is not.
fn as_text(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    // A family's help comes before its type, and its name there depends on the type.
    let mut help = None;
    for line in openmetrics.lines() {
        let said = line.strip_prefix("# ").and_then(|said| said.split_once(' '));
        let Some((about, rest)) = said else {
            if line != "# EOF" {
                text.push_str(line);
                text.push('\n');
            }
            continue;
        };
        match (about, rest.split_once(' ')) {
            ("HELP", _) => help = rest.split_once(' ').map(|(_, help)| help),
            ("TYPE", Some((family, kind))) => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", "counter"),
                    "info" => ("_info", "gauge"),
                    "unknown" => ("", "untyped"),
                    kind => ("", kind),
                };
                // Writing to a string does not fail.
                let _ = help.take().map(|help| writeln!(text, "# HELP {family}{suffix} {help}")).transpose();
                let _ = writeln!(text, "# TYPE {family}{suffix} {kind}");
            }
            // Units are OpenMetrics' own.
            _ => {}
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::tests::{rendered, sample};

    #[test]
    fn a_scraper_gets_the_format_that_it_asks_for() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;\
                          q=0.4,text/plain;version=1.0.0;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        for (accept, format) in [
            (prometheus, Format::OpenMetrics),
            ("application/openmetrics-text", Format::OpenMetrics),
            ("Application/OpenMetrics-Text; version=1.0.0, */*", Format::OpenMetrics),
            ("", Format::Text),
            ("*/*", Format::Text),
            ("text/plain; version=0.0.4", Format::Text),
            ("text/plain, application/openmetrics-text;q=0.5", Format::Text),
            ("application/openmetrics-text;q=0", Format::Text),
            ("text/html,application/xhtml+xml,*/*;q=0.8", Format::Text),
        ] {
            assert_eq!(Format::wanted(accept), format, "{accept}");
        }
    }

    #[test]
    fn in_text_a_familys_name_is_that_of_its_series() {
        let text = Format::Text.write(rendered(sample()));
        for lines in [
            "# HELP telecluster_rule_packets_total Packets translated by a rule.\n\
             # TYPE telecluster_rule_packets_total counter\ntelecluster_rule_packets_total{",
            "# TYPE telecluster_build_info gauge\ntelecluster_build_info{",
            "# TYPE telecluster_http_request_duration_seconds histogram\n\
             telecluster_http_request_duration_seconds_sum{",
            "# TYPE telecluster_uptime_seconds gauge\ntelecluster_uptime_seconds 7.0\n",
        ] {
            assert!(text.contains(lines), "{lines}\nis not in\n{text}");
        }
    }

    #[test]
    fn text_has_nothing_that_only_openmetrics_has() {
        let text = Format::Text.write(rendered(sample()));
        let kinds = ["counter", "gauge", "histogram", "summary", "untyped"];
        for line in text.lines().filter(|line| line.starts_with('#')) {
            match line.split(' ').collect::<Vec<_>>()[1..] {
                ["HELP", ..] => {}
                ["TYPE", _, kind] => assert!(kinds.contains(&kind), "{line}"),
                _ => panic!("{line}"),
            }
        }
    }

    #[test]
    fn both_have_the_same_series() {
        let openmetrics = rendered(sample());
        let series = |text: &str| {
            text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(series(&Format::Text.write(openmetrics.clone())), series(&openmetrics));
        assert_eq!(Format::OpenMetrics.write(openmetrics.clone()), openmetrics);
    }
}
