//! Datagrams longer than a link's MTU, in parts: in order as kernels send them, in any other order as networks deliver
//! them, and parts of nothing.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use telecluster_tests::{
    frame::udp,
    lab::{INSIDE, INSIDE_NET6, INSIDE6, Lab, OUTSIDE, OUTSIDE6, PATIENCE, WAN, WAN6, eventually},
    sockets::send_raw,
};

/// Who takes part, in one address family.
struct Cast {
    inside: IpAddr,
    wan: IpAddr,
    outside: IpAddr,
}

fn casts() -> [Cast; 2] {
    [
        Cast { inside: INSIDE.into(), wan: WAN.into(), outside: OUTSIDE.into() },
        Cast { inside: INSIDE6.into(), wan: WAN6.into(), outside: OUTSIDE6.into() },
    ]
}

/// Both families, masquerade and a forward of UDP port 5353 to 53 in each.
fn lab() -> Lab {
    let lab = Lab::new();
    lab.ipv6();
    lab
}

fn rules(lab: &Lab) {
    lab.masquerade();
    lab.post("/nat/masquerade", &json!({"source_network": INSIDE_NET6, "output_interface": "wan0"})).ok();
    for Cast { inside, .. } in casts() {
        let body = json!({
            "external_port": 5353, "internal_ip": inside, "internal_port": 53, "protocol": "udp",
        });
        lab.post("/nat/forward", &body).ok();
    }
}

fn payload(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|place| place.to_le_bytes()[0].wrapping_mul(31) ^ place.to_le_bytes()[1] ^ seed).collect()
}

/// Sends until these bytes are heard.
#[track_caller]
fn passes(from: &UdpSocket, to: SocketAddr, receiver: &UdpSocket, data: &[u8]) -> SocketAddr {
    hears(receiver, data, || assert!(from.send_to(data, to).is_ok()))
}

/// Does something until these bytes are heard, which are its very own: an earlier attempt may come late.
#[track_caller]
fn hears(receiver: &UdpSocket, data: &[u8], mut attempt: impl FnMut()) -> SocketAddr {
    receiver.set_read_timeout(Some(Duration::from_millis(500))).expect("set a timeout");
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = vec![0; 65536];
    loop {
        attempt();
        while let Ok((len, sender)) = receiver.recv_from(&mut buffer) {
            if buffer[..len] == *data {
                return sender;
            }
        }
        assert!(Instant::now() < deadline, "{} bytes are not heard", data.len());
    }
}

fn drops(lab: &Lab, reason: &str) -> u64 {
    let metrics = lab.get("/metrics");
    let wanted = format!("reason=\"{reason}\"");
    let lines = metrics.as_str().expect("text").lines();
    let mut values = lines.filter(|line| line.starts_with("telecluster_") && line.contains(&wanted));
    let line = values.next().expect("a series for each reason");
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
}

#[test]
fn datagrams_longer_than_the_mtu_pass_both_ways_and_are_counted() {
    let lab = lab();
    let _worker = lab.start();
    rules(&lab);
    for Cast { inside, wan, outside } in casts() {
        let (server, client) = (lab.outside.udp((outside, 5300)), lab.inside.udp((inside, 40000)));
        for len in [1473, 4000, 9000, 60000] {
            let data = payload(len, 1);
            let seen = passes(&client, (outside, 5300).into(), &server, &data);
            assert_eq!(seen, SocketAddr::new(wan, 40000));
            assert_eq!(passes(&server, seen, &client, &data), SocketAddr::new(outside, 5300));
        }
        // through a forward: in parts from its very first packet on
        let (service, caller) = (lab.inside.udp((inside, 53)), lab.outside.udp((outside, 6000)));
        let data = payload(5000, 2);
        let seen = passes(&caller, (wan, 5353).into(), &service, &data);
        assert_eq!(seen, SocketAddr::new(outside, 6000));
        assert_eq!(passes(&service, seen, &caller, &data), SocketAddr::new(wan, 5353));
        // and the host itself
        let (host, stranger) = (lab.router.udp((wan, 7000)), lab.outside.udp((outside, 7001)));
        let seen = passes(&stranger, (wan, 7000).into(), &host, &data);
        assert_eq!(passes(&host, seen, &stranger, &data), SocketAddr::new(wan, 7000));
    }
    let flows = lab.get("/nat/flows");
    for flow in flows["flows"].as_array().expect("a list") {
        let count = |field: &str| flow[field].as_u64().expect("a number");
        // of 1473, 4000, 9000 and 60000 bytes: 2 + 3 + 7 + 41 parts, IPv6 one more of the last; of 5000: 4
        let least = if count("packets_out") > 10 { (53, 74473) } else { (4, 5000) };
        assert!(count("packets_out") >= least.0 && count("bytes_out") > least.1, "{flow}");
        assert!(count("packets_in") >= least.0 && count("bytes_in") > least.1, "{flow}");
    }
    for host in [&lab.inside, &lab.outside, &lab.router] {
        assert_eq!(host.snmp("Udp", "InCsumErrors"), 0);
    }
}

