//! `/nat/flows`: the data plane's flows with names, filtered, sorted, paged.

use std::{
    borrow::Borrow,
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
};

use telecluster_common::tcp::{FlowState, proto};

use crate::{
    kernel::{
        KernelError,
        dataplane::{DataPlane, Flow, Slot},
    },
    model::FlowView,
};

use super::{Census, FlowPage, FlowQuery, FlowSort};

/// What numbers in a flow are called.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Why no flow is fast.
    pub(super) no_fast_path: Option<String>,
    pub(super) rules: BTreeMap<Slot, String>,
    pub(super) interfaces: HashMap<u32, String>,
}

/// The page of the flows that a query asks for. Of a million only those are kept that may be on it.
pub(super) fn page(
    dataplane: &dyn DataPlane,
    names: &Names,
    query: &FlowQuery,
) -> Result<FlowPage, KernelError> {
    let limit = if query.limit == 0 { usize::MAX } else { query.limit };
    let end = query.offset.saturating_add(limit);
    let found = Mutex::new((0, First::new(end, query.sort)));
    dataplane.visit_flows(&|part| {
        let matching: Vec<&Flow> = part.iter().filter(|flow| matches(flow, names, query)).collect();
        let count = matching.len();
        let matching = first(matching, end, query.sort);
        let (total, kept) = &mut *found.lock().unwrap_or_else(PoisonError::into_inner);
        *total += count;
        kept.add(matching);
    })?;
    let (total, kept) = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut kept = kept.finish();
    let start = query.offset.min(kept.len());
    if 0 < start && start < kept.len() {
        kept.select_nth_unstable_by(start, |a, b| order(a, b, query.sort));
    }
    let page = &mut kept[start..];
    page.sort_unstable_by(|a, b| order(a, b, query.sort));
    Ok(FlowPage { total, flows: page.iter().map(|flow| view(flow, names)).collect() })
}

/// All flows in figures, with the `top` that have the most bytes.
pub(super) fn census(dataplane: &dyn DataPlane, top: usize) -> Result<Census, KernelError> {
    let found = Mutex::new((Census::default(), First::new(top, FlowSort::Bytes)));
    dataplane.visit_flows(&|part| {
        // Each thread counts its part alone, and waits for the others only to add it up.
        let some = Census::of(part);
        let largest = first(part.iter().collect(), top, FlowSort::Bytes);
        let (census, kept) = &mut *found.lock().unwrap_or_else(PoisonError::into_inner);
        census.add(some);
        kept.add(largest);
    })?;
    let (mut census, kept) = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    census.top = top;
    census.largest = kept.finish();
    census.largest.sort_unstable_by(|a, b| order(a, b, FlowSort::Bytes));
    Ok(census)
}

impl Census {
    /// Without the largest.
    fn of(flows: &[Flow]) -> Self {
        let mut census = Self { total: flows.len(), ..Self::default() };
        for flow in flows {
            *census.by_rule.entry(flow.slot).or_default() += 1;
            *census.by_state.entry((flow.protocol, flow.state)).or_default() += 1;
        }
        census
    }

    fn add(&mut self, other: Self) {
        self.total += other.total;
        for (slot, count) in other.by_rule {
            *self.by_rule.entry(slot).or_default() += count;
        }
        for (state, count) in other.by_state {
            *self.by_state.entry(state).or_default() += count;
        }
    }
}

/// The first flows of all that are shown to it. It remembers fewer than twice as many as are wanted.
#[derive(Debug)]
struct First {
    end: usize,
    sort: FlowSort,
    kept: Vec<Flow>,
}

impl First {
    fn new(end: usize, sort: FlowSort) -> Self {
        Self { end, sort, kept: Vec::new() }
    }

    /// Some more, at most `end`.
    fn add(&mut self, flows: Vec<&Flow>) {
        self.kept.extend(flows.into_iter().cloned());
        // Not each time: what is cut off has then paid for it.
        if self.kept.len() / 2 >= self.end {
            keep(&mut self.kept, self.end, self.sort);
        }
    }

    /// In no order.
    fn finish(mut self) -> Vec<Flow> {
        keep(&mut self.kept, self.end, self.sort);
        self.kept
    }
}

