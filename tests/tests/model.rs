//! The engine against a plain model of a NAT: random packets, waits and changes of rules, and after each of them what the
//! RFCs promise.
//!
//! The model is a map of inside sockets to external ports with two times: since when a mapping is sure to be in force, and
//! since when it may be. Between the two it allows both, so that it knows no beat, tick or table of the engine.

use std::{collections::BTreeMap, net::IpAddr};

use proptest::{prelude::*, test_runner::Config};
use telecluster_common::{drop::DropReason, maps::Direction};
use telecluster_tests::{
    frame::{Frame, UDP, icmp, udp},
    host::{Front, Host},
    vectors::{Cast, IPV4, IPV6, Machine as _, Outcome, forward},
};

const SECOND: u64 = 1_000_000_000;

/// Idle for so many seconds, a mapping of UDP is in force, is expired for sure, is held down for sure, is free for sure.
const ALIVE: u64 = 300;
const EXPIRED: u64 = 340;
const HELD: u64 = ALIVE + 120;
const FREE: u64 = EXPIRED + 121;

/// A port outside that leads to a server inside, and the port of that.
const FORWARDED: (u16, u16) = (5353, 53);

/// One thing that happens; numbers are places in lists of the model.
#[derive(Debug, Clone)]
enum Action {
    /// An inside socket sends to somebody outside.
    Out {
        socket: usize,
        remote: usize,
        port: u16,
    },
    /// Somebody outside sends to an external port that somebody inside has been given once.
    In {
        remote: usize,
        port: u16,
        to: usize,
    },
    /// The same to a port that nobody has.
    Knock {
        remote: usize,
        to: u16,
    },
    /// Somebody outside uses the forward, and the server answers.
    Forward {
        remote: usize,
        port: u16,
    },
    /// The inside asks for an echo, and gets it.
    Ping {
        host: usize,
        remote: usize,
        identifier: u16,
    },
    Wait(u64),
    /// The masquerade goes, and is made anew.
    Renew,
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let port = prop::sample::select(vec![53u16, 443, 5000]);
    let action = prop_oneof![
        8 => (0..9usize, 0..4usize, port.clone())
            .prop_map(|(socket, remote, port)| Action::Out { socket, remote, port }),
        6 => (0..4usize, port.clone(), 0..16usize)
            .prop_map(|(remote, port, to)| Action::In { remote, port, to }),
        1 => (0..4usize, 30000..30010u16).prop_map(|(remote, to)| Action::Knock { remote, to }),
        2 => (0..4usize, port).prop_map(|(remote, port)| Action::Forward { remote, port }),
        2 => (0..3usize, 0..4usize, 0..3u16)
            .prop_map(|(host, remote, identifier)| Action::Ping { host, remote, identifier }),
        4 => prop::sample::select(vec![1u64, 5, 60, 120, 150, 290, 350, 470]).prop_map(Action::Wait),
        1 => Just(Action::Renew),
    ];
    prop::collection::vec(action, 1..80)
}

type Socket = (IpAddr, u16);

/// What is known of an inside socket's external port.
#[derive(Debug, Clone)]
struct Mapping {
    port: u16,
    /// When the inside last sent, and when anybody did that got through.
    sent: u64,
    passed: u64,
    /// When the inside last sent to whom, since it has the port; `None`: perhaps, before that.
    remotes: BTreeMap<IpAddr, u64>,
}

struct Model {
    cast: Cast,
    host: Host,
    /// Seconds.
    now: u64,
    slot: u32,
    mappings: BTreeMap<Socket, Mapping>,
    /// Every external port that somebody was given, in order.
    given: Vec<u16>,
    counted: BTreeMap<u32, [u64; 4]>,
    /// Those of pings.
    identifiers: BTreeMap<(IpAddr, u16), (u16, u64)>,
}

impl Model {
    fn new(front: Front, cast: Cast) -> Self {
        let mut host = Host::behind(front);
        host.put(0, &cast.masquerade());
        host.put(1, &forward(UDP, FORWARDED.0, (cast.other_inside, FORWARDED.1)));
        Self {
            cast,
            host,
            now: 0,
            slot: 0,
            mappings: BTreeMap::new(),
            given: Vec::new(),
            counted: BTreeMap::new(),
            identifiers: BTreeMap::new(),
        }
    }

    /// Three hosts with three ports each, the same ones.
    fn socket(&self, number: usize) -> Socket {
        let ports = [40000, 40001, 700];
        (other(self.cast.inside, number / 3), ports[number % 3])
    }

    fn remote(&self, number: usize) -> IpAddr {
        other(self.cast.remote, number)
    }

