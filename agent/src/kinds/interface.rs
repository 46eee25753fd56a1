//! Every link of the worker's namespace, ours or not.

use std::collections::BTreeMap;

use crate::{
    kernel::{
        links::{Link, Observed, Place},
        switch::SwitchPort,
    },
    model::InterfaceView,
    state::State,
};

use super::{address_list, bridge_vlan, managed, roles::Roles};

/// A link as callers see it.
pub fn view(
    link: &Link,
    observed: &Observed,
    state: &State,
    vlans: &BTreeMap<u32, SwitchPort>,
    roles: &Roles<'_>,
) -> InterfaceView {
    let master = link.master.and_then(|master| observed.by_index(&Place::Here, master));
    InterfaceView {
        name: link.name.clone(),
        kind: link.kind.label().to_owned(),
        status: link.operstate.name().to_owned(),
        mtu: link.mtu,
        mac_address: link.mac.map(|mac| mac.to_string()),
        ip_addresses: address_list(link),
        bridge: master.filter(|master| master.is_bridge()).map(|master| master.name.clone()),
        vlans: match link.vlan {
            Some(tag) => vec![tag.id],
            None => bridge_vlan::ids(link, vlans),
        },
        ifindex: link.index,
        managed: managed(state, &Place::Here, link),
        roles: roles.of_link(link),
    }
}
