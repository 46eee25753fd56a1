//! VLANs on the ports of a bridge (IEEE 802.1Q): `frame -> classify -> admit -> learn -> forward`, and on the way out
//! `member -> dress`.
//!
//! Everything that belongs to a VLAN is switched here, from port to port, with a table of stations for each VLAN; the
//! kernel's bridge never sees it. So its own table, which knows no VLANs, cannot mislead a frame, and a port that
//! somebody adds to the bridge behind our back gets nothing of any VLAN and can send nothing into one. What the
//! kernel's bridge keeps is the ports without VLANs, and what is for the bridge itself (spanning tree, LLDP).
//!
//! Nothing is changed on the way in: which VLAN a frame is in travels beside it ([`frame::Note`]), and only the way
//! out puts a tag on or takes one off, where the two ports differ in that.

pub mod decision;
mod drop;
pub mod frame;
pub mod learn;
pub mod maps;
pub mod tables;
pub mod xdp;

pub use self::drop::{Dropped, VlanDrop};
use self::{
    decision::{Kept, LONGEST_LIFE, Likeness},
    frame::{Address, Frame, Headers, Note, Tag, is_control, is_tag},
    maps::{FloodKey, MAX_VLAN_PORTS, Member, MemberKey, PortConfig, StationPlace, port},
    tables::Switch,
};

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// On to the next program, then to the kernel.
    Pass,
    Drop(Dropped),
    /// Straight out of another port; up to the host when that is the bridge itself.
    Forward {
        port: u32,
        host: bool,
    },
}

/// A frame of a VLAN that may come in.
#[derive(Debug, Clone, Copy)]
struct Admitted {
    index: u32,
    config: PortConfig,
    headers: Headers,
    vlan: u16,
    /// [`Member::stat`]
    stat: u32,
    note: Note,
}

/// Where the station is that a frame is for.
#[derive(Debug, Clone, Copy)]
struct Target {
    port: u32,
    /// It is known for as long as a decision can hold.
    lasts: bool,
}

/// A frame that comes from a port into the bridge; of the bridge itself: that the host sends.
#[inline(always)]
pub fn port_in<F: Frame, S: Switch>(frame: &mut F, switch: &S) -> Verdict {
    // Before anything else is read that is decided by.
    let changes = switch.changes();
    let index = frame.port();
    let headers = frame::read(frame);
    let likeness = headers.as_ref().and_then(|headers| Likeness::new(index, headers));
    if let Some(kept) = likeness.as_ref().and_then(|likeness| decision::kept(switch, likeness, changes)) {
        frame.set_note(kept.note);
        switch.count_rx(kept.stat, frame.segments(), frame.bytes());
        return kept.verdict;
    }
    // A note from elsewhere means nothing here.
    frame.set_note(Note::default());
    let admitted = match admit(frame, switch, headers) {
        Ok(Some(admitted)) => admitted,
        Ok(None) => return Verdict::Pass,
        Err(dropped) => return Verdict::Drop(dropped),
    };
    let Admitted { index, ref config, ref headers, vlan, stat, note } = admitted;
    let now = switch.now();
    let mut lasts = true;
    if config.flags & port::LEARNING != 0 {
        match learn::learn(frame, switch, index, config, vlan, headers, now) {
            Ok(known) => lasts = known,
            Err(reason) => return Verdict::Drop(reason.within(vlan)),
        }
    }
    if config.flags & port::FORWARDING == 0 {
        return Verdict::Drop(VlanDrop::Blocked.within(vlan));
    }
    let Some(target) = target(switch, config, vlan, headers.dst, now) else {
        return flood(frame, switch, &admitted);
    };
    if target.port == index && config.flags & port::HAIRPIN == 0 {
        return Verdict::Drop(VlanDrop::SamePort.within(vlan));
    }
    let verdict = Verdict::Forward { port: target.port, host: target.port == config.bridge };
    if let Some(likeness) = &likeness
        && lasts
        && target.lasts
    {
        decision::keep(switch, likeness, changes, &Kept { note, stat, way: None, verdict });
    }
    verdict
}

