//! Translation at the uplink: `packet -> parse -> lookup -> rewrite -> verdict`.
//!
//! The first packet of a flow asks the rules ([`open`]), and from the inside gets a port ([`binding`]); every later one finds its record, and the record says all:
//! what to write, whose counters to raise, how far the flow has come ([`life`]).
//!
//! Nearly every packet only wants its record read: [`established`] does that and nothing else, so that the program on
//! the hook stays small. What it cannot do, [`translate`] does whole, in a program of its own.

mod binding;
pub mod collect;
mod depart;
pub mod fast;
mod fragment;
mod icmp_check;
mod icmp_error;
pub mod life;
mod limit;
mod open;
mod pair;
mod refuse;
pub mod release;
pub mod round;
pub mod turn;
pub mod work;
pub mod xdp;

pub use self::{
    binding::VXLAN,
    depart::{Departure, depart, lan_in},
    fragment::fragment,
    icmp_error::icmp_error,
    refuse::refuse,
};

use network_types::eth::EthHdr;

use crate::{
    drop::DropReason,
    family::Address,
    maps::{Direction, local},
    packet::{ChecksumFix, Headers, Packet, Parsed, headers_at, note, parse},
    tables::{FlowRef, Tables},
    tcp::proto,
    words::{load16, store16},
};

use self::{
    fast::{Shape, Sight, Ways},
    work::{Way, Work},
};

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// On to the next program, then to the stack.
    Pass,
    Drop(DropReason),
    /// The same, and who sent it is to be told: [`refuse`].
    Refuse(DropReason),
    /// Out through the interface with this index, at once.
    Redirect(u32),
    /// The host's own, to an inside host: [`round::around`].
    Around,
    /// Out through the interface with this index, to whom the kernel finds there.
    Neighbour(u32),
    /// In at loopback.
    Home,
}

/// Translates a packet of a flow that is under way, and sends it on at once when its way is known. `None`, and the
/// packet as it was, when there is more to do.
#[inline(always)]
pub fn established<P, T, A>(packet: &mut P, tables: &T, direction: Direction) -> Option<Verdict>
where
    P: Packet,
    T: Tables<A> + Ways,
    A: Address,
{
    let (interface, packets, shape) = (packet.interface(), packet.segments(), Shape::of(packet));
    let headers = match parse::<P, A>(packet) {
        Parsed::Other => return Some(Verdict::Pass),
        Parsed::Flowless { .. } | Parsed::Fragment | Parsed::IcmpError { .. } => return None,
        Parsed::Flow(headers) => headers,
    };
    let key = headers.key(direction);
    let flow = tables.flow(&key)?;
    let now = tables.now();
    if !life::is_simple(tables, flow, (key.proto, headers.tcp_bits), interface, now) {
        return None;
    }
    tables.touch(flow, now, packets, shape.network_len);
    tables.count(flow.rule(), direction, packets, shape.network_len);
    if direction == Direction::In
        && let Some(hop) = fast::way(tables, flow, &headers, shape, interface, now)
    {
        let hop_adds = A::hop(headers.ip);
        let fix = rewrite(headers, flow).and(hop_adds);
        return Some(fast::send(packet, &hop, fix));
    }
    let class = A::class(headers.ip);
    let fix = rewrite(headers, flow);
    if fast::is_wanted(tables, flow, key.proto, now) {
        match direction {
            // It leaves elsewhere: there its way is written down.
            Direction::In => packet.set_note(note::LEARN),
            Direction::Out => fast::learn(packet, tables, &key, flow, class, Sight::Sure),
        }
    }
    Some(commit(packet, fix))
}

/// What comes after [`translate`]; [`Work`] is filled in for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Done(Verdict),
    /// It has no flow yet: [`first`].
    First,
    /// [`icmp_error`].
    IcmpError,
    /// [`fragment`].
    Fragment,
}

/// Translates whatever packet, unless it is more than the next one of a flow.
#[inline(always)]
pub fn translate<P, T, A>(packet: &mut P, tables: &T, direction: Direction) -> Next
where
    P: Packet,
    T: Tables<A> + Ways,
    A: Address,
{
    let Some(mut work) = tables.work() else {
        return Next::Done(Verdict::Drop(DropReason::Program));
    };
    // SAFETY: this CPU's own, and nobody else's while this packet is looked at.
    let work = unsafe { work.as_mut() };
    work.interface = packet.interface();
    work.from = work.interface;
    work.way = if direction == Direction::In { Way::ONWARD } else { Way::KERNEL };
    work.turned = 0;
    whole(packet, tables, work, direction)
}

