//! What steps do to a machine's links, and what its kernel then does by itself.

use nix::errno::Errno;

use crate::kernel::{
    links::{
        ALIAS, Address, At, BridgePort, Link, LinkKind, Links, Mac, Observed, OperState, Peer, Place,
        PortState, TunInfo,
    },
    observe,
    step::LinkStep,
};

/// A link that is up.
pub(crate) fn device(index: u32, name: &str, kind: LinkKind) -> Link {
    Link {
        up: true,
        operstate: OperState::Up,
        mtu: 1500,
        mac: Some(mac_of(index)),
        ..Link::new(index, name, kind)
    }
}

fn mac_of(index: u32) -> Mac {
    let [a, b, c, d] = index.to_be_bytes();
    Mac([2, 0, a, b, c, d])
}

pub(super) fn global(net: &str) -> Address {
    // Only called with literals.
    Address::plain(net.parse().unwrap_or_default())
}

type Step<T = ()> = Result<T, Errno>;

fn links_mut<'a>(world: &'a mut Observed, place: &Place) -> Step<&'a mut Links> {
    match place {
        Place::Here => Ok(&mut world.links),
        Place::Named(name) => world
            .namespaces
            .iter_mut()
            .find(|ns| ns.name == *name)
            .map(|ns| &mut ns.links)
            .ok_or(Errno::ENOENT),
    }
}

fn link_mut<'a>(world: &'a mut Observed, at: &At) -> Step<&'a mut Link> {
    links_mut(world, &at.place)?.iter_mut().find(|link| link.name == at.name).ok_or(Errno::ENODEV)
}

fn new_link(world: &mut Observed, at: &At, kind: LinkKind, index: Option<u32>) -> Step<Link> {
    // Indexes are unique on the whole fake machine, so that a moved link can keep its own.
    let free = world.everywhere().map(|(_, link)| link.index).max().unwrap_or(0) + 1;
    let links = links_mut(world, &at.place)?;
    if links.iter().any(|link| link.name == at.name) {
        return Err(Errno::EEXIST);
    }
    if index.is_some_and(|index| links.iter().any(|link| link.index == index)) {
        return Err(Errno::EBUSY);
    }
    let mut link = device(index.unwrap_or(free), &at.name, kind);
    link.up = false;
    link.operstate = OperState::Down;
    link.alias = Some(ALIAS.to_owned());
    Ok(link)
}

