//! VLAN links: an interface for one VLAN of another interface. Found by their attributes, never by name.

use crate::{
    error::{Code, Error, Result},
    kernel::{
        links::{At, Link, LinkKind, Observed, Place, VlanTag},
        step::{LinkStep, NewVlan},
    },
    model::{VlanLinkSpec, VlanLinkView, VlanProtocol},
    plan::{Plan, Subject, World},
    state::{Record, State},
};

use super::{
    address_list, managed, mend_master, mend_up, name_taken, not_managed, problems, require_free_name,
    require_nothing_on_top, target_bridge,
};

/// IEEE 802.1Q: 0 is priority only, 4095 is reserved.
pub const VLAN_IDS: std::ops::RangeInclusive<u16> = 1..=4094;

fn tag(spec: &VlanLinkSpec) -> VlanTag {
    VlanTag { id: spec.vlan_id, protocol: spec.protocol }
}

pub(super) fn create(spec: &VlanLinkSpec, world: World<'_>) -> Result<Plan> {
    if !VLAN_IDS.contains(&spec.vlan_id) {
        return Err(Error::field("vlan_id", format!("{} is not within 1 and 4094", spec.vlan_id)));
    }
    let (name, parent_name) = (spec.name.as_str(), spec.parent.as_str());
    let parent = parent(parent_name, world.observed)?;
    let subject = Subject::VlanLink(name.to_owned());
    let same = world.observed.on_top_of(&Place::Here, parent).find(|link| link.vlan == Some(tag(spec)));
    if let Some(link) = same {
        if link.name == name && managed(world.state, &Place::Here, link) {
            return Ok(Plan::new(subject, format!("{name} is there already")));
        }
        return Err(Error::new(
            Code::LinkExists,
            format!("VLAN {} of {parent_name} exists already as {}", spec.vlan_id, link.name),
        )
        .hint("delete that link first, or use it"));
    }
    if let Some(link) = world.observed.link(name) {
        return Err(name_taken(&At::here(name), link));
    }
    require_free_name(name, "vlan", world.state)?;
    let message = format!("VLAN {} of {parent_name} was created as {name}", spec.vlan_id);
    let mut plan = Plan::new(subject, message);
    make_in(spec, parent, world, &mut plan)?;
    plan.put(Record::VlanLink(spec.clone()));
    Ok(plan)
}

/// An interface that can carry VLANs.
fn parent<'a>(name: &str, observed: &'a Observed) -> Result<&'a Link> {
    let Some(parent) = observed.link(name) else {
        return Err(Error::new(Code::LinkNotFound, format!("there is no interface {name}")));
    };
    match parent.kind {
        LinkKind::Loopback | LinkKind::Tun => Err(Error::new(
            Code::WrongKind,
            format!("{name} is a {} link and carries no Ethernet frames", parent.kind.label()),
        )),
        LinkKind::Bridge { .. }
        | LinkKind::OvsBridge { .. }
        | LinkKind::Veth
        | LinkKind::Vlan
        | LinkKind::Bond
        | LinkKind::Tap
        | LinkKind::Physical
        | LinkKind::Other(_) => Ok(parent),
    }
}

/// Makes a stored link again when it is missing, and puts it back into its bridge and up.
pub(super) fn remake(spec: &VlanLinkSpec, world: World<'_>, plan: &mut Plan) -> Result<()> {
    match world.observed.link(spec.name.as_str()) {
        None => make_in(spec, parent(spec.parent.as_str(), world.observed)?, world, plan),
        Some(link) if link.vlan == Some(tag(spec)) && link.marked() => {
            let parent = parent(spec.parent.as_str(), world.observed)?;
            if link.parent != Some(parent.index) {
                return Err(name_taken(&At::here(&link.name), link));
            }
            mend_master(plan, world, link, spec.bridge.as_ref())?;
            if parent.up {
                mend_up(plan, &At::here(&link.name), link);
            }
            Ok(())
        }
        Some(link) => Err(name_taken(&At::here(&link.name), link)),
    }
}