/// The same, of the uplink that `work` names.
#[inline(always)]
fn whole<P, T, A>(packet: &mut P, tables: &T, work: &mut Work<A>, direction: Direction) -> Next
where
    P: Packet,
    T: Tables<A> + Ways,
    A: Address,
{
    let interface = work.interface();
    match parse::<P, A>(packet) {
        Parsed::Other => return Next::Done(Verdict::Pass),
        Parsed::Flowless { src, why } => {
            return Next::Done(flowless(packet, tables, work, direction, src, why));
        }
        Parsed::Fragment => return Next::Fragment,
        Parsed::IcmpError { src, offset } => {
            icmp_error::take_down(work, src, offset);
            return Next::IcmpError;
        }
        Parsed::Flow(headers) => take_down(work, &headers, direction),
    }
    let now = tables.now();
    let Some(flow) = life::find(tables, work, interface, now) else {
        return Next::First;
    };
    life::advance(tables, work, flow, now);
    look(packet, tables, work, flow, direction);
    // What meets an egress as a whole packet takes the kernel's way, whichever program it has come from.
    Next::Done(match direction {
        Direction::In => finish(packet, tables, work, flow, direction, now),
        Direction::Out => here(packet, tables, work, flow, direction, now),
    })
}

/// Decides about the first packet of a flow, of which [`translate`] has filled in what there is to know. `None`: it gets
/// a flow, and [`Work`] says which.
#[inline(always)]
pub fn first<T, A>(tables: &T, direction: Direction) -> Option<Verdict>
where
    T: Tables<A>,
    A: Address,
{
    let Some(mut work) = tables.work() else {
        return Some(Verdict::Drop(DropReason::Program));
    };
    // SAFETY: this CPU's own, and nobody else's while this packet is looked at.
    let work = unsafe { work.as_mut() };
    let now = tables.now();
    let interface = work.interface();
    let verdict = open::decide(tables, work, direction, interface, now).err()?;
    Some(on_the_spot(work, verdict))
}

/// Makes the flow that [`first`] has decided on, and translates its packet.
#[inline(always)]
pub fn make<P, T, A>(packet: &mut P, tables: &T, direction: Direction) -> Verdict
where
    P: Packet,
    T: Tables<A> + Ways,
    A: Address,
{
    let Some(mut work) = tables.work() else {
        return Verdict::Drop(DropReason::Program);
    };
    // SAFETY: as above.
    let work = unsafe { work.as_mut() };
    let now = tables.now();
    let interface = work.interface();
    match open::establish(tables, work, interface, now) {
        Ok(flow) => {
            if direction == Direction::Out && work.way() == Way::DEPARTS {
                limit::charge(tables, work, work.key.src, now);
            }
            pair::follow(tables, work, flow, direction, now);
            look(packet, tables, work, flow, direction);
            finish(packet, tables, work, flow, direction, now)
        }
        Err(verdict) => on_the_spot(work, verdict),
    }
}

/// Who would leave past the kernel and may not takes its way: there the uplink decides once more, and answers.
#[inline(always)]
fn on_the_spot<A: Address>(work: &Work<A>, verdict: Verdict) -> Verdict {
    if work.way() == Way::DEPARTS { Verdict::Pass } else { verdict }
}

/// Lets the way of a flow's first packet, in either direction, be written down now and then.
#[inline(always)]
fn look<P, T, A>(packet: &mut P, tables: &T, work: &Work<A>, flow: FlowRef<A>, direction: Direction)
where
    P: Packet,
    T: Tables<A> + Ways,
    A: Address,
{
    if !pair::is_worth_a_look(tables, work, flow) {
        return;
    }
    match direction {
        Direction::In => packet.set_note(note::LEARN),
        Direction::Out => fast::learn(packet, tables, &work.key, flow, work.class, Sight::Sure),
    }
}

/// Counts the packet and rewrites it, and sends it on at once when that is known to be right.
#[inline(always)]
fn finish<P, T, A>(
    packet: &mut P,
    tables: &T,
    work: &Work<A>,
    flow: FlowRef<A>,
    direction: Direction,
    now: u64,
) -> Verdict
where
    P: Packet,
    T: Tables<A> + Ways,
    A: Address,
{
    let way = work.way();
    if (way == Way::ONWARD || way == Way::DEPARTS)
        && let Some(verdict) = at_once(packet, tables, work, flow, direction, now)
    {
        return verdict;
    }
    if way == Way::DEPARTS {
        return Verdict::Pass;
    }
    onward(work, here(packet, tables, work, flow, direction, now))
}

/// Where a packet goes that was translated: the host's own would come back on the kernel's way.
#[inline(always)]
fn onward<A: Address>(work: &Work<A>, verdict: Verdict) -> Verdict {
    match verdict {
        Verdict::Pass if work.way() == Way::AROUND => Verdict::Around,
        verdict => verdict,
    }
}

/// The same where it goes on the kernel's way.
#[inline(always)]
fn here<P, T, A>(
    packet: &mut P,
    tables: &T,
    work: &Work<A>,
    flow: FlowRef<A>,
    direction: Direction,
    now: u64,
) -> Verdict
where
    P: Packet,
    T: Tables<A>,
    A: Address,
{
    let (packets, bytes) = (packet.segments(), packet.network_len());
    tables.touch(flow, now, packets, bytes);
    tables.count(flow.rule(), direction, packets, bytes);
    if direction == Direction::In && work.is_turned() {
        packet.set_note(note::turn(flow.rule()));
    }
    let Some(headers) = headers_at::<P, A>(packet, work.transport_offset(), work.key.proto) else {
        return Verdict::Drop(DropReason::Malformed);
    };
    let fix = rewrite(headers, flow);
    commit(packet, fix)
}

