//! The inside: through which interfaces the hosts that rules are about are reached. There the fast path begins and
//! ends, and nothing else of the worker hangs at them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use crate::kernel::{
    dataplane::{FastPort, NatRule},
    links::{Link, LinkKind, Observed, PortState},
    xdp::Medium,
};

/// Inside hosts and networks that rules are about, and how many rules are about each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Insides {
    hosts: BTreeMap<IpAddr, usize>,
    networks: BTreeMap<IpNet, usize>,
}

impl Insides {
    pub fn add(&mut self, rule: &NatRule) {
        match rule {
            NatRule::Forward { internal_ip, .. } => *self.hosts.entry(*internal_ip).or_default() += 1,
            NatRule::Masquerade { source, .. } => *self.networks.entry(*source).or_default() += 1,
        }
    }

    pub fn remove(&mut self, rule: &NatRule) {
        match rule {
            NatRule::Forward { internal_ip, .. } => decrement(&mut self.hosts, internal_ip),
            NatRule::Masquerade { source, .. } => decrement(&mut self.networks, source),
        }
    }

    /// Whether a rule is about hosts of that address family. IPv4 comes first in order.
    pub fn any(&self, ipv6: bool) -> bool {
        let host = if ipv6 { self.hosts.keys().next_back() } else { self.hosts.keys().next() };
        let network = if ipv6 { self.networks.keys().next_back() } else { self.networks.keys().next() };
        host.is_some_and(|ip| ip.is_ipv6() == ipv6) || network.is_some_and(|net| net.addr().is_ipv6() == ipv6)
    }

    /// Whether a rule is about a host that may be in this network.
    fn meet(&self, network: &IpNet) -> bool {
        let hosts = match network {
            IpNet::V4(net) => IpAddr::from(net.network())..=net.broadcast().into(),
            IpNet::V6(net) => IpAddr::from(net.network())..=net.broadcast().into(),
        };
        self.hosts.range(hosts).next().is_some()
            || self.networks.keys().any(|inside| inside.contains(network) || network.contains(inside))
    }
}

