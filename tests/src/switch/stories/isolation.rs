//! What keeps VLANs apart, and what tags do.

use telecluster_worker::model::{VlanProtocol, bridge_vlan::Accept};

use super::{Story, office, send, story};
use crate::switch::{
    HOST, HOST_MAC, Port,
    frames::{AD, ALL_NODES, BROADCAST, Ether, Q, arp, ether, icmpv6, mac},
};

pub(super) fn isolation() -> Vec<Story> {
    let group = |dst| ether(mac(1), dst);
    let everybody = [
        ("a broadcast stays in its VLAN", group(BROADCAST)),
        ("a multicast stays in its VLAN", group([1, 0, 0x5e, 1, 2, 3])),
        ("an unknown station is looked for in its VLAN only", group(mac(99))),
        ("an ARP request stays in its VLAN", arp(mac(1), BROADCAST, 1, [10, 0, 0, 1], [10, 0, 0, 2])),
        (
            "a neighbour solicitation stays in its VLAN",
            icmpv6(mac(1), [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 2], 135),
        ),
        ("a router advertisement stays in its VLAN", icmpv6(mac(1), ALL_NODES, 134)),
        ("a frame to spanning tree's address stays in its VLAN", group([1, 0x80, 0xc2, 0, 0, 0])),
    ];
    let mut stories: Vec<Story> = everybody
        .into_iter()
        .map(|(name, frame)| {
            let tagged = frame.clone();
            let tagged = Ether { tags: vec![(Q, 10)], ..tagged };
            story(name, office(), vec![send(1, &frame, &[(2, &frame), (4, &tagged)])])
        })
        .collect();
    let known = [
        send(3, &ether(mac(3), BROADCAST), &[(4, &ether(mac(3), BROADCAST).q(20))]),
        // In the other VLAN it is unknown, as if it did not exist.
        send(1, &ether(mac(1), mac(3)), &[(2, &ether(mac(1), mac(3))), (4, &ether(mac(1), mac(3)).q(10))]),
    ];
    stories.push(story("a station that is known in another VLAN is not reached", office(), known.to_vec()));
    let host = |native| vec![Port::access(native), Port::access(10), Port::access(20)];
    let to_host = |from: u8| ether(mac(from), HOST_MAC);
    stories.extend([
        story(
            "the host is reached in its own VLAN only",
            host(10),
            vec![send(1, &to_host(1), &[(HOST, &to_host(1))]), send(2, &to_host(2), &[])],
        )
        .differs("the kernel floods to nobody; both drop, but a port's own address would be the host's too"),
        story(
            "the host's broadcast stays in its VLAN",
            host(10),
            vec![send(HOST, &ether(HOST_MAC, BROADCAST), &[(1, &ether(HOST_MAC, BROADCAST))])],
        ),
        story(
            "ports without a VLAN and the host talk to each other and to no VLAN",
            vec![Port::plain(), Port::plain(), Port::plain(), Port::access(10)],
            vec![
                send(
                    1,
                    &ether(mac(1), BROADCAST),
                    &[(HOST, &ether(mac(1), BROADCAST)), (2, &ether(mac(1), BROADCAST))],
                ),
                send(3, &ether(mac(3), BROADCAST), &[]),
                send(
                    HOST,
                    &ether(HOST_MAC, BROADCAST),
                    &[(1, &ether(HOST_MAC, BROADCAST)), (2, &ether(HOST_MAC, BROADCAST))],
                ),
            ],
        )
        .differs("the kernel's filter has no ports without a VLAN: it gives them VLAN 1 or drops"),
    ]);
    stories
}

