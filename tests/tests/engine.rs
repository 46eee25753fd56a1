//! The engine on the host: the vectors, and what needs a hand on the tables or the clock.

use std::net::Ipv4Addr;

use telecluster_common::{
    drop::DropReason,
    maps::{Direction, FlowKey},
    tables::Tier,
};
use telecluster_tests::{
    frame::{ACK, Frame, SYN, TCP, UDP, tcp, udp},
    host::Host,
    vectors::{self, Machine as _, Outcome, UPLINK_ADDRESS, forward, masquerade},
};

const REMOTE: (Ipv4Addr, u16) = (Ipv4Addr::new(198, 51, 100, 7), 443);
const SECOND: u64 = 1_000_000_000;

fn inside(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 100, host)
}

fn machine() -> Host {
    let mut host = Host::default();
    host.put(0, &masquerade());
    host
}

/// Sends a datagram from the inside; the external port that it gets.
fn external_port(host: &mut Host, source: (Ipv4Addr, u16)) -> u16 {
    let (outcome, bytes) = host.run(Direction::Out, &udp(source, REMOTE, b"q").bytes());
    assert_eq!(outcome, Outcome::Passed);
    assert_eq!(bytes[26..30], UPLINK_ADDRESS.octets(), "it left with an inside address");
    u16::from_be_bytes([bytes[34], bytes[35]])
}

/// Answers to an external port; where it leads.
fn answered(host: &mut Host, port: u16) -> Option<(Ipv4Addr, u16)> {
    let frame = udp(REMOTE, (UPLINK_ADDRESS, port), b"a").bytes();
    let (outcome, bytes) = host.run(Direction::In, &frame);
    assert_eq!(outcome, Outcome::Passed);
    let to = Ipv4Addr::new(bytes[30], bytes[31], bytes[32], bytes[33]);
    (to != UPLINK_ADDRESS).then(|| (to, u16::from_be_bytes([bytes[36], bytes[37]])))
}

fn out_key(source: (Ipv4Addr, u16)) -> FlowKey {
    FlowKey {
        src: source.0.octets(),
        dst: REMOTE.0.octets(),
        sport: source.1,
        dport: REMOTE.1,
        proto: UDP,
        direction: Direction::Out as u8,
        unused: 0,
    }
}

fn in_key(port: u16) -> FlowKey {
    FlowKey {
        src: REMOTE.0.octets(),
        dst: UPLINK_ADDRESS.octets(),
        sport: REMOTE.1,
        dport: port,
        proto: UDP,
        direction: Direction::In as u8,
        unused: 0,
    }
}

#[test]
fn every_vector_holds_on_the_host() {
    for vector in vectors::all() {
        vectors::play(&vector, &mut Host::default());
    }
}

#[test]
fn two_hosts_with_one_source_port_do_not_share_it_outside() {
    let mut host = machine();
    let (first, second) = ((inside(10), 40000), (inside(11), 40000));
    let ports = [external_port(&mut host, first), external_port(&mut host, second)];
    assert_eq!(ports[0], 40000, "a free port is kept");
    assert_ne!(ports[0], ports[1]);
    assert_eq!(answered(&mut host, ports[0]), Some(first));
    assert_eq!(answered(&mut host, ports[1]), Some(second));
}

#[test]
fn a_port_stays_in_its_class() {
    let mut host = machine();
    for (port, class) in [(80u16, 1..1024u16), (1024, 1024..65535), (65535, 1024..65535)] {
        external_port(&mut host, (inside(10), port));
        let second = external_port(&mut host, (inside(11), port));
        assert!(class.contains(&second), "{port} became {second}");
    }
}

#[test]
fn a_port_of_the_host_or_of_a_forward_is_not_handed_out() {
    let mut host = machine();
    host.tables.sockets.push((UPLINK_ADDRESS.octets(), 40000));
    host.put(1, &forward(UDP, 40001, (inside(12), 1)));
    for port in [40000, 40001] {
        assert_ne!(external_port(&mut host, (inside(10), port)), port);
    }
    assert_eq!(external_port(&mut host, (inside(10), 40002)), 40002);
}

#[test]
fn when_every_port_is_taken_a_new_flow_is_refused_and_the_others_go_on() {
    let mut host = machine();
    let first = (inside(10), 40000);
    external_port(&mut host, first);
    host.tables.sockets = (0..=u16::MAX).map(|port| (UPLINK_ADDRESS.octets(), port)).collect();
    let (outcome, _) = host.run(Direction::Out, &udp((inside(11), 40000), REMOTE, b"q").bytes());
    assert_eq!(outcome, Outcome::Dropped(DropReason::PortsExhausted));
    assert_eq!(answered(&mut host, 40000), Some(first));
}

