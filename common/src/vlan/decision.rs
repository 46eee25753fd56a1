//! What was decided for the last frame like this one, kept for a moment: most frames then need one lookup in the place of
//! three.
//!
//! Only what becomes of a frame whose sender and receiver are both known is kept: never a flood, a drop, or what is for
//! many. It holds as long as nothing that it was made of has changed. Whoever changes any of that counts
//! [`Switch::changes`] on afterwards: the agent when it has written ports, members or stations, the programs when a
//! station has moved. (One that is new changes nothing that was kept, because nothing is kept of those that are not known; it
//! can only be new after the agent has forgotten it.) That number is read before everything else, so that what was decided
//! while a change was made is never taken for newer than that. Where processors may exchange loads, and when the agent dies
//! between a write and the count, [`LIFE`] is what bounds the error.

use core::ptr::NonNull;

use super::{
    Verdict,
    frame::{Headers, Note, is_tag},
    maps::{Decision, MAX_DECISIONS},
    tables::Switch,
};

/// Ticks of the kernel for which a decision holds at most. They are 128, 512 or 1280 ms, as its HZ is 1000, 250 or 100.
pub const LIFE: u64 = 128;
/// The longest that this can be, in nanoseconds.
pub const LONGEST_LIFE: u64 = 1_280_000_000;

/// What frames have in common that are treated alike, in the words of a [`Decision`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Likeness {
    words: [u64; 2],
    tag: u32,
}

impl Likeness {
    /// `None`: nothing is kept for such a frame.
    #[inline(always)]
    #[must_use]
    pub const fn new(index: u32, headers: &Headers) -> Option<Self> {
        // A tag within the VLAN's payload is the classifier's business.
        if headers.dst.is_group() || is_tag(headers.kind) {
            return None;
        }
        // Its priority changes nothing.
        let (protocol, vlan) = match headers.tag {
            Some(tag) => (tag.protocol as u32, tag.vlan() as u32),
            None => (0, 0),
        };
        let (index, dst, src) = (index as u64, headers.dst, headers.src);
        let (dst_first, dst_last) = (dst.first as u64, dst.last as u64);
        let (src_first, src_last) = (src.first as u64, src.last as u64);
        Some(if cfg!(target_endian = "little") {
            Self {
                words: [index | dst_first << 32, dst_last | src_first << 16 | src_last << 48],
                tag: protocol | vlan << 16,
            }
        } else {
            Self {
                words: [index << 32 | dst_first, dst_last << 48 | src_first << 16 | src_last],
                tag: protocol << 16 | vlan,
            }
        })
    }

    /// Where the decision for such frames is. Others may have the same place: the last one has it.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the upper bits of 64, no more than places need")]
    pub const fn place(&self) -> u32 {
        // 2^64 divided by the golden ratio: Fibonacci hashing (Knuth, The Art of Computer Programming, 6.4).
        const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
        let [a, b] = self.words;
        let mixed = (a ^ self.tag as u64).wrapping_mul(SPREAD) ^ b;
        (mixed.wrapping_mul(SPREAD) >> (64 - MAX_DECISIONS.ilog2())) as u32
    }
}

/// A place in the table, which is this processor's own.
#[derive(Debug, Clone, Copy)]
pub struct DecisionRef(NonNull<Decision>);

impl DecisionRef {
    /// # Safety
    /// `place` must stay readable and writable, and nobody else's, while the reference is used.
    #[inline(always)]
    pub const unsafe fn new(place: NonNull<Decision>) -> Self {
        Self(place)
    }

    #[inline(always)]
    const fn get(&self) -> &Decision {
        // SAFETY: by the contract of `new`; every bit pattern is a decision.
        unsafe { self.0.as_ref() }
    }

    #[inline(always)]
    fn likeness(&self) -> Likeness {
        let place = self.0.as_ptr();
        // SAFETY: a decision begins with two words and one of four bytes, and is aligned as they are.
        unsafe { Likeness { words: place.cast::<[u64; 2]>().read(), tag: *place.cast::<u32>().add(4) } }
    }

    #[inline(always)]
    fn set(self, likeness: Likeness, decision: Decision) {
        let place = self.0.as_ptr();
        // SAFETY: by the contract of `new`, and as above.
        unsafe {
            place.write(decision);
            place.cast::<[u64; 2]>().write(likeness.words);
            *place.cast::<u32>().add(4) = likeness.tag;
        }
    }
}

/// A decision that holds.
#[derive(Debug, Clone, Copy)]
pub struct Kept {
    pub note: Note,
    pub stat: u32,
    /// `None`: only the way in was decided.
    pub way: Option<Way>,
    pub verdict: Verdict,
}

/// How frames leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// [`Decision::longest`], which is not 0.
    pub longest: u32,
    /// [`Decision::tx_stat`]
    pub stat: u32,
    /// [`Decision::tx_protocol`]
    pub protocol: u16,
}

/// What was decided for frames like this one, if it still holds.
#[inline(always)]
pub fn kept<S: Switch>(switch: &S, likeness: &Likeness, changes: u64) -> Option<Kept> {
    let place = switch.decision(likeness.place())?;
    let decision = place.get();
    if place.likeness() != *likeness
        || decision.changes != changes
        || switch.ticks().wrapping_sub(decision.made) >= LIFE
    {
        return None;
    }
    let way = Way { longest: decision.longest, stat: decision.tx_stat, protocol: decision.tx_protocol };
    let verdict = Verdict::Forward { port: decision.to, host: decision.host != 0 };
    let way = (way.longest != 0).then_some(way);
    Some(Kept { note: Note(decision.note), stat: decision.stat, way, verdict })
}

