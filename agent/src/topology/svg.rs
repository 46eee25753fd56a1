//! The picture as SVG. Every text in it may come from strangers.

use std::fmt::{self, Write as _};

use super::{
    Graph,
    picture::{
        CELL, Card, CardKind, Cell, GAP, LINE, Line, LineKind, MARGIN, PADDING, Picture, TITLE, picture,
    },
};

/// Longest texts that fit, in characters.
const NAME: usize = 16;
const NOTE: usize = 29;
const CARD_NOTE: usize = 40;
const TITLE_MAX: usize = 40;
/// VLANs that a cell shows one by one; and the legend.
const CHIPS: usize = 2;
const STRIPES: usize = 4;
const LEGEND: usize = 16;
const LEGEND_HEIGHT: f64 = 60.0;

const STYLE: &str = "\
text{font-family:'DejaVu Sans',Verdana,sans-serif;font-size:11px;fill:#1b2430}\
.page{fill:#f6f8fa}.card{fill:#ffffff;stroke:#8a97a6;stroke-width:1.2}\
.host{stroke:#2f6f4f;stroke-width:2}.bridge{stroke:#2b62a8;stroke-width:2}\
.namespace{stroke:#7a4fa3;stroke-width:2;stroke-dasharray:6 3}.uplink{stroke:#b3541e;stroke-width:2}\
.forwards{stroke:#b3541e;fill:#fff8f2}.outside{stroke:#8a97a6;stroke-dasharray:2 3}\
.title{font-size:14px;font-weight:bold}.kind{font-size:10px;fill:#5b6776}.note{font-size:10px;fill:#5b6776}\
.cell{fill:#eef2f6;stroke:#c3ccd6}.down{opacity:.55}.held{stroke:#c0392b;stroke-width:2;stroke-dasharray:4 3}\
.name{font-weight:bold}.chip{fill:#ffffff;font-size:10px;font-weight:bold}\
.line{fill:none;stroke:#5b6776;stroke-width:1.6}.line-veth{stroke:#7a4fa3}.line-forward{stroke:#b3541e;stroke-dasharray:7 4}\
.line-uplink{stroke-width:3}.arrow{fill:#b3541e}.count{font-size:10px;fill:#5b6776}\
@media (prefers-color-scheme:dark){text{fill:#e6edf3}.page{fill:#0d1117}.card{fill:#161b22;stroke:#6b7785}\
.host{stroke:#56b68b}.bridge{stroke:#6ea8fe}.namespace{stroke:#b99aeb}.uplink{stroke:#f0883e}\
.forwards{stroke:#f0883e;fill:#1f1710}.cell{fill:#21262d;stroke:#3d4650}.kind,.note,.count{fill:#9aa7b4}\
.held{stroke:#ff7b72}.line{stroke:#9aa7b4}.line-veth{stroke:#b99aeb}.line-forward{stroke:#f0883e}.arrow{fill:#f0883e}.chip{fill:#ffffff}}";

/// The picture of a graph, complete in itself; follows the reader's light or dark mode.
pub fn svg(graph: &Graph) -> String {
    let picture = picture(graph);
    let mut out = String::new();
    // Writing into a String does not fail.
    let _ = write(&mut out, &picture);
    out
}

fn write(out: &mut String, picture: &Picture) -> fmt::Result {
    let width = picture.width.max(640.0);
    let height = picture.height + LEGEND_HEIGHT;
    write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         role=\"img\"><title>Network topology</title><style>{STYLE}</style>\
         <defs><marker id=\"arrow\" viewBox=\"0 0 10 10\" refX=\"9\" refY=\"5\" markerWidth=\"8\" markerHeight=\"8\" \
         orient=\"auto\"><path class=\"arrow\" d=\"M0 0L10 5L0 10z\"/></marker></defs>\
         <rect class=\"page\" width=\"{width}\" height=\"{height}\"/>"
    )?;
    for line in &picture.lines {
        write_line(out, line)?;
    }
    for card in &picture.cards {
        write_card(out, card)?;
    }
    legend(out, picture)?;
    out.write_str("</svg>\n")
}

