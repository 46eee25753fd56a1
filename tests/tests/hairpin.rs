//! Inside hosts that use the uplink's address: RFC 4787 REQ-9, RFC 5382 REQ-8, RFC 5508 REQ-7, with real sockets.
//!
//! ```text
//!  192.168.100.10 server   --- lan0 \
//!                                    br-lab --- worker --- wan0 203.0.113.1 --- outside
//!  192.168.100.11 neighbour --- lan1 /             |
//!                                                lan2 10.20.0.1 --- 10.20.0.2 stranger (no rule is about it)
//! ```

#![expect(clippy::panic, reason = "a failure is a panic")]

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use telecluster_tests::{
    lab::{
        GATEWAY, GATEWAY6, INSIDE, INSIDE_NET6, INSIDE6, Lab, Netns, OUTSIDE, WAN, WAN6, eventually, rule_id,
    },
    on_each_data_plane,
    serving::serving,
    sockets::hopless,
};

const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(192, 168, 100, 11);
const NEIGHBOUR6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x100, 0, 0, 0, 0, 0, 0x11);
const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 2);
const STRANGER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x20, 0, 0, 0, 0, 0, 2);

/// Long enough for a datagram that was not lost, short enough to send again.
const PAUSE: Duration = Duration::from_millis(200);

on_each_data_plane!(
    every_inside_host_reaches_a_forward_by_the_uplinks_address,
    a_forward_without_hairpin_is_for_the_outside_only_and_the_hosts_services_stay_its_own,
    an_error_about_what_has_turned_back_comes_from_the_address_that_it_was_sent_to,
    datagrams_longer_than_the_mtu_turn_back_too,
    an_error_of_the_router_itself_is_about_what_was_sent_and_from_where_it_was_sent_to,
);

struct Hosts<'a> {
    lab: &'a Lab,
    neighbour: Netns,
    stranger: Netns,
}

impl<'a> Hosts<'a> {
    fn around(lab: &'a Lab) -> Self {
        lab.ipv6();
        if lab.dataplane() == Some("iptables") {
            // With it, what the server sends to itself would be turned back within the bridge: see `docs/fallback.md`.
            bridge_netfilter(&lab.router, false);
        }
        let (neighbour, stranger) = (Netns::new(), Netns::new());
        lab.router.veth("lan1", &neighbour, "eth0");
        lab.router.veth("lan2", &stranger, "eth0");
        for line in [
            "link set lan1 master br-lab",
            "link set lan1 up",
            "link set lan2 up",
            "addr add 10.20.0.1/24 dev lan2",
            "addr add fd00:20::1/64 dev lan2 nodad",
        ] {
            lab.router.ip(line);
        }
        let gateway2: (Ipv4Addr, Ipv6Addr) =
            (Ipv4Addr::new(10, 20, 0, 1), Ipv6Addr::new(0xfd00, 0x20, 0, 0, 0, 0, 0, 1));
        for (host, addresses, gateways) in [
            (&neighbour, (NEIGHBOUR, NEIGHBOUR6), (GATEWAY, GATEWAY6)),
            (&stranger, (STRANGER, STRANGER6), gateway2),
        ] {
            host.ip("link set eth0 up");
            host.ip(&format!("addr add {}/24 dev eth0", addresses.0));
            host.ip(&format!("addr add {}/64 dev eth0 nodad", addresses.1));
            host.ip(&format!("route add default via {}", gateways.0));
            host.ip(&format!("-6 route add default via {}", gateways.1));
        }
        Self { lab, neighbour, stranger }
    }

