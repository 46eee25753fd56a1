//! Links as the kernel has them: what `Kernel::observe` answers, and how to find things in it.

mod list;

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;

use super::{
    ovs::Presence,
    routes::{Neighbour, Route},
};
use crate::model::{NamespaceName, VlanProtocol};

pub use list::Links;

/// The alias (`ip link show`: `alias telecluster`) of every link that the worker made. Together with the
/// store it says what is ours; one of the two alone is not enough to delete anything.
pub const ALIAS: &str = "telecluster";

/// The alias of the links that are part of the data plane (`kernel::bpf::waiting`), and of no concern to anybody else.
pub const ROOM_ALIAS: &str = "telecluster waiting room";

/// The group (IFLA_GROUP) of a link between its making and its mark, which the kernel takes in two messages: who
/// still bears it was made by a worker that was killed between the two.
pub const MAKING: u32 = u32::from_be_bytes(*b"tele");

/// Everything that plans are made from, read in one go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Every link of the worker's own namespace, by index.
    pub links: Links,
    /// The other namespaces under `/run/netns`, by name.
    pub namespaces: Vec<Namespace>,
    /// The names under `/run/netns` of the worker's own namespace, which is not among those.
    pub own_names: Vec<String>,
    /// The routes of the worker's own namespace, but for those to the host's own addresses.
    pub routes: Vec<Route>,
    /// Neighbours that somebody entered by hand, there.
    pub neighbours: Vec<Neighbour>,
    /// The interface of the IPv4 default route with the lowest metric.
    pub default_route: Option<u32>,
    /// `net.ipv4.ip_forward`.
    pub ip_forward: bool,
    /// `net.ipv6.conf.all.forwarding`; `None` where the kernel has no IPv6.
    pub ipv6_forward: Option<bool>,
    /// Open vSwitch.
    pub ovs: Presence,
}

/// A named network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// File name under `/run/netns`; may break the rule of [`NamespaceName`] when it is foreign.
    pub name: String,
    /// By index.
    pub links: Links,
}

/// Where a link lives.
#[derive(
    Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub enum Place {
    /// The worker's own namespace.
    #[default]
    Here,
    /// A namespace under `/run/netns`.
    Named(String),
}

impl Place {
    pub fn of(namespace: Option<&NamespaceName>) -> Self {
        match namespace {
            None => Self::Here,
            Some(name) => Self::Named(name.as_str().to_owned()),
        }
    }

    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Here => None,
            Self::Named(name) => Some(name),
        }
    }
}

/// A link's address in the world: its place and its name there.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct At {
    pub place: Place,
    pub name: String,
}

impl At {
    pub fn new(place: Place, name: impl Into<String>) -> Self {
        Self { place, name: name.into() }
    }

    pub fn here(name: impl Into<String>) -> Self {
        Self::new(Place::Here, name)
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Here => f.write_str(&self.name),
            Place::Named(namespace) => write!(f, "{} in namespace {namespace}", self.name),
        }
    }
}

/// One link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub kind: LinkKind,
    /// IFF_UP: someone wants it up.
    pub up: bool,
    pub operstate: OperState,
    pub mtu: u32,
    pub mac: Option<Mac>,
    pub alias: Option<String>,
    /// In the group [`MAKING`].
    pub half_made: bool,
    /// Index of the bridge, bond, ... it is a port of, in the same namespace.
    pub master: Option<u32>,
    /// The other end, of a veth pair whose namespace has a name.
    pub peer: Option<Peer>,
    pub addresses: Vec<Address>,
    /// Of a bridge: milliseconds for which it remembers a silent station.
    pub ageing: Option<u32>,
    /// State of a port of a bridge.
    pub port: Option<BridgePort>,
    /// The link that this one lies on, in the same namespace: of a VLAN its parent.
    pub parent: Option<u32>,
    /// Of a VLAN link.
    pub vlan: Option<VlanTag>,
    /// Of a TUN or TAP.
    pub tun: Option<TunInfo>,
}

impl Link {
    /// With nothing but a name: down, of nobody, without addresses.
    pub fn new(index: u32, name: impl Into<String>, kind: LinkKind) -> Self {
        Self {
            index,
            name: name.into(),
            kind,
            up: false,
            operstate: OperState::Unknown,
            mtu: 0,
            mac: None,
            alias: None,
            half_made: false,
            master: None,
            peer: None,
            addresses: Vec::new(),
            ageing: None,
            port: None,
            parent: None,
            vlan: None,
            tun: None,
        }
    }

