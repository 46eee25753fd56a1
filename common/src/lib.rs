//! The packet engine and the layout of its maps.
//!
//! `packet -> parse -> lookup -> rewrite -> verdict`, as pure generic code: the kernel programs run it over
//! socket buffers and BPF maps, the host's tests over byte slices and hash maps. Nothing here knows aya.
//!
//! | story | where |
//! |---|---|
//! | parse | [`packet`]: what a [`packet::Packet`] must offer, what a header means; [`family`]: IPv4 or IPv6 |
//! | lookup | [`tables`]: what the maps must offer; [`maps`]: how keys and values are laid out |
//! | rewrite | [`checksum`], [`nat`] |
//! | verdict | [`nat::Verdict`], [`drop::DropReason`] |
//!
//! The ports of bridges with VLANs have a story of their own, told in [`vlan`].
#![no_std]
// Inline assembly for BPF is unstable; see `words`.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod checksum;
pub mod drop;
pub mod family;
pub mod maps;
pub mod nat;
pub mod packet;
pub mod tables;
pub mod tcp;
pub mod vlan;
mod words;