/// The same where it goes the way of its flow, if that may be used; else nothing has happened.
#[inline(always)]
fn at_once<P, T, A>(
    packet: &mut P,
    tables: &T,
    work: &Work<A>,
    flow: FlowRef<A>,
    direction: Direction,
    now: u64,
) -> Option<Verdict>
where
    P: Packet,
    T: Tables<A> + Ways,
    A: Address,
{
    if !tables.are_alike() {
        return None;
    }
    let (packets, shape) = (packet.segments(), Shape::of(packet));
    let headers = headers_at::<P, A>(packet, work.transport_offset(), work.key.proto)?;
    let hop = fast::way(tables, flow, &headers, shape, work.from, now)?;
    tables.touch(flow, now, packets, shape.network_len);
    tables.count(flow.rule(), direction, packets, shape.network_len);
    let hop_adds = A::hop(headers.ip);
    let fix = rewrite(headers, flow).and(hop_adds);
    Some(fast::send(packet, &hop, fix))
}

/// What the rest needs to know of the packet, put where all ways through its headers meet.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "an offset in a packet's headers")]
fn take_down<A: Address>(work: &mut Work<A>, headers: &Headers<'_, A>, direction: Direction) {
    work.key = headers.key(direction);
    work.sender = work.key.src;
    work.transport_offset = headers.transport_offset as u32;
    work.tcp_bits = u32::from(headers.tcp_bits);
    work.class = A::class(headers.ip);
}

/// From outside to nobody inside: the host's business. The kernel would send back what is for an address that no interface
/// has, and whoever routes that here would send it again.
#[inline(always)]
fn unclaimed<T, A>(tables: &T, dst: A) -> Verdict
where
    T: Tables<A>,
    A: Address,
{
    let absent = tables.local(dst).is_some_and(|known| known.flags & local::ABSENT != 0);
    if absent { Verdict::Drop(DropReason::Filtered) } else { Verdict::Pass }
}

/// Without a flow: the host's business, except that nothing may leave with an inside address, unless it goes where the
/// rule lets it.
#[inline(always)]
fn flowless<P, T, A>(
    packet: &mut P,
    tables: &T,
    work: &mut Work<A>,
    direction: Direction,
    src: A,
    why: DropReason,
) -> Verdict
where
    P: Packet,
    T: Tables<A>,
    A: Address,
{
    let interface = work.interface();
    let Some(header) = packet.at::<A::Header>(EthHdr::LEN) else {
        return Verdict::Drop(why);
    };
    // SAFETY: `at` checked the bounds; nothing else holds the packet.
    let dst = A::dst(unsafe { header.as_ref() });
    if direction == Direction::In {
        return unclaimed(tables, dst);
    }
    let Some(rule) = tables.masquerade(interface, src) else {
        return Verdict::Pass;
    };
    if tables.uplink(interface).is_some_and(|own| own.address.same(src)) {
        return Verdict::Pass;
    }
    if open::is_spared(tables, work, rule.rule, dst) { Verdict::Pass } else { Verdict::Drop(why) }
}

/// Writes the translated addresses and ports, and the IP checksum; says what the transport checksum needs.
#[inline(always)]
pub fn rewrite<A: Address>(headers: Headers<'_, A>, flow: FlowRef<A>) -> ChecksumFix {
    let Headers { ip, transport, transport_offset, protocol, tcp_bits: _, transport_len: _ } = headers;
    let (pseudo, body) = (flow.address_difference(), flow.port_difference());
    A::rewrite(ip, flow.to_src(), flow.to_dst(), pseudo);
    // IPv4's own checksum makes up for its addresses.
    let uncovered = if A::ICMP_HAS_PSEUDO_HEADER { pseudo } else { 0 };
    if protocol == A::ICMP {
        let (sport, dport) = (flow.to_sport().to_be_bytes(), flow.to_dport().to_be_bytes());
        transport.third = if A::asks(transport.first[0]) { sport } else { dport };
        let pseudo = if A::ICMP_HAS_PSEUDO_HEADER { pseudo } else { 0 };
        return ChecksumFix { offset: transport_offset + 2, pseudo, body, optional: false, uncovered };
    }
    store16(&mut transport.first, flow.to_sport().to_be());
    store16(&mut transport.second, flow.to_dport().to_be());
    match protocol {
        // Nothing makes up for the ports then, nor over IPv6 for the addresses (RFC 6935).
        proto::UDP if load16(&transport.fourth) == 0 => {
            ChecksumFix { offset: transport_offset + 6, pseudo: 0, body: 0, optional: true, uncovered }
                .and(u32::from(body))
        }
        proto::UDP => ChecksumFix { offset: transport_offset + 6, pseudo, body, optional: true, uncovered },
        _ => ChecksumFix { offset: transport_offset + 16, pseudo, body, optional: false, uncovered },
    }
}

#[inline(always)]
fn commit<P: Packet>(packet: &mut P, fix: ChecksumFix) -> Verdict {
    if packet.commit(fix) { Verdict::Pass } else { Verdict::Drop(DropReason::Rewrite) }
}
