//! From a flow's second packet to its end: is it alive, has it been answered, how far has TCP come.

use super::{
    binding,
    open::forward_for,
    work::{Maker, Translation, Work},
};
use crate::{
    family::Address,
    maps::{Direction, EndpointKey, FlowKey, Rule, TICK_BITS, flag, ticks},
    tables::{Claim, FlowRef, Tables},
    tcp::{FlowState, Seen, after_segment, bits, proto, timeout},
};

/// Bits of a nanosecond count that make a beat: 2^32 ns, about 4.3 s.
const BEAT_BITS: u32 = 32;

/// A direction that a reset has come from when the connection was open.
const ABORTED_OPEN: u8 = flag::ABORTED | flag::PROVEN;

/// A beat in ticks.
const BEAT: u32 = 1 << (BEAT_BITS - TICK_BITS);

/// For how many beats a direction may be busy before it tells the other one, where that is waited for so many seconds: for a
/// sixty-fourth of them, but four at most and one at least. To tell costs as much as some packets do, and where there are many flows
/// each has few packets in a beat.
const fn patience(seconds: u32) -> u32 {
    match seconds / 64 {
        0 | 1 => 1,
        beats @ 2..4 => beats,
        4.. => 4,
    }
}

/// What a direction is waited for beyond the seconds that it may be idle, in ticks: the other one may have been busy.
pub(super) const fn grace(seconds: u32) -> u32 {
    patience(seconds) * BEAT
}

/// For how many ticks a direction is remembered that may be idle for so many seconds.
#[must_use]
pub const fn memory(seconds: u32) -> u32 {
    ticks(seconds) + grace(seconds)
}

/// Unproven flows that are passed over because they are busy before one is given up.
const SECOND_CHANCES: u32 = 3;

/// Places of the list that are looked at to make room in a full table.
const ATTEMPTS: u32 = 8;

/// How recently a flow must have been seen to be busy, in ticks: about four seconds.
const BUSY: i32 = 1 << 12;

/// How many packets make a flow busy that nobody answers.
const BUSY_PACKETS: u64 = 4;

/// The clock of `last_seen`.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "it wraps, see `idle`")]
pub(super) const fn tick(now: u64) -> u32 {
    (now >> TICK_BITS) as u32
}

/// The clock by which the two directions of a flow refresh each other.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "only compared for equality")]
pub(super) const fn beat(now: u64) -> u16 {
    (now >> BEAT_BITS) as u16
}

/// The clock of `created`.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "seconds since boot")]
pub(super) const fn second(now: u64) -> u32 {
    (now / 1_000_000_000) as u32
}

/// Ticks since the flow was seen; negative when another CPU has seen it after we looked at the clock.
#[inline(always)]
#[expect(clippy::cast_possible_wrap, reason = "a difference on a clock that wraps")]
pub(super) fn idle<A: Address>(flow: FlowRef<A>, now: u64) -> i32 {
    tick(now).wrapping_sub(flow.last_seen()) as i32
}

/// The live flow of a key. A dead one (its rule gone, its time over) is removed, and its other direction with it.
#[inline(always)]
pub(super) fn find<T, A>(tables: &T, work: &mut Work<A>, interface: u32, now: u64) -> Option<FlowRef<A>>
where
    T: Tables<A>,
    A: Address,
{
    let flow = tables.flow(&work.key)?;
    let clock = flow.clock();
    if is_alive(tables, flow, work.key.proto, interface, now)
        && !is_in_vain(tables, work, flow, interface, now)
    {
        return Some(flow);
    }
    bury(tables, &work.key, &mut work.peer, flow, clock);
    None
}

