//! What is asked of the worker's speed, beside what was measured: docs/performance.md.
//!
//! What is asked was set where the kernel's own NAT takes twice the time that it takes elsewhere, so less can be saved on another
//! machine. There it says more how much of what can be saved is: each hook's floor, the least that a NAT could do, was
//! measured when that was set, and is measured again in every run.

use anyhow::{Context as _, Result};
use serde_json::Value;

/// What is asked at a hook, and what the floor was there then: both in multiples of the reference.
type Asked = Option<(f64, f64)>;

struct Gate {
    workload: &'static str,
    /// `None`: the bench's own reference.
    reference: Option<&'static str>,
    tc: Asked,
    xdp: Asked,
}

const fn gate(workload: &'static str, tc: Asked, xdp: Asked) -> Gate {
    Gate { workload, reference: None, tc, xdp }
}

const GATES: &[Gate] = &[
    gate("udp-snat-1", Some((2.0, 2.5)), Some((6.0, 8.5))),
    gate("udp-snat-1k", Some((2.0, 2.5)), Some((6.0, 8.5))),
    gate("udp-snat-100k", Some((1.9, 2.3)), Some((4.5, 5.6))),
    gate("udp-snat-1m", Some((1.7, 2.1)), Some((3.5, 4.3))),
    gate("udp-dnat-1k", Some((1.6, 1.9)), Some((5.0, 6.6))),
    gate("udp-dnat-100k", Some((1.5, 1.8)), Some((3.5, 4.4))),
    gate("udp6-snat-1k", Some((2.3, 3.0)), Some((7.0, 10.0))),
    gate("udp6-dnat-1k", Some((1.6, 1.9)), Some((5.0, 6.9))),
    gate("udp-echo-1k", Some((1.5, 1.7)), Some((2.5, 3.0))),
    gate("newflow-snat", Some((2.0, 3.0)), Some((3.5, 5.3))),
    gate("newflow-dnat", Some((1.7, 2.3)), Some((3.0, 4.5))),
    Gate { workload: "rules-new-1k", reference: Some("nft"), tc: Some((1.6, 2.0)), xdp: Some((3.0, 3.9)) },
    gate("crr-snat", Some((1.05, 1.18)), Some((1.0, 1.04))),
    gate("crr-dnat", Some((1.10, 1.28)), Some((1.0, 1.15))),
    gate("rr-snat", Some((1.10, 1.15)), Some((1.0, 1.07))),
    gate("rr-dnat", Some((1.10, 1.20)), Some((1.0, 1.07))),
    gate("tcp-1", Some((1.0, 1.13)), None),
    gate("tcp-8", Some((1.0, 1.23)), None),
    gate("tcp-1-mtu", Some((1.3, 1.46)), Some((1.4, 1.63))),
    gate("l2-1", Some((1.0, 1.1)), Some((2.8, 4.2))),
    gate("l2-1k", Some((1.0, 1.1)), Some((2.8, 4.2))),
    gate("l2-vlan-1", Some((0.95, 1.05)), Some((2.8, 4.2))),
    gate("l2-vlan-1k", Some((0.95, 1.05)), Some((2.8, 4.2))),
];

pub(super) const DEVICES: &str = "nft,nat-floor-tc,nat-floor-xdp,l2-floor-tc,l2-floor-xdp,\
    command:worker=tests/bench/dut.sh,command:worker-xdp=tests/bench/dut-xdp.sh,\
    command:switch=tests/bench/l2.sh,command:switch-xdp=tests/bench/l2-xdp.sh";

/// Each device is measured so often, in turns.
pub(super) const ROUNDS: &str = "3";

pub(super) fn workloads() -> String {
    GATES.iter().map(|gate| gate.workload).collect::<Vec<_>>().join(",")
}

/// Medians of the rounds and, where there were more, the least and the most.
#[derive(Debug, Clone, Copy)]
struct Figure {
    ratio: f64,
    range: (f64, f64),
    ns: Option<f64>,
}

/// A row for each of them, as far as it was measured.
pub(super) fn markdown(results: &Value) -> Result<String> {
    let summary = results["summary"].as_array().context("the bench's JSON has no summary")?;
    let mut text =
        "| workload | the reference | floor, TC | worker, TC | asked | of the floor | asked of it \
        | floor, XDP | worker, XDP | asked | of the floor | asked of it |\n"
            .to_owned();
    text.push_str(&format!("|{}\n", "---|".repeat(12)));
    for gate in GATES {
        let rows: Vec<_> = summary.iter().filter(|row| row["workload"] == gate.workload).collect();
        if rows.is_empty() {
            continue;
        }
        let measured =
            |device: &str| rows.iter().find(|row| row["dut"] == device).and_then(|row| figure(row));
        // What is compared with nft was measured beside the bench's own reference all the same.
        let one = gate.reference.and_then(&measured).map_or(1.0, |figure| figure.ratio);
        let [nat, switch] = ["nat-floor", "l2-floor"];
        let (floor, worker) =
            if gate.workload.starts_with("l2") { (switch, "switch") } else { (nat, "worker") };
        let reference = match gate.reference {
            Some(name) => (name, measured(name)),
            None => rows
                .iter()
                .find(|row| is_reference(row))
                .map_or(("?", None), |row| (row["dut"].as_str().unwrap_or("?"), figure(row))),
        };
        let tc = hook(gate.tc, one, measured(&format!("{floor}-tc")), measured(worker));
        let xdp = hook(gate.xdp, one, measured(&format!("{floor}-xdp")), measured(&format!("{worker}-xdp")));
        let time =
            reference.1.and_then(|figure| figure.ns).map_or(String::new(), |ns| format!(" ({ns:.0} ns)"));
        text.push_str(&format!("| {} | {}{time} | {tc} | {xdp} |\n", gate.workload, reference.0));
    }
    Ok(text)
}

