//! Rings of bridges. Bridges joined by veth pairs with spanning tree off, in a ring, would multiply every
//! broadcast for ever; the worker holds one port of each ring, as spanning tree would.
//!
//! A bridge that runs spanning tree breaks every ring that it is on, because the others pass its BPDUs.

use std::collections::BTreeMap;

use crate::kernel::{
    links::{Link, Observed, Place, PortState},
    step::LinkStep,
};

/// A bridge: its place and index there.
type Node = (Place, u32);

/// A veth pair that joins two bridges, or a bridge with itself.
struct Edge<'a> {
    ends: [(Node, &'a Link); 2],
}

impl Edge<'_> {
    fn guarded(&self) -> bool {
        self.ends.iter().any(|(_, link)| is_guarded(link))
    }
}

fn is_guarded(link: &Link) -> bool {
    link.port.is_some_and(|port| port.guarded)
}

/// Groups of bridges that reach each other.
#[derive(Default)]
struct Groups {
    parent: BTreeMap<Node, Node>,
}

impl Groups {
    fn root(&self, node: &Node) -> Node {
        let mut node = node;
        while let Some(parent) = self.parent.get(node) {
            node = parent;
        }
        node.clone()
    }

    /// False when the two were one group already.
    fn join(&mut self, a: &Node, b: &Node) -> bool {
        let (a, b) = (self.root(a), self.root(b));
        if a == b {
            return false;
        }
        self.parent.insert(a, b);
        true
    }
}

fn plain_bridge(observed: &Observed, place: &Place, link: &Link) -> Option<Node> {
    let master = observed.by_index(place, link.master?)?;
    master.is_plain_bridge().then(|| (place.clone(), master.index))
}

/// Every pair whose two ends are ports of bridges without spanning tree.
fn edges(observed: &Observed) -> Vec<Edge<'_>> {
    let mut edges = Vec::new();
    for (place, link) in observed.everywhere() {
        let Some((peer_place, peer)) = observed.peer_of(link) else { continue };
        // Each pair is met twice; take it at its lesser end.
        if (&place, link.index) > (peer_place, peer.index) {
            continue;
        }
        let (Some(a), Some(b)) =
            (plain_bridge(observed, &place, link), plain_bridge(observed, peer_place, peer))
        else {
            continue;
        };
        edges.push(Edge { ends: [(a, link), (b, peer)] });
    }
    edges
}

/// Whether frames get from one bridge to the other, or the two are one; `None` for a bridge that is not there
/// or runs spanning tree. The pair of `without` is taken out first: it is about to be moved.
pub fn connected(observed: &Observed, a: &Node, b: &Node, without: Option<&Link>) -> bool {
    let mut groups = Groups::default();
    for edge in edges(observed) {
        let moved = without.is_some_and(|port| edge.ends.iter().any(|(_, link)| std::ptr::eq(*link, port)));
        if !edge.guarded() && !moved {
            groups.join(&edge.ends[0].0, &edge.ends[1].0);
        }
    }
    groups.root(a) == groups.root(b)
}

/// Whether `port` would close a ring as a port of `bridge`.
pub fn closes_ring(observed: &Observed, port: &Link, bridge: &Link) -> bool {
    if !bridge.is_plain_bridge() {
        return false;
    }
    let Some((place, peer)) = observed.peer_of(port) else { return false };
    let Some(far) = plain_bridge(observed, place, peer) else { return false };
    connected(observed, &(Place::Here, bridge.index), &far, Some(port))
}

