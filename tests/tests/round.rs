//! Hairpin's fourth case: the host itself reaches its forwards by the uplink's address, with real sockets.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use serde_json::json;
use telecluster_tests::{
    lab::{INSIDE, INSIDE6, Lab, WAN, WAN6, eventually, rule_id},
    on_each_data_plane,
    serving::serving,
};

on_each_data_plane!(
    the_host_itself_reaches_a_forward_by_the_uplink_s_address,
    what_is_not_forwarded_for_inside_hosts_is_not_for_the_host_either,
);

/// Answers datagrams with what they are.
fn answering(socket: UdpSocket) {
    thread::spawn(move || {
        let mut buffer = [0; 256];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..len], from);
        }
    });
}

fn exchange(mut stream: &TcpStream, wan: IpAddr) {
    let mut peer = [0; 64];
    stream.read_exact(&mut peer).expect("who I am");
    assert_eq!(String::from_utf8_lossy(&peer).trim(), wan.to_string(), "the address outside");
    // More than one segment at once, and a checksum for each.
    let sent: Vec<u8> = (0..300_000u32).map(|place| place.to_le_bytes()[1]).collect();
    let mut sender = stream.try_clone().expect("duplicate");
    thread::scope(|scope| {
        scope.spawn(|| sender.write_all(&sent).expect("send"));
        let mut back = vec![0; sent.len()];
        stream.read_exact(&mut back).expect("it comes back");
        assert!(back == sent, "other bytes");
    });
}

/// An answer to the very socket, from the very address that was asked; asked again until there is one.
fn asks(lab: &Lab, wan: IpAddr, port: u16) {
    let client = lab.router.udp(match wan {
        IpAddr::V4(_) => SocketAddr::from(([0, 0, 0, 0], 0)),
        IpAddr::V6(_) => SocketAddr::from(([0_u16; 8], 0)),
    });
    client.set_read_timeout(Some(Duration::from_millis(200))).expect("set a timeout");
    eventually(&format!("no answer from {wan}"), || {
        client.send_to(b"who", (wan, port)).expect("send");
        matches!(client.recv_from(&mut [0; 16]), Ok((3, from)) if from == (wan, port).into())
    });
}

fn the_host_itself_reaches_a_forward_by_the_uplink_s_address(lab: &Lab) {
    lab.ipv6();
    let mut worker = lab.start();
    for (server, wan) in [(IpAddr::from(INSIDE), IpAddr::from(WAN)), (INSIDE6.into(), WAN6.into())] {
        let body =
            json!({"external_port": 8080, "internal_ip": server, "internal_port": 80, "protocol": "all"});
        let rule = rule_id(&lab.post("/nat/forward", &body).ok());
        serving(lab.inside.listen((server, 80)));
        answering(lab.inside.udp((server, 80)));
        asks(lab, wan, 8080);
        let mut stream = lab.router.connect((wan, 8080)).expect("connect");
        assert_eq!(stream.peer_addr().expect("a peer"), (wan, 8080).into());
        exchange(&stream, wan);
        let flows = lab.get("/nat/flows?protocol=tcp");
        let flow = &flows["flows"][0];
        assert_eq!((&flow["inside_ip"], &flow["remote_ip"]), (&json!(server), &json!(wan)), "{flows}");

        // It does not need the worker.
        worker.murder();
        exchange(&lab.router.connect((wan, 8080)).expect("connect without a worker"), wan);
        worker = lab.start();
        stream.write_all(b"again").expect("send");
        stream.read_exact(&mut [0; 5]).expect("a connection goes on");

        lab.call("DELETE", &format!("/nat/forward/{rule}"), None).ok();
        let refused = lab.router.connect((wan, 8080)).expect_err("nobody listens there");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        let ended = stream.write_all(b"once more").and_then(|()| stream.read_exact(&mut [0; 9]));
        assert!(ended.is_err(), "the connection went with its rule");
    }
}

fn what_is_not_forwarded_for_inside_hosts_is_not_for_the_host_either(lab: &Lab) {
    let _worker = lab.start();
    let body = |port: u16, hairpin: bool| {
        json!({"external_port": port, "internal_ip": INSIDE, "internal_port": 80, "protocol": "tcp",
               "hairpin": hairpin})
    };
    lab.post("/nat/forward", &body(8080, false)).ok();
    lab.post("/nat/forward", &body(8081, true)).ok();
    serving(lab.inside.listen((INSIDE, 80)));
    serving(lab.router.listen((WAN, 9090)));
    let refused = lab.router.connect((WAN, 8080)).expect_err("as if there were no forward");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    // Services of the host itself are its own, and loopback's address is nobody's uplink.
    exchange(&lab.router.connect((WAN, 9090)).expect("connect to a service"), WAN.into());
    exchange(&lab.router.connect((WAN, 8081)).expect("connect to a forward"), WAN.into());
    assert!(lab.router.connect(([127, 0, 0, 1], 8081)).is_err());
    lab.get("/health");
}

/// Asks in these words, again until they come back; nobody else's may.
fn hears_its_own(client: &UdpSocket, words: &[u8], why: &str) {
    client.set_read_timeout(Some(Duration::from_millis(200))).expect("set a timeout");
    eventually(&format!("{why}: no answer"), || {
        client.send(words).expect("send");
        let mut heard = [0; 64];
        let Ok(len) = client.recv(&mut heard) else { return false };
        assert_eq!(&heard[..len], words, "{why}: somebody else's answer");
        true
    });
}

/// The server sees both at the uplink's address: it is the port that tells them apart. With iptables, connection tracking does that.
#[test]
fn the_host_and_an_inside_host_with_one_port_do_not_get_each_other_s_answers() {
    let lab = Lab::on("ebpf");
    let _worker = lab.start();
    lab.masquerade();
    let body = json!({"external_port": 8080, "internal_ip": INSIDE, "internal_port": 80, "protocol": "udp"});
    lab.post("/nat/forward", &body).ok();
    answering(lab.inside.udp((INSIDE, 80)));
    for (port, host_first) in [(5000, true), (5001, false)] {
        let own = || {
            let own = lab.router.udp((WAN, port));
            own.connect((WAN, 8080)).expect("choose a peer");
            hears_its_own(&own, b"the host", "the host begins");
            own
        };
        let insider = || {
            let insider = lab.inside.udp((INSIDE, port));
            insider.connect((WAN, 8080)).expect("choose a peer");
            hears_its_own(&insider, b"inside", "the inside host begins");
            insider
        };
        let (own, insider) = if host_first {
            let own = own();
            (own, insider())
        } else {
            let insider = insider();
            (own(), insider)
        };
        for _ in 0..3 {
            hears_its_own(&own, b"the host", "the host goes on");
            hears_its_own(&insider, b"inside", "the inside host goes on");
        }
    }
}
