//! Traffic that notices every lost packet: flows whose ends tell each other numbers, and wait for each answer.
//!
//! Half of them leave through the masquerade, half come in through a port forward. A datagram that is lost leaves its
//! flow waiting until the test fails; a byte that TCP has to send again is not seen, one that is lost or wrong is.

use std::{
    io::{Read, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::json;

use crate::lab::{INSIDE, Lab, Netns, OUTSIDE, WAN, eventually};

/// Where both sides echo.
const ECHO: u16 = 7000;
/// Where the inside's echo is forwarded from.
const FORWARDED: u16 = 2222;
/// Threads, half of them outwards, half inwards, and the flows of each kind that each of them has.
const DRIVERS: usize = 20;
const FLOWS: usize = 5;
/// Between rounds, at least and at most: the point is that nothing is lost, not how much gets through.
const PAUSE: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(1)];
/// Times that a round has taken, between: a worker on a machine so slow that rounds fill it gets nothing done either.
const REST: u32 = 4;
/// How often a thread that must end looks whether it should.
const TICK: Duration = Duration::from_millis(100);

/// Running traffic: 100 TCP connections, 100 flows of datagrams, and connections that come and go.
#[derive(Debug)]
pub struct Traffic {
    stop: Arc<AtomicBool>,
    stop_echoes: Arc<AtomicBool>,
    /// Rounds that each driver has made: a number there and back in each of its flows.
    rounds: Arc<[AtomicU64; DRIVERS]>,
    opened: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
    echoes: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// Makes the rules that it needs, then starts.
    pub fn start(lab: &Lab) -> Self {
        lab.masquerade();
        let forward = json!({
            "external_port": FORWARDED, "internal_ip": INSIDE, "internal_port": ECHO, "protocol": "all",
        });
        lab.post("/nat/forward", &forward).ok();
        let [stop, stop_echoes] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let echoes =
            [(&lab.inside, INSIDE), (&lab.outside, OUTSIDE)].into_iter().flat_map(|(host, address)| {
                let (datagrams, connections) = (host.udp((address, ECHO)), host.listen((address, ECHO)));
                let [first, second] = [(); 2].map(|()| Arc::clone(&stop_echoes));
                [
                    thread::spawn(move || echo_datagrams(&datagrams, &first)),
                    thread::spawn(move || echo_connections(&connections, &second)),
                ]
            });
        let echoes = echoes.collect();

        let rounds: Arc<[AtomicU64; DRIVERS]> = Arc::new([const { AtomicU64::new(0) }; DRIVERS]);
        let opened = Arc::new(AtomicU64::new(0));
        let ways = [(&lab.inside, INSIDE, (OUTSIDE, ECHO)), (&lab.outside, OUTSIDE, (WAN, FORWARDED))];
        let mut threads = Vec::new();
        for driver in 0..DRIVERS {
            let (host, own, target) = ways[driver % 2];
            let flows: Vec<Flow> = (0..FLOWS).map(|_| Flow::new(host, own, target.into())).collect();
            let (stop, rounds) = (Arc::clone(&stop), Arc::clone(&rounds));
            threads.push(thread::spawn(move || {
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    number += 1;
                    let began = Instant::now();
                    flows.iter().for_each(|flow| flow.turn(number));
                    rounds[driver].store(number, Ordering::Relaxed);
                    rest(began);
                }
            }));
        }
        for (host, _, target) in ways {
            let (stop, opened, host) = (Arc::clone(&stop), Arc::clone(&opened), host.again());
            threads.push(thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    let stream = host.connect(target).expect("a new connection");
                    say(&stream, 1);
                    opened.fetch_add(1, Ordering::Relaxed);
                    rest(began);
                }
            }));
        }
        Self { stop, stop_echoes, rounds, opened, threads, echoes }
    }

    /// Waits until every flow has carried more, and new connections were opened both ways.
    #[track_caller]
    pub fn goes_on(&self) {
        let before: Vec<u64> = self.rounds();
        let opened = self.opened.load(Ordering::Relaxed);
        eventually("some flow has come to a halt", || {
            assert!(!self.threads.iter().any(JoinHandle::is_finished), "a flow has broken");
            self.rounds().iter().zip(&before).all(|(now, before)| *now > before + 1)
                && self.opened.load(Ordering::Relaxed) > opened + 4
        });
    }

    /// Ends it; how many datagrams went there, and as many back.
    #[track_caller]
    pub fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().expect("a flow has broken"));
        // Only now: who still waits for an answer gets it.
        self.stop_echoes.store(true, Ordering::Relaxed);
        self.echoes.into_iter().for_each(|echo| echo.join().expect("an echo has broken"));
        self.rounds.iter().map(|rounds| rounds.load(Ordering::Relaxed)).sum::<u64>() * FLOWS as u64
    }

    fn rounds(&self) -> Vec<u64> {
        self.rounds.iter().map(|rounds| rounds.load(Ordering::Relaxed)).collect()
    }
}

/// One connection and one flow of datagrams.
#[derive(Debug)]
struct Flow {
    stream: TcpStream,
    datagrams: UdpSocket,
}

impl Flow {
    fn new(host: &Netns, own: Ipv4Addr, target: SocketAddr) -> Self {
        let stream = host.connect(target).expect("connect");
        stream.set_nodelay(true).expect("no delay");
        let datagrams = host.udp((own, 0));
        datagrams.connect(target).expect("connect");
        Self { stream, datagrams }
    }

    fn turn(&self, number: u64) {
        say(&self.stream, number);
        self.datagrams.send(&number.to_be_bytes()).expect("send");
        let mut answer = [0; 8];
        let length = self.datagrams.recv(&mut answer).expect("a datagram was lost");
        assert_eq!((length, u64::from_be_bytes(answer)), (8, number), "an answer to something else");
    }
}

/// After a round that has begun then.
fn rest(began: Instant) {
    let [least, most] = PAUSE;
    thread::sleep((began.elapsed() * REST).clamp(least, most));
}

/// A number there and back.
fn say(mut stream: &TcpStream, number: u64) {
    stream.write_all(&number.to_be_bytes()).expect("send");
    let mut answer = [0; 8];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(u64::from_be_bytes(answer), number, "an answer to something else");
}

fn echo_datagrams(socket: &UdpSocket, stop: &AtomicBool) {
    socket.set_read_timeout(Some(TICK)).expect("a timeout");
    let mut buffer = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..length], from).expect("answer");
        }
    }
}

/// Each connection has a thread that ends with it.
fn echo_connections(listener: &TcpListener, stop: &AtomicBool) {
    listener.set_nonblocking(true).expect("not blocking");
    while !stop.load(Ordering::Relaxed) {
        let Ok((mut stream, _)) = listener.accept() else {
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        stream.set_nonblocking(false).expect("blocking");
        stream.set_nodelay(true).expect("no delay");
        thread::spawn(move || {
            let mut number = [0; 8];
            while stream.read_exact(&mut number).is_ok() && stream.write_all(&number).is_ok() {}
        });
    }
}