/// From the outside, never answered, and what let it in is no more. Else whoever sends often enough would keep a port open
/// that the inside has long left, or that is another one's by now (RFC 4787 REQ-6).
#[inline(always)]
pub(super) fn is_in_vain<T, A>(
    tables: &T,
    work: &mut Work<A>,
    flow: FlowRef<A>,
    interface: u32,
    now: u64,
) -> bool
where
    T: Tables<A>,
    A: Address,
{
    let unanswered = flow.flags() & (flag::OPENER | flag::ANSWERED) == flag::OPENER;
    if work.key.direction != Direction::In as u8 || !unanswered {
        return false;
    }
    let (dst, dport, proto) = (work.key.dst, work.key.dport, work.key.proto);
    work.external = EndpointKey { address: dst, port: dport, proto, unused: 0 };
    if let Some(binding) = tables.binding(&work.external)
        && binding.inside().same(flow.to_dst())
        && binding.port() == flow.to_dport()
        && binding::is_in_force(tables, binding, now)
    {
        return false;
    }
    !(forward_for(tables, work, interface, (dst, dport), proto) && work.target.rule == flow.rule())
}

/// Its rule is still the one that made it, it goes through the same uplink, and it is not idle for too long.
#[inline(always)]
pub(super) fn is_alive<T, A>(tables: &T, flow: FlowRef<A>, protocol: u8, interface: u32, now: u64) -> bool
where
    T: Tables<A>,
    A: Address,
{
    let Some(rule) = tables.rule(flow.rule()) else {
        return false;
    };
    lives(&rule, flow, allowed(&rule, flow, protocol), interface, now)
}

/// How many seconds a flow may be idle.
#[inline(always)]
fn allowed<A: Address>(rule: &Rule, flow: FlowRef<A>, protocol: u8) -> u32 {
    timeout(&rule.timeouts, protocol, FlowState::from_u8(flow.state()))
}

#[inline(always)]
fn lives<A: Address>(rule: &Rule, flow: FlowRef<A>, allowed: u32, interface: u32, now: u64) -> bool {
    rule.generation == flow.generation()
        && rule.uplink == interface
        && i64::from(idle(flow, now)) <= i64::from(memory(allowed))
}

/// Whether a packet is of a flow that is alive, and says nothing about it that has to be written down.
#[inline(always)]
pub(super) fn is_simple<T, A>(
    tables: &T,
    flow: FlowRef<A>,
    (protocol, tcp_bits): (u8, u8),
    interface: u32,
    now: u64,
) -> bool
where
    T: Tables<A>,
    A: Address,
{
    let Some(rule) = tables.rule(flow.rule()) else {
        return false;
    };
    let allowed = allowed(&rule, flow, protocol);
    lives(&rule, flow, allowed, interface, now) && !is_noteworthy(flow, tcp_bits, allowed, now)
}

/// Removes both directions, if nobody has used the flow since `clock` was read. `peer`: memory for the other one's key.
#[inline(always)]
pub(super) fn bury<T, A>(tables: &T, key: &FlowKey<A>, peer: &mut FlowKey<A>, flow: FlowRef<A>, clock: u64)
where
    T: Tables<A>,
    A: Address,
{
    *peer = flow.peer_of(key);
    let unanswered = flow.flags() & (flag::OPENER | flag::ANSWERED) == flag::OPENER;
    if !tables.own(flow, clock) {
        return;
    }
    tables.remove(key);
    // Of what goes out, the other direction is made by the first answer.
    if !(unanswered && key.direction == Direction::Out as u8) {
        take_back(tables, peer);
    }
}

/// Removes one direction, whatever it has seen.
#[inline(always)]
pub(super) fn take_back<T, A>(tables: &T, key: &FlowKey<A>)
where
    T: Tables<A>,
    A: Address,
{
    if let Some(flow) = tables.flow(key)
        && tables.own(flow, flow.clock())
    {
        tables.remove(key);
    }
}

