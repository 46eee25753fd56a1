//! The worker's own namespace as it was read last, brought up to date by the kernel's events.
//!
//! Reading thousands of links takes tens of milliseconds, and every change looks before and after. A socket hears
//! what has changed since the last look: the kernel queues an event before it acknowledges the change that it is
//! about (linux: `rtmsg_ifinfo` and its siblings, under RTNL), so what no event names is as it was. An event only
//! says what to read again. Of some changes the kernel is silent; they are read with what they follow from: the IPv4
//! routes that go with their link, the address and MTU that a bridge takes from a port, where the far end of a pair
//! is. Of who owns a TUN it tells nothing at all: [`View::doubt_tuns`]. After a while all is read anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::AddressMessage,
    link::{LinkAttribute, LinkExtentMask, LinkMessage},
    neighbour::NeighbourMessage,
    route::RouteMessage,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::{
    errno::Errno,
    libc,
    sys::socket::{MsgFlags, recv, setsockopt, sockopt},
};
use rtnetlink::MulticastGroup;

use super::{
    KernelError,
    links::LinkKind,
    observe::{self, Raw},
    routes::{Neighbour, Route},
    rtnl::{Rtnl, io_error},
};

/// How long an event that never came can go unnoticed.
const READ_ANEW: Duration = Duration::from_secs(30);
/// Events of that many bytes may wait; beyond, everything is read.
const RECEIVE_BUFFER: usize = 4 << 20;
/// The largest message of which more than the first bytes matter: a route.
const MESSAGE: usize = 16 << 10;
/// One by one is dearer than all at once from about this share of the links on.
const ALL_AT_ONCE: usize = 8;

const GROUPS: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Neigh,
    MulticastGroup::Nsid,
];

/// What is known of the namespace, and the sockets that keep it so.
#[derive(Debug)]
pub(super) struct View {
    rtnl: Rtnl,
    events: Socket,
    read_at: Option<Instant>,
    pub(super) links: BTreeMap<u32, Raw>,
    ipv4_routes: Vec<Route>,
    ipv6_routes: Vec<Route>,
    pub(super) neighbours: Vec<Neighbour>,
    stale: Stale,
}

/// What has to be read again.
#[derive(Debug, Default)]
struct Stale {
    /// Also what no event can name.
    everything: bool,
    links: BTreeSet<u32>,
    ipv4_routes: bool,
    ipv6_routes: bool,
    neighbours: bool,
}

impl View {
    /// Of the namespace of this thread.
    pub(super) fn open() -> Result<Self, KernelError> {
        let failed = |error: std::io::Error| io_error("listen to the kernel's events", &error);
        let mut events = Socket::new(NETLINK_ROUTE).map_err(failed)?;
        events.bind(&SocketAddr::new(0, 0)).map_err(failed)?;
        for group in GROUPS {
            events.add_membership(group as u32).map_err(failed)?;
        }
        // A far end that moves from one namespace to another is heard of there only; without the right to hear that
        // (`NetlinkKernel::events` says so) it is found when all is read anew.
        let _ = events.set_listen_all_namespaces(true);
        setsockopt(&events, sockopt::RcvBufForce, &RECEIVE_BUFFER)
            .map_err(|errno| KernelError::errno("listen to the kernel's events", errno as i32))?;
        Ok(Self {
            rtnl: Rtnl::open_strict()?,
            events,
            read_at: None,
            links: BTreeMap::new(),
            ipv4_routes: Vec::new(),
            ipv6_routes: Vec::new(),
            neighbours: Vec::new(),
            stale: Stale { everything: true, ..Stale::default() },
        })
    }

    pub(super) fn routes(&self) -> impl Iterator<Item = &Route> {
        self.ipv4_routes.iter().chain(&self.ipv6_routes)
    }

