//! What the other tasks need on the machine, and how to get it on Debian. Idempotent: what is
//! there is left alone, and when nothing is missing not even apt is asked.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use crate::sh::{command, find, is_root, output, run, say, search_path, succeeds, table, workspace};
use crate::{apt, toolchain};

/// Who needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Set {
    /// Compile the agent and its eBPF programs.
    Build,
    /// Network namespaces with real traffic, and the demo.
    Test,
    /// Boot another kernel.
    Vm,
    /// Compare with iptables, nft and the floors.
    Bench,
}

/// A program, the package that brings it, and what we want with it.
struct Tool {
    set: Set,
    program: &'static str,
    package: &'static str,
    why: &'static str,
}

const fn tool(set: Set, program: &'static str, package: &'static str, why: &'static str) -> Tool {
    Tool { set, program, package, why }
}

const TOOLS: &[Tool] = &[
    tool(Set::Build, "cc", "gcc", "links Rust programs"),
    tool(Set::Test, "ip", "iproute2", "makes network namespaces and links"),
    tool(Set::Test, "nsenter", "util-linux", "runs programs inside them"),
    tool(Set::Test, "bpftool", BPFTOOL, "shows maps and programs as the kernel sees them"),
    tool(Set::Test, "ping", "iputils-ping", "real ICMP"),
    tool(Set::Test, "curl", "curl", "the README's calls, verbatim"),
    tool(Set::Test, "ethtool", "ethtool", "switches offloads"),
    tool(Set::Test, "python3", "python3-minimal", "small servers and clients"),
    tool(
        Set::Test,
        "ovs-vswitchd",
        "openvswitch-switch",
        "a switch of the tests' own; its service is not started",
    ),
    tool(Set::Test, "python3 -m venv", "python3-venv", "a place for schemathesis, which tries the whole API"),
    tool(Set::Test, "systemd-analyze", "systemd", "judges the worker's unit"),
    tool(Set::Test, "setpriv", "util-linux", "takes rights away from a worker"),
    tool(Set::Test, "strace", "strace", "makes system calls of a worker fail"),
    tool(Set::Test, "nft", "nftables", "proves that no nft rule exists"),
    tool(Set::Test, "iptables", "iptables", "proves that no iptables rule exists"),
    tool(Set::Vm, "qemu-system-x86_64", QEMU, "boots other kernels, without KVM"),
    tool(Set::Vm, "modprobe", "kmod", "picks a kernel's modules"),
    tool(Set::Vm, "xz", "xz-utils", "unpacks them"),
    tool(Set::Vm, "strip", "binutils", "keeps the image small"),
    tool(Set::Bench, "cc", "gcc", "compiles the load generator"),
    tool(Set::Bench, "clang-22", "clang-22", "compiles the eBPF floors"),
    tool(Set::Bench, "iperf3", "iperf3", "bulk TCP"),
    tool(Set::Bench, "tc", "iproute2", "attaches the floors"),
    tool(Set::Bench, "bpftool", BPFTOOL, "loads the floors"),
    tool(Set::Bench, "ethtool", "ethtool", "switches offloads"),
    tool(Set::Bench, "python3", "python3", "the bench itself"),
    tool(Set::Bench, "nft", "nftables", "a device to compare with"),
    tool(Set::Bench, "iptables", "iptables", "a device to compare with"),
];

const BPFTOOL: &str = "bpftool";
const QEMU: &str = "qemu-system-x86";
/// bookworm's bpftool does not know TCX, and its QEMU crashes with newer kernels.
const FROM_BACKPORTS: [&str; 2] = [BPFTOOL, QEMU];
/// The compiler that Debian builds browsers with: recent, and its sources are packaged.
const COMPILER: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
/// At least the LLVM of that compiler and of a current nightly.
const LLVM: &str = "22";

