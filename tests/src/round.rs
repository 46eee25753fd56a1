//! The host itself as a client of its own forwards.

use std::{
    net::{IpAddr, UdpSocket},
    time::Duration,
};

use crate::lab::{INSIDE, INSIDE6, Lab, WAN, WAN6};

/// Of each family the server inside and the uplink's address.
pub const FAMILIES: [(IpAddr, IpAddr); 2] =
    [(IpAddr::V4(INSIDE), IpAddr::V4(WAN)), (IpAddr::V6(INSIDE6), IpAddr::V6(WAN6))];

/// Long enough for a datagram that was not lost, short enough to send again.
pub const PAUSE: Duration = Duration::from_millis(200);

/// Both transports of a port of the uplink.
pub fn forward(lab: &Lab, external: u16, to: (IpAddr, u16)) {
    let body = serde_json::json!({
        "external_port": external, "internal_ip": to.0, "internal_port": to.1, "protocol": "all",
    });
    lab.post("/nat/forward", &body).ok();
}

/// A socket of the host that talks to somebody.
pub fn talks(lab: &Lab, to: (IpAddr, u16)) -> UdpSocket {
    let socket = lab.router.udp((to.0, 0));
    socket.connect(to).expect("choose a peer");
    socket.set_read_timeout(Some(PAUSE)).expect("set a timeout");
    socket
}
