//! The fast path: a packet of a flow whose way is known goes there at once, past bridge, routes and netfilter.
//!
//! The first packets of a flow take the kernel's way. Where they leave, [`learn`] writes down what the kernel has
//! decided: device, addresses of the link layer, MTU. From then on [`way`] finds it written, in the flow's own record
//! and in an entry of the table of hops, which all flows to one neighbour share.
//!
//! What was learned holds for an *epoch*: a number that the agent raises when anything changes that packets are
//! forwarded by, and sets to 0 while every packet has to pass the host's own packet filter. It also has a lease: every
//! so often a packet takes the kernel's way again, so that nothing stays wrong when nobody raises the epoch any more.
//!
//! What does not look like most packets takes the kernel's way always: IP options, a TTL that ends, a packet that
//! does not fit, ICMP; and TCP segments that open or close, unless nobody but the kernel's routes would see them
//! ([`Ways::are_alike`]).

use core::ptr::NonNull;

use super::{Verdict, commit, pair};
use crate::{
    drop::DropReason,
    family::Address,
    maps::{Direction, FlowKey, HOPS, Hop, Pair, Port, TICK_BITS, lease, ticks},
    packet::{ChecksumFix, Headers, LinkHeader, Packet, Parsed, note, parse},
    tables::{FlowRef, Host, Tables},
    tcp::{FlowState, proto},
    words,
};

/// Entries that are tried for a new hop before its flows stay on the kernel's way.
const PROBES: u32 = 4;

/// How long a way may be used before a packet has to take the kernel's again: 16 s.
const LEASE: u32 = ticks(16);

/// How long after its beginning nothing is learned under an epoch: 16 ms. A packet that leaves now has been routed a while
/// ago, on a processor that was taken away meanwhile perhaps; it must not tell of an old way under a new epoch.
const UNSETTLED: u32 = 16;

/// Values of a hop's stamp that are no epoch.
pub mod stamp {
    /// Never written.
    pub const FREE: u64 = 0;
    /// Somebody is writing it.
    pub const BUSY: u64 = u64::MAX;
}

/// What the fast path needs of its maps.
pub trait Ways: Host {
    /// The present epoch; 0: every packet takes the kernel's way.
    fn epoch(&self) -> u32;

    /// The present epoch if it [is settled](is_settled): that under which a packet which leaves may be learned from; else 0.
    fn settled_epoch(&self) -> u32;

    /// Whether nothing but hosts and traffic class decides where a packet goes, see [`pair`](super::pair).
    fn are_alike(&self) -> bool;

    fn hop(&self, slot: u32) -> Option<HopRef>;

    /// Sets the stamp of an entry to [`stamp::BUSY`] if it still is `stamp`: the entry is the caller's then.
    fn take(&self, hop: HopRef, stamp: u64) -> bool;

    /// An interface at which the fast path may begin and end.
    fn port(&self, interface: u32) -> Option<Port>;
}

/// An entry of the table of hops, which other CPUs read and write too.
#[derive(Debug, Clone, Copy)]
pub struct HopRef(NonNull<Hop>);

impl HopRef {
    /// # Safety
    /// `hop` must stay readable and writable while the reference is used.
    #[inline(always)]
    pub const unsafe fn new(hop: NonNull<Hop>) -> Self {
        Self(hop)
    }

    #[inline(always)]
    pub const fn as_ptr(self) -> *mut Hop {
        self.0.as_ptr()
    }

    #[inline(always)]
    fn stamp(self) -> u64 {
        // SAFETY: readable by the contract of `new`.
        unsafe { (&raw const (*self.0.as_ptr()).stamp).read_volatile() }
    }

    /// Where it leads, if it was written in this epoch.
    #[inline(always)]
    fn of_epoch(self, epoch: u32) -> Option<Hop> {
        if self.stamp() != u64::from(epoch) {
            return None;
        }
        let entry = self.0.as_ptr();
        // SAFETY: readable by the contract of `new`; every bit pattern is a Hop, which is aligned to eight bytes, its `link` to four
        // (asserted in `maps`).
        let hop = unsafe {
            Hop {
                stamp: u64::from(epoch),
                interface: (&raw const (*entry).interface).read_volatile(),
                from: (&raw const (*entry).from).read_volatile(),
                mtu: (&raw const (*entry).mtu).read_volatile(),
                link: LinkHeader::load(&raw const (*entry).link),
            }
        };
        // When the epoch has just ended, somebody may be writing it anew: what was read then is half of each.
        (self.stamp() == u64::from(epoch)).then_some(hop)
    }

