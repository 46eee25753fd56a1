//! Links of others, with names that no rule of ours foresees: they are shown, drawn and measured, and never touched;
//! and none of them hides the rest.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, process::Stdio};

use serde_json::{Value, json};
use telecluster_tests::lab::{Lab, Netns};

/// Anything but `/`, `:` and blanks, at most 15 bytes, text or not.
const NAMES: [&[u8]; 7] =
    [b"a@b", "ünï<&>".as_bytes(), b"q\"\\{}", b"caf\xe9", b"fifteen-bytes-x", b"tap0.100", b"$(id)"];

/// As it is shown: a byte that is no text is a question mark.
fn shown(name: &[u8]) -> String {
    match std::str::from_utf8(name) {
        Ok(text) => text.to_owned(),
        Err(_) => "caf?".to_owned(),
    }
}

/// `ip link add name NAME ...`; whether the kernel has that kind of link.
fn add(netns: &Netns, name: &[u8], rest: &str) -> bool {
    let mut command = netns.command("ip");
    command.args(["link", "add", "name"]).arg(OsStr::from_bytes(name)).args(rest.split(' '));
    command.stderr(Stdio::null()).status().expect("run ip").success()
}

fn set(netns: &Netns, name: &[u8], key: &str, value: &[u8]) {
    let mut command = netns.command("ip");
    command.args(["link", "set"]).arg(OsStr::from_bytes(name)).arg(key).arg(OsStr::from_bytes(value));
    assert!(command.status().expect("run ip").success(), "{name:?} {key}");
}

/// The foreign links as the kernel has them, without what time changes.
fn links(lab: &Lab) -> Vec<u8> {
    let output = lab.router.command("ip").args(["-o", "link", "show"]).output().expect("run ip");
    assert!(output.status.success());
    let ours = |line: &&[u8]| !line.windows(4).any(|window| window == b"own-");
    output.stdout.split(|byte| *byte == b'\n').filter(ours).collect::<Vec<_>>().join(&b'\n')
}

/// Whether a line of `/metrics` is one: labels in quotes, each closed, and a number.
fn is_sample(line: &str) -> bool {
    let (mut quoted, mut escaped) = (false, false);
    let mut plain = String::new();
    for letter in line.chars() {
        match (quoted, escaped, letter) {
            (true, true, _) => escaped = false,
            (true, false, '\\') => escaped = true,
            (_, false, '"') => quoted = !quoted,
            (true, false, _) => {}
            (false, _, letter) => plain.push(letter),
        }
    }
    let number = plain.rsplit(' ').next().unwrap_or_default();
    !quoted && plain.matches(['{', '}']).count() <= 2 && number.parse::<f64>().is_ok()
}

