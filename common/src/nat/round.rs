//! Hairpin's fourth case: the host itself connects to a forward, by an address of its uplink.
//!
//! Such a packet goes out of loopback, to come in there again. Where it goes out it is translated as if it had come from
//! outside ([`leaves`] says whether; the programs for what turns back do it), and sent to the inside server past the kernel's
//! routes ([`around`]): those have been asked already, for the address that it had. The server sees the uplink's address, so its
//! answer comes to where inside hosts reach the host. There it becomes an answer of the address that was asked, and goes in at
//! loopback ([`home`]), where the kernel takes packets from its own addresses.
//!
//! It is one flow, of the forward: counted, limited and ended as if its client were outside. ICMP errors go the same way as what
//! they are about ([`error`]). Loopback takes 65,536 bytes at once: what is too long for the way inside goes in at loopback too,
//! and is forwarded by the kernel, which cuts it into parts or tells the socket how long it may be. Parts are told by their
//! first one, on the way out by the programs for other parts, on the way home by [`part`].

mod error;
mod part;

use super::{
    Verdict, commit,
    fast::Ways,
    icmp_error, life, rewrite, take_down,
    turn::is_for_uplink,
    work::{Way, Work},
};
use crate::{
    drop::DropReason,
    family::Address,
    maps::{Direction, FlowKey},
    packet::{LinkHeader, Packet, Parsed, headers_at, note, parse},
    tables::{FlowRef, Route, Tables},
};

pub use self::{
    error::{error_comes_home, error_leaves},
    part::part_comes_home,
};

const ETHERNET: usize = 14;

/// What becomes of a packet at the ends of the way, or who goes on with it; [`Work`](super::work::Work) is filled in for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Round {
    Done(Verdict),
    /// Out of loopback: it may be for a forward. From the inside: it may turn back. The programs for what turns back find out.
    Turn,
    /// [`error_leaves`], [`error_comes_home`].
    IcmpError,
    /// [`super::fragment`], [`part_comes_home`].
    Part,
}

/// What goes out of loopback between two addresses of one uplink.
#[inline(always)]
pub fn leaves<P, T, A>(packet: &mut P, tables: &T) -> Round
where
    P: Packet,
    T: Tables<A>,
    A: Address,
{
    const STAYS: Round = Round::Done(Verdict::Pass);
    if !is_for_uplink(packet, tables) {
        return STAYS;
    }
    let Some(mut work) = tables.work() else {
        return STAYS;
    };
    // SAFETY: this CPU's own, and nobody else's while this packet is looked at.
    let work = unsafe { work.as_mut() };
    let Some(header) = packet.at::<A::Header>(ETHERNET) else {
        return STAYS;
    };
    // SAFETY: `at` checked the bounds; nothing else holds the packet.
    let src = A::src(unsafe { header.as_ref() });
    // Else the answer would not come back this way.
    if tables.uplink_of(src) != work.interface() {
        return STAYS;
    }
    work.way = Way::AROUND;
    match parse::<P, A>(packet) {
        Parsed::Other | Parsed::Flowless { .. } => STAYS,
        Parsed::Fragment => Round::Part,
        Parsed::IcmpError { src, offset } => {
            icmp_error::take_down(work, src, offset);
            Round::IcmpError
        }
        Parsed::Flow(headers) if headers.protocol == A::ICMP => STAYS,
        Parsed::Flow(_) => Round::Turn,
    }
}

/// Whether the host itself talks to this packet's destination, an inside server, under `work.external`: what the server
/// answers there is the host's, and an inside host that turns back cannot have the port too.
#[inline(always)]
pub(super) fn has_socket<T, A>(tables: &T, work: &mut Work<A>) -> bool
where
    T: Tables<A>,
    A: Address,
{
    let (key, external) = (&work.key, &work.external);
    work.oldest = FlowKey {
        src: key.dst,
        dst: external.address,
        sport: key.dport,
        dport: external.port,
        proto: key.proto,
        direction: Direction::Out as u8,
        unused: 0,
    };
    tables.flow(&work.oldest).is_some()
}

