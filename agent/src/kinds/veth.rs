//! Veth pairs: into bridges, and into named network namespaces.

use std::collections::HashSet;

use crate::{
    error::{Code, Error, Result},
    kernel::{
        links::{At, Link, LinkKind, Observed, Place},
        step::{LinkStep, NewEnd},
    },
    loops,
    model::{LinkName, NamespaceName, VethSpec, VethView},
    plan::{Plan, Subject, World},
    state::{Record, State, veth_ends},
};

use super::{
    attach, bridge, managed, mend_master, mend_up, name_taken, not_managed, problems, record_master,
    require_free_name, require_nothing_on_top, ring_warning, target_bridge, uplink,
};

/// One end of a pair, and the other when it can be seen.
#[derive(Debug, Clone)]
pub struct Pair<'a> {
    pub place: Place,
    pub link: &'a Link,
    pub peer: Option<(&'a Place, &'a Link)>,
}

impl Pair<'_> {
    fn at(&self) -> At {
        At::new(self.place.clone(), &self.link.name)
    }
}

pub(super) fn create(spec: &VethSpec, world: World<'_>) -> Result<Plan> {
    check(spec)?;
    let ends = veth_ends(spec);
    let subject = Subject::Veth(ends[0].clone());
    if let Some(plan) = exists(spec, &ends, world)? {
        return Ok(plan);
    }
    for place in ends.iter().map(|end| &end.place) {
        require_place(place, world.observed)?;
    }
    for end in ends.iter().filter(|end| end.place == Place::Here) {
        require_free_name(&end.name, "veth", world.state)?;
    }
    let mut plan = Plan::new(subject, format!("veth pair {} and {} was created", spec.name1, spec.name2));
    make_in(spec, world, &mut plan)?;
    plan.put(Record::Veth(spec.clone()));
    Ok(plan)
}

/// Makes a stored pair again when it is missing, and puts its ends back into their bridges and up.
pub(super) fn remake(spec: &VethSpec, world: World<'_>, plan: &mut Plan) -> Result<()> {
    let ends = veth_ends(spec);
    let found = [world.observed.find(&ends[0]), world.observed.find(&ends[1])];
    for (at, link) in ends.iter().zip(found) {
        match link {
            Some(link) if link.kind == LinkKind::Veth && link.marked() => {}
            Some(link) => return Err(name_taken(at, link)),
            None => require_place(&at.place, world.observed)?,
        }
    }
    match found {
        [None, None] => make_in(spec, world, plan),
        [Some(one), Some(two)] => {
            for (at, link, bridge) in [(&ends[0], one, &spec.bridge1), (&ends[1], two, &spec.bridge2)] {
                if at.place == Place::Here {
                    mend_master(plan, world, link, bridge.as_ref())?;
                }
                mend_up(plan, at, link);
                // One end at a time: whether the other closes a ring is seen when this one is in its bridge.
                if !plan.is_empty() {
                    break;
                }
            }
            Ok(())
        }
        [Some(there), None] => Err(strayed(&ends[1], there, world.observed)),
        [None, Some(there)] => Err(strayed(&ends[0], there, world.observed)),
    }
}

/// Somebody has moved or renamed an end. It is not taken away from them.
fn strayed(at: &At, other: &Link, observed: &Observed) -> Error {
    let now = match observed.peer_of(other) {
        Some((place, link)) => format!("it is now {}", At::new(place.clone(), &link.name)),
        None => "it is in a namespace that has no name".to_owned(),
    };
    Error::new(
        Code::LinkNotFound,
        format!("{at}, the other end of {}, is not where it was put: {now}", other.name),
    )
    .hint("bring it back, or delete the pair")
}

