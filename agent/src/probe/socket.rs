//! One raw ICMP socket for one probe.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::UdpSocket;

use super::packet::{self, ECHO, Family, Heard, Mark};

/// More than any ICMP message that is about an echo of ours.
const BUFFER: usize = 2048;

/// Sends echoes to one target and hears what becomes of them.
#[derive(Debug)]
pub(super) struct EchoSocket {
    // A raw socket; tokio's type for datagrams does all that is needed of it.
    socket: UdpSocket,
    target: SocketAddr,
    family: Family,
    mark: Mark,
}

impl EchoSocket {
    pub(super) fn open(target: SocketAddr) -> io::Result<Self> {
        let (family, domain, protocol) = match target.ip() {
            IpAddr::V4(_) => (Family::V4, Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Family::V6, Domain::IPV6, Protocol::ICMPV6),
        };
        let socket = Socket::new(domain, Type::RAW.cloexec().nonblocking(), Some(protocol))?;
        let socket = UdpSocket::from_std(socket.into())?;
        let mut random = [0; 10];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let [a, b, token @ ..] = random;
        let mark = Mark { id: u16::from_be_bytes([a, b]), token };
        Ok(Self { socket, target, family, mark })
    }

    /// How many routers the next echoes may pass.
    pub(super) fn set_hops(&self, hops: u8) -> io::Result<()> {
        match self.family {
            Family::V4 => self.socket.set_ttl(hops.into()),
            Family::V6 => SockRef::from(&self.socket).set_unicast_hops_v6(hops.into()),
        }
    }

    pub(super) async fn send(&self, sequence: u16) -> io::Result<()> {
        let echo: [u8; ECHO] = packet::request(self.family, self.mark, sequence);
        self.socket.send_to(&echo, self.target).await.map(drop)
    }

    /// The next word on an echo of ours, and who said it. May be dropped while it waits.
    pub(super) async fn hear(&self) -> io::Result<(u16, Heard, IpAddr)> {
        let mut buffer = [0; BUFFER];
        loop {
            let (length, from) = self.socket.recv_from(&mut buffer).await?;
            let Some((sequence, heard)) = packet::read(self.family, self.mark, &buffer[..length]) else {
                continue;
            };
            // Only the target can answer; whoever is on the way may complain.
            if matches!(heard, Heard::Reply { .. }) && from.ip() != self.target.ip() && !self.target_is_any()
            {
                continue;
            }
            return Ok((sequence, heard, from.ip()));
        }
    }

    /// `0.0.0.0` and `::` mean this host, which answers from another address.
    fn target_is_any(&self) -> bool {
        self.target.ip().is_unspecified()
    }
}