#[test]
fn links_of_others_are_shown_whatever_they_are_called_and_never_touched() {
    let lab = Lab::new();
    for name in NAMES {
        assert!(add(&lab.router, name, "type bridge"), "{}", shown(name));
    }
    assert!(add(&lab.router, b"v\"\\1", "type veth peer name v2"));
    set(&lab.router, b"v\"\\1", "alias", b"somebody's \xff\xfe");
    set(&lab.router, b"v2", "alias", b"telecluster");
    // What this kernel has no module for is made in the VM.
    let others: Vec<_> = [("dum,my", "type dummy", "virtual"), ("bo=nd", "type bond", "bond")]
        .into_iter()
        .chain([("vx#1", "type vxlan id 7 dstport 4789 local 203.0.113.1", "virtual")])
        .filter(|(name, rest, _)| {
            let made = add(&lab.router, name.as_bytes(), rest);
            if !made {
                eprintln!("not here: this kernel makes no `{rest}`");
            }
            made
        })
        .collect();
    // The lab's own bridge says so a moment after it has carried something; nobody here has changed it.
    telecluster_tests::lab::eventually("the lab's bridge is up", || {
        lab.router.sh("ip -o link show br-lab").contains("state UP")
    });
    let before = links(&lab);
    let mut command = lab.worker_command();
    let log = lab.state.path().join("log");
    let worker = lab.start_command(command.stderr(std::fs::File::create(&log).expect("a log")));

    let interfaces = lab.get("/network/interfaces");
    let find = |list: &Value, name: &str| {
        let found = list.as_array().expect("a list").iter().find(|entry| entry["name"] == name);
        found.unwrap_or_else(|| panic!("{name} is not in {list}")).clone()
    };
    let kinds = NAMES.map(|name| (shown(name), "bridge"));
    let kinds = kinds.into_iter().chain(others.iter().map(|(name, _, kind)| ((*name).to_owned(), *kind)));
    for (name, kind) in kinds.chain([("v\"\\1".to_owned(), "veth")]) {
        let link = find(&interfaces, &name);
        assert_eq!((&link["type"], &link["managed"]), (&json!(kind), &json!(false)), "{link}");
    }
    // The mark alone makes nothing ours.
    assert_eq!(find(&interfaces, "v2")["managed"], false);
    let bridges = lab.get("/bridge/list");
    for name in NAMES.map(shown) {
        assert_eq!(find(&bridges["bridges"], &name)["managed"], false);
    }
    assert_eq!(lab.get("/bridge/a@b")["data"]["managed"], false);
    assert_eq!(lab.get("/network/interface/q%22%5C%7B%7D")["data"]["type"], "bridge");

    for (path, body, code) in [
        ("/bridge/delete", json!({ "name": "fifteen-bytes-x" }), "NOT_MANAGED"),
        ("/bridge/delete", json!({ "name": "tap0.100", "force": true }), "NOT_MANAGED"),
        ("/veth/delete", json!({ "name": "v2" }), "NOT_MANAGED"),
        ("/tuntap/delete", json!({ "name": "tap0.100" }), "WRONG_KIND"),
        ("/bridge/create", json!({ "name": "fifteen-bytes-x" }), "LINK_EXISTS"),
    ] {
        let refused = lab.post(path, &body);
        assert_eq!((refused.status, &refused.body["code"]), (409, &json!(code)), "{path} {body}");
    }

    // A port of ours beside them, and one of theirs that its owner puts into our bridge.
    lab.post("/bridge/create", &json!({ "name": "own-br" })).ok();
    lab.post("/tuntap/create", &json!({ "name": "own-tap", "type": "tap", "bridge": "own-br" })).ok();
    let vlan = json!({ "bridge_name": "own-br", "port_name": "own-tap", "vlan_id": 7, "tagged": false });
    lab.post("/vlan/add-to-bridge", &vlan).ok();
    set(&lab.router, b"v\"\\1", "master", b"own-br");
    telecluster_tests::lab::eventually("the foreign port is one", || {
        lab.get("/bridge/own-br")["data"]["ports"].to_string().contains("v\\\"\\\\1")
    });

    for format in ["svg", "dot", "mermaid"] {
        let picture = lab.get(&format!("/network/topology?format={format}"));
        assert!(picture.as_str().is_some_and(|text| text.contains("fifteen-bytes-x")), "{format}: {picture}");
    }
    let svg = lab.get("/network/topology?format=svg");
    assert!(svg.as_str().is_some_and(|text| text.contains("ünï&lt;&amp;&gt;")), "{svg}");
    let graph = lab.get("/network/topology");
    assert!(graph["graph"].to_string().contains("caf?"), "{graph}");
    // The worker hears of the new port and filters it too.
    let mut metrics = Value::Null;
    telecluster_tests::lab::eventually("the foreign port has series", || {
        metrics = lab.get("/metrics");
        metrics.as_str().is_some_and(|metrics| metrics.contains(r#"v\"\\1"#))
    });
    assert_eq!(lab.get("/health")["status"], "healthy");
    let metrics = metrics.as_str().expect("text");
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        assert!(is_sample(line), "{line}");
    }

    let mut out = lab.router.command("ip");
    assert!(out.args(["link", "set", "v\"\\1", "nomaster"]).status().expect("run ip").success());
    worker.stop();
    let log = std::fs::read_to_string(log).expect("read the log");
    assert!(!log.contains(" - ERROR - "), "{log}");
    let done = lab.worker_command().arg("teardown").status().expect("run teardown");
    assert!(done.success());
    assert_eq!(String::from_utf8_lossy(&links(&lab)), String::from_utf8_lossy(&before));
}

#[test]
fn a_sample_is_told_from_what_is_none() {
    assert!(is_sample(r#"a_total{port="v\"\\1",x="{}"} 3"#) && is_sample("up 1.5"));
    for bad in [r#"a{port="v"\1"} 3"#, r#"a{port="v\"} 3"#, r#"a{port="v"} x"#, "a"] {
        assert!(!is_sample(bad), "{bad}");
    }
}
