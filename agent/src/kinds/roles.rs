//! The four places of the cluster's picture: the uplink, the link to the other servers, the bridge to the outside and
//! the bridge between the machines inside. Settings name them; where one is silent it has its usual name, and the two
//! links are found where nothing bears that.
//!
//! The uplink is what a forward means that names no interface. The other three are shown to whoever asks, so that an
//! orchestrator need not know the names of each server; a bridge that is not there yet is made by `/bridge/create`.

use crate::{
    engine::Options,
    kernel::links::{Link, LinkKind, Observed},
    model::roles::{Role, RoleSource, RoleView, RolesView},
};

const UPLINK: &str = "ens3";
const LAN: &str = "ens4";
const EXTERNAL_BRIDGE: &str = "br-ex";
const INTERNAL_BRIDGE: &str = "br-int";

/// Who has a role.
#[derive(Debug, Clone, Copy)]
pub struct Holder<'a> {
    pub role: Role,
    pub name: &'a str,
    pub source: RoleSource,
    /// `None`: no interface has that name.
    pub link: Option<&'a Link>,
}

impl Holder<'_> {
    /// What is wrong with it, on one line. A bridge may come later.
    pub fn problem(&self) -> Option<String> {
        let Self { role, name, source, link } = self;
        let (setting, told) = (role.setting(), *source == RoleSource::Setting);
        match (role, link) {
            (Role::Wan | Role::Lan, None) if told => {
                Some(format!("{setting} is {name}, and there is no interface of that name"))
            }
            (Role::ExternalBridge | Role::InternalBridge, Some(link)) if !link.is_bridge() => {
                Some(format!("{setting} is {name}, which is no bridge but a {} link", link.kind.label()))
            }
            (Role::Wan | Role::Lan | Role::ExternalBridge | Role::InternalBridge, _) => None,
        }
    }
}

/// All four.
#[derive(Debug, Clone, Copy)]
pub struct Roles<'a>([Holder<'a>; 4]);

impl<'a> Roles<'a> {
    pub fn of(options: &'a Options, observed: &'a Observed) -> Self {
        let bridge = |role, told: &'a Option<String>, usual| named(role, told.as_deref(), usual, observed);
        let wan = wan(options, observed);
        Self([
            wan,
            lan(options, observed, wan.link),
            bridge(Role::ExternalBridge, &options.external_bridge, EXTERNAL_BRIDGE),
            bridge(Role::InternalBridge, &options.internal_bridge, INTERNAL_BRIDGE),
        ])
    }

    pub fn holders(&self) -> &[Holder<'a>; 4] {
        &self.0
    }

    /// The roles of one link; most have none.
    pub fn of_link(&self, link: &Link) -> Vec<Role> {
        let has = |holder: &&Holder<'_>| holder.link.is_some_and(|held| held.index == link.index);
        self.0.iter().filter(has).map(|holder| holder.role).collect()
    }

    pub fn view(&self) -> RolesView {
        let [wan, lan, external, internal] = self.0.map(|holder| RoleView {
            name: holder.name.to_owned(),
            source: holder.source,
            present: holder.link.is_some(),
            problem: holder.problem(),
        });
        RolesView {
            wan_interface: wan,
            lan_interface: lan,
            external_bridge: external,
            internal_bridge: internal,
        }
    }
}

/// The uplink: as told, else `ens3`, else where the IPv4 default route goes, else the bridge to the outside.
pub fn wan<'a>(options: &'a Options, observed: &'a Observed) -> Holder<'a> {
    let usual = named(Role::Wan, options.wan_interface.as_deref(), UPLINK, observed);
    if usual.link.is_some() || usual.source == RoleSource::Setting {
        return usual;
    }
    let route = observed.default_route;
    let by_route = || route.and_then(|index| observed.links.iter().find(|link| link.index == index));
    let told = options.external_bridge.as_deref();
    let bridge = || named(Role::ExternalBridge, told, EXTERNAL_BRIDGE, observed).link;
    found(usual, by_route().or_else(bridge))
}

/// The link to the other servers: as told, else `ens4`, else the only network card beside the uplink's.
fn lan<'a>(options: &'a Options, observed: &'a Observed, uplink: Option<&Link>) -> Holder<'a> {
    let usual = named(Role::Lan, options.lan_interface.as_deref(), LAN, observed);
    if usual.link.is_some() || usual.source == RoleSource::Setting {
        return usual;
    }
    let of_uplink =
        |link: &Link| uplink.is_some_and(|wan| link.index == wan.index || link.master == Some(wan.index));
    let mut cards = observed.links.iter().filter(|link| link.kind == LinkKind::Physical && !of_uplink(link));
    match (cards.next(), cards.next()) {
        (Some(card), None) => found(usual, Some(card)),
        (None, _) | (Some(_), Some(_)) => usual,
    }
}

