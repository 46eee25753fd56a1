//! The loaded programs: the same vectors as on the host, through the verifier and `BPF_PROG_TEST_RUN`.

use proptest::{
    prelude::*,
    sample::Index,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use telecluster_common::maps::Direction;
use telecluster_tests::{
    frame::{TCP, UDP, mend},
    host::Host,
    kernel::Kernel,
    sandbox,
    vectors::{self, Machine as _, Step, forward, masquerade, range},
};
use telecluster_worker::kernel::dataplane::DataPlane as _;

#[test]
fn every_vector_holds_in_the_kernel() {
    // The list of unproven flows is not emptied: it must not come round.
    for some in vectors::all().chunks(20) {
        sandbox::run(|| {
            let mut kernel = Kernel::load();
            for vector in some {
                vectors::play(vector, &mut kernel);
                kernel.forget(vector.rules.len());
            }
        });
    }
}

/// Which frame, what becomes of its bytes and where it ends; which way it goes, and whether an error in it is made right again.
type Damaged = (Index, Vec<(Index, u8)>, Option<Index>, [bool; 2]);

/// Frames of the vectors with bytes changed and tails cut: whatever comes, the kernel's verdict, bytes and counters
/// are the host's. Half of the errors among them are made right again: what embeds nonsense is looked into then.
#[test]
fn damaged_frames_meet_the_same_fate_on_the_host_and_in_the_kernel() {
    let frames: Vec<Vec<u8>> = vectors::all()
        .into_iter()
        .flat_map(|vector| vector.steps)
        .filter_map(|step| match step {
            Step::Becomes { frame, .. } | Step::Dropped { frame, .. } => Some(frame),
            Step::Remove(_) => None,
        })
        .collect();
    let changes = prop::collection::vec((any::<Index>(), any::<u8>()), 0..4);
    let damaged = (any::<Index>(), changes, prop::option::of(any::<Index>()), any::<[bool; 2]>());
    sandbox::run(|| {
        let (mut host, mut kernel) = (Host::default(), Kernel::load());
        let rules = [
            masquerade(),
            forward(TCP, 2222, (vectors::IPV4.inside, 22)),
            forward(UDP, 53, (vectors::IPV4.other_inside, 5353)),
            range(UDP, 5000..=5009, (vectors::IPV4.inside, 5000)),
            range(UDP, 5000..=5009, (vectors::IPV6.inside, 5000)),
            vectors::IPV6.masquerade(),
            forward(TCP, 2222, (vectors::IPV6.inside, 22)),
            forward(UDP, 53, (vectors::IPV6.other_inside, 5353)),
        ];
        for (slot, rule) in (0..).zip(&rules) {
            host.put(slot, rule);
            kernel.put(slot, rule);
        }
        let (host, kernel) = (std::cell::RefCell::new(host), std::cell::RefCell::new(kernel));
        let began = std::time::Instant::now();
        let test = |(which, changes, cut, [out, mended]): Damaged| {
            let mut frame = which.get(&frames).clone();
            for (place, byte) in changes {
                let place = 12 + place.index(frame.len() - 12);
                frame[place] = byte;
            }
            if let Some(cut) = cut {
                // BPF_PROG_TEST_RUN wants the whole IP header
                let least = if frame[12..14] == [0x86, 0xdd] { 54 } else { 34 };
                frame.truncate(least + cut.index(frame.len() + 1 - least));
            }
            if mended {
                mend(&mut frame);
            }
            let direction = if out { Direction::Out } else { Direction::In };
            // Time goes by for both: what parts of packets have said is forgotten after some seconds.
            let elapsed = u64::try_from(began.elapsed().as_nanos()).expect("not that long");
            host.borrow().tables.clock.set(elapsed);
            let mut expected = host.borrow_mut().run(direction, &frame);
            let mut found = kernel.borrow_mut().run(direction, &frame);
            forget_chosen_port(&frame, &mut expected.1, &mut found.1);
            prop_assert_eq!(found, expected);
            Ok(())
        };
        let config = Config { cases: 4096, failure_persistence: None, ..Config::default() };
        // the same frames in every run: a failure here must not depend on luck
        let dice = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        TestRunner::new_with_rng(config, dice).run(&damaged, test).expect("host and kernel agree");
        for slot in 0..6 {
            assert_eq!(kernel.borrow_mut().counters(slot), host.borrow_mut().counters(slot), "slot {slot}");
        }
    });
}

/// Where both had to choose another source port or identifier, they choose at random: it and the checksum may differ.
fn forget_chosen_port(frame: &[u8], host: &mut [u8], kernel: &mut [u8]) {
    let Some((protocol, transport)) = transport(frame) else {
        return;
    };
    let (port, checksum) = match protocol {
        TCP => (transport, transport + 16),
        UDP => (transport, transport + 6),
        _ => (transport + 4, transport + 2),
    };
    let port = port..port + 2;
    let (Some(before), Some(a), Some(b)) =
        (frame.get(port.clone()), host.get(port.clone()), kernel.get(port.clone()))
    else {
        return;
    };
    if a == before || b == before {
        return;
    }
    for bytes in [host, kernel] {
        bytes[port.clone()].fill(0);
        bytes[checksum..checksum + 2].fill(0);
    }
}

/// Protocol and place of the transport header of a frame that was translated.
fn transport(frame: &[u8]) -> Option<(u8, usize)> {
    if frame[12..14] == [8, 0] {
        return Some((frame[23], 14 + 4 * usize::from(frame[14] & 15)));
    }
    let (mut next, mut place) = (*frame.get(20)?, 54);
    while matches!(next, 0 | 43 | 44 | 60) {
        let header = frame.get(place..place + 2)?;
        // that of a fragment has no length
        place += if next == 44 { 8 } else { 8 * (usize::from(header[1]) + 1) };
        next = header[0];
    }
    Some((next, place))
}

#[test]
fn a_second_load_adopts_flows_rules_and_counters() {
    sandbox::run(|| {
        let exchange = vectors::udp_exchange(40000, b"query");
        let story = |steps: &[Step], rules| vectors::Vector { name: "adopt", rules, steps: steps.to_vec() };
        let mut first = Kernel::load();
        vectors::play(&story(&exchange[..1], vec![masquerade()]), &mut first);
        let counters = first.counters(0);
        assert_eq!((counters.packets_out, counters.flows), (1, 1));
        drop(first);

        let mut second = Kernel::load();
        // the same rule again, as the agent does at every start
        second.put(0, &masquerade());
        assert_eq!(second.counters(0), counters);
        vectors::play(&story(&exchange[1..], vec![]), &mut second);
        let flows = second.flows();
        assert_eq!(flows.len(), 1);
        assert_eq!((flows[0].counters.packets_out, flows[0].counters.packets_in), (1, 1));
        assert!(flows[0].proven);
    });
}

#[test]
fn flows_of_a_removed_rule_are_not_listed_and_their_memory_is_freed() {
    sandbox::run(|| {
        let mut kernel = Kernel::load();
        let vector = vectors::Vector {
            name: "two flows",
            rules: vec![masquerade()],
            steps: [vectors::udp_exchange(40000, b"q"), vectors::udp_exchange(40001, b"q")].concat(),
        };
        vectors::play(&vector, &mut kernel);
        assert_eq!(kernel.flows().len(), 2);
        assert_eq!(kernel.plane.collect_garbage().expect("collect"), 0, "they are alive");
        kernel.remove(0, &masquerade());
        assert_eq!(kernel.flows().len(), 0);
        assert_eq!(kernel.plane.collect_garbage().expect("collect"), 2);
        assert!(kernel.plane.pressure().expect("pressure").iter().all(|map| map.entries == 0));
    });
}
