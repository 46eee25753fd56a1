//! `cargo xtask bench`: what the worker costs, as tables for docs/performance.md.

use std::env;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::sh::{command, need_root, output, say, workspace};

mod gates;
mod nat;
mod own;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// What to measure
    #[arg(value_enum, default_value_t = What::Nat)]
    what: What,
    /// Under a minute, with less of everything
    #[arg(long)]
    quick: bool,
    /// Put the table into docs/performance.md
    #[arg(long)]
    write: bool,
    /// The bench's own arguments, after `--`
    #[arg(last = true)]
    args: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// Packets, beside iptables, nft and the floors, where the shared bench is
    Nat,
    /// The same, all that something is asked of, in the later hook and in drivers
    Gates,
    /// Requests: thousands of links and rules, many clients
    Api,
    /// A million flows: listing them, and looking for those that are over
    Flows,
    /// Time of a packet, by how many flows and forwards there are
    Growth,
    /// The eBPF programs alone: time of a packet, work of the verifier
    Programs,
}

/// A table, and whether everything in it could be measured.
struct Measured {
    table: String,
    done: Result<()>,
}

pub(crate) fn main(options: &Options) -> Result<()> {
    need_root("bench")?;
    let Measured { table, done } = match options.what {
        What::Nat | What::Gates => nat::measure(options)?,
        What::Api => own::measure("api", options)?,
        What::Flows => own::measure("flows", options)?,
        What::Growth => own::measure("growth", options)?,
        What::Programs => own::measure("programs", options)?,
    };
    // What failed fails the run, but the other figures are still worth seeing.
    println!("\n{table}");
    done?;
    if options.write {
        let words = env::args().skip(1).collect::<Vec<_>>().join(" ");
        let text = format!("{}\n\n{table}", circumstances(&words)?);
        write(&workspace().join("docs/performance.md"), options.what.markers(), &text)?;
    }
    Ok(())
}

impl What {
    /// The table in the document lies between these.
    fn markers(self) -> [&'static str; 2] {
        match self {
            Self::Nat => ["<!-- bench -->", "<!-- /bench -->"],
            Self::Gates => ["<!-- bench gates -->", "<!-- /bench gates -->"],
            Self::Api => ["<!-- bench api -->", "<!-- /bench api -->"],
            Self::Flows => ["<!-- bench flows -->", "<!-- /bench flows -->"],
            Self::Growth => ["<!-- bench growth -->", "<!-- /bench growth -->"],
            Self::Programs => ["<!-- bench programs -->", "<!-- /bench programs -->"],
        }
    }
}

/// Without these a figure means nothing.
fn circumstances(arguments: &str) -> Result<String> {
    let ask = |program: &str, args: &[&str]| {
        output(command(program, args).current_dir(workspace())).map(|text| text.trim().to_owned())
    };
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let release = ask("uname", &["-r"])?;
    // What follows the version is a name of somebody's build.
    let version = release.split('-').next().unwrap_or(&release);
    let cpus = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    Ok(format!(
        "{}, commit {}, `cargo xtask {arguments}`; {cpus} x {}, Linux {version}.",
        ask("date", &["-u", "+%Y-%m-%d"])?,
        ask("git", &["describe", "--always", "--dirty"])?,
        model.map_or("unknown CPU", |(_, name)| name),
    ))
}

/// Replaces what is between the markers.
fn write(document: &Path, markers: [&str; 2], text: &str) -> Result<()> {
    let old = fs::read_to_string(document).with_context(|| format!("cannot read {}", document.display()))?;
    fs::write(document, between_markers(&old, markers, text)?)?;
    say(format!("wrote {}", document.display()));
    Ok(())
}

fn between_markers(document: &str, markers: [&str; 2], text: &str) -> Result<String> {
    let [begin, end] = markers;
    let parts = document.split_once(begin).and_then(|(head, rest)| Some((head, rest.split_once(end)?.1)));
    let (head, tail) = parts.with_context(|| format!("the document lacks the markers {begin} and {end}"))?;
    Ok(format!("{head}{begin}\n{text}\n{end}{tail}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_markers_changes() {
        let document = "# Speed\n<!-- bench -->\nold\n<!-- /bench -->\nwords\n";
        let markers = What::Nat.markers();
        let new = between_markers(document, markers, "new").unwrap();
        assert_eq!(new, "# Speed\n<!-- bench -->\nnew\n<!-- /bench -->\nwords\n");
        assert_eq!(between_markers(&new, markers, "new").unwrap(), new);
        assert!(between_markers("nothing", markers, "new").is_err());
    }

    #[test]
    fn the_document_has_a_place_for_every_table() {
        let document = include_str!("../../docs/performance.md");
        for what in [What::Nat, What::Gates, What::Api, What::Flows, What::Growth, What::Programs] {
            between_markers(document, what.markers(), "new").unwrap();
        }
    }
}
