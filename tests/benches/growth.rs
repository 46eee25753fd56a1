//! Whether a packet's time grows with what is in the tables: proven flows from one thousand to a million, each packet of
//! another one, and forwards from one to ten thousand. Every packet is a run of its own (`BPF_PROG_TEST_RUN`), so that it
//! finds its flow as cold as the one before has left it. Beside ours runs the least that a NAT could do in the same
//! table: what its time grows by is the caches'. Figures, not judgements; `cargo xtask bench growth` calls it.

use std::{
    mem::transmute,
    net::{IpAddr, Ipv4Addr},
    thread,
    time::Duration,
};

use aya::{TestRun as _, TestRunOptions, maps::MapData, programs::SchedClassifier};
use nix::time::{ClockId, clock_gettime};
use telecluster_common::maps::{Direction, Flow, FlowKey, TICK_BITS, flag};
use telecluster_tests::{
    bare::{self, instruction, map_into_r1},
    dice::Dice,
    frame::{UDP, udp},
    kernel::Kernel,
    sandbox,
    table::{Table, proven},
    vectors::{IPV4, Machine as _, UPLINK_ADDRESS, forward, masquerade},
};
use telecluster_worker::kernel::dataplane::{DataPlane as _, HoldDown, Slot};

type A4 = [u8; 4];

const CAPACITY: u32 = 1 << 20;
const FLOWS: [u32; 4] = [1_000, 10_000, 100_000, 1_000_000];
const FORWARDS: [u32; 3] = [1, 1_000, 10_000];
/// Packets for each figure.
const PACKETS: u32 = 50_000;
/// What `Flow::synced` counts: 2^32 ns. In a new one, a flow's next packet has more to do.
const BEAT_BITS: u32 = 32;
/// Of the first one, which has `FORWARDS` other ports above it.
const PORT: u32 = 20_000;
/// The frame's payload begins here: Ethernet, IPv4, UDP.
const PAYLOAD: i16 = 14 + 20 + 8;

fn main() {
    println!(
        "| proven flows in the tables | established flow, ns | one lookup in the same table, one count, ns |\n|---|---|---|"
    );
    for flows in FLOWS {
        sandbox::run(move || with_flows(flows));
    }
    println!(
        "\n| forwards | first packet of a flow to one of them, ns | a later one | first packet to any of them | a later one |\n|---|---|---|---|---|"
    );
    for forwards in FORWARDS {
        sandbox::run(move || with_forwards(forwards));
    }
}

fn with_flows(flows: u32) {
    let mut kernel = Kernel::with(HoldDown::default(), CAPACITY);
    kernel.put(0, &masquerade());
    let yardstick = yardstick();
    // A beat in which nothing else has to be done than what is measured.
    let beat = now() >> BEAT_BITS;
    let beat = beat + 1 + (u64::from(flows) >> 18);
    fill(flows, beat);
    let mut dice = Dice::new(u64::from(flows));
    let mut order: Vec<_> = (0..flows).collect();
    for place in (1..order.len()).rev() {
        order.swap(place, dice.next(place + 1));
    }
    // Neither finds warm what the other has just used: they are half a round apart.
    let [ours, theirs] = [0, order.len() / 2]
        .map(|skipped| order.iter().cycle().skip(skipped).take(PACKETS as usize).copied().map(frame))
        .map(Iterator::collect::<Vec<_>>);
    while now() >> BEAT_BITS < beat {
        thread::sleep(Duration::from_millis(10));
    }
    let [ours, theirs] = medians([(kernel.program(Direction::Out), &ours), (&yardstick, &theirs)]);
    assert_eq!(now() >> BEAT_BITS, beat, "it took too long");
    let counted = kernel.plane.counters(Slot(0)).expect("read the counters");
    assert_eq!(counted.packets_out, u64::from(PACKETS), "each packet was of a flow");
    println!("| {flows} | {ours} | {theirs} |");
}

fn with_forwards(forwards: u32) {
    let IpAddr::V4(remote) = IPV4.remote else { unreachable!("it is IPv4") };
    let mut kernel = Kernel::with(HoldDown::default(), CAPACITY);
    for number in 0..forwards {
        let port = u16::try_from(PORT + number).expect("a port");
        kernel.put(number, &forward(UDP, port, (IPV4.inside, port)));
    }
    let mut dice = Dice::new(u64::from(forwards));
    let mut figures = Vec::new();
    for (host, spread) in [(0, 1), (100, forwards)] {
        let frames: Vec<_> = (0..PACKETS)
            .map(|number| {
                let port = PORT + u32::try_from(dice.next(spread as usize)).expect("few");
                let from = Ipv4Addr::from(u32::from(remote) + host + number / 50_000);
                let source = 10_000 + number % 50_000;
                let [port, source] = [port, source].map(|port| u16::try_from(port).expect("a port"));
                udp((from, source), (UPLINK_ADDRESS, port), &[0; 16]).bytes()
            })
            .collect();
        for _ in ["first", "next"] {
            figures.extend(medians([(kernel.program(Direction::In), &frames)]));
        }
    }
    let stats = (0..forwards).map(|slot| kernel.plane.counters(Slot(slot)).expect("read the counters"));
    let made: u64 = stats.map(|counted| counted.flows).sum();
    assert_eq!(made, 2 * u64::from(PACKETS), "each first packet made a flow, and no other");
    println!("| {forwards} | {} | {} | {} | {} |", figures[0], figures[1], figures[2], figures[3]);
}

