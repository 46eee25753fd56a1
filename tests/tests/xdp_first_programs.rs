//! First packets of flows in the programs for drivers, and those that say something about their flow, through
//! `BPF_PROG_TEST_RUN`: between hosts that know each other they leave as they leave traffic control, and everything else is as
//! it was, uncounted.

#![expect(clippy::panic, reason = "a failure is a panic")]

use ipnet::IpNet;
use proptest::prop_assert_eq;
use telecluster_common::maps::{Direction, RuleStat};
use telecluster_tests::{
    damage::{CASES, with_damaged},
    driver::{Driver, TC_ACT_REDIRECT, XDP_PASS, XDP_REDIRECT},
    frame::{ACK, FIN, Frame, RST, SYN, TCP, UDP, icmp, tcp, udp, udp_without_checksum},
    sandbox,
    vectors::{Cast, IPV4, IPV6, Machine as _, Rule, forward, range},
};
use telecluster_worker::kernel::dataplane::{DataPlane as _, Flow};

const CASTS: [Cast; 2] = [IPV4, IPV6];

/// Of each family: a masquerade that spares a destination, and forwards of a port, of a range, and of a port for some.
fn rules() -> Vec<Rule> {
    let rules = |cast: Cast| {
        let prefix = if cast.inside.is_ipv4() { 24 } else { 64 };
        let source = IpNet::new(cast.inside, prefix).expect("a network").trunc();
        let some = vec![IpNet::from(cast.stranger)];
        let to = (cast.inside, 53);
        [
            Rule::Masquerade { source, nat: 0, except: some.clone(), pool: Vec::new() },
            forward(TCP, 2222, (cast.inside, 22)),
            range(UDP, 5000..=5009, (cast.inside, 6000)),
            Rule::Forward { proto: UDP, ports: 7000..=7000, to, address: None, sources: some },
        ]
    };
    CASTS.into_iter().flat_map(rules).collect()
}

/// The rules, and hosts that know each other.
fn driver() -> Driver {
    let driver = Driver::new(&rules());
    meet(&driver);
    driver
}

fn meet(driver: &Driver) {
    driver.find_way(true);
    for cast in CASTS {
        driver.introduce(cast.inside, cast.remote);
        driver.introduce(cast.inside, cast.stranger);
    }
}

/// No flows.
fn forget(driver: &mut Driver) {
    driver.0.forget(0);
    meet(driver);
}

/// Frames one after the other, all of which leave in the driver.
fn stories(cast: Cast) -> Vec<Vec<(Direction, Frame)>> {
    use Direction::{In, Out};
    let (asker, resolver, external) = ((cast.inside, 40000), (cast.remote, 53), (cast.uplink, 40000));
    let (client, web) = ((cast.remote, 50000), (cast.remote, 443));
    let (door, one_of_many) = ((cast.uplink, 2222), (cast.uplink, 5003));
    let (ssh, server) = ((cast.inside, 22), (cast.inside, 6003));
    vec![
        vec![
            (Out, udp(asker, resolver, b"question")),
            (In, udp(resolver, external, b"an answer")),
            (Out, udp(asker, resolver, b"another question")),
        ],
        vec![(Out, udp_without_checksum(asker, resolver, b"question"))],
        vec![(Out, tcp(asker, web, SYN, b"")), (In, tcp(web, external, SYN | ACK, b""))],
        vec![(Out, tcp(asker, web, SYN, b"")), (In, tcp(web, external, RST | ACK, b""))],
        vec![
            (In, tcp(client, door, SYN, b"")),
            (Out, tcp(ssh, client, SYN | ACK, b"")),
            (In, tcp(client, door, ACK, b"")),
            (Out, tcp(ssh, client, ACK, b"a banner")),
            (In, tcp(client, door, ACK | FIN, b"enough")),
            (Out, tcp(ssh, client, ACK | FIN, b"")),
            (In, tcp(client, door, ACK, b"")),
            (In, tcp(client, door, RST, b"")),
        ],
        vec![
            (In, udp(client, one_of_many, b"hello")),
            (In, udp(client, one_of_many, b"hello again")),
            (Out, udp(server, client, b"an answer")),
            (In, udp(client, one_of_many, b"thanks")),
        ],
        vec![(In, udp((cast.stranger, 50000), (cast.uplink, 7000), b"let in"))],
    ]
}

