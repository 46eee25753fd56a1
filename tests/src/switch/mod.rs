//! Frames into the ports of a bridge with VLANs, frames out of them: one list of stories for the engine on the host,
//! for the loaded programs on real interfaces, and for the kernel's own VLAN filter.
//!
//! | module | what |
//! |---|---|
//! | [`frames`] | Ethernet frames with any number of tags |
//! | [`stories`] | ports, frames in, frames out |
//! | [`engine`] | the engine over byte slices |
//! | [`wire`] | packet sockets on interfaces |
//! | [`kernel`] | the programs on veth ports; the kernel's own filter on the same ports |

pub mod engine;
pub mod frames;
pub mod kernel;
pub mod stories;
pub mod wire;

use std::collections::BTreeSet;

use telecluster_common::vlan::{frame::is_tag, learn::AGEING};
use telecluster_worker::{
    kernel::{links::Mac, switch::SwitchPort},
    model::{VlanProtocol, bridge_vlan::Accept},
};

/// The port that is the bridge itself.
pub const HOST: usize = 0;
/// Its address.
pub const HOST_MAC: [u8; 6] = [2, 0xbb, 0, 0, 0, 1];

/// A port of a story. Port 0 is the bridge itself.
#[derive(Debug, Clone, Default)]
pub struct Port {
    pub native: Option<u16>,
    pub tagged: BTreeSet<u16>,
    pub accept: Accept,
    pub protocol: VlanProtocol,
    pub tunnel: bool,
    /// Otherwise as the worker does: on ports with tagged VLANs.
    pub nested: bool,
    pub blocked: bool,
    pub isolated: bool,
    pub hairpin: bool,
    pub station_limit: u32,
    /// Milliseconds for which stations are remembered; otherwise as a bridge does.
    pub ageing: Option<u32>,
    pub mtu: Option<u32>,
    /// Stations that are here whatever frames say: VLAN and address.
    pub stations: Vec<(u16, [u8; 6])>,
}

impl Port {
    /// In no VLAN.
    pub fn plain() -> Self {
        Self::default()
    }

    pub fn access(vlan: u16) -> Self {
        Self { native: Some(vlan), ..Self::default() }
    }

    pub fn trunk(vlans: &[u16]) -> Self {
        Self { tagged: vlans.iter().copied().collect(), ..Self::default() }
    }

    #[must_use]
    pub fn native(self, vlan: u16) -> Self {
        Self { native: Some(vlan), ..self }
    }

    /// As the data plane wants it.
    pub fn switch_port(&self, index: u32, bridge: u32) -> SwitchPort {
        let host = index == bridge;
        let fixed = self.stations.iter().map(|(vlan, mac)| (*vlan, Mac(*mac)));
        // The host's own address, in each of its VLANs.
        let vlans = self.tagged.iter().copied().chain(self.native).filter(|_| host);
        SwitchPort {
            index,
            bridge,
            native: self.native,
            tagged: self.tagged.clone(),
            accept: self.accept,
            protocol: self.protocol,
            tunnel: self.tunnel,
            nested: self.nested || !self.tagged.is_empty(),
            forwarding: !self.blocked,
            learning: !self.blocked,
            isolated: self.isolated,
            hairpin: self.hairpin,
            stp: false,
            mtu: self.mtu.unwrap_or(1500),
            station_limit: self.station_limit,
            ageing: self.ageing.unwrap_or(AGEING),
            stations: vlans.map(|vlan| (vlan, Mac(HOST_MAC))).chain(fixed).collect(),
        }
    }
}

/// Something that switches frames.
pub trait Machine {
    /// Sends a frame into a port (as who is behind it; of port 0: as the host); what came out, by port.
    fn send(&mut self, port: usize, frame: &[u8]) -> Vec<(usize, Vec<u8>)>;

    /// Whether a tag can be seen on what the host gets.
    fn shows_the_hosts_tags(&self) -> bool;

    /// Makes a port another one, if it can.
    fn put(&mut self, number: usize, port: &Port) -> bool;

    /// Lets time pass, if it can.
    fn wait(&mut self, seconds: u64) -> bool;
}

/// Plays a story on a machine that has its ports. Each frame is sent so many times: what becomes of it is the same each time,
/// though it may have been decided before.
pub fn play(story: &stories::Story, machine: &mut impl Machine, times: usize) {
    for (number, step) in story.steps.iter().enumerate() {
        match step {
            stories::Step::Send { port, frame, out } => (0..times).for_each(|_| {
                let mut found = machine.send(*port, frame);
                let mut expected = out.clone();
                if !machine.shows_the_hosts_tags() {
                    expected.iter_mut().filter(|(port, _)| *port == HOST).for_each(|(_, frame)| strip(frame));
                }
                found.sort();
                expected.sort();
                assert!(
                    found == expected,
                    "{}, step {}: into port {port}\n{}\nexpected{}\nfound{}",
                    story.name,
                    number + 1,
                    hex(frame),
                    list(&expected),
                    list(&found),
                );
            }),
            stories::Step::Put { number, port } => {
                if !machine.put(*number, port) {
                    return;
                }
            }
            stories::Step::Wait(seconds) => {
                if !machine.wait(*seconds) {
                    return;
                }
            }
        }
    }
}

/// Takes the outer tag off.
fn strip(frame: &mut Vec<u8>) {
    if is_tag(u16::from_be_bytes([frame[12], frame[13]])) {
        frame.drain(12..16);
    }
}

fn list(frames: &[(usize, Vec<u8>)]) -> String {
    frames.iter().map(|(port, frame)| format!("\n  {port}: {}", hex(frame))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ")
}
