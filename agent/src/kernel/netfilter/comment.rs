//! The comments of our lines: whose they are, and the whole rule, so that it can be read back after a restart. Pure.

use std::net::IpAddr;

use ipnet::IpNet;
use telecluster_common::maps::Timeouts;

use crate::kernel::dataplane::{NatRule, NatType, Slot, Transport};

use super::lines::Placed;

/// In front of a slot. The firewall's rules have an id of letters there.
const MARK: &str = "telecluster:";

/// Of a line that only counts.
pub(super) fn slot(slot: Slot) -> String {
    format!("-m comment --comment \"{MARK}{}\"", slot.0)
}

/// What one line of a rule says that the others do not.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part<'a> {
    Whole,
    /// The source that it is for, of a forward that is not open to everybody; the destination that it leaves alone, of a
    /// masquerade.
    Network(&'a IpNet),
    /// One of the addresses that a masquerade translates to.
    Pooled(IpAddr),
}

/// Of a line that translates. Names of interfaces have no comma (`LinkName`).
pub(super) fn rule(slot: Slot, placed: &Placed, part: Part<'_>) -> String {
    let part = match part {
        Part::Whole => String::new(),
        Part::Network(net) => format!(",{net}"),
        Part::Pooled(ip) => format!(",{TO}{ip}"),
    };
    let Placed { rule, uplink } = placed;
    let rule = match rule {
        NatRule::Forward {
            uplink: _,
            external_ip,
            external_port,
            external_port_end,
            internal_ip,
            internal_port,
            transports,
            sources: _,
            hairpin,
            new_flows,
            timeouts,
        } => {
            let external_ip = external_ip.map_or_else(|| ANY.to_owned(), |ip| ip.to_string());
            let transports = transports.iter().map(|transport| transport.name()).collect::<Vec<_>>();
            let ports = match external_port == external_port_end {
                true => external_port.to_string(),
                false => format!("{external_port}-{external_port_end}"),
            };
            format!(
                "forward{}{},{external_ip},{ports},{internal_ip},{internal_port},{}{}{part}",
                pace(*new_flows),
                times(*timeouts),
                transports.join("+"),
                if *hairpin { "" } else { ",outside" },
            )
        }
        NatRule::Masquerade { uplink: _, source, nat, parity, except: _, pool: _, new_flows, timeouts } => {
            let parity = if *parity { "parity" } else { ANY };
            format!(
                "masquerade{}{},{source},{},{parity}{part}",
                pace(*new_flows),
                times(*timeouts),
                nat_type(*nat)
            )
        }
    };
    format!("-m comment --comment \"{MARK}{},{uplink},{rule}\"", slot.0)
}

const ANY: &str = "any";

/// In front of an address that is translated to.
const TO: &str = "to=";

/// The slot of a line, from its text as `iptables-save` has it.
pub(super) fn slot_of(text: &str) -> Option<Slot> {
    value(text)?.split(',').next()?.parse().ok().map(Slot)
}

/// The rule of a line that translates; the index of its uplink is for the caller to find.
pub(super) fn rule_of(text: &str) -> Option<Placed> {
    let (_, rest) = value(text)?.split_once(',')?;
    let (uplink, rest) = rest.split_once(',')?;
    let (kind, rest) = rest.split_once(',')?;
    let (kind, timeouts) = timed(kind)?;
    let (kind, new_flows) = paced(kind)?;
    let fields: Vec<&str> = [kind].into_iter().chain(rest.split(',')).collect();
    let rule = match fields[..] {
        ["forward", external_ip, ports, internal_ip, internal_port, transports, ref more @ ..] => {
            let (hairpin, sources) = match more {
                ["outside", sources @ ..] => (false, sources),
                sources => (true, sources),
            };
            if sources.len() > 1 {
                return None;
            }
            let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
            NatRule::Forward {
                uplink: 0,
                external_ip: match external_ip {
                    ANY => None,
                    ip => Some(ip.parse::<IpAddr>().ok()?),
                },
                external_port: first.parse().ok()?,
                external_port_end: last.parse().ok()?,
                internal_ip: internal_ip.parse().ok()?,
                internal_port: internal_port.parse().ok()?,
                transports: transports.split('+').map(transport).collect::<Option<_>>()?,
                sources: sources.iter().map(|net| net.parse().ok()).collect::<Option<_>>()?,
                hairpin,
                new_flows,
                timeouts,
            }
        }
        ["masquerade", source, nat, parity, ref parts @ ..] if parts.len() <= 1 => NatRule::Masquerade {
            uplink: 0,
            source: source.parse::<IpNet>().ok()?,
            nat: [NatType::Restricted, NatType::FullCone, NatType::Symmetric]
                .into_iter()
                .find(|kind| nat_type(*kind) == nat)?,
            parity: parity == "parity",
            except: parts
                .iter()
                .filter(|part| !part.starts_with(TO))
                .map(|net| net.parse().ok())
                .collect::<Option<_>>()?,
            pool: parts
                .iter()
                .filter_map(|part| part.strip_prefix(TO))
                .map(|ip| ip.parse().ok())
                .collect::<Option<_>>()?,
            new_flows,
            timeouts,
        },
        _ => return None,
    };
    Some(Placed { rule, uplink: uplink.to_owned() })
}