fn first(mut flows: Vec<&Flow>, end: usize, sort: FlowSort) -> Vec<&Flow> {
    keep(&mut flows, end, sort);
    flows
}

/// Leaves the first `end` of them, in no order.
fn keep<F: Borrow<Flow>>(flows: &mut Vec<F>, end: usize, sort: FlowSort) {
    if end < flows.len() {
        flows.select_nth_unstable_by(end, |a, b| order(a.borrow(), b.borrow(), sort));
        flows.truncate(end);
    }
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
    use crate::kernel::{
        dataplane::Counters,
        fake::{FakeDataPlane, Faults},
    };

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

    /// The fake data plane shows two at a time.
    fn page(flows: &[Flow], query: &FlowQuery) -> FlowPage {
        let dataplane = FakeDataPlane::new(Faults::default());
        dataplane.edit(|nat| nat.flows = flows.to_vec());
        super::page(&dataplane, &names(), query).unwrap()
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
        let all = page(&flows, &FlowQuery::default());
        let ports: Vec<_> = all.flows.iter().map(|flow| flow.inside_port).collect();
        assert_eq!(ports, [2, 3, 4, 1]);
        for (offset, limit) in (0..6).flat_map(|offset| (1..6).map(move |limit| (offset, limit))) {
            let part = page(&flows, &FlowQuery { offset, limit, ..FlowQuery::default() });
            let (start, end) = (offset.min(4), (offset + limit).min(4));
            assert_eq!((part.total, &part.flows[..]), (4, &all.flows[start..end]), "{offset}, {limit}");
        }
    }

    #[test]
    fn a_census_counts_every_flow_and_keeps_the_largest_only() {
        let flows = [flow(1, 6, 10), flow(2, 17, 30), flow(3, 6, 20), flow(4, 6, 20), flow(5, 6, 1)];
        let dataplane = FakeDataPlane::new(Faults::default());
        dataplane.edit(|nat| nat.flows = flows.to_vec());
        for (top, largest) in [(0, &[][..]), (1, &[2]), (3, &[2, 3, 4]), (9, &[2, 3, 4, 1, 5])] {
            let census = census(&dataplane, top).unwrap();
            assert_eq!(census.total, 5);
            assert_eq!(census.by_rule, HashMap::from([(Slot(6), 4), (Slot(17), 1)]));
            let states = [((6, FlowState::Established), 4), ((17, FlowState::Established), 1)];
            assert_eq!(census.by_state, BTreeMap::from(states));
            let ports: Vec<_> = census.largest.iter().map(|flow| flow.inside.1).collect();
            assert_eq!(ports, largest, "{top}");
        }
    }

    #[test]
    fn of_however_many_flows_only_few_are_in_memory() {
        let mut first = First::new(3, FlowSort::Bytes);
        for port in 0..100 {
            let (small, large) = (flow(port, 6, 1), flow(port, 17, u64::from(port)));
            first.add(vec![&small, &large]);
            assert!(first.kept.len() < 6, "{} are kept", first.kept.len());
        }
        let mut sizes: Vec<_> = first.finish().iter().map(|flow| flow.counters.bytes_in).collect();
        sizes.sort_unstable();
        assert_eq!(sizes, [97, 98, 99]);
    }

    #[test]
    fn a_flow_has_the_names_of_its_rule_and_uplink() {
        let query = FlowQuery { rule_id: Some("fwd-1".into()), ..FlowQuery::default() };
        let found = page(&[flow(1, 6, 10), flow(2, 17, 30)], &query);
        assert_eq!(found.total, 1);
        assert_eq!(found.flows[0].rule_id.as_deref(), Some("fwd-1"));
        assert_eq!(found.flows[0].interface.as_deref(), Some("ens3"));
        assert_eq!(found.flows[0].protocol, "tcp");
    }

    #[test]
    fn filters_that_nothing_matches_leave_an_empty_page() {
        let query = FlowQuery { state: Some("new".into()), ..FlowQuery::default() };
        assert_eq!(page(&[flow(1, 6, 10)], &query).total, 0);
    }
}
