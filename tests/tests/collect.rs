//! No flow and no binding that lives is ever collected: packets meet them at the instant at which their time is over and the agent
//! removes them.

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
    maps::{Direction, EndpointKey, FlowKey, RELEASED, TICK_BITS, ticks},
    nat::{
        collect::{MARGIN, collect},
        life,
        release::release,
    },
    tables::{HOLD_DOWN, TAKEN, Tables},
};
use telecluster_tests::{
    frame::{UDP, udp},
    host::{Host, HostTables},
    kernel::Kernel,
    sandbox,
    vectors::{Machine as _, Outcome, UPLINK_ADDRESS, masquerade},
};
use telecluster_worker::kernel::dataplane::{DataPlane as _, HoldDown};

type A4 = [u8; 4];

const SECOND: u64 = 1_000_000_000;
/// TCX_NEXT: the packet goes on.
const NEXT: u32 = u32::MAX;

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

    tables.clock.set(320 * SECOND);
    assert!(!collected(tables, out), "over, and kept for a while");
    tables.clock.set(330 * SECOND);
    // Somebody has seen a packet of it after it was looked at; somebody else was faster.
    let clock = live.clock();
    live.see(330 * SECOND);
    assert!(!tables.own(live, clock) && !collected(tables, out));
    tables.clock.set(660 * SECOND);
    assert!(tables.own(live, live.clock()));
    assert!(!tables.own(live, live.clock()), "an owner is the only one");
    // Its owner may have put a new flow there before anybody else removes this one.
    assert!(!collected(tables, out) && tables.entries::<A4>() == 2, "it is its owner's to remove");
    let now = u32::try_from((660 * SECOND) >> TICK_BITS).expect("soon after boot");
    assert_eq!(now.wrapping_sub(live.last_seen()), TAKEN, "whoever meets it takes it for over");
    // What its owner has forgotten does not stay for ever.
    tables.clock.set(671 * SECOND);
    assert!(collected(tables, out), "the direction of its first packet");
    assert!(!collected(tables, back) && tables.entries::<A4>() == 0, "no flow of its own");
    assert!(!collected(tables, back), "there is none");
}

/// Where the inside socket of a port appears that it is not taken from.
fn external(port: u16) -> EndpointKey<A4> {
    EndpointKey { address: UPLINK_ADDRESS.octets(), port, proto: UDP, unused: 0 }
}

/// Removes a binding as the program does; whether nobody could use it any more.
fn released(tables: &HostTables, port: u16) -> bool {
    let mut work = Tables::<A4>::work(tables).expect("memory");
    // SAFETY: nobody else uses the tables.
    let work = unsafe { work.as_mut() };
    work.external = external(port);
    release(tables, work, ticks(HOLD_DOWN), tables.clock.get())
}

#[test]
fn a_port_is_freed_after_its_hold_down_and_not_when_its_socket_has_come_back() {
    let mut host = Host::default();
    host.put(0, &masquerade());
    host.tables.clock.set(SECOND);
    assert_eq!(host.run(Direction::Out, &question(40000)).0, Outcome::Passed);
    let binding = Tables::<A4>::binding(&host.tables, &external(40000)).expect("a binding");
    assert!(!released(&host.tables, 40000), "in force");
    host.tables.clock.set(420 * SECOND);
    assert!(!released(&host.tables, 40000), "held down");

    // Its socket comes back after somebody has seen that it was over.
    host.tables.clock.set(460 * SECOND);
    let seen = binding.expires();
    assert_eq!(host.run(Direction::Out, &question(40000)).0, Outcome::Passed);
    assert!(!Tables::<A4>::exchange_expiry(&host.tables, binding, seen, RELEASED));
    assert!(!released(&host.tables, 40000), "in force again");

    // Its socket comes back while somebody is removing it: it gets another port, and not one that is about to go.
    host.tables.clock.set(1000 * SECOND);
    assert!(Tables::<A4>::exchange_expiry(&host.tables, binding, binding.expires(), RELEASED));
    assert!(!released(&host.tables, 40000), "by somebody else");
    assert_eq!(host.run(Direction::Out, &question(40000)).0, Outcome::Passed);
    assert_eq!(binding.expires(), RELEASED);
    binding.set_expires(seen);
    assert!(released(&host.tables, 40000) && !released(&host.tables, 40000));
}

/// The bindings of the flows' inside sockets.
struct Bindings(HashMap<MapData, [u8; 8], [u8; 60]>);

/// Bytes of `expires` in a binding.
const EXPIRES: std::ops::Range<usize> = 16..20;

impl Bindings {
    fn open() -> Self {
        let map =
            MapData::from_pin(Path::new("/sys/fs/bpf/telecluster/maps/binding4")).expect("open the map");
        Self(HashMap::try_from(Map::HashMap(map)).expect("a hash map"))
    }

