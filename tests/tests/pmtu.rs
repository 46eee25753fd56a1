//! Path MTU discovery: a router behind each side has a narrow link, and says so to the sender through the NAT.
//!
//! ```text
//!  server ---- 1300 ---- inside ---- worker ---- outside ---- 1300 ---- client
//! ```

use std::net::IpAddr;

use serde_json::{Value, json};
use telecluster_tests::{
    behind::{self, CLIENT, NARROW, SERVER, WANS, alike, carries},
    lab::{Lab, Netns, OUTSIDE6, eventually},
};

struct Hosts {
    lab: Lab,
    server: Netns,
    client: Netns,
}

impl Hosts {
    fn new() -> Self {
        let lab = Lab::new();
        lab.ipv6();
        let (server, client) = (behind::server(&lab), behind::client(&lab));
        lab.router.ip(&format!("-6 route add default via {OUTSIDE6}"));
        Self { lab, server, client }
    }
}

/// Has learned how narrow the way to this address is.
fn knows(host: &Netns, address: IpAddr) {
    let route = || host.sh(&format!("ip route get {address}"));
    eventually("nobody has told how narrow it is", || route().contains(&format!("mtu {NARROW}")));
}

#[test]
fn a_connection_goes_through_narrow_links_behind_either_side() {
    let Hosts { lab, server, client } = Hosts::new();
    let _worker = lab.start();
    for source in ["10.30.0.0/24", "fd00:30::/64"] {
        let body = json!({"source_network": source, "output_interface": "wan0"});
        lab.post("/nat/masquerade", &body).ok();
    }
    for wan in WANS {
        let [server_ip, client_ip] = [SERVER, CLIENT].map(|host| alike(&host, wan));
        let body: Value = json!({"external_port": 8080, "internal_ip": server_ip, "internal_port": 80});
        lab.post("/nat/forward", &body).ok();
        // out through the masquerade: the router outside tells
        let listener = client.listen((client_ip, 5301));
        let mut near = server.connect((client_ip, 5301)).expect("connect to the outside");
        let (mut far, seen) = listener.accept().expect("accept");
        assert_eq!(seen.ip(), wan);
        far.set_read_timeout(Some(telecluster_tests::lab::PATIENCE)).expect("set a timeout");
        carries(&mut near, &mut far);
        knows(&server, client_ip);
        carries(&mut far, &mut near);
        // in through the forward: the router inside tells
        let listener = server.listen((server_ip, 80));
        let mut near = client.connect((wan, 8080)).expect("connect to the forward");
        let (mut far, _) = listener.accept().expect("accept");
        far.set_read_timeout(Some(telecluster_tests::lab::PATIENCE)).expect("set a timeout");
        carries(&mut near, &mut far);
        knows(&client, wan);
        carries(&mut far, &mut near);
    }
    for host in [&server, &client] {
        assert_eq!(host.snmp("Icmp", "InCsumErrors"), 0);
        assert_eq!(host.snmp("Tcp", "InCsumErrors"), 0);
    }
}