/// The steps that make a pair in the world as it is, with a warning when it closes a ring.
fn make_in(spec: &VethSpec, world: World<'_>, plan: &mut Plan) -> Result<()> {
    let bridge =
        |name: &Option<LinkName>| name.as_ref().map(|name| target_bridge(name.as_str(), world)).transpose();
    let (bridge1, bridge2) = (bridge(&spec.bridge1)?, bridge(&spec.bridge2)?);
    let ring = bridge1.zip(bridge2).is_some_and(|(a, b)| {
        let node = |bridge: &Link| (Place::Here, bridge.index);
        a.is_plain_bridge()
            && b.is_plain_bridge()
            && loops::connected(world.observed, &node(a), &node(b), None)
    });
    for step in make(spec, ring) {
        plan.link(step);
    }
    if let Some(bridge) = bridge2.filter(|_| ring) {
        plan.warnings.push(ring_warning(spec.name2.as_str(), &bridge.name));
    }
    Ok(())
}

/// The steps that make a pair from nothing. On a ring the second end gets its guard before it is up.
fn make(spec: &VethSpec, ring: bool) -> Vec<LinkStep> {
    let [one, two] = veth_ends(spec);
    let mut steps = vec![LinkStep::CreateVeth([NewEnd::new(one.clone()), NewEnd::new(two.clone())])];
    let up = |link: &At| LinkStep::SetUp { link: link.clone(), up: true };
    let master = |end: &At, bridge: &Option<LinkName>| {
        bridge
            .as_ref()
            .map(|bridge| LinkStep::SetMaster { port: end.name.clone(), master: Some(bridge.to_string()) })
    };
    let hold = spec.bridge2.as_ref().filter(|_| ring).map(|bridge| LinkStep::Hold {
        port: two.name.clone(),
        bridge: bridge.to_string(),
        hold: true,
    });
    steps.extend(master(&one, &spec.bridge1));
    steps.push(up(&one));
    steps.extend(master(&two, &spec.bridge2));
    steps.extend(hold.clone());
    steps.push(up(&two));
    steps.extend(hold);
    steps
}

fn check(spec: &VethSpec) -> Result<()> {
    if spec.bridge1.is_some() && spec.namespace1.is_some() {
        return Err(Error::field("namespace1", "an end goes to a bridge or to a namespace, not to both"));
    }
    if spec.bridge2.is_some() && spec.namespace2.is_some() {
        return Err(Error::field("namespace2", "an end goes to a bridge or to a namespace, not to both"));
    }
    if spec.name1 == spec.name2 && spec.namespace1 == spec.namespace2 {
        return Err(Error::field("name2", format!("both ends cannot be called {}", spec.name1)));
    }
    for (field, name, bridge) in
        [("bridge1", &spec.name1, &spec.bridge1), ("bridge2", &spec.name2, &spec.bridge2)]
    {
        if bridge.as_ref() == Some(name) {
            return Err(Error::field(field, format!("{name} cannot be its own bridge")));
        }
    }
    Ok(())
}

/// What there is under the names that were asked for: nothing, the very pair, or something in the way.
fn exists(spec: &VethSpec, ends: &[At; 2], world: World<'_>) -> Result<Option<Plan>> {
    let stored = ends.iter().find_map(|end| world.state.veth_at(end));
    let Some((at, link)) = ends.iter().find_map(|end| Some((end, world.observed.find(end)?))) else {
        return Ok(None);
    };
    let Some(stored) = stored.filter(|_| link.kind == LinkKind::Veth && link.marked()) else {
        return Err(name_taken(at, link));
    };
    match difference(stored, spec) {
        Some(difference) if self::difference(stored, &turned(spec)).is_some() => Err(Error::new(
            Code::LinkExists,
            format!("veth pair {} and {} exists with another spec: {difference}", stored.name1, stored.name2),
        )
        .hint("delete it first, or ask for what it is")),
        _ => Ok(Some(Plan::new(
            Subject::Veth(ends[0].clone()),
            format!("veth pair {} and {} is there already", spec.name1, spec.name2),
        ))),
    }
}

