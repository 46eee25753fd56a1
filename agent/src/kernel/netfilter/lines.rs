//! Rules of the NAT as lines of iptables, chain by chain. Pure.
//!
//! The nat table sees the first packet of a connection only, so it counts flows. What flows carry is counted in the
//! mangle table, by lines that match a connection by what it was before and after its translation: no mark is set on
//! anybody's packets. A source is translated after every chain of mangle, so the first packet of a masqueraded flow is
//! counted by the line in the nat table alone, and the others by mangle's alone: the sum is exact.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ipnet::IpNet;

use crate::kernel::{
    dataplane::{NatRule, NatType, Slot},
    iptables::Family,
};

use super::{
    comment::{self, Part},
    hairpin::{self, Uplinks},
    pace,
};

/// A rule with its uplink by name: iptables knows no other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) rule: NatRule,
    pub(super) uplink: String,
}

impl Placed {
    fn belongs_to(&self, family: Family) -> bool {
        self.rule.is_ipv6() == (family == Family::V6)
    }
}

pub(super) type Rules = BTreeMap<Slot, Placed>;

/// A table of the kernel's that we have chains in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Table {
    Mangle,
    Nat,
}

impl Table {
    /// Counters come before what they count.
    pub(super) const ALL: [Self; 2] = [Self::Mangle, Self::Nat];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Mangle => "mangle",
            Self::Nat => "nat",
        }
    }
}

/// A chain of ours; those that others of ours go on to come after them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Chain {
    Prerouting,
    Postrouting,
    /// Of inside hosts' packets for an address of an uplink: see [`hairpin`].
    TurnIn,
    /// Of the host's own packets for one.
    TurnOwn,
    /// What has turned, where it leaves.
    TurnOut,
    /// Of translated packets, which counters are theirs.
    Count,
    /// Packets of forwards, from outside.
    DnatIn,
    /// Packets of forwards, to the outside.
    DnatOut,
    /// Packets of masqueraded flows, from outside.
    SnatIn,
    /// Packets of masqueraded flows, to the outside.
    SnatOut,
    /// First packets of flows, from outside: see [`pace`].
    PaceIn,
    /// Those of inside hosts for an address of an uplink.
    PaceTurn,
    /// The host's own for one.
    PaceOwn,
    /// Those to the outside.
    PaceOut,
}

impl Chain {
    pub(super) const ALL: [Self; 14] = [
        Self::Prerouting,
        Self::Postrouting,
        Self::TurnIn,
        Self::TurnOwn,
        Self::TurnOut,
        Self::Count,
        Self::DnatIn,
        Self::DnatOut,
        Self::SnatIn,
        Self::SnatOut,
        Self::PaceIn,
        Self::PaceTurn,
        Self::PaceOwn,
        Self::PaceOut,
    ];

    /// At most 28 bytes.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "TELECLUSTER-PREROUTING",
            Self::Postrouting => "TELECLUSTER-POSTROUTING",
            Self::TurnIn => "TELECLUSTER-TURN-IN",
            Self::TurnOwn => "TELECLUSTER-TURN-OWN",
            Self::TurnOut => "TELECLUSTER-TURN-OUT",
            Self::Count => "TELECLUSTER-COUNT",
            Self::DnatIn => "TELECLUSTER-DNAT-IN",
            Self::DnatOut => "TELECLUSTER-DNAT-OUT",
            Self::SnatIn => "TELECLUSTER-SNAT-IN",
            Self::SnatOut => "TELECLUSTER-SNAT-OUT",
            Self::PaceIn => "TELECLUSTER-PACE-IN",
            Self::PaceTurn => "TELECLUSTER-PACE-TURN",
            Self::PaceOwn => "TELECLUSTER-PACE-OWN",
            Self::PaceOut => "TELECLUSTER-PACE-OUT",
        }
    }

    pub(super) const fn table(self) -> Table {
        match self {
            Self::Prerouting | Self::Postrouting | Self::TurnIn | Self::TurnOwn | Self::TurnOut => Table::Nat,
            Self::Count
            | Self::DnatIn
            | Self::DnatOut
            | Self::SnatIn
            | Self::SnatOut
            | Self::PaceIn
            | Self::PaceTurn
            | Self::PaceOwn
            | Self::PaceOut => Table::Mangle,
        }
    }

    /// The kernel's chains that jump to it, once each.
    pub(super) const fn callers(self) -> &'static [&'static str] {
        match self {
            Self::Prerouting | Self::TurnIn | Self::PaceIn | Self::PaceTurn => &["PREROUTING"],
            Self::Postrouting | Self::TurnOut | Self::PaceOut => &["POSTROUTING"],
            Self::TurnOwn | Self::PaceOwn => &["OUTPUT"],
            // A packet passes one of them on its way, whether it is forwarded, for the host, or the host's.
            Self::Count => &["FORWARD", "INPUT", "OUTPUT"],
            Self::DnatIn | Self::DnatOut | Self::SnatIn | Self::SnatOut => &[],
        }
    }
}