/// Joins what two lines of one slot say. False: not the same rule. A forward has a line for each source, a masquerade
/// one for each destination that it leaves alone, and one for all others or some for each address of its pool.
pub(super) fn join(known: &mut Placed, mut other: Placed) -> bool {
    match (&mut known.rule, &mut other.rule) {
        (NatRule::Forward { sources: known, .. }, NatRule::Forward { sources: other, .. })
            if known.is_empty() == other.is_empty() =>
        {
            unite(known, other);
        }
        (
            NatRule::Masquerade { except: known, pool: known_pool, .. },
            NatRule::Masquerade { except: other, pool: other_pool, .. },
        ) => {
            unite(known, other);
            unite(known_pool, other_pool);
        }
        (NatRule::Forward { .. } | NatRule::Masquerade { .. }, _) => {}
    }
    *known == other
}

fn unite<T: Clone + Ord>(known: &mut Vec<T>, other: &mut Vec<T>) {
    known.append(&mut other.clone());
    known.sort_unstable();
    known.dedup();
    other.clone_from(known);
}

/// What a line of ours asks of a packet: all before its comment.
pub(super) fn matched(text: &str) -> &str {
    text.split(" -m comment ").next().unwrap_or(text)
}

/// What follows the mark; iptables puts it in quotes or does not.
fn value(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once(MARK)?;
    rest.split(['"', ' ']).next()
}

/// Behind the kind of a rule: how long its flows may be idle, when that is not as usual.
fn times(timeouts: Timeouts) -> String {
    let Timeouts { tcp_open, tcp_opening, tcp_closing, udp, icmp } = timeouts;
    if timeouts == Timeouts::RFC {
        String::new()
    } else {
        format!("+{tcp_open}+{tcp_opening}+{tcp_closing}+{udp}+{icmp}")
    }
}

/// The kind of a rule, and what [`times`] has put behind it.
fn timed(kind: &str) -> Option<(&str, Timeouts)> {
    let Some((kind, times)) = kind.split_once('+') else {
        return Some((kind, Timeouts::RFC));
    };
    let times: Vec<u32> = times.split('+').map(|time| time.parse().ok()).collect::<Option<_>>()?;
    let [tcp_open, tcp_opening, tcp_closing, udp, icmp] = times[..] else { return None };
    Some((kind, Timeouts { tcp_open, tcp_opening, tcp_closing, udp, icmp }))
}

/// Behind the kind of a rule: how many flows it may make in a second, when it says so.
fn pace(new_flows: u32) -> String {
    if new_flows == 0 { String::new() } else { format!("@{new_flows}") }
}

/// The kind of a rule, and what [`pace`] has put behind it.
fn paced(kind: &str) -> Option<(&str, u32)> {
    let Some((kind, pace)) = kind.split_once('@') else {
        return Some((kind, 0));
    };
    Some((kind, pace.parse().ok()?))
}

const fn nat_type(nat: NatType) -> &'static str {
    match nat {
        NatType::Restricted => "restricted",
        NatType::FullCone => "full_cone",
        NatType::Symmetric => "symmetric",
    }
}

