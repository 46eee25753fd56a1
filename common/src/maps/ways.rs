//! The fast path: where packets may go, and where flows have been seen to go.

use crate::packet::LinkHeader;

/// Value of `epoch`, of which there is one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Epoch {
    /// What flows learn their ways under; 0: no packet takes the fast path.
    pub current: u32,
    /// The last number that was not 0.
    pub last: u32,
    /// Until when nothing but hosts and traffic class decides where a packet goes, in ticks of 2^20 ns since boot; 0: there
    /// is more. The agent moves it on while it is there to hear of changes.
    pub alike: u32,
    /// Since when `current` is what it is, in the same ticks.
    pub begun: u32,
}

/// Pairs of hosts that are known at once: the size of `pair4` and of `pair6`.
pub const MAX_PAIRS: u32 = 32768;

/// Key of `pair4` and `pair6`: what the kernel's routes are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C, align(4))]
pub struct PairKey<A> {
    pub src: A,
    pub dst: A,
    /// Index of the interface whose addresses answer where packets come in.
    pub from: u32,
    /// DSCP, in the upper six of eight bits.
    pub class: u32,
}

/// Value of `pair4` and `pair6`: what a flow between them has learned, as in [`Flow`](super::Flow).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Pair {
    pub hop: u32,
    pub stamp: u32,
    pub lease: u32,
}

/// Value of `hop`: where the packets of many flows go next, see [`crate::nat::fast`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Hop {
    /// The epoch in which it was written; another one now means that it is free.
    pub stamp: u64,
    /// Index of the interface where they leave.
    pub interface: u32,
    /// Of the one whose addresses answer where they come in.
    pub from: u32,
    /// Longest IP packet that may leave there.
    pub mtu: u32,
    /// Addresses of the frame.
    pub link: LinkHeader,
}

/// Value of `port`, by interface index: where the fast path may begin and end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Port {
    /// Index of the interface whose addresses answer for it: itself, or its bridge.
    pub owner: u32,
    pub mtu: u32,
    /// The owner's.
    pub mac: [u8; 6],
    /// Always 0.
    pub unused: u16,
}
