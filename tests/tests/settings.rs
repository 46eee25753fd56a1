//! The settings' file, `check`, and the log, of the real binary.

#![expect(clippy::panic, reason = "a failure is a panic")]

use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use telecluster_tests::lab::Lab;

fn check(command: &mut Command) -> Value {
    let Output { stdout, stderr, .. } =
        command.args(["check", "--json"]).stdout(Stdio::piped()).output().expect("run check");
    serde_json::from_slice(&stdout).unwrap_or_else(|error| {
        panic!("{error}: {} {}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr))
    })
}

fn state(report: &Value, name: &str) -> String {
    let checks = report["checks"].as_array().expect("checks");
    let check =
        checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no {name} in {report}"));
    check["state"].as_str().expect("a state").to_owned()
}

#[test]
fn check_sees_what_is_in_the_way() {
    let lab = Lab::new();
    let report = check(&mut lab.worker_command());
    assert_eq!(report["usable"], true, "{report}");
    assert_eq!(state(&report, "forwarded packets"), "ok");
    // What Docker does.
    lab.router.sh("iptables -P FORWARD DROP");
    let report = check(&mut lab.worker_command());
    assert_eq!(state(&report, "forwarded packets"), "conflict");
    assert_eq!(report["usable"], true);
    let report = check(lab.worker_command().env("WAN_INTERFACE", "wan9"));
    assert_eq!((state(&report, "uplink"), &report["usable"]), ("missing".to_owned(), &json!(false)));
    let _worker = lab.start();
    assert_eq!(state(&check(&mut lab.worker_command()), "API port"), "conflict");
}

#[test]
fn links_and_bridges_of_the_settings_are_found_shown_and_complained_about() {
    let lab = Lab::new();
    let told = |command: &mut Command| {
        command.env("LAN_INTERFACE", "lan9").env("EXTERNAL_BRIDGE", "lan0").env("INTERNAL_BRIDGE", "br-lab");
    };
    let mut command = lab.worker_command();
    told(&mut command);
    let report = check(&mut command);
    assert_eq!(report["usable"], true, "a link that is not there yet is no reason not to start: {report}");
    assert_eq!(state(&report, "cluster link"), "limited");
    assert_eq!(state(&report, "external bridge"), "conflict");
    assert_eq!(state(&report, "internal bridge"), "ok");

    let mut command = lab.worker_command();
    told(&mut command);
    let log = lab.state.path().join("log");
    command.stderr(std::fs::File::create(&log).expect("a log"));
    let worker = lab.start_command(&mut command);
    let roles = lab.get("/network/status")["roles"].clone();
    let problem = |role: &str| roles[role]["problem"].as_str().unwrap_or_default().to_owned();
    assert_eq!(problem("lan_interface"), "LAN_INTERFACE is lan9, and there is no interface of that name");
    assert_eq!(problem("external_bridge"), "EXTERNAL_BRIDGE is lan0, which is no bridge but a veth link");
    assert_eq!(
        roles["internal_bridge"],
        json!({
            "name": "br-lab", "source": "setting", "present": true, "problem": null
        })
    );
    let bridge = lab.get("/network/interface/br-lab");
    assert_eq!(bridge["data"]["roles"], json!(["internal_bridge"]), "{bridge}");
    worker.stop();
    let log = std::fs::read_to_string(log).expect("read the log");
    for problem in [problem("lan_interface"), problem("external_bridge")] {
        let lines: Vec<_> = log.lines().filter(|line| line.contains(&problem)).collect();
        assert!(matches!(&lines[..], [line] if line.contains("WARNING")), "{problem}: {log}");
    }
}

#[test]
fn the_file_is_read_and_the_environment_wins() {
    let lab = Lab::new();
    let file = lab.state.path().join("worker.toml");
    std::fs::write(&file, "port = 9000\nwan_interface = \"wan9\"\nlog_level = \"debug\"\n")
        .expect("write the file");
    let worker = |lab: &Lab| {
        let mut command = lab.worker_command();
        command.env("CONFIG_FILE", &file).env_remove("PORT");
        command
    };
    let report = check(&mut worker(&lab));
    let found = report["checks"].to_string();
    assert!(found.contains("127.0.0.1:9000") && found.contains("wan0 (WAN_INTERFACE)"), "{found}");
    let report = check(worker(&lab).env_remove("WAN_INTERFACE"));
    assert_eq!(state(&report, "uplink"), "missing", "{report}");

    std::fs::write(&file, "prot = 9000\n").expect("write the file");
    let done = worker(&lab).stderr(Stdio::piped()).output().expect("run the worker");
    let text = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!((done.status.code(), text.lines().count()), (Some(2), 1), "{text}");
    assert!(text.contains("prot") && text.contains("worker.toml"), "{text}");
}

#[test]
fn every_line_of_a_request_bears_its_id() {
    for format in ["text", "json"] {
        let lab = Lab::new();
        let mut command = lab.worker_command();
        command.env("LOG_FORMAT", format).env("LOG_LEVEL", "DEBUG");
        let log = lab.state.path().join("log");
        command.stderr(std::fs::File::create(&log).expect("a log"));
        let worker = lab.start_command(&mut command);
        lab.post("/bridge/create", &json!({ "name": "br-l" })).ok();
        worker.stop();
        let text = std::fs::read_to_string(log).expect("read the log");
        // There may be others: whoever starts a worker may ask how it is.
        let ours = |line: &&str| line.contains("answered") && line.contains("/bridge/create");
        let answered = text.lines().find(ours).unwrap_or_else(|| panic!("{text}"));
        match format {
            "json" => {
                let lines: Vec<Value> = text
                    .lines()
                    .map(|line| serde_json::from_str(line).expect("JSON in every line"))
                    .collect();
                let ours =
                    |line: &&Value| line["message"] == "answered" && line["span"]["path"] == "/bridge/create";
                let answered = lines.iter().find(ours).expect("the answer's line");
                assert_eq!(answered["span"]["id"].as_str().map(str::len), Some(36), "{answered}");
                assert_eq!((&answered["level"], &answered["status"]), (&json!("INFO"), &json!(200)));
            }
            _ => {
                assert!(
                    answered.contains(" - telecluster-worker - INFO - answered status=200"),
                    "{answered}"
                );
                assert!(answered.contains("[request id=\""), "{answered}");
                assert!(!text.contains('\u{1b}'), "colours without a terminal: {text}");
            }
        }
    }
}
