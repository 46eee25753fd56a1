//! A lab in network namespaces: an inside host, the worker, an outside host, real sockets.
//!
//! ```text
//!  inside               worker                          outside
//!  eth0 ---------- lan0 - br-lab   (routing)   wan0 ---------- eth0
//!  192.168.100.10         192.168.100.1  203.0.113.1    203.0.113.2
//!  fd00:100::10           fd00:100::1    2001:db8::1    2001:db8::2        after `ipv6`
//! ```
//!
//! The namespaces have no names: they are held by file descriptors and vanish with the test, whatever became of it.

use std::{
    collections::BTreeMap,
    io::{self, Read as _},
    net::{Ipv4Addr, Ipv6Addr},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use aya::programs::ProgramInfo;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

pub use crate::netns::Netns;
use crate::netns::output;

pub const INSIDE: Ipv4Addr = Ipv4Addr::new(192, 168, 100, 10);
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 100, 1);
pub const WAN: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
pub const INSIDE_NET: &str = "192.168.100.0/24";

pub const INSIDE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x100, 0, 0, 0, 0, 0, 0x10);
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x100, 0, 0, 0, 0, 0, 1);
pub const WAN6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
pub const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
pub const INSIDE_NET6: &str = "fd00:100::/64";

const DATAPLANE: &str = "DATAPLANE";

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until it is so; how long it took.
#[track_caller]
pub fn eventually(what: &str, mut so: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !so() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
    began.elapsed()
}

/// Makes a test of each function, on each of the data planes that the worker can have.
#[macro_export]
macro_rules! on_each_data_plane {
    ($($test:ident),* $(,)?) => {
        mod ebpf {
            $(#[test] fn $test() { super::$test(&$crate::lab::Lab::on("ebpf")) })*
        }
        mod iptables {
            $(#[test] fn $test() { super::$test(&$crate::lab::Lab::on("iptables")) })*
        }
    };
}

/// What the worker answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Value,
}

impl Answer {
    /// The body of a success; a panic that shows the answer otherwise.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.body
    }
}

/// A worker process in a namespace, with a BPF file system of its own.
#[derive(Debug)]
pub struct Worker {
    child: Child,
}

impl Worker {
    pub const PORT: u16 = 8000;

    /// The agent that the build made: `TELECLUSTER_WORKER_BIN`, else beside this test.
    pub fn binary() -> PathBuf {
        if let Some(path) = std::env::var_os("TELECLUSTER_WORKER_BIN") {
            return path.into();
        }
        let test = std::env::current_exe().expect("our own path");
        let path = test.ancestors().nth(2).expect("target/debug").join("telecluster-worker");
        assert!(path.exists(), "{} is missing: cargo build, or cargo xtask test", path.display());
        path
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"))
    }