/// Nanoseconds of one run of each of the programs, which take turns: the median of one run for each of its frames.
fn medians<const N: usize>(measured: [(&SchedClassifier, &[Vec<u8>]); N]) -> [u128; N] {
    const NEXT: u32 = u32::MAX;
    let mut times = [const { Vec::new() }; N];
    for packet in 0..PACKETS as usize {
        for ((program, frames), times) in measured.iter().zip(&mut times) {
            let run =
                program.test_run(TestRunOptions { data_in: Some(&frames[packet]), ..TestRunOptions::new() });
            let run = run.expect("run the program");
            assert_eq!(run.return_value, NEXT, "it passes");
            times.push(run.duration.as_nanos());
        }
    }
    times.map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2]
    })
}

/// The least that a NAT does: looks up the flow whose key is the frame's payload, counts the packet. Drops what it
/// does not find.
fn yardstick() -> SchedClassifier {
    let table = MapData::from_pin("/sys/fs/bpf/telecluster/maps/flow4").expect("the flow table");
    let [map, rest] = map_into_r1(&table);
    let packets = i16::try_from(std::mem::offset_of!(Flow<A4>, packets)).expect("small");
    let mut code = vec![
        instruction(0xb7, 0, 0, 2),                       // r0 = TC_ACT_SHOT
        instruction(0x61, 0x16, 76, 0),                   // r6 = data
        instruction(0x61, 0x17, 80, 0),                   // r7 = data_end
        instruction(0xbf, 0x62, 0, 0),                    // r2 = r6
        instruction(0x07, 2, 0, i32::from(PAYLOAD) + 16), // r2 += the key's end
        instruction(0x2d, 0x72, 18, 0),                   // if r2 > r7 goto the end
    ];
    for word in 0..4 {
        code.push(instruction(0x61, 0x63, PAYLOAD + word * 4, 0)); // r3 = *(u32 *)(r6 + ...)
        code.push(instruction(0x63, 0x3a, word * 4 - 16, 0)); // *(u32 *)(r10 - ...) = r3
    }
    code.extend([
        instruction(0xbf, 0xa2, 0, 0), // r2 = r10
        instruction(0x07, 2, 0, -16),  // r2 += -16
        map,                           // r1 = the map
        rest,
        instruction(0x85, 0, 0, 1),          // call bpf_map_lookup_elem
        instruction(0x15, 0, 4, 0),          // if r0 == 0 goto none
        instruction(0x79, 0x01, packets, 0), // r1 = r0->packets
        instruction(0x07, 1, 0, 1),          // r1 += 1
        instruction(0x7b, 0x10, packets, 0), // r0->packets = r1
        instruction(0x05, 0, 2, 0),          // goto found
        instruction(0xb7, 0, 0, 2),          // none: r0 = TC_ACT_SHOT
        instruction(0x95, 0, 0, 0),          // return
        instruction(0xb7, 0, 0, -1),         // found: r0 = TCX_NEXT
        instruction(0x95, 0, 0, 0),          // return
    ]);
    bare::load("yardstick", &code)
}

/// A flow by its number, as it goes out.
fn key(flow: u32) -> FlowKey<A4> {
    // Each inside host has a remote one of its own, so that no two flows have the same answers.
    let [_, high, middle, low] = (flow / 50_000).to_be_bytes();
    let sport = u16::try_from(10_000 + flow % 50_000).expect("a port");
    let (src, dst) = ([10, high, middle, low], [100, high, middle, low]);
    FlowKey { src, dst, sport, dport: 53, proto: UDP, direction: 1, unused: 0 }
}

fn frame(flow: u32) -> Vec<u8> {
    let key = key(flow);
    let (src, dst) = (Ipv4Addr::from(key.src), Ipv4Addr::from(key.dst));
    let (sport, dport) = (key.sport, key.dport);
    // SAFETY: integers and byte arrays without padding, of the same size.
    let payload = unsafe { transmute::<FlowKey<A4>, [u8; 16]>(key) };
    udp((src, sport), (dst, dport), &payload).bytes()
}

/// Proven flows of the rule in slot 0, both directions, as the programs would have made them.
fn fill(flows: u32, beat: u64) {
    let mut table = Table::open();
    let last_seen = u32::try_from(now() >> TICK_BITS & u64::from(u32::MAX)).expect("masked");
    for number in 0..flows {
        let out = key(number);
        let uplink = UPLINK_ADDRESS.octets();
        let answer = FlowKey {
            src: out.dst,
            dst: uplink,
            sport: out.dport,
            dport: out.sport,
            direction: 0,
            ..key(number)
        };
        let synced = u16::try_from(beat & u64::from(u16::MAX)).expect("masked");
        let flow = |src, dst| Flow { created: number, synced, ..proven(src, dst, last_seen) };
        let there = flow((uplink, out.sport), (out.dst, out.dport));
        let there = Flow { flags: there.flags | flag::OPENER, ..there };
        table.put(out, there);
        table.put(answer, flow((out.dst, out.dport), (out.src, out.sport)));
    }
}

/// Nanoseconds since boot, as the programs reckon.
fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("the clock");
    now.tv_sec().unsigned_abs() * 1_000_000_000 + now.tv_nsec().unsigned_abs()
}
