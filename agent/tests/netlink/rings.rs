//! Links that close a ring: the storm that does not come.

use std::{
    net::UdpSocket,
    time::{Duration, Instant},
};

use telecluster_worker::{
    engine::Change,
    kernel::{Kernel as _, links::PortState, step::LinkStep},
    model::{BridgeSpec, BridgeType},
};

use super::lab::{Lab, bridge, eventually, in_namespace, name, run, veth};

#[test]
fn a_ring_on_one_bridge_stays_quiet() {
    in_namespace(|| async {
        let lab = Lab::new().await;
        lab.change(Change::CreateBridge(BridgeSpec {
            kind: BridgeType::Linux,
            backend: BridgeType::Linux,
            name: name("br-vm"),
            stp: false,
            mtu: None,
            addresses: vec!["10.1.0.1/24".parse().unwrap()],
            mac: None,
        }))
        .await;
        let outcome = lab.change(Change::CreateVeth(veth("v1", "v2", [Some("br-vm"); 2]))).await;
        assert_eq!(outcome.warnings.len(), 1, "{outcome:?}");
        let view = lab.engine.bridge("br-vm").await.unwrap();
        assert_eq!(view.blocked_ports.len(), 1);
        assert_eq!(
            (view.blocked_ports[0].port.as_str(), view.blocked_ports[0].state.as_str()),
            ("v2", "blocking")
        );
        // In the kernel, not only in the view. Listening is what blocks without spanning tree.
        let held = || async {
            let port = lab.kernel.observe().await.unwrap().link("v2").unwrap().port.unwrap();
            assert!(port.guarded);
            port.state == PortState::Listening
        };
        assert!(held().await);

        broadcast(10);
        tokio::time::sleep(Duration::from_millis(200)).await;
        let quiet = received("v1") + received("v2");
        assert!(quiet < 100, "{quiet} packets");

        // The carrier goes and comes: the kernel forgets the state, the guard stays, the worker sets it again.
        for state in ["down", "up"] {
            run("ip", &["link", "set", "v1", state]);
        }
        broadcast(10);
        eventually("v2 is held again", held).await;
        let quiet = received("v1") + received("v2");
        assert!(quiet < 200, "{quiet} packets");

        // And the guard is what keeps it quiet: without it there is a storm.
        let hold = |hold| LinkStep::Hold { port: "v2".into(), bridge: "br-vm".into(), hold };
        lab.kernel.kernel.apply(&hold(false)).await.unwrap();
        broadcast(10);
        let began = Instant::now();
        while received("v1") + received("v2") < 10_000 && began.elapsed() < Duration::from_secs(2) {}
        run("ip", &["link", "set", "v1", "down"]);
        assert!(received("v1") + received("v2") >= 10_000, "the control experiment must storm");

        // When the reason goes away the port is let go.
        run("ip", &["link", "set", "v1", "up"]);
        lab.kernel.kernel.apply(&hold(true)).await.unwrap();
        lab.change(Change::RemovePort { bridge: "br-vm".into(), port: "v1".into() }).await;
        let port = lab.kernel.observe().await.unwrap().link("v2").unwrap().port.unwrap();
        assert_eq!((port.guarded, port.state), (false, PortState::Forwarding));
        assert!(lab.engine.bridge("br-vm").await.unwrap().blocked_ports.is_empty());
    });
}

#[test]
fn a_ring_over_two_bridges_stays_quiet() {
    in_namespace(|| async {
        let lab = Lab::new().await;
        for bridge_name in ["br-a", "br-b"] {
            lab.change(bridge(bridge_name)).await;
        }
        run("ip", &["addr", "add", "10.1.0.1/24", "dev", "br-a"]);
        lab.change(Change::CreateVeth(veth("a1", "b1", [Some("br-a"), Some("br-b")]))).await;
        // The second pair exists, and is up, before it closes the ring.
        lab.change(Change::CreateVeth(veth("a2", "b2", [Some("br-a"), None]))).await;
        broadcast(1);
        let outcome = lab.change(Change::AddPort { bridge: "br-b".into(), port: "b2".into() }).await;
        assert_eq!(outcome.warnings.len(), 1, "{outcome:?}");
        broadcast(10);
        tokio::time::sleep(Duration::from_millis(200)).await;
        let quiet: u64 = ["a1", "a2", "b1", "b2"].into_iter().map(received).sum();
        assert!(quiet < 500, "{quiet} packets");
        // The other way round the ring breaks: the held port forwards.
        lab.change(Change::DeleteVeth { name: "a1".into() }).await;
        eventually("b2 forwards", || async {
            lab.engine.bridge("br-b").await.unwrap().blocked_ports.is_empty()
        })
        .await;
    });
}

/// Packets that a link of this namespace has received.
fn received(link: &str) -> u64 {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line = table.lines().find_map(|line| line.trim().strip_prefix(&format!("{link}:"))).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Sends broadcasts out of the interface that has an address of 10.1.0.0/24.
fn broadcast(count: usize) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_broadcast(true).unwrap();
    for _ in 0..count {
        socket.send_to(b"hello", "10.1.0.255:9").unwrap();
    }
}
