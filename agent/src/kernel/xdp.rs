//! Where programs should be in drivers (native XDP), decided from what the operator wants and what an interface is.
//!
//! `auto` is for cards that do it natively and give nothing up for it. What is made by software is left alone unless it
//! was asked for by name or by `on`: a veth pair with XDP at one end loses segmentation offload at the other.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// What the operator says of an interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Xdp {
    /// Where nothing is lost.
    #[default]
    Auto,
    /// Wherever the driver can.
    On,
    Off,
}

impl Xdp {
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            "on" => Some(Self::On),
            "off" => Some(Self::Off),
            _ => None,
        }
    }
}

impl fmt::Display for Xdp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        })
    }
}

/// What the operator says of all interfaces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Of those that are not named.
    pub others: Xdp,
    pub named: BTreeMap<String, Xdp>,
}

impl Wishes {
    /// `auto`, or `auto,ens4=on,tap0=off`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut wishes = Self::default();
        for (place, part) in text.split(',').map(str::trim).enumerate() {
            match part.split_once('=') {
                Some((name, wish)) if !name.trim().is_empty() => {
                    wishes.named.insert(name.trim().to_owned(), Xdp::parse(wish.trim())?);
                }
                Some(_) => return None,
                None if place == 0 => wishes.others = Xdp::parse(part)?,
                None => return None,
            }
        }
        Some(wishes)
    }

    pub fn of(&self, interface: &str) -> Xdp {
        self.named.get(interface).copied().unwrap_or(self.others)
    }

    /// Wherever a driver can, at some interface.
    pub fn insist(&self) -> bool {
        self.others == Xdp::On || self.named.values().any(|wish| *wish == Xdp::On)
    }

    /// Nobody wants any.
    pub fn are_off(&self) -> bool {
        self.others == Xdp::Off && self.named.values().all(|wish| *wish == Xdp::Off)
    }
}

impl fmt::Display for Wishes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.others)?;
        self.named.iter().try_for_each(|(name, wish)| write!(f, ",{name}={wish}"))
    }
}

/// What an interface is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// A card, or what a virtual machine has for one.
    Card,
    /// veth, tap, bond, ...
    Software,
    /// Others lie on it: VLANs. Its card takes their tags off before a program in the driver sees a frame.
    Trunk,
}

/// A port of a bridge with VLANs, as it matters in its driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Door {
    pub bridge: u32,
    pub medium: Medium,
    /// A tag means something there: a VLAN, or payload that has to be kept.
    pub tags: bool,
}

/// An interface where the fast path may begin or end, or a port of a bridge with VLANs, and whether that is in the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XdpPort {
    pub index: u32,
    pub native: bool,
    /// Why, or why not.
    pub reason: String,
}

/// All of them, and what they have done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct XdpReport {
    pub ports: Vec<XdpPort>,
    /// Packets sent on by programs in drivers.
    pub packets: u64,
}

/// Why not even to try.
pub fn objection(wish: Xdp, medium: Medium) -> Option<&'static str> {
    match (wish, medium) {
        (Xdp::Off, Medium::Card | Medium::Software | Medium::Trunk) => Some("XDP=off"),
        (Xdp::Auto | Xdp::On, Medium::Trunk) => {
            Some("VLANs lie on it, and cards take tags off before XDP sees them")
        }
        (Xdp::Auto, Medium::Software) => {
            Some("it is no card, and would lose segmentation or checksum offload; XDP=on insists")
        }
        (Xdp::Auto | Xdp::On, Medium::Card) | (Xdp::On, Medium::Software) => None,
    }
}

/// Why tags of frames would not be seen in a driver, where they matter.
///
/// A card that takes them off does so before XDP (so does a veth pair, whose other end puts them beside a frame: `veth_xdp_rcv_skb`).
/// Where only the native VLAN is, a veth pair is let be when somebody insists: what comes with a tag then counts as without.
pub fn hides_tags(driver: &str, features: &BTreeSet<String>, tags: bool) -> Option<&'static str> {
    const TAKES_OFF: [&str; 2] = ["rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"];
    if driver == "veth" {
        return tags.then_some("tags are beside the frames of a veth pair, where XDP does not see them");
    }
    let takes_off = TAKES_OFF.iter().any(|name| features.contains(*name));
    takes_off.then_some("its card takes tags off before XDP sees them; ethtool -K ... rxvlan off leaves them")
}

/// What a driver gives up for XDP without saying so in its features (drivers/net/virtio_net.c
/// `virtnet_clear_guest_offloads`).
pub fn would_lose(driver: &str, features: &BTreeSet<String>) -> Vec<String> {
    const VIRTIO: [&str; 2] = ["rx-gro-hw", "rx-checksum"];
    let given_up: &[&str] = if driver == "virtio_net" { &VIRTIO } else { &[] };
    given_up.iter().filter(|name| features.contains(**name)).map(|name| (*name).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_is_for_all_and_named_ones_differ() {
        let wishes = Wishes::parse("auto, ens4=on,tap0=off").unwrap();
        assert_eq!((wishes.of("ens3"), wishes.of("ens4"), wishes.of("tap0")), (Xdp::Auto, Xdp::On, Xdp::Off));
        assert_eq!(wishes.to_string(), "auto,ens4=on,tap0=off");
        assert_eq!(Wishes::parse("ens4=on").unwrap().of("ens3"), Xdp::Auto);
        assert!(Wishes::parse("off").unwrap().are_off() && !Wishes::parse("off,ens4=on").unwrap().are_off());
        for text in ["yes", "auto,on", "=on", "ens4=yes", "", "ens4=on,auto"] {
            assert_eq!(Wishes::parse(text), None, "{text}");
        }
    }

    #[test]
    fn software_has_it_only_when_it_was_asked_for_and_trunks_never() {
        assert_eq!(objection(Xdp::Auto, Medium::Card), None);
        assert_eq!(objection(Xdp::On, Medium::Software), None);
        for (wish, medium) in
            [(Xdp::Auto, Medium::Software), (Xdp::On, Medium::Trunk), (Xdp::Off, Medium::Card)]
        {
            assert!(objection(wish, medium).is_some(), "{wish:?} {medium:?}");
        }
    }

    #[test]
    fn a_tag_that_matters_must_be_in_the_frame() {
        let takes_off: BTreeSet<String> = ["rx-vlan-hw-parse".to_owned()].into();
        for (driver, features, tags, hidden) in [
            ("ixgbe", &takes_off, false, true),
            ("ixgbe", &BTreeSet::new(), true, false),
            ("tun", &BTreeSet::new(), true, false),
            ("veth", &takes_off, false, false),
            ("veth", &takes_off, true, true),
            ("veth", &BTreeSet::new(), true, true),
        ] {
            assert_eq!(hides_tags(driver, features, tags).is_some(), hidden, "{driver} {features:?} {tags}");
        }
    }

    #[test]
    fn a_virtual_card_keeps_its_offloads() {
        let features = ["rx-checksum", "tx-checksum-ip-generic"].map(str::to_owned).into();
        assert_eq!(would_lose("virtio_net", &features), ["rx-checksum"]);
        assert!(would_lose("ixgbe", &features).is_empty());
    }
}
