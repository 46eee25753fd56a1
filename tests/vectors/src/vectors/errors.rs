//! ICMP errors about what was translated, and about what was not.

use telecluster_common::{drop::DropReason, maps::Direction};

use super::{Cast, IPV4, IPV6, Step, Vector, dropped, dropped_in, forward, inward, out, untouched};
use crate::frame::{Frame, SYN, UDP, icmp, icmp_error, mend_error, tcp, udp, udp_without_checksum};

pub(super) fn icmp_error_vectors(cast: Cast) -> Vec<Vector> {
    let Cast { uplink, inside, other_inside, remote, stranger: router, echo, .. } = cast;
    let header = if inside.is_ipv4() { 20 } else { 40 };
    let masquerade = || cast.masquerade();
    // (what left, as inside sent it, as outside saw it)
    let packets: Vec<(Frame, Frame)> = vec![
        (udp((inside, 40000), (remote, 53), b"query"), udp((uplink, 40000), (remote, 53), b"query")),
        (
            udp_without_checksum((inside, 40001), (remote, 53), b"query"),
            udp_without_checksum((uplink, 40001), (remote, 53), b"query"),
        ),
        (tcp((inside, 40002), (remote, 80), SYN, b""), tcp((uplink, 40002), (remote, 80), SYN, b"")),
        (icmp(inside, remote, echo, 7, b"abc"), icmp(uplink, remote, echo, 7, b"abc")),
    ];
    let mut about_ours = Vec::new();
    for (sent, seen) in &packets {
        about_ours.push(out(sent, seen));
        for kind in errors(cast) {
            // eight bytes of transport header are the least (RFC 792), everything is the most
            for embed in [header + 8, 1500] {
                for from in [remote, router] {
                    about_ours.push(inward(
                        &icmp_error(from, uplink, kind, seen, embed),
                        &icmp_error(from, inside, kind, sent, embed),
                    ));
                }
            }
        }
    }
    let dns = (other_inside, 5353);
    let (client, external) = ((remote, 50000), (uplink, 53));
    let (query, seen_inside) = (udp(client, external, b"q"), udp(client, dns, b"q"));
    let mut about_theirs = vec![inward(&query, &seen_inside)];
    for kind in errors(cast) {
        // from the server, and from the host itself, which could not pass it on
        for (from, appears) in [(other_inside, uplink), (uplink, uplink)] {
            about_theirs.push(out(
                &icmp_error(from, remote, kind, &seen_inside, 1500),
                &icmp_error(appears, remote, kind, &query, 1500),
            ));
        }
    }
    let kind = errors(cast)[0];
    let unknown = udp((uplink, 1), (remote, 2), b"q");
    let unknown_inside = udp((remote, 2), (inside, 1), b"q");
    let about_error = icmp_error(uplink, remote, kind, &unknown, 1500);
    let long = [7; 100];
    let (sent, seen) = (udp((inside, 40003), (remote, 53), &long), udp((uplink, 40003), (remote, 53), &long));
    let part = |whole: &Frame| whole.fragments(77, 32).swap_remove(0);
    let about_a_part = vec![
        out(&part(&sent), &part(&seen)),
        inward(
            &icmp_error(router, uplink, kind, &part(&seen), 1500),
            &icmp_error(router, inside, kind, &part(&sent), 1500),
        ),
        // the others name nobody
        untouched(Direction::In, icmp_error(router, uplink, kind, &seen.fragments(77, 32)[1], 1500).bytes()),
    ];
    vec![
        Vector {
            name: "errors about the first part of a packet find their way inside",
            rules: vec![masquerade()],
            steps: about_a_part,
        },
        Vector {
            name: "errors about what has left find their way inside, however much they embed",
            rules: vec![masquerade()],
            steps: about_ours,
        },
        Vector {
            name: "errors about an answer leave with the address that it came to",
            rules: vec![masquerade()],
            steps: cast
                .udp_exchange(40000, b"q")
                .into_iter()
                .chain([out(
                    &icmp_error(inside, remote, kind, &udp((remote, 53), (inside, 40000), b"q"), 1500),
                    &icmp_error(uplink, remote, kind, &udp((remote, 53), (uplink, 40000), b"q"), 1500),
                )])
                .collect(),
        },
        Vector {
            name: "errors about what was forwarded leave with the address that it came to",
            rules: vec![masquerade(), forward(UDP, 53, dns)],
            steps: about_theirs,
        },
        Vector {
            name: "errors about nothing of ours are the host's, or do not leave",
            rules: vec![masquerade()],
            steps: vec![
                untouched(Direction::In, icmp_error(router, uplink, kind, &unknown, 1500).bytes()),
                untouched(Direction::In, icmp_error(router, uplink, kind, &unknown, header).bytes()),
                untouched(Direction::In, icmp_error(router, uplink, kind, &about_error, 1500).bytes()),
                untouched(Direction::Out, icmp_error(uplink, remote, kind, &unknown_inside, 1500).bytes()),
                dropped(
                    icmp_error(inside, remote, kind, &unknown_inside, 1500).bytes(),
                    DropReason::Protocol,
                ),
            ],
        },
    ]
}

