//! Which of the kernel's connections are flows of our rules, and what they look like. Pure.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use ipnet::IpNet;
use netlink_packet_netfilter::conntrack::Status;
use telecluster_common::tcp::{FlowState, proto};

use crate::kernel::dataplane::{Counters, Flow, HostAddresses, NatRule, Slot};

use super::{conntrack::Entry, settings::Lifetimes};

/// What rules a connection can be of, arranged so that each of many is asked about a few.
#[derive(Debug, Default)]
pub(super) struct Owners<'a> {
    /// By protocol and the port that clients use.
    forwards: HashMap<(u8, u16), Vec<(Slot, &'a NatRule)>>,
    /// Those of more than one port.
    ranges: Vec<(Slot, &'a NatRule)>,
    /// The longest prefix first.
    masquerades: Vec<Masquerade<'a>>,
    /// The address that each uplink translates to.
    uplinks: Vec<(u32, IpAddr)>,
}

#[derive(Debug, Clone, Copy)]
struct Masquerade<'a> {
    slot: Slot,
    source: IpNet,
    uplink: u32,
    pool: &'a [IpAddr],
}

/// The rule of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) slot: Slot,
    uplink: u32,
    /// It came in from outside, by a forward.
    inwards: bool,
}

impl<'a> Owners<'a> {
    pub(super) fn new(
        rules: impl IntoIterator<Item = (Slot, &'a NatRule)>,
        addresses: &HostAddresses,
    ) -> Self {
        let mut owners = Self { uplinks: addresses.uplinks.clone(), ..Self::default() };
        for (slot, rule) in rules {
            match rule {
                NatRule::Forward { external_port, external_port_end, .. }
                    if external_port != external_port_end =>
                {
                    owners.ranges.push((slot, rule));
                }
                NatRule::Forward { external_port, transports, .. } => {
                    for transport in transports {
                        let key = (transport.number(), *external_port);
                        owners.forwards.entry(key).or_default().push((slot, rule));
                    }
                }
                NatRule::Masquerade { uplink, source, pool, .. } => {
                    let rule = Masquerade { slot, source: *source, uplink: *uplink, pool };
                    owners.masquerades.push(rule);
                }
            }
        }
        owners.masquerades.sort_by_key(|rule| (u8::MAX - rule.source.prefix_len(), rule.slot));
        owners
    }

    /// The rule that a connection was translated by; `None`: none of ours.
    pub(super) fn of(&self, entry: &Entry) -> Option<Owner> {
        if entry.status.contains(Status::DstNat)
            && let Some(owner) = self.forward(entry)
        {
            return Some(owner);
        }
        if !entry.status.contains(Status::SrcNat) {
            return None;
        }
        let (inside, external) = (entry.original.source.0, entry.reply.destination.0);
        let uplink = self.uplinks.iter().find(|(_, address)| *address == external).map(|(uplink, _)| *uplink);
        // An address that no uplink has any more says nothing about which it was.
        let fits = |rule: &Masquerade<'_>| match rule.pool {
            [] => uplink.is_none_or(|uplink| uplink == rule.uplink),
            pool => pool.contains(&external),
        };
        let covering = self.masquerades.iter().filter(|rule| rule.source.contains(&inside));
        let Masquerade { slot, uplink, .. } = *covering.into_iter().find(|rule| fits(rule))?;
        Some(Owner { slot, uplink, inwards: false })
    }

    fn forward(&self, entry: &Entry) -> Option<Owner> {
        let alone = self.forwards.get(&(entry.protocol, entry.original.destination.1));
        let candidates = || alone.into_iter().flatten().chain(&self.ranges);
        let (at_ip, at_port) = entry.original.destination;
        let fits = |rule: &NatRule| match rule {
            NatRule::Forward {
                uplink: _,
                external_ip,
                external_port,
                external_port_end,
                internal_ip,
                internal_port,
                transports,
                sources: _,
                hairpin: _,
                new_flows: _,
                timeouts: _,
            } => {
                let offset = at_port.wrapping_sub(*external_port);
                external_ip.is_none_or(|ip| ip == at_ip)
                    && (*external_port..=*external_port_end).contains(&at_port)
                    && transports.iter().any(|transport| transport.number() == entry.protocol)
                    && (*internal_ip, internal_port.wrapping_add(offset)) == entry.reply.source
            }
            NatRule::Masquerade { .. } => false,
        };
        let here = |rule: &NatRule| self.uplinks.contains(&(rule.uplink(), at_ip));
        let fitting = || candidates().filter(|(_, rule)| fits(rule));
        // The same port may lead to the same host from two uplinks: the address tells which one it was.
        let (slot, rule) = fitting().find(|(_, rule)| here(rule)).or_else(|| fitting().next())?;
        Some(Owner { slot: *slot, uplink: rule.uplink(), inwards: true })
    }
}

