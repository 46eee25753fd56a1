//! Routes and static neighbours: what hangs on an interface's addresses and moves with them.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHop, RouteProtocol,
        RouteScope, RouteType, RouteVia,
    },
};

use super::links::{Link, Mac};

/// The table that the kernel fills with the host's own addresses.
const LOCAL_TABLE: u32 = 255;

/// A route of the worker's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub destination: IpNet,
    pub gateway: Option<IpAddr>,
    /// Of a route with several hops: the first one's. 0: none, such as a blackhole.
    pub interface: u32,
    /// The source address that it prefers.
    pub source: Option<IpAddr>,
    pub metric: u32,
    pub table: u32,
    /// Who made it: `RTPROT_*`.
    pub protocol: u8,
    pub scope: u8,
    /// `RTN_*`: unicast, blackhole, ...
    pub kind: u8,
    pub tos: u8,
    pub onlink: bool,
    /// Whatever else it has, as the kernel has it.
    pub rest: Vec<RouteAttribute>,
}

/// One next hop of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// `None`: the hosts are on the link itself.
    pub gateway: Option<IpAddr>,
    pub interface: Option<u32>,
}

/// A neighbour that somebody entered by hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    pub interface: u32,
    pub ip: IpAddr,
    pub mac: Mac,
}

impl Route {
    /// The main table's.
    pub const MAIN: u32 = RouteHeader::RT_TABLE_MAIN as u32;

    /// A plain one.
    pub fn new(destination: IpNet, gateway: Option<IpAddr>, interface: u32) -> Self {
        Self {
            destination,
            gateway,
            interface,
            source: None,
            metric: 0,
            table: Self::MAIN,
            protocol: RouteProtocol::Static.into(),
            scope: u8::from(if gateway.is_some() { RouteScope::Universe } else { RouteScope::Link }),
            kind: RouteType::Unicast.into(),
            tos: 0,
            onlink: false,
            rest: Vec::new(),
        }
    }

    pub fn is_default(&self) -> bool {
        self.destination.prefix_len() == 0
            && self.table == Self::MAIN
            && self.kind == u8::from(RouteType::Unicast)
    }

    /// As `ip route` names what happens to its packets; `None` for what is no way that somebody set.
    pub fn kind_name(&self) -> Option<&'static str> {
        match RouteType::from(self.kind) {
            RouteType::Unicast => Some("unicast"),
            RouteType::BlackHole => Some("blackhole"),
            RouteType::Unreachable => Some("unreachable"),
            RouteType::Prohibit => Some("prohibit"),
            _ => None,
        }
    }

    /// Whether packets that it is for may leave through that interface.
    pub fn leads_through(&self, interface: u32) -> bool {
        self.ways().iter().any(|way| way.interface == Some(interface))
    }

    /// Its next hops; a route that refuses has one without an interface.
    pub fn ways(&self) -> Vec<Way> {
        let several = self.rest.iter().find_map(|attribute| match attribute {
            RouteAttribute::MultiPath(hops) => Some(hops),
            _ => None,
        });
        let Some(hops) = several else {
            // An IPv4 route by an IPv6 neighbour (RFC 5549).
            let gateway = self.gateway.or_else(|| self.rest.iter().find_map(via));
            return vec![Way { gateway, interface: Some(self.interface).filter(|index| *index > 0) }];
        };
        let way = |hop: &RouteNextHop| Way {
            gateway: hop.attributes.iter().find_map(via),
            interface: Some(hop.interface_index),
        };
        hops.iter().map(way).collect()
    }

    /// Whether the kernel makes it by itself when the link gets its addresses.
    pub fn is_automatic(&self, link: &Link) -> bool {
        let connected = || {
            link.addresses
                .iter()
                .any(|address| address.prefix_route && address.net.trunc() == self.destination)
        };
        let link_local = match self.destination {
            IpNet::V6(net) => net.addr().is_multicast() || net.addr().is_unicast_link_local(),
            IpNet::V4(_) => false,
        };
        link_local
            || (self.protocol == u8::from(RouteProtocol::Kernel) && self.gateway.is_none() && connected())
    }

    /// The same over another interface.
    pub fn moved(&self, from: u32, to: u32) -> Self {
        let swap = |index: u32| if index == from { to } else { index };
        let mut route = self.clone();
        route.interface = swap(route.interface);
        for attribute in &mut route.rest {
            if let RouteAttribute::MultiPath(hops) = attribute {
                for hop in hops {
                    hop.interface_index = swap(hop.interface_index);
                }
            }
        }
        route
    }

    /// `None`: one of the kernel's own table, or none of IP.
    pub(super) fn read(message: RouteMessage) -> Option<Self> {
        let RouteMessage { header, attributes, .. } = message;
        let any: IpAddr = match header.address_family {
            AddressFamily::Inet => std::net::Ipv4Addr::UNSPECIFIED.into(),
            AddressFamily::Inet6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
            _ => return None,
        };
        let mut destination = any;
        let mut route = Self {
            table: header.table.into(),
            protocol: header.protocol.into(),
            scope: header.scope.into(),
            kind: header.kind.into(),
            tos: header.tos,
            onlink: header.flags.contains(RouteFlags::Onlink),
            ..Self::new(any.into(), None, 0)
        };
        for attribute in attributes {
            match attribute {
                RouteAttribute::Destination(address) => destination = ip(&address)?,
                RouteAttribute::Gateway(address) => route.gateway = ip(&address),
                RouteAttribute::PrefSource(address) => route.source = ip(&address),
                RouteAttribute::Oif(index) => route.interface = index,
                RouteAttribute::Priority(metric) => route.metric = metric,
                RouteAttribute::Table(table) => route.table = table,
                // What changes while one looks.
                RouteAttribute::CacheInfo(_) | RouteAttribute::Expires(_) => {}
                RouteAttribute::MultiPath(mut hops) => {
                    route.interface = hops.first().map_or(0, |hop| hop.interface_index);
                    hops.iter_mut().for_each(|hop| {
                        hop.flags &= netlink_packet_route::route::RouteNextHopFlags::Onlink;
                    });
                    route.rest.push(RouteAttribute::MultiPath(hops));
                }
                other => route.rest.push(other),
            }
        }
        route.destination = IpNet::new(destination, header.destination_prefix_length).ok()?;
        (route.table != LOCAL_TABLE).then_some(route)
    }

    pub(super) fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: family(self.destination.addr()),
            destination_prefix_length: self.destination.prefix_len(),
            source_prefix_length: 0,
            tos: self.tos,
            // Tables beyond 255 are in the attribute only.
            table: u8::try_from(self.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC),
            protocol: self.protocol.into(),
            scope: self.scope.into(),
            kind: self.kind.into(),
            flags: if self.onlink { RouteFlags::Onlink } else { RouteFlags::empty() },
        };
        let attributes = &mut message.attributes;
        if self.destination.prefix_len() > 0 {
            attributes.push(RouteAttribute::Destination(self.destination.addr().into()));
        }
        attributes.push(RouteAttribute::Table(self.table));
        attributes.extend(self.gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
        attributes.extend(self.source.map(|source| RouteAttribute::PrefSource(source.into())));
        if self.metric > 0 {
            attributes.push(RouteAttribute::Priority(self.metric));
        }
        let several = self.rest.iter().any(|attribute| matches!(attribute, RouteAttribute::MultiPath(_)));
        if self.interface > 0 && !several {
            attributes.push(RouteAttribute::Oif(self.interface));
        }
        attributes.extend(self.rest.iter().cloned());
        message
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { destination, gateway, interface, .. } = self;
        match gateway {
            Some(gateway) => write!(f, "{destination} via {gateway} over interface {interface}"),
            None => write!(f, "{destination} over interface {interface}"),
        }
    }
}