pub(super) fn apply(world: &mut Observed, step: &LinkStep) -> Step {
    match step {
        LinkStep::CreateBridge(bridge) => {
            let at = At::here(&bridge.name);
            let mut link = new_link(world, &at, LinkKind::Bridge { stp: bridge.stp }, bridge.index)?;
            link.mtu = bridge.mtu.unwrap_or(link.mtu);
            link.mac = bridge.mac.or(link.mac);
            insert(world, &at.place, link)
        }
        LinkStep::CreateVeth([one, two]) => {
            let mut made = Vec::new();
            for end in [one, two] {
                let mut link = new_link(world, &end.at, LinkKind::Veth, end.index)?;
                link.mtu = end.mtu.unwrap_or(link.mtu);
                link.mac = end.mac.or(link.mac);
                insert(world, &end.at.place, link.clone())?;
                made.push(Peer { place: end.at.place.clone(), index: link.index });
            }
            link_mut(world, &one.at)?.peer = made.pop();
            link_mut(world, &two.at)?.peer = made.pop();
            Ok(())
        }
        LinkStep::CreateTun(tun) => {
            let at = At::here(&tun.name);
            let kind = if tun.tap { LinkKind::Tap } else { LinkKind::Tun };
            let mut link = new_link(world, &at, kind, tun.index)?;
            link.mtu = tun.mtu.unwrap_or(link.mtu);
            link.mac = tun.mac.or(link.mac).filter(|_| tun.tap);
            link.tun = Some(TunInfo {
                owner: tun.owner,
                group: tun.group,
                persist: true,
                multi_queue: tun.multi_queue,
                vnet_hdr: tun.vnet_hdr,
                open: false,
            });
            insert(world, &at.place, link)
        }
        LinkStep::CreateVlan(vlan) => {
            let at = At::here(&vlan.name);
            let parent = link_mut(world, &At::here(&vlan.parent))?.clone();
            if world.on_top_of(&at.place, &parent).any(|link| link.vlan == Some(vlan.tag)) {
                return Err(Errno::EEXIST);
            }
            let mut link = new_link(world, &at, LinkKind::Vlan, vlan.index)?;
            link.mtu = vlan.mtu.unwrap_or(parent.mtu);
            link.mac = vlan.mac.or(parent.mac);
            (link.parent, link.vlan) = (Some(parent.index), Some(vlan.tag));
            insert(world, &at.place, link)
        }
        LinkStep::DeleteLink(at) => {
            let link = link_mut(world, at)?.clone();
            let on_top: Vec<_> =
                world.on_top_of(&at.place, &link).map(|top| At::new(at.place.clone(), &top.name)).collect();
            for top in on_top {
                apply(world, &LinkStep::DeleteLink(top))?;
            }
            links_mut(world, &at.place)?.retain(|other| other.index != link.index);
            for port in links_mut(world, &at.place)?.iter_mut().filter(|port| port.master == Some(link.index))
            {
                port.master = None;
                port.port = None;
            }
            if let Some(peer) = link.peer {
                links_mut(world, &peer.place)?.retain(|other| other.index != peer.index);
            }
            Ok(())
        }
        LinkStep::SetMaster { port, master } => {
            let master = match master {
                None => None,
                Some(name) => {
                    Some(world.link(name).filter(|link| link.is_bridge()).ok_or(Errno::ENODEV)?.index)
                }
            };
            let link = link_mut(world, &At::here(port))?;
            if link.is_bridge() && master.is_some() {
                return Err(Errno::ELOOP);
            }
            link.master = master;
            link.port = master.map(|_| BridgePort::new(PortState::Disabled));
            Ok(())
        }
        LinkStep::SetUp { link, up } => {
            let index = link_mut(world, link)?.index;
            let parent = link_mut(world, link)?.parent;
            let links = links_mut(world, &link.place)?;
            let lower = links.iter().find(|other| Some(other.index) == parent);
            if *up && lower.is_some_and(|lower| !lower.up) {
                return Err(Errno::ENETDOWN);
            }
            for other in links.iter_mut() {
                // VLANs go down and come up with their parent.
                if other.index == index || other.parent == Some(index) {
                    other.up = *up;
                }
            }
            Ok(())
        }
        LinkStep::AddAddress { link, address } => {
            let link = link_mut(world, link)?;
            if link.addresses.iter().any(|known| known.net == *address) {
                return Err(Errno::EEXIST);
            }
            link.addresses.push(Address::plain(*address));
            Ok(())
        }
        LinkStep::RemoveAddress { link, address } => {
            let link = link_mut(world, link)?;
            let count = link.addresses.len();
            link.addresses.retain(|known| known.net != *address);
            if link.addresses.len() == count { Err(Errno::EADDRNOTAVAIL) } else { Ok(()) }
        }
        LinkStep::CarryAddress { link, address } => {
            let link = link_mut(world, link)?;
            if link.addresses.iter().any(|known| known.net == address.net) {
                return Err(Errno::EEXIST);
            }
            link.addresses.push(address.clone());
            Ok(())
        }
        LinkStep::AddRoute(route) => {
            if world.routes.contains(route) {
                return Err(Errno::EEXIST);
            }
            world.routes.push(route.clone());
            Ok(())
        }
        LinkStep::RemoveRoute(route) => {
            let count = world.routes.len();
            world.routes.retain(|known| known != route);
            if world.routes.len() == count { Err(Errno::ESRCH) } else { Ok(()) }
        }
        LinkStep::AddNeighbour(neighbour) => {
            world
                .neighbours
                .retain(|known| (known.interface, known.ip) != (neighbour.interface, neighbour.ip));
            world.neighbours.push(*neighbour);
            Ok(())
        }
        LinkStep::RemoveNeighbour(neighbour) => {
            let count = world.neighbours.len();
            world.neighbours.retain(|known| known != neighbour);
            if world.neighbours.len() == count { Err(Errno::ENOENT) } else { Ok(()) }
        }
        LinkStep::SetMac { link, mac } => {
            link_mut(world, &At::here(link))?.mac = Some(*mac);
            Ok(())
        }
        LinkStep::Reach { .. } => Ok(()),
        LinkStep::Move { name, from, to } => {
            if links_mut(world, to)?.iter().any(|link| link.name == *name) {
                return Err(Errno::EEXIST);
            }
            let mut link = link_mut(world, &At::new(from.clone(), name))?.clone();
            links_mut(world, from)?.retain(|other| other.index != link.index);
            (link.master, link.port, link.up) = (None, None, false);
            link.addresses.clear();
            let (index, peer) = (link.index, link.peer.clone());
            insert(world, to, link)?;
            if let Some(peer) = peer {
                for end in links_mut(world, &peer.place)?.iter_mut().filter(|end| end.index == peer.index) {
                    end.peer = Some(Peer { place: to.clone(), index });
                }
            }
            Ok(())
        }
        LinkStep::Hold { port, bridge: _, hold } => {
            let link = link_mut(world, &At::here(port))?;
            let state = link.port.as_mut().ok_or(Errno::EOPNOTSUPP)?;
            state.guarded = *hold;
            if state.state != PortState::Disabled {
                state.state = if *hold { PortState::Listening } else { PortState::Forwarding };
            }
            Ok(())
        }
        LinkStep::SetMtu { link, mtu } => {
            link_mut(world, link)?.mtu = *mtu;
            Ok(())
        }
        LinkStep::SetStp { bridge, stp } => {
            link_mut(world, &At::here(bridge))?.kind = LinkKind::Bridge { stp: *stp };
            Ok(())
        }
        LinkStep::SetIpv6Forwarding(on) => {
            world.ipv6_forward = Some(*on);
            Ok(())
        }
        // It has no Open vSwitch.
        LinkStep::SetPortVlans { .. } => Err(Errno::EOPNOTSUPP),
        LinkStep::SetIpForwarding(on) => {
            world.ip_forward = *on;
            Ok(())
        }
    }
}

