//! What the kernel's bridge should hold so that its ports are in their VLANs, and the way there. Pure.
//!
//! Every frame in a filtering bridge is in a VLAN, so ports without one share a VLAN of their own that no port is in by
//! request: the untagged domain. The bridge has no default VLAN meanwhile (`default_pvid` 0, which is also how a bridge that
//! we filter is recognised): what somebody adds to it hears nothing until it is in the untagged domain like the others.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use crate::{
    kernel::switch::SwitchPort,
    model::{VlanProtocol, bridge_vlan::Accept},
};

/// What a bridge of the kernel's has unless it is told otherwise.
const DEFAULT_PVID: u16 = 1;
const VLANS: std::ops::RangeInclusive<u16> = 1..=4094;

/// How a port is in a VLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Member {
    /// Frames that come in without a tag are in it.
    pub(super) pvid: bool,
    /// Its frames leave without a tag.
    pub(super) untagged: bool,
}

pub(super) type Members = BTreeMap<u16, Member>;

/// A bridge as it is or shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) filtering: bool,
    pub(super) protocol: VlanProtocol,
    /// 0: none.
    pub(super) default_pvid: u16,
    /// By index; the bridge's own is the host's side.
    pub(super) ports: BTreeMap<u32, Members>,
}

impl Shape {
    /// Whether we filter it, or are about to, or were.
    pub(super) fn is_ours(&self) -> bool {
        self.default_pvid == 0
    }
}

/// One thing to tell the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    Filtering(bool),
    DefaultPvid(u16),
    Protocol(VlanProtocol),
    Remove {
        port: u32,
        vlans: BTreeSet<u16>,
    },
    /// What is there already is changed.
    Add {
        port: u32,
        members: Members,
    },
}

/// Why the kernel's filter cannot do what is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unfit {
    Tunnel,
    UntaggedOnly,
    Stations,
    Protocols,
    Full,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tunnel => "there are no tunnel ports",
            Self::UntaggedOnly => "no port refuses frames because they bear a tag (accept: untagged)",
            Self::Stations => "there are no fixed stations",
            Self::Protocols => "all ports of a bridge have tags of one protocol",
            Self::Full => "a port without a VLAN needs one that no other port is in, and all 4094 are in use",
        })
    }
}

/// What a bridge should be; `None`: whatever it is, it is no business of ours.
pub(super) fn wanted(
    bridge: u32,
    known: &BTreeMap<u32, SwitchPort>,
    actual: &Shape,
) -> Result<Option<Shape>, Unfit> {
    let own: Vec<&SwitchPort> = known.values().filter(|port| port.bridge == bridge).collect();
    let with_vlans: Vec<&&SwitchPort> = own.iter().filter(|port| !port.vlans().is_empty()).collect();
    let Some(first) = with_vlans.first() else {
        let plain = Members::from([(DEFAULT_PVID, Member { pvid: true, untagged: true })]);
        let shape = Shape {
            filtering: false,
            protocol: VlanProtocol::Dot1q,
            default_pvid: DEFAULT_PVID,
            ports: actual.ports.keys().map(|port| (*port, plain.clone())).collect(),
        };
        return Ok(actual.is_ours().then_some(shape));
    };
    for port in &with_vlans {
        fits(port)?;
        if port.protocol != first.protocol {
            return Err(Unfit::Protocols);
        }
    }
    let used: BTreeSet<u16> = with_vlans.iter().flat_map(|port| port.vlans().into_keys()).collect();
    let domain = VLANS.rev().find(|vlan| !used.contains(vlan)).ok_or(Unfit::Full)?;
    let untagged = Members::from([(domain, Member { pvid: true, untagged: true })]);
    let of = |port: &u32| {
        let known = known.get(port).filter(|port| port.bridge == bridge);
        known.map(members).filter(|members| !members.is_empty()).unwrap_or_else(|| untagged.clone())
    };
    Ok(Some(Shape {
        filtering: true,
        protocol: first.protocol,
        default_pvid: 0,
        ports: actual.ports.keys().map(|port| (*port, of(port))).collect(),
    }))
}

