//! The fast path in drivers, on real packets: veth has native XDP, and `XDP=on` asks for it.

use std::{
    io::{Read as _, Write as _},
    net::Shutdown,
    thread,
};

use serde_json::{Value, json};
use telecluster_tests::{
    conversation::{Conversation, masqueraded},
    drivers::{has_program, lab, mode, sent_in_drivers, whole_checksums},
    lab::{INSIDE, INSIDE_NET6, Lab, OUTSIDE, PATIENCE, WAN, Worker, eventually},
};

/// Turns until both directions of it are sent on in drivers.
fn warm_up(conversation: &Conversation, lab: &Lab) {
    eventually("the flow does not reach the drivers", || {
        let before = sent_in_drivers(lab);
        conversation.turn();
        sent_in_drivers(lab) == before + 2
    });
}

fn the_flow(lab: &Lab) -> Value {
    lab.get("/nat/flows")["flows"][0].clone()
}

fn counter(flow: &Value, name: &str) -> u64 {
    flow[name].as_u64().expect("a number")
}

/// A worker that masquerades, and a flow in the drivers.
fn warm_lab() -> (Lab, Worker, Conversation) {
    let lab = lab();
    whole_checksums(&lab);
    let (lab, worker, conversation) = masqueraded(lab);
    warm_up(&conversation, &lab);
    (lab, worker, conversation)
}