/// Whether a packet says something about its flow that has to be written down. Nearly always not.
#[inline(always)]
fn is_noteworthy<A: Address>(flow: FlowRef<A>, tcp_bits: u8, allowed: u32, now: u64) -> bool {
    let flags = flow.flags();
    // The first answer, and the opener's first word after it.
    let progress = flags & flag::PROVEN == 0 && (flags & flag::OPENER == 0) == (flags & flag::ANSWERED == 0);
    let turn = tcp_bits & (bits::SYN | bits::FIN | bits::RST) != 0;
    // Was it forged? The next packet tells.
    let reset = flow.state() == FlowState::Reset as u8;
    let beats = beat(now).wrapping_sub(flow.synced());
    progress || turn || reset || u32::from(beats) >= patience(allowed)
}

/// Takes note of what a packet says about its flow.
#[inline(always)]
pub(super) fn advance<T, A>(tables: &T, work: &mut Work<A>, flow: FlowRef<A>, now: u64)
where
    T: Tables<A>,
    A: Address,
{
    let tcp_bits = work.tcp_bits();
    let Some(rule) = tables.rule(flow.rule()) else {
        return;
    };
    if !is_noteworthy(flow, tcp_bits, allowed(&rule, flow, work.key.proto), now) {
        return;
    }
    work.peer = flow.peer_of(&work.key);
    flow.set_synced(beat(now));
    let peer = peer_of(tables, work, flow, now);

    let flags = flow.flags();
    let from_opener = flags & flag::OPENER != 0;
    let answered = if from_opener { flags & flag::ANSWERED } else { flag::ANSWERED };
    let mut own_flags = flags | answered;
    // A direction that nobody has used yet is not there.
    let mut peer_flags = peer.map_or(0, FlowRef::flags) | answered;
    let before = FlowState::from_u8(flow.state());
    let state = match work.key.proto {
        proto::TCP => {
            let seen = Seen {
                from_opener,
                answered: answered != 0,
                peer_finished: peer_flags & flag::FINISHED != 0,
                aborted: flags & ABORTED_OPEN == ABORTED_OPEN,
            };
            after_segment(before, tcp_bits, seen)
        }
        _ if answered != 0 => FlowState::Established,
        _ => before,
    };
    if tcp_bits & bits::FIN != 0 {
        own_flags |= flag::FINISHED;
    }
    if tcp_bits & bits::RST != 0 {
        own_flags |= flag::ABORTED;
    } else if state != FlowState::Reset {
        own_flags &= !flag::ABORTED;
        peer_flags &= !flag::ABORTED;
    }
    if is_proof(&work.key, from_opener, answered != 0, state) {
        own_flags |= flag::PROVEN;
        peer_flags |= flag::PROVEN;
    }
    if state == FlowState::New && before != FlowState::New {
        // the ports are used again: who opened is open again, and nothing is finished
        own_flags = flag::OPENER;
        peer_flags = 0;
        flow.set_created(second(now));
        if let Some(peer) = peer {
            peer.set_created(second(now));
        }
        enlist(tables, work, now);
    }
    flow.set_state(state as u8);
    flow.set_flags(own_flags);
    if let Some(peer) = peer {
        peer.see(now);
        peer.set_state(state as u8);
        peer.set_flags(peer_flags);
    }
    // What nobody inside has answered keeps no port open (RFC 4787 REQ-6).
    if work.key.direction == Direction::Out as u8 || answered != 0 {
        binding::refresh(tables, work, flow, now);
    }
}

/// Could nobody have brought this about by forging a source? The opener has spoken again after an answer, or the
/// outside has answered what came from the inside. A TCP handshake has to be complete.
#[inline(always)]
fn is_proof<A>(key: &FlowKey<A>, from_opener: bool, answered: bool, state: FlowState) -> bool {
    if key.proto == proto::TCP {
        return matches!(state, FlowState::Established | FlowState::HalfClosed) && answered;
    }
    answered && (from_opener || key.direction == Direction::In as u8)
}