/// Where a packet goes that has been translated on its way out of loopback.
#[inline(always)]
pub fn around<P, T, A>(packet: &mut P, tables: &T) -> Verdict
where
    P: Packet,
    T: Tables<A>,
    A: Address,
{
    let Some(work) = tables.work() else {
        return Verdict::Drop(DropReason::Program);
    };
    // SAFETY: as above.
    let uplink = unsafe { work.as_ref() }.interface();
    let len = longest::<P, A>(packet);
    let Some(mut header) = packet.at::<A::Header>(ETHERNET) else {
        return Verdict::Drop(DropReason::Malformed);
    };
    // SAFETY: `at` checked the bounds; nothing else holds the packet.
    let header = unsafe { header.as_mut() };
    let verdict = match tables.route(A::src(header), A::dst(header), len) {
        // What answers outside does not come to where inside hosts are met.
        Some(Route { interface, .. }) if interface == uplink => Verdict::Drop(DropReason::NoRoute),
        Some(Route { interface, fits: true }) => Verdict::Neighbour(interface),
        // Redirected, it would be dropped without a word. The kernel forwards it from there.
        Some(Route { fits: false, .. }) => {
            A::allow_parts(header);
            Verdict::Home
        }
        None => Verdict::Drop(DropReason::NoRoute),
    };
    packet.set_note(note::NONE);
    verdict
}

/// How many bytes the longest packet has that it will be on the wire.
#[inline(always)]
fn longest<P: Packet, A: Address>(packet: &mut P) -> u32 {
    let (len, segment) = (packet.network_len(), packet.segment_payload());
    if segment == 0 {
        return len;
    }
    match parse::<P, A>(packet) {
        Parsed::Flow(headers) => headers.header_len() + segment,
        Parsed::Other | Parsed::Flowless { .. } | Parsed::Fragment | Parsed::IcmpError { .. } => len,
    }
}

/// Whether a packet from the inside that [`is_for_uplink`] has found answers one of the host's own, and then what becomes of it.
#[inline(always)]
pub fn home<P, T, A>(packet: &mut P, tables: &T) -> Round
where
    P: Packet,
    T: Tables<A> + Ways,
    A: Address,
{
    let Some(mut work) = tables.work() else {
        return Round::Turn;
    };
    // SAFETY: as above.
    let work = unsafe { work.as_mut() };
    match parse::<P, A>(packet) {
        Parsed::Other | Parsed::Flowless { .. } => return Round::Turn,
        Parsed::Fragment => return Round::Part,
        Parsed::IcmpError { src, offset } => {
            icmp_error::take_down(work, src, offset);
            return Round::IcmpError;
        }
        Parsed::Flow(headers) if headers.protocol == A::ICMP => return Round::Turn,
        Parsed::Flow(headers) => take_down(work, &headers, Direction::Out),
    }
    let now = tables.now();
    match own(tables, work, now) {
        Some(flow) => Round::Done(bring_home(packet, tables, work, flow, now)),
        None => Round::Turn,
    }
}

/// The flow of the host's own that an answer with the key of `work` belongs to.
#[inline(always)]
fn own<T, A>(tables: &T, work: &Work<A>, now: u64) -> Option<FlowRef<A>>
where
    T: Tables<A>,
    A: Address,
{
    let flow = tables.flow(&work.key)?;
    life::is_alive(tables, flow, work.key.proto, work.interface(), now).then_some(flow)
}

/// Makes an answer out of what a server has sent that [`take_down`] has been told of.
#[inline(always)]
fn bring_home<P, T, A>(packet: &mut P, tables: &T, work: &mut Work<A>, flow: FlowRef<A>, now: u64) -> Verdict
where
    P: Packet,
    T: Tables<A>,
    A: Address,
{
    let (packets, bytes) = (packet.segments(), packet.network_len());
    life::advance(tables, work, flow, now);
    tables.touch(flow, now, packets, bytes);
    tables.count(flow.rule(), Direction::Out, packets, bytes);
    let Some(headers) = headers_at::<P, A>(packet, work.transport_offset(), work.key.proto) else {
        return Verdict::Drop(DropReason::Malformed);
    };
    let fix = rewrite(headers, flow);
    if !goes_home(packet) {
        return Verdict::Drop(DropReason::Rewrite);
    }
    match commit(packet, fix) {
        Verdict::Pass => Verdict::Home,
        refused => refused,
    }
}

/// Makes its frame one for loopback, which would be one for somebody else there.
#[inline(always)]
fn goes_home<P: Packet>(packet: &mut P) -> bool {
    let Some(mut link) = packet.at::<LinkHeader>(0) else {
        return false;
    };
    // SAFETY: as above.
    unsafe { link.as_mut() }.dst = [0; 6];
    true
}
