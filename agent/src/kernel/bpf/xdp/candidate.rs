//! Interfaces where a program may be in the driver, which one, and which of them have company. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::kernel::{
    dataplane::FastPort,
    xdp::{Door, Medium},
};

/// What a program in a driver is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    /// Packets that come from the outside.
    Outside,
    /// Packets that come from inside hosts.
    Inside,
    /// Frames between the ports of a bridge with VLANs.
    Port,
}

impl Side {
    pub(super) const ALL: [Self; 3] = [Self::Outside, Self::Inside, Self::Port];

    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::Outside => "xdp_wan_in",
            Self::Inside => "xdp_lan_in",
            Self::Port => "xdp_port_in",
        }
    }

    /// Of the pinned link: `xdpwan-5`.
    const fn label(self) -> &'static str {
        match self {
            Self::Outside => "xdpwan",
            Self::Inside => "xdplan",
            Self::Port => "xdpport",
        }
    }

    /// Name of the pinned link at an interface.
    pub(super) fn pin(self, index: u32) -> String {
        format!("{}-{index}", self.label())
    }

    /// What [`Self::pin`] was made of.
    pub(super) fn read_pin(name: &str) -> Option<(u32, Self)> {
        let (label, index) = name.split_once('-')?;
        let side = Self::ALL.into_iter().find(|side| side.label() == label)?;
        Some((index.parse().ok()?, side))
    }
}

/// An interface where a program may be in the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) index: u32,
    pub(super) side: Side,
    pub(super) medium: Medium,
    /// Of a bridge's port: the bridge, and whether tags mean something there.
    pub(super) bridge: u32,
    pub(super) tags: bool,
}

impl Candidate {
    pub(super) fn fast(port: &FastPort) -> Self {
        let side = if port.inside { Side::Inside } else { Side::Outside };
        Self { index: port.index, side, medium: port.medium, bridge: 0, tags: false }
    }

    pub(super) fn doors(doors: &BTreeMap<u32, Door>) -> Vec<Self> {
        let candidate = |(index, door): (&u32, &Door)| {
            let Door { bridge, medium, tags } = *door;
            Self { index: *index, side: Side::Port, medium, bridge, tags }
        };
        doors.iter().map(candidate).collect()
    }
}

/// Those of some candidates that lead to none of them.
pub(super) fn alone(candidates: &[Candidate], some: impl Fn(u32) -> bool) -> BTreeSet<u32> {
    let some: Vec<&Candidate> = candidates.iter().filter(|candidate| some(candidate.index)).collect();
    // How many ports each bridge has: there may be a thousand.
    let mut ports: BTreeMap<u32, usize> = BTreeMap::new();
    for port in some.iter().filter(|candidate| candidate.side == Side::Port) {
        *ports.entry(port.bridge).or_default() += 1;
    }
    let has = |side: Side| some.iter().any(|candidate| candidate.side == side);
    let (outside, inside) = (has(Side::Outside), has(Side::Inside));
    let lonely = |candidate: &&&Candidate| match candidate.side {
        Side::Outside => !inside,
        Side::Inside => !outside,
        Side::Port => ports.get(&candidate.bridge).is_none_or(|count| *count < 2),
    };
    some.iter().filter(lonely).map(|candidate| candidate.index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pin_tells_its_side_and_interface() {
        for side in Side::ALL {
            assert_eq!(Side::read_pin(&side.pin(12)), Some((12, side)));
        }
        assert_eq!(Side::read_pin("in-5"), None);
        assert_eq!(Side::read_pin("xdpwan-x"), None);
    }

    #[test]
    fn company_is_the_other_side_or_another_port_of_the_same_bridge() {
        let candidate =
            |index, side, bridge| Candidate { index, side, medium: Medium::Card, bridge, tags: false };
        let all = [
            candidate(1, Side::Outside, 0),
            candidate(2, Side::Inside, 0),
            candidate(3, Side::Port, 9),
            candidate(4, Side::Port, 9),
            candidate(5, Side::Port, 8),
        ];
        let alone = |some: &[u32]| Vec::from_iter(alone(&all, |index| some.contains(&index)));
        assert_eq!(alone(&[1, 2, 3, 4, 5]), [5]);
        assert_eq!(alone(&[1, 3, 5]), [1, 3, 5]);
        assert_eq!(alone(&[2, 4, 3]), [2]);
    }
}