/// The same pair, told from its other end.
fn turned(spec: &VethSpec) -> VethSpec {
    let VethSpec { name1, name2, bridge1, bridge2, namespace1, namespace2 } = spec.clone();
    VethSpec {
        name1: name2,
        name2: name1,
        bridge1: bridge2,
        bridge2: bridge1,
        namespace1: namespace2,
        namespace2: namespace1,
    }
}

fn difference(is: &VethSpec, asked: &VethSpec) -> Option<String> {
    fn text<T: ToString>(value: &Option<T>) -> String {
        value.as_ref().map_or("none".to_owned(), T::to_string)
    }
    let VethSpec { name1, name2, bridge1, bridge2, namespace1, namespace2 } = is;
    let pairs = [
        ("name1", name1.to_string(), asked.name1.to_string()),
        ("name2", name2.to_string(), asked.name2.to_string()),
        ("bridge1", text(bridge1), text(&asked.bridge1)),
        ("bridge2", text(bridge2), text(&asked.bridge2)),
        ("namespace1", text(namespace1), text(&asked.namespace1)),
        ("namespace2", text(namespace2), text(&asked.namespace2)),
    ];
    let parts: Vec<_> = pairs
        .into_iter()
        .filter(|(_, is, asked)| is != asked)
        .map(|(field, is, asked)| format!("{field} is {is}, not {asked}"))
        .collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

fn require_place(place: &Place, observed: &Observed) -> Result<()> {
    match place {
        Place::Named(name) if observed.own_names.contains(name) => {
            Err(Error::new(Code::WrongKind, format!("{name} is the worker's own network namespace"))
                .hint("leave it out: what has no namespace is there"))
        }
        Place::Named(name) if !observed.has_place(place) => {
            Err(Error::new(Code::NamespaceNotFound, format!("there is no network namespace {name}"))
                .hint(format!("make it first: ip netns add {name}")))
        }
        Place::Here | Place::Named(_) => Ok(()),
    }
}

/// The pair that has an end of this name: the worker's own namespace first, then the pairs that it made.
pub fn find<'a>(name: &str, observed: &'a Observed, state: &State) -> Result<Pair<'a>> {
    let pair = |place: Place, link: &'a Link| Pair { place, link, peer: observed.peer_of(link) };
    if let Some(link) = observed.link(name) {
        return match link.kind {
            LinkKind::Veth => Ok(pair(Place::Here, link)),
            LinkKind::Bridge { .. }
            | LinkKind::OvsBridge { .. }
            | LinkKind::Vlan
            | LinkKind::Bond
            | LinkKind::Tun
            | LinkKind::Tap
            | LinkKind::Loopback
            | LinkKind::Physical
            | LinkKind::Other(_) => Err(Error::new(
                Code::WrongKind,
                format!("{name} is no veth but a {} link", link.kind.label()),
            )),
        };
    }
    let mut found: Vec<_> = observed
        .everywhere()
        .filter(|(place, link)| {
            link.name == name
                && link.kind == LinkKind::Veth
                && (managed(state, place, link)
                    || observed.peer_of(link).is_some_and(|(at, _)| *at == Place::Here))
        })
        .collect();
    match (found.pop(), found.is_empty()) {
        (None, _) => Err(Error::new(Code::VethNotFound, format!("there is no veth {name}"))),
        (Some((place, link)), true) => Ok(pair(place, link)),
        (Some(_), false) => Err(Error::field(
            "name",
            format!("{name} is a veth in more than one namespace; name the other end"),
        )),
    }
}

/// The stored pair whose end is at `at` or whose ends bear that name.
fn stored_as<'a>(name: &str, state: &'a State) -> Option<&'a VethSpec> {
    state.veths.values().find(|spec| spec.name1 == *name || spec.name2 == *name)
}