    /// Bears the worker's mark.
    pub fn marked(&self) -> bool {
        self.alias.as_deref() == Some(ALIAS)
    }

    /// Its addresses of both families, in the order of the kernel.
    pub fn ips(&self) -> impl Iterator<Item = (IpAddr, &Address)> {
        self.addresses.iter().map(|address| (address.net.addr(), address))
    }

    pub fn ipv4(&self) -> impl Iterator<Item = (Ipv4Addr, &Address)> {
        self.addresses.iter().filter_map(|address| match address.net.addr() {
            IpAddr::V4(ip) => Some((ip, address)),
            IpAddr::V6(_) => None,
        })
    }

    pub fn is_bridge(&self) -> bool {
        matches!(self.kind, LinkKind::Bridge { .. } | LinkKind::OvsBridge { .. })
    }

    /// A bridge on which frames in a ring turn for ever: without spanning tree.
    pub fn is_plain_bridge(&self) -> bool {
        self.is_bridge() && !self.stp()
    }

    /// A bridge with spanning tree.
    pub fn stp(&self) -> bool {
        matches!(self.kind, LinkKind::Bridge { stp: true } | LinkKind::OvsBridge { stp: true })
    }
}

/// What a link is, by its rtnetlink kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    Bridge {
        stp: bool,
    },
    /// A bridge of Open vSwitch.
    OvsBridge {
        stp: bool,
    },
    Veth,
    Vlan,
    Bond,
    Tun,
    Tap,
    Loopback,
    /// No kind: a device of its own, such as a network card.
    Physical,
    /// Every other kind, as the kernel names it.
    Other(String),
}

impl LinkKind {
    /// As `/network/interfaces` names it.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Bridge { .. } | Self::OvsBridge { .. } => "bridge",
            Self::Veth => "veth",
            Self::Vlan => "vlan",
            Self::Bond => "bond",
            Self::Tun => "tun",
            Self::Tap => "tap",
            Self::Physical => "physical",
            Self::Loopback | Self::Other(_) => "virtual",
        }
    }
}

/// What a VLAN link puts into the frames of its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VlanTag {
    pub id: u16,
    pub protocol: VlanProtocol,
}

/// Who may open a TUN or TAP, and how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TunInfo {
    /// User id; nobody in particular when absent.
    pub owner: Option<u32>,
    pub group: Option<u32>,
    /// It stays when the program that opened it closes it.
    pub persist: bool,
    pub multi_queue: bool,
    /// As the program that opened it last wants it.
    pub vnet_hdr: bool,
    /// A program has it open just now. The operational state says so too, but up to a second later.
    pub open: bool,
}

/// RFC 2863 operational state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperState {
    Unknown,
    NotPresent,
    Down,
    LowerLayerDown,
    Testing,
    Dormant,
    Up,
}

impl OperState {
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::NotPresent => "notpresent",
            Self::Down => "down",
            Self::LowerLayerDown => "lowerlayerdown",
            Self::Testing => "testing",
            Self::Dormant => "dormant",
            Self::Up => "up",
        }
    }
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// One that nobody else has, from 12 hexadecimal digits that nobody else has. Locally administered, of one station.
    pub fn own(digits: &str) -> Option<Self> {
        let [_, _, first, rest @ ..] = u64::from_str_radix(digits, 16).ok()?.to_be_bytes();
        let [b, c, d, e, g] = rest;
        Some(Self([first & !0b11 | 0b10, b, c, d, e, g]))
    }

    /// From `02:00:00:00:00:01`.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes: Vec<_> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
        Some(Self(bytes.into_iter().collect::<Option<Vec<_>>>()?.try_into().ok()?))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl std::str::FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let digits = parts.next().filter(|digits| digits.len() == 2).unwrap_or_default();
            *byte = u8::from_str_radix(digits, 16)
                .map_err(|_| format!("{text:?} is no Ethernet address like 02:00:00:00:00:01"))?;
        }
        match parts.next() {
            None => Ok(Self(bytes)),
            Some(_) => Err(format!("{text:?} is longer than an Ethernet address")),
        }
    }
}

impl TryFrom<String> for Mac {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

/// The other end of a veth pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub place: Place,
    pub index: u32,
}