#[test]
fn an_answer_moves_both_directions_to_the_table_that_evicts_nothing() {
    let mut host = machine();
    let source = (inside(10), 40000);
    external_port(&mut host, source);
    assert_eq!((host.tables.entries(Tier::Unproven), host.tables.entries(Tier::Proven)), (2, 0));
    answered(&mut host, 40000);
    assert_eq!((host.tables.entries(Tier::Unproven), host.tables.entries(Tier::Proven)), (0, 2));
    let record = host.tables.record(&out_key(source)).expect("the flow");
    assert_eq!((record.packets, record.bytes), (1, 29), "the counters moved with it");
}

#[test]
fn a_flow_whose_one_direction_was_evicted_heals_with_the_same_port() {
    let mut host = machine();
    let source = (inside(10), 40000);
    external_port(&mut host, source);
    // the direction out is lost: the next datagram finds its own answers' entry
    assert!(host.tables.evict(Tier::Unproven, &out_key(source)));
    assert_eq!(external_port(&mut host, source), 40000);
    assert_eq!(host.tables.entries(Tier::Unproven), 2);
    // the direction in is lost: within a tick of sending, it is there again
    assert!(host.tables.evict(Tier::Unproven, &in_key(40000)));
    host.tables.clock.set(5 * SECOND);
    external_port(&mut host, source);
    assert_eq!(answered(&mut host, 40000), Some(source));
}

#[test]
fn one_way_traffic_keeps_the_way_back_open() {
    let mut host = machine();
    let source = (inside(10), 40000);
    for minute in 0..20 {
        host.tables.clock.set(minute * 60 * SECOND);
        external_port(&mut host, source);
    }
    assert_eq!(answered(&mut host, 40000), Some(source), "RFC 4787 REQ-6");
}

#[test]
fn a_flow_that_is_idle_for_too_long_is_over_and_its_port_is_free() {
    let mut host = machine();
    external_port(&mut host, (inside(10), 40000));
    host.tables.clock.set(310 * SECOND);
    assert_eq!(answered(&mut host, 40000), None, "it is the host's packet now");
    let second = (inside(11), 40000);
    assert_eq!(external_port(&mut host, second), 40000);
    assert_eq!(answered(&mut host, 40000), Some(second));
}

#[test]
fn an_open_tcp_connection_may_be_silent_for_two_hours() {
    let mut host = machine();
    let (source, external) = ((inside(10), 40000), (UPLINK_ADDRESS, 40000));
    host.run(Direction::Out, &tcp(source, REMOTE, SYN, b"").bytes());
    host.run(Direction::In, &tcp(REMOTE, external, SYN | ACK, b"").bytes());
    host.run(Direction::Out, &tcp(source, REMOTE, ACK, b"").bytes());
    host.tables.clock.set(7439 * SECOND);
    let (_, bytes) = host.run(Direction::In, &tcp(REMOTE, external, ACK, b"x").bytes());
    assert_eq!(bytes, tcp(REMOTE, source, ACK, b"x").bytes(), "RFC 5382 REQ-5");
}

#[test]
fn a_full_table_of_answered_flows_leaves_new_ones_where_they_are() {
    let mut host = machine();
    host.tables.capacity = 2;
    let source = (inside(10), 40000);
    external_port(&mut host, source);
    answered(&mut host, 40000);
    assert_eq!(host.tables.entries(Tier::Proven), 2);
    let second = (inside(11), 40001);
    external_port(&mut host, second);
    assert_eq!(answered(&mut host, 40001), Some(second));
    assert_eq!((host.tables.entries(Tier::Proven), host.tables.entries(Tier::Unproven)), (2, 2));
    let (outcome, _) = host.run(Direction::Out, &udp((inside(12), 40002), REMOTE, b"q").bytes());
    assert_eq!(outcome, Outcome::Dropped(DropReason::FlowTableFull));
    assert_eq!(answered(&mut host, 40000), Some(source));
}

#[test]
fn one_client_may_use_one_source_port_towards_two_forwards_of_one_server() {
    let mut host = Host::default();
    let server = (inside(10), 22);
    host.put(0, &forward(TCP, 2222, server));
    host.put(1, &forward(TCP, 2223, server));
    let mut seen = Vec::new();
    for port in [2222, 2223] {
        let (_, bytes) = host.run(Direction::In, &tcp(REMOTE, (UPLINK_ADDRESS, port), SYN, b"").bytes());
        let source = u16::from_be_bytes([bytes[34], bytes[35]]);
        let answer: Frame = tcp(server, (REMOTE.0, source), SYN | ACK, b"");
        let (_, answer) = host.run(Direction::Out, &answer.bytes());
        assert_eq!(answer, tcp((UPLINK_ADDRESS, port), REMOTE, SYN | ACK, b"").bytes());
        seen.push(source);
    }
    assert_ne!(seen[0], seen[1], "the server must be able to tell the connections apart");
}
