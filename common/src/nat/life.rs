//! From a flow's second packet to its end: is it alive, has it been answered, how far has TCP come.

use super::{Found, Translation};
use crate::{
    maps::{FlowKey, flag},
    tables::{Claim, FlowRef, Tables, Tier},
    tcp::{FlowState, Seen, after_segment, bits, proto, timeout},
};

/// Bits of a nanosecond count that make a tick: 2^32 ns, about 4.3 s.
const TICK_BITS: u32 = 32;

/// The coarse clock by which the two directions of a flow refresh each other.
#[inline(always)]
pub(super) const fn tick(now: u64) -> u32 {
    (now >> TICK_BITS) as u32
}

/// The live flow of a key. A dead one (its rule gone, its time over) is removed, and its other direction with it.
#[inline(always)]
pub(super) fn find<T: Tables>(tables: &T, key: &FlowKey, uplink: u32, now: u64) -> Option<Found> {
    let found = lookup(tables, key)?;
    if alive(tables, found.flow, key.proto, uplink, now) {
        return Some(found);
    }
    bury(tables, key, found);
    None
}

#[inline(always)]
fn lookup<T: Tables>(tables: &T, key: &FlowKey) -> Option<Found> {
    if let Some(flow) = tables.flow(Tier::Proven, key) {
        return Some(Found { flow, tier: Tier::Proven });
    }
    let flow = tables.flow(Tier::Unproven, key)?;
    Some(Found { flow, tier: Tier::Unproven })
}

/// Its rule is still the one that made it, it goes through the same uplink, and it is not idle for too long.
///
/// One tick of grace: a direction learns only once a tick that the other one was busy.
#[inline(always)]
pub(super) fn alive<T: Tables>(tables: &T, flow: FlowRef, protocol: u8, uplink: u32, now: u64) -> bool {
    let idle = now.saturating_sub(flow.last_seen());
    tables.generation(flow.rule()) == Some(flow.generation())
        && flow.uplink() == uplink
        && idle <= timeout(protocol, FlowState::from_u8(flow.state())) + (1 << TICK_BITS)
}

/// Removes both directions.
#[inline(always)]
pub(super) fn bury<T: Tables>(tables: &T, key: &FlowKey, found: Found) {
    let peer = found.flow.peer_of(key);
    tables.remove(found.tier, key);
    tables.remove(found.tier, &peer);
}

/// Takes note of what a packet says about its flow. Nearly always nothing.
#[inline(always)]
pub(super) fn advance<T: Tables>(tables: &T, key: &FlowKey, found: Found, tcp_bits: u8, now: u64) -> Found {
    let (state, flags) = (found.flow.state(), found.flow.flags());
    let from_opener = flags & flag::OPENER != 0;
    let answer = state == FlowState::New as u8 && (!from_opener || flags & flag::ANSWERED != 0);
    let turn = tcp_bits & (bits::SYN | bits::FIN | bits::RST) != 0;
    if !answer && !turn && found.flow.synced() == tick(now) {
        return found;
    }
    take_note(tables, key, found, tcp_bits, now)
}

#[inline(always)]
fn take_note<T: Tables>(tables: &T, key: &FlowKey, found: Found, tcp_bits: u8, now: u64) -> Found {
    let Found { flow, tier } = found;
    let peer_key = flow.peer_of(key);
    flow.set_synced(tick(now));
    let Some(peer) = peer_of(tables, key, found, &peer_key, now) else {
        return found;
    };
    peer.flow.set_last_seen(now);

    let flags = flow.flags();
    let from_opener = flags & flag::OPENER != 0;
    let answered = if from_opener { flags & flag::ANSWERED } else { flag::ANSWERED };
    let mut own_flags = flags | answered;
    let mut peer_flags = peer.flow.flags() | answered;
    let before = FlowState::from_u8(flow.state());
    let state = match key.proto {
        proto::TCP => {
            let seen = Seen {
                from_opener,
                answered: answered != 0,
                peer_finished: peer_flags & flag::FINISHED != 0,
            };
            after_segment(before, tcp_bits, seen)
        }
        _ if answered != 0 => FlowState::Established,
        _ => before,
    };
    if tcp_bits & bits::FIN != 0 {
        own_flags |= flag::FINISHED;
    }
    if state == FlowState::New && before != FlowState::New {
        // the ports are used again: who opened is open again, and nothing is finished
        own_flags = flag::OPENER;
        peer_flags = 0;
    }
    flow.set_state(state as u8);
    flow.set_flags(own_flags);
    peer.flow.set_state(state as u8);
    peer.flow.set_flags(peer_flags);

    if answered != 0 && tier == Tier::Unproven {
        return promote(tables, key, found, &peer_key, peer);
    }
    found
}

/// The other direction. If the table has lost it (it was the least recently used of a flood), it is made anew.
#[inline(always)]
fn peer_of<T: Tables>(tables: &T, key: &FlowKey, own: Found, peer_key: &FlowKey, now: u64) -> Option<Found> {
    if let Some(found) = lookup(tables, peer_key) {
        return Some(found);
    }
    let back = Translation { src: (key.dst, key.dport), dst: (key.src, key.sport) };
    let Found { flow: own, tier } = own;
    let flags = (own.flags() & flag::ANSWERED) | (flag::OPENER & !own.flags());
    let mut flow = back.record(peer_key, own.rule(), own.generation(), own.uplink(), now, flags);
    flow.created = own.created();
    flow.state = own.state();
    match tables.claim(tier, peer_key, &flow) {
        Claim::Ok | Claim::Exists => {}
        Claim::Full => return None,
    }
    lookup(tables, peer_key)
}

/// Moves both directions to the table from which nothing is pushed out. When that one is full, they stay.
#[inline(always)]
fn promote<T: Tables>(tables: &T, key: &FlowKey, found: Found, peer_key: &FlowKey, peer: Found) -> Found {
    // Room for the other direction first: ours is the one that is used from here on.
    if peer.tier == Tier::Unproven && tables.claim_copy(Tier::Proven, peer_key, peer.flow) == Claim::Full {
        return found;
    }
    if tables.claim_copy(Tier::Proven, key, found.flow) == Claim::Full {
        if peer.tier == Tier::Unproven {
            tables.remove(Tier::Proven, peer_key);
        }
        return found;
    }
    let Some(flow) = tables.flow(Tier::Proven, key) else {
        return found;
    };
    tables.remove(Tier::Unproven, key);
    tables.remove(Tier::Unproven, peer_key);
    Found { flow, tier: Tier::Proven }
}
