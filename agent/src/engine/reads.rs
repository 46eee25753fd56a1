//! What callers are shown. Reads look at the kernel themselves and wait for no change.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use crate::{
    error::{Code, Error, Result},
    kernel::{
        KernelError,
        dataplane::{Counters, DataPlane, FastPath, Slot},
        filter::Matched,
        links::{At, Observed},
        xdp::XdpReport,
    },
    kinds::{
        bridge, bridge_vlan, firewall, interface, overlap, ovs_vlan,
        roles::Roles,
        rule, tuntap,
        veth::{self, Pair},
        vlan_link,
    },
    model::{
        BridgeView, FastPathView, InterfaceView, NatStatusView, RuleView, TunView, VethView, VlanLinkView,
        VlanProtocol, firewall::FirewallView, roles::RolesView,
    },
    plan::Subject,
    state::{Rule, RuleSpec},
    users::Names,
};

use super::{Census, Engine, FlowPage, FlowQuery, Measurements, Object, Shared, XdpMeasured, flows};

impl Engine {
    pub async fn bridges(&self) -> Result<Vec<BridgeView>> {
        let observed = self.shared.observe().await?;
        let vlans = self.shared.switch_ports().await?;
        let state = self.shared.state();
        let bridges = observed.links.iter().filter(|link| link.is_bridge());
        Ok(bridges.map(|link| bridge::view(link, &observed, &state, &vlans)).collect())
    }

    pub async fn bridge(&self, name: &str) -> Result<BridgeView> {
        let observed = self.shared.observe().await?;
        let vlans = self.shared.switch_ports().await?;
        let link = bridge::find(name, &observed).map_err(not_of_kind(Code::BridgeNotFound))?;
        Ok(bridge::view(link, &observed, &self.shared.state(), &vlans))
    }

    pub async fn veths(&self) -> Result<Vec<VethView>> {
        let observed = self.shared.observe().await?;
        Ok(veth::list(&observed, &self.shared.state()))
    }

    /// By either end.
    pub async fn veth(&self, name: &str) -> Result<VethView> {
        let observed = self.shared.observe().await?;
        let state = self.shared.state();
        let pair = veth::find(name, &observed, &state).map_err(not_of_kind(Code::VethNotFound))?;
        Ok(veth::view(&pair, &observed, &state))
    }

    pub async fn tuns(&self) -> Result<Vec<TunView>> {
        let observed = self.shared.kernel.observe_owners().await?;
        let names = owners(&observed).await;
        Ok(tuntap::list(&observed, &self.shared.state(), &names))
    }

    pub async fn tun(&self, name: &str) -> Result<TunView> {
        let observed = self.shared.kernel.observe_owners().await?;
        self.shared.tun(name, &observed).await.map_err(not_of_kind(Code::TunNotFound))
    }

    pub async fn vlan_links(&self) -> Result<Vec<VlanLinkView>> {
        let observed = self.shared.observe().await?;
        Ok(vlan_link::list(&observed, &self.shared.state()))
    }

    /// By its attributes, whatever it is called.
    pub async fn vlan_link(
        &self,
        parent: &str,
        vlan_id: u16,
        protocol: Option<VlanProtocol>,
    ) -> Result<VlanLinkView> {
        let observed = self.shared.observe().await?;
        let link = vlan_link::find(parent, vlan_id, protocol, &observed)?;
        self.shared.vlan_link(&link.name, &observed)
    }

    pub async fn interfaces(&self) -> Result<Vec<InterfaceView>> {
        let observed = self.shared.observe().await?;
        let vlans = self.shared.switch_ports().await?;
        let state = self.shared.state();
        let roles = Roles::of(&self.shared.options, &observed);
        let view = |link| interface::view(link, &observed, &state, &vlans, &roles);
        Ok(observed.links.iter().map(view).collect())
    }

    /// Which link is the uplink, and so on.
    pub async fn roles(&self) -> Result<RolesView> {
        let observed = self.shared.observe().await?;
        Ok(Roles::of(&self.shared.options, &observed).view())
    }

    pub async fn nat_status(&self) -> Result<NatStatusView> {
        let rules: Vec<Rule> = self.shared.state().rules.values().cloned().collect();
        let active = self.shared.census(0).await?.by_rule;
        let reason = self.shared.no_fast_path();
        let mut status = NatStatusView {
            fast_path: FastPathView { open: reason.is_none(), reason },
            port_forwards: Vec::new(),
            masquerade_rules: Vec::new(),
            firewall_rules: self.shared.firewall().await?,
        };
        let counted = self.shared.counters(&rules).await?;
        for rule in &rules {
            let view = self.shared.rule_view(rule, &counted, &active);
            match rule.spec {
                RuleSpec::Forward(_) => status.port_forwards.push(view),
                RuleSpec::Masquerade(_) => status.masquerade_rules.push(view),
            }
        }
        Ok(status)
    }

    pub async fn rule(&self, id: &str) -> Result<RuleView> {
        self.shared.rule(id).await
    }