/// A frame that is about to leave through a port; of the bridge itself: that the host is about to get.
#[inline(always)]
pub fn port_out<F: Frame, S: Switch>(frame: &mut F, switch: &S) -> Verdict {
    let index = frame.port();
    let Some(config) = switch.port(index) else {
        return Verdict::Pass;
    };
    let note = frame.note();
    let Some(vlan) = note.vlan() else {
        return unclassified(frame, &config);
    };
    // It may meet another bridge of ours behind this port, where it has to be classified anew.
    frame.set_note(Note::default());
    let member = match may_leave(switch, index, &config, vlan, note) {
        Ok(member) => member,
        Err(reason) => return Verdict::Drop(reason.within(vlan)),
    };
    let (bytes, packets) = (frame.bytes(), frame.segments());
    // A super-packet is cut to the sender's segment size later, as the kernel's bridge reckons too
    // (`is_skb_forwardable`).
    if packets == 1 && config.flags & port::HOST == 0 && bytes > longest(&config) {
        return Verdict::Drop(VlanDrop::TooBig.within(vlan));
    }
    let protocol = if member.untagged != 0 { 0 } else { config.protocol };
    let nested = config.flags & (port::NESTED | port::TUNNEL) != 0;
    if let Err(reason) = dress(frame, protocol, nested, vlan, note.tagged()) {
        return Verdict::Drop(reason.within(vlan));
    }
    switch.count_tx(member.stat, packets, bytes);
    Verdict::Pass
}

/// How a port is in a VLAN, and that it lets a frame of it out, whatever its size.
#[inline(always)]
fn may_leave<S: Switch>(
    switch: &S,
    index: u32,
    config: &PortConfig,
    vlan: u16,
    note: Note,
) -> Result<Member, VlanDrop> {
    let member = member(switch, index, config, vlan).ok_or(VlanDrop::NotMember)?;
    if config.flags & port::FORWARDING == 0 {
        return Err(VlanDrop::Blocked);
    }
    if note.isolated() && config.flags & port::ISOLATED != 0 {
        return Err(VlanDrop::Isolated);
    }
    Ok(member)
}

/// Bytes of the longest frame that fits a port: its header counted, its tag not, which may be in them all the same.
#[inline(always)]
const fn longest(config: &PortConfig) -> u32 {
    const HEADER_AND_TAG: u32 = 14 + 4;
    config.mtu.saturating_add(HEADER_AND_TAG)
}

/// Finds out which VLAN a frame is in and whether the port may send into it. `None`: it is the kernel's bridge's.
#[inline(always)]
fn admit<F: Frame, S: Switch>(
    frame: &mut F,
    switch: &S,
    headers: Option<Headers>,
) -> Result<Option<Admitted>, Dropped> {
    let index = frame.port();
    let Some(config) = switch.port(index) else {
        return Ok(None);
    };
    let Some(headers) = headers else {
        return Err(VlanDrop::Malformed.within(0));
    };
    if is_control(headers.dst, config.flags & port::STP != 0) {
        return Ok(None);
    }
    let (vlan, tagged) = classify(&config, &headers)?;
    if vlan == 0 {
        return Ok(None);
    }
    let Some(member) = member(switch, index, &config, vlan) else {
        return Err(VlanDrop::NotMember.within(vlan));
    };
    switch.count_rx(member.stat, frame.segments(), frame.bytes());
    let note = Note::new(vlan, tagged, config.flags & port::ISOLATED != 0);
    frame.set_note(note);
    Ok(Some(Admitted { index, config, headers, vlan, stat: member.stat, note }))
}

/// How a port is in a VLAN, which is not 0; `None`: it is not.
#[inline(always)]
fn member<S: Switch>(switch: &S, index: u32, config: &PortConfig, vlan: u16) -> Option<Member> {
    if vlan == config.native {
        return Some(Member { untagged: 1, stat: config.native_stat });
    }
    switch.member(&MemberKey { port: index, vlan, unused: 0 })
}

/// The VLAN of a frame, 0 for none, and whether its outer tag is the VLAN's (or says a priority only).
#[inline(always)]
fn classify(config: &PortConfig, headers: &Headers) -> Result<(u16, bool), Dropped> {
    if config.flags & port::TUNNEL != 0 {
        return native(config).map(|vlan| (vlan, false));
    }
    // A tag of the other protocol is payload, as in the kernel's bridge (`br_allowed_ingress`).
    let own = headers.tag.filter(|tag| tag.protocol == config.protocol);
    let nested = if own.is_some() { is_tag(headers.kind) } else { headers.tag.is_some() };
    if nested && config.flags & port::NESTED == 0 {
        let named = own.map_or(0, Tag::vlan);
        return Err(VlanDrop::NestedTag.within(if named == 0 { config.native } else { named }));
    }
    let (vlan, needed) = match own {
        Some(tag) if tag.vlan() == Tag::RESERVED => return Err(VlanDrop::ReservedVlan.within(0)),
        Some(tag) if tag.vlan() != 0 => (tag.vlan(), port::TAGGED_IN),
        Some(_) | None => (native(config)?, port::UNTAGGED_IN),
    };
    if config.flags & needed == 0 {
        return Err(VlanDrop::NotAccepted.within(vlan));
    }
    Ok((vlan, own.is_some()))
}

