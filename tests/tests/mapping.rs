//! Which external port an inside socket has, and who may send to it: RFC 4787 sections 4 and 5, RFC 5382 section 4, on
//! the host's engine, where the clock can be turned.

use std::net::{IpAddr, Ipv4Addr};

use telecluster_common::{
    drop::DropReason,
    maps::{Direction, Timeouts, rule},
};
use telecluster_tests::{
    behind_any_hooks,
    frame::{ACK, FIN, RST, SYN, icmp, icmp_error, tcp, udp},
    host::{Front, Host},
    vectors::{IPV4, Machine as _, Outcome, Rule, UPLINK_ADDRESS, masquerade},
};

type Socket = (Ipv4Addr, u16);

const A: Socket = (Ipv4Addr::new(198, 51, 100, 7), 443);
const A_OTHER_PORT: Socket = (A.0, 8443);
const B: Socket = (Ipv4Addr::new(198, 51, 100, 8), 443);
const SECOND: u64 = 1_000_000_000;

fn inside(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 100, host)
}

fn machine(front: Front, nat: u32) -> Host {
    let mut host = Host::behind(front);
    let Rule::Masquerade { source, .. } = masquerade() else { unreachable!("it is one") };
    host.put(0, &Rule::Masquerade { source, nat, except: Vec::new(), pool: Vec::new() });
    host
}

/// The external port of a datagram.
fn sends(host: &mut Host, source: Socket, remote: Socket) -> u16 {
    let (outcome, bytes) = host.run(Direction::Out, &udp(source, remote, b"q").bytes());
    assert_eq!(outcome, Outcome::Passed);
    u16::from_be_bytes([bytes[34], bytes[35]])
}

/// Where a datagram from outside leads; `None`: to the host itself.
fn receives(host: &mut Host, from: Socket, port: u16) -> Result<Option<Socket>, DropReason> {
    let (outcome, bytes) = host.run(Direction::In, &udp(from, (UPLINK_ADDRESS, port), b"a").bytes());
    match outcome {
        Outcome::Dropped(reason) => Err(reason),
        Outcome::Passed => {
            let to = Ipv4Addr::new(bytes[30], bytes[31], bytes[32], bytes[33]);
            Ok((to != UPLINK_ADDRESS).then(|| (to, u16::from_be_bytes([bytes[36], bytes[37]]))))
        }
        Outcome::Sent(interface) => unreachable!("nobody has learned a way to {interface}"),
    }
}
behind_any_hooks!(
    one_inside_socket_has_one_port_for_all_destinations,
    a_moved_socket_stays_where_it_is_when_its_own_port_becomes_free,
    who_was_sent_to_may_send_from_any_port_and_others_may_not,
    a_full_cone_is_open_to_everybody,
    what_tcp_has_opened_is_not_open_to_udp_and_the_port_is_free_there,
    a_symmetric_rule_gives_each_destination_a_port_of_its_own,
    what_comes_in_does_not_keep_a_port_open_that_nobody_answers,
    a_port_that_has_become_another_one_s_leads_to_that_one_only,
    a_new_mapping_of_the_same_socket_is_not_open_to_those_of_the_old_one,
    both_sides_may_open_one_connection_at_once,
    an_early_syn_of_a_peer_is_dropped_silently_and_its_next_one_gets_through,
    a_finished_connection_gives_its_port_back_after_minutes_not_hours,
    a_connection_that_opens_and_one_that_closes_have_times_of_their_own,
    a_port_waits_for_another_socket_for_as_long_as_is_said,
    the_host_keeps_its_port_unless_the_answers_would_go_inside,
    a_service_of_the_host_is_reached_although_an_inside_socket_has_its_port,
    identifiers_of_pings_are_bound_like_ports,
    an_icmp_error_neither_refreshes_nor_ends_a_mapping,
    an_even_port_stays_even_where_that_is_asked_for,
    tunnels_between_hosts_are_never_an_inside_host_s_port,
    other_ports_are_not_to_be_guessed,
);

