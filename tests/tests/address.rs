//! The uplink's address goes and comes back, or another one comes.

use std::{net::IpAddr, time::Duration};

use telecluster_tests::lab::{INSIDE, INSIDE_NET, Lab, OUTSIDE, WAN, eventually};

/// Takes the uplink's address away, and waits until the worker knows.
fn lose_the_address(lab: &Lab) {
    lab.router.ip(&format!("addr del {WAN}/24 dev wan0"));
    eventually("the worker has not seen it go", || lab.dump("uplink4").is_empty());
}

#[test]
fn flows_follow_an_uplink_that_was_without_an_address_for_a_while() {
    let lab = Lab::new();
    let _worker = lab.start();
    lab.masquerade();
    let (server, client) = (lab.outside.udp((OUTSIDE, 5300)), lab.inside.udp((INSIDE, 40000)));
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("set a timeout");
    }
    let answered_as = |external: [u8; 4]| {
        eventually(&format!("no answer through {external:?}"), || {
            // Nothing leads outside before there is an address again.
            let _ = client.send_to(b"who", (OUTSIDE, 5300));
            let Ok((_, from)) = server.recv_from(&mut [0; 16]) else { return false };
            server.send_to(b"you", from).expect("answer");
            from.ip() == IpAddr::from(external) && client.recv_from(&mut [0; 16]).is_ok()
        });
    };
    answered_as(WAN.octets());
    lose_the_address(&lab);
    lab.router.ip("addr add 203.0.113.9/24 dev wan0");
    answered_as([203, 0, 113, 9]);
}

#[test]
fn a_connection_outlives_an_address_that_goes_and_comes_back() {
    use std::io::{Read as _, Write as _};
    let lab = Lab::new();
    let _worker = lab.start();
    lab.masquerade();
    let listener = lab.outside.listen((OUTSIDE, 5300));
    let mut client = lab.inside.connect((OUTSIDE, 5300)).expect("connect");
    let (mut server, _) = listener.accept().expect("accept");
    let mut exchange = || {
        let mut heard = [0; 5];
        client.write_all(b"there").expect("send");
        server.read_exact(&mut heard).expect("it arrives");
        server.write_all(b"again").expect("answer");
        client.read_exact(&mut heard).expect("it comes back");
        assert_eq!(heard, *b"again");
    };
    exchange();
    lose_the_address(&lab);
    lab.router.ip(&format!("addr add {WAN}/24 dev wan0"));
    exchange();
}

/// RFC 4787 REQ-7: nobody but the operator can number the two sides apart, so the operator is told.
#[test]
fn an_uplink_whose_network_is_the_inside_s_too_is_told_of_until_it_is_not() {
    let lab = Lab::new();
    let _worker = lab.start();
    let body = serde_json::json!({ "source_network": INSIDE_NET, "output_interface": "wan0" });
    let made = lab.post("/nat/masquerade", &body).ok();
    assert_eq!(made["data"]["warnings"], serde_json::json!([]), "{made}");
    let told = || {
        let problems = lab.get("/health")["problems"].to_string();
        problems.contains(INSIDE_NET) && problems.contains("wan0") && problems.contains("br-lab")
    };
    assert!(!told());
    lab.router.ip("addr add 192.168.100.77/24 dev wan0");
    eventually("the conflict is not told of", told);
    let body = serde_json::json!({ "source_network": "192.168.100.0/25", "output_interface": "wan0" });
    let made = lab.post("/nat/masquerade", &body).ok();
    assert!(made["data"]["warnings"].to_string().contains("192.168.100.0/24 of wan0"), "{made}");
    lab.router.ip("addr del 192.168.100.77/24 dev wan0");
    eventually("the conflict is told of though it is over", || !told());
}
