//! No room for a flow: who asked for it is told, and nobody else loses anything.

#![expect(clippy::panic, reason = "a failure is a panic")]

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use serde_json::json;
use telecluster_common::{drop::DropReason, maps::Direction};
use telecluster_tests::{
    behind_any_hooks,
    frame::{Frame, SYN, UDP, checksum, icmp, icmp_error, tcp, udp, udp_without_checksum},
    host::{Front, Host},
    lab::{INSIDE, INSIDE_NET6, INSIDE6, Lab, OUTSIDE, OUTSIDE6, PATIENCE, eventually},
    vectors::{self, Cast, IPV4, IPV6, Machine as _, Outcome, Rule, Vector},
};

const SECOND: u64 = 1_000_000_000;

/// A machine whose flow tables are full of a flow that has proven itself.
fn without_room(front: Front) -> Host {
    let mut host = Host::behind(front);
    let rules: [Rule; 2] = [IPV4.masquerade(), IPV6.masquerade()];
    for (slot, rule) in (0..).zip(&rules) {
        host.put(slot, rule);
    }
    for cast in [IPV4, IPV6] {
        let steps = cast.udp_exchange(39999, b"q").to_vec();
        vectors::play(&Vector { name: "a live flow", rules: vec![], steps }, &mut host);
    }
    host.tables.capacity = 2;
    host.tables.clock.set(SECOND);
    host
}

/// What the sender is told.
fn told(host: &mut Host, frame: &[u8]) -> Option<Vec<u8>> {
    host.tables.told.borrow_mut().clear();
    let (outcome, _) = host.run(Direction::Out, frame);
    assert_eq!(outcome, Outcome::Dropped(DropReason::FlowTableFull));
    host.tables.told.borrow_mut().pop()
}

fn kind(cast: Cast) -> (u8, u8, [u8; 4]) {
    if cast.inside.is_ipv4() { (3, 13, [0; 4]) } else { (1, 1, [0; 4]) }
}

/// The error that quotes this packet, as it should be, from the transport's point of view: behind the IP header.
fn expected(cast: Cast, about: &Frame) -> Vec<u8> {
    let (header, most) = if cast.inside.is_ipv4() { (20, 548) } else { (40, 1232) };
    // what has no checksum would have to be read whole: only the least is quoted of it
    let unsummed = about.proto == UDP && about.transport[6..8] == [0, 0];
    let most = if unsummed { header + 8 } else { most };
    icmp_error(cast.uplink, cast.inside, kind(cast), about, most).bytes()[14 + header..].to_vec()
}
behind_any_hooks!(
    the_error_quotes_the_packet_and_every_checksum_is_right,
    a_checksum_that_a_device_is_to_write_is_counted_as_if_it_were_there,
    a_flood_is_not_answered_by_another_one,
    the_host_s_own_are_not_told,
);

fn the_error_quotes_the_packet_and_every_checksum_is_right(front: Front) {
    let mut host = without_room(front);
    for cast in [IPV4, IPV6] {
        let (from, to) = ((cast.inside, 40000), (cast.remote, 443));
        let mut frames = vec![
            tcp(from, to, SYN, b""),
            tcp(from, to, SYN, b"fast open"),
            udp_without_checksum(from, to, b"odd"),
            icmp(cast.inside, cast.remote, cast.echo, 7, b"even"),
        ];
        // longer than what may be quoted, too
        frames.extend([0, 1, 2, 7, 8, 9, 500, 519, 520, 521, 1180, 1300, 1400].map(|len| {
            let payload: Vec<u8> = (0..len).map(|place: usize| place.to_le_bytes()[0] ^ 0x5a).collect();
            udp(from, to, &payload)
        }));
        for frame in frames {
            host.tables.clock.set(host.tables.clock.get() + SECOND);
            let answer = told(&mut host, &frame.bytes()).expect("an answer");
            let header = if cast.inside.is_ipv4() { 20 } else { 40 };
            assert_eq!(answer[14 + header..], expected(cast, &frame), "{} bytes", frame.transport.len());
            assert_eq!(answer[12..14], frame.bytes()[12..14]);
            let (src, dst, len) = addresses(&answer);
            assert_eq!((src, dst, len), (cast.uplink, cast.inside, answer.len() - 14));
            assert!(header == 40 || checksum(&answer[14..34]) == [0, 0], "the header's checksum");
        }
    }
}

