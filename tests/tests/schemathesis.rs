//! A stranger to the project reads the OpenAPI document and tries everything in it: schemathesis, against a real
//! worker in a namespace of its own.

use std::{process::Stdio, time::Instant};

use telecluster_tests::lab::{Lab, Worker};

/// Seconds that it may take.
const MOST: &str = "100";
/// Cases for each operation and phase: enough to try every field, few enough for CI.
const CASES: &str = "12";

/// 501 says that this kernel or host cannot, 503 that the worker is not well, 507 that the disk is full: answers that
/// the document names. A 500 is a bug.
const HOOKS: &str = "
import schemathesis

@schemathesis.check
def no_failure_of_ours(ctx, response, case):
    if response.status_code >= 500:
        assert response.status_code in (501, 503, 507), f'{response.status_code}: {response.text}'
";

#[test]
fn what_the_document_promises_ends_without_a_server_error() {
    // `cargo xtask test` installs it and says where.
    let Some(program) = std::env::var_os("SCHEMATHESIS") else {
        eprintln!("not here: SCHEMATHESIS does not say where schemathesis is; `cargo xtask test` does");
        return;
    };
    let lab = Lab::new();
    let _worker = lab.start();
    let url = format!("http://127.0.0.1:{}/openapi.json", Worker::PORT);
    std::fs::write(lab.state.path().join("hooks.py"), HOOKS).expect("write the hooks");
    let mut command = lab.command("timeout");
    command.env("SCHEMATHESIS_HOOKS", lab.state.path().join("hooks.py"));
    command.args(["--kill-after=5", MOST]).arg(program).args([
        "run",
        &url,
        "--checks=no_failure_of_ours",
        "--phases=examples,coverage,fuzzing",
        "--max-examples",
        CASES,
        "--seed=1",
        "--generation-deterministic",
        "--suppress-health-check=all",
        "--request-timeout=30",
        // Both names of a route lead to one handler; and pings wait for hosts that are not there.
        "--exclude-path-regex=^/network/(bridge|veth|vlan|tuntap|nat)/|^/network/(ping|traceroute)$",
        "--no-color",
    ]);
    let began = Instant::now();
    let done = command.stdin(Stdio::null()).current_dir(lab.state.path()).output().expect("run schemathesis");
    let text = String::from_utf8_lossy(&done.stdout);
    let took = began.elapsed().as_secs();
    assert!(
        done.status.success(),
        "{} after {took} s\n{text}\n{}",
        done.status,
        String::from_utf8_lossy(&done.stderr)
    );
    assert!(text.contains("No issues found") || text.contains("passed"), "{text}");
    println!("schemathesis took {took} s");
}