fn write_line(out: &mut String, line: &Line) -> fmt::Result {
    let Line { kind, from: (x1, y1), to: (x2, y2), clear, count } = line;
    let (class, marker) = match kind {
        LineKind::Uplink => ("line line-uplink", ""),
        LineKind::Route => ("line", ""),
        LineKind::Veth => ("line line-veth", ""),
        LineKind::Forward => ("line line-forward", " marker-end=\"url(#arrow)\""),
    };
    let bend = ((x2 - clear) / 2.0).abs().max(24.0) * if x2 >= clear { 1.0 } else { -1.0 };
    write!(
        out,
        "<path class=\"{class}\" d=\"M{x1} {y1}H{clear}C{} {y1} {} {y2} {x2} {y2}\"{marker}/>",
        clear + bend,
        x2 - bend
    )?;
    if *count > 1 {
        let (x, y) = ((clear + x2) / 2.0, (y1 + y2) / 2.0 - 4.0);
        write!(out, "<text class=\"count\" x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">{count} ×</text>")?;
    }
    Ok(())
}

fn write_card(out: &mut String, card: &Card) -> fmt::Result {
    let Card { kind, title, notes, cells, columns, x, y, width, height } = card;
    let (class, word) = match kind {
        CardKind::Outside => ("outside", ""),
        CardKind::Uplink => ("uplink", "uplink"),
        CardKind::Host => ("host", "host"),
        CardKind::Bridge => ("bridge", "bridge"),
        CardKind::Namespace => ("namespace", "namespace"),
        CardKind::Forwards => ("forwards", ""),
    };
    write!(
        out,
        "<g><title>{}</title><rect class=\"card {class}\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"8\"/>\
         <text class=\"title\" x=\"{}\" y=\"{}\">{}</text>\
         <text class=\"kind\" x=\"{}\" y=\"{}\" text-anchor=\"end\">{word}</text>",
        Text(title),
        x + PADDING,
        y + PADDING + 10.0,
        Short(title, TITLE_MAX),
        x + width - PADDING,
        y + PADDING + 10.0,
    )?;
    let mut top = y + PADDING + TITLE;
    for note in notes {
        write!(
            out,
            "<text class=\"note\" x=\"{}\" y=\"{}\">{}</text>",
            x + PADDING,
            top + 4.0,
            Short(note, CARD_NOTE)
        )?;
        top += LINE;
    }
    let (mut column, mut left) = (0, x + PADDING);
    for cell in cells {
        write_cell(out, cell, left, top)?;
        column += 1;
        left += CELL.0 + GAP;
        if column == *columns {
            (column, left) = (0, x + PADDING);
            top += CELL.1 + GAP;
        }
    }
    out.write_str("</g>")
}

fn write_cell(out: &mut String, cell: &Cell, x: f64, y: f64) -> fmt::Result {
    let Cell { name, note, vlans, down, held } = cell;
    let down = if *down { " class=\"down\"" } else { "" };
    let held = if *held { " held" } else { "" };
    let ids = vlans.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    let tip = if ids.is_empty() { format!("{name}\n{note}") } else { format!("{name}\n{note}\nVLAN {ids}") };
    write!(
        out,
        "<g{down}><title>{}</title><rect class=\"cell{held}\" x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{}\" rx=\"5\"/>",
        Text(&tip),
        CELL.0,
        CELL.1
    )?;
    // A stripe for each VLAN, as far as stripes can be told apart.
    let stripes = vlans.len().clamp(1, STRIPES);
    let height = CELL.1 / f64::from(u8::try_from(stripes).unwrap_or(1));
    for (vlan, row) in vlans.iter().take(STRIPES).zip(0_u8..) {
        let top = y + height * f64::from(row);
        write!(
            out,
            "<rect x=\"{x}\" y=\"{top:.1}\" width=\"5\" height=\"{height:.1}\" fill=\"{}\"/>",
            Colour(*vlan)
        )?;
    }
    write!(out, "<text class=\"name\" x=\"{}\" y=\"{}\">{}</text>", x + 11.0, y + 16.0, Short(name, NAME))?;
    write!(out, "<text class=\"note\" x=\"{}\" y=\"{}\">{}</text>", x + 11.0, y + 31.0, Short(note, NOTE))?;
    let mut right = x + CELL.0 - 6.0;
    if vlans.len() > CHIPS {
        chip(out, &format!("{} VLANs", vlans.len()), "#5b6776", right, y)?;
    } else {
        for vlan in vlans.iter().rev() {
            right = chip(out, &vlan.to_string(), &Colour(*vlan).to_string(), right, y)?;
        }
    }
    out.write_str("</g>")
}

/// A coloured label that ends at `right`; where the next one ends.
fn chip(out: &mut String, text: &str, colour: &str, right: f64, y: f64) -> Result<f64, fmt::Error> {
    // Digits of 10 px bold are about 6.6 px wide.
    let width = 6.6 * f64::from(u16::try_from(text.chars().count()).unwrap_or(9)) + 8.0;
    let left = right - width;
    write!(
        out,
        "<rect x=\"{left}\" y=\"{}\" width=\"{width}\" height=\"15\" rx=\"7\" fill=\"{colour}\"/>\
         <text class=\"chip\" x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
        y + 5.0,
        left + width / 2.0,
        y + 16.0,
        Text(text)
    )?;
    Ok(left - 3.0)
}

fn legend(out: &mut String, picture: &Picture) -> fmt::Result {
    let y = picture.height + 8.0;
    let mut x = MARGIN;
    for (class, marker, text, width) in [
        ("line", "", "routed by the host", 150.0),
        ("line line-veth", "", "veth pairs", 110.0),
        ("line line-forward", " marker-end=\"url(#arrow)\"", "port forwards", 130.0),
    ] {
        write!(
            out,
            "<path class=\"{class}\" d=\"M{x} {y}h30\"{marker}/><text class=\"note\" x=\"{}\" y=\"{}\">{text}</text>",
            x + 36.0,
            y + 4.0
        )?;
        x += width;
    }
    write!(
        out,
        "<rect class=\"cell held\" x=\"{x}\" y=\"{}\" width=\"26\" height=\"14\" rx=\"3\"/>\
         <text class=\"note\" x=\"{}\" y=\"{}\">held on a loop; pale: down</text>",
        y - 7.0,
        x + 34.0,
        y + 4.0
    )?;
    if picture.vlans.is_empty() {
        return Ok(());
    }
    let y = y + 26.0;
    write!(out, "<text class=\"note\" x=\"{MARGIN}\" y=\"{}\">VLAN</text>", y + 11.0)?;
    let mut right = MARGIN + 34.0;
    for vlan in picture.vlans.iter().take(LEGEND) {
        right += 42.0;
        chip(out, &vlan.to_string(), &Colour(*vlan).to_string(), right, y - 5.0)?;
    }
    if picture.vlans.len() > LEGEND {
        let more = picture.vlans.len() - LEGEND;
        write!(out, "<text class=\"note\" x=\"{}\" y=\"{}\">and {more} more</text>", right + 10.0, y + 11.0)?;
    }
    Ok(())
}

/// The colour of a VLAN: neighbouring ids far apart, dark enough for white letters.
struct Colour(u16);

impl fmt::Display for Colour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The golden angle never comes back to where it was.
        let hue = (f64::from(self.0) * 137.508) % 360.0;
        write!(f, "hsl({hue:.0},62%,38%)")
    }
}