fn addresses(frame: &[u8]) -> (IpAddr, IpAddr, usize) {
    let length = |place: usize| usize::from(u16::from_be_bytes([frame[place], frame[place + 1]]));
    if frame[12..14] == [8, 0] {
        let [a, b] = [26, 30].map(|place| <[u8; 4]>::try_from(&frame[place..place + 4]).expect("four bytes"));
        return (a.into(), b.into(), length(16));
    }
    let [a, b] =
        [22, 38].map(|place| <[u8; 16]>::try_from(&frame[place..place + 16]).expect("sixteen bytes"));
    (a.into(), b.into(), length(18) + 40)
}

/// A guest leaves the checksum to its device: in the packet is the sum of the pseudo header. Whoever passes the error on
/// completes what is quoted, and the error's own checksum is right then.
fn a_checksum_that_a_device_is_to_write_is_counted_as_if_it_were_there(front: Front) {
    let mut host = without_room(front);
    for cast in [IPV4, IPV6] {
        let (from, to) = ((cast.inside, 40000), (cast.remote, 443));
        for (frame, place) in [(udp(from, to, b"query"), 6), (tcp(from, to, SYN, b""), 16)] {
            let mut partial = frame.clone();
            let pseudo = pseudo_sum(&frame);
            partial.transport[place..place + 2].copy_from_slice(&pseudo);
            host.tables.clock.set(host.tables.clock.get() + SECOND);
            let answer = told(&mut host, &partial.bytes()).expect("an answer");
            let header = if cast.inside.is_ipv4() { 20 } else { 40 };
            let mut icmp = answer[14 + header..].to_vec();
            // what a device does
            let quoted = 8 + header;
            let sum = checksum(&icmp[quoted..]);
            icmp[quoted + place..quoted + place + 2].copy_from_slice(&sum);
            assert_eq!(icmp, expected(cast, &frame));
        }
    }
}

/// RFC 1071 over a pseudo header, not inverted: what a partial checksum is.
fn pseudo_sum(frame: &Frame) -> [u8; 2] {
    let mut data = Vec::new();
    for address in [frame.src, frame.dst] {
        match address {
            IpAddr::V4(address) => data.extend(address.octets()),
            IpAddr::V6(address) => data.extend(address.octets()),
        }
    }
    data.extend([0, frame.proto]);
    data.extend(u16::try_from(frame.transport.len()).expect("short").to_be_bytes());
    checksum(&data).map(|byte| !byte)
}

fn a_flood_is_not_answered_by_another_one(front: Front) {
    let mut host = without_room(front);
    let count = |host: &mut Host| {
        let frame = udp((IPV4.inside, 40000), (IPV4.remote, 443), b"q").bytes();
        (0..500).filter(|_| told(host, &frame).is_some()).count()
    };
    assert_eq!(count(&mut host), 50);
    assert_eq!(count(&mut host), 0);
    host.tables.clock.set(host.tables.clock.get() + SECOND / 100);
    assert!((1..50).contains(&count(&mut host)), "some more with time");
    host.tables.clock.set(host.tables.clock.get() + 100 * SECOND);
    assert_eq!(count(&mut host), 50, "but never more at once");
}

fn the_host_s_own_are_not_told(front: Front) {
    let mut host = without_room(front);
    let own = udp((IPV4.uplink, 40000), (IPV4.remote, 443), b"q").bytes();
    assert_eq!(host.run(Direction::Out, &own).0, Outcome::Passed);
    assert!(host.tables.told.borrow().is_empty());
}