fn decrement<K: Ord + Clone>(counts: &mut BTreeMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// Where the fast path may begin and end: the uplinks, and the interfaces behind which inside hosts are, of bridges
/// their ports. In the order of their indexes. A bridge with VLANs (`has_vlans`: itself and its ports) is met whole: its ports'
/// frames belong to the VLAN filter.
pub fn fast_ports(
    observed: &Observed,
    uplinks: &BTreeSet<u32>,
    insides: &Insides,
    has_vlans: impl Fn(u32) -> bool,
) -> Vec<FastPort> {
    let (mut ports, trunks) = (Vec::new(), trunks(observed));
    for link in &observed.links {
        let Some(owner) = owner(observed, link) else { continue };
        let is_inside = || owner.addresses.iter().any(|address| address.global && insides.meet(&address.net));
        if uplinks.contains(&owner.index) {
            if owner.index == link.index {
                ports.extend(port(&trunks, link, owner, false));
            }
        } else if link.is_bridge() == has_vlans(link.index) && is_inside() {
            ports.extend(port(&trunks, link, owner, true));
        }
    }
    ports
}

/// Where what inside hosts send to an address of an uplink turns back: the interfaces that have networks of their own, apart
/// from the uplinks, where the programs are that know both sides. Bridges are met whole, however they switch inside.
pub fn turns(observed: &Observed, uplinks: &BTreeSet<u32>) -> BTreeSet<u32> {
    if uplinks.is_empty() {
        return BTreeSet::new();
    }
    let has_network = |link: &&Link| {
        link.addresses.iter().any(|address| address.global)
            && owner(observed, link).is_some_and(|owner| owner.index == link.index)
    };
    let turns = |link: &&Link| match link.kind {
        // What has no Ethernet header.
        LinkKind::Loopback | LinkKind::Tun => false,
        LinkKind::OvsBridge { .. }
        | LinkKind::Bridge { .. }
        | LinkKind::Veth
        | LinkKind::Vlan
        | LinkKind::Bond
        | LinkKind::Tap
        | LinkKind::Physical
        | LinkKind::Other(_) => link.mac.is_some() && !uplinks.contains(&link.index),
    };
    observed.links.iter().filter(has_network).filter(turns).map(|link| link.index).collect()
}

/// Whose addresses answer for a link: its bridge's when it is a port that forwards, else its own.
fn owner<'a>(observed: &'a Observed, link: &'a Link) -> Option<&'a Link> {
    if link.master.is_none() {
        return Some(link);
    }
    let forwards = link.port.is_some_and(|port| port.state == PortState::Forwarding && !port.guarded);
    Some(observed.l3_owner(link)).filter(|owner| owner.is_bridge() && forwards)
}

/// `None` for what has no Ethernet header.
fn port(trunks: &BTreeSet<u32>, link: &Link, owner: &Link, inside: bool) -> Option<FastPort> {
    let mac = owner.mac?;
    match link.kind {
        // Open vSwitch switches by its own tables, which nobody tells us of.
        LinkKind::Loopback | LinkKind::Tun | LinkKind::OvsBridge { .. } => None,
        LinkKind::Bridge { .. }
        | LinkKind::Veth
        | LinkKind::Vlan
        | LinkKind::Bond
        | LinkKind::Tap
        | LinkKind::Physical
        | LinkKind::Other(_) => Some(FastPort {
            index: link.index,
            owner: owner.index,
            mtu: link.mtu.min(owner.mtu),
            mac,
            inside,
            medium: medium(trunks, link),
        }),
    }
}

/// The links that VLANs lie on, by index.
pub(super) fn trunks(observed: &Observed) -> BTreeSet<u32> {
    observed.links.iter().filter(|link| link.vlan.is_some()).filter_map(|link| link.parent).collect()
}

/// What a link is made of, given those that VLANs lie on.
pub(super) fn medium(trunks: &BTreeSet<u32>, link: &Link) -> Medium {
    match link.kind {
        _ if trunks.contains(&link.index) => Medium::Trunk,
        LinkKind::Physical => Medium::Card,
        LinkKind::Loopback
        | LinkKind::Tun
        | LinkKind::OvsBridge { .. }
        | LinkKind::Bridge { .. }
        | LinkKind::Veth
        | LinkKind::Vlan
        | LinkKind::Bond
        | LinkKind::Tap
        | LinkKind::Other(_) => Medium::Software,
    }
}

#[cfg(test)]
mod tests {
    use telecluster_common::maps::Timeouts;

    use super::*;
    use crate::kernel::{
        dataplane::{NatType, Transport},
        fake::device,
        links::{Address, BridgePort, VlanTag},
    };
    use crate::model::VlanProtocol;

    #[test]
    fn the_ports_of_the_bridge_that_leads_to_an_inside_host_are_fast() {
        let mut insides = Insides::default();
        insides.add(&forward("192.168.100.10"));
        assert_eq!(shown(&insides), [(2, 2, false), (4, 3, true)]);
        insides.remove(&forward("192.168.100.10"));
        assert_eq!(shown(&insides), [(2, 2, false)]);
    }

    #[test]
    fn a_masqueraded_network_is_met_by_a_wider_and_by_a_narrower_one() {
        for (source, met) in [("192.168.0.0/16", true), ("192.168.100.128/25", true), ("10.0.0.0/8", false)] {
            let mut insides = Insides::default();
            insides.add(&NatRule::Masquerade {
                uplink: 2,
                source: source.parse().unwrap(),
                nat: NatType::default(),
                parity: false,
                except: Vec::new(),
                pool: Vec::new(),
                new_flows: 0,
                timeouts: Timeouts::RFC,
            });
            assert_eq!(shown(&insides).len() == 2, met, "{source}");
        }
    }

    #[test]
    fn a_port_that_is_held_or_blocked_is_not_fast() {
        let mut insides = Insides::default();
        insides.add(&forward("192.168.100.10"));
        for port in [port_state(PortState::Forwarding, true), port_state(PortState::Blocking, false)] {
            let mut observed = observed();
            observed.links[3].port = Some(port);
            assert_eq!(fast_ports(&observed, &BTreeSet::from([2]), &insides, |_| false).len(), 1);
        }
    }

    #[test]
    fn a_bridge_with_vlans_is_a_port_instead_of_its_ports() {
        let mut insides = Insides::default();
        insides.add(&forward("192.168.100.10"));
        let ports = fast_ports(&observed(), &BTreeSet::from([2]), &insides, |index| [3, 4].contains(&index));
        let shown: Vec<_> = ports.iter().map(|port| (port.index, port.owner, port.inside)).collect();
        assert_eq!(shown, [(2, 2, false), (3, 3, true)]);
    }

    #[test]
    fn packets_turn_back_at_every_interface_with_a_network_but_the_uplinks() {
        let turns = |uplinks: &[u32]| turns(&observed(), &uplinks.iter().copied().collect());
        assert_eq!(turns(&[2]), BTreeSet::from([3, 5]), "the bridge, not its port, and the other network");
        assert!(turns(&[]).is_empty());
    }

    #[test]
    fn a_card_with_vlans_on_it_is_a_trunk() {
        let media = |observed: &Observed| {
            let mut insides = Insides::default();
            insides.add(&forward("192.168.100.10"));
            let ports = fast_ports(observed, &BTreeSet::from([2]), &insides, |_| false);
            ports.into_iter().map(|port| port.medium).collect::<Vec<_>>()
        };
        let mut observed = observed();
        assert_eq!(media(&observed), [Medium::Card, Medium::Software]);
        observed.links[4].vlan = Some(VlanTag { id: 7, protocol: VlanProtocol::Dot1q });
        observed.links[4].parent = Some(2);
        assert_eq!(media(&observed), [Medium::Trunk, Medium::Software]);
    }

    fn shown(insides: &Insides) -> Vec<(u32, u32, bool)> {
        let ports = fast_ports(&observed(), &BTreeSet::from([2]), insides, |_| false);
        ports.into_iter().map(|port| (port.index, port.owner, port.inside)).collect()
    }

    fn forward(internal_ip: &str) -> NatRule {
        NatRule::Forward {
            uplink: 2,
            external_ip: None,
            external_port: 2222,
            external_port_end: 2222,
            internal_ip: internal_ip.parse().unwrap(),
            internal_port: 22,
            transports: vec![Transport::Tcp],
            sources: Vec::new(),
            hairpin: true,
            new_flows: 0,
            timeouts: Timeouts::RFC,
        }
    }

    /// lo, an uplink, a bridge with one port, and another network.
    fn observed() -> Observed {
        let bridge = LinkKind::Bridge { stp: false };
        let mut links = vec![
            link(1, LinkKind::Loopback, "127.0.0.1/8"),
            link(2, LinkKind::Physical, "203.0.113.1/24"),
            link(3, bridge, "192.168.100.1/24"),
            link(4, LinkKind::Tap, "169.254.0.1/16"),
            link(5, LinkKind::Veth, "172.16.0.1/24"),
        ];
        links[3].master = Some(3);
        links[3].addresses.clear();
        links[3].port = Some(port_state(PortState::Forwarding, false));
        Observed { links: links.into(), ..Observed::default() }
    }

    fn port_state(state: PortState, guarded: bool) -> BridgePort {
        BridgePort { state, guarded, isolated: false, hairpin: false }
    }

    fn link(index: u32, kind: LinkKind, address: &str) -> Link {
        let addresses = vec![Address::plain(address.parse().unwrap())];
        Link { addresses, ..device(index, &format!("link{index}"), kind) }
    }
}