    pub async fn flows(&self, query: &FlowQuery) -> Result<FlowPage> {
        let observed = self.shared.observe().await?;
        let names = flows::Names {
            no_fast_path: self.shared.no_fast_path(),
            rules: self.shared.state().rules.values().map(|rule| (rule.slot, rule.id.clone())).collect(),
            interfaces: observed.links.iter().map(|link| (link.index, link.name.clone())).collect(),
        };
        let query = query.clone();
        self.shared.blocking(move |dataplane| flows::page(dataplane, &names, &query)).await
    }

    /// `top`: how many of the largest flows are shown.
    pub async fn measurements(&self, top: usize) -> Result<Measurements> {
        let observed = self.shared.observe().await?;
        let stored: Vec<Rule> = self.shared.state().rules.values().cloned().collect();
        let flows = self.shared.census(top).await?;
        let kept = Arc::clone(&self.shared.pressure);
        let (attachments, pressure, drops, xdp) = self
            .shared
            .blocking(move |dataplane| {
                let pressure = kept.get(|_| true, || dataplane.pressure())?;
                Ok((dataplane.attachments(), pressure, dataplane.drops()?, dataplane.xdp()?))
            })
            .await?;
        let counted = self.shared.counters(&stored).await?;
        let counters = |rule: &Rule| counted.get(&rule.slot).copied().unwrap_or_default();
        let rules = (stored.iter())
            .map(|rule| (self.shared.rule_view(rule, &counted, &flows.by_rule), counters(rule)))
            .collect();
        Ok(Measurements {
            backend: self.shared.dataplane.backend(),
            backend_reason: self.shared.options.dataplane_reason.clone(),
            backend_differences: self.shared.dataplane.differences(),
            attachments,
            xdp: xdp_by_name(xdp, &observed),
            pressure,
            drops,
            rules,
            flows,
            switching: self.shared.switching(&observed).await?,
            bridges: observed.links.iter().filter(|link| link.is_bridge()).count(),
            interfaces: observed.links.len(),
            drift: self.shared.drift(&observed).await?,
            overlaps: overlap::all(&self.shared.state(), &observed),
        })
    }
}

/// One that has just gone has only its number.
fn xdp_by_name(report: XdpReport, observed: &Observed) -> XdpMeasured {
    let XdpReport { ports, packets } = report;
    let name = |index: u32| {
        let link = observed.links.iter().find(|link| link.index == index);
        link.map_or_else(|| index.to_string(), |link| link.name.clone())
    };
    let ports = ports.into_iter().map(|port| (name(port.index), port.native, port.reason)).collect();
    XdpMeasured { ports, packets }
}

impl Shared {
    /// What is not as it was told to be, and cannot be put right.
    async fn drift(&self, observed: &Observed) -> Result<Vec<(String, String)>> {
        let mut problems = self.state().problems();
        if !self.state().port_vlans.is_empty() {
            let present = self.switch_ports().await?;
            problems.extend(bridge_vlan::unfiltered(
                &self.state(),
                observed,
                &present,
                self.dataplane.backend(),
            ));
        }
        Ok(problems)
    }

    fn no_fast_path(&self) -> Option<String> {
        match self.dataplane.fast_path() {
            FastPath::Open => None,
            FastPath::Closed(why) => Some(why),
        }
    }

    /// All flows in figures, with the `top` largest at least.
    async fn census(&self, top: usize) -> Result<Census> {
        let kept = Arc::clone(&self.census);
        self.blocking(move |dataplane| kept.get(|census| census.top >= top, || flows::census(dataplane, top)))
            .await
    }

