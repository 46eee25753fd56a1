//! Keys and values of the maps of the VLAN filter, for people who read `bpftool map dump`: interface indexes and VLAN
//! ids are numbers, Ethernet addresses six bytes in the order in which they are written.
//!
//! No struct has padding that is not a field: a key with undefined bytes would never be found again.

use super::frame::Address;

/// Ports of all filtered bridges together, the bridges themselves included.
pub const MAX_PORTS: u32 = 4096;

/// Pairs of a port and a VLAN that it is in.
pub const MAX_MEMBERS: u32 = 32768;

/// Ports of one VLAN of one bridge: what a Linux bridge can have (BR_MAX_PORTS), and the bridge itself.
pub const MAX_VLAN_PORTS: u16 = 1025;

/// Stations that are known at once.
pub const MAX_STATIONS: u32 = 32768;

/// Decisions that each processor keeps: a power of two.
pub const MAX_DECISIONS: u32 = 8192;

/// Value of `port_cfg`, by interface index.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct PortConfig {
    /// Interface index of its bridge; of the bridge as a port of itself, its own.
    pub bridge: u32,
    /// [`port`] flags.
    pub flags: u32,
    /// VLAN of untagged frames; 0: none.
    pub native: u16,
    /// What its VLAN tags begin with: 0x8100 or 0x88a8.
    pub protocol: u16,
    /// Bytes of a frame without its Ethernet header and one tag.
    pub mtu: u32,
    /// Stations that may be learned here; 0: as many as fit.
    pub station_limit: u32,
    /// Milliseconds for which a silent station is remembered here.
    pub ageing: u32,
    /// Of the native VLAN, what [`Member::stat`] is of others: most frames are in it, and need not be looked up again.
    pub native_stat: u32,
}

impl PortConfig {
    /// How long a silent station is remembered, in nanoseconds.
    #[inline(always)]
    #[must_use]
    pub const fn memory(&self) -> u64 {
        self.ageing as u64 * 1_000_000
    }
}

/// Bits of [`PortConfig::flags`].
pub mod port {
    /// In no VLAN: its frames are the kernel's bridge's, together with all other ports of this kind.
    pub const PLAIN: u32 = 1;
    /// Frames with a VLAN tag may come in.
    pub const TAGGED_IN: u32 = 2;
    /// Frames without one, or with a priority tag only, may come in.
    pub const UNTAGGED_IN: u32 = 4;
    /// Spanning tree and the worker let it forward.
    pub const FORWARDING: u32 = 8;
    /// They let it learn.
    pub const LEARNING: u32 = 16;
    /// Nothing goes from one isolated port to another.
    pub const ISOLATED: u32 = 32;
    /// A frame may leave where it came in.
    pub const HAIRPIN: u32 = 64;
    /// Whatever comes in is payload of the native VLAN, tags and all (QinQ).
    pub const TUNNEL: u32 = 128;
    /// The payload of a VLAN may begin with another tag.
    pub const NESTED: u32 = 256;
    /// The bridge itself: the host's side.
    pub const HOST: u32 = 512;
    /// Its bridge runs spanning tree.
    pub const STP: u32 = 1024;
}

/// Key of `vlan_member` and `vlan_drop`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C, align(4))]
pub struct MemberKey {
    pub port: u32,
    pub vlan: u16,
    /// Always 0.
    pub unused: u16,
}

/// Value of `vlan_member`: how a port is in a VLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Member {
    /// 1: its frames leave without a tag.
    pub untagged: u32,
    /// Index of its counters in `vlan_stat`.
    pub stat: u32,
}

/// Key of `vlan_flood`: the ports of a VLAN, place by place from 0 without a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C, align(4))]
pub struct FloodKey {
    pub bridge: u32,
    pub vlan: u16,
    pub place: u16,
}

/// Key of `fdb`: stations are known per VLAN, so that the same address in two VLANs is two stations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C, align(4))]
pub struct StationKey {
    pub bridge: u32,
    pub mac: [u8; 6],
    pub vlan: u16,
}

/// A [`StationKey`], written in two words: one that is written field by field is not yet in memory when the hash reads it in
/// words of its own, and has to be waited for.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(8))]
pub struct StationPlace([u64; 2]);

