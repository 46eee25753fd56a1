//! Routes, as callers see them.

use ipnet::IpNet;

use crate::{
    kernel::{
        links::{Observed, Place},
        routes::{Route, Way},
    },
    model::RouteView,
};

/// The routes of the main tables, in the order of the kernel; one with several next hops is there once for each.
pub fn list(observed: &Observed) -> Vec<RouteView> {
    let main = observed.routes.iter().filter(|route| route.table == Route::MAIN);
    main.flat_map(|route| views(route, observed)).collect()
}

fn views(route: &Route, observed: &Observed) -> Vec<RouteView> {
    let Some(kind) = route.kind_name() else { return Vec::new() };
    let name = |index| observed.by_index(&Place::Here, index).map(|link| link.name.clone());
    let view = |Way { gateway, interface }| RouteView {
        destination: match route.destination.prefix_len() {
            0 => "default".to_owned(),
            _ => route.destination.to_string(),
        },
        gateway: gateway.map(|gateway| gateway.to_string()),
        interface: interface.and_then(name),
        source: route.source.map(|source| source.to_string()),
        family: match route.destination {
            IpNet::V4(_) => "inet".to_owned(),
            IpNet::V6(_) => "inet6".to_owned(),
        },
        metric: route.metric,
        kind: kind.to_owned(),
    };
    route.ways().into_iter().map(view).collect()
}
