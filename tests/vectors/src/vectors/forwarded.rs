//! What comes in by a forward: of a port, of a range, for some networks only.

use std::net::IpAddr;

use ipnet::IpNet;
use telecluster_common::{drop::DropReason, maps::Direction};

use super::{Cast, Rule, Step, Vector, forward, inward, out, range, untouched};
use crate::frame::{ACK, FIN, RST, SYN, TCP, UDP, icmp, tcp, udp, udp_without_checksum};

pub(super) fn forward_vectors(cast: Cast) -> Vec<Vector> {
    let masquerade = || cast.masquerade();
    let (ssh, client) = ((cast.inside, 22), (cast.remote, 50000));
    let external = (cast.uplink, 2222);
    let tcp_forward = vec![
        inward(&tcp(client, external, SYN, b""), &tcp(client, ssh, SYN, b"")),
        out(&tcp(ssh, client, SYN | ACK, b""), &tcp(external, client, SYN | ACK, b"")),
        inward(&tcp(client, external, ACK, b"SSH-2.0"), &tcp(client, ssh, ACK, b"SSH-2.0")),
    ];
    let dns = (cast.other_inside, 5353);
    let plain = |src, dst| udp_without_checksum(src, dst, b"q");
    vec![
        Vector {
            name: "a forwarded TCP port leads inside and the answers come from it",
            rules: vec![forward(TCP, 2222, ssh)],
            steps: tcp_forward.clone(),
        },
        Vector {
            name: "a forwarded UDP port leads inside and the answers come from it",
            rules: vec![forward(UDP, 53, dns)],
            steps: vec![
                inward(&udp(client, (cast.uplink, 53), b"q"), &udp(client, dns, b"q")),
                out(&udp(dns, client, b"a"), &udp((cast.uplink, 53), client, b"a")),
            ],
        },
        Vector {
            name: "a datagram without checksum stays without when its port changes",
            rules: vec![forward(UDP, 53, dns)],
            steps: vec![
                inward(&plain(client, (cast.uplink, 53)), &plain(client, dns)),
                out(&plain(dns, client), &plain((cast.uplink, 53), client)),
                // under way
                inward(&plain(client, (cast.uplink, 53)), &plain(client, dns)),
                out(&plain(dns, client), &plain((cast.uplink, 53), client)),
            ],
        },
        Vector {
            name: "answers of a forward keep its port when the network is masqueraded too",
            rules: vec![masquerade(), forward(TCP, 2222, ssh)],
            steps: tcp_forward,
        },
        Vector {
            name: "one port leads to different hosts by protocol",
            rules: vec![forward(TCP, 2222, ssh), forward(UDP, 2222, dns)],
            steps: vec![
                inward(&tcp(client, external, SYN, b""), &tcp(client, ssh, SYN, b"")),
                inward(&udp(client, external, b"q"), &udp(client, dns, b"q")),
            ],
        },
        Vector {
            name: "a forward of another address of the host does not match",
            rules: vec![restricted(forward(TCP, 2222, ssh), Some(cast.gateway), None)],
            steps: vec![
                untouched(Direction::In, tcp(client, external, SYN, b"").bytes()),
                inward(&tcp(client, (cast.gateway, 2222), SYN, b""), &tcp(client, ssh, SYN, b"")),
            ],
        },
        Vector {
            name: "transit traffic to a forwarded port is nobody's business",
            rules: vec![forward(TCP, 2222, ssh)],
            steps: vec![untouched(Direction::In, tcp(client, (cast.stranger, 2222), SYN, b"").bytes())],
        },
        Vector {
            name: "a segment of no connection is left to the host to reset",
            rules: vec![forward(TCP, 2222, ssh)],
            steps: [ACK, SYN | ACK, RST, FIN, SYN | FIN, 0]
                .into_iter()
                .map(|flags| untouched(Direction::In, tcp(client, external, flags, b"").bytes()))
                .collect(),
        },
        Vector {
            name: "the host's own pings are not forwarded",
            rules: vec![forward(TCP, 2222, ssh), masquerade()],
            steps: vec![
                untouched(Direction::In, icmp(cast.remote, cast.uplink, cast.echo, 5, b"x").bytes()),
                untouched(Direction::Out, icmp(cast.uplink, cast.remote, cast.echo_reply, 5, b"x").bytes()),
            ],
        },
    ]
}

