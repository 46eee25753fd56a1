//! What the kernel's bridge knows of its ports, honoured for frames of VLANs on both data planes: states of spanning tree,
//! flags, how long stations are remembered, and the frames that are for the bridge alone.

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use telecluster_tests::{
    lab::{Lab, PATIENCE, Worker, eventually},
    machine::{Machine, bridge, filtered, into_vlan, next},
    on_each_data_plane,
    switch::{
        frames::{BROADCAST, Ether, ether, mac},
        wire::Wire,
    },
};

on_each_data_plane!(
    a_port_does_what_its_state_says,
    stations_are_remembered_as_long_as_the_bridge_says,
    isolated_and_hairpin_ports_are_so_within_a_vlan,
    frames_for_the_bridge_alone_go_no_further,
    a_new_port_listens_and_learns_before_it_forwards,
    a_ring_with_spanning_tree_carries_a_vlan_once_and_fails_over,
);

/// Three machines in VLAN 10 behind `p1` to `p3`, and what they hear.
struct Office {
    _worker: Worker,
    _machines: [Machine; 3],
    wires: [Wire; 3],
}

impl Office {
    /// `None`: this data plane keeps no VLANs apart on this kernel.
    fn new(lab: &Lab) -> Option<Self> {
        if !filtered(lab) {
            return None;
        }
        let worker = lab.start();
        bridge(lab);
        let machines = [1, 2, 3].map(|number| Machine::in_vlan(lab, number, 10));
        let wires = [&machines[0], &machines[1], &machines[2]].map(Machine::wire);
        let office = Self { _worker: worker, _machines: machines, wires };
        let stations = [(0, 0x11, [1, 2]), (1, 0x12, [0, 2]), (2, 0x13, [0, 1])];
        eventually("the ports do not carry frames", || {
            stations.iter().all(|(from, station, others)| office.reaches(*from, &hello(*station), others))
        });
        Some(office)
    }

    fn send(&self, from: usize, frame: &Ether) {
        self.wires[from].send(&frame.bytes());
    }

    /// Who of the three has got a frame by now.
    fn heard(&self, frame: &[u8]) -> BTreeSet<usize> {
        (0..3).filter(|at| self.wires[*at].pending().iter().any(|heard| heard == frame)).collect()
    }

    /// Whether exactly these get a frame, as far as can be told a moment later.
    fn reaches(&self, from: usize, frame: &Ether, expected: &[usize]) -> bool {
        self.send(from, frame);
        thread::sleep(Duration::from_millis(20));
        self.heard(&frame.bytes()) == expected.iter().copied().collect()
    }

    /// It must be exactly these: they are waited for, and whoever has got it besides by then is one too many.
    #[track_caller]
    fn must_reach(&self, from: usize, frame: &Ether, expected: &[usize], what: &str) {
        self.send(from, frame);
        let (expected, frame) = (expected.iter().copied().collect(), frame.bytes());
        let mut heard = BTreeSet::new();
        eventually(what, || {
            heard.extend(self.heard(&frame));
            heard.is_superset(&expected)
        });
        thread::sleep(Duration::from_millis(10));
        heard.extend(self.heard(&frame));
        assert_eq!(heard, expected, "{what}");
    }
}

/// To all, from a station that nobody has.
fn hello(station: u8) -> Ether {
    ether(mac(station), BROADCAST)
}

/// As the worker has it.
#[track_caller]
fn forwards(lab: &Lab, port: &str) -> bool {
    let ports = lab.get("/vlan/bridge-ports");
    let found = ports.as_array().expect("a list").iter().find(|row| row["port_name"] == port);
    found.is_some_and(|row| row["forwarding"] == true)
}

fn known(lab: &Lab, station: u8) -> bool {
    let rows = lab.get(&format!("/vlan/fdb?mac_address=02:00:00:00:00:{station:02x}"));
    rows.as_array().is_some_and(|rows| rows.iter().any(|row| row["vlan_id"] == 10))
}

