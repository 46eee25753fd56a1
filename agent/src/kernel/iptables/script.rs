//! What `iptables-restore` is told, and what `iptables-save` tells. Pure.
//!
//! Each chain of the kernel that has rules of ours gets one chain of ours and one jump to it. Changes are made
//! rule by rule, so that the counters of the others go on; only a chain that is not as we left it is built anew.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
};

use crate::{
    kernel::filter::{FilterRule, Matched},
    model::firewall::{Chain, FirewallProtocol, FirewallSpec},
};

/// In front of a rule's id in its comment.
const MARK: &str = "telecluster:";

/// IPv4 or IPv6: each has tables, and a program, of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::kernel) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Whether a rule belongs into this family's tables.
    pub(super) fn has(self, spec: &FirewallSpec) -> bool {
        let (v4, v6) = spec.families();
        match self {
            Self::V4 => v4,
            Self::V6 => v6,
        }
    }
}

/// The name of our chain below one of the kernel's; at most 28 bytes.
struct Own(Chain);

impl fmt::Display for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TELECLUSTER-{}", self.0.name())
    }
}

/// One chain of ours as the kernel has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Found {
    exists: bool,
    jumps: usize,
    /// Ids in order; `None` for a rule that bears none.
    ids: Vec<Option<String>>,
}

/// Our chains of one family, and what the rules have matched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Actual {
    chains: BTreeMap<Chain, Found>,
    pub(super) matched: BTreeMap<String, Matched>,
}

/// Turns `before` into `after`; `None` when the family has nothing to do.
pub(super) fn change(family: Family, before: &[FilterRule], after: &[FilterRule]) -> Option<String> {
    let mut body = String::new();
    for chain in Chain::ALL {
        let (before, after) = (rules(family, chain, before), rules(family, chain, after));
        if before == after {
            continue;
        }
        if before.is_empty() {
            build(&mut body, family, chain, &after);
        } else if after.is_empty() {
            remove(&mut body, chain, 1);
        } else {
            edit(&mut body, family, chain, &before, &after);
        }
    }
    script(&body)
}

/// Makes our chains what is wanted, whatever is there; `None` when they are so.
pub(super) fn rebuild(family: Family, actual: &Actual, wanted: &[FilterRule]) -> Option<String> {
    let mut body = String::new();
    for chain in Chain::ALL {
        let rules = rules(family, chain, wanted);
        let found = actual.chains.get(&chain).cloned().unwrap_or_default();
        let ids: Vec<_> = rules.iter().map(|rule| Some(rule.id.clone())).collect();
        let wanted = Found { exists: !rules.is_empty(), jumps: usize::from(!rules.is_empty()), ids };
        if found == wanted {
            continue;
        }
        if rules.is_empty() {
            remove(&mut body, chain, found.jumps);
        } else {
            for _ in 0..found.jumps {
                let _ = writeln!(body, "-D {} -j {}", chain.name(), Own(chain));
            }
            build(&mut body, family, chain, &rules);
        }
    }
    script(&body)
}

fn script(body: &str) -> Option<String> {
    (!body.is_empty()).then(|| format!("*filter\n{body}COMMIT\n"))
}

fn rules(family: Family, chain: Chain, all: &[FilterRule]) -> Vec<&FilterRule> {
    all.iter().filter(|rule| rule.spec.chain == chain && family.has(&rule.spec)).collect()
}

/// Makes the chain, or empties it, fills it, and jumps to it before all rules of others.
fn build(body: &mut String, family: Family, chain: Chain, rules: &[&FilterRule]) {
    let _ = writeln!(body, ":{} - [0:0]", Own(chain));
    for rule in rules {
        let _ = writeln!(body, "-A {} {}", Own(chain), Spelt(family, rule));
    }
    let _ = writeln!(body, "-I {} 1 -j {}", chain.name(), Own(chain));
}

fn remove(body: &mut String, chain: Chain, jumps: usize) {
    for _ in 0..jumps {
        let _ = writeln!(body, "-D {} -j {}", chain.name(), Own(chain));
    }
    let _ = writeln!(body, "-F {0}\n-X {0}", Own(chain));
}

/// Deletes what is not wanted any more, then inserts what is missing at its place.
fn edit(body: &mut String, family: Family, chain: Chain, before: &[&FilterRule], after: &[&FilterRule]) {
    let mut now: Vec<&FilterRule> = before.to_vec();
    for rule in before.iter().filter(|rule| !after.contains(rule)) {
        let _ = writeln!(body, "-D {} {}", Own(chain), Spelt(family, rule));
        now.retain(|kept| kept != rule);
    }
    for (index, rule) in after.iter().enumerate() {
        if now.get(index) != Some(rule) {
            let _ = writeln!(body, "-I {} {} {}", Own(chain), index + 1, Spelt(family, rule));
            now.insert(index, rule);
        }
    }
}