pub(super) fn range_vectors(cast: Cast) -> Vec<Vector> {
    let client = (cast.remote, 50000);
    let whole = |port, inside| {
        inward(&udp(client, (cast.uplink, port), b"q"), &udp(client, (cast.inside, inside), b"q"))
    };
    let not_ours = |port| untouched(Direction::In, udp(client, (cast.uplink, port), b"q").bytes());
    vec![
        Vector {
            name: "each port of a range leads to the one that is as far from the first",
            rules: vec![range(UDP, 5001..=6998, (cast.inside, 100))],
            steps: vec![
                whole(5001, 100),
                whole(5002, 101),
                whole(6144, 1243),
                whole(6998, 2097),
                not_ours(5000),
                not_ours(6999),
                out(&udp((cast.inside, 1243), client, b"a"), &udp((cast.uplink, 6144), client, b"a")),
            ],
        },
        Vector {
            name: "a range may end with the last port and lead below its own ports or above",
            rules: vec![range(UDP, 65530..=65535, (cast.inside, 1)), range(UDP, 1..=3, (cast.inside, 65533))],
            steps: vec![whole(65530, 1), whole(65535, 6), not_ours(65529), whole(1, 65533), whole(3, 65535)],
        },
        Vector {
            name: "a range is of one protocol and of one address",
            rules: vec![restricted(range(UDP, 5000..=5009, (cast.inside, 5000)), Some(cast.gateway), None)],
            steps: vec![
                not_ours(5004),
                untouched(Direction::In, tcp(client, (cast.gateway, 5004), SYN, b"").bytes()),
                inward(&udp(client, (cast.gateway, 5004), b"q"), &udp(client, (cast.inside, 5004), b"q")),
            ],
        },
        Vector {
            name: "with its rule, all flows of a range end",
            rules: vec![range(UDP, 5000..=5009, (cast.inside, 5000)), forward(UDP, 53, (cast.inside, 53))],
            steps: vec![whole(5003, 5003), Step::Remove(0), not_ours(5003), not_ours(5004), whole(53, 53)],
        },
        Vector {
            name: "no inside host gets a port of a range",
            rules: vec![cast.masquerade(), range(UDP, 1024..=65535, (cast.other_inside, 1024))],
            steps: vec![Step::Dropped {
                direction: Direction::Out,
                frame: udp((cast.inside, 40000), (cast.remote, 53), b"q").bytes(),
                reason: DropReason::PortsExhausted,
            }],
        },
    ]
}

pub(super) fn source_vectors(cast: Cast) -> Vec<Vector> {
    let (guest, stranger) = ((cast.remote, 50000), (cast.stranger, 50000));
    let host_bits = if cast.remote.is_ipv4() { 32 } else { 128 };
    let net = |bits: u8| IpNet::new(cast.remote, host_bits - bits).expect("a network").trunc();
    let (web, ports) = ((cast.inside, 80), (cast.inside, 5000));
    let reaches = |port, inside| {
        inward(&udp(guest, (cast.uplink, port), b"q"), &udp(guest, (cast.inside, inside), b"q"))
    };
    let refused = |port| untouched(Direction::In, udp(stranger, (cast.uplink, port), b"q").bytes());
    let rules = |bits| {
        vec![
            restricted(forward(UDP, 8080, web), None, Some(net(bits))),
            restricted(range(UDP, 5000..=5009, ports), None, Some(net(bits))),
        ]
    };
    vec![
        Vector {
            name: "a forward for one network does not exist for others",
            rules: rules(8),
            steps: vec![reaches(8080, 80), refused(8080), reaches(5007, 5007), refused(5007)],
        },
        Vector {
            name: "a forward may be for one address",
            rules: rules(0),
            steps: vec![reaches(8080, 80), refused(8080)],
        },
        Vector {
            name: "a forward for one network leaves the next one open to everybody",
            rules: vec![restricted(forward(UDP, 8080, web), None, Some(net(8))), forward(UDP, 8081, web)],
            steps: vec![
                refused(8080),
                inward(&udp(stranger, (cast.uplink, 8081), b"q"), &udp(stranger, web, b"q")),
                Step::Remove(0),
                untouched(Direction::In, udp(guest, (cast.uplink, 8080), b"q").bytes()),
            ],
        },
    ]
}

/// The same forward, for one address and one network only.
fn restricted(rule: Rule, to_address: Option<IpAddr>, to_source: Option<IpNet>) -> Rule {
    match rule {
        Rule::Forward { proto, ports, to, .. } => {
            Rule::Forward { proto, ports, to, address: to_address, sources: to_source.into_iter().collect() }
        }
        Rule::Masquerade { .. } => rule,
    }
}
