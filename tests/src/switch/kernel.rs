//! A bridge with veth ports in the sandbox's namespace, and a packet socket behind each port: the loaded programs, or
//! the kernel's own VLAN filter, on real interfaces.

use std::{collections::BTreeMap, path::PathBuf, process::Command, rc::Rc};

use nix::{
    net::if_::if_nametoindex,
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use telecluster_worker::{
    kernel::{
        bpf::{BpfDataPlane, Options, object::Object},
        dataplane::{DataPlane as _, HoldDown},
        switch::VlanPlane as _,
        xdp::{Door, Medium, Wishes, Xdp},
    },
    model::VlanProtocol,
};

use super::{
    HOST, HOST_MAC, Machine, Port,
    frames::{AD, EXPERIMENT, Q, ether},
    wire::Wire,
};
use crate::lab::eventually;

/// What the host listens to: it must not see a frame before the programs have, so each kind is asked for by name.
const HOST_KINDS: [u16; 7] = [EXPERIMENT, 0x0800, 0x0806, 0x8035, 0x86dd, Q, AD];

/// The bridge `br0` with ports `p1`, `p2`, ...; behind each the station's `e1`, `e2`, ...
#[derive(Debug)]
pub struct Bridge {
    host: Wire,
    host_kinds: Vec<Wire>,
    /// The ports, from the side of the bridge.
    ports: Vec<Wire>,
    stations: Vec<Wire>,
}

impl Bridge {
    /// In the namespace of this thread, which is pinned to one processor: so all frames keep their order.
    pub fn new(ports: usize, options: &str) -> Self {
        let mut processor = CpuSet::new();
        processor.set(0).expect("a processor");
        sched_setaffinity(Pid::from_raw(0), &processor).expect("stay on one processor");
        // No frames but ours.
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("no IPv6");
        let [a, b, c, d, e, f] = HOST_MAC;
        let mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
        let mut lines = vec![
            format!("link add br0 address {mac} type bridge mcast_snooping 0 {options}"),
            "link set br0 up".to_owned(),
        ];
        for port in 1..=ports {
            lines.push(format!("link add p{port} type veth peer name e{port}"));
            lines.push(format!("link set p{port} master br0"));
            lines.push(format!("link set p{port} up"));
            lines.push(format!("link set e{port} up"));
        }
        batch("ip", &lines);
        let bridge = Self {
            host: Wire::all("br0"),
            host_kinds: HOST_KINDS.iter().map(|kind| Wire::kind("br0", *kind)).collect(),
            ports: (1..=ports).map(|port| Wire::all(&format!("p{port}"))).collect(),
            stations: (1..=ports).map(|port| Wire::all(&format!("e{port}"))).collect(),
        };
        bridge.carries();
        // A carrier is one thing, that the bridge has heard of it another.
        eventually("the ports do not forward", || {
            let shown = Command::new("bridge").args(["link", "show"]).output().expect("run bridge");
            String::from_utf8_lossy(&shown.stdout).matches("state forwarding").count() >= ports
        });
        bridge.host_kinds.iter().chain([&bridge.host]).for_each(|wire| drop(wire.pending()));
        bridge
    }

    /// Waits until frames get to every station and back.
    fn carries(&self) {
        for (port, station) in self.ports.iter().zip(&self.stations) {
            carry(port, station);
            carry(station, port);
        }
    }

    pub fn index(&self) -> u32 {
        self.host.index
    }

    /// Of port 1, 2, ...; of the bridge itself for 0.
    pub fn port(&self, number: usize) -> u32 {
        if number == HOST { self.index() } else { self.ports[number - 1].index }
    }

    /// Takes the links away again, for another bridge.
    pub fn remove(self) {
        let ports = (1..=self.ports.len()).map(|port| format!("link del p{port}"));
        batch("ip", &std::iter::once("link del br0".to_owned()).chain(ports).collect::<Vec<_>>());
    }

    /// Sends a frame, and waits until everything that comes of it has come.
    pub fn send(&self, port: usize, frame: &[u8]) -> Vec<(usize, Vec<u8>)> {
        if port == HOST {
            // A refusal shows in that nothing comes out.
            let _ = self.host.try_send(frame);
        } else {
            self.stations[port - 1].send(frame);
        }
        // The bridge's own protocols pass every port. What the frame comes in through and what comes of it each wait in the
        // processor's queue, when it is busy: one round for each.
        let last = own_protocol();
        let mut out = Vec::new();
        for _ in 0..2 {
            for port in &self.ports {
                port.send(&last);
            }
            for (number, station) in self.stations.iter().enumerate() {
                out.extend(station.until(&last).into_iter().map(|frame| (number + 1, frame)));
            }
        }
        let host = self.host_kinds.iter().flat_map(Wire::pending);
        out.extend(host.map(|frame| (HOST, frame)));
        // What a port has received is not asked for.
        self.ports.iter().for_each(|port| drop(port.pending()));
        drop(self.host.pending());
        out
    }
}

/// Of the bridge's own protocols, which pass every port and are forwarded to none.
fn own_protocol() -> Vec<u8> {
    ether([2, 0xaa, 0, 0, 0, 1], [1, 0x80, 0xc2, 0, 0, 0x0e]).payload(0x88cc, vec![0; 46]).bytes()
}

/// Waits until frames get from one end of a pair to the other: what is sent before the kernel has seen the carrier
/// is lost without a word.
fn carry(from: &Wire, to: &Wire) {
    let frame = own_protocol();
    eventually("a new pair carries frames", || {
        from.send(&frame);
        to.pending().contains(&frame)
    });
    drop(from.pending());
}

/// Runs many lines of a command of iproute2 at once.
pub fn batch(program: &str, lines: &[String]) {
    use std::io::Write as _;
    let mut child = Command::new(program)
        .args(["-batch", "-"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let mut input = child.stdin.take().expect("its input");
    input.write_all((lines.join("\n") + "\n").as_bytes()).expect("write the lines");
    drop(input);
    let status = child.wait().expect("wait");
    assert!(status.success(), "{program} {lines:?}: {status}");
}

/// The programs of the worker on the ports of a bridge.
#[derive(Debug)]
pub struct Programs {
    pub bridge: Bridge,
    pub plane: Plane,
    in_drivers: bool,
}

/// The loaded programs, for one bridge after the other.
pub type Plane = Rc<(BpfDataPlane, Object)>;

impl Programs {
    pub fn new(plane: &Plane, ports: &[Port]) -> Self {
        Self::on(Bridge::new(ports.len() - 1, ""), plane, ports, false)
    }

    /// With the program in the drivers of all ports too. What their stations send has its tags in it, as a socket writes them.
    pub fn in_drivers(plane: &Plane, ports: &[Port]) -> Self {
        let bridge = Bridge::new(ports.len() - 1, "");
        for station in 1..ports.len() {
            let done = Command::new("ethtool").args(["-K", &format!("e{station}"), "gro", "on"]).status();
            assert!(done.expect("run ethtool").success(), "GRO at station {station}");
        }
        Self::on(bridge, plane, ports, true)
    }

    /// On a bridge that has so many ports, of which the programs know nothing yet.
    pub fn on_nothing(plane: &Plane, ports: usize) -> Self {
        Self { bridge: Bridge::new(ports, ""), plane: Rc::clone(plane), in_drivers: false }
    }

    fn on(bridge: Bridge, plane: &Plane, ports: &[Port], in_drivers: bool) -> Self {
        let programs = Self { bridge, plane: Rc::clone(plane), in_drivers };
        for (number, port) in ports.iter().enumerate() {
            programs.put(number, port);
        }
        if in_drivers {
            let door = Door { bridge: programs.bridge.index(), medium: Medium::Software, tags: false };
            let doors = (1..ports.len()).map(|number| (programs.bridge.port(number), door)).collect();
            plane.0.set_doors(&doors);
            let found = plane.0.xdp().expect("what became of the doors").ports;
            assert!(found.iter().all(|port| port.native), "{found:?}");
            programs.bridge.carries();
        }
        programs
    }

    /// Frames that went on from drivers, on all bridges.
    pub fn switched_in_drivers(plane: &Plane) -> u64 {
        plane.0.xdp().expect("the count").packets
    }

    pub fn put(&self, number: usize, port: &Port) {
        let port = port.switch_port(self.bridge.port(number), self.bridge.index());
        self.plane.0.put_switch_port(&port).expect("put a port");
    }

    /// Takes the ports out of the maps, and the links away.
    pub fn remove(self) {
        if self.in_drivers {
            self.plane.0.set_doors(&BTreeMap::new());
        }
        for index in self.plane.0.switch_ports().expect("list the ports").into_keys() {
            self.plane.0.remove_switch_port(index).expect("remove a port");
        }
        self.bridge.remove();
    }
}

/// Loads or adopts the programs of the sandbox, but for those in drivers.
pub fn load() -> Plane {
    load_with(Xdp::Off)
}

/// The same; whether there are to be some in drivers.
pub fn load_with(xdp: Xdp) -> Plane {
    let options = Options {
        directory: PathBuf::from("/sys/fs/bpf/telecluster"),
        flow_capacity: Some(1024),
        unproven_flows: 0,
        limits: telecluster_common::tables::Limits::default(),
        hold_down: HoldDown::default(),
        xdp: Wishes { others: xdp, ..Wishes::default() },
        log_level: 3,
    };
    Rc::new(BpfDataPlane::load(&options).expect("load the programs"))
}

impl Machine for Programs {
    fn send(&mut self, port: usize, frame: &[u8]) -> Vec<(usize, Vec<u8>)> {
        self.bridge.send(port, frame)
    }

    /// The kernel takes a tag that no interface is there for off, before it looks for sockets.
    fn shows_the_hosts_tags(&self) -> bool {
        false
    }

    fn put(&mut self, number: usize, port: &Port) -> bool {
        Self::put(self, number, port);
        true
    }

    fn wait(&mut self, _seconds: u64) -> bool {
        false
    }
}

/// The kernel's own filter on the ports of a bridge.
#[derive(Debug)]
pub struct OwnFilter {
    bridge: Bridge,
}

impl OwnFilter {
    /// Whether this kernel has one: without, it refuses the option, or takes it and forgets it.
    pub fn exists() -> bool {
        let ip = |line: &str| Command::new("ip").args(line.split(' ')).output().expect("run ip");
        if !ip("link add probe0 type bridge vlan_filtering 1").status.success() {
            return false;
        }
        let shown = ip("-d link show probe0");
        ip("link del probe0");
        String::from_utf8_lossy(&shown.stdout).contains("vlan_filtering 1")
    }

    pub fn new(ports: &[Port]) -> Self {
        let protocols: BTreeMap<_, _> =
            ports.iter().map(|port| (port.protocol.number(), port.protocol)).collect();
        let protocol =
            if protocols.contains_key(&VlanProtocol::Dot1ad.number()) { "802.1ad" } else { "802.1Q" };
        let options = format!("vlan_filtering 1 vlan_default_pvid 0 vlan_protocol {protocol}");
        let bridge = Bridge::new(ports.len() - 1, &options);
        let mut lines = Vec::new();
        for (number, port) in ports.iter().enumerate() {
            let device = if number == HOST { "dev br0 self".to_owned() } else { format!("dev p{number}") };
            for vlan in &port.tagged {
                lines.push(format!("vlan add {device} vid {vlan}"));
            }
            if let Some(vlan) = port.native {
                lines.push(format!("vlan add {device} vid {vlan} pvid untagged"));
            }
            if port.isolated {
                lines.push(format!("link set dev p{number} isolated on"));
            }
            if port.hairpin {
                lines.push(format!("link set dev p{number} hairpin on"));
            }
        }
        batch("bridge", &lines);
        Self { bridge }
    }
}

impl Machine for OwnFilter {
    fn send(&mut self, port: usize, frame: &[u8]) -> Vec<(usize, Vec<u8>)> {
        self.bridge.send(port, frame)
    }

    /// The kernel takes a tag that no interface is there for off, before it looks for sockets.
    fn shows_the_hosts_tags(&self) -> bool {
        false
    }

    fn put(&mut self, _number: usize, _port: &Port) -> bool {
        false
    }

    fn wait(&mut self, _seconds: u64) -> bool {
        false
    }
}

/// An interface of this namespace.
pub fn interface(name: &str) -> u32 {
    if_nametoindex(name).unwrap_or_else(|error| panic!("{name}: {error}"))
}