    /// How much processor it has used (proc(5): utime and stime).
    fn ticks(&self) -> Vec<String> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        let behind_name = stat.rsplit(')').next().unwrap_or_default();
        behind_name.split_whitespace().skip(11).take(2).map(str::to_owned).collect()
    }

    /// `kill -9`.
    pub fn murder(mut self) {
        self.child.kill().expect("kill the worker");
        self.child.wait().expect("reap the worker");
    }

    /// Asks it to stop, and waits.
    pub fn stop(mut self) {
        kill(self.pid(), Signal::SIGTERM).expect("signal the worker");
        let status = self.child.wait().expect("reap the worker");
        assert!(status.success(), "the worker ended with {status}");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It has no pins outside its own mount namespace; an error means that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The whole lab.
#[derive(Debug)]
pub struct Lab {
    pub inside: Netns,
    pub router: Netns,
    pub outside: Netns,
    /// Holds the worker's BPF file system, so that it outlives a worker.
    mounts: Child,
    pub state: tempfile::TempDir,
    pub environment: Vec<(&'static str, String)>,
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Lab {
    /// Hosts, links, addresses and routes; no worker yet.
    pub fn new() -> Self {
        let (inside, router, outside) = (Netns::new(), Netns::new(), Netns::new());
        router.veth("wan0", &outside, "eth0");
        router.veth("lan0", &inside, "eth0");
        for line in [
            "link add br-lab type bridge",
            "link set lan0 master br-lab",
            "link set lan0 up",
            "link set br-lab up",
            "link set wan0 up",
            &format!("addr add {GATEWAY}/24 dev br-lab"),
            &format!("addr add {WAN}/24 dev wan0"),
            &format!("route add default via {OUTSIDE}"),
        ] {
            router.ip(line);
        }
        for (host, address, gateway) in [(&inside, INSIDE, Some(GATEWAY)), (&outside, OUTSIDE, None)] {
            host.ip("link set eth0 up");
            host.ip(&format!("addr add {address}/24 dev eth0"));
            if let Some(gateway) = gateway {
                host.ip(&format!("route add default via {gateway}"));
            }
        }
        let mounts = hold_mounts(&router);
        let state = tempfile::tempdir().expect("a state directory");
        Self { inside, router, outside, mounts, state, environment: Vec::new() }
    }

    /// One whose workers have a certain data plane: `DATAPLANE`.
    pub fn on(dataplane: &str) -> Self {
        let mut lab = Self::new();
        lab.set_dataplane(dataplane);
        lab
    }

    /// For the workers that are started from now on.
    pub fn set_dataplane(&mut self, dataplane: &str) {
        self.environment.retain(|(name, _)| *name != DATAPLANE);
        self.environment.push((DATAPLANE, dataplane.to_owned()));
    }

    /// The one that its workers have when it was said.
    pub fn dataplane(&self) -> Option<&str> {
        let set = self.environment.iter().find(|(name, _)| *name == DATAPLANE);
        set.map(|(_, dataplane)| dataplane.as_str())
    }

    /// Gives everybody IPv6 addresses too, usable at once.
    pub fn ipv6(&self) {
        for (host, device, address, gateway) in [
            (&self.inside, "eth0", INSIDE6, Some(GATEWAY6)),
            (&self.router, "br-lab", GATEWAY6, None),
            (&self.router, "wan0", WAN6, None),
            (&self.outside, "eth0", OUTSIDE6, None),
        ] {
            host.ip(&format!("addr add {address}/64 dev {device} nodad"));
            if let Some(gateway) = gateway {
                host.ip(&format!("-6 route add default via {gateway}"));
            }
        }
    }

    /// Whether this kernel's bridge can keep VLANs apart (`vlan_filtering`), asked without the worker.
    pub fn bridges_filter_vlans(&self) -> bool {
        self.router.sh("ip -d link show br-lab").contains("vlan_default_pvid")
    }

    /// A command in the worker's namespaces: its network, its BPF file system.
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.router.command("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.mounts.id())).arg(program);
        command
    }

    pub fn sh(&self, line: &str) -> String {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().expect("a program"));
        output(command.args(words), line)
    }

    /// A worker that has not been asked for anything yet, with standard error of its own.
    pub fn worker_command(&self) -> Command {
        let mut command = self.command(Worker::binary().to_str().expect("a path"));
        command
            .env("WAN_INTERFACE", "wan0")
            .env("STATE_DIR", self.state.path())
            .env("FLOW_CAPACITY", "16384")
            .env("PORT", Worker::PORT.to_string())
            .env("LOG_LEVEL", "INFO")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    /// Starts a worker and waits until it answers.
    pub fn start(&self) -> Worker {
        self.start_command(&mut self.worker_command())
    }

    /// The same with a command that the test has changed.
    pub fn start_command(&self, command: &mut Command) -> Worker {
        let mut worker = Worker { child: command.spawn().expect("start the worker") };
        let deadline = Instant::now() + PATIENCE;
        while self.router.connect((Ipv4Addr::LOCALHOST, Worker::PORT)).is_err() {
            let ended = worker.child.try_wait().expect("look at the worker");
            assert!(ended.is_none(), "the worker ended with {ended:?}");
            assert!(Instant::now() < deadline, "the worker does not answer");
            thread::sleep(Duration::from_millis(20));
        }
        // It listens before it is ready. Where verifiers are emulated, to load its programs may take longer than any request may.
        if std::env::var_os("TELECLUSTER_VM").is_some()
            && let Err(ended) = self.until_it_answers(&mut worker)
        {
            panic!("the worker ended with {ended}");
        }
        worker
    }

    /// Waits for as long as the worker works: that is, uses a processor.
    fn until_it_answers(&self, worker: &mut Worker) -> Result<(), ExitStatus> {
        let mut seen = (worker.ticks(), Instant::now());
        while self.try_call("GET", "/health", None).is_err() {
            if let Some(ended) = worker.child.try_wait().expect("look at the worker") {
                return Err(ended);
            }
            if worker.ticks() != seen.0 {
                seen = (worker.ticks(), Instant::now());
            }
            assert!(seen.1.elapsed() < PATIENCE, "the worker neither answers nor does anything");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// The same of a worker that may end instead of answering: with which status, and what it said.
    pub fn try_start(&self, command: &mut Command) -> Result<Worker, String> {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("start the worker");
        let mut stderr = child.stderr.take().expect("its standard error");
        let mut worker = Worker { child };
        // It says things for as long as it lives, and must not be held up.
        let said = thread::spawn(move || {
            let mut said = String::new();
            let _ = stderr.read_to_string(&mut said);
            said
        });
        match self.until_it_answers(&mut worker) {
            Ok(()) => Ok(worker),
            Err(ended) => Err(format!("{ended}: {}", said.join().expect("what it said"))),
        }
    }

    /// A request to the worker, from its own host; `body` as JSON when there is one.
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        self.try_call(method, path, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// The same of a worker that may die before it has answered.
    pub fn try_call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer, ureq::Error> {
        let url = format!("http://127.0.0.1:{}{path}", Worker::PORT);
        self.router.run(|| {
            let agent: ureq::Agent = ureq::Agent::config_builder()
                .http_status_as_error(false)
                .timeout_global(Some(PATIENCE))
                .build()
                .into();
            let request = ureq::http::Request::builder().method(method).uri(&url);
            let request = request.body(body.map(Value::to_string).unwrap_or_default()).expect("a request");
            let mut response = agent.run(request)?;
            let text = response.body_mut().read_to_string()?;
            let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
            Ok(Answer { status: response.status().as_u16(), body })
        })
    }

    #[track_caller]
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.call("POST", path, Some(body))
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        self.call("GET", path, None).ok()
    }

    /// Masquerade of the inside network; the rule's id.
    pub fn masquerade(&self) -> String {
        let body = serde_json::json!({"source_network": INSIDE_NET, "output_interface": "wan0"});
        rule_id(&self.post("/nat/masquerade", &body).ok())
    }

    /// A forward to the inside host; the rule's id.
    pub fn forward(&self, protocol: &str, external: u16, internal: u16) -> String {
        let body = serde_json::json!({
            "external_port": external, "internal_ip": INSIDE, "internal_port": internal, "protocol": protocol,
        });
        rule_id(&self.post("/nat/forward", &body).ok())
    }

    /// Where this process finds a pinned map.
    pub fn pinned(&self, map: &str) -> PathBuf {
        self.pins("maps").join(map)
    }

    /// Where this process finds a directory of the worker's pins.
    pub fn pins(&self, directory: &str) -> PathBuf {
        format!("/proc/{}/root/sys/fs/bpf/telecluster/{directory}", self.mounts.id()).into()
    }

    /// The kernel's number of each pinned program.
    pub fn programs(&self) -> BTreeMap<String, u32> {
        let number = |pin: io::Result<std::fs::DirEntry>| {
            let pin = pin.expect("a pin");
            let program = ProgramInfo::from_pin(pin.path()).expect("a program");
            (pin.file_name().into_string().expect("a name"), program.id())
        };
        std::fs::read_dir(self.pins("progs")).expect("the pins").map(number).collect()
    }

    /// A pinned map as `bpftool` prints it.
    pub fn dump(&self, map: &str) -> Vec<Value> {
        let text = self.sh(&format!("bpftool -j map dump pinned /sys/fs/bpf/telecluster/maps/{map}"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{map}: {error}: {text}"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.mounts.kill();
        let _ = self.mounts.wait();
    }
}

/// Of an answer to a rule's creation.
pub fn rule_id(body: &Value) -> String {
    body["data"]["rule_id"].as_str().unwrap_or_else(|| panic!("no rule_id in {body}")).to_owned()
}

/// A process that only keeps a mount namespace with a BPF file system alive.
fn hold_mounts(netns: &Netns) -> Child {
    let mut command = netns.command("sleep");
    command.arg("3600").stdin(Stdio::null()).stdout(Stdio::piped());
    // SAFETY: system calls only.
    unsafe {
        command.pre_exec(|| {
            unshare(CloneFlags::CLONE_NEWNS)?;
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
            // The namespace's own /sys, as `ip netns exec` would have it, and pins of its own below.
            mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none)?;
            mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none)?;
            // Names of network namespaces (`ip netns add`) that nobody else sees, and that vanish with this.
            mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none)?;
            Ok(())
        });
    }
    // `spawn` returns after exec, so the mounts are there.
    command.spawn().expect("hold the worker's mounts")
}