    /// Fills an entry that is the caller's, and only then shows it to others.
    #[inline(always)]
    fn publish(self, hop: &Hop, epoch: u32) {
        let entry = self.0.as_ptr();
        // SAFETY: writable by the contract of `new`, and nobody else writes an entry that is BUSY.
        unsafe {
            (&raw mut (*entry).interface).write_volatile(hop.interface);
            (&raw mut (*entry).from).write_volatile(hop.from);
            (&raw mut (*entry).mtu).write_volatile(hop.mtu);
            (&raw mut (*entry).link).write_volatile(hop.link);
            (&raw mut (*entry).stamp).write_volatile(u64::from(epoch));
        }
    }
}

/// How long a packet is on the wire; taken before its headers are borrowed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) network_len: u32,
    /// Payload of each segment of a super-packet, 0 for others.
    segment: u32,
}

impl Shape {
    #[inline(always)]
    pub(super) fn of<P: Packet>(packet: &P) -> Self {
        Self { network_len: packet.network_len(), segment: packet.segment_payload() }
    }
}

/// Where a packet of this flow, which came in through `from`, may go at once.
#[inline(always)]
pub(super) fn way<T, A>(
    tables: &T,
    flow: FlowRef<A>,
    headers: &Headers<'_, A>,
    shape: Shape,
    from: u32,
    now: u64,
) -> Option<Hop>
where
    T: Ways,
    A: Address,
{
    let epoch = tables.epoch();
    if !is_fast(flow.stamp(), flow.lease(), epoch, now) {
        return None;
    }
    // Else the kernel's own tracking sees how a connection opens and closes.
    let tracked = headers.protocol == proto::TCP && flow.state() != FlowState::Established as u8;
    if tracked && !tables.are_alike() {
        return None;
    }
    leads(tables, flow.hop(), headers, shape, from)
}

/// Where an entry of the table of hops leads a packet, unless that is one which the kernel has to see.
#[inline(always)]
pub(super) fn leads<T, A>(
    tables: &T,
    slot: u32,
    headers: &Headers<'_, A>,
    shape: Shape,
    from: u32,
) -> Option<Hop>
where
    T: Ways,
    A: Address,
{
    if !is_plain(headers) {
        return None;
    }
    let hop = present(tables, slot)?;
    let len = if shape.segment == 0 { shape.network_len } else { headers.header_len() + shape.segment };
    takes(&hop, from, len).then_some(hop)
}

/// Whether nothing in its headers is for the kernel to see.
#[inline(always)]
pub(super) fn is_plain<A: Address>(headers: &Headers<'_, A>) -> bool {
    (headers.protocol == proto::TCP || headers.protocol == proto::UDP)
        && !headers.has_options()
        && A::hops_left(headers.ip) > 1
}

/// Whether a hop is for packets that came in through `from`, and for one as long as this.
#[inline(always)]
pub(super) fn takes(hop: &Hop, from: u32, len: u32) -> bool {
    hop.from == from && len <= hop.mtu
}

/// An entry of the table of hops, if it is of the present epoch.
#[inline(always)]
pub(super) fn present<T: Ways>(tables: &T, slot: u32) -> Option<Hop> {
    tables.hop(slot)?.of_epoch(tables.epoch())
}

/// Whether the kernel's way of this flow's packets is worth writing down.
#[inline(always)]
pub(super) fn is_wanted<T, A>(tables: &T, flow: FlowRef<A>, protocol: u8, now: u64) -> bool
where
    T: Ways,
    A: Address,
{
    let epoch = tables.epoch();
    epoch != 0
        && (protocol == proto::UDP || protocol == proto::TCP)
        && (flow.stamp() != epoch || !runs(flow.lease(), now))
}

