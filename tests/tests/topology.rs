//! The topology and the routes of a real host, beside what the host's own tools say.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use telecluster_tests::lab::{INSIDE, Lab, OUTSIDE};

fn set(routes: &Value, fields: [&str; 3]) -> BTreeSet<[String; 3]> {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let routes = routes.as_array().expect("a list");
    routes.iter().map(|route| fields.map(|field| text(&route[field]))).collect()
}

#[test]
fn routes_are_those_that_ip_shows() {
    let lab = Lab::new();
    for line in [
        "addr add 2001:db8::1/64 dev wan0 nodad",
        "route add 10.20.0.0/16 via 203.0.113.2 metric 50",
        "route add 10.30.0.0/16 nexthop via 203.0.113.2 nexthop via 192.168.100.10",
        "route add blackhole 10.40.0.0/16",
        "route add 10.50.0.0/16 via 203.0.113.2 table 100",
        "-6 route add default via 2001:db8::2",
    ] {
        lab.router.ip(line);
    }
    let _worker = lab.start();
    let routes = lab.get("/network/routes");
    let mut shown = set(&routes, ["destination", "gateway", "interface"]);
    for (destination, gateway) in [("10.30.0.0/16", "203.0.113.2"), ("10.30.0.0/16", "192.168.100.10")] {
        let found = shown.iter().find(|route| route[0] == destination && route[1] == gateway).cloned();
        shown.remove(&found.unwrap_or_else(|| panic!("no way to {destination} by {gateway}: {routes}")));
    }
    let mut wanted = BTreeSet::new();
    for family in ["-4", "-6"] {
        let told = lab.router.sh(&format!("ip -j {family} route show table main"));
        let told: Value = serde_json::from_str(&told).expect("JSON");
        wanted.extend(
            set(&told, ["dst", "gateway", "dev"]).into_iter().filter(|route| route[0] != "10.30.0.0/16"),
        );
    }
    assert_eq!(shown, wanted);
    assert!(!routes.to_string().contains("10.50."), "another table: {routes}");
}

#[test]
fn the_picture_shows_bridge_uplink_and_forward() {
    let lab = Lab::new();
    let _worker = lab.start();
    lab.forward("tcp", 2222, 22);
    let topology = lab.get("/network/topology");
    let edges = topology["graph"]["edges"].as_array().expect("edges");
    let label = format!("tcp 2222 → {INSIDE}:22");
    for edge in [
        json!({ "from": "outside", "to": "if:wan0", "kind": "uplink" }),
        json!({ "from": "if:lan0", "to": "if:br-lab", "kind": "port" }),
        json!({ "from": "if:wan0", "to": "if:br-lab", "kind": "forward", "label": label }),
    ] {
        assert!(edges.contains(&edge), "{edge} is not in {edges:#?}");
    }
    assert!(topology["routes"].as_array().is_some_and(|routes| {
        routes
            .iter()
            .any(|route| route["destination"] == "default" && route["gateway"] == OUTSIDE.to_string())
    }));
    let svg = lab.get("/network/topology?format=svg");
    let svg = svg.as_str().expect("a picture");
    for text in ["br-lab", "lan0", "wan0", "tcp 2222", &format!("→ {INSIDE}:22")] {
        assert!(svg.contains(text), "{text} is not in {svg}");
    }
}
