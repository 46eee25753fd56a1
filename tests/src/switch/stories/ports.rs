//! What ports are told to be, and what becomes of frames when that changes.

use super::{Step, Story, send, story};
use crate::switch::{
    HOST, HOST_MAC, Port,
    frames::{AD, BROADCAST, EXPERIMENT, arp, ether, mac},
};

pub(super) fn ports() -> Vec<Story> {
    let frame = |from: u8| ether(mac(from), BROADCAST);
    let isolated = || Port { isolated: true, ..Port::access(10) };
    let hairpin = Port { hairpin: true, ..Port::access(10) };
    let limited = Port { station_limit: 2, ..Port::access(10) };
    let big = |size| ether(mac(1), BROADCAST).payload(EXPERIMENT, vec![7; size]);
    let narrow = Port { mtu: Some(1000), ..Port::access(10) };
    vec![
        story(
            "isolated ports reach only the others",
            vec![Port::plain(), isolated(), isolated(), Port::access(10)],
            vec![
                send(1, &frame(1), &[(3, &frame(1))]),
                send(3, &frame(3), &[(1, &frame(3)), (2, &frame(3))]),
                send(2, &ether(mac(2), mac(1)), &[]),
                send(3, &ether(mac(3), mac(1)), &[(1, &ether(mac(3), mac(1)))]),
            ],
        ),
        story(
            "a blocked port neither sends nor receives",
            vec![
                Port::plain(),
                Port { blocked: true, ..Port::access(10) },
                Port::access(10),
                Port::access(10),
            ],
            vec![send(1, &frame(1), &[]), send(2, &frame(2), &[(3, &frame(2))])],
        )
        .differs("set by spanning tree there"),
        story(
            "a hairpin port gets its own frames back",
            vec![Port::plain(), hairpin, Port::access(10)],
            vec![
                send(1, &frame(1), &[(1, &frame(1)), (2, &frame(1))]),
                send(1, &frame(9), &[(1, &frame(9)), (2, &frame(9))]),
                send(1, &ether(mac(1), mac(9)), &[(1, &ether(mac(1), mac(9)))]),
            ],
        ),
        story(
            "more stations than a port may have are reached and not remembered",
            vec![Port::plain(), limited, Port::access(10), Port::access(10)],
            vec![
                send(1, &frame(1), &[(2, &frame(1)), (3, &frame(1))]),
                send(1, &frame(11), &[(2, &frame(11)), (3, &frame(11))]),
                send(1, &frame(12), &[(2, &frame(12)), (3, &frame(12))]),
                send(2, &ether(mac(2), mac(11)), &[(1, &ether(mac(2), mac(11)))]),
                send(
                    2,
                    &ether(mac(2), mac(12)),
                    &[(1, &ether(mac(2), mac(12))), (3, &ether(mac(2), mac(12)))],
                ),
            ],
        )
        .differs("no such setting"),
        story(
            "a frame that is too big for a port does not leave through it",
            vec![Port::plain(), Port::access(10), narrow, Port::access(10)],
            vec![
                send(1, &big(1001), &[(2, &big(1001)), (3, &big(1001))]),
                send(1, &big(1005), &[(3, &big(1005))]),
            ],
        )
        .differs("the kernel's bridge takes the least MTU of its ports"),
        story(
            "the host is a port like the others: a trunk with a native VLAN",
            vec![Port::trunk(&[20]).native(10), Port::access(10), Port::access(20)],
            vec![
                send(1, &frame(1), &[(HOST, &frame(1))]),
                send(HOST, &ether(HOST_MAC, mac(1)), &[(1, &ether(HOST_MAC, mac(1)))]),
                send(HOST, &ether(HOST_MAC, BROADCAST).q(20), &[(2, &ether(HOST_MAC, BROADCAST))]),
                send(2, &ether(mac(2), HOST_MAC), &[(HOST, &ether(mac(2), HOST_MAC).q(20))]),
            ],
        ),
    ]
}

