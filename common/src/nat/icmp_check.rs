//! Whether an ICMP error has come as it was sent. One that has not is dropped before anything is made of it (RFC 5508 REQ-3 and 3a,
//! RFC 4443 section 2.3): whoever made it up, or whatever broke it, may have hit the addresses and ports that say whom to tell.

use super::work::Work;
use crate::{
    checksum::fold,
    family::Address,
    packet::{Checksum, Packet, Piece},
};

const ETHERNET: usize = 14;
const ICMP_HEADER: usize = 8;

/// Nobody sends longer ones: 576 bytes are usual (RFC 1812 section 4.3.2.3), 1280 the most over IPv6 (RFC 4443 section 2.4 (c)).
const LONGEST: usize = 1 << 14;
/// One less than a power of two: the longest one behind the longest headers.
const WITHIN: usize = 0x7fff;

/// As much as every kernel sums up at once (net/core/filter.c `bpf_csum_diff`).
const LONG: usize = 512;
const SHORT: usize = 64;
const WORD: usize = 4;

/// A sum in which everything is that its checksum makes up for.
const WHOLE: u16 = 0xffff;

/// Whether the checksum of the error is right, and that of the IP header that it embeds, if that has one.
#[inline(always)]
pub(super) fn is_sound<P, A>(packet: &mut P, work: &mut Work<A>) -> bool
where
    P: Packet,
    A: Address,
{
    sum_of_error(packet, work) == Some(WHOLE) && is_embedded_header_sound(packet, work)
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "compared with the longest one before")]
fn sum_of_error<P, A>(packet: &mut P, work: &mut Work<A>) -> Option<u16>
where
    P: Packet,
    A: Address,
{
    let offset = work.transport_offset();
    let header = packet.at::<A::Header>(ETHERNET)?;
    // SAFETY: `at` checked the bounds; nothing else holds the packet.
    let header = unsafe { header.as_ref() };
    let (_, header_len) = A::embedded(header);
    let end = ETHERNET + header_len + usize::from(A::payload_len(header));
    let len = end.checked_sub(offset).filter(|len| *len <= LONGEST)?;
    let sum = A::icmp_pseudo_header(packet, len as u16)?;
    let mut summing = Summing(&mut work.piece);
    summing.set(offset, len, sum);
    packet.make_linear(summing.at() + summing.left());
    finish(packet, &mut summing)
}

#[inline(always)]
fn is_embedded_header_sound<P, A>(packet: &mut P, work: &mut Work<A>) -> bool
where
    P: Packet,
    A: Address,
{
    let start = work.transport_offset() + ICMP_HEADER;
    let Some(header) = packet.at::<A::Header>(start) else {
        return false;
    };
    // SAFETY: as above.
    let header = unsafe { header.as_ref() };
    if A::check(header).is_none() {
        return true;
    }
    let (_, len) = A::embedded(header);
    let mut summing = Summing(&mut work.piece);
    summing.set(start, len, 0);
    in_steps_of::<P, A, WORD>(packet, &mut summing, SHORT / WORD).is_some() && fold(summing.sum()) == WHOLE
}

/// The sum of what may be long, in steps that become smaller.
#[inline(always)]
fn finish<P: Packet, A>(packet: &mut P, summing: &mut Summing<'_, A>) -> Option<u16> {
    in_steps_of::<P, A, LONG>(packet, summing, LONGEST / LONG)?;
    in_steps_of::<P, A, SHORT>(packet, summing, LONG / SHORT)?;
    in_steps_of::<P, A, WORD>(packet, summing, SHORT / WORD)?;
    let (at, left) = (summing.at(), summing.left());
    let mut sum = u32::from(fold(summing.sum()));
    if left & 2 != 0 {
        let pair = packet.at::<Checksum>(at)?;
        // SAFETY: `at` checked the bounds; nothing else holds the packet.
        sum += u32::from(u16::from_ne_bytes(unsafe { pair.as_ref() }.0));
    }
    if left & 1 != 0 {
        let byte = packet.at::<[u8; 1]>(at + (left & 2))?;
        // SAFETY: as above.
        let [byte] = unsafe { *byte.as_ref() };
        sum += u32::from(u16::from_ne_bytes([byte, 0]));
    }
    Some(fold(sum))
}

/// So many steps at most, as far as they are whole.
#[inline(always)]
fn in_steps_of<P: Packet, A, const SIZE: usize>(
    packet: &mut P,
    summing: &mut Summing<'_, A>,
    most: usize,
) -> Option<()> {
    let mut steps = 0;
    while steps < most && summing.left() >= SIZE {
        let (at, left) = (summing.at(), summing.left());
        let sum = packet.add_up::<[u8; SIZE]>(at, summing.sum())?;
        summing.set(at + SIZE, left - SIZE, sum);
        steps += 1;
    }
    Some(())
}

/// How far a sum has come. Each step writes it down and reads it anew, so that the verifier forgets what it knew: else no two
/// ends of a loop are alike for it, and it walks on from each. It has the place of what a fragment says of itself: nobody asks for
/// that any more.
struct Summing<'a, A>(&'a mut Piece<A>);

impl<A> Summing<'_, A> {
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "offsets and lengths within an error")]
    fn set(&mut self, at: usize, left: usize, sum: u32) {
        let Self(piece) = self;
        piece.offset = at as u32;
        piece.place = left as u32;
        piece.id = sum;
    }

    #[inline(always)]
    fn at(&self) -> usize {
        // SAFETY: a reference is readable.
        let at = unsafe { (&raw const self.0.offset).read_volatile() };
        at as usize & WITHIN
    }

    #[inline(always)]
    fn left(&self) -> usize {
        // SAFETY: as above.
        unsafe { (&raw const self.0.place).read_volatile() as usize & WITHIN }
    }

    #[inline(always)]
    fn sum(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (&raw const self.0.id).read_volatile() }
    }
}
