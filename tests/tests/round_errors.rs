//! ICMP errors between the host itself and its own forwards, as its sockets and those of the inside server see them.
//!
//! ```text
//!  worker's host ---- inside ---- 1300 ---- server
//! ```

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, UdpSocket},
};

use nix::libc;
use telecluster_tests::{
    behind::{self, NARROW, SERVER, WANS, alike, carries},
    lab::{Lab, PATIENCE, eventually},
    on_each_data_plane,
    round::{FAMILIES, PAUSE, forward, talks},
    sockets::{Parts, hopless, path_mtu, set_parts},
};

on_each_data_plane!(
    a_closed_port_inside_refuses_what_the_host_sends,
    a_socket_of_the_host_that_is_gone_refuses_answers,
    a_router_inside_tells_the_host_that_the_hops_are_used_up,
    a_server_that_is_not_there_is_unreachable_for_the_host,
    the_host_learns_how_narrow_the_way_behind_a_router_inside_is,
);

/// Sends until the socket is told so.
#[track_caller]
fn is_told(socket: &UdpSocket, data: &[u8], wanted: impl Fn(&io::Error) -> bool) {
    eventually("nobody tells", || {
        socket.send(data).and_then(|_| socket.recv(&mut [0; 16])).err().as_ref().is_some_and(&wanted)
    });
}

fn a_closed_port_inside_refuses_what_the_host_sends(lab: &Lab) {
    lab.ipv6();
    let _worker = lab.start();
    for (server, wan) in FAMILIES {
        forward(lab, 8080, (server, 81));
        is_told(&talks(lab, (wan, 8080)), b"who", |error| error.kind() == ErrorKind::ConnectionRefused);
    }
}

fn a_socket_of_the_host_that_is_gone_refuses_answers(lab: &Lab) {
    lab.ipv6();
    let _worker = lab.start();
    for (server, wan) in FAMILIES {
        forward(lab, 8080, (server, 80));
        let service = lab.inside.udp((server, 80));
        service.set_read_timeout(Some(PAUSE)).expect("set a timeout");
        let client = talks(lab, (wan, 8080));
        let mut from = None;
        eventually("nothing arrives inside", || {
            client.send(b"who").expect("send");
            from = service.recv_from(&mut [0; 16]).ok().map(|(_, from)| from);
            from.is_some()
        });
        drop(client);
        service.connect(from.expect("somebody")).expect("choose a peer");
        is_told(&service, b"you", |error| error.kind() == ErrorKind::ConnectionRefused);
    }
}

/// The way inside goes on behind a router: what has one hop left ends there.
fn a_router_inside_tells_the_host_that_the_hops_are_used_up(lab: &Lab) {
    lab.ipv6();
    let server = behind::server(lab);
    let _worker = lab.start();
    for wan in WANS {
        let address = alike(&SERVER, wan);
        forward(lab, 8080, (address, 80));
        let service = server.udp((address, 80));
        service.set_read_timeout(Some(PAUSE)).expect("set a timeout");
        let client = talks(lab, (wan, 8080));
        eventually("nothing arrives inside", || {
            client.send(b"who").expect("send");
            service.recv(&mut [0; 16]).is_ok()
        });
        hopless(&client, wan);
        is_told(&client, b"who", |error| error.kind() == ErrorKind::HostUnreachable);
    }
}

/// It is the host's own kernel that finds that out, when nobody answers for the address.
fn a_server_that_is_not_there_is_unreachable_for_the_host(lab: &Lab) {
    lab.ipv6();
    let _worker = lab.start();
    for (server, wan) in FAMILIES {
        let nobody = match server {
            IpAddr::V4(_) => IpAddr::from([192, 168, 100, 99]),
            IpAddr::V6(_) => IpAddr::from([0xfd00, 0x100, 0, 0, 0, 0, 0, 0x99]),
        };
        forward(lab, 8080, (nobody, 80));
        let refused = lab.router.connect((wan, 8080)).expect_err("nobody is there");
        assert_eq!(refused.kind(), ErrorKind::HostUnreachable, "{refused}");
    }
}

fn the_host_learns_how_narrow_the_way_behind_a_router_inside_is(lab: &Lab) {
    lab.ipv6();
    let server = behind::server(lab);
    let _worker = lab.start();
    for wan in WANS {
        let address = alike(&SERVER, wan);
        forward(lab, 8080, (address, 80));
        // a connection stalls unless its sender is told
        let listener = server.listen((address, 80));
        let mut near = lab.router.connect((wan, 8080)).expect("connect");
        let (mut far, _) = listener.accept().expect("accept");
        far.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
        carries(&mut near, &mut far);
        carries(&mut far, &mut near);

        // a datagram that may not be cut into parts
        let client = talks(lab, (wan, 8080));
        set_parts(&client, wan, Parts::Never);
        eventually("nobody tells how narrow it is", || {
            let sent = client.send(&[7; 1400]);
            sent.is_err_and(|error| error.raw_os_error() == Some(libc::EMSGSIZE))
        });
        assert_eq!(path_mtu(&client, wan), i32::from(NARROW));
    }
    assert_eq!(lab.router.snmp("Icmp", "InCsumErrors"), 0);
}