pub(super) fn delete(name: &str, world: World<'_>) -> Result<Plan> {
    let gone = |spec: &VethSpec| {
        let names = vec![spec.name1.to_string(), spec.name2.to_string()];
        let message = format!("veth pair {} and {} was deleted", spec.name1, spec.name2);
        let mut plan = Plan::new(Subject::Gone(names), message);
        plan.forget(Record::Veth(spec.clone()));
        plan
    };
    match find(name, world.observed, world.state) {
        Ok(pair) => {
            let spec = world.state.veth_at(&pair.at()).filter(|_| pair.link.marked());
            let Some(spec) = spec else { return Err(not_managed("veth", pair.link)) };
            require_nothing_on_top(&pair.place, pair.link, world.observed)?;
            if let Some((place, peer)) = pair.peer {
                require_nothing_on_top(place, peer, world.observed)?;
            }
            let mut plan = gone(spec);
            plan.link(LinkStep::DeleteLink(pair.at()));
            Ok(plan)
        }
        // Someone else deleted it already: forget it.
        Err(error) if error.code == Code::VethNotFound => match stored_as(name, world.state) {
            Some(spec) => Ok(gone(spec)),
            None => Err(error),
        },
        Err(error) => Err(error),
    }
}

pub(super) fn move_to_bridge(name: &str, bridge_name: &str, world: World<'_>) -> Result<Plan> {
    let pair = find(name, world.observed, world.state)?;
    let bridge = target_bridge(bridge_name, world)?;
    let subject = Subject::Veth(At::here(name));
    let mut plan = Plan::new(subject.clone(), format!("{name} is a port of bridge {bridge_name}"));
    match &pair.place {
        Place::Here if pair.link.master == Some(bridge.index) => {}
        // With what it carries: it may be the host's own uplink, as in a container.
        Place::Here if pair.link.master.is_none() => {
            return Ok(Plan { subject, ..bridge::add_port(bridge_name, name, world)? });
        }
        Place::Here => {
            uplink::require_empty_handed(world, pair.link)?;
            attach(&mut plan, world, pair.link, bridge);
        }
        Place::Named(_) => {
            let spec = own(&pair, world)?;
            bring_here(&mut plan, world, &pair, bridge)?;
            let mut spec = at_place(spec, &pair, None, &mut plan);
            set_bridge(&mut spec, name, bridge_name)?;
            plan.put(Record::Veth(spec));
            return Ok(plan);
        }
    }
    record_master(&mut plan, world, name, Some(bridge_name))?;
    Ok(plan)
}

fn set_bridge(spec: &mut VethSpec, name: &str, bridge: &str) -> Result<()> {
    let bridge = LinkName::new(bridge).map_err(|error| Error::field("target_bridge", error.to_string()))?;
    if spec.name1 == *name && spec.namespace1.is_none() {
        spec.bridge1 = Some(bridge);
    } else {
        spec.bridge2 = Some(bridge);
    }
    Ok(())
}

/// Moves an end out of a namespace into a bridge of the worker's own.
fn bring_here(plan: &mut Plan, world: World<'_>, pair: &Pair<'_>, bridge: &Link) -> Result<()> {
    let name = &pair.link.name;
    let ring = pair.peer.is_some_and(|(place, peer)| {
        let far = peer.master.and_then(|master| world.observed.by_index(place, master));
        bridge.is_plain_bridge()
            && far.is_some_and(|far| {
                far.is_plain_bridge()
                    && loops::connected(
                        world.observed,
                        &(Place::Here, bridge.index),
                        &(place.clone(), far.index),
                        None,
                    )
            })
    });
    plan.link(LinkStep::Move { name: name.clone(), from: pair.place.clone(), to: Place::Here });
    plan.link(LinkStep::SetMaster { port: name.clone(), master: Some(bridge.name.clone()) });
    let hold = LinkStep::Hold { port: name.clone(), bridge: bridge.name.clone(), hold: true };
    if ring {
        plan.link(hold.clone());
    }
    plan.link(LinkStep::SetUp { link: At::here(name), up: true });
    if ring {
        plan.link(hold);
        plan.warnings.push(ring_warning(name, &bridge.name));
    }
    Ok(())
}