#[test]
fn pings_longer_than_the_mtu_are_answered() {
    let lab = lab();
    let _worker = lab.start();
    rules(&lab);
    for Cast { wan, outside, .. } in casts() {
        let text = lab.inside.sh(&format!("ping -n -s 4000 -c 3 -i 0.2 -W 10 {outside}"));
        assert!(text.contains("3 received"), "{text}");
        let text = lab.outside.sh(&format!("ping -n -s 4000 -c 3 -i 0.2 -W 10 {wan}"));
        assert!(text.contains("3 received"), "the host itself: {text}");
    }
    for host in [&lab.inside, &lab.outside] {
        assert_eq!(host.snmp("Icmp", "InCsumErrors"), 0);
    }
}

#[test]
fn parts_are_put_together_whatever_their_order() {
    let lab = lab();
    let _worker = lab.start();
    rules(&lab);
    for Cast { inside, wan, outside } in casts() {
        let (server, client) = (lab.outside.udp((outside, 5300)), lab.inside.udp((inside, 40000)));
        let service = lab.inside.udp((inside, 53));
        let host = lab.router.udp((wan, 7000));
        // so that the network knows everybody
        passes(&client, (outside, 5300).into(), &server, b"hello");
        passes(&server, (wan, 40000).into(), &client, b"hello");
        let (there, back) = (lab.inside.raw(inside), lab.outside.raw(outside));
        let stories = [
            (&there, (inside, 40000), (outside, 5300), &server),
            (&back, (outside, 5300), (wan, 40000), &client),
            // the first packet of a flow
            (&back, (outside, 6001), (wan, 5353), &service),
            (&back, (outside, 6002), (wan, 7000), &host),
        ];
        let (mut id, mut seed) = (100, 0);
        for (socket, from, to, receiver) in stories {
            for order in [[2, 1, 0], [1, 0, 2], [2, 0, 1], [1, 2, 0]] {
                seed += 1;
                let data = payload(3000, seed);
                hears(receiver, &data, || {
                    // another number each time, or the receiver's kernel puts together parts of two
                    id += 1;
                    let parts = udp(from, to, &data).fragments(id, 1008);
                    for place in order {
                        send_raw(socket, &parts[place]);
                        // long enough to have left every queue, except that where it has to wait
                        thread::sleep(Duration::from_millis(20));
                    }
                });
            }
        }
    }
    for host in [&lab.inside, &lab.outside, &lab.router] {
        assert_eq!(host.snmp("Udp", "InCsumErrors"), 0);
    }
}

#[test]
fn a_flood_of_parts_of_nothing_is_nobody_else_s_business() {
    let lab = lab();
    let _worker = lab.start();
    rules(&lab);
    let (server, client) = (lab.outside.udp((OUTSIDE, 5300)), lab.inside.udp((INSIDE, 40000)));
    let data = payload(4000, 3);
    passes(&client, (OUTSIDE, 5300).into(), &server, &data);
    let known = lab.dump("fragment4").len();
    for flood in 10..60 {
        // what a socket has sent and waits counts against it: others go on
        let (there, back) = (lab.inside.raw(INSIDE), lab.outside.raw(OUTSIDE));
        for id in 0..100 {
            let id = flood * 100 + id;
            send_raw(&there, &udp((INSIDE, 40001), (OUTSIDE, 5300), &[7; 64]).fragments(id, 32)[1]);
            send_raw(&back, &udp((OUTSIDE, 5300), (WAN, 40001), &[7; 64]).fragments(id, 32)[1]);
        }
        if flood % 5 == 0 {
            let seen = passes(&client, (OUTSIDE, 5300).into(), &server, &data);
            passes(&server, seen, &client, &data);
        }
    }
    // whoever has waited in vain does not leave with an inside address
    eventually("the orphans are counted", || drops(&lab, "fragment") > 0);
    assert!(lab.dump("fragment4").len() < known + 100, "orphans leave nothing behind");
    let flows = lab.get("/nat/flows");
    assert_eq!(flows["flows"].as_array().map(Vec::len), Some(1), "and make no flow: {flows}");
}

