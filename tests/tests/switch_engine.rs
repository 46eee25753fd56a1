//! The VLAN engine on the host: every story, and what needs a look at the tables.

use proptest::prelude::*;
use telecluster_common::vlan::{VlanDrop, learn::GUARD};
use telecluster_tests::switch::{
    HOST_MAC, Machine as _, Port,
    engine::Engine,
    frames::{BROADCAST, Ether, arp, ether, mac, rarp, with_datagram},
    play,
    stories::{self, Story},
};
use telecluster_worker::model::bridge_vlan::Accept;

#[test]
fn every_story_holds_on_the_host_wherever_the_tag_is() {
    for story in stories::all() {
        for beside in [false, true] {
            // Once, and so often that the last one is decided as the one before.
            for times in [1, 3] {
                play(&story, &mut Engine::new(&story.ports, beside), times);
            }
        }
    }
}

#[test]
fn every_story_holds_on_the_host_in_drivers_too() {
    let mut switched = 0;
    for story in stories::all().into_iter().map(Story::with_datagrams) {
        for doorless in [&[][..], &[2]] {
            for times in [1, 3] {
                let mut engine = Engine::in_drivers(&story.ports, doorless);
                play(&story, &mut engine, times);
                switched += engine.switched;
            }
        }
    }
    assert!(switched > 100, "{switched}");
}

/// Port, frame, and whether it goes on from the driver, when both of its stations are known.
#[test]
fn only_what_is_sure_to_be_whole_goes_from_driver_to_driver() {
    let ports = [Port::plain(), Port::access(10), Port::access(10), Port::trunk(&[10])];
    let datagram = |frame: Ether| with_datagram(&frame.bytes());
    let ours = |dst| ether(mac(1), mac(dst));
    // In the pseudo header of 10.0.0.1 to 10.0.0.2, of UDP.
    let partial = |mut frame: Vec<u8>| {
        let length = u32::from(u16::from_be_bytes([frame[38], frame[39]]));
        let sum = 0x0a00 + 1 + 0x0a00 + 2 + 17 + length;
        frame[40..42].copy_from_slice(&u16::try_from(sum).expect("a sum").to_be_bytes());
        frame
    };
    let changed = |place: usize, byte: u8| {
        let mut frame = datagram(ours(2));
        frame[place] = byte;
        frame
    };
    for (frame, goes_on) in [
        (datagram(ours(2)), true),
        (datagram(ours(3)), true),
        (partial(datagram(ours(2))), false),
        // Of another protocol, of one that nobody knows, with options, a later fragment, in a tunnel of frames.
        (ours(2).bytes(), false),
        (changed(23, 132), false),
        (changed(23, 1), true),
        (changed(14, 0x46), false),
        (changed(21, 9), false),
        (changed(37, 0xb5), true),
        (changed(36, 0x12), true),
        ([&changed(36, 0x12)[..37], &[0xb5], &datagram(ours(2))[38..]].concat(), false),
        (datagram(ours(2))[..33].to_vec(), false),
        (datagram(ours(9)), false),
        (datagram(ether(mac(1), BROADCAST)), false),
    ] {
        let mut engine = Engine::in_drivers(&ports, &[]);
        for station in 1..=3u8 {
            let hello = ether(mac(station), BROADCAST);
            let hello = if station == 3 { hello.q(10) } else { hello };
            engine.send(station.into(), &hello.bytes());
        }
        engine.send(1, &frame);
        assert_eq!(engine.switched, u64::from(goes_on), "{frame:02x?}");
    }
}

#[test]
fn every_reason_to_drop_but_two_is_met() {
    let mut met: Vec<VlanDrop> = Vec::new();
    for story in stories::all() {
        let mut engine = Engine::new(&story.ports, true);
        play(&story, &mut engine, 1);
        met.extend(engine.drops.into_iter().map(|dropped| dropped.reason));
    }
    for reason in VlanDrop::ALL {
        // No frame of a story is malformed, and the host's tags can always be written.
        let expected = !matches!(reason, VlanDrop::Malformed | VlanDrop::Rewrite);
        assert_eq!(met.contains(&reason), expected, "{}", reason.name());
    }
}

#[test]
fn frames_without_their_headers_are_dropped() {
    let mut engine = Engine::new(&[Port::plain(), Port::access(10), Port::access(10)], false);
    let whole = ether(mac(1), BROADCAST).q(10).bytes();
    for length in [0, 1, 13, 14, 17] {
        assert!(engine.send(1, &whole[..length]).is_empty());
    }
    assert_eq!(engine.drops, [VlanDrop::Malformed.within(0); 5]);
}

