//! `cargo xtask demo`: the product in one minute, on real packets, in a lab that vanishes.
//!
//! The lab cannot be left behind: it lives in a network, mount and process namespace of its own,
//! and the kernel takes all of it away with its first process, however that ends. Nothing of the
//! machine's own network is seen or touched, so port 8000 and the name `ens3` are free in it.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::build::{self, Profile};
use crate::setup::{self, Set};
use crate::sh::{command, need_root, say};

mod lab;
mod show;

use lab::Lab;

const PICTURE: &str = r#"
      a VM, say                     this server                         the internet, say
    +-------------+   veth   +--------------------------+   cable   +-------------------+
    | inside      |----------| br-vm    worker     ens3 |-----------| outside           |
    | .100.10     |          | .100.1   (eBPF NAT)   .1 |           | .2                |
    +-------------+          +--------------------------+           +-------------------+
      192.168.100.0/24                                203.0.113.0/24

    outside has no route to 192.168.100.0/24: without NAT nothing comes back.
"#;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Start this agent instead of building one
    #[arg(long)]
    agent: Option<PathBuf>,
    /// We are the first process of the lab
    #[arg(long, hide = true)]
    in_lab: bool,
}

pub(crate) fn main(options: &Options) -> Result<()> {
    match (&options.agent, options.in_lab) {
        (Some(agent), true) => tour(agent),
        (Some(agent), false) => enter(agent),
        (None, _) => {
            need_root("demo")?;
            enter(&build::agent(Profile::Release)?)
        }
    }
}

/// Starts ourselves again as the lab's first process.
fn enter(agent: &Path) -> Result<()> {
    need_root("demo")?;
    setup::ensure(&[Set::Test])?;
    let agent = agent.canonicalize().with_context(|| format!("no agent at {}", agent.display()))?;
    println!("{PICTURE}");
    // Whoever stops us, by whatever signal: unshare goes with us, and the lab with unshare.
    let mut lab = command("setpriv", ["--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid"]);
    lab.args(["--fork", "--kill-child", "--mount-proc"]).arg(env::current_exe()?);
    lab.args(["demo", "--in-lab", "--agent"]).arg(agent);
    let status = lab.status().context("cannot start unshare")?;
    if !status.success() {
        bail!("the demo failed; the lab is gone");
    }
    Ok(())
}

/// The tour itself; every step that does not do what it says ends it.
fn tour(agent: &Path) -> Result<()> {
    let start = Instant::now();
    let lab = Lab::new(agent)?;

    lab.step("The worker starts, and touches nothing");
    let mut worker = lab.start_worker()?;

    lab.step("A bridge for the VMs, with the gateway's address");
    lab.post(
        "/bridge/create",
        r#"{"name": "br-vm", "type": "linux", "stp": false, "addresses": ["192.168.100.1/24"]}"#,
    )?;

    lab.step("A cable from the bridge into the VM (here: a namespace called inside)");
    lab.post(
        "/veth/create",
        r#"{"name1": "veth-vm1", "name2": "veth-vm2", "bridge1": "br-vm", "namespace2": "inside"}"#,
    )?;
    lab.configure_inside()?;

    lab.step("Inside cannot reach the outside yet");
    if lab.ping(1).is_ok() {
        bail!("the outside answered although nothing translates yet");
    }
    println!("    no answer, as it should be");

    lab.step("One call, and the lab reaches the outside");
    lab.post("/nat/masquerade", r#"{"source_network": "192.168.100.0/24", "output_interface": "ens3"}"#)?;
    lab.ping(3)?;
    let seen = lab.who_am_i()?;
    println!("    the outside sees inside as {seen}");
    if !seen.starts_with("203.0.113.1:") {
        bail!("the outside should see the worker's address, 203.0.113.1");
    }

    lab.step("One more, and the outside reaches a server of the lab: 2222 to port 22 of the VM");
    lab.post(
        "/nat/forward",
        r#"{"external_port": 2222, "internal_ip": "192.168.100.10", "internal_port": 22, "protocol": "tcp", "description": "SSH access to VM1"}"#,
    )?;
    println!("    {}", lab.transfer()?);

    lab.step("Live flows, with exact counters");
    println!("$ curl http://localhost:8000/nat/flows");
    let flows = lab.get("/nat/flows")?;
    print!("{}", show::flows(&flows).context("the worker lists no flow")?);

    lab.step("The same for Prometheus");
    println!("$ curl http://localhost:8000/metrics | grep ...");
    print!(
        "{}",
        show::metrics(&lab.curl(&["http://localhost:8000/metrics"])?).context("no telecluster_ metric")?
    );

    lab.step("And in the kernel: readable maps");
    lab.show_map()?;

    lab.step("No packet filter has anything to do with it");
    lab.prove_no_rules()?;

    if let Some(status) = worker.try_wait()? {
        bail!("the worker ended early ({status})");
    }
    worker.kill()?;
    worker.wait()?;
    println!();
    say(format!(
        "shown in {} s: a bridge, a cable, masquerade and a port forward by REST, translated by eBPF alone; the lab is gone",
        start.elapsed().as_secs()
    ));
    Ok(())
}