fn fits(port: &SwitchPort) -> Result<(), Unfit> {
    if port.tunnel {
        return Err(Unfit::Tunnel);
    }
    if port.accept == Accept::Untagged {
        return Err(Unfit::UntaggedOnly);
    }
    // The bridge's own address is fixed by the kernel.
    if !port.is_host() && !port.stations.is_empty() {
        return Err(Unfit::Stations);
    }
    Ok(())
}

fn members(port: &SwitchPort) -> Members {
    let pvid = |untagged: bool| untagged && port.accept != Accept::Tagged;
    let member = |untagged: bool| Member { pvid: pvid(untagged), untagged };
    port.vlans().into_iter().map(|(vlan, untagged)| (vlan, member(untagged))).collect()
}

/// The next things to do, in order; none: it is as it shall be. After each round the bridge is looked at again.
///
/// Before the filter is on, the tables are complete; and no port gets a VLAN before those that are not to be in it any more
/// have left it.
pub(super) fn next(actual: &Shape, wanted: &Shape) -> Vec<Change> {
    let mut steps = Vec::new();
    if wanted.filtering {
        if actual.default_pvid != wanted.default_pvid {
            // The kernel changes it only then.
            steps.extend(actual.filtering.then_some(Change::Filtering(false)));
            steps.push(Change::DefaultPvid(wanted.default_pvid));
            return steps;
        }
        if actual.protocol != wanted.protocol {
            steps.push(Change::Protocol(wanted.protocol));
        }
        steps.extend(differences(actual, wanted));
        if steps.is_empty() && !actual.filtering {
            steps.push(Change::Filtering(true));
        }
        return steps;
    }
    if actual.filtering {
        return vec![Change::Filtering(false)];
    }
    if actual.default_pvid == wanted.default_pvid {
        return steps;
    }
    if actual.protocol != wanted.protocol {
        steps.push(Change::Protocol(wanted.protocol));
    }
    let left = actual.ports.iter().filter(|(_, members)| !members.is_empty());
    steps.extend(
        left.map(|(port, members)| Change::Remove { port: *port, vlans: members.keys().copied().collect() }),
    );
    // It puts all ports into it.
    steps.push(Change::DefaultPvid(wanted.default_pvid));
    steps
}

fn differences(actual: &Shape, wanted: &Shape) -> Vec<Change> {
    let none = Members::new();
    let (mut removed, mut added) = (Vec::new(), Vec::new());
    for (port, wanted) in &wanted.ports {
        let actual = actual.ports.get(port).unwrap_or(&none);
        let vlans: BTreeSet<u16> = actual.keys().filter(|vlan| !wanted.contains_key(vlan)).copied().collect();
        if !vlans.is_empty() {
            removed.push(Change::Remove { port: *port, vlans });
        }
        let members: Members = wanted
            .iter()
            .filter(|(vlan, member)| actual.get(vlan) != Some(member))
            .map(|(vlan, member)| (*vlan, *member))
            .collect();
        if !members.is_empty() {
            added.push(Change::Add { port: *port, members });
        }
    }
    removed.append(&mut added);
    removed
}

/// A port as the kernel has it; `None`: it is not in its bridge.
pub(super) fn found(port: &SwitchPort, actual: &Shape) -> Option<SwitchPort> {
    let members = actual.ports.get(&port.index)?;
    let (mut native, mut tagged) = (None, BTreeSet::new());
    // One that is to be in none is in the untagged domain.
    if actual.filtering && !port.vlans().is_empty() {
        for (vlan, member) in members {
            match member.untagged {
                true => native = Some(*vlan),
                false => drop(tagged.insert(*vlan)),
            }
        }
    }
    Some(SwitchPort { native, tagged, ..port.clone() })
}

/// The VLANs of each bridge.
pub(super) fn vlans(known: &BTreeMap<u32, SwitchPort>) -> BTreeMap<u32, BTreeSet<u16>> {
    let mut vlans: BTreeMap<u32, BTreeSet<u16>> = BTreeMap::new();
    for port in known.values() {
        vlans.entry(port.bridge).or_default().extend(port.vlans().into_keys());
    }
    vlans
}

