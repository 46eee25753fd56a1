//! Hairpin: what inside hosts, and the host itself, send to an address of the uplink that a forward leads inside. Pure.
//!
//! Its destination becomes the inside server's where it comes in, and its source the uplink's address where it leaves,
//! so that answers come back this way, from the sender's own network too. What came in by the uplink keeps its source: in
//! POSTROUTING the kernel still knows the interface that a packet came in by (since 5.7), and iptables asks for it there in
//! chains that are not the kernel's own.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crate::kernel::dataplane::{HostAddresses, NatRule, Slot};

use super::{
    comment,
    lines::{Chain, Line, Lines, Placed, Ports, Rules},
    script::Actual,
};

/// An interface to the outside: its name, and those of its addresses that somebody inside can send to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Uplink {
    pub(super) name: String,
    pub(super) addresses: BTreeSet<IpAddr>,
}

/// By index.
pub(super) type Uplinks = BTreeMap<u32, Uplink>;

/// The uplinks with their names; without those that have none any more.
pub(super) fn uplinks(addresses: &HostAddresses, name: impl Fn(u32) -> Option<String>) -> Uplinks {
    let mut uplinks = Uplinks::new();
    for (index, address) in &addresses.external {
        if matches!(address, IpAddr::V6(ip) if ip.is_unicast_link_local()) {
            continue;
        }
        if let Some(uplink) = uplinks.get_mut(index) {
            uplink.addresses.insert(*address);
        } else if let Some(name) = name(*index) {
            uplinks.insert(*index, Uplink { name, addresses: BTreeSet::from([*address]) });
        }
    }
    uplinks
}

/// The uplinks that the lines found were made for, so that a restart finds nothing to change.
pub(super) fn found(actual: &Actual, rules: &Rules, index: impl Fn(&str) -> Option<u32>) -> Uplinks {
    let mut uplinks = Uplinks::new();
    for line in actual.get(&Chain::TurnIn).into_iter().flat_map(|found| &found.lines) {
        let after = |option| {
            let mut words = line.text.split(' ').skip_while(|word| *word != option);
            words.nth(1)
        };
        match line.slot.and_then(|slot| rules.get(&slot)) {
            None => {
                if let Some((name, index)) = after("-i").and_then(|name| Some((name, index(name)?))) {
                    uplinks.entry(index).or_insert_with(|| named(name));
                }
            }
            Some(Placed { rule, uplink }) => {
                let address = after("-d").and_then(|net| net.split('/').next()?.parse().ok());
                let known = uplinks.entry(rule.uplink()).or_insert_with(|| named(uplink));
                known.addresses.extend::<Option<IpAddr>>(address);
            }
        }
    }
    uplinks
}

fn named(name: &str) -> Uplink {
    Uplink { name: name.to_owned(), addresses: BTreeSet::new() }
}

/// The lines of a forward for those who are not outside.
pub(super) fn forward(
    slot: Slot,
    placed: &Placed,
    ports: &Ports,
    uplinks: &Uplinks,
    add: &mut impl FnMut(Chain, Option<Slot>, String),
) {
    let NatRule::Forward { external_ip, internal_ip, transports, sources, hairpin: true, .. } = &placed.rule
    else {
        return;
    };
    let Some(known) = uplinks.get(&placed.rule.uplink()) else { return };
    let (uplink, mark) = (&placed.uplink, comment::slot(slot));
    let Ports { to, outside, inside } = ports;
    let leads_inside = |address: &&IpAddr| {
        address.is_ipv6() == internal_ip.is_ipv6() && external_ip.is_none_or(|only| only == **address)
    };
    for address in known.addresses.iter().filter(leads_inside) {
        for protocol in transports.iter().map(|transport| transport.name()) {
            let from: Vec<_> = match &sources[..] {
                [] => vec![String::new()],
                some => some.iter().map(|net| format!("-s {net} ")).collect(),
            };
            for (chain, from) in [Chain::TurnIn, Chain::TurnOwn]
                .into_iter()
                .flat_map(|chain| from.iter().map(move |from| (chain, from)))
            {
                let text = format!(
                    "{from}-d {address} -p {protocol} -m {protocol} --dport {outside} {mark} \
                     -j DNAT --to-destination {to}"
                );
                add(chain, Some(slot), text);
            }
            let flow = format!(
                "-p {protocol} -m conntrack --ctorigdst {address} --ctorigdstport {outside} \
                 --ctreplsrc {internal_ip} --ctreplsrcport {inside}"
            );
            let source = format!("! -i {uplink} {flow} --ctstate DNAT {mark} -j SNAT --to-source {address}");
            add(Chain::TurnOut, Some(slot), source);
            add(Chain::DnatIn, Some(slot), format!("! -i {uplink} {flow} {mark} -j RETURN"));
            add(Chain::DnatOut, Some(slot), format!("! -o {uplink} {flow} {mark} -j RETURN"));
        }
    }
}