/// The other direction, whose key is `work.peer`. If it has been there and is lost, it is made anew.
#[inline(always)]
fn peer_of<T, A>(tables: &T, work: &mut Work<A>, own: FlowRef<A>, now: u64) -> Option<FlowRef<A>>
where
    T: Tables<A>,
    A: Address,
{
    if let Some(flow) = tables.flow(&work.peer) {
        return Some(flow);
    }
    if own.flags() & flag::ANSWERED == 0 {
        return None;
    }
    let key = &work.key;
    let back = Translation { src: key.dst, dst: key.src, sport: key.dport, dport: key.sport };
    let flags = (own.flags() & (flag::ANSWERED | flag::PROVEN)) | (flag::OPENER & !own.flags());
    let maker = Maker { rule: own.rule(), generation: own.generation() };
    back.record(&work.peer, &mut work.flow, maker, now, flags);
    work.flow.created = own.created();
    work.flow.state = own.state();
    match tables.claim(&work.peer, &work.flow) {
        Claim::Ok | Claim::Exists => {}
        Claim::Full => return None,
    }
    tables.flow(&work.peer)
}

/// Puts the packet's flow on the list of those that nobody has proven, whose oldest one goes for it.
///
/// So a flood of first packets pushes out only first packets, both directions at once, and the number of flows
/// without proof is bounded by the list. A busy one gets another chance: one-way streams are never answered.
#[inline(always)]
pub(super) fn enlist<T, A>(tables: &T, work: &mut Work<A>, now: u64)
where
    T: Tables<A>,
    A: Address,
{
    work.oldest = FlowKey { unused: birth(second(now)), ..work.key };
    let mut chances = SECOND_CHANCES;
    loop {
        if !tables.exchange(&mut work.oldest) || work.oldest.proto == 0 {
            return;
        }
        let Some(flow) = listed(tables, work) else {
            return;
        };
        let clock = flow.clock();
        let busy = flow.packets() >= BUSY_PACKETS && idle(flow, now) < BUSY;
        if !busy || chances == 0 {
            return bury(tables, &work.oldest, &mut work.oldest_peer, flow, clock);
        }
        work.oldest.unused = birth(flow.created());
        chances -= 1;
    }
}

/// Gives up the oldest unproven flow that is near, to make room in a full table.
#[inline(always)]
pub(super) fn make_room<T, A>(tables: &T, work: &mut Work<A>) -> bool
where
    T: Tables<A>,
    A: Address,
{
    let mut attempts = 0;
    while attempts < ATTEMPTS {
        attempts += 1;
        work.oldest = FlowKey { proto: 0, ..work.key };
        if !tables.exchange(&mut work.oldest) {
            return false;
        }
        if work.oldest.proto == 0 {
            tables.rewind();
            continue;
        }
        let Some(flow) = listed(tables, work) else {
            continue;
        };
        bury(tables, &work.oldest, &mut work.oldest_peer, flow, flow.clock());
        return true;
    }
    false
}

/// The unproven flow that a place of the list was taken for, `work.oldest`. The place outlives its flow: what has the key now
/// may be another one, younger, which has a place of its own.
#[inline(always)]
fn listed<T, A>(tables: &T, work: &mut Work<A>) -> Option<FlowRef<A>>
where
    T: Tables<A>,
    A: Address,
{
    let born = work.oldest.unused;
    work.oldest.unused = 0;
    let flow = tables.flow(&work.oldest)?;
    (flow.flags() & flag::PROVEN == 0 && birth(flow.created()) == born).then_some(flow)
}

/// What tells two flows of one key apart, in the list.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "only compared for equality")]
const fn birth(created: u32) -> u16 {
    created as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_waited_for_longer_tells_less_often_and_is_waited_for_as_much_longer() {
        for (seconds, beats) in [(0, 1), (30, 1), (127, 1), (128, 2), (255, 3), (256, 4), (300, 4), (7440, 4)]
        {
            assert_eq!(patience(seconds), beats, "{seconds}");
            assert_eq!(memory(seconds), ticks(seconds) + beats * 4096, "{seconds}");
        }
    }
}
