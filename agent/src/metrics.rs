//! `/metrics`: from measurements to text. Nothing here asks the kernel anything.
//!
//! Labels are bounded: by the number of rules, by `FLOW_METRICS_MAX`, by our own routes. Counters get their
//! `_total` from the encoder.

pub mod exposition;
mod switching;

use std::{
    collections::{BTreeMap, HashSet},
    fmt::{self, Debug},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use axum::http::{Method, StatusCode};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::ConstGauge,
        histogram::Histogram,
        info::Info,
    },
    registry::Registry,
};

use crate::{engine::Measurements, kernel::dataplane::Flow};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    method: &'static str,
    route: String,
}

/// Requests so far. Cheap to clone: all clones count together.
#[derive(Debug, Clone)]
pub struct HttpMetrics {
    requests: Family<RequestLabels, Counter>,
    duration: Family<RouteLabels, Histogram, fn() -> Histogram>,
}

impl Default for HttpMetrics {
    fn default() -> Self {
        // From a map update to a request that waited for its timeout.
        let buckets =
            || Histogram::new([0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0]);
        Self { requests: Family::default(), duration: Family::new_with_constructor(buckets) }
    }
}

impl HttpMetrics {
    /// Counts one request. `route` is the pattern that matched, never the path.
    pub fn observe(&self, method: &Method, route: Option<&str>, status: StatusCode, elapsed: Duration) {
        let method = match *method {
            Method::GET => "GET",
            Method::HEAD => "HEAD",
            Method::POST => "POST",
            Method::PUT => "PUT",
            Method::PATCH => "PATCH",
            Method::DELETE => "DELETE",
            Method::OPTIONS => "OPTIONS",
            _ => "other",
        };
        let route = route.unwrap_or("none").to_owned();
        let labels = RouteLabels { method, route: route.clone() };
        self.duration.get_or_create(&labels).observe(elapsed.as_secs_f64());
        self.requests.get_or_create(&RequestLabels { method, route, status: status.as_u16() }).inc();
    }
}

/// Everything as OpenMetrics text, with series of their own for the largest flows that were measured. [`exposition`]
/// has the other format.
pub fn render(measured: Measurements, http: &HttpMetrics, uptime: Duration) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("telecluster");
    let version = Info::new([("version", env!("CARGO_PKG_VERSION")), ("backend", measured.backend)]);
    registry.register("build", "The worker's version and its data plane", version);
    registry.register(
        "uptime_seconds",
        "Time since the worker started",
        ConstGauge::new(uptime.as_secs_f64()),
    );
    registry.register("bridges", "Bridges of the host", count(measured.bridges));
    registry.register("interfaces", "Interfaces of the host", count(measured.interfaces));
    let attached = count(measured.attachments.len());
    registry.register("attached_uplinks", "Uplinks that the programs are attached to", attached);
    registry.register("http_requests", "Requests by the route that matched", http.requests.clone());
    registry.register("http_request_duration_seconds", "Time to answer", http.duration.clone());
    registry.register_collector(Box::new(Snapshot { measured }));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

fn count(number: usize) -> ConstGauge<u64> {
    ConstGauge::new(number as u64)
}

/// What has labels of the data plane's making, at one moment. The rest is registered by [`render`].
#[derive(Debug)]
struct Snapshot {
    measured: Measurements,
}

