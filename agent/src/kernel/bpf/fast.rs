//! The ports of the fast path: what the programs know of them, and the programs at those towards inside hosts.

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::{HashMap, MapData};
use telecluster_common::maps::Port;

use super::{
    Plain,
    attach::{Attacher, Role},
    failed,
    object::{self, Object},
};
use crate::kernel::{KernelError, dataplane::FastPort};

/// The `port` map.
#[derive(Debug)]
pub(super) struct FastPorts(HashMap<MapData, u32, Plain<Port>>);

impl FastPorts {
    pub(super) fn take(object: &mut Object) -> Result<Self, KernelError> {
        object::take(object, "port").map(Self)
    }

    /// Makes these the ports, and no others. Half done is safe: a port without a program, or a program at a port that
    /// the map does not know, has no fast path.
    pub(super) fn set(&mut self, ports: &[FastPort], attacher: &mut Attacher) -> Result<(), KernelError> {
        let wanted: BTreeMap<u32, Port> = ports.iter().map(entry).collect();
        let inside: BTreeSet<u32> = ports.iter().filter(|port| port.inside).map(|port| port.index).collect();
        let present: Vec<u32> = self.0.keys().filter_map(Result::ok).collect();
        for index in present.iter().filter(|index| !wanted.contains_key(index)) {
            self.0.remove(index).map_err(|error| failed(format!("forget the fast port {index}"), &error))?;
        }
        let attached: Vec<u32> = attacher.indexes(Role::Lan).collect();
        for index in attached.iter().filter(|index| !inside.contains(index)) {
            attacher.detach(Role::Lan, *index)?;
        }
        for (index, port) in &wanted {
            self.0
                .insert(index, Plain(*port), 0)
                .map_err(|error| failed(format!("make {index} a fast port"), &error))?;
        }
        for index in &inside {
            attacher.attach(Role::Lan, *index)?;
        }
        Ok(())
    }
}

fn entry(port: &FastPort) -> (u32, Port) {
    let FastPort { index, owner, mtu, mac, inside: _, medium: _ } = *port;
    (index, Port { owner, mtu, mac: mac.0, unused: 0 })
}
