//! Builds the eBPF programs (`../ebpf`, for its own target, always optimised) and leaves the
//! object in OUT_DIR, from where the agent embeds it.

use std::env;
use std::process::exit;

use anyhow::{Context as _, Result};
use aya_build::{Package, Toolchain, build_ebpf};

#[path = "../xtask/src/toolchain.rs"]
mod toolchain;

fn main() {
    if let Err(error) = build() {
        // Without the backtrace that anyhow would add: the reader wants the two ways out.
        eprintln!("{error:#}");
        exit(1);
    }
}

fn build() -> Result<()> {
    // aya-build watches ../ebpf itself.
    for path in ["build.rs", "../common", "../Cargo.toml", "../Cargo.lock"] {
        println!("cargo::rerun-if-changed={path}");
    }
    println!("cargo::rerun-if-env-changed={}", toolchain::ENV);

    let name = toolchain::find()?;
    // SAFETY: nothing else runs in this process yet; aya-build starts its threads later.
    unsafe {
        // `-Z build-std` with a release compiler. Only this process and the nested cargo see it.
        env::set_var("RUSTC_BOOTSTRAP", "1");
        // aya-build passes on every line of the nested cargo as a warning: leave the real ones.
        env::set_var("CARGO_TERM_QUIET", "true");
    }
    let package = Package { name: "telecluster-ebpf", root_dir: "../ebpf", ..Package::default() };
    build_ebpf([package], Toolchain::Custom(&name)).with_context(|| {
        format!(
            "building the eBPF programs with the toolchain `{name}`; if the linker is missing: \
             `cargo xtask setup`, or `cargo install bpf-linker`"
        )
    })
}
