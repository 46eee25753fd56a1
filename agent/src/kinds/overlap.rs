//! Inside and outside networks with the same addresses (RFC 4787 REQ-7): of two hosts with one address, the kernel's routes reach
//! one. The worker numbers neither side, so it tells.

use ipnet::IpNet;

use crate::{
    kernel::links::{Link, Observed},
    state::{RuleSpec, State},
};

use super::rule;

/// What to say about the inside networks of `source` that share addresses with a network of the uplink; `None` when none does.
/// An uplink that has an inside address beside its own is no conflict.
pub(super) fn told(source: &IpNet, uplink: &Link, observed: &Observed) -> Option<String> {
    let networks = |link: &Link| -> Vec<IpNet> {
        let global = link.addresses.iter().filter(|address| address.global);
        global.map(|address| address.net.trunc()).collect()
    };
    let outside = networks(uplink);
    for link in observed.links.iter().filter(|link| link.index != uplink.index) {
        for inside in networks(link).into_iter().filter(|inside| meet(inside, source)) {
            if let Some(outside) = outside.iter().find(|outside| meet(&inside, outside)) {
                return Some(format!(
                    "{inside} of {} and {outside} of {} have addresses in common: of two hosts with the same one, one cannot be \
                     reached; give one of the networks other addresses",
                    link.name, uplink.name
                ));
            }
        }
    }
    None
}

/// The same of every rule that translates now, with its id.
pub fn all(state: &State, observed: &Observed) -> Vec<String> {
    let told = state.rules.values().filter_map(|rule| {
        let RuleSpec::Masquerade(spec) = &rule.spec else { return None };
        let uplink = rule::l3_uplink(&rule.spec, observed).filter(|_| spec.enabled)?;
        let link = observed.links.with_index(uplink)?;
        Some(format!("rule/{}: {}", rule.id, told(&spec.source_network, link, observed)?))
    });
    told.collect()
}

fn meet(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{
        fake::device,
        links::{Address, LinkKind},
    };

    fn link(index: u32, addresses: &[&str]) -> Link {
        let addresses = addresses.iter().map(|text| Address::plain(text.parse().unwrap())).collect();
        Link { addresses, ..device(index, &format!("link{index}"), LinkKind::Physical) }
    }

    fn on_uplink(uplink: &[&str], source: &str) -> Option<String> {
        let links =
            vec![link(1, uplink), link(2, &["192.168.100.1/24"]), link(3, &["10.9.0.1/16", "fd00::1/64"])];
        let observed = Observed { links: links.into(), ..Observed::default() };
        told(&source.parse().unwrap(), &observed.links[0], &observed)
    }

    #[test]
    fn networks_with_addresses_in_common_are_told_of() {
        for uplink in ["192.168.100.77/24", "192.168.100.129/25", "192.168.3.4/16"] {
            let told = on_uplink(&[uplink], "192.168.100.0/24").unwrap();
            assert!(told.contains("192.168.100.0/24 of link2") && told.contains("of link1"), "{told}");
        }
        // A rule for more than there is, and for a part of it.
        assert!(on_uplink(&["192.168.100.77/24"], "192.168.0.0/16").is_some());
        assert!(on_uplink(&["192.168.100.77/24"], "192.168.100.64/26").is_some());
        assert!(on_uplink(&["2001:db8::1/64", "fd00::9/64"], "fd00::/64").is_some());
    }

    #[test]
    fn others_are_not() {
        assert_eq!(on_uplink(&["203.0.113.1/24"], "0.0.0.0/0"), None);
        // About another network than the rule's.
        assert_eq!(on_uplink(&["192.168.100.77/24"], "10.9.0.0/16"), None);
        // The uplink leads to the inside as well.
        assert_eq!(on_uplink(&["203.0.113.1/24", "172.16.0.1/24"], "172.16.0.0/24"), None);
    }
}
