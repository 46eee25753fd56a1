//! Sockets of the host that wait for strangers: a forward of such a port would take their packets away.
//!
//! `/proc/net` does not say whether an IPv6 wildcard socket takes IPv4 too; nearly all do, so that is assumed.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use procfs::{
    ProcError,
    net::{TcpState, UdpState},
};

use super::{KernelError, dataplane::Transport};

/// A listening TCP socket, or a UDP socket without a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    pub transport: Transport,
    pub local: SocketAddr,
}

impl Listener {
    /// Whether it is sent what comes for one of these addresses, or for any of their family when it listens on all.
    pub fn takes(&self, ipv6: bool, addresses: &[IpAddr]) -> bool {
        match self.local.ip().to_canonical() {
            IpAddr::V4(ip) if ip.is_unspecified() => !ipv6,
            IpAddr::V6(ip) if ip.is_unspecified() => true,
            ip => ip.is_ipv6() == ipv6 && addresses.contains(&ip),
        }
    }
}

/// Those of the worker's own namespace. On a host with very many connections this takes a while: it reads them all.
pub(super) async fn list() -> Result<Vec<Listener>, KernelError> {
    let failed = |reason: String| KernelError::other("list the listening sockets", reason);
    tokio::task::spawn_blocking(read)
        .await
        .map_err(|error| failed(error.to_string()))?
        .map_err(|error| failed(error.to_string()))
}

fn read() -> Result<Vec<Listener>, ProcError> {
    let tcp = procfs::net::tcp()?.into_iter().chain(or_none(procfs::net::tcp6())?);
    let udp = procfs::net::udp()?.into_iter().chain(or_none(procfs::net::udp6())?);
    let tcp = tcp
        .filter(|socket| socket.state == TcpState::Listen)
        .map(|socket| Listener { transport: Transport::Tcp, local: socket.local_address });
    let udp = udp
        .filter(|socket| socket.state == UdpState::Close)
        .map(|socket| Listener { transport: Transport::Udp, local: socket.local_address });
    Ok(tcp.chain(udp).collect())
}

/// A kernel without IPv6 has no such file.
fn or_none<T>(sockets: Result<Vec<T>, ProcError>) -> Result<Vec<T>, ProcError> {
    match sockets {
        Err(ProcError::NotFound(_)) => Ok(Vec::new()),
        Err(ProcError::Io(error, _)) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        sockets => sockets,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    fn takes(local: &str, ipv6: bool) -> bool {
        let addresses = ["192.0.2.10".parse().unwrap(), "2001:db8::10".parse().unwrap()];
        Listener { transport: Transport::Tcp, local: local.parse().unwrap() }.takes(ipv6, &addresses)
    }

    #[test]
    fn a_socket_is_sent_what_comes_for_its_own_address_or_for_all() {
        for (local, ipv4, ipv6) in [
            ("0.0.0.0:80", true, false),
            ("[::]:80", true, true),
            ("192.0.2.10:80", true, false),
            ("[::ffff:192.0.2.10]:80", true, false),
            ("[2001:db8::10]:80", false, true),
            ("127.0.0.1:80", false, false),
            ("192.0.2.11:80", false, false),
            ("[::1]:80", false, false),
        ] {
            assert_eq!((takes(local, false), takes(local, true)), (ipv4, ipv6), "{local}");
        }
    }

    #[tokio::test]
    async fn the_kernel_names_those_who_listen_and_not_those_who_talk() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(server.local_addr().unwrap()).unwrap();
        let waiting = UdpSocket::bind("127.0.0.1:0").unwrap();
        let talking = UdpSocket::bind("127.0.0.1:0").unwrap();
        talking.connect(waiting.local_addr().unwrap()).unwrap();
        let found = list().await.unwrap();
        let has = |transport, local| found.contains(&Listener { transport, local });
        assert!(has(Transport::Tcp, server.local_addr().unwrap()));
        assert!(has(Transport::Udp, waiting.local_addr().unwrap()));
        assert!(!has(Transport::Tcp, client.local_addr().unwrap()));
        assert!(!has(Transport::Udp, talking.local_addr().unwrap()));
    }
}
