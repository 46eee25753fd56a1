//! How much one inside host, or one rule, may take: the engine on the host, with a hand on the clock, and the settings.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::json;
use telecluster_common::{
    drop::DropReason,
    maps::{Direction, Opening},
    tables::Limits,
};
use telecluster_tests::{
    behind_any_hooks,
    frame::{SYN, UDP, icmp, tcp, udp},
    host::{Front, Host, Hosts},
    lab::{INSIDE, INSIDE_NET, Lab, OUTSIDE, WAN, eventually, rule_id},
    on_each_data_plane,
    vectors::{IPV4, IPV6, Machine as _, Outcome, Rule, forward},
};

const SECOND: u64 = 1_000_000_000;
const MINUTE: u64 = 60 * SECOND;

fn machine(front: Front, limits: Limits) -> Host {
    let mut host = Host::behind(front);
    let rules: [Rule; 3] =
        [IPV4.masquerade(), IPV6.masquerade(), forward(UDP, 53, (IPV4.other_inside, 5353))];
    for (slot, rule) in (0..).zip(&rules) {
        host.put(slot, rule);
    }
    host.tables.limits = limits;
    host.tables.clock.set(MINUTE);
    host
}

/// Sends a datagram from an inside socket.
fn sends(host: &mut Host, from: impl Into<IpAddr>, port: u16) -> Outcome {
    let from = from.into();
    let remote = if from.is_ipv4() { IPV4.remote } else { IPV6.remote };
    host.run(Direction::Out, &udp((from, port), (remote, 443), b"q").bytes()).0
}

fn inside(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 100, host)
}

const QUOTA: Outcome = Outcome::Dropped(DropReason::PortQuota);
const RATE: Outcome = Outcome::Dropped(DropReason::FlowRate);
behind_any_hooks!(
    an_inside_host_has_so_many_ports_and_no_more_and_the_others_have_theirs,
    an_expired_port_makes_room_for_another_one,
    a_quota_that_is_larger_than_what_is_looked_at_is_never_exceeded,
    new_flows_of_one_inside_host_are_paced_and_those_under_way_are_not,
    new_flows_of_one_rule_are_paced_whoever_makes_them,
    a_rule_may_say_for_itself_how_many_flows_it_makes_in_a_second,
);

fn an_inside_host_has_so_many_ports_and_no_more_and_the_others_have_theirs(front: Front) {
    let mut host = machine(front, Limits { ports_per_host: 10, ..Limits::default() });
    for port in 40000..40010 {
        assert_eq!(sends(&mut host, inside(10), port), Outcome::Passed);
    }
    assert_eq!(sends(&mut host, inside(10), 40010), QUOTA);
    let segment = tcp((inside(10), 1), (IPV4.remote, 443), SYN, b"");
    assert_eq!(host.run(Direction::Out, &segment.bytes()).0, QUOTA, "of whatever protocol");
    let ping = icmp(inside(10), IPV4.remote, 8, 7, b"");
    assert_eq!(host.run(Direction::Out, &ping.bytes()).0, QUOTA);
    assert_eq!(host.tables.told.borrow().len(), 3, "it is told each time");
    // what it has it keeps, towards others too
    for port in 40000..40010 {
        assert_eq!(sends(&mut host, inside(10), port), Outcome::Passed);
        let other = udp((inside(10), port), (IPV4.stranger, 53), b"q").bytes();
        assert_eq!(host.run(Direction::Out, &other).0, Outcome::Passed);
    }
    assert_eq!(sends(&mut host, inside(11), 40000), Outcome::Passed);
    assert_eq!(sends(&mut host, IPV6.inside, 40000), Outcome::Passed);
}

fn an_expired_port_makes_room_for_another_one(front: Front) {
    let mut host = machine(front, Limits { ports_per_host: 2, ..Limits::default() });
    assert_eq!(sends(&mut host, inside(10), 40000), Outcome::Passed);
    assert_eq!(sends(&mut host, inside(10), 40001), Outcome::Passed);
    host.tables.clock.set(host.tables.clock.get() + 4 * MINUTE);
    assert_eq!(sends(&mut host, inside(10), 40001), Outcome::Passed);
    assert_eq!(sends(&mut host, inside(10), 40002), QUOTA);
    host.tables.clock.set(host.tables.clock.get() + 3 * MINUTE);
    assert_eq!(sends(&mut host, inside(10), 40002), Outcome::Passed, "the first is over");
    assert_eq!(sends(&mut host, inside(10), 40003), QUOTA);
}