fn one_inside_socket_has_one_port_for_all_destinations(front: Front) {
    let mut host = machine(front, 0);
    let (first, second) = ((inside(10), 40000), (inside(11), 40000));
    for source in [first, second] {
        let port = sends(&mut host, source, A);
        for remote in [A_OTHER_PORT, B] {
            assert_eq!(sends(&mut host, source, remote), port, "RFC 4787 REQ-1");
        }
    }
    assert_ne!(sends(&mut host, first, A), sends(&mut host, second, A), "REQ-3: no overloading");
}

fn a_moved_socket_stays_where_it_is_when_its_own_port_becomes_free(front: Front) {
    let mut host = machine(front, 0);
    let (first, second) = ((inside(10), 40000), (inside(11), 40000));
    sends(&mut host, first, A);
    let port = sends(&mut host, second, A);
    for minute in 1..10 {
        host.tables.clock.set(minute * 60 * SECOND);
        assert_eq!(sends(&mut host, second, A), port);
    }
    assert_eq!(sends(&mut host, second, B), port, "the first one's binding is long gone");
}

fn who_was_sent_to_may_send_from_any_port_and_others_may_not(front: Front) {
    let mut host = machine(front, 0);
    let source = (inside(10), 40000);
    sends(&mut host, source, A);
    assert_eq!(receives(&mut host, A, 40000), Ok(Some(source)));
    assert_eq!(receives(&mut host, A_OTHER_PORT, 40000), Ok(Some(source)), "RFC 4787 REQ-8");
    assert_eq!(receives(&mut host, B, 40000), Err(DropReason::Filtered));
    assert_eq!(receives(&mut host, B, 40001), Ok(None), "nobody's port is the host's");
    sends(&mut host, source, B);
    assert_eq!(receives(&mut host, B, 40000), Ok(Some(source)));
}

fn a_full_cone_is_open_to_everybody(front: Front) {
    let mut host = machine(front, rule::FULL_CONE);
    let source = (inside(10), 40000);
    sends(&mut host, source, A);
    assert_eq!(receives(&mut host, B, 40000), Ok(Some(source)));
    // and the answer leaves from the same port
    assert_eq!(sends(&mut host, source, B), 40000);
}

/// RFC 7857 sections 5 and 6.
fn what_tcp_has_opened_is_not_open_to_udp_and_the_port_is_free_there(front: Front) {
    let mut host = machine(front, rule::FULL_CONE);
    let (first, second) = ((inside(10), 40000), (inside(11), 40000));
    let (outcome, bytes) = host.run(Direction::Out, &tcp(first, A, SYN, b"").bytes());
    assert_eq!((outcome, &bytes[34..36]), (Outcome::Passed, &40000_u16.to_be_bytes()[..]));
    assert_eq!(receives(&mut host, A, 40000), Ok(None), "a datagram is the host's, also from there");
    assert_eq!(sends(&mut host, second, A), 40000, "of UDP nobody has it");
    assert_eq!(receives(&mut host, B, 40000), Ok(Some(second)));
}

fn a_symmetric_rule_gives_each_destination_a_port_of_its_own(front: Front) {
    let mut host = machine(front, rule::SYMMETRIC);
    let source = (inside(10), 40000);
    let ports = [A, A_OTHER_PORT, B].map(|remote| sends(&mut host, source, remote));
    assert_eq!(ports[0], 40000);
    assert!(ports[1] != ports[0] && ports[2] != ports[0] && ports[1] != ports[2], "{ports:?}");
    assert_eq!(receives(&mut host, A, ports[0]), Ok(Some(source)));
    assert_eq!(receives(&mut host, A_OTHER_PORT, ports[0]), Err(DropReason::Filtered));
    assert_eq!(receives(&mut host, B, ports[2]), Ok(Some(source)));
    assert_eq!(sends(&mut host, source, A_OTHER_PORT), ports[1]);
}

