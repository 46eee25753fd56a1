//! Frames built byte by byte. Checksums are computed from scratch (RFC 1071), not by the code under test.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Range,
};

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;
pub const ICMP6: u8 = 58;

pub const SYN: u8 = 2;
pub const ACK: u8 = 16;
pub const FIN: u8 = 1;
pub const RST: u8 = 4;

/// An IP packet in an Ethernet frame, with everything that a test may want to vary.
#[derive(Debug, Clone)]
pub struct Frame {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub proto: u8,
    /// IPv4: a multiple of four bytes, at most 40. IPv6: extension headers, of which the last says what follows; the
    /// first one's number is `proto`.
    pub options: Vec<u8>,
    /// IPv4: flags and offset as they stand in the header.
    pub fragment: u16,
    /// IPv4: of all fragments of one packet the same.
    pub id: u16,
    pub transport: Vec<u8>,
}

impl Frame {
    pub fn new(src: impl Into<IpAddr>, dst: impl Into<IpAddr>, proto: u8, transport: Vec<u8>) -> Self {
        let (src, dst) = (src.into(), dst.into());
        Self { src, dst, proto, options: Vec::new(), fragment: 0, id: 0x1234, transport }
    }

    #[must_use]
    pub fn options(mut self, options: &[u8]) -> Self {
        let (unit, most) = if self.src.is_ipv4() { (4, 40) } else { (8, 2048) };
        assert!(options.len().is_multiple_of(unit) && options.len() <= most);
        self.options = options.to_vec();
        self
    }

    #[must_use]
    pub fn fragment(mut self, fragment: u16) -> Self {
        self.fragment = fragment;
        self
    }

    /// The packet in parts of `len` bytes of what comes behind its headers, in order; `id` is theirs.
    #[must_use]
    pub fn fragments(&self, id: u16, len: usize) -> Vec<Self> {
        const MORE: u16 = 0x2000;
        assert!(len.is_multiple_of(8));
        let last = self.transport.len().div_ceil(len) - 1;
        let parts = self.transport.chunks(len).enumerate();
        parts
            .map(|(number, part)| {
                let place = u16::try_from(number * len / 8).expect("a packet is shorter");
                let mut fragment = Self { transport: part.to_vec(), id, ..self.clone() };
                if self.src.is_ipv4() {
                    fragment.fragment = place | if number == last { 0 } else { MORE };
                    return fragment;
                }
                let [high, low] = (place << 3 | u16::from(number != last)).to_be_bytes();
                let [a, b] = id.to_be_bytes();
                fragment.options.splice(0..0, [self.proto, 0, high, low, 0, 0, a, b]);
                fragment.proto = 44;
                fragment
            })
            .collect()
    }

    /// Puts an IPv6 extension header of eight bytes before what there is.
    #[must_use]
    pub fn extension(mut self, number: u8) -> Self {
        self.options.splice(0..0, [self.proto, 0, 1, 4, 0, 0, 0, 0]);
        self.proto = number;
        self
    }

    /// The bytes, Ethernet header first.
    pub fn bytes(&self) -> Vec<u8> {
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => self.bytes4(src, dst),
            (IpAddr::V6(src), IpAddr::V6(dst)) => self.bytes6(src, dst),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => panic!("two families"),
        }
    }

    /// The same with only the pseudo header's sum where its checksum belongs: Linux leaves that where the card is to fill it in.
    pub fn unsummed(&self) -> Vec<u8> {
        let mut bytes = self.bytes();
        let (addresses, transport) = if self.src.is_ipv4() { (26..34, 34) } else { (22..54, 54) };
        let mut pseudo = bytes[addresses].to_vec();
        pseudo.extend([0, self.proto]);
        pseudo.extend(u16::try_from(bytes.len() - transport).expect("a short frame").to_be_bytes());
        let sum = checksum(&pseudo).map(|byte| !byte);
        let place = transport + if self.proto == UDP { 6 } else { 16 };
        bytes[place..place + 2].copy_from_slice(&sum);
        bytes
    }

    fn bytes6(&self, src: Ipv6Addr, dst: Ipv6Addr) -> Vec<u8> {
        let payload = u16::try_from(self.options.len() + self.transport.len()).expect("an IPv6 packet");
        let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd, 0x60, 0, 0, 0];
        bytes.extend(payload.to_be_bytes());
        bytes.extend([self.proto, 64]);
        bytes.extend(src.octets());
        bytes.extend(dst.octets());
        bytes.extend(&self.options);
        bytes.extend(&self.transport);
        bytes
    }

    fn bytes4(&self, src: Ipv4Addr, dst: Ipv4Addr) -> Vec<u8> {
        let header = 20 + self.options.len();
        let total = u16::try_from(header + self.transport.len()).expect("an IPv4 packet");
        let mut ip = vec![0x40 | u8::try_from(header / 4).expect("60 bytes at most"), 0];
        ip.extend(total.to_be_bytes());
        ip.extend(self.id.to_be_bytes());
        ip.extend(self.fragment.to_be_bytes());
        ip.extend([64, self.proto, 0, 0]);
        ip.extend(src.octets());
        ip.extend(dst.octets());
        ip.extend(&self.options);
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum);

        let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        bytes.extend(ip);
        bytes.extend(&self.transport);
        bytes
    }
}

