//! Where everything is in the picture. A bridge is a card with its ports as cells in it, so that 200 ports are a
//! table that can be read and not 200 boxes in a row; only cards are laid out as a graph.
//!
//! The library (`rust-sugiyama`) knows layers from top to bottom; the picture goes from left to right: outside,
//! uplink, host, bridges, namespaces.

use std::collections::{BTreeMap, BTreeSet};

use rust_sugiyama::configure::{Config, CrossingMinimization, RankingType};

use super::{EdgeKind, Graph, HOST, Node, NodeKind};

pub const CELL: (f64, f64) = (178.0, 40.0);
pub const GAP: f64 = 8.0;
pub const PADDING: f64 = 14.0;
pub const TITLE: f64 = 24.0;
pub const LINE: f64 = 16.0;
pub const MARGIN: f64 = 30.0;
/// Around a card, in both directions: room for the lines between cards.
const SPACING: f64 = 70.0;
/// A table is this many times as wide as high.
const ASPECT: f64 = 1.5;
const CARD_LEAST: f64 = 190.0;

/// What is drawn, with its place.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Picture {
    pub width: f64,
    pub height: f64,
    pub cards: Vec<Card>,
    pub lines: Vec<Line>,
    /// Every VLAN that is in the picture.
    pub vlans: BTreeSet<u16>,
}

/// What kind of card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CardKind {
    Outside,
    Uplink,
    Host,
    Bridge,
    Namespace,
    Forwards,
}

/// A box with a title, some lines, and cells below.
#[derive(Debug, Clone, PartialEq)]
pub struct Card {
    pub kind: CardKind,
    pub title: String,
    pub notes: Vec<String>,
    pub cells: Vec<Cell>,
    pub columns: usize,
    /// Top left.
    pub x: f64,
    pub y: f64,
    pub width: f64,
    pub height: f64,
}

/// An interface in a card, or a forward.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Cell {
    pub name: String,
    /// What is on the other side, or what it is.
    pub note: String,
    pub vlans: Vec<u16>,
    pub down: bool,
    pub held: bool,
}

/// What a line stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LineKind {
    Uplink,
    Route,
    Veth,
    Forward,
}

/// A line between two cards, from side to side.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    pub kind: LineKind,
    pub from: (f64, f64),
    pub to: (f64, f64),
    /// Straight ahead until here: past the wider cards above and below the one where it begins.
    pub clear: f64,
    /// How many connections it stands for.
    pub count: usize,
}

/// Cards and connections before they have a place.
#[derive(Default)]
struct Draft {
    cards: Vec<Card>,
    index: BTreeMap<String, usize>,
    links: BTreeMap<(usize, usize, LineKind), usize>,
}

/// The picture of a graph.
pub fn picture(graph: &Graph) -> Picture {
    let mut draft = Draft::new(graph);
    draft.size();
    let places = draft.place();
    draft.finish(&places)
}

/// What of a graph is asked again and again.
struct Facts<'a> {
    nodes: BTreeMap<&'a str, &'a Node>,
    /// Port to bridge.
    master: BTreeMap<&'a str, &'a str>,
    /// Both directions.
    peer: BTreeMap<&'a str, &'a str>,
    uplink: Option<&'a str>,
    /// Namespaces with more than one connection: cards of their own. The others are a note at their one port.
    carded: BTreeSet<&'a str>,
}

impl<'a> Facts<'a> {
    fn of(graph: &'a Graph) -> Self {
        let nodes: BTreeMap<_, _> = graph.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
        let master =
            graph.edges_of(EdgeKind::Port).map(|edge| (edge.from.as_str(), edge.to.as_str())).collect();
        let mut peer = BTreeMap::new();
        for edge in graph.edges_of(EdgeKind::Veth) {
            peer.insert(edge.from.as_str(), edge.to.as_str());
            peer.insert(edge.to.as_str(), edge.from.as_str());
        }
        let uplink = graph.edges_of(EdgeKind::Uplink).next().map(|edge| edge.to.as_str());
        let mut inside: BTreeMap<&str, usize> = BTreeMap::new();
        for node in graph.nodes.iter().filter_map(|node| node.namespace.as_deref()) {
            *inside.entry(node).or_default() += 1;
        }
        let carded = inside.into_iter().filter(|(_, count)| *count > 1).map(|(name, _)| name).collect();
        Self { nodes, master, peer, uplink, carded }
    }