/// RFC 5508 REQ-3 and 3a, RFC 4443 section 2.3.
pub(super) fn checked_vectors(cast: Cast) -> Vec<Vector> {
    let Cast { uplink, inside, other_inside, remote, stranger: router, .. } = cast;
    let header = if inside.is_ipv4() { 20 } else { 40 };
    let kind = errors(cast)[0];
    let [sent, seen] = [inside, uplink].map(|host| udp((host, 40000), (remote, 53), &[0xa5; 1400]));
    let came = |embed| icmp_error(router, uplink, kind, &seen, embed);
    let told = |embed| icmp_error(router, inside, kind, &sent, embed);
    let changed = |frame: &Frame, place: usize| {
        let mut bytes = frame.bytes();
        bytes[place] ^= 1;
        bytes
    };
    let mut lengths = vec![out(&sent, &seen)];
    for embed in (header + 8..header + 80).chain(500..520).chain(1015..1030).chain([1300, 1426, 1427, 1428]) {
        lengths.push(inward(&came(embed), &told(embed)));
        let last = came(embed).bytes().len() - 1;
        lengths.push(dropped_in(changed(&came(embed), last), DropReason::Malformed));
    }

    let error = 14 + header; // type, code, checksum, and what depends on the type
    let (client, server) = ((remote, 50000), (other_inside, 5353));
    let (query, seen_inside) = (udp(client, (uplink, 53), b"q"), udp(client, server, b"q"));
    let answer = icmp_error(other_inside, remote, kind, &seen_inside, 1500);
    let mut wrong = vec![out(&sent, &seen), inward(&query, &seen_inside)];
    // The code, both bytes of the checksum, what follows; the embedded header's hops, and the embedded checksum.
    for place in [1, 2, 3, 4, 7, 8 + if header == 20 { 8 } else { 7 }, 8 + header + 6] {
        wrong.push(dropped_in(changed(&came(100), error + place), DropReason::Malformed));
        wrong.push(dropped(changed(&answer, error + place), DropReason::Malformed));
    }
    // Less than its header says.
    let whole = came(100).bytes();
    wrong.push(dropped_in(whole[..whole.len() - 1].to_vec(), DropReason::Malformed));
    // Right as a whole, but what it embeds is not what was sent.
    if header == 20 {
        for place in [1, 8, 10, 11] {
            for (frame, make) in
                [(came(100), dropped_in as fn(Vec<u8>, DropReason) -> Step), (answer.clone(), dropped)]
            {
                let mut bytes = changed(&frame, error + 8 + place);
                mend_error(&mut bytes);
                wrong.push(make(bytes, DropReason::Malformed));
            }
        }
    }
    wrong.push(inward(&came(100), &told(100)));
    wrong.push(out(&answer, &icmp_error(uplink, remote, kind, &query, 1500)));

    // A transport checksum inside is not for us to look at, nor is what a link has added behind the packet.
    let broken = |frame: &Frame| {
        let mut frame = frame.clone();
        frame.transport[20] ^= 1;
        frame
    };
    let padded = |frame: &Frame| [frame.bytes(), vec![0x77; 5]].concat();
    let (frame, expected) = (padded(&came(101)), padded(&told(101)));
    let right = vec![
        out(&sent, &seen),
        inward(
            &icmp_error(router, uplink, kind, &broken(&seen), 1500),
            &icmp_error(router, inside, kind, &broken(&sent), 1500),
        ),
        Step::Becomes { direction: Direction::In, frame, expected },
    ];
    vec![
        Vector {
            name: "errors are summed up whatever their length",
            rules: vec![cast.masquerade()],
            steps: lengths,
        },
        Vector {
            name: "an error that is not what was sent is dropped",
            rules: vec![cast.masquerade(), forward(UDP, 53, server)],
            steps: wrong,
        },
        Vector {
            name: "an error is right whatever the transport checksum in it and the bytes behind it are",
            rules: vec![cast.masquerade()],
            steps: right,
        },
    ]
}

