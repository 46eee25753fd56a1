//! The programs for drivers, through `BPF_PROG_TEST_RUN`: what is fast leaves with the bytes that traffic control gives it,
//! and everything else is as it was.

use std::mem::offset_of;

use aya::maps::{HashMap, Map};
use proptest::prop_assert_eq;
use telecluster_common::maps::{Direction, Flow, FlowKey};
use telecluster_tests::{
    damage::with_damaged,
    driver::{Driver, EPOCH, HOP, TC_ACT_REDIRECT, XDP_PASS, XDP_REDIRECT, pinned, soon},
    frame::{ACK, Frame, SYN, TCP, tcp, udp, udp_without_checksum},
    sandbox,
    vectors::{Cast, IPV4, IPV6, Machine as _, Rule, forward},
};
use telecluster_worker::kernel::dataplane::DataPlane as _;

type A4 = [u8; 4];
type A6 = [u8; 16];

/// Flows that somebody has found the way of.
struct Fast(Driver);

impl Fast {
    /// Two flows of each family: masqueraded UDP, and TCP to a forward.
    fn new() -> Self {
        let rules: Vec<Rule> = [IPV4, IPV6]
            .into_iter()
            .flat_map(|cast| [cast.masquerade(), forward(TCP, 2222, (cast.inside, 22))])
            .collect();
        let mut driver = Driver::new(&rules);
        for cast in [IPV4, IPV6] {
            let (asker, client) = ((cast.inside, 40000), (cast.remote, 50000));
            let (ssh, door) = ((cast.inside, 22), (cast.uplink, 2222));
            for (direction, frame) in [
                (Direction::Out, udp(asker, (cast.remote, 53), b"q")),
                (Direction::In, udp((cast.remote, 53), (cast.uplink, 40000), b"a")),
                (Direction::Out, udp(asker, (cast.remote, 53), b"q")),
                (Direction::In, tcp(client, door, SYN, b"")),
                (Direction::Out, tcp(ssh, client, SYN | ACK, b"")),
                (Direction::In, tcp(client, door, ACK, b"x")),
                (Direction::Out, tcp(ssh, client, ACK, b"y")),
            ] {
                driver.0.run(direction, &frame.bytes());
            }
        }
        let this = Self(driver);
        this.find_ways();
        this
    }

    /// Writes down what the slow path would have learned between two interfaces.
    fn find_ways(&self) {
        self.0.find_way(false);
        learn::<{ size_of::<FlowKey<A4>>() }, { size_of::<Flow<A4>>() }>("flow4", offset_of!(Flow<A4>, hop));
        learn::<{ size_of::<FlowKey<A6>>() }, { size_of::<Flow<A6>>() }>("flow6", offset_of!(Flow<A6>, hop));
    }

    /// In the driver, and with traffic control's fast path.
    fn both(&mut self, direction: Direction, frame: &[u8]) -> [(u32, Vec<u8>); 2] {
        [self.0.xdp(direction, frame), self.0.tc(direction, frame)]
    }

    /// The same of a frame that is fast, except in the moment when its direction has to refresh the other one: that is
    /// the slow path's business, so it is given the frame first.
    fn fast(&mut self, direction: Direction, frame: &[u8]) -> [(u32, Vec<u8>); 2] {
        let slow = match direction {
            Direction::In => "tc_wan_in",
            Direction::Out => "tc_wan_out",
        };
        for _ in 0..5 {
            self.0.0.run_at(slow, frame);
            let both = self.both(direction, frame);
            if both[0].0 == XDP_REDIRECT && both[1].0 == TC_ACT_REDIRECT {
                return both;
            }
        }
        self.both(direction, frame)
    }
}

/// Hop, stamp and lease stand one after the other.
fn learn<const K: usize, const V: usize>(map: &str, place: usize) {
    let mut flows: HashMap<_, [u8; K], [u8; V]> = Map::HashMap(pinned(map)).try_into().expect("the map");
    let keys: Vec<_> = flows.keys().map(|key| key.expect("a key")).collect();
    assert!(keys.len() >= 4, "{map}: two flows, both directions");
    let lease = soon();
    for key in keys {
        let mut flow = flows.get(&key, 0).expect("a flow");
        for (place, value) in (place..).step_by(4).zip([HOP, EPOCH, lease]) {
            flow[place..place + 4].copy_from_slice(&value.to_ne_bytes());
        }
        flows.insert(key, flow, 0).expect("write a flow");
    }
}

