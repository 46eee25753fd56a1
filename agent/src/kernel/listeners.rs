//! Sockets of the host that wait for strangers: a forward of such a port would take their packets away.
//!
//! TCP's are asked for by sock_diag: `/proc/net/tcp` walks the table of all connections to find the few that listen, which
//! takes milliseconds on an idle host already. A kernel without it is asked there. Neither is asked whether an IPv6
//! wildcard socket takes IPv4 too; nearly all do, so that is assumed.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use nix::libc;
use procfs::{
    ProcError,
    net::{TcpState, UdpState},
};

use super::{KernelError, dataplane::Transport, dump};

/// linux/sock_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// A netlink header and a `struct inet_diag_req_v2`: 72 bytes.
const REQUEST: usize = 16 + 56;

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

/// Those of the worker's own namespace.
pub(super) async fn list() -> Result<Vec<Listener>, KernelError> {
    let failed = |reason: String| KernelError::other("list the listening sockets", reason);
    tokio::task::spawn_blocking(read)
        .await
        .map_err(|error| failed(error.to_string()))?
        .map_err(|error| failed(error.to_string()))
}

fn read() -> Result<Vec<Listener>, ProcError> {
    let tcp = match diagnosed() {
        Ok(listeners) => listeners,
        Err(error) => {
            tracing::debug!(%error, "this kernel has no sock_diag for TCP");
            tcp_of_proc()?
        }
    };
    let udp = procfs::net::udp()?.into_iter().chain(or_none(procfs::net::udp6())?);
    let udp = udp
        .filter(|socket| socket.state == UdpState::Close)
        .map(|socket| Listener { transport: Transport::Udp, local: socket.local_address });
    Ok(tcp.into_iter().chain(udp).collect())
}

fn tcp_of_proc() -> Result<Vec<Listener>, ProcError> {
    let sockets = procfs::net::tcp()?.into_iter().chain(or_none(procfs::net::tcp6())?);
    let listening = sockets.filter(|socket| socket.state == TcpState::Listen);
    Ok(listening.map(|socket| Listener { transport: Transport::Tcp, local: socket.local_address }).collect())
}

/// Both families' TCP sockets that listen.
fn diagnosed() -> io::Result<Vec<Listener>> {
    let socket = dump::open(NETLINK_SOCK_DIAG)?;
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        dump::ask(&socket, &request(family.to_le_bytes()[0]), |kind, message| {
            if kind == SOCK_DIAG_BY_FAMILY {
                found.extend(local(message).map(|local| Listener { transport: Transport::Tcp, local }));
            }
        })?;
    }
    Ok(found)
}

fn request(family: u8) -> [u8; REQUEST] {
    let mut bytes = [0; REQUEST];
    let mut buffer = NetlinkBuffer::new(&mut bytes);
    buffer.set_length(72);
    buffer.set_message_type(SOCK_DIAG_BY_FAMILY);
    buffer.set_flags(NLM_F_REQUEST | NLM_F_DUMP);
    // sdiag_family, sdiag_protocol; idiag_states: 1 << TCP_LISTEN (net/tcp_states.h)
    (bytes[16], bytes[17]) = (family, libc::IPPROTO_TCP.to_le_bytes()[0]);
    bytes[20..24].copy_from_slice(&(1u32 << 10).to_ne_bytes());
    bytes
}

/// Where a `struct inet_diag_msg` is bound; `None` when it is cut short.
fn local(message: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(*message.get(4..)?.first_chunk()?);
    let source: [u8; 16] = *message.get(8..)?.first_chunk()?;
    let ip = match i32::from(*message.first()?) {
        libc::AF_INET => Ipv4Addr::new(source[0], source[1], source[2], source[3]).into(),
        _ => Ipv6Addr::from(source).into(),
    };
    Some(SocketAddr::new(ip, port))
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

    #[test]
    fn both_ways_to_ask_name_the_same_listeners() {
        let servers =
            ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"].map(|at| TcpListener::bind(at).unwrap());
        let (diagnosed, read) = (diagnosed().unwrap(), tcp_of_proc().unwrap());
        for server in &servers {
            let listener = Listener { transport: Transport::Tcp, local: server.local_addr().unwrap() };
            assert!(diagnosed.contains(&listener), "{listener:?} is not in {diagnosed:?}");
            assert!(read.contains(&listener), "{listener:?} is not in {read:?}");
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