type Labels = Vec<(&'static str, String)>;

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Measurements {
            backend: _,
            backend_reason: _,
            backend_differences: _,
            overlaps: _,
            attachments: _,
            xdp,
            pressure,
            drops,
            rules,
            flows,
            switching,
            bridges: _,
            interfaces: _,
            drift,
        } = &self.measured;
        let out = &mut encoder;
        let rule = |id: &str, action: &'static str, direction: &'static str| -> Labels {
            vec![
                ("rule_id", id.to_owned()),
                ("action", action.to_owned()),
                ("direction", direction.to_owned()),
            ]
        };
        let both = |pick: fn(&crate::kernel::dataplane::Counters) -> (u64, u64)| {
            rules.iter().flat_map(move |(view, counters)| {
                let (inward, outward) = pick(counters);
                let action = view.action.name();
                [(rule(&view.id, action, "in"), inward), (rule(&view.id, action, "out"), outward)]
            })
        };
        counters(
            out,
            "rule_packets",
            "Packets translated by a rule",
            both(|c| (c.packets_in, c.packets_out)),
        )?;
        counters(out, "rule_bytes", "Bytes of IP translated by a rule", both(|c| (c.bytes_in, c.bytes_out)))?;
        let one = |view: &crate::model::RuleView| -> Labels {
            vec![("rule_id", view.id.clone()), ("action", view.action.name().to_owned())]
        };
        counters(
            out,
            "rule_flows",
            "Flows that a rule has made",
            rules.iter().map(|(view, counters)| (one(view), counters.flows)),
        )?;
        gauges(
            out,
            "rule_active_flows",
            "Live flows of a rule",
            rules.iter().map(|(view, _)| (one(view), view.active_flows)),
        )?;

        counters(
            out,
            "dropped_packets",
            "Packets dropped by the programs",
            drops.iter().map(|(reason, count)| (vec![("reason", reason.name().to_owned())], *count)),
        )?;
        let sent = ConstCounter::new(xdp.packets);
        alone(out, "xdp_packets", "Packets and frames that were sent on in drivers", &sent)?;
        let native =
            xdp.ports.iter().map(|(name, native, _)| (vec![("interface", name.clone())], u64::from(*native)));
        gauges(out, "xdp_attached", "Whether a program of the worker is in its driver", native)?;
        let map = |name: &str| -> Labels { vec![("map", name.to_owned())] };
        gauges(out, "map_entries", "Entries in use", pressure.iter().map(|p| (map(p.map), p.entries)))?;
        gauges(out, "map_capacity", "Entries that fit", pressure.iter().map(|p| (map(p.map), p.capacity)))?;

        let objects = ConstGauge::new(drift.len() as u64);
        alone(out, "drifted_objects", "Objects that are not as they were told to be", &objects)?;

        let mut states: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for ((number, state), count) in &flows.by_state {
            *states.entry((protocol(*number), state.name())).or_default() += count;
        }
        let state = |((protocol, state), count): ((&str, &str), u64)| {
            (vec![("protocol", protocol.to_owned()), ("state", state.to_owned())], count)
        };
        gauges(out, "flows", "Live flows", states.into_iter().map(state))?;

        let largest = each_once(&flows.largest);
        let both = |pick: fn(&Flow) -> (u64, u64)| {
            largest.iter().flat_map(move |flow| {
                let (inward, outward) = pick(flow);
                [(flow_labels(flow, "in"), inward), (flow_labels(flow, "out"), outward)]
            })
        };
        counters(
            out,
            "flow_packets",
            "Packets of the largest flows",
            both(|flow| (flow.counters.packets_in, flow.counters.packets_out)),
        )?;
        counters(
            out,
            "flow_bytes",
            "Bytes of IP of the largest flows",
            both(|flow| (flow.counters.bytes_in, flow.counters.bytes_out)),
        )?;
        switching::encode(out, switching)
    }
}

/// Each tuple once: one tuple on two uplinks would be one series twice, which no scraper accepts.
fn each_once(flows: &[Flow]) -> Vec<&Flow> {
    let mut seen = HashSet::new();
    let tuple = |flow: &Flow| (flow.protocol, flow.external, flow.remote, flow.inside);
    flows.iter().filter(|flow| seen.insert(tuple(flow))).collect()
}

fn flow_labels(flow: &Flow, direction: &'static str) -> Labels {
    let end = |(address, port): (IpAddr, u16)| SocketAddr::new(address, port).to_string();
    vec![
        ("protocol", protocol(flow.protocol).to_owned()),
        ("inside", end(flow.inside)),
        ("external", end(flow.external)),
        ("remote", end(flow.remote)),
        ("direction", direction.to_owned()),
    ]
}

fn protocol(number: u8) -> &'static str {
    match number {
        1 => "icmp",
        6 => "tcp",
        17 => "udp",
        _ => "other",
    }
}