#[cfg(test)]
mod tests {
    use super::*;

    const BRIDGE: u32 = 1;

    fn port(index: u32, native: Option<u16>, tagged: &[u16]) -> SwitchPort {
        SwitchPort {
            index,
            bridge: BRIDGE,
            accept: Accept::All,
            protocol: VlanProtocol::Dot1q,
            tunnel: false,
            nested: false,
            native,
            tagged: tagged.iter().copied().collect(),
            forwarding: true,
            learning: true,
            isolated: false,
            hairpin: false,
            stp: false,
            mtu: 1500,
            station_limit: 0,
            ageing: 300_000,
            stations: BTreeSet::new(),
        }
    }

    fn known(ports: &[SwitchPort]) -> BTreeMap<u32, SwitchPort> {
        ports.iter().map(|port| (port.index, port.clone())).collect()
    }

    const PLAIN: Member = Member { pvid: true, untagged: true };
    const TAGGED: Member = Member { pvid: false, untagged: false };

    /// As the kernel makes a bridge with these ports.
    fn fresh(ports: &[u32]) -> Shape {
        let ports = ports.iter().chain(&[BRIDGE]);
        Shape {
            filtering: false,
            protocol: VlanProtocol::Dot1q,
            default_pvid: 1,
            ports: ports.map(|port| (*port, Members::from([(1, PLAIN)]))).collect(),
        }
    }

    /// What the kernel makes of a change.
    fn tell(shape: &mut Shape, change: &Change) {
        match change {
            Change::Filtering(on) => shape.filtering = *on,
            Change::Protocol(protocol) => shape.protocol = *protocol,
            Change::DefaultPvid(vlan) => {
                assert!(!shape.filtering, "the kernel refuses that while it filters");
                let before = std::mem::replace(&mut shape.default_pvid, *vlan);
                for members in shape.ports.values_mut() {
                    members.retain(|vlan, _| *vlan != before);
                    if *vlan != 0 {
                        members.insert(*vlan, PLAIN);
                    }
                }
            }
            Change::Remove { port, vlans } => {
                let members = shape.ports.get_mut(port).unwrap();
                assert!(vlans.iter().all(|vlan| members.remove(vlan).is_some()), "it was not in it");
            }
            Change::Add { port, members } => shape.ports.get_mut(port).unwrap().extend(members),
        }
    }

    /// Brings a bridge in line as it is done for real; every state on the way.
    fn settle(shape: &mut Shape, known: &BTreeMap<u32, SwitchPort>) -> Vec<Shape> {
        let mut states = Vec::new();
        for _ in 0..6 {
            let Some(wanted) = wanted(BRIDGE, known, shape).unwrap() else { return states };
            let steps = next(shape, &wanted);
            if steps.is_empty() {
                return states;
            }
            for step in steps {
                tell(shape, &step);
                states.push(shape.clone());
            }
        }
        panic!("it is not in line: {shape:?}");
    }

    #[test]
    fn ports_are_in_their_vlans_and_the_others_in_one_of_their_own() {
        let mut shape = fresh(&[2, 3, 4]);
        let ports = known(&[port(BRIDGE, None, &[]), port(2, Some(10), &[]), port(3, Some(20), &[10, 30])]);
        let states = settle(&mut shape, &ports);
        assert!(shape.filtering && shape.default_pvid == 0);
        assert_eq!(shape.ports[&2], Members::from([(10, PLAIN)]));
        assert_eq!(shape.ports[&3], Members::from([(10, TAGGED), (20, PLAIN), (30, TAGGED)]));
        for index in [BRIDGE, 4] {
            assert_eq!(shape.ports[&index], Members::from([(4094, PLAIN)]), "{index}");
        }
        assert!(states.iter().all(|state| !state.filtering || state.ports == shape.ports), "no half tables");
        assert_eq!(settle(&mut shape, &ports), [], "the second time there is nothing to do");
    }

