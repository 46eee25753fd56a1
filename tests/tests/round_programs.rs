//! What goes between the host itself and its own forwards: the same frames through the engine on the host and through the programs.

use std::{net::IpAddr, process::Command};

use telecluster_tests::{
    frame::{ACK, Frame, SYN, TCP, UDP, icmp, icmp_error, tcp, udp},
    host::{Gate, Host},
    kernel::Kernel,
    sandbox,
    vectors::{Cast, IPV4, IPV6, Machine as _, Outcome, forward},
};

const DO_NOT_CUT: u16 = 0x4000;

/// One frame, and what it becomes. `None`: it is left alone.
type Step = (&'static str, Gate, Frame, Option<Frame>);

/// Type and code of an error, and what its second word says.
type Kind = (u8, u8, [u8; 4]);

/// The kinds of errors: no such port, and too big with so many bytes left.
fn kinds(cast: Cast, mtu: u16) -> (Kind, Kind) {
    let [high, low] = mtu.to_be_bytes();
    match cast.inside {
        IpAddr::V4(_) => ((3, 3, [0; 4]), (3, 4, [0, 0, high, low])),
        IpAddr::V6(_) => ((1, 4, [0; 4]), (2, 0, [0, 0, high, low])),
    }
}

/// The host's socket 40000 talks to port 8080 of its own uplink, which leads to port 80 inside.
fn story(cast: Cast) -> Vec<Step> {
    let Cast { uplink, inside, other_inside, gateway, .. } = cast;
    let (socket, external, server) = ((uplink, 40000), (uplink, 8080), (inside, 80));
    let sent = |payload: &[u8]| (udp(socket, external, payload), udp(socket, server, payload));
    let answer = |payload: &[u8]| (udp(server, socket, payload), udp(external, socket, payload));
    let (unreachable, too_big) = kinds(cast, 1300);
    let (query, asked) = sent(b"who");
    let (reply, heard) = answer(b"you");
    let mut steps = vec![
        ("a query", Gate::Loopback, query.clone(), Some(asked.clone())),
        ("its answer", Gate::Inside, reply.clone(), Some(heard.clone())),
        ("its own port", Gate::Loopback, udp(socket, (uplink, 8081), b"own"), None),
        ("a ping of its own", Gate::Loopback, icmp(uplink, uplink, cast.echo, 1, b"own"), None),
    ];
    for (name, kind) in [("no such port", unreachable), ("too big", too_big)] {
        // From the server and from a router before it; for the socket from the address that was asked.
        for from in [inside, other_inside] {
            let error = icmp_error(from, uplink, kind, &asked, 1500);
            steps.push((name, Gate::Inside, error, Some(icmp_error(uplink, uplink, kind, &query, 1500))));
        }
        let error = icmp_error(uplink, uplink, kind, &asked, 1500);
        steps.push((name, Gate::Loopback, error, Some(icmp_error(uplink, uplink, kind, &query, 1500))));
    }
    let gone = icmp_error(uplink, uplink, unreachable, &heard, 1500);
    steps.push((
        "a socket is gone",
        Gate::Loopback,
        gone,
        Some(icmp_error(uplink, inside, unreachable, &reply, 1500)),
    ));
    let stranger = udp(socket, (uplink, 8081), b"own");
    steps.push((
        "about its own",
        Gate::Loopback,
        icmp_error(uplink, uplink, unreachable, &stranger, 1500),
        None,
    ));
    let about_gateway = icmp_error(gateway, gateway, unreachable, &stranger, 1500);
    steps.push(("of another address", Gate::Loopback, about_gateway, None));
    // Parts, as kernels cut them and send them: in order.
    let long = [7; 3000];
    for (gate, (from, to)) in [(Gate::Loopback, sent(&long)), (Gate::Inside, answer(&long))] {
        for (before, after) in from.fragments(77, 1008).into_iter().zip(to.fragments(77, 1008)) {
            steps.push(("a part", gate, before, Some(after)));
        }
    }
    // Too long for the way inside, whole: it may be cut, and a socket that forbids it gives no number.
    let (whole, translated) = sent(&[8; 2000]);
    steps.push((
        "longer than the way is wide",
        Gate::Loopback,
        whole.clone().fragment(DO_NOT_CUT),
        Some(translated.clone()),
    ));
    if cast.inside.is_ipv4() {
        let strict = |frame: Frame| Frame { id: 0, ..frame.fragment(DO_NOT_CUT) };
        steps.push(("not to be cut", Gate::Loopback, strict(whole), Some(strict(translated))));
    }
    steps
}

fn zero_link(frame: &Frame) -> Vec<u8> {
    let mut bytes = frame.bytes();
    bytes[..6].fill(0);
    bytes
}

fn run(line: &str) {
    let mut words = line.split_whitespace();
    let status = Command::new(words.next().expect("a program")).args(words).status().expect("run it");
    assert!(status.success(), "{line}");
}

/// A way inside that is 1500 bytes wide; loopback is the uplink.
fn ways() {
    for line in [
        "ip link set lo up",
        "ip link add in0 type veth peer name in1",
        "ip link set in0 mtu 1500 up",
        "ip link set in1 up",
        "sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
    ] {
        run(line);
    }
    for cast in [IPV4, IPV6] {
        let (gateway, prefix, nodad) = (
            cast.gateway,
            if cast.gateway.is_ipv4() { 24 } else { 64 },
            if cast.gateway.is_ipv4() { "" } else { "nodad" },
        );
        run(&format!("ip addr add {gateway}/{prefix} dev in0 {nodad}"));
    }
}

#[test]
fn the_engine_and_the_programs_agree_about_the_hosts_own_way_to_its_forwards() {
    sandbox::run(|| {
        ways();
        for cast in [IPV4, IPV6] {
            let (mut host, mut kernel) = (Host::default(), Kernel::load());
            for (slot, proto) in [(0, UDP), (1, TCP)] {
                let rule = forward(proto, 8080, (cast.inside, 80));
                host.put(slot, &rule);
                kernel.put(slot, &rule);
            }
            let tcp_step = |flags| {
                let (socket, external) = ((cast.uplink, 40000), (cast.uplink, 8080));
                let to = tcp(socket, (cast.inside, 80), flags, b"");
                ("a segment", Gate::Loopback, tcp(socket, external, flags, b""), Some(to))
            };
            for (name, gate, frame, expected) in story(cast).into_iter().chain([tcp_step(SYN), tcp_step(ACK)])
            {
                let frame = zero_link(&frame);
                let expected = expected.map_or_else(|| frame.clone(), |expected| zero_link(&expected));
                let (outcome, bytes) = host.run_round(gate, &frame);
                assert!(bytes == expected, "{name}, {gate:?}, {}: {bytes:02x?} {expected:02x?}", cast.inside);
                let program = if gate == Gate::Loopback { "tc_lo_out" } else { "tc_turn_in" };
                let (answer, bytes) = kernel.run_at(program, &frame);
                assert!(
                    bytes == expected,
                    "{name}, {program}, {}: {bytes:02x?} {expected:02x?}",
                    cast.inside
                );
                let wanted = match outcome {
                    Outcome::Passed => u32::MAX, // TCX_NEXT, -1
                    Outcome::Dropped(_) => 2,    // TC_ACT_SHOT
                    Outcome::Sent(_) => 7,       // TC_ACT_REDIRECT
                };
                assert_eq!(answer, wanted, "{name}, {program}, {}", cast.inside);
            }
            let counters = [0, 1].map(|slot| (host.counters(slot), kernel.counters(slot)));
            for (on_the_host, in_the_kernel) in counters {
                assert_eq!(on_the_host, in_the_kernel);
            }
        }
    });
}