/// The pair of interfaces where they wait is part of the data plane.
#[test]
fn the_waiting_room_comes_and_goes_with_the_programs_and_is_no_link_of_anybody_s() {
    let lab = Lab::new();
    let rooms = |lab: &Lab| {
        let links = lab.router.sh("ip -o link show type veth");
        links.lines().filter(|line| line.contains("telecluster waiting room")).count()
    };
    let names = |lab: &Lab, path: &str| {
        let links = lab.get(path);
        let list = links.as_array().expect("a list").clone();
        list.iter().map(|link| link["name"].clone()).collect::<Vec<Value>>()
    };
    let worker = lab.start();
    let before = names(&lab, "/network/interfaces");
    assert_eq!(rooms(&lab), 0, "nobody has asked for anything");
    let come = || eventually("there is a room", || rooms(&lab) == 2);
    let go = || eventually("there is none", || rooms(&lab) == 0);
    let rule = lab.masquerade();
    come();
    assert_eq!(names(&lab, "/network/interfaces"), before);
    assert_eq!(lab.router.sh("ip -o addr show").matches("tcw-").count(), 0, "it has no address");

    worker.murder();
    // somebody takes it away while the agent is not there
    let links = lab.router.sh("ip -o link show type veth");
    let entrance = links.split([' ', '@']).find(|word| word.starts_with("tcw-in-")).expect("the entrance");
    lab.router.ip(&format!("link del {entrance}"));
    let worker = lab.start();
    lab.get("/health");
    come();
    lab.call("DELETE", &format!("/nat/masquerade/{rule}"), None).ok();
    go();
    lab.masquerade();
    come();
    worker.stop();
    assert_eq!(rooms(&lab), 2, "it works without the agent");
    let status = lab.worker_command().arg("teardown").status().expect("run teardown");
    assert!(status.success());
    assert_eq!(rooms(&lab), 0);
}

/// As by a worker that is killed between the making of the pair and the last thing that it does to it.
#[test]
fn a_waiting_room_that_is_half_made_is_made_anew_and_one_of_somebody_else_stays() {
    let lab = Lab::new();
    let shown = |name: &str| lab.router.sh(&format!("ip -o -d link show {name}"));
    let uplink = shown("wan0").split(':').next().expect("its index").to_owned();
    let (entrance, exit) = (format!("tcw-in-{uplink}"), format!("tcw-out-{uplink}"));
    // The worker's own have a mark from the beginning: the letters "tcw".
    for (group, kept) in [("7627639", false), ("0", true)] {
        let pair = format!("{entrance} mtu 65535 group {group} type veth peer name {exit}");
        lab.router.ip(&format!("link add {pair} mtu 65535 group {group}"));
        let index = shown(&entrance).split(':').next().expect("its index").to_owned();
        let worker = lab.start();
        let rule = lab.masquerade();
        let now = shown(&entrance);
        assert_eq!(now.starts_with(&format!("{index}:")), kept, "group {group}: {now}");
        if kept {
            assert!(!now.contains("waiting room"), "{now}");
            lab.router.ip(&format!("link del {entrance}"));
        } else {
            assert!(
                now.contains("waiting room") && now.contains("qdisc tbf") && now.contains(",UP"),
                "{now}"
            );
            lab.call("DELETE", &format!("/nat/masquerade/{rule}"), None).ok();
            eventually("it stays", || !lab.router.sh("ip -o link show").contains("tcw-"));
        }
        worker.stop();
    }
}
