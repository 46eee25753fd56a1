//! ICMP and ICMPv6 echoes as bytes, and what comes back for them (RFC 792, RFC 4443). Pure.

use telecluster_common::checksum;

/// Which protocol an echo is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

/// What tells our echoes from everybody else's: every raw socket hears all of the host's ICMP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) id: u16,
    /// The first bytes of the payload. An ICMP error need not repeat them.
    pub(super) token: [u8; 8],
}

/// What came back for one of our echoes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// `ttl` where the packet shows it: IPv4.
    Reply {
        ttl: Option<u8>,
    },
    /// Its hop limit ran out on the way.
    Exceeded,
    Unreachable(&'static str),
}

/// Bytes of an echo without its IP header: what `ping` sends by default.
pub(super) const ECHO: usize = 8 + PAYLOAD;
pub(super) const PAYLOAD: usize = 56;
const ICMP_HEADER: usize = 8;
const IPV6_HEADER: usize = 40;

const V4_REPLY: u8 = 0;
const V4_UNREACHABLE: u8 = 3;
const V4_REQUEST: u8 = 8;
const V4_EXCEEDED: u8 = 11;
const V6_UNREACHABLE: u8 = 1;
const V6_TOO_BIG: u8 = 2;
const V6_EXCEEDED: u8 = 3;
const V6_REQUEST: u8 = 128;
const V6_REPLY: u8 = 129;
const IPPROTO_ICMP: u8 = 1;
const IPPROTO_ICMPV6: u8 = 58;

/// An echo request. The kernel completes the checksum of ICMPv6 itself.
pub(super) fn request(family: Family, mark: Mark, sequence: u16) -> [u8; ECHO] {
    let mut echo = [0; ECHO];
    echo[0] = match family {
        Family::V4 => V4_REQUEST,
        Family::V6 => V6_REQUEST,
    };
    echo[4..6].copy_from_slice(&mark.id.to_be_bytes());
    echo[6..8].copy_from_slice(&sequence.to_be_bytes());
    echo[ICMP_HEADER..ICMP_HEADER + mark.token.len()].copy_from_slice(&mark.token);
    if family == Family::V4 {
        let sum = !checksum::fold(sum(&echo));
        echo[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    echo
}

/// The ones' complement sum of big-endian words (RFC 1071), not yet folded.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum()
}

/// What a received packet says about one of our echoes: its sequence number, and what became of it.
pub(super) fn read(family: Family, mark: Mark, packet: &[u8]) -> Option<(u16, Heard)> {
    let (ttl, icmp) = match family {
        // A raw IPv4 socket gets the IP header too.
        Family::V4 => (packet.get(8).copied(), after_ipv4(packet)?.1),
        Family::V6 => (None, packet),
    };
    let (kind, code) = (*icmp.first()?, *icmp.get(1)?);
    let heard = match (family, kind) {
        (Family::V4, V4_REPLY) | (Family::V6, V6_REPLY) => {
            let token = icmp.get(ICMP_HEADER..ICMP_HEADER + mark.token.len())?;
            return (token == mark.token).then_some((ours(mark, icmp)?, Heard::Reply { ttl }));
        }
        (Family::V4, V4_EXCEEDED) | (Family::V6, V6_EXCEEDED) => Heard::Exceeded,
        (Family::V4, V4_UNREACHABLE) => Heard::Unreachable(unreachable_v4(code)),
        (Family::V6, V6_UNREACHABLE) => Heard::Unreachable(unreachable_v6(code)),
        (Family::V6, V6_TOO_BIG) => Heard::Unreachable("Packet too big"),
        _ => return None,
    };
    let inner = icmp.get(ICMP_HEADER..)?;
    let (request, echo) = match family {
        Family::V4 => match after_ipv4(inner)? {
            (IPPROTO_ICMP, echo) => (V4_REQUEST, echo),
            _ => return None,
        },
        // We send no extension headers.
        Family::V6 if *inner.get(6)? == IPPROTO_ICMPV6 => (V6_REQUEST, inner.get(IPV6_HEADER..)?),
        Family::V6 => return None,
    };
    (*echo.first()? == request).then_some((ours(mark, echo)?, heard))
}

/// The protocol and payload of an IPv4 packet.
fn after_ipv4(packet: &[u8]) -> Option<(u8, &[u8])> {
    let header = usize::from(*packet.first()? & 0x0f) * 4;
    Some((*packet.get(9)?, packet.get(header.max(20)..)?))
}

/// The sequence number of an echo that bears our identifier.
fn ours(mark: Mark, echo: &[u8]) -> Option<u16> {
    let id = u16::from_be_bytes(echo.get(4..6)?.try_into().ok()?);
    let sequence = u16::from_be_bytes(echo.get(6..8)?.try_into().ok()?);
    (id == mark.id).then_some(sequence)
}

fn unreachable_v4(code: u8) -> &'static str {
    match code {
        0 => "Destination Net Unreachable",
        1 => "Destination Host Unreachable",
        2 => "Destination Protocol Unreachable",
        3 => "Destination Port Unreachable",
        4 => "Frag needed and DF set",
        9 | 10 | 13 => "Communication administratively prohibited",
        _ => "Destination Unreachable",
    }
}

