//! A flow's first packet: which rule is it for, and which port does it get.

use super::{Found, Translation, Verdict, life};
use crate::{
    drop::DropReason,
    maps::{Direction, FlowKey, Forward, ForwardKey, flag},
    tables::{Claim, Tables, Tier},
    tcp::{opens, proto},
};

/// Ports that are tried before a flow is refused. Each costs a lookup or two; with half of all ports taken towards
/// one remote socket, one flow in 2^16 is refused.
const PROBES: u32 = 16;

/// Who made the flow, and where it leads.
#[derive(Debug, Clone, Copy)]
struct Opening {
    rule: u32,
    generation: u32,
    uplink: u32,
    /// The address that stands for the source from here on.
    src: [u8; 4],
    dst: ([u8; 4], u16),
    /// The source port is one of the uplink address's own, which others may hold.
    own_port: bool,
}

/// Makes the flow of a first packet, or says what becomes of a packet that gets none.
#[inline(always)]
pub(super) fn open<T: Tables>(
    tables: &T,
    key: &FlowKey,
    uplink: u32,
    tcp_bits: u8,
    now: u64,
) -> Result<Found, Verdict> {
    let opening = if key.direction == Direction::Out as u8 {
        masquerade(tables, key, uplink, tcp_bits)?
    } else {
        forward(tables, key, uplink, tcp_bits)?
    };
    establish(tables, key, opening, now).map_err(Verdict::Drop)
}

/// From the inside out: the source becomes the uplink's address.
#[inline(always)]
fn masquerade<T: Tables>(tables: &T, key: &FlowKey, uplink: u32, tcp_bits: u8) -> Result<Opening, Verdict> {
    let Some(rule) = tables.masquerade(uplink, key.src) else {
        return Err(Verdict::Pass);
    };
    let Some(address) = tables.uplink_address(uplink) else {
        return Err(Verdict::Drop(DropReason::NoUplinkAddress));
    };
    if key.src == address {
        return Err(Verdict::Pass); // the host's own
    }
    match key.proto {
        proto::TCP if !opens(tcp_bits) => return Err(Verdict::Drop(DropReason::TcpNotSyn)),
        // an answer to a ping that did not come through here
        proto::ICMP if key.sport == 0 && key.dport != 0 => return Err(Verdict::Drop(DropReason::Protocol)),
        _ => {}
    }
    Ok(Opening {
        rule: rule.rule,
        generation: rule.generation,
        uplink,
        src: address,
        dst: (key.dst, key.dport),
        own_port: true,
    })
}

/// From the outside in: the destination becomes the inside host. Only for the host's own addresses, never transit.
#[inline(always)]
fn forward<T: Tables>(tables: &T, key: &FlowKey, uplink: u32, tcp_bits: u8) -> Result<Opening, Verdict> {
    match key.proto {
        // no flow of ours: the host answers it, with a reset if it must
        proto::TCP if !opens(tcp_bits) => return Err(Verdict::Pass),
        proto::TCP | proto::UDP => {}
        _ => return Err(Verdict::Pass),
    }
    let Some(rule) = forward_for(tables, uplink, key.dst, key.dport, key.proto) else {
        return Err(Verdict::Pass);
    };
    if !tables.is_local(key.dst) {
        return Err(Verdict::Pass);
    }
    Ok(Opening {
        rule: rule.rule,
        generation: rule.generation,
        uplink,
        src: key.src,
        dst: (rule.address, rule.port),
        own_port: false,
    })
}

/// The forward of an external address and port: of this very address, or of any.
#[inline(always)]
fn forward_for<T: Tables>(
    tables: &T,
    uplink: u32,
    address: [u8; 4],
    port: u16,
    protocol: u8,
) -> Option<Forward> {
    let mut key = ForwardKey { uplink, address: [0; 4], port, proto: protocol, unused: 0 };
    if let Some(rule) = tables.forward(&key) {
        return Some(rule);
    }
    key.address = address;
    tables.forward(&key)
}

