//! The whole machine: netlink, and OVS where it is. To everybody else a bridge of OVS is a bridge with ports.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::{
    Kernel, KernelError,
    links::{ALIAS, BridgePort, LinkKind, Observed, OperState, Place, PortState},
    listeners::Listener,
    netlink::NetlinkKernel,
    ovs::{Ovs, OvsVlans, Presence},
    step::LinkStep,
};

/// Netlink and OVS.
#[derive(Debug)]
pub struct HostKernel {
    netlink: NetlinkKernel,
    ovs: Arc<Ovs>,
    /// What OVS had when it was last looked at.
    seen: Mutex<Presence>,
    /// VLANs of ports that are about to enter a bridge of OVS.
    coming: Mutex<HashMap<String, OvsVlans>>,
}

impl HostKernel {
    pub fn new(netlink: NetlinkKernel, ovs: Ovs) -> Self {
        Self { netlink, ovs: Arc::new(ovs), seen: Mutex::default(), coming: Mutex::default() }
    }

    async fn look(&self) -> Result<Presence, KernelError> {
        let ovs = Arc::clone(&self.ovs);
        let presence = tokio::task::spawn_blocking(move || ovs.observe())
            .await
            .map_err(|error| KernelError::other("look at OVS", error.to_string()))?;
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = presence.clone();
        Ok(presence)
    }

    async fn with_ovs(&self, mut observed: Arc<Observed>) -> Result<Arc<Observed>, KernelError> {
        let presence = self.look().await?;
        if presence != Presence::Absent {
            let observed = Arc::make_mut(&mut observed);
            observed.ovs = presence;
            overlay(observed);
        }
        Ok(observed)
    }

