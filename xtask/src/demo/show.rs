//! What the worker answers, for people.

use serde_json::Value;

use crate::sh::table;

/// Longer answers are cut: the demo shows, it does not list.
const LINES: usize = 16;

/// JSON, indented; anything else as it came.
pub(super) fn answer(text: &str) -> String {
    let pretty = serde_json::from_str::<Value>(text).and_then(|value| serde_json::to_string_pretty(&value));
    indent(&pretty.unwrap_or_else(|_| text.to_owned()), LINES)
}

pub(super) fn indent(text: &str, limit: usize) -> String {
    let mut shown: String = text.lines().take(limit).map(|line| format!("    {line}\n")).collect();
    if text.lines().count() > limit {
        shown.push_str("    ...\n");
    }
    shown
}

/// The flows as a table, the largest first. `None` when there is none.
pub(super) fn flows(answer: &Value) -> Option<String> {
    let flows = answer.as_array().or_else(|| answer["flows"].as_array())?;
    if flows.is_empty() {
        return None;
    }
    let head =
        ["protocol", "inside", "as", "remote", "packets out", "bytes out", "packets in", "bytes in", "state"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for flow in flows.iter().take(8) {
        let text = |key: &str| flow[key].as_str().map_or_else(|| flow[key].to_string(), str::to_owned);
        let end = |side: &str| format!("{}:{}", text(&format!("{side}_ip")), text(&format!("{side}_port")));
        rows.push(vec![
            text("protocol"),
            end("inside"),
            end("external"),
            end("remote"),
            text("packets_out"),
            text("bytes_out"),
            text("packets_in"),
            text("bytes_in"),
            text("state"),
        ]);
    }
    Some(table(&rows))
}

/// Counters of rules and flows out of a Prometheus page.
pub(super) fn metrics(page: &str) -> Option<String> {
    let ours = page.lines().filter(|line| line.starts_with("telecluster_"));
    let counted = ours.filter(|line| line.contains("packets_total") || line.contains("bytes_total"));
    let busy: Vec<&str> = counted.filter(|line| !line.ends_with(" 0")).take(8).collect();
    (!busy.is_empty()).then(|| indent(&busy.join("\n"), busy.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_become_a_table() {
        let answer = serde_json::json!({"flows": [{"protocol": "tcp", "inside_ip": "192.168.100.10",
            "inside_port": 22, "external_ip": "203.0.113.1", "external_port": 2222,
            "remote_ip": "203.0.113.2", "remote_port": 40000, "packets_in": 5, "bytes_in": 300,
            "packets_out": 7, "bytes_out": 9000, "state": "established"}]});
        let table = flows(&answer).unwrap();
        assert!(table.contains("192.168.100.10:22") && table.contains("203.0.113.1:2222"), "{table}");
        assert!(flows(&serde_json::json!({"flows": []})).is_none());
    }

    #[test]
    fn only_counters_that_counted_are_shown() {
        let page = "# TYPE x counter\ntelecluster_rule_packets_total{rule=\"a\"} 3\n\
                    telecluster_rule_packets_total{rule=\"b\"} 0\nprocess_x 1\n";
        assert_eq!(metrics(page).unwrap(), "    telecluster_rule_packets_total{rule=\"a\"} 3\n");
    }

    #[test]
    fn long_answers_are_cut() {
        assert_eq!(indent("a\nb\nc", 2), "    a\n    b\n    ...\n");
    }
}
