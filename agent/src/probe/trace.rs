//! The routers on the way to a host: echoes whose hop limit runs out at each of them.

use std::{collections::BTreeMap, fmt::Write as _, io, net::IpAddr, time::Duration};

use serde::Serialize;
use tokio::time::{Instant, sleep_until};
use utoipa::ToSchema;

use super::{Target, milliseconds, packet::Heard, reason, socket::EchoSocket};

/// Echoes for each hop.
const PROBES: u8 = 3;
/// Hops asked at the same time: most answers are there before the next ones are asked.
const WINDOW: u8 = 6;
/// At most between two echoes, so that routers that limit their errors answer all of them.
const PACE: Duration = Duration::from_millis(5);
/// How long the hops of a window may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// What came of a traceroute.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct TraceReport {
    /// As it was asked for.
    pub target: String,
    /// Null when the name could not be resolved.
    pub address: Option<String>,
    /// The target itself has answered.
    pub reached: bool,
    pub hops: Vec<Hop>,
    /// For people, as `traceroute` would write it.
    pub output: String,
}

/// One router on the way, or the target itself.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Hop {
    pub hop: u8,
    /// Null when nobody answered there.
    pub address: Option<String>,
    /// Round trip times in milliseconds; null for an echo without an answer.
    pub rtt: Vec<Option<f64>>,
    /// Why the way ends here, if it does and this is not the target.
    pub problem: Option<String>,
}

/// The answer to one echo.
#[derive(Debug, Clone, Copy)]
struct Answer {
    heard: Heard,
    from: IpAddr,
    time: Duration,
}

/// Follows the way to a host for at most `most` hops.
pub async fn trace(target: &Target, most: u8) -> TraceReport {
    let nothing = |address: Option<IpAddr>, output: String| TraceReport {
        target: target.to_string(),
        address: address.map(|address| address.to_string()),
        reached: false,
        hops: Vec::new(),
        output,
    };
    let address = match target.resolve().await {
        Ok(address) => address,
        Err(why) => return nothing(None, why),
    };
    let mut probes = match EchoSocket::open(address) {
        Ok(socket) => Probes { socket, sent: BTreeMap::new(), answers: BTreeMap::new() },
        Err(error) => return nothing(Some(address.ip()), format!("no ICMP socket: {}", reason(&error))),
    };
    let mut asked = 0;
    while asked < most && end(&probes.answers).is_none() {
        let window = asked + 1..=asked.saturating_add(WINDOW).min(most);
        asked = *window.end();
        if let Err(error) = probes.ask(window).await {
            return nothing(Some(address.ip()), reason(&error));
        }
    }
    report(target, address.ip(), (asked, most), &probes.answers)
}

/// The echoes of one traceroute. An answer that comes while later hops are asked still counts.
struct Probes {
    socket: EchoSocket,
    /// When each was sent that has not been answered yet.
    sent: BTreeMap<u16, Instant>,
    answers: BTreeMap<u16, Answer>,
}

impl Probes {
    /// Asks the hops of a window and gathers what is said, about earlier ones too.
    async fn ask(&mut self, window: std::ops::RangeInclusive<u8>) -> io::Result<()> {
        for hop in window {
            self.socket.set_hops(hop)?;
            for probe in 0..PROBES {
                let sequence = sequence(hop, probe);
                self.sent.insert(sequence, Instant::now());
                self.socket.send(sequence).await?;
                self.listen(Instant::now() + PACE).await?;
            }
        }
        self.listen(Instant::now() + PATIENCE).await
    }

    /// Hears answers until `until`, no longer than until all are there.
    async fn listen(&mut self, until: Instant) -> io::Result<()> {
        while !self.sent.is_empty() {
            let (sequence, heard, from) = tokio::select! {
                heard = self.socket.hear() => heard?,
                () = sleep_until(until) => break,
            };
            if let Some(sent) = self.sent.remove(&sequence) {
                self.answers.insert(sequence, Answer { heard, from, time: sent.elapsed() });
            }
        }
        Ok(())
    }
}

fn sequence(hop: u8, probe: u8) -> u16 {
    u16::from(hop) * u16::from(PROBES) + u16::from(probe)
}

fn hop_of(sequence: u16) -> u8 {
    u8::try_from(sequence / u16::from(PROBES)).unwrap_or(u8::MAX)
}