fn a_port_does_what_its_state_says(lab: &Lab) {
    let Some(office) = Office::new(lab) else { return };
    let set = |state: u8| {
        // Not with `ip`, after which the kernel looks for a carrier and lets a disabled port forward again.
        lab.router.sh(&format!("bridge link set dev p1 state {state}"));
        eventually(&format!("the worker does not see state {state}"), || forwards(lab, "p1") == (state == 3));
    };
    // BR_STATE_*: listening, learning, forwarding, disabled; whether it learns, whether it forwards. Without spanning tree
    // the kernel lets no port be blocking; with it, see the ring below.
    let states = [(1, false, false), (2, true, false), (3, true, true), (0, false, false)];
    for (number, (state, learns, passes)) in (0x20..).zip(states) {
        set(state);
        let out: &[usize] = if passes { &[1, 2] } else { &[] };
        office.must_reach(0, &hello(number), out, &format!("from a port in state {state}"));
        let into: &[usize] = if passes { &[0, 2] } else { &[2] };
        office.must_reach(1, &hello(0x61), into, &format!("to a port in state {state}"));
        if learns {
            eventually("the sender is not learned", || {
                office.send(0, &hello(number));
                known(lab, number)
            });
        } else {
            assert!(!known(lab, number), "learned in state {state}");
        }
    }
}

fn stations_are_remembered_as_long_as_the_bridge_says(lab: &Lab) {
    let Some(office) = Office::new(lab) else { return };
    let seconds = 4;
    lab.router.ip(&format!("link set br-v type bridge ageing_time {}", seconds * 100));
    let (station, to_it) = (0x21, ether(mac(0x61), mac(0x21)));
    // Until the worker has seen the time, and from then on as long as it says.
    let begun = Instant::now();
    office.must_reach(0, &hello(station), &[1, 2], "to these alone");
    office.must_reach(1, &to_it, &[0], "it was heard a moment ago");
    assert!(known(lab, station));
    eventually("the station is known for ever", || office.reaches(1, &to_it, &[0, 2]));
    assert!(begun.elapsed() > Duration::from_secs(seconds - 1), "{:?}", begun.elapsed());
    eventually("it is still shown", || !known(lab, station));
    // Who goes on talking is not forgotten.
    let until = Instant::now() + Duration::from_secs(seconds + 1);
    office.send(0, &hello(station));
    while Instant::now() < until {
        office.must_reach(0, &hello(station), &[1, 2], "to these alone");
        office.must_reach(1, &to_it, &[0], "it has just been heard");
        thread::sleep(Duration::from_millis(100));
    }
}

fn isolated_and_hairpin_ports_are_so_within_a_vlan(lab: &Lab) {
    let Some(office) = Office::new(lab) else { return };
    let set = |port: &str, what: &str| lab.router.ip(&format!("link set {port} type bridge_slave {what}"));
    set("p1", "isolated on");
    set("p2", "isolated on");
    eventually("two isolated ports hear each other", || office.reaches(0, &hello(0x21), &[2]));
    office.must_reach(2, &hello(0x23), &[0, 1], "to these alone");
    office.must_reach(1, &ether(mac(0x22), mac(0x21)), &[], "a known station of an isolated port");
    office.must_reach(2, &ether(mac(0x23), mac(0x21)), &[0], "to these alone");
    set("p1", "isolated off");
    set("p1", "hairpin on");
    eventually("a hairpin port gets nothing back", || office.reaches(0, &hello(0x21), &[0, 1, 2]));
    office.must_reach(0, &hello(0x24), &[0, 1, 2], "to these alone");
    office.must_reach(0, &ether(mac(0x21), mac(0x24)), &[0], "from one behind the port to another");
    set("p1", "hairpin off");
    eventually("it still gets its own frames back", || office.reaches(0, &hello(0x21), &[1, 2]));
    office.must_reach(0, &ether(mac(0x21), mac(0x24)), &[], "to nobody");
}

fn frames_for_the_bridge_alone_go_no_further(lab: &Lab) {
    let Some(office) = Office::new(lab) else { return };
    // Pause, slow protocols, 802.1X, LLDP and the last one that is reserved.
    for last in [1, 2, 3, 0x0e, 0x0f] {
        let control = ether(mac(0x21), [1, 0x80, 0xc2, 0, 0, last]);
        office.must_reach(0, &control, &[], &format!("01:80:c2:00:00:{last:02x}"));
        let tagged = control.q(10);
        office.must_reach(0, &tagged, &[], &format!("01:80:c2:00:00:{last:02x}, tagged"));
    }
    // Ordinary groups: without spanning tree that of its frames, and one behind the reserved ones.
    for last in [0, 0x10] {
        let group = ether(mac(0x21), [1, 0x80, 0xc2, 0, 0, last]);
        office.must_reach(0, &group, &[1, 2], &format!("01:80:c2:00:00:{last:02x}"));
    }
    if lab.dataplane() != Some("iptables") {
        // Told to forward LLDP, the kernel's bridge would to every port, whatever its VLAN.
        into_vlan(lab, "p3", 20, false);
        lab.router.ip("link set br-v type bridge group_fwd_mask 0x4000");
        office.must_reach(0, &ether(mac(0x21), [1, 0x80, 0xc2, 0, 0, 0x0e]), &[], "to nobody");
    }
}

