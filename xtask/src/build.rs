//! `build` and `run`: the agent, its eBPF programs inside.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::setup::{self, Set};
use crate::sh::{cargo, run, say, target_dir};

/// The agent's package and binary.
pub(crate) const AGENT: &str = "telecluster-worker";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    Dev,
    Release,
}

/// Builds the agent and says where it is.
pub(crate) fn agent(profile: Profile) -> Result<PathBuf> {
    setup::ensure(&[Set::Build])?;
    let (dir, what) = match profile {
        Profile::Dev => ("debug", "agent and eBPF programs"),
        Profile::Release => ("release", "agent and eBPF programs, optimised (a first build takes minutes)"),
    };
    say(format!("building {what}"));
    let mut build = cargo(["build", "--package", AGENT, "--bin", AGENT]);
    if profile == Profile::Release {
        build.arg("--release");
    }
    run(&mut build)?;
    Ok(target_dir().join(dir).join(AGENT))
}

/// Becomes the agent: signals and the exit status are its own.
pub(crate) fn exec(args: &[OsString]) -> Result<()> {
    let agent = agent(Profile::Release)?;
    say(format!("{} (stop with Ctrl-C)", agent.display()));
    let error = Command::new(&agent).args(args).exec();
    Err(error).with_context(|| format!("cannot start {}", agent.display()))
}
