//! No flow that lives is ever collected: packets meet flows at the instant at which their time is over and the agent removes
//! them.

use std::{
    net::Ipv4Addr,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use aya::{
    TestRun as _, TestRunOptions,
    maps::{HashMap, Map, MapData},
    programs::SchedClassifier,
};
use nix::time::{ClockId, clock_gettime};
use telecluster_common::{
    maps::{Direction, FlowKey, TICK_BITS, ticks},
    nat::collect::{MARGIN, collect},
    tables::Tables,
};
use telecluster_tests::{
    frame::{UDP, udp},
    host::{Host, HostTables},
    kernel::Kernel,
    sandbox,
    vectors::{Machine as _, Outcome, UPLINK_ADDRESS, masquerade},
};
use telecluster_worker::kernel::dataplane::DataPlane as _;

type A4 = [u8; 4];

const SECOND: u64 = 1_000_000_000;
const FLOWS: u16 = 300;
const ROUNDS: usize = 60;

const REMOTE: (Ipv4Addr, u16) = (Ipv4Addr::new(198, 51, 100, 7), 53);
const INSIDE: Ipv4Addr = Ipv4Addr::new(192, 168, 100, 10);

fn key(port: u16, direction: Direction) -> FlowKey<A4> {
    let (src, dst) = match direction {
        Direction::Out => ((INSIDE, port), REMOTE),
        Direction::In => (REMOTE, (UPLINK_ADDRESS, port)),
    };
    FlowKey {
        src: src.0.octets(),
        dst: dst.0.octets(),
        sport: src.1,
        dport: dst.1,
        proto: UDP,
        direction: direction as u8,
        unused: 0,
    }
}

fn question(port: u16) -> Vec<u8> {
    udp((INSIDE, port), REMOTE, b"q").bytes()
}

fn answer(port: u16) -> Vec<u8> {
    udp(REMOTE, (UPLINK_ADDRESS, port), b"a").bytes()
}

/// Collects the flow of a key as the program does; whether there was one whose time was over.
fn collected(tables: &HostTables, key: FlowKey<A4>) -> bool {
    let mut work = Tables::<A4>::work(tables).expect("memory");
    // SAFETY: nobody else uses the tables.
    let work = unsafe { work.as_mut() };
    work.key = key;
    collect(tables, work, tables.clock.get())
}

#[test]
fn what_is_over_is_removed_and_what_has_been_seen_since_it_was_looked_at_is_not() {
    let mut host = Host::default();
    host.put(0, &masquerade());
    host.tables.clock.set(SECOND);
    assert_eq!(host.run(Direction::Out, &question(40000)).0, Outcome::Passed);
    assert_eq!(host.run(Direction::In, &answer(40000)).0, Outcome::Passed);
    let tables = &host.tables;
    let (out, back) = (key(40000, Direction::Out), key(40000, Direction::In));
    let live = Tables::<A4>::flow(tables, &out).expect("a flow");
    assert!(!collected(tables, out) && tables.entries::<A4>() == 2, "it lives");

    tables.clock.set(310 * SECOND);
    assert!(!collected(tables, out), "over, and kept for a while");
    tables.clock.set(330 * SECOND);
    // Somebody has seen a packet of it after it was looked at; somebody else was faster.
    let clock = live.clock();
    live.see(330 * SECOND);
    assert!(!tables.own(live, clock) && !collected(tables, out));
    tables.clock.set(660 * SECOND);
    assert!(tables.own(live, live.clock()));
    assert!(!tables.own(live, live.clock()), "an owner is the only one");
    // What its owner has forgotten does not stay for ever.
    assert!(collected(tables, out), "the direction of its first packet");
    assert!(!collected(tables, back) && tables.entries::<A4>() == 0, "no flow of its own");
    assert!(!collected(tables, back), "there is none");
}

/// Bytes of `last_seen` in an entry.
const LAST_SEEN: std::ops::Range<usize> = 36..40;

struct Flows(HashMap<MapData, [u8; 16], [u8; 64]>);

impl Flows {
    fn open() -> Self {
        let map = MapData::from_pin(Path::new("/sys/fs/bpf/telecluster/maps/flow4")).expect("open the map");
        Self(HashMap::try_from(Map::HashMap(map)).expect("a hash map"))
    }

    fn bytes(key: &FlowKey<A4>) -> [u8; 16] {
        let FlowKey { src, dst, sport, dport, proto, direction, unused: _ } = *key;
        let ([a, b, c, d], [e, f, g, h]) = (src, dst);
        let ([i, j], [k, l]) = (sport.to_ne_bytes(), dport.to_ne_bytes());
        [a, b, c, d, e, f, g, h, i, j, k, l, proto, direction, 0, 0]
    }

    fn last_seen(&self, key: &FlowKey<A4>) -> Option<u32> {
        let record = self.0.get(&Self::bytes(key), 0).ok()?;
        record[LAST_SEEN].try_into().ok().map(u32::from_ne_bytes)
    }

    /// Lets the time of a flow's direction be over, and a little more.
    fn age(&mut self, key: &FlowKey<A4>) {
        let mut record = self.0.get(&Self::bytes(key), 0).expect("an entry");
        let old = tick().wrapping_sub(ticks(306) + MARGIN);
        record[LAST_SEEN].copy_from_slice(&old.to_ne_bytes());
        self.0.insert(Self::bytes(key), record, 0).expect("write an entry");
    }

    /// All of them are there, and over.
    fn make_old(&mut self, uplink: &Uplink) {
        uplink.send_all();
        for port in 40000..40000 + FLOWS {
            self.age(&key(port, Direction::Out));
            self.age(&key(port, Direction::In));
        }
    }
}

/// The programs' clock.
fn tick() -> u32 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).expect("the clock");
    let now = now.tv_sec().unsigned_abs() * SECOND + now.tv_nsec().unsigned_abs();
    u32::try_from(now >> TICK_BITS & u64::from(u32::MAX)).expect("masked")
}

