//! What `iptables-restore` is told so that our chains hold what they should, and what `iptables-save` tells of them.
//! Pure.
//!
//! Changes are made line by line, so that the counters of the others go on; only chains that are not as we left them
//! are built anew.

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Write as _,
};

use crate::kernel::dataplane::Slot;

use super::{
    comment,
    lines::{Chain, Line, Lines, Table},
};

/// A line as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Saved {
    pub(super) slot: Option<Slot>,
    /// As `iptables-save` spells it.
    pub(super) text: String,
    pub(super) packets: u64,
    pub(super) bytes: u64,
}

/// One chain of ours as the kernel has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) lines: Vec<Saved>,
    /// By the kernel's chain that jumps to it.
    jumps: BTreeMap<&'static str, usize>,
    declared: bool,
}

/// Our chains of one family as the kernel has them.
pub(super) type Actual = BTreeMap<Chain, Found>;

/// Turns chains that hold `before` into chains that hold `after`; `None` when there is nothing to do.
pub(super) fn change(before: &Lines, after: &Lines) -> Option<String> {
    let none = Vec::new();
    script(|table, body| {
        let chains = || Chain::ALL.into_iter().filter(move |chain| chain.table() == table);
        let added = |chain: &Chain| !before.contains_key(chain) && after.contains_key(chain);
        let gone = |chain: &Chain| before.contains_key(chain) && !after.contains_key(chain);
        for chain in chains().filter(added) {
            declare(body, chain);
        }
        for chain in chains() {
            if gone(&chain) {
                chain.callers().iter().for_each(|caller| unjump(body, caller, chain));
                let _ = writeln!(body, "-F {}", chain.name());
            } else {
                let (before, after) =
                    (before.get(&chain).unwrap_or(&none), after.get(&chain).unwrap_or(&none));
                edit(body, chain, before, after);
            }
        }
        for chain in chains().filter(gone) {
            let _ = writeln!(body, "-X {}", chain.name());
        }
        for chain in chains().filter(added) {
            chain.callers().iter().for_each(|caller| jump(body, caller, chain));
        }
    })
}

/// Makes our chains anew as they are wanted, whatever is there; `None` when nothing is wanted and nothing there.
pub(super) fn rebuild(actual: &Actual, wanted: &Lines) -> Option<String> {
    script(|table, body| {
        let chains = || Chain::ALL.into_iter().filter(move |chain| chain.table() == table);
        for chain in chains().filter(|chain| wanted.contains_key(chain)) {
            declare(body, chain);
        }
        for (chain, found) in actual.iter().filter(|(chain, _)| chain.table() == table) {
            for (caller, times) in &found.jumps {
                (0..*times).for_each(|_| unjump(body, caller, *chain));
            }
            if found.declared && !wanted.contains_key(chain) {
                let _ = writeln!(body, "-F {}", chain.name());
            }
        }
        for (chain, lines) in wanted.iter().filter(|(chain, _)| chain.table() == table) {
            edit(body, *chain, &[], lines);
        }
        for (chain, found) in actual.iter().filter(|(chain, _)| chain.table() == table) {
            if found.declared && !wanted.contains_key(chain) {
                let _ = writeln!(body, "-X {}", chain.name());
            }
        }
        for chain in chains().filter(|chain| wanted.contains_key(chain)) {
            chain.callers().iter().for_each(|caller| jump(body, caller, chain));
        }
    })
}

/// Whether the chains hold lines of the rules wanted, in order, and are jumped to once.
pub(super) fn agrees(actual: &Actual, wanted: &Lines) -> bool {
    Chain::ALL.into_iter().all(|chain| match (actual.get(&chain), wanted.get(&chain)) {
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
        (Some(found), Some(lines)) => {
            found.declared
                && found.jumps.len() == chain.callers().len()
                && found.jumps.values().all(|times| *times == 1)
                && found.lines.iter().map(|line| line.slot).eq(lines.iter().map(|line| line.slot))
        }
    })
}

/// Whether two looks found the same, whatever was counted between them.
pub(super) fn same(one: &Actual, other: &Actual) -> bool {
    let texts = |found: &Found| found.lines.iter().map(|line| line.text.clone()).collect::<Vec<_>>();
    one.len() == other.len()
        && one.iter().zip(other).all(|((chain, found), (other_chain, other))| {
            chain == other_chain && found.jumps == other.jumps && texts(found) == texts(other)
        })
}

