//! Linker options of the eBPF programs. They live here because aya-build replaces RUSTFLAGS.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Without it, copies and zeroing of structs become calls to byte loops (memcpy, memset), and
    // the verifier works 2.6 times as much on every load.
    println!("cargo::rustc-link-arg-bins=--disable-expand-memcpy-in-order");
}