    /// Everybody inside, with an address of each family.
    fn clients(&self) -> [(&'static str, &Netns, IpAddr, IpAddr); 3] {
        [
            ("another network", &self.stranger, STRANGER.into(), STRANGER6.into()),
            ("the same network", &self.neighbour, NEIGHBOUR.into(), NEIGHBOUR6.into()),
            ("the server itself", &self.lab.inside, INSIDE.into(), INSIDE6.into()),
        ]
    }
}

/// Whether bridged frames pass iptables, which is the default of kernels that have it; false: this one has not.
fn bridge_netfilter(router: &Netns, on: bool) -> bool {
    let set = |family: &str| {
        let path = format!("/proc/sys/net/bridge/bridge-nf-call-{family}");
        std::fs::write(path, if on { "1" } else { "0" }).is_ok()
    };
    router.run(|| ["iptables", "ip6tables"].map(set) == [true; 2])
}

fn forward(lab: &Lab, port: u16, to: (IpAddr, u16), more: &Value) -> String {
    let mut body =
        json!({"external_port": port, "internal_ip": to.0, "internal_port": to.1, "protocol": "all"});
    for (name, value) in more.as_object().expect("an object") {
        body[name] = value.clone();
    }
    rule_id(&lab.post("/nat/forward", &body).ok())
}

/// Answers datagrams with the address that they came from.
fn answering(socket: UdpSocket) {
    thread::spawn(move || {
        let mut buffer = [0; 256];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(from.ip().to_string().as_bytes(), from);
        }
    });
}

/// What a datagram is answered with, from the very socket that it was sent to; sent again until it is.
fn asks(client: &UdpSocket, server: SocketAddr, why: &str) -> String {
    client.set_read_timeout(Some(PAUSE)).expect("set a timeout");
    let mut answer = String::new();
    eventually(&format!("{why}: no answer from {server}"), || {
        client.send_to(b"who", server).expect("send");
        let mut buffer = [0; 256];
        let Ok((len, from)) = client.recv_from(&mut buffer) else { return false };
        assert_eq!(from, server, "{why}: the answer comes from elsewhere");
        answer = String::from_utf8_lossy(&buffer[..len]).into_owned();
        true
    });
    answer
}

fn every_inside_host_reaches_a_forward_by_the_uplinks_address(lab: &Lab) {
    let hosts = Hosts::around(lab);
    let _worker = lab.start();
    lab.masquerade();
    for (server, wan) in [(IpAddr::from(INSIDE), IpAddr::from(WAN)), (INSIDE6.into(), WAN6.into())] {
        let rule = forward(lab, 8080, (server, 80), &json!({}));
        serving(lab.inside.listen((server, 80)));
        answering(lab.inside.udp((server, 80)));
        for (why, host, ipv4, ipv6) in hosts.clients() {
            let address = if server.is_ipv4() { ipv4 } else { ipv6 };
            let mut stream = host.connect((wan, 8080)).unwrap_or_else(|error| panic!("{why}: {error}"));
            let mut peer = [0; 64];
            stream.read_exact(&mut peer).expect("who I am");
            let peer = String::from_utf8_lossy(&peer).trim().to_owned();
            assert_eq!(peer, wan.to_string(), "{why}: the server sees the address outside (REQ-9a)");
            // More than one segment at once, and a checksum for each.
            let sent = vec![7; 100_000];
            let mut reader = stream.try_clone().expect("duplicate");
            thread::scope(|scope| {
                scope.spawn(|| stream.write_all(&sent).expect("send"));
                let mut back = vec![0; sent.len()];
                reader.read_exact(&mut back).expect("it comes back");
                assert!(back == sent, "{why}: other bytes");
            });
            let client = host.udp((address, 50000));
            assert_eq!(asks(&client, (wan, 8080).into(), why), wan.to_string(), "{why}");
        }
        let counters = lab.call("GET", &format!("/nat/forward/{rule}"), None).ok()["data"].clone();
        assert!(counters["bytes_in"].as_u64() > Some(300_000), "they count for the rule: {counters}");

        lab.call("DELETE", &format!("/nat/forward/{rule}"), None).ok();
        let refused = hosts.neighbour.connect((wan, 8080)).map(drop);
        assert!(refused.is_err(), "the forward is gone, and the host listens on no such port");
    }
}