/// Makes sure that the machine has what `sets` need.
pub(crate) fn ensure(sets: &[Set]) -> Result<()> {
    let mut missing: Vec<(&str, &str)> = Vec::new();
    let mut need = |package: &'static str, why: &'static str| {
        if !missing.iter().any(|(known, _)| *known == package) {
            missing.push((package, why));
        }
    };
    for tool in TOOLS.iter().filter(|tool| sets.contains(&tool.set)) {
        if !present(tool.program) {
            need(tool.package, tool.why);
        }
    }
    let build = sets.contains(&Set::Build);
    // A toolchain that was asked for by name is used or refused, never replaced.
    let toolchain = build.then(toolchain::find);
    let lacks_compiler = matches!(toolchain, Some(Err(_))) && std::env::var_os(toolchain::ENV).is_none();
    if lacks_compiler && !debian_compiler() {
        for package in COMPILER {
            need(package, "compiles eBPF programs: a Rust compiler with the sources of core");
        }
    }
    let lacks_linker = build && !succeeds(command("bpf-linker", ["--version"]).env("PATH", search_path()));
    let llvm = format!("llvm-{LLVM}-dev");
    let llvm_prefix = PathBuf::from(format!("/usr/lib/llvm-{LLVM}"));
    if lacks_linker && !llvm_prefix.join("bin/llvm-config").exists() {
        missing.push((&llvm, "bpf-linker is built on LLVM"));
    }

    if !missing.is_empty() {
        install(&missing)?;
    }
    if lacks_compiler && toolchain::has_rustup() {
        say(format!(
            "rustup toolchain link {} /usr: Debian's Rust compiler, for the eBPF programs",
            toolchain::LINKED
        ));
        run(&mut command("rustup", ["toolchain", "link", toolchain::LINKED, "/usr"]))?;
    }
    if lacks_linker {
        say("cargo install bpf-linker: links the eBPF programs (about a minute)");
        let feature = format!("llvm-{LLVM}");
        // A later one may want a later LLVM.
        let args = ["install", "bpf-linker", "--version", "~0.13", "--locked", "--no-default-features"];
        // Outside the checkout: its own settings are not meant for foreign code.
        run(crate::sh::cargo(args)
            .args(["--features", &feature])
            .current_dir("/")
            .env("LLVM_PREFIX", &llvm_prefix))
        .context("bpf-linker could not be built")?;
    }
    if build {
        toolchain::find()?;
    }
    Ok(())
}

/// Says what will be installed and why, then does it.
fn install(missing: &[(&str, &str)]) -> Result<()> {
    let names = missing.iter().map(|(package, _)| *package).collect::<Vec<_>>();
    say("missing on this machine:");
    print!("{}", table(&missing.iter().map(|(p, why)| vec![(*p).into(), (*why).into()]).collect::<Vec<_>>()));
    if !apt::available() {
        bail!(
            "this is no Debian: install what is listed above by other means. For the eBPF programs: \
             rustup toolchain install nightly --component rust-src && cargo install bpf-linker"
        );
    }
    if !is_root() {
        bail!("installing needs root: apt-get install --no-install-recommends {}", names.join(" "));
    }
    let (newer, plain): (Vec<&str>, Vec<&str>) =
        names.into_iter().partition(|name| FROM_BACKPORTS.contains(name));
    if !plain.is_empty() {
        apt::install(&plain)?;
    }
    if !newer.is_empty() {
        let view = apt::View::open(apt::Suites::Stable)?;
        if let Err(error) = view.install(&newer) {
            // Lists age: a version that they name may have left the mirror.
            say(format!("{error:#}; again with fresh lists"));
            view.refresh()?;
            view.install(&newer)?;
        }
    }
    Ok(())
}

/// Debian's compiler and its sources, which only lack the link in rustup.
fn debian_compiler() -> bool {
    PathBuf::from("/usr/lib/rustlib/src/rust/library/core").is_dir()
        && PathBuf::from("/usr/bin/rustc").is_file()
}

fn present(program: &str) -> bool {
    match program {
        // 7.2 crashes with kernel 6.12.
        "qemu-system-x86_64" => output(&mut command(program, ["--version"]))
            .is_ok_and(|text| major(&text).is_some_and(|version| version >= 8)),
        "clang-22" => bpf_clang().is_some(),
        // A module, which Debian packages apart.
        "python3 -m venv" => succeeds(&mut command("python3", ["-c", "import venv, ensurepip"])),
        _ => find(program).is_some(),
    }
}

/// The first number of a program's version line.
fn major(version: &str) -> Option<u32> {
    let number = version.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    number.split('.').next()?.parse().ok()
}

/// A clang that compiles for bpf, whatever its version.
pub(crate) fn bpf_clang() -> Option<String> {
    let names =
        std::iter::once("clang".to_owned()).chain((14..=30).rev().map(|version| format!("clang-{version}")));
    names
        .filter(|name| find(name).is_some())
        .find(|name| output(&mut command(name, ["--print-targets"])).is_ok_and(|text| text.contains("bpf")))
}

/// `cargo xtask setup`: everything, or the named sets.
pub(crate) fn main(sets: &[Set]) -> Result<()> {
    let all = [Set::Build, Set::Test, Set::Vm, Set::Bench];
    ensure(if sets.is_empty() { &all } else { sets })?;
    say(format!("ready: eBPF toolchain `{}`, checkout {}", toolchain::find()?, workspace().display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_the_first_number() {
        assert_eq!(major("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)"), Some(10));
        assert_eq!(major("no number"), None);
    }

    #[test]
    fn a_tool_is_listed_once_per_set() {
        for (index, tool) in TOOLS.iter().enumerate() {
            let again = TOOLS.iter().skip(index + 1).any(|t| t.set == tool.set && t.program == tool.program);
            assert!(!again, "{} twice", tool.program);
        }
    }
}
