//! The primitive changes to links. Each happens whole or not at all, and each can be undone.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use nix::errno::Errno;

use super::{
    KernelError,
    links::{Address, At, Link, LinkKind, Mac, Observed, Place, VlanTag},
    ovs::OvsVlans,
    routes::{Neighbour, Route},
};

/// One change to the kernel's links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkStep {
    /// Makes a bridge, marked as ours, down.
    CreateBridge(NewBridge),
    /// Makes a veth pair, both ends marked as ours, down, each in its place.
    CreateVeth([NewEnd; 2]),
    /// Makes a TUN or TAP that stays when nobody has it open, marked as ours, down.
    CreateTun(NewTun),
    /// Makes a VLAN link, marked as ours, down.
    CreateVlan(NewVlan),
    /// Deletes a link; of a veth pair both ends.
    DeleteLink(At),
    /// Makes a link of the worker's namespace a port of a bridge, or of none.
    SetMaster {
        port: String,
        master: Option<String>,
    },
    /// Brings a link up or down.
    SetUp {
        link: At,
        up: bool,
    },
    AddAddress {
        link: At,
        address: IpNet,
    },
    RemoveAddress {
        link: At,
        address: IpNet,
    },
    /// Gives a link an address that another one had, usable at once.
    CarryAddress {
        link: At,
        address: Address,
    },
    AddRoute(Route),
    RemoveRoute(Route),
    AddNeighbour(Neighbour),
    RemoveNeighbour(Neighbour),
    SetMac {
        link: String,
        mac: Mac,
    },
    /// Changes nothing; fails when a gateway does not answer through a link within a few seconds.
    Reach {
        link: String,
        gateway: IpAddr,
    },
    /// Moves a link to another namespace. It loses its master and addresses and is down there.
    Move {
        name: String,
        from: Place,
        to: Place,
    },
    /// Keeps a bridge port from forwarding, at once when the link is down or up, or lets it forward again.
    Hold {
        port: String,
        bridge: String,
        hold: bool,
    },
    SetMtu {
        link: At,
        mtu: u32,
    },
    /// Turns spanning tree of a bridge on or off.
    SetStp {
        bridge: String,
        stp: bool,
    },
    /// The VLANs of a port of Open vSwitch; of one that is none yet, those that it will enter its bridge with.
    SetPortVlans {
        port: String,
        vlans: OvsVlans,
    },
    /// `net.ipv4.ip_forward`.
    SetIpForwarding(bool),
    /// `net.ipv6.conf.all.forwarding`, without losing what routers have advertised.
    SetIpv6Forwarding(bool),
}

/// A bridge to be made. Index and MAC are chosen by the kernel unless it is one that was deleted just now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewBridge {
    pub name: String,
    pub stp: bool,
    /// Kernel default when absent.
    pub mtu: Option<u32>,
    pub mac: Option<Mac>,
    pub index: Option<u32>,
    /// Of Open vSwitch, which chooses the index itself.
    pub ovs: bool,
}

/// One end of a veth pair to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEnd {
    pub at: At,
    pub mtu: Option<u32>,
    pub mac: Option<Mac>,
    pub index: Option<u32>,
}

/// A TUN or TAP to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewTun {
    pub name: String,
    /// Ethernet frames; else IP packets.
    pub tap: bool,
    pub owner: Option<u32>,
    pub group: Option<u32>,
    pub multi_queue: bool,
    pub vnet_hdr: bool,
    pub mtu: Option<u32>,
    pub mac: Option<Mac>,
    pub index: Option<u32>,
}

/// A VLAN link to be made. Without a MTU and MAC of its own it follows its parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVlan {
    pub name: String,
    pub parent: String,
    pub tag: VlanTag,
    pub mtu: Option<u32>,
    pub mac: Option<Mac>,
    pub index: Option<u32>,
}

impl NewEnd {
    pub fn new(at: At) -> Self {
        Self { at, mtu: None, mac: None, index: None }
    }

    fn again(at: At, link: &Link) -> Self {
        Self { at, mtu: Some(link.mtu), mac: link.mac, index: Some(link.index) }
    }
}

impl LinkStep {
    /// The links that this step makes.
    pub fn makes(&self) -> Vec<At> {
        match self {
            Self::CreateBridge(bridge) => vec![At::here(&bridge.name)],
            Self::CreateVeth(ends) => ends.iter().map(|end| end.at.clone()).collect(),
            Self::CreateTun(tun) => vec![At::here(&tun.name)],
            Self::CreateVlan(vlan) => vec![At::here(&vlan.name)],
            _ => Vec::new(),
        }
    }

