//! The packet engine and the layout of its maps.
//!
//! `packet -> parse -> lookup -> rewrite -> verdict`, as pure generic code: the kernel programs run it over
//! socket buffers and BPF maps, the host's tests over byte slices and a `HashMap`.
#![no_std]

pub mod drop;
pub mod maps;
pub mod tcp;
