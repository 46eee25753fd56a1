//! How many flows a rule may make in a second, by the kernel's `hashlimit`. Pure.
//!
//! The nat table may not drop. So chains of the mangle table, which comes before it at every hook, ask each packet what
//! the lines that translate will ask it, in their order, and drop what is beyond the rule's pace. They look at the first
//! packet of a flow only, as the nat table does: at one whose connection is not confirmed.

use telecluster_common::drop::DropReason;

use crate::kernel::dataplane::Slot;

use super::{
    comment,
    lines::{Chain, Line, Lines, Rules},
};

/// What translates, and the chain that paces it.
const PACED: [(Chain, Chain); 4] = [
    (Chain::Prerouting, Chain::PaceIn),
    (Chain::TurnIn, Chain::PaceTurn),
    (Chain::TurnOwn, Chain::PaceOwn),
    (Chain::Postrouting, Chain::PaceOut),
];

/// Why a packet is dropped here.
pub(super) const REASON: DropReason = DropReason::FlowRate;

/// What leaves a chain at once: it is no first packet of a flow that somebody opens.
const UNDER_WAY: [&str; 2] =
    ["-m conntrack ! --ctstate NEW -j RETURN", "-m conntrack --ctstatus CONFIRMED -j RETURN"];

/// Adds the chains that pace, where a rule has a pace.
pub(super) fn pace(lines: &mut Lines, rules: &Rules) {
    for (translating, pacing) in PACED {
        let Some(translating) = lines.get(&translating) else { continue };
        let mut paced: Vec<Line> = translating.iter().flat_map(|line| ask(line, rules)).collect();
        // Behind the last one that drops, none is needed.
        let Some(last) = paced.iter().rposition(|line| drops(&line.text)) else { continue };
        paced.truncate(last + 1);
        let under_way = UNDER_WAY.map(|text| Line { slot: None, text: text.to_owned() });
        lines.insert(pacing, under_way.into_iter().chain(paced).collect());
    }
}

/// What is asked for one line that translates, or that leaves alone.
fn ask(line: &Line, rules: &Rules) -> Vec<Line> {
    let Line { slot: Some(slot), text } = line else { return vec![line.clone()] };
    let (matched, mark) = (comment::matched(text), comment::slot(*slot));
    let line = |text| Line { slot: Some(*slot), text };
    let mut asked = Vec::new();
    if let Some(pace) = rules.get(slot).map(|placed| placed.rule.new_flows())
        && pace != 0
        && !leaves_alone(text)
    {
        asked.push(line(format!("{matched} {} {mark} -j DROP", bucket(*slot, pace))));
    }
    asked.push(line(format!("{matched} {mark} -j RETURN")));
    asked
}

/// A second's worth at once, and then so many in each second. Lines with the same name share it; another pace has
/// another name, because the kernel keeps what a name has first been made with.
fn bucket(slot: Slot, pace: u32) -> String {
    let name = format!("tc{}-{pace}", slot.0);
    format!("-m hashlimit --hashlimit-above {pace}/sec --hashlimit-burst {pace} --hashlimit-name {name}")
}

fn leaves_alone(text: &str) -> bool {
    text.ends_with("-j RETURN")
}

/// Whether a line, of ours or as `iptables-save` spells it, drops.
pub(super) fn drops(text: &str) -> bool {
    text.ends_with("-j DROP")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{
        dataplane::NatRule,
        iptables::Family,
        netfilter::{
            hairpin::{Uplinks, tests::ens3},
            lines::{
                Placed, lines,
                tests::{forward, masquerade},
            },
        },
    };

    fn paced(mut placed: Placed, pace: u32) -> Placed {
        let (NatRule::Forward { new_flows, .. } | NatRule::Masquerade { new_flows, .. }) = &mut placed.rule;
        *new_flows = pace;
        placed
    }

    fn texts(lines: &Lines, chain: Chain) -> Vec<&str> {
        lines.get(&chain).into_iter().flatten().map(|line| line.text.as_str()).collect()
    }

    #[test]
    fn without_a_pace_there_are_no_chains_for_it() {
        let rules = Rules::from([(Slot(0), forward(22, None)), (Slot(1), masquerade("10.0.0.0/8"))]);
        let lines = lines(Family::V4, &rules, &ens3());
        assert!(PACED.iter().all(|(_, pacing)| !lines.contains_key(pacing)));
    }

    #[test]
    fn a_forward_is_paced_from_outside_from_inside_and_from_the_host_in_one_bucket() {
        let rules = Rules::from([(Slot(7), paced(forward(2222, None), 20))]);
        let lines = lines(Family::V4, &rules, &ens3());
        let bucket = "-m hashlimit --hashlimit-above 20/sec --hashlimit-burst 20 --hashlimit-name tc7-20 \
                      -m comment --comment \"telecluster:7\" -j DROP";
        let turned = format!("-d 203.0.113.1 -p tcp -m tcp --dport 2222 {bucket}");
        let outside = format!("-i ens3 -p tcp -m addrtype --dst-type LOCAL -m tcp --dport 2222 {bucket}");
        let [new, first] = UNDER_WAY;
        assert_eq!(texts(&lines, Chain::PaceIn), [new, first, &outside]);
        assert_eq!(texts(&lines, Chain::PaceTurn), [new, first, "-i ens3 -j RETURN", &turned]);
        assert_eq!(texts(&lines, Chain::PaceOwn), [new, first, &turned]);
        assert_eq!(texts(&lines, Chain::PaceOut), [""; 0]);
    }

    #[test]
    fn what_a_more_specific_rule_takes_or_leaves_alone_is_not_charged() {
        let mut wide = paced(masquerade("10.0.0.0/8"), 50);
        if let NatRule::Masquerade { except, .. } = &mut wide.rule {
            except.push("172.16.0.0/12".parse().unwrap());
        }
        let rules = Rules::from([(Slot(1), masquerade("10.1.0.0/16")), (Slot(2), wide)]);
        let lines = lines(Family::V4, &rules, &Uplinks::new());
        let asked = texts(&lines, Chain::PaceOut);
        let [_, _, narrow, spared, dropped] = asked[..] else { panic!("{asked:?}") };
        assert_eq!(narrow, "-s 10.1.0.0/16 -o ens3 -m comment --comment \"telecluster:1\" -j RETURN");
        assert!(spared.contains("-d 172.16.0.0/12") && spared.ends_with("-j RETURN"), "{spared}");
        assert!(dropped.contains("--hashlimit-above 50/sec") && dropped.ends_with("-j DROP"), "{dropped}");
    }
}
