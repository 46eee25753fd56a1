//! Everything that decides where packets go is changed all the time, under traffic that knows where it may come out.
//!
//! A packet bears a number: the last state of the router that the fast path has heard of when it was sent. Whoever sees
//! it come out looks up what has happened since. It may be where the states from then until now would have sent it, and
//! nowhere else; that it is lost is no fault while everything changes, and is one afterwards.
//!
//! Two flows live through all of it, and beside them new ones are made all the time, of a packet and its answer and one packet more:
//! their first packets take the fast path too. With it in drivers, and without.
//!
//! `CHAOS_SECONDS` says for how long, `CHAOS_SEED` which changes.

use std::{
    collections::VecDeque,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use aya::maps::{Array, Map, MapData, PerCpuArray};
use serde_json::json;
use telecluster_tests::{
    chaos::{self, Act, End, GATEWAYS, INSIDE_MAC, ROUTER_MAC, State, TARGET},
    dice::{Dice, number},
    drivers,
    lab::{GATEWAY, INSIDE, Lab, Netns, OUTSIDE, PATIENCE, WAN, eventually, rule_id},
    switch::wire::Wire,
};

/// A switch of the kernel's that nothing here depends on, but of which it tells when it is turned.
const TOLD: &str = "/proc/sys/net/ipv4/conf/lo/forwarding";
/// From one change to the next: with what comes below a hundred in a second, where the machine keeps up.
const SLOT: Duration = Duration::from_millis(8);
/// Now and then nothing changes for so long, and flows become fast again.
const CALM: Duration = Duration::from_millis(80);
const CALM_AFTER: u64 = 40;
/// The same when the time is over and nothing was fast yet, and how often that is tried.
const CALM_AFTER_ALL: u64 = 5;
const LATE: u32 = 20;
/// Changes before a packet was sent that a failure shows.
const HISTORY: usize = 5;
/// Between two packets of a sender.
const PACE: Duration = Duration::from_micros(500);
/// Between two new flows, at least: each has a port of its own for as long as the test lasts.
const NEW_PACE: Duration = Duration::from_millis(2);
const NEW_PORTS: std::ops::Range<u16> = 41000..61000;
/// New flows that there are after one before it says something more.
const KEPT: usize = 16;
/// How long is looked whether new flows are fast.
const LOOK: Duration = Duration::from_millis(200);
/// The ports of the two flows that last, where they begin.
const CLIENT: u16 = 40000;
const ASKER: u16 = 6000;
/// What is asked outside, and the forwards for the flow that lasts and for the others: their ports, and those inside.
const ECHO: u16 = 5300;
const DOOR: (u16, u16) = (5353, 53);
const NEW_DOOR: (u16, u16) = (5354, 54);
/// How often who waits for packets looks whether there will be more.
const TICK: Duration = Duration::from_millis(50);

/// What a packet of ours is, as its payload says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// From the inside to the target, through the masquerade, and what the target answers.
    Out,
    Back,
    /// From the target to a forward, and what the inside host answers.
    In,
    Answer,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Out, Self::Back, Self::In, Self::Answer];

    /// Who it seems to be from and to where it comes out: the masquerade's ports, or the forward's. `port`: where its flow begins.
    fn ends(self, port: u16) -> [(Ipv4Addr, u16); 2] {
        let (external, internal) = if port == ASKER { DOOR } else { NEW_DOOR };
        match self {
            Self::Out => [(WAN, port), (TARGET.into(), ECHO)],
            Self::Back => [(TARGET.into(), ECHO), (INSIDE, port)],
            Self::In => [(TARGET.into(), port), (INSIDE, internal)],
            Self::Answer => [(WAN, external), (TARGET.into(), port)],
        }
    }
}

const OUTWARDS: [Kind; 2] = [Kind::Out, Kind::Answer];
const INWARDS: [Kind; 2] = [Kind::Back, Kind::In];