fn counters(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: impl IntoIterator<Item = (Labels, u64)>,
) -> fmt::Result {
    let mut family = out.encode_descriptor(name, &format!("{help}."), None, MetricType::Counter)?;
    for (labels, value) in series {
        ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn gauges(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: impl IntoIterator<Item = (Labels, u64)>,
) -> fmt::Result {
    let mut family = out.encode_descriptor(name, &format!("{help}."), None, MetricType::Gauge)?;
    for (labels, value) in series {
        ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// A family of one series, which has no labels: written as Prometheus writes it, without braces around nothing.
fn alone(out: &mut DescriptorEncoder<'_>, name: &str, help: &str, series: &impl EncodeMetric) -> fmt::Result {
    series.encode(out.encode_descriptor(name, &format!("{help}."), None, series.metric_type())?)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashMap;

    use telecluster_common::{drop::DropReason, tcp::FlowState};

    use super::*;
    use crate::{
        engine::{Census, XdpMeasured},
        kernel::dataplane::{Attachment, Counters, MapPressure, Slot},
        model::{RuleAction, RuleView},
    };

    /// One of everything.
    pub(crate) fn sample() -> Measurements {
        let counters = Counters { packets_in: 1, bytes_in: 60, packets_out: 2, bytes_out: 120, flows: 1 };
        Measurements {
            backend: "fake",
            backend_reason: "a test".to_owned(),
            backend_differences: &[],
            attachments: vec![Attachment { uplink: 2, mechanism: "tcx" }],
            xdp: XdpMeasured { ports: vec![("ens3".to_owned(), true, "a test".to_owned())], packets: 5 },
            pressure: vec![MapPressure { map: "flow4", entries: 2, capacity: 131_072 }],
            drops: DropReason::ALL.map(|reason| (reason, 0)).to_vec(),
            rules: vec![(rule(), counters)],
            flows: census(vec![flow(1001, 30), flow(1000, 10)]),
            switching: Default::default(),
            bridges: 1,
            interfaces: 4,
            drift: Vec::new(),
            overlaps: Vec::new(),
        }
    }

    fn census(largest: Vec<Flow>) -> Census {
        let by_state = BTreeMap::from([((6, FlowState::Established), 2)]);
        Census { total: 2, by_rule: HashMap::from([(Slot(0), 2)]), by_state, top: largest.len(), largest }
    }

    fn rule() -> RuleView {
        RuleView {
            id: "r1".into(),
            action: RuleAction::Dnat,
            protocol: "tcp".into(),
            source_ip: "0.0.0.0/0".into(),
            source_port: Some(2222),
            dest_ip: Some("10.0.0.2".into()),
            dest_port: Some(22),
            interface: "ens3".into(),
            enabled: true,
            description: None,
            packets: 3,
            bytes: 180,
            packets_in: 1,
            bytes_in: 60,
            packets_out: 2,
            bytes_out: 120,
            active_flows: 2,
            backend: "fake".into(),
            external_ip: None,
            external_port_end: None,
            source_cidrs: None,
            hairpin: None,
            nat_type: None,
            port_parity: None,
            exclude_destinations: None,
            external_ips: None,
            new_flows_per_second: None,
            timeouts: None,
        }
    }

    fn flow(port: u16, bytes: u64) -> Flow {
        let address = |last| IpAddr::from([10, 0, 0, last]);
        Flow {
            protocol: 6,
            inside: (address(2), 22),
            external: (address(1), 2222),
            remote: (address(9), port),
            counters: Counters { packets_in: 1, bytes_in: bytes, packets_out: 2, bytes_out: bytes, flows: 0 },
            state: FlowState::Established,
            proven: true,
            fast: true,
            age: Duration::from_secs(1),
            idle: Duration::ZERO,
            slot: Slot(0),
            uplink: 2,
        }
    }

    pub(super) fn rendered(measured: Measurements) -> String {
        let http = HttpMetrics::default();
        http.observe(&Method::POST, Some("/bridge/create"), StatusCode::OK, Duration::from_millis(2));
        render(measured, &http, Duration::from_secs(7)).unwrap()
    }

    #[test]
    fn every_family_has_its_documented_name_and_labels() {
        let text = rendered(sample());
        for line in [
            r#"telecluster_rule_packets_total{rule_id="r1",action="DNAT",direction="in"} 1"#,
            r#"telecluster_rule_bytes_total{rule_id="r1",action="DNAT",direction="out"} 120"#,
            r#"telecluster_rule_flows_total{rule_id="r1",action="DNAT"} 1"#,
            r#"telecluster_rule_active_flows{rule_id="r1",action="DNAT"} 2"#,
            r#"telecluster_dropped_packets_total{reason="tcp_not_syn"} 0"#,
            r#"telecluster_map_entries{map="flow4"} 2"#,
            r#"telecluster_map_capacity{map="flow4"} 131072"#,
            r#"telecluster_flows{protocol="tcp",state="established"} 2"#,
            r#"telecluster_flow_bytes_total{protocol="tcp",inside="10.0.0.2:22",external="10.0.0.1:2222",remote="10.0.0.9:1001",direction="in"} 30"#,
            r#"telecluster_http_requests_total{method="POST",route="/bridge/create",status="200"} 1"#,
            r#"telecluster_http_request_duration_seconds_bucket{le="0.0025",method="POST",route="/bridge/create"} 1"#,
            r#"telecluster_build_info{version="0.1.0",backend="fake"} 1"#,
            "telecluster_xdp_packets_total 5",
            "telecluster_drifted_objects 0",
            r#"telecluster_xdp_attached{interface="ens3"} 1"#,
            "telecluster_uptime_seconds 7.0",
            "telecluster_bridges 1",
            "telecluster_interfaces 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\nis not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn no_name_has_its_suffix_twice() {
        assert!(!rendered(sample()).contains("_total_total"));
    }

    #[test]
    fn no_series_has_braces_around_nothing() {
        assert!(!rendered(sample()).contains("{}"));
    }

    #[test]
    fn one_tuple_is_one_series() {
        let twice = Measurements { flows: census(vec![flow(1000, 2), flow(1000, 1)]), ..sample() };
        assert_eq!(rendered(twice).matches("telecluster_flow_packets_total{").count(), 2);
    }

    #[test]
    fn no_series_is_there_twice() {
        let text = rendered(sample());
        let mut seen = HashSet::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (series, _) = line.rsplit_once(' ').unwrap();
            assert!(seen.insert(series.to_owned()), "{series}");
        }
    }
}