    /// Calls the data plane where it may block.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn DataPlane) -> Result<T, KernelError> + Send + 'static,
    ) -> Result<T> {
        let dataplane = Arc::clone(&self.dataplane);
        match tokio::task::spawn_blocking(move || call(&*dataplane)).await {
            Ok(result) => Ok(result?),
            Err(error) => {
                Err(Error::new(Code::Internal, format!("reading the data plane ended early: {error}")))
            }
        }
    }

    async fn tun(&self, name: &str, observed: &Observed) -> Result<TunView> {
        let (link, _) = tuntap::find(name, observed)?;
        let names = owners(observed).await;
        let view = tuntap::view(link, observed, &self.state(), &names);
        view.ok_or_else(|| Error::new(Code::TunNotFound, format!("there is no TUN or TAP {name}")))
    }

    fn vlan_link(&self, name: &str, observed: &Observed) -> Result<VlanLinkView> {
        let link = observed.link(name);
        let view = link.and_then(|link| vlan_link::view(link, observed, &self.state()));
        view.ok_or_else(|| Error::new(Code::VlanNotFound, format!("there is no VLAN link {name}")))
    }

    async fn rule(&self, id: &str) -> Result<RuleView> {
        let Some(rule) = self.state().rules.get(id).cloned() else {
            return Err(Error::new(Code::RuleNotFound, format!("there is no rule {id}")));
        };
        let counted = self.counters(std::slice::from_ref(&rule)).await?;
        // A rule that has made no flow yet has none alive: the flow tables need not be walked for a new one.
        let active = match counted.get(&rule.slot).map_or(0, |counters| counters.flows) {
            0 => HashMap::new(),
            _ => self.census(0).await?.by_rule,
        };
        Ok(self.rule_view(&rule, &counted, &active))
    }

    /// What each of these rules has counted.
    async fn counters(&self, rules: &[Rule]) -> Result<BTreeMap<Slot, Counters>> {
        let slots: Vec<Slot> = rules.iter().map(|rule| rule.slot).collect();
        self.blocking(move |dataplane| dataplane.counters_of(&slots)).await
    }

    /// Every firewall rule in order, with what the kernel counts for it.
    async fn firewall(&self) -> Result<Vec<FirewallView>> {
        let mut rules: Vec<_> = self.state().firewall.values().cloned().collect();
        if rules.is_empty() {
            // Nobody is asked: without rules there may be no iptables.
            return Ok(Vec::new());
        }
        rules.sort_by_key(|rule| rule.order);
        let matched = self.matched().await?;
        Ok(rules.iter().map(|rule| firewall::view(rule, matched.get(&rule.id).copied())).collect())
    }

    async fn matched(&self) -> Result<BTreeMap<String, Matched>> {
        let filter = Arc::clone(&self.filter);
        match tokio::task::spawn_blocking(move || filter.matched()).await {
            Ok(matched) => Ok(matched?),
            Err(error) => {
                Err(Error::new(Code::Internal, format!("reading the packet filter ended early: {error}")))
            }
        }
    }

    fn rule_view(
        &self,
        rule: &Rule,
        counted: &BTreeMap<Slot, Counters>,
        active: &HashMap<Slot, u64>,
    ) -> RuleView {
        let counters = counted.get(&rule.slot).copied().unwrap_or_default();
        let active = active.get(&rule.slot).copied().unwrap_or(0);
        rule::view(rule, &counters, active, self.dataplane.backend())
    }
}

/// Who reads asks for a thing of one kind: something else of that name is not it. Who changes something is told that
/// the name is taken by something else.
fn not_of_kind(missing: Code) -> impl Fn(Error) -> Error {
    move |error| match error.code {
        Code::WrongKind => Error { code: missing, ..error },
        _ => error,
    }
}

/// The names of everyone who owns a TUN or TAP.
async fn owners(observed: &Observed) -> Names {
    let tuns = || observed.links.iter().filter_map(|link| link.tun);
    let users = tuns().filter_map(|tun| tun.owner).collect();
    let groups = tuns().filter_map(|tun| tun.group).collect();
    Names::of(users, groups).await
}

/// What a change was about that is made and stored. That cannot fail any more: who asks is told so when only this could not be read.
pub(super) async fn object(shared: &Shared, subject: &Subject, observed: &Observed) -> Result<Object> {
    match read(shared, subject, observed).await {
        Ok(object) => Ok(object),
        // Whatever kept it from being read may be over.
        Err(_) => read(shared, subject, observed).await.map_err(|error| {
            error.hint("the change is made and stored, only the answer could not be put together: look at the object")
        }),
    }
}

/// As the kernel has it now.
async fn read(shared: &Shared, subject: &Subject, observed: &Observed) -> Result<Object> {
    match subject {
        Subject::Bridge(name) => {
            let link = bridge::find(name, observed)?;
            let vlans = shared.switch_ports().await?;
            Ok(Object::Bridge(bridge::view(link, observed, &shared.state(), &vlans)))
        }
        Subject::Veth(At { place, name }) => {
            let at = At::new(place.clone(), name);
            let Some(link) = observed.find(&at) else {
                return Err(Error::new(Code::VethNotFound, format!("{at} is gone again")));
            };
            let pair = Pair { place: place.clone(), link, peer: observed.peer_of(link) };
            Ok(Object::Veth(veth::view(&pair, observed, &shared.state())))
        }
        Subject::Tun(name) => Ok(Object::Tun(shared.tun(name, observed).await?)),
        Subject::PortVlans { bridge, port } => {
            if let Some(view) = ovs_vlan::view(bridge, port, observed) {
                return Ok(Object::PortVlans(view));
            }
            let vlans = shared.switch_ports().await?;
            Ok(Object::PortVlans(bridge_vlan::view(bridge, port, &vlans, observed)?))
        }
        Subject::VlanLink(name) => Ok(Object::VlanLink(shared.vlan_link(name, observed)?)),
        Subject::Rule(id) => Ok(Object::Rule(shared.rule(id).await?)),
        Subject::Firewall(id) => {
            let Some(rule) = shared.state().firewall.get(id).cloned() else {
                return Err(Error::new(Code::RuleNotFound, format!("there is no firewall rule {id}")));
            };
            let matched = shared.matched().await?.get(id).copied();
            Ok(Object::Firewall(firewall::view(&rule, matched)))
        }
        Subject::Gone(names) => Ok(Object::Gone { removed: names.clone() }),
    }
}
