//! What is left for a card to fill in (Linux calls it `CHECKSUM_PARTIAL`), told by a packet's bytes alone.

use crate::{checksum::fold, family::Address, nat::VXLAN, tcp::proto};

/// Of GENEVE (RFC 8926).
const GENEVE: u16 = 6081;

/// A tunnel of whole frames: the checksum that is missing may be one of those inside.
#[inline(always)]
pub(crate) const fn carries_frames(protocol: u8, dport: u16) -> bool {
    protocol == proto::UDP && (dport == VXLAN[0] || dport == VXLAN[1] || dport == GENEVE)
}

/// Sum of the pseudo header of what follows an IP header at once (RFC 768, RFC 9293 section 3.1, RFC 8200 section 8.1).
#[inline(always)]
pub(crate) fn pseudo_header<A: Address>(header: &A::Header, protocol: u8) -> u16 {
    let sum = A::difference(A::ANY, A::src(header))
        + A::difference(A::ANY, A::dst(header))
        + u32::from(u16::from(protocol).to_be())
        + u32::from(A::payload_len(header).to_be());
    fold(sum)
}

/// Whether a checksum is to be filled in by the card: then there is only the pseudo header's sum in it. One of 65536 whole ones
/// looks the same, and takes the later hook.
#[inline(always)]
pub(crate) const fn lacks_checksum(field: u16, pseudo: u16) -> bool {
    // 0 has two forms in one's complement
    field == pseudo || (field.wrapping_add(1) <= 1 && pseudo.wrapping_add(1) <= 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_the_same_in_either_form() {
        let zeros = [0, 0xffff];
        for field in zeros {
            assert!(zeros.iter().all(|pseudo| lacks_checksum(field, *pseudo)));
            assert!(!lacks_checksum(field, 1) && !lacks_checksum(field, 0xfffe));
        }
        assert!(lacks_checksum(0x1234, 0x1234));
        assert!(!lacks_checksum(0x1234, 0x1235));
    }

    #[test]
    fn tunnels_of_frames_are_known_by_where_they_lead() {
        assert!([4789, 8472, 6081].into_iter().all(|port| carries_frames(proto::UDP, port)));
        assert!(!carries_frames(proto::TCP, 4789) && !carries_frames(proto::UDP, 53));
    }
}
