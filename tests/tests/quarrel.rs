//! Sixty-four clients at once, who want things that exclude each other, of a real worker. Each group quarrels about
//! things of its own, so an order that explains each group explains the whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Barrier,
    thread,
};

use serde_json::{Value, json};
use telecluster_tests::lab::{Answer, INSIDE, Lab};

const CLIENTS: usize = 64;

/// What one client asks for: a forward of one of two ports, one of two TAPs in one of four bridges, one of two names for
/// one of three kinds, a bridge that comes and goes.
fn request(client: usize) -> (&'static str, Value) {
    let (group, member) = (client % 4, client / 4);
    let (one, other) = (member % 2, member / 2);
    match group {
        0 => (
            "/nat/forward",
            json!({ "external_port": 3000 + one, "internal_ip": INSIDE, "internal_port": 100 + other }),
        ),
        1 => (
            "/tuntap/attach",
            json!({ "tap_name": format!("q-tap{one}"), "bridge_name": format!("q-br{}", other % 4) }),
        ),
        2 => {
            let name = format!("q-same{one}");
            match other % 3 {
                0 => ("/bridge/create", json!({ "name": name })),
                1 => ("/tuntap/create", json!({ "name": name, "type": "tap" })),
                _ => ("/veth/create", json!({ "name1": name, "name2": format!("q-peer{one}") })),
            }
        }
        _ if one == 0 => ("/bridge/create", json!({ "name": "q-come" })),
        _ => ("/bridge/delete", json!({ "name": "q-come" })),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Came {
    Changed,
    WasSo,
    Refused(u16, String),
}

fn came(answer: &Answer) -> Came {
    match (answer.status, &answer.body["data"]["changed"]) {
        (200, Value::Bool(true)) => Came::Changed,
        (200, Value::Bool(false)) => Came::WasSo,
        (status, _) => Came::Refused(status, answer.body["code"].as_str().unwrap_or_default().to_owned()),
    }
}

#[test]
fn sixty_four_quarrelling_clients_end_as_some_order_explains() {
    let lab = Lab::new();
    let _worker = lab.start();
    for number in 0..4 {
        lab.post("/bridge/create", &json!({ "name": format!("q-br{number}") })).ok();
    }
    for number in 0..2 {
        lab.post("/tuntap/create", &json!({ "name": format!("q-tap{number}"), "type": "tap" })).ok();
    }
    let start = Barrier::new(CLIENTS);
    let answers: Vec<(usize, Answer)> = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (lab, start) = (&lab, &start);
                scope.spawn(move || {
                    let (path, body) = request(client);
                    start.wait();
                    (client, lab.post(path, &body))
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().expect("a client")).collect()
    });

    // One winner for each thing: who asked for the same had nothing to do, and everybody else was refused.
    for group in 0..3 {
        for one in 0..2 {
            let contenders =
                || answers.iter().filter(|(client, _)| client % 4 == group && client / 4 % 2 == one);
            let winners: Vec<_> = contenders().filter(|(_, answer)| came(answer) == Came::Changed).collect();
            let [(winner, _)] = winners[..] else { panic!("{group} {one}: {winners:?}") };
            let refusal = ["FORWARD_PORT_IN_USE", "PORT_IN_USE", "LINK_EXISTS"][group];
            for (client, answer) in contenders().filter(|(client, _)| client != winner) {
                let same = request(*client) == request(*winner);
                let wanted = if same { Came::WasSo } else { Came::Refused(409, refusal.to_owned()) };
                assert_eq!(came(answer), wanted, "{client} after {winner}: {}", answer.body);
            }
            holds(&lab, request(*winner));
        }
    }
    // What came and went: each change the opposite of the one before it, so their numbers differ by what is left.
    let quarrel = |path| {
        let of = answers.iter().filter(move |(client, _)| client % 4 == 3 && request(*client).0 == path);
        of.map(|(_, answer)| came(answer)).collect::<Vec<_>>()
    };
    let (made, deleted) = (quarrel("/bridge/create"), quarrel("/bridge/delete"));
    let changes = |of: &[Came]| of.iter().filter(|came| **came == Came::Changed).count();
    assert!(made.iter().all(|came| matches!(came, Came::Changed | Came::WasSo)), "{made:?}");
    let missing = Came::Refused(404, "BRIDGE_NOT_FOUND".to_owned());
    assert!(deleted.iter().all(|came| *came == Came::Changed || *came == missing), "{deleted:?}");
    let left = lab.call("GET", "/bridge/q-come", None).status == 200;
    assert_eq!(changes(&made), changes(&deleted) + usize::from(left), "{made:?} {deleted:?}");

    assert_eq!(listed(&lab), in_the_kernel(&lab));
    assert_eq!(lab.dump("forward4").len(), 2);
}

/// That what a winner asked for is so.
fn holds(lab: &Lab, (path, body): (&'static str, Value)) {
    match path {
        "/nat/forward" => {
            let status = lab.get("/nat/status");
            let rules = status["port_forwards"].as_array().expect("rules");
            let of_port: Vec<_> =
                rules.iter().filter(|rule| rule["source_port"] == body["external_port"]).collect();
            assert!(matches!(of_port[..], [rule] if rule["dest_port"] == body["internal_port"]), "{status}");
        }
        "/tuntap/attach" => {
            let tap = lab.get(&format!("/tuntap/{}", body["tap_name"].as_str().expect("a name")));
            assert_eq!(tap["data"]["bridge"], body["bridge_name"]);
        }
        create => {
            let name = body["name"].as_str().or(body["name1"].as_str()).expect("a name");
            let kind = lab.get(&format!("/network/interface/{name}"))["data"]["type"].clone();
            let wanted = match create {
                "/bridge/create" => "bridge",
                "/tuntap/create" => "tap",
                _ => "veth",
            };
            assert_eq!(kind, wanted, "{name}");
        }
    }
}

/// Every link with its bridge, as the worker lists them; all of the worker's own are managed.
fn listed(lab: &Lab) -> BTreeMap<String, Option<String>> {
    let interfaces = lab.get("/network/interfaces");
    let interfaces = interfaces.as_array().expect("a list");
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let ours: BTreeSet<_> = interfaces
        .iter()
        .filter(|link| link["managed"] == true)
        .filter_map(|link| text(&link["name"]))
        .collect();
    assert!(ours.iter().all(|name| name.starts_with("q-")) && ours.len() >= 8, "{ours:?}");
    interfaces.iter().map(|link| (text(&link["name"]).expect("a name"), text(&link["bridge"]))).collect()
}

/// The same as `ip` tells it.
fn in_the_kernel(lab: &Lab) -> BTreeMap<String, Option<String>> {
    let links: Value = serde_json::from_str(&lab.router.sh("ip -j link")).expect("JSON");
    let text = |value: &Value| value.as_str().map(str::to_owned);
    // The parts of the data plane are of no concern to anybody.
    let listed = |link: &&Value| !link["ifname"].as_str().is_some_and(|name| name.starts_with("tcw-"));
    let links = links.as_array().expect("a list").iter().filter(listed);
    links.map(|link| (text(&link["ifname"]).expect("a name"), text(&link["master"]))).collect()
}
