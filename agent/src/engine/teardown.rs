//! `telecluster-worker teardown`: takes away everything that the worker made, and nothing else.

use std::sync::Arc;

use crate::{
    error::{Code, Error, Result},
    kernel::{
        Kernel,
        dataplane::DataPlane,
        filter::PacketFilter,
        links::{At, Place},
        step::LinkStep,
    },
    kinds::{managed, uplink},
    state::{Record, State, veth_ends},
    store::Store,
};

/// What a teardown came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Teardown {
    /// `bridge/br-ex`, `rule/fwd-...`, in the order they went.
    pub removed: Vec<String>,
    /// What could not be removed and why; it stays in the store.
    pub left: Vec<(String, String)>,
}

/// Removes rules, programs and links, and forgets them. Goes on after a failure.
///
/// The worker must not be running: the store is locked while it does.
pub async fn teardown(
    kernel: Arc<dyn Kernel>,
    dataplane: Arc<dyn DataPlane>,
    filter: Arc<dyn PacketFilter>,
    store: Arc<dyn Store>,
) -> Result<Teardown> {
    let state =
        State::read(store.load()?).map_err(|error| Error::new(Code::StoreUnwritable, error.to_string()))?;
    let mut report = Teardown::default();
    // Rules first: nothing may be forwarded over a link that is about to go.
    let cleared = match state.firewall.is_empty() {
        true => Ok(()),
        false => filter.restore(&[]).map(drop),
    };
    let mut records = state.records();
    records.sort_by_key(|record| match record {
        Record::Rule(_) | Record::Firewall(_) => 0,
        Record::Port(_) => 1,
        // Before what they lie on.
        Record::VlanLink(_) => 2,
        Record::Veth(_) | Record::Tun(_) => 3,
        Record::Bridge(_) => 4,
        // Last: until a port is gone, it is filtered.
        Record::PortVlans(_) => 5,
    });
    for record in records {
        let key = record.key();
        let removed = match (&record, &cleared) {
            (Record::Firewall(_), Err(error)) => Err(Error::from(error.clone())),
            _ => remove(&record, &state, &*kernel, &*dataplane).await,
        };
        match removed.and_then(|()| Ok(store.commit(&[vec![(key.clone(), None)]])?)) {
            Ok(()) => report.removed.push(key),
            Err(error) => report.left.push((key, error.to_string())),
        }
    }
    for attachment in dataplane.attachments() {
        match dataplane.detach(attachment.uplink) {
            Ok(()) => report.removed.push(format!("programs on interface {}", attachment.uplink)),
            Err(error) => report.left.push((format!("interface {}", attachment.uplink), error.to_string())),
        }
    }
    for port in dataplane.switch_ports()?.into_keys() {
        match dataplane.remove_switch_port(port) {
            Ok(()) => report.removed.push(format!("VLAN filter on interface {port}")),
            Err(error) => report.left.push((format!("interface {port}"), error.to_string())),
        }
    }
    Ok(report)
}

async fn remove(
    record: &Record,
    state: &State,
    kernel: &dyn Kernel,
    dataplane: &dyn DataPlane,
) -> Result<()> {
    let observed = kernel.observe().await?;
    let ours = |at: &At| observed.find(at).filter(|link| managed(state, &at.place, link));
    match record {
        Record::Rule(stored) => {
            dataplane.clear_slot(stored.slot)?;
        }
        // All at once, before the first record, and after the last.
        Record::Firewall(_) | Record::PortVlans(_) => {}
        Record::Port(spec) => {
            if let (Some(port), Some(bridge)) =
                (observed.link(&spec.port), observed.link(spec.bridge.as_str()))
                && port.master == Some(bridge.index)
            {
                for step in uplink::release(&observed, state, port, bridge) {
                    kernel.apply(&step).await?;
                }
            }
        }
        Record::Veth(spec) => {
            if let Some(at) = veth_ends(spec).iter().find(|at| ours(at).is_some()) {
                kernel.apply(&LinkStep::DeleteLink(at.clone())).await?;
            }
        }
        Record::Tun(spec) => {
            let at = At::here(spec.name.as_str());
            if ours(&at).is_some() {
                kernel.apply(&LinkStep::DeleteLink(at)).await?;
            }
        }
        Record::VlanLink(spec) => {
            let at = At::here(spec.name.as_str());
            if ours(&at).is_some() {
                kernel.apply(&LinkStep::DeleteLink(at)).await?;
            }
        }
        Record::Bridge(spec) => {
            let at = At::new(Place::Here, spec.name.as_str());
            if ours(&at).is_some() {
                kernel.apply(&LinkStep::DeleteLink(at)).await?;
            }
        }
    }
    Ok(())
}