/// Keeps a decision to forward. `changes`: as it was before anything was read that this was decided by.
#[inline(always)]
pub fn keep<S: Switch>(switch: &S, likeness: &Likeness, changes: u64, kept: &Kept) {
    let (Some(place), Verdict::Forward { port, host }) = (switch.decision(likeness.place()), kept.verdict)
    else {
        return;
    };
    let Way { longest, stat, protocol } = kept.way.unwrap_or(Way { longest: 0, stat: 0, protocol: 0 });
    let decision = Decision {
        to: port,
        host: u16::from(host),
        stat: kept.stat,
        note: kept.note.0,
        changes,
        made: switch.ticks(),
        longest,
        tx_stat: stat,
        tx_protocol: protocol,
        ..Decision::default()
    };
    place.set(*likeness, decision);
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{collections::HashSet, vec::Vec};

    use super::*;
    use crate::vlan::frame::{Address, Tag};

    fn address(mac: [u8; 6]) -> Address {
        let [a, b, c, d, e, f] = mac;
        Address { first: u32::from_ne_bytes([a, b, c, d]), last: u16::from_ne_bytes([e, f]) }
    }

    fn headers(dst: [u8; 6], src: [u8; 6], tag: Option<Tag>, kind: u16) -> Headers {
        Headers { dst: address(dst), src: address(src), tag, kind, payload: 14 }
    }

    const DST: [u8; 6] = [2, 1, 2, 3, 4, 5];
    const SRC: [u8; 6] = [2, 0xa, 0xb, 0xc, 0xd, 0xe];

    #[test]
    fn a_likeness_in_words_is_the_first_fields_of_a_decision() {
        let tag = Some(Tag { protocol: 0x88a8, control: 0xefed });
        let likeness = Likeness::new(0x0102_0304, &headers(DST, SRC, tag, 0x0800)).expect("kept");
        let mut memory = Decision::default();
        // SAFETY: ours alone.
        let place = unsafe { DecisionRef::new(NonNull::from(&mut memory)) };
        let rest = Decision { to: 7, stat: 8, note: 9, host: 1, changes: 10, made: 11, ..memory };
        place.set(likeness, Decision { longest: 12, tx_stat: 13, tx_protocol: 14, ..rest });
        assert_eq!(place.likeness(), likeness);
        let expected = Decision {
            from: 0x0102_0304,
            dst: DST,
            src: SRC,
            protocol: 0x88a8,
            vlan: 0x0fed,
            to: 7,
            stat: 8,
            note: 9,
            host: 1,
            changes: 10,
            made: 11,
            longest: 12,
            tx_stat: 13,
            tx_protocol: 14,
            unused: [0; 3],
        };
        assert_eq!(*place.get(), expected);
    }

    #[test]
    fn only_priorities_make_no_difference() {
        let of = |port, dst, src, tag: Option<(u16, u16)>| {
            let tag = tag.map(|(protocol, control)| Tag { protocol, control });
            Likeness::new(port, &headers(dst, src, tag, 0x0800))
        };
        let one = of(1, DST, SRC, Some((0x8100, 10)));
        assert_eq!(one, of(1, DST, SRC, Some((0x8100, 0xe00a))));
        let others = [
            of(2, DST, SRC, Some((0x8100, 10))),
            of(1, SRC, DST, Some((0x8100, 10))),
            of(1, DST, SRC, Some((0x8100, 11))),
            of(1, DST, SRC, Some((0x88a8, 10))),
            of(1, DST, SRC, Some((0x8100, 0))),
            of(1, DST, SRC, None),
        ];
        for (number, other) in others.iter().enumerate() {
            assert!(other.is_some() && *other != one);
            assert!(!others[..number].contains(other));
        }
    }

    #[test]
    fn nothing_is_kept_for_groups_and_tags_within_tags() {
        assert_eq!(Likeness::new(1, &headers([0xff; 6], SRC, None, 0x0800)), None);
        assert_eq!(Likeness::new(1, &headers([1, 0x80, 0xc2, 0, 0, 0], SRC, None, 0x0800)), None);
        let tag = Some(Tag { protocol: 0x8100, control: 10 });
        assert_eq!(Likeness::new(1, &headers(DST, SRC, tag, 0x8100)), None);
    }

    /// Machines that were made one after the other have addresses one after the other.
    #[test]
    fn neighbours_have_places_of_their_own() {
        let place = |port, number: u16| {
            let [e, f] = number.to_be_bytes();
            let headers = headers([2, 0, 0, 0, e, f], [2, 0, 0, 1, e, f], None, 0x0800);
            Likeness::new(port, &headers).expect("kept").place()
        };
        for places in [
            (0..1000).map(|number| place(7, number)).collect::<Vec<_>>(),
            (0..1000).map(|number| place(u32::from(number) + 1, number)).collect(),
            (0..1000u16).map(|number| place(u32::from(number) + 100, 3)).collect(),
        ] {
            assert!(places.iter().all(|place| *place < MAX_DECISIONS));
            let different: HashSet<_> = places.iter().collect();
            // Of as many that are thrown at random 941 would be.
            assert!(different.len() > 900, "{}", different.len());
        }
    }
}