/// Its own ratio is 1, in every round.
fn is_reference(row: &Value) -> bool {
    ["iptables", "ip6tables", "bridge"].iter().any(|name| row["dut"] == **name)
}

fn figure(row: &Value) -> Option<Figure> {
    let number = |key: &str| row[key].as_f64();
    let range = (number("ratio_min")?, number("ratio_max")?);
    Some(Figure { ratio: number("ratio")?, range, ns: number("ns") })
}

/// The cells of a hook. `one`: what the ratios are to be divided by.
fn hook(asked: Asked, one: f64, floor: Option<Figure>, worker: Option<Figure>) -> String {
    let Some((must, floor_then)) = asked else { return "| | | |".to_owned() };
    let (wanted, of_it) = (format!("{must:.2}"), format!("{:.2}", must / floor_then));
    let cell =
        |figure: Option<Figure>| figure.map_or_else(|| "failed".to_owned(), |figure| shown(figure, one));
    let bold = |text: String, met: bool| if met { format!("**{text}**") } else { text };
    let met = worker.is_some_and(|figure| rounded(figure.ratio / one) >= must);
    let share = match (floor, worker) {
        (Some(floor), Some(worker)) => {
            let share = rounded(worker.ratio / floor.ratio);
            bold(format!("{share:.2}"), share >= rounded(must / floor_then))
        }
        _ => String::new(),
    };
    format!("{} | {} | {wanted} | {share} | {of_it}", cell(floor), bold(cell(worker), met))
}

/// As it is shown: nobody shall see two equal figures of which one is below the other.
fn rounded(ratio: f64) -> f64 {
    (ratio * 100.0).round() / 100.0
}

fn shown(figure: Figure, one: f64) -> String {
    let Figure { ratio, range: (least, most), ns } = figure;
    let mut text = format!("{:.2}", ratio / one);
    let range = (most - least >= 0.01).then(|| format!("{:.2} to {:.2}", least / one, most / one));
    let inside: Vec<_> = ns.map(|ns| format!("{ns:.0} ns")).into_iter().chain(range).collect();
    if !inside.is_empty() {
        text.push_str(&format!(" ({})", inside.join("; ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(workload: &str, dut: &str, ratio: f64, ns: f64) -> Value {
        json!({"workload": workload, "dut": dut, "ratio": ratio, "ratio_min": ratio, "ratio_max": ratio + 0.5, "ns": ns})
    }

    #[test]
    fn a_gate_is_met_absolutely_or_by_the_floor() {
        let results = json!({"summary": [
            row("udp-snat-1k", "nat-floor-tc", 2.2, 690.0),
            row("udp-snat-1k", "nat-floor-xdp", 4.4, 340.0),
            row("udp-snat-1k", "worker", 2.0, 750.0),
            row("udp-snat-1k", "worker-xdp", 3.0, 500.0),
            row("udp-snat-1k", "iptables", 1.0, 1500.0),
        ]});
        let table = markdown(&results).unwrap();
        let line = table.lines().last().unwrap();
        assert_eq!(
            line,
            "| udp-snat-1k | iptables (1500 ns) | 2.20 (690 ns; 2.20 to 2.70) | **2.00 (750 ns; 2.00 to 2.50)** | 2.00 \
             | **0.91** | 0.80 | 4.40 (340 ns; 4.40 to 4.90) | 3.00 (500 ns; 3.00 to 3.50) | 6.00 | 0.68 | 0.71 |"
        );
    }

    #[test]
    fn what_is_asked_beside_nft_is_compared_with_nft() {
        let results = json!({"summary": [
            row("rules-new-1k", "nft", 8.0, 3000.0),
            row("rules-new-1k", "nat-floor-tc", 16.0, 1500.0),
            row("rules-new-1k", "worker", 12.8, 1900.0),
            row("rules-new-1k", "iptables", 1.0, 25000.0),
        ]});
        let table = markdown(&results).unwrap();
        assert!(
            table.contains("| rules-new-1k | nft (3000 ns) | 2.00 (1500 ns; 2.00 to 2.06) | **1.60 (1900 ns; 1.60 to 1.66)** |"),
            "{table}"
        );
        assert!(table.contains("| failed | failed | 3.00 |"), "{table}");
    }

    #[test]
    fn what_was_not_asked_for_is_no_row() {
        let table = markdown(&json!({"summary": [row("tcp-dnat-1", "worker", 1.0, 1.0)]})).unwrap();
        assert_eq!(table.lines().count(), 2);
        assert!(workloads().starts_with("udp-snat-1,udp-snat-1k,"));
    }
}
