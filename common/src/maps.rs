//! Keys and values of the maps that the programs and the agent share.
//!
//! Every field is named for people who read `bpftool map dump`: addresses are four bytes in the order in which they
//! are written (`[192,168,100,10]`), ports and counters are numbers in host order. No struct has padding that is
//! not a field: a key with undefined bytes would never be found again.

mod flows;
mod rules;
mod ways;

use core::mem::offset_of;

pub use self::{
    flows::{
        Binding, EndpointKey, Flow, FlowKey, FragmentKey, Fragmented, MAX_FRAGMENTED, MAX_PACED, MAX_PLACED,
        MAX_WAITING_ROOMS, Moved, PaceKey, PlaceKey, PlacedPort, RELEASED, REMOTES, flag, lease,
    },
    rules::{
        FORWARDED, Forward, ForwardKey, Local, MAX_POOLED, Masquerade, MasqueradeKey, Opening, PoolKey,
        Range, RangeKey, Rule, RuleStat, SourceKey, Timeouts, Uplink, forwarded, local, rule,
    },
    ways::{Epoch, Hop, MAX_PAIRS, Pair, PairKey, Port},
};

/// Rules of all kinds that can exist at once: the size of the `rule` and `rule_stat` maps.
pub const MAX_RULES: u32 = 16384;

/// Entries of `hop`, a power of two. Entry 0 is not used: a flow's hop 0 is none.
pub const HOPS: u32 = 16384;

/// Blocks of ports that the ranges of forwards are cut into, and networks that forwards are open to: the sizes of
/// `range4` and `source4`, and of their twins. Memory is taken for what is there only.
pub const MAX_BLOCKS: u32 = 65536;

/// Interfaces at which the fast path may begin and end: the size of `port`.
pub const MAX_PORTS: u32 = 8192;

/// Version of everything here and in the files beside. A pinned map of another version is not touched.
pub const SCHEMA: u32 = 13;

/// Places of the programs in the `stage` map, to which those on the hooks go on.
pub mod stage {
    pub const COUNT: u32 = 48;

    pub const NAT4_IN: u32 = 0;
    pub const NAT4_OUT: u32 = 1;
    pub const NAT6_IN: u32 = 2;
    pub const NAT6_OUT: u32 = 3;
    pub const FIRST4_IN: u32 = 4;
    pub const FIRST4_OUT: u32 = 5;
    pub const FIRST6_IN: u32 = 6;
    pub const FIRST6_OUT: u32 = 7;
    pub const MAKE4_IN: u32 = 8;
    pub const MAKE4_OUT: u32 = 9;
    pub const MAKE6_IN: u32 = 10;
    pub const MAKE6_OUT: u32 = 11;
    pub const ICMP4_IN: u32 = 12;
    pub const ICMP4_OUT: u32 = 13;
    pub const ICMP6_IN: u32 = 14;
    pub const ICMP6_OUT: u32 = 15;
    pub const NEXT6_IN: u32 = 16;
    pub const NEXT6_OUT: u32 = 17;
    pub const LAN6_IN: u32 = 18;
    pub const LAN6_OUT: u32 = 19;
    pub const TURN4_IN: u32 = 20;
    pub const TURN4_OUT: u32 = 21;
    pub const TURN6_IN: u32 = 22;
    pub const TURN6_OUT: u32 = 23;
    pub const FRAGMENT4_IN: u32 = 24;
    pub const FRAGMENT4_OUT: u32 = 25;
    pub const FRAGMENT6_IN: u32 = 26;
    pub const FRAGMENT6_OUT: u32 = 27;
    pub const REFUSE4: u32 = 28;
    pub const REFUSE6: u32 = 29;
    pub const DEPART4: u32 = 30;
    pub const DEPART6: u32 = 31;
    pub const LEAVE4: u32 = 32;
    pub const LEAVE6: u32 = 33;
    pub const AROUND4: u32 = 34;
    pub const AROUND6: u32 = 35;
    pub const HOME4: u32 = 36;
    pub const HOME6: u32 = 37;
    pub const LEAVE_ERROR4: u32 = 38;
    pub const LEAVE_ERROR6: u32 = 39;
    pub const HOME_ERROR4: u32 = 40;
    pub const HOME_ERROR6: u32 = 41;
    pub const HOME_PART4: u32 = 42;
    pub const HOME_PART6: u32 = 43;
}

