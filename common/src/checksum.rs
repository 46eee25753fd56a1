//! One's complement differences (RFC 1624): how a checksum changes when the bytes under it change.
//!
//! A difference is kept folded in 16 bits, in the order in which the bytes stand in the packet, read as a native
//! integer. The sum is independent of byte order as long as everybody uses the same one (RFC 1071 section 2 (B)).

use crate::words::{load16, store16};

/// Folds carries until 16 bits are left.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "two folds leave at most 16 bits")]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The difference that replacing the 16-bit word `from` by `to` makes: `~from + to`.
#[inline(always)]
pub const fn difference16(from: u16, to: u16) -> u32 {
    (!from) as u32 + to as u32
}

/// The difference that replacing four bytes by others makes, as they stand in memory.
#[inline(always)]
pub const fn difference_word(from: u32, to: u32) -> u32 {
    difference16(low(from), low(to)) + difference16(high(from), high(to))
}

/// The difference that replacing one port by another makes; ports in host order.
#[inline(always)]
pub const fn difference_port(from: u16, to: u16) -> u32 {
    difference16(from.to_be(), to.to_be())
}

/// The checksum field after the data under it changed by `difference` (RFC 1624 equation 3).
#[inline(always)]
pub const fn apply(checksum: [u8; 2], difference: u16) -> [u8; 2] {
    changed(u16::from_ne_bytes(checksum), difference).to_ne_bytes()
}

/// The same as a number.
#[inline(always)]
pub const fn changed(checksum: u16, difference: u16) -> u16 {
    !fold((!checksum) as u32 + difference as u32)
}

/// The same, in its place.
#[inline(always)]
pub fn adjust(checksum: &mut [u8; 2], difference: u16) {
    store16(checksum, changed(load16(checksum), difference));
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
const fn low(word: u32) -> u16 {
    word as u16
}

#[inline(always)]
const fn high(word: u32) -> u16 {
    low(word >> 16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071: the checksum of `data`, computed from scratch.
    fn checksum(data: &[u8]) -> [u8; 2] {
        let sum =
            data.chunks(2).map(|c| u32::from(u16::from_ne_bytes([c[0], *c.get(1).unwrap_or(&0)]))).sum();
        (!fold(sum)).to_ne_bytes()
    }

    #[test]
    fn rfc1624_example_of_the_corner_case_is_right() {
        // RFC 1624 section 4: header checksum 0xDD2F, one word 0x5555 becomes 0x3285, result 0x0000.
        let difference = fold(difference16(0x5555u16.to_be(), 0x3285u16.to_be()));
        assert_eq!(apply([0xdd, 0x2f], difference), [0, 0]);
    }

    fn difference_address(from: [u8; 4], to: [u8; 4]) -> u32 {
        difference_word(u32::from_ne_bytes(from), u32::from_ne_bytes(to))
    }

    proptest! {
        #[test]
        fn an_incremental_update_equals_a_sum_from_scratch(
            mut data in proptest::collection::vec(any::<u8>(), 20..64),
            address: [u8; 4],
            port: u16,
        ) {
            // a header that sums to zero in both forms is the known ambiguity of one's complement
            prop_assume!(data.iter().any(|&b| b != 0));
            data.truncate(data.len() & !1);
            let before = checksum(&data);
            let mut old = [0; 4];
            old.copy_from_slice(&data[4..8]);
            let old_port = u16::from_be_bytes([data[8], data[9]]);
            let difference = fold(difference_address(old, address) + difference_port(old_port, port));
            data[4..8].copy_from_slice(&address);
            data[8..10].copy_from_slice(&port.to_be_bytes());
            prop_assume!(data.iter().any(|&b| b != 0));
            prop_assert_eq!(apply(before, difference), checksum(&data));
        }

        #[test]
        fn there_and_back_again_changes_nothing(sum: [u8; 2], from: [u8; 4], to: [u8; 4]) {
            prop_assume!(sum != [0xff, 0xff] && sum != [0, 0]);
            let there = apply(sum, fold(difference_address(from, to)));
            let back = apply(there, fold(difference_address(to, from)));
            prop_assert_eq!(back, sum);
        }
    }
}