/// Where a packet has come out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Outside([u8; 6]),
    Inside(End),
}

/// What everybody knows.
#[derive(Debug, Default)]
struct World {
    states: Mutex<Vec<State>>,
    /// The last state that the fast path has heard of, and the last that may be in force.
    settled: AtomicU64,
    current: AtomicU64,
    sent: AtomicU64,
    /// By kind: of the flows that last, and of new ones.
    seen: [AtomicU64; 4],
    seen_new: [AtomicU64; 4],
    /// Those of which one state alone decided.
    judged: AtomicU64,
    wrong: Mutex<Vec<String>>,
    ended: AtomicBool,
}

impl World {
    fn goes_on(&self) -> bool {
        !self.ended.load(SeqCst)
    }

    /// `port`: where the flow begins.
    fn send(&self, socket: &UdpSocket, to: SocketAddr, kind: Kind, port: u16) {
        let mut payload = *b"chaos...........";
        payload[5..7].copy_from_slice(&port.to_be_bytes());
        payload[7] = kind as u8;
        payload[8..].copy_from_slice(&self.settled.load(SeqCst).to_be_bytes());
        // A link that is down, or a route to nowhere, is part of it.
        if socket.send_to(&payload, to).is_ok() {
            self.sent.fetch_add(1, SeqCst);
        }
    }

    /// Looks at a frame that has come out somewhere.
    fn judge(&self, frame: &[u8], at: impl Fn([u8; 6]) -> Place, kinds: [Kind; 2]) {
        let Some(Seen { kind, port, since, ends, mac }) = seen(frame) else { return };
        if !kinds.contains(&kind) {
            // The bridge asks everybody when it does not know where somebody is.
            return;
        }
        let place = at(mac);
        let until = self.current.load(SeqCst);
        let states = self.states.lock().expect("nobody has failed");
        let (from, to) = (since.try_into().expect("few states"), until.try_into().expect("few states"));
        let may = match place {
            Place::Outside(mac) => chaos::may_leave(&states[from..=to], mac),
            Place::Inside(end) => chaos::may_arrive(&states[from..=to], end),
        };
        if !may || ends != kind.ends(port) {
            let mut wrong = self.wrong.lock().expect("nobody has failed");
            let history = acts(&states[from.saturating_sub(HISTORY)..=to]);
            wrong.push(format!(
                "{kind:?} of {ends:?} at {place:?}, sent in {since}, seen in {until}: {history}"
            ));
        }
        let seen = if NEW_PORTS.contains(&port) { &self.seen_new } else { &self.seen };
        seen[kind as usize].fetch_add(1, SeqCst);
        if since == until {
            self.judged.fetch_add(1, SeqCst);
        }
    }

    fn seen(&self, kind: Kind) -> u64 {
        self.seen[kind as usize].load(SeqCst)
    }

    fn seen_new(&self, kind: Kind) -> u64 {
        self.seen_new[kind as usize].load(SeqCst)
    }

    fn seen_at_all(&self) -> u64 {
        self.seen.iter().chain(&self.seen_new).map(|seen| seen.load(SeqCst)).sum()
    }
}

/// What has happened.
fn acts(states: &[State]) -> String {
    let steps = states.windows(2).map(|pair| format!("{:?}", pair[0].acts(&pair[1])));
    let first = states.first().map(|state| format!("{state:?}"));
    first.into_iter().chain(steps).collect::<Vec<_>>().join("\n")
}

/// One of our packets.
struct Seen {
    kind: Kind,
    /// Where its flow begins.
    port: u16,
    since: u64,
    ends: [(Ipv4Addr, u16); 2],
    mac: [u8; 6],
}

