//! Frames built byte by byte. Checksums are computed from scratch (RFC 1071), not by the code under test.

use std::net::Ipv4Addr;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;

pub const SYN: u8 = 2;
pub const ACK: u8 = 16;
pub const FIN: u8 = 1;
pub const RST: u8 = 4;

/// Ethernet header and the smallest IPv4 header.
pub const TRANSPORT: usize = 14 + 20;

/// An IPv4 packet in an Ethernet frame, with everything that a test may want to vary.
#[derive(Debug, Clone)]
pub struct Frame {
    pub src: Ipv4Addr,
    pub dst: Ipv4Addr,
    pub proto: u8,
    /// Multiple of four bytes, at most 40.
    pub options: Vec<u8>,
    /// Flags and offset as they stand in the header.
    pub fragment: u16,
    pub transport: Vec<u8>,
}

impl Frame {
    pub fn new(src: Ipv4Addr, dst: Ipv4Addr, proto: u8, transport: Vec<u8>) -> Self {
        Self { src, dst, proto, options: Vec::new(), fragment: 0, transport }
    }

    #[must_use]
    pub fn options(mut self, options: &[u8]) -> Self {
        assert!(options.len().is_multiple_of(4) && options.len() <= 40);
        self.options = options.to_vec();
        self
    }

    #[must_use]
    pub fn fragment(mut self, fragment: u16) -> Self {
        self.fragment = fragment;
        self
    }

    /// The bytes, Ethernet header first.
    pub fn bytes(&self) -> Vec<u8> {
        let header = 20 + self.options.len();
        let total = u16::try_from(header + self.transport.len()).expect("an IPv4 packet");
        let mut ip = vec![0x40 | u8::try_from(header / 4).expect("60 bytes at most"), 0];
        ip.extend(total.to_be_bytes());
        ip.extend([0x12, 0x34]);
        ip.extend(self.fragment.to_be_bytes());
        ip.extend([64, self.proto, 0, 0]);
        ip.extend(self.src.octets());
        ip.extend(self.dst.octets());
        ip.extend(&self.options);
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum);

        let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        bytes.extend(ip);
        bytes.extend(&self.transport);
        bytes
    }
}

type Socket = (Ipv4Addr, u16);

/// UDP with a checksum.
pub fn udp(src: Socket, dst: Socket, payload: &[u8]) -> Frame {
    let mut udp = udp_header(src.1, dst.1, payload);
    let sum = transport_checksum(src.0, dst.0, UDP, &udp);
    // RFC 768: a sum of zero is sent as all ones
    udp[6..8].copy_from_slice(&if sum == [0, 0] { [0xff, 0xff] } else { sum });
    Frame::new(src.0, dst.0, UDP, udp)
}

/// UDP that says it has no checksum.
pub fn udp_without_checksum(src: Socket, dst: Socket, payload: &[u8]) -> Frame {
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

pub fn tcp(src: Socket, dst: Socket, flags: u8, payload: &[u8]) -> Frame {
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
pub fn icmp(src: Ipv4Addr, dst: Ipv4Addr, kind: u8, identifier: u16, payload: &[u8]) -> Frame {
    let mut icmp = vec![kind, 0, 0, 0];
    icmp.extend(identifier.to_be_bytes());
    icmp.extend([0, 1]);
    icmp.extend(payload);
    let sum = checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum);
    Frame::new(src, dst, ICMP, icmp)
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

fn transport_checksum(src: Ipv4Addr, dst: Ipv4Addr, proto: u8, segment: &[u8]) -> [u8; 2] {
    let mut data = Vec::new();
    data.extend(src.octets());
    data.extend(dst.octets());
    data.extend([0, proto]);
    data.extend(u16::try_from(segment.len()).expect("fits IPv4").to_be_bytes());
    data.extend(segment);
    checksum(&data)
}