    fn cell(&self, node: &Node) -> Cell {
        Cell {
            name: node.name.clone(),
            note: self.note(node),
            vlans: node.vlans.clone(),
            down: node.status.as_deref().is_some_and(|status| status != "up" && status != "unknown"),
            held: node.held,
        }
    }

    fn note(&self, node: &Node) -> String {
        let peer = self.peer.get(node.id.as_str()).and_then(|peer| self.nodes.get(peer));
        let held = if node.held { "held: loop · " } else { "" };
        match peer {
            Some(Node { namespace: Some(namespace), name, .. }) => format!("{held}⇄ {namespace} / {name}"),
            Some(Node { namespace: None, name, .. }) => format!("{held}⇄ {name}"),
            None => {
                let kind = node.interface_type.as_deref().unwrap_or_default();
                match node.addresses.first() {
                    Some(address) => format!("{held}{kind} · {address}"),
                    None => format!("{held}{kind}"),
                }
            }
        }
    }
}

impl Draft {
    fn new(graph: &Graph) -> Self {
        let facts = Facts::of(graph);
        let mut draft = Self::default();
        draft.put_cards(graph, &facts);
        draft.put_links(graph, &facts);
        draft.put_forwards(graph);
        draft
    }

    fn card(&mut self, id: &str, kind: CardKind, title: &str, notes: Vec<String>) -> usize {
        let index = self.cards.len();
        self.index.insert(id.to_owned(), index);
        let title = title.to_owned();
        self.cards.push(Card {
            kind,
            title,
            notes,
            cells: Vec::new(),
            columns: 1,
            x: 0.0,
            y: 0.0,
            width: 0.0,
            height: 0.0,
        });
        index
    }

    /// A card for each thing that others are connected to; everything else is a cell of one.
    fn put_cards(&mut self, graph: &Graph, facts: &Facts<'_>) {
        for node in &graph.nodes {
            let id = node.id.as_str();
            let kind = match node.kind {
                NodeKind::Outside => CardKind::Outside,
                NodeKind::Host => CardKind::Host,
                NodeKind::Bridge if node.namespace.is_none() => CardKind::Bridge,
                NodeKind::Namespace if facts.carded.contains(node.name.as_str()) => CardKind::Namespace,
                NodeKind::Interface if facts.uplink == Some(id) && !facts.master.contains_key(id) => {
                    CardKind::Uplink
                }
                NodeKind::Bridge | NodeKind::Namespace | NodeKind::Interface => continue,
            };
            self.card(id, kind, &node.name, node.addresses.clone());
        }
        for node in &graph.nodes {
            let id = node.id.as_str();
            if self.index.contains_key(id)
                || matches!(node.kind, NodeKind::Namespace | NodeKind::Host | NodeKind::Outside)
            {
                continue;
            }
            let home = match &node.namespace {
                Some(namespace) => super::namespace_id(namespace),
                None => facts.master.get(id).map_or(HOST.to_owned(), |master| (*master).to_owned()),
            };
            // The master may itself be a port (a bond of a bridge): then it is a cell, and this one beside it.
            let home = self.index.get(&home).or_else(|| {
                let above = facts.master.get(home.as_str())?;
                self.index.get(*above)
            });
            if let Some(home) = home {
                self.cards[*home].cells.push(facts.cell(node));
                self.index.insert(id.to_owned(), *home);
            }
        }
    }

    fn put_links(&mut self, graph: &Graph, facts: &Facts<'_>) {
        for edge in &graph.edges {
            let kind = match edge.kind {
                EdgeKind::Uplink => LineKind::Uplink,
                EdgeKind::Route => LineKind::Route,
                EdgeKind::Veth => LineKind::Veth,
                EdgeKind::Port | EdgeKind::Inside | EdgeKind::Forward => continue,
            };
            let (Some(from), Some(to)) = (self.index.get(&edge.from), self.index.get(&edge.to)) else {
                continue;
            };
            if from == to {
                continue;
            }
            // From left to right: the uplink's side comes before the host, everything else after it.
            let uplink = facts.uplink.and_then(|id| self.index.get(id));
            let (left, right) = match kind {
                LineKind::Route if Some(from) != uplink => (*to, *from),
                LineKind::Veth if self.cards[*from].kind == CardKind::Namespace => (*to, *from),
                LineKind::Route | LineKind::Veth | LineKind::Uplink | LineKind::Forward => (*from, *to),
            };
            *self.links.entry((left, right, kind)).or_default() += 1;
        }
    }