/// An address of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub net: IpNet,
    /// Global scope: usable beyond the link.
    pub global: bool,
    /// Added after another address of the same network, or IPv6 and temporary; never chosen for others.
    pub secondary: bool,
    pub broadcast: Option<Ipv4Addr>,
    /// The kernel makes the route to its network.
    pub prefix_route: bool,
    /// For a time only: from DHCP, or from a router's advertisement.
    pub dynamic: bool,
}

impl Address {
    /// As somebody sets one by hand.
    pub fn plain(net: IpNet) -> Self {
        let broadcast = match net {
            IpNet::V4(net) if net.prefix_len() < 31 => Some(net.broadcast()),
            IpNet::V4(_) | IpNet::V6(_) => None,
        };
        Self { net, global: true, secondary: false, broadcast, prefix_route: true, dynamic: false }
    }
}

/// What a bridge does with one of its ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BridgePort {
    pub state: PortState,
    /// The worker's guard: neither learns, nor floods out, nor lets unknown senders in.
    pub guarded: bool,
    /// Nothing goes between two isolated ports.
    pub isolated: bool,
    /// A frame may leave where it came in.
    pub hairpin: bool,
}

impl BridgePort {
    /// In a state, and otherwise as the kernel makes a port.
    pub fn new(state: PortState) -> Self {
        Self { state, guarded: false, isolated: false, hairpin: false }
    }
}

/// `BR_STATE_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortState {
    Disabled,
    Listening,
    Learning,
    Forwarding,
    Blocking,
}

impl PortState {
    pub fn name(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Listening => "listening",
            Self::Learning => "learning",
            Self::Forwarding => "forwarding",
            Self::Blocking => "blocking",
        }
    }
}

/// The links of a place that is not there.
static NONE: Links = Links::NONE;

impl Observed {
    /// The links of a place; none when the place is not there.
    pub fn links_at(&self, place: &Place) -> &Links {
        match place {
            Place::Here => &self.links,
            Place::Named(name) => {
                self.namespaces.iter().find(|ns| ns.name == *name).map_or(&NONE, |ns| &ns.links)
            }
        }
    }

    /// Every link with its place, the worker's own namespace first.
    pub fn everywhere(&self) -> impl Iterator<Item = (Place, &Link)> {
        let here = self.links.iter().map(|link| (Place::Here, link));
        let named = self
            .namespaces
            .iter()
            .flat_map(|ns| ns.links.iter().map(|link| (Place::Named(ns.name.clone()), link)));
        here.chain(named)
    }

    pub fn find(&self, at: &At) -> Option<&Link> {
        self.links_at(&at.place).iter().find(|link| link.name == at.name)
    }

    /// A link of the worker's own namespace.
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    pub fn by_index(&self, place: &Place, index: u32) -> Option<&Link> {
        self.links_at(place).with_index(index)
    }

    /// The name of the bridge, bond, ... that a link of `place` is a port of.
    pub fn master_name(&self, place: &Place, link: &Link) -> Option<&str> {
        self.by_index(place, link.master?).map(|master| master.name.as_str())
    }

    /// The ports of a master in the worker's own namespace.
    pub fn ports_of(&self, master: u32) -> impl Iterator<Item = &Link> {
        self.links.iter().filter(move |link| link.master == Some(master))
    }

    /// The links of `place` that lie on `link` and go when it goes.
    pub fn on_top_of<'a>(&'a self, place: &Place, link: &Link) -> impl Iterator<Item = &'a Link> {
        let index = link.index;
        self.links_at(place).iter().filter(move |other| other.parent == Some(index))
    }

    /// Both ends of the pair that `link` of `place` belongs to; the other end when it can be seen.
    pub fn peer_of<'a>(&'a self, link: &'a Link) -> Option<(&'a Place, &'a Link)> {
        let peer = link.peer.as_ref()?;
        Some((&peer.place, self.by_index(&peer.place, peer.index)?))
    }

    pub fn has_place(&self, place: &Place) -> bool {
        match place {
            Place::Here => true,
            Place::Named(name) => self.namespaces.iter().any(|ns| ns.name == *name),
        }
    }

    /// Where IP happens for packets of this link: its bridge when it is a port, else itself.
    pub fn l3_owner<'a>(&'a self, link: &'a Link) -> &'a Link {
        link.master.and_then(|master| self.by_index(&Place::Here, master)).unwrap_or(link)
    }
}
