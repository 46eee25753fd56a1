//! Which of the kernel's events change how a packet is forwarded. Pure.
//!
//! Most do not: a neighbour that is confirmed again, a link that appears, a counter. A flow that has been learned
//! depends on the links, neighbours and bridge entries that were there then; new ones cannot concern it before a
//! route or an entry leads to them.

use std::{collections::HashMap, net::IpAddr};

use netlink_packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{LinkAttribute, LinkFlags, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage},
};

/// What is known of links and neighbours.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// By index; a port of a bridge is told of twice, by itself and by its bridge (true).
    links: HashMap<(u32, bool), LinkFacts>,
    neighbours: HashMap<NeighbourKey, NeighbourFacts>,
}

/// What of a link decides where packets go.
#[derive(Debug, PartialEq, Eq)]
struct LinkFacts {
    flags: LinkFlags,
    /// Master, MTU, MAC, and the state of a bridge's port.
    attributes: Vec<LinkAttribute>,
}

/// A neighbour by its address, or a bridge's entry by its MAC and VLAN.
#[derive(Debug, PartialEq, Eq, Hash)]
enum NeighbourKey {
    Address(u32, IpAddr),
    Mac { bridge: Option<u32>, mac: Vec<u8>, vlan: Option<u16> },
}

#[derive(Debug, PartialEq, Eq)]
enum NeighbourFacts {
    Mac(Option<Vec<u8>>),
    Port(u32),
}

impl Changes {
    /// Whether any of the messages in this datagram changes how a packet is forwarded. One that cannot be read does.
    pub(super) fn matters(&mut self, datagram: &[u8]) -> bool {
        let mut any = false;
        let mut rest = datagram;
        while !rest.is_empty() {
            let Ok(buffer) = NetlinkBuffer::new_checked(rest) else { return true };
            let length = buffer.length() as usize;
            let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest) else { return true };
            any |= match message.payload {
                NetlinkPayload::InnerMessage(message) => self.note(message),
                _ => true,
            };
            // Messages are padded to four bytes (linux/netlink.h NLMSG_ALIGN).
            rest = rest.get(length.max(1).next_multiple_of(4)..).unwrap_or_default();
        }
        any
    }

    fn note(&mut self, message: RouteNetlinkMessage) -> bool {
        match message {
            RouteNetlinkMessage::NewLink(link) => {
                let (key, facts) = link_facts(link);
                let before = self.links.insert(key, facts);
                // A link that is heard of for the first time: at the start, that may be a change of a known one.
                before.is_none_or(|before| Some(&before) != self.links.get(&key))
            }
            RouteNetlinkMessage::DelLink(link) => {
                drop(self.links.remove(&link_key(&link)));
                true
            }
            RouteNetlinkMessage::NewNeighbour(neighbour) => {
                let Some((key, facts)) = neighbour_facts(neighbour) else { return false };
                let same = self.neighbours.get(&key) == Some(&facts);
                self.neighbours.insert(key, facts);
                !same
            }
            RouteNetlinkMessage::DelNeighbour(neighbour) => {
                neighbour_facts(neighbour).is_some_and(|(key, _)| {
                    drop(self.neighbours.remove(&key));
                    true
                })
            }
            // Routes, rules, next hops, forwarding switched on or off.
            _ => true,
        }
    }
}

fn link_key(link: &LinkMessage) -> (u32, bool) {
    (link.header.index, link.header.interface_family == AddressFamily::Bridge)
}

fn link_facts(link: LinkMessage) -> ((u32, bool), LinkFacts) {
    let decides = |attribute: &LinkAttribute| {
        matches!(
            attribute,
            LinkAttribute::Controller(_)
                | LinkAttribute::Mtu(_)
                | LinkAttribute::Address(_)
                | LinkAttribute::Carrier(_)
                | LinkAttribute::ProtoInfoBridge(_)
        )
    };
    let key = link_key(&link);
    let facts = LinkFacts {
        flags: link.header.flags,
        attributes: link.attributes.into_iter().filter(decides).collect(),
    };
    (key, facts)
}

