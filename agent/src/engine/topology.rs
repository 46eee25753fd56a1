//! Reads that look at everything at once.

use crate::{
    error::Result,
    kernel::dataplane::Counters,
    kinds::{bridge, interface, roles::Roles, route, rule},
    model::RouteView,
    state::RuleSpec,
    topology::{self, Topology},
};

use super::Engine;

impl Engine {
    pub async fn routes(&self) -> Result<Vec<RouteView>> {
        let observed = self.shared.observe().await?;
        Ok(route::list(&observed))
    }

    /// Everything that is connected with something, from one look.
    pub async fn topology(&self) -> Result<Topology> {
        let observed = self.shared.observe().await?;
        let vlans = self.shared.switch_ports().await?;
        let state = self.shared.state();
        let roles = Roles::of(&self.shared.options, &observed);
        let view = |link| interface::view(link, &observed, &state, &vlans, &roles);
        let interfaces: Vec<_> = observed.links.iter().map(view).collect();
        let bridges = observed.links.iter().filter(|link| link.is_bridge());
        let bridges = bridges.map(|link| bridge::view(link, &observed, &state, &vlans)).collect();
        let rules = state.rules.values().filter(|rule| matches!(rule.spec, RuleSpec::Forward(_)));
        let forwards: Vec<_> = rules.map(|rule| rule::view(rule, &Counters::default(), 0, "")).collect();
        let hostname = nix::unistd::gethostname().unwrap_or_default();
        let graph = topology::graph(topology::Source {
            hostname: &hostname.to_string_lossy(),
            observed: &observed,
            interfaces: &interfaces,
            forwards: &forwards,
        });
        Ok(Topology { interfaces, bridges, routes: route::list(&observed), graph })
    }
}
