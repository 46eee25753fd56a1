//! The VLAN filter before the kernel has made a socket buffer of the frame.
//!
//! A frame between two stations that are both known goes on here from port to port, on what the later hooks would do with it: one
//! decision says which port it leaves through, with which tag, and where it is counted. Everything else goes on untouched
//! and uncounted, and the later hooks do it: what is for many or for nobody known, for the host or for a port without a door, what has to be
//! dropped, and what says something about where stations are.
//!
//! What a guest sends may lack its checksum, because its own card would fill it in. Nobody tells us here, and where the
//! frame leaves nobody would do it; so only what shows that it has one goes on from here.

use super::{
    Verdict, classify,
    decision::{self, Kept, Likeness, Way},
    dress,
    frame::{self, Frame, Headers, Note},
    learn, longest,
    maps::port,
    may_leave, member,
    tables::Switch,
    target,
};
use crate::{
    family::Address,
    packet::{carries_frames, lacks_checksum, pseudo_header},
    tcp::proto,
    words::load16,
};

/// What this hook needs beyond the maps of the later ones.
pub trait Doors: Switch {
    /// Points a frame at a port, for when it is redirected. False: it cannot leave there from this hook.
    fn points_at(&self, port: u32) -> bool;
}

/// Switches a frame that comes from a port into the bridge. True: it is dressed for where it has been pointed at. False:
/// nothing has happened to it.
#[inline(always)]
pub fn early<F: Frame, S: Doors>(frame: &mut F, switch: &S) -> bool {
    switched(frame, switch).is_some()
}

#[inline(always)]
fn switched<F: Frame, S: Doors>(frame: &mut F, switch: &S) -> Option<()> {
    // Before anything else is read that is decided by.
    let changes = switch.changes();
    let index = frame.port();
    let headers = frame::read(frame)?;
    let likeness = Likeness::new(index, &headers)?;
    let kept = match decision::kept(switch, &likeness, changes) {
        Some(Kept { verdict: Verdict::Forward { host: true, .. }, .. }) => return None,
        Some(kept) if kept.way.is_some() => kept,
        // The later hook decides about the way in alone.
        Some(_) | None => {
            let kept = decide(switch, index, &headers)?;
            decision::keep(switch, &likeness, changes, &kept);
            kept
        }
    };
    let Kept { note, stat, way: Some(way), verdict: Verdict::Forward { port, host: false } } = kept else {
        return None;
    };
    let bytes = frame.bytes() - if headers.tag.is_some() { TAG } else { 0 };
    if bytes > way.longest || !is_whole(frame, &headers)? || !switch.points_at(port) {
        return None;
    }
    let vlan = note.vlan()?;
    // All or nothing: one tag makes way for another, or none for none.
    dress(frame, way.protocol, true, vlan, note.tagged()).ok()?;
    switch.count_rx(stat, 1, bytes);
    switch.count_tx(way.stat, 1, bytes);
    Some(())
}

const TAG: u32 = 4;

/// What becomes of frames like this one, if they go from port to port and will for as long as a decision can hold. Nothing but the
/// time of their sender is written.
#[inline(always)]
fn decide<S: Switch>(switch: &S, index: u32, headers: &Headers) -> Option<Kept> {
    let config = switch.port(index)?;
    let (vlan, tagged) = classify(&config, headers).ok()?;
    // In none; or what looks like a tag is payload, which is looked at where it leaves.
    if vlan == 0 || tagged != headers.tag.is_some() {
        return None;
    }
    let stat = member(switch, index, &config, vlan)?.stat;
    let now = switch.now();
    if config.flags & port::FORWARDING == 0
        || config.flags & port::LEARNING != 0
            && !learn::is_here(switch, index, &config, vlan, headers.src, now)
    {
        return None;
    }
    let target = target(switch, &config, vlan, headers.dst, now).filter(|target| target.lasts)?;
    if target.port == config.bridge || target.port == index && config.flags & port::HAIRPIN == 0 {
        return None;
    }
    let note = Note::new(vlan, tagged, config.flags & port::ISOLATED != 0);
    let leaves = switch.port(target.port)?;
    let member = may_leave(switch, target.port, &leaves, vlan, note).ok()?;
    let protocol = if member.untagged != 0 { 0 } else { leaves.protocol };
    let way = Way { longest: longest(&leaves), stat: member.stat, protocol };
    Some(Kept { note, stat, way: Some(way), verdict: Verdict::Forward { port: target.port, host: false } })
}

/// Whether nothing in a frame is left for a card to fill in. Only what is sure of it is: IP without options whose next
/// header is TCP, UDP or ICMP.
#[inline(always)]
fn is_whole<F: Frame>(frame: &mut F, headers: &Headers) -> Option<bool> {
    match headers.kind {
        <[u8; 4]>::ETHERTYPE => has_checksum::<F, [u8; 4]>(frame, headers.payload),
        <[u8; 16]>::ETHERTYPE => has_checksum::<F, [u8; 16]>(frame, headers.payload),
        _ => None,
    }
}

#[inline(always)]
fn has_checksum<F: Frame, A: Address>(frame: &mut F, at: usize) -> Option<bool> {
    let header = frame.at::<A::Header>(at)?;
    // SAFETY: `at` checked the bounds, `Wire` the layout; nothing else holds the frame.
    let header = unsafe { header.as_ref() };
    let (protocol, length) = A::embedded(header);
    let pseudo = pseudo_header::<A>(header, protocol);
    if length != size_of::<A::Header>() {
        return None;
    }
    let transport = at + size_of::<A::Header>();
    if protocol == A::ICMP {
        return Some(true);
    }
    let field = match protocol {
        proto::TCP => 16,
        proto::UDP => 6,
        _ => return None,
    };
    let mut two = |offset| {
        let bytes = frame.at::<[u8; 2]>(offset)?;
        // SAFETY: as above.
        Some(load16(unsafe { bytes.as_ref() }))
    };
    let door = u16::from_be(two(transport + 2)?);
    Some(!carries_frames(protocol, door) && !lacks_checksum(two(transport + field)?, pseudo))
}