/// RFC 5508 REQ-3b: what an error embeds may have IP options before its transport header.
pub(super) fn errors_about_options() -> Vector {
    let cast = IPV4;
    let Cast { uplink, inside, other_inside, remote, stranger: router, echo, .. } = cast;
    let header = 20;
    let few = |frame: Frame| frame.options(&[0x94, 0x04, 0, 0]); // router alert (RFC 2113)
    let many = |frame: Frame| frame.options(&[1; 40]); // as many no-operations as fit
    let (client, external, server) = ((remote, 50000), (uplink, 53), (other_inside, 5353));
    let mut steps = Vec::new();
    for (port, with) in [(40000, &few as &dyn Fn(Frame) -> Frame), (40010, &many)] {
        // (what left, as inside sent it, as outside saw it)
        let left = [
            (udp((inside, port), (remote, 53), b"query"), udp((uplink, port), (remote, 53), b"query")),
            (tcp((inside, port), (remote, 80), SYN, b""), tcp((uplink, port), (remote, 80), SYN, b"")),
            (icmp(inside, remote, echo, port, b"abc"), icmp(uplink, remote, echo, port, b"abc")),
        ];
        for (sent, seen) in left {
            let (sent, seen) = (with(sent), with(seen));
            steps.push(out(&sent, &seen));
            for kind in errors(cast) {
                // eight bytes of transport header are the least (RFC 792), everything is the most
                for embed in [header + seen.options.len() + 8, 1500] {
                    steps.push(inward(
                        &icmp_error(router, uplink, kind, &seen, embed),
                        &icmp_error(router, inside, kind, &sent, embed),
                    ));
                }
            }
        }
        let (query, seen_inside) = (with(udp(client, external, b"q")), with(udp(client, server, b"q")));
        steps.push(inward(&query, &seen_inside));
        for kind in errors(cast) {
            for embed in [header + query.options.len() + 8, 1500] {
                steps.push(out(
                    &icmp_error(other_inside, remote, kind, &seen_inside, embed),
                    &icmp_error(uplink, remote, kind, &query, embed),
                ));
            }
        }
    }
    Vector {
        name: "errors about packets with options find their way, in both directions",
        rules: vec![cast.masquerade(), forward(UDP, 53, server)],
        steps,
    }
}

