//! From rtnetlink's messages to [`Observed`].

use std::{collections::HashMap, fs::File, os::fd::AsRawFd};

use ipnet::IpNet;
use netlink_packet_core::Nla;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
    link::{
        BridgePortState, BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData,
        InfoTun, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, State,
        VlanProtocol as WireVlanProtocol,
    },
    neighbour::NeighbourMessage,
    nsid::{NsidAttribute, NsidMessage},
    route::RouteMessage,
};

use super::{
    KernelError, forwarding,
    links::{
        Address, BridgePort, Link, LinkKind, MAKING, Mac, Namespace, Observed, OperState, Peer, Place,
        PortState, ROOM_ALIAS, TunInfo, VlanTag,
    },
    netns,
    ovs::Presence,
    routes::{Neighbour, Route},
    rtnl::Rtnl,
};
use crate::model::VlanProtocol;

/// A link with the reference to its peer still in the kernel's numbers.
struct Raw {
    link: Link,
    /// IFLA_LINK: the peer's index, where it lives.
    peer: Option<u32>,
    /// IFLA_LINK_NETNSID: where it lives, when that is another namespace.
    peer_nsid: Option<i32>,
}

struct OtherPlace {
    name: String,
    file: File,
    links: Vec<Raw>,
}

/// Reads everything. `own` is the worker's own namespace.
pub(super) fn observe(rtnl: &mut Rtnl, own: &File) -> Result<Observed, KernelError> {
    let here = links(rtnl)?;
    let mut others = Vec::new();
    for name in netns::names()? {
        // One that vanishes or is only half made must not hide all the rest.
        let Ok(file) = netns::open(&name) else { continue };
        let links = match netns::inside(&file, &name, || links(&mut Rtnl::open()?)) {
            Ok(links) => links,
            Err(error) if is_no_namespace(&error) => continue,
            Err(error) => return Err(error),
        };
        others.push(OtherPlace { name, file, links });
    }
    let (routes, neighbours) = (routes(rtnl)?, neighbours(rtnl)?);
    let default_route = default_route(&routes);
    let ip_forward = forwarding::ipv4()?;
    let ipv6_forward = forwarding::ipv6()?;

    let mut ids = HashMap::new();
    for other in &others {
        if let Some(id) = nsid(rtnl, &other.file)? {
            ids.insert(id, Place::Named(other.name.clone()));
        }
    }
    let links = resolve(here, &Place::Here, &ids);
    let mut namespaces = Vec::new();
    for index in 0..others.len() {
        let ids = if others[index].links.iter().any(|raw| raw.peer_nsid.is_some()) {
            ids_seen_from(&others[index], own, &others)?
        } else {
            HashMap::new()
        };
        let other = &mut others[index];
        let place = Place::Named(other.name.clone());
        let links = resolve(std::mem::take(&mut other.links), &place, &ids);
        namespaces.push(Namespace { name: other.name.clone(), links });
    }
    Ok(Observed {
        links,
        namespaces,
        routes,
        neighbours,
        default_route,
        ip_forward,
        ipv6_forward,
        ovs: Presence::Absent,
    })
}

/// A file under `/run/netns` that no namespace is mounted on: EINVAL of setns.
fn is_no_namespace(error: &KernelError) -> bool {
    error.errno == Some(nix::errno::Errno::EINVAL as i32)
}

/// How the other namespaces are numbered in one of them.
fn ids_seen_from(
    from: &OtherPlace,
    own: &File,
    others: &[OtherPlace],
) -> Result<HashMap<i32, Place>, KernelError> {
    let files: Vec<(Place, &File)> = std::iter::once((Place::Here, own))
        .chain(others.iter().map(|other| (Place::Named(other.name.clone()), &other.file)))
        .collect();
    netns::inside(&from.file, &from.name, || {
        let mut rtnl = Rtnl::open()?;
        let mut ids = HashMap::new();
        for (place, file) in files {
            if let Some(id) = nsid(&mut rtnl, file)? {
                ids.insert(id, place);
            }
        }
        Ok(ids)
    })
}

/// The number that the socket's namespace knows another one by.
fn nsid(rtnl: &mut Rtnl, namespace: &File) -> Result<Option<i32>, KernelError> {
    let mut message = NsidMessage::default();
    message.attributes.push(NsidAttribute::Fd(namespace.as_raw_fd().cast_unsigned()));
    let answers = rtnl.get("number a network namespace", RouteNetlinkMessage::GetNsId(message))?;
    let id = answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewNsId(message) => {
            message.attributes.into_iter().find_map(|attribute| match attribute {
                NsidAttribute::Id(id) if id >= 0 => Some(id),
                _ => None,
            })
        }
        _ => None,
    });
    Ok(id)
}

