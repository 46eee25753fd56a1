//! Who gets which external port: inside hosts of each other, and the host itself beside them, with real sockets.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use serde_json::json;
use telecluster_tests::lab::{INSIDE, INSIDE_NET, Lab, OUTSIDE, WAN, eventually};

/// A host outside that nobody inside sends to.
const STRANGER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 4);

/// Long enough for a datagram that was not lost, short enough to send again.
const PAUSE: Duration = Duration::from_millis(300);

/// Sends until it is heard; as whom.
#[track_caller]
fn appears(from: &UdpSocket, at: &UdpSocket) -> SocketAddr {
    at.set_read_timeout(Some(PAUSE)).expect("set a timeout");
    let own = from.local_addr().expect("an address").to_string();
    let mut seen = None;
    eventually("a datagram does not arrive", || {
        from.send_to(own.as_bytes(), at.local_addr().expect("an address")).expect("send");
        let mut buffer = [0; 64];
        while let Ok((len, sender)) = at.recv_from(&mut buffer) {
            if buffer[..len] == *own.as_bytes() {
                seen = Some(sender);
                return true;
            }
        }
        false
    });
    seen.expect("heard")
}

/// Sends until it is heard here.
#[track_caller]
fn reaches(from: &UdpSocket, external: SocketAddr, at: &UdpSocket) {
    at.set_read_timeout(Some(PAUSE)).expect("set a timeout");
    let own = from.local_addr().expect("an address");
    eventually("a datagram does not arrive", || {
        from.send_to(b"hello", external).expect("send");
        let Ok((_, sender)) = at.recv_from(&mut [0; 64]) else { return false };
        sender == own
    });
}

/// There and back again.
#[track_caller]
fn converse(mut a: &TcpStream, mut b: &TcpStream) {
    let mut buffer = [0; 4];
    a.write_all(b"ping").expect("send");
    b.read_exact(&mut buffer).expect("it arrives");
    b.write_all(b"pong").expect("send");
    a.read_exact(&mut buffer).expect("the answer");
    assert_eq!(&buffer, b"pong");
}

/// RFC 4787 REQ-4: many inside hosts want the same two ports, of which one is even.
#[test]
fn an_even_port_stays_even_and_an_odd_one_odd_where_a_rule_says_so() {
    let lab = Lab::new();
    for host in 11..19 {
        lab.inside.ip(&format!("addr add 192.168.100.{host}/24 dev eth0"));
    }
    let _worker = lab.start();
    let body = json!({"source_network": INSIDE_NET, "output_interface": "wan0", "port_parity": true});
    lab.post("/nat/masquerade", &body).ok();
    let server = lab.outside.udp((OUTSIDE, 5300));
    for port in [40000, 40001] {
        let sockets: Vec<UdpSocket> =
            (10..19).map(|host| lab.inside.udp((Ipv4Addr::new(192, 168, 100, host), port))).collect();
        let seen: BTreeSet<u16> = sockets.iter().map(|socket| appears(socket, &server).port()).collect();
        assert_eq!(seen.len(), sockets.len(), "no two share one: {seen:?}");
        assert!(seen.contains(&port), "the first one keeps its own: {seen:?}");
        assert!(seen.iter().all(|seen| seen % 2 == port % 2), "{seen:?}");
    }
}