fn what_comes_in_does_not_keep_a_port_open_that_nobody_answers(front: Front) {
    let mut host = machine(front, rule::FULL_CONE);
    let source = (inside(10), 40000);
    sends(&mut host, source, A);
    for minute in 1..=7 {
        host.tables.clock.set(minute * 60 * SECOND);
        let expected = if minute <= 5 { Some(source) } else { None };
        // a stranger each time, whom the inside never answers
        let stranger = (Ipv4Addr::new(10, 0, 0, u8::try_from(minute).expect("few minutes")), 9);
        assert_eq!(receives(&mut host, stranger, 40000), Ok(expected), "minute {minute} (RFC 4787 REQ-6)");
    }
}

fn a_port_that_has_become_another_one_s_leads_to_that_one_only(front: Front) {
    let mut host = machine(front, 0);
    let (first, second) = ((inside(10), 40000), (inside(11), 40000));
    sends(&mut host, first, A);
    // from another port: a flow of its own, which nobody answers
    host.tables.clock.set(290 * SECOND);
    assert_eq!(receives(&mut host, A_OTHER_PORT, 40000), Ok(Some(first)));
    // that is not idle for too long yet when the port is free again
    host.tables.clock.set(460 * SECOND);
    assert_eq!(sends(&mut host, second, B), 40000);
    assert_eq!(receives(&mut host, A_OTHER_PORT, 40000), Err(DropReason::Filtered));
    sends(&mut host, second, A_OTHER_PORT);
    assert_eq!(receives(&mut host, A_OTHER_PORT, 40000), Ok(Some(second)));
}

fn a_new_mapping_of_the_same_socket_is_not_open_to_those_of_the_old_one(front: Front) {
    let mut host = machine(front, 0);
    let source = (inside(10), 40000);
    sends(&mut host, source, A);
    host.tables.clock.set(400 * SECOND);
    assert_eq!(sends(&mut host, source, B), 40000);
    assert_eq!(receives(&mut host, A, 40000), Err(DropReason::Filtered));
    assert_eq!(receives(&mut host, B, 40000), Ok(Some(source)));
}

fn both_sides_may_open_one_connection_at_once(front: Front) {
    let mut host = machine(front, 0);
    let (source, external) = ((inside(10), 40000), (UPLINK_ADDRESS, 40000));
    let mut out = |flags| host.run(Direction::Out, &tcp(source, A, flags, b"").bytes());
    assert_eq!(out(SYN), (Outcome::Passed, tcp(external, A, SYN, b"").bytes()));
    let inward = host.run(Direction::In, &tcp(A, external, SYN, b"").bytes());
    assert_eq!(inward, (Outcome::Passed, tcp(A, source, SYN, b"").bytes()), "RFC 5382 REQ-2");
    for flags in [SYN | ACK, ACK] {
        let out = host.run(Direction::Out, &tcp(source, A, flags, b"").bytes());
        assert_eq!(out, (Outcome::Passed, tcp(external, A, flags, b"").bytes()));
        let inward = host.run(Direction::In, &tcp(A, external, flags, b"").bytes());
        assert_eq!(inward, (Outcome::Passed, tcp(A, source, flags, b"").bytes()));
    }
}

fn an_early_syn_of_a_peer_is_dropped_silently_and_its_next_one_gets_through(front: Front) {
    let mut host = machine(front, 0);
    let (source, external) = ((inside(10), 40000), (UPLINK_ADDRESS, 40000));
    // the meeting point, then the peer's SYN, then ours (hole punching)
    host.run(Direction::Out, &tcp(source, A, SYN, b"").bytes());
    let syn = tcp(B, external, SYN, b"").bytes();
    assert_eq!(host.run(Direction::In, &syn).0, Outcome::Dropped(DropReason::Filtered), "RFC 5382 REQ-4");
    host.run(Direction::Out, &tcp(source, B, SYN, b"").bytes());
    assert_eq!(host.run(Direction::In, &syn), (Outcome::Passed, tcp(B, source, SYN, b"").bytes()));
}