    /// Whether the kernel refuses because there is nothing left to do: what an undo wants gone, somebody else may have taken away.
    pub fn finds_it_done(&self, error: &KernelError) -> bool {
        let Some(errno) = error.errno.map(Errno::from_raw) else { return false };
        match self {
            // The name of a namespace may be gone, too: then so is what was in it.
            Self::DeleteLink(_) => matches!(errno, Errno::ENODEV | Errno::ENOENT),
            Self::RemoveAddress { .. } => matches!(errno, Errno::EADDRNOTAVAIL | Errno::ENODEV),
            Self::RemoveRoute(_) => matches!(errno, Errno::ESRCH | Errno::ENODEV),
            Self::RemoveNeighbour(_) => matches!(errno, Errno::ENOENT | Errno::ENODEV),
            _ => false,
        }
    }

    /// The steps that put back what this step changes, given the world before the whole plan began.
    ///
    /// A link that was not there before has no earlier state: deleting it is the business of the step
    /// that made it.
    pub fn inverse(&self, before: &Observed) -> Vec<Self> {
        match self {
            Self::CreateBridge(bridge) => vec![Self::DeleteLink(At::here(&bridge.name))],
            Self::CreateVeth([end, _]) => vec![Self::DeleteLink(end.at.clone())],
            Self::CreateTun(tun) => vec![Self::DeleteLink(At::here(&tun.name))],
            Self::CreateVlan(vlan) => vec![Self::DeleteLink(At::here(&vlan.name))],
            Self::DeleteLink(at) => restore(at, before),
            Self::SetMaster { port, .. } => {
                let Some(link) = before.link(port) else { return Vec::new() };
                let mut steps = vlans_before(port, before);
                steps.extend(enslave(link, before.master_name(&Place::Here, link)));
                steps
            }
            Self::SetUp { link: at, .. } => before
                .find(at)
                .map(|link| Self::SetUp { link: at.clone(), up: link.up })
                .into_iter()
                .collect(),
            Self::AddAddress { link, address }
            | Self::CarryAddress { link, address: Address { net: address, .. } } => {
                let Some(found) = before.find(link) else { return Vec::new() };
                if found.addresses.iter().any(|known| known.net == *address) {
                    return Vec::new();
                }
                vec![Self::RemoveAddress { link: link.clone(), address: *address }]
            }
            Self::RemoveAddress { link, address } => {
                let found = before.find(link).map(|link| &link.addresses);
                let found = found.and_then(|known| known.iter().find(|known| known.net == *address));
                let back =
                    |found: &Address| Self::CarryAddress { link: link.clone(), address: found.clone() };
                found.map(back).into_iter().collect()
            }
            Self::AddRoute(route) if before.routes.contains(route) => Vec::new(),
            Self::AddRoute(route) => vec![Self::RemoveRoute(route.clone())],
            Self::RemoveRoute(route) => vec![Self::AddRoute(route.clone())],
            Self::AddNeighbour(neighbour) if before.neighbours.contains(neighbour) => Vec::new(),
            Self::AddNeighbour(neighbour) => vec![Self::RemoveNeighbour(*neighbour)],
            Self::RemoveNeighbour(neighbour) => vec![Self::AddNeighbour(*neighbour)],
            Self::SetMac { link, .. } => {
                let mac = before.link(link).and_then(|link| link.mac);
                mac.map(|mac| Self::SetMac { link: link.clone(), mac }).into_iter().collect()
            }
            Self::Reach { .. } => Vec::new(),
            Self::Move { name, from, to } => {
                let Some(link) = before.find(&At::new(from.clone(), name)) else { return Vec::new() };
                let mut steps = vec![Self::Move { name: name.clone(), from: to.clone(), to: from.clone() }];
                steps.extend(dress(&At::new(from.clone(), name), link, before));
                steps
            }
            Self::Hold { port, bridge, .. } => {
                let Some(link) = before.link(port) else { return Vec::new() };
                // In another bridge, or in none, before: its guard goes when it leaves this bridge, and to
                // take it off earlier would let the ring turn.
                if before.master_name(&Place::Here, link) != Some(bridge) {
                    return Vec::new();
                }
                let hold = link.port.is_some_and(|port| port.guarded);
                vec![Self::Hold { port: port.clone(), bridge: bridge.clone(), hold }]
            }
            Self::SetMtu { link, .. } => {
                let found = before.find(link);
                found.map(|found| Self::SetMtu { link: link.clone(), mtu: found.mtu }).into_iter().collect()
            }
            Self::SetStp { bridge, .. } => match before.link(bridge).map(|link| &link.kind) {
                Some(LinkKind::Bridge { stp } | LinkKind::OvsBridge { stp }) => {
                    vec![Self::SetStp { bridge: bridge.clone(), stp: *stp }]
                }
                _ => Vec::new(),
            },
            Self::SetPortVlans { port, .. } => vlans_before(port, before),
            Self::SetIpForwarding(_) => vec![Self::SetIpForwarding(before.ip_forward)],
            Self::SetIpv6Forwarding(_) => {
                before.ipv6_forward.map(Self::SetIpv6Forwarding).into_iter().collect()
            }
        }
    }
}