fn named<'a>(role: Role, told: Option<&'a str>, usual: &'a str, observed: &'a Observed) -> Holder<'a> {
    let (name, source) = match told {
        Some(name) => (name, RoleSource::Setting),
        None => (usual, RoleSource::Usual),
    };
    Holder { role, name, source, link: observed.link(name) }
}

fn found<'a>(usual: Holder<'a>, link: Option<&'a Link>) -> Holder<'a> {
    match link {
        Some(link) => Holder { name: &link.name, source: RoleSource::Detected, link: Some(link), ..usual },
        None => usual,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt as _;

    use super::*;
    use crate::kernel::{
        Kernel as _,
        fake::{FakeKernel, Faults},
        step::{LinkStep, NewBridge},
    };

    /// `ens3` with the default route, and `ens4`, under other names.
    fn host(names: [&str; 2]) -> Arc<Observed> {
        let kernel = FakeKernel::new(Faults::default());
        kernel.edit(|world| {
            for link in world.links.iter_mut() {
                match link.name.as_str() {
                    "ens3" => link.name = names[0].into(),
                    "ens4" => link.name = names[1].into(),
                    _ => {}
                }
            }
        });
        let bridge = NewBridge { name: "br-int".into(), ..NewBridge::default() };
        kernel.act(&LinkStep::CreateBridge(bridge)).unwrap();
        kernel.observe().now_or_never().unwrap().unwrap()
    }

    fn shown(options: &Options, observed: &Observed) -> Vec<(String, RoleSource, bool)> {
        let holders = *Roles::of(options, observed).holders();
        holders.map(|holder| (holder.name.to_owned(), holder.source, holder.link.is_some())).to_vec()
    }

    #[test]
    fn usual_names_are_taken_where_nothing_is_said() {
        let observed = host(["ens3", "ens4"]);
        assert_eq!(
            shown(&Options::default(), &observed),
            [("ens3", true), ("ens4", true), ("br-ex", false), ("br-int", true)].map(|(name, there)| (
                name.to_owned(),
                RoleSource::Usual,
                there
            ))
        );
        let roles = Roles::of(&Options::default(), &observed).view();
        assert!(roles.external_bridge.problem.is_none(), "a bridge may come later");
    }

    #[test]
    fn other_names_are_found_by_the_default_route_and_by_being_the_only_other_card() {
        let observed = host(["eno1", "eno2"]);
        let roles = shown(&Options::default(), &observed);
        assert_eq!(roles[0], ("eno1".to_owned(), RoleSource::Detected, true));
        assert_eq!(roles[1], ("eno2".to_owned(), RoleSource::Detected, true));
        // Without a default route there are two cards, and no telling which.
        let cut = Observed { default_route: None, ..(*observed).clone() };
        let roles = shown(&Options::default(), &cut);
        assert_eq!(roles[0], ("ens3".to_owned(), RoleSource::Usual, false));
        assert_eq!(roles[1], ("ens4".to_owned(), RoleSource::Usual, false));
        let told = Options { external_bridge: Some("br-int".into()), ..Options::default() };
        assert_eq!(wan(&told, &cut).link.map(|link| link.name.as_str()), Some("br-int"));
    }

    #[test]
    fn a_setting_is_never_guessed_around() {
        let observed = host(["ens3", "ens4"]);
        let options = Options {
            wan_interface: Some("ens9".into()),
            lan_interface: Some("ens8".into()),
            external_bridge: Some("ens4".into()),
            internal_bridge: Some("br-none".into()),
            ..Options::default()
        };
        let roles = Roles::of(&options, &observed);
        let problems: Vec<_> = roles.holders().iter().map(Holder::problem).collect();
        assert_eq!(
            problems,
            [
                Some("WAN_INTERFACE is ens9, and there is no interface of that name".to_owned()),
                Some("LAN_INTERFACE is ens8, and there is no interface of that name".to_owned()),
                Some("EXTERNAL_BRIDGE is ens4, which is no bridge but a physical link".to_owned()),
                None,
            ]
        );
        let ens4 = observed.link("ens4").unwrap();
        assert_eq!(roles.of_link(ens4), [Role::ExternalBridge]);
    }
}