fn unreachable_v6(code: u8) -> &'static str {
    match code {
        0 => "No route to destination",
        1 => "Communication administratively prohibited",
        3 => "Address unreachable",
        4 => "Port unreachable",
        _ => "Destination Unreachable",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MARK: Mark = Mark { id: 0x1234, token: *b"telecl01" };

    fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 20];
        packet[0] = 0x45;
        packet[8] = 63;
        packet[9] = protocol;
        packet.extend_from_slice(payload);
        packet
    }

    fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; IPV6_HEADER];
        packet[0] = 0x60;
        packet[6] = next;
        packet.extend_from_slice(payload);
        packet
    }

    fn error(kind: u8, code: u8, inner: &[u8]) -> Vec<u8> {
        let mut icmp = vec![kind, code, 0, 0, 0, 0, 0, 0];
        icmp.extend_from_slice(inner);
        icmp
    }

    fn reply(family: Family, sequence: u16) -> Vec<u8> {
        let mut echo = request(family, MARK, sequence).to_vec();
        echo[0] = if family == Family::V4 { V4_REPLY } else { V6_REPLY };
        echo
    }

    #[test]
    fn the_checksum_of_a_request_is_right() {
        // A packet with a right checksum sums to all ones.
        assert_eq!(checksum::fold(sum(&request(Family::V4, MARK, 7))), 0xffff);
    }

    #[test]
    fn a_reply_is_told_by_identifier_and_token() {
        let packet = ipv4(IPPROTO_ICMP, &reply(Family::V4, 7));
        assert_eq!(read(Family::V4, MARK, &packet), Some((7, Heard::Reply { ttl: Some(63) })));
        assert_eq!(read(Family::V4, Mark { id: 1, ..MARK }, &packet), None);
        assert_eq!(read(Family::V4, Mark { token: [0; 8], ..MARK }, &packet), None);
        assert_eq!(read(Family::V6, MARK, &reply(Family::V6, 9)), Some((9, Heard::Reply { ttl: None })));
    }

    #[test]
    fn our_own_request_on_loopback_is_no_reply() {
        assert_eq!(read(Family::V4, MARK, &ipv4(IPPROTO_ICMP, &request(Family::V4, MARK, 7))), None);
        assert_eq!(read(Family::V6, MARK, &request(Family::V6, MARK, 7)), None);
    }

    #[test]
    fn an_error_is_about_the_echo_inside_it_even_when_cut_short() {
        let inner = ipv4(IPPROTO_ICMP, &request(Family::V4, MARK, 3)[..8]);
        let packet = ipv4(IPPROTO_ICMP, &error(V4_EXCEEDED, 0, &inner));
        assert_eq!(read(Family::V4, MARK, &packet), Some((3, Heard::Exceeded)));
        let packet = ipv4(IPPROTO_ICMP, &error(V4_UNREACHABLE, 1, &inner));
        assert_eq!(
            read(Family::V4, MARK, &packet),
            Some((3, Heard::Unreachable("Destination Host Unreachable")))
        );
        let inner = ipv6(IPPROTO_ICMPV6, &request(Family::V6, MARK, 4));
        assert_eq!(
            read(Family::V6, MARK, &error(V6_UNREACHABLE, 3, &inner)),
            Some((4, Heard::Unreachable("Address unreachable")))
        );
    }

    #[test]
    fn an_error_about_something_else_is_not_ours() {
        let udp = ipv4(17, &request(Family::V4, MARK, 3));
        assert_eq!(read(Family::V4, MARK, &ipv4(IPPROTO_ICMP, &error(V4_EXCEEDED, 0, &udp))), None);
    }

    proptest! {
        #[test]
        fn no_packet_is_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(Family::V4, MARK, &bytes);
            let _ = read(Family::V6, MARK, &bytes);
        }
    }
}
