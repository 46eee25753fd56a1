//! Open vSwitch of its own for a test: database and switch in a temporary directory, ports in the lab's namespaces.
//!
//! The datapath is the kernel's in a kernel VM, and elsewhere OVS's own in user space, which needs no kernel module.

use std::{
    fs::File,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::lab::{Netns, PATIENCE};

const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

/// A database and a switch; both end with the test.
#[derive(Debug)]
pub struct Ovs {
    dir: tempfile::TempDir,
    processes: Vec<Child>,
}

impl Ovs {
    /// Starts both in a namespace.
    pub fn start(netns: &Netns) -> Self {
        if std::env::var_os("TELECLUSTER_VM").is_some() {
            netns.sh("modprobe openvswitch");
        }
        let dir = tempfile::tempdir().expect("a directory");
        let mut ovs = Self { dir, processes: Vec::new() };
        ovs.tool(&["create", "conf.db", SCHEMA]);
        // What `ovs-vsctl init` does.
        ovs.tool(&[
            "transact",
            "conf.db",
            r#"["Open_vSwitch",{"op":"insert","table":"Open_vSwitch","row":{}}]"#,
        ]);
        let remote = format!("--remote=punix:{}", ovs.socket().display());
        ovs.daemon(netns, "ovsdb-server", &["conf.db", &remote]);
        ovs.wait_for_socket();
        let database = format!("unix:{}", ovs.socket().display());
        ovs.daemon(netns, "ovs-vswitchd", &[&database]);
        ovs
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("db.sock")
    }

    /// `ovs-vsctl`, as somebody else on the host would use it.
    pub fn vsctl(&self, netns: &Netns, line: &str) -> String {
        netns.sh(&format!("ovs-vsctl --timeout=10 --db=unix:{} {line}", self.socket().display()))
    }

    fn tool(&self, arguments: &[&str]) {
        let done = Command::new("ovsdb-tool").args(arguments).current_dir(self.dir.path()).status();
        assert!(done.expect("run ovsdb-tool: package openvswitch-switch").success());
    }

    fn daemon(&mut self, netns: &Netns, program: &str, arguments: &[&str]) {
        let log = File::create(self.dir.path().join(format!("{program}.log"))).expect("a log");
        let mut command = netns.command(program);
        command
            .args(arguments)
            .arg(format!("--unixctl={}", self.dir.path().join(format!("{program}.ctl")).display()))
            .current_dir(self.dir.path())
            .env("OVS_RUNDIR", self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.processes.push(command.spawn().expect("start Open vSwitch"));
    }

    fn wait_for_socket(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.socket().exists() {
            assert!(Instant::now() < deadline, "ovsdb-server does not come up");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Ovs {
    fn drop(&mut self) {
        // The switch first: it would complain about the database that is gone.
        for process in self.processes.iter_mut().rev() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
