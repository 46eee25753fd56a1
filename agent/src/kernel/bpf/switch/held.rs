//! What the maps hold of ports, and a port as the programs want it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use telecluster_common::vlan::maps::{Member, PortConfig, port as flag};

use crate::{
    kernel::{links::Mac, switch::SwitchPort},
    model::{VlanProtocol, bridge_vlan::Accept},
};

/// What the maps hold, so that a change needs no look at all of them.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) configs: BTreeMap<u32, PortConfig>,
    /// By port and VLAN.
    pub(super) members: BTreeMap<(u32, u16), Member>,
    /// Ports by bridge and VLAN, place by place.
    pub(super) floods: BTreeMap<(u32, u16), Vec<u32>>,
    /// Fixed stations.
    pub(super) stations: BTreeMap<(u32, u16, Mac), u32>,
    /// Counters that a member has.
    pub(super) stats: BTreeSet<u32>,
}

impl Held {
    /// How long stations of a port are remembered, in nanoseconds.
    pub(super) fn memory(&self, port: u32) -> u64 {
        self.configs.get(&port).map_or(0, PortConfig::memory)
    }

    pub(super) fn vlans_of(&self, port: u32) -> impl Iterator<Item = u16> {
        self.members.range((port, 0)..=(port, u16::MAX)).map(|((_, vlan), _)| *vlan)
    }

    pub(super) fn port(&self, index: u32) -> Option<SwitchPort> {
        let PortConfig { bridge, flags, native, protocol, mtu, station_limit, ageing, native_stat: _ } =
            *self.configs.get(&index)?;
        let is = |bit: u32| flags & bit != 0;
        let members = self.members.range((index, 0)..=(index, u16::MAX));
        Some(SwitchPort {
            index,
            bridge,
            native: (native != 0).then_some(native),
            tagged: members.filter(|(_, member)| member.untagged == 0).map(|((_, vlan), _)| *vlan).collect(),
            accept: match (is(flag::TAGGED_IN), is(flag::UNTAGGED_IN)) {
                (true, false) => Accept::Tagged,
                (false, true) => Accept::Untagged,
                (true, true) | (false, false) => Accept::All,
            },
            protocol: if protocol == VlanProtocol::Dot1ad.number() {
                VlanProtocol::Dot1ad
            } else {
                VlanProtocol::Dot1q
            },
            tunnel: is(flag::TUNNEL),
            nested: is(flag::NESTED),
            forwarding: is(flag::FORWARDING),
            learning: is(flag::LEARNING),
            isolated: is(flag::ISOLATED),
            hairpin: is(flag::HAIRPIN),
            stp: is(flag::STP),
            mtu,
            station_limit,
            ageing,
            stations: (self.stations.iter())
                .filter(|(_, port)| **port == index)
                .map(|((_, vlan, mac), _)| (*vlan, *mac))
                .collect(),
        })
    }
}

/// A port as the programs want it: a pure function, so that what is put and what is read cannot differ. `native_stat`:
/// the counters of its native VLAN, if it has one.
pub fn config(port: &SwitchPort, native_stat: u32) -> PortConfig {
    let accept = match port.accept {
        Accept::All => flag::TAGGED_IN | flag::UNTAGGED_IN,
        Accept::Tagged => flag::TAGGED_IN,
        Accept::Untagged => flag::UNTAGGED_IN,
    };
    let flags = [
        (port.native.is_none() && port.tagged.is_empty(), flag::PLAIN),
        (port.forwarding, flag::FORWARDING),
        (port.learning, flag::LEARNING),
        (port.isolated, flag::ISOLATED),
        (port.hairpin, flag::HAIRPIN),
        (port.tunnel, flag::TUNNEL),
        (port.nested, flag::NESTED),
        (port.is_host(), flag::HOST),
        (port.stp, flag::STP),
    ];
    let set = flags.into_iter().filter(|(set, _)| *set).fold(accept, |flags, (_, bit)| flags | bit);
    PortConfig {
        bridge: port.bridge,
        flags: set,
        native: port.native.unwrap_or(0),
        protocol: port.protocol.number(),
        mtu: port.mtu,
        station_limit: port.station_limit,
        ageing: port.ageing,
        native_stat,
    }
}
