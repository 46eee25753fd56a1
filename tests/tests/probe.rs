//! Ping, traceroute and the machine's figures, from a real worker to real hosts.

use std::{
    io::Write as _,
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use telecluster_tests::lab::{INSIDE, Lab, Netns, OUTSIDE, PATIENCE, Worker};

/// Nobody has it; its network is the worker's own, so that the kernel itself says so after a few seconds.
const NOBODY: Ipv4Addr = Ipv4Addr::new(192, 168, 100, 77);

fn ping(lab: &Lab, target: &str, count: u32) -> Value {
    lab.post("/network/ping", &json!({ "target": target, "count": count })).ok()
}

#[test]
fn a_host_that_answers_is_reached_by_either_family_and_by_name() {
    let lab = Lab::new();
    lab.router.ip("addr add 2001:db8::1/64 dev br-lab nodad");
    lab.inside.ip("addr add 2001:db8::10/64 dev eth0 nodad");
    let _worker = lab.start();
    for target in [INSIDE.to_string(), "2001:db8::10".into(), "localhost".into()] {
        let body = ping(&lab, &target, 3);
        let data = &body["data"];
        assert_eq!((&body["status"], &data["success"]), (&json!("ok"), &json!(true)), "{body}");
        assert_eq!(data["target"], target.as_str());
        assert_eq!((&data["packets_sent"], &data["packets_received"]), (&json!(3), &json!(3)), "{body}");
        assert_eq!(data["packet_loss_percent"], 0.0);
        let rtt = |field: &str| data["rtt"][field].as_f64().unwrap_or_else(|| panic!("no {field} in {body}"));
        assert!(rtt("min") > 0.0 && rtt("min") <= rtt("avg") && rtt("avg") <= rtt("max"), "{body}");
        assert!(data["output"].as_str().is_some_and(|text| text.contains("icmp_seq=3")), "{body}");
    }
}

#[test]
fn an_unreachable_host_is_an_answer_and_not_an_error() {
    let lab = Lab::new();
    // no route at all: the send itself fails
    lab.router.ip("route del default");
    let _worker = lab.start();
    for target in
        [NOBODY.to_string(), "198.51.100.9".into(), "2001:db8:9::9".into(), "no.such.host.invalid".into()]
    {
        let body = ping(&lab, &target, 2);
        assert_eq!((&body["status"], &body["data"]["success"]), (&json!("warning"), &json!(false)), "{body}");
        assert_eq!(body["data"]["packet_loss_percent"], 100.0, "{body}");
        assert_eq!(body["data"]["rtt"], Value::Null, "{body}");
        assert_ne!(body["data"]["output"], "", "{body}");
    }
}

#[test]
fn many_slow_pings_hold_up_nobody() {
    let lab = Lab::new();
    let _worker = lab.start();
    thread::scope(|scope| {
        let slow: Vec<_> = (0..30).map(|_| scope.spawn(|| ping(&lab, &NOBODY.to_string(), 10))).collect();
        let began = Instant::now();
        for name in ["br-1", "br-2", "br-3"] {
            lab.post("/bridge/create", &json!({ "name": name })).ok();
        }
        let (changes, still) = (began.elapsed(), slow.iter().filter(|slow| !slow.is_finished()).count());
        assert!(still > 0, "the pings were over before three bridges were made, in {changes:?}");
        for slow in slow {
            assert_eq!(slow.join().expect("a ping")["data"]["packets_received"], 0);
        }
    });
}

#[test]
fn a_caller_that_goes_away_stops_its_ping() {
    let lab = Lab::new();
    let _worker = lab.start();
    let sent = || lab.router.snmp("Icmp", "OutEchos");
    let body = json!({ "target": INSIDE, "count": 20 }).to_string();
    let mut caller = lab.router.connect((Ipv4Addr::LOCALHOST, Worker::PORT)).expect("the worker");
    let head =
        format!("POST /network/ping HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
    caller.write_all(format!("{head}{body}").as_bytes()).expect("send the request");
    let deadline = Instant::now() + PATIENCE;
    while sent() < 2 {
        assert!(Instant::now() < deadline, "no echo was sent");
        thread::sleep(Duration::from_millis(20));
    }
    drop(caller);
    // 20 echoes take four seconds; twice the pause between two of them without one means that it has ended.
    let mut last = sent();
    loop {
        thread::sleep(Duration::from_millis(600));
        let now = sent();
        if now == last {
            break;
        }
        assert!(Instant::now() < deadline, "it goes on");
        last = now;
    }
    assert!(last < 20, "all echoes were sent although nobody waits for them");
}

#[test]
fn traceroute_names_the_routers_on_the_way() {
    let lab = Lab::new();
    let far = Netns::new();
    lab.outside.veth("far0", &far, "eth0");
    for line in
        ["link set far0 up", "addr add 198.51.100.1/24 dev far0", "addr add 2001:db8:f::1/64 dev far0 nodad"]
    {
        lab.outside.ip(line);
    }
    for line in [
        "link set eth0 up",
        "addr add 198.51.100.9/24 dev eth0",
        "addr add 2001:db8:f::9/64 dev eth0 nodad",
        "route add default via 198.51.100.1",
        "-6 route add default via 2001:db8:f::1",
    ] {
        far.ip(line);
    }
    lab.outside.ip("addr add 2001:db8:e::2/64 dev eth0 nodad");
    lab.router.ip("addr add 2001:db8:e::1/64 dev wan0 nodad");
    lab.router.ip("-6 route add default via 2001:db8:e::2");
    lab.outside.run(|| {
        for path in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/net/{path}"), "1").expect("let it route");
        }
        // Or its errors come one a second.
        std::fs::write("/proc/sys/net/ipv4/icmp_ratelimit", "0").expect("let it complain");
        std::fs::write("/proc/sys/net/ipv6/icmp/ratelimit", "0").expect("let it complain");
    });
    let _worker = lab.start();
    for (target, router) in
        [("198.51.100.9", OUTSIDE.to_string()), ("2001:db8:f::9", "2001:db8:e::2".to_owned())]
    {
        let body = lab.post("/network/traceroute", &json!({ "target": target })).ok();
        let addresses: Vec<_> = body["data"]["hops"]
            .as_array()
            .map(|hops| hops.iter().map(|hop| hop["address"].as_str().unwrap_or("*").to_owned()).collect())
            .unwrap_or_default();
        assert_eq!(addresses, [router, target.to_owned()], "{body}");
        assert_eq!((&body["status"], &body["data"]["reached"]), (&json!("ok"), &json!(true)), "{body}");
    }
    let body = lab.post("/network/traceroute", &json!({ "target": "198.51.100.77", "max_hops": 3 })).ok();
    assert_eq!((&body["status"], &body["data"]["reached"]), (&json!("warning"), &json!(false)), "{body}");
}

#[test]
fn the_status_has_the_figures_of_this_machine() {
    let lab = Lab::new();
    let _worker = lab.start();
    let before = lab.get("/network/status");
    let hostname = lab.sh("cat /proc/sys/kernel/hostname");
    assert_eq!(before["system_info"]["hostname"], hostname.trim());
    // lo, wan0, lan0, br-lab, and what the kernel puts into every namespace
    assert!(before["network_info"]["interface_count"].as_u64() >= Some(4), "{before}");
    assert_eq!(before["network_info"]["bridge_count"], 1);
    assert!(before["network_info"]["network_connections"].as_u64() >= Some(1), "the worker's own: {before}");

    ping(&lab, &INSIDE.to_string(), 3);
    let after = lab.get("/network/status");
    let received =
        |status: &Value| status["network_info"]["network_io"]["packets_recv"].as_u64().expect("a count");
    assert!(received(&after) >= received(&before) + 3, "{before}\n{after}");
}
