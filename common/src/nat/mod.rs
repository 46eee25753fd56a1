//! Translation at the uplink: `packet -> parse -> lookup -> rewrite -> verdict`.
//!
//! The first packet of a flow asks the rules ([`open`]); every later one finds its record, and the record says all:
//! what to write, whose counters to raise, how far the flow has come ([`life`]).

mod life;
mod open;

use crate::{
    checksum,
    drop::DropReason,
    maps::{Direction, Flow, FlowKey},
    packet::{ChecksumFix, Headers, Packet, Parsed, icmp, parse},
    tables::{FlowRef, Tables, Tier},
    tcp::proto,
};

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// On to the next program, then to the stack.
    Pass,
    Drop(DropReason),
}

/// A flow in the tables, and in which.
#[derive(Debug, Clone, Copy)]
struct Found {
    flow: FlowRef,
    tier: Tier,
}

/// A packet that comes in through the uplink.
#[inline(always)]
pub fn wan_in<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    uplink(packet, tables, Direction::In)
}

/// A packet that is about to leave through the uplink.
#[inline(always)]
pub fn wan_out<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    uplink(packet, tables, Direction::Out)
}

#[inline(always)]
fn uplink<P: Packet, T: Tables>(packet: &mut P, tables: &T, direction: Direction) -> Verdict {
    let (interface, packets, bytes) = (packet.interface(), packet.segments(), packet.network_len());
    let headers = match parse(packet) {
        Parsed::Other => return Verdict::Pass,
        Parsed::Flowless { src, why } => return flowless(tables, interface, direction, src, why),
        Parsed::Flow(headers) => headers,
    };
    let (key, tcp_bits) = (headers.key(direction), headers.tcp_bits);
    let now = tables.now();
    let found = match life::find(tables, &key, interface, now) {
        Some(found) => life::advance(tables, &key, found, tcp_bits, now),
        None => match open::open(tables, &key, interface, tcp_bits, now) {
            Ok(found) => found,
            Err(verdict) => return verdict,
        },
    };
    tables.touch(found.flow, now, packets, bytes);
    tables.count(found.flow.rule(), direction, packets, bytes);
    let fix = rewrite(headers, found.flow);
    if !packet.commit(fix) {
        return Verdict::Drop(DropReason::Rewrite);
    }
    Verdict::Pass
}

/// IPv4 without a flow: the host's business, except that nothing may leave with an inside address.
#[inline(always)]
fn flowless<T: Tables>(
    tables: &T,
    interface: u32,
    direction: Direction,
    src: [u8; 4],
    why: DropReason,
) -> Verdict {
    match direction {
        Direction::In => Verdict::Pass,
        Direction::Out if tables.masquerade(interface, src).is_none() => Verdict::Pass,
        Direction::Out if tables.uplink_address(interface) == Some(src) => Verdict::Pass,
        Direction::Out => Verdict::Drop(why),
    }
}

/// Writes the translated addresses and ports, and the IP checksum; says what the transport checksum needs.
#[inline(always)]
fn rewrite(headers: Headers<'_>, flow: FlowRef) -> ChecksumFix {
    let Headers { ip, transport, transport_offset, tcp_bits: _ } = headers;
    let (pseudo, body) = (flow.address_difference(), flow.port_difference());
    ip.src_addr = flow.to_src();
    ip.dst_addr = flow.to_dst();
    ip.check = checksum::apply(ip.check, pseudo);
    let (sport, dport) = (flow.to_sport().to_be_bytes(), flow.to_dport().to_be_bytes());
    match ip.proto {
        proto::ICMP => {
            transport.third = if transport.first[0] == icmp::ECHO { sport } else { dport };
            ChecksumFix { offset: transport_offset + 2, pseudo: 0, body, optional: false }
        }
        proto::UDP => {
            transport.first = sport;
            transport.second = dport;
            ChecksumFix { offset: transport_offset + 6, pseudo, body, optional: true }
        }
        _ => {
            transport.first = sport;
            transport.second = dport;
            ChecksumFix { offset: transport_offset + 16, pseudo, body, optional: false }
        }
    }
}

/// A fresh record that turns `key` into the given addresses and ports.
#[derive(Debug, Clone, Copy)]
struct Translation {
    src: ([u8; 4], u16),
    dst: ([u8; 4], u16),
}

impl Translation {
    /// The key of the packets that answer those of `key`.
    #[inline(always)]
    fn answers(self, key: &FlowKey) -> FlowKey {
        let ((src, sport), (dst, dport)) = (self.dst, self.src);
        FlowKey { src, dst, sport, dport, proto: key.proto, direction: 1 - (key.direction & 1), unused: 0 }
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "seconds and ticks since boot")]
    fn record(self, key: &FlowKey, rule: u32, generation: u32, uplink: u32, now: u64, flags: u8) -> Flow {
        let ((to_src, to_sport), (to_dst, to_dport)) = (self.src, self.dst);
        Flow {
            to_src,
            to_dst,
            to_sport,
            to_dport,
            address_difference: checksum::fold(
                checksum::difference_address(key.src, to_src) + checksum::difference_address(key.dst, to_dst),
            ),
            port_difference: checksum::fold(
                checksum::difference_port(key.sport, to_sport)
                    + checksum::difference_port(key.dport, to_dport),
            ),
            rule,
            generation,
            uplink,
            created: (now / 1_000_000_000) as u32,
            synced: life::tick(now),
            state: 0,
            flags,
            unused: 0,
            packets: 0,
            bytes: 0,
            last_seen: now,
        }
    }
}
