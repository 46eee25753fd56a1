//! What is longer than the way inside is wide, between the host itself and its own forwards: loopback takes 65,536 bytes at once.

use std::{net::UdpSocket, thread};

use nix::libc;
use telecluster_tests::{
    lab::{INSIDE, Lab, PATIENCE, WAN, eventually},
    on_each_data_plane,
    round::{FAMILIES, PAUSE, forward, talks},
    sockets::{Parts, path_mtu, set_parts},
};

on_each_data_plane!(
    long_datagrams_reach_a_forward_and_so_do_their_answers,
    a_datagram_that_may_be_cut_is_not_lost,
    a_datagram_that_may_not_be_cut_is_refused_with_the_mtu_inside,
    long_datagrams_to_the_hosts_own_services_are_left_alone,
);

/// Answers datagrams with what they are.
fn answering(socket: UdpSocket) {
    thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..len], from);
        }
    });
}

fn payload(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|place| place.to_le_bytes()[0].wrapping_mul(31) ^ place.to_le_bytes()[1] ^ seed).collect()
}

/// Sends until it comes back; while the way is being learned, it may be lost, and sending may be an error.
#[track_caller]
fn comes_back(client: &UdpSocket, data: &[u8]) {
    let mut buffer = vec![0; 65536];
    eventually(&format!("{} bytes do not come back", data.len()), || {
        let _ = client.send(data);
        while let Ok(len) = client.recv(&mut buffer) {
            if buffer[..len] == *data {
                return true;
            }
        }
        false
    });
}

fn long_datagrams_reach_a_forward_and_so_do_their_answers(lab: &Lab) {
    lab.ipv6();
    let _worker = lab.start();
    for (server, wan) in FAMILIES {
        forward(lab, 8080, (server, 80));
        answering(lab.inside.udp((server, 80)));
        let client = talks(lab, (wan, 8080));
        for (len, seed) in [(1473, 1), (4000, 2), (9000, 3), (60000, 4), (65507, 5), (100, 6)] {
            comes_back(&client, &payload(len, seed));
        }
    }
    for host in [&lab.inside, &lab.router] {
        assert_eq!(host.snmp("Udp", "InCsumErrors"), 0);
    }
}

/// Only IPv4 cuts what it forwards; over IPv6 the sender has to (RFC 8200 section 4.5).
fn a_datagram_that_may_be_cut_is_not_lost(lab: &Lab) {
    let _worker = lab.start();
    forward(lab, 8080, (INSIDE.into(), 80));
    let service = lab.inside.udp((INSIDE, 80));
    let client = talks(lab, (WAN.into(), 8080));
    set_parts(&client, WAN, Parts::Anywhere);
    // so that both know where the other one is
    eventually("nothing arrives inside", || {
        client.send(b"who").expect("send");
        service.set_read_timeout(Some(PAUSE)).expect("set a timeout");
        service.recv(&mut [0; 16]).is_ok()
    });
    service.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
    for seed in 0..5 {
        let data = payload(20000, seed);
        client.send(&data).expect("send");
        let mut buffer = vec![0; 65536];
        let mut len = service.recv(&mut buffer).expect("it arrives");
        while len == 3 {
            len = service.recv(&mut buffer).expect("it arrives");
        }
        assert!(buffer[..len] == data, "other bytes");
    }
}

fn a_datagram_that_may_not_be_cut_is_refused_with_the_mtu_inside(lab: &Lab) {
    lab.ipv6();
    let _worker = lab.start();
    for (server, wan) in FAMILIES {
        forward(lab, 8080, (server, 80));
        answering(lab.inside.udp((server, 80)));
        comes_back(&talks(lab, (wan, 8080)), &payload(1000, 1));
        // Not connected, or its datagrams would have numbers, see `docs/architecture.md`.
        let client = lab.router.udp((wan, 0));
        set_parts(&client, wan, Parts::Never);
        eventually(&format!("nobody tells how wide the way by {wan} is"), || {
            let sent = client.send_to(&payload(5000, 2), (wan, 8080));
            sent.is_err_and(|error| error.raw_os_error() == Some(libc::EMSGSIZE))
        });
        if lab.dataplane() == Some("ebpf") && wan.is_ipv6() {
            // A little less is told than is true, or the kernel would not believe it.
            assert_eq!(path_mtu(&talks(lab, (wan, 8080)), wan), 1496);
        }
    }
}

/// Once the host knows how narrow the way to a forward is, it cuts what it sends to itself too.
fn long_datagrams_to_the_hosts_own_services_are_left_alone(lab: &Lab) {
    lab.ipv6();
    let _worker = lab.start();
    for (server, wan) in FAMILIES {
        forward(lab, 8080, (server, 80));
        answering(lab.inside.udp((server, 80)));
        answering(lab.router.udp((wan, 7000)));
        let own = talks(lab, (wan, 7000));
        comes_back(&own, &payload(9000, 1));
        comes_back(&talks(lab, (wan, 8080)), &payload(9000, 2));
        comes_back(&own, &payload(9000, 3));
        // a service that nobody has
        let refused = talks(lab, (wan, 7001));
        eventually("the host does not tell itself", || {
            refused
                .send(b"who")
                .and_then(|_| refused.recv(&mut [0; 16]))
                .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
        });
    }
}