/// The same of IPv6's extension headers (RFC 8200 section 4.1), which translated packets may have.
pub(super) fn errors_about_extensions() -> Vec<Vector> {
    let cast = IPV6;
    let Cast { uplink, inside, other_inside, remote, stranger: router, echo, .. } = cast;
    let (client, external, server) = ((remote, 50000), (uplink, 53), (other_inside, 5353));
    let mut steps = Vec::new();
    for (port, chain) in (40000..).zip(CHAINS) {
        let with = |frame| extended(frame, chain);
        let long = [7; 100];
        // (what left, as inside sent it, as outside saw it)
        let left = [
            (udp((inside, port), (remote, 53), &long), udp((uplink, port), (remote, 53), &long)),
            (tcp((inside, port), (remote, 80), SYN, b""), tcp((uplink, port), (remote, 80), SYN, b"")),
            (icmp(inside, remote, echo, port, b"abc"), icmp(uplink, remote, echo, port, b"abc")),
        ];
        for (sent, seen) in left {
            let (sent, seen) = (with(sent), with(seen));
            steps.push(out(&sent, &seen));
            for kind in errors(cast) {
                for embed in [40 + seen.options.len() + 8, 1500] {
                    steps.push(inward(
                        &icmp_error(router, uplink, kind, &seen, embed),
                        &icmp_error(router, inside, kind, &sent, embed),
                    ));
                }
            }
        }
        let (query, seen_inside) = (with(udp(client, external, &long)), with(udp(client, server, &long)));
        steps.push(inward(&query, &seen_inside));
        for kind in errors(cast) {
            for embed in [40 + query.options.len() + 8, 1500] {
                steps.push(out(
                    &icmp_error(other_inside, remote, kind, &seen_inside, embed),
                    &icmp_error(uplink, remote, kind, &query, embed),
                ));
            }
        }
    }
    let kind = errors(cast)[2]; // too big
    let about = |frame: &Frame, embed| icmp_error(router, uplink, kind, frame, embed);
    let [sent, seen] = [inside, uplink].map(|host| udp((host, 41000), (remote, 53), &[7; 100]));
    // More than are looked behind, as many, and one that is cut off; and where nobody looks.
    let (chain, most) = ([DESTINATION; 7], [DESTINATION; 6]);
    let unknown = extended(seen.clone(), &[DESTINATION, 51]);
    let (whole, translated) = (extended(sent.clone(), &most), extended(seen.clone(), &most));
    let cut = |lost: usize| about(&translated, 40 + 6 * 8 - lost).bytes();
    let endless = vec![
        out(&sent, &seen),
        inward(&about(&translated, 1500), &icmp_error(router, inside, kind, &whole, 1500)),
        untouched(Direction::In, about(&extended(seen.clone(), &chain), 1500).bytes()),
        untouched(Direction::In, about(&unknown, 1500).bytes()),
        untouched(Direction::In, cut(0)),
        untouched(Direction::In, cut(2)),
        untouched(Direction::In, cut(8)),
        untouched(Direction::In, cut(6 * 8)),
    ];
    // In parts, whose header may stand between others.
    let mut parts = Vec::new();
    for (port, before, behind) in [
        (42000, &[][..], &[DESTINATION][..]),
        (42001, &[HOP_BY_HOP, ROUTING], &[]),
        (42002, &[HOP_BY_HOP], &[DESTINATION]),
    ] {
        let [sent, seen] = [inside, uplink].map(|host| {
            let whole = extended(udp((host, port), (remote, 53), &[7; 100]), behind);
            whole.fragments(77, 32).into_iter().map(|part| extended(part, before)).collect::<Vec<_>>()
        });
        parts.extend([
            out(&sent[0], &seen[0]),
            inward(&about(&seen[0], 1500), &icmp_error(router, inside, kind, &sent[0], 1500)),
            // the others name nobody
            untouched(Direction::In, about(&seen[1], 1500).bytes()),
        ]);
    }
    vec![
        Vector {
            name: "errors about packets with extension headers find their way, in both directions",
            rules: vec![cast.masquerade(), forward(UDP, 53, server)],
            steps,
        },
        Vector {
            name: "an error whose packet has its ports behind too many headers, or beyond the error's end, is the host's",
            rules: vec![cast.masquerade()],
            steps: endless,
        },
        Vector {
            name: "errors about the first of parts find their way whatever stands before and behind the header of parts",
            rules: vec![cast.masquerade()],
            steps: parts,
        },
    ]
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION: u8 = 60;

/// Extension headers from the first to the last: one of each kind, and what RFC 8200 section 4.1 asks for.
const CHAINS: [&[u8]; 6] = [
    &[HOP_BY_HOP],
    &[ROUTING],
    &[DESTINATION],
    &[HOP_BY_HOP, DESTINATION],
    &[DESTINATION, ROUTING],
    &[HOP_BY_HOP, DESTINATION, ROUTING, DESTINATION],
];

/// With these extension headers between the IP header and what there is.
fn extended(frame: Frame, chain: &[u8]) -> Frame {
    chain.iter().rev().fold(frame, |frame, number| frame.extension(*number))
}

/// Type, code and what follows, of every ICMP error that embeds a packet: host, port and network unreachable, too big,
/// source quench, time exceeded, parameter problem.
pub(super) fn errors(cast: Cast) -> Vec<(u8, u8, [u8; 4])> {
    let (none, mtu) = ([0; 4], [0, 0, 5, 20]);
    if cast.inside.is_ipv4() {
        vec![
            (3, 3, none),
            (3, 1, none),
            (3, 4, mtu),
            (3, 13, none),
            (4, 0, none),
            (11, 0, none),
            (12, 0, [20, 0, 0, 0]),
        ]
    } else {
        vec![(1, 4, none), (1, 1, none), (2, 0, mtu), (3, 0, none), (4, 1, [0, 0, 0, 6])]
    }
}
