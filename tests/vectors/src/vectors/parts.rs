//! Packets in parts.

use telecluster_common::{drop::DropReason, maps::Direction};

use super::{Cast, Step, Vector, dropped, forward, untouched};
use crate::frame::{Frame, SYN, UDP, icmp, tcp, udp, udp_without_checksum};

/// Datagrams and pings longer than a link's MTU.
pub(super) fn fragment_vectors(cast: Cast) -> Vec<Vector> {
    let Cast { uplink, inside, other_inside, remote, stranger, echo, echo_reply, .. } = cast;
    let long: Vec<u8> = (0..100u8).map(|byte| byte.wrapping_mul(91)).collect();
    let parts = |direction, whole: &Frame, expected: &Frame, id| -> Vec<Step> {
        let step = |(frame, expected): (Frame, Frame)| Step::Becomes {
            direction,
            frame: frame.bytes(),
            expected: expected.bytes(),
        };
        whole.fragments(id, 32).into_iter().zip(expected.fragments(id, 32)).map(step).collect()
    };
    let outward = |whole: &Frame, expected: &Frame, id| parts(Direction::Out, whole, expected, id);
    let inward = |whole: &Frame, expected: &Frame, id| parts(Direction::In, whole, expected, id);
    let (there, back) = ((inside, 40000), (remote, 53));
    let external = (uplink, 40000);
    let ping = |src, dst, kind| icmp(src, dst, kind, 77, &long);
    let dns = (other_inside, 5353);
    let (client, forwarded) = ((remote, 50000), (uplink, 53));
    let plain = |src, dst| udp_without_checksum(src, dst, &long);
    let mut shuffled = outward(&udp(there, back, &long), &udp(external, back, &long), 9);
    shuffled[1..].reverse();
    let orphans =
        |whole: Frame, id| whole.fragments(id, 32)[1..].iter().map(Frame::bytes).collect::<Vec<_>>();
    vec![
        Vector {
            name: "a long masqueraded datagram goes out in parts and its answer comes back in parts",
            rules: vec![cast.masquerade()],
            steps: [
                outward(&udp(there, back, &long), &udp(external, back, &long), 1),
                inward(&udp(back, external, &long), &udp(back, there, &long), 1),
                // the same number again, for another datagram of another socket
                outward(&udp((inside, 40001), back, &long), &udp((uplink, 40001), back, &long), 1),
                shuffled,
            ]
            .concat(),
        },
        Vector {
            name: "a long datagram without checksum stays without",
            rules: vec![cast.masquerade()],
            steps: outward(&plain(there, back), &plain(external, back), 2),
        },
        Vector {
            name: "a long ping goes out in parts and its answer comes back in parts",
            rules: vec![cast.masquerade()],
            steps: [
                outward(&ping(inside, remote, echo), &ping(uplink, remote, echo), 3),
                inward(&ping(remote, uplink, echo_reply), &ping(remote, inside, echo_reply), 4),
            ]
            .concat(),
        },
        Vector {
            name: "a forwarded datagram comes in in parts, as the first of its flow too",
            rules: vec![forward(UDP, 53, dns)],
            steps: [
                inward(&udp(client, forwarded, &long), &udp(client, dns, &long), 5),
                outward(&udp(dns, client, &long), &udp(forwarded, client, &long), 6),
                inward(&udp(client, forwarded, &long), &udp(client, dns, &long), 7),
            ]
            .concat(),
        },
        Vector {
            name: "a TCP segment in parts is translated like a whole one",
            rules: vec![cast.masquerade()],
            steps: outward(&tcp(there, back, SYN, &long), &tcp(external, back, SYN, &long), 8),
        },
        Vector {
            name: "parts of what is not ours are left alone",
            rules: vec![cast.masquerade(), forward(UDP, 5300, dns)],
            steps: [
                // the host's own, both ways
                inward(&udp(client, forwarded, &long), &udp(client, forwarded, &long), 11),
                outward(&udp(forwarded, client, &long), &udp(forwarded, client, &long), 12),
                // through the host, both ways
                inward(&udp(client, (stranger, 1), &long), &udp(client, (stranger, 1), &long), 13),
                outward(&udp((stranger, 1), client, &long), &udp((stranger, 1), client, &long), 14),
            ]
            .concat(),
        },
        Vector {
            name: "parts without a first one are the host's, or do not leave",
            rules: vec![cast.masquerade()],
            steps: orphans(udp(back, external, &long), 10)
                .into_iter()
                .map(|frame| untouched(Direction::In, frame))
                .chain(
                    orphans(udp(there, back, &long), 10)
                        .into_iter()
                        .map(|frame| dropped(frame, DropReason::Fragment)),
                )
                .collect(),
        },
        Vector {
            name: "the parts of a removed rule's flows stop at once",
            rules: vec![cast.masquerade()],
            steps: {
                let steps = outward(&udp(there, back, &long), &udp(external, back, &long), 15);
                let rest = orphans(udp(there, back, &long), 15).into_iter();
                let (first, _) = steps.split_first().expect("more than one part");
                let rest = rest.map(|frame| untouched(Direction::Out, frame));
                [first.clone(), Step::Remove(0)].into_iter().chain(rest).collect()
            },
        },
    ]
}