fn a_finished_connection_gives_its_port_back_after_minutes_not_hours(front: Front) {
    let mut host = machine(front, 0);
    let (source, external) = ((inside(10), 40000), (UPLINK_ADDRESS, 40000));
    for (direction, flags) in [
        (Direction::Out, SYN),
        (Direction::In, SYN | ACK),
        (Direction::Out, ACK),
        (Direction::In, 1 | ACK),
        (Direction::Out, 1 | ACK),
    ] {
        let frame = match direction {
            Direction::Out => tcp(source, A, flags, b""),
            Direction::In => tcp(A, external, flags, b""),
        };
        assert_eq!(host.run(direction, &frame.bytes()).0, Outcome::Passed, "{flags:#x}");
    }
    // 240 s after the end, 13 s each for the flow and its binding, in which they may not have heard of each other, and 120 s of hold-down
    for (seconds, free) in [(300, false), (390, true)] {
        host.tables.clock.set(seconds * SECOND);
        let last = u8::try_from(seconds % 200).expect("a host");
        let (_, bytes) = host.run(Direction::Out, &tcp((inside(last), 40000), A, SYN, b"").bytes());
        assert_eq!(bytes[34..36] == 40000u16.to_be_bytes(), free, "after {seconds} s");
    }
}

fn a_connection_that_opens_and_one_that_closes_have_times_of_their_own(front: Front) {
    let open = [(Direction::Out, SYN), (Direction::In, SYN | ACK), (Direction::Out, ACK)];
    let closed = [(Direction::In, FIN | ACK), (Direction::Out, FIN | ACK)];
    let reset = [(Direction::In, RST)];
    let whole = [open.as_slice(), &closed].concat();
    let aborted = [open.as_slice(), &reset].concat();
    for (segments, lives) in [(&open[..1], 30), (&open[..2], 30), (&whole, 600), (&aborted, 600)] {
        // Four beats of grace each for the flow and its binding, which tell each other once in so many.
        for (seconds, free) in [(lives - 1, false), (lives + 36, true)] {
            let mut host = machine(front, 0);
            host.tables.hold_down = Some(0);
            host.tables.timeouts = Some(Timeouts { tcp_opening: 30, tcp_closing: 600, ..Timeouts::RFC });
            for (direction, flags) in segments {
                let frame = match direction {
                    Direction::Out => tcp((inside(10), 40000), A, *flags, b""),
                    Direction::In => tcp(A, (UPLINK_ADDRESS, 40000), *flags, b""),
                };
                assert_eq!(host.run(*direction, &frame.bytes()).0, Outcome::Passed, "{flags:#x}");
            }
            host.tables.clock.set(host.tables.clock.get() + seconds * SECOND);
            let (_, bytes) = host.run(Direction::Out, &tcp((inside(11), 40000), A, SYN, b"").bytes());
            assert_eq!(bytes[34..36] == 40000u16.to_be_bytes(), free, "{segments:?} after {seconds} s");
        }
    }
}

fn a_port_waits_for_another_socket_for_as_long_as_is_said(front: Front) {
    // A datagram's own time is five minutes.
    for (hold_down, from) in [(Some(0), 340), (Some(60), 400), (None, 460), (Some(3600), 3940)] {
        for (seconds, free) in [(from - 20, false), (from, true)] {
            let mut host = machine(front, 0);
            host.tables.hold_down = hold_down;
            assert_eq!(sends(&mut host, (inside(10), 40000), A), 40000);
            host.tables.clock.set(host.tables.clock.get() + seconds * SECOND);
            let port = sends(&mut host, (inside(11), 40000), A);
            assert_eq!(port == 40000, free, "{hold_down:?} after {seconds} s");
            // Its own socket is not kept from it.
            assert_eq!(sends(&mut host, (inside(10), 40000), A) == 40000, !free);
        }
    }
}

fn the_host_keeps_its_port_unless_the_answers_would_go_inside(front: Front) {
    let mut host = machine(front, 0);
    let source = (inside(10), 40000);
    sends(&mut host, source, A);
    let own = (UPLINK_ADDRESS, 40000);
    assert_eq!(sends(&mut host, own, B), 40000, "nobody inside talks to that one");
    let moved = sends(&mut host, own, A);
    assert_ne!(moved, 40000);
    let (_, bytes) = host.run(Direction::In, &udp(A, (UPLINK_ADDRESS, moved), b"a").bytes());
    assert_eq!(bytes, udp(A, own, b"a").bytes(), "the answer finds the host's socket");
    assert_eq!(receives(&mut host, A, 40000), Ok(Some(source)));
}

