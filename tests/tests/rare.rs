//! What hardly anybody sends, with real sockets: datagrams without a checksum, IP options, forged resets.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    thread,
    time::Duration,
};

use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};
use telecluster_tests::{
    frame::{Frame, RST, tcp, udp, udp_without_checksum},
    lab::{INSIDE, Lab, Netns, OUTSIDE, WAN, eventually},
    sockets::send_raw,
};

/// Long enough for a packet that was not lost, short enough to send again.
const PAUSE: Duration = Duration::from_millis(300);

/// Four bytes of "no operation", twice.
const OPTIONS: [u8; 8] = [1; 8];

/// Hears every datagram that comes to a host, whole, with its IP header.
fn eavesdropper(host: &Netns) -> UdpSocket {
    let socket =
        host.run(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP)).expect("a raw socket"));
    socket.set_read_timeout(Some(PAUSE)).expect("set a timeout");
    socket.into()
}

/// Sends a packet until one with its payload is heard, and gives that.
#[track_caller]
fn arrives(from: &Socket, sent: &Frame, there: &UdpSocket) -> Vec<u8> {
    let payload = &sent.transport[8..];
    let mut heard = Vec::new();
    eventually("a datagram does not arrive", || {
        send_raw(from, sent);
        let mut buffer = [0; 256];
        while let Ok((len, _)) = there.recv_from(&mut buffer) {
            if buffer[..len].ends_with(payload) {
                heard = buffer[..len].to_vec();
                return true;
            }
        }
        false
    });
    heard
}

fn addresses(packet: &[u8]) -> [Ipv4Addr; 2] {
    [12, 16].map(|place| {
        let bytes: [u8; 4] = packet[place..place + 4].try_into().expect("four bytes");
        bytes.into()
    })
}

fn ports(transport: &[u8]) -> [u16; 2] {
    [0, 2].map(|place| u16::from_be_bytes([transport[place], transport[place + 1]]))
}

/// Every way that a datagram can take: what is sent, by whom, to whom, and as which it has to arrive.
struct Ways<'a> {
    lab: &'a Lab,
    from_inside: Socket,
    from_outside: Socket,
    at_inside: UdpSocket,
    at_outside: UdpSocket,
}

impl<'a> Ways<'a> {
    fn of(lab: &'a Lab) -> Self {
        lab.masquerade();
        lab.forward("udp", 5353, 53);
        Self {
            lab,
            from_inside: lab.inside.raw(INSIDE),
            from_outside: lab.outside.raw(OUTSIDE),
            at_inside: eavesdropper(&lab.inside),
            at_outside: eavesdropper(&lab.outside),
        }
    }

    /// Sends along all of them, and again when the flows are under way; each arrival is looked at.
    fn all(&self, make: impl Fn((Ipv4Addr, u16), (Ipv4Addr, u16), &[u8]) -> Frame, look: impl Fn(&[u8])) {
        // so that nobody answers that there is no such port
        let _held = [
            self.lab.inside.udp((INSIDE, 40000)),
            self.lab.inside.udp((INSIDE, 53)),
            self.lab.outside.udp((OUTSIDE, 5300)),
            self.lab.outside.udp((OUTSIDE, 6000)),
        ];
        let (client, server) = ((INSIDE, 40000), (OUTSIDE, 5300));
        let (caller, service) = ((OUTSIDE, 6000), (INSIDE, 53));
        let out = (&self.from_inside, &self.at_outside);
        let inward = (&self.from_outside, &self.at_inside);
        for round in 0..5u8 {
            for (way, (from, there), sent, seen) in [
                (0, out, (client, server), ((WAN, 40000), server)),
                (1, inward, (server, (WAN, 40000)), (server, client)),
                (2, inward, (caller, (WAN, 5353)), (caller, service)),
                (3, out, (service, caller), ((WAN, 5353), caller)),
            ] {
                let payload = [b"datagram".as_slice(), &[round, way]].concat();
                let packet = arrives(from, &make(sent.0, sent.1, &payload), there);
                let transport = &packet[usize::from(packet[0] & 15) * 4..];
                assert_eq!(addresses(&packet), [seen.0.0, seen.1.0]);
                assert_eq!(ports(transport), [seen.0.1, seen.1.1]);
                look(&packet);
            }
        }
        for host in [&self.lab.inside, &self.lab.outside] {
            assert_eq!(host.snmp("Udp", "InCsumErrors"), 0);
        }
    }
}

