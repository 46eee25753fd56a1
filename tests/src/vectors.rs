//! Packets in, packets and verdicts out. The host's engine and the loaded programs run the same list and must give
//! the same bytes.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use ipnet::IpNet;
use telecluster_common::{
    drop::DropReason,
    maps::{Direction, RuleStat},
};

use telecluster_worker::kernel::dataplane::NatType;

use crate::frame::{
    ACK, FIN, Frame, ICMP, ICMP6, RST, SYN, TCP, UDP, icmp, icmp_error, tcp, udp, udp_without_checksum,
};

/// Loopback: the interface that `BPF_PROG_TEST_RUN` pretends a packet is on.
pub const UPLINK: u32 = 1;
pub const UPLINK_ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub const UPLINK_ADDRESS6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
/// The host's own addresses.
pub const LOCAL: [IpAddr; 4] = [IPV4.uplink, IPV4.gateway, IPV6.uplink, IPV6.gateway];

const INSIDE: Ipv4Addr = Ipv4Addr::new(192, 168, 100, 10);
const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
/// Of no rule.
const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 9, 8, 7);

/// Who takes part, in one address family.
#[derive(Debug, Clone, Copy)]
pub struct Cast {
    pub uplink: IpAddr,
    /// The host's address on the inside.
    pub gateway: IpAddr,
    pub inside: IpAddr,
    pub other_inside: IpAddr,
    pub remote: IpAddr,
    /// Of no rule.
    pub stranger: IpAddr,
    pub echo: u8,
    pub echo_reply: u8,
}

pub const IPV4: Cast = Cast {
    uplink: IpAddr::V4(UPLINK_ADDRESS),
    gateway: IpAddr::V4(Ipv4Addr::new(192, 168, 100, 1)),
    inside: IpAddr::V4(INSIDE),
    other_inside: IpAddr::V4(Ipv4Addr::new(192, 168, 100, 11)),
    remote: IpAddr::V4(REMOTE),
    stranger: IpAddr::V4(STRANGER),
    echo: 8,
    echo_reply: 0,
};

pub const IPV6: Cast = Cast {
    uplink: IpAddr::V6(UPLINK_ADDRESS6),
    gateway: IpAddr::V6(Ipv6Addr::new(0xfd00, 100, 0, 0, 0, 0, 0, 1)),
    inside: IpAddr::V6(Ipv6Addr::new(0xfd00, 100, 0, 0, 0x1234, 0x5678, 0x9abc, 10)),
    other_inside: IpAddr::V6(Ipv6Addr::new(0xfd00, 100, 0, 0, 0, 0, 0, 11)),
    remote: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0xeeee, 0xdddd, 0xcccc, 0xbbbb, 7)),
    stranger: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 9, 9, 0, 0, 0, 7)),
    echo: 128,
    echo_reply: 129,
};

impl Cast {
    pub fn masquerade(&self) -> Rule {
        let prefix = if self.inside.is_ipv4() { 24 } else { 64 };
        let source = IpNet::new(self.inside, prefix).expect("a network").trunc();
        Rule::Masquerade { source, nat: NatType::Restricted, except: Vec::new() }
    }

    /// A masqueraded UDP exchange: out, and back.
    pub fn udp_exchange(&self, sport: u16, payload: &[u8]) -> [Step; 2] {
        let (remote, inside, external) = ((self.remote, 53), (self.inside, sport), (self.uplink, sport));
        [
            out(&udp(inside, remote, payload), &udp(external, remote, payload)),
            inward(&udp(remote, external, payload), &udp(remote, inside, payload)),
        ]
    }
}