/// Our chains from the text of `iptables-save -c`.
pub(super) fn read(saved: &str) -> Actual {
    let mut actual = Actual::new();
    let mut table = None;
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = Table::ALL.into_iter().find(|table| table.name() == name);
        } else if let Some(declared) = line.strip_prefix(':') {
            let name = declared.split(' ').next().unwrap_or_default();
            if let Some(chain) = own(table, name) {
                actual.entry(chain).or_default().declared = true;
            }
        } else if let Some((counters, text)) =
            line.strip_prefix('[').and_then(|line| line.split_once("] -A "))
        {
            let Some((name, text)) = text.split_once(' ') else { continue };
            if let Some(chain) = own(table, name) {
                let (packets, bytes) = counters.split_once(':').unwrap_or_default();
                let (packets, bytes) = (packets.parse().unwrap_or(0), bytes.parse().unwrap_or(0));
                let slot = comment::slot_of(text);
                let found = actual.entry(chain).or_default();
                found.lines.push(Saved { slot, text: text.to_owned(), packets, bytes });
            } else if let Some(chain) = text.strip_prefix("-j ").and_then(|target| own(table, target))
                && let Some(caller) = chain.callers().iter().find(|caller| **caller == name)
            {
                *actual.entry(chain).or_default().jumps.entry(*caller).or_default() += 1;
            }
        }
    }
    actual
}

fn own(table: Option<Table>, name: &str) -> Option<Chain> {
    Chain::ALL.into_iter().find(|chain| Some(chain.table()) == table && chain.name() == name)
}

/// Each table is a transaction of its own.
fn script(fill: impl Fn(Table, &mut String)) -> Option<String> {
    let mut text = String::new();
    for table in Table::ALL {
        let mut body = String::new();
        fill(table, &mut body);
        if !body.is_empty() {
            let _ = write!(text, "*{}\n{body}COMMIT\n", table.name());
        }
    }
    (!text.is_empty()).then_some(text)
}

/// Makes a chain, or empties it.
fn declare(body: &mut String, chain: Chain) {
    let _ = writeln!(body, ":{} - [0:0]", chain.name());
}

/// Before all rules of others.
fn jump(body: &mut String, caller: &str, chain: Chain) {
    let _ = writeln!(body, "-I {caller} 1 -j {}", chain.name());
}

fn unjump(body: &mut String, caller: &str, chain: Chain) {
    let _ = writeln!(body, "-D {caller} -j {}", chain.name());
}