/// One line of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Line {
    /// `None`: it is about all rules.
    pub(super) slot: Option<Slot>,
    /// What comes after `-A CHAIN `.
    pub(super) text: String,
}

/// Every chain that has a line.
pub(super) type Lines = BTreeMap<Chain, Vec<Line>>;

/// What the chains of a family should hold.
pub(super) fn lines(family: Family, rules: &Rules, uplinks: &Uplinks) -> Lines {
    let mut lines = Lines::new();
    let mut add = |chain, slot, text| lines.entry(chain).or_default().push(Line { slot, text });
    for (slot, placed) in in_order(family, rules) {
        match &placed.rule {
            NatRule::Forward { .. } => forward(slot, placed, uplinks, &mut add),
            NatRule::Masquerade {
                uplink: _,
                source,
                nat,
                parity: _,
                except,
                pool,
                new_flows: _,
                timeouts: _,
            } => {
                let uplink = &placed.uplink;
                let random = match nat {
                    // The kernel keeps the port where it can; only the destination sets flows apart.
                    NatType::Restricted | NatType::FullCone => "",
                    NatType::Symmetric => " --random-fully",
                };
                for network in except {
                    let mark = comment::rule(slot, placed, Part::Network(network));
                    let text = format!("-s {source} -d {network} -o {uplink} {mark} -j RETURN");
                    add(Chain::Postrouting, Some(slot), text);
                }
                if pool.is_empty() {
                    let mark = comment::rule(slot, placed, Part::Whole);
                    let text = format!("-s {source} -o {uplink} {mark} -j MASQUERADE{random}");
                    add(Chain::Postrouting, Some(slot), text);
                }
                for (hosts, address) in shares(*source, pool) {
                    let mark = comment::rule(slot, placed, Part::Pooled(address));
                    let text = format!("-s {hosts} -o {uplink} {mark} -j SNAT --to-source {address}{random}");
                    add(Chain::Postrouting, Some(slot), text);
                }
                let mark = comment::slot(slot);
                let origin = format!("-m conntrack --ctorigsrc {source}");
                add(Chain::SnatOut, Some(slot), format!("-o {uplink} {origin} {mark} -j RETURN"));
                add(Chain::SnatIn, Some(slot), format!("-i {uplink} {origin} {mark} -j RETURN"));
            }
        }
    }
    hairpin::spare_outside(&mut lines, uplinks);
    pace::pace(&mut lines, rules);
    let calls = calls(family, &lines);
    if !calls.is_empty() {
        lines.insert(Chain::Count, calls);
    }
    lines
}

/// Which hosts of a network appear under which address of a pool, as address and mask: the lowest bits decide, so that each
/// host has one address for all that it sends, and neighbours have different ones. The kernel's own choice from a range would
/// want one without gaps.
fn shares(source: IpNet, pool: &[IpAddr]) -> Vec<(String, IpAddr)> {
    // A number that is no power of two comes out more even in smaller shares.
    let (count, finer) = (pool.len().next_power_of_two(), if pool.len().is_power_of_two() { 1 } else { 4 });
    let free = u32::from(source.max_prefix_len() - source.prefix_len()).min(u64::BITS - 1);
    let shares = (count * finer).min(1 << free);
    let hosts = |share: usize| match source {
        IpNet::V4(net) => {
            let bits = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            let address = Ipv4Addr::from(u32::from(net.network()) | bits(share));
            format!("{address}/{}", Ipv4Addr::from(u32::from(net.netmask()) | bits(shares - 1)))
        }
        IpNet::V6(net) => {
            let address = Ipv6Addr::from(u128::from(net.network()) | share as u128);
            format!("{address}/{}", Ipv6Addr::from(u128::from(net.netmask()) | (shares - 1) as u128))
        }
    };
    (0..shares).zip(pool.iter().cycle()).map(|(share, address)| (hosts(share), *address)).collect()
}

