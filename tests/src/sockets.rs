//! What a test asks of a socket that the standard library does not.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
};

use nix::libc;
use socket2::Socket;

use crate::{frame::Frame, netns::Netns};

/// Sends a packet through a raw socket.
#[track_caller]
pub fn send_raw(socket: &Socket, frame: &Frame) {
    socket.send_to(&frame.bytes()[14..], &SocketAddr::new(frame.dst, 0).into()).expect("send a packet");
}

/// A datagram from a socket of its own, and its answer.
pub fn asks(host: &Netns, server: &UdpSocket, to: impl Into<SocketAddr>) {
    let to = to.into();
    let any = if to.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0_u16; 8]) };
    asks_from(host, any, server, to);
}

/// The same from one of the host's addresses.
pub fn asks_from(host: &Netns, from: IpAddr, server: &UdpSocket, to: SocketAddr) {
    let client = host.udp((from, 0));
    client.connect(to).expect("connect");
    let mut buffer = [0; 64];
    client.send(b"new").expect("send");
    let (len, from) = server.recv_from(&mut buffer).expect("a datagram");
    server.send_to(&buffer[..len], from).expect("answer");
    assert_eq!(client.recv(&mut buffer).expect("the answer"), 3);
}

/// What the socket sends reaches the next router and no further, and it wants to be told so.
pub fn hopless(socket: &UdpSocket, family: impl Into<IpAddr>) {
    let (level, hops, errors) = match family.into() {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TTL, libc::IP_RECVERR),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, libc::IPV6_RECVERR),
    };
    for option in [hops, errors] {
        set_option(socket, level, option, 1);
    }
}

/// From now on its packets have extension headers of IPv6 that say nothing: hop-by-hop options, destination options.
pub fn set_extensions(socket: &UdpSocket, [hop_by_hop, destination]: [bool; 2]) {
    /// Eight bytes: what follows, which the kernel writes, no further length, and padding of six (RFC 8200 section 4.2).
    const PADDING: [u8; 8] = [0, 0, 1, 4, 0, 0, 0, 0];
    for (wanted, option) in [(hop_by_hop, libc::IPV6_HOPOPTS), (destination, libc::IPV6_DSTOPTS)] {
        if wanted {
            set_option(socket, libc::IPPROTO_IPV6, option, PADDING);
        }
    }
}

/// Whether what the socket sends may be cut into parts on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parts {
    /// Nowhere: it is an error to send more than fits.
    Never,
    /// Wherever it has to be, as if nobody had told anything about the way.
    Anywhere,
}

/// Sets how the socket deals with what does not fit; it wants to be told.
pub fn set_parts(socket: &UdpSocket, family: impl Into<IpAddr>, parts: Parts) {
    let (level, option, values, errors) = match family.into() {
        IpAddr::V4(_) => (
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            (libc::IP_PMTUDISC_DO, libc::IP_PMTUDISC_DONT),
            libc::IP_RECVERR,
        ),
        IpAddr::V6(_) => (
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            (libc::IPV6_PMTUDISC_DO, libc::IPV6_PMTUDISC_DONT),
            libc::IPV6_RECVERR,
        ),
    };
    set_option(socket, level, option, if parts == Parts::Never { values.0 } else { values.1 });
    set_option(socket, level, errors, 1);
}

/// What the socket knows of the way to its peer.
pub fn path_mtu(socket: &UdpSocket, family: impl Into<IpAddr>) -> i32 {
    let (level, option) = match family.into() {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
    };
    let mut value: libc::c_int = 0;
    let mut length = libc::socklen_t::try_from(size_of_val(&value)).expect("four");
    // SAFETY: the pointers are those of `value` and of its length.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut length)
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    value
}

fn set_option(socket: &UdpSocket, level: libc::c_int, option: libc::c_int, value: impl Copy) {
    let length = libc::socklen_t::try_from(size_of_val(&value)).expect("four");
    // SAFETY: the pointer and the length are those of `value`.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}
