//! The state directory on a file system that is full.

use serde_json::{Value, json};
use telecluster_tests::lab::{INSIDE, Lab};

/// Forwards before the file of the store has to grow, at most.
const MANY: u16 = 2000;

/// A shell's command in the worker's namespaces, whatever becomes of it.
fn shell(lab: &Lab, line: &str) {
    lab.command("sh").args(["-c", line]).status().expect("a shell");
}

fn forwards(lab: &Lab) -> Vec<Value> {
    lab.get("/nat/status")["port_forwards"].as_array().expect("a list").clone()
}

#[test]
fn a_full_disk_refuses_changes_whole_and_nothing_else_and_is_forgotten_when_there_is_room() {
    let lab = Lab::new();
    let state = lab.state.path().display().to_string();
    lab.sh(&format!("mount -t tmpfs -o size=8m state {state}"));
    let worker = lab.start();
    lab.post("/bridge/create", &json!({ "name": "br-d" })).ok();
    shell(&lab, &format!("cat /dev/zero > {state}/filler 2>/dev/null"));

    let forward = |port: u16| {
        json!({
            "external_port": port, "internal_ip": INSIDE, "internal_port": 80, "description": "x".repeat(200),
        })
    };
    let full = (1000..1000 + MANY).find(|port| {
        let answer = lab.post("/nat/forward", &forward(*port));
        if answer.status != 507 {
            answer.ok();
            return false;
        }
        assert_eq!(answer.body["code"], "STORE_UNWRITABLE", "{}", answer.body);
        true
    });
    let full = full.expect("the disk never got full");
    // Nothing of it is there, everything acknowledged is, and reading works.
    assert_eq!(forwards(&lab).len(), usize::from(full - 1000));
    assert_eq!(lab.post("/bridge/create", &json!({ "name": "br-e" })).status, 507);
    assert_eq!(lab.call("GET", "/bridge/br-e", None).status, 404);
    lab.get("/network/topology");
    lab.get("/nat/flows");

    shell(&lab, &format!("rm {state}/filler"));
    lab.post("/nat/forward", &forward(full)).ok();
    lab.post("/bridge/create", &json!({ "name": "br-e" })).ok();
    worker.murder();
    let _worker = lab.start();
    assert_eq!(forwards(&lab).len(), usize::from(full - 1000) + 1);
    lab.get("/bridge/br-e");
}