    fn bytes(port: u16) -> [u8; 8] {
        let ([a, b, c, d], [e, f]) = (UPLINK_ADDRESS.octets(), port.to_ne_bytes());
        [a, b, c, d, e, f, UDP, 0]
    }

    fn expires(&self, port: u16) -> Option<u32> {
        let binding = self.0.get(&Self::bytes(port), 0).ok()?;
        binding[EXPIRES].try_into().ok().map(u32::from_ne_bytes)
    }

    /// Lets it have been over for so many ticks.
    fn age(&mut self, port: u16, over: u32) {
        let mut binding = self.0.get(&Self::bytes(port), 0).expect("a binding");
        let old = tick().wrapping_sub(over);
        binding[EXPIRES].copy_from_slice(&old.to_ne_bytes());
        self.0.insert(Self::bytes(port), binding, 0).expect("write a binding");
    }
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
        let old = tick().wrapping_sub(life::memory(301) + MARGIN);
        record[LAST_SEEN].copy_from_slice(&old.to_ne_bytes());
        self.0.insert(Self::bytes(key), record, 0).expect("write an entry");
    }

    /// All of them are there, and over.
    fn make_old(&mut self, bindings: &mut Bindings, uplink: &Uplink) {
        uplink.send_all();
        let over = ticks(HOLD_DOWN) + 2 * MARGIN;
        (40000..40000 + FLOWS).for_each(|port| bindings.age(port, over));
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
        (40000..40000 + FLOWS).for_each(|port| self.send(port));
    }

    fn send(&self, port: u16) {
        for (program, frame) in self.0.iter().zip([question(port), answer(port)]) {
            let passes = || {
                let options = TestRunOptions { data_in: Some(&frame), ..TestRunOptions::new() };
                program.test_run(options).expect("run the program").return_value == NEXT
            };
            assert!((0..1000).any(|_| passes()), "port {port} is dropped again and again");
        }
    }
}

#[test]
fn of_more_ports_than_may_wait_the_first_ones_are_free_and_none_in_use_is() {
    sandbox::run(|| {
        let mut kernel = Kernel::with(HoldDown { seconds: 3600, ports: 3 }, 4096);
        kernel.put(0, &masquerade());
        let (uplink, mut bindings) = (Uplink::open(), Bindings::open());
        (40000..40010).for_each(|port| uplink.send(port));
        // Eight are over, the first one for the longest time.
        for (port, seconds) in (40000..40008).zip((0..8).map(|place| 1000 - 100 * place)) {
            bindings.age(port, ticks(seconds));
        }
        kernel.plane.collect_garbage().expect("collect");
        let there: Vec<_> = (40000..40010).filter(|port| bindings.expires(*port).is_some()).collect();
        assert_eq!(there, [40005, 40006, 40007, 40008, 40009]);
        kernel.plane.collect_garbage().expect("collect");
        assert!(there.iter().all(|port| bindings.expires(*port).is_some()), "three may wait");
    });
}

#[test]
fn the_hold_down_that_is_set_is_the_programs() {
    for (seconds, free) in [(300, false), (100, true)] {
        sandbox::run(move || {
            let mut kernel = Kernel::with(HoldDown { seconds, ports: 0 }, 4096);
            kernel.put(0, &masquerade());
            let (uplink, mut bindings) = (Uplink::open(), Bindings::open());
            uplink.send(40000);
            bindings.age(40000, ticks(200));
            let neighbour = Ipv4Addr::new(192, 168, 100, 11);
            let frame = udp((neighbour, 40000), REMOTE, b"q").bytes();
            let (verdict, sent) = kernel.run_at("tc_wan_out", &frame);
            assert_eq!(verdict, NEXT);
            assert_eq!(sent[34..36] == 40000u16.to_be_bytes(), free, "held down for {seconds} s");
        });
    }
}

#[test]
fn a_flow_that_begins_anew_while_its_old_entries_are_collected_stays() {
    sandbox::run(|| {
        let mut kernel = Kernel::load();
        kernel.put(0, &masquerade());
        let uplink = Uplink::open();
        let (mut flows, mut bindings) = (Flows::open(), Bindings::open());
        // So that packets come before, in the middle of and near the end of a collection, however fast the machine is.
        flows.make_old(&mut bindings, &uplink);
        let began = Instant::now();
        assert_eq!(kernel.plane.collect_garbage().expect("collect"), usize::from(FLOWS));
        let whole = began.elapsed();
        let mut met = 0;
        for round in 0..ROUNDS {
            flows.make_old(&mut bindings, &uplink);
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
            for port in 40000..40000 + FLOWS {
                let expires = bindings.expires(port);
                let expires = expires.unwrap_or_else(|| panic!("round {round}: port {port} is nobody's"));
                assert!(expires.wrapping_sub(tick()) < ticks(600), "round {round}: port {port} is held down");
            }
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
