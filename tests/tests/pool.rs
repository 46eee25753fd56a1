//! A masquerade that translates to several addresses, with real sockets: RFC 4787 REQ-2.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use serde_json::{Value, json};
use telecluster_tests::{
    lab::{INSIDE, INSIDE_NET, INSIDE_NET6, INSIDE6, Lab, OUTSIDE, OUTSIDE6, WAN, WAN6, eventually, rule_id},
    on_each_data_plane,
};

on_each_data_plane!(
    each_inside_host_has_one_address_of_the_pool_for_all_that_it_sends,
    a_pool_may_be_routed_here_and_an_address_that_leaves_it_takes_its_flows_along,
);

const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(192, 168, 100, 11);
/// Of the uplink.
const POOL: [Ipv4Addr; 2] = [Ipv4Addr::new(203, 0, 113, 5), Ipv4Addr::new(203, 0, 113, 6)];
/// Of no interface.
const ROUTED: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 51, 100, 8), Ipv4Addr::new(198, 51, 100, 9)];

fn body(network: &str, pool: &Value) -> Value {
    json!({ "source_network": network, "output_interface": "wan0", "external_ips": pool })
}

/// Who a datagram seems to come from, once its answer has come back; sent again until it does.
fn appears_as(client: &UdpSocket, server: &UdpSocket) -> SocketAddr {
    let to = server.local_addr().expect("an address");
    for socket in [client, server] {
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("set a timeout");
    }
    let mut seen = None;
    eventually(&format!("no answer from {to}"), || {
        client.send_to(b"who", to).expect("send");
        let Ok((_, from)) = server.recv_from(&mut [0; 16]) else { return false };
        server.send_to(b"you", from).expect("answer");
        seen = Some(from);
        matches!(client.recv_from(&mut [0; 16]), Ok((_, by)) if by == to)
    });
    seen.expect("somebody")
}

fn each_inside_host_has_one_address_of_the_pool_for_all_that_it_sends(lab: &Lab) {
    lab.ipv6();
    lab.inside.ip(&format!("addr add {NEIGHBOUR}/24 dev eth0"));
    POOL.iter().for_each(|address| lab.router.ip(&format!("addr add {address}/24 dev wan0")));
    let pool6 = ["2001:db8::5", "2001:db8::6"];
    pool6.iter().for_each(|address| lab.router.ip(&format!("addr add {address}/64 dev wan0 nodad")));
    let worker = lab.start();
    // In whatever order, and twice.
    let made = lab.post("/nat/masquerade", &body(INSIDE_NET, &json!([POOL[1], POOL[0], POOL[1]]))).ok();
    assert_eq!(made["data"]["external_ips"], json!(POOL));
    lab.post("/nat/masquerade", &body(INSIDE_NET6, &json!(pool6))).ok();

    let servers = [5300, 5301].map(|port| lab.outside.udp((OUTSIDE, port)));
    let client = lab.inside.udp((INSIDE, 40000));
    for server in &servers {
        assert_eq!(appears_as(&client, server), SocketAddr::from((POOL[0], 40000)));
        assert_eq!(appears_as(&lab.inside.udp((INSIDE, 0)), server).ip(), IpAddr::from(POOL[0]), "paired");
        // The same port of both addresses.
        let neighbour = lab.inside.udp((NEIGHBOUR, 40000));
        assert_eq!(appears_as(&neighbour, server), SocketAddr::from((POOL[1], 40000)));
    }
    let server6 = lab.outside.udp((OUTSIDE6, 5300));
    assert_eq!(
        appears_as(&lab.inside.udp((INSIDE6, 40000)), &server6).ip(),
        IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 5])
    );
    let listener = lab.outside.listen((OUTSIDE, 5300));
    let connection = lab.inside.run(|| {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from((NEIGHBOUR, 0)).into()).expect("bind");
        socket.connect(&SocketAddr::from((OUTSIDE, 5300)).into()).map(|()| socket)
    });
    let (_connection, (_accepted, from)) = (connection.expect("connect"), listener.accept().expect("accept"));
    assert_eq!(from.ip(), IpAddr::from(POOL[1]));
    let text = lab.inside.sh(&format!("ping -n -c 1 -W 5 -I {NEIGHBOUR} {OUTSIDE}"));
    assert!(text.contains("1 received"), "{text}");
    let flows = lab.get("/nat/flows?protocol=icmp");
    assert_eq!(flows["flows"][0]["external_ip"], json!(POOL[1]), "{flows}");

    // The host's own packets are its own.
    assert_eq!(appears_as(&lab.router.udp((WAN, 40000)), &servers[0]), SocketAddr::from((WAN, 40000)));
    assert_eq!(appears_as(&lab.router.udp((WAN6, 40000)), &server6), SocketAddr::from((WAN6, 40000)));

    // A restart adopts it, and another address of the uplink is none of its business.
    worker.stop();
    let _worker = lab.start();
    let again = lab.post("/nat/masquerade", &body(INSIDE_NET, &json!(POOL))).ok();
    assert_eq!(again["data"]["changed"], false, "{again}");
    servers[0].send_to(b"on", (POOL[0], 40000)).expect("send");
    assert_eq!(client.recv_from(&mut [0; 16]).expect("the flow goes on").1.port(), 5300);
    lab.router.ip(&format!("addr del {WAN}/24 dev wan0"));
    lab.router.ip(&format!("addr replace {}/24 dev wan0", POOL[0]));
    lab.router.ip(&format!("addr replace {}/24 dev wan0", POOL[1]));
    lab.router.ip(&format!("route replace default via {OUTSIDE}"));
    assert_eq!(appears_as(&client, &servers[0]), SocketAddr::from((POOL[0], 40000)));
}

