//! Builds the eBPF programs (`../ebpf`, for its own target, always optimised) and leaves the
//! object in OUT_DIR, from where the agent embeds it.

use std::path::Path;
use std::process::exit;
use std::{env, fs};

use anyhow::{Context as _, Result};
use aya_build::{Package, Toolchain, build_ebpf};
use aya_obj::{Map, Object};

#[path = "../xtask/src/toolchain.rs"]
mod toolchain;

#[path = "src/kernel/bpf/btf.rs"]
mod btf;

fn main() {
    if let Err(error) = build() {
        // Without the backtrace that anyhow would add: the reader wants the two ways out.
        eprintln!("{error:#}");
        exit(1);
    }
}

fn build() -> Result<()> {
    // aya-build watches ../ebpf itself.
    for path in ["build.rs", "src/kernel/bpf/btf.rs", "../common", "../Cargo.toml", "../Cargo.lock"] {
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
    })?;
    let out = env::var_os("OUT_DIR").context("OUT_DIR")?;
    let out = Path::new(&out);
    let object = fs::read(out.join("telecluster")).context("read the eBPF programs")?;
    let fields = fields(&object).context("read the types of the eBPF programs' maps")?;
    fs::write(out.join("fields.rs"), fields).context("write the types of the eBPF programs' maps")
}

/// Rust: of each map that the kernel takes BTF for, the fields of its key and value.
fn fields(object: &[u8]) -> Result<String> {
    use aya_obj::generated::bpf_map_type::{BPF_MAP_TYPE_DEVMAP_HASH, BPF_MAP_TYPE_RINGBUF};

    let object = Object::parse(object)?;
    let blob = object.btf.as_ref().context("they have no BTF")?.to_bytes();
    let types = btf::Btf::parse(&blob).context("their BTF is unknown")?;
    let mut found = Vec::new();
    for (name, map) in &object.maps {
        let kind = map.map_type();
        let Map::Btf(map) = map else { continue };
        // The kernel takes none for these (aya knows them: `bpf_create_map`).
        if [BPF_MAP_TYPE_DEVMAP_HASH as u32, BPF_MAP_TYPE_RINGBUF as u32].contains(&kind) {
            continue;
        }
        let fields = |number| types.fields(number).with_context(|| format!("{name}: no type {number}"));
        found.push((name, fields(map.def.btf_key_type_id)?, fields(map.def.btf_value_type_id)?));
    }
    found.sort();
    let lines = found.iter().map(|(name, key, value)| format!("({name:?}, [&{key:?}, &{value:?}]),\n"));
    Ok(format!("&[{}]", lines.collect::<String>()))
}
