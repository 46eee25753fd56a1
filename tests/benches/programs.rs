//! What the programs cost: nanoseconds for each path by `BPF_PROG_TEST_RUN`, and what the verifier had to do for each,
//! so that growth is seen. Figures, not judgements; `cargo xtask bench programs` calls it. `-- --hooks`: only what frames in VLANs
//! cost; `-- --verifier`: only the verifier's work.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use aya::{
    TestRun as _, TestRunOptions,
    maps::MapData,
    programs::{ProgramInfo, SchedClassifier, TcAttachType},
    sys::{Stats, enable_stats},
};
use telecluster_common::maps::{Direction, Flow, FlowKey, flag};
use telecluster_tests::{
    bare::{instruction, load as load_bare, map_into_r1},
    frame::{UDP, udp},
    kernel::Kernel,
    lab::eventually,
    sandbox,
    switch::{
        Port,
        frames::{Ether, ether, mac, with_datagram},
        kernel::{Bridge, Plane, Programs, load_with},
        wire::Wire,
    },
    table::{Table, proven},
    vectors::{IPV4, IPV6, Machine as _, UPLINK_ADDRESS, masquerade},
};
use telecluster_worker::kernel::xdp::Xdp;

type A4 = [u8; 4];

const REPEAT: u32 = 2_000_000;
const NEW_FLOWS: u16 = 4000;
const FRAMES: u64 = 20_000;
const ROUNDS: usize = 21;

fn main() {
    let asked = |what: &str| std::env::args().any(|argument| argument == what);
    let only_verify = asked("--verifier");
    if asked("--hooks") {
        return sandbox::run(hooks);
    }
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
    if !only_verify {
        println!();
        sandbox::run(hooks);
    }
}

/// Time of frames in VLANs at each hook, by the kernel's own statistics of its programs: frames of 64 bytes from one
/// port to another, whose stations are known; the median of some rounds, and the least, as the machine's other work is in
/// them too. And how long it takes until a port's first VLAN is in force, in the maps and at the hooks: of one that has the
/// programs already, because other ports of its bridge have VLANs, and of one that gets them.
fn hooks() {
    println!("| frames in VLANs | `tc_port_in`, ns | `tc_port_out`, ns |\n|---|---|---|");
    let plane = load_with(Xdp::On);
    least();
    let [mut attached, mut written] = [Vec::new(), Vec::new()];
    for (what, port, frame, last) in [
        ("from access port to access port", Port::access(10), ether(mac(1), mac(2)), false),
        ("from trunk to trunk", Port::trunk(&[10, 20]), ether(mac(1), mac(2)).q(10), false),
        ("from trunk to access port", Port::trunk(&[10]).native(20), ether(mac(1), mac(2)).q(10), true),
    ] {
        let other = if what.ends_with("access port") { Port::access(10) } else { port.clone() };
        let programs = Programs::on_nothing(&plane, 2);
        programs.put(0, &Port::plain());
        for (number, port) in [(1, &port), (2, &other)] {
            let took = |times: &mut Vec<Duration>, port: &Port| {
                let began = Instant::now();
                programs.put(number, port);
                times.push(began.elapsed());
            };
            took(&mut attached, port);
            programs.put(number, &Port::plain());
            took(&mut written, port);
        }
        let wires = ["e1", "e2"].map(Wire::all);
        let answer = Ether { dst: mac(1), src: mac(2), ..frame.clone() };
        let answer =
            if what.ends_with("access port") { Ether { tags: Vec::new(), ..answer } } else { answer };
        let (frame, answer) = (frame.bytes(), answer.bytes());
        eventually("the stations are not known", || {
            wires[1].send(&answer);
            wires[0].send(&frame);
            !wires[1].pending().is_empty() && !wires[0].pending().is_empty()
        });
        let [into, out] = rounds(&wires[0], &frame, ["tc_port_in", "tc_port_out"]);
        println!("| {what} | {into} | {out} |");
        if last {
            // What no program has much to do with: mostly the statistics' own time.
            let control = Ether { dst: [1, 0x80, 0xc2, 0, 0, 0x0e], ..ether(mac(1), mac(2)) };
            let [into] = rounds(&wires[0], &control.bytes(), ["tc_port_in"]);
            println!("| control frames, left to the bridge | {into} | |");
        }
        programs.remove();
    }
    in_drivers(&plane);
    let spread = |mut times: Vec<Duration>| {
        times.sort_unstable();
        let [low, middle, high] = [0, times.len() / 2, times.len() - 1].map(|place| times[place]);
        format!("{middle:.1?} (from {low:.1?} to {high:.1?})")
    };
    println!("\nA port's first VLAN, with the programs attached to the port: {}.", spread(attached));
    println!("Where they are attached, because another port of its bridge has a VLAN: {}.", spread(written));
}