fn a_forward_without_hairpin_is_for_the_outside_only_and_the_hosts_services_stay_its_own(lab: &Lab) {
    let hosts = Hosts::around(lab);
    let _worker = lab.start();
    lab.masquerade();
    forward(lab, 8080, (INSIDE.into(), 80), &json!({"hairpin": false}));
    let sources = json!({"source_cidrs": [format!("{STRANGER}/32")]});
    forward(lab, 8081, (INSIDE.into(), 80), &sources);
    serving(lab.inside.listen((INSIDE, 80)));
    serving(lab.router.listen((WAN, 9090)));
    assert!(lab.outside.connect((WAN, 8080)).is_ok());
    assert!(hosts.stranger.connect((WAN, 8081)).is_ok());
    for (client, port) in [(&hosts.neighbour, 8080), (&hosts.stranger, 8080), (&hosts.neighbour, 8081)] {
        let error = client.connect((WAN, port)).expect_err("as if the forward did not exist");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "the host answers: {error}");
    }
    assert!(hosts.neighbour.connect((WAN, 9090)).is_ok(), "a service of the host itself");
}

/// The host's own connections go through the same rules, and count.
#[test]
fn the_host_itself_reaches_a_forward_by_the_uplinks_address() {
    let lab = Lab::on("iptables");
    lab.ipv6();
    let _worker = lab.start();
    for (server, wan) in [(IpAddr::from(INSIDE), IpAddr::from(WAN)), (INSIDE6.into(), WAN6.into())] {
        let rule = forward(&lab, 8080, (server, 80), &json!({}));
        serving(lab.inside.listen((server, 80)));
        answering(lab.inside.udp((server, 80)));
        let mut stream = lab.router.connect((wan, 8080)).expect("connect");
        let mut peer = [0; 64];
        stream.read_exact(&mut peer).expect("who I am");
        assert_eq!(String::from_utf8_lossy(&peer).trim(), wan.to_string());
        drop(stream);
        let counted = || lab.call("GET", &format!("/nat/forward/{rule}"), None).ok()["data"].clone();
        eventually("SYN, answer, FIN and more", || counted()["packets_in"].as_u64() > Some(2));
        let client = lab.router.udp((wan, 50000));
        let before = counted()["packets_in"].as_u64().expect("a number");
        assert_eq!(asks(&client, (wan, 8080).into(), "the host"), wan.to_string());
        assert!(counted()["packets_in"].as_u64() > Some(before), "the first packet counts");
        lab.call("DELETE", &format!("/nat/forward/{rule}"), None).ok();
        assert!(lab.router.connect((wan, 8080)).is_err(), "nobody listens there any more");
    }
}

/// Then the kernel translates a neighbour's packets within the bridge.
#[test]
fn inside_hosts_reach_a_forward_when_bridged_frames_pass_iptables_too() {
    let lab = Lab::on("iptables");
    let hosts = Hosts::around(&lab);
    if !bridge_netfilter(&lab.router, true) {
        return eprintln!("this kernel passes no bridged frames to iptables; build machines' do");
    }
    let _worker = lab.start();
    for (server, wan) in [(IpAddr::from(INSIDE), IpAddr::from(WAN)), (INSIDE6.into(), WAN6.into())] {
        forward(&lab, 8080, (server, 80), &json!({}));
        serving(lab.inside.listen((server, 80)));
        for client in [&hosts.neighbour, &hosts.stranger] {
            let mut stream = client.connect((wan, 8080)).expect("connect");
            let mut peer = [0; 64];
            stream.read_exact(&mut peer).expect("who I am");
            assert_eq!(String::from_utf8_lossy(&peer).trim(), wan.to_string());
        }
    }
}

