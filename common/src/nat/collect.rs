//! Whose an entry is to remove.
//!
//! A table deletes by key, whatever is under that key by then. So between the look at a flow that is over and its removal
//! another CPU must not put a new flow there: who removes an entry owns it first, by an exchange of its clock ([`Tables::own`])
//! that fails when a packet has touched it since it was looked at, or when somebody else owns it. Only the owner removes it, once
//! and at once; until then nobody can insert the key, and a packet that meets it meanwhile is dropped, as the first of a flow to
//! come.
//!
//! The agent finds what may be over, by reading the tables in batches, and hands the keys to a program that decides and removes
//! in one go ([`collect`]).

use super::{life, work::Work};
use crate::{
    family::Address,
    maps::{FlowKey, flag, ticks},
    tables::{FlowRef, TAKEN, Tables},
    tcp::{FlowState, timeout},
};

/// For how long a flow's memory is kept that is over: what its other direction has seen lately it has learned by then. In ticks.
pub const MARGIN: u32 = ticks(10);

/// Keys of IPv4 that one run of the program takes. The frame of a test run has room for three times as many, but the verifier
/// walks through the loop turn by turn (2,500 instructions each), and every start waits for it.
pub const BATCH4: usize = 64;
/// The same of IPv6.
pub const BATCH6: usize = 32;

/// Where in the frame it says for how many ticks a binding has to have been over, in four bytes of the machine's order. Flows know
/// for themselves.
pub const HELD_DOWN: usize = 0;

/// Where the keys begin: behind what a frame must have.
pub const START: usize = 16;

/// Removes the flow of `work.key` if its time is over, or its rule gone. True: it was, and its first packet went this way.
#[inline(always)]
pub fn collect<T, A>(tables: &T, work: &Work<A>, now: u64) -> bool
where
    T: Tables<A>,
    A: Address,
{
    let key = &work.key;
    let Some(flow) = tables.flow(key) else {
        return false;
    };
    let clock = flow.clock();
    let opener = flow.flags() & flag::OPENER != 0;
    if !is_over(tables, flow, key, now) || !(tables.own(flow, clock) || is_forgotten(flow, now)) {
        return false;
    }
    tables.remove(key);
    opener
}

#[inline(always)]
fn is_over<T, A>(tables: &T, flow: FlowRef<A>, key: &FlowKey<A>, now: u64) -> bool
where
    T: Tables<A>,
    A: Address,
{
    let Some(rule) = tables.rule(flow.rule()) else {
        return true;
    };
    let limit = life::memory(timeout(&rule.timeouts, key.proto, FlowState::from_u8(flow.state())));
    rule.generation != flow.generation() || i64::from(life::idle(flow, now)) > i64::from(limit + MARGIN)
}

/// Somebody has owned it for seconds: he took it for another one, whose memory it had just got. An owner of this moment would not
/// do: he may have put a new flow there before this one is removed.
#[inline(always)]
fn is_forgotten<A: Address>(flow: FlowRef<A>, now: u64) -> bool {
    flow.is_owned() && i64::from(life::idle(flow, now)) > i64::from(TAKEN + MARGIN)
}