/// A rule as iptables reads it. Every value is of a type that has no blanks and no leading dash.
struct Spelt<'a>(Family, &'a FilterRule);

impl fmt::Display for Spelt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(family, FilterRule { id, spec }) = self;
        let FirewallSpec { chain, action, protocol, source, destination, port, interface, description: _ } =
            spec;
        if let Some(net) = source {
            write!(f, "-s {net} ")?;
        }
        if let Some(net) = destination {
            write!(f, "-d {net} ")?;
        }
        if let Some(name) = interface {
            let flag = match chain {
                Chain::Input | Chain::Forward => "-i",
                Chain::Output => "-o",
            };
            write!(f, "{flag} {name} ")?;
        }
        match (protocol, family) {
            (FirewallProtocol::All, _) => {}
            (FirewallProtocol::Tcp, _) => f.write_str("-p tcp ")?,
            (FirewallProtocol::Udp, _) => f.write_str("-p udp ")?,
            (FirewallProtocol::Icmp, _) => f.write_str("-p icmp ")?,
            (FirewallProtocol::Icmpv6, _) => f.write_str("-p ipv6-icmp ")?,
        }
        if let Some(port) = port {
            write!(f, "-m {} --dport {port} ", protocol.name())?;
        }
        write!(f, "-m comment --comment \"{MARK}{id}\" -j {}", action.name())
    }
}

/// Where the text of `iptables-save` stops making sense: it may have been cut. `None` when it is whole.
pub(super) fn cut(saved: &str) -> Option<String> {
    let mut inside = false;
    for line in saved.lines() {
        inside = match (line.as_bytes().first(), inside) {
            (None | Some(b'#'), _) => inside,
            (Some(b'*'), false) => true,
            (Some(b':' | b'[' | b'-'), true) => true,
            (Some(_), true) if line == "COMMIT" => false,
            (Some(_), _) => return Some(format!("{line:?}")),
        };
    }
    inside.then(|| "it ends within a table".to_owned())
}

/// Our chains and counters from the text of `iptables-save -c -t filter`.
pub(super) fn read(saved: &str) -> Actual {
    let mut actual = Actual::default();
    for chain in Chain::ALL {
        let own = Own(chain).to_string();
        let declared = format!(":{own} ");
        let jump = format!("-A {} -j {own}", chain.name());
        let rule = format!("-A {own} ");
        let mut found = Found::default();
        for line in saved.lines() {
            if line.starts_with(&declared) {
                found.exists = true;
                continue;
            }
            let Some((counters, text)) = line.strip_prefix('[').and_then(|line| line.split_once("] ")) else {
                continue;
            };
            if text == jump {
                found.jumps += 1;
            } else if text.starts_with(&rule) {
                let id = id(text);
                if let Some(id) = &id {
                    let matched = actual.matched.entry(id.clone()).or_default();
                    let (packets, bytes) = numbers(counters);
                    matched.packets = matched.packets.saturating_add(packets);
                    matched.bytes = matched.bytes.saturating_add(bytes);
                }
                found.ids.push(id);
            }
        }
        if found.jumps == 0 {
            // Rules that no packet comes by.
            actual.matched.retain(|id, _| !found.ids.contains(&Some(id.clone())));
        }
        if found != Found::default() {
            actual.chains.insert(chain, found);
        }
    }
    actual
}

fn id(rule: &str) -> Option<String> {
    let (_, rest) = rule.split_once(MARK)?;
    rest.split(['"', ' ']).next().map(str::to_owned)
}