/// The VLANs that a port of Open vSwitch had.
fn vlans_before(port: &str, before: &Observed) -> Vec<LinkStep> {
    let found = before.ovs.port(port).filter(|(_, found)| !found.is_held());
    found
        .map(|(_, found)| LinkStep::SetPortVlans { port: port.to_owned(), vlans: found.vlans() })
        .into_iter()
        .collect()
}

/// Puts a port back under its master; one that was held is never up there without its guard.
fn enslave(port: &Link, master: Option<&str>) -> Vec<LinkStep> {
    let set = LinkStep::SetMaster { port: port.name.clone(), master: master.map(str::to_owned) };
    let Some(hold) = master.and_then(|master| hold_as_before(port, master)) else { return vec![set] };
    let up = |up| LinkStep::SetUp { link: At::here(&port.name), up };
    vec![up(false), set, hold.clone(), up(port.up), hold]
}

fn hold_as_before(link: &Link, bridge: &str) -> Option<LinkStep> {
    let guarded = link.port.is_some_and(|port| port.guarded);
    guarded.then(|| LinkStep::Hold { port: link.name.clone(), bridge: bridge.to_owned(), hold: true })
}

/// Makes a deleted link again, as it was. What had a TAP open has to open it again.
fn restore(at: &At, before: &Observed) -> Vec<LinkStep> {
    let Some(link) = before.find(at) else { return Vec::new() };
    match &link.kind {
        LinkKind::Bridge { stp } | LinkKind::OvsBridge { stp } => {
            let mut steps = vec![LinkStep::CreateBridge(NewBridge {
                name: link.name.clone(),
                stp: *stp,
                mtu: Some(link.mtu),
                // None yet that the kernel would take.
                mac: link.mac.filter(|mac| mac.0 != [0; 6]),
                index: Some(link.index),
                ovs: matches!(link.kind, LinkKind::OvsBridge { .. }),
            })];
            steps.extend(dress(at, link, before));
            for port in before.ports_of(link.index) {
                steps.extend(vlans_before(&port.name, before));
                steps.extend(enslave(port, Some(&link.name)));
            }
            steps
        }
        LinkKind::Veth => {
            let Some((place, peer)) = before.peer_of(link) else { return Vec::new() };
            let other = At::new(place.clone(), &peer.name);
            let mut steps = vec![LinkStep::CreateVeth([
                NewEnd::again(at.clone(), link),
                NewEnd::again(other.clone(), peer),
            ])];
            steps.extend(dress(at, link, before));
            steps.extend(dress(&other, peer, before));
            steps
        }
        LinkKind::Tun | LinkKind::Tap => {
            let tun = link.tun.unwrap_or_default();
            let mut steps = vec![LinkStep::CreateTun(NewTun {
                name: link.name.clone(),
                tap: link.kind == LinkKind::Tap,
                owner: tun.owner,
                group: tun.group,
                multi_queue: tun.multi_queue,
                vnet_hdr: tun.vnet_hdr,
                mtu: Some(link.mtu),
                mac: link.mac,
                index: Some(link.index),
            })];
            steps.extend(dress(at, link, before));
            steps
        }
        LinkKind::Vlan => {
            let parent = link.parent.and_then(|parent| before.by_index(&at.place, parent));
            let (Some(parent), Some(tag)) = (parent, link.vlan) else { return Vec::new() };
            let mut steps = vec![LinkStep::CreateVlan(NewVlan {
                name: link.name.clone(),
                parent: parent.name.clone(),
                tag,
                mtu: Some(link.mtu),
                // One that was given to it would no longer follow its parent's.
                mac: link.mac.filter(|_| link.mac != parent.mac),
                index: Some(link.index),
            })];
            steps.extend(dress(at, link, before));
            steps
        }
        // The worker deletes nothing else, so there is nothing else to put back.
        LinkKind::Bond | LinkKind::Loopback | LinkKind::Physical | LinkKind::Other(_) => Vec::new(),
    }
}