/// A connection as everybody else sees flows. `now`: nanoseconds since 1970.
pub(super) fn flow(entry: &Entry, owner: Owner, lifetimes: &Lifetimes, now: u64) -> Flow {
    let (original, reply) = (&entry.original, &entry.reply);
    let (inside, external, mut remote) = match owner.inwards {
        true => (reply.source, original.destination, original.source),
        false => (original.source, reply.destination, original.destination),
    };
    if matches!(entry.protocol, proto::ICMP | proto::ICMP6) {
        // The identifier is the sender's; the other side has none.
        remote.1 = 0;
    }
    let (inwards, outwards) = match owner.inwards {
        true => (entry.sent, entry.answered),
        false => (entry.answered, entry.sent),
    };
    let assured = entry.status.contains(Status::Assured);
    let lifetime = lifetimes.of(entry.protocol, entry.tcp_state, assured);
    let idle = lifetime.map_or(0, |lifetime| lifetime.saturating_sub(u64::from(entry.remaining)));
    let idle = Duration::from_secs(idle);
    let age = entry.started.map_or(idle, |started| Duration::from_nanos(now.saturating_sub(started)));
    Flow {
        protocol: entry.protocol,
        inside,
        external,
        remote,
        counters: Counters {
            packets_in: inwards.packets,
            bytes_in: inwards.bytes,
            packets_out: outwards.packets,
            bytes_out: outwards.bytes,
            flows: 0,
        },
        state: state(entry),
        proven: entry.status.contains(Status::SeenReply),
        fast: false,
        age,
        idle,
        slot: owner.slot,
        uplink: owner.uplink,
    }
}

fn state(entry: &Entry) -> FlowState {
    // linux/netfilter/nf_conntrack_tcp.h: SYN_SENT, SYN_RECV, ESTABLISHED, FIN_WAIT, CLOSE_WAIT, LAST_ACK,
    // TIME_WAIT, CLOSE, from 1
    match entry.tcp_state {
        Some(3) => FlowState::Established,
        Some(4 | 5) => FlowState::HalfClosed,
        Some(6 | 7) => FlowState::Closed,
        Some(8) => FlowState::Reset,
        Some(_) => FlowState::New,
        None if entry.status.contains(Status::SeenReply) => FlowState::Established,
        None => FlowState::New,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netfilter::{
        conntrack::tests::connection,
        lines::tests::{forward, masquerade},
    };

    const MASQUERADED: [&str; 4] =
        ["10.1.0.5:4000", "198.51.100.1:53", "198.51.100.1:53", "203.0.113.1:4000"];
    const FORWARDED: [&str; 4] =
        ["198.51.100.1:6000", "203.0.113.1:2222", "192.168.100.10:22", "198.51.100.1:6000"];

    fn addresses() -> HostAddresses {
        let ip = |text: &str| text.parse().unwrap();
        HostAddresses {
            local: Vec::new(),
            uplinks: vec![(2, ip("203.0.113.1")), (3, ip("203.0.113.99"))],
            external: Vec::new(),
        }
    }

    #[test]
    fn the_longest_prefix_on_the_uplink_owns_a_masqueraded_connection() {
        let rules = [masquerade("10.0.0.0/8").rule, masquerade("10.1.0.0/16").rule];
        let owners = Owners::new([(Slot(0), &rules[0]), (Slot(1), &rules[1])], &addresses());
        let entry = connection(17, MASQUERADED, Status::SrcNat | Status::SeenReply);
        let owner = owners.of(&entry).unwrap();
        assert_eq!((owner.slot, owner.inwards), (Slot(1), false));
        let flow = flow(&entry, owner, &Lifetimes::default(), 0);
        assert_eq!((flow.inside, flow.remote), (entry.original.source, entry.original.destination));
        assert_eq!(flow.external.0, "203.0.113.1".parse::<IpAddr>().unwrap());
        assert_eq!((flow.counters.packets_out, flow.counters.packets_in), (3, 2));
        assert_eq!((flow.state, flow.proven), (FlowState::Established, true));
        // Another uplink's, and one that nobody has translated.
        let elsewhere =
            ["10.1.0.5:4000", "198.51.100.1:53", "198.51.100.1:53", "203.0.113.99:4000"].map(String::from);
        let elsewhere = connection(17, elsewhere.each_ref().map(String::as_str), Status::SrcNat);
        assert_eq!(owners.of(&elsewhere), None);
        assert_eq!(owners.of(&connection(17, MASQUERADED, Status::SeenReply)), None);
    }

    #[test]
    fn a_forward_owns_what_it_has_sent_inside() {
        let rule = forward(2222, None).rule;
        let owners = Owners::new([(Slot(4), &rule)], &addresses());
        let mut entry = connection(6, FORWARDED, Status::DstNat | Status::SeenReply);
        entry.tcp_state = Some(3);
        let owner = owners.of(&entry).unwrap();
        let flow = flow(&entry, owner, &Lifetimes::default(), 0);
        assert_eq!((flow.slot, flow.uplink), (Slot(4), 2));
        assert_eq!((flow.inside, flow.external), (entry.reply.source, entry.original.destination));
        assert_eq!((flow.counters.packets_in, flow.counters.packets_out), (3, 2));
        assert_eq!(owners.of(&connection(17, FORWARDED, Status::DstNat)), None, "of TCP alone");
        let other = ["198.51.100.1:6000", "203.0.113.1:2222", "192.168.100.11:22", "198.51.100.1:6000"];
        assert_eq!(owners.of(&connection(6, other, Status::DstNat)), None, "somebody else's rule");
    }

    #[test]
    fn a_flow_knows_how_long_it_has_been_idle_and_how_old_it_is() {
        let rule = masquerade("10.0.0.0/8").rule;
        let owners = Owners::new([(Slot(0), &rule)], &addresses());
        let mut entry = connection(17, MASQUERADED, Status::SrcNat);
        entry.started = Some(5_000_000_000);
        let flow = flow(&entry, owners.of(&entry).unwrap(), &Lifetimes::default(), 65_000_000_000);
        assert_eq!((flow.age, flow.idle), (Duration::from_secs(60), Duration::ZERO));
        assert_eq!((flow.state, flow.proven), (FlowState::New, false));
    }
}