/// The first hop that is the target or says that the way ends.
fn end(answers: &BTreeMap<u16, Answer>) -> Option<u8> {
    let ends = |answer: &Answer| match answer.heard {
        Heard::Reply { .. } | Heard::Unreachable(_) => true,
        Heard::Exceeded => false,
    };
    answers.iter().find(|(_, answer)| ends(answer)).map(|(sequence, _)| hop_of(*sequence))
}

/// What came of the hops up to `asked`, of `most` that might have been.
fn report(
    target: &Target,
    address: IpAddr,
    (asked, most): (u8, u8),
    answers: &BTreeMap<u16, Answer>,
) -> TraceReport {
    let last = end(answers).unwrap_or(asked);
    let hops: Vec<Hop> = (1..=last).map(|number| hop(number, answers)).collect();
    let reached = answers.values().any(|answer| matches!(answer.heard, Heard::Reply { .. }));
    let mut output = format!("traceroute to {target} ({address}), {most} hops max\n");
    for hop in &hops {
        let times: Vec<_> =
            hop.rtt.iter().map(|time| time.map_or_else(|| "*".to_owned(), |ms| format!("{ms} ms"))).collect();
        let address = hop.address.as_deref().map(|address| format!("{address}  ")).unwrap_or_default();
        let problem = hop.problem.as_deref().map(|why| format!("  {why}")).unwrap_or_default();
        // Writing into a String does not fail.
        let _ = writeln!(output, "{:2}  {address}{}{problem}", hop.hop, times.join("  "));
    }
    TraceReport { target: target.to_string(), address: Some(address.to_string()), reached, hops, output }
}

fn hop(number: u8, answers: &BTreeMap<u16, Answer>) -> Hop {
    let answers: Vec<_> = (0..PROBES).map(|probe| answers.get(&sequence(number, probe))).collect();
    let first = answers.iter().copied().flatten().next();
    let problem = answers.iter().copied().flatten().find_map(|answer| match answer.heard {
        Heard::Unreachable(why) => Some(why.to_owned()),
        Heard::Reply { .. } | Heard::Exceeded => None,
    });
    Hop {
        hop: number,
        address: first.map(|answer| answer.from.to_string()),
        rtt: answers.iter().map(|answer| answer.map(|answer| milliseconds(answer.time))).collect(),
        problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(from: &str, heard: Heard) -> Answer {
        Answer { heard, from: from.parse().unwrap(), time: Duration::from_millis(1) }
    }

    #[test]
    fn the_way_ends_at_the_target_and_silent_hops_are_shown() {
        let answers = BTreeMap::from([
            (sequence(1, 0), answer("10.0.0.1", Heard::Exceeded)),
            (sequence(3, 1), answer("10.0.2.9", Heard::Reply { ttl: None })),
            (sequence(4, 0), answer("10.0.2.9", Heard::Reply { ttl: None })),
        ]);
        let report = report(&Target::new("h").unwrap(), "10.0.2.9".parse().unwrap(), (6, 30), &answers);
        assert!(report.reached);
        let addresses: Vec<_> = report.hops.iter().map(|hop| hop.address.as_deref()).collect();
        assert_eq!(addresses, [Some("10.0.0.1"), None, Some("10.0.2.9")]);
        assert_eq!(report.hops[2].rtt, [None, Some(1.0), None]);
        assert!(report.output.starts_with("traceroute to h (10.0.2.9), 30 hops max\n"), "{}", report.output);
        assert!(report.output.contains(" 2  *  *  *"), "{}", report.output);
    }

    #[test]
    fn a_router_that_refuses_ends_the_way_unreached() {
        let answers = BTreeMap::from([(
            sequence(1, 2),
            answer("10.0.0.1", Heard::Unreachable("Destination Host Unreachable")),
        )]);
        let report = report(&Target::new("h").unwrap(), "10.0.2.9".parse().unwrap(), (6, 30), &answers);
        assert!(!report.reached);
        assert_eq!(report.hops.len(), 1);
        assert_eq!(report.hops[0].problem.as_deref(), Some("Destination Host Unreachable"));
    }

    #[test]
    fn every_probe_has_a_sequence_number_of_its_own() {
        for hop in 1..=u8::MAX {
            for probe in 0..PROBES {
                assert_eq!(hop_of(sequence(hop, probe)), hop);
            }
        }
    }
}
