//! Who is where, and who may move.

use super::{Step, Story, send, story};
use crate::switch::{
    HOST, HOST_MAC, Port,
    frames::{ALL_NODES, BROADCAST, Ether, arp, ether, icmpv6, mac, rarp},
};

pub(super) fn stations() -> Vec<Story> {
    let office = || {
        vec![
            Port::plain(),
            Port::access(10),
            Port::access(10),
            Port::access(10),
            Port::access(20),
            Port::access(20),
        ]
    };
    let hello = |from: u8, out: &[usize], port| {
        let frame = ether(mac(from), BROADCAST);
        let out: Vec<_> = out.iter().map(|port| (*port, &frame)).collect();
        send(port, &frame, &out)
    };
    let clone = ether(mac(7), BROADCAST);
    let to_clone = |from| ether(mac(from), mac(7));
    vec![
        story(
            "a known station alone gets what is for it",
            office(),
            vec![
                hello(1, &[2, 3], 1),
                send(2, &ether(mac(2), mac(1)), &[(1, &ether(mac(2), mac(1)))]),
                send(1, &ether(mac(1), mac(2)), &[(2, &ether(mac(1), mac(2)))]),
                send(
                    3,
                    &arp(mac(3), mac(1), 2, [10, 0, 0, 3], [10, 0, 0, 1]),
                    &[(1, &arp(mac(3), mac(1), 2, [10, 0, 0, 3], [10, 0, 0, 1]))],
                ),
            ],
        ),
        story(
            "two stations with one address in two VLANs are both reached",
            office(),
            vec![
                send(1, &clone, &[(2, &clone), (3, &clone)]),
                send(4, &clone, &[(5, &clone)]),
                send(2, &to_clone(2), &[(1, &to_clone(2))]),
                send(5, &to_clone(5), &[(4, &to_clone(5))]),
                send(2, &to_clone(2), &[(1, &to_clone(2))]),
            ],
        ),
        story(
            "nobody can take an address that is used in another VLAN",
            office(),
            vec![
                hello(1, &[2, 3], 1),
                send(4, &ether(mac(1), BROADCAST), &[(5, &ether(mac(1), BROADCAST))]),
                send(2, &ether(mac(2), mac(1)), &[(1, &ether(mac(2), mac(1)))]),
            ],
        ),
        story(
            "a frame is not sent back to where it came from",
            office(),
            vec![hello(1, &[2, 3], 1), hello(9, &[2, 3], 1), send(1, &ether(mac(1), mac(9)), &[])],
        ),
        story(
            "a group is no sender",
            office(),
            vec![
                send(1, &ether([3, 0, 0, 0, 0, 1], BROADCAST), &[]),
                send(1, &ether(BROADCAST, mac(2)), &[]),
                send(1, &ether([0; 6], mac(2)), &[]),
            ],
        ),
        story(
            "a bridge that is told to forget early does, and nobody has to wait longer to move",
            office().into_iter().map(|port| Port { ageing: Some(3000), ..port }).collect(),
            vec![
                hello(1, &[2, 3], 1),
                Step::Wait(2),
                send(2, &ether(mac(2), mac(1)), &[(1, &ether(mac(2), mac(1)))]),
                Step::Wait(2),
                send(2, &ether(mac(2), mac(1)), &[(1, &ether(mac(2), mac(1))), (3, &ether(mac(2), mac(1)))]),
                hello(1, &[1, 2], 3),
                send(2, &ether(mac(2), mac(1)), &[(3, &ether(mac(2), mac(1)))]),
            ],
        ),
        story(
            "a station that was silent for five minutes is looked for again",
            office(),
            vec![
                hello(1, &[2, 3], 1),
                Step::Wait(299),
                send(2, &ether(mac(2), mac(1)), &[(1, &ether(mac(2), mac(1)))]),
                Step::Wait(2),
                send(2, &ether(mac(2), mac(1)), &[(1, &ether(mac(2), mac(1))), (3, &ether(mac(2), mac(1)))]),
            ],
        ),
    ]
}

pub(super) fn moves() -> Vec<Story> {
    let office = || vec![Port::access(10), Port::access(10), Port::access(10), Port::access(10)];
    let hello = |from: u8, port: usize| {
        let frame = ether(mac(from), BROADCAST);
        let others = (0..4).filter(|other| *other != port);
        let out: Vec<_> = others.map(|port| (port, &frame)).collect();
        send(port, &frame, &out)
    };
    let to = |from: u8, whom: u8| ether(mac(from), mac(whom));
    let everywhere = |frame: &Ether, port: usize| {
        let out: Vec<_> = (0..4).filter(|other| *other != port).map(|port| (port, frame)).collect();
        send(port, frame, &out)
    };
    let stays = || send(3, &to(3, 1), &[(1, &to(3, 1))]);
    let moved = || send(3, &to(3, 1), &[(2, &to(3, 1))]);
    let guarded = "the kernel believes whoever spoke last";
    let mut stories = vec![
        story(
            "an address that is in use cannot be stolen",
            office(),
            vec![hello(1, 1), send(2, &to(1, 3), &[]), send(2, &ether(mac(1), BROADCAST), &[]), stays()],
        )
        .differs(guarded),
        story(
            "the host's address cannot be stolen, whatever is announced",
            office(),
            vec![
                send(1, &arp(HOST_MAC, BROADCAST, 1, [10, 0, 0, 1], [10, 0, 0, 1]), &[]),
                send(1, &ether(HOST_MAC, BROADCAST), &[]),
                Step::Wait(400),
                send(1, &ether(HOST_MAC, BROADCAST), &[]),
                send(2, &ether(mac(2), HOST_MAC), &[(HOST, &ether(mac(2), HOST_MAC))]),
            ],
        )
        .differs("the kernel forwards it, and only does not learn"),
        story(
            "a station that was silent for a while may turn up elsewhere",
            office(),
            vec![hello(1, 1), Step::Wait(6), hello(1, 2), moved()],
        ),
        story(
            "a station takes its place back without being asked",
            office(),
            vec![hello(1, 1), everywhere(&rarp(mac(1)), 2), moved(), hello(1, 1), stays()],
        ),
    ];
    let announcements = [
        (
            "a gratuitous ARP request moves a station at once",
            arp(mac(1), BROADCAST, 1, [10, 0, 0, 1], [10, 0, 0, 1]),
        ),
        (
            "a gratuitous ARP reply moves a station at once",
            arp(mac(1), BROADCAST, 2, [10, 0, 0, 1], [10, 0, 0, 1]),
        ),
        ("what a hypervisor sends after a migration moves a station at once", rarp(mac(1))),
        ("an unsolicited neighbour advertisement moves a station at once", icmpv6(mac(1), ALL_NODES, 136)),
    ];
    for (name, announcement) in announcements {
        stories.push(story(name, office(), vec![hello(1, 1), everywhere(&announcement, 2), moved()]));
    }
    stories.push(
        story(
            "an ARP request for another address moves nobody",
            office(),
            vec![
                hello(1, 1),
                send(2, &arp(mac(1), BROADCAST, 1, [10, 0, 0, 1], [10, 0, 0, 2]), &[]),
                stays(),
            ],
        )
        .differs(guarded),
    );
    stories
}