fn seen(frame: &[u8]) -> Option<Seen> {
    let mac = *frame.first_chunk()?;
    // IPv4 without options, UDP.
    if frame.get(12..15)? != [8, 0, 0x45] || *frame.get(23)? != 17 || frame.get(42..47)? != b"chaos" {
        return None;
    }
    let word = |at: usize| frame.get(at..)?.first_chunk::<4>().copied();
    let ports: [u8; 4] = word(34)?;
    let ends = [
        (word(26)?.into(), u16::from_be_bytes([ports[0], ports[1]])),
        (word(30)?.into(), u16::from_be_bytes([ports[2], ports[3]])),
    ];
    let port = u16::from_be_bytes(*frame.get(47..)?.first_chunk()?);
    let kind = *Kind::ALL.get(usize::from(*frame.get(49)?))?;
    let since = u64::from_be_bytes(*frame.get(50..)?.first_chunk()?);
    Some(Seen { kind, port, since, ends, mac })
}

/// The number under which flows learn: read where the programs read it.
struct Epoch(Array<MapData, [u32; 4]>);

impl Epoch {
    fn open(lab: &Lab) -> Self {
        let data = MapData::from_pin(lab.pinned("epoch")).expect("the map of the epoch");
        Self(Array::try_from(Map::Array(data)).expect("an array"))
    }

    fn last(&self) -> u32 {
        self.0.get(&0, 0).expect("read the epoch")[1]
    }
}

/// Packets that have been sent on in drivers: counted where the programs count them.
struct Drivers(PerCpuArray<MapData, u64>);

impl Drivers {
    fn open(lab: &Lab) -> Self {
        let data = MapData::from_pin(lab.pinned("xdp_stat")).expect("the map of the count");
        Self(PerCpuArray::try_from(Map::PerCpuArray(data)).expect("an array"))
    }

    fn sent(&self) -> u64 {
        self.0.get(&0, 0).expect("read the count").iter().sum()
    }
}

fn prepare(xdp: &'static str) -> (Lab, Netns) {
    // A lab whose hosts take frames from drivers, and fill in checksums, so that theirs are sent on there.
    let (mut lab, other) = (drivers::lab(), Netns::new());
    lab.environment.retain(|(name, _)| *name != "XDP");
    lab.environment.extend([("XDP", xdp.to_owned()), ("FLOW_CAPACITY", "65536".to_owned())]);
    drivers::whole_checksums(&lab);
    lab.router.veth("lan1", &other, "eth0");
    other.sh("ethtool -K eth0 gro on");
    other.ip("link set eth0 up");
    let card = chaos::text(GATEWAYS[0].1[0]);
    lab.inside.ip(&format!("link set eth0 address {INSIDE_MAC}"));
    lab.inside.ip(&format!("neigh replace {GATEWAY} lladdr {ROUTER_MAC} dev eth0 nud permanent"));
    lab.outside.ip(&format!("link set eth0 address {card}"));
    lab.outside.ip(&format!("addr add {}/32 dev lo", Ipv4Addr::from(TARGET)));
    lab.outside.ip(&format!("neigh replace {WAN} lladdr 02:00:00:00:04:01 dev eth0 nud permanent"));
    for line in [
        "link set wan0 address 02:00:00:00:04:01",
        "link set lan1 master br-lab",
        "link set lan1 up",
        &format!("link set br-lab address {ROUTER_MAC}"),
        &format!(
            "neigh replace {} lladdr {} dev wan0 nud permanent",
            GATEWAYS[1].0,
            chaos::text(GATEWAYS[1].1[0])
        ),
        &format!("neigh replace {OUTSIDE} lladdr {card} dev wan0 nud permanent"),
    ] {
        lab.router.ip(line);
    }
    lab.router.sh(&chaos::neighbour());
    lab.router.sh(&chaos::station(End::Inside));
    lab.router.sh("nft add table ip chaos");
    lab.router.sh("nft add chain ip chaos f { type filter hook forward priority 0; }");
    (lab, other)
}