fn numbers(counters: &str) -> (u64, u64) {
    let (packets, bytes) = counters.split_once(':').unwrap_or_default();
    (packets.parse().unwrap_or(0), bytes.parse().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LinkName, firewall::FirewallAction};

    fn rule(id: &str, chain: Chain, source: Option<&str>) -> FilterRule {
        let spec = FirewallSpec {
            chain,
            action: FirewallAction::Drop,
            protocol: FirewallProtocol::Tcp,
            source: source.map(|net| net.parse().unwrap()),
            destination: None,
            port: Some(22),
            interface: Some(LinkName::new("ens3").unwrap()),
            description: Some("\" -j ACCEPT\n".into()),
        };
        FilterRule { id: id.into(), spec }
    }

    #[test]
    fn a_text_that_was_cut_is_told_from_one_that_says_little() {
        let saved =
            "# Generated\n*nat\n:PREROUTING ACCEPT [0:0]\n[1:60] -A PREROUTING -j X\nCOMMIT\n# Completed\n";
        for whole in ["", "# nothing\n", saved, &saved.repeat(2)] {
            assert_eq!(cut(whole), None, "{whole}");
        }
        let table = saved.split_once("COMMIT").unwrap().0;
        for bad in [table, "Segmentation fault\n", &format!("{table}*filter\n"), ":X - [0:0]\n", "COMMIT\n"] {
            assert!(cut(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn the_first_rule_makes_the_chain_and_the_last_one_takes_it_away() {
        let one = [rule("fw-1", Chain::Input, Some("10.0.0.0/8"))];
        assert_eq!(
            change(Family::V4, &[], &one).unwrap(),
            "*filter\n:TELECLUSTER-INPUT - [0:0]\n\
             -A TELECLUSTER-INPUT -s 10.0.0.0/8 -i ens3 -p tcp -m tcp --dport 22 \
             -m comment --comment \"telecluster:fw-1\" -j DROP\n\
             -I INPUT 1 -j TELECLUSTER-INPUT\nCOMMIT\n"
        );
        assert_eq!(
            change(Family::V4, &one, &[]).unwrap(),
            "*filter\n-D INPUT -j TELECLUSTER-INPUT\n-F TELECLUSTER-INPUT\n-X TELECLUSTER-INPUT\nCOMMIT\n"
        );
        assert_eq!(change(Family::V6, &[], &one), None, "an IPv4 source is no IPv6 packet's");
        assert_eq!(change(Family::V4, &one, &one), None);
    }

    #[test]
    fn other_rules_of_the_chain_are_left_alone() {
        let rules: Vec<_> = ["fw-1", "fw-2", "fw-3"].map(|id| rule(id, Chain::Output, None)).into();
        let without = [rules[0].clone(), rules[2].clone()];
        let text = change(Family::V4, &rules, &without).unwrap();
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains("-D TELECLUSTER-OUTPUT -o ens3") && text.contains("fw-2"), "{text}");
        let text = change(Family::V6, &without, &rules).unwrap();
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains("-I TELECLUSTER-OUTPUT 2 -o ens3") && text.contains("fw-2"), "{text}");
    }

    #[test]
    fn what_is_found_is_what_was_made() {
        let saved = "*filter\n:INPUT ACCEPT [0:0]\n:TELECLUSTER-INPUT - [0:0]\n\
            [9:900] -A INPUT -j TELECLUSTER-INPUT\n[0:0] -A INPUT -s 1.2.3.4/32 -j ACCEPT\n\
            [3:180] -A TELECLUSTER-INPUT -p tcp -m tcp --dport 22 -m comment --comment \"telecluster:fw-1\" -j DROP\n\
            [5:300] -A TELECLUSTER-INPUT -m comment --comment telecluster:fw-2 -j REJECT\nCOMMIT\n";
        let actual = read(saved);
        assert_eq!(actual.matched["fw-1"], Matched { packets: 3, bytes: 180 });
        assert_eq!(actual.matched["fw-2"], Matched { packets: 5, bytes: 300 });
        let wanted = ["fw-1", "fw-2"].map(|id| rule(id, Chain::Input, None));
        assert_eq!(rebuild(Family::V4, &actual, &wanted), None);
        // One that is missing, and one that nobody wants: all of the chain anew, the jump once.
        let text = rebuild(Family::V4, &actual, &wanted[..1]).unwrap();
        assert_eq!(text.matches("-D INPUT -j").count(), 1, "{text}");
        assert_eq!(text.matches("-I INPUT 1 -j").count(), 1, "{text}");
        let text = rebuild(Family::V4, &actual, &[]).unwrap();
        assert!(text.contains("-X TELECLUSTER-INPUT") && !text.contains("-I "), "{text}");
        assert_eq!(rebuild(Family::V4, &Actual::default(), &[]), None);
    }

    #[test]
    fn rules_that_nothing_jumps_to_match_nothing_and_are_made_anew() {
        let saved = ":TELECLUSTER-INPUT - [0:0]\n\
            [3:180] -A TELECLUSTER-INPUT -m comment --comment telecluster:fw-1 -j DROP\n";
        let actual = read(saved);
        assert!(actual.matched.is_empty());
        let text = rebuild(Family::V4, &actual, &[rule("fw-1", Chain::Input, None)]).unwrap();
        assert!(text.contains("-I INPUT 1 -j TELECLUSTER-INPUT"), "{text}");
    }

    #[test]
    fn a_jump_that_someone_has_doubled_is_made_one() {
        let saved = ":TELECLUSTER-INPUT - [0:0]\n[0:0] -A INPUT -j TELECLUSTER-INPUT\n\
            [0:0] -A INPUT -j TELECLUSTER-INPUT\n";
        let text = rebuild(Family::V4, &read(saved), &[]).unwrap();
        assert_eq!(text.matches("-D INPUT -j").count(), 2, "{text}");
    }
}
