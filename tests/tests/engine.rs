//! The engine on the host: the vectors, and what needs a hand on the tables or the clock.

use std::net::{IpAddr, Ipv4Addr};

use telecluster_common::{
    drop::DropReason,
    maps::{Direction, FlowKey, flag},
};
use telecluster_tests::{
    behind_any_hooks,
    frame::{ACK, Frame, RST, SYN, TCP, UDP, tcp, udp},
    host::{Front, HALF_SIZE, Host, Hosts, Sent},
    vectors::{self, Machine as _, Outcome, UPLINK_ADDRESS, forward, masquerade},
};

type A4 = [u8; 4];

const REMOTE: (Ipv4Addr, u16) = (Ipv4Addr::new(198, 51, 100, 7), 443);
const SECOND: u64 = 1_000_000_000;

fn inside(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 100, host)
}

fn machine(front: Front) -> Host {
    let mut host = Host::behind(front);
    host.put(0, &masquerade());
    host
}

/// Sends a datagram from the inside; the external port that it gets.
fn external_port(host: &mut Host, source: (Ipv4Addr, u16)) -> u16 {
    external_port_towards(host, source, REMOTE)
}

/// The same towards another remote socket.
fn external_port_towards(host: &mut Host, source: (Ipv4Addr, u16), remote: (Ipv4Addr, u16)) -> u16 {
    let (outcome, bytes) = host.run(Direction::Out, &udp(source, remote, b"q").bytes());
    assert_eq!(outcome, Outcome::Passed);
    assert_eq!(bytes[26..30], UPLINK_ADDRESS.octets(), "it left with an inside address");
    u16::from_be_bytes([bytes[34], bytes[35]])
}

/// Answers to an external port; where it leads.
fn answered(host: &mut Host, port: u16) -> Option<(Ipv4Addr, u16)> {
    arrives(host, REMOTE, port).expect("dropped")
}

/// Where a datagram from outside leads that is sent to an external port; `None`: to the host itself.
fn arrives(host: &mut Host, from: (Ipv4Addr, u16), port: u16) -> Result<Option<(Ipv4Addr, u16)>, DropReason> {
    let (outcome, bytes) = host.run(Direction::In, &udp(from, (UPLINK_ADDRESS, port), b"a").bytes());
    if let Outcome::Dropped(reason) = outcome {
        return Err(reason);
    }
    let to = Ipv4Addr::new(bytes[30], bytes[31], bytes[32], bytes[33]);
    Ok((to != UPLINK_ADDRESS).then(|| (to, u16::from_be_bytes([bytes[36], bytes[37]]))))
}