/// A bridge with spanning tree as impatient as it may be: two seconds for each state.
fn impatient(lab: &Lab, name: &str) {
    lab.post("/bridge/create", &json!({ "name": name, "stp": true })).ok();
    lab.router.ip(&format!("link set {name} type bridge forward_delay 200 hello_time 100 max_age 600"));
}

fn a_new_port_listens_and_learns_before_it_forwards(lab: &Lab) {
    if !filtered(lab) {
        return;
    }
    let _worker = lab.start();
    impatient(lab, "br-v");
    let [a, b] = [1, 2].map(|number| Machine::in_vlan(lab, number, 10));
    let (talker, listener) = (a.wire(), b.wire());
    let begun = Instant::now();
    let (mut learned_first, mut bpdus) = (false, 0);
    let deadline = begun + PATIENCE;
    loop {
        talker.send(&hello(0x21).bytes());
        thread::sleep(Duration::from_millis(20));
        let heard = listener.pending();
        bpdus += heard.iter().filter(|frame| frame[..6] == [1, 0x80, 0xc2, 0, 0, 0]).count();
        if heard.contains(&hello(0x21).bytes()) {
            break;
        }
        learned_first |= known(lab, 0x21);
        assert!(Instant::now() < deadline, "the ports do not forward");
    }
    assert!(begun.elapsed() > Duration::from_secs(2), "forwarded after {:?}", begun.elapsed());
    assert!(learned_first, "nothing was learned before frames passed");
    assert!(bpdus > 0, "spanning tree's own frames do not come out of the port");
}

fn a_ring_with_spanning_tree_carries_a_vlan_once_and_fails_over(lab: &Lab) {
    if !filtered(lab) {
        return;
    }
    let _worker = lab.start();
    for name in ["br-v", "br-w"] {
        impatient(lab, name);
    }
    for pair in ["r", "s"] {
        let (one, two) = (format!("{pair}1"), format!("{pair}2"));
        lab.post(
            "/veth/create",
            &json!({ "name1": one, "name2": two, "bridge1": "br-v", "bridge2": "br-w" }),
        )
        .ok();
        for (bridge, port) in [("br-v", one), ("br-w", two)] {
            let trunk = json!({ "bridge_name": bridge, "port_name": port, "vlans": "10" });
            lab.post("/vlan/add-to-bridge", &trunk).ok();
        }
    }
    let a = Machine::in_vlan(lab, 1, 10);
    let b = Machine::new(lab, 2);
    lab.post("/bridge/add-port", &json!({ "bridge_name": "br-w", "port_name": "p2", "vlan": 10 })).ok();
    let (talker, listener) = (a.wire(), b.wire());
    let through = |station: u8| {
        talker.send(&hello(station).bytes());
        thread::sleep(Duration::from_millis(20));
        listener.pending().contains(&hello(station).bytes())
    };
    let settled = || {
        let states = |bridge: &str| {
            let shown: Value =
                serde_json::from_str(&lab.sh(&format!("bridge -j link show master {bridge}"))).expect("JSON");
            let ports = shown.as_array().expect("a list").clone();
            ports.into_iter().filter_map(|port| Some(port["state"].as_str()?.to_owned())).collect::<Vec<_>>()
        };
        let all = [states("br-v"), states("br-w")].concat();
        all.iter().all(|state| matches!(&**state, "forwarding" | "blocking" | "disabled"))
    };
    eventually("the ring does not carry frames", || through(0x21) && settled());
    // Whatever way it takes, it comes once, and the ring does not turn it for ever.
    let once = |station: u8| {
        drop(listener.pending());
        talker.send(&hello(station).bytes());
        let frame = hello(station).bytes();
        assert_eq!(next(&listener), frame);
        thread::sleep(Duration::from_millis(50));
        assert_eq!(
            listener.pending().into_iter().filter(|heard| *heard == frame).count(),
            0,
            "more than once"
        );
    };
    (0x30..0x38).for_each(once);
    let blocked = |port: &str| lab.sh(&format!("bridge link show dev {port}")).contains("state blocking");
    let spare = ["r1", "r2", "s1", "s2"].into_iter().find(|port| blocked(port)).expect("one end is blocked");
    let active = if spare.starts_with('r') { "s1" } else { "r1" };
    lab.router.ip(&format!("link set {active} down"));
    eventually("the other pair does not take over", || through(0x22) && settled());
    (0x38..0x40).for_each(once);
}
