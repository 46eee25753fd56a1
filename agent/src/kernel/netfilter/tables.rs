//! Our chains in the kernel's tables: changed whole or not at all, and put right when somebody has changed them.

use std::collections::BTreeMap;

use nix::net::if_::{if_indextoname, if_nametoindex};
use tracing::{error, info, warn};

use crate::{
    kernel::{
        KernelError,
        dataplane::{Counters, NatRule, Slot},
        iptables::{Family, Iptables, families},
    },
    model::LinkName,
};

use super::{
    comment,
    hairpin::{self, Uplinks},
    lines::{Chain, Lines, Placed, Rules, lines},
    pace,
    script::{self, Actual},
};

/// The chains, and what they were when we left them.
#[derive(Debug)]
pub(super) struct Tables {
    iptables: Iptables,
    rules: Rules,
    /// What inside hosts may send to.
    uplinks: Uplinks,
    left: BTreeMap<Family, Actual>,
    /// Something could not be put back, and waits for the next look.
    owes: bool,
}

impl Tables {
    /// Adopts what an earlier run has left: rules, counters, and with them the flows.
    pub(super) fn open(iptables: Iptables) -> Result<Self, KernelError> {
        let mut tables = Self {
            iptables,
            rules: Rules::new(),
            uplinks: Uplinks::new(),
            left: BTreeMap::new(),
            owes: false,
        };
        let mut found = BTreeMap::new();
        for family in families() {
            let actual = tables.read(family)?;
            for (slot, rule) in rules_of(&actual) {
                match rule {
                    Some(rule) => drop(tables.rules.insert(slot, rule)),
                    None => warn!(slot = slot.0, "half a rule was found in iptables; it is removed"),
                }
            }
            found.insert(family, actual);
        }
        for actual in found.values() {
            let index = |name: &str| if_nametoindex(name).ok();
            for (index, uplink) in hairpin::found(actual, &tables.rules, index) {
                let known = tables.uplinks.entry(index).or_insert_with(|| uplink.clone());
                known.addresses.extend(uplink.addresses);
            }
        }
        for (family, actual) in found {
            tables.settle(family, actual)?;
        }
        Ok(tables)
    }

    pub(super) fn rules(&self) -> &Rules {
        &self.rules
    }

    /// There is nothing to look after.
    pub(super) fn is_idle(&self) -> bool {
        self.rules.is_empty() && !self.owes
    }

    /// Makes the rules what is given; whole or not at all.
    pub(super) fn change(&mut self, after: Rules) -> Result<(), KernelError> {
        self.become_as(after, self.uplinks.clone())
    }

    /// Makes the uplinks what is given; whole or not at all.
    pub(super) fn set_uplinks(&mut self, after: Uplinks) -> Result<(), KernelError> {
        self.become_as(self.rules.clone(), after)
    }

    /// Makes the rules again what they were, now or with the next look.
    pub(super) fn change_back(&mut self, before: Rules) {
        if let Err(error) = self.change(before.clone()) {
            error!(%error, "rules could not be put back into iptables; they will be with the next look");
            (self.rules, self.owes) = (before, true);
        }
    }

    fn become_as(&mut self, rules: Rules, uplinks: Uplinks) -> Result<(), KernelError> {
        let mut touched = Vec::new();
        for family in families() {
            let (before, wanted) = (self.lines(family), lines(family, &rules, &uplinks));
            if before == wanted {
                continue;
            }
            touched.push(family);
            if let Err(error) = self.change_one(family, &before, &wanted) {
                // One table may be done and the other not; or all of it, and only the answer lost.
                touched.into_iter().for_each(|family| self.put_back(family));
                return Err(error);
            }
        }
        (self.rules, self.uplinks) = (rules, uplinks);
        touched.into_iter().for_each(|family| self.note(family));
        Ok(())
    }

    fn change_one(&self, family: Family, before: &Lines, wanted: &Lines) -> Result<(), KernelError> {
        let actual = self.read(family)?;
        let script = match self.undisturbed(family, &actual) {
            true => script::change(before, wanted),
            false => script::rebuild(&actual, wanted),
        };
        script.map_or(Ok(()), |script| self.iptables.restore_with(family, &script))
    }

    /// Remembers what was made. Without that the next look knows the lines by their rules only.
    fn note(&mut self, family: Family) {
        self.left.remove(&family);
        match self.read(family) {
            Ok(actual) => drop(self.left.insert(family, actual)),
            Err(error) => warn!(%error, "iptables was changed, and could not be read afterwards"),
        }
    }

