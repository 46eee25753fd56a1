//! Path MTU discovery: a router behind each side has a narrow link, and says so to the sender through the NAT.
//!
//! ```text
//!  server ---- 1300 ---- inside ---- worker ---- outside ---- 1300 ---- client
//! ```

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream},
    thread,
};

use serde_json::{Value, json};
use telecluster_tests::lab::{INSIDE, INSIDE6, Lab, Netns, OUTSIDE6, WAN, WAN6, eventually};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 30, 0, 10);
const SERVER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, 0x10);
const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 7);
const NARROW: u16 = 1300;

/// The networks of whoever is behind, as text: prefixes without the last part.
struct Behind {
    net: &'static str,
    net6: &'static str,
}

/// Makes a router of a host of the lab and puts a host behind it. Only the router knows how narrow the way there is: the
/// devices say 1500, and so do both ends of a connection to each other.
fn behind(router: &Netns, host: (Ipv4Addr, Ipv6Addr), nets: &Behind) -> Netns {
    let far = Netns::new();
    router.veth("narrow", &far, "eth0");
    for line in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] {
        router.sh(&format!("sysctl -q -w {line}"));
    }
    router.ip("link set narrow up");
    far.ip("link set eth0 up");
    let Behind { net, net6 } = nets;
    router.ip(&format!("addr add {net}.1/24 dev narrow noprefixroute"));
    router.ip(&format!("addr add {net6}::1/64 dev narrow nodad noprefixroute"));
    router.ip(&format!("route add {net}.0/24 dev narrow mtu {NARROW}"));
    router.ip(&format!("-6 route add {net6}::/64 dev narrow mtu {NARROW}"));
    far.ip(&format!("addr add {}/24 dev eth0", host.0));
    far.ip(&format!("addr add {}/64 dev eth0 nodad", host.1));
    far.ip(&format!("route add default via {net}.1"));
    far.ip(&format!("-6 route add default via {net6}::1"));
    far
}

struct Hosts {
    lab: Lab,
    server: Netns,
    client: Netns,
}

impl Hosts {
    fn new() -> Self {
        let lab = Lab::new();
        lab.ipv6();
        let (inner, outer) =
            (Behind { net: "10.30.0", net6: "fd00:30" }, Behind { net: "198.51.100", net6: "2001:db8:7" });
        let server = behind(&lab.inside, (SERVER, SERVER6), &inner);
        let client = behind(&lab.outside, (CLIENT, CLIENT6), &outer);
        lab.router.ip(&format!("route add 10.30.0.0/24 via {INSIDE}"));
        lab.router.ip(&format!("-6 route add fd00:30::/64 via {INSIDE6}"));
        lab.router.ip(&format!("-6 route add default via {OUTSIDE6}"));
        lab.outside.ip(&format!("route add 10.0.0.0/8 via {WAN}"));
        Self { lab, server, client }
    }
}

/// Everything arrives, in order, and nothing has to be said twice for it.
fn carries(from: &mut TcpStream, to: &mut TcpStream) {
    let sent: Vec<u8> = (0..300_000u32).map(|place| place.to_le_bytes()[1]).collect();
    thread::scope(|scope| {
        scope.spawn(|| from.write_all(&sent).expect("send"));
        let mut heard = vec![0; sent.len()];
        to.read_exact(&mut heard).expect("it arrives");
        assert!(heard == sent, "other bytes");
    });
}

/// Has learned how narrow the way to this address is.
fn knows(host: &Netns, address: IpAddr) {
    let route = || host.sh(&format!("ip route get {address}"));
    eventually("nobody has told how narrow it is", || route().contains(&format!("mtu {NARROW}")));
}

#[test]
fn a_connection_goes_through_narrow_links_behind_either_side() {
    let Hosts { lab, server, client } = Hosts::new();
    let _worker = lab.start();
    for source in ["10.30.0.0/24", "fd00:30::/64"] {
        let body = json!({"source_network": source, "output_interface": "wan0"});
        lab.post("/nat/masquerade", &body).ok();
    }
    let families: [[IpAddr; 3]; 2] =
        [[SERVER.into(), CLIENT.into(), WAN.into()], [SERVER6.into(), CLIENT6.into(), WAN6.into()]];
    for [server_ip, client_ip, wan] in families {
        let body: Value = json!({"external_port": 8080, "internal_ip": server_ip, "internal_port": 80});
        lab.post("/nat/forward", &body).ok();
        // out through the masquerade: the router outside tells
        let listener = client.listen((client_ip, 5301));
        let mut near = server.connect((client_ip, 5301)).expect("connect to the outside");
        let (mut far, seen) = listener.accept().expect("accept");
        assert_eq!(seen.ip(), wan);
        far.set_read_timeout(Some(telecluster_tests::lab::PATIENCE)).expect("set a timeout");
        carries(&mut near, &mut far);
        knows(&server, client_ip);
        carries(&mut far, &mut near);
        // in through the forward: the router inside tells
        let listener = server.listen((server_ip, 80));
        let mut near = client.connect((wan, 8080)).expect("connect to the forward");
        let (mut far, _) = listener.accept().expect("accept");
        far.set_read_timeout(Some(telecluster_tests::lab::PATIENCE)).expect("set a timeout");
        carries(&mut near, &mut far);
        knows(&client, wan);
        carries(&mut far, &mut near);
    }
    for host in [&server, &client] {
        assert_eq!(host.snmp("Icmp", "InCsumErrors"), 0);
        assert_eq!(host.snmp("Tcp", "InCsumErrors"), 0);
    }
}