/// The most specific first, as the first one that matches is taken.
fn in_order(family: Family, rules: &Rules) -> Vec<(Slot, &Placed)> {
    let mut ordered: Vec<_> = rules.iter().map(|(slot, placed)| (*slot, placed)).collect();
    ordered.retain(|(_, placed)| placed.belongs_to(family));
    ordered.sort_by_key(|(slot, placed)| match &placed.rule {
        NatRule::Forward { external_ip, .. } => (u8::from(external_ip.is_none()), *slot),
        NatRule::Masquerade { source, .. } => (u8::MAX - source.prefix_len(), *slot),
    });
    ordered
}

/// The ports of a forward, as iptables is told of them.
pub(super) struct Ports {
    /// The inside server with its ports.
    pub(super) to: String,
    pub(super) outside: String,
    pub(super) inside: String,
}

fn forward(
    slot: Slot,
    placed: &Placed,
    uplinks: &Uplinks,
    add: &mut impl FnMut(Chain, Option<Slot>, String),
) {
    let NatRule::Forward {
        uplink: _,
        external_ip,
        external_port,
        external_port_end,
        internal_ip,
        internal_port,
        transports,
        sources,
        hairpin: _,
        new_flows: _,
        timeouts: _,
    } = &placed.rule
    else {
        return;
    };
    let uplink = &placed.uplink;
    let internal_end = internal_port.wrapping_add(external_port_end.wrapping_sub(*external_port));
    let ports = if external_port == external_port_end {
        let to = SocketAddr::new(*internal_ip, *internal_port).to_string();
        Ports { to, outside: external_port.to_string(), inside: internal_port.to_string() }
    } else {
        // The port of the first one is what the others are counted from.
        let to = format!("{}-{internal_end}/{external_port}", SocketAddr::new(*internal_ip, *internal_port));
        let outside = format!("{external_port}:{external_port_end}");
        Ports { to, outside, inside: format!("{internal_port}:{internal_end}") }
    };
    let Ports { to, outside, inside } = &ports;
    let allowed = match &sources[..] {
        [] => vec![None],
        some => some.iter().map(Some).collect(),
    };
    for transport in transports {
        let protocol = transport.name();
        let address = external_ip.map(|ip| format!("-d {ip} ")).unwrap_or_default();
        for source in &allowed {
            let (mark, from) = (
                comment::rule(slot, placed, source.map_or(Part::Whole, Part::Network)),
                source.map(|net| format!("-s {net} ")).unwrap_or_default(),
            );
            add(
                Chain::Prerouting,
                Some(slot),
                format!(
                    "{from}{address}-i {uplink} -p {protocol} -m addrtype --dst-type LOCAL \
                     -m {protocol} --dport {outside} {mark} -j DNAT --to-destination {to}"
                ),
            );
        }
        let mark = comment::slot(slot);
        let was = external_ip.map(|ip| format!("--ctorigdst {ip} ")).unwrap_or_default();
        let flow = format!(
            "-p {protocol} -m conntrack {was}--ctorigdstport {outside} \
             --ctreplsrc {internal_ip} --ctreplsrcport {inside} {mark} -j RETURN"
        );
        add(Chain::DnatIn, Some(slot), format!("-i {uplink} {flow}"));
        add(Chain::DnatOut, Some(slot), format!("-o {uplink} {flow}"));
    }
    hairpin::forward(slot, placed, &ports, uplinks, add);
}

