//! The lab: this network namespace is the server, `inside` and `outside` are two others.

use std::cell::Cell;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::show;
use crate::sh::{command, find, output, quoted};

const API: &str = "http://localhost:8000";
const MAP: &str = "/sys/fs/bpf/telecluster/maps/flow4";
const STATE: &str = "/run/telecluster-demo";

/// Answers every datagram with the address that it came from.
const ECHO: &str = r#"
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("203.0.113.2", 7))
while True:
    _, peer = s.recvfrom(64); s.sendto(b"%s:%d" % (peer[0].encode(), peer[1]), peer)
"#;
const ASK: &str = r#"
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5)
s.sendto(b"who am I?", ("203.0.113.2", 7)); print(s.recv(64).decode())
"#;
/// Port 22 of the VM: sends as long as somebody listens.
const SOURCE: &str = r#"
import socket
s = socket.create_server(("192.168.100.10", 22)); block = b"x" * 262144
while True:
    c, _ = s.accept()
    try:
        while True: c.sendall(block)
    except OSError: c.close()
"#;
const SINK: &str = r#"
import socket, time
c = socket.create_connection(("203.0.113.1", 2222), timeout=5); block = bytearray(1 << 20)
start = time.monotonic(); total = 0
while time.monotonic() - start < 3: total += c.recv_into(block)
took = time.monotonic() - start
print(f"203.0.113.1:2222 sent {total / 1e6:.0f} MB in {took:.1f} s: {total * 8 / took / 1e9:.1f} Gbit/s")
"#;

pub(super) struct Lab {
    agent: PathBuf,
    steps: Cell<u32>,
}

impl Lab {
    /// The namespaces, the cable to the outside, and the outside's server.
    pub(super) fn new(agent: &Path) -> Result<Self> {
        // Our own view: /run/netns, sysfs of this namespace, and a bpffs whose pins go with us.
        for line in [
            "mount -t tmpfs tmpfs /run",
            "mount -t sysfs sysfs /sys",
            "mount -t bpf bpf /sys/fs/bpf",
            "ip link set lo up",
            "ip netns add inside",
            "ip netns add outside",
            "ip link add ens3 type veth peer name eth0 netns outside",
            "ip addr add 203.0.113.1/24 dev ens3",
            "ip link set ens3 up",
            "ip -n outside addr add 203.0.113.2/24 dev eth0",
            "ip -n outside link set eth0 up",
            "ip -n outside link set lo up",
        ] {
            typed(line)?;
        }
        fs::create_dir(STATE)?;
        python("outside", ECHO).stdout(Stdio::null()).spawn().context("cannot start python3")?;
        Ok(Self { agent: agent.to_owned(), steps: Cell::new(0) })
    }

    pub(super) fn step(&self, what: &str) {
        self.steps.set(self.steps.get() + 1);
        println!("\n==> {}. {what}", self.steps.get());
    }