/// A restart adopts the lines for inside hosts with their counters, and a new address of the uplink gets lines of its own.
#[test]
fn lines_for_inside_hosts_are_adopted_and_follow_the_uplinks_addresses() {
    let lab = Lab::on("iptables");
    let hosts = Hosts::around(&lab);
    let worker = lab.start();
    lab.masquerade();
    forward(&lab, 8080, (INSIDE.into(), 80), &json!({}));
    serving(lab.inside.listen((INSIDE, 80)));
    assert!(hosts.stranger.connect((WAN, 8080)).is_ok());
    let turned = || {
        let saved = lab.sh("iptables-save -c -t nat");
        let lines =
            saved.lines().filter(|line| line.contains("-A TELECLUSTER-TURN-IN -d") && line.contains(" tcp "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let before = turned();
    assert!(matches!(&before[..], [line] if !line.starts_with("[0:0]")), "{before:?}");
    worker.murder();
    let _worker = lab.start();
    assert_eq!(turned(), before, "a restart keeps lines and counters");
    let second = Ipv4Addr::new(203, 0, 113, 77);
    lab.router.ip(&format!("addr add {second}/24 dev wan0"));
    eventually("the new address leads nowhere", || turned().len() == 2);
    assert!(hosts.stranger.connect((second, 8080)).is_ok());
    lab.router.ip(&format!("addr del {second}/24 dev wan0"));
    eventually("the old address still leads inside", || turned().len() == 1);
}

#[test]
fn two_inside_sockets_meet_by_their_external_ports_and_strangers_do_not() {
    let lab = &Lab::on("ebpf");
    let hosts = Hosts::around(lab);
    let _worker = lab.start();
    lab.masquerade();
    lab.post("/nat/masquerade", &json!({"source_network": INSIDE_NET6, "output_interface": "wan0"})).ok();
    // Somewhere outside that tells both how they appear (STUN).
    let meeting = lab.outside.udp((OUTSIDE, 3478));
    let first = lab.inside.udp((INSIDE, 40000));
    let second = hosts.neighbour.udp((NEIGHBOUR, 40000));
    let mut seen = Vec::new();
    for socket in [&first, &second] {
        socket.set_read_timeout(Some(PAUSE)).expect("set a timeout");
        meeting.set_read_timeout(Some(PAUSE)).expect("set a timeout");
        eventually("nothing arrives outside", || {
            socket.send_to(b"who", (OUTSIDE, 3478)).expect("send");
            let Ok((_, from)) = meeting.recv_from(&mut [0; 16]) else { return false };
            seen.push(from);
            true
        });
    }
    assert!(seen[0].ip() == IpAddr::from(WAN) && seen[0].port() != seen[1].port(), "{seen:?}");
    // The first one is not let in before the second has sent too: then both are (hole punching).
    first.send_to(b"one", seen[1]).expect("send");
    assert!(second.recv_from(&mut [0; 16]).is_err(), "it has not asked for that");
    eventually("they do not meet", || {
        first.send_to(b"one", seen[1]).expect("send");
        second.send_to(b"two", seen[0]).expect("send");
        let from = |socket: &UdpSocket| socket.recv_from(&mut [0; 16]).map(|(_, from)| from).ok();
        let heard = (from(&first), from(&second));
        for (heard, expected) in [(heard.0, seen[1]), (heard.1, seen[0])] {
            assert!(heard.is_none_or(|from| from == expected), "an inside address shows: {heard:?}");
        }
        heard == (Some(seen[1]), Some(seen[0]))
    });
}

fn an_error_about_what_has_turned_back_comes_from_the_address_that_it_was_sent_to(lab: &Lab) {
    let hosts = Hosts::around(lab);
    let _worker = lab.start();
    lab.masquerade();
    for (server, wan) in [(IpAddr::from(INSIDE), IpAddr::from(WAN)), (INSIDE6.into(), WAN6.into())] {
        // Nobody listens there.
        forward(lab, 5353, (server, 53), &json!({}));
        for (why, host, ipv4, ipv6) in hosts.clients() {
            let client = host.udp((if server.is_ipv4() { ipv4 } else { ipv6 }, 0));
            client.set_read_timeout(Some(PAUSE)).expect("set a timeout");
            client.connect((wan, 5353)).expect("connect");
            // Only an error from that very address and port, about this very one, reaches a connected socket.
            eventually(&format!("{why} is not told by {wan}"), || {
                let refused = |result: std::io::Result<usize>| {
                    result.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
                };
                refused(client.send(b"anybody?")) || refused(client.recv(&mut [0; 16]))
            });
        }
    }
    for host in [&hosts.neighbour, &hosts.stranger, &lab.inside] {
        assert_eq!(host.snmp("Icmp", "InCsumErrors"), 0);
    }
}

fn datagrams_longer_than_the_mtu_turn_back_too(lab: &Lab) {
    let hosts = Hosts::around(lab);
    let _worker = lab.start();
    lab.masquerade();
    let long: Vec<u8> = (0..4000u16).map(|place| place.to_le_bytes()[0]).collect();
    for (server, wan) in [(IpAddr::from(INSIDE), IpAddr::from(WAN)), (INSIDE6.into(), WAN6.into())] {
        forward(lab, 5353, (server, 53), &json!({}));
        let listener = lab.inside.udp((server, 53));
        thread::spawn(move || {
            let mut buffer = [0; 8192];
            while let Ok((len, from)) = listener.recv_from(&mut buffer) {
                let _ = listener.send_to(&buffer[..len], from);
            }
        });
        for (why, host, ipv4, ipv6) in hosts.clients() {
            let client = host.udp((if server.is_ipv4() { ipv4 } else { ipv6 }, 0));
            client.set_read_timeout(Some(PAUSE)).expect("set a timeout");
            eventually(&format!("{why}: no long answer from {wan}"), || {
                client.send_to(&long, (wan, 5353)).expect("send");
                let mut buffer = [0; 8192];
                let Ok((len, from)) = client.recv_from(&mut buffer) else { return false };
                assert_eq!(from, (wan, 5353).into(), "{why}: the answer comes from elsewhere");
                assert!(buffer[..len] == long, "{why}: other bytes");
                true
            });
        }
    }
}

/// The router is between the two halves: what its own errors embed is a packet as nobody has sent it.
fn an_error_of_the_router_itself_is_about_what_was_sent_and_from_where_it_was_sent_to(lab: &Lab) {
    let hosts = Hosts::around(lab);
    let _worker = lab.start();
    lab.masquerade();
    for (server, wan) in [(IpAddr::from(INSIDE), IpAddr::from(WAN)), (INSIDE6.into(), WAN6.into())] {
        forward(lab, 8080, (server, 80), &json!({}));
        serving(lab.inside.listen((server, 80)));
        for (why, host, ipv4, ipv6) in hosts.clients() {
            // no hops left: only what is about this very socket is told to it
            let client = host.udp((if server.is_ipv4() { ipv4 } else { ipv6 }, 0));
            client.connect((wan, 8080)).expect("connect");
            hopless(&client, server);
            client.set_read_timeout(Some(PAUSE)).expect("set a timeout");
            eventually(&format!("{why} is not told by {wan}"), || {
                let told = |result: std::io::Result<usize>| {
                    result.is_err_and(|error| error.kind() == std::io::ErrorKind::HostUnreachable)
                };
                told(client.send(b"how far?")) || told(client.recv(&mut [0; 16]))
            });
        }
        // too narrow: a connection stalls unless its sender is told
        lab.router.ip(&format!("route add {server} dev br-lab mtu 1300"));
        for (why, host, _, _) in hosts.clients() {
            let mut stream = host.connect((wan, 8080)).unwrap_or_else(|error| panic!("{why}: {error}"));
            let mut reader = stream.try_clone().expect("duplicate");
            reader.read_exact(&mut [0; 64]).expect("who I am");
            let sent = vec![7; 100_000];
            thread::scope(|scope| {
                scope.spawn(|| stream.write_all(&sent).expect("send"));
                let mut back = vec![0; sent.len()];
                reader.read_exact(&mut back).unwrap_or_else(|error| panic!("{why}: {error}"));
                assert!(back == sent, "{why}: other bytes");
            });
        }
    }
    for host in [&hosts.neighbour, &hosts.stranger, &lab.inside] {
        assert_eq!(host.snmp("Icmp", "InCsumErrors"), 0);
    }
}
