//! Who is where: learned from the senders of frames, VLAN by VLAN.
//!
//! A station that is in use where it is cannot be taken over by anybody who writes its address into a frame. It
//! moves when it has been silent for a while, when it says itself that it has moved (gratuitous ARP, RARP, unsolicited
//! neighbour advertisement: what hypervisors and VRRP send), or when it comes back to where it was before.

use super::{
    VlanDrop,
    decision::LONGEST_LIFE,
    frame::{Address, Frame, Headers},
    maps::{PortConfig, Station, StationKey, StationPlace, port, station},
    tables::{StationRef, Switch},
};
use crate::packet::Wire;

/// Milliseconds for which a silent station is remembered when nobody says otherwise (IEEE 802.1Q clause 8.8.3).
pub const AGEING: u32 = 300_000;
/// How long a station must have been silent to move without saying so.
pub const GUARD: u64 = 5_000_000_000;
/// A station's time is written no more often than this: a write on every frame would cost every CPU that reads it.
const REFRESH: u64 = 500_000_000;

/// Learns the sender of a frame that came in through `index`. Whether it was known to be there, and will be for as long as a
/// decision can hold.
#[inline(always)]
pub fn learn<F: Frame, S: Switch>(
    frame: &mut F,
    switch: &S,
    index: u32,
    config: &PortConfig,
    vlan: u16,
    headers: &Headers,
    now: u64,
) -> Result<bool, VlanDrop> {
    let key = StationPlace::new(config.bridge, headers.src, vlan);
    let Some(known) = switch.station(key.get()) else {
        return appear(switch, index, config, headers.src, key.get(), now).map(|()| false);
    };
    if known.port() == index {
        return Ok(is_heard(known, config, now));
    }
    if may_move(frame, known, index, config, headers, now) && has_room(switch, index, config) {
        let old = known.port();
        known.set_previous(old);
        known.set_port(index);
        known.set_updated(now);
        switch.changed();
        switch.count_station(old, false);
        switch.count_station(index, true);
        return Ok(false);
    }
    Err(VlanDrop::StolenAddress)
}

/// Whether the sender of a frame is known to be where it came in, and will be for as long as a decision can hold.
#[inline(always)]
pub fn is_here<S: Switch>(
    switch: &S,
    index: u32,
    config: &PortConfig,
    vlan: u16,
    src: Address,
    now: u64,
) -> bool {
    let known = switch.station(StationPlace::new(config.bridge, src, vlan).get());
    known.is_some_and(|known| known.port() == index && is_heard(known, config, now))
}

/// A station has sent something from where it is known to be.
#[inline(always)]
fn is_heard(known: StationRef, config: &PortConfig, now: u64) -> bool {
    if now.saturating_sub(known.updated()) > REFRESH && known.flags() & station::STATIC == 0 {
        known.set_updated(now);
    }
    is_known_for(LONGEST_LIFE, known, config, now)
}

/// Whether a station is still remembered when it is silent for so many nanoseconds from now on. Another processor may just have
/// heard it, a moment after our own now.
#[inline(always)]
pub fn is_known_for(span: u64, known: StationRef, config: &PortConfig, now: u64) -> bool {
    let silent = now.saturating_sub(known.updated());
    silent + span <= config.memory() || known.flags() & station::STATIC != 0
}

/// A sender that nobody has seen, or that has no address.
#[inline(always)]
fn appear<S: Switch>(
    switch: &S,
    index: u32,
    config: &PortConfig,
    mac: Address,
    key: &StationKey,
    now: u64,
) -> Result<(), VlanDrop> {
    if mac.is_group() || mac.is_zero() {
        return Err(VlanDrop::SourceAddress);
    }
    let station = Station { port: index, updated: now, ..Station::default() };
    // Not learned is not lost: what is for it is flooded in its VLAN.
    if has_room(switch, index, config) && switch.add_station(key, &station) {
        switch.count_station(index, true);
    } else {
        switch.count_not_learned(index);
    }
    Ok(())
}

#[inline(always)]
fn has_room<S: Switch>(switch: &S, index: u32, config: &PortConfig) -> bool {
    config.station_limit == 0
        || config.flags & port::HOST != 0
        || switch.stations_on(index) < config.station_limit
}

#[inline(always)]
fn may_move<F: Frame>(
    frame: &mut F,
    known: StationRef,
    index: u32,
    config: &PortConfig,
    headers: &Headers,
    now: u64,
) -> bool {
    if known.flags() & station::STATIC != 0 {
        return false;
    }
    let silent = now.saturating_sub(known.updated());
    silent > GUARD.min(config.memory()) || known.previous() == index || announces(frame, headers)
}

/// ARP for IPv4 over Ethernet (RFC 826).
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Arp {
    head: [u8; 8],
    sender: [u8; 6],
    sender_ip: [u8; 4],
    target: [u8; 6],
    target_ip: [u8; 4],
}

/// IPv6 header and the first bytes of a neighbour advertisement (RFC 4861 section 4.4).
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Advertisement {
    head: [u8; 6],
    next_header: u8,
    hop_limit: u8,
    src: [u8; 16],
    dst: [u8; 16],
    kind: u8,
}

// SAFETY: bytes and byte arrays only.
unsafe impl Wire for Arp {}
// SAFETY: bytes and byte arrays only.
unsafe impl Wire for Advertisement {}

const ARP: u16 = 0x0806;
const RARP: u16 = 0x8035;
const IPV6: u16 = 0x86dd;
const ICMPV6: u8 = 58;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// ff02::1
const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// Whether a sender says to all that it is here now.
#[inline(always)]
fn announces<F: Frame>(frame: &mut F, headers: &Headers) -> bool {
    match headers.kind {
        // Hypervisors announce a migrated machine so.
        RARP => headers.dst.is_group(),
        ARP => {
            let Some(arp) = frame.at::<Arp>(headers.payload) else {
                return false;
            };
            // SAFETY: `at` checked the bounds, `Wire` the layout.
            let (sender, sender_ip, target_ip) = unsafe {
                let arp = arp.as_ref();
                (arp.sender, arp.sender_ip, arp.target_ip)
            };
            sender == headers.src.bytes() && sender_ip == target_ip
        }
        IPV6 => {
            let Some(advertisement) = frame.at::<Advertisement>(headers.payload) else {
                return false;
            };
            // SAFETY: as above.
            let (next_header, dst, kind) = unsafe {
                let advertisement = advertisement.as_ref();
                (advertisement.next_header, advertisement.dst, advertisement.kind)
            };
            next_header == ICMPV6 && kind == NEIGHBOUR_ADVERTISEMENT && dst == ALL_NODES
        }
        _ => false,
    }
}