#[test]
fn the_host_opens_ports_that_inside_sockets_have_and_both_work() {
    let lab = Lab::new();
    lab.outside.ip(&format!("addr add {STRANGER}/24 dev eth0"));
    let _worker = lab.start();
    lab.masquerade();
    // TCP, towards the very same server
    let listener = lab.outside.listen((OUTSIDE, 5301));
    let client = |host: &telecluster_tests::lab::Netns, own: Ipv4Addr| {
        let socket = host.run(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
            let socket = socket.expect("a socket");
            socket.bind(&SocketAddr::from((own, 41000)).into()).expect("bind");
            socket
        });
        socket.set_read_timeout(Some(telecluster_tests::lab::PATIENCE)).expect("set a timeout");
        socket.connect(&SocketAddr::from((OUTSIDE, 5301)).into()).expect("connect");
        let (far, seen) = listener.accept().expect("accept");
        (TcpStream::from(socket), far, seen)
    };
    let (inside, inside_far, first) = client(&lab.inside, INSIDE);
    assert_eq!(first, SocketAddr::from((WAN, 41000)));
    let (own, own_far, second) = client(&lab.router, WAN);
    assert!(second.ip() == IpAddr::from(WAN) && second.port() != 41000, "{second}");
    for _ in 0..3 {
        converse(&inside, &inside_far);
        converse(&own, &own_far);
    }
    // UDP: the host's service opens when an inside socket has its port, and strangers are for the service
    let (socket, server) = (lab.inside.udp((INSIDE, 40000)), lab.outside.udp((OUTSIDE, 5300)));
    let external = appears(&socket, &server);
    assert_eq!(external, SocketAddr::from((WAN, 40000)));
    let service = lab.router.udp((WAN, 40000));
    let stranger = lab.outside.udp((STRANGER, 9000));
    reaches(&stranger, external, &service);
    reaches(&server, external, &socket);
    // TCP: the same with a listener
    let service = lab.router.listen((WAN, 41001));
    let _stranger = lab.outside.connect((WAN, 41001)).expect("connect to the host's service");
    service.accept().expect("accept");
    converse(&inside, &inside_far);
}

#[test]
fn an_inside_socket_does_not_get_a_port_that_the_host_uses() {
    let lab = Lab::new();
    let _worker = lab.start();
    lab.masquerade();
    let server = lab.outside.udp((OUTSIDE, 5300));
    // bound to one address, to all of them, and connected
    let services = [lab.router.udp((WAN, 40000)), lab.router.udp((Ipv4Addr::UNSPECIFIED, 40001))];
    let connected = lab.router.udp((WAN, 40002));
    connected.connect((OUTSIDE, 5300)).expect("connect");
    for port in 40000..40003 {
        let socket = lab.inside.udp((INSIDE, port));
        let seen = appears(&socket, &server);
        assert!(seen.ip() == IpAddr::from(WAN) && seen.port() != port, "the host's port {port}: {seen}");
        reaches(&server, seen, &socket);
    }
    for service in &services {
        let port = service.local_addr().expect("an address").port();
        reaches(&server, (WAN, port).into(), service);
    }
    // TCP
    let _service = lab.router.listen((Ipv4Addr::UNSPECIFIED, 41000));
    let listener = lab.outside.listen((OUTSIDE, 5301));
    let socket = lab.inside.run(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let socket = socket.expect("a socket");
        socket.bind(&SocketAddr::from((INSIDE, 41000)).into()).expect("bind");
        socket
    });
    socket.connect(&SocketAddr::from((OUTSIDE, 5301)).into()).expect("connect");
    let (far, seen) = listener.accept().expect("accept");
    assert_ne!(seen.port(), 41000);
    converse(&socket.into(), &far);
}

/// Even where strangers are let in: who sends from such a port does not take it from the host.
#[test]
fn vxlan_to_the_host_is_the_host_s_whatever_inside_hosts_send() {
    let lab = Lab::new();
    let _worker = lab.start();
    let body = json!({"source_network": INSIDE_NET, "output_interface": "wan0", "nat_type": "full_cone"});
    lab.post("/nat/masquerade", &body).ok();
    for port in [4789, 8472] {
        let (inside, server) = (lab.inside.udp((INSIDE, port)), lab.outside.udp((OUTSIDE, port)));
        let seen = appears(&inside, &server);
        assert!(seen.ip() == IpAddr::from(WAN) && seen.port() != port, "{seen}");
        reaches(&server, seen, &inside);
        // nobody of the host has it open yet: it is told so, by the host
        let other = lab.outside.udp((OUTSIDE, 0));
        other.connect((WAN, port)).expect("connect");
        other.set_read_timeout(Some(PAUSE)).expect("set a timeout");
        eventually("the host does not answer", || {
            let refused = |result: std::io::Result<usize>| {
                result.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
            };
            refused(other.send(b"x")) || refused(other.recv(&mut [0; 16]))
        });
        // and when it has, from the very socket that the inside host has sent to
        let tunnel = lab.router.udp((Ipv4Addr::UNSPECIFIED, port));
        reaches(&server, (WAN, port).into(), &tunnel);
        let own = appears(&tunnel, &server);
        assert_eq!(own, SocketAddr::from((WAN, port)), "the host's own keeps its port");
        reaches(&server, seen, &inside);
    }
}
