//! The fast path before the kernel has made a socket buffer of the packet.
//!
//! A packet of a flow that is fast already is translated and sent on where it comes in, on the same conditions as at
//! the later hook, and so are the [first one](first()) of a flow between hosts that know each other and those that
//! [say something](notable()) about it. Everything else goes on untouched: not a byte is changed before it is sure that the packet leaves. Nothing is learned here.
//!
//! What a guest sends may lack its checksum, because its own card would fill it in. Nobody tells us here, and where it
//! leaves nobody would do it; so what looks like that goes on too (see [`crate::packet`]).

mod first;
mod notable;

pub use self::{
    first::{first, make},
    notable::notable,
};

use network_types::eth::EthHdr;

use super::{
    Verdict,
    fast::{Shape, Ways, is_for, send, way},
    life, rewrite,
    work::Work,
};
use crate::{
    family::Address,
    maps::{Direction, Hop},
    packet::{
        Checksum, Headers, Packet, Parsed, carries_frames, headers_at, lacks_checksum, parse, pseudo_header,
    },
    tables::{FlowRef, Tables},
    tcp::proto,
    words::load16,
};

/// What this hook needs beyond the fast path's maps.
pub trait Doors: Ways {
    /// Points a packet at an interface, for when it is redirected. False: it cannot leave there from this hook.
    fn points_at(&self, interface: u32) -> bool;
}

/// What becomes of a packet in a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Early {
    Done(Verdict),
    /// It may be the first one of a flow: [`first`], with [`Work`] filled in.
    First,
    /// It says something about its flow: [`notable`], the same.
    Notable,
}

/// Sends on a packet of a flow whose way is known. [`Verdict::Pass`], and the packet as it was, for others.
#[inline(always)]
pub fn early<P, T, A>(packet: &mut P, tables: &T, direction: Direction) -> Early
where
    P: Packet,
    T: Tables<A> + Doors,
    A: Address,
{
    shorten(packet, tables, direction).unwrap_or(Early::Done(Verdict::Pass))
}

#[inline(always)]
fn shorten<P, T, A>(packet: &mut P, tables: &T, direction: Direction) -> Option<Early>
where
    P: Packet,
    T: Tables<A> + Doors,
    A: Address,
{
    let port = tables.port(packet.interface())?;
    if tables.epoch() == 0 || !is_for(packet, port.mac) {
        return None;
    }
    let shape = Shape::of(packet);
    let headers = match parse::<P, A>(packet) {
        Parsed::Other | Parsed::Flowless { .. } | Parsed::Fragment | Parsed::IcmpError { .. } => return None,
        Parsed::Flow(headers) => headers,
    };
    let key = headers.key(direction);
    let Some(flow) = tables.flow(&key) else {
        first::prepare(tables, &headers, shape, port.owner, direction)?;
        let pseudo = pseudo_header::<A>(headers.ip, headers.protocol);
        return is_whole::<P, A>(packet, key.proto, pseudo)?.then_some(Early::First);
    };
    let now = tables.now();
    let Some(hop) = simply(tables, flow, &headers, shape, (port.owner, direction), now) else {
        notable::prepare(tables, flow, &headers, port.owner, direction)?;
        let pseudo = pseudo_header::<A>(headers.ip, headers.protocol);
        return is_whole::<P, A>(packet, key.proto, pseudo)?.then_some(Early::Notable);
    };
    let pseudo = pseudo_header::<A>(headers.ip, headers.protocol);
    // `way` refuses options, so that is where its checksum is.
    if carries_frames(key.proto, key.dport)
        || !is_whole::<P, A>(packet, key.proto, pseudo)?
        || !tables.points_at(hop.interface)
    {
        return None;
    }
    let place = EthHdr::LEN + size_of::<A::Header>();
    let headers = headers_at::<P, A>(packet, place, key.proto)?;
    tables.touch(flow, now, 1, shape.network_len);
    tables.count(flow.rule(), direction, 1, shape.network_len);
    let hop_adds = A::hop(headers.ip);
    let fix = rewrite(headers, flow).and(hop_adds);
    Some(Early::Done(send(packet, &hop, fix)))
}

/// Where the next packet of a flow goes, which says nothing about it.
#[inline(always)]
fn simply<T, A>(
    tables: &T,
    flow: FlowRef<A>,
    headers: &Headers<'_, A>,
    shape: Shape,
    (from, direction): (u32, Direction),
    now: u64,
) -> Option<Hop>
where
    T: Tables<A> + Doors,
    A: Address,
{
    let hop = way(tables, flow, headers, shape, from, now)?;
    let uplink = match direction {
        Direction::In => from,
        Direction::Out => hop.interface,
    };
    life::is_simple(tables, flow, (headers.protocol, headers.tcp_bits), uplink, now).then_some(hop)
}

/// Sends a packet without options on, of which [`Work`] says all.
#[inline(always)]
fn leave<P, T, A>(
    packet: &mut P,
    tables: &T,
    work: &Work<A>,
    flow: FlowRef<A>,
    hop: &Hop,
    now: u64,
) -> Option<Verdict>
where
    P: Packet,
    T: Tables<A> + Doors,
    A: Address,
{
    let bytes = packet.network_len();
    let direction = if work.key.direction == Direction::In as u8 { Direction::In } else { Direction::Out };
    let headers = headers_at::<P, A>(packet, EthHdr::LEN + size_of::<A::Header>(), work.key.proto)?;
    tables.touch(flow, now, 1, bytes);
    tables.count(flow.rule(), direction, 1, bytes);
    let hop_adds = A::hop(headers.ip);
    let fix = rewrite(headers, flow).and(hop_adds);
    Some(send(packet, hop, fix))
}

/// Whether a packet without options has its checksum.
#[inline(always)]
fn is_whole<P: Packet, A: Address>(packet: &mut P, protocol: u8, pseudo: u16) -> Option<bool> {
    let place = EthHdr::LEN + size_of::<A::Header>();
    let field = packet.at::<Checksum>(place + if protocol == proto::TCP { 16 } else { 6 })?;
    // SAFETY: `at` checked the bounds; nothing else holds the packet.
    Some(!lacks_checksum(load16(unsafe { &field.as_ref().0 }), pseudo))
}