    #[test]
    fn the_untagged_domain_makes_room_for_a_port_that_is_to_be_in_its_vlan() {
        let mut shape = fresh(&[2, 3]);
        settle(&mut shape, &known(&[port(2, Some(10), &[])]));
        assert_eq!(shape.ports[&3], Members::from([(4094, PLAIN)]));
        let states = settle(&mut shape, &known(&[port(2, Some(4094), &[])]));
        assert_eq!(shape.ports[&3], Members::from([(4093, PLAIN)]));
        for state in states {
            let both = state.ports[&2].keys().any(|vlan| state.ports[&3].contains_key(vlan));
            assert!(!both, "they were together for a while: {state:?}");
        }
    }

    #[test]
    fn the_last_vlan_leaves_the_bridge_as_the_kernel_makes_one() {
        let mut shape = fresh(&[2, 3]);
        settle(&mut shape, &known(&[port(2, Some(10), &[20]), port(3, None, &[20])]));
        settle(&mut shape, &known(&[port(2, None, &[])]));
        assert_eq!(shape, fresh(&[2, 3]));
        shape.filtering = true;
        assert_eq!(wanted(BRIDGE, &known(&[]), &shape), Ok(None), "somebody else's filter");
    }

    #[test]
    fn what_somebody_changes_is_put_right() {
        let ports = known(&[port(2, Some(10), &[20])]);
        let mut right = fresh(&[2, 3]);
        settle(&mut right, &ports);
        let changes: [fn(&mut Shape); 5] = [
            |shape| shape.filtering = false,
            |shape| shape.ports.get_mut(&2).unwrap().retain(|vlan, _| *vlan != 20),
            |shape| shape.ports.get_mut(&3).unwrap().extend([(10, PLAIN)]),
            |shape| shape.ports.get_mut(&2).unwrap().extend([(10, TAGGED)]),
            |shape| shape.default_pvid = 7,
        ];
        for change in changes {
            let mut shape = right.clone();
            change(&mut shape);
            settle(&mut shape, &ports);
            assert_eq!(shape, right);
        }
    }

    #[test]
    fn what_the_kernels_filter_cannot_do_is_refused() {
        let refused = |port: SwitchPort| wanted(BRIDGE, &known(&[port]), &fresh(&[2])).unwrap_err();
        let plain = port(2, Some(10), &[]);
        assert_eq!(refused(SwitchPort { tunnel: true, ..plain.clone() }), Unfit::Tunnel);
        assert_eq!(refused(SwitchPort { accept: Accept::Untagged, ..plain.clone() }), Unfit::UntaggedOnly);
        let stations = BTreeSet::from([(10, crate::kernel::links::Mac([2, 0, 0, 0, 0, 1]))]);
        assert_eq!(refused(SwitchPort { stations: stations.clone(), ..plain.clone() }), Unfit::Stations);
        let all: Vec<u16> = VLANS.collect();
        assert_eq!(refused(port(2, None, &all)), Unfit::Full);
        let other = SwitchPort { index: 3, protocol: VlanProtocol::Dot1ad, ..plain.clone() };
        assert_eq!(wanted(BRIDGE, &known(&[plain, other]), &fresh(&[2, 3])), Err(Unfit::Protocols));
        let host = SwitchPort { stations, ..port(BRIDGE, Some(10), &[]) };
        assert!(
            wanted(BRIDGE, &known(&[host]), &fresh(&[2])).is_ok(),
            "its own address is the kernel's to fix"
        );
    }

    #[test]
    fn a_port_that_takes_tagged_frames_only_has_a_vlan_for_what_leaves_untagged() {
        let mut shape = fresh(&[2]);
        let trunk = SwitchPort { accept: Accept::Tagged, ..port(2, Some(10), &[20]) };
        settle(&mut shape, &known(std::slice::from_ref(&trunk)));
        assert_eq!(shape.ports[&2][&10], Member { pvid: false, untagged: true });
        assert_eq!(found(&trunk, &shape), Some(trunk));
        assert_eq!(found(&port(9, Some(10), &[]), &shape), None, "it is in no bridge");
        shape.filtering = false;
        assert_eq!(found(&port(2, Some(10), &[]), &shape), Some(port(2, None, &[])), "nobody keeps it apart");
    }
}