fn neighbour_facts(neighbour: NeighbourMessage) -> Option<(NeighbourKey, NeighbourFacts)> {
    let interface = neighbour.header.ifindex;
    let (mut address, mut mac, mut bridge, mut vlan) = (None, None, None, None);
    for attribute in neighbour.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => address = Some(found.into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(found)) => address = Some(found.into()),
            NeighbourAttribute::LinkLayerAddress(found) => mac = Some(found),
            NeighbourAttribute::Controller(found) => bridge = Some(found),
            NeighbourAttribute::Vlan(found) => vlan = Some(found),
            _ => {}
        }
    }
    if neighbour.header.family == AddressFamily::Bridge {
        return Some((NeighbourKey::Mac { bridge, mac: mac?, vlan }, NeighbourFacts::Port(interface)));
    }
    Some((NeighbourKey::Address(interface, address?), NeighbourFacts::Mac(mac)))
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NetlinkHeader;
    use netlink_packet_route::{link::LinkHeader, neighbour::NeighbourHeader, route::RouteMessage};

    use super::*;

    #[test]
    fn a_neighbour_matters_when_its_mac_is_another() {
        let mut changes = Changes::default();
        assert!(
            changes.matters(&bytes(neighbour(3, Some([2, 0, 0, 0, 0, 1])))),
            "who it was before is unknown"
        );
        assert!(!changes.matters(&bytes(neighbour(3, Some([2, 0, 0, 0, 0, 1])))), "only confirmed");
        assert!(changes.matters(&bytes(neighbour(3, Some([2, 0, 0, 0, 0, 2])))));
        assert!(changes.matters(&bytes(neighbour(3, None))), "it does not answer any more");
    }

    #[test]
    fn a_bridge_entry_matters_when_it_moves_to_another_port() {
        let mut changes = Changes::default();
        assert!(changes.matters(&bytes(bridge_entry(5))));
        assert!(!changes.matters(&bytes(bridge_entry(5))));
        assert!(changes.matters(&bytes(bridge_entry(6))));
    }

    #[test]
    fn a_link_matters_when_what_packets_depend_on_changes() {
        let mut changes = Changes::default();
        let link = |mtu, name: &str| {
            let mut message = LinkMessage::default();
            message.header = LinkHeader { index: 4, ..LinkHeader::default() };
            message.attributes = vec![LinkAttribute::Mtu(mtu), LinkAttribute::IfName(name.to_owned())];
            RouteNetlinkMessage::NewLink(message)
        };
        assert!(changes.matters(&bytes(link(1500, "a"))));
        assert!(!changes.matters(&bytes(link(1500, "b"))), "a name forwards nothing");
        assert!(changes.matters(&bytes(link(1400, "b"))));
    }

    #[test]
    fn every_route_matters_and_so_does_what_cannot_be_read() {
        let mut changes = Changes::default();
        assert!(changes.matters(&bytes(RouteNetlinkMessage::NewRoute(RouteMessage::default()))));
        assert!(changes.matters(&[1, 2, 3]));
        assert!(!changes.matters(&[]));
    }

    #[test]
    fn of_several_messages_in_a_datagram_one_is_enough() {
        let mut changes = Changes::default();
        let known = bytes(bridge_entry(5));
        changes.matters(&known);
        let mut datagram = known.clone();
        datagram.extend(known);
        assert!(!changes.matters(&datagram));
        datagram.extend(bytes(bridge_entry(6)));
        assert!(changes.matters(&datagram));
    }

    fn neighbour(interface: u32, mac: Option<[u8; 6]>) -> RouteNetlinkMessage {
        let mut message = NeighbourMessage::default();
        message.header =
            NeighbourHeader { family: AddressFamily::Inet, ifindex: interface, ..NeighbourHeader::default() };
        let address = NeighbourAddress::Inet([192, 0, 2, 1].into());
        message.attributes = vec![NeighbourAttribute::Destination(address)];
        message.attributes.extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.to_vec())));
        RouteNetlinkMessage::NewNeighbour(message)
    }

    fn bridge_entry(port: u32) -> RouteNetlinkMessage {
        let mut message = NeighbourMessage::default();
        message.header =
            NeighbourHeader { family: AddressFamily::Bridge, ifindex: port, ..NeighbourHeader::default() };
        message.attributes = vec![
            NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 9]),
            NeighbourAttribute::Controller(2),
        ];
        RouteNetlinkMessage::NewNeighbour(message)
    }

    fn bytes(message: RouteNetlinkMessage) -> Vec<u8> {
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }
}