/// A rule, in the terms of the vectors.
#[derive(Debug, Clone)]
pub enum Rule {
    /// `to`: where the first of the ports leads. Without sources it is open to everybody.
    Forward {
        proto: u8,
        ports: RangeInclusive<u16>,
        to: (IpAddr, u16),
        address: Option<IpAddr>,
        sources: Vec<IpNet>,
    },
    Masquerade {
        source: IpNet,
        nat: NatType,
        except: Vec<IpNet>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Dropped(DropReason),
    /// Out through this interface at once.
    Sent(u32),
}

/// Something that runs packets: the host's engine, or the kernel's programs.
pub trait Machine {
    fn put(&mut self, slot: u32, rule: &Rule);
    fn remove(&mut self, slot: u32, rule: &Rule);
    /// The verdict and the frame afterwards.
    fn run(&mut self, direction: Direction, frame: &[u8]) -> (Outcome, Vec<u8>);
    fn counters(&mut self, slot: u32) -> RuleStat;
}

/// One thing that happens.
#[derive(Debug, Clone)]
pub enum Step {
    /// This frame goes in, that one comes out.
    Becomes {
        direction: Direction,
        frame: Vec<u8>,
        expected: Vec<u8>,
    },
    Dropped {
        direction: Direction,
        frame: Vec<u8>,
        reason: DropReason,
    },
    /// The rule of this slot (its place in `rules`) goes.
    Remove(u32),
}

/// A story: rules, then packets in order.
#[derive(Debug, Clone)]
pub struct Vector {
    pub name: &'static str,
    pub rules: Vec<Rule>,
    pub steps: Vec<Step>,
}

/// Plays a story on a machine whose tables are empty.
pub fn play(vector: &Vector, machine: &mut impl Machine) {
    let slot = |place: usize| u32::try_from(place).expect("few rules");
    for (place, rule) in vector.rules.iter().enumerate() {
        machine.put(slot(place), rule);
    }
    for (number, step) in vector.steps.iter().enumerate() {
        let label = format!("{}, step {}", vector.name, number + 1);
        match step {
            Step::Becomes { direction, frame, expected } => {
                let (outcome, bytes) = machine.run(*direction, frame);
                assert_eq!(outcome, Outcome::Passed, "{label}");
                assert_eq!(hex(&bytes), hex(expected), "{label}");
            }
            Step::Dropped { direction, frame, reason } => {
                let (outcome, _) = machine.run(*direction, frame);
                assert_eq!(outcome, Outcome::Dropped(*reason), "{label}");
            }
            Step::Remove(gone) => machine.remove(*gone, &vector.rules[*gone as usize]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ")
}

fn out(frame: &Frame, expected: &Frame) -> Step {
    Step::Becomes { direction: Direction::Out, frame: frame.bytes(), expected: expected.bytes() }
}

fn inward(frame: &Frame, expected: &Frame) -> Step {
    Step::Becomes { direction: Direction::In, frame: frame.bytes(), expected: expected.bytes() }
}

fn untouched(direction: Direction, frame: Vec<u8>) -> Step {
    Step::Becomes { direction, expected: frame.clone(), frame }
}

fn dropped(frame: Vec<u8>, reason: DropReason) -> Step {
    Step::Dropped { direction: Direction::Out, frame, reason }
}

pub fn masquerade() -> Rule {
    IPV4.masquerade()
}

pub fn forward(proto: u8, port: u16, to: (IpAddr, u16)) -> Rule {
    range(proto, port..=port, to)
}

pub fn range(proto: u8, ports: RangeInclusive<u16>, to: (IpAddr, u16)) -> Rule {
    Rule::Forward { proto, ports, to, address: None, sources: Vec::new() }
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

/// A masqueraded UDP exchange of IPv4.
pub fn udp_exchange(sport: u16, payload: &[u8]) -> [Step; 2] {
    IPV4.udp_exchange(sport, payload)
}

/// Every story.
pub fn all() -> Vec<Vector> {
    let mut all = Vec::new();
    for cast in [IPV4, IPV6] {
        all.extend(masquerade_vectors(cast));
        all.extend(forward_vectors(cast));
        all.extend(range_vectors(cast));
        all.extend(source_vectors(cast));
        all.extend(except_vectors(cast));
        all.extend(icmp_error_vectors(cast));
        all.extend(fragment_vectors(cast));
    }
    all.extend(options_vectors());
    all.extend(untouched_vectors());
    all.extend(refused_vectors());
    all
}

fn masquerade_vectors(cast: Cast) -> Vec<Vector> {
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

/// What may stand between the IP header and the transport header.
fn options_vectors() -> Vec<Vector> {
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

fn forward_vectors(cast: Cast) -> Vec<Vector> {
    let masquerade = || cast.masquerade();
    let (ssh, client) = ((cast.inside, 22), (cast.remote, 50000));
    let external = (cast.uplink, 2222);
    let tcp_forward = vec![
        inward(&tcp(client, external, SYN, b""), &tcp(client, ssh, SYN, b"")),
        out(&tcp(ssh, client, SYN | ACK, b""), &tcp(external, client, SYN | ACK, b"")),
        inward(&tcp(client, external, ACK, b"SSH-2.0"), &tcp(client, ssh, ACK, b"SSH-2.0")),
    ];
    let dns = (cast.other_inside, 5353);
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

fn range_vectors(cast: Cast) -> Vec<Vector> {
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

fn source_vectors(cast: Cast) -> Vec<Vector> {
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

/// Type, code and what follows, of every ICMP error that embeds a packet: host, port and network unreachable, too big,
/// source quench, time exceeded, parameter problem.
fn errors(cast: Cast) -> Vec<(u8, u8, [u8; 4])> {
    let (none, mtu) = ([0; 4], [0, 0, 5, 20]);
    if cast.inside.is_ipv4() {
        vec![
            (3, 3, none),
            (3, 1, none),
            (3, 4, mtu),
            (3, 13, none),
            (4, 0, none),
            (11, 0, none),
            (12, 0, [20, 0, 0, 0]),
        ]
    } else {
        vec![(1, 4, none), (1, 1, none), (2, 0, mtu), (3, 0, none), (4, 1, [0, 0, 0, 6])]
    }
}

/// Destinations that a masquerade leaves alone, and the others.
fn except_vectors(cast: Cast) -> Vec<Vector> {
    let Cast { inside, remote, stranger, uplink, .. } = cast;
    let Rule::Masquerade { source, nat, .. } = cast.masquerade() else { return Vec::new() };
    let rule = |except: IpAddr| Rule::Masquerade { source, nat, except: vec![IpNet::from(except)] };
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

fn icmp_error_vectors(cast: Cast) -> Vec<Vector> {
    let Cast { uplink, inside, other_inside, remote, stranger: router, echo, .. } = cast;
    let header = if inside.is_ipv4() { 20 } else { 40 };
    let masquerade = || cast.masquerade();
    // (what left, as inside sent it, as outside saw it)
    let packets: Vec<(Frame, Frame)> = vec![
        (udp((inside, 40000), (remote, 53), b"query"), udp((uplink, 40000), (remote, 53), b"query")),
        (
            udp_without_checksum((inside, 40001), (remote, 53), b"query"),
            udp_without_checksum((uplink, 40001), (remote, 53), b"query"),
        ),
        (tcp((inside, 40002), (remote, 80), SYN, b""), tcp((uplink, 40002), (remote, 80), SYN, b"")),
        (icmp(inside, remote, echo, 7, b"abc"), icmp(uplink, remote, echo, 7, b"abc")),
    ];
    let mut about_ours = Vec::new();
    for (sent, seen) in &packets {
        about_ours.push(out(sent, seen));
        for kind in errors(cast) {
            // eight bytes of transport header are the least (RFC 792), everything is the most
            for embed in [header + 8, 1500] {
                for from in [remote, router] {
                    about_ours.push(inward(
                        &icmp_error(from, uplink, kind, seen, embed),
                        &icmp_error(from, inside, kind, sent, embed),
                    ));
                }
            }
        }
    }
    let dns = (other_inside, 5353);
    let (client, external) = ((remote, 50000), (uplink, 53));
    let (query, seen_inside) = (udp(client, external, b"q"), udp(client, dns, b"q"));
    let mut about_theirs = vec![inward(&query, &seen_inside)];
    for kind in errors(cast) {
        // from the server, and from the host itself, which could not pass it on
        for (from, appears) in [(other_inside, uplink), (uplink, uplink)] {
            about_theirs.push(out(
                &icmp_error(from, remote, kind, &seen_inside, 1500),
                &icmp_error(appears, remote, kind, &query, 1500),
            ));
        }
    }
    let kind = errors(cast)[0];
    let unknown = udp((uplink, 1), (remote, 2), b"q");
    let unknown_inside = udp((remote, 2), (inside, 1), b"q");
    let about_error = icmp_error(uplink, remote, kind, &unknown, 1500);
    vec![
        Vector {
            name: "errors about what has left find their way inside, however much they embed",
            rules: vec![masquerade()],
            steps: about_ours,
        },
        Vector {
            name: "errors about an answer leave with the address that it came to",
            rules: vec![masquerade()],
            steps: cast
                .udp_exchange(40000, b"q")
                .into_iter()
                .chain([out(
                    &icmp_error(inside, remote, kind, &udp((remote, 53), (inside, 40000), b"q"), 1500),
                    &icmp_error(uplink, remote, kind, &udp((remote, 53), (uplink, 40000), b"q"), 1500),
                )])
                .collect(),
        },
        Vector {
            name: "errors about what was forwarded leave with the address that it came to",
            rules: vec![masquerade(), forward(UDP, 53, dns)],
            steps: about_theirs,
        },
        Vector {
            name: "errors about nothing of ours are the host's, or do not leave",
            rules: vec![masquerade()],
            steps: vec![
                untouched(Direction::In, icmp_error(router, uplink, kind, &unknown, 1500).bytes()),
                untouched(Direction::In, icmp_error(router, uplink, kind, &unknown, header).bytes()),
                untouched(Direction::In, icmp_error(router, uplink, kind, &about_error, 1500).bytes()),
                untouched(Direction::Out, icmp_error(uplink, remote, kind, &unknown_inside, 1500).bytes()),
                dropped(
                    icmp_error(inside, remote, kind, &unknown_inside, 1500).bytes(),
                    DropReason::Protocol,
                ),
            ],
        },
    ]
}

/// Datagrams and pings longer than a link's MTU.
fn fragment_vectors(cast: Cast) -> Vec<Vector> {
    let Cast { uplink, inside, other_inside, remote, stranger, echo, echo_reply, .. } = cast;
    let long: Vec<u8> = (0..100u8).map(|byte| byte.wrapping_mul(91)).collect();
    let parts = |direction, whole: &Frame, expected: &Frame, id| -> Vec<Step> {
        let step = |(frame, expected): (Frame, Frame)| Step::Becomes {
            direction,
            frame: frame.bytes(),
            expected: expected.bytes(),
        };
        whole.fragments(id, 32).into_iter().zip(expected.fragments(id, 32)).map(step).collect()
    };
    let outward = |whole: &Frame, expected: &Frame, id| parts(Direction::Out, whole, expected, id);
    let inward = |whole: &Frame, expected: &Frame, id| parts(Direction::In, whole, expected, id);
    let (there, back) = ((inside, 40000), (remote, 53));
    let external = (uplink, 40000);
    let ping = |src, dst, kind| icmp(src, dst, kind, 77, &long);
    let dns = (other_inside, 5353);
    let (client, forwarded) = ((remote, 50000), (uplink, 53));
    let plain = |src, dst| udp_without_checksum(src, dst, &long);
    let mut shuffled = outward(&udp(there, back, &long), &udp(external, back, &long), 9);
    shuffled[1..].reverse();
    let orphans =
        |whole: Frame, id| whole.fragments(id, 32)[1..].iter().map(Frame::bytes).collect::<Vec<_>>();
    vec![
        Vector {
            name: "a long masqueraded datagram goes out in parts and its answer comes back in parts",
            rules: vec![cast.masquerade()],
            steps: [
                outward(&udp(there, back, &long), &udp(external, back, &long), 1),
                inward(&udp(back, external, &long), &udp(back, there, &long), 1),
                // the same number again, for another datagram of another socket
                outward(&udp((inside, 40001), back, &long), &udp((uplink, 40001), back, &long), 1),
                shuffled,
            ]
            .concat(),
        },
        Vector {
            name: "a long datagram without checksum stays without",
            rules: vec![cast.masquerade()],
            steps: outward(&plain(there, back), &plain(external, back), 2),
        },
        Vector {
            name: "a long ping goes out in parts and its answer comes back in parts",
            rules: vec![cast.masquerade()],
            steps: [
                outward(&ping(inside, remote, echo), &ping(uplink, remote, echo), 3),
                inward(&ping(remote, uplink, echo_reply), &ping(remote, inside, echo_reply), 4),
            ]
            .concat(),
        },
        Vector {
            name: "a forwarded datagram comes in in parts, as the first of its flow too",
            rules: vec![forward(UDP, 53, dns)],
            steps: [
                inward(&udp(client, forwarded, &long), &udp(client, dns, &long), 5),
                outward(&udp(dns, client, &long), &udp(forwarded, client, &long), 6),
                inward(&udp(client, forwarded, &long), &udp(client, dns, &long), 7),
            ]
            .concat(),
        },
        Vector {
            name: "a TCP segment in parts is translated like a whole one",
            rules: vec![cast.masquerade()],
            steps: outward(&tcp(there, back, SYN, &long), &tcp(external, back, SYN, &long), 8),
        },
        Vector {
            name: "parts of what is not ours are left alone",
            rules: vec![cast.masquerade(), forward(UDP, 5300, dns)],
            steps: [
                // the host's own, both ways
                inward(&udp(client, forwarded, &long), &udp(client, forwarded, &long), 11),
                outward(&udp(forwarded, client, &long), &udp(forwarded, client, &long), 12),
                // through the host, both ways
                inward(&udp(client, (stranger, 1), &long), &udp(client, (stranger, 1), &long), 13),
                outward(&udp((stranger, 1), client, &long), &udp((stranger, 1), client, &long), 14),
            ]
            .concat(),
        },
        Vector {
            name: "parts without a first one are the host's, or do not leave",
            rules: vec![cast.masquerade()],
            steps: orphans(udp(back, external, &long), 10)
                .into_iter()
                .map(|frame| untouched(Direction::In, frame))
                .chain(
                    orphans(udp(there, back, &long), 10)
                        .into_iter()
                        .map(|frame| dropped(frame, DropReason::Fragment)),
                )
                .collect(),
        },
        Vector {
            name: "the parts of a removed rule's flows stop at once",
            rules: vec![cast.masquerade()],
            steps: {
                let steps = outward(&udp(there, back, &long), &udp(external, back, &long), 15);
                let rest = orphans(udp(there, back, &long), 15).into_iter();
                let (first, _) = steps.split_first().expect("more than one part");
                let rest = rest.map(|frame| untouched(Direction::Out, frame));
                [first.clone(), Step::Remove(0)].into_iter().chain(rest).collect()
            },
        },
    ]
}

fn untouched_vectors() -> Vec<Vector> {
    let arp = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 2, 8, 6], &[0; 28]].concat();
    let ipv6 = [&[2; 12][..], &[0x86, 0xdd, 0x60], &[0; 59]].concat();
    // neighbour discovery never has to do with us, whatever its addresses
    let discovery = (133..=137).map(|kind| icmp(IPV6.inside, IPV6.remote, kind, 0, &[0; 16]).bytes());
    let mut tagged = udp((INSIDE, 1), (REMOTE, 2), b"q").bytes();
    tagged.splice(12..12, [0x81, 0, 0, 100]);
    let mut version = udp((INSIDE, 1), (REMOTE, 2), b"q").bytes();
    version[14] = 0x55;
    let mut short_header = version.clone();
    short_header[14] = 0x44;
    let mut frames = vec![
        arp,
        ipv6,
        tagged,
        version,
        short_header,
        udp((STRANGER, 1), (REMOTE, 2), b"q").bytes(),
        tcp((STRANGER, 1), (REMOTE, 2), SYN, b"").bytes(),
        // the host's own
        udp((UPLINK_ADDRESS, 1), (REMOTE, 2), b"q").bytes(),
        tcp((UPLINK_ADDRESS, 8000), (REMOTE, 2), ACK, b"x").bytes(),
        Frame::new(STRANGER, REMOTE, 47, vec![0; 16]).bytes(),
        Frame::new(UPLINK_ADDRESS, REMOTE, 50, vec![0; 16]).bytes(),
    ];
    frames.extend(discovery);
    let steps = |direction| frames.iter().map(|frame| untouched(direction, frame.clone())).collect();
    vec![
        Vector {
            name: "what leaves from no masqueraded network is left alone",
            rules: vec![masquerade(), IPV6.masquerade()],
            steps: steps(Direction::Out),
        },
        Vector {
            name: "what arrives for no forward is left alone",
            rules: vec![masquerade(), IPV6.masquerade()],
            steps: steps(Direction::In),
        },
        Vector {
            name: "strange protocols from outside are left to the host",
            rules: vec![masquerade(), forward(UDP, 53, (INSIDE.into(), 53))],
            steps: vec![
                untouched(Direction::In, Frame::new(REMOTE, UPLINK_ADDRESS, 47, vec![0; 16]).bytes()),
                untouched(Direction::In, Frame::new(REMOTE, UPLINK_ADDRESS, UDP, vec![0; 4]).bytes()),
            ],
        },
    ]
}

fn refused_vectors() -> Vec<Vector> {
    let (inside, remote) = ((INSIDE, 40000), (REMOTE, 443));
    let (inside6, remote6) = ((IPV6.inside, 40000), (IPV6.remote, 443));
    let datagram6 = || udp(inside6, remote6, b"q");
    // more extension headers than anybody sends
    let chain = (0..7).fold(datagram6(), |frame, _| frame.extension(60));
    let ipv6 = vec![
        dropped(tcp(inside6, remote6, ACK, b"x").bytes(), DropReason::TcpNotSyn),
        dropped(datagram6().fragments(7, 8)[1].bytes(), DropReason::Fragment),
        dropped(Frame::new(IPV6.inside, IPV6.remote, 50, vec![0; 16]).bytes(), DropReason::Protocol),
        dropped(icmp(IPV6.inside, IPV6.remote, 139, 7, b"").bytes(), DropReason::Protocol),
        dropped(Frame::new(IPV6.inside, IPV6.remote, ICMP6, vec![128; 5]).bytes(), DropReason::Malformed),
        dropped(datagram6().extension(60).bytes()[..14 + 40 + 4].to_vec(), DropReason::Malformed),
        dropped(chain.bytes(), DropReason::Protocol),
    ];
    let mut vectors = vec![Vector {
        name: "nothing of IPv6 leaves with an inside address",
        rules: vec![IPV6.masquerade()],
        steps: ipv6,
    }];
    vectors.extend([Vector {
        name: "nothing leaves with an inside address",
        rules: vec![masquerade()],
        steps: vec![
            dropped(tcp(inside, remote, ACK, b"x").bytes(), DropReason::TcpNotSyn),
            dropped(tcp(inside, remote, SYN | FIN, b"").bytes(), DropReason::TcpNotSyn),
            dropped(udp(inside, remote, b"q").fragment(0x0010).bytes(), DropReason::Fragment),
            dropped(tcp(inside, remote, ACK, b"x").fragment(0x2000).bytes(), DropReason::TcpNotSyn),
            dropped(tcp(inside, remote, ACK, b"x").fragment(0x0010).bytes(), DropReason::Fragment),
            dropped(Frame::new(INSIDE, REMOTE, 47, vec![0; 16]).bytes(), DropReason::Protocol),
            dropped(icmp(INSIDE, REMOTE, 17, 7, b"").bytes(), DropReason::Protocol),
            dropped(icmp(INSIDE, REMOTE, 0, 7, b"").bytes(), DropReason::Protocol),
            dropped(icmp(INSIDE, REMOTE, 14, 7, b"").bytes(), DropReason::Protocol),
            dropped(Frame::new(INSIDE, REMOTE, UDP, vec![0; 7]).bytes(), DropReason::Malformed),
            dropped(Frame::new(INSIDE, REMOTE, TCP, vec![0; 19]).bytes(), DropReason::Malformed),
            dropped(Frame::new(INSIDE, REMOTE, ICMP, vec![8; 5]).bytes(), DropReason::Malformed),
            dropped(
                udp(inside, remote, b"").options(&[1; 40]).bytes()[..14 + 60 + 4].to_vec(),
                DropReason::Malformed,
            ),
        ],
    }]);
    vectors
}
