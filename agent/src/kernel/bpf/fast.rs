//! The ports of the fast path: what the programs know of them, and the programs at those towards inside hosts.

use std::collections::{BTreeSet, HashMap};

use telecluster_common::maps::Port;

use super::{Plain, attach::Attacher, hooks::Role, mirror::Mirrored, object::Object};
use crate::kernel::{KernelError, dataplane::FastPort};

/// The `port` map.
#[derive(Debug)]
pub(super) struct FastPorts(Mirrored<u32, Plain<Port>>);

impl FastPorts {
    pub(super) fn take(object: &mut Object) -> Result<Self, KernelError> {
        Mirrored::take(object, "port", "fast port").map(Self)
    }

    /// Makes these the ports, and no others. Half done is safe: a port without a program, or a program at a port that
    /// the map does not know, has no fast path.
    pub(super) fn set(&mut self, ports: &[FastPort], attacher: &mut Attacher) -> Result<(), KernelError> {
        let wanted: HashMap<u32, Plain<Port>> = ports.iter().map(entry).collect();
        let inside: BTreeSet<u32> = ports.iter().filter(|port| port.inside).map(|port| port.index).collect();
        self.0.retain(&wanted)?;
        let attached: Vec<u32> = attacher.indexes(Role::Lan).collect();
        for index in attached.iter().filter(|index| !inside.contains(index)) {
            attacher.detach(Role::Lan, *index)?;
        }
        self.0.add(&wanted)?;
        for index in &inside {
            attacher.attach(Role::Lan, *index)?;
        }
        Ok(())
    }
}

fn entry(port: &FastPort) -> (u32, Plain<Port>) {
    let FastPort { index, owner, mtu, mac, inside: _, medium: _ } = *port;
    (index, Plain(Port { owner, mtu, mac: mac.0, unused: 0 }))
}