/// The first frame of each.
fn firsts() -> Vec<(Direction, Frame)> {
    CASTS.into_iter().flat_map(stories).map(|mut story| story.swap_remove(0)).collect()
}

/// What a story leaves behind.
#[derive(Debug, PartialEq)]
struct Seen {
    frames: Vec<Vec<u8>>,
    flows: Vec<Flow>,
    counters: Vec<RuleStat>,
}

fn counters(driver: &mut Driver) -> Vec<RuleStat> {
    (0..8).map(|slot| driver.0.counters(slot)).collect()
}

fn difference(after: &[RuleStat], before: &[RuleStat]) -> Vec<RuleStat> {
    let pairs = after.iter().zip(before);
    pairs
        .map(|(after, before)| RuleStat {
            packets_in: after.packets_in - before.packets_in,
            bytes_in: after.bytes_in - before.bytes_in,
            packets_out: after.packets_out - before.packets_out,
            bytes_out: after.bytes_out - before.bytes_out,
            flows: after.flows - before.flows,
        })
        .collect()
}

/// One of the two hooks.
type Hook = fn(&mut Driver, Direction, &[u8]) -> (u32, Vec<u8>);

/// From the beginning, without flows. Once in a while the moment is not right, say when a lease ends: then once more.
fn tell(driver: &mut Driver, story: &[(Direction, Frame)], (hook, leaves): (Hook, u32)) -> Seen {
    for _ in 0..3 {
        forget(driver);
        let before = counters(driver);
        let answers = story.iter().map(|(direction, frame)| hook(driver, *direction, &frame.bytes()));
        let answers: Vec<_> = answers.collect();
        if answers.iter().any(|(verdict, _)| *verdict != leaves) {
            continue;
        }
        let still = |flow: Flow| Flow { age: Default::default(), idle: Default::default(), ..flow };
        let counters = difference(&counters(driver), &before);
        return Seen {
            frames: answers.into_iter().map(|(_, bytes)| bytes).collect(),
            flows: driver.0.flows().into_iter().map(still).collect(),
            counters,
        };
    }
    panic!("it does not leave: {story:?}")
}

#[test]
fn first_packets_leave_the_driver_as_they_leave_traffic_control() {
    sandbox::run(|| {
        let mut driver = driver();
        for story in CASTS.into_iter().flat_map(stories) {
            let [tc, xdp] = [(Driver::tc as Hook, TC_ACT_REDIRECT), (Driver::xdp as Hook, XDP_REDIRECT)]
                .map(|hook| tell(&mut driver, &story, hook));
            assert_eq!(xdp, tc, "{story:?}");
            assert_eq!(xdp.flows.len(), 1, "{story:?}");
            assert_eq!(xdp.counters.iter().map(|rule| rule.flows).sum::<u64>(), 1, "{story:?}");
            for ((_, frame), bytes) in story.iter().zip(&xdp.frames) {
                assert_ne!(bytes, &frame.bytes());
            }
        }
    });
}

