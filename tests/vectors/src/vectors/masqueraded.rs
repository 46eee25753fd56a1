//! What leaves under the uplink's address, and its answers.

use std::net::IpAddr;

use ipnet::IpNet;
use telecluster_common::{
    drop::DropReason,
    maps::{Direction, rule},
};

use super::{Cast, IPV4, IPV6, Rule, Step, Vector, dropped_in, errors::errors, inward, out, untouched};
use crate::frame::{ACK, FIN, Frame, RST, SYN, UDP, icmp, icmp_error, tcp, udp, udp_without_checksum};

pub(super) fn masquerade_vectors(cast: Cast) -> Vec<Vector> {
    let masquerade = || cast.masquerade();
    let external = |port| (cast.uplink, port);
    let (inside, remote) = ((cast.inside, 40000), (cast.remote, 443));
    let handshake = [
        out(&tcp(inside, remote, SYN, b""), &tcp(external(40000), remote, SYN, b"")),
        inward(&tcp(remote, external(40000), SYN | ACK, b""), &tcp(remote, inside, SYN | ACK, b"")),
        out(&tcp(inside, remote, ACK, b"GET"), &tcp(external(40000), remote, ACK, b"GET")),
    ];
    let ending = [
        inward(&tcp(remote, external(40000), FIN | ACK, b""), &tcp(remote, inside, FIN | ACK, b"")),
        out(&tcp(inside, remote, FIN | ACK, b""), &tcp(external(40000), remote, FIN | ACK, b"")),
        inward(&tcp(remote, external(40000), ACK, b""), &tcp(remote, inside, ACK, b"")),
    ];
    let reset = [
        inward(&tcp(remote, external(40000), RST, b""), &tcp(remote, inside, RST, b"")),
        out(&tcp(inside, remote, ACK, b"x"), &tcp(external(40000), remote, ACK, b"x")),
    ];
    let without = |src, dst| udp_without_checksum(src, dst, b"q");
    let ping = |src, dst, kind| icmp(src, dst, kind, 77, b"abc");
    let time =
        |src: IpAddr, dst: IpAddr, kind| icmp(src, dst, kind, 78, &[1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut vectors = vec![
        Vector {
            name: "a masqueraded datagram goes out with the uplink's address and its answer comes back",
            rules: vec![masquerade()],
            steps: cast.udp_exchange(40000, b"query").to_vec(),
        },
        Vector {
            name: "a datagram without checksum stays without",
            rules: vec![masquerade()],
            steps: vec![
                out(&without(inside, remote), &without(external(40000), remote)),
                inward(&without(remote, external(40000)), &without(remote, inside)),
            ],
        },
        Vector {
            name: "a masqueraded TCP connection opens, carries data and ends",
            rules: vec![masquerade()],
            steps: handshake.iter().chain(&ending).cloned().collect(),
        },
        Vector {
            name: "a reset from outside does not end a connection at once",
            rules: vec![masquerade()],
            steps: handshake.iter().chain(&reset).cloned().collect(),
        },
        Vector {
            name: "a ping goes out and its answer comes back, by identifier",
            rules: vec![masquerade()],
            steps: vec![
                out(&ping(cast.inside, cast.remote, cast.echo), &ping(cast.uplink, cast.remote, cast.echo)),
                inward(
                    &ping(cast.remote, cast.uplink, cast.echo_reply),
                    &ping(cast.remote, cast.inside, cast.echo_reply),
                ),
            ],
        },
        Vector {
            name: "a question for the time goes out and its answer comes back, by identifier",
            rules: vec![IPV4.masquerade()],
            steps: vec![
                out(&time(IPV4.inside, IPV4.remote, 13), &time(IPV4.uplink, IPV4.remote, 13)),
                inward(&time(IPV4.remote, IPV4.uplink, 14), &time(IPV4.remote, IPV4.inside, 14)),
                // nobody has asked that
                untouched(Direction::In, icmp(IPV4.remote, IPV4.uplink, 14, 79, &[0; 12]).bytes()),
            ],
        },
        Vector {
            name: "the flows of a removed rule stop at once",
            rules: vec![masquerade()],
            steps: cast
                .udp_exchange(40000, b"q")
                .into_iter()
                .chain([
                    Step::Remove(0),
                    untouched(Direction::Out, udp(inside, (cast.remote, 53), b"q").bytes()),
                    untouched(Direction::In, udp((cast.remote, 53), external(40000), b"q").bytes()),
                ])
                .collect(),
        },
    ];
    // every checksum value turns up, the zero that UDP must write as all ones among them
    let sweep = (0..=u8::MAX).flat_map(|byte| {
        let sport = 30000 + u16::from(byte);
        cast.udp_exchange(sport, &[byte, byte.wrapping_mul(167), 0x5a, byte.rotate_left(3)])
    });
    vectors.push(Vector {
        name: "checksums are right whatever they were",
        rules: vec![masquerade()],
        steps: sweep.collect(),
    });
    vectors
}

/// Those whom a port lets in that was never asked for them.
pub(super) fn cone_vectors(cast: Cast) -> Vec<Vector> {
    let (inside, external) = ((cast.inside, 40000), (cast.uplink, 40000));
    let (friend, guest) = ((cast.remote, 443), (cast.stranger, 5000));
    let prefix = if cast.inside.is_ipv4() { 24 } else { 64 };
    let source = IpNet::new(cast.inside, prefix).expect("a network").trunc();
    let cone = Rule::Masquerade { source, nat: rule::FULL_CONE, except: Vec::new(), pool: Vec::new() };
    let comes = |flags| inward(&tcp(guest, external, flags, b""), &tcp(guest, inside, flags, b""));
    let answers = |flags| out(&tcp(inside, guest, flags, b""), &tcp(external, guest, flags, b""));
    vec![
        Vector {
            name: "a datagram to a full cone gets in whoever has sent it, and its answer goes back",
            rules: vec![cone.clone()],
            steps: vec![
                out(&udp(inside, friend, b"q"), &udp(external, friend, b"q")),
                inward(&udp(guest, external, b"hello"), &udp(guest, inside, b"hello")),
                inward(&udp(guest, external, b"hello?"), &udp(guest, inside, b"hello?")),
                out(&udp(inside, guest, b"yes"), &udp(external, guest, b"yes")),
                inward(&udp(guest, external, b"good"), &udp(guest, inside, b"good")),
            ],
        },
        Vector {
            name: "a connection to a full cone opens, carries data and ends",
            rules: vec![cone],
            steps: vec![
                out(&tcp(inside, friend, SYN, b""), &tcp(external, friend, SYN, b"")),
                comes(SYN),
                answers(SYN | ACK),
                comes(ACK),
                answers(FIN | ACK),
                comes(FIN | ACK),
                answers(ACK),
            ],
        },
    ]
}

/// Destinations that a masquerade leaves alone, and the others.
pub(super) fn except_vectors(cast: Cast) -> Vec<Vector> {
    let Cast { inside, remote, stranger, uplink, .. } = cast;
    let Rule::Masquerade { source, nat, pool, .. } = cast.masquerade() else { return Vec::new() };
    let rule = |except: IpAddr| Rule::Masquerade {
        source,
        nat,
        except: vec![IpNet::from(except)],
        pool: pool.clone(),
    };
    let from = (inside, 40000);
    let whole = udp(from, (remote, 53), &[7; 64]);
    let about = udp((remote, 53), from, b"q");
    let unreachable = if inside.is_ipv4() { (3, 3, [0; 4]) } else { (1, 4, [0; 4]) };
    let mut left_alone: Vec<Step> = [
        udp(from, (remote, 53), b"q"),
        tcp(from, (remote, 443), SYN, b""),
        tcp(from, (remote, 443), ACK, b"of a connection that nobody has seen"),
        icmp(inside, remote, cast.echo, 7, b"ping"),
        icmp_error(inside, remote, unreachable, &about, 1500),
        Frame::new(inside, remote, 50, vec![0; 16]),
    ]
    .iter()
    .map(|frame| untouched(Direction::Out, frame.bytes()))
    .collect();
    left_alone.extend(whole.fragments(7, 32).iter().map(|part| untouched(Direction::Out, part.bytes())));
    left_alone.push(untouched(Direction::In, udp((remote, 53), from, b"a").bytes()));
    let translated = out(&udp(from, (stranger, 53), b"q"), &udp((uplink, 40000), (stranger, 53), b"q"));
    let rules = vec![rule(remote)];
    vec![
        Vector {
            name: "what goes to an excluded destination keeps its inside address",
            rules: rules.clone(),
            steps: left_alone,
        },
        Vector {
            name: "other destinations than the excluded ones are translated",
            rules,
            steps: vec![translated],
        },
    ]
}

/// What may stand between the IP header and the transport header.
pub(super) fn options_vectors() -> Vec<Vector> {
    let options = [0x94, 0x04, 0, 0]; // router alert (RFC 2113)
    let long = [1; 40]; // as many no-operations as fit
    let translated = |cast: Cast, port, with: &dyn Fn(Frame) -> Frame| {
        let remote = (cast.remote, 443);
        out(&with(udp((cast.inside, port), remote, b"q")), &with(udp((cast.uplink, port), remote, b"q")))
    };
    let [hop_by_hop, routing, destination] = [0, 43, 60];
    vec![
        Vector {
            name: "options do not hide the ports behind them",
            rules: vec![IPV4.masquerade()],
            steps: vec![
                translated(IPV4, 40000, &|frame| frame.options(&options)),
                translated(IPV4, 40001, &|frame| frame.options(&long)),
            ],
        },
        Vector {
            name: "extension headers do not hide the ports behind them",
            rules: vec![IPV6.masquerade()],
            steps: vec![
                translated(IPV6, 40000, &|frame| frame.extension(hop_by_hop)),
                translated(IPV6, 40001, &|frame| {
                    frame
                        .extension(destination)
                        .extension(routing)
                        .extension(destination)
                        .extension(hop_by_hop)
                }),
            ],
        },
    ]
}

/// Several addresses, of which no interface has one: they are routed here.
pub(super) fn pool_vectors(cast: Cast) -> Vec<Vector> {
    let Cast { uplink, inside, other_inside, remote, echo, echo_reply, .. } = cast;
    let Rule::Masquerade { source, nat, except, .. } = cast.masquerade() else { return Vec::new() };
    let pool = cast.pool();
    let rule = || Rule::Masquerade { source, nat, except: except.clone(), pool: pool.to_vec() };
    // The last number of an inside address decides: 10 and 11.
    let [even, odd] = pool;
    let (dns, web) = ((remote, 53), (remote, 443));
    let ping = |src, dst, kind| icmp(src, dst, kind, 77, b"abc");
    let query = |host: IpAddr, port, to| udp((host, port), to, b"query");
    let answer = |host: IpAddr, port, from| udp(from, (host, port), b"answer");
    let error = |about: &Frame| icmp_error(remote, about.src, errors(cast)[0], about, 1500);
    let (sent, seen) = (query(other_inside, 40003, dns), query(odd, 40003, dns));
    vec![
        Vector {
            name: "each inside host has one address of a pool for all that it sends, and answers come back by it",
            rules: vec![rule()],
            steps: vec![
                out(&query(inside, 40000, dns), &query(even, 40000, dns)),
                inward(&answer(even, 40000, dns), &answer(inside, 40000, dns)),
                // the same port of another host is the same port of another address
                out(&query(other_inside, 40000, dns), &query(odd, 40000, dns)),
                inward(&answer(odd, 40000, dns), &answer(other_inside, 40000, dns)),
                out(&query(inside, 40001, web), &query(even, 40001, web)),
                out(&tcp((inside, 40002), web, SYN, b""), &tcp((even, 40002), web, SYN, b"")),
                inward(&tcp(web, (even, 40002), SYN | ACK, b""), &tcp(web, (inside, 40002), SYN | ACK, b"")),
                out(&ping(other_inside, remote, echo), &ping(odd, remote, echo)),
                inward(&ping(remote, odd, echo_reply), &ping(remote, other_inside, echo_reply)),
            ],
        },
        Vector {
            name: "what nobody has asked for ends at an address that no interface has",
            rules: vec![rule()],
            steps: vec![
                dropped_in(answer(even, 40000, dns).bytes(), DropReason::Filtered),
                dropped_in(tcp(web, (even, 22), SYN, b"").bytes(), DropReason::Unsolicited),
                dropped_in(tcp(web, (even, 22), ACK, b"x").bytes(), DropReason::Filtered),
                dropped_in(ping(remote, odd, echo_reply).bytes(), DropReason::Filtered),
                dropped_in(ping(remote, odd, echo).bytes(), DropReason::Filtered),
                // the uplink's own address is nobody's pool
                untouched(Direction::In, tcp(web, (uplink, 22), SYN, b"").bytes()),
            ],
        },
        Vector {
            name: "a forward leads inside by an address of a pool too",
            rules: vec![
                rule(),
                Rule::Forward {
                    proto: UDP,
                    ports: 5300..=5300,
                    to: (inside, 53),
                    address: Some(odd),
                    sources: Vec::new(),
                },
            ],
            steps: vec![
                inward(&udp(dns, (odd, 5300), b"q"), &udp(dns, (inside, 53), b"q")),
                out(&udp((inside, 53), dns, b"a"), &udp((odd, 5300), dns, b"a")),
            ],
        },
        Vector {
            name: "an error about what has left by an address of a pool finds its way inside",
            rules: vec![rule()],
            steps: vec![out(&sent, &seen), inward(&error(&seen), &error(&sent))],
        },
    ]
}