    /// Its log goes to a file, shown only when it does not come up.
    pub(super) fn start_worker(&self) -> Result<Child> {
        println!("$ telecluster-worker");
        let log = Path::new(STATE).join("log");
        let file = File::create(&log)?;
        let mut worker = Command::new(&self.agent)
            .env("STATE_DIR", Path::new(STATE).join("state"))
            .env("WAN_INTERFACE", "ens3")
            // Whatever the caller's shell says: the calls below are the README's.
            .env("HOST", "127.0.0.1")
            .env("PORT", "8000")
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {}", self.agent.display()))?;
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Ok(health) = self.get("/health") {
                println!("    health: {}", health["status"].as_str().unwrap_or("unknown"));
                return Ok(worker);
            }
            if worker.try_wait()?.is_some() || Instant::now() > deadline {
                bail!("the worker does not answer; its log:\n{}", fs::read_to_string(&log)?);
            }
            sleep(Duration::from_millis(50));
        }
    }

    /// A call of the README, its answer, and a look whether it went well.
    pub(super) fn post(&self, path: &str, body: &str) -> Result<()> {
        println!("$ curl -X POST {API}{path} -d {}", quoted(body));
        let text = self.curl(&["-X", "POST", &format!("{API}{path}"), "-d", body])?;
        print!("{}", show::answer(&text));
        let answer: Value =
            serde_json::from_str(&text).with_context(|| format!("{path} answered no JSON"))?;
        match answer["status"].as_str() {
            Some("ok" | "warning") => Ok(()),
            _ => bail!("{path} was refused"),
        }
    }

    pub(super) fn get(&self, path: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.curl(&[&format!("{API}{path}")])?)?)
    }

    pub(super) fn curl(&self, args: &[&str]) -> Result<String> {
        output(command("curl", ["--silent", "--show-error", "--max-time", "10"]).args(args))
    }

    /// What the VM would do itself; then its server starts.
    pub(super) fn configure_inside(&self) -> Result<()> {
        for line in [
            "ip -n inside addr add 192.168.100.10/24 dev veth-vm2",
            "ip -n inside link set veth-vm2 up",
            "ip -n inside route add default via 192.168.100.1",
        ] {
            println!("$ {line}");
            typed(line)?;
        }
        python("inside", SOURCE).stdout(Stdio::null()).spawn().context("cannot start python3")?;
        // The gateway answers as soon as the bridge forwards.
        output(&mut within("inside", &["ping", "-c", "1", "-w", "10", "192.168.100.1"]))
            .context("inside does not reach its own gateway")?;
        Ok(())
    }

    pub(super) fn ping(&self, count: u32) -> Result<()> {
        println!("inside$ ping -c {count} 203.0.113.2");
        let count = count.to_string();
        let text =
            output(&mut within("inside", &["ping", "-c", &count, "-i", "0.2", "-W", "2", "203.0.113.2"]))?;
        print!("{}", show::indent(&text, 10));
        Ok(())
    }

    /// The address that the outside sees when inside sends it a datagram.
    pub(super) fn who_am_i(&self) -> Result<String> {
        let seen = output(&mut python("inside", ASK)).context("no answer to a datagram from inside")?;
        Ok(seen.trim().to_owned())
    }

    /// A bulk transfer through the port forward, for three seconds.
    pub(super) fn transfer(&self) -> Result<String> {
        println!("outside$ connect 203.0.113.1:2222, and read for three seconds");
        let told = output(&mut python("outside", SINK)).context("no transfer through the port forward")?;
        Ok(told.trim().to_owned())
    }

    pub(super) fn show_map(&self) -> Result<()> {
        println!("$ bpftool map dump pinned {MAP}");
        print!("{}", show::indent(&output(&mut command("bpftool", ["map", "dump", "pinned", MAP]))?, 24));
        Ok(())
    }

    /// Neither packet filter holds a rule. One that is not installed holds none.
    pub(super) fn prove_no_rules(&self) -> Result<()> {
        for line in [&["nft", "list", "ruleset"][..], &["iptables-save"]] {
            let [program, args @ ..] = line else { continue };
            if find(program).is_none() {
                continue;
            }
            println!("$ {}", line.join(" "));
            let rules = output(&mut command(program, args))?;
            let rules: Vec<&str> = rules.lines().filter(|line| !line.starts_with('#')).collect();
            if rules.iter().any(|line| line.starts_with("-A") || line.trim_start().starts_with("chain")) {
                bail!("there are rules:\n{}", rules.join("\n"));
            }
            println!("    (nothing)");
        }
        Ok(())
    }
}

/// A line as one would type it; none of ours needs quotes.
fn typed(line: &str) -> Result<String> {
    let mut words = line.split(' ');
    output(&mut command(words.next().unwrap_or_default(), words))
}

/// A program in one of the lab's namespaces. Not `ip netns exec`: that hides the bpffs.
fn within(namespace: &str, line: &[&str]) -> Command {
    let mut command = command("nsenter", [format!("--net=/run/netns/{namespace}")]);
    command.args(line);
    command
}

fn python(namespace: &str, script: &str) -> Command {
    within(namespace, &["python3", "-c", script])
}
