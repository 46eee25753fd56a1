//! Which programs hang at an interface: on uplinks and their waiting rooms, on the ports of the fast path, on the ports of
//! bridges with VLANs, on those bridges themselves.
//!
//! Where more than one of ours hangs at a hook (a bridge with VLANs that is an uplink too, or a port of the fast path), and where
//! somebody else's does, the order matters: a frame meets the VLAN filter nearest to the bridge's inside.

use aya::programs::{ProgramError, SchedClassifier, TcAttachType, links::LinkOrder};

/// What an interface is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    /// Where addresses are translated.
    Uplink,
    /// Where the fast path begins and ends on the inside; of a bridge with VLANs behind what takes a VLAN's tag off.
    Lan,
    /// Where packets of inside hosts to an uplink's address turn back.
    Turn,
    /// Loopback, where the host's own packets to an uplink's address go out.
    Loopback,
    /// A port of a bridge with VLANs.
    Port,
    /// Such a bridge itself: what the host sends goes into the bridge, what the bridge hands up leaves it.
    Host,
    /// Where fragments come out of an uplink's waiting room.
    Room,
}

/// A program at one of an interface's two hooks.
#[derive(Debug)]
pub(super) struct Hook {
    pub(super) program: &'static str,
    pub(super) at: TcAttachType,
    /// Of the pinned link: `in-5`.
    pub(super) label: &'static str,
    pub(super) place: Place,
}

/// Among the programs of a hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Before what is first.
    Foremost,
    First,
    /// Between those.
    Anywhere,
    Last,
}

impl Place {
    /// Of a TCX link, given what hangs there already and keeps its place: the foremost and the last of ours.
    pub(super) fn order(
        self,
        foremost: Option<&SchedClassifier>,
        last: Option<&SchedClassifier>,
    ) -> Result<LinkOrder, ProgramError> {
        Ok(match (self, foremost, last) {
            (Self::First, Some(foremost), _) => LinkOrder::after_program(foremost)?,
            (Self::Foremost | Self::First, ..) => LinkOrder::first(),
            (Self::Anywhere, _, Some(last)) => LinkOrder::before_program(last)?,
            (Self::Anywhere, ..) => LinkOrder::default(),
            (Self::Last, ..) => LinkOrder::last(),
        })
    }

    /// Of a clsact filter: away from priorities that tools pick by themselves (49152 and down).
    pub(super) const fn priority(self) -> u16 {
        match self {
            Self::Foremost => 0x7bf,
            Self::First => 0x7c0,
            Self::Anywhere => 0x7c1,
            Self::Last => 0x7c2,
        }
    }
}

/// Whether a filter of this priority may be one of ours.
pub(super) fn is_priority(priority: u16) -> bool {
    [Place::Foremost, Place::First, Place::Anywhere, Place::Last].map(Place::priority).contains(&priority)
}

const fn hook(program: &'static str, at: TcAttachType, label: &'static str, place: Place) -> Hook {
    Hook { program, at, label, place }
}

const UPLINK: &[Hook] = &[
    hook("tc_wan_in", TcAttachType::Ingress, "in", Place::Anywhere),
    hook("tc_wan_out", TcAttachType::Egress, "out", Place::Anywhere),
];
const LAN: &[Hook] = &[
    hook("tc_lan_in", TcAttachType::Ingress, "lanin", Place::First),
    hook("tc_lan_out", TcAttachType::Egress, "lanout", Place::Anywhere),
];
/// Behind the fast path and what takes a VLAN's tag off, and on the way out before what puts one on.
const TURN: &[Hook] = &[
    hook("tc_turn_in", TcAttachType::Ingress, "turnin", Place::Last),
    hook("tc_turn_out", TcAttachType::Egress, "turnout", Place::First),
];
const LOOPBACK: &[Hook] = &[hook("tc_lo_out", TcAttachType::Egress, "loout", Place::Last)];
const PORT: &[Hook] = &[
    hook("tc_port_in", TcAttachType::Ingress, "portin", Place::Last),
    hook("tc_port_out", TcAttachType::Egress, "portout", Place::First),
];
const HOST: &[Hook] = &[
    hook("tc_port_in", TcAttachType::Egress, "hostin", Place::Last),
    hook("tc_port_out", TcAttachType::Ingress, "hostout", Place::Foremost),
];

const ROOM: &[Hook] = &[hook("tc_waited", TcAttachType::Ingress, "waited", Place::Anywhere)];

impl Role {
    pub(super) const ALL: [Self; 7] =
        [Self::Uplink, Self::Lan, Self::Turn, Self::Loopback, Self::Port, Self::Host, Self::Room];

    pub(super) const fn hooks(self) -> &'static [Hook] {
        match self {
            Self::Uplink => UPLINK,
            Self::Lan => LAN,
            Self::Turn => TURN,
            Self::Loopback => LOOPBACK,
            Self::Port => PORT,
            Self::Host => HOST,
            Self::Room => ROOM,
        }
    }

    /// Of the directory that says that an interface has filters of this role: they cannot be pinned.
    pub(super) const fn marker(self) -> &'static str {
        match self {
            Self::Uplink => "clsact",
            Self::Lan => "lanclsact",
            Self::Turn => "turnclsact",
            Self::Loopback => "loclsact",
            Self::Port => "portclsact",
            Self::Host => "hostclsact",
            Self::Room => "waitedclsact",
        }
    }
}