/// What a driver leaves to traffic control, and why.
fn left_alone(cast: Cast) -> Vec<(&'static str, Direction, Vec<u8>)> {
    use Direction::{In, Out};
    let (asker, resolver) = ((cast.inside, 40000), (cast.remote, 53));
    let (client, door, one_of_many) = ((cast.remote, 50000), (cast.uplink, 2222), (cast.uplink, 5003));
    let question = udp(asker, resolver, b"question");
    let ipv4 = cast.inside.is_ipv4();
    let with = |frame: &Frame, place: usize, byte: u8| {
        let mut bytes = frame.bytes();
        bytes[place] = byte;
        bytes
    };
    let options = if ipv4 { question.clone().options(&[1; 4]) } else { question.clone().extension(60) };
    let hops = if ipv4 { 22 } else { 21 };
    let (class, value) = if ipv4 { (15, 0x20) } else { (14, 0x62) };
    vec![
        ("options", Out, options.bytes()),
        ("its last hop", Out, with(&question, hops, 1)),
        ("its last hop", In, with(&udp(client, one_of_many, b"hello"), hops, 1)),
        ("another traffic class", Out, with(&question, class, value)),
        ("another traffic class", In, with(&tcp(client, door, SYN, b""), class, value)),
        ("not for the router", Out, with(&question, 5, 9)),
        ("too long", Out, udp(asker, resolver, &[7; 1500]).bytes()),
        ("too long", In, udp(client, one_of_many, &[7; 1500]).bytes()),
        ("no checksum yet", Out, question.unsummed()),
        ("no checksum yet", Out, tcp(asker, (cast.remote, 443), SYN, b"").unsummed()),
        ("no checksum yet", In, tcp(client, door, SYN, b"").unsummed()),
        ("a tunnel of frames", Out, udp(asker, (cast.remote, 4789), b"frame").bytes()),
        ("hosts that do not know each other", Out, udp((cast.other_inside, 40000), resolver, b"q").bytes()),
        ("hosts that do not know each other", In, udp((cast.gateway, 50000), one_of_many, b"q").bytes()),
        ("a destination that is spared", Out, udp(asker, (cast.stranger, 53), b"q").bytes()),
        ("of no rule", Out, udp((cast.stranger, 40000), (cast.inside, 53), b"q").bytes()),
        ("opens nothing", Out, tcp(asker, (cast.remote, 443), ACK, b"x").bytes()),
        ("opens nothing", In, tcp(client, door, ACK, b"x").bytes()),
        ("not for everybody", In, udp(client, (cast.uplink, 7000), b"let me in").bytes()),
        ("the host's", In, udp(client, (cast.uplink, 9), b"for the host").bytes()),
        ("the host's", In, tcp(client, (cast.uplink, 9), SYN, b"").bytes()),
        ("ICMP", Out, icmp(cast.inside, cast.remote, cast.echo, 7, b"ping").bytes()),
        ("a part", Out, udp(asker, resolver, &[7; 64]).fragments(1, 32)[0].bytes()),
    ]
}

/// Nothing has become of the frames, and nothing is left of them.
fn pass(driver: &mut Driver, frames: &[(&str, Direction, Vec<u8>)]) {
    let (counters_before, drops_before) = (counters(driver), driver.0.plane.drops().expect("drops"));
    for (why, direction, frame) in frames {
        let (verdict, bytes) = driver.xdp(*direction, frame);
        assert_eq!(verdict, XDP_PASS, "{why}: {frame:?}");
        assert_eq!(&bytes, frame, "{why}");
        assert_eq!(driver.0.flows(), [], "{why}");
    }
    assert_eq!(counters(driver), counters_before);
    assert_eq!(driver.0.plane.drops().expect("drops"), drops_before);
}

#[test]
fn what_does_not_leave_goes_on_untouched_and_uncounted() {
    sandbox::run(|| pass(&mut driver(), &CASTS.map(left_alone).concat()));
}

#[test]
fn no_first_packet_leaves_where_packets_are_not_alike_or_no_program_is() {
    sandbox::run(|| {
        let firsts = firsts();
        let frames = |why| firsts.iter().map(|(to, frame)| (why, *to, frame.bytes())).collect::<Vec<_>>();
        let mut driver = driver();
        driver.find_way(false);
        pass(&mut driver, &frames("not alike"));
        driver.find_way(true);
        driver.close_door();
        pass(&mut driver, &frames("no program"));
        driver.open_door();
        for (direction, frame) in &firsts {
            forget(&mut driver);
            assert_eq!(driver.xdp(*direction, &frame.bytes()).0, XDP_REDIRECT, "{frame:?}");
        }
    });
}

/// Whatever comes: it passes untouched, or it leaves with the bytes that traffic control gives the next one of its flow.
#[test]
fn damaged_first_packets_pass_untouched_or_leave_as_they_leave_traffic_control() {
    let frames = firsts();
    sandbox::run(|| {
        let driver = std::cell::RefCell::new(driver());
        let left = std::cell::Cell::new(0);
        with_damaged(&frames, 3, |direction, bytes| {
            let mut driver = driver.borrow_mut();
            forget(&mut driver);
            let xdp = driver.xdp(direction, &bytes);
            if xdp.0 == XDP_PASS {
                prop_assert_eq!(xdp.1, bytes);
                return Ok(());
            }
            left.set(left.get() + 1);
            let tc = driver.tc(direction, &bytes);
            prop_assert_eq!((xdp.0, tc.0), (XDP_REDIRECT, TC_ACT_REDIRECT));
            prop_assert_eq!(xdp.1, tc.1);
            Ok(())
        });
        assert!(left.get() > 400, "{} of {CASES} have left", left.get());
    });
}
