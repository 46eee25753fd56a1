//! What a million live flows cost the worker: `/health`, `/metrics`, the first page of `/nat/flows`, all of them, a page that
//! a filter picks, and the processor time that looking for those that are over takes. Figures, not judgements;
//! `cargo xtask bench flows` calls it.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use aya::maps::{HashMap, Map, MapData};
use nix::{
    time::{ClockId, clock_gettime},
    unistd::{SysconfVar, sysconf},
};
use telecluster_common::{
    maps::{Direction, TICK_BITS, flag},
    tcp::FlowState,
};
use telecluster_tests::{
    frame::TCP,
    lab::{Lab, WAN, Worker},
};

const ROUNDS: usize = 5;

fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let (flows, watched) =
        if quick { (100_000, Duration::from_secs(21)) } else { (1_000_000, Duration::from_secs(41)) };
    let mut lab = Lab::new();
    lab.environment.push(("FLOW_CAPACITY", "1048576".to_owned()));
    let worker = lab.start();
    lab.masquerade();
    let idle = busy(&worker, watched);
    fill(&lab, flows);
    println!("| {flows} live flows | |\n|---|---|");
    for path in ["/health", "/metrics"] {
        println!("| `GET {path}` | {:.2?} |", get(&lab, path).0);
        println!("| asked again at once | {:.2?} |", median(|| get(&lab, path).0));
    }
    let first = median(|| list(&lab, "limit=1000", flows));
    println!("| `GET /nat/flows?limit=1000`, by bytes | {first:.2?} |");
    let picked = median(|| list(&lab, "limit=1000&external_port=30000", flows));
    println!("| the same, those of one external port | {picked:.2?} |");
    let whole =
        (0..flows).step_by(100_000).map(|offset| list(&lab, &format!("limit=100000&offset={offset}"), flows));
    println!("| all of them, by pages of 100,000 | {:.1?} |", whole.sum::<Duration>());
    let (with, seconds) = (busy(&worker, watched), watched.as_secs());
    println!(
        "| the worker's share of a core in {seconds} s, with nobody asking | {with:.2} % ({idle:.2} % without flows) |"
    );
}

fn median(mut measure: impl FnMut() -> Duration) -> Duration {
    let mut times: Vec<_> = (0..ROUNDS).map(|_| measure()).collect();
    times.sort_unstable();
    times[ROUNDS / 2]
}

/// How long it takes until an answer is there, as text.
fn get(lab: &Lab, path: &str) -> (Duration, String) {
    let url = format!("http://127.0.0.1:{}{path}", Worker::PORT);
    let began = Instant::now();
    let text = lab.router.run(|| {
        let mut response = ureq::get(&url).call().expect("an answer");
        response.body_mut().with_config().limit(1 << 30).read_to_string().expect("a text")
    });
    (began.elapsed(), text)
}

fn list(lab: &Lab, query: &str, flows: u32) -> Duration {
    let (took, page) = get(lab, &format!("/nat/flows?{query}"));
    let total = format!("\"total\":{flows}");
    assert!(query.contains("external_port") || page.contains(&total), "not all are there: {}", &page[..200]);
    took
}

/// The worker's processor time in a while, in hundredths of a core.
fn busy(worker: &Worker, watched: Duration) -> f64 {
    let before = processor(worker);
    thread::sleep(watched);
    100.0 * (processor(worker) - before).as_secs_f64() / watched.as_secs_f64()
}

fn processor(worker: &Worker) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{}/stat", worker.pid())).expect("its figures");
    let fields = stat.rsplit(") ").next().expect("behind its name").split(' ');
    // proc(5): utime and stime, fields 14 and 15
    let ticks: u64 = fields.skip(11).take(2).map(|field| field.parse::<u64>().expect("a number")).sum();
    let second = sysconf(SysconfVar::CLK_TCK).ok().flatten().expect("a number");
    Duration::from_secs_f64(ticks as f64 / second as f64)
}

/// Established TCP connections of the lab's masquerade, both directions, as the programs would have made them.
fn fill(lab: &Lab, flows: u32) {
    let open = |name: &str| Map::HashMap(MapData::from_pin(lab.pinned(name)).expect("open the map"));
    let mut table: HashMap<_, [u8; 16], [u8; 64]> = open("flow4").try_into().expect("a hash map");
    let rule = lab.dump("masquerade4")[0]["formatted"]["value"].clone();
    let number = |name: &str| u32::try_from(rule[name].as_u64().expect("a number")).expect("a small one");
    let (slot, generation) = (number("rule"), number("generation"));
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).expect("the clock");
    let now = now.tv_sec().unsigned_abs() * 1_000_000_000 + now.tv_nsec().unsigned_abs();
    let seen = u32::try_from(now >> TICK_BITS & u64::from(u32::MAX)).expect("masked");
    for flow in 0..flows {
        let [_, high, middle, low] = (flow / 50_000).to_be_bytes();
        let port = u16::try_from(10_000 + flow % 50_000).expect("a port");
        let (inside, remote, server) = ([10, high, middle, low], [100, 64, middle, low], 443);
        for (direction, src, dst, to_src, to_dst) in [
            (Direction::Out, (inside, port), (remote, server), (WAN.octets(), port), (remote, server)),
            (Direction::In, (remote, server), (WAN.octets(), port), (remote, server), (inside, port)),
        ] {
            let key = Bytes::default().all(&src.0).all(&dst.0).port(src.1).port(dst.1);
            let key = key.all(&[TCP, direction as u8, 0, 0]);
            let opener = if direction == Direction::Out { flag::OPENER } else { 0 };
            let record = Bytes::default().all(&to_src.0).all(&to_dst.0).port(to_src.1).port(to_dst.1);
            let record = record.number(0).number(slot).number(generation).number(0).number(0).number(0);
            let record = record.number(seen).long(10).long(u64::from(flow)).number(1);
            let flags = opener | flag::ANSWERED | flag::PROVEN;
            let record = record.all(&[FlowState::Established as u8, flags, 0, 0]);
            table.insert(key.whole(), record.whole(), 0).expect("insert an entry");
        }
    }
}

/// An entry of a map, field by field.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn all(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn port(self, port: u16) -> Self {
        self.all(&port.to_ne_bytes())
    }

    fn number(self, number: u32) -> Self {
        self.all(&number.to_ne_bytes())
    }

    fn long(self, number: u64) -> Self {
        self.all(&number.to_ne_bytes())
    }

    fn whole<const N: usize>(self) -> [u8; N] {
        self.0.try_into().expect("as long as the map says")
    }
}
