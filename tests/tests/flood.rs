//! A flood of first packets from forged sources, on the ports that live connections use.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};
use telecluster_tests::{
    frame::{SYN, tcp, udp},
    lab::{INSIDE, Lab, OUTSIDE, WAN, eventually},
};

const CONNECTIONS: usize = 100;
/// Flows that the table of the lab is made for, and those of them that may be unproven: a quarter.
const CAPACITY: usize = 16384;

/// Both ends of a connection through the forward.
struct Pair {
    client: TcpStream,
    server: TcpStream,
}

impl Pair {
    /// Bytes there and back, all of them the same.
    fn exchange(&mut self, round: u8) {
        let data = [round; 4096];
        let mut buffer = [0; 4096];
        self.client.write_all(&data).expect("send");
        self.server.read_exact(&mut buffer).expect("a live connection broke");
        assert!(buffer == data);
        self.server.write_all(&data).expect("answer");
        self.client.read_exact(&mut buffer).expect("a live connection broke");
        assert!(buffer == data);
    }
}

/// Rounds of all connections until it is over; bytes each way in a second.
fn rounds(pairs: &mut [Pair], mut over: impl FnMut(u32) -> bool) -> u64 {
    let began = Instant::now();
    let mut count = 0;
    while !over(count) {
        for pair in &mut *pairs {
            pair.exchange(count.to_le_bytes()[0]);
        }
        count += 1;
    }
    let bytes = u64::from(count) * pairs.len() as u64 * 4096;
    bytes * 1000 / u64::try_from(began.elapsed().as_millis()).expect("not for ever").max(1)
}

/// Sends first packets of TCP and UDP to the forwarded ports, each from another address, until it is told to stop: as fast as
/// it goes, or `FLOOD_RATE` of them in a second.
fn flood(lab: &Lab, stop: &AtomicBool, sent: &AtomicU64) {
    let raw = Some(Protocol::from(255)); // IPPROTO_RAW: the header is in what is sent
    let socket = lab.outside.run(|| Socket::new(Domain::IPV4, Type::RAW, raw)).expect("a raw socket");
    let to: SocketAddr = (WAN, 0).into();
    // Weyl's sequence: every address and port comes once before one comes again
    let mut state = 0x1234_5678u32;
    let rate = std::env::var("FLOOD_RATE").map(|rate| rate.parse::<u64>().expect("a number"));
    let began = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        if let Ok(rate) = rate {
            let due = Duration::from_nanos(sent.load(Ordering::Relaxed) * 1_000_000_000 / rate);
            thread::sleep(due.saturating_sub(began.elapsed()));
        }
        state = state.wrapping_add(0x9e37_79b9);
        let [a, b, c, d] = state.to_be_bytes();
        let source = (Ipv4Addr::new(10, a, b, c), 1024 + (u16::from(d) << 7));
        let frame =
            if d & 1 == 0 { tcp(source, (WAN, 2222), SYN, b"") } else { udp(source, (WAN, 5353), b"q") };
        // a full queue is what a flood is
        let _ = socket.send_to(&frame.bytes()[14..], &to.into());
        sent.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn live_connections_outlive_a_flood_of_forged_first_packets_and_new_ones_are_made() {
    let lab = Lab::new();
    let _worker = lab.start();
    lab.forward("tcp", 2222, 22);
    lab.forward("udp", 5353, 53);
    let listener = lab.inside.listen((INSIDE, 22));
    let connect = || {
        let client = lab.outside.connect((WAN, 2222)).expect("connect through the forward");
        // what the flood leaves in the queue of connections is not ours
        let address = client.local_addr().expect("an address");
        loop {
            let (server, peer) = listener.accept().expect("accept");
            if peer == address {
                server.set_read_timeout(Some(Duration::from_secs(30))).expect("set a timeout");
                return Pair { client, server };
            }
        }
    };
    let mut pairs: Vec<Pair> = (0..CONNECTIONS).map(|_| connect()).collect();
    let calm = rounds(&mut pairs, |count| count == 20);

    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let flooded = thread::scope(|scope| {
        scope.spawn(|| flood(&lab, &stop, &sent));
        // twice as many as the table has room for, and some rounds in any case
        let over = |count| count >= 20 && sent.load(Ordering::Relaxed) > 2 * CAPACITY as u64;
        let flooded = rounds(&mut pairs, over);
        // while it goes on, somebody honest comes
        let mut honest = connect();
        honest.exchange(1);
        stop.store(true, Ordering::Relaxed);
        flooded
    });
    println!(
        "{calm} bytes/s each way without, {flooded} ({} %) with {} forged packets",
        flooded * 100 / calm,
        sent.into_inner()
    );

    let flows = lab.dump("flow4").len();
    assert!(flows > 2 * CONNECTIONS, "the flood made flows: {flows}");
    assert!(flows <= 2 * (CAPACITY / 4 + CONNECTIONS + 2), "and was bounded: {flows}");
    rounds(&mut pairs, |count| count == 1);
    eventually("the proven ones are listed", || {
        let listed = lab.get(&format!("/nat/flows?remote_ip={OUTSIDE}&limit=1000"));
        listed["flows"].as_array().is_some_and(|flows| flows.len() > CONNECTIONS)
    });
}