    /// Puts right what somebody else has changed; whether there was anything.
    pub(super) fn repair(&mut self) -> Result<bool, KernelError> {
        for placed in self.rules.values_mut() {
            // An interface may have got another name.
            if let Ok(name) = interface_name(placed.rule.uplink()) {
                placed.uplink = name;
            }
        }
        for (index, uplink) in &mut self.uplinks {
            if let Ok(name) = interface_name(*index) {
                uplink.name = name;
            }
        }
        let mut repaired = false;
        for family in families() {
            let actual = self.read(family)?;
            repaired |= self.settle(family, actual)?;
        }
        self.owes = false;
        Ok(repaired)
    }

    fn read(&self, family: Family) -> Result<Actual, KernelError> {
        read(&self.iptables, family)
    }

    fn lines(&self, family: Family) -> Lines {
        lines(family, &self.rules, &self.uplinks)
    }

    fn undisturbed(&self, family: Family, actual: &Actual) -> bool {
        script::agrees(actual, &self.lines(family))
            && self.left.get(&family).is_none_or(|left| script::same(left, actual))
    }

    fn settle(&mut self, family: Family, actual: Actual) -> Result<bool, KernelError> {
        if self.undisturbed(family, &actual) {
            self.left.insert(family, actual);
            return Ok(false);
        }
        if let Some(script) = script::rebuild(&actual, &self.lines(family)) {
            self.iptables.restore_with(family, &script)?;
        }
        self.note(family);
        Ok(true)
    }

    /// Whatever kept the first attempt from it may be over with the second.
    fn put_back(&mut self, family: Family) {
        self.left.remove(&family);
        let mut attempt = || self.read(family).and_then(|actual| self.settle(family, actual));
        if let Err(error) = attempt().or_else(|_| attempt()) {
            error!(%error, "the iptables chains could not be put back; they will be with the next look");
            self.owes = true;
        }
    }
}

/// What every rule has counted, without a lock.
pub(super) fn counters(iptables: &Iptables) -> Result<BTreeMap<Slot, Counters>, KernelError> {
    let mut sums = BTreeMap::new();
    for family in families() {
        count(&read(iptables, family)?, &mut sums);
    }
    Ok(sums)
}

/// How many first packets were beyond their rule's pace, without a lock.
pub(super) fn refused(iptables: &Iptables) -> Result<u64, KernelError> {
    let mut packets = 0;
    for family in families() {
        let actual = read(iptables, family)?;
        let lines = actual.values().flat_map(|found| &found.lines);
        packets += lines.filter(|line| pace::drops(&line.text)).map(|line| line.packets).sum::<u64>();
    }
    Ok(packets)
}

/// Removes every chain of ours; the rules that were in them.
pub(super) fn clear(iptables: &Iptables) -> Result<Vec<NatRule>, KernelError> {
    let mut rules = Vec::new();
    for family in families() {
        let actual = read(iptables, family)?;
        if let Some(script) = script::rebuild(&actual, &BTreeMap::new()) {
            iptables.restore_with(family, &script)?;
            info!(?family, "the chains of the iptables data plane were removed");
        }
        rules.extend(rules_of(&actual).into_values().flatten().map(|placed| placed.rule));
    }
    Ok(rules)
}

/// The name by which iptables can be told of an interface.
pub(super) fn interface_name(index: u32) -> Result<String, KernelError> {
    let operation = || format!("name interface {index}");
    let name = if_indextoname(index).map_err(|errno| KernelError::errno(operation(), errno as i32))?;
    let name = name.to_string_lossy().into_owned();
    // It becomes part of a script.
    match LinkName::new(&name) {
        Ok(_) => Ok(name),
        Err(why) => {
            Err(KernelError::other(operation(), format!("{name:?} {why}, so iptables cannot be told")))
        }
    }
}

fn read(iptables: &Iptables, family: Family) -> Result<Actual, KernelError> {
    Ok(script::read(&iptables.save(family, &[])?))
}