/// The same in the drivers of ports.
fn in_drivers(plane: &Plane) {
    println!("\n| datagrams in VLANs | `xdp_port_in`, ns |\n|---|---|");
    let trunk = Port::trunk(&[10, 20]);
    for (what, ports, tagged) in [
        ("from access port to access port", [Port::access(10), Port::access(10)], [false, false]),
        ("from trunk to trunk", [trunk.clone(), trunk.clone()], [true, true]),
        ("from access port to trunk", [Port::access(10), trunk.clone()], [false, true]),
        ("from trunk to access port", [trunk, Port::access(10)], [true, false]),
    ] {
        let [one, other] = ports;
        let programs = Programs::in_drivers(plane, &[Port::plain(), one, other]);
        let wires = ["e1", "e2"].map(Wire::all);
        let frame = |src, dst, tagged| {
            let frame = ether(src, dst);
            with_datagram(&if tagged { frame.q(10) } else { frame }.bytes())
        };
        let (question, answer) = (frame(mac(1), mac(2), tagged[0]), frame(mac(2), mac(1), tagged[1]));
        eventually("the stations are not known", || {
            let before = Programs::switched_in_drivers(plane);
            wires[1].send(&answer);
            wires[0].send(&question);
            Programs::switched_in_drivers(plane) > before
        });
        let [spent] = rounds(&wires[0], &question, ["xdp_port_in"]);
        println!("| {what} | {spent} |");
        programs.remove();
    }
}

/// What no program at a hook can be cheaper than: one that does nothing is the statistics' own time.
fn least() {
    let bridge = Bridge::new(2, "");
    let wire = Wire::all("e1");
    let frame = ether(mac(1), mac(2)).bytes();
    for (what, name, lookups) in [
        ("a program that does nothing", "bare_0", 0),
        ("one that looks an interface up in a hash", "bare_1", 1),
        ("three times", "bare_3", 3),
    ] {
        let mut program = bare(name, lookups);
        let link = program.attach("p1", TcAttachType::Ingress).expect("attach");
        let [into] = rounds(&wire, &frame, [name]);
        println!("| {what} | {into} | |");
        program.detach(link).expect("detach");
        program.unpin().expect("unpin");
    }
    bridge.remove();
}

/// A program of some lookups.
fn bare(name: &str, lookups: usize) -> SchedClassifier {
    let port_cfg = MapData::from_pin("/sys/fs/bpf/telecluster/maps/port_cfg").expect("the ports");
    let [map, rest] = map_into_r1(&port_cfg);
    let lookup = [
        instruction(0x62, 10, -4, 7),  // *(u32 *)(r10 - 4) = 7
        instruction(0xbf, 0xa2, 0, 0), // r2 = r10
        instruction(0x07, 2, 0, -4),   // r2 += -4
        map,                           // r1 = the map
        rest,
        instruction(0x85, 0, 0, 1), // call bpf_map_lookup_elem
    ];
    let end = [instruction(0xb7, 0, 0, -1), instruction(0x95, 0, 0, 0)]; // return TCX_NEXT
    load_bare(name, &[&lookup.repeat(lookups)[..], &end].concat())
}

/// Nanoseconds for each run of these programs: the median of the rounds, and the least.
fn rounds<const N: usize>(wire: &Wire, frame: &[u8], programs: [&str; N]) -> [String; N] {
    let _on = enable_stats(Stats::RunTime).expect("the kernel's statistics of programs");
    let mut rounds = [const { Vec::new() }; N];
    for _ in 0..ROUNDS {
        let before = programs.map(spent);
        for _ in 0..FRAMES {
            wire.send(frame);
        }
        for (hook, ((time, runs), (later, more))) in before.iter().zip(programs.map(spent)).enumerate() {
            rounds[hook].push((later - *time).as_nanos() / u128::from(more - runs).max(1));
        }
    }
    rounds.map(|mut round| {
        round.sort_unstable();
        format!("{} ({})", round[round.len() / 2], round[0])
    })
}

/// What a program has spent so far, and on how many frames.
fn spent(name: &str) -> (Duration, u64) {
    let pin = format!("/sys/fs/bpf/telecluster/progs/{name}");
    let info = ProgramInfo::from_pin(pin).expect("a program");
    (info.run_time(), info.run_count())
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
    let flows = kernel.flows();
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
    let flow = proven((src, port), (dst, 53), u32::MAX / 2);
    Table::open().put(key, Flow { flags: flow.flags | flag::OPENER, ..flow });
}