fn transport(name: &str) -> Option<Transport> {
    [Transport::Tcp, Transport::Udp].into_iter().find(|transport| transport.name() == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netfilter::lines::tests::{forward, masquerade};

    const LONGEST: Timeouts = Timeouts {
        tcp_open: 604_800,
        tcp_opening: 604_800,
        tcp_closing: 604_800,
        udp: 604_800,
        icmp: 604_800,
    };

    fn there_and_back(mut placed: Placed) {
        match &mut placed.rule {
            NatRule::Forward { uplink, .. } | NatRule::Masquerade { uplink, .. } => *uplink = 0,
        }
        let part = match &placed.rule {
            NatRule::Forward { sources: networks, .. } | NatRule::Masquerade { except: networks, .. }
                if !networks.is_empty() =>
            {
                Part::Network(&networks[0])
            }
            NatRule::Masquerade { pool, .. } if !pool.is_empty() => Part::Pooled(pool[0]),
            NatRule::Forward { .. } | NatRule::Masquerade { .. } => Part::Whole,
        };
        let text = format!("-i ens3 {} -j DNAT", rule(Slot(Slot::COUNT - 1), &placed, part));
        assert_eq!(slot_of(&text), Some(Slot(Slot::COUNT - 1)));
        assert_eq!(rule_of(&text), Some(placed.clone()));
        assert_eq!(rule_of(&text.replace('"', "")), Some(placed), "without quotes");
        let comment = MARK.len() + value(&text).unwrap().len();
        assert!(comment < 256, "xt_comment has room for 256 with the end of the text: {comment}");
    }

    #[test]
    fn a_rule_reads_back_as_it_was_written() {
        there_and_back(forward(2222, None));
        there_and_back(forward(2222, Some("203.0.113.1")));
        there_and_back(masquerade("fd00:100::/64"));
        there_and_back(Placed {
            rule: NatRule::Masquerade {
                uplink: 0,
                source: "10.0.0.0/8".parse().unwrap(),
                nat: NatType::Symmetric,
                parity: true,
                except: vec!["172.16.0.0/12".parse().unwrap()],
                pool: Vec::new(),
                new_flows: 1_000_000,
                timeouts: LONGEST,
            },
            uplink: "br-ex".to_owned(),
        });
        there_and_back(Placed {
            rule: NatRule::Masquerade {
                uplink: 0,
                source: "fd00:1111:2222:3333:4444:5555:6666:7777/128".parse().unwrap(),
                nat: NatType::Restricted,
                parity: true,
                except: Vec::new(),
                pool: vec!["2001:db8:1111:2222:3333:4444:5555:6666".parse().unwrap()],
                new_flows: 1_000_000,
                timeouts: LONGEST,
            },
            uplink: "a-name-of-15-by".to_owned(),
        });
        there_and_back(Placed {
            rule: NatRule::Forward {
                uplink: 0,
                external_ip: Some("2001:db8:1111:2222:3333:4444:5555:6666".parse().unwrap()),
                external_port: 55535,
                external_port_end: 65535,
                internal_ip: "fd00:1111:2222:3333:4444:5555:6666:7777".parse().unwrap(),
                internal_port: 55535,
                transports: vec![Transport::Tcp, Transport::Udp],
                sources: vec!["2001:db8:1111:2222:3333:4444:5555:6666/128".parse().unwrap()],
                hairpin: false,
                new_flows: 1_000_000,
                timeouts: LONGEST,
            },
            uplink: "a-name-of-15-by".to_owned(),
        });
    }

    #[test]
    fn the_lines_of_all_sources_are_one_rule() {
        let line = |sources: &[&str]| {
            let mut placed = forward(2222, None);
            if let NatRule::Forward { sources: of, .. } = &mut placed.rule {
                of.extend(sources.iter().map(|net| net.parse::<IpNet>().unwrap()));
            }
            placed
        };
        let mut known = line(&["198.51.100.0/24"]);
        assert!(join(&mut known, line(&["10.0.0.0/8"])) && join(&mut known, line(&["10.0.0.0/8"])));
        assert_eq!(known, line(&["10.0.0.0/8", "198.51.100.0/24"]));
        assert!(!join(&mut known, line(&[])), "open to everybody is another rule");
        assert!(!join(&mut known, forward(2223, None)));
    }

    #[test]
    fn what_is_not_a_rule_of_ours_is_none() {
        for text in [
            "-j ACCEPT",
            "-m comment --comment \"telecluster:fw-12\" -j DROP",
            "-m comment --comment \"telecluster:1,ens3,forward,any,1,10.0.0.1,x,tcp\"",
            "-m comment --comment \"telecluster:1,ens3,other\"",
            "-m comment --comment \"telecluster:1\"",
        ] {
            assert_eq!(rule_of(text), None, "{text}");
        }
        assert_eq!(slot_of("-m comment --comment \"telecluster:fw-12\" -j DROP"), None);
    }
}