/// Claims a source port for the answers, then makes both directions.
#[inline(always)]
fn establish<T: Tables>(tables: &T, key: &FlowKey, opening: Opening, now: u64) -> Result<Found, DropReason> {
    let Opening { rule, generation, uplink, src, dst, own_port } = opening;
    let range = PortRange::around(key.sport, key.proto);
    let start = tables.random();
    let mut attempt = 0;
    while attempt < PROBES {
        let port = if attempt == 0 { key.sport } else { range.pick(start, attempt) };
        attempt += 1;
        let there = Translation { src: (src, port), dst };
        let answer_key = there.answers(key);
        if own_port && port_is_taken(tables, uplink, &answer_key) {
            continue;
        }
        let back = Translation { src: (key.dst, key.dport), dst: (key.src, key.sport) };
        let answer = back.record(&answer_key, rule, generation, uplink, now, 0);
        let tier = match claim_answer(tables, &answer_key, &answer, now) {
            Ok(tier) => tier,
            Err(Claim::Full) => return Err(DropReason::FlowTableFull),
            Err(Claim::Ok | Claim::Exists) => continue,
        };
        // Built only now: both records at once would take a quarter of the stack.
        let record = there.record(key, rule, generation, uplink, now, flag::OPENER);
        match tables.claim(tier, key, &record) {
            Claim::Ok => tables.count_flow(rule),
            // Another CPU has just made the same flow; its port is the flow's port.
            Claim::Exists => {}
            Claim::Full => {
                tables.remove(tier, &answer_key);
                return Err(DropReason::FlowTableFull);
            }
        }
        let Some(flow) = tables.flow(tier, key) else {
            return Err(DropReason::FlowTableFull);
        };
        if flow.to_sport() != port {
            tables.remove(tier, &answer_key);
        }
        return Ok(Found { flow, tier });
    }
    Err(DropReason::PortsExhausted)
}

/// A port of the uplink's address that a forward or a socket of the host holds.
#[inline(always)]
fn port_is_taken<T: Tables>(tables: &T, uplink: u32, answer: &FlowKey) -> bool {
    if answer.proto == proto::ICMP {
        return false;
    }
    forward_for(tables, uplink, answer.dst, answer.dport, answer.proto).is_some()
        || tables.host_socket(answer.proto, (answer.src, answer.sport), (answer.dst, answer.dport))
}

/// Inserts the direction of the answers where nobody else has it, and says in which table it is then.
///
/// The claim is an insert that fails when the key exists, so two CPUs cannot win one port.
#[inline(always)]
fn claim_answer<T: Tables>(
    tables: &T,
    key: &FlowKey,
    record: &crate::maps::Flow,
    now: u64,
) -> Result<Tier, Claim> {
    match tables.claim(Tier::Unproven, key, record) {
        Claim::Full => return Err(Claim::Full),
        Claim::Ok => {
            // A flow moves to the other table by insert, then remove: looking there after our insert misses none.
            let Some(flow) = tables.flow(Tier::Proven, key) else {
                return Ok(Tier::Unproven);
            };
            tables.remove(Tier::Unproven, key);
            return settle(tables, key, record, Found { flow, tier: Tier::Proven }, now);
        }
        Claim::Exists => {}
    }
    let Some(flow) = tables.flow(Tier::Unproven, key) else {
        return Err(Claim::Exists); // gone or moved this instant: the next port will do
    };
    settle(tables, key, record, Found { flow, tier: Tier::Unproven }, now)
}

/// Somebody has the key: ourselves, somebody dead, or somebody else.
#[inline(always)]
fn settle<T: Tables>(
    tables: &T,
    key: &FlowKey,
    record: &crate::maps::Flow,
    holder: Found,
    now: u64,
) -> Result<Tier, Claim> {
    let flow = holder.flow;
    if !life::alive(tables, flow, key.proto, record.uplink, now) {
        life::bury(tables, key, holder);
        return match tables.claim(Tier::Unproven, key, record) {
            Claim::Ok => Ok(Tier::Unproven),
            Claim::Exists => Err(Claim::Exists),
            Claim::Full => Err(Claim::Full),
        };
    }
    // Our own answers: only the first direction had been pushed out of the table.
    let ours = flow.to_dst() == record.to_dst
        && flow.to_dport() == record.to_dport
        && flow.to_src() == record.to_src
        && flow.to_sport() == record.to_sport
        && flow.rule() == record.rule;
    if ours { Ok(holder.tier) } else { Err(Claim::Exists) }
}

/// The ports among which a source port is replaced (RFC 4787 REQ-3: well-known ports among themselves).
#[derive(Debug, Clone, Copy)]
struct PortRange {
    first: u16,
    /// A power of two, so that a choice is a mask.
    size: u16,
}

impl PortRange {
    #[inline(always)]
    fn around(port: u16, protocol: u8) -> Self {
        match protocol {
            proto::ICMP => Self { first: 0, size: 1 << 15 },
            _ if port < 1024 => Self { first: 512, size: 512 },
            _ => Self { first: 1 << 15, size: 1 << 15 },
        }
    }

    /// The `attempt`th choice: from a random start in odd strides, which never meet twice.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "masked to the size of the range")]
    fn pick(self, start: u32, attempt: u32) -> u16 {
        let stride = (start >> 16) | 1;
        let offset = start.wrapping_add(attempt.wrapping_mul(stride)) as u16;
        self.first + (offset & (self.size - 1))
    }
}
