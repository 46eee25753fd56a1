//! Words about a packet from one hook to another. In the kernel they are kept in `skb->tc_index`, which packet
//! classifiers used to pass on from ingress to egress, and nobody else does.

pub const NONE: u32 = 0;
/// It is translated and where it should be; leave it alone.
pub const DONE: u32 = 0x7c1;
/// The way that it takes should be written down.
pub const LEARN: u32 = 0x7c2;

/// A fragment that waits for its first one: in the lowest eight bits since when, above them which way it goes.
const WAITING: u32 = 0x3e00;
const WAITING_MASK: u32 = 0xfe00;
const OUT: u32 = 0x100;
const SINCE: u32 = 0xff;
/// Nanoseconds to the units of `SINCE`: about 17 ms, so that they wrap after 4.3 s.
const UNIT_BITS: u32 = 24;

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "masked to eight bits")]
const fn units(now: u64) -> u32 {
    (now >> UNIT_BITS) as u32 & SINCE
}

/// It waits from now on.
#[inline(always)]
pub const fn waiting(out: bool, now: u64) -> u32 {
    WAITING | if out { OUT } else { 0 } | units(now)
}

#[inline(always)]
pub const fn is_waiting(note: u32) -> bool {
    note & WAITING_MASK == WAITING
}

/// Whether it goes out.
#[inline(always)]
pub const fn is_out(note: u32) -> bool {
    note & OUT != 0
}

/// For how long it has waited, in units of about 17 ms.
#[inline(always)]
pub const fn waited(note: u32, now: u64) -> u32 {
    units(now).wrapping_sub(note) & SINCE
}

/// It turns back inside by the rule of a slot, and has only half of its translation.
#[inline(always)]
pub const fn turn(slot: u32) -> u32 {
    TURN | (slot & (TURN - 1))
}

/// The slot of [`turn`], if it is that.
#[inline(always)]
pub const fn turned_by(note: u32) -> Option<u32> {
    if note & !(TURN - 1) == TURN { Some(note & (TURN - 1)) } else { None }
}

/// Above all slots, and below the notes of the VLAN filter.
const TURN: u32 = crate::maps::MAX_RULES;
const _: () = assert!(TURN == 1 << 14, "16 bits are kept, and the VLAN filter has the highest");
const _: () = assert!(turned_by(WAITING | OUT | SINCE).is_none(), "one note is no other");