#[test]
fn a_datagram_without_checksum_arrives_without_one_whichever_way_it_goes() {
    let lab = Lab::new();
    let _worker = lab.start();
    Ways::of(&lab)
        .all(udp_without_checksum, |packet| assert_eq!(packet[26..28], [0, 0], "somebody has written one"));
}

#[test]
fn ip_options_arrive_with_the_datagram_whichever_way_it_goes() {
    let lab = Lab::new();
    let _worker = lab.start();
    Ways::of(&lab).all(
        |from, to, payload| udp(from, to, payload).options(&OPTIONS),
        |packet| {
            assert_eq!(packet[0], 0x47, "seven words of header");
            assert_eq!(packet[20..28], OPTIONS);
        },
    );
}

/// Every segment of the connection has the options from now on.
fn set_options(socket: &impl AsRawFd) {
    let length = libc::socklen_t::try_from(OPTIONS.len()).expect("eight");
    // SAFETY: the pointer and the length are those of a constant.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_OPTIONS,
            OPTIONS.as_ptr().cast(),
            length,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// Connects with the options in the very first segment; what is sent comes back.
fn converses(client: &Netns, to: (Ipv4Addr, u16), listener: &TcpListener) {
    let socket = client.run(|| Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket"));
    set_options(&socket);
    socket.set_read_timeout(Some(telecluster_tests::lab::PATIENCE)).expect("set a timeout");
    socket.connect(&SocketAddr::from(to).into()).expect("connect");
    let (mut far, _) = listener.accept().expect("accept");
    set_options(&far);
    let mut near: TcpStream = socket.into();
    let sent: Vec<u8> = (0..200_000u32).map(|place| place.to_le_bytes()[1]).collect();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut heard = vec![0; sent.len()];
            far.read_exact(&mut heard).expect("it arrives");
            assert!(heard == sent, "other bytes");
            far.write_all(&heard).expect("send it back");
        });
        near.write_all(&sent).expect("send");
        let mut back = vec![0; sent.len()];
        near.read_exact(&mut back).expect("it comes back");
        assert!(back == sent, "other bytes");
    });
}

#[test]
fn a_connection_whose_every_segment_has_options_carries_bulk_both_ways() {
    let lab = Lab::new();
    let _worker = lab.start();
    lab.masquerade();
    lab.forward("tcp", 2222, 22);
    converses(&lab.inside, (OUTSIDE, 5301), &lab.outside.listen((OUTSIDE, 5301)));
    converses(&lab.outside, (WAN, 2222), &lab.inside.listen((INSIDE, 22)));
    for host in [&lab.inside, &lab.outside] {
        assert_eq!(host.snmp("Tcp", "InCsumErrors"), 0);
    }
}

/// The state of the only TCP flow.
fn state(lab: &Lab) -> String {
    let flows = lab.get("/nat/flows?protocol=tcp");
    flows["flows"][0]["state"].as_str().unwrap_or_default().to_owned()
}

/// RFC 7857 section 2.2. Whoever knows the ports may send one; only the inside host knows by its number that it is none.
#[test]
fn a_forged_reset_ends_nothing_and_the_connection_is_soon_as_established_as_before() {
    let lab = Lab::new();
    let _worker = lab.start();
    lab.masquerade();
    let listener = lab.outside.listen((OUTSIDE, 5301));
    let mut near = lab.inside.connect((OUTSIDE, 5301)).expect("connect");
    let (mut far, seen) = listener.accept().expect("accept");
    let mut says = |from_inside: &[u8]| {
        near.write_all(from_inside).expect("send");
        let mut heard = vec![0; from_inside.len()];
        far.read_exact(&mut heard).expect("it arrives");
        far.write_all(&heard).expect("send it back");
        near.read_exact(&mut heard).expect("it comes back");
        assert_eq!(heard, from_inside);
    };
    says(b"before");
    eventually("it is established", || state(&lab) == "established");
    let forger = lab.outside.raw(OUTSIDE);
    let reset = tcp((OUTSIDE, 5301), (WAN, seen.port()), RST, b"");
    eventually("the reset got through", || {
        send_raw(&forger, &reset);
        state(&lab) == "reset"
    });
    says(b"after");
    eventually("it is established again", || state(&lab) == "established");
    says(b"still");
}
