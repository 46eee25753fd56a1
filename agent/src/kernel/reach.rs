//! Whether a gateway answers on the link: asked by ARP or neighbour discovery, which no firewall of its own
//! forbids it to answer, as many forbid ping.

use std::{
    ffi::OsString,
    fs::File,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket},
    time::{Duration, Instant},
};

use netlink_packet_route::{
    RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
};
use nix::sys::socket::{setsockopt, sockopt};

use super::{
    KernelError, netns,
    routes::family,
    rtnl::{Rtnl, io_error},
};

/// Nobody listens there (RFC 863), and it does not matter: sending is what makes the kernel ask.
const DISCARD: u16 = 9;
const PAUSE: Duration = Duration::from_millis(10);

/// A link by index and name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Through<'a> {
    pub(super) index: u32,
    pub(super) name: &'a str,
}

/// Asks for a gateway's hardware address, and waits for the answer.
///
/// What the kernel believes from before is not trusted: it would take half a minute to find out. An entry that
/// somebody made by hand is never asked for; it counts as an answer.
pub(super) fn answers(
    rtnl: &mut Rtnl,
    own: &File,
    link: Through<'_>,
    gateway: IpAddr,
    patience: Duration,
) -> Result<bool, KernelError> {
    let operation = format!("look for {gateway} through {}", link.name);
    match entry(rtnl, &operation, link, gateway)? {
        Some(NeighbourState::Permanent | NeighbourState::Noarp) => return Ok(true),
        Some(_) => forget(rtnl, &operation, link, gateway),
        None => {}
    }
    let deadline = Instant::now() + patience;
    let mut nudged = Instant::now();
    nudge(own, &operation, link, gateway)?;
    loop {
        match entry(rtnl, &operation, link, gateway)? {
            Some(NeighbourState::Reachable | NeighbourState::Permanent) => return Ok(true),
            // It asked for us, which says nothing about whether it hears us: ask anew.
            Some(NeighbourState::Stale | NeighbourState::Delay | NeighbourState::Probe) => {
                forget(rtnl, &operation, link, gateway);
                nudge(own, &operation, link, gateway)?;
                nudged = Instant::now();
            }
            // The kernel has given up, or has not begun: a link that has just come up loses what is sent.
            _ if nudged.elapsed() >= Duration::from_millis(500) => {
                nudge(own, &operation, link, gateway)?;
                nudged = Instant::now();
            }
            _ => {}
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(PAUSE);
    }
}

/// What the kernel believed. It may have gone by itself.
fn forget(rtnl: &mut Rtnl, operation: &str, link: Through<'_>, gateway: IpAddr) {
    let mut message = NeighbourMessage::default();
    message.header.family = family(gateway);
    message.header.ifindex = link.index;
    message.attributes.push(NeighbourAttribute::Destination(address(gateway)));
    let _ = rtnl.change(operation, RouteNetlinkMessage::DelNeighbour(message), 0);
}

/// Sends a byte. What becomes of it does not matter.
fn nudge(own: &File, operation: &str, link: Through<'_>, gateway: IpAddr) -> Result<(), KernelError> {
    let (any, to): (SocketAddr, SocketAddr) = match gateway {
        IpAddr::V4(ip) => ((Ipv4Addr::UNSPECIFIED, 0).into(), (ip, DISCARD).into()),
        IpAddr::V6(ip) => {
            ((Ipv6Addr::UNSPECIFIED, 0).into(), SocketAddrV6::new(ip, DISCARD, 0, link.index).into())
        }
    };
    netns::inside(own, "of the worker", || {
        let socket = UdpSocket::bind(any).map_err(|error| io_error(operation, &error))?;
        setsockopt(&socket, sockopt::BindToDevice, &OsString::from(link.name))
            .map_err(|errno| KernelError::errno(operation, errno as i32))?;
        let _ = socket.send_to(&[0], to);
        Ok(())
    })
}

fn entry(
    rtnl: &mut Rtnl,
    operation: &str,
    link: Through<'_>,
    gateway: IpAddr,
) -> Result<Option<NeighbourState>, KernelError> {
    let mut request = NeighbourMessage::default();
    request.header.family = family(gateway);
    let answers = rtnl.dump(operation, &RouteNetlinkMessage::GetNeighbour(request))?;
    let wanted = NeighbourAttribute::Destination(address(gateway));
    Ok(answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewNeighbour(message)
            if message.header.ifindex == link.index && message.attributes.contains(&wanted) =>
        {
            Some(message.header.state)
        }
        _ => None,
    }))
}

fn address(ip: IpAddr) -> NeighbourAddress {
    match ip {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    }
}