/// The rules that the chains say they hold. `None`: a line of a slot that says something else.
fn rules_of(actual: &Actual) -> BTreeMap<Slot, Option<Placed>> {
    let mut rules: BTreeMap<Slot, Option<Placed>> = BTreeMap::new();
    let translating = [Chain::Prerouting, Chain::Postrouting];
    for line in translating.iter().filter_map(|chain| actual.get(chain)).flat_map(|found| &found.lines) {
        let Some(slot) = line.slot else { continue };
        let rule = comment::rule_of(&line.text).map(|mut placed| {
            let index = if_nametoindex(placed.uplink.as_str()).unwrap_or(0);
            match &mut placed.rule {
                NatRule::Forward { uplink, .. } | NatRule::Masquerade { uplink, .. } => *uplink = index,
            }
            placed
        });
        match rules.get_mut(&slot) {
            Some(known) => {
                let same = match (known.as_mut(), rule) {
                    (Some(known), Some(rule)) => comment::join(known, rule),
                    (None, _) | (_, None) => false,
                };
                if !same {
                    *known = None;
                }
            }
            None => drop(rules.insert(slot, rule)),
        }
    }
    rules
}

/// Adds up what the lines of each rule have counted; see [`super::lines`] for who counts what.
fn count(actual: &Actual, sums: &mut BTreeMap<Slot, Counters>) {
    for (chain, found) in actual {
        for line in &found.lines {
            let Some(slot) = line.slot else { continue };
            let sum: &mut Counters = sums.entry(slot).or_default();
            let (packets, bytes) = (line.packets, line.bytes);
            let (to_packets, to_bytes) = match chain {
                Chain::Prerouting | Chain::TurnIn => {
                    sum.flows += packets;
                    continue;
                }
                // The host's own are translated after mangle's chains, too.
                Chain::TurnOwn => {
                    sum.flows += packets;
                    (&mut sum.packets_in, &mut sum.bytes_in)
                }
                // Not translated: none of the rule's.
                Chain::Postrouting if line.text.ends_with("-j RETURN") => continue,
                Chain::Postrouting => {
                    sum.flows += packets;
                    (&mut sum.packets_out, &mut sum.bytes_out)
                }
                Chain::DnatIn | Chain::SnatIn => (&mut sum.packets_in, &mut sum.bytes_in),
                Chain::DnatOut | Chain::SnatOut => (&mut sum.packets_out, &mut sum.bytes_out),
                Chain::TurnOut
                | Chain::Count
                | Chain::PaceIn
                | Chain::PaceTurn
                | Chain::PaceOwn
                | Chain::PaceOut => continue,
            };
            *to_packets += packets;
            *to_bytes += bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = "*mangle
:TELECLUSTER-COUNT - [0:0]
:TELECLUSTER-SNAT-IN - [0:0]
:TELECLUSTER-SNAT-OUT - [0:0]
[9:900] -A TELECLUSTER-COUNT -m conntrack --ctstate SNAT --ctdir REPLY -j TELECLUSTER-SNAT-IN
[4:400] -A TELECLUSTER-SNAT-IN -i lo -m conntrack --ctorigsrc 10.0.0.0/8 -m comment --comment \"telecluster:3\" -j RETURN
[5:500] -A TELECLUSTER-SNAT-OUT -o lo -m conntrack --ctorigsrc 10.0.0.0/8 -m comment --comment \"telecluster:3\" -j RETURN
COMMIT
*nat
:TELECLUSTER-POSTROUTING - [0:0]
[2:120] -A TELECLUSTER-POSTROUTING -s 10.0.0.0/8 -o lo -m comment --comment \"telecluster:3,lo,masquerade,10.0.0.0/8,restricted,any\" -j MASQUERADE
[7:420] -A TELECLUSTER-POSTROUTING -s 10.0.0.0/8 -d 172.16.0.0/12 -o lo -m comment --comment \"telecluster:3,lo,masquerade,10.0.0.0/8,restricted,any,172.16.0.0/12\" -j RETURN
[1:60] -A TELECLUSTER-POSTROUTING -s 10.1.0.0/16 -o lo -m comment --comment \"telecluster:4,lo,masq\" -j MASQUERADE
COMMIT
";

    #[test]
    fn the_first_packet_of_a_masqueraded_flow_is_counted_by_the_nat_table() {
        let mut sums = BTreeMap::new();
        count(&script::read(SAVED), &mut sums);
        let expected = Counters { packets_in: 4, bytes_in: 400, packets_out: 7, bytes_out: 620, flows: 2 };
        assert_eq!(sums[&Slot(3)], expected);
    }

    #[test]
    fn rules_are_read_back_and_half_ones_are_told_apart() {
        let rules = rules_of(&script::read(SAVED));
        assert_eq!(rules.len(), 2);
        assert!(
            matches!(&rules[&Slot(3)], Some(placed) if placed.rule.uplink() == 1 && placed.uplink == "lo"
                && matches!(&placed.rule, NatRule::Masquerade { except, .. } if except.len() == 1))
        );
        assert_eq!(rules[&Slot(4)], None);
    }
}
