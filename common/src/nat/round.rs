//! Hairpin's fourth case: the host itself connects to a forward, by an address of its uplink.
//!
//! Such a packet goes out of loopback, to come in there again. Where it goes out it is translated as if it had come from
//! outside ([`leaves`] says whether; the programs for what turns back do it), and sent to the inside server past the kernel's
//! routes ([`around`]): those have been asked already, for the address that it had. The server sees the uplink's address, so its
//! answer comes to where inside hosts reach the host. There it becomes an answer of the address that was asked, and goes in at
//! loopback ([`home`]), where the kernel takes packets from its own addresses.
//!
//! It is one flow, of the forward: counted, limited and ended as if its client were outside. Connections and datagrams do that,
//! neither parts of packets nor ICMP errors.

use super::{
    Verdict, commit,
    fast::Ways,
    life, rewrite, take_down,
    turn::is_for_uplink,
    work::{Way, Work},
};
use crate::{
    drop::DropReason,
    family::Address,
    maps::{Direction, FlowKey},
    packet::{LinkHeader, Packet, Parsed, headers_at, note, parse},
    tables::Tables,
    tcp::proto,
};

const ETHERNET: usize = 14;

/// Whether a packet that goes out of loopback is between two addresses of one uplink; [`Work`](super::work::Work) then says
/// which.
#[inline(always)]
pub fn leaves<P, T, A>(packet: &mut P, tables: &T) -> bool
where
    P: Packet,
    T: Tables<A>,
    A: Address,
{
    if !is_for_uplink(packet, tables) {
        return false;
    }
    let Some(mut work) = tables.work() else {
        return false;
    };
    // SAFETY: this CPU's own, and nobody else's while this packet is looked at.
    let work = unsafe { work.as_mut() };
    let src = match parse::<P, A>(packet) {
        Parsed::Other | Parsed::Flowless { .. } | Parsed::Fragment | Parsed::IcmpError { .. } => {
            return false;
        }
        Parsed::Flow(headers) if headers.protocol == A::ICMP => return false,
        Parsed::Flow(headers) => A::src(headers.ip),
    };
    work.way = Way::AROUND;
    // Else the answer would not come back this way.
    tables.uplink_of(src) == work.interface()
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
    let Some(header) = packet.at::<A::Header>(ETHERNET) else {
        return Verdict::Drop(DropReason::Malformed);
    };
    // SAFETY: `at` checked the bounds; nothing else holds the packet.
    let (src, dst) = unsafe { (A::src(header.as_ref()), A::dst(header.as_ref())) };
    packet.set_note(note::NONE);
    match tables.route(src, dst) {
        // What answers outside does not come to where inside hosts are met.
        Some(interface) if interface != uplink => Verdict::Neighbour(interface),
        Some(_) | None => Verdict::Drop(DropReason::NoRoute),
    }
}

/// Whether a packet from the inside that [`is_for_uplink`] has found answers one of the host's own, and then what becomes of it.
#[inline(always)]
pub fn home<P, T, A>(packet: &mut P, tables: &T) -> Option<Verdict>
where
    P: Packet,
    T: Tables<A> + Ways,
    A: Address,
{
    let mut work = tables.work()?;
    // SAFETY: as above.
    let work = unsafe { work.as_mut() };
    let interface = work.interface();
    let (packets, bytes) = (packet.segments(), packet.network_len());
    let headers = match parse::<P, A>(packet) {
        Parsed::Other | Parsed::Flowless { .. } | Parsed::Fragment | Parsed::IcmpError { .. } => return None,
        Parsed::Flow(headers) => headers,
    };
    if headers.protocol != proto::TCP && headers.protocol != proto::UDP {
        return None;
    }
    take_down(work, &headers, Direction::Out);
    let (flow, now) = (tables.flow(&work.key)?, tables.now());
    if !life::is_alive(tables, flow, work.key.proto, interface, now) {
        return None;
    }
    life::advance(tables, work, flow, now);
    tables.touch(flow, now, packets, bytes);
    tables.count(flow.rule(), Direction::Out, packets, bytes);
    let headers = headers_at::<P, A>(packet, work.transport_offset(), work.key.proto)?;
    let fix = rewrite(headers, flow);
    // Loopback's own address, or it would be a frame for somebody else there.
    let Some(mut link) = packet.at::<LinkHeader>(0) else {
        return Some(Verdict::Drop(DropReason::Rewrite));
    };
    // SAFETY: as above.
    unsafe { link.as_mut() }.dst = [0; 6];
    Some(match commit(packet, fix) {
        Verdict::Pass => Verdict::Home,
        refused => refused,
    })
}