impl Neighbour {
    /// Those that somebody entered by hand; the others come and go.
    pub(super) fn read(message: NeighbourMessage) -> Option<Self> {
        let NeighbourMessage { header, attributes, .. } = message;
        if header.state != NeighbourState::Permanent {
            return None;
        }
        let (mut ip, mut mac) = (None, None);
        for attribute in attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => ip = Some(v4.into()),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => ip = Some(v6.into()),
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.try_into().ok().map(Mac),
                _ => {}
            }
        }
        Some(Self { interface: header.ifindex, ip: ip?, mac: mac? })
    }

    pub(super) fn message(&self) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = family(self.ip);
        message.header.ifindex = self.interface;
        message.header.state = NeighbourState::Permanent;
        message.header.kind = RouteType::Unicast;
        let address = match self.ip {
            IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
            IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
        };
        message.attributes.push(NeighbourAttribute::Destination(address));
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(self.mac.0.to_vec()));
        message
    }
}

pub(super) fn family(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn via(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        RouteAttribute::Via(RouteVia::Inet(ip)) => Some((*ip).into()),
        RouteAttribute::Via(RouteVia::Inet6(ip)) => Some((*ip).into()),
        _ => None,
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_reads_back_as_it_was_written() {
        let route = Route {
            source: Some([192, 0, 2, 10].into()),
            metric: 100,
            table: 1000,
            onlink: true,
            ..Route::new("10.0.0.0/8".parse().unwrap(), Some([192, 0, 2, 1].into()), 7)
        };
        assert_eq!(Route::read(route.message()), Some(route.clone()));
        let plain = Route::new("::/0".parse().unwrap(), Some("fe80::1".parse().unwrap()), 7);
        assert!(plain.is_default() && !route.is_default());
        assert_eq!(Route::read(plain.message()), Some(plain.clone()));
        assert_eq!(plain.moved(7, 9).interface, 9);
        assert_eq!(plain.moved(8, 9), plain);
    }

    #[test]
    fn each_next_hop_is_a_way_and_the_local_table_is_left_out() {
        let hop = |index, last| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = index;
            hop.attributes = vec![RouteAttribute::Gateway(RouteAddress::Inet([192, 0, 2, last].into()))];
            hop
        };
        let multi = RouteAttribute::MultiPath(vec![hop(3, 1), hop(4, 2)]);
        let route = Route { rest: vec![multi], ..Route::new("10.0.0.0/8".parse().unwrap(), None, 3) };
        let read = Route::read(route.message()).unwrap();
        assert_eq!(
            read.ways(),
            [(1, 3), (2, 4)]
                .map(|(last, index)| Way { gateway: Some([192, 0, 2, last].into()), interface: Some(index) })
        );
        assert!(read.leads_through(4) && !read.moved(4, 5).leads_through(4));
        assert_eq!(Route::read(Route { table: 255, ..read }.message()), None);
    }
}
