//! Mapping and filtering as sockets on both sides see them: RFC 4787, RFC 5382, RFC 5508.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use telecluster_tests::lab::{INSIDE, INSIDE_NET, Lab, OUTSIDE, PATIENCE, WAN, Worker};

/// Two more hosts outside.
const PEER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 3);
const STRANGER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 4);

fn lab(nat_type: &str) -> (Lab, Worker) {
    let lab = Lab::new();
    for address in [PEER, STRANGER] {
        lab.outside.ip(&format!("addr add {address}/24 dev eth0"));
    }
    let worker = lab.start();
    let body = json!({"source_network": INSIDE_NET, "output_interface": "wan0", "nat_type": nat_type});
    let answer = lab.post("/nat/masquerade", &body).ok();
    assert_eq!(answer["data"]["nat_type"], nat_type);
    (lab, worker)
}

/// Sends from `from` to `to`; the address that it comes from there.
fn reaches(from: &UdpSocket, to: &UdpSocket) -> SocketAddr {
    from.send_to(b"q", to.local_addr().expect("an address")).expect("send");
    to.recv_from(&mut [0; 16]).expect("a datagram").1
}

/// Whether a datagram to an external port reaches the inside socket.
fn gets_in(from: &UdpSocket, external: SocketAddr, inside: &UdpSocket) -> bool {
    from.send_to(b"in", external).expect("send");
    inside.set_read_timeout(Some(Duration::from_millis(300))).expect("set a timeout");
    match inside.recv_from(&mut [0; 16]) {
        Ok((_, source)) => {
            assert_eq!(source, from.local_addr().expect("an address"));
            true
        }
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            false
        }
    }
}

#[test]
fn the_mapping_does_not_depend_on_the_destination_and_the_filter_on_its_address_only() {
    let (lab, _worker) = lab("restricted");
    let inside = lab.inside.udp((INSIDE, 40000));
    let [server, other_port] = [5300, 5301].map(|port| lab.outside.udp((OUTSIDE, port)));
    let (peer, stranger) = (lab.outside.udp((PEER, 5300)), lab.outside.udp((STRANGER, 5300)));
    let external = reaches(&inside, &server);
    assert_eq!(external, SocketAddr::from((WAN, 40000)), "port preservation");
    assert_eq!(reaches(&inside, &peer), external, "RFC 4787 REQ-1");
    assert!(gets_in(&server, external, &inside));
    assert!(gets_in(&other_port, external, &inside), "RFC 4787 REQ-8: address-dependent");
    assert!(!gets_in(&stranger, external, &inside));
    // and it was not answered either: a port unreachable would close the stranger's socket
    stranger.connect(external).expect("connect");
    stranger.send(b"again").expect("send");
    stranger.set_read_timeout(Some(Duration::from_millis(200))).expect("set a timeout");
    let error = stranger.recv(&mut [0; 16]).expect_err("an answer");
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    let metrics = lab.get("/metrics");
    let text = metrics.as_str().expect("text");
    assert!(text.lines().any(|l| l.contains("reason=\"filtered\"") && l.ends_with(" 2")), "{text}");
}

#[test]
fn a_full_cone_lets_strangers_in_and_a_symmetric_rule_nobody_else() {
    let (lab, _worker) = lab("full_cone");
    let inside = lab.inside.udp((INSIDE, 40000));
    let server = lab.outside.udp((OUTSIDE, 5300));
    let stranger = lab.outside.udp((STRANGER, 5300));
    let external = reaches(&inside, &server);
    assert!(gets_in(&stranger, external, &inside));

    let body = json!({"source_network": INSIDE_NET, "output_interface": "wan0", "nat_type": "symmetric"});
    lab.post("/nat/masquerade", &body).ok();
    assert!(!gets_in(&stranger, external, &inside), "the old binding went with the old rule");
    let peer = lab.outside.udp((PEER, 5300));
    let towards = [&server, &peer].map(|remote| reaches(&inside, remote));
    assert_ne!(towards[0].port(), towards[1].port());
    assert!(gets_in(&server, towards[0], &inside));
    assert!(!gets_in(&peer, towards[0], &inside));
}

#[test]
fn a_peer_that_connects_too_early_gets_no_reset_and_both_meet_by_simultaneous_open() {
    let (lab, _worker) = lab("restricted");
    let here = lab.inside.run(|| bound(SocketAddr::from((INSIDE, 41000))));
    let there = lab.outside.run(|| bound(SocketAddr::from((PEER, 42000))));
    let external = SocketAddr::from((WAN, 41000));
    thread::scope(|scope| {
        let far = scope.spawn(|| lab.outside.run(|| there.connect(&external.into()).map(|()| there)));
        // its first SYN has come and is gone (RFC 5382 REQ-4); it says so again every second
        wait_for(|| lab.get("/metrics").as_str().expect("text").lines().any(dropped_unsolicited));
        let near = scope.spawn(|| {
            let peer = SocketAddr::from((PEER, 42000));
            lab.inside.run(|| here.connect(&peer.into()).map(|()| here))
        });
        let mut near: TcpStream = near.join().expect("a thread").expect("connect from inside").into();
        let mut far: TcpStream = far.join().expect("a thread").expect("connect from outside").into();
        near.write_all(b"hello").expect("send");
        let mut buffer = [0; 5];
        far.read_exact(&mut buffer).expect("receive");
        assert_eq!(&buffer, b"hello");
    });
}

fn dropped_unsolicited(line: &str) -> bool {
    line.contains("reason=\"unsolicited\"") && !line.ends_with(" 0")
}

fn wait_for(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "it did not come about");
        thread::sleep(Duration::from_millis(20));
    }
}

fn bound(address: SocketAddr) -> socket2::Socket {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.set_reuse_address(true).expect("reuse");
    socket.bind(&address.into()).expect("bind");
    socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    socket
}

#[test]
fn the_host_s_own_connections_and_services_work_beside_it() {
    let (lab, _worker) = lab("restricted");
    let inside = lab.inside.udp((INSIDE, 40000));
    let server = lab.outside.udp((OUTSIDE, 5300));
    reaches(&inside, &server);
    // the host uses the very port towards the very server
    let own = lab.router.udp((WAN, 40000));
    own.send_to(b"own", (OUTSIDE, 5300)).expect("send");
    let (_, from) = server.recv_from(&mut [0; 16]).expect("the host's datagram");
    assert_ne!(from, SocketAddr::from((WAN, 40000)), "its answers would go inside");
    server.send_to(b"answer", from).expect("answer");
    let mut buffer = [0; 16];
    let (len, source) = own.recv_from(&mut buffer).expect("the answer");
    assert_eq!((&buffer[..len], source), (&b"answer"[..], SocketAddr::from((OUTSIDE, 5300))));
    // and strangers reach the host's socket
    let stranger = lab.outside.udp((STRANGER, 9));
    stranger.send_to(b"x", (WAN, 40000)).expect("send");
    assert_eq!(own.recv_from(&mut buffer).expect("a datagram").0, 1);
    // a TCP service, and a ping of the host's own
    let listener = lab.router.listen((WAN, 8080));
    let _client = lab.outside.connect((WAN, 8080)).expect("connect to the host");
    listener.accept().expect("accept");
    let text = lab.router.sh(&format!("ping -n -c 1 -W 2 {OUTSIDE}"));
    assert!(text.contains("1 received"), "{text}");
}