fn resolve(raw: Vec<Raw>, place: &Place, ids: &HashMap<i32, Place>) -> Vec<Link> {
    raw.into_iter()
        .map(|Raw { mut link, peer, peer_nsid }| {
            let at = match peer_nsid {
                None => Some(place.clone()),
                Some(id) => ids.get(&id).cloned(),
            };
            link.peer = peer.zip(at).map(|(index, place)| Peer { place, index });
            link
        })
        .collect()
}

/// Links with their addresses, of the socket's namespace, by index.
fn links(rtnl: &mut Rtnl) -> Result<Vec<Raw>, KernelError> {
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let mut links: Vec<Raw> = rtnl
        .dump("list links", &request)?
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(message) => Some(link(message)),
            _ => None,
        })
        .filter(|raw| raw.link.alias.as_deref() != Some(ROOM_ALIAS))
        .collect();
    links.sort_by_key(|raw| raw.link.index);
    let by_index: HashMap<u32, usize> =
        links.iter().enumerate().map(|(position, raw)| (raw.link.index, position)).collect();
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    for answer in rtnl.dump("list addresses", &request)? {
        let RouteNetlinkMessage::NewAddress(message) = answer else { continue };
        // Not found: a link that came between the two dumps. The next look will have it.
        let Some(position) = by_index.get(&message.header.index) else { continue };
        links[*position].link.addresses.extend(address(&message));
    }
    Ok(links)
}

/// One link by itself: without its addresses and its peer.
pub(super) fn single(message: LinkMessage) -> Link {
    link(message).link
}

fn link(message: LinkMessage) -> Raw {
    let header = message.header;
    let loopback = header.flags.contains(LinkFlags::Loopback);
    let mut link = Link {
        index: header.index,
        name: String::new(),
        kind: if loopback { LinkKind::Loopback } else { LinkKind::Physical },
        up: header.flags.contains(LinkFlags::Up),
        operstate: OperState::Unknown,
        mtu: 0,
        mac: None,
        alias: None,
        half_made: false,
        master: None,
        peer: None,
        addresses: Vec::new(),
        port: None,
        parent: None,
        vlan: None,
        tun: None,
    };
    let (mut peer, mut peer_nsid) = (None, None);
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(bytes) if header.link_layer_type == LinkLayerType::Ether => {
                link.mac = bytes.try_into().ok().map(Mac);
            }
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::Group(group) => link.half_made = group == MAKING,
            LinkAttribute::Controller(index) => link.master = Some(index).filter(|index| *index != 0),
            LinkAttribute::OperState(state) => link.operstate = operstate(state),
            LinkAttribute::Link(index) => peer = Some(index).filter(|index| *index != 0),
            LinkAttribute::LinkNetNsId(id) => peer_nsid = Some(id),
            LinkAttribute::LinkInfo(infos) => infos.into_iter().for_each(|info| take_info(&mut link, info)),
            _ => {}
        }
    }
    // The kernel has one kind for both; only a TAP has Ethernet frames.
    if link.kind == LinkKind::Tun && header.link_layer_type == LinkLayerType::Ether {
        link.kind = LinkKind::Tap;
    }
    // Only a veth has a peer; of a VLAN, IFLA_LINK is its parent.
    if link.kind != LinkKind::Veth {
        link.parent = peer.take().filter(|index| peer_nsid.is_none() && *index != link.index);
    }
    Raw { link, peer, peer_nsid }
}

fn take_info(link: &mut Link, info: LinkInfo) {
    match info {
        LinkInfo::Kind(kind) => {
            link.kind = match kind {
                InfoKind::Bridge => LinkKind::Bridge { stp: false },
                InfoKind::Veth => LinkKind::Veth,
                InfoKind::Vlan => LinkKind::Vlan,
                InfoKind::Bond => LinkKind::Bond,
                InfoKind::Tun => LinkKind::Tun,
                other => LinkKind::Other(other.to_string()),
            }
        }
        LinkInfo::Data(InfoData::Bridge(infos)) => {
            let stp = infos.iter().any(
                |info| matches!(info, InfoBridge::StpState(state) if *state != BridgeStpState::Disabled),
            );
            link.kind = LinkKind::Bridge { stp };
        }
        LinkInfo::Data(InfoData::Vlan(infos)) => link.vlan = Some(vlan(&infos)),
        LinkInfo::Data(InfoData::Tun(infos)) => link.tun = Some(tun(&infos)),
        LinkInfo::PortData(InfoPortData::BridgePort(infos)) => link.port = Some(port(&infos)),
        _ => {}
    }
}