    /// One card for all forwards from one place to another, between the two.
    fn put_forwards(&mut self, graph: &Graph) {
        let mut groups: BTreeMap<(usize, usize), Vec<Cell>> = BTreeMap::new();
        for edge in graph.edges_of(EdgeKind::Forward) {
            let (Some(from), Some(to)) = (self.index.get(&edge.from), self.index.get(&edge.to)) else {
                continue;
            };
            let label = edge.label.clone().unwrap_or_default();
            let (outer, inner) = label.split_once(" → ").unwrap_or((&label, ""));
            let cell = Cell { name: outer.to_owned(), note: format!("→ {inner}"), ..Cell::default() };
            groups.entry((*from, *to)).or_default().push(cell);
        }
        for ((from, to), cells) in groups {
            let id = format!("forwards:{from}:{to}");
            let title = format!("forwards to {}", self.cards[to].title);
            let card = self.card(&id, CardKind::Forwards, &title, Vec::new());
            self.cards[card].cells = cells;
            self.links.insert((from, card, LineKind::Forward), 1);
            self.links.insert((card, to, LineKind::Forward), 1);
        }
    }

    fn size(&mut self) {
        for card in &mut self.cards {
            card.columns = columns(card.cells.len());
            let rows = card.cells.len().div_ceil(card.columns);
            let (columns, rows) = (number(card.columns), number(rows));
            let title = 8.5 * number(card.title.chars().count().min(40)) + 2.0 * PADDING;
            let table = columns * CELL.0 + (columns - 1.0) * GAP + 2.0 * PADDING;
            card.width = table.max(title).max(CARD_LEAST);
            card.height = PADDING + TITLE + LINE * number(card.notes.len()) + PADDING;
            if rows > 0.0 {
                card.height += rows * (CELL.1 + GAP);
            }
        }
    }

    /// The middle of each card.
    fn place(&self) -> Vec<(f64, f64)> {
        let vertices: Vec<(u32, (f64, f64))> =
            (0_u32..).zip(&self.cards).map(|(index, card)| (index, (card.height, card.width))).collect();
        let ids: BTreeSet<(u32, u32)> = (self.links.keys())
            .filter_map(|(from, to, _)| Some((u32::try_from(*from).ok()?, u32::try_from(*to).ok()?)))
            .collect();
        // The library takes no edge twice, nor there and back.
        let edges: Vec<(u32, u32)> =
            ids.iter().copied().filter(|(from, to)| from < to || !ids.contains(&(*to, *from))).collect();
        let config = Config {
            vertex_spacing: SPACING,
            ranking_type: RankingType::MinimizeEdgeLength,
            c_minimization: CrossingMinimization::Barycenter,
            // Quadratic in the cards of a layer, and hardly to be seen.
            transpose: self.cards.len() < 100,
            ..Config::default()
        };
        let mut places = vec![(0.0, 0.0); self.cards.len()];
        let mut below = 0.0;
        for (layout, width, _) in rust_sugiyama::from_vertices_and_edges(&vertices, &edges, &config) {
            let top = layout
                .iter()
                .map(|(index, (x, _))| x - self.cards[*index].height / 2.0)
                .fold(f64::MAX, f64::min);
            for (index, (x, y)) in layout {
                places[index] = (y, x - top + below);
            }
            // Parts that nothing connects, one below the other.
            below += width + SPACING;
        }
        places
    }

    fn finish(self, places: &[(f64, f64)]) -> Picture {
        let Self { mut cards, links, .. } = self;
        let least = |values: &mut dyn Iterator<Item = f64>| values.fold(f64::MAX, f64::min);
        // The cards of a layer have one middle; they look better, and leave room for lines, with one left side.
        let widest = |x: f64| {
            let layer = cards.iter().zip(places).filter(|(_, place)| (place.0 - x).abs() < 1.0);
            layer.map(|(card, _)| card.width).fold(0.0, f64::max)
        };
        let widths: Vec<f64> = places.iter().map(|(x, _)| widest(*x)).collect();
        for ((card, (x, y)), width) in cards.iter_mut().zip(places).zip(&widths) {
            (card.x, card.y) = (x - width / 2.0, y - card.height / 2.0);
        }
        let (left, top) =
            (least(&mut cards.iter().map(|card| card.x)), least(&mut cards.iter().map(|card| card.y)));
        for card in &mut cards {
            card.x = (card.x - left + MARGIN).round();
            card.y = (card.y - top + MARGIN).round();
        }
        let most = |value: fn(&Card) -> f64| cards.iter().map(value).fold(0.0, f64::max);
        let (width, height) = (most(|card| card.x + card.width), most(|card| card.y + card.height));
        let lines = lines(&cards, &widths, &links);
        let vlans = cards.iter().flat_map(|card| &card.cells).flat_map(|cell| cell.vlans.clone()).collect();
        Picture { width: width + MARGIN, height: height + MARGIN, cards, lines, vlans }
    }
}