/// Whether the way that a flow has learned under this stamp, until this lease, may be used.
#[inline(always)]
pub const fn is_fast(stamp: u32, lease: u32, epoch: u32, now: u64) -> bool {
    epoch != 0 && stamp == epoch && runs(lease, now)
}

/// Whether a time in ticks that is not 0 is still to come.
#[inline(always)]
#[expect(clippy::cast_possible_wrap, reason = "a difference on a clock that wraps")]
pub const fn is_ahead(until: u32, now: u64) -> bool {
    until != 0 && until.wrapping_sub(tick(now)) as i32 > 0
}

/// Whether packets that leave now have been routed in an epoch that began then, in ticks.
#[inline(always)]
pub const fn is_settled(begun: u32, now: u64) -> bool {
    tick(now).wrapping_sub(begun) >= UNSETTLED
}

#[inline(always)]
const fn runs(lease: u32, now: u64) -> bool {
    lease > lease::OWNED && lease.wrapping_sub(tick(now)) <= LEASE
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "ticks wrap")]
const fn tick(now: u64) -> u32 {
    (now >> TICK_BITS) as u32
}

/// Gives the frame the addresses of its new link. False: its first bytes cannot be reached.
#[inline(always)]
pub(super) fn address<P: Packet>(packet: &mut P, hop: &Hop) -> bool {
    let Some(mut link) = packet.at::<[u8; size_of::<LinkHeader>()]>(0) else { return false };
    // SAFETY: `at` checked the bounds; nothing else holds the packet.
    hop.link.write(unsafe { link.as_mut() });
    true
}

/// The last steps of a packet on the fast path: link addresses, checksum, and away.
#[inline(always)]
pub(super) fn send<P: Packet>(packet: &mut P, hop: &Hop, fix: ChecksumFix) -> Verdict {
    if !address(packet, hop) {
        return Verdict::Drop(DropReason::Rewrite);
    }
    // Whoever looks at it where it leaves must not translate it again.
    packet.set_note(note::DONE);
    match commit(packet, fix) {
        Verdict::Pass => Verdict::Redirect(hop.interface),
        refused => refused,
    }
}

/// Only frames for the router itself are its to forward; a bridge carries the others.
#[inline(always)]
pub(super) fn is_for<P: Packet>(packet: &mut P, mac: [u8; 6]) -> bool {
    packet.make_linear(size_of::<LinkHeader>());
    let Some(link) = packet.at::<LinkHeader>(0) else { return false };
    // SAFETY: `at` checked the bounds; nothing else holds the packet.
    words::same6(unsafe { &link.as_ref().dst }, mac)
}

/// To the inside, where it leaves through a port of the LAN: writes down the way of the flow that it belongs to.
#[inline(always)]
pub fn lan_out<P, T, A>(packet: &mut P, tables: &T)
where
    P: Packet,
    T: Tables<A> + Ways,
    A: Address,
{
    let headers = match parse::<P, A>(packet) {
        Parsed::Other | Parsed::Flowless { .. } | Parsed::Fragment | Parsed::IcmpError { .. } => return,
        Parsed::Flow(headers) => headers,
    };
    // Translated already: what would answer it tells the flow.
    let (answers, class) = (headers.key(Direction::In).reversed(), A::class(headers.ip));
    let Some(out) = tables.flow(&answers) else { return };
    let key = out.peer_of(&answers);
    if let Some(flow) = tables.flow(&key) {
        learn(packet, tables, &key, flow, class, Sight::Unsure);
    }
}

/// What it proves that a packet leaves through an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sight {
    /// That this is its way.
    Sure,
    /// Perhaps it leaves through every port of a bridge.
    Unsure,
}