    fn run(&mut self, direction: Direction, frame: &Frame) -> (Outcome, Vec<u8>) {
        self.host.run(direction, &frame.bytes())
    }

    fn count(&mut self, slot: u32, direction: Direction, frame: &Frame) {
        let place = if direction == Direction::In { 0 } else { 2 };
        let counted = self.counted.entry(slot).or_default();
        counted[place] += 1;
        counted[place + 1] += (frame.bytes().len() - 14) as u64;
    }

    fn apply(&mut self, action: &Action) {
        match *action {
            Action::Out { socket, remote, port } => {
                self.sends(self.socket(socket), (self.remote(remote), port))
            }
            Action::In { remote, port, to } => {
                if let Some(external) = self.given.get(to % self.given.len().max(1)) {
                    self.arrives((self.remote(remote), port), *external);
                }
            }
            Action::Knock { remote, to } => self.arrives((self.remote(remote), 9), to),
            Action::Forward { remote, port } => self.forwards((self.remote(remote), port)),
            Action::Ping { host, remote, identifier } => {
                self.pings(other(self.cast.inside, host), self.remote(remote), identifier);
            }
            Action::Wait(seconds) => {
                self.now += seconds;
                self.host.tables.clock.set(self.now * SECOND);
            }
            Action::Renew => {
                self.host.remove(self.slot, &self.cast.masquerade());
                self.slot += 2;
                self.host.put(self.slot, &self.cast.masquerade());
                // Nobody has a right to anything any more; a socket may get its old port all the same.
                self.mappings.clear();
                self.identifiers.clear();
            }
        }
        for (slot, [packets_in, bytes_in, packets_out, bytes_out]) in &self.counted {
            let stat = self.host.counters(*slot);
            assert_eq!(
                (stat.packets_in, stat.bytes_in, stat.packets_out, stat.bytes_out),
                (*packets_in, *bytes_in, *packets_out, *bytes_out),
                "rule {slot} counts exactly"
            );
        }
    }

    fn sends(&mut self, socket: Socket, remote: Socket) {
        let frame = udp(socket, remote, b"question");
        let (outcome, bytes) = self.run(Direction::Out, &frame);
        assert_eq!(outcome, Outcome::Passed);
        let port = port_at(&bytes, 0);
        let external = (self.cast.uplink, port);
        assert_eq!(bytes, udp(external, remote, b"question").bytes(), "byte for byte");
        self.count(self.slot, Direction::Out, &frame);

        let (now, own) = (self.now, socket);
        for (other, mapping) in self.mappings.iter().filter(|(other, _)| **other != own) {
            let held = now - mapping.sent <= HELD;
            assert!(!(held && mapping.port == port), "{other:?} has port {port}, or had it just now");
        }
        let known = self.mappings.get(&own);
        if let Some(known) = known.filter(|known| now - known.sent <= ALIVE) {
            assert_eq!(known.port, port, "one port for all destinations");
        } else if known.is_none() && self.is_free(own.1, own) {
            assert_eq!(port, own.1, "a free port is kept");
        }
        assert_eq!(port < 1024, own.1 < 1024, "ports stay in their class");
        assert_ne!(port, FORWARDED.0);

        let fresh = known.is_none_or(|known| now - known.passed > EXPIRED);
        let mapping = self.mappings.entry(own).or_insert_with(|| Mapping {
            port,
            sent: now,
            passed: now,
            remotes: BTreeMap::new(),
        });
        if fresh || mapping.port != port {
            mapping.remotes.clear();
        }
        (mapping.port, mapping.sent, mapping.passed) = (port, now, now);
        mapping.remotes.insert(remote.0, now);
        self.given.push(port);

        // Its answer is for the very socket.
        let answer = udp(remote, external, b"answer");
        let (outcome, bytes) = self.run(Direction::In, &answer);
        assert_eq!((outcome, bytes), (Outcome::Passed, udp(remote, socket, b"answer").bytes()));
        self.count(self.slot, Direction::In, &answer);
    }

    /// Whether nobody can have a claim on a port.
    fn is_free(&self, port: u16, own: Socket) -> bool {
        let mut others = self.mappings.iter().filter(|(socket, _)| **socket != own);
        // What a renewed rule has forgotten may still be somebody's own.
        let forgotten = self.slot > 0 && self.given.contains(&port);
        !forgotten && others.all(|(_, mapping)| mapping.port != port || self.now - mapping.passed > FREE)
    }