#[test]
fn a_conversation_goes_from_driver_to_driver_and_is_counted_exactly() {
    let (lab, _worker, conversation) = warm_lab();
    assert_eq!(mode(&lab, "wan0").0, "native");
    assert_eq!(mode(&lab, "lan0").0, "native");
    // Not at once when something has just changed: in the first 16 ms of an epoch nothing is learned.
    eventually("no conversation stays in the drivers", || {
        let (flow, sent) = (the_flow(&lab), sent_in_drivers(&lab));
        for _ in 0..200 {
            conversation.turn();
        }
        let after = the_flow(&lab);
        for (name, each) in [("packets_in", 1), ("packets_out", 1), ("bytes_in", 33), ("bytes_out", 33)] {
            assert_eq!(counter(&after, name) - counter(&flow, name), 200 * each, "{name}: {after}");
        }
        let sent = sent_in_drivers(&lab) - sent;
        assert!(sent <= 400, "{sent} of 400 packets");
        // Leases are renewed, directions refresh each other, neighbours change their minds, and no more.
        sent >= 200
    });
    let metrics = lab.call("GET", "/metrics", None).body.to_string();
    assert!(metrics.contains(r#"telecluster_xdp_attached{interface=\"wan0\"} 1"#), "{metrics}");
}

#[test]
fn ipv6_goes_from_driver_to_driver_too() {
    let lab = lab();
    lab.ipv6();
    whole_checksums(&lab);
    let _worker = lab.start();
    let body = json!({"source_network": INSIDE_NET6, "output_interface": "wan0"});
    lab.post("/nat/masquerade", &body).ok();
    warm_up(&Conversation::new6(&lab), &lab);
}

#[test]
fn a_connection_keeps_its_bytes_whether_its_hosts_fill_in_checksums_or_not() {
    for whole in [true, false] {
        let lab = lab();
        if whole {
            whole_checksums(&lab);
        }
        let _worker = lab.start();
        lab.forward("tcp", 2222, 22);
        let listener = lab.inside.listen((INSIDE, 22));
        let mut client = lab.outside.connect((WAN, 2222)).expect("connect");
        let (mut server, _) = listener.accept().expect("accept");
        eventually("the connection does not become fast", || {
            client.write_all(b"there").expect("send");
            server.read_exact(&mut [0; 5]).expect("receive");
            server.write_all(b"back").expect("answer");
            client.read_exact(&mut [0; 4]).expect("the answer");
            the_flow(&lab)["path"] == "fast"
        });
        let data: Vec<u8> =
            (0..8 << 20).map(|i: u32| i.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
        let mut received = Vec::with_capacity(data.len());
        thread::scope(|scope| {
            scope.spawn(|| {
                client.write_all(&data).expect("send");
                client.shutdown(Shutdown::Write).expect("finish sending");
            });
            server.read_to_end(&mut received).expect("receive");
        });
        assert!(received == data, "{} of {} bytes, and not the same", received.len(), data.len());
        for host in [&lab.inside, &lab.outside] {
            assert_eq!(host.snmp("Tcp", "InCsumErrors"), 0, "checksums filled in: {whole}");
        }
        // One of 65536 whole checksums looks like one that is missing, and none the other way round.
        assert_eq!(sent_in_drivers(&lab) > 0, whole);
    }
}

#[test]
fn a_change_sends_packets_the_kernels_way_again() {
    let (lab, _worker, conversation) = warm_lab();
    lab.router.ip(&format!("route add blackhole {OUTSIDE}/32"));
    conversation.server.set_read_timeout(Some(std::time::Duration::from_millis(100))).expect("a timeout");
    eventually("the route is passed by", || {
        conversation.client.send(b"there").expect("send");
        conversation.server.recv(&mut [0; 64]).is_err()
    });
    lab.router.ip(&format!("route del blackhole {OUTSIDE}/32"));
    conversation.server.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    warm_up(&conversation, &lab);
}

#[test]
fn a_flow_stays_in_the_drivers_when_the_worker_dies_and_when_it_comes_back() {
    let (lab, worker, conversation) = warm_lab();
    worker.murder();
    assert!(has_program(&lab, "wan0") && has_program(&lab, "lan0"));
    for _ in 0..100 {
        conversation.turn();
    }
    let _worker = lab.start();
    eventually("the programs are not adopted", || mode(&lab, "wan0").0 == "native");
    warm_up(&conversation, &lab);
}

#[test]
fn somebody_elses_program_is_left_alone() {
    let lab = lab();
    whole_checksums(&lab);
    let worker = lab.start();
    // It answers before its programs are loaded.
    lab.get("/nat/status");
    // Theirs is one of ours that nobody of ours has attached.
    lab.sh("bpftool net attach xdpdrv pinned /sys/fs/bpf/telecluster/progs/xdp_wan_in dev wan0");
    let before = lab.router.sh("ip -o link show dev wan0");
    lab.masquerade();
    let conversation = Conversation::new(&lab);
    eventually("the flow does not become fast", || {
        conversation.turn();
        the_flow(&lab)["path"] == "fast"
    });
    let (mode, reason) = mode(&lab, "wan0");
    assert_eq!(mode, "off");
    assert!(reason.contains("left alone"), "{reason}");
    assert_eq!(sent_in_drivers(&lab), 0);
    eventually("on one side only", || !has_program(&lab, "lan0"));
    worker.stop();
    let ours = |text: &str| text.split("prog/xdp").nth(1).map(str::to_owned);
    assert_eq!(ours(&lab.router.sh("ip -o link show dev wan0")), ours(&before));
}

#[test]
fn they_go_with_the_last_rule_and_with_a_worker_that_is_told_so() {
    let lab = lab();
    let worker = lab.start();
    let id = lab.masquerade();
    assert!(has_program(&lab, "wan0") && has_program(&lab, "lan0"));
    lab.call("DELETE", &format!("/nat/masquerade/{id}"), None).ok();
    eventually("they stay", || !has_program(&lab, "wan0") && !has_program(&lab, "lan0"));
    lab.masquerade();
    eventually("they do not come back", || has_program(&lab, "wan0") && has_program(&lab, "lan0"));
    worker.stop();
    let mut off = lab.worker_command();
    off.env("XDP", "off");
    let _worker = lab.start_command(&mut off);
    eventually("XDP=off leaves them", || !has_program(&lab, "wan0") && !has_program(&lab, "lan0"));
    assert_eq!(mode(&lab, "wan0"), ("off".to_owned(), "XDP=off".to_owned()));
}

/// Kernels below 6.3 do not tell what a driver sends: there the operator's word is taken.
#[test]
fn a_pair_whose_other_end_takes_no_frames_has_none_until_it_does() {
    if !telecluster_worker::kernel::netdev::abilities(1).is_ok_and(|found| found.is_some()) {
        eprintln!("this kernel does not tell what drivers send: nothing to see");
        return;
    }
    let (lab, _worker, conversation) = warm_lab();
    lab.outside.sh("ethtool -K eth0 gro off");
    eventually("frames are sent where nobody takes them", || mode(&lab, "wan0").0 == "off");
    assert!(mode(&lab, "wan0").1.contains("gro on"));
    eventually("on one side only", || !has_program(&lab, "lan0"));
    lab.outside.sh("ethtool -K eth0 gro on");
    eventually("it is not seen that frames are taken again", || mode(&lab, "wan0").0 == "native");
    warm_up(&conversation, &lab);
}

#[test]
fn a_teardown_leaves_none() {
    let lab = lab();
    let worker = lab.start();
    lab.masquerade();
    worker.stop();
    assert!(has_program(&lab, "wan0") && has_program(&lab, "lan0"));
    let done = lab.worker_command().arg("teardown").status().expect("run the teardown");
    assert!(done.success());
    eventually("they stay", || !has_program(&lab, "wan0") && !has_program(&lab, "lan0"));
}

#[test]
fn nothing_of_software_is_touched_unless_somebody_asked_for_it() {
    let mut lab = lab();
    lab.environment.retain(|(name, _)| *name != "XDP");
    let _worker = lab.start();
    lab.masquerade();
    for interface in ["wan0", "lan0"] {
        let (mode, reason) = mode(&lab, interface);
        assert_eq!(mode, "off");
        assert!(reason.contains("offload"), "{reason}");
        assert!(!has_program(&lab, interface));
    }
}
