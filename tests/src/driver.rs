//! The programs for drivers beside those for traffic control, through `BPF_PROG_TEST_RUN`, with ways that somebody has found.

use std::{mem::offset_of, net::IpAddr};

use aya::maps::{Array, DevMapHash, HashMap, Map, MapData};
use telecluster_common::maps::{Direction, Hop, Pair, PairKey, TICK_BITS};
use telecluster_worker::kernel::{
    dataplane::{DataPlane as _, FastPort},
    links::Mac,
    xdp::Medium,
};

use crate::{
    frame::udp,
    kernel::Kernel,
    vectors::{IPV4, Machine as _, Rule, UPLINK},
};

pub const XDP_PASS: u32 = 2;
pub const XDP_REDIRECT: u32 = 4;
pub const TC_ACT_REDIRECT: u32 = 7;

pub const EPOCH: u32 = 7;
/// The place of the way that all take: from the uplink to the uplink, which is loopback.
pub const HOP: u32 = 1;

type A4 = [u8; 4];
type A6 = [u8; 16];

/// The programs on the hooks of loopback, which has a door in its driver.
#[derive(Debug)]
pub struct Driver(pub Kernel);

impl Driver {
    pub fn new(rules: &[Rule]) -> Self {
        let mut kernel = Kernel::load();
        for (slot, rule) in (0..).zip(rules) {
            kernel.put(slot, rule);
        }
        // The frames' own destination is the router.
        let frame = udp((IPV4.inside, 40000), (IPV4.remote, 53), b"").bytes();
        let mac = Mac(frame[..6].try_into().expect("an address"));
        let port =
            FastPort { index: UPLINK, owner: UPLINK, mtu: 1500, mac, inside: false, medium: Medium::Card };
        kernel.plane.set_ports(&[port]).expect("set the ports");
        let this = Self(kernel);
        this.open_door();
        this
    }

    pub fn open_door(&self) {
        let mut ports = DevMapHash::try_from(Map::DevMapHash(pinned("xdp_port"))).expect("the map");
        ports.insert(UPLINK, UPLINK, None, 0).expect("let packets be sent there");
    }

    pub fn close_door(&self) {
        let mut ports = DevMapHash::try_from(Map::DevMapHash(pinned("xdp_port"))).expect("the map");
        ports.remove(UPLINK).expect("let no packets be sent there");
    }

    /// Writes down a way under an epoch; `alike`: in which hosts alone decide where packets go.
    pub fn find_way(&self, alike: bool) {
        let mut epochs: Array<_, [u32; 4]> = Map::Array(pinned("epoch")).try_into().expect("the map");
        epochs.set(0, [EPOCH, EPOCH, if alike { soon() } else { 0 }, 0], 0).expect("set the epoch");
        let mut hop = [0_u8; size_of::<Hop>()];
        for (place, value) in [
            (offset_of!(Hop, stamp), EPOCH),
            (offset_of!(Hop, interface), UPLINK),
            (offset_of!(Hop, from), UPLINK),
            (offset_of!(Hop, mtu), 1500),
        ] {
            hop[place..place + 4].copy_from_slice(&value.to_ne_bytes());
        }
        let link = offset_of!(Hop, link);
        hop[link..link + 12].copy_from_slice(&[2, 0, 0, 0, 0, 0x77, 2, 0, 0, 0, 0, 0x88]);
        let mut hops: Array<_, [u8; size_of::<Hop>()]> =
            Map::Array(pinned("hop")).try_into().expect("the map");
        hops.set(HOP, hop, 0).expect("set a hop");
    }

    /// Lets these two know each other, both ways.
    pub fn introduce(&self, one: IpAddr, other: IpAddr) {
        for (src, dst) in [(one, other), (other, one)] {
            match (src, dst) {
                (IpAddr::V4(src), IpAddr::V4(dst)) => {
                    const LEN: usize = size_of::<PairKey<A4>>();
                    set_pair::<LEN>("pair4", &[&src.octets(), &dst.octets()]);
                }
                (IpAddr::V6(src), IpAddr::V6(dst)) => {
                    const LEN: usize = size_of::<PairKey<A6>>();
                    set_pair::<LEN>("pair6", &[&src.octets(), &dst.octets()]);
                }
                (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => panic!("two families"),
            }
        }
    }

    pub fn xdp(&mut self, direction: Direction, frame: &[u8]) -> (u32, Vec<u8>) {
        let name = match direction {
            Direction::In => "xdp_wan_in",
            Direction::Out => "xdp_lan_in",
        };
        self.0.run_at(name, frame)
    }

    /// With traffic control's fast path.
    pub fn tc(&mut self, direction: Direction, frame: &[u8]) -> (u32, Vec<u8>) {
        let name = match direction {
            Direction::In => "tc_wan_in",
            Direction::Out => "tc_lan_in",
        };
        self.0.run_at(name, frame)
    }
}

fn set_pair<const K: usize>(map: &str, hosts: &[&[u8]]) {
    let mut pairs: HashMap<_, [u8; K], [u32; size_of::<Pair>() / 4]> =
        Map::LruHashMap(pinned(map)).try_into().expect("the map");
    let mut key = [0; K];
    let class = 0_u32;
    let whole = [hosts, &[&UPLINK.to_ne_bytes(), &class.to_ne_bytes()]].concat().concat();
    key.copy_from_slice(&whole);
    pairs.insert(key, [HOP, EPOCH, soon()], 0).expect("write a pair");
}

pub fn pinned(map: &str) -> MapData {
    MapData::from_pin(format!("/sys/fs/bpf/telecluster/maps/{map}")).expect("a pinned map")
}

/// A moment some seconds from now, in ticks: before a lease of now ends.
pub fn soon() -> u32 {
    let uptime = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("the clock");
    let nanoseconds = u64::try_from(uptime.tv_sec() * 1_000_000_000 + uptime.tv_nsec()).expect("an uptime");
    u32::try_from((nanoseconds >> TICK_BITS) + 14_000).expect("an uptime of days")
}