/// An address and a port, of either family.
#[derive(Debug, Clone, Copy)]
pub struct End((IpAddr, u16));

impl<A: Into<IpAddr>> From<(A, u16)> for End {
    fn from((address, port): (A, u16)) -> Self {
        Self((address.into(), port))
    }
}

/// UDP with a checksum.
pub fn udp(src: impl Into<End>, dst: impl Into<End>, payload: &[u8]) -> Frame {
    let (src, dst) = (src.into().0, dst.into().0);
    let mut udp = udp_header(src.1, dst.1, payload);
    let sum = transport_checksum(src.0, dst.0, UDP, &udp);
    // RFC 768: a sum of zero is sent as all ones
    udp[6..8].copy_from_slice(&if sum == [0, 0] { [0xff, 0xff] } else { sum });
    Frame::new(src.0, dst.0, UDP, udp)
}

/// UDP that says it has no checksum.
pub fn udp_without_checksum(src: impl Into<End>, dst: impl Into<End>, payload: &[u8]) -> Frame {
    let (src, dst) = (src.into().0, dst.into().0);
    Frame::new(src.0, dst.0, UDP, udp_header(src.1, dst.1, payload))
}

fn udp_header(sport: u16, dport: u16, payload: &[u8]) -> Vec<u8> {
    let mut udp = Vec::new();
    udp.extend(sport.to_be_bytes());
    udp.extend(dport.to_be_bytes());
    udp.extend(u16::try_from(8 + payload.len()).expect("a UDP datagram").to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    udp
}

pub fn tcp(src: impl Into<End>, dst: impl Into<End>, flags: u8, payload: &[u8]) -> Frame {
    let (src, dst) = (src.into().0, dst.into().0);
    let mut tcp = Vec::new();
    tcp.extend(src.1.to_be_bytes());
    tcp.extend(dst.1.to_be_bytes());
    tcp.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    tcp.extend(payload);
    let sum = transport_checksum(src.0, dst.0, TCP, &tcp);
    tcp[16..18].copy_from_slice(&sum);
    Frame::new(src.0, dst.0, TCP, tcp)
}

/// ICMP of any type with an identifier.
pub fn icmp(
    src: impl Into<IpAddr>,
    dst: impl Into<IpAddr>,
    kind: u8,
    identifier: u16,
    payload: &[u8],
) -> Frame {
    let (src, dst) = (src.into(), dst.into());
    let mut icmp = vec![kind, 0, 0, 0];
    icmp.extend(identifier.to_be_bytes());
    icmp.extend([0, 1]);
    icmp.extend(payload);
    let (proto, sum) = if src.is_ipv4() {
        (ICMP, checksum(&icmp))
    } else {
        (ICMP6, transport_checksum(src, dst, ICMP6, &icmp))
    };
    icmp[2..4].copy_from_slice(&sum);
    Frame::new(src, dst, proto, icmp)
}

/// An ICMP error about another packet, of which it embeds as much as `embed` says. `rest`: the four bytes after the
/// checksum.
pub fn icmp_error(
    from: impl Into<IpAddr>,
    to: impl Into<IpAddr>,
    (kind, code, rest): (u8, u8, [u8; 4]),
    about: &Frame,
    embed: usize,
) -> Frame {
    let (src, dst) = (from.into(), to.into());
    let packet = &about.bytes()[14..];
    let mut icmp = vec![kind, code, 0, 0];
    icmp.extend(rest);
    icmp.extend(&packet[..embed.min(packet.len())]);
    let (proto, sum) = if src.is_ipv4() {
        (ICMP, checksum(&icmp))
    } else {
        (ICMP6, transport_checksum(src, dst, ICMP6, &icmp))
    };
    icmp[2..4].copy_from_slice(&sum);
    Frame::new(src, dst, proto, icmp)
}

/// Makes an ICMP error right that something was done to: the checksum of an IPv4 header that it embeds, and its own.
pub fn mend(frame: &mut [u8]) {
    mend_embedded_header(frame);
    mend_error(frame);
}

/// Makes its own right.
pub fn mend_error(frame: &mut [u8]) {
    let Some(error) = place_of_error(frame) else { return };
    frame[error.start + 2..error.start + 4].fill(0);
    let mut covered = Vec::new();
    if is_ipv6(frame) {
        covered.extend(&frame[22..54]);
        covered.extend([0, ICMP6]);
        covered.extend(u16::try_from(error.len()).expect("fits IP").to_be_bytes());
    }
    covered.extend(&frame[error.clone()]);
    let sum = checksum(&covered);
    frame[error.start + 2..error.start + 4].copy_from_slice(&sum);
}

fn mend_embedded_header(frame: &mut [u8]) {
    let Some(error) = place_of_error(frame) else { return };
    let start = error.start + 8;
    if is_ipv6(frame) || start == error.end {
        return;
    }
    let end = start + 4 * usize::from(frame[start] & 15);
    if end < start + 20 || end > error.end {
        return;
    }
    frame[start + 10..start + 12].fill(0);
    let sum = checksum(&frame[start..end]);
    frame[start + 10..start + 12].copy_from_slice(&sum);
}

fn is_ipv6(frame: &[u8]) -> bool {
    frame[12..14] == [0x86, 0xdd]
}

/// Where the ICMP error of a frame is, if it is one and whole.
fn place_of_error(frame: &[u8]) -> Option<Range<usize>> {
    let number =
        |place: usize| Some(usize::from(u16::from_be_bytes([*frame.get(place)?, *frame.get(place + 1)?])));
    let (range, first, last) = match frame.get(12..14)? {
        [8, 0] if *frame.get(23)? == ICMP => (14 + 4 * usize::from(frame[14] & 15)..14 + number(16)?, 3, 12),
        [0x86, 0xdd] => {
            let (mut next, mut place) = (*frame.get(20)?, 54);
            while matches!(next, 0 | 43 | 60) {
                (next, place) = (*frame.get(place)?, place + 8 * (usize::from(*frame.get(place + 1)?) + 1));
            }
            if next != ICMP6 {
                return None;
            }
            (place..54 + number(18)?, 1, 4)
        }
        _ => return None,
    };
    let whole = range.start + 8 <= range.end && range.end <= frame.len() && range.start >= 34;
    (whole && (first..=last).contains(&frame[range.start])).then_some(range)
}

/// RFC 1071.
pub fn checksum(data: &[u8]) -> [u8; 2] {
    let mut sum: u64 =
        data.chunks(2).map(|c| u64::from(c[0]) << 8 | u64::from(*c.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).expect("folded")).to_be_bytes()
}

fn transport_checksum(src: IpAddr, dst: IpAddr, proto: u8, segment: &[u8]) -> [u8; 2] {
    let mut data = Vec::new();
    for address in [src, dst] {
        match address {
            IpAddr::V4(address) => data.extend(address.octets()),
            IpAddr::V6(address) => data.extend(address.octets()),
        }
    }
    // RFC 8200 section 8.1 has wider fields than RFC 793; the sum is the same
    data.extend([0, proto]);
    data.extend(u16::try_from(segment.len()).expect("fits IP").to_be_bytes());
    data.extend(segment);
    checksum(&data)
}