pub(super) fn tags() -> Vec<Story> {
    let plain = |dst| ether(mac(1), dst);
    let nothing = |port, frame: Ether| send(port, &frame, &[]);
    let access = || vec![Port::plain(), Port::access(10), Port::access(10), Port::access(20)];
    let trunks = || vec![Port::plain(), Port::trunk(&[10, 20]), Port::trunk(&[10, 30]), Port::access(10)];
    let native = || vec![Port::plain(), Port::trunk(&[20]).native(10), Port::access(10), Port::access(20)];
    let accepting = |accept| {
        vec![
            Port::plain(),
            Port { accept, ..Port::trunk(&[20]).native(10) },
            Port::access(10),
            Port::access(20),
        ]
    };
    let ad = |port: Port| Port { protocol: VlanProtocol::Dot1ad, ..port };
    let tunnel = |vlan| Port { tunnel: true, ..ad(Port::access(vlan)) };
    vec![
        story(
            "an access port cannot send into another VLAN",
            access(),
            vec![nothing(1, plain(BROADCAST).q(20)), nothing(1, plain(mac(3)).q(20))],
        ),
        story(
            "an access port may name its own VLAN",
            access(),
            vec![send(1, &plain(BROADCAST).q(10), &[(2, &plain(BROADCAST))])],
        ),
        story(
            "a second tag cannot carry a frame into another VLAN",
            access(),
            vec![nothing(1, plain(BROADCAST).q(10).q(20)), nothing(1, plain(BROADCAST).q(0).q(20))],
        )
        .differs("the kernel hands on whatever follows the first tag; here an access port has to be told to"),
        story(
            "a second tag is handed on where nested tags are allowed",
            (access().into_iter()).map(|port| Port { nested: true, ..port }).collect(),
            vec![send(1, &plain(BROADCAST).q(10).q(20), &[(2, &plain(BROADCAST).q(20))])],
        ),
        story(
            "a nested tag from a trunk does not come out of an access port",
            trunks(),
            vec![send(1, &plain(BROADCAST).q(10).q(20), &[(2, &plain(BROADCAST).q(10).q(20))])],
        )
        .differs("the kernel strips the outer tag and lets the inner one out of the access port"),
        story(
            "a tag of the other protocol is no way around the filter",
            access(),
            vec![nothing(1, plain(BROADCAST).tag(AD, 20)), nothing(1, plain(BROADCAST).tag(AD, 20).q(20))],
        )
        .differs("the kernel takes a tag of the other protocol for payload, and hands it on within VLAN 10"),
        story(
            "VLAN 4095 is nobody's",
            trunks(),
            vec![nothing(1, plain(BROADCAST).q(4095)), nothing(3, plain(BROADCAST).q(4095))],
        ),
        story(
            "a priority tag is no VLAN, and its priority is kept where there is a tag to keep it in",
            vec![Port::plain(), Port::access(10), Port::access(10), Port::trunk(&[10])],
            vec![send(
                1,
                &plain(BROADCAST).q(0xa000),
                &[(2, &plain(BROADCAST)), (3, &plain(BROADCAST).q(0xa00a))],
            )],
        ),
        story(
            "from trunk to trunk a tag stays as it is, priority and all",
            trunks(),
            vec![send(
                1,
                &plain(BROADCAST).q(0x700a),
                &[(2, &plain(BROADCAST).q(0x700a)), (3, &plain(BROADCAST))],
            )],
        ),
        story(
            "a VLAN that only one trunk has does not leave it",
            trunks(),
            vec![nothing(1, plain(BROADCAST).q(20)), nothing(1, plain(BROADCAST).q(30))],
        ),
        story(
            "a trunk without a native VLAN takes no frame without a tag",
            trunks(),
            vec![nothing(1, plain(BROADCAST)), nothing(1, plain(BROADCAST).q(0))],
        ),
        story(
            "a trunk's native VLAN travels without a tag",
            native(),
            vec![
                send(1, &plain(BROADCAST), &[(2, &plain(BROADCAST))]),
                send(1, &plain(BROADCAST).q(20), &[(3, &plain(BROADCAST))]),
                send(2, &ether(mac(2), BROADCAST), &[(1, &ether(mac(2), BROADCAST))]),
                send(3, &ether(mac(3), BROADCAST), &[(1, &ether(mac(3), BROADCAST).q(20))]),
            ],
        ),
        story(
            "a port that takes tagged frames only takes no others",
            accepting(Accept::Tagged),
            vec![
                nothing(1, plain(BROADCAST)),
                nothing(1, plain(BROADCAST).q(0)),
                send(1, &plain(BROADCAST).q(20), &[(3, &plain(BROADCAST))]),
            ],
        )
        .differs("no such setting"),
        story(
            "a port that takes untagged frames only takes no others",
            accepting(Accept::Untagged),
            vec![
                send(1, &plain(BROADCAST), &[(2, &plain(BROADCAST))]),
                nothing(1, plain(BROADCAST).q(20)),
                nothing(1, plain(BROADCAST).q(10)),
            ],
        )
        .differs("no such setting"),
        story(
            "802.1ad trunks have their own tag",
            vec![
                Port::plain(),
                ad(Port::trunk(&[10])),
                ad(Port::trunk(&[10])),
                Port::access(10),
                Port::trunk(&[10]),
            ],
            vec![send(
                1,
                &plain(BROADCAST).tag(AD, 0x600a),
                &[
                    (2, &plain(BROADCAST).tag(AD, 0x600a)),
                    (3, &plain(BROADCAST)),
                    (4, &plain(BROADCAST).q(0x600a)),
                ],
            )],
        )
        .differs("one protocol for the whole bridge"),
        story(
            "customers' tags pass a provider's VLAN unseen and come out as they were",
            vec![Port::plain(), tunnel(10), tunnel(10), tunnel(20), ad(Port::trunk(&[10, 20]))],
            vec![
                send(
                    1,
                    &plain(BROADCAST).q(0x2014),
                    &[(2, &plain(BROADCAST).q(0x2014)), (4, &plain(BROADCAST).tag(AD, 10).q(0x2014))],
                ),
                send(1, &plain(BROADCAST), &[(2, &plain(BROADCAST)), (4, &plain(BROADCAST).tag(AD, 10))]),
                send(4, &ether(mac(4), BROADCAST).tag(AD, 20).q(7), &[(3, &ether(mac(4), BROADCAST).q(7))]),
                // A provider's tag from a customer is payload too.
                send(
                    3,
                    &ether(mac(3), BROADCAST).tag(AD, 10),
                    &[(4, &ether(mac(3), BROADCAST).tag(AD, 20).tag(AD, 10))],
                ),
            ],
        )
        .differs("the kernel takes a provider's tag from a customer for its own"),
    ]
}