fn a_pool_may_be_routed_here_and_an_address_that_leaves_it_takes_its_flows_along(lab: &Lab) {
    lab.inside.ip(&format!("addr add {NEIGHBOUR}/24 dev eth0"));
    lab.outside.ip(&format!("route add 198.51.100.0/28 via {WAN}"));
    let _worker = lab.start();
    let made = lab.post("/nat/masquerade", &body(INSIDE_NET, &json!(ROUTED))).ok();
    assert_eq!(made["status"], "warning", "{made}");
    let warning = made["data"]["warnings"].to_string();
    assert!(warning.contains("198.51.100.8, 198.51.100.9"), "{warning}");
    let id = rule_id(&made);
    let server = lab.outside.udp((OUTSIDE, 5300));
    let (client, neighbour) = (lab.inside.udp((INSIDE, 40000)), lab.inside.udp((NEIGHBOUR, 40000)));
    assert_eq!(appears_as(&client, &server), SocketAddr::from((ROUTED[0], 40000)));
    assert_eq!(appears_as(&neighbour, &server), SocketAddr::from((ROUTED[1], 40000)));

    // An address in the uplink's network that the host does not have is nobody's.
    let refused = lab.post("/nat/masquerade", &body(INSIDE_NET, &json!(POOL)));
    assert_eq!((refused.status, &refused.body["code"]), (409, &json!("POOL_ADDRESS_ABSENT")), "{refused:?}");

    let changed = lab.post("/nat/masquerade", &body(INSIDE_NET, &json!([ROUTED[1]]))).ok();
    assert_eq!((&changed["data"]["changed"], rule_id(&changed)), (&json!(true), id));
    client.set_read_timeout(Some(Duration::from_millis(300))).expect("set a timeout");
    server.send_to(b"late", (ROUTED[0], 40000)).expect("send");
    assert!(client.recv_from(&mut [0; 16]).is_err(), "its flow has ended");
    for client in [&client, &neighbour] {
        assert_eq!(appears_as(client, &server).ip(), IpAddr::from(ROUTED[1]));
    }
    // Without a pool it is the uplink's again.
    lab.post("/nat/masquerade", &body(INSIDE_NET, &json!([]))).ok();
    assert_eq!(appears_as(&client, &server), SocketAddr::from((WAN, 40000)));
}
