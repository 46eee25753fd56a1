//! What rules leave alone with the fast path in drivers, on real packets: destinations that a masquerade excludes, and those whom a
//! forward is not open to. Their hosts know each other, so that drivers ask the rules.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use serde_json::{Value, json};
use telecluster_tests::{
    drivers::{FLOWS, lab, sent_in_drivers, until_in_drivers, whole_checksums},
    lab::{INSIDE, INSIDE_NET, INSIDE_NET6, INSIDE6, Lab, OUTSIDE, OUTSIDE6, WAN, WAN6},
    sockets::asks_from,
};

/// Another site, which has a route to the inside.
const SITE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const SITE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 7);

/// Who takes part, in one address family.
#[derive(Clone, Copy)]
struct Cast {
    network: &'static str,
    inside: IpAddr,
    wan: IpAddr,
    outside: IpAddr,
    site: IpAddr,
}

const CASTS: [Cast; 2] = [
    Cast {
        network: INSIDE_NET,
        inside: IpAddr::V4(INSIDE),
        wan: IpAddr::V4(WAN),
        outside: IpAddr::V4(OUTSIDE),
        site: IpAddr::V4(SITE),
    },
    Cast {
        network: INSIDE_NET6,
        inside: IpAddr::V6(INSIDE6),
        wan: IpAddr::V6(WAN6),
        outside: IpAddr::V6(OUTSIDE6),
        site: IpAddr::V6(SITE6),
    },
];

fn site_lab() -> Lab {
    let lab = lab();
    lab.ipv6();
    whole_checksums(&lab);
    lab.outside.ip(&format!("addr add {SITE}/32 dev lo"));
    lab.outside.ip(&format!("addr add {SITE6}/128 dev lo nodad"));
    lab.outside.ip(&format!("route add {INSIDE_NET} via {WAN}"));
    lab.outside.ip(&format!("-6 route add {INSIDE_NET6} via {WAN6}"));
    lab.router.ip(&format!("-6 route add default via {OUTSIDE6}"));
    lab
}

fn forward(lab: &Lab, cast: Cast, ports: (u16, u16), sources: &Value) {
    let body = json!({
        "external_port": ports.0, "internal_ip": cast.inside, "internal_port": ports.1, "protocol": "udp",
        "source_cidrs": sources,
    });
    lab.post("/nat/forward", &body).ok();
}

#[test]
fn what_goes_to_an_excluded_destination_leaves_as_it_came() {
    let lab = site_lab();
    let _worker = lab.start();
    for cast in CASTS {
        let masquerade = json!({
            "source_network": cast.network, "output_interface": "wan0", "exclude_destinations": [cast.site],
        });
        lab.post("/nat/masquerade", &masquerade).ok();
        forward(&lab, cast, (5353, 53), &json!([]));
        let (server, site) = (lab.inside.udp((cast.inside, 53)), lab.outside.udp((cast.site, 5300)));
        let door = SocketAddr::new(cast.wan, 5353);
        let known = || until_in_drivers(&lab, || asks_from(&lab.outside, cast.site, &server, door));
        known();
        let before = sent_in_drivers(&lab);
        for _ in 0..FLOWS {
            let client = lab.inside.udp((cast.inside, 0));
            client.connect((cast.site, 5300)).expect("connect");
            client.send(b"who").expect("send");
            let (_, from) = site.recv_from(&mut [0; 16]).expect("a datagram");
            assert_eq!(from, client.local_addr().expect("an address"));
            site.send_to(b"you", from).expect("answer");
            client.recv(&mut [0; 16]).expect("the answer");
        }
        assert_eq!(sent_in_drivers(&lab), before, "nothing of it is a driver's");
        let flows = lab.get("/nat/flows?limit=1000");
        let mut flows = flows["flows"].as_array().expect("flows").iter();
        assert!(flows.all(|flow| flow["remote_port"] != 5300), "it has a flow");
        known();
        // Others are translated there.
        let other = lab.outside.udp((cast.outside, 5301));
        until_in_drivers(&lab, || {
            let client = lab.inside.udp((cast.inside, 0));
            client.connect((cast.outside, 5301)).expect("connect");
            client.send(b"who").expect("send");
            let (_, from) = other.recv_from(&mut [0; 16]).expect("a datagram");
            assert_eq!(from.ip(), cast.wan);
            other.send_to(b"you", from).expect("answer");
            client.recv(&mut [0; 16]).expect("the answer");
        });
    }
}

#[test]
fn whom_a_forward_is_not_open_to_is_answered_by_the_router() {
    /// Fewer than errors that the kernel sends to one host at once (`icmp_ratelimit`).
    const STRANGERS: usize = 4;
    let lab = site_lab();
    let _worker = lab.start();
    for cast in CASTS {
        forward(&lab, cast, (5353, 53), &json!([]));
        forward(&lab, cast, (5500, 600), &json!([cast.outside]));
        let (open, some) = (lab.inside.udp((cast.inside, 53)), lab.inside.udp((cast.inside, 600)));
        let [open_door, door] = [5353, 5500].map(|port| SocketAddr::new(cast.wan, port));
        let known = || until_in_drivers(&lab, || asks_from(&lab.outside, cast.site, &open, open_door));
        known();
        until_in_drivers(&lab, || asks_from(&lab.outside, cast.outside, &some, door));
        let before = sent_in_drivers(&lab);
        for _ in 0..STRANGERS {
            let stranger = lab.outside.udp((cast.site, 0));
            stranger.connect(door).expect("connect");
            stranger.send(b"let me in").expect("send");
            let answer = stranger.recv(&mut [0; 16]).expect_err("nobody answers");
            assert_eq!(answer.kind(), ErrorKind::ConnectionRefused, "the router has nobody there");
        }
        assert_eq!(sent_in_drivers(&lab), before, "nothing of it is a driver's");
        some.set_nonblocking(true).expect("not blocking");
        let got = some.recv(&mut [0; 16]).expect_err("a stranger was let in");
        assert_eq!(got.kind(), ErrorKind::WouldBlock);
        known();
    }
}