/// What comes in by an uplink is no inside host's, whichever uplink's address it is for.
pub(super) fn spare_outside(lines: &mut Lines, uplinks: &Uplinks) {
    let Some(turning) = lines.get_mut(&Chain::TurnIn) else { return };
    let spared =
        uplinks.values().map(|uplink| Line { slot: None, text: format!("-i {} -j RETURN", uplink.name) });
    turning.splice(0..0, spared);
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::kernel::{
        iptables::Family,
        netfilter::{
            lines::{
                lines,
                tests::{forward, masquerade},
            },
            script::{agrees, read, tests::saved},
        },
    };

    pub(in crate::kernel::netfilter) fn ens3() -> Uplinks {
        let addresses = HostAddresses {
            external: vec![
                (2, "203.0.113.1".parse().unwrap()),
                (2, "fe80::1".parse().unwrap()),
                (2, "2001:db8::1".parse().unwrap()),
                (9, "198.51.100.9".parse().unwrap()),
            ],
            ..HostAddresses::default()
        };
        uplinks(&addresses, |index| (index == 2).then(|| "ens3".to_owned()))
    }

    fn texts(lines: &Lines, chain: Chain) -> Vec<&str> {
        lines.get(&chain).into_iter().flatten().map(|line| line.text.as_str()).collect()
    }

    #[test]
    fn what_is_sent_to_the_uplinks_address_turns_inside_under_that_address() {
        let rules = Rules::from([(Slot(7), forward(2222, None))]);
        let lines = lines(Family::V4, &rules, &ens3());
        let turned = "-d 203.0.113.1 -p tcp -m tcp --dport 2222 -m comment --comment \"telecluster:7\" \
                      -j DNAT --to-destination 192.168.100.10:22";
        assert_eq!(texts(&lines, Chain::TurnIn), ["-i ens3 -j RETURN", turned]);
        assert_eq!(texts(&lines, Chain::TurnOwn), [turned]);
        assert_eq!(
            texts(&lines, Chain::TurnOut),
            ["! -i ens3 -p tcp -m conntrack --ctorigdst 203.0.113.1 --ctorigdstport 2222 \
              --ctreplsrc 192.168.100.10 --ctreplsrcport 22 --ctstate DNAT \
              -m comment --comment \"telecluster:7\" -j SNAT --to-source 203.0.113.1"]
        );
        assert_eq!(lines[&Chain::DnatIn].len(), 2, "what turns is counted too");
    }

    #[test]
    fn a_forward_for_the_outside_only_or_for_another_address_has_no_such_lines() {
        let mut outside = forward(2222, None);
        if let NatRule::Forward { hairpin, .. } = &mut outside.rule {
            *hairpin = false;
        }
        for placed in [outside, forward(2222, Some("203.0.113.2")), masquerade("10.0.0.0/8")] {
            let lines = lines(Family::V4, &Rules::from([(Slot(0), placed)]), &ens3());
            assert_eq!(texts(&lines, Chain::TurnIn), [""; 0]);
            assert_eq!(texts(&lines, Chain::TurnOut), [""; 0]);
        }
    }

    #[test]
    fn each_allowed_network_has_a_line_of_its_own() {
        let mut placed = forward(2222, Some("203.0.113.1"));
        if let NatRule::Forward { sources, .. } = &mut placed.rule {
            sources.extend(["10.0.0.0/8", "192.168.0.0/16"].map(|net| net.parse::<ipnet::IpNet>().unwrap()));
        }
        let lines = lines(Family::V4, &Rules::from([(Slot(0), placed)]), &ens3());
        let turned = texts(&lines, Chain::TurnIn);
        assert_eq!(turned.len(), 3, "{turned:?}");
        assert!(turned[1].starts_with("-s 10.0.0.0/8 -d 203.0.113.1 "), "{turned:?}");
        assert_eq!(texts(&lines, Chain::TurnOut).len(), 1);
    }

    #[test]
    fn a_restart_finds_the_addresses_that_the_lines_were_made_for() {
        let rules = Rules::from([(Slot(7), forward(2222, None)), (Slot(8), masquerade("10.0.0.0/8"))]);
        let wanted = lines(Family::V4, &rules, &ens3());
        // As iptables-save spells it.
        let text = saved(&wanted).replace("-d 203.0.113.1 ", "-d 203.0.113.1/32 ");
        let actual = read(&text);
        let known = found(&actual, &rules, |name| (name == "ens3").then_some(2));
        assert_eq!(known[&2].addresses, BTreeSet::from(["203.0.113.1".parse().unwrap()]));
        assert!(agrees(&actual, &lines(Family::V4, &rules, &known)));
    }
}