fn a_service_of_the_host_is_reached_although_an_inside_socket_has_its_port(front: Front) {
    let mut host = machine(front, 0);
    sends(&mut host, (inside(10), 40000), A);
    host.tables.sockets.push((IpAddr::from(UPLINK_ADDRESS), 40000));
    assert_eq!(receives(&mut host, B, 40000), Ok(None), "it listens since then");
}

fn identifiers_of_pings_are_bound_like_ports(front: Front) {
    let mut host = machine(front, 0);
    let identifier = |host: &mut Host, source, remote| {
        let (outcome, bytes) = host.run(Direction::Out, &icmp(source, remote, IPV4.echo, 77, b"").bytes());
        assert_eq!(outcome, Outcome::Passed);
        u16::from_be_bytes([bytes[38], bytes[39]])
    };
    assert_eq!(identifier(&mut host, inside(10), A.0), 77);
    assert_eq!(identifier(&mut host, inside(10), B.0), 77, "RFC 5508 REQ-1");
    let other = identifier(&mut host, inside(11), A.0);
    assert_ne!(other, 77);
    assert_eq!(identifier(&mut host, inside(11), B.0), other);
    let reply = icmp(A.0, UPLINK_ADDRESS, IPV4.echo_reply, other, b"").bytes();
    let (_, bytes) = host.run(Direction::In, &reply);
    assert_eq!(bytes, icmp(A.0, inside(11), IPV4.echo_reply, 77, b"").bytes());
}

fn an_icmp_error_neither_refreshes_nor_ends_a_mapping(front: Front) {
    let mut host = machine(front, 0);
    let source = (inside(10), 40000);
    sends(&mut host, source, A);
    let about = udp((UPLINK_ADDRESS, 40000), A, b"q");
    let error = icmp_error(A.0, UPLINK_ADDRESS, (3, 3, [0; 4]), &about, 1500).bytes();
    host.run(Direction::In, &error);
    assert_eq!(receives(&mut host, A, 40000), Ok(Some(source)), "RFC 4787 REQ-12");
    for minute in 1..=4 {
        host.tables.clock.set(minute * 60 * SECOND);
        assert_eq!(host.run(Direction::In, &error).0, Outcome::Passed);
    }
    host.tables.clock.set(340 * SECOND);
    assert_eq!(receives(&mut host, A, 40000), Ok(None), "it is over as if there had been no errors");
}

fn an_even_port_stays_even_where_that_is_asked_for(front: Front) {
    let mut host = machine(front, 0);
    host.tables.flags.insert(0, rule::PARITY);
    for port in [40000, 40001] {
        sends(&mut host, (inside(10), port), A);
        for last in 11..60 {
            let chosen = sends(&mut host, (inside(last), port), A);
            assert!(chosen != port && chosen % 2 == port % 2, "{port} became {chosen} (RFC 4787 REQ-4)");
        }
    }
}

fn tunnels_between_hosts_are_never_an_inside_host_s_port(front: Front) {
    let mut host = machine(front, 0);
    for port in [4789, 8472] {
        assert_ne!(sends(&mut host, (inside(10), port), A), port);
        assert_eq!(receives(&mut host, A, port), Ok(None));
    }
}

fn other_ports_are_not_to_be_guessed(front: Front) {
    let mut host = machine(front, 0);
    sends(&mut host, (inside(10), 40000), A);
    let ports: Vec<u16> = (11..60).map(|last| sends(&mut host, (inside(last), 40000), A)).collect();
    let steps: std::collections::HashSet<u16> =
        ports.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
    assert!(steps.len() > 40, "they follow each other: {ports:?}");
    assert!(ports.iter().all(|port| *port >= 1024), "RFC 4787 REQ-3");
}