/// Text for people with what means something to XML spelt out, and what XML cannot hold replaced.
struct Text<'a>(&'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|letter| escaped(f, letter))
    }
}

/// The same, cut where it would not fit.
struct Short<'a>(&'a str, usize);

impl fmt::Display for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(text, most) = *self;
        if text.chars().nth(most).is_none() {
            return Text(text).fmt(f);
        }
        text.chars().take(most.saturating_sub(1)).try_for_each(|letter| escaped(f, letter))?;
        f.write_char('…')
    }
}

fn escaped(f: &mut fmt::Formatter<'_>, letter: char) -> fmt::Result {
    match letter {
        '<' => f.write_str("&lt;"),
        '>' => f.write_str("&gt;"),
        '&' => f.write_str("&amp;"),
        '"' => f.write_str("&quot;"),
        '\'' => f.write_str("&apos;"),
        '\n' => f.write_str("&#10;"),
        letter if letter.is_control() || matches!(letter, '\u{fffe}' | '\u{ffff}') => {
            f.write_char('\u{fffd}')
        }
        letter => f.write_char(letter),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::sample, *};

    #[test]
    fn names_of_strangers_stay_text() {
        let text = svg(&sample(5));
        assert!(text.contains("&lt;&amp;&quot;&apos;&gt;"), "{text}");
        assert!(!text.contains("<&"));
        assert_eq!(Text("a\u{0}\u{1b}b").to_string(), "a\u{fffd}\u{fffd}b");
        assert_eq!(Short("<<<<<", 3).to_string(), "&lt;&lt;…");
        assert_eq!(Short("abc", 3).to_string(), "abc");
    }

    #[test]
    fn every_element_is_closed() {
        let text = svg(&sample(70));
        for element in ["svg", "g", "text", "title", "style", "defs", "marker"] {
            let opened =
                text.matches(&format!("<{element}>")).count() + text.matches(&format!("<{element} ")).count();
            assert_eq!(opened, text.matches(&format!("</{element}>")).count(), "{element}");
        }
    }

    #[test]
    fn a_vlan_has_the_same_colour_everywhere_and_its_neighbour_another() {
        assert_eq!(Colour(100).to_string(), Colour(100).to_string());
        assert_ne!(Colour(100).to_string(), Colour(101).to_string());
    }
}
