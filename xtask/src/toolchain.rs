//! Which Rust toolchain builds the eBPF programs. `agent/build.rs` includes this file too, so
//! that what `cargo xtask setup` prepares is what the build then picks.
//!
//! The programs need `core` built for a target that no toolchain ships, hence its sources
//! (`-Z build-std=core`) and a matching pair of compiler and sources: a nightly's compiler does
//! not compile the `core` of another release.

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

/// Overrides the choice: the name of a rustup toolchain.
pub(crate) const ENV: &str = "EBPF_TOOLCHAIN";
/// The toolchain that `cargo xtask setup` links to the distribution's compiler.
pub(crate) const LINKED: &str = "ebpf";
/// What aya-build is told where there is no rustup; it then takes the compiler on PATH.
pub(crate) const PATH: &str = "path";

/// The name of the first usable toolchain, for `aya_build::Toolchain::Custom`.
pub(crate) fn find() -> Result<String> {
    match env::var(ENV) {
        Ok(name) if !name.is_empty() => {
            if has_rustup() && !usable(&mut rustup_rustc(&name)) {
                bail!(
                    "{ENV}={name}: rustup has no toolchain of that name with the sources of core. \
                     Unset it, or name another (rustup toolchain list)"
                );
            }
            return Ok(name);
        }
        _ => {}
    }
    if has_rustup() {
        for name in ["nightly", LINKED] {
            if usable(&mut rustup_rustc(name)) {
                return Ok(name.to_owned());
            }
        }
    } else if usable(&mut Command::new("rustc")) {
        return Ok(PATH.to_owned());
    }
    bail!(
        "no Rust toolchain here can build the eBPF programs: the sources of core are missing. Either\n  \
         cargo xtask setup                                     (Debian, as root: takes Debian's packages), or\n  \
         rustup toolchain install nightly --component rust-src && cargo install bpf-linker"
    )
}

/// A rustup that works. Asked by running it: a stale file on PATH is no rustup.
pub(crate) fn has_rustup() -> bool {
    quiet(Command::new("rustup").arg("--version")).is_some()
}

fn rustup_rustc(toolchain: &str) -> Command {
    let mut command = Command::new("rustup");
    // A probe must never download the toolchain that it asks about.
    command.env("RUSTUP_AUTO_INSTALL", "0").args(["run", toolchain, "rustc"]);
    command
}

/// A compiler that runs and whose sysroot holds the sources of `core`.
fn usable(rustc: &mut Command) -> bool {
    quiet(rustc.args(["--print", "sysroot"]))
        .is_some_and(|sysroot| Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core").is_dir())
}

fn quiet(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
