//! What is nobody's business, and what must not leave.

use telecluster_common::{drop::DropReason, maps::Direction};

use super::{
    INSIDE, IPV6, REMOTE, STRANGER, UPLINK_ADDRESS, Vector, dropped, forward, masquerade, untouched,
};
use crate::frame::{ACK, FIN, Frame, ICMP, ICMP6, SYN, TCP, UDP, icmp, tcp, udp};

pub(super) fn untouched_vectors() -> Vec<Vector> {
    let arp = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 2, 8, 6], &[0; 28]].concat();
    let ipv6 = [&[2; 12][..], &[0x86, 0xdd, 0x60], &[0; 59]].concat();
    // neighbour discovery never has to do with us, whatever its addresses
    let discovery = (133..=137).map(|kind| icmp(IPV6.inside, IPV6.remote, kind, 0, &[0; 16]).bytes());
    let mut tagged = udp((INSIDE, 1), (REMOTE, 2), b"q").bytes();
    tagged.splice(12..12, [0x81, 0, 0, 100]);
    let mut version = udp((INSIDE, 1), (REMOTE, 2), b"q").bytes();
    version[14] = 0x55;
    let mut short_header = version.clone();
    short_header[14] = 0x44;
    let mut frames = vec![
        arp,
        ipv6,
        tagged,
        version,
        short_header,
        udp((STRANGER, 1), (REMOTE, 2), b"q").bytes(),
        tcp((STRANGER, 1), (REMOTE, 2), SYN, b"").bytes(),
        // the host's own
        udp((UPLINK_ADDRESS, 1), (REMOTE, 2), b"q").bytes(),
        tcp((UPLINK_ADDRESS, 8000), (REMOTE, 2), ACK, b"x").bytes(),
        Frame::new(STRANGER, REMOTE, 47, vec![0; 16]).bytes(),
        Frame::new(UPLINK_ADDRESS, REMOTE, 50, vec![0; 16]).bytes(),
    ];
    frames.extend(discovery);
    let steps = |direction| frames.iter().map(|frame| untouched(direction, frame.clone())).collect();
    vec![
        Vector {
            name: "what leaves from no masqueraded network is left alone",
            rules: vec![masquerade(), IPV6.masquerade()],
            steps: steps(Direction::Out),
        },
        Vector {
            name: "what arrives for no forward is left alone",
            rules: vec![masquerade(), IPV6.masquerade()],
            steps: steps(Direction::In),
        },
        Vector {
            name: "strange protocols from outside are left to the host",
            rules: vec![masquerade(), forward(UDP, 53, (INSIDE.into(), 53))],
            steps: vec![
                untouched(Direction::In, Frame::new(REMOTE, UPLINK_ADDRESS, 47, vec![0; 16]).bytes()),
                untouched(Direction::In, Frame::new(REMOTE, UPLINK_ADDRESS, UDP, vec![0; 4]).bytes()),
            ],
        },
    ]
}

pub(super) fn refused_vectors() -> Vec<Vector> {
    let (inside, remote) = ((INSIDE, 40000), (REMOTE, 443));
    let (inside6, remote6) = ((IPV6.inside, 40000), (IPV6.remote, 443));
    let datagram6 = || udp(inside6, remote6, b"q");
    // more extension headers than anybody sends
    let chain = (0..7).fold(datagram6(), |frame, _| frame.extension(60));
    let ipv6 = vec![
        dropped(tcp(inside6, remote6, ACK, b"x").bytes(), DropReason::TcpNotSyn),
        dropped(datagram6().fragments(7, 8)[1].bytes(), DropReason::Fragment),
        dropped(in_parts(&Frame::new(IPV6.inside, IPV6.remote, 50, vec![7; 64])), DropReason::Protocol),
        dropped(in_parts(&Frame::new(IPV6.inside, IPV6.remote, ICMP, vec![8; 64])), DropReason::Protocol),
        dropped(Frame::new(IPV6.inside, IPV6.remote, 50, vec![0; 16]).bytes(), DropReason::Protocol),
        dropped(icmp(IPV6.inside, IPV6.remote, 139, 7, b"").bytes(), DropReason::Protocol),
        dropped(Frame::new(IPV6.inside, IPV6.remote, ICMP6, vec![128; 5]).bytes(), DropReason::Malformed),
        dropped(datagram6().extension(60).bytes()[..14 + 40 + 4].to_vec(), DropReason::Malformed),
        dropped(chain.bytes(), DropReason::Protocol),
    ];
    let mut vectors = vec![Vector {
        name: "nothing of IPv6 leaves with an inside address",
        rules: vec![IPV6.masquerade()],
        steps: ipv6,
    }];
    vectors.extend([Vector {
        name: "nothing leaves with an inside address",
        rules: vec![masquerade()],
        steps: vec![
            dropped(tcp(inside, remote, ACK, b"x").bytes(), DropReason::TcpNotSyn),
            dropped(tcp(inside, remote, SYN | FIN, b"").bytes(), DropReason::TcpNotSyn),
            dropped(udp(inside, remote, b"q").fragment(0x0010).bytes(), DropReason::Fragment),
            dropped(tcp(inside, remote, ACK, b"x").fragment(0x2000).bytes(), DropReason::TcpNotSyn),
            dropped(tcp(inside, remote, ACK, b"x").fragment(0x0010).bytes(), DropReason::Fragment),
            dropped(Frame::new(INSIDE, REMOTE, 47, vec![0; 16]).bytes(), DropReason::Protocol),
            dropped(in_parts(&Frame::new(INSIDE, REMOTE, 47, vec![7; 64])), DropReason::Protocol),
            dropped(in_parts(&Frame::new(INSIDE, REMOTE, ICMP6, vec![128; 64])), DropReason::Protocol),
            dropped(icmp(INSIDE, REMOTE, 17, 7, b"").bytes(), DropReason::Protocol),
            dropped(icmp(INSIDE, REMOTE, 0, 7, b"").bytes(), DropReason::Protocol),
            dropped(icmp(INSIDE, REMOTE, 14, 7, b"").bytes(), DropReason::Protocol),
            dropped(Frame::new(INSIDE, REMOTE, UDP, vec![0; 7]).bytes(), DropReason::Malformed),
            dropped(Frame::new(INSIDE, REMOTE, TCP, vec![0; 19]).bytes(), DropReason::Malformed),
            dropped(Frame::new(INSIDE, REMOTE, ICMP, vec![8; 5]).bytes(), DropReason::Malformed),
            dropped(
                udp(inside, remote, b"").options(&[1; 40]).bytes()[..14 + 60 + 4].to_vec(),
                DropReason::Malformed,
            ),
        ],
    }]);
    vectors
}

/// The first part.
fn in_parts(frame: &Frame) -> Vec<u8> {
    frame.fragments(7, 32)[0].bytes()
}