#[test]
fn frames_are_counted_where_they_come_in_and_where_they_leave() {
    let ports = [Port::plain(), Port::access(10), Port::access(10), Port::trunk(&[10])];
    let mut engine = Engine::new(&ports, true);
    let frame = ether(mac(1), BROADCAST).bytes();
    engine.send(1, &frame);
    engine.send_segments(1, &frame, 44);
    let (one, two) = (engine.counters(1, 10), engine.counters(2, 10));
    assert_eq!((one.rx_packets, one.rx_bytes, one.tx_packets), (45, 120, 0));
    assert_eq!((two.rx_packets, two.tx_packets, two.tx_bytes), (0, 45, 120));
    assert_eq!(engine.counters(3, 10).tx_packets, 45);
}

#[test]
fn a_drop_knows_the_vlan_that_the_frame_was_in() {
    let tagged_only = Port { accept: Accept::Tagged, ..Port::trunk(&[20]).native(10) };
    let ports = [Port::plain(), Port::access(10), tagged_only, Port { blocked: true, ..Port::access(20) }];
    let mut engine = Engine::new(&ports, true);
    let frame = || ether(mac(1), BROADCAST);
    for (port, frame, expected) in [
        // On an access port: another VLAN's tag, a second tag.
        (1, frame().q(20), VlanDrop::NotMember.within(20)),
        (1, frame().q(10).q(20), VlanDrop::NestedTag.within(10)),
        (1, frame().q(0).q(20), VlanDrop::NestedTag.within(10)),
        (1, frame().q(4095), VlanDrop::ReservedVlan.within(0)),
        // Its native VLAN is meant, which frames without a tag are not welcome in.
        (2, frame(), VlanDrop::NotAccepted.within(10)),
        (3, frame(), VlanDrop::Blocked.within(20)),
        // Out of the blocked port.
        (2, frame().q(20), VlanDrop::Blocked.within(20)),
    ] {
        engine.drops.clear();
        assert!(engine.send(port, &frame.bytes()).is_empty());
        assert_eq!(engine.drops, [expected]);
    }
}

#[test]
fn a_super_packet_is_not_measured_by_its_size() {
    let ports = [Port::plain(), Port::access(10), Port::access(10)];
    let mut engine = Engine::new(&ports, true);
    let frame = ether(mac(1), BROADCAST).payload(0x0800, vec![0; 60_000]).bytes();
    assert!(engine.send(1, &frame).is_empty(), "{:?}", engine.drops);
    assert_eq!(engine.send_segments(1, &frame, 41).len(), 1);
}

#[test]
fn a_port_whose_limit_is_reached_learns_when_somebody_has_gone() {
    let limited = Port { station_limit: 1, ..Port::access(10) };
    let mut engine = Engine::new(&[Port::plain(), limited, Port::access(10)], true);
    let hello = |number| ether(mac(number), BROADCAST).bytes();
    engine.send(1, &hello(1));
    engine.send(1, &hello(2));
    assert_eq!((engine.stations_on(1), engine.not_learned()), (1, 1));
    engine.wait(10);
    engine.send(2, &hello(1));
    assert_eq!(engine.stations_on(1), 0, "it has moved");
    engine.send(1, &hello(2));
    assert_eq!((engine.stations_on(1), engine.not_learned()), (1, 1));
}

#[test]
fn a_frame_like_the_one_before_asks_for_no_station() {
    let ports = [Port::plain(), Port::access(10), Port::access(10), Port::trunk(&[10])];
    let mut engine = Engine::new(&ports, true);
    engine.send(2, &ether(mac(2), BROADCAST).bytes());
    let frame = ether(mac(1), mac(2)).bytes();
    let mut lookups = |frame: &[u8]| {
        let before = engine.lookups();
        assert_eq!(engine.send(1, frame).len(), 1);
        let asked = engine.lookups() - before;
        (asked, engine.counters(1, 10).rx_packets)
    };
    assert_eq!(lookups(&frame), (2, 1), "its sender is new");
    assert_eq!(lookups(&frame), (2, 2));
    assert_eq!(lookups(&frame), (0, 3), "and it is counted");
    assert_eq!(lookups(&ether(mac(9), mac(2)).bytes()), (2, 4), "another sender");
    engine.wait(1);
    let before = engine.lookups();
    engine.send(1, &frame);
    assert_eq!(engine.lookups() - before, 2, "it has been a while");
}

/// A station that talks all the time is one that was heard, though its frames are decided as the one before.
#[test]
fn a_station_that_talks_is_not_silent() {
    let ports = [Port::plain(), Port::access(10), Port::access(10), Port::access(10)];
    let mut engine = Engine::new(&ports, true);
    engine.send(2, &ether(mac(2), BROADCAST).bytes());
    let frame = ether(mac(1), mac(2)).bytes();
    for _ in 0..3 * GUARD / 100_000_000 {
        engine.wait_milliseconds(100);
        assert_eq!(engine.send(1, &frame), [(2, frame.clone())]);
        engine.drops.clear();
        assert!(engine.send(3, &frame).is_empty());
        assert_eq!(engine.drops, [VlanDrop::StolenAddress.within(10)]);
        engine.send(2, &ether(mac(2), mac(1)).bytes());
    }
}