fn a_quota_that_is_larger_than_what_is_looked_at_is_never_exceeded(front: Front) {
    let mut host = machine(front, Limits { ports_per_host: 100, ..Limits::default() });
    let passed = (30000..34000).filter(|port| sends(&mut host, inside(10), *port) == Outcome::Passed).count();
    assert!((85..=100).contains(&passed), "{passed}");
}

fn new_flows_of_one_inside_host_are_paced_and_those_under_way_are_not(front: Front) {
    let mut host = machine(front, Limits { flows_per_host: 10, ..Limits::default() });
    let passed = |host: &mut Host, first: u16| {
        (first..first + 100).filter(|port| sends(host, inside(10), *port) == Outcome::Passed).count()
    };
    // a second's worth at once, and the one that is due
    assert_eq!(passed(&mut host, 40000), 11);
    assert_eq!(sends(&mut host, inside(10), 50000), RATE);
    assert_eq!(sends(&mut host, inside(10), 40000), Outcome::Passed, "under way");
    assert_eq!(sends(&mut host, inside(11), 40000), Outcome::Passed, "another host");
    host.tables.clock.set(host.tables.clock.get() + SECOND / 2);
    assert_eq!(passed(&mut host, 41000), 5);
    host.tables.clock.set(host.tables.clock.get() + 100 * SECOND);
    assert_eq!(passed(&mut host, 42000), 11, "what was not used is not saved");
}

fn new_flows_of_one_rule_are_paced_whoever_makes_them(front: Front) {
    let mut host = machine(front, Limits { flows_per_rule: 10, ..Limits::default() });
    let arrives = |host: &mut Host, client: u8| {
        let client = (Ipv4Addr::new(198, 51, 100, client), 5000);
        host.run(Direction::In, &udp(client, (IPV4.uplink, 53), b"q").bytes()).0
    };
    assert_eq!((0..100).filter(|client| arrives(&mut host, *client) == Outcome::Passed).count(), 11);
    assert_eq!(arrives(&mut host, 200), RATE);
    assert_eq!(arrives(&mut host, 0), Outcome::Passed, "under way");
    // another rule
    assert_eq!(
        (1..=100).filter(|from| sends(&mut host, inside(*from), 40000) == Outcome::Passed).count(),
        11
    );
}

fn a_rule_may_say_for_itself_how_many_flows_it_makes_in_a_second(front: Front) {
    let mut host = machine(front, Limits { flows_per_rule: 10, ..Limits::default() });
    let opening = |flows_per_second| Opening { pool: 0, flows_per_second };
    host.tables.openings.extend([(0, opening(50)), (2, opening(5))]);
    let arrives = |host: &mut Host, client: u8| {
        let client = (Ipv4Addr::new(198, 51, 100, client), 5000);
        host.run(Direction::In, &udp(client, (IPV4.uplink, 53), b"q").bytes()).0
    };
    assert_eq!((0..100).filter(|client| arrives(&mut host, *client) == Outcome::Passed).count(), 6);
    assert_eq!(
        (1..=100).filter(|from| sends(&mut host, inside(*from), 40000) == Outcome::Passed).count(),
        51
    );
    // What says nothing goes by the setting.
    assert_eq!(
        (0..100).filter(|port| sends(&mut host, IPV6.inside, 40000 + port) == Outcome::Passed).count(),
        11
    );
}

