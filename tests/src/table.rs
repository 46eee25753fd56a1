//! Flows that a bench puts into the table of the loaded programs, as if those had made them.

use std::mem::transmute;

use aya::maps::{HashMap, Map, MapData};
use telecluster_common::{
    maps::{Flow, FlowKey, flag},
    tcp::FlowState,
};

type A4 = [u8; 4];

/// `flow4`.
#[derive(Debug)]
pub struct Table(HashMap<MapData, [u8; 16], [u8; 64]>);

impl Table {
    pub fn open() -> Self {
        let data = MapData::from_pin("/sys/fs/bpf/telecluster/maps/flow4").expect("the flow table");
        Self(HashMap::try_from(Map::HashMap(data)).expect("a hash map"))
    }

    pub fn put(&mut self, key: FlowKey<A4>, flow: Flow<A4>) {
        // SAFETY: integers and byte arrays without padding, of the same size.
        let (key, flow) =
            unsafe { (transmute::<FlowKey<A4>, [u8; 16]>(key), transmute::<Flow<A4>, [u8; 64]>(flow)) };
        self.0.insert(key, flow, 0).expect("put a flow");
    }
}

/// A direction of a flow of the rule in slot 0 that both sides have proven, which turns packets into those between these two. As
/// if something changed: the checksum helpers are part of the cost.
pub fn proven(to_src: (A4, u16), to_dst: (A4, u16), last_seen: u32) -> Flow<A4> {
    Flow {
        to_src: to_src.0,
        to_dst: to_dst.0,
        to_sport: to_src.1,
        to_dport: to_dst.1,
        address_difference: 1,
        port_difference: 1,
        rule: 0,
        generation: 1,
        hop: 0,
        stamp: 0,
        lease: 0,
        last_seen,
        packets: 0,
        bytes: 0,
        created: 0,
        state: FlowState::Established as u8,
        flags: flag::ANSWERED | flag::PROVEN,
        synced: 0,
    }
}