/// The steps after which every ring is held by exactly one port and nothing else is held.
///
/// Only ports that are `ours` are touched: a ring that strangers made is theirs.
pub fn settle(observed: &Observed, ours: impl Fn(&Link) -> bool) -> Vec<LinkStep> {
    let mut steps = Vec::new();
    let hold = |link: &Link, hold| {
        let bridge = observed.master_name(&Place::Here, link).unwrap_or_default().to_owned();
        LinkStep::Hold { port: link.name.clone(), bridge, hold }
    };
    let mut groups = Groups::default();
    let (held, free): (Vec<_>, Vec<_>) = edges(observed).into_iter().partition(Edge::guarded);
    for edge in &free {
        if groups.join(&edge.ends[0].0, &edge.ends[1].0) {
            continue;
        }
        let candidate = edge.ends.iter().rev().find(|((place, _), link)| *place == Place::Here && ours(link));
        if let Some((_, link)) = candidate {
            steps.push(hold(link, true));
        }
    }
    for edge in &held {
        let needed = !groups.join(&edge.ends[0].0, &edge.ends[1].0);
        for (_, link) in edge.ends.iter().filter(|(_, link)| is_guarded(link) && ours(link)) {
            // A port whose carrier came back forwards again, although its guard is still on.
            let slipped = link.port.is_some_and(|port| port.state == PortState::Forwarding);
            if !needed || slipped {
                steps.push(hold(link, needed));
            }
        }
    }
    let on_a_ring: Vec<u32> =
        held.iter().flat_map(|edge| edge.ends.iter().map(|(_, link)| link.index)).collect();
    for link in observed.links.iter().filter(|link| is_guarded(link) && ours(link)) {
        if !on_a_ring.contains(&link.index) {
            steps.push(hold(link, false));
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{
        fake::{FakeKernel, Faults},
        links::At,
        step::{NewBridge, NewEnd},
    };

    async fn world(steps: &[LinkStep]) -> std::sync::Arc<Observed> {
        let kernel = FakeKernel::new(Faults::default());
        for step in steps {
            kernel.act(step).unwrap();
        }
        crate::kernel::Kernel::observe(&kernel).await.unwrap()
    }

    fn bridge(name: &str, stp: bool) -> LinkStep {
        LinkStep::CreateBridge(NewBridge { name: name.into(), stp, ..NewBridge::default() })
    }

    fn veth(a: &str, b: &str) -> LinkStep {
        LinkStep::CreateVeth([NewEnd::new(At::here(a)), NewEnd::new(At::here(b))])
    }

    fn hold(port: &str, bridge: &str, hold: bool) -> LinkStep {
        LinkStep::Hold { port: port.into(), bridge: bridge.into(), hold }
    }

    fn port(port: &str, master: &str) -> LinkStep {
        LinkStep::SetMaster { port: port.into(), master: Some(master.into()) }
    }

    #[tokio::test]
    async fn both_ends_on_one_bridge_close_a_ring() {
        let seen = world(&[bridge("b", false), veth("v1", "v2"), port("v1", "b")]).await;
        assert!(closes_ring(&seen, seen.link("v2").unwrap(), seen.link("b").unwrap()));
        assert!(settle(&seen, |_| true).is_empty());
    }

    #[tokio::test]
    async fn spanning_tree_breaks_the_ring_itself() {
        let seen = world(&[bridge("b", true), veth("v1", "v2"), port("v1", "b")]).await;
        assert!(!closes_ring(&seen, seen.link("v2").unwrap(), seen.link("b").unwrap()));
    }

    #[tokio::test]
    async fn two_bridges_and_two_pairs_close_a_ring() {
        let mut steps = vec![bridge("b1", false), bridge("b2", false), veth("v1", "v2"), veth("w1", "w2")];
        steps.extend([port("v1", "b1"), port("v2", "b2"), port("w1", "b1")]);
        let seen = world(&steps).await;
        assert!(closes_ring(&seen, seen.link("w2").unwrap(), seen.link("b2").unwrap()));
        steps.push(port("w2", "b2"));
        let seen = world(&steps).await;
        assert_eq!(settle(&seen, |_| true), [hold("w2", "b2", true)]);
        assert!(settle(&seen, |_| false).is_empty(), "a ring of strangers is theirs");
    }

    #[tokio::test]
    async fn moving_a_port_does_not_count_where_it_was() {
        let mut steps = vec![bridge("b1", false), bridge("b2", false), veth("v1", "v2")];
        steps.extend([port("v1", "b1"), port("v2", "b2")]);
        let seen = world(&steps).await;
        assert!(!closes_ring(&seen, seen.link("v2").unwrap(), seen.link("b2").unwrap()));
        assert!(closes_ring(&seen, seen.link("v2").unwrap(), seen.link("b1").unwrap()));
    }

    #[tokio::test]
    async fn a_port_is_let_go_when_its_ring_is_gone() {
        let mut steps = vec![bridge("b", false), veth("v1", "v2"), port("v1", "b"), port("v2", "b")];
        steps.push(hold("v2", "b", true));
        let seen = world(&steps).await;
        assert!(settle(&seen, |_| true).is_empty());
        steps.push(LinkStep::SetMaster { port: "v1".into(), master: None });
        let seen = world(&steps).await;
        assert_eq!(settle(&seen, |_| true), [hold("v2", "b", false)]);
    }
}