    /// Reads what has changed; whether anything may be different.
    pub(super) fn refresh(&mut self) -> Result<bool, KernelError> {
        self.hear();
        if self.read_at.is_none_or(|read| read.elapsed() > READ_ANEW) {
            self.stale.everything = true;
        }
        let stale = std::mem::take(&mut self.stale);
        let changed = self.read(&stale);
        // What could not be read has to be read next time.
        self.stale.everything |= changed.is_err();
        changed
    }

    /// The kernel does not tell when a TUN gets another owner, or another program opens it.
    pub(super) fn doubt_tuns(&mut self) {
        let tuns = self.links.values().filter(|raw| raw.link.tun.is_some());
        self.stale.links.extend(tuns.map(|raw| raw.link.index));
    }

    fn read(&mut self, stale: &Stale) -> Result<bool, KernelError> {
        let links = self.affected(&stale.links);
        if stale.everything || links.len() * ALL_AT_ONCE > self.links.len() {
            self.links = observe::links(&mut self.rtnl)?;
        } else {
            links.iter().try_for_each(|index| self.read_link(*index))?;
        }
        // A link that goes down takes its IPv4 routes with it without a word (linux: `fib_sync_down_dev`).
        if stale.everything || stale.ipv4_routes || !links.is_empty() {
            self.ipv4_routes = routes(&mut self.rtnl, AddressFamily::Inet)?;
        }
        if stale.everything || stale.ipv6_routes {
            self.ipv6_routes = routes(&mut self.rtnl, AddressFamily::Inet6)?;
        }
        if stale.everything || stale.neighbours {
            self.neighbours = neighbours(&mut self.rtnl)?;
        }
        if stale.everything {
            self.read_at = Some(Instant::now());
        }
        let Stale { everything, links: _, ipv4_routes, ipv6_routes, neighbours } = *stale;
        Ok(everything || ipv4_routes || ipv6_routes || neighbours || !links.is_empty())
    }

    /// Those links, and what the kernel changes with them in silence.
    fn affected(&self, named: &BTreeSet<u32>) -> BTreeSet<u32> {
        let mut affected = named.clone();
        if named.is_empty() {
            return affected;
        }
        affected.extend(named.iter().filter_map(|index| self.links.get(index)?.link.master));
        // Their far ends, and all whose far end is elsewhere: a number there may be a number here.
        let far = |raw: &&Raw| {
            raw.link.kind == LinkKind::Veth
                && (raw.peer_nsid.is_some() || raw.peer.is_none_or(|peer| named.contains(&peer)))
        };
        affected.extend(self.links.values().filter(far).map(|raw| raw.link.index));
        affected
    }