/// The programs at the uplink: out, in.
struct Uplink([SchedClassifier; 2]);

impl Uplink {
    fn open() -> Self {
        let open = |name| SchedClassifier::from_pin(format!("/sys/fs/bpf/telecluster/progs/{name}"));
        Self(["tc_wan_out", "tc_wan_in"].map(|name| open(name).expect("open the program")))
    }

    /// A question and its answer for each flow, again until they pass: in the instant in which an entry is removed its key is
    /// nobody's. Answered, a flow is proven: what begins anew pushes none of them out.
    fn send_all(&self) {
        const NEXT: u32 = u32::MAX;
        for port in 40000..40000 + FLOWS {
            for (program, frame) in self.0.iter().zip([question(port), answer(port)]) {
                let passes = || {
                    let options = TestRunOptions { data_in: Some(&frame), ..TestRunOptions::new() };
                    program.test_run(options).expect("run the program").return_value == NEXT
                };
                assert!((0..1000).any(|_| passes()), "port {port} is dropped again and again");
            }
        }
    }
}

#[test]
fn a_flow_that_begins_anew_while_its_old_entry_is_collected_stays() {
    sandbox::run(|| {
        let mut kernel = Kernel::load();
        kernel.put(0, &masquerade());
        let uplink = Uplink::open();
        let mut flows = Flows::open();
        // So that packets come before, in the middle of and near the end of a collection, however fast the machine is.
        flows.make_old(&uplink);
        let began = Instant::now();
        assert_eq!(kernel.plane.collect_garbage().expect("collect"), usize::from(FLOWS));
        let whole = began.elapsed();
        let mut met = 0;
        for round in 0..ROUNDS {
            flows.make_old(&uplink);
            let (plane, done) = (&kernel.plane, AtomicBool::new(false));
            thread::scope(|scope| {
                let collector = scope.spawn(|| {
                    let mut collected = 0;
                    while !done.load(Ordering::Relaxed) {
                        collected += plane.collect_garbage().expect("collect");
                    }
                    collected
                });
                thread::sleep(
                    whole * u32::try_from(round).expect("few") / u32::try_from(ROUNDS).expect("few"),
                );
                uplink.send_all();
                done.store(true, Ordering::Relaxed);
                met += collector.join().expect("a thread");
            });
            for (port, direction) in
                (40000..40000 + FLOWS).flat_map(|port| [(port, Direction::Out), (port, Direction::In)])
            {
                let seen = flows.last_seen(&key(port, direction));
                let seen =
                    seen.unwrap_or_else(|| panic!("round {round}: {direction:?} of port {port} is gone"));
                assert!(tick().wrapping_sub(seen) < ticks(60), "round {round}: port {port} is the old one");
            }
        }
        let all = usize::from(FLOWS) * ROUNDS;
        println!("{met} of {all} flows that were over were met by the collector, the others by a packet");
        assert!(met > 0, "the two have never met");
    });
}