impl StationPlace {
    #[inline(always)]
    #[must_use]
    pub const fn new(bridge: u32, mac: Address, vlan: u16) -> Self {
        let (bridge, first, last, vlan) = (bridge as u64, mac.first as u64, mac.last as u64, vlan as u64);
        if cfg!(target_endian = "little") {
            Self([bridge | first << 32, last | vlan << 16])
        } else {
            Self([bridge << 32 | first, last << 48 | vlan << 32])
        }
    }

    #[inline(always)]
    #[must_use]
    pub const fn get(&self) -> &StationKey {
        // SAFETY: larger and better aligned than a key, in which all bits are valid.
        unsafe { &*(&raw const self.0).cast::<StationKey>() }
    }
}

/// Value of `fdb`: where a station is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Station {
    pub port: u32,
    /// [`station`] flags.
    pub flags: u32,
    /// The port that it has moved away from; 0: none. From there it may come back without being asked.
    pub previous: u32,
    /// Always 0.
    pub unused: u32,
    /// Nanoseconds since boot (CLOCK_MONOTONIC, coarse), to the second.
    pub updated: u64,
}

/// Bits of [`Station::flags`].
pub mod station {
    /// Set by the agent: it neither ages nor moves.
    pub const STATIC: u32 = 1;
}

/// Value of `vlan_decision`, by place and CPU: what becomes of frames from a port, between two stations, with or without a tag.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Decision {
    /// The port where they come in; 0: nothing is kept here.
    pub from: u32,
    pub dst: [u8; 6],
    pub src: [u8; 6],
    /// First bytes of the tag, 0 without one; its VLAN.
    pub protocol: u16,
    pub vlan: u16,
    /// The port where they leave; `host`: 1 when that is the bridge itself.
    pub to: u32,
    /// Index of the counters in `vlan_stat` of the port where they come in.
    pub stat: u32,
    /// [`super::frame::Note`]
    pub note: u16,
    pub host: u16,
    /// What `vlan_change` was before this was decided.
    pub changes: u64,
    /// When that was, in ticks of the kernel.
    pub made: u64,
    /// How they leave, which only the program in a driver asks for: bytes of the longest one, its header counted and its tag not;
    /// 0: not known.
    pub longest: u32,
    /// Index of the counters in `vlan_stat` of the port where they leave.
    pub tx_stat: u32,
    /// First bytes of the tag that they leave with; 0: without one.
    pub tx_protocol: u16,
    /// Always 0.
    pub unused: [u16; 3],
}

/// Value of `vlan_stat`, by [`Member::stat`] and CPU. A segmented super-packet counts its segments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct VlanStat {
    /// Came in through the port.
    pub rx_packets: u64,
    pub rx_bytes: u64,
    /// Left through it.
    pub tx_packets: u64,
    pub tx_bytes: u64,
}

/// Value of `vlan_drop`, by port, VLAN and CPU: frames of a VLAN that the port is in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct VlanDrops {
    /// By [`super::VlanDrop`].
    pub dropped: [u64; super::VlanDrop::COUNT as usize],
}

/// Value of `port_stat`, by interface index and CPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct PortStat {
    /// By [`super::VlanDrop`]: frames of no VLAN that the port is in.
    pub dropped: [u64; super::VlanDrop::COUNT as usize],
    /// Frames whose sender was not learned, because the port's limit or the table was full.
    pub not_learned: u64,
}

const _: () = {
    assert!(size_of::<PortConfig>() == 28);
    assert!(size_of::<MemberKey>() == 8);
    assert!(size_of::<Member>() == 8);
    assert!(size_of::<FloodKey>() == 8);
    assert!(size_of::<StationKey>() == 12);
    assert!(size_of::<Station>() == 24);
    assert!(size_of::<Decision>() == 64 && MAX_DECISIONS.is_power_of_two());
    assert!(size_of::<VlanStat>() == 32);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_in_words_is_the_key() {
        let mac = [2, 1, 2, 3, 4, 5];
        let [first, last] = [&mac[..4], &mac[4..]];
        let address = Address {
            first: u32::from_ne_bytes(first.try_into().unwrap()),
            last: u16::from_ne_bytes(last.try_into().unwrap()),
        };
        assert_eq!(address.bytes(), mac);
        let key = StationPlace::new(0x0102_0304, address, 0x0fed);
        assert_eq!(*key.get(), StationKey { bridge: 0x0102_0304, mac, vlan: 0x0fed });
    }
}