    fn read_link(&mut self, index: u32) -> Result<(), KernelError> {
        let gone = |error: &KernelError| error.errno == Some(Errno::ENODEV as i32);
        match observe::one_link(&mut self.rtnl, index) {
            Ok(raw) => {
                // A bridge has taken something from it perhaps.
                let master = raw.link.master;
                let before = self.links.insert(index, raw);
                match master.filter(|_| before.is_none_or(|before| before.link.master != master)) {
                    Some(master) => self.read_link(master),
                    None => Ok(()),
                }
            }
            Err(error) if gone(&error) => {
                self.links.remove(&index);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Takes every event that waits.
    fn hear(&mut self) {
        let mut buffer = [0; MESSAGE];
        loop {
            match recv(self.events.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => self.note(buffer.get(..length).unwrap_or_default()),
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => {}
                // Lost, or what nobody foresaw.
                Err(errno) => {
                    self.stale.everything = true;
                    if errno != Errno::ENOBUFS {
                        return;
                    }
                }
            }
        }
    }

    /// One event: which of the three headers it has, and what that names. All begin with the family.
    fn note(&mut self, message: &[u8]) {
        let Some((header, body)) = message.split_at_checked(16) else { return };
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let family = body.first().copied().map_or(0, i32::from);
        let index = body.get(4..8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes);
        match kind {
            libc::RTM_NEWLINK | libc::RTM_DELLINK | libc::RTM_NEWADDR | libc::RTM_DELADDR => {
                self.stale.links.insert(index);
            }
            libc::RTM_NEWROUTE | libc::RTM_DELROUTE if family == libc::AF_INET => {
                self.stale.ipv4_routes = true
            }
            libc::RTM_NEWROUTE | libc::RTM_DELROUTE if family == libc::AF_INET6 => {
                self.note_ipv6_route(message)
            }
            // Stations of bridges are told of by the same words.
            libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH if [libc::AF_INET, libc::AF_INET6].contains(&family) => {
                // linux/neighbour.h NUD_PERMANENT
                let permanent = body.get(8).is_some_and(|state| state & 0x80 != 0);
                let known = || self.neighbours.iter().any(|neighbour| neighbour.interface == index);
                self.stale.neighbours |= permanent || known();
            }
            libc::RTM_NEWNSID | libc::RTM_DELNSID => {
                let pairs = self.links.values().filter(|raw| raw.link.kind == LinkKind::Veth);
                self.stale.links.extend(pairs.map(|raw| raw.link.index));
            }
            _ => {}
        }
    }

    /// Each link has a route of its own for its link-local network: with thousands of links these are what there is to
    /// read, and simple enough to be kept by hand. Others are read again.
    fn note_ipv6_route(&mut self, message: &[u8]) {
        let Ok(NetlinkMessage { payload: NetlinkPayload::InnerMessage(message), .. }) =
            NetlinkMessage::<RouteNetlinkMessage>::deserialize(message)
        else {
            self.stale.ipv6_routes = true;
            return;
        };
        let (route, added) = match message {
            RouteNetlinkMessage::NewRoute(message) => (Route::read(message), true),
            RouteNetlinkMessage::DelRoute(message) => (Route::read(message), false),
            _ => return,
        };
        // The kernel's own table is not kept.
        let Some(route) = route else { return };
        if !is_of_one_link(&route) {
            self.stale.ipv6_routes = true;
            return;
        }
        let key = |route: &Route| (route.destination, route.interface, route.metric, route.table);
        self.ipv6_routes.retain(|known| key(known) != key(&route));
        if added {
            self.ipv6_routes.push(route);
        }
    }
}

fn is_of_one_link(route: &Route) -> bool {
    let several =
        |attribute: &_| matches!(attribute, netlink_packet_route::route::RouteAttribute::MultiPath(_));
    let local = match route.destination {
        ipnet::IpNet::V6(net) => net.addr().is_unicast_link_local() || net.addr().is_multicast(),
        ipnet::IpNet::V4(_) => false,
    };
    local && route.gateway.is_none() && route.interface > 0 && !route.rest.iter().any(several)
}

fn routes(rtnl: &mut Rtnl, family: AddressFamily) -> Result<Vec<Route>, KernelError> {
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    let answers = rtnl.dump("list routes", &RouteNetlinkMessage::GetRoute(request))?;
    let routes = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewRoute(route) => Route::read(route),
        _ => None,
    });
    Ok(routes.collect())
}

/// The kernel keeps no more than some thousand neighbours, so reading them all is cheap.
fn neighbours(rtnl: &mut Rtnl) -> Result<Vec<Neighbour>, KernelError> {
    let request = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
    let answers = rtnl.dump("list neighbours", &request)?;
    let neighbours = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewNeighbour(message) => Neighbour::read(message),
        _ => None,
    });
    Ok(neighbours.collect())
}

/// Asks for links without their counters, which take longer to write than all the rest.
pub(super) fn link_request(index: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    RouteNetlinkMessage::GetLink(message)
}

/// Asks for the addresses of one link, of all when it is 0. Only a strict socket listens to that.
pub(super) fn address_request(index: u32) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    RouteNetlinkMessage::GetAddress(message)
}
