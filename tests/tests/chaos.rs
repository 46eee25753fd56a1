//! Everything that decides where packets go is changed all the time, under traffic that knows where it may come out.
//!
//! A packet bears a number: the last state of the router that the fast path has heard of when it was sent. Whoever sees
//! it come out looks up what has happened since. It may be where the states from then until now would have sent it, and
//! nowhere else; that it is lost is no fault while everything changes, and is one afterwards.
//!
//! `CHAOS_SECONDS` says for how long, `CHAOS_SEED` which changes.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use aya::maps::{Array, Map, MapData};
use serde_json::{Value, json};
use telecluster_tests::{
    chaos::{self, Act, End, GATEWAYS, INSIDE_MAC, ROUTER_MAC, State, TARGET},
    dice::{Dice, number},
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
/// Changes before a packet was sent that a failure shows.
const HISTORY: usize = 5;
/// Between two packets of a sender.
const PACE: Duration = Duration::from_micros(500);
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

    /// Who it seems to be from and to where it comes out: the masquerade's ports, or the forward's.
    fn ends(self) -> [(Ipv4Addr, u16); 2] {
        match self {
            Self::Out => [(WAN, 40000), (TARGET.into(), 5300)],
            Self::Back => [(TARGET.into(), 5300), (INSIDE, 40000)],
            Self::In => [(TARGET.into(), 6000), (INSIDE, 53)],
            Self::Answer => [(WAN, 5353), (TARGET.into(), 6000)],
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
    /// By kind.
    seen: [AtomicU64; 4],
    /// Those of which one state alone decided.
    judged: AtomicU64,
    wrong: Mutex<Vec<String>>,
    ended: AtomicBool,
}

impl World {
    fn goes_on(&self) -> bool {
        !self.ended.load(SeqCst)
    }

    fn send(&self, socket: &UdpSocket, to: SocketAddr, kind: Kind) {
        let mut payload = *b"chaos...........";
        payload[7] = kind as u8;
        payload[8..].copy_from_slice(&self.settled.load(SeqCst).to_be_bytes());
        // A link that is down, or a route to nowhere, is part of it.
        if socket.send_to(&payload, to).is_ok() {
            self.sent.fetch_add(1, SeqCst);
        }
    }

    /// Looks at a frame that has come out somewhere.
    fn judge(&self, frame: &[u8], at: impl Fn([u8; 6]) -> Place, kinds: [Kind; 2]) {
        let Some(Seen { kind, since, ends, mac }) = seen(frame) else { return };
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
        if !may || ends != kind.ends() {
            let mut wrong = self.wrong.lock().expect("nobody has failed");
            let history = acts(&states[from.saturating_sub(HISTORY)..=to]);
            wrong.push(format!(
                "{kind:?} of {ends:?} at {place:?}, sent in {since}, seen in {until}: {history}"
            ));
        }
        self.seen[kind as usize].fetch_add(1, SeqCst);
        if since == until {
            self.judged.fetch_add(1, SeqCst);
        }
    }

    fn seen(&self, kind: Kind) -> u64 {
        self.seen[kind as usize].load(SeqCst)
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
    let kind = *Kind::ALL.get(usize::from(*frame.get(49)?))?;
    let since = u64::from_be_bytes(*frame.get(50..)?.first_chunk()?);
    Some(Seen { kind, since, ends, mac })
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

fn prepare() -> (Lab, Netns) {
    let (lab, other) = (Lab::on("ebpf"), Netns::new());
    lab.router.veth("lan1", &other, "eth0");
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

fn paths(lab: &Lab) -> Vec<Value> {
    let flows = lab.get("/nat/flows")["flows"].clone();
    flows.as_array().expect("a list").iter().map(|flow| flow["path"].clone()).collect()
}

fn send_until_the_end(world: &World, socket: &UdpSocket, to: (Ipv4Addr, u16), kind: Kind) {
    while world.goes_on() {
        world.send(socket, to.into(), kind);
        thread::sleep(PACE);
    }
}

fn answer_until_the_end(world: &World, socket: &UdpSocket, kind: Kind) {
    socket.set_read_timeout(Some(TICK)).expect("a timeout");
    while world.goes_on() {
        if let Ok((_, from)) = socket.recv_from(&mut [0; 64]) {
            world.send(socket, from, kind);
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

#[test]
fn whatever_changes_no_packet_comes_out_where_it_must_not() {
    let (seconds, seed) = (number("CHAOS_SECONDS", 8), number("CHAOS_SEED", u64::from(std::process::id())));
    eprintln!("CHAOS_SEED={seed} CHAOS_SECONDS={seconds}");
    let (lab, other) = prepare();
    let _worker = lab.start();
    lab.masquerade();
    lab.forward("udp", 5353, 53);
    let target = Ipv4Addr::from(TARGET);
    let world = World::default();
    world.states.lock().expect("nobody has failed").push(State::CALM);
    let [client, server] = [40000, 53].map(|port| lab.inside.udp((INSIDE, port)));
    let [echo, asker] = [5300, 6000].map(|port| lab.outside.udp((target, port)));

    thread::scope(|scope| {
        let _end = Ending(&world);
        scope.spawn(|| send_until_the_end(&world, &client, (target, 5300), Kind::Out));
        scope.spawn(|| send_until_the_end(&world, &asker, (WAN, 5353), Kind::In));
        scope.spawn(|| answer_until_the_end(&world, &echo, Kind::Back));
        scope.spawn(|| answer_until_the_end(&world, &server, Kind::Answer));
        scope.spawn(|| watch_until_the_end(&world, &lab.outside, Place::Outside, OUTWARDS));
        scope.spawn(|| watch_until_the_end(&world, &lab.inside, |_| Place::Inside(End::Inside), INWARDS));
        scope.spawn(|| watch_until_the_end(&world, &other, |_| Place::Inside(End::Other), INWARDS));

        let everything_is_fast = || {
            let paths = paths(&lab);
            paths.len() == 2 && paths.iter().all(|path| path == "fast")
        };
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
        let outwards = || world.seen(Kind::Out) + world.seen(Kind::Answer);
        let began = Instant::now();
        let mut due = began;
        let mut next = State::CALM;
        for turn in 1.. {
            // On a machine that is busy with other things, for as long as it takes until something was fast meanwhile.
            let over = began.elapsed().saturating_sub(Duration::from_secs(seconds));
            if !over.is_zero() && (shortened > 0 || over > PATIENCE) {
                break;
            }
            next = next.changed(&mut dice);
            change(next);
            if turn % CALM_AFTER == 0 {
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
            eventually("some packets do not arrive any more", || world.seen(kind) > before + 100);
        }
        heard.sort();
        eprintln!(
            "{} changes in {took:?} and the way back, heard of after {:?}, {:?} at most; {} packets sent, {} of them \
             came out, {} where one state alone decided, at least {shortened} past the bridge; fast again after \
             {recovered:?}",
            heard.len(),
            heard[heard.len() / 2],
            heard[heard.len() - 1],
            world.sent.load(SeqCst),
            Kind::ALL.map(|kind| world.seen(kind)).iter().sum::<u64>(),
            world.judged.load(SeqCst),
        );
        assert!(shortened > 0, "nothing was fast while everything changed: nothing was shown");
    });
    let wrong = world.wrong.into_inner().expect("nobody has failed");
    assert!(wrong.is_empty(), "{} packets came out where they must not, first {}", wrong.len(), wrong[0]);
}
