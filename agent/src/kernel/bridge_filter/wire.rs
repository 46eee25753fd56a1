//! Bridges and their VLAN tables over rtnetlink: read, changed, and the stations of the forwarding table.

use std::{collections::BTreeMap, time::Duration};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{
        AfSpecBridge, BridgeFlag, BridgeVlanInfo, BridgeVlanInfoFlags, InfoBridge, InfoData, InfoKind,
        LinkAttribute, LinkExtentMask, LinkInfo, LinkMessage, VlanProtocol as WireProtocol,
    },
    neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState},
};
use nix::errno::Errno;

use super::shape::{Change, Member, Members, Shape};
use crate::{
    kernel::{
        KernelError,
        links::{ALIAS, Mac},
        rtnl::Rtnl,
        switch::Station,
    },
    model::VlanProtocol,
};

/// What the forwarding table counts time in (`USER_HZ`).
const TICKS: u64 = 100;

/// A bridge with the tables of its ports; `None`: there is none of that index.
pub(super) fn read(rtnl: &mut Rtnl, bridge: u32) -> Result<Option<Shape>, KernelError> {
    let operation = format!("read the VLANs of bridge {bridge}");
    let mut request = LinkMessage::default();
    request.header.index = bridge;
    let answers = match rtnl.get(&operation, RouteNetlinkMessage::GetLink(request)) {
        Err(error) if error.errno == Some(Errno::ENODEV as i32) => return Ok(None),
        answers => answers?,
    };
    let Some(mut shape) = links(answers).find_map(|link| plain(&link)) else {
        return Err(KernelError {
            operation,
            errno: Some(Errno::EOPNOTSUPP as i32),
            reason: "this worker runs with iptables, and this kernel's bridge has no VLAN filter \
                     (CONFIG_BRIDGE_VLAN_FILTERING)"
                .to_owned(),
            extack: None,
        });
    };
    let mut request = LinkMessage::default();
    request.header.interface_family = AddressFamily::Bridge;
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::Brvlan]));
    shape.ports = links(rtnl.dump(&operation, &RouteNetlinkMessage::GetLink(request))?)
        .filter(|link| {
            let of = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::Controller(at) if *at == bridge);
            link.attributes.iter().any(of)
        })
        .map(|link| (link.header.index, members(&link)))
        .collect();
    Ok(Some(shape))
}

fn links(answers: Vec<RouteNetlinkMessage>) -> impl Iterator<Item = LinkMessage> {
    answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    })
}

/// A bridge without its ports; `None` when it has no VLAN filter.
fn plain(link: &LinkMessage) -> Option<Shape> {
    let (mut filtering, mut protocol, mut default_pvid) = (None, VlanProtocol::Dot1q, None);
    for attribute in data(link)? {
        match attribute {
            InfoBridge::VlanFiltering(on) => filtering = Some(*on),
            InfoBridge::VlanProtocol(WireProtocol::Ieee8021Ad) => protocol = VlanProtocol::Dot1ad,
            InfoBridge::VlanDefaultPvid(vlan) => default_pvid = Some(*vlan),
            _ => {}
        }
    }
    let (filtering, default_pvid) = (filtering?, default_pvid?);
    Some(Shape { filtering, protocol, default_pvid, ports: BTreeMap::new() })
}

fn data(link: &LinkMessage) -> Option<&[InfoBridge]> {
    let info = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(info) => Some(info),
        _ => None,
    })?;
    info.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Bridge(data)) => Some(&data[..]),
        _ => None,
    })
}

fn members(link: &LinkMessage) -> Members {
    let specs = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::AfSpecBridge(specs) => Some(specs),
        _ => None,
    });
    let vlan = |spec: &AfSpecBridge| match spec {
        AfSpecBridge::VlanInfo(BridgeVlanInfo { flags, vid }) => Some((
            *vid,
            Member {
                pvid: flags.contains(BridgeVlanInfoFlags::Pvid),
                untagged: flags.contains(BridgeVlanInfoFlags::Untagged),
            },
        )),
        _ => None,
    };
    specs.flatten().filter_map(vlan).collect()
}