/// A packet that gets no port meets hook after hook, each of which tries it.
#[test]
fn a_packet_counts_once_towards_a_pace_however_many_hooks_have_tried_it() {
    let everything = || (0..=u16::MAX).map(|port| (IPV4.uplink, port)).collect::<Vec<_>>();
    for front in Front::ALL {
        for limits in [
            Limits { flows_per_host: 10, ..Limits::default() },
            Limits { flows_per_rule: 10, ..Limits::default() },
        ] {
            let mut host = machine(front, limits);
            host.tables.sockets = everything();
            let refused = |host: &mut Host, port| sends(host, inside(10), port);
            for port in 40000..40004 {
                assert_eq!(
                    refused(&mut host, port),
                    Outcome::Dropped(DropReason::PortsExhausted),
                    "{front:?}"
                );
            }
            host.tables.sockets.clear();
            let passed = (41000..41100).filter(|port| sends(&mut host, inside(10), *port) == Outcome::Passed);
            assert_eq!(passed.count(), 7, "{front:?}: four of eleven have been refused");
            assert_eq!(sends(&mut host, inside(10), 42000), RATE);
            let drivers = front == Front::Drivers(Hosts::Known);
            assert_eq!(host.sent.first.get(), if drivers { 7 } else { 0 }, "{front:?}");
        }
    }
}

/// From the outside, and where the making of the flow is what fails.
#[test]
fn a_packet_that_finds_a_full_table_counts_once_too() {
    for front in Front::ALL {
        let mut host = machine(front, Limits { flows_per_rule: 10, ..Limits::default() });
        // Two flows that have been answered, and one entry more: of a third flow there is half.
        for port in [30000, 30001] {
            assert_eq!(sends(&mut host, inside(10), port), Outcome::Passed);
            let answer = udp((IPV4.remote, 443), (IPV4.uplink, port), b"a");
            assert_eq!(host.run(Direction::In, &answer.bytes()).0, Outcome::Passed);
        }
        let full = Outcome::Dropped(DropReason::FlowTableFull);
        let arrives = |host: &mut Host, port| {
            let client = (IPV4.remote, port);
            host.run(Direction::In, &udp(client, (IPV4.uplink, 53), b"q").bytes()).0
        };
        for (room, port) in [(4, 5000), (5, 5001), (5, 5002)] {
            host.tables.capacity = room;
            assert_eq!(arrives(&mut host, port), full, "{front:?}, {port}");
        }
        host.tables.capacity = 0;
        let passed = (6000..6100).filter(|port| arrives(&mut host, *port) == Outcome::Passed);
        assert_eq!(passed.count(), 8, "{front:?}: three of eleven were refused");
        assert_eq!(arrives(&mut host, 7000), RATE);
    }
}

/// Who floods gets no more looks for a port than he may have flows.
#[test]
fn what_is_refused_for_want_of_ports_is_bounded_by_the_pace() {
    for front in Front::ALL {
        let mut host = machine(front, Limits { flows_per_host: 10, ..Limits::default() });
        host.tables.sockets = (0..=u16::MAX).map(|port| (IPV4.uplink, port)).collect();
        let outcomes: Vec<_> = (40000..40100).map(|port| sends(&mut host, inside(10), port)).collect();
        let looked = outcomes.iter().filter(|outcome| **outcome != RATE).count();
        assert_eq!(looked, 11, "{front:?}");
    }
}

on_each_data_plane!(
    a_rule_s_pace_holds_in_the_kernel_and_a_restart_changes_nothing,
    what_is_beyond_a_forward_s_pace_is_dropped_and_what_is_under_way_is_not_charged,
);