/// Sends a packet to the counters that may be its own: to those of one direction of one kind of rule.
fn calls(family: Family, lines: &Lines) -> Vec<Line> {
    let icmp = match family {
        Family::V4 => "icmp",
        Family::V6 => "ipv6-icmp",
    };
    let kinds = [
        (Chain::DnatIn, "DNAT", "ORIGINAL"),
        (Chain::DnatOut, "DNAT", "REPLY"),
        (Chain::SnatIn, "SNAT", "REPLY"),
        (Chain::SnatOut, "SNAT", "ORIGINAL"),
    ];
    let mut calls: Vec<_> = kinds
        .into_iter()
        .filter(|(chain, _, _)| lines.contains_key(chain))
        .map(|(chain, state, direction)| {
            format!("-m conntrack --ctstate {state} --ctdir {direction} -j {}", chain.name())
        })
        .collect();
    if !calls.is_empty() {
        // An error about a flow's packet is none of its packets.
        calls.insert(0, format!("-p {icmp} -m conntrack --ctstate RELATED -j RETURN"));
    }
    calls.into_iter().map(|text| Line { slot: None, text }).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use telecluster_common::maps::Timeouts;

    use super::*;
    use crate::kernel::dataplane::Transport;

    pub(in crate::kernel::netfilter) fn forward(port: u16, external_ip: Option<&str>) -> Placed {
        Placed {
            rule: NatRule::Forward {
                uplink: 2,
                external_ip: external_ip.map(|ip| ip.parse().unwrap()),
                external_port: port,
                external_port_end: port,
                internal_ip: "192.168.100.10".parse().unwrap(),
                internal_port: 22,
                transports: vec![Transport::Tcp],
                sources: Vec::new(),
                hairpin: true,
                new_flows: 0,
                timeouts: Timeouts::RFC,
            },
            uplink: "ens3".to_owned(),
        }
    }

    pub(in crate::kernel::netfilter) fn masquerade(source: &str) -> Placed {
        let rule = NatRule::Masquerade {
            uplink: 2,
            source: source.parse().unwrap(),
            nat: NatType::Restricted,
            parity: false,
            except: Vec::new(),
            pool: Vec::new(),
            new_flows: 0,
            timeouts: Timeouts::RFC,
        };
        Placed { rule, uplink: "ens3".to_owned() }
    }

    fn texts(lines: &Lines, chain: Chain) -> Vec<&str> {
        lines[&chain].iter().map(|line| line.text.as_str()).collect()
    }

    #[test]
    fn a_forward_takes_only_packets_for_the_host_itself() {
        let rules = Rules::from([(Slot(7), forward(2222, None))]);
        let lines = lines(Family::V4, &rules, &Uplinks::new());
        assert_eq!(
            texts(&lines, Chain::Prerouting),
            ["-i ens3 -p tcp -m addrtype --dst-type LOCAL -m tcp --dport 2222 \
              -m comment --comment \"telecluster:7,ens3,forward,any,2222,192.168.100.10,22,tcp\" \
              -j DNAT --to-destination 192.168.100.10:22"]
        );
        assert_eq!(
            texts(&lines, Chain::DnatOut),
            [
                "-o ens3 -p tcp -m conntrack --ctorigdstport 2222 --ctreplsrc 192.168.100.10 --ctreplsrcport 22 \
              -m comment --comment \"telecluster:7\" -j RETURN"
            ]
        );
        assert_eq!(lines[&Chain::Count].len(), 3, "no chains for what there is none of");
    }

    #[test]
    fn the_most_specific_rule_comes_first() {
        let rules = Rules::from([
            (Slot(0), masquerade("10.0.0.0/8")),
            (Slot(1), masquerade("10.1.0.0/16")),
            (Slot(2), forward(22, None)),
            (Slot(3), forward(22, Some("203.0.113.1"))),
        ]);
        let lines = lines(Family::V4, &rules, &Uplinks::new());
        let slots = |chain: Chain| lines[&chain].iter().filter_map(|line| line.slot).collect::<Vec<_>>();
        assert_eq!(slots(Chain::Postrouting), [Slot(1), Slot(0)]);
        assert_eq!(slots(Chain::SnatIn), [Slot(1), Slot(0)]);
        assert_eq!(slots(Chain::Prerouting), [Slot(3), Slot(2)]);
    }

    #[test]
    fn a_destination_that_is_left_alone_comes_before_the_translation() {
        let mut placed = masquerade("10.1.0.0/16");
        if let NatRule::Masquerade { except, .. } = &mut placed.rule {
            except.push("10.0.0.0/8".parse().unwrap());
        }
        let lines = lines(Family::V4, &Rules::from([(Slot(3), placed)]), &Uplinks::new());
        assert_eq!(
            texts(&lines, Chain::Postrouting),
            [
                "-s 10.1.0.0/16 -d 10.0.0.0/8 -o ens3 -m comment --comment \
                 \"telecluster:3,ens3,masquerade,10.1.0.0/16,restricted,any,10.0.0.0/8\" -j RETURN",
                "-s 10.1.0.0/16 -o ens3 -m comment --comment \
                 \"telecluster:3,ens3,masquerade,10.1.0.0/16,restricted,any\" -j MASQUERADE",
            ]
        );
    }

    fn pooled(source: &str, pool: &[&str]) -> Vec<String> {
        let pool: Vec<IpAddr> = pool.iter().map(|ip| ip.parse().unwrap()).collect();
        let share = |(hosts, address): (String, IpAddr)| format!("{hosts} {address}");
        shares(source.parse().unwrap(), &pool).into_iter().map(share).collect()
    }

    #[test]
    fn neighbours_have_different_addresses_of_a_pool_and_each_host_one() {
        assert_eq!(
            pooled("192.168.100.0/24", &["203.0.113.5", "203.0.113.9"]),
            ["192.168.100.0/255.255.255.1 203.0.113.5", "192.168.100.1/255.255.255.1 203.0.113.9"]
        );
        let six = pooled("fd00:100::/64", &["2001:db8::5", "2001:db8::6"]);
        assert_eq!(six[1], "fd00:100::1/ffff:ffff:ffff:ffff::1 2001:db8::6");
        let three = pooled("10.0.0.0/8", &["203.0.113.5", "203.0.113.6", "203.0.113.7"]);
        assert_eq!(three.len(), 16, "5 or 6 of 16 each");
        assert_eq!(pooled("192.168.100.10/32", &["203.0.113.5", "203.0.113.6"]).len(), 1);
        assert!(pooled("192.168.100.0/24", &[]).is_empty());
    }

    #[test]
    fn a_masquerade_with_a_pool_translates_to_nothing_else() {
        let mut placed = masquerade("10.1.0.0/16");
        if let NatRule::Masquerade { pool, .. } = &mut placed.rule {
            pool.push("203.0.113.5".parse().unwrap());
        }
        let lines = lines(Family::V4, &Rules::from([(Slot(3), placed)]), &Uplinks::new());
        assert_eq!(
            texts(&lines, Chain::Postrouting),
            ["-s 10.1.0.0/255.255.0.0 -o ens3 -m comment --comment \
              \"telecluster:3,ens3,masquerade,10.1.0.0/16,restricted,any,to=203.0.113.5\" \
              -j SNAT --to-source 203.0.113.5"]
        );
    }

    #[test]
    fn a_family_without_rules_has_no_chains() {
        let rules = Rules::from([(Slot(0), masquerade("fd00::/64"))]);
        assert!(lines(Family::V4, &rules, &Uplinks::new()).is_empty());
        assert!(
            texts(&lines(Family::V6, &rules, &Uplinks::new()), Chain::Count)[0].starts_with("-p ipv6-icmp")
        );
    }

    #[test]
    fn a_range_is_one_line_and_each_source_one_of_its_own() {
        let mut range = forward(5000, None);
        if let NatRule::Forward { external_port_end, sources, .. } = &mut range.rule {
            *external_port_end = 5009;
            sources.extend(["10.0.0.0/8", "198.51.100.0/24"].map(|net| net.parse::<IpNet>().unwrap()));
        }
        let lines = lines(Family::V4, &Rules::from([(Slot(7), range)]), &Uplinks::new());
        let [ten, other] = texts(&lines, Chain::Prerouting)[..] else { panic!("{lines:?}") };
        assert_eq!(
            ten,
            "-s 10.0.0.0/8 -i ens3 -p tcp -m addrtype --dst-type LOCAL -m tcp --dport 5000:5009 \
             -m comment --comment \"telecluster:7,ens3,forward,any,5000-5009,192.168.100.10,22,tcp,10.0.0.0/8\" \
             -j DNAT --to-destination 192.168.100.10:22-31/5000"
        );
        assert!(other.starts_with("-s 198.51.100.0/24 "), "{other}");
        let counted = texts(&lines, Chain::DnatIn);
        assert_eq!(counted.len(), 1, "the rule counts, whoever it was");
        assert!(
            counted[0]
                .contains("--ctorigdstport 5000:5009 --ctreplsrc 192.168.100.10 --ctreplsrcport 22:31 ")
        );
    }

    #[test]
    fn both_transports_get_lines_of_their_own() {
        let mut both = forward(53, None);
        if let NatRule::Forward { transports, .. } = &mut both.rule {
            transports.push(Transport::Udp);
        }
        let lines = lines(Family::V4, &Rules::from([(Slot(0), both)]), &Uplinks::new());
        assert_eq!(lines[&Chain::Prerouting].len(), 2);
        assert_eq!(lines[&Chain::DnatIn].len(), 2);
    }
}