/// Tells the kernel one thing about a bridge.
pub(super) fn apply(rtnl: &mut Rtnl, bridge: u32, change: &Change) -> Result<(), KernelError> {
    let operation = format!("filter the VLANs of bridge {bridge}");
    let set = |info: InfoBridge| {
        let mut message = LinkMessage::default();
        message.header.index = bridge;
        let info = vec![LinkInfo::Kind(InfoKind::Bridge), LinkInfo::Data(InfoData::Bridge(vec![info]))];
        message.attributes.push(LinkAttribute::LinkInfo(info));
        RouteNetlinkMessage::NewLink(message)
    };
    let message = match change {
        Change::Filtering(on) => set(InfoBridge::VlanFiltering(*on)),
        Change::DefaultPvid(vlan) => set(InfoBridge::VlanDefaultPvid(*vlan)),
        Change::Protocol(VlanProtocol::Dot1q) => set(InfoBridge::VlanProtocol(WireProtocol::Ieee8021Q)),
        Change::Protocol(VlanProtocol::Dot1ad) => set(InfoBridge::VlanProtocol(WireProtocol::Ieee8021Ad)),
        Change::Remove { port, vlans } => {
            let plain = Member { pvid: false, untagged: false };
            let members = vlans.iter().map(|vlan| (*vlan, plain)).collect();
            RouteNetlinkMessage::DelLink(table(bridge, *port, &members))
        }
        Change::Add { port, members } => RouteNetlinkMessage::SetLink(table(bridge, *port, members)),
    };
    rtnl.change(&operation, message, 0)
}

/// A message about VLANs of one port.
fn table(bridge: u32, port: u32, members: &Members) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Bridge;
    message.header.index = port;
    // Else it would be about the bridge that the bridge is a port of.
    let own = (port == bridge).then_some(AfSpecBridge::Flags(BridgeFlag::LowerDev));
    let info = members.iter().map(|(vid, Member { pvid, untagged })| {
        let mut flags = BridgeVlanInfoFlags::empty();
        flags.set(BridgeVlanInfoFlags::Pvid, *pvid);
        flags.set(BridgeVlanInfoFlags::Untagged, *untagged);
        AfSpecBridge::VlanInfo(BridgeVlanInfo { flags, vid: *vid })
    });
    message.attributes.push(LinkAttribute::AfSpecBridge(own.into_iter().chain(info).collect()));
    message
}

/// Bridges that bear the worker's mark.
pub(super) fn own_bridges(rtnl: &mut Rtnl) -> Result<Vec<u32>, KernelError> {
    let answers = rtnl.dump("list the bridges", &RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let ours = |link: &LinkMessage| {
        let marked =
            |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::IfAlias(alias) if alias == ALIAS);
        plain(link).is_some() && link.attributes.iter().any(marked)
    };
    Ok(links(answers).filter(ours).map(|link| link.header.index).collect())
}

/// The forwarding tables of all bridges, without the addresses of their ports.
pub(super) fn stations(rtnl: &mut Rtnl) -> Result<Vec<Station>, KernelError> {
    let mut request = NeighbourMessage::default();
    request.header.family = AddressFamily::Bridge;
    let answers = rtnl.dump("list the stations", &RouteNetlinkMessage::GetNeighbour(request))?;
    Ok(answers.into_iter().filter_map(|answer| station(&answer)).collect())
}

fn station(answer: &RouteNetlinkMessage) -> Option<Station> {
    let RouteNetlinkMessage::NewNeighbour(NeighbourMessage { header, attributes, .. }) = answer else {
        return None;
    };
    let (mut mac, mut vlan, mut bridge, mut ticks) = (None, None, None, 0);
    for attribute in attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes[..].try_into().ok().map(Mac),
            NeighbourAttribute::Vlan(id) => vlan = Some(*id),
            NeighbourAttribute::Controller(index) => bridge = Some(*index),
            NeighbourAttribute::CacheInfo(info) => ticks = info.updated,
            _ => {}
        }
    }
    let (bridge, port) = (bridge?, header.ifindex);
    let own = header.state == NeighbourState::Permanent;
    if own && port != bridge {
        return None;
    }
    let fixed = own || header.state == NeighbourState::Noarp;
    let idle = if fixed { Duration::ZERO } else { Duration::from_secs(u64::from(ticks) / TICKS) };
    Some(Station { bridge, vlan: vlan?, mac: mac?, port, fixed, idle })
}