/// Frames that were decided a moment ago are decided otherwise when what that was decided by has changed.
pub(super) fn changes() -> Vec<Story> {
    let office = || vec![Port::plain(), Port::access(10), Port::access(10), Port::access(10)];
    let to = |from: u8, whom: u8| ether(mac(from), mac(whom));
    let hello = |from: u8, out: &[usize]| {
        let frame = ether(mac(from), BROADCAST);
        let out: Vec<_> = out.iter().map(|port| (*port, &frame)).collect();
        send(usize::from(from), &frame, &out)
    };
    // Stations 1 and 2 know each other, and so does the switch.
    let talk = || {
        let there = || send(1, &to(1, 2), &[(2, &to(1, 2))]);
        let back = || send(2, &to(2, 1), &[(1, &to(2, 1))]);
        vec![hello(1, &[2, 3]), hello(2, &[1, 3]), there(), back(), there(), back(), there(), back()]
    };
    let put = |number, port| Step::Put { number, port };
    let then = |name, steps: Vec<Step>| story(name, office(), [talk(), steps].concat());
    let gratuitous = arp(mac(2), BROADCAST, 1, [10, 0, 0, 2], [10, 0, 0, 2]);
    let fixed = |station: u8| Port { stations: vec![(10, mac(station))], ..Port::access(10) };
    let isolated = || Port { isolated: true, ..Port::access(10) };
    let blocked = || Port { blocked: true, ..Port::access(10) };
    let trunks = || vec![Port::plain(), Port::trunk(&[10, 20]), Port::trunk(&[10, 20]), Port::access(10)];
    let tagged = |from: u8, whom: u8| to(from, whom).q(10);
    vec![
        then(
            "who has left the VLAN is not reached in it any more",
            vec![put(2, Port::access(20)), send(1, &to(1, 2), &[(3, &to(1, 2))])],
        ),
        then(
            "who has left the VLAN reaches nobody in it any more",
            vec![put(1, Port::access(20)), send(1, &to(1, 2), &[])],
        ),
        then(
            "a station that says it has moved is reached there at once",
            vec![
                send(3, &gratuitous, &[(1, &gratuitous), (2, &gratuitous)]),
                send(1, &to(1, 2), &[(3, &to(1, 2))]),
                send(3, &to(2, 1), &[(1, &to(2, 1))]),
                // And back again, without being asked.
                send(2, &to(2, 1), &[(1, &to(2, 1))]),
                send(1, &to(1, 2), &[(2, &to(1, 2))]),
            ],
        ),
        then(
            "an address that is talking cannot be stolen",
            vec![
                send(3, &to(1, 2), &[]),
                send(3, &to(2, 1), &[]),
                send(1, &to(1, 2), &[(2, &to(1, 2))]),
                send(2, &to(2, 1), &[(1, &to(2, 1))]),
            ],
        )
        .differs("the kernel believes whoever spoke last"),
        then(
            "a port that may not forward any more does not",
            vec![
                put(1, blocked()),
                send(1, &to(1, 2), &[]),
                // Its stations are forgotten, and it is deaf.
                send(2, &to(2, 1), &[(3, &to(2, 1))]),
                put(1, Port::access(10)),
                send(1, &to(1, 2), &[(2, &to(1, 2))]),
                send(2, &to(2, 1), &[(1, &to(2, 1))]),
            ],
        ),
        then(
            "ports that are isolated now do not reach each other any more",
            vec![put(1, isolated()), put(2, isolated()), send(1, &to(1, 2), &[]), send(2, &to(2, 1), &[])],
        ),
        then(
            "a station that is fixed elsewhere is reached there",
            vec![put(3, fixed(2)), send(1, &to(1, 2), &[(3, &to(1, 2))]), send(2, &to(2, 1), &[])],
        ),
        story(
            "a station that is fixed no more is looked for",
            vec![Port::plain(), Port::access(10), Port::access(10), fixed(9)],
            [
                vec![hello(1, &[2, 3])],
                vec![send(1, &to(1, 9), &[(3, &to(1, 9))]); 3],
                vec![put(3, Port::access(10)), send(1, &to(1, 9), &[(2, &to(1, 9)), (3, &to(1, 9))])],
            ]
            .concat(),
        )
        .differs("a story's stations are not put into the kernel's table"),
        story(
            "a trunk that has lost a VLAN neither sends nor receives in it, and its others go on",
            trunks(),
            vec![
                send(1, &tagged(1, 2), &[(2, &tagged(1, 2)), (3, &to(1, 2))]),
                send(2, &tagged(2, 1), &[(1, &tagged(2, 1))]),
                send(1, &tagged(1, 2), &[(2, &tagged(1, 2))]),
                send(2, &to(2, 1).q(20), &[(1, &to(2, 1).q(20))]),
                send(1, &to(1, 2).q(20), &[(2, &to(1, 2).q(20))]),
                put(2, Port::trunk(&[20])),
                send(1, &tagged(1, 2), &[(3, &to(1, 2))]),
                send(2, &tagged(2, 1), &[]),
                send(2, &to(2, 1).q(20), &[(1, &to(2, 1).q(20))]),
                send(1, &to(1, 2).q(20), &[(2, &to(1, 2).q(20))]),
            ],
        ),
        story(
            "what was decided for a frame with one tag is not for one with another, or with two",
            trunks(),
            vec![
                send(1, &tagged(1, 2), &[(2, &tagged(1, 2)), (3, &to(1, 2))]),
                send(2, &tagged(2, 1), &[(1, &tagged(2, 1))]),
                send(1, &tagged(1, 2), &[(2, &tagged(1, 2))]),
                send(1, &to(1, 2).q(0xe00a), &[(2, &to(1, 2).q(0xe00a))]),
                send(1, &to(1, 2).q(20), &[(2, &to(1, 2).q(20))]),
                send(1, &to(1, 2).q(30), &[]),
                send(1, &to(1, 2), &[]),
                send(1, &to(1, 2).tag(AD, 10), &[]),
                // Trunks take tags within tags.
                send(1, &to(1, 2).q(10).q(20), &[(2, &to(1, 2).q(10).q(20))]),
            ],
        ),
    ]
}
