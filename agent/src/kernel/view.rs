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
    fs::File,
    io::IoSliceMut,
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
    sys::socket::{ControlMessageOwned, MsgFlags, UnknownCmsg, recvmsg, setsockopt, sockopt},
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
    own: File,
    own_number: Option<i32>,
    rtnl: Rtnl,
    events: Socket,
    read_at: Option<Instant>,
    pub(super) links: BTreeMap<u32, Raw>,
    ipv4_routes: Vec<Route>,
    ipv6_routes: Vec<Route>,
    pub(super) neighbours: Vec<Neighbour>,
    stale: Stale,
    /// Whether the events of other namespaces are heard as well.
    hears_elsewhere: bool,
    elsewhere: Heard,
}

/// What was heard of other namespaces.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// Events were lost, or are not heard at all.
    pub(super) everything: bool,
    /// Of which, by their numbers in the worker's own.
    pub(super) numbers: BTreeSet<i32>,
    /// Links that have left a namespace, also the worker's own, which is the one without a number: of a pair with one end
    /// there, the kernel says nothing about the other.
    pub(super) left: BTreeSet<(Option<i32>, u32)>,
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
    /// Of the namespace of this thread, which `own` is.
    pub(super) fn open(own: File) -> Result<Self, KernelError> {
        let failed = |error: std::io::Error| io_error("listen to the kernel's events", &error);
        let mut events = Socket::new(NETLINK_ROUTE).map_err(failed)?;
        events.bind(&SocketAddr::new(0, 0)).map_err(failed)?;
        for group in GROUPS {
            events.add_membership(group as u32).map_err(failed)?;
        }
        // A far end that moves from one namespace to another is heard of there only; without the right to hear that
        // (`NetlinkKernel::events` says so) it is found when all is read anew.
        let hears_elsewhere = events.set_listen_all_namespaces(true).is_ok();
        setsockopt(&events, sockopt::RcvBufForce, &RECEIVE_BUFFER)
            .map_err(|errno| KernelError::errno("listen to the kernel's events", errno as i32))?;
        let mut rtnl = Rtnl::open_strict()?;
        Ok(Self {
            own_number: observe::nsid(&mut rtnl, &own)?,
            own,
            rtnl,
            events,
            read_at: None,
            links: BTreeMap::new(),
            ipv4_routes: Vec::new(),
            ipv6_routes: Vec::new(),
            neighbours: Vec::new(),
            stale: Stale { everything: true, ..Stale::default() },
            hears_elsewhere,
            elsewhere: Heard { everything: true, ..Heard::default() },
        })
    }

    /// What was heard of other namespaces up to the last [`View::refresh`].
    pub(super) fn heard_elsewhere(&mut self) -> Heard {
        let deaf = Heard { everything: !self.hears_elsewhere, ..Heard::default() };
        std::mem::replace(&mut self.elsewhere, deaf)
    }

    /// A look has failed behind [`View::refresh`], and nobody has seen what was read: the next one begins anew.
    pub(super) fn distrust(&mut self) {
        self.stale.everything = true;
        self.elsewhere.everything = true;
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
        // Their far ends, and those that may have one again.
        let far = |raw: &&Raw| {
            let elsewhere = raw.peer_nsid.is_some();
            raw.link.kind == LinkKind::Veth
                && raw.peer.is_none_or(|peer| {
                    !elsewhere && named.contains(&peer) || elsewhere && !self.hears_elsewhere
                })
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
        let mut control = nix::cmsg_space!(i32);
        loop {
            match receive(&self.events, &mut buffer, &mut control) {
                Ok((length, place)) => {
                    let message = buffer.get(..length).unwrap_or_default();
                    match place.filter(|place| Some(*place) != self.own_number(message)) {
                        None => self.note(message),
                        Some(place) => self.note_elsewhere(message, place),
                    }
                }
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => {}
                // Lost, or what nobody foresaw.
                Err(errno) => {
                    self.stale.everything = true;
                    self.elsewhere.everything = true;
                    if errno != Errno::ENOBUFS {
                        return;
                    }
                }
            }
        }
    }

    /// The worker's own namespace may have a number as well; this message may be the one that says so.
    fn own_number(&mut self, message: &[u8]) -> Option<i32> {
        if self.own_number.is_none() && Event::read(message)?.kind == libc::RTM_NEWNSID {
            self.own_number = observe::nsid(&mut self.rtnl, &self.own).ok().flatten();
        }
        self.own_number
    }

    /// One event.
    fn note(&mut self, message: &[u8]) {
        let Some(Event { kind, family, index, state }) = Event::read(message) else { return };
        if kind == libc::RTM_DELLINK {
            self.elsewhere.left.insert((None, index));
        }
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
                let permanent = state & 0x80 != 0;
                let known = || self.neighbours.iter().any(|neighbour| neighbour.interface == index);
                self.stale.neighbours |= permanent || known();
            }
            libc::RTM_NEWNSID | libc::RTM_DELNSID => {
                let far = |raw: &&Raw| {
                    raw.link.kind == LinkKind::Veth && (raw.peer_nsid.is_some() || raw.peer.is_none())
                };
                self.stale.links.extend(self.links.values().filter(far).map(|raw| raw.link.index));
            }
            _ => {}
        }
    }

    /// One event of the namespace with that number in the worker's own.
    fn note_elsewhere(&mut self, message: &[u8], place: i32) {
        let Some(Event { kind, index, .. }) = Event::read(message) else { return };
        match kind {
            libc::RTM_NEWLINK | libc::RTM_DELLINK => {
                self.elsewhere.numbers.insert(place);
                if kind == libc::RTM_DELLINK {
                    self.elsewhere.left.insert((Some(place), index));
                }
                let far = |raw: &&Raw| (raw.peer, raw.peer_nsid) == (Some(index), Some(place));
                self.stale.links.extend(self.links.values().filter(far).map(|raw| raw.link.index));
            }
            libc::RTM_NEWADDR | libc::RTM_DELADDR | libc::RTM_NEWNSID | libc::RTM_DELNSID => {
                self.elsewhere.numbers.insert(place);
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

/// What the first bytes of a message say. All of the headers that matter begin with the family; index and state are
/// where links, addresses and neighbours have them.
struct Event {
    kind: u16,
    family: i32,
    index: u32,
    state: u8,
}

impl Event {
    fn read(message: &[u8]) -> Option<Self> {
        let (header, body) = message.split_at_checked(16)?;
        Some(Self {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            family: body.first().copied().map_or(0, i32::from),
            index: body.get(4..8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes),
            state: body.get(8).copied().unwrap_or_default(),
        })
    }
}

/// The length of the next message, and the number of the namespace that it is from when that is another one.
fn receive(socket: &Socket, buffer: &mut [u8], control: &mut [u8]) -> nix::Result<(usize, Option<i32>)> {
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(control), MsgFlags::MSG_DONTWAIT)?;
    let place = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Unknown(UnknownCmsg { cmsg_header, data_bytes })
            if (cmsg_header.cmsg_level, cmsg_header.cmsg_type)
                == (libc::SOL_NETLINK, libc::NETLINK_LISTEN_ALL_NSID) =>
        {
            Some(i32::from_ne_bytes(data_bytes.get(..4)?.try_into().ok()?))
        }
        _ => None,
    });
    Ok((message.bytes, place))
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