/// Deletes what is not wanted any more, then inserts what is missing at its place.
fn edit(body: &mut String, chain: Chain, before: &[Line], after: &[Line]) {
    let wanted: HashSet<&Line> = after.iter().collect();
    let (mut now, gone): (Vec<&Line>, Vec<&Line>) = before.iter().partition(|line| wanted.contains(line));
    for line in gone {
        let _ = writeln!(body, "-D {} {}", chain.name(), line.text);
    }
    for (index, line) in after.iter().enumerate() {
        if now.get(index) == Some(&line) {
            continue;
        }
        if index == now.len() {
            let _ = writeln!(body, "-A {} {}", chain.name(), line.text);
        } else {
            let _ = writeln!(body, "-I {} {} {}", chain.name(), index + 1, line.text);
        }
        now.insert(index, line);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::kernel::{
        iptables::Family,
        netfilter::{
            hairpin::{Uplinks, tests::ens3},
            lines::{
                Rules, lines,
                tests::{forward, masquerade},
            },
        },
    };

    fn v4(rules: impl IntoIterator<Item = (u32, super::super::lines::Placed)>) -> Lines {
        let rules: Rules = rules.into_iter().map(|(slot, rule)| (Slot(slot), rule)).collect();
        lines(Family::V4, &rules, &Uplinks::new())
    }

    /// What `iptables-save` would say after a script that built all of it.
    pub(in crate::kernel::netfilter) fn saved(wanted: &Lines) -> String {
        let mut text = String::new();
        for table in Table::ALL {
            let _ = writeln!(text, "*{}\n:PREROUTING ACCEPT [0:0]", table.name());
            let chains = || wanted.iter().filter(|(chain, _)| chain.table() == table);
            for (chain, _) in chains() {
                let _ = writeln!(text, ":{} - [0:0]", chain.name());
            }
            for (chain, lines) in chains() {
                for caller in chain.callers() {
                    let _ = writeln!(text, "[9:900] -A {caller} -j {}", chain.name());
                }
                for line in lines {
                    let _ = writeln!(text, "[3:180] -A {} {}", chain.name(), line.text);
                }
            }
            text.push_str("[0:0] -A PREROUTING -i docker0 -j DOCKER\nCOMMIT\n");
        }
        text
    }

    #[test]
    fn the_first_rule_makes_the_chains_and_the_last_one_takes_them_away() {
        let (none, one) = (Lines::new(), v4([(0, masquerade("10.0.0.0/8"))]));
        let text = change(&none, &one).unwrap();
        let nat = text.split("*nat\n").nth(1).unwrap();
        assert_eq!(
            nat,
            "\
:TELECLUSTER-POSTROUTING - [0:0]
-A TELECLUSTER-POSTROUTING -s 10.0.0.0/8 -o ens3 \
-m comment --comment \"telecluster:0,ens3,masquerade,10.0.0.0/8,restricted,any\" -j MASQUERADE
-I POSTROUTING 1 -j TELECLUSTER-POSTROUTING
COMMIT
"
        );
        let text = change(&one, &none).unwrap();
        let nat = text.split("*nat\n").nth(1).unwrap();
        assert_eq!(
            nat,
            "-D POSTROUTING -j TELECLUSTER-POSTROUTING\n-F TELECLUSTER-POSTROUTING\n\
             -X TELECLUSTER-POSTROUTING\nCOMMIT\n"
        );
        assert_eq!(text.matches("-D FORWARD -j").count(), 1);
        assert_eq!(change(&one, &one), None);
    }

    #[test]
    fn lines_of_other_rules_are_left_alone() {
        let two = v4([(0, masquerade("10.0.0.0/8")), (1, forward(22, None))]);
        let three =
            v4([(0, masquerade("10.0.0.0/8")), (1, forward(22, None)), (2, masquerade("10.1.0.0/16"))]);
        let text = change(&two, &three).unwrap();
        assert!(text.contains("-I TELECLUSTER-POSTROUTING 1 -s 10.1.0.0/16"), "{text}");
        assert_eq!(text.lines().filter(|line| line.starts_with(['-', ':'])).count(), 3, "{text}");
        let text = change(&three, &two).unwrap();
        assert!(text.contains("-D TELECLUSTER-POSTROUTING -s 10.1.0.0/16"), "{text}");
        assert_eq!(text.lines().filter(|line| line.starts_with(['-', ':'])).count(), 3, "{text}");
    }

    #[test]
    fn a_chain_of_counters_that_nobody_needs_any_more_goes_after_the_jump_to_it() {
        let both = v4([(0, masquerade("10.0.0.0/8")), (1, forward(22, None))]);
        let text = change(&both, &v4([(0, masquerade("10.0.0.0/8"))])).unwrap();
        let place = |what: &str| text.find(what).unwrap_or_else(|| panic!("no {what} in {text}"));
        assert!(place("-D TELECLUSTER-COUNT -m conntrack --ctstate DNAT") < place("-X TELECLUSTER-DNAT-IN"));
        assert!(!text.contains("-D FORWARD"), "{text}");
    }

    #[test]
    fn an_address_that_an_uplink_gets_later_adds_lines_and_leaves_the_others() {
        let rules = Rules::from([(Slot(1), forward(22, None))]);
        let (before, after) =
            (lines(Family::V4, &rules, &Uplinks::new()), lines(Family::V4, &rules, &ens3()));
        let text = change(&before, &after).unwrap();
        assert!(!text.contains("-D "), "{text}");
        let place = |what: &str| text.find(what).unwrap_or_else(|| panic!("no {what} in {text}"));
        assert!(
            place("-A TELECLUSTER-TURN-OWN -d 203.0.113.1") < place("-I OUTPUT 1 -j TELECLUSTER-TURN-OWN")
        );
        assert!(change(&after, &before).unwrap().contains("-D OUTPUT -j TELECLUSTER-TURN-OWN"));
    }

    #[test]
    fn what_is_found_is_what_was_made() {
        let wanted = v4([(0, masquerade("10.0.0.0/8")), (5, forward(22, None))]);
        let actual = read(&saved(&wanted));
        assert!(agrees(&actual, &wanted));
        let line = &actual[&Chain::DnatIn].lines[0];
        assert_eq!((line.slot, line.packets, line.bytes), (Some(Slot(5)), 3, 180));
        assert_eq!(rebuild(&Actual::new(), &Lines::new()), None);
    }

    #[test]
    fn what_somebody_has_changed_is_made_anew() {
        let wanted = v4([(0, masquerade("10.0.0.0/8")), (5, forward(22, None))]);
        let text = saved(&wanted);
        for (name, changed) in [
            ("a jump is gone", text.replace("[9:900] -A PREROUTING -j TELECLUSTER-PREROUTING\n", "")),
            ("everything is gone", String::new()),
            (
                "a jump is doubled",
                text.replace(
                    "[0:0] -A PREROUTING -i docker0",
                    "[0:0] -A PREROUTING -j TELECLUSTER-PREROUTING\n[0:0] -A PREROUTING -i docker0",
                ),
            ),
        ] {
            let actual = read(&changed);
            assert!(!agrees(&actual, &wanted), "{name}");
            let script = rebuild(&actual, &wanted).unwrap_or_else(|| panic!("{name}: nothing to do"));
            assert_eq!(script.matches("-I PREROUTING 1 -j").count(), 1, "{name}: {script}");
            let jumps = actual.get(&Chain::Prerouting).map_or(0, |found| found.jumps.values().sum());
            assert_eq!(script.matches("-D PREROUTING -j").count(), jumps, "{name}: {script}");
            assert!(!script.contains("docker"), "{name}: {script}");
        }
        assert!(!same(&read(&text), &read(&text.replace("--dport 22", "--dport 23"))));
        assert!(same(&read(&text), &read(&text.replace("[3:180]", "[4:200]"))));
    }

    #[test]
    fn nothing_is_left_when_nothing_is_wanted() {
        let wanted = v4([(0, masquerade("10.0.0.0/8")), (5, forward(22, None))]);
        let script = rebuild(&read(&saved(&wanted)), &Lines::new()).unwrap();
        assert_eq!(script.matches("-X ").count(), wanted.len(), "{script}");
        assert!(!script.contains("-I "), "{script}");
    }
}
