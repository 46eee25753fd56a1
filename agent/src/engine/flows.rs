//! `/nat/flows`: the data plane's flows with names, filtered, sorted, paged. Pure.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
};

use telecluster_common::tcp::{FlowState, proto};

use crate::{
    kernel::dataplane::{Flow, Slot},
    model::FlowView,
};

use super::{FlowPage, FlowQuery, FlowSort};

/// What numbers in a flow are called.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Why no flow is fast.
    pub(super) no_fast_path: Option<String>,
    pub(super) rules: BTreeMap<Slot, String>,
    pub(super) interfaces: HashMap<u32, String>,
}

/// The page of the flows that a query asks for.
pub(super) fn page(flows: &[Flow], names: &Names, query: &FlowQuery) -> FlowPage {
    let mut matching: Vec<&Flow> = flows.iter().filter(|flow| matches(flow, names, query)).collect();
    let total = matching.len();
    let limit = if query.limit == 0 { usize::MAX } else { query.limit };
    let end = query.offset.saturating_add(limit).min(total);
    let start = query.offset.min(end);
    // Of a million flows only those of the page are put in order.
    if end < total {
        matching.select_nth_unstable_by(end, |a, b| order(a, b, query.sort));
        matching.truncate(end);
    }
    if 0 < start && start < end {
        matching.select_nth_unstable_by(start, |a, b| order(a, b, query.sort));
    }
    let page = &mut matching[start..];
    page.sort_unstable_by(|a, b| order(a, b, query.sort));
    FlowPage { total, flows: page.iter().map(|flow| view(flow, names)).collect() }
}

/// The largest first. Addresses and ports last, so that pages do not shuffle between two calls.
fn order(a: &Flow, b: &Flow, sort: FlowSort) -> Ordering {
    let tuple = |flow: &Flow| (flow.protocol, flow.remote, flow.external, flow.inside);
    weight(b, sort).cmp(&weight(a, sort)).then_with(|| tuple(a).cmp(&tuple(b)))
}

fn weight(flow: &Flow, sort: FlowSort) -> u128 {
    let counters = &flow.counters;
    match sort {
        FlowSort::Bytes => u128::from(counters.bytes_in) + u128::from(counters.bytes_out),
        FlowSort::Packets => u128::from(counters.packets_in) + u128::from(counters.packets_out),
        FlowSort::Age => flow.age.as_nanos(),
        FlowSort::Idle => flow.idle.as_nanos(),
    }
}

fn matches(flow: &Flow, names: &Names, query: &FlowQuery) -> bool {
    fn agrees<T>(wanted: Option<&T>, test: impl FnOnce(&T) -> bool) -> bool {
        wanted.is_none_or(test)
    }
    agrees(query.protocol.as_ref(), |wanted| protocol_name(flow.protocol).eq_ignore_ascii_case(wanted))
        && agrees(query.inside_ip.as_ref(), |wanted| flow.inside.0 == *wanted)
        && agrees(query.remote_ip.as_ref(), |wanted| flow.remote.0 == *wanted)
        && agrees(query.external_port.as_ref(), |wanted| flow.external.1 == *wanted)
        && agrees(query.rule_id.as_ref(), |wanted| names.rules.get(&flow.slot) == Some(wanted))
        && agrees(query.state.as_ref(), |wanted| flow.state.name().eq_ignore_ascii_case(wanted))
}

fn protocol_name(protocol: u8) -> String {
    match protocol {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        other => other.to_string(),
    }
}

/// Why a flow's packets take the kernel's way.
fn reason(flow: &Flow, names: &Names) -> Option<String> {
    if flow.fast {
        return None;
    }
    let closed = names.no_fast_path.clone();
    Some(closed.unwrap_or_else(|| {
        let why = match (flow.protocol, flow.state) {
            (proto::TCP, FlowState::Established) | (proto::UDP, _) => "its way is not known yet",
            (proto::TCP, _) => "the connection is opening or closing",
            (_, _) => "only TCP and UDP can be fast",
        };
        why.to_owned()
    }))
}

fn view(flow: &Flow, names: &Names) -> FlowView {
    let counters = &flow.counters;
    FlowView {
        protocol: protocol_name(flow.protocol),
        inside_ip: flow.inside.0.to_string(),
        inside_port: flow.inside.1,
        external_ip: flow.external.0.to_string(),
        external_port: flow.external.1,
        remote_ip: flow.remote.0.to_string(),
        remote_port: flow.remote.1,
        packets_in: counters.packets_in,
        bytes_in: counters.bytes_in,
        packets_out: counters.packets_out,
        bytes_out: counters.bytes_out,
        state: flow.state.name().to_owned(),
        age: flow.age.as_secs(),
        idle: flow.idle.as_secs(),
        proven: flow.proven,
        path: if flow.fast { "fast" } else { "kernel" }.to_owned(),
        path_reason: reason(flow, names),
        rule_id: names.rules.get(&flow.slot).cloned(),
        interface: names.interfaces.get(&flow.uplink).cloned(),
    }
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, time::Duration};

    use super::*;
    use crate::kernel::dataplane::Counters;

    fn flow(port: u16, protocol: u8, bytes: u64) -> Flow {
        Flow {
            protocol,
            inside: (Ipv4Addr::new(10, 0, 0, 5).into(), port),
            external: (Ipv4Addr::new(192, 0, 2, 10).into(), port),
            remote: (Ipv4Addr::new(198, 51, 100, 1).into(), 443),
            counters: Counters { bytes_in: bytes, packets_out: 1, ..Counters::default() },
            state: FlowState::Established,
            proven: true,
            fast: true,
            age: Duration::from_secs(u64::from(port)),
            idle: Duration::from_secs(1),
            slot: Slot(u32::from(protocol)),
            uplink: 2,
        }
    }

    fn names() -> Names {
        Names {
            no_fast_path: None,
            rules: BTreeMap::from([(Slot(6), "fwd-1".to_owned())]),
            interfaces: HashMap::from([(2, "ens3".to_owned())]),
        }
    }

    #[test]
    fn pages_add_up_and_keep_their_order() {
        let flows = [flow(1, 6, 10), flow(2, 17, 30), flow(3, 6, 20), flow(4, 6, 20)];
        let all = page(&flows, &names(), &FlowQuery::default());
        let ports: Vec<_> = all.flows.iter().map(|flow| flow.inside_port).collect();
        assert_eq!(ports, [2, 3, 4, 1]);
        let second = page(&flows, &names(), &FlowQuery { offset: 1, limit: 2, ..FlowQuery::default() });
        assert_eq!((second.total, second.flows), (4, all.flows[1..3].to_vec()));
    }

    #[test]
    fn a_flow_has_the_names_of_its_rule_and_uplink() {
        let query = FlowQuery { rule_id: Some("fwd-1".into()), ..FlowQuery::default() };
        let found = page(&[flow(1, 6, 10), flow(2, 17, 30)], &names(), &query);
        assert_eq!(found.total, 1);
        assert_eq!(found.flows[0].rule_id.as_deref(), Some("fwd-1"));
        assert_eq!(found.flows[0].interface.as_deref(), Some("ens3"));
        assert_eq!(found.flows[0].protocol, "tcp");
    }

    #[test]
    fn filters_that_nothing_matches_leave_an_empty_page() {
        let query = FlowQuery { state: Some("new".into()), ..FlowQuery::default() };
        assert_eq!(page(&[flow(1, 6, 10)], &names(), &query).total, 0);
    }
}