fn out_key(source: (Ipv4Addr, u16)) -> FlowKey<A4> {
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

fn in_key(port: u16) -> FlowKey<A4> {
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
fn every_vector_holds_behind_any_hooks_and_leaves_the_same_behind() {
    let mut sent = [0; 4];
    for vector in vectors::all() {
        let mut uplink = Host::default();
        vectors::play(&vector, &mut uplink);
        for front in Front::ALL {
            println!("{front:?}");
            let mut host = Host::behind(front);
            vectors::play(&vector, &mut host);
            let name = vector.name;
            assert_eq!(host.tables.left::<A4>(), uplink.tables.left(), "{name}, {front:?}");
            assert_eq!(host.tables.left::<[u8; 16]>(), uplink.tables.left(), "{name}, {front:?}");
            let Sent { next, first, notable, later } = &host.sent;
            let packets = [next, first, notable, later];
            sent.iter_mut().zip(packets).for_each(|(sum, packets)| *sum += packets.get());
        }
    }
    assert!(sent.iter().all(|packets| *packets > 0), "{sent:?} have left drivers and traffic control");
}
behind_any_hooks!(
    two_hosts_with_one_source_port_do_not_share_it_outside,
    a_port_stays_in_its_class,
    a_port_of_the_host_or_of_a_forward_is_not_handed_out,
    when_every_port_is_taken_a_new_flow_is_refused_and_the_others_go_on,
    an_answer_proves_both_directions,
    a_flood_of_first_packets_pushes_out_first_packets_only,
    the_place_of_a_flow_that_is_over_pushes_out_no_newer_one_of_the_same_socket,
    a_server_that_answers_forged_clients_proves_nothing,
    a_flow_whose_one_direction_was_lost_heals_with_the_same_port,
    one_way_traffic_keeps_the_way_back_open,
    a_flow_that_is_idle_for_too_long_is_over_and_its_port_is_free,
    an_open_tcp_connection_may_be_silent_for_two_hours,
    a_forged_reset_does_not_shorten_what_its_sender_goes_on_with,
    a_full_table_gives_up_what_is_unproven_and_refuses_the_rest,
    one_client_may_use_one_source_port_towards_two_forwards_of_one_server,
);

fn two_hosts_with_one_source_port_do_not_share_it_outside(front: Front) {
    let mut host = machine(front);
    let (first, second) = ((inside(10), 40000), (inside(11), 40000));
    let ports = [external_port(&mut host, first), external_port(&mut host, second)];
    assert_eq!(ports[0], 40000, "a free port is kept");
    assert_ne!(ports[0], ports[1]);
    assert_eq!(answered(&mut host, ports[0]), Some(first));
    assert_eq!(answered(&mut host, ports[1]), Some(second));
}

fn a_port_stays_in_its_class(front: Front) {
    let mut host = machine(front);
    for (port, class) in [(80u16, 1..1024u16), (1024, 1024..65535), (65535, 1024..65535)] {
        external_port(&mut host, (inside(10), port));
        let second = external_port(&mut host, (inside(11), port));
        assert!(class.contains(&second), "{port} became {second}");
    }
}

fn a_port_of_the_host_or_of_a_forward_is_not_handed_out(front: Front) {
    let mut host = machine(front);
    host.tables.sockets.push((UPLINK_ADDRESS.into(), 40000));
    host.put(1, &forward(UDP, 40001, (inside(12).into(), 1)));
    for port in [40000, 40001] {
        assert_ne!(external_port(&mut host, (inside(10), port)), port);
    }
    assert_eq!(external_port(&mut host, (inside(10), 40002)), 40002);
}

fn when_every_port_is_taken_a_new_flow_is_refused_and_the_others_go_on(front: Front) {
    let mut host = machine(front);
    let first = (inside(10), 40000);
    external_port(&mut host, first);
    assert_eq!(answered(&mut host, 40000), Some(first));
    host.tables.sockets = (0..=u16::MAX).map(|port| (IpAddr::from(UPLINK_ADDRESS), port)).collect();
    let (outcome, _) = host.run(Direction::Out, &udp((inside(11), 40000), REMOTE, b"q").bytes());
    assert_eq!(outcome, Outcome::Dropped(DropReason::PortsExhausted));
    assert_eq!(answered(&mut host, 40000), Some(first));
}

fn an_answer_proves_both_directions(front: Front) {
    let mut host = machine(front);
    let source = (inside(10), 40000);
    external_port(&mut host, source);
    let proven = |host: &Host| {
        [out_key(source), in_key(40000)]
            .map(|key| host.tables.record(&key).is_some_and(|record| record.flags & flag::PROVEN != 0))
    };
    assert_eq!(proven(&host), [false, false]);
    answered(&mut host, 40000);
    assert_eq!(proven(&host), [true, true]);
}

fn a_flood_of_first_packets_pushes_out_first_packets_only(front: Front) {
    let mut host = machine(front);
    let (kept, busy, idle) = ((inside(10), 40000), (inside(11), 40001), (inside(12), 40002));
    external_port(&mut host, kept);
    answered(&mut host, 40000);
    for _ in 0..10 {
        external_port(&mut host, busy);
    }
    external_port(&mut host, idle);
    let before = host.tables.entries::<A4>();
    for number in 0..u16::try_from(HALF_SIZE).expect("a port") {
        external_port(&mut host, (inside(20), 1024 + number));
    }
    let after = host.tables.entries::<A4>();
    assert!(after <= before + 2 * HALF_SIZE, "{after} entries");
    assert_eq!(answered(&mut host, 40000), Some(kept), "it was answered");
    assert_eq!(answered(&mut host, 40001), Some(busy), "a one-way stream that goes on");
    let left = [out_key(idle), in_key(40002)].map(|key| host.tables.record(&key).is_some());
    assert_eq!(left, [false, false], "the oldest first packet, in both directions");
    assert_eq!(external_port(&mut host, idle), 40002, "the port is its own still");
}

fn the_place_of_a_flow_that_is_over_pushes_out_no_newer_one_of_the_same_socket(front: Front) {
    let mut host = machine(front);
    let again = (inside(10), 40000);
    let half_a_list = |host: &mut Host, from: u8| {
        for number in 0..u16::try_from(HALF_SIZE / 2).expect("a port") {
            external_port(host, (inside(from), 1024 + number));
        }
    };
    let is_there = |host: &Host| host.tables.record(&out_key(again)).is_some();
    external_port(&mut host, again);
    half_a_list(&mut host, 20);
    host.tables.clock.set(400 * SECOND);
    external_port(&mut host, again);
    half_a_list(&mut host, 21);
    assert!(is_there(&host), "the first one's place has come round");
    half_a_list(&mut host, 22);
    assert!(!is_there(&host), "its own has");
}

fn a_server_that_answers_forged_clients_proves_nothing(front: Front) {
    let mut host = Host::behind(front);
    host.put(0, &forward(TCP, 2222, (inside(10).into(), 22)));
    host.put(1, &forward(UDP, 53, (inside(10).into(), 53)));
    let external = |port| (UPLINK_ADDRESS, port);
    host.run(Direction::In, &tcp(REMOTE, external(2222), SYN, b"").bytes());
    host.run(Direction::Out, &tcp((inside(10), 22), REMOTE, SYN | ACK, b"").bytes());
    host.run(Direction::In, &udp(REMOTE, external(53), b"q").bytes());
    host.run(Direction::Out, &udp((inside(10), 53), REMOTE, b"a").bytes());
    let key = |proto, port| FlowKey { proto, ..in_key(port) };
    let proven = |host: &Host, key| host.tables.record(&key).expect("the flow").flags & flag::PROVEN != 0;
    assert!(!proven(&host, key(TCP, 2222)) && !proven(&host, key(UDP, 53)));
    host.run(Direction::In, &tcp(REMOTE, external(2222), ACK, b"").bytes());
    host.run(Direction::In, &udp(REMOTE, external(53), b"q").bytes());
    assert!(proven(&host, key(TCP, 2222)) && proven(&host, key(UDP, 53)), "only a real client goes on");
}

fn a_flow_whose_one_direction_was_lost_heals_with_the_same_port(front: Front) {
    let mut host = machine(front);
    let source = (inside(10), 40000);
    external_port(&mut host, source);
    // the direction out is lost: the next datagram finds its own answers' entry
    assert!(host.tables.forget(&out_key(source)));
    assert_eq!(external_port(&mut host, source), 40000);
    assert_eq!(answered(&mut host, 40000), Some(source));
    assert_eq!(host.tables.entries::<A4>(), 2);
    // the direction in is lost: the answer makes it anew, or sending does within four beats
    assert!(host.tables.forget(&in_key(40000)));
    assert_eq!(answered(&mut host, 40000), Some(source));
    assert!(host.tables.forget(&in_key(40000)));
    host.tables.clock.set(18 * SECOND);
    external_port(&mut host, source);
    assert_eq!(host.tables.entries::<A4>(), 2);
}

fn one_way_traffic_keeps_the_way_back_open(front: Front) {
    let mut host = machine(front);
    let source = (inside(10), 40000);
    for minute in 0..20 {
        host.tables.clock.set(minute * 60 * SECOND);
        external_port(&mut host, source);
    }
    assert_eq!(answered(&mut host, 40000), Some(source), "RFC 4787 REQ-6");
}

fn a_flow_that_is_idle_for_too_long_is_over_and_its_port_is_free(front: Front) {
    let mut host = machine(front);
    external_port(&mut host, (inside(10), 40000));
    host.tables.clock.set(340 * SECOND);
    assert_eq!(answered(&mut host, 40000), None, "it is the host's packet now");
    let second = (inside(11), 40000);
    assert_ne!(external_port(&mut host, second), 40000, "held down for 120 s (RFC 6888 REQ-8)");
    let third = (inside(12), 40000);
    host.tables.clock.set(460 * SECOND);
    assert_eq!(external_port(&mut host, third), 40000);
    assert_eq!(answered(&mut host, 40000), Some(third));
}

fn an_open_tcp_connection_may_be_silent_for_two_hours(front: Front) {
    let mut host = machine(front);
    let (source, external) = ((inside(10), 40000), (UPLINK_ADDRESS, 40000));
    host.run(Direction::Out, &tcp(source, REMOTE, SYN, b"").bytes());
    host.run(Direction::In, &tcp(REMOTE, external, SYN | ACK, b"").bytes());
    host.run(Direction::Out, &tcp(source, REMOTE, ACK, b"").bytes());
    host.tables.clock.set(7439 * SECOND);
    let (_, bytes) = host.run(Direction::In, &tcp(REMOTE, external, ACK, b"x").bytes());
    assert_eq!(bytes, tcp(REMOTE, source, ACK, b"x").bytes(), "RFC 5382 REQ-5");
}

/// A reset that the receiver does not believe, whichever side it seems to come from: who goes on has not sent it.
fn a_forged_reset_does_not_shorten_what_its_sender_goes_on_with(front: Front) {
    for (forged, after, silent) in [
        (Direction::In, Direction::In, 7439),
        (Direction::Out, Direction::Out, 7439),
        // the side that would have believed it says nothing about that
        (Direction::In, Direction::Out, 239),
    ] {
        let mut host = machine(front);
        let (source, external) = ((inside(10), 40000), (UPLINK_ADDRESS, 40000));
        let says = |host: &mut Host, direction, flags| {
            let (frame, seen) = match direction {
                Direction::Out => (tcp(source, REMOTE, flags, b"x"), tcp(external, REMOTE, flags, b"x")),
                Direction::In => (tcp(REMOTE, external, flags, b"x"), tcp(REMOTE, source, flags, b"x")),
            };
            host.run(direction, &frame.bytes()).1 == seen.bytes()
        };
        for (direction, flags) in
            [(Direction::Out, SYN), (Direction::In, SYN | ACK), (Direction::Out, ACK), (Direction::In, ACK)]
        {
            assert!(says(&mut host, direction, flags));
        }
        assert!(says(&mut host, forged, RST), "it gets through: the receiver judges");
        assert!(says(&mut host, after, ACK), "and the connection goes on");
        host.tables.clock.set(silent * SECOND);
        assert!(says(&mut host, after, ACK), "after {silent} s");
        host.tables.clock.set((silent + 260) * SECOND);
        assert_eq!(says(&mut host, after, ACK), silent == 7439, "{forged:?} {after:?}");
    }
}

fn a_full_table_gives_up_what_is_unproven_and_refuses_the_rest(front: Front) {
    let mut host = machine(front);
    host.tables.capacity = 3;
    let (first, second, third) = ((inside(10), 40000), (inside(11), 40001), (inside(12), 40002));
    external_port(&mut host, first);
    answered(&mut host, 40000);
    external_port(&mut host, second);
    // the packet that finds no room makes it for the next, or for itself where another hook tries it
    let (outcome, _) = host.run(Direction::Out, &udp(third, REMOTE, b"q").bytes());
    let again = matches!(front, Front::Control(Hosts::Known) | Front::Drivers(Hosts::Known));
    let full = Outcome::Dropped(DropReason::FlowTableFull);
    assert_eq!(outcome, if again { Outcome::Passed } else { full });
    assert!(host.tables.record(&out_key(second)).is_none());
    assert_eq!(external_port(&mut host, third), 40002);
    assert_eq!(answered(&mut host, 40000), Some(first), "nothing proven is pushed out");
}

fn one_client_may_use_one_source_port_towards_two_forwards_of_one_server(front: Front) {
    let mut host = Host::behind(front);
    let server = (inside(10), 22);
    host.put(0, &forward(TCP, 2222, (server.0.into(), server.1)));
    host.put(1, &forward(TCP, 2223, (server.0.into(), server.1)));
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
