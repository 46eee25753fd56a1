//! A lab whose hosts and router send frames from driver to driver.

use serde_json::Value;

use crate::lab::{Lab, eventually};

/// Flows of one attempt of [`until_in_drivers`].
pub const FLOWS: u64 = 20;

/// Its hosts take frames from drivers: a veth does when it has GRO on.
pub fn lab() -> Lab {
    let mut lab = Lab::on("ebpf");
    lab.environment.push(("XDP", "on".to_owned()));
    for host in [&lab.inside, &lab.outside] {
        host.sh("ethtool -K eth0 gro on");
    }
    lab
}

/// What a socket sends over a veth pair has no checksum, because the card would fill it in: such packets take the hook
/// behind the driver. From now on the hosts fill it in themselves.
pub fn whole_checksums(lab: &Lab) {
    for host in [&lab.inside, &lab.outside] {
        host.sh("ethtool -K eth0 tx off");
    }
}

pub fn status(lab: &Lab) -> Value {
    lab.get("/network/status")["dataplane"].clone()
}

/// `off` or `native` for an interface, and why.
pub fn mode(lab: &Lab, interface: &str) -> (String, String) {
    let status = status(lab);
    let ports = status["xdp"].as_array().expect("a list");
    let port = ports.iter().find(|port| port["interface"] == interface);
    let text = |key: &str| port.and_then(|port| port[key].as_str()).unwrap_or("absent").to_owned();
    (text("mode"), text("reason"))
}

/// What the kernel says is in the driver.
pub fn has_program(lab: &Lab, interface: &str) -> bool {
    lab.router.sh(&format!("ip link show dev {interface}")).contains("prog/xdp")
}

pub fn sent_in_drivers(lab: &Lab) -> u64 {
    status(lab)["xdp_packets"].as_u64().expect("a number")
}

/// Repeats flows of a question and its answer until both packets of each are sent on in drivers: neighbours that are just being
/// confirmed, say, and the end of a lease send some the kernel's way.
#[track_caller]
pub fn until_in_drivers(lab: &Lab, flow: impl Fn()) {
    eventually("new flows do not leave in drivers", || {
        let before = sent_in_drivers(lab);
        for _ in 0..FLOWS {
            flow();
        }
        sent_in_drivers(lab) == before + 2 * FLOWS
    });
}