/// Places of the programs in the `xdp_stage` map, to which those on the hooks of drivers go on.
pub mod xdp_stage {
    pub const COUNT: u32 = 10;

    pub const WAN6: u32 = 0;
    pub const LAN6: u32 = 1;
    pub const FIRST4_IN: u32 = 2;
    pub const FIRST4_OUT: u32 = 3;
    pub const FIRST6_IN: u32 = 4;
    pub const FIRST6_OUT: u32 = 5;
    pub const MAKE4: u32 = 6;
    pub const MAKE6: u32 = 7;
    pub const NOTABLE4: u32 = 8;
    pub const NOTABLE6: u32 = 9;
}

/// Nanoseconds to ticks: 2^20 ns, a little more than a millisecond. 32 bits of ticks are 52 days, and idle times are
/// told by the difference, so nothing happens when they wrap.
pub const TICK_BITS: u32 = 20;

/// Seconds to ticks; a little more than asked.
#[inline(always)]
pub const fn ticks(seconds: u32) -> u32 {
    seconds * 954
}

/// Which way a packet goes through the uplink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Direction {
    /// From the uplink to the inside.
    In = 0,
    /// From the inside to the uplink.
    Out = 1,
}

impl Direction {
    #[inline(always)]
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::In => Self::Out,
            Self::Out => Self::In,
        }
    }
}

type A4 = [u8; 4];
type A6 = [u8; 16];

const _: () = {
    assert!(size_of::<Hop>() == 32);
    assert!(size_of::<Port>() == 16);
    assert!(size_of::<PairKey<A4>>() == 16 && size_of::<PairKey<A6>>() == 40);
    assert!(size_of::<FlowKey<A4>>() == 16);
    assert!(size_of::<Flow<A4>>() == 64);
    // One exchange takes both, see `crate::nat::collect`.
    assert!(offset_of!(Flow<A4>, last_seen) == offset_of!(Flow<A4>, lease) + 4);
    assert!(offset_of!(Flow<A6>, last_seen) == offset_of!(Flow<A6>, lease) + 4);
    assert!(offset_of!(Hop, link) % 4 == 0 && align_of::<Hop>() >= 4);
    assert!(offset_of!(Flow<A4>, lease) % 8 == 0 && offset_of!(Flow<A6>, lease) % 8 == 0);
    assert!(size_of::<FlowKey<A6>>() == 40);
    assert!(size_of::<Flow<A6>>() == 88);
    assert!(size_of::<ForwardKey<A4>>() == 12);
    assert!(size_of::<ForwardKey<A6>>() == 24);
    assert!(size_of::<Forward<A4>>() == 16);
    assert!(size_of::<Forward<A6>>() == 28);
    assert!(size_of::<RangeKey<A4>>() == 12 && size_of::<RangeKey<A6>>() == 24);
    assert!(size_of::<Range<A4>>() == 16 && size_of::<Range<A6>>() == 28);
    assert!(size_of::<SourceKey<A4>>() == 8 && size_of::<SourceKey<A6>>() == 20);
    assert!(size_of::<MasqueradeKey<A4>>() == 8);
    assert!(size_of::<MasqueradeKey<A6>>() == 20);
    assert!(size_of::<EndpointKey<A4>>() == 8 && size_of::<EndpointKey<A6>>() == 20);
    assert!(size_of::<Binding<A4>>() == 60 && size_of::<Binding<A6>>() == 168);
    assert!(size_of::<Moved<A4>>() == 8 && size_of::<Moved<A6>>() == 20);
    assert!(size_of::<FragmentKey<A4>>() == 16 && size_of::<FragmentKey<A6>>() == 40);
    assert!(size_of::<Fragmented>() == 12);
    assert!(size_of::<PaceKey<A4>>() == 8 && size_of::<PaceKey<A6>>() == 20);
    assert!(size_of::<PlaceKey<A4>>() == 8 && size_of::<PlaceKey<A6>>() == 20);
    assert!(size_of::<PlacedPort>() == 4);
    assert!(size_of::<Rule>() == 32);
    assert!(size_of::<Local>() == 8 && size_of::<PoolKey>() == 8);
    assert!(size_of::<RuleStat>() == 40);
};