/// As many columns as make the table `ASPECT` times as wide as high.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number")]
fn columns(cells: usize) -> usize {
    let ideal = (number(cells) * CELL.1 / CELL.0 * ASPECT).sqrt();
    (ideal.ceil() as usize).clamp(1, 12)
}

#[expect(clippy::cast_precision_loss, reason = "numbers of things in a picture")]
fn number(count: usize) -> f64 {
    count as f64
}

/// Lines leave a card at its right side and reach one at its left side, spread over its height in the order of
/// where they go.
fn lines(cards: &[Card], widths: &[f64], links: &BTreeMap<(usize, usize, LineKind), usize>) -> Vec<Line> {
    let middle = |index: usize| cards[index].y + cards[index].height / 2.0;
    let spread = |index: usize, mine: &(usize, usize, LineKind), leaving: bool| {
        let side = |link: &&(usize, usize, LineKind)| if leaving { link.0 == index } else { link.1 == index };
        let far = |link: &(usize, usize, LineKind)| middle(if leaving { link.1 } else { link.0 });
        let mut all: Vec<_> = links.keys().filter(side).collect();
        all.sort_by(|a, b| far(a).total_cmp(&far(b)).then(a.cmp(b)));
        let position = all.iter().position(|link| *link == mine).unwrap_or(0);
        let card = &cards[index];
        let step = (card.height - 2.0 * PADDING) / number(all.len());
        card.y + PADDING + step * (number(position) + 0.5)
    };
    links
        .iter()
        .map(|(link, count)| {
            let (from, to, kind) = *link;
            let (start, end) = (&cards[from], &cards[to]);
            let (x1, clear, x2) = if start.x < end.x {
                (start.x + start.width, start.x + widths[from], end.x)
            } else {
                (start.x, start.x, end.x + end.width)
            };
            let from = (x1, spread(from, link, true).round());
            let to = (x2, spread(to, link, false).round());
            Line { kind, from, to, clear: clear.round(), count: *count }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{
        super::{OUTSIDE, tests::sample},
        *,
    };

    fn overlap(a: &Card, b: &Card) -> bool {
        a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height
    }

    #[test]
    fn no_card_lies_on_another_and_all_are_in_the_picture() {
        for ports in [0, 1, 5, 64, 200, 700] {
            let Picture { width, height, cards, lines, .. } = picture(&sample(ports));
            for (index, card) in cards.iter().enumerate() {
                assert!(card.x >= 0.0 && card.x + card.width <= width, "{card:?}");
                assert!(card.y >= 0.0 && card.y + card.height <= height, "{card:?}");
                for other in &cards[index + 1..] {
                    assert!(!overlap(card, other), "{ports}: {} and {}", card.title, other.title);
                }
            }
            assert!(lines.iter().all(|line| line.from.0.is_finite() && line.to.1.is_finite()));
        }
    }

    #[test]
    fn the_same_graph_is_the_same_picture_every_time() {
        let graph = sample(200);
        let first = picture(&graph);
        for _ in 0..10 {
            assert_eq!(picture(&graph), first);
        }
    }

    #[test]
    fn every_interface_is_in_the_picture_once() {
        let graph = sample(200);
        let picture = picture(&graph);
        let cells: Vec<_> = picture.cards.iter().flat_map(|card| &card.cells).collect();
        for port in [0, 2, 199] {
            let name = format!("tap-vm{port}");
            assert_eq!(cells.iter().filter(|cell| cell.name == name).count(), 1, "{name}");
        }
        assert!(
            cells.iter().any(|cell| cell.note == "⇄ lab0 / eth0"),
            "a namespace of one interface is a note"
        );
        assert!(picture.cards.iter().any(|card| card.title == "router" && card.cells.len() > 10));
        assert_eq!(picture.cards.iter().filter(|card| card.kind == CardKind::Forwards).count(), 4);
        assert_eq!(picture.cards[0].title, graph.nodes[0].name);
        assert!(picture.cards.iter().any(|card| card.kind == CardKind::Outside && card.title == OUTSIDE));
    }

    #[test]
    fn an_empty_graph_is_an_empty_picture() {
        let picture = picture(&Graph::default());
        assert!(picture.cards.is_empty() && picture.lines.is_empty());
    }
}
