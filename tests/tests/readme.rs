//! The README's own curl commands, taken from its text, against a real worker.

use std::process::{Output, Stdio};

use serde_json::Value;
use telecluster_tests::lab::Lab;

const README: &str = include_str!("../../README.md");

/// Every curl command of the README, in order; continued lines joined by the shell itself.
fn commands() -> Vec<String> {
    let mut commands: Vec<String> = Vec::new();
    let (mut fenced, mut open) = (false, false);
    for line in README.lines() {
        if line.starts_with("```") {
            (fenced, open) = (line == "```bash", false);
        } else if fenced && (line.starts_with("curl ") || open) {
            match commands.last_mut().filter(|_| open) {
                Some(command) => command.push_str(&format!("\n{line}")),
                None => commands.push(line.to_owned()),
            }
            // a backslash or an open quote
            let text = commands.last().expect("just pushed");
            open = text.ends_with('\\') || !text.matches('\'').count().is_multiple_of(2);
        }
    }
    commands
}

/// What an example is answered with: in order, with what kernels without 8021q say to VLAN links.
fn expected(command: &str, vlan_links: bool) -> &'static str {
    let post = command.contains("-X POST");
    match () {
        () if vlan_links => "200",
        () if command.contains("/vlan/create") => "501",
        () if command.contains("/vlan/ens3/100") && !post || command.contains("/vlan/delete") => "404",
        () => "200",
    }
}

#[test]
fn the_readme_s_examples_work_verbatim() {
    let lab = Lab::new();
    // the README's uplink and its namespace
    lab.router.ip("link set wan0 down");
    lab.router.ip("link set wan0 name ens3");
    lab.router.ip("link set ens3 up");
    lab.sh("ip netns add lab1");
    let mut command = lab.worker_command();
    let _worker = lab.start_command(command.env_remove("WAN_INTERFACE"));
    let vlan_links = lab.router.makes_vlan_links("lan0");
    if !vlan_links {
        println!("this kernel has no module 8021q: its examples are refused here, and work in the VM");
    }

    let commands = commands();
    assert!(commands.len() >= 40, "{commands:#?}");
    for text in &commands {
        let mut shell = lab.command("sh");
        shell.args(["-c", &format!("{text} -sS -w '\\n%{{http_code}}'")]).stdin(Stdio::null());
        let Output { status, stdout, stderr } = shell.output().expect("run a shell");
        let answer = String::from_utf8_lossy(&stdout);
        assert!(status.success(), "{text}\n{}", String::from_utf8_lossy(&stderr));
        let (body, code) = answer.rsplit_once('\n').expect("a status code");
        assert_eq!(code, expected(text, vlan_links), "{text}\n{body}");
        if text.contains("-X") && code == "200" {
            let body: Value = serde_json::from_str(body).expect("JSON");
            assert_eq!(body["data"]["success"], true, "{text}\n{body}");
            // Ping and traceroute change nothing.
            assert_eq!(body["data"]["changed"], !text.contains("8000/network/"), "{text}\n{body}");
        }
    }
    assert_eq!(
        lab.get("/bridge/list")["bridges"].as_array().map(Vec::len),
        Some(1),
        "only the lab's own bridge"
    );
    let managed = lab.get("/network/interfaces");
    let left: Vec<_> = managed.as_array().expect("a list").iter().filter(|i| i["managed"] == true).collect();
    assert!(left.is_empty(), "the README takes away what it makes: {left:#?}");
}

#[test]
fn every_route_is_in_the_readme_s_table() {
    let document: Value = serde_json::from_str(include_str!("../../docs/openapi.json")).expect("JSON");
    for (path, item) in document["paths"].as_object().expect("paths") {
        let alias = ["bridge", "veth", "vlan", "tuntap", "nat"]
            .iter()
            .any(|resource| path.starts_with(&format!("/network/{resource}/")));
        for method in item.as_object().expect("methods").keys().filter(|_| !alias) {
            let call = format!("`{} {path}`", method.to_uppercase());
            assert!(README.contains(&call), "{call} is not in the README");
        }
    }
}