fn vlan(infos: &[InfoVlan]) -> VlanTag {
    let mut tag = VlanTag { id: 0, protocol: VlanProtocol::Dot1q };
    for info in infos {
        match info {
            InfoVlan::Id(id) => tag.id = *id,
            InfoVlan::Protocol(WireVlanProtocol::Ieee8021Ad) => tag.protocol = VlanProtocol::Dot1ad,
            _ => {}
        }
    }
    tag
}

/// The attributes of linux/if_link.h, which netlink-packet-route has no names for yet.
fn tun(infos: &[InfoTun]) -> TunInfo {
    const OWNER: u16 = 1;
    const GROUP: u16 = 2;
    const VNET_HDR: u16 = 5;
    const PERSIST: u16 = 6;
    const MULTI_QUEUE: u16 = 7;
    let mut tun = TunInfo::default();
    for info in infos {
        let mut value = vec![0; info.value_len()];
        info.emit_value(&mut value);
        let number = value.as_slice().try_into().ok().map(u32::from_ne_bytes);
        let flag = value.first().is_some_and(|byte| *byte != 0);
        match info.kind() {
            OWNER => tun.owner = number,
            GROUP => tun.group = number,
            VNET_HDR => tun.vnet_hdr = flag,
            PERSIST => tun.persist = flag,
            MULTI_QUEUE => tun.multi_queue = flag,
            _ => {}
        }
    }
    tun
}

fn port(infos: &[InfoBridgePort]) -> BridgePort {
    let state = infos.iter().find_map(|info| match info {
        InfoBridgePort::State(state) => Some(match state {
            BridgePortState::Disabled => PortState::Disabled,
            BridgePortState::Listening => PortState::Listening,
            BridgePortState::Learning => PortState::Learning,
            BridgePortState::Blocking => PortState::Blocking,
            _ => PortState::Forwarding,
        }),
        _ => None,
    });
    let locked = infos.contains(&InfoBridgePort::Locked(true));
    let silent = infos.contains(&InfoBridgePort::BroadcastFlood(false));
    BridgePort {
        state: state.unwrap_or(PortState::Disabled),
        guarded: locked && silent,
        isolated: infos.contains(&InfoBridgePort::Isolated(true)),
        hairpin: infos.contains(&InfoBridgePort::HairpinMode(true)),
    }
}

fn operstate(state: State) -> OperState {
    match state {
        State::NotPresent => OperState::NotPresent,
        State::Down => OperState::Down,
        State::LowerLayerDown => OperState::LowerLayerDown,
        State::Testing => OperState::Testing,
        State::Dormant => OperState::Dormant,
        State::Up => OperState::Up,
        _ => OperState::Unknown,
    }
}

fn address(message: &AddressMessage) -> Option<Address> {
    let mut peer_or_own = None;
    let mut local = None;
    let mut flags = AddressFlags::empty();
    let mut lifetime = u32::MAX;
    let mut broadcast = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(ip) => peer_or_own = Some(*ip),
            // Of a point-to-point link, IFA_ADDRESS is the other side.
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Flags(found) => flags = *found,
            AddressAttribute::Broadcast(ip) => broadcast = Some(*ip),
            AddressAttribute::CacheInfo(info) => lifetime = info.ifa_valid,
            _ => {}
        }
    }
    let ip = local.or(peer_or_own)?;
    Some(Address {
        net: IpNet::new(ip, message.header.prefix_len).ok()?,
        global: message.header.scope == AddressScope::Universe,
        secondary: flags.contains(AddressFlags::Secondary),
        broadcast,
        prefix_route: !flags.contains(AddressFlags::Noprefixroute),
        dynamic: lifetime != u32::MAX,
    })
}

/// Both families.
fn routes(rtnl: &mut Rtnl) -> Result<Vec<Route>, KernelError> {
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        let answers = rtnl.dump("list routes", &RouteNetlinkMessage::GetRoute(request))?;
        routes.extend(answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(route) => Route::read(route),
            _ => None,
        }));
    }
    Ok(routes)
}

/// The kernel keeps no more than some thousand neighbours, so reading them all is cheap.
fn neighbours(rtnl: &mut Rtnl) -> Result<Vec<Neighbour>, KernelError> {
    let request = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
    let answers = rtnl.dump("list neighbours", &request)?;
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewNeighbour(message) => Neighbour::read(message),
            _ => None,
        })
        .collect())
}

/// The interface of the IPv4 default route with the lowest metric.
pub(super) fn default_route(routes: &[Route]) -> Option<u32> {
    let defaults = routes.iter().filter(|route| route.is_default() && route.destination.addr().is_ipv4());
    defaults
        .filter(|route| route.interface > 0)
        .map(|route| (route.metric, route.interface))
        .min()
        .map(|best| best.1)
}
