//! What strangers may send, byte by byte: the entry points of the fuzzers. `fuzz/` runs them under libFuzzer, `tests/fuzz.rs`
//! over the kept inputs and random changes of them.
//!
//! An input is a story: records of a direction, a length and a frame. So the frames before one may have made its flow. Errors are
//! looked into only when their checksums are right, which no random change keeps: a record may ask for that.

use telecluster_common::maps::Direction;

use crate::{
    frame::{TCP, UDP, checksum, mend},
    host::{self, Front, Host, Hosts},
    vectors::{self, Machine as _, Outcome, Step, Vector},
};

const ETHERNET: usize = 14;
const OUT: u8 = 1;
const LATER: u8 = 2;
const MENDED: u8 = 4;

/// Frames of a story: which way, whether minutes pass before, and the bytes.
fn records(mut data: &[u8]) -> Vec<(Direction, bool, Vec<u8>)> {
    let mut records = Vec::new();
    while let [kind, high, low, rest @ ..] = data {
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        let (frame, next) = rest.split_at(len);
        let direction = if kind & OUT == 0 { Direction::In } else { Direction::Out };
        // No hook sees less than an Ethernet header.
        if len >= ETHERNET {
            let mut frame = frame.to_vec();
            if kind & MENDED != 0 {
                mend(&mut frame);
            }
            records.push((direction, kind & LATER != 0, frame));
        }
        data = next;
    }
    records
}

/// The story of a vector, as an input.
pub fn story(vector: &Vector) -> Vec<u8> {
    let mut data = Vec::new();
    for step in &vector.steps {
        let (Step::Becomes { direction, frame, .. } | Step::Dropped { direction, frame, .. }) = step else {
            continue;
        };
        data.push(MENDED | if *direction == Direction::Out { OUT } else { 0 });
        data.extend(u16::try_from(frame.len()).expect("a frame").to_be_bytes());
        data.extend(frame);
    }
    data
}

/// Reads every frame of a story as either family, whatever its EtherType says.
pub fn parse(data: &[u8]) {
    for (_, _, frame) in records(data) {
        for ethertype in [[8, 0], [0x86, 0xdd]] {
            let mut frame = frame.clone();
            frame[12..14].copy_from_slice(&ethertype);
            if let Some(offset) = host::transport_offset(&mut frame) {
                assert!(offset + 8 <= frame.len(), "a transport header that is not there");
            }
        }
    }
}

/// Runs a story through the engine, at the uplink's hooks and in drivers. What was right before is right after: lengths, and
/// checksums that cover all of it.
pub fn translate(data: &[u8]) {
    for front in [Front::Uplink, Front::Drivers(Hosts::Known)] {
        translate_behind(front, data);
    }
}

fn translate_behind(front: Front, data: &[u8]) {
    let mut host = Host::behind(front);
    let (ipv4, ipv6) = (vectors::IPV4, vectors::IPV6);
    let rules = [
        ipv4.masquerade(),
        ipv6.masquerade(),
        vectors::forward(TCP, 2222, (ipv4.inside, 22)),
        vectors::forward(UDP, 53, (ipv4.other_inside, 5353)),
        vectors::range(UDP, 5000..=5009, (ipv4.inside, 5000)),
        vectors::forward(TCP, 2222, (ipv6.inside, 22)),
        vectors::forward(UDP, 53, (ipv6.other_inside, 5353)),
    ];
    for (slot, rule) in (0..).zip(&rules) {
        host.put(slot, rule);
    }
    let mut seconds = 0;
    for (direction, later, frame) in records(data) {
        if later {
            seconds += 100;
            host.tables.clock.set(seconds * 1_000_000_000);
        }
        let (outcome, bytes) = host.run(direction, &frame);
        match outcome {
            Outcome::Passed => {
                assert_eq!(bytes.len(), frame.len(), "a frame became longer or shorter");
                let before = right(&frame);
                assert!(
                    before.is_none() || right(&bytes) == before,
                    "a checksum was broken: {frame:02x?} became {bytes:02x?}"
                );
            }
            Outcome::Dropped(_) => {}
            Outcome::Sent(interface) => unreachable!("nobody has learned a way to {interface}"),
        }
    }
}

/// What a whole packet has whose every checksum is right.
#[derive(Debug, PartialEq, Eq)]
enum Right {
    /// One of its transport header too.
    Whole,
    /// None of that: UDP may do without (RFC 768, over IPv6 RFC 6935).
    Without,
}

/// `None`: it is no whole packet, or a checksum is wrong.
fn right(frame: &[u8]) -> Option<Right> {
    let packet = frame.get(ETHERNET..)?;
    let (proto, addresses, segment) = match frame[12..14] {
        [8, 0] if packet.len() >= 20 && packet[0] == 0x45 => {
            let whole = usize::from(u16::from_be_bytes([packet[2], packet[3]])) == packet.len();
            let parts = u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0;
            if !whole || parts || checksum(&packet[..20]) != [0, 0] {
                return None;
            }
            (packet[9], &packet[12..20], &packet[20..])
        }
        [0x86, 0xdd] if packet.len() >= 40 && packet[0] >> 4 == 6 => {
            if usize::from(u16::from_be_bytes([packet[4], packet[5]])) != packet.len() - 40 {
                return None;
            }
            (packet[6], &packet[8..40], &packet[40..])
        }
        _ => return None,
    };
    let mut covered = Vec::new();
    match proto {
        UDP if segment.len() >= 8 && segment[6..8] == [0, 0] => return Some(Right::Without),
        TCP | UDP | 58 => {
            covered.extend(addresses);
            covered.extend([0, proto]);
            covered.extend(u16::try_from(segment.len()).expect("fits IP").to_be_bytes());
        }
        1 => {}
        _ => return None,
    }
    covered.extend(segment);
    (checksum(&covered) == [0, 0]).then_some(Right::Whole)
}