/// Master, addresses and up-ness of a bare link, in the order that opens no loop: held before it is up.
fn dress(at: &At, link: &Link, before: &Observed) -> Vec<LinkStep> {
    let mut steps = Vec::new();
    let master = before.master_name(&at.place, link).filter(|_| at.place == Place::Here);
    let hold = master.and_then(|master| hold_as_before(link, master));
    if let Some(master) = master {
        steps.push(LinkStep::SetMaster { port: at.name.clone(), master: Some(master.to_owned()) });
        steps.extend(hold.clone());
    }
    for address in &link.addresses {
        // The kernel makes link-local IPv6 addresses itself.
        if address.global {
            steps.push(LinkStep::CarryAddress { link: at.clone(), address: address.clone() });
        }
    }
    if link.up {
        steps.push(LinkStep::SetUp { link: at.clone(), up: true });
        steps.extend(hold);
    }
    if at.place == Place::Here {
        let routes = before.routes.iter().filter(|route| route.interface == link.index);
        let mut routes: Vec<_> = routes.filter(|route| !route.is_automatic(link)).cloned().collect();
        // Those with a gateway need the others.
        routes.sort_by_key(|route| route.gateway.is_some());
        steps.extend(routes.into_iter().map(LinkStep::AddRoute));
        let neighbours = before.neighbours.iter().filter(|neighbour| neighbour.interface == link.index);
        steps.extend(neighbours.copied().map(LinkStep::AddNeighbour));
    }
    steps
}

impl fmt::Display for LinkStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateBridge(bridge) => write!(f, "create bridge {}", bridge.name),
            Self::CreateVeth([a, b]) => write!(f, "create veth pair {} and {}", a.at, b.at),
            Self::CreateTun(NewTun { name, tap: true, .. }) => write!(f, "create TAP {name}"),
            Self::CreateTun(NewTun { name, tap: false, .. }) => write!(f, "create TUN {name}"),
            Self::CreateVlan(NewVlan { name, parent, tag, .. }) => {
                write!(f, "create {} VLAN {} of {parent} as {name}", tag.protocol.name(), tag.id)
            }
            Self::DeleteLink(at) => write!(f, "delete link {at}"),
            Self::SetMaster { port, master: Some(master) } => write!(f, "add port {port} to bridge {master}"),
            Self::SetMaster { port, master: None } => write!(f, "take port {port} out of its bridge"),
            Self::SetUp { link, up: true } => write!(f, "bring up {link}"),
            Self::SetUp { link, up: false } => write!(f, "bring down {link}"),
            Self::AddAddress { link, address } => write!(f, "add address {address} to {link}"),
            Self::RemoveAddress { link, address } => write!(f, "remove address {address} from {link}"),
            Self::CarryAddress { link, address } => write!(f, "move address {} to {link}", address.net),
            Self::AddRoute(route) => write!(f, "add route {route}"),
            Self::RemoveRoute(route) => write!(f, "remove route {route}"),
            Self::AddNeighbour(Neighbour { interface, ip, .. }) => {
                write!(f, "add neighbour {ip} to interface {interface}")
            }
            Self::RemoveNeighbour(Neighbour { interface, ip, .. }) => {
                write!(f, "remove neighbour {ip} from interface {interface}")
            }
            Self::SetMac { link, mac } => write!(f, "set the address of {link} to {mac}"),
            Self::Reach { link, gateway } => write!(f, "reach the gateway {gateway} through {link}"),
            Self::Move { name, to: Place::Here, .. } => write!(f, "move {name} to the worker's namespace"),
            Self::Move { name, to: Place::Named(to), .. } => write!(f, "move {name} to namespace {to}"),
            Self::Hold { port, bridge, hold: true } => write!(f, "hold port {port} of bridge {bridge}"),
            Self::Hold { port, bridge, hold: false } => {
                write!(f, "let port {port} of bridge {bridge} forward")
            }
            Self::SetMtu { link, mtu } => write!(f, "set the mtu of {link} to {mtu}"),
            Self::SetStp { bridge, stp: true } => write!(f, "turn on spanning tree of bridge {bridge}"),
            Self::SetStp { bridge, stp: false } => write!(f, "turn off spanning tree of bridge {bridge}"),
            Self::SetIpv6Forwarding(on) => {
                write!(f, "set net.ipv6.conf.all.forwarding to {}", u8::from(*on))
            }
            Self::SetPortVlans { port, .. } => write!(f, "set the VLANs of port {port}"),
            Self::SetIpForwarding(on) => write!(f, "set net.ipv4.ip_forward to {}", u8::from(*on)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_is_to_go_and_is_gone_is_no_failure_of_an_undo() {
        let done = |step: &LinkStep, errno: Errno| step.finds_it_done(&KernelError::errno("x", errno as i32));
        let delete = LinkStep::DeleteLink(At::here("w1"));
        assert!(done(&delete, Errno::ENODEV));
        assert!(!done(&delete, Errno::EBUSY));
        assert!(!delete.finds_it_done(&KernelError::other("x", "timed out")));
        let up = LinkStep::SetUp { link: At::here("w1"), up: true };
        assert!(!done(&up, Errno::ENODEV), "what is to be up has to be there");
    }
}