/// Who changes the router, and waits until the fast path has heard of it.
struct Hands<'a> {
    lab: &'a Lab,
    epoch: Epoch,
    /// Of the worker's rules that are there.
    firewall: String,
    forward: String,
}

impl Hands<'_> {
    fn act(&mut self, act: &Act) {
        match act {
            Act::Run(line) => drop(self.lab.router.sh(line)),
            Act::Firewall(true) => {
                let target = Ipv4Addr::from(TARGET);
                let rule =
                    json!({"chain": "FORWARD", "action": "DROP", "protocol": "udp", "destination": target});
                self.firewall = rule_id(&self.lab.post("/nat/firewall", &rule).ok());
            }
            Act::Forward(true) => self.forward = self.lab.forward("tcp", 7777, 77),
            Act::Firewall(false) => self.delete("firewall", &self.firewall),
            Act::Forward(false) => self.delete("forward", &self.forward),
        }
    }

    fn delete(&self, kind: &str, id: &str) {
        self.lab.call("DELETE", &format!("/nat/{kind}/{id}"), None).ok();
    }

    /// Does what makes one state into the next; how long the fast path then took to hear of it.
    fn change(&mut self, from: &State, to: &State) -> Duration {
        let before = self.epoch.last();
        from.acts(to).iter().for_each(|act| self.act(act));
        let done = Instant::now();
        if from.tells(to) {
            self.wait_beyond(before, &format!("the fast path does not hear of {:?}", from.acts(to)));
        }
        let heard = done.elapsed();
        // That may have been an echo of what was done before. Events come in order: who has heard of this one, which is
        // made when everything is done, knows everything.
        let before = self.epoch.last();
        self.lab.router.run(|| {
            let value = std::fs::read_to_string(TOLD).expect("a switch of the kernel's");
            std::fs::write(TOLD, if value.trim() == "0" { "1" } else { "0" }).expect("turn it");
        });
        self.wait_beyond(before, "the fast path hears of nothing");
        heard
    }

    fn wait_beyond(&self, before: u32, what: &str) {
        let began = Instant::now();
        while self.epoch.last() == before {
            assert!(began.elapsed() < PATIENCE, "{what}");
            thread::sleep(Duration::from_micros(100));
        }
    }
}

/// Packets that have gone up through the bridge to the router.
fn bridged(lab: &Lab) -> u64 {
    let text = lab.router.run(|| std::fs::read_to_string("/proc/thread-self/net/dev")).expect("the devices");
    let line = text.lines().find_map(|line| line.trim().strip_prefix("br-lab:")).expect("the bridge");
    line.split_whitespace().nth(1).and_then(|packets| packets.parse().ok()).expect("a number")
}

/// Whether the flows that last are fast.
fn are_fast(lab: &Lab) -> bool {
    [CLIENT, DOOR.0].into_iter().all(|port| {
        let flows = lab.get(&format!("/nat/flows?external_port={port}"));
        flows["flows"].as_array().is_some_and(|flows| flows.len() == 1 && flows[0]["path"] == "fast")
    })
}

/// Of the packets of new flows that come out outside most have passed the bridge by, and with drivers nearly all packets the rest.
fn are_new_ones_fast(world: &World, lab: &Lab, drivers: Option<&Drivers>) -> bool {
    let look = || (world.seen_new(Kind::Out), bridged(lab), world.seen_at_all());
    let (before, sent) = (look(), drivers.map(Drivers::sent));
    thread::sleep(LOOK);
    let (after, sent_then) = (look(), drivers.map(Drivers::sent));
    let (new, up, all) = (after.0 - before.0, after.1 - before.1, after.2 - before.2);
    let in_drivers = sent.zip(sent_then).is_none_or(|(before, after)| (after - before) * 20 >= all * 19);
    new > 10 && up * 2 < new && in_drivers
}