#[inline(always)]
fn native(config: &PortConfig) -> Result<u16, Dropped> {
    if config.native == 0 && config.flags & port::PLAIN == 0 {
        return Err(VlanDrop::NoNative.within(0));
    }
    Ok(config.native)
}

/// `None`: it is not known, or it is many.
#[inline(always)]
fn target<S: Switch>(switch: &S, config: &PortConfig, vlan: u16, dst: Address, now: u64) -> Option<Target> {
    if dst.is_group() {
        return None;
    }
    let known = switch.station(StationPlace::new(config.bridge, dst, vlan).get())?;
    if !learn::is_known_for(0, known, config, now) {
        return None;
    }
    let port = known.port();
    // 0 is no interface.
    (port != 0).then(|| Target { port, lasts: learn::is_known_for(LONGEST_LIFE, known, config, now) })
}

/// A copy to every other port of the VLAN; the first one gets the frame itself.
#[inline(always)]
fn flood<F: Frame, S: Switch>(frame: &mut F, switch: &S, admitted: &Admitted) -> Verdict {
    let Admitted { index, config, vlan, .. } = *admitted;
    // 0 is no interface.
    let back = if config.flags & port::HAIRPIN != 0 { 0 } else { index };
    let mut key = FloodKey { bridge: config.bridge, vlan, place: 0 };
    let mut first = switch.flood(&key).unwrap_or(0);
    if first == back {
        key.place = 1;
        first = switch.flood(&key).unwrap_or(0);
    }
    if first == 0 {
        return Verdict::Drop(VlanDrop::NobodyThere.within(vlan));
    }
    // As little as possible in here: the verifier walks through it for every port that a VLAN can have.
    while key.place < MAX_VLAN_PORTS {
        key.place += 1;
        let Some(target) = switch.flood(&key) else { break };
        if target != back {
            frame.copy_to(target, target == config.bridge);
        }
    }
    Verdict::Forward { port: first, host: first == config.bridge }
}

/// A frame of no VLAN: for ports without VLANs, and for the bridge's own protocols on every port.
#[inline(always)]
fn unclassified<F: Frame>(frame: &mut F, config: &PortConfig) -> Verdict {
    let Some(headers) = frame::read(frame) else {
        return Verdict::Drop(VlanDrop::Malformed.within(0));
    };
    let untagged = headers.tag.is_none_or(|tag| tag.vlan() == 0);
    if untagged && config.flags & port::PLAIN != 0 {
        return Verdict::Pass;
    }
    // Only the host's own: the kernel may be told to forward some of them, and knows no VLANs.
    if untagged && frame.is_the_hosts_own() && is_control(headers.dst, true) {
        return Verdict::Pass;
    }
    Verdict::Drop(VlanDrop::NotMember.within(0))
}

/// Gives a frame of a VLAN the tag that a port wants to see, which begins with `protocol`; 0: none. All or nothing. `nested`: what is
/// behind it may look like another tag.
#[inline(always)]
fn dress<F: Frame>(
    frame: &mut F,
    protocol: u16,
    nested: bool,
    vlan: u16,
    tagged: bool,
) -> Result<(), VlanDrop> {
    let changed = |done: bool| if done { Ok(()) } else { Err(VlanDrop::Rewrite) };
    if protocol == 0 {
        // What is left must not look like a frame of another VLAN, unless it is meant to.
        if !nested {
            let Some(headers) = frame::read(frame) else {
                return Err(VlanDrop::Malformed);
            };
            let nested = if tagged { is_tag(headers.kind) } else { headers.tag.is_some() };
            if nested {
                return Err(VlanDrop::NestedTag);
            }
        }
        return if tagged { changed(frame.pop()) } else { Ok(()) };
    }
    if !tagged {
        return changed(frame.push(Tag { protocol, control: vlan }));
    }
    let Some(Headers { tag: Some(present), .. }) = frame::read(frame) else {
        return Err(VlanDrop::Malformed);
    };
    let tag = present.in_vlan(protocol, vlan);
    changed(tag == present || frame.pop() && frame.push(tag))
}
