//! Machines behind the ports of a worker's bridge `br-v`, and whether they hear each other.

use std::{
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    lab::{Lab, Netns, PATIENCE, eventually},
    switch::{
        frames::{BROADCAST, EXPERIMENT, ether, mac},
        wire::Wire,
    },
};

/// A machine behind a port of `br-v`.
#[derive(Debug)]
pub struct Machine {
    pub netns: Netns,
    pub port: String,
    pub address: Ipv4Addr,
}

impl Machine {
    /// Number `n` is 10.0.0.n, behind port `pn`, which is in no bridge yet.
    pub fn new(lab: &Lab, number: u8) -> Self {
        let netns = Netns::new();
        let port = format!("p{number}");
        lab.router.veth(&port, &netns, "eth0");
        netns.sh("sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1");
        netns.ip(&format!("link set eth0 address 02:00:00:00:00:{number:02x}"));
        netns.ip("link set eth0 up");
        let address = Ipv4Addr::new(10, 0, 0, number);
        netns.ip(&format!("addr add {address}/24 dev eth0"));
        Self { netns, port, address }
    }

    /// The same, in a VLAN of the bridge.
    pub fn in_vlan(lab: &Lab, number: u8, vlan: u16) -> Self {
        let machine = Self::new(lab, number);
        let body = json!({ "bridge_name": "br-v", "port_name": machine.port, "vlan": vlan });
        lab.post("/bridge/add-port", &body).ok();
        machine
    }

    pub fn wire(&self) -> Wire {
        self.netns.run(|| Wire::all("eth0"))
    }
}

/// A running worker's bridge `br-v`.
pub fn bridge(lab: &Lab) {
    lab.post("/bridge/create", &json!({ "name": "br-v" })).ok();
}

/// Whether the data plane of this lab can keep VLANs apart on this kernel.
pub fn filtered(lab: &Lab) -> bool {
    let filtered = lab.dataplane() != Some("iptables") || lab.bridges_filter_vlans();
    if !filtered {
        assert!(
            std::env::var_os("TELECLUSTER_VM").is_none(),
            "the bridges of the VMs' kernels have the filter"
        );
        eprintln!(
            "this kernel's bridge has no VLAN filter: shown in the VM; that it is refused here is shown in `fallback`"
        );
    }
    filtered
}

pub fn into_vlan(lab: &Lab, port: &str, vlan: u16, tagged: bool) -> Value {
    let body = json!({ "bridge_name": "br-v", "port_name": port, "vlan_id": vlan, "tagged": tagged });
    lab.post("/vlan/add-to-bridge", &body).ok()
}

/// A datagram there and back. It is sent until it is heard: what is sent before the kernel has seen the carrier of a
/// new pair is lost without a word.
#[track_caller]
pub fn talk(a: &Machine, b: &Machine) {
    let server = b.netns.udp((b.address, 7000));
    server.set_nonblocking(true).expect("not blocking");
    let client = a.netns.udp((a.address, 0));
    client.connect((b.address, 7000)).expect("connect");
    let mut buffer = [0; 16];
    let mut heard = None;
    eventually("the datagram did not come", || {
        client.send(b"hello").expect("send");
        thread::sleep(Duration::from_millis(1));
        heard = server.recv_from(&mut buffer).ok();
        heard.is_some()
    });
    let (length, from) = heard.expect("heard");
    server.send_to(&buffer[..length], from).expect("answer");
    assert_eq!(client.recv(&mut buffer).expect("the answer"), 5);
}

/// The next frame of an experiment.
#[track_caller]
pub fn next(wire: &Wire) -> Vec<u8> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match wire.receive() {
            Some(frame)
                if frame[12..14] == EXPERIMENT.to_be_bytes() || frame[16..18] == EXPERIMENT.to_be_bytes() =>
            {
                return frame;
            }
            Some(_) => {}
            None => {
                assert!(Instant::now() < deadline, "the frame did not come");
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// What one sends to all reaches the second and not the third, to whom a fourth says when it is over.
#[track_caller]
pub fn apart(from: &Machine, to: &Machine, other: &Machine, others_neighbour: &Machine) {
    let (to, other) = (to.wire(), other.wire());
    let hello = |machine: &Machine| {
        let frame = ether(mac(machine.address.octets()[3]), BROADCAST).bytes();
        machine.wire().send(&frame);
        frame
    };
    let sent = hello(from);
    assert_eq!(next(&to), sent);
    let last = hello(others_neighbour);
    assert_eq!(next(&other), last, "a frame of another VLAN");
}

pub fn rows(lab: &Lab) -> Vec<(String, u64)> {
    let rows = lab.get("/vlan/bridge-vlans");
    let row = |row: &Value| Some((row["port_name"].as_str()?.to_owned(), row["vlan_id"].as_u64()?));
    rows.as_array().expect("a list").iter().filter_map(row).collect()
}