/// Frames of the flows that are fast.
fn frames(cast: Cast) -> Vec<(Direction, Frame)> {
    let (asker, resolver, external) = ((cast.inside, 40000), (cast.remote, 53), (cast.uplink, 40000));
    let (client, ssh, door) = ((cast.remote, 50000), (cast.inside, 22), (cast.uplink, 2222));
    vec![
        (Direction::Out, udp(asker, resolver, b"question")),
        (Direction::In, udp(resolver, external, b"answer")),
        (Direction::Out, udp_without_checksum(asker, resolver, b"question")),
        (Direction::In, tcp(client, door, ACK, b"segment")),
        (Direction::Out, tcp(ssh, client, ACK, &[7; 1200])),
    ]
}

#[test]
fn what_is_fast_leaves_the_driver_as_it_leaves_traffic_control() {
    sandbox::run(|| {
        let mut fast = Fast::new();
        let before = fast.0.0.plane.xdp().expect("the count").packets;
        let mut sent = 0;
        for (direction, frame) in [IPV4, IPV6].into_iter().flat_map(frames) {
            let bytes = frame.bytes();
            let [xdp, tc] = fast.fast(direction, &bytes);
            assert_eq!((xdp.0, tc.0), (XDP_REDIRECT, TC_ACT_REDIRECT), "{frame:?}");
            assert_eq!(xdp.1, tc.1, "{frame:?}");
            assert_ne!(xdp.1, bytes);
            sent += 1;
        }
        assert!(fast.0.0.plane.xdp().expect("the count").packets - before >= sent);
    });
}

#[test]
fn what_leads_where_no_program_is_goes_on_untouched() {
    sandbox::run(|| {
        let mut fast = Fast::new();
        fast.0.close_door();
        for (direction, frame) in [IPV4, IPV6].into_iter().flat_map(frames) {
            let [xdp, tc] = fast.fast(direction, &frame.bytes());
            assert_eq!((xdp.0, tc.0), (XDP_PASS, TC_ACT_REDIRECT), "{frame:?}");
            assert_eq!(xdp.1, frame.bytes());
        }
    });
}

#[test]
fn a_packet_that_lacks_its_checksum_goes_on_untouched() {
    sandbox::run(|| {
        let mut fast = Fast::new();
        for (direction, frame) in [IPV4, IPV6].into_iter().flat_map(frames) {
            let bytes = frame.unsummed();
            let [xdp, tc] = fast.fast(direction, &bytes);
            assert_eq!((xdp.0, tc.0), (XDP_PASS, TC_ACT_REDIRECT), "{frame:?}");
            assert_eq!(xdp.1, bytes);
        }
    });
}

/// Whatever comes: it passes untouched, or it leaves with the bytes that traffic control gives it. Nothing is dropped.
#[test]
fn damaged_frames_pass_untouched_or_leave_as_they_leave_traffic_control() {
    let frames: Vec<_> = [IPV4, IPV6].into_iter().flat_map(frames).collect();
    sandbox::run(|| {
        let fast = std::cell::RefCell::new(Fast::new());
        with_damaged(&frames, 4, |direction, bytes| {
            let mut fast = fast.borrow_mut();
            // Their leases are shorter than this may take.
            fast.find_ways();
            let [mut xdp, mut tc] = fast.both(direction, &bytes);
            if xdp.0 == XDP_REDIRECT && tc.0 != TC_ACT_REDIRECT {
                // the moment of refreshing was between the two
                [xdp, tc] = fast.fast(direction, &bytes);
            }
            if xdp.0 == XDP_PASS {
                prop_assert_eq!(xdp.1, bytes);
            } else {
                prop_assert_eq!((xdp.0, tc.0), (XDP_REDIRECT, TC_ACT_REDIRECT));
                prop_assert_eq!(xdp.1, tc.1);
            }
            Ok(())
        });
    });
}
