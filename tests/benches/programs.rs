//! What the programs cost: nanoseconds for each path by `BPF_PROG_TEST_RUN`, and what the verifier had to do for each,
//! so that growth is seen. Figures, not judgements; `cargo xtask bench programs` calls it.

use std::{
    mem::transmute,
    net::{IpAddr, Ipv4Addr},
    time::Instant,
};

use aya::{
    TestRun as _, TestRunOptions,
    maps::{HashMap, Map, MapData},
    programs::SchedClassifier,
};
use telecluster_common::maps::{Direction, Flow, FlowKey, flag};
use telecluster_tests::{
    frame::{UDP, udp},
    kernel::Kernel,
    sandbox,
    vectors::{IPV4, IPV6, Machine as _, UPLINK_ADDRESS, masquerade},
};
use telecluster_worker::kernel::dataplane::DataPlane as _;

type A4 = [u8; 4];

const REPEAT: u32 = 2_000_000;
const NEW_FLOWS: u16 = 4000;

fn main() {
    let only_verify = std::env::args().any(|argument| argument == "--verifier");
    sandbox::run(move || {
        let begin = Instant::now();
        let mut kernel = Kernel::load();
        let loading = begin.elapsed();
        if !only_verify {
            paths(&mut kernel);
            println!();
        }
        verified();
        println!("\nall of them loaded in {loading:.1?}");
    });
}

/// Time of packets.
fn paths(kernel: &mut Kernel) {
    println!("| path | ns |\n|---|---|");
    kernel.put(0, &masquerade());
    kernel.put(1, &IPV6.masquerade());

    let frame = udp((UPLINK_ADDRESS, 40000), (IPV4.remote, 53), b"query").bytes();
    // a flow whose packet is the same before and after, so that one packet can go through again and again
    identity_flow((UPLINK_ADDRESS, 40000));
    let repeated = |kernel: &mut Kernel, frame: &[u8]| {
        let options = TestRunOptions { data_in: Some(frame), repeat: REPEAT, ..TestRunOptions::new() };
        let run = kernel.program(Direction::Out).test_run(options).expect("run the program");
        run.duration.as_nanos()
    };
    println!("| established flow, IPv4, both checksum helpers | {} |", repeated(kernel, &frame));
    let flows = kernel.plane.flows().expect("list the flows");
    assert_eq!(flows[0].counters.packets_out, u64::from(REPEAT), "every packet went that way");
    let arp = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 2, 8, 6], &[0; 28]].concat();
    println!("| neither IPv4 nor IPv6 | {} |", repeated(kernel, &arp));

    for (family, cast) in [("IPv4", IPV4), ("IPv6", IPV6)] {
        let mut durations: Vec<u128> = (0..NEW_FLOWS)
            .map(|number| {
                let frame = udp((cast.inside, 2000 + number), (cast.remote, 53), b"query").bytes();
                let options = TestRunOptions { data_in: Some(&frame), ..TestRunOptions::new() };
                let run = kernel.program(Direction::Out).test_run(options).expect("run the program");
                run.duration.as_nanos()
            })
            .collect();
        durations.sort_unstable();
        println!(
            "| first packet of a flow, {family} (median of {NEW_FLOWS}) | {} |",
            durations[durations.len() / 2]
        );
    }
}

/// The verifier's work on each program.
fn verified() {
    println!("| program | instructions verified | bytes of machine code |\n|---|---|---|");
    let pins = std::fs::read_dir("/sys/fs/bpf/telecluster/progs").expect("the pins");
    let mut paths: Vec<_> = pins.map(|entry| entry.expect("a pin").path()).collect();
    paths.sort();
    for path in paths {
        let program = SchedClassifier::from_pin(&path).expect("a program");
        let info = program.info().expect("about it");
        println!(
            "| `{}` | {} | {} |",
            path.file_name().expect("a name").to_string_lossy(),
            info.verified_instruction_count().unwrap_or(0),
            info.size_jitted(),
        );
    }
}

/// Puts a flow into the table that turns a packet into itself.
fn identity_flow((address, port): (Ipv4Addr, u16)) {
    let IpAddr::V4(remote) = IPV4.remote else { unreachable!("it is IPv4") };
    let (src, dst) = (address.octets(), remote.octets());
    let key = FlowKey::<A4> { src, dst, sport: port, dport: 53, proto: UDP, direction: 1, unused: 0 };
    let flow = Flow::<A4> {
        to_src: src,
        to_dst: dst,
        to_sport: port,
        to_dport: 53,
        // as if something changed: the checksum helpers are part of the cost
        address_difference: 1,
        port_difference: 1,
        rule: 0,
        generation: 1,
        hop: 0,
        stamp: 0,
        lease: 0,
        last_seen: u32::MAX / 2,
        packets: 0,
        bytes: 0,
        created: 0,
        state: 1,
        flags: flag::OPENER | flag::ANSWERED | flag::PROVEN,
        synced: 0,
    };
    let data = MapData::from_pin("/sys/fs/bpf/telecluster/maps/flow4").expect("the flow table");
    let mut table: HashMap<MapData, [u8; 16], [u8; 64]> =
        HashMap::try_from(Map::HashMap(data)).expect("a hash map");
    // SAFETY: integers and byte arrays without padding, of the same size.
    let (key, flow) =
        unsafe { (transmute::<FlowKey<A4>, [u8; 16]>(key), transmute::<Flow<A4>, [u8; 64]>(flow)) };
    table.insert(key, flow, 0).expect("put the flow");
}
