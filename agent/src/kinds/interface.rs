//! Every link of the worker's namespace, ours or not.

use crate::{
    kernel::links::{Link, Observed, Place},
    model::InterfaceView,
    state::State,
};

use super::{address_list, managed};

/// A link as callers see it.
pub fn view(link: &Link, observed: &Observed, state: &State) -> InterfaceView {
    let master = link.master.and_then(|master| observed.by_index(&Place::Here, master));
    InterfaceView {
        name: link.name.clone(),
        kind: link.kind.label().to_owned(),
        status: link.operstate.name().to_owned(),
        mtu: link.mtu,
        mac_address: link.mac.map(|mac| mac.to_string()),
        ip_addresses: address_list(link),
        bridge: master.filter(|master| master.is_bridge()).map(|master| master.name.clone()),
        vlans: link.vlan.map(|tag| tag.id).into_iter().collect(),
        ifindex: link.index,
        managed: managed(state, &Place::Here, link),
    }
}
