//! ICMP errors through the NAT, as sockets see them: RFC 5508, RFC 4787 REQ-12, path MTU discovery.

use std::{
    io::ErrorKind,
    net::{IpAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use telecluster_tests::{
    lab::{INSIDE, INSIDE_NET6, INSIDE6, Lab, OUTSIDE, OUTSIDE6, PATIENCE, WAN, WAN6, eventually},
    on_each_data_plane,
    sockets::{hopless, set_extensions},
};

on_each_data_plane!(
    a_closed_port_outside_is_told_to_the_inside_host,
    a_closed_port_behind_a_forward_is_told_to_the_client,
    a_smaller_mtu_inside_is_told_to_the_client_of_a_forward,
    a_client_of_a_forward_is_told_that_its_hops_are_used_up,
    whoever_sends_extension_headers_is_told_too,
);

/// Sends to a port where nobody listens until the error has come back.
fn is_refused(socket: &UdpSocket) -> bool {
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("set a timeout");
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        // a send reports the error of the one before
        let _ = socket.send(b"q");
        match socket.recv(&mut [0; 16]) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return true,
            Ok(_) | Err(_) => {}
        }
    }
    false
}

fn a_closed_port_outside_is_told_to_the_inside_host(lab: &Lab) {
    let _worker = lab.start();
    lab.masquerade();
    let client = lab.inside.udp((INSIDE, 40000));
    client.connect((OUTSIDE, 5399)).expect("connect");
    assert!(is_refused(&client));
    assert_eq!(lab.inside.snmp("Icmp", "InCsumErrors"), 0);
}

fn a_closed_port_behind_a_forward_is_told_to_the_client(lab: &Lab) {
    let _worker = lab.start();
    lab.masquerade();
    lab.forward("udp", 5353, 53);
    let client = lab.outside.udp((OUTSIDE, 6000));
    client.connect((WAN, 5353)).expect("connect");
    assert!(is_refused(&client), "from the very address and port that it was sent to");
    assert_eq!(lab.outside.snmp("Icmp", "InCsumErrors"), 0);
}

fn a_smaller_mtu_inside_is_told_to_the_client_of_a_forward(lab: &Lab) {
    let _worker = lab.start();
    lab.forward("udp", 5353, 53);
    lab.inside.ip("link set eth0 mtu 1300");
    lab.router.ip("link set lan0 mtu 1300");
    lab.router.ip("link set br-lab mtu 1300");
    let client = lab.outside.udp((OUTSIDE, 6000));
    let route = || lab.outside.sh(&format!("ip route get {WAN}"));
    let deadline = Instant::now() + PATIENCE;
    // with "do not fragment", as ever on Linux
    while !route().contains("mtu 1300") {
        assert!(Instant::now() < deadline, "{}", route());
        client.send_to(&[7; 1400], (WAN, 5353)).expect("send");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The worker's host makes the error, about the packet as it is behind the translation.
fn a_client_of_a_forward_is_told_that_its_hops_are_used_up(lab: &Lab) {
    lab.ipv6();
    let _worker = lab.start();
    for (server, outside, wan) in [
        (IpAddr::from(INSIDE), IpAddr::from(OUTSIDE), IpAddr::from(WAN)),
        (INSIDE6.into(), OUTSIDE6.into(), WAN6.into()),
    ] {
        let body = serde_json::json!({
            "external_port": 5353, "internal_ip": server, "internal_port": 53, "protocol": "udp",
        });
        lab.post("/nat/forward", &body).ok();
        let client = lab.outside.udp((outside, 6000));
        client.connect((wan, 5353)).expect("connect");
        hopless(&client, outside);
        client.set_read_timeout(Some(Duration::from_millis(200))).expect("set a timeout");
        eventually("it is not told", || {
            let told = |result: std::io::Result<usize>| {
                result.is_err_and(|error| error.kind() == ErrorKind::HostUnreachable)
            };
            told(client.send(b"how far?")) || told(client.recv(&mut [0; 16]))
        });
    }
    assert_eq!(lab.outside.snmp("Icmp", "InCsumErrors"), 0);
}

/// Both ways: what a host outside says about an inside host's datagrams, and what an inside host says about a client's.
fn whoever_sends_extension_headers_is_told_too(lab: &Lab) {
    lab.ipv6();
    let _worker = lab.start();
    let body = serde_json::json!({"source_network": INSIDE_NET6, "output_interface": "wan0"});
    lab.post("/nat/masquerade", &body).ok();
    let body = serde_json::json!({
        "external_port": 5353, "internal_ip": INSIDE6, "internal_port": 53, "protocol": "udp",
    });
    lab.post("/nat/forward", &body).ok();
    for (port, options) in [(40000, [true, false]), (40001, [false, true]), (40002, [true, true])] {
        for (from, address, to) in
            [(&lab.inside, INSIDE6, (OUTSIDE6, 5399)), (&lab.outside, OUTSIDE6, (WAN6, 5353))]
        {
            let client = from.udp((address, port));
            set_extensions(&client, options);
            client.connect(to).expect("connect");
            assert!(is_refused(&client), "{address}, hop-by-hop and destination options: {options:?}");
        }
    }
}