/// Something that happens to a switch.
#[derive(Debug, Clone)]
enum Event {
    /// So many times.
    Send {
        port: usize,
        frame: Ether,
        times: usize,
    },
    Put {
        number: usize,
        port: Port,
    },
    /// Longer than a decision holds, so that stations are as old with decisions as without.
    Wait(u64),
}

const PORTS: usize = 5;

fn port() -> impl Strategy<Value = Port> {
    let vlans = || prop_oneof![3 => Just(10u16), 1 => Just(20)];
    let base = prop_oneof![
        4 => vlans().prop_map(Port::access),
        2 => Just(Port::trunk(&[10, 20])),
        2 => Just(Port::trunk(&[20]).native(10)),
        1 => Just(Port::plain()),
    ];
    let flags = (prop::bool::weighted(0.2), prop::bool::weighted(0.2), prop::bool::weighted(0.2));
    let limits = (prop_oneof![3 => Just(0u32), 1 => Just(1)], prop::option::weighted(0.2, Just(3000u32)));
    let fixed = prop::option::weighted(0.2, (1u8..5).prop_map(|number| (10, mac(number))));
    (base, flags, limits, fixed).prop_map(
        |(base, (blocked, isolated, hairpin), (station_limit, ageing), fixed)| Port {
            blocked,
            isolated,
            hairpin,
            station_limit,
            ageing,
            stations: fixed.into_iter().collect(),
            ..base
        },
    )
}

fn frame() -> impl Strategy<Value = Ether> {
    let station = || prop_oneof![8 => (1u8..5).prop_map(mac), 1 => Just(HOST_MAC)];
    let receiver = prop_oneof![8 => station(), 1 => Just(BROADCAST)];
    let plain = (station(), receiver).prop_map(|(src, dst)| ether(src, dst));
    let gratuitous = (station(), prop_oneof![Just(BROADCAST), Just(mac(1))])
        .prop_map(|(src, dst)| arp(src, dst, 1, [10, 0, 0, 1], [10, 0, 0, 1]));
    let bare = prop_oneof![12 => plain, 2 => gratuitous, 1 => station().prop_map(rarp)];
    let tags = prop_oneof![
        6 => Just(vec![]),
        3 => Just(vec![10u16]),
        2 => Just(vec![20]),
        1 => Just(vec![0xe00a]),
        1 => Just(vec![0]),
        1 => Just(vec![10, 20]),
    ];
    (bare, tags).prop_map(|(bare, tags)| tags.into_iter().fold(bare, Ether::q))
}

fn event() -> impl Strategy<Value = Event> {
    let times = prop_oneof![1 => Just(1usize), 2 => Just(3)];
    prop_oneof![
        16 => (0..PORTS, frame(), times).prop_map(|(port, frame, times)| Event::Send { port, frame, times }),
        3 => (0..PORTS, port()).prop_map(|(number, port)| Event::Put { number, port }),
        1 => prop::sample::select(vec![2u64, 4, 6, 400]).prop_map(Event::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever happens, what was decided before is what would be decided now, in drivers too.
    #[test]
    fn decisions_that_are_kept_change_nothing(
        ports in prop::collection::vec(port(), PORTS),
        beside in any::<bool>(),
        in_drivers in any::<bool>(),
        doorless in prop::collection::vec(0..PORTS, 0..2),
        events in prop::collection::vec(event(), 1..80),
    ) {
        let (mut keeping, beside) = match in_drivers {
            true => (Engine::in_drivers(&ports, &doorless), true),
            false => (Engine::new(&ports, beside), beside),
        };
        let mut anew = Engine::without_decisions(&ports, beside);
        for event in events {
            match &event {
                Event::Send { port, frame, times } => {
                    let frame = with_datagram(&frame.bytes());
                    for _ in 0..*times {
                        prop_assert_eq!(keeping.send(*port, &frame), anew.send(*port, &frame), "{:?}", event);
                    }
                }
                Event::Put { number, port } => {
                    keeping.put(*number, port);
                    anew.put(*number, port);
                }
                Event::Wait(seconds) => {
                    keeping.wait(*seconds);
                    anew.wait(*seconds);
                }
            }
            prop_assert_eq!(&keeping.drops, &anew.drops);
            prop_assert_eq!(keeping.not_learned(), anew.not_learned());
            prop_assert_eq!(keeping.all_counters(), anew.all_counters());
            for port in 0..PORTS {
                prop_assert_eq!(keeping.stations_on(port), anew.stations_on(port));
            }
        }
    }
}
