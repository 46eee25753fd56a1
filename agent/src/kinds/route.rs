//! Routes, as callers see them.

use ipnet::IpNet;

use crate::{
    kernel::{
        links::{Observed, Place},
        routes::Route,
    },
    model::RouteView,
};

/// A route with the name of its interface.
pub fn view(route: &Route, observed: &Observed) -> RouteView {
    let Route { destination, gateway, interface, source, metric, kind } = route;
    let family = match destination {
        IpNet::V4(_) => "inet",
        IpNet::V6(_) => "inet6",
    };
    let link = interface.and_then(|index| observed.by_index(&Place::Here, index));
    RouteView {
        destination: if destination.prefix_len() == 0 {
            "default".to_owned()
        } else {
            destination.to_string()
        },
        gateway: gateway.map(|gateway| gateway.to_string()),
        interface: link.map(|link| link.name.clone()),
        source: source.map(|source| source.to_string()),
        family: family.to_owned(),
        metric: *metric,
        kind: kind.name().to_owned(),
    }
}