/// Writes down where this packet of the flow leaves, as the kernel has decided it.
#[inline(always)]
pub(super) fn learn<P, T, A>(
    packet: &mut P,
    tables: &T,
    key: &FlowKey<A>,
    flow: FlowRef<A>,
    class: u32,
    sight: Sight,
) where
    P: Packet,
    T: Tables<A> + Ways,
    A: Address,
{
    let (interface, from, epoch) = (packet.interface(), packet.came_in_through(), tables.settled_epoch());
    // The host's own come from nowhere.
    if from == 0 || epoch == 0 {
        return;
    }
    let Some(Port { mtu, .. }) = tables.port(interface) else { return };
    let Some(link) = packet.at::<[u8; size_of::<LinkHeader>()]>(0) else { return };
    // SAFETY: `at` checked the bounds; nothing else holds the packet.
    let link = LinkHeader::read(unsafe { link.as_ref() });
    let wanted = Hop { stamp: 0, interface, from, mtu, link };
    let Some(slot) = slot_of(tables, &wanted, epoch) else { return };

    let hosts = pair::of(key, flow, from, class);
    let mut known = flow.stamp() == epoch && flow.hop() == slot;
    if !known && sight == Sight::Unsure && tables.are_alike() {
        // Another flow of its hosts may have been seen there.
        known = tables.pair(&hosts).is_some_and(|pair| pair.stamp == epoch && pair.hop == slot);
    }
    flow.set_hop(slot);
    if !known && sight == Sight::Unsure {
        flow.set_lease(lease::SEEN);
        flow.set_stamp(epoch);
        if tables.are_alike() {
            tables.set_pair(&hosts, &Pair { hop: slot, stamp: epoch, lease: lease::SEEN });
        }
        return;
    }
    let until = tick(tables.now()).wrapping_add(LEASE).max(lease::OWNED + 1);
    if tables.are_alike() {
        tables.set_pair(&hosts, &Pair { hop: slot, stamp: epoch, lease: until });
    }
    if key.proto != proto::TCP {
        flow.set_lease(until);
        flow.set_stamp(epoch);
        return;
    }
    // Both directions or neither: a connection of which the kernel sees one side is invalid to its own tracking.
    let peer = tables.flow(&flow.peer_of(key));
    let peer = peer.filter(|peer| peer.stamp() == epoch && peer.lease() != lease::SEEN);
    flow.set_lease(if peer.is_some() { until } else { lease::WAITING });
    flow.set_stamp(epoch);
    if let Some(peer) = peer
        && peer.lease() == lease::WAITING
    {
        peer.set_lease(until);
    }
}

/// The entry that holds this hop in this epoch: one that does already, or one of an earlier epoch, which nobody uses.
#[inline(always)]
fn slot_of<T: Ways>(tables: &T, wanted: &Hop, epoch: u32) -> Option<u32> {
    let mut slot = hash(wanted);
    let mut tried = 0;
    while tried < PROBES {
        tried += 1;
        slot = (slot + 1) & (HOPS - 1);
        if slot == 0 {
            continue;
        }
        let hop = tables.hop(slot)?;
        let stamp = hop.stamp();
        if stamp == u64::from(epoch) {
            if hop.of_epoch(epoch).is_some_and(|hop| leads_as(&hop, wanted)) {
                return Some(slot);
            }
        } else if stamp != stamp::BUSY && tables.take(hop, stamp) {
            hop.publish(wanted, epoch);
            return Some(slot);
        }
    }
    None
}

#[inline(always)]
fn leads_as(a: &Hop, b: &Hop) -> bool {
    (a.interface, a.from, a.mtu) == (b.interface, b.from, b.mtu) && a.link.same(b.link)
}

/// Where the search for a hop begins: neighbours differ in the last bytes of their address.
#[inline(always)]
fn hash(hop: &Hop) -> u32 {
    let mixed = hop.link.number() ^ hop.interface.wrapping_mul(0x85eb_ca6b) ^ hop.from;
    // Knuth's multiplicative hash: the upper bits are the mixed ones.
    mixed.wrapping_mul(0x9e37_79b1) >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_settled_when_what_was_routed_before_it_has_left() {
        let at = |tick: u32| u64::from(tick) << TICK_BITS;
        assert!(!is_settled(100, at(100)));
        assert!(!is_settled(100, at(99 + UNSETTLED)));
        assert!(is_settled(100, at(100 + UNSETTLED)));
        assert!(is_settled(u32::MAX, at(u32::MAX) + at(UNSETTLED)), "ticks wrap");
    }
}
