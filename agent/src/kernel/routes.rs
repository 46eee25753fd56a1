//! The routes of the main tables, both families, from rtnetlink's messages.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteNextHop, RouteType, RouteVia},
};

use super::{KernelError, rtnl::Rtnl};

/// One way to a network. A route with several next hops is several of these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// `0.0.0.0/0` and `::/0` are the default routes.
    pub destination: IpNet,
    /// `None`: the hosts are on the link itself.
    pub gateway: Option<IpAddr>,
    /// Index of the interface; `None` for a route that refuses.
    pub interface: Option<u32>,
    /// The address that the host itself sends from.
    pub source: Option<IpAddr>,
    pub metric: u32,
    pub kind: RouteKind,
}

/// What happens to packets of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteKind {
    Unicast,
    Blackhole,
    Unreachable,
    Prohibit,
}

impl RouteKind {
    /// As `ip route` names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unicast => "unicast",
            Self::Blackhole => "blackhole",
            Self::Unreachable => "unreachable",
            Self::Prohibit => "prohibit",
        }
    }
}

/// Every route of the main tables, in the order of the kernel.
pub(super) fn list(rtnl: &mut Rtnl) -> Result<Vec<Route>, KernelError> {
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        for answer in rtnl.dump("list routes", &RouteNetlinkMessage::GetRoute(request))? {
            if let RouteNetlinkMessage::NewRoute(message) = answer {
                routes.extend(read(&message));
            }
        }
    }
    Ok(routes)
}

fn read(message: &RouteMessage) -> Vec<Route> {
    let header = &message.header;
    let any: IpAddr = match header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return Vec::new(),
    };
    let kind = match header.kind {
        RouteType::Unicast => RouteKind::Unicast,
        RouteType::BlackHole => RouteKind::Blackhole,
        RouteType::Unreachable => RouteKind::Unreachable,
        RouteType::Prohibit => RouteKind::Prohibit,
        _ => return Vec::new(),
    };
    let mut table = u32::from(header.table);
    let mut hops: &[RouteNextHop] = &[];
    let mut destination = any;
    let mut route =
        Route { destination: any.into(), gateway: None, interface: None, source: None, metric: 0, kind };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Destination(found) => destination = address(found).unwrap_or(any),
            RouteAttribute::PrefSource(found) => route.source = address(found),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::MultiPath(found) => hops = found,
            RouteAttribute::Oif(index) => route.interface = Some(*index),
            other => route.gateway = gateway(other).or(route.gateway),
        }
    }
    // A cloned route is a cache of the kernel's, no way that somebody set.
    let Ok(net) = IpNet::new(destination, header.destination_prefix_length) else { return Vec::new() };
    if table != u32::from(RouteHeader::RT_TABLE_MAIN) {
        return Vec::new();
    }
    route.destination = net;
    if hops.is_empty() {
        return vec![route];
    }
    let each = |hop: &RouteNextHop| Route {
        gateway: hop.attributes.iter().find_map(gateway),
        interface: Some(hop.interface_index),
        ..route.clone()
    };
    hops.iter().map(each).collect()
}

fn gateway(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(found) => address(found),
        // An IPv4 route by an IPv6 neighbour (RFC 5549).
        RouteAttribute::Via(RouteVia::Inet(ip)) => Some((*ip).into()),
        RouteAttribute::Via(RouteVia::Inet6(ip)) => Some((*ip).into()),
        _ => None,
    }
}

fn address(found: &RouteAddress) -> Option<IpAddr> {
    match found {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(prefix: u8, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.kind = RouteType::Unicast;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.destination_prefix_length = prefix;
        message.attributes = attributes;
        message
    }

    fn inet(a: u8, b: u8, c: u8, d: u8) -> RouteAddress {
        RouteAddress::Inet(Ipv4Addr::new(a, b, c, d))
    }

    #[test]
    fn a_default_route_has_a_gateway_and_no_destination_of_its_own() {
        let routes = read(&message(
            0,
            vec![
                RouteAttribute::Gateway(inet(192, 0, 2, 1)),
                RouteAttribute::Oif(3),
                RouteAttribute::Priority(100),
            ],
        ));
        assert_eq!(routes.len(), 1);
        assert_eq!(routes[0].destination.to_string(), "0.0.0.0/0");
        assert_eq!((routes[0].gateway, routes[0].interface), (Some("192.0.2.1".parse().unwrap()), Some(3)));
        assert_eq!(routes[0].metric, 100);
    }

    #[test]
    fn each_next_hop_is_a_route_and_other_tables_are_none() {
        let hop = |index, last| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = index;
            hop.attributes = vec![RouteAttribute::Gateway(inet(192, 0, 2, last))];
            hop
        };
        let multi = RouteAttribute::MultiPath(vec![hop(3, 1), hop(4, 2)]);
        let destination = RouteAttribute::Destination(inet(10, 0, 0, 0));
        let routes = read(&message(8, vec![destination.clone(), multi]));
        assert_eq!(routes.iter().map(|route| route.interface).collect::<Vec<_>>(), [Some(3), Some(4)]);
        assert!(read(&message(8, vec![destination, RouteAttribute::Table(255)])).is_empty());
    }
}