/// The stored pair that an end belongs to; moving an end is for pairs that the worker made.
fn own<'a>(pair: &Pair<'_>, world: World<'a>) -> Result<&'a VethSpec> {
    world
        .state
        .veth_at(&pair.at())
        .filter(|_| pair.link.marked())
        .ok_or_else(|| not_managed("veth", pair.link))
}

/// The spec with one end at another place. The key may change with it, so the old one is forgotten.
fn at_place(
    spec: &VethSpec,
    pair: &Pair<'_>,
    namespace: Option<&NamespaceName>,
    plan: &mut Plan,
) -> VethSpec {
    let mut changed = spec.clone();
    if veth_ends(spec)[0] == pair.at() {
        (changed.bridge1, changed.namespace1) = (None, namespace.cloned());
    } else {
        (changed.bridge2, changed.namespace2) = (None, namespace.cloned());
    }
    plan.forget(Record::Veth(spec.clone()));
    changed
}

pub(super) fn move_to_namespace(name: &str, namespace: &NamespaceName, world: World<'_>) -> Result<Plan> {
    let pair = find(name, world.observed, world.state)?;
    let to = Place::Named(namespace.to_string());
    require_place(&to, world.observed)?;
    let spec = own(&pair, world)?;
    let target = At::new(to.clone(), name);
    let mut plan = Plan::new(Subject::Veth(target.clone()), format!("{name} is in namespace {namespace}"));
    if pair.place == to {
        return Ok(plan);
    }
    if let Some(link) = world.observed.find(&target) {
        return Err(name_taken(&target, link));
    }
    if pair.link.master.is_some() && pair.place == Place::Here {
        plan.link(LinkStep::SetMaster { port: name.to_owned(), master: None });
    }
    plan.link(LinkStep::Move { name: name.to_owned(), from: pair.place.clone(), to });
    plan.link(LinkStep::SetUp { link: target, up: true });
    let spec = at_place(spec, &pair, Some(namespace), &mut plan);
    plan.put(Record::Veth(spec));
    Ok(plan)
}

/// Every pair that has an end in the worker's namespace, or that it made.
pub fn list(observed: &Observed, state: &State) -> Vec<VethView> {
    let mut views = Vec::new();
    let mut seen: HashSet<(Place, u32)> = HashSet::new();
    for (place, link) in observed.everywhere() {
        if link.kind != LinkKind::Veth || seen.contains(&(place.clone(), link.index)) {
            continue;
        }
        let peer = observed.peer_of(link);
        if let Some((place, peer)) = peer {
            seen.insert((place.clone(), peer.index));
        }
        if place == Place::Here || managed(state, &place, link) {
            views.push(view(&Pair { place, link, peer }, observed, state));
        }
    }
    views
}

/// A pair as callers see it: in the order of its spec when the worker made it.
pub fn view(pair: &Pair<'_>, observed: &Observed, state: &State) -> VethView {
    let spec = state.veth_at(&pair.at());
    let near = (&pair.place, pair.link);
    let swap = pair.peer.is_some() && spec.is_some_and(|spec| veth_ends(spec)[0] != pair.at());
    let (one, two) = match pair.peer {
        Some(peer) if swap => (peer, Some(near)),
        peer => (near, peer),
    };
    let bridge = |(place, link): (&Place, &Link)| observed.master_name(place, link).map(str::to_owned);
    let status = |link: &Link| link.operstate.name().to_owned();
    let name2 = two.map(|(_, link)| link.name.clone());
    VethView {
        name1: one.1.name.clone(),
        peer1: name2.clone(),
        peer2: name2.is_some().then(|| one.1.name.clone()),
        name2,
        bridge1: bridge(one),
        bridge2: two.and_then(bridge),
        namespace1: one.0.name().map(str::to_owned),
        namespace2: two.and_then(|(place, _)| place.name()).map(str::to_owned),
        status1: status(one.1),
        status2: two.map(|(_, link)| status(link)),
        managed: managed(state, &pair.place, pair.link),
        problems: spec.map(|spec| problems(state, &Record::Veth(spec.clone()).key())).unwrap_or_default(),
    }
}
