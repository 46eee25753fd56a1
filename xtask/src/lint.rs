//! Formatting, clippy, and what the compiled eBPF programs must not contain.

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context as _, Result, bail};

use crate::build::{self, Profile};
use crate::sh::{cargo, command, find, output, run, say, target_dir};

pub(crate) fn main() -> Result<()> {
    say("formatting");
    // All members, the eBPF crate too: formatting needs no target.
    run(&mut cargo(["fmt", "--all", "--check"]))?;
    build::agent(Profile::Dev)?;
    say("clippy");
    // The default members; the eBPF crate compiles for its own target only.
    run(&mut cargo(["clippy", "--quiet", "--all-targets", "--", "-D", "warnings"]))?;
    let object = ebpf_object(Profile::Dev)?;
    let Some(objdump) = objdump() else {
        say("no llvm-objdump here: the eBPF object is not looked at");
        return Ok(());
    };
    say("no byte loops in the eBPF programs");
    let listing = output(command(objdump, ["-dr"]).arg(&object))?;
    let loops = byte_loops(&listing);
    if !loops.is_empty() {
        bail!(
            "{}: structs are copied or zeroed by byte loops, which the verifier walks byte by byte:\n    {}\n\
             see ebpf/build.rs for the linker option that inlines them",
            object.display(),
            loops.join("\n    ")
        );
    }
    Ok(())
}

/// The newest object that agent/build.rs left.
pub(crate) fn ebpf_object(profile: Profile) -> Result<PathBuf> {
    let dir = match profile {
        Profile::Dev => "debug",
        Profile::Release => "release",
    };
    let builds = target_dir().join(dir).join("build");
    let objects = fs::read_dir(&builds)?.flatten().map(|entry| entry.path().join("out/telecluster"));
    objects
        .filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path)))
        .max()
        .map(|(_, path)| path)
        .with_context(|| format!("no eBPF object under {}", builds.display()))
}

fn objdump() -> Option<PathBuf> {
    let packaged = (16..=30).rev().map(|version| format!("/usr/lib/llvm-{version}/bin/llvm-objdump"));
    let named = env::var_os("LLVM_OBJDUMP").map(PathBuf::from);
    named
        .into_iter()
        .chain(packaged.map(PathBuf::from))
        .find(|path| Path::is_file(path))
        .or_else(|| find("llvm-objdump"))
}

/// Calls of memcpy, memset and memmove, each with the function that makes it: a program, or a
/// subprogram in `.text`. Those three may call each other; nobody then calls them.
fn byte_loops(listing: &str) -> Vec<String> {
    let (mut section, mut function) = ("", "");
    let mut found = Vec::new();
    for line in listing.lines() {
        if let Some(name) = line.strip_prefix("Disassembly of section ") {
            section = name.trim_end_matches(':');
        } else if let Some((_, name)) = line.split_once('<').filter(|(head, _)| is_address(head.trim())) {
            function = name.trim_end_matches(">:");
        } else if !function.starts_with("mem") && line.contains("R_BPF") {
            let callee = line.split_whitespace().last().unwrap_or_default();
            if ["memcpy", "memset", "memmove"].iter().any(|name| callee.starts_with(name)) {
                found.push(format!("{section}: {function} calls {callee}"));
            }
        }
    }
    found.dedup();
    found
}

fn is_address(word: &str) -> bool {
    word.len() == 16 && word.chars().all(|c| c.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_loops_are_found_in_programs_and_subprograms() {
        let listing = "\
Disassembly of section .text:\n\n0000000000000000 <memcpy>:\n       0:\t85 10\tcall -0x1\n\t\t0000000000000000:  R_BPF_64_32\tmemmove\n\
0000000000000010 <helper>:\n       2:\t85 10\tcall -0x1\n\t\t0000000000000010:  R_BPF_64_32\tmemset\n\
Disassembly of section classifier:\n\n0000000000000000 <wan_in>:\n       0:\t85 10\tcall -0x1\n\t\t0000000000000000:  R_BPF_64_32\tmemcpy\n\
       1:\t18 01\tr1 = 0x0 ll\n\t\t0000000000000008:  R_BPF_64_64\tFLOW4\n";
        assert_eq!(byte_loops(listing), [".text: helper calls memset", "classifier: wan_in calls memcpy"]);
    }
}