fn send_until_the_end(world: &World, socket: &UdpSocket, to: (Ipv4Addr, u16), kind: Kind, port: u16) {
    while world.goes_on() {
        world.send(socket, to.into(), kind, port);
        thread::sleep(PACE);
    }
}

/// Sends from one port after the other; and once more when the answer may have come.
fn open_until_the_end(
    world: &World,
    (host, from): (&Netns, Ipv4Addr),
    to: (Ipv4Addr, u16),
    kind: Kind,
    pace: Duration,
) {
    host.run(|| {
        let mut kept = VecDeque::new();
        for port in NEW_PORTS.cycle() {
            if !world.goes_on() {
                return;
            }
            let socket = UdpSocket::bind((from, port)).expect("a socket");
            world.send(&socket, to.into(), kind, port);
            kept.push_back((socket, port));
            if kept.len() > KEPT
                && let Some((socket, port)) = kept.pop_front()
            {
                world.send(&socket, to.into(), kind, port);
            }
            thread::sleep(pace);
        }
    });
}

fn answer_until_the_end(world: &World, socket: &UdpSocket, kind: Kind) {
    socket.set_read_timeout(Some(TICK)).expect("a timeout");
    while world.goes_on() {
        if let Ok((_, from)) = socket.recv_from(&mut [0; 64]) {
            world.send(socket, from, kind, from.port());
        }
    }
}

fn watch_until_the_end(world: &World, netns: &Netns, at: impl Fn([u8; 6]) -> Place + Send, kinds: [Kind; 2]) {
    let wire = netns.run(|| Wire::all("eth0"));
    while world.goes_on() {
        match wire.receive() {
            Some(frame) => world.judge(&frame, &at, kinds),
            None => thread::sleep(Duration::from_micros(200)),
        }
    }
}

/// Ends the world whatever becomes of the test, so that nobody is waited for in vain.
struct Ending<'a>(&'a World);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.ended.store(true, SeqCst);
    }
}

/// Each of them keeps the machine busy, and holds what the kernel changes interfaces under.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[test]
fn whatever_changes_no_packet_comes_out_where_it_must_not() {
    everything_changes("off");
}

#[test]
fn the_same_with_the_fast_path_in_drivers() {
    everything_changes("on");
}

