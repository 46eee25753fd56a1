//! The VLAN engine on the host: every story, and what needs a look at the tables.

use telecluster_common::vlan::VlanDrop;
use telecluster_tests::switch::{
    Machine as _, Port,
    engine::Engine,
    frames::{BROADCAST, ether, mac},
    play, stories,
};
use telecluster_worker::model::bridge_vlan::Accept;

#[test]
fn every_story_holds_on_the_host_wherever_the_tag_is() {
    for story in stories::all() {
        for beside in [false, true] {
            play(&story, &mut Engine::new(&story.ports, beside));
        }
    }
}

#[test]
fn every_reason_to_drop_but_two_is_met() {
    let mut met: Vec<VlanDrop> = Vec::new();
    for story in stories::all() {
        let mut engine = Engine::new(&story.ports, true);
        play(&story, &mut engine);
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
