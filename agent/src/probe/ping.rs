//! Echo after echo to one host, and what came back.

use std::{collections::BTreeMap, fmt::Write as _, net::IpAddr, time::Duration};

use serde::Serialize;
use tokio::time::{Instant, sleep_until};
use utoipa::ToSchema;

use super::{
    Target, milliseconds,
    packet::{ECHO, Heard, PAYLOAD},
    reason,
    socket::EchoSocket,
};

/// Between two echoes: the least that `ping` allows everybody.
const INTERVAL: Duration = Duration::from_millis(200);
/// How long after the last echo an answer may come.
const PATIENCE: Duration = Duration::from_secs(2);

/// What came of a ping.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct PingReport {
    /// As it was asked for.
    #[schema(example = "8.8.8.8")]
    pub target: String,
    /// Null when the name could not be resolved.
    pub address: Option<String>,
    pub packets_sent: u16,
    pub packets_received: u16,
    #[schema(example = 0.0)]
    pub packet_loss_percent: f64,
    /// Null when nothing came back.
    pub rtt: Option<RoundTrip>,
    /// For people, as `ping` would write it.
    pub output: String,
}

/// Round trip times in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct RoundTrip {
    pub min: f64,
    pub avg: f64,
    pub max: f64,
    /// Standard deviation.
    pub mdev: f64,
}

impl PingReport {
    pub fn reached(&self) -> bool {
        self.packets_received > 0
    }

    fn nothing(target: &Target, address: Option<IpAddr>, why: String) -> Self {
        Self {
            target: target.to_string(),
            address: address.map(|address| address.to_string()),
            packets_sent: 0,
            packets_received: 0,
            packet_loss_percent: 100.0,
            rtt: None,
            output: why,
        }
    }
}

/// The echoes of one ping.
#[derive(Debug, Default)]
struct Tally {
    /// When each was sent.
    sent: BTreeMap<u16, Instant>,
    /// Round trip of each that was answered.
    times: BTreeMap<u16, Duration>,
    /// Those of which a router or the kernel has said that no answer will come.
    lost: BTreeMap<u16, ()>,
    output: String,
}

/// Sends `count` echoes and waits for their answers.
pub async fn ping(target: &Target, count: u16) -> PingReport {
    let address = match target.resolve().await {
        Ok(address) => address,
        Err(why) => return PingReport::nothing(target, None, why),
    };
    let socket = match EchoSocket::open(address) {
        Ok(socket) => socket,
        Err(error) => {
            return PingReport::nothing(
                target,
                Some(address.ip()),
                format!("no ICMP socket: {}", reason(&error)),
            );
        }
    };
    let mut tally = Tally::default();
    tally.line(format_args!("PING {target} ({}) {PAYLOAD} bytes of data.", address.ip()));
    let mut next = Instant::now();
    for sequence in 1..=count {
        tally.listen(&socket, next, false).await;
        next += INTERVAL;
        tally.sent.insert(sequence, Instant::now());
        if let Err(error) = socket.send(sequence).await {
            tally.line(format_args!("icmp_seq={sequence}: {}", reason(&error)));
            tally.lost.insert(sequence, ());
        }
    }
    tally.listen(&socket, Instant::now() + PATIENCE, true).await;
    tally.report(target, address.ip())
}

impl Tally {
    /// Hears answers until `until`; with `all`, no longer than until every echo's fate is known.
    async fn listen(&mut self, socket: &EchoSocket, until: Instant, all: bool) {
        while !(all && self.times.len() + self.lost.len() >= self.sent.len()) {
            tokio::select! {
                heard = socket.hear() => match heard {
                    Ok((sequence, heard, from)) => self.hear(sequence, heard, from),
                    // Of an echo that could not leave; `send` says more about it.
                    Err(error) => return self.line(format_args!("receiving: {}", reason(&error))),
                },
                () = sleep_until(until) => return,
            }
        }
    }

    fn hear(&mut self, sequence: u16, heard: Heard, from: IpAddr) {
        let Some(sent) = self.sent.get(&sequence) else { return };
        if self.times.contains_key(&sequence) || self.lost.contains_key(&sequence) {
            return;
        }
        let time = sent.elapsed();
        match heard {
            Heard::Reply { ttl } => {
                self.times.insert(sequence, time);
                let ttl = ttl.map(|ttl| format!(" ttl={ttl}")).unwrap_or_default();
                let time = milliseconds(time);
                self.line(format_args!("{ECHO} bytes from {from}: icmp_seq={sequence}{ttl} time={time} ms"));
            }
            Heard::Exceeded => self.lose(sequence, from, "Time to live exceeded"),
            Heard::Unreachable(why) => self.lose(sequence, from, why),
        }
    }