fn everything_changes(xdp: &'static str) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let (seconds, seed) = (number("CHAOS_SECONDS", 8), number("CHAOS_SEED", u64::from(std::process::id())));
    eprintln!("CHAOS_SEED={seed} CHAOS_SECONDS={seconds} XDP={xdp}");
    let (lab, other) = prepare(xdp);
    let _worker = lab.start();
    lab.masquerade();
    for (external, internal) in [DOOR, NEW_DOOR] {
        lab.forward("udp", external, internal);
    }
    let target = Ipv4Addr::from(TARGET);
    let world = World::default();
    world.states.lock().expect("nobody has failed").push(State::CALM);
    let [client, server, new_server] =
        [CLIENT, DOOR.1, NEW_DOOR.1].map(|port| lab.inside.udp((INSIDE, port)));
    let [echo, asker] = [ECHO, ASKER].map(|port| lab.outside.udp((target, port)));
    let drivers = (xdp == "on").then(|| Drivers::open(&lab));
    let new_pace = NEW_PACE.max(Duration::from_secs(seconds) / u32::try_from(NEW_PORTS.len()).expect("few"));

    let (inside, outside) = ((&lab.inside, INSIDE), (&lab.outside, target));
    thread::scope(|scope| {
        let _end = Ending(&world);
        scope.spawn(|| send_until_the_end(&world, &client, (target, ECHO), Kind::Out, CLIENT));
        scope.spawn(|| send_until_the_end(&world, &asker, (WAN, DOOR.0), Kind::In, ASKER));
        scope.spawn(|| open_until_the_end(&world, inside, (target, ECHO), Kind::Out, new_pace));
        scope.spawn(|| open_until_the_end(&world, outside, (WAN, NEW_DOOR.0), Kind::In, new_pace));
        scope.spawn(|| answer_until_the_end(&world, &echo, Kind::Back));
        scope.spawn(|| answer_until_the_end(&world, &server, Kind::Answer));
        scope.spawn(|| answer_until_the_end(&world, &new_server, Kind::Answer));
        scope.spawn(|| watch_until_the_end(&world, &lab.outside, Place::Outside, OUTWARDS));
        scope.spawn(|| watch_until_the_end(&world, &lab.inside, |_| Place::Inside(End::Inside), INWARDS));
        scope.spawn(|| watch_until_the_end(&world, &other, |_| Place::Inside(End::Other), INWARDS));

        let everything_is_fast = || are_fast(&lab) && are_new_ones_fast(&world, &lab, drivers.as_ref());
        eventually("the flows do not become fast", everything_is_fast);
        let mut hands =
            Hands { lab: &lab, epoch: Epoch::open(&lab), firewall: String::new(), forward: String::new() };
        let (mut dice, mut state, mut changes) = (Dice::new(seed), State::CALM, 0);
        let (mut heard, mut shortened) = (Vec::new(), 0);
        let mut change = |next: State| {
            changes += 1;
            world.states.lock().expect("nobody has failed").push(next);
            world.current.store(changes, SeqCst);
            heard.push(hands.change(&state, &next));
            world.settled.store(changes, SeqCst);
            state = next;
        };
        let all = |kind| world.seen(kind) + world.seen_new(kind);
        let outwards = || all(Kind::Out) + all(Kind::Answer);
        let began = Instant::now();
        let (mut due, mut late) = (began, 0);
        let mut next = State::CALM;
        for turn in 1.. {
            // On a machine that is busy with other things, for as long as it takes until something was fast meanwhile.
            let over = began.elapsed() > Duration::from_secs(seconds);
            if over && (shortened > 0 || late == LATE) {
                break;
            }
            next = next.changed(&mut dice);
            change(next);
            if turn % (if over { CALM_AFTER_ALL } else { CALM_AFTER }) == 0 {
                late += u32::from(over);
                if next != next.passable() {
                    next = next.passable();
                    change(next);
                }
                let before = (outwards(), bridged(&lab));
                thread::sleep(CALM);
                let (out, up) = (outwards() - before.0, bridged(&lab) - before.1);
                shortened += out.saturating_sub(up);
                due += CALM;
            }
            due = (due + SLOT).max(Instant::now() - SLOT * 10);
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        let took = began.elapsed();
        // Quiet: from here on everything is as it was in the beginning.
        next.back().into_iter().for_each(&mut change);
        let recovered = eventually("the flows do not become fast again", everything_is_fast);
        for kind in Kind::ALL {
            let before = world.seen(kind);
            let new = world.seen_new(kind);
            eventually("some packets do not arrive any more", || {
                world.seen(kind) > before + 100 && world.seen_new(kind) > new + 20
            });
        }
        heard.sort();
        eprintln!(
            "{} changes in {took:?} and the way back, heard of after {:?}, {:?} at most; {} packets sent, {} of them \
             came out, {} of new flows, {} sent on in drivers, {} where one state alone decided, at least {shortened} past the bridge; fast again after \
             {recovered:?}",
            heard.len(),
            heard[heard.len() / 2],
            heard[heard.len() - 1],
            world.sent.load(SeqCst),
            world.seen_at_all(),
            Kind::ALL.map(|kind| world.seen_new(kind)).iter().sum::<u64>(),
            drivers.map_or(0, |drivers| drivers.sent()),
            world.judged.load(SeqCst),
        );
        assert!(shortened > 0, "nothing was fast while everything changed: nothing was shown");
    });
    let wrong = world.wrong.into_inner().expect("nobody has failed");
    assert!(wrong.is_empty(), "{} packets came out where they must not, first {}", wrong.len(), wrong[0]);
}