/// Sends until there is an answer, or until the kernel was told that there will be none. Datagrams of others that come
/// late are answered too: each says whose it is.
fn asks(socket: &UdpSocket, server: &UdpSocket) -> Result<(), ErrorKind> {
    let own = socket.local_addr().expect("an address").port().to_be_bytes();
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("set a timeout");
    let deadline = Instant::now() + PATIENCE;
    loop {
        socket.send(&own).map_err(|error| error.kind())?;
        let mut buffer = [0; 16];
        while let Ok((len, from)) = server.recv_from(&mut buffer) {
            server.send_to(&buffer[..len], from).expect("answer");
            if buffer[..len] == own {
                break;
            }
        }
        match socket.recv(&mut buffer) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {}
            Err(error) => return Err(error.kind()),
        }
    }
}

/// Of each family: who is inside, who outside, and how a socket says that it may not.
const FAMILIES: [(IpAddr, IpAddr, ErrorKind); 2] = [
    (IpAddr::V4(INSIDE), IpAddr::V4(OUTSIDE), ErrorKind::HostUnreachable),
    (IpAddr::V6(INSIDE6), IpAddr::V6(OUTSIDE6), ErrorKind::PermissionDenied),
];

#[test]
fn when_the_table_is_full_of_live_flows_the_next_host_is_told_and_they_go_on() {
    refused_when_full(FAMILIES[0]);
}

#[test]
fn the_same_over_ipv6() {
    refused_when_full(FAMILIES[1]);
}

fn refused_when_full((inside, outside, wanted): (IpAddr, IpAddr, ErrorKind)) {
    let mut lab = Lab::new();
    lab.ipv6();
    lab.environment.push(("FLOW_CAPACITY", "1024".to_owned()));
    let _worker = lab.start();
    lab.masquerade();
    lab.post("/nat/masquerade", &json!({"source_network": INSIDE_NET6, "output_interface": "wan0"})).ok();
    let server = lab.outside.udp((outside, 5300));
    server.set_read_timeout(Some(Duration::from_millis(300))).expect("set a timeout");
    let client = |port: u16| {
        let socket = lab.inside.udp((inside, port));
        socket.connect(SocketAddr::new(outside, 5300)).expect("connect");
        socket
    };
    // each is answered, so that none may go for another
    let mut sockets = Vec::new();
    let mut refused = None;
    for port in 40000..42000 {
        let socket = client(port);
        match asks(&socket, &server) {
            // some stay, their descriptors are not for all
            Ok(()) if sockets.len() < 20 => sockets.push(socket),
            Ok(()) => {}
            Err(kind) if kind == wanted => {
                refused = Some(socket);
                break;
            }
            Err(kind) => panic!("{kind} on port {port}"),
        }
    }
    let refused = refused.unwrap_or_else(|| panic!("{} flows, and nobody was told", sockets.len()));
    // also where the guest writes its checksums itself, and of TCP
    lab.inside.sh("ethtool -K eth0 tx off");
    eventually("it is told again", || asks(&refused, &server) == Err(wanted));
    let tcp = lab.inside.connect(SocketAddr::new(outside, 5301)).map(drop).map_err(|error| error.kind());
    assert_eq!(tcp, Err(wanted));
    lab.inside.sh("ethtool -K eth0 tx on");
    let tcp = lab.inside.connect(SocketAddr::new(outside, 5301)).map(drop).map_err(|error| error.kind());
    assert_eq!(tcp, Err(wanted));
    for socket in &sockets {
        eventually("a live flow goes on", || asks(socket, &server).is_ok());
    }
    assert_eq!(lab.inside.snmp("Icmp", "InCsumErrors"), 0);
    if inside.is_ipv4() {
        assert!(lab.inside.snmp("Icmp", "InDestUnreachs") >= 3);
    }
}