    fn lose(&mut self, sequence: u16, from: IpAddr, why: &str) {
        self.lost.insert(sequence, ());
        self.line(format_args!("From {from} icmp_seq={sequence} {why}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing into a String does not fail.
        let _ = writeln!(self.output, "{line}");
    }

    fn report(mut self, target: &Target, address: IpAddr) -> PingReport {
        let (sent, received) = (count(self.sent.len()), count(self.times.len()));
        let loss = loss_percent(sent, received);
        let rtt = round_trip(self.times.values().copied());
        self.line(format_args!("\n--- {target} ping statistics ---"));
        self.line(format_args!("{sent} packets transmitted, {received} received, {loss}% packet loss"));
        if let Some(RoundTrip { min, avg, max, mdev }) = rtt {
            self.line(format_args!("rtt min/avg/max/mdev = {min:.3}/{avg:.3}/{max:.3}/{mdev:.3} ms"));
        }
        PingReport {
            target: target.to_string(),
            address: Some(address.to_string()),
            packets_sent: sent,
            packets_received: received,
            packet_loss_percent: loss,
            rtt,
            output: self.output,
        }
    }
}

fn count(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

/// To a tenth of a percent.
fn loss_percent(sent: u16, received: u16) -> f64 {
    if sent == 0 {
        return 100.0;
    }
    (f64::from(sent.saturating_sub(received)) * 1000.0 / f64::from(sent)).round() / 10.0
}

fn round_trip(times: impl Iterator<Item = Duration>) -> Option<RoundTrip> {
    let times: Vec<f64> = times.map(|time| time.as_secs_f64() * 1e3).collect();
    let number = f64::from(count(times.len()));
    let (min, max) = (times.iter().copied().reduce(f64::min)?, times.iter().copied().reduce(f64::max)?);
    let avg = times.iter().sum::<f64>() / number;
    let variance = times.iter().map(|time| (time - avg).powi(2)).sum::<f64>() / number;
    let [min, avg, max, mdev] = [min, avg, max, variance.sqrt()].map(|time| (time * 1e3).round() / 1e3);
    Some(RoundTrip { min, avg, max, mdev })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from() -> IpAddr {
        "192.0.2.1".parse().unwrap()
    }

    fn sent(count: u16) -> Tally {
        Tally { sent: (1..=count).map(|sequence| (sequence, Instant::now())).collect(), ..Tally::default() }
    }

    #[test]
    fn each_echo_counts_once_whatever_is_heard_of_it() {
        let mut tally = sent(4);
        for heard in [Heard::Reply { ttl: Some(64) }, Heard::Reply { ttl: Some(64) }, Heard::Exceeded] {
            tally.hear(1, heard, from());
        }
        tally.hear(2, Heard::Unreachable("Destination Host Unreachable"), from());
        tally.hear(2, Heard::Reply { ttl: None }, from());
        tally.hear(9, Heard::Reply { ttl: None }, from());
        let report = tally.report(&Target::new("gw").unwrap(), from());
        assert_eq!((report.packets_sent, report.packets_received), (4, 1));
        assert!((report.packet_loss_percent - 75.0).abs() < 1e-9);
        assert!(report.output.contains("icmp_seq=2 Destination Host Unreachable"), "{}", report.output);
    }

    #[test]
    fn nothing_back_has_no_round_trip_and_all_lost() {
        let report = sent(3).report(&Target::new("gw").unwrap(), from());
        assert!(!report.reached() && report.rtt.is_none());
        assert!((report.packet_loss_percent - 100.0).abs() < 1e-9);
        assert!((loss_percent(3, 2) - 33.3).abs() < 1e-9);
    }

    #[test]
    fn round_trips_are_least_mean_largest_and_deviation() {
        let trip = round_trip([1, 2, 3].map(Duration::from_millis).into_iter()).unwrap();
        assert_eq!(trip, RoundTrip { min: 1.0, avg: 2.0, max: 3.0, mdev: 0.816 });
    }
}
