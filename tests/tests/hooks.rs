//! What others do to the interfaces that the NAT hangs on: they go down, vanish and come back, lose their hooks, get more
//! programs.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use aya::programs::TcAttachType;
use serde_json::{Value, json};
use telecluster_tests::{
    lab::{INSIDE, Lab, OUTSIDE, WAN, eventually},
    on_each_data_plane,
    stranger::{Side, Stranger},
};

on_each_data_plane!(
    a_connection_outlives_an_uplink_that_goes_down_and_up,
    an_uplink_that_comes_back_as_another_interface_gets_its_rules,
);

/// A connection to a listener, and the listener's end of it.
fn connection(lab: &Lab, inwards: bool) -> (TcpStream, TcpStream) {
    let (listener, stream) = if inwards {
        let listener = lab.inside.listen((INSIDE, 22));
        (listener, lab.outside.connect((WAN, 2222)))
    } else {
        let listener = lab.outside.listen((OUTSIDE, 5300));
        (listener, lab.inside.connect((OUTSIDE, 5300)))
    };
    let stream = stream.expect("connect");
    let (accepted, from) = listener.accept().expect("accept");
    assert!(inwards || from.ip() == WAN, "it came from {from}");
    (stream, accepted)
}

/// An unhealthy worker says so by the status of its answer too.
fn health(lab: &Lab) -> Value {
    lab.call("GET", "/health", None).body["status"].clone()
}

fn converse((here, there): &mut (TcpStream, TcpStream)) {
    let mut heard = [0; 5];
    here.write_all(b"there").expect("send");
    there.read_exact(&mut heard).expect("it arrives");
    there.write_all(b"again").expect("answer");
    here.read_exact(&mut heard).expect("it comes back");
    assert_eq!(heard, *b"again");
}

/// The host's own way outside, which goes with the link.
fn route(lab: &Lab) {
    lab.router.ip(&format!("route replace default via {OUTSIDE}"));
}

fn a_connection_outlives_an_uplink_that_goes_down_and_up(lab: &Lab) {
    let _worker = lab.start();
    lab.masquerade();
    lab.forward("tcp", 2222, 22);
    let mut inwards = connection(lab, true);
    let mut outwards = connection(lab, false);
    for _ in 0..3 {
        converse(&mut inwards);
        // `MASQUERADE` of the kernel forgets a connection whose interface goes down (net/netfilter/nf_nat_masquerade.c).
        if lab.dataplane() == Some("ebpf") {
            converse(&mut outwards);
        }
        lab.router.ip("link set wan0 down");
        lab.router.ip("link set wan0 up");
        route(lab);
    }
    converse(&mut inwards);
    converse(&mut connection(lab, false));
    eventually("it is not healthy again", || health(lab) == "healthy");
}

fn an_uplink_that_comes_back_as_another_interface_gets_its_rules(lab: &Lab) {
    let worker = lab.start();
    lab.masquerade();
    lab.forward("tcp", 2222, 22);
    let index = || lab.sh("cat /sys/class/net/wan0/ifindex");
    converse(&mut connection(lab, true));
    let comes_back = |with_worker: bool| {
        let before = index();
        lab.router.ip("link del wan0");
        if with_worker {
            eventually("nobody misses it", || health(lab) != "healthy");
        }
        lab.router.veth("wan0", &lab.outside, "eth0");
        lab.router.ip("link set wan0 up");
        lab.router.ip(&format!("addr add {WAN}/24 dev wan0"));
        lab.outside.ip("link set eth0 up");
        lab.outside.ip(&format!("addr add {OUTSIDE}/24 dev eth0"));
        route(lab);
        assert_ne!(index(), before);
    };
    let works = || {
        eventually("it is not healthy", || health(lab) == "healthy");
        // Programs come before rules and addresses.
        let listener = lab.inside.listen((INSIDE, 22));
        eventually("the forward does not work", || lab.outside.connect((WAN, 2222)).is_ok());
        drop(listener);
        converse(&mut connection(lab, true));
        converse(&mut connection(lab, false));
    };
    comes_back(true);
    works();
    // The same while nobody looks.
    worker.murder();
    comes_back(false);
    let _worker = lab.start();
    works();
    let pins = lab.sh("find /sys/fs/bpf -path */telecluster/links/*");
    let foreign = |pin: &&str| !pin.ends_with(&format!("-{}", index().trim()));
    let uplinks =
        pins.lines().filter(|pin| ["/in-", "/out-", "/clsact-"].iter().any(|label| pin.contains(label)));
    assert_eq!(
        uplinks.filter(foreign).collect::<Vec<_>>(),
        Vec::<&str>::new(),
        "pins of interfaces that are gone"
    );
}