fn insert(world: &mut Observed, place: &Place, link: Link) -> Step {
    let links = links_mut(world, place)?;
    links.push(link);
    links.sort();
    Ok(())
}

/// What the kernel changes by itself: carrier, the state of bridge ports, routes that lead nowhere.
pub(super) fn settle(world: &mut Observed) {
    let Observed { links, routes, neighbours, .. } = world;
    let there = |index: u32| links.iter().any(|link| link.index == index);
    routes.retain(|route| there(route.interface));
    neighbours.retain(|neighbour| there(neighbour.interface));
    // The order of a listing says nothing.
    routes.sort_by_key(|route| (route.interface, route.metric, route.destination));
    world.default_route = observe::default_route(routes);
    let snapshot = world.clone();
    let carries = |link: &Link| match &link.peer {
        Some(_) => link.up && snapshot.peer_of(link).is_some_and(|(_, peer)| peer.up),
        // No program has it open.
        None if link.tun.is_some() => false,
        None => link.up,
    };
    let stp = |link: &Link| {
        let master = link.master.and_then(|index| snapshot.by_index(&Place::Here, index));
        matches!(master.map(|master| &master.kind), Some(LinkKind::Bridge { stp: true }))
    };
    let all = std::iter::once(&mut world.links).chain(world.namespaces.iter_mut().map(|ns| &mut ns.links));
    for link in all.flat_map(Links::iter_mut) {
        let carrier = carries(link);
        link.operstate = match (link.up, carrier) {
            (true, true) => OperState::Up,
            (true, false) if link.tun.is_some() => OperState::Down,
            (true, false) => OperState::LowerLayerDown,
            (false, _) => OperState::Down,
        };
        let first = if stp(link) { PortState::Listening } else { PortState::Forwarding };
        if let Some(port) = &mut link.port {
            match (carrier, port.state) {
                (false, _) => port.state = PortState::Disabled,
                (true, PortState::Disabled) => port.state = first,
                (true, _) => {}
            }
        }
    }
}