    fn arrives(&mut self, remote: Socket, port: u16) {
        let frame = udp(remote, (self.cast.uplink, port), b"hello");
        let (outcome, bytes) = self.run(Direction::In, &frame);
        let now = self.now;
        let got = match outcome {
            Outcome::Passed if bytes == frame.bytes() => None,
            Outcome::Passed => {
                let to = self.mappings.keys().find(|to| bytes == udp(remote, **to, b"hello").bytes());
                assert!(to.is_some(), "{remote:?} to {port} became something strange: {bytes:?}");
                to.copied()
            }
            Outcome::Dropped(DropReason::Filtered) => None,
            Outcome::Dropped(_) | Outcome::Sent(_) => unreachable!("{remote:?} to {port}: {outcome:?}"),
        };
        let owner = self.mappings.iter().filter(|(_, mapping)| mapping.port == port);
        let owner = owner.max_by_key(|(_, mapping)| mapping.sent).map(|(socket, mapping)| (*socket, mapping));
        let Some((owner, mapping)) = owner else {
            assert_eq!(got, None, "nobody has port {port}");
            return;
        };
        if let Some(got) = got {
            assert_eq!(got, owner, "port {port} is another one's");
            assert!(now - mapping.passed <= EXPIRED, "the mapping of port {port} has expired");
            assert!(mapping.remotes.contains_key(&remote.0), "{got:?} has not sent to {}", remote.0);
        } else {
            let sure = now - mapping.sent <= ALIVE;
            let asked = mapping.remotes.get(&remote.0).is_some_and(|sent| now - sent <= ALIVE);
            assert!(!(sure && asked), "{owner:?} has asked {}, and hears nothing", remote.0);
            return;
        }
        if let Some(mapping) = self.mappings.get_mut(&owner) {
            mapping.passed = now;
        }
        self.count(self.slot, Direction::In, &frame);
    }

    fn forwards(&mut self, client: Socket) {
        let (external, server) = ((self.cast.uplink, FORWARDED.0), (self.cast.other_inside, FORWARDED.1));
        let question = udp(client, external, b"name?");
        let (outcome, bytes) = self.run(Direction::In, &question);
        assert_eq!((outcome, bytes), (Outcome::Passed, udp(client, server, b"name?").bytes()));
        let answer = udp(server, client, b"name!");
        let (outcome, bytes) = self.run(Direction::Out, &answer);
        assert_eq!((outcome, bytes), (Outcome::Passed, udp(external, client, b"name!").bytes()));
        self.count(1, Direction::In, &question);
        self.count(1, Direction::Out, &answer);
    }

    fn pings(&mut self, host: IpAddr, remote: IpAddr, identifier: u16) {
        let Cast { uplink, echo, echo_reply, .. } = self.cast;
        let frame = icmp(host, remote, echo, identifier, b"ping");
        let (outcome, bytes) = self.run(Direction::Out, &frame);
        assert_eq!(outcome, Outcome::Passed);
        let external = port_at(&bytes, 4);
        assert_eq!(bytes, icmp(uplink, remote, echo, external, b"ping").bytes());
        let (now, own) = (self.now, (host, identifier));
        for (other, (taken, since)) in self.identifiers.iter().filter(|(other, _)| **other != own) {
            assert!(*taken != external || now - since > 60 + 120, "{other:?} has identifier {external}");
        }
        let answer = icmp(remote, uplink, echo_reply, external, b"ping");
        let (outcome, bytes) = self.run(Direction::In, &answer);
        assert_eq!(
            (outcome, bytes),
            (Outcome::Passed, icmp(remote, host, echo_reply, identifier, b"ping").bytes())
        );
        self.identifiers.insert(own, (external, now));
        self.count(self.slot, Direction::Out, &frame);
        self.count(self.slot, Direction::In, &answer);
    }
}

/// A neighbour of an address.
fn other(address: IpAddr, number: usize) -> IpAddr {
    let number = u8::try_from(number).expect("few") * 20;
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            [a, b, c, d + number].into()
        }
        IpAddr::V6(address) => {
            let mut octets = address.octets();
            octets[15] += number;
            octets.into()
        }
    }
}

/// Two bytes of the transport header.
fn port_at(frame: &[u8], place: usize) -> u16 {
    let header = if frame[12..14] == [8, 0] { 20 } else { 40 };
    u16::from_be_bytes([frame[14 + header + place], frame[15 + header + place]])
}

/// As many as usual unless `MODEL_CASES` says otherwise.
fn cases() -> u32 {
    std::env::var("MODEL_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(256)
}

proptest! {
    #![proptest_config(Config { cases: cases(), failure_persistence: None, ..Config::default() })]

    #[test]
    fn whatever_happens_the_model_agrees(front in prop::sample::select(&Front::ALL[..]), actions in actions(), ipv6: bool) {
        let mut model = Model::new(front, if ipv6 { IPV6 } else { IPV4 });
        for action in &actions {
            model.apply(action);
        }
    }
}