/// With TCX, programs do not hang on that qdisc; below kernel 6.6 they go with it.
#[test]
fn programs_are_back_when_somebody_deletes_the_clsact_qdisc() {
    let lab = Lab::on("ebpf");
    let _worker = lab.start();
    lab.masquerade();
    lab.forward("tcp", 2222, 22);
    lab.post("/bridge/create", &json!({"name": "br-v"})).ok();
    lab.post("/tuntap/create", &json!({"name": "tap-v", "type": "tap", "bridge": "br-v"})).ok();
    let vlan = json!({"bridge_name": "br-v", "port_name": "tap-v", "vlan_id": 7, "tagged": false});
    lab.post("/vlan/add-to-bridge", &vlan).ok();
    let hooks = || lab.sh("bpftool -j net show").matches("tc_").count();
    let before = hooks();
    assert!(before > 4, "{}", lab.sh("bpftool -j net show"));
    for interface in ["wan0", "lan0", "br-lab", "tap-v"] {
        let mut add = lab.router.command("tc");
        // It is there where programs hang on it.
        let _ = add.args(["qdisc", "add", "dev", interface, "clsact"]).output();
        lab.router.sh(&format!("tc qdisc del dev {interface} clsact"));
    }
    eventually("programs are missing", || hooks() == before);
    converse(&mut connection(&lab, false));
    converse(&mut connection(&lab, true));
    // One hook alone.
    let mut add = lab.router.command("tc");
    let _ = add.args(["qdisc", "add", "dev", "wan0", "clsact"]).output();
    lab.router.sh("tc filter del dev wan0 egress");
    eventually("the programs at the way out are missing", || hooks() == before);
    converse(&mut connection(&lab, false));
}

#[test]
fn programs_of_others_run_before_and_behind_ours_whoever_comes_first() {
    let lab = Lab::on("ebpf");
    let mut strangers: Vec<Stranger> = (0..4)
        .map(|number| Stranger::load(&lab.pins("").with_file_name(format!("stranger{number}"))))
        .collect();
    let places = [
        (TcAttachType::Ingress, Side::Before),
        (TcAttachType::Egress, Side::Behind),
        (TcAttachType::Ingress, Side::Behind),
        (TcAttachType::Egress, Side::Before),
    ];
    let mut attach = |numbers: std::ops::Range<usize>| {
        for number in numbers {
            let (at, side) = places[number];
            lab.router.run(|| strangers[number].attach("wan0", at, side));
        }
    };
    // With a filter of the host's own no packet takes the fast path, which ends at our programs: all meet every hook.
    lab.router.sh("iptables -A FORWARD -p udp --dport 9 -j DROP");
    // Two are there before us, two come when we are there.
    attach(0..2);
    let worker = lab.start();
    lab.masquerade();
    lab.forward("tcp", 2222, 22);
    attach(2..4);
    let seen = |strangers: &[Stranger]| strangers.iter().map(Stranger::packets).collect::<Vec<_>>();
    let all_see = |what: &str| {
        let before = seen(&strangers);
        converse(&mut connection(&lab, true));
        converse(&mut connection(&lab, false));
        let after = seen(&strangers);
        let all = before.iter().zip(&after).all(|(before, after)| after > before);
        assert!(all, "{what}: {before:?}, then {after:?}");
    };
    all_see("with rules");
    worker.murder();
    all_see("without the worker");
    let worker = lab.start();
    lab.get("/nat/status");
    all_see("after a restart");
    lab.post("/nat/flush-nat", &json!({})).ok();
    eventually("ours stay", || !lab.sh("bpftool -j net show dev wan0").contains("tc_wan"));
    let before = seen(&strangers);
    assert!(lab.router.sh(&format!("ping -n -c 1 -W 2 {OUTSIDE}")).contains("1 received"));
    let after = seen(&strangers);
    assert!(before.iter().zip(&after).all(|(before, after)| after > before), "{before:?}, then {after:?}");
    drop(worker);
}
