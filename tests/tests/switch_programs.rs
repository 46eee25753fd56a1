//! The loaded VLAN programs on veth ports of a real bridge: the same stories as on the host.

use std::time::Instant;

use aya::maps::{Map, MapData, PerCpuHashMap};
use telecluster_common::vlan::{VlanDrop, maps::VlanDrops};
use telecluster_tests::{
    lab::PATIENCE,
    sandbox,
    switch::{
        Port,
        frames::{BROADCAST, Ether, ether, mac},
        kernel::{OwnFilter, Programs, batch, interface, load, load_with},
        play,
        stories::{self, Story},
        wire::Wire,
    },
};
use telecluster_worker::kernel::{
    switch::{DropCount, VlanCounters, VlanPlane as _},
    xdp::Xdp,
};

/// How often each frame is sent: the first one may teach the programs, the second one be decided by that, and the third one as the
/// one before.
const AGAIN: usize = 3;

#[test]
fn every_story_holds_on_real_ports() {
    sandbox::run(|| {
        let plane = load();
        for story in stories::all() {
            let mut programs = Programs::new(&plane, &story.ports);
            play(&story, &mut programs, AGAIN);
            programs.remove();
        }
    });
}

#[test]
fn every_story_holds_in_the_drivers_of_real_ports_too() {
    sandbox::run(|| {
        let plane = load_with(Xdp::On);
        for story in stories::all().into_iter().map(Story::with_datagrams) {
            let mut programs = Programs::in_drivers(&plane, &story.ports);
            play(&story, &mut programs, AGAIN);
            programs.remove();
        }
        let switched = Programs::switched_in_drivers(&plane);
        assert!(switched > 100, "{switched} frames went on from drivers");
    });
}

/// What differs is named in the story, with the reason.
#[test]
fn the_kernels_own_filter_tells_the_same_stories() {
    if !sandbox::run(OwnFilter::exists) {
        assert!(std::env::var_os("TELECLUSTER_VM").is_none(), "the kernels of the VMs have a VLAN filter");
        eprintln!("this kernel's bridge has no VLAN filter: compared in the VM only");
        return;
    }
    for story in stories::all() {
        if story.kernel == stories::Kernel::Same {
            sandbox::run(|| play(&story, &mut OwnFilter::new(&story.ports), 1));
        }
    }
}

#[test]
fn drops_are_counted_by_vlan_where_the_port_is_in_it() {
    sandbox::run(|| {
        let plane = load();
        let ports = [Port::plain(), Port::access(10), Port::access(10)];
        let programs = Programs::new(&plane, &ports);
        let drops = || {
            let all = plane.0.port_drops().expect("the drops of ports");
            let of_port = all.into_iter().find(|drops| drops.port == programs.bridge.port(1));
            let counts = of_port.map(|drops| drops.dropped).unwrap_or_default();
            let happened = counts.into_iter().filter(|drops| drops.count != 0);
            happened.map(|DropCount { vlan, reason, count }| (vlan, reason, count)).collect::<Vec<_>>()
        };
        let send = |frame: Ether, times| {
            for _ in 0..times {
                assert!(programs.bridge.send(1, &frame.bytes()).is_empty());
            }
        };
        let nested = || ether(mac(1), BROADCAST).q(10).q(20);
        send(nested(), 2);
        send(ether(mac(1), BROADCAST).q(20), 1);
        let expected = [(None, VlanDrop::NotMember, 1), (Some(10), VlanDrop::NestedTag, 2)];
        assert_eq!(drops(), expected);
        // Another VLAN of the same port has its own; with a VLAN its counters go.
        programs.put(1, &Port::trunk(&[20]).native(10));
        send(ether(mac(9), mac(9)).q(20), 1);
        assert_eq!(drops(), [&expected[..], &[(Some(20), VlanDrop::SamePort, 1)]].concat());
        programs.put(1, &Port::access(20));
        programs.put(1, &Port::access(10));
        assert_eq!(drops(), expected[..1]);
        send(nested(), 1);
        assert_eq!(drops(), [expected[0], (Some(10), VlanDrop::NestedTag, 1)]);
        programs.remove();
        let left = MapData::from_pin("/sys/fs/bpf/telecluster/maps/vlan_drop").expect("the map");
        let left: PerCpuHashMap<MapData, [u8; 8], [u8; size_of::<VlanDrops>()]> =
            PerCpuHashMap::try_from(Map::PerCpuHashMap(left)).expect("its type");
        assert_eq!(left.keys().count(), 0);
    });
}

/// As many ports as a Linux bridge takes, give or take a few, every one in sixteen VLANs.
#[test]
fn a_thousand_ports_in_sixteen_vlans_are_switched() {
    // An emulated machine takes minutes to make a thousand.
    let ports = if std::env::var_os("TELECLUSTER_VM").is_some() { 100 } else { 1000 };
    let vlans: Vec<u16> = (101..=116).collect();
    sandbox::run(|| {
        let plane = load();
        let names = many_ports(ports);
        let bridge = interface("br0");
        let start = Instant::now();
        for name in &names {
            let port = Port::trunk(&vlans).switch_port(interface(name), bridge);
            plane.0.put_switch_port(&port).expect("put a port");
        }
        let attached = start.elapsed();
        let start = Instant::now();
        for name in &names {
            let port = Port::trunk(&vlans).native(1).switch_port(interface(name), bridge);
            plane.0.put_switch_port(&port).expect("put a port");
        }
        eprintln!("{ports} ports: {attached:?} with programs, {:?} for one more VLAN each", start.elapsed());
        assert_eq!(plane.0.switch_ports().expect("list").len(), ports);

        let frame = ether(mac(1), BROADCAST).q(116).bytes();
        let (first, last) = (Wire::all("e1"), Wire::all(&format!("e{ports}")));
        let start = Instant::now();
        first.send(&frame);
        let deadline = Instant::now() + PATIENCE;
        while last.pending().is_empty() {
            assert!(Instant::now() < deadline, "the last port has got nothing");
        }
        eprintln!("a broadcast to all of them: {:?}", start.elapsed());
        let sent = |counters: &VlanCounters| (counters.vlan == 116).then_some(counters.tx_packets);
        let total = || plane.0.vlan_counters().expect("count").iter().filter_map(sent).sum::<u64>();
        let others = ports as u64 - 1;
        while total() < others {
            assert!(Instant::now() < deadline, "{} of {others} ports", total());
        }
        assert_eq!(total(), others, "to every other port, and to each once");
        let answer = ether(mac(2), mac(1)).q(116).bytes();
        last.send(&answer);
        while !first.pending().contains(&answer) {
            assert!(Instant::now() < deadline, "the answer did not come");
        }
        assert_eq!(total(), others + 1, "a known station alone gets what is for it");
    });
}

/// A bridge with this many veth ports, `p1` and so on; behind them `e1` and so on.
fn many_ports(count: usize) -> Vec<String> {
    std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("no IPv6");
    let mut lines =
        vec!["link add br0 type bridge mcast_snooping 0".to_owned(), "link set br0 up".to_owned()];
    for port in 1..=count {
        lines.push(format!("link add p{port} type veth peer name e{port}"));
        lines.push(format!("link set p{port} master br0"));
        lines.push(format!("link set p{port} up"));
        lines.push(format!("link set e{port} up"));
    }
    batch("ip", &lines);
    (1..=count).map(|port| format!("p{port}")).collect()
}