/// A forward and a masquerade, each by its own measure.
fn a_rule_s_pace_holds_in_the_kernel_and_a_restart_changes_nothing(lab: &Lab) {
    let worker = lab.start();
    let masquerade =
        json!({ "source_network": INSIDE_NET, "output_interface": "wan0", "new_flows_per_second": 2 });
    let forward = json!({ "external_port": 5300, "internal_ip": INSIDE, "internal_port": 53, "protocol": "udp",
                          "new_flows_per_second": 1000 });
    let made = lab.post("/nat/masquerade", &masquerade).ok();
    assert_eq!(made["data"]["new_flows_per_second"], 2);
    assert_eq!(made["data"]["warnings"], json!([]), "{made}");
    lab.post("/nat/forward", &forward).ok();
    // One that comes and goes takes nothing of the others with it.
    let mut other = forward.clone();
    other["external_port"] = json!(5301);
    let other = rule_id(&lab.post("/nat/forward", &other).ok());
    lab.call("DELETE", &format!("/nat/forward/{other}"), None).ok();
    let sink = lab.outside.udp((OUTSIDE, 5300));
    // So many at once that the time that it takes allows few of them.
    let sockets: Vec<_> = (0..200).map(|_| lab.inside.udp((INSIDE, 0))).collect();
    for socket in &sockets {
        socket.send_to(b"q", (OUTSIDE, 5300)).expect("send");
    }
    let refused = || refused(lab);
    eventually("nobody is refused", || refused() > 100);
    sink.recv_from(&mut [0; 16]).expect("some pass");
    let before = refused();
    let server = lab.inside.udp((INSIDE, 53));
    for port in 1..=100 {
        lab.outside.udp((OUTSIDE, 20000 + port)).send_to(b"q", (WAN, 5300)).expect("send");
        server.recv_from(&mut [0; 16]).expect("the forward has its own");
    }
    assert_eq!(refused(), before);
    worker.stop();
    let _worker = lab.start();
    for (path, body) in [("/nat/masquerade", &masquerade), ("/nat/forward", &forward)] {
        assert_eq!(lab.post(path, body).ok()["data"]["changed"], false);
    }
}

/// First packets that were beyond a pace.
fn refused(lab: &Lab) -> u64 {
    let metrics = lab.get("/metrics");
    let mut lines = metrics.as_str().expect("text").lines();
    let line = lines.find(|line| line.contains("reason=\"flow_rate\""));
    line.and_then(|line| line.rsplit(' ').next()).map_or(0, |count| count.parse().expect("a number"))
}

/// Also while nobody has answered it yet, which to connection tracking is new still.
fn what_is_beyond_a_forward_s_pace_is_dropped_and_what_is_under_way_is_not_charged(lab: &Lab) {
    let _worker = lab.start();
    let forward = json!({ "external_port": 5300, "internal_ip": INSIDE, "internal_port": 53, "protocol": "udp",
                          "new_flows_per_second": 1 });
    lab.post("/nat/forward", &forward).ok();
    let server = lab.inside.udp((INSIDE, 53));
    let client = |port| lab.outside.udp((OUTSIDE, port));
    let first = client(20000);
    for _ in 0..50 {
        first.send_to(b"q", (WAN, 5300)).expect("send");
        server.recv_from(&mut [0; 16]).expect("it is one flow");
    }
    assert_eq!(refused(lab), 0);
    // So many at once that the time that it takes allows few of them.
    for port in 1..=100 {
        client(20000 + port).send_to(b"q", (WAN, 5300)).expect("send");
    }
    eventually("nobody is refused", || refused(lab) > 50);
}

/// Through the programs: the settings reach them, and the sender is told.
#[test]
fn the_settings_hold_in_the_kernel() {
    let mut lab = Lab::new();
    lab.environment.push(("PORTS_PER_HOST", "8".to_owned()));
    lab.environment.push(("NEW_FLOWS_PER_RULE", "100000".to_owned()));
    let _worker = lab.start();
    lab.masquerade();
    let server = lab.outside.udp((OUTSIDE, 5300));
    let mut buffer = [0; 16];
    let sockets: Vec<_> = (0..8).map(|port| lab.inside.udp((INSIDE, 40000 + port))).collect();
    for (port, socket) in (40000..).zip(&sockets) {
        socket.send_to(b"q", (OUTSIDE, 5300)).expect("send");
        let (_, from) = server.recv_from(&mut buffer).expect("a datagram");
        assert_eq!(from, (WAN, port).into());
    }
    let ninth = lab.inside.udp((INSIDE, 50000));
    ninth.connect((OUTSIDE, 5300)).expect("connect");
    eventually("it is told that it has no more", || {
        let sent = ninth.send(b"q").and_then(|_| ninth.recv(&mut [0; 16]));
        sent.is_err_and(|error| error.kind() == std::io::ErrorKind::HostUnreachable)
    });
    let metrics = lab.get("/metrics");
    let counted = metrics
        .as_str()
        .expect("text")
        .lines()
        .any(|line| line.contains("reason=\"port_quota\"") && !line.ends_with(" 0"));
    assert!(counted, "{metrics}");
}
