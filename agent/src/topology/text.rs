//! The graph as text for Graphviz and for Mermaid, which lay it out themselves.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
};

use super::{Edge, EdgeKind, Graph, Node, NodeKind};

/// For `dot -Tsvg`.
pub fn dot(graph: &Graph) -> String {
    let mut out = String::from(
        "digraph topology {\n  rankdir=LR;\n  compound=true;\n  node [shape=box, style=rounded, fontname=\"sans-serif\"];\n",
    );
    // Writing into a String does not fail.
    let _ = graph.nodes.iter().try_for_each(|node| {
        let shape = match node.kind {
            NodeKind::Outside => ", shape=oval",
            NodeKind::Host => ", shape=house",
            NodeKind::Bridge => ", style=\"rounded,bold\"",
            NodeKind::Namespace => ", style=\"rounded,dashed\"",
            NodeKind::Interface => "",
        };
        writeln!(out, "  {} [label={}{shape}];", Quoted(&node.id), Quoted(&label(node, "\n")))
    });
    let _ = graph.edges.iter().try_for_each(|edge| {
        let style = match edge.kind {
            EdgeKind::Forward => "color=darkorange, style=dashed",
            EdgeKind::Uplink => "dir=none, penwidth=2",
            EdgeKind::Veth => "dir=none, color=purple",
            EdgeKind::Port | EdgeKind::Inside | EdgeKind::Route => "dir=none",
        };
        let label = edge.label.as_deref().map(|text| format!(", label={}", Quoted(text))).unwrap_or_default();
        writeln!(out, "  {} -> {} [{style}{label}];", Quoted(&edge.from), Quoted(&edge.to))
    });
    out.push_str("}\n");
    out
}

/// For a Markdown page.
pub fn mermaid(graph: &Graph) -> String {
    // Ids of Mermaid are plain words.
    let ids: BTreeMap<&str, usize> =
        graph.nodes.iter().enumerate().map(|(index, node)| (node.id.as_str(), index)).collect();
    let mut out = String::from("flowchart LR\n");
    let _ = graph.nodes.iter().enumerate().try_for_each(|(index, node)| {
        let (open, close) = match node.kind {
            NodeKind::Outside => ("([", "])"),
            NodeKind::Host => ("{{", "}}"),
            NodeKind::Bridge => ("[[", "]]"),
            NodeKind::Namespace => ("(", ")"),
            NodeKind::Interface => ("[", "]"),
        };
        writeln!(out, "  n{index}{open}\"{}\"{close}", Entities(&label(node, "\n")))
    });
    let _ = graph.edges.iter().try_for_each(|Edge { from, to, kind, label }| {
        let (Some(from), Some(to)) = (ids.get(from.as_str()), ids.get(to.as_str())) else { return Ok(()) };
        let arrow = match kind {
            EdgeKind::Forward => "-.->",
            EdgeKind::Uplink => "===",
            EdgeKind::Port | EdgeKind::Veth | EdgeKind::Inside | EdgeKind::Route => "---",
        };
        match label {
            Some(label) => writeln!(out, "  n{from} {arrow}|\"{}\"| n{to}", Entities(label)),
            None => writeln!(out, "  n{from} {arrow} n{to}"),
        }
    });
    out
}

fn label(node: &Node, separator: &str) -> String {
    let mut parts = vec![node.name.clone()];
    parts.extend(node.addresses.iter().cloned());
    if !node.vlans.is_empty() {
        let ids: Vec<_> = node.vlans.iter().map(u16::to_string).collect();
        parts.push(format!("VLAN {}", ids.join(", ")));
    }
    if node.held {
        parts.push("held on a loop".to_owned());
    }
    parts.join(separator)
}

/// A quoted string of the DOT language.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for letter in self.0.chars() {
            match letter {
                '"' | '\\' => write!(f, "\\{letter}")?,
                '\n' => f.write_str("\\n")?,
                letter if letter.is_control() => f.write_char('\u{fffd}')?,
                letter => f.write_char(letter)?,
            }
        }
        f.write_char('"')
    }
}

/// Text in which Mermaid finds nothing of its own language, nor of HTML.
struct Entities<'a>(&'a str);

impl fmt::Display for Entities<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in self.0.chars() {
            match letter {
                '\n' => f.write_str("<br/>")?,
                letter
                    if letter.is_alphanumeric()
                        || matches!(letter, ' ' | '.' | ':' | '-' | '_' | '/' | ',' | '→') =>
                {
                    f.write_char(letter)?;
                }
                letter if letter.is_control() => f.write_char('\u{fffd}')?,
                letter => write!(f, "#{};", u32::from(letter))?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::sample, *};

    #[test]
    fn a_name_cannot_end_its_string() {
        assert_eq!(Quoted("a\"]; b -> c \\").to_string(), r#""a\"]; b -> c \\""#);
        assert_eq!(Entities("a\"] --> x<script>\n").to_string(), "a#34;#93; --#62; x#60;script#62;<br/>");
    }

    #[test]
    fn every_node_and_edge_is_a_line() {
        let graph = sample(70);
        assert_eq!(dot(&graph).lines().count(), 4 + graph.nodes.len() + graph.edges.len() + 1);
        assert_eq!(mermaid(&graph).lines().count(), 1 + graph.nodes.len() + graph.edges.len());
    }
}
