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

#[test]
fn the_readme_s_examples_work_verbatim() {
    let lab = Lab::new();
    // the README's uplink
    lab.router.ip("link set wan0 down");
    lab.router.ip("link set wan0 name ens3");
    lab.router.ip("link set ens3 up");
    let mut command = lab.worker_command();
    let _worker = lab.start_command(command.env_remove("WAN_INTERFACE"));

    let commands = commands();
    assert!(commands.len() >= 14, "{commands:#?}");
    for text in &commands {
        let mut shell = lab.command("sh");
        shell.args(["-c", &format!("{text} -sS -w '\\n%{{http_code}}'")]).stdin(Stdio::null());
        let Output { status, stdout, stderr } = shell.output().expect("run a shell");
        let answer = String::from_utf8_lossy(&stdout);
        assert!(status.success(), "{text}\n{}", String::from_utf8_lossy(&stderr));
        let (body, code) = answer.rsplit_once('\n').expect("a status code");
        assert_eq!(code, "200", "{text}\n{body}");
        if text.contains("-X") {
            let body: Value = serde_json::from_str(body).expect("JSON");
            assert_eq!(body["data"]["success"], true, "{text}\n{body}");
            assert_eq!(body["data"]["changed"], true, "{text}\n{body}");
        }
    }
    assert_eq!(
        lab.get("/bridge/list")["bridges"].as_array().map(Vec::len),
        Some(1),
        "only the lab's own bridge"
    );
}
