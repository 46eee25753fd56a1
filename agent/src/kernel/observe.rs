//! From rtnetlink's messages to [`Observed`].

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    os::fd::AsRawFd,
    sync::Arc,
};

use ipnet::IpNet;
use netlink_packet_core::Nla;
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
    link::{
        BridgePortState, BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData,
        InfoTun, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, State,
        VlanProtocol as WireVlanProtocol,
    },
    nsid::{NsidAttribute, NsidMessage},
};

use nix::errno::Errno;

use super::{
    KernelError, forwarding,
    links::{
        Address, BridgePort, Link, LinkKind, Links, MAKING, Mac, Observed, OperState, Peer, Place, PortState,
        ROOM_ALIAS, TunInfo, VlanTag,
    },
    ovs::Presence,
    places::Places,
    routes::Route,
    rtnl::Rtnl,
    view::{self, View},
};
use crate::model::VlanProtocol;

/// A link with the reference to its peer still in the kernel's numbers.
#[derive(Debug, Clone)]
pub(super) struct Raw {
    pub(super) link: Arc<Link>,
    /// IFLA_LINK: the peer's index, where it lives.
    pub(super) peer: Option<u32>,
    /// IFLA_LINK_NETNSID: where it lives, when that is another namespace.
    pub(super) peer_nsid: Option<i32>,
}

/// Reads what has changed since `last`. `own` is the worker's own namespace.
pub(super) fn observe(
    view: &mut View,
    places: &mut Places,
    rtnl: &mut Rtnl,
    own: &File,
    last: &Arc<Observed>,
) -> Result<Arc<Observed>, KernelError> {
    let changed_here = view.refresh()?;
    let heard = view.heard_elsewhere();
    let changed_elsewhere = places.refresh(rtnl, own, &heard)?;
    let ip_forward = forwarding::ipv4()?;
    let ipv6_forward = forwarding::ipv6()?;
    let as_before = !changed_here && !changed_elsewhere;
    if as_before && (last.ip_forward, last.ipv6_forward) == (ip_forward, ipv6_forward) {
        return Ok(Arc::clone(last));
    }
    let routes: Vec<Route> = view.routes().cloned().collect();
    Ok(Arc::new(Observed {
        links: resolve(view.links.values_mut(), &Place::Here, &places.by_number()),
        namespaces: places.namespaces(),
        own_names: places.own_names().to_vec(),
        default_route: default_route(&routes),
        routes,
        neighbours: view.neighbours.clone(),
        ip_forward,
        ipv6_forward,
        ovs: Presence::Absent,
    }))
}

/// The number that the socket's namespace knows another one by.
pub(super) fn nsid(rtnl: &mut Rtnl, namespace: &File) -> Result<Option<i32>, KernelError> {
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

/// Writes down where far ends are, of those links of which that is not known yet or has changed.
pub(super) fn resolve<'a>(
    raw: impl Iterator<Item = &'a mut Raw>,
    place: &Place,
    ids: &HashMap<i32, Place>,
) -> Links {
    raw.map(|Raw { link, peer, peer_nsid }| {
        let at = match peer_nsid {
            None => Some(place),
            Some(id) => ids.get(id),
        };
        let far = peer.zip(at).map(|(index, place)| Peer { place: place.clone(), index });
        if link.peer != far {
            Arc::make_mut(link).peer = far;
        }
        Arc::clone(link)
    })
    .collect()
}

/// Links with their addresses, of the socket's namespace, by index.
pub(super) fn links(rtnl: &mut Rtnl) -> Result<BTreeMap<u32, Raw>, KernelError> {
    let answers = rtnl.dump("list links", &view::link_request(0))?;
    let mut links: BTreeMap<u32, Raw> = answers.into_iter().filter_map(new_link).collect();
    for message in addresses(rtnl, 0)? {
        // Not found: a link that came between the two dumps. The next look will have it.
        let Some(raw) = links.get_mut(&message.header.index) else { continue };
        Arc::make_mut(&mut raw.link).addresses.extend(address(&message));
    }
    Ok(links)
}

/// One link with its addresses. The socket has to be strict.
pub(super) fn one_link(rtnl: &mut Rtnl, index: u32) -> Result<Raw, KernelError> {
    let answers = rtnl.get("look at a link", view::link_request(index))?;
    let gone = || KernelError::errno("look at a link", Errno::ENODEV as i32);
    let (_, mut raw) = answers.into_iter().find_map(new_link).ok_or_else(gone)?;
    let own = addresses(rtnl, index)?.into_iter().filter(|message| message.header.index == index);
    Arc::make_mut(&mut raw.link).addresses = own.filter_map(|message| address(&message)).collect();
    Ok(raw)
}

fn new_link(answer: RouteNetlinkMessage) -> Option<(u32, Raw)> {
    match answer {
        RouteNetlinkMessage::NewLink(message) => Some((message.header.index, link(message))),
        _ => None,
    }
    .filter(|(_, raw)| raw.link.alias.as_deref() != Some(ROOM_ALIAS))
}

fn addresses(rtnl: &mut Rtnl, index: u32) -> Result<Vec<AddressMessage>, KernelError> {
    let answers = rtnl.dump("list addresses", &view::address_request(index))?;
    let addresses = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewAddress(message) => Some(message),
        _ => None,
    });
    Ok(addresses.collect())
}

/// One link by itself: without its addresses and its peer.
pub(super) fn single(message: LinkMessage) -> Link {
    Arc::unwrap_or_clone(link(message).link)
}

fn link(message: LinkMessage) -> Raw {
    let header = message.header;
    let loopback = header.flags.contains(LinkFlags::Loopback);
    let kind = if loopback { LinkKind::Loopback } else { LinkKind::Physical };
    let mut link = Link { up: header.flags.contains(LinkFlags::Up), ..Link::new(header.index, "", kind) };
    let (mut peer, mut peer_nsid) = (None, None);
    let mut carrier = false;
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
            LinkAttribute::Carrier(on) => carrier = on != 0,
            LinkAttribute::OperState(state) => link.operstate = operstate(state),
            LinkAttribute::Link(index) => peer = Some(index).filter(|index| *index != 0),
            LinkAttribute::LinkNetNsId(id) => peer_nsid = Some(id),
            LinkAttribute::LinkInfo(infos) => infos.into_iter().for_each(|info| take_info(&mut link, info)),
            _ => {}
        }
    }
    // A TUN or TAP has a carrier while a program has it open.
    if let Some(tun) = &mut link.tun {
        tun.open = carrier;
    }
    // The kernel has one kind for both; only a TAP has Ethernet frames.
    if link.kind == LinkKind::Tun && header.link_layer_type == LinkLayerType::Ether {
        link.kind = LinkKind::Tap;
    }
    // Only a veth has a peer; of a VLAN, IFLA_LINK is its parent.
    if link.kind != LinkKind::Veth {
        link.parent = peer.take().filter(|index| peer_nsid.is_none() && *index != link.index);
    }
    Raw { link: Arc::new(link), peer, peer_nsid }
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
            link.ageing = infos.iter().find_map(|info| match info {
                // In hundredths of a second (USER_HZ).
                InfoBridge::AgeingTime(time) => Some(time.saturating_mul(10)),
                _ => None,
            });
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

/// The interface of the IPv4 default route with the lowest metric.
pub(super) fn default_route(routes: &[Route]) -> Option<u32> {
    let defaults = routes.iter().filter(|route| route.is_default() && route.destination.addr().is_ipv4());
    defaults
        .filter(|route| route.interface > 0)
        .map(|route| (route.metric, route.interface))
        .min()
        .map(|best| best.1)
}
