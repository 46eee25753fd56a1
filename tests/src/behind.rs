//! Hosts behind the lab's own, each behind a router whose link to it is narrow. Only that router knows: the devices say 1500, and so
//! do both ends of a connection to each other.
//!
//! ```text
//!  server ---- 1300 ---- inside ---- worker ---- outside ---- 1300 ---- client
//! ```

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream},
    thread,
};

use crate::lab::{INSIDE, INSIDE6, Lab, Netns, WAN, WAN6};

pub const NARROW: u16 = 1300;

/// A host behind a router: its networks as text, prefixes without the last part, and its addresses in them.
#[derive(Debug, Clone, Copy)]
pub struct Behind {
    net: &'static str,
    net6: &'static str,
    pub ipv4: Ipv4Addr,
    pub ipv6: Ipv6Addr,
}

/// Behind the inside host.
pub const SERVER: Behind = Behind {
    net: "10.30.0",
    net6: "fd00:30",
    ipv4: Ipv4Addr::new(10, 30, 0, 10),
    ipv6: Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, 0x10),
};

/// Behind the outside host.
pub const CLIENT: Behind = Behind {
    net: "198.51.100",
    net6: "2001:db8:7",
    ipv4: Ipv4Addr::new(198, 51, 100, 7),
    ipv6: Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 7),
};

impl Behind {
    /// Makes a router of a host of the lab, and puts this host behind it.
    pub fn router(&self, router: &Netns) -> Netns {
        let far = Netns::new();
        router.veth("narrow", &far, "eth0");
        for line in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] {
            router.sh(&format!("sysctl -q -w {line}"));
        }
        router.ip("link set narrow up");
        far.ip("link set eth0 up");
        let Self { net, net6, ipv4, ipv6 } = self;
        router.ip(&format!("addr add {net}.1/24 dev narrow noprefixroute"));
        router.ip(&format!("addr add {net6}::1/64 dev narrow nodad noprefixroute"));
        router.ip(&format!("route add {net}.0/24 dev narrow mtu {NARROW}"));
        router.ip(&format!("-6 route add {net6}::/64 dev narrow mtu {NARROW}"));
        far.ip(&format!("addr add {ipv4}/24 dev eth0"));
        far.ip(&format!("addr add {ipv6}/64 dev eth0 nodad"));
        far.ip(&format!("route add default via {net}.1"));
        far.ip(&format!("-6 route add default via {net6}::1"));
        far
    }
}

/// The host behind the inside host, which the worker's host has a route to. IPv6 is on already.
pub fn server(lab: &Lab) -> Netns {
    let server = SERVER.router(&lab.inside);
    lab.router.ip(&format!("route add {}.0/24 via {INSIDE}", SERVER.net));
    lab.router.ip(&format!("-6 route add {}::/64 via {INSIDE6}", SERVER.net6));
    server
}

/// The host behind the outside host, which answers whoever is seen at the uplink's address. IPv6 is on already.
pub fn client(lab: &Lab) -> Netns {
    let client = CLIENT.router(&lab.outside);
    lab.outside.ip(&format!("route add 10.0.0.0/8 via {WAN}"));
    client
}

/// The address of a host in the family of another one.
pub fn alike(host: &Behind, other: IpAddr) -> IpAddr {
    match other {
        IpAddr::V4(_) => host.ipv4.into(),
        IpAddr::V6(_) => host.ipv6.into(),
    }
}

/// The uplink's addresses.
pub const WANS: [IpAddr; 2] = [IpAddr::V4(WAN), IpAddr::V6(WAN6)];

/// Everything arrives, in order.
pub fn carries(from: &mut TcpStream, to: &mut TcpStream) {
    let sent: Vec<u8> = (0..300_000u32).map(|place| place.to_le_bytes()[1]).collect();
    thread::scope(|scope| {
        scope.spawn(|| from.write_all(&sent).expect("send"));
        let mut heard = vec![0; sent.len()];
        to.read_exact(&mut heard).expect("it arrives");
        assert!(heard == sent, "other bytes");
    });
}
