//! Ports, frames in, frames out.

use telecluster_worker::model::{VlanProtocol, bridge_vlan::Accept};

use super::{
    HOST, HOST_MAC, Port,
    frames::{AD, ALL_NODES, BROADCAST, Ether, Q, arp, ether, icmpv6, mac, rarp, with_datagram},
};

/// One thing that happens.
#[derive(Debug, Clone)]
pub enum Step {
    /// This frame goes into that port; what comes out, by port.
    Send { port: usize, frame: Vec<u8>, out: Vec<(usize, Vec<u8>)> },
    /// A port becomes another one. A machine that cannot change its ports ends the story here.
    Put { number: usize, port: Port },
    /// Seconds pass. A machine that cannot wait ends the story here.
    Wait(u64),
}

/// What the kernel's own filter does with a story.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// The same.
    Same,
    /// Something else, and why.
    Differs(&'static str),
}

#[derive(Debug, Clone)]
pub struct Story {
    pub name: &'static str,
    /// The first one is the bridge itself.
    pub ports: Vec<Port>,
    pub steps: Vec<Step>,
    pub kernel: Kernel,
}

fn send(port: usize, frame: &Ether, out: &[(usize, &Ether)]) -> Step {
    let out = out.iter().map(|(port, frame)| (*port, frame.bytes())).collect();
    Step::Send { port, frame: frame.bytes(), out }
}

fn story(name: &'static str, ports: Vec<Port>, steps: Vec<Step>) -> Story {
    Story { name, ports, steps, kernel: Kernel::Same }
}

impl Story {
    /// The same with datagrams in its frames.
    #[must_use]
    pub fn with_datagrams(mut self) -> Self {
        for step in &mut self.steps {
            if let Step::Send { frame, out, .. } = step {
                *frame = with_datagram(frame);
                out.iter_mut().for_each(|(_, frame)| *frame = with_datagram(frame));
            }
        }
        self
    }

    fn differs(self, why: &'static str) -> Self {
        Self { kernel: Kernel::Differs(why), ..self }
    }
}

/// Access ports in two VLANs, a trunk of both; the host in none.
fn office() -> Vec<Port> {
    vec![Port::plain(), Port::access(10), Port::access(10), Port::access(20), Port::trunk(&[10, 20])]
}

/// Every story.
pub fn all() -> Vec<Story> {
    let mut all = isolation();
    all.extend(tags());
    all.extend(stations());
    all.extend(moves());
    all.extend(ports());
    all.extend(changes());
    all
}

fn isolation() -> Vec<Story> {
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

fn tags() -> Vec<Story> {
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

fn stations() -> Vec<Story> {
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

fn moves() -> Vec<Story> {
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

fn ports() -> Vec<Story> {
    let frame = |from: u8| ether(mac(from), BROADCAST);
    let isolated = || Port { isolated: true, ..Port::access(10) };
    let hairpin = Port { hairpin: true, ..Port::access(10) };
    let limited = Port { station_limit: 2, ..Port::access(10) };
    let big = |size| ether(mac(1), BROADCAST).payload(super::frames::EXPERIMENT, vec![7; size]);
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
fn changes() -> Vec<Story> {
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