    fn coming(&self) -> MutexGuard<'_, HashMap<String, OvsVlans>> {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ovs(
        &self,
        task: impl FnOnce(&Ovs) -> Result<(), KernelError> + Send + 'static,
    ) -> Result<(), KernelError> {
        let ovs = Arc::clone(&self.ovs);
        tokio::task::spawn_blocking(move || task(&ovs))
            .await
            .unwrap_or_else(|error| Err(KernelError::other("change OVS", error.to_string())))
    }

    /// Puts a link where it shall be, whichever of the two it leaves and enters.
    async fn set_master(
        &self,
        step: &LinkStep,
        port: &str,
        master: Option<&str>,
        presence: &Presence,
    ) -> Result<(), KernelError> {
        let operation = step.to_string();
        let name = port.to_owned();
        if presence.port(port).is_some() {
            let (operation, name) = (operation.clone(), name.clone());
            self.ovs(move |ovs| ovs.remove_port(&operation, &name)).await?;
        }
        match master.and_then(|master| presence.bridge(master)) {
            Some(bridge) => {
                let bridge = bridge.name.clone();
                let vlans = self.coming().remove(port).unwrap_or_default();
                self.ovs(move |ovs| ovs.add_port(&operation, &bridge, &name, &vlans)).await
            }
            // The kernel's own masters, and none at all.
            None if master.is_some() || presence.port(port).is_none() => self.netlink.apply(step).await,
            None => Ok(()),
        }
    }

    /// Forgets ports of ours whose links are gone: OVS would wait for them for ever.
    async fn sweep(&self) -> Result<(), KernelError> {
        let presence = self.look().await?;
        let ports = presence.bridges().iter().flat_map(|bridge| &bridge.ports);
        let gone: Vec<String> = ports
            .filter(|port| port.ours && nix::net::if_::if_nametoindex(port.name.as_str()).is_err())
            .map(|port| port.name.clone())
            .collect();
        for port in gone {
            self.ovs(move |ovs| ovs.remove_port(&format!("forget port {port}"), &port)).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Kernel for HostKernel {
    async fn observe(&self) -> Result<Arc<Observed>, KernelError> {
        let observed = self.netlink.observe().await?;
        self.with_ovs(observed).await
    }

    async fn observe_owners(&self) -> Result<Arc<Observed>, KernelError> {
        let observed = self.netlink.observe_owners().await?;
        self.with_ovs(observed).await
    }

    async fn reachable(&self, link: &str, host: IpAddr) -> Result<bool, KernelError> {
        self.netlink.reachable(link, host).await
    }

    async fn listeners(&self) -> Result<Vec<Listener>, KernelError> {
        self.netlink.listeners().await
    }

    async fn apply(&self, step: &LinkStep) -> Result<(), KernelError> {
        let presence = self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let operation = step.to_string();
        match step {
            LinkStep::CreateBridge(bridge) if bridge.ovs => {
                let bridge = bridge.clone();
                self.ovs(move |ovs| ovs.create_bridge(&operation, &bridge)).await?;
                // Later steps of the plan put ports into it.
                self.look().await.map(drop)
            }
            LinkStep::DeleteLink(at) if at.place == Place::Here && presence.bridge(&at.name).is_some() => {
                let name = at.name.clone();
                self.ovs(move |ovs| ovs.delete_bridge(&operation, &name)).await?;
                self.look().await.map(drop)
            }
            LinkStep::DeleteLink(_) | LinkStep::Move { .. } if !presence.bridges().is_empty() => {
                self.netlink.apply(step).await?;
                self.sweep().await
            }
            LinkStep::SetMaster { port, master } if !presence.bridges().is_empty() => {
                self.set_master(step, port, master.as_deref(), &presence).await?;
                self.look().await.map(drop)
            }
            LinkStep::Hold { port, hold, .. } if presence.port(port).is_some() => {
                let (port, hold) = (port.clone(), *hold);
                self.ovs(move |ovs| match hold {
                    true => ovs.hold(&operation, &port),
                    false => ovs.set_vlans(&operation, &port, &Default::default()),
                })
                .await
            }
            LinkStep::SetPortVlans { port, vlans } => {
                let (port, vlans) = (port.clone(), vlans.clone());
                if presence.port(&port).is_none() {
                    self.coming().insert(port, vlans);
                    return Ok(());
                }
                self.ovs(move |ovs| ovs.set_vlans(&operation, &port, &vlans)).await
            }
            LinkStep::SetStp { bridge, stp } if presence.bridge(bridge).is_some() => {
                let (bridge, stp) = (bridge.clone(), *stp);
                self.ovs(move |ovs| ovs.set_stp(&operation, &bridge, stp)).await
            }
            LinkStep::SetMtu { link, mtu } if presence.bridge(&link.name).is_some() => {
                let (bridge, mtu) = (link.name.clone(), *mtu);
                self.ovs(move |ovs| ovs.set_mtu(&operation, &bridge, mtu)).await
            }
            other => self.netlink.apply(other).await,
        }
    }

    fn events(&self) -> Result<mpsc::Receiver<()>, KernelError> {
        self.netlink.events()
    }
}

/// Shows OVS's bridges as bridges and their ports as ports.
fn overlay(observed: &mut Observed) {
    let Presence::Present(bridges) = observed.ovs.clone() else { return };
    for bridge in bridges {
        let Some(position) = observed.links.iter().position(|link| link.name == bridge.name) else {
            continue;
        };
        let own = &mut observed.links[position];
        own.kind = LinkKind::OvsBridge { stp: bridge.stp };
        // The database says whose it is; nobody else writes an alias there.
        own.alias = bridge.ours.then(|| ALIAS.to_owned());
        (own.master, own.tun) = (None, None);
        let index = own.index;
        for port in &bridge.ports {
            let Some(position) = observed.links.iter().position(|link| link.name == port.name) else {
                continue;
            };
            let link = &mut observed.links[position];
            let state = match (port.is_held(), link.operstate) {
                (true, _) => PortState::Blocking,
                (false, OperState::Up | OperState::Unknown) => PortState::Forwarding,
                (false, _) => PortState::Disabled,
            };
            link.master = Some(index);
            link.port = Some(BridgePort { state, guarded: port.is_held(), hairpin: false, isolated: false });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::kernel::{
        fake::{FakeKernel, Faults},
        ovs::{OvsBridge, OvsPort},
    };

    #[tokio::test]
    async fn a_bridge_of_ovs_is_a_bridge_with_its_ports() {
        let mut observed = (*FakeKernel::new(Faults::default()).observe().await.unwrap()).clone();
        let port = |name: &str, tag| OvsPort { name: name.into(), tag, trunks: BTreeSet::new(), ours: true };
        observed.ovs = Presence::Present(vec![OvsBridge {
            name: "ens4".into(),
            stp: true,
            ours: true,
            ports: vec![port("ens3", Some(4095)), port("gone", None)],
        }]);
        overlay(&mut observed);
        let bridge = observed.link("ens4").unwrap();
        assert!(bridge.is_bridge() && bridge.marked());
        let ports: Vec<_> = observed.ports_of(bridge.index).collect();
        assert_eq!(ports.len(), 1);
        assert_eq!(
            ports[0].port,
            Some(BridgePort { state: PortState::Blocking, guarded: true, hairpin: false, isolated: false })
        );
    }
}
