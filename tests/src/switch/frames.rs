//! Ethernet frames built byte by byte.

use telecluster_common::{checksum::fold, vlan::frame::is_tag};

/// An EtherType for experiments (IEEE 802 clause 9.2.4): nobody else's traffic.
pub const EXPERIMENT: u16 = 0x88b5;
pub const BROADCAST: [u8; 6] = [0xff; 6];
/// 802.1Q and 802.1ad.
pub const Q: u16 = 0x8100;
pub const AD: u16 = 0x88a8;

/// The station behind a port.
pub const fn mac(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, number]
}

/// A frame to be.
#[derive(Debug, Clone)]
pub struct Ether {
    pub dst: [u8; 6],
    pub src: [u8; 6],
    /// Protocol and control, the outer one first.
    pub tags: Vec<(u16, u16)>,
    pub kind: u16,
    pub payload: Vec<u8>,
}

/// From the station behind one port to another station.
pub fn ether(src: [u8; 6], dst: [u8; 6]) -> Ether {
    Ether { dst, src, tags: Vec::new(), kind: EXPERIMENT, payload: vec![0x5a; 46] }
}

impl Ether {
    /// With one more 802.1Q tag inside of those that it has.
    #[must_use]
    pub fn q(self, control: u16) -> Self {
        self.tag(Q, control)
    }

    #[must_use]
    pub fn tag(mut self, protocol: u16, control: u16) -> Self {
        self.tags.push((protocol, control));
        self
    }

    #[must_use]
    pub fn payload(mut self, kind: u16, payload: Vec<u8>) -> Self {
        (self.kind, self.payload) = (kind, payload);
        self
    }

    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = [self.dst, self.src].concat();
        for (protocol, control) in &self.tags {
            bytes.extend(protocol.to_be_bytes());
            bytes.extend(control.to_be_bytes());
        }
        bytes.extend(self.kind.to_be_bytes());
        bytes.extend(&self.payload);
        bytes
    }
}

/// An ARP packet: who asks, for whom (RFC 826).
pub fn arp(src: [u8; 6], dst: [u8; 6], operation: u16, sender_ip: [u8; 4], target_ip: [u8; 4]) -> Ether {
    let mut arp = vec![0, 1, 8, 0, 6, 4];
    arp.extend(operation.to_be_bytes());
    arp.extend(src);
    arp.extend(sender_ip);
    arp.extend([0; 6]);
    arp.extend(target_ip);
    arp.extend([0; 18]);
    ether(src, dst).payload(0x0806, arp)
}

/// An ICMPv6 message of a kind, from a link-local address to a multicast group: neighbour discovery.
pub fn icmpv6(src: [u8; 6], group: [u8; 16], kind: u8) -> Ether {
    let mut ip = vec![0x60, 0, 0, 0, 0, 24, 58, 255];
    ip.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0xff, 0xfe, 0, 0, src[5]]);
    ip.extend(group);
    ip.extend([kind, 0, 0, 0]);
    ip.extend([0; 20]);
    let dst = [0x33, 0x33, group[12], group[13], group[14], group[15]];
    ether(src, dst).payload(0x86dd, ip)
}

/// ff02::1
pub const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// What hypervisors send for a machine that has moved.
pub fn rarp(src: [u8; 6]) -> Ether {
    let mut rarp = vec![0, 1, 8, 0, 6, 4, 0, 3];
    for _ in 0..2 {
        rarp.extend(src);
        rarp.extend([0; 4]);
    }
    rarp.extend([0; 18]);
    ether(src, BROADCAST).payload(0x8035, rarp)
}

/// The same frame, with as many bytes of a datagram (IPv4, UDP without a checksum) in the place of a payload for experiments: what
/// programs in drivers can see has all its checksums.
pub fn with_datagram(frame: &[u8]) -> Vec<u8> {
    let mut place = 12;
    while kind_of(frame, place).is_some_and(is_tag) {
        place += 4;
    }
    let mut frame = frame.to_vec();
    let length = frame.len().saturating_sub(place + 2);
    if kind_of(&frame, place) != Some(EXPERIMENT) || length < 28 {
        return frame;
    }
    let [high, low] = u16::try_from(length).expect("a packet").to_be_bytes();
    let mut packet = vec![0x45, 0, high, low, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    // The kernel's bridge may look at it (br_netfilter).
    let sum = packet.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    packet[10..12].copy_from_slice(&(!fold(sum)).to_be_bytes());
    let [high, low] = u16::try_from(length - 20).expect("a datagram").to_be_bytes();
    packet.extend([0xc3, 0x50, 0, 9, high, low, 0, 0]);
    packet.resize(length, 0x5a);
    frame.splice(place.., [0x08, 0x00].into_iter().chain(packet));
    frame
}

fn kind_of(frame: &[u8], place: usize) -> Option<u16> {
    frame.get(place..place + 2).map(|kind| u16::from_be_bytes([kind[0], kind[1]]))
}