/// The steps that make a link from nothing.
fn make_in(spec: &VlanLinkSpec, parent: &Link, world: World<'_>, plan: &mut Plan) -> Result<()> {
    if let Some(bridge) = &spec.bridge {
        target_bridge(bridge.as_str(), world)?;
    }
    plan.link(LinkStep::CreateVlan(NewVlan {
        name: spec.name.to_string(),
        parent: spec.parent.to_string(),
        tag: tag(spec),
        mtu: None,
        mac: None,
        index: None,
    }));
    if let Some(bridge) = &spec.bridge {
        plan.link(LinkStep::SetMaster { port: spec.name.to_string(), master: Some(bridge.to_string()) });
    }
    if parent.up {
        plan.link(LinkStep::SetUp { link: At::here(spec.name.as_str()), up: true });
    } else {
        // The kernel refuses to bring it up now, and does so by itself when its parent comes up.
        plan.warnings.push(format!("{} is down; {} comes up with it", parent.name, spec.name));
    }
    Ok(())
}

/// The VLAN links of a parent with that id.
pub fn find<'a>(
    parent_name: &str,
    vlan_id: u16,
    protocol: Option<VlanProtocol>,
    observed: &'a Observed,
) -> Result<&'a Link> {
    let parent = observed.link(parent_name);
    let meant = |tag: VlanTag| tag.id == vlan_id && protocol.is_none_or(|protocol| protocol == tag.protocol);
    let found: Vec<_> = parent
        .into_iter()
        .flat_map(|parent| observed.on_top_of(&Place::Here, parent))
        .filter(|link| link.vlan.is_some_and(meant))
        .collect();
    match found.as_slice() {
        [link] => Ok(link),
        [] => Err(Error::new(Code::VlanNotFound, format!("there is no VLAN {vlan_id} of {parent_name}"))
            .hint("GET /vlan/list lists them")),
        _ => Err(Error::field(
            "protocol",
            format!("VLAN {vlan_id} of {parent_name} is there as 802.1Q and as 802.1ad: say which"),
        )),
    }
}

pub(super) fn delete(
    parent_name: &str,
    vlan_id: u16,
    protocol: Option<VlanProtocol>,
    world: World<'_>,
) -> Result<Plan> {
    let gone = |name: &str| {
        let message = format!("VLAN {vlan_id} of {parent_name}, {name}, was deleted");
        Plan::new(Subject::Gone(vec![name.to_owned()]), message)
    };
    match find(parent_name, vlan_id, protocol, world.observed) {
        Ok(link) => {
            if !managed(world.state, &Place::Here, link) {
                return Err(not_managed("VLAN link", link));
            }
            require_nothing_on_top(&Place::Here, link, world.observed)?;
            let mut plan = gone(&link.name);
            plan.link(LinkStep::DeleteLink(At::here(&link.name)));
            if let Some(spec) = world.state.vlan_links.get(&link.name) {
                plan.forget(Record::VlanLink(spec.clone()));
            }
            Ok(plan)
        }
        // Someone else deleted it already, or its parent with it: forget it.
        Err(error) if error.code == Code::VlanNotFound => {
            let stored = world.state.vlan_links.values().find(|spec| {
                spec.parent == *parent_name
                    && spec.vlan_id == vlan_id
                    && protocol.is_none_or(|protocol| protocol == spec.protocol)
                    && world.observed.link(spec.name.as_str()).is_none()
            });
            let Some(spec) = stored else { return Err(error) };
            let mut plan = gone(spec.name.as_str());
            plan.forget(Record::VlanLink(spec.clone()));
            Ok(plan)
        }
        Err(error) => Err(error),
    }
}

/// Every VLAN link of the worker's namespace.
pub fn list(observed: &Observed, state: &State) -> Vec<VlanLinkView> {
    observed.links.iter().filter_map(|link| view(link, observed, state)).collect()
}

/// A VLAN link as callers see it; `None` when the link is something else.
pub fn view(link: &Link, observed: &Observed, state: &State) -> Option<VlanLinkView> {
    let VlanTag { id, protocol } = link.vlan?;
    let name = |index: Option<u32>| index.and_then(|index| observed.by_index(&Place::Here, index));
    let bridge = name(link.master).filter(|master| master.is_bridge());
    Some(VlanLinkView {
        parent_interface: name(link.parent).map(|parent| parent.name.clone()),
        vlan_id: id,
        interface_name: link.name.clone(),
        protocol,
        status: link.operstate.name().to_owned(),
        mtu: link.mtu,
        mac_address: link.mac.map(|mac| mac.to_string()),
        bridge: bridge.map(|bridge| bridge.name.clone()),
        ip_addresses: address_list(link),
        ifindex: link.index,
        managed: managed(state, &Place::Here, link),
        problems: problems(state, &format!("vlan/{}", link.name)),
    })
}
