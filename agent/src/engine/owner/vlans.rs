//! The VLAN filter follows the links: ports that come and go, carriers, spanning tree.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;
use tracing::{error, warn};

use crate::{
    kernel::{KernelError, links::Observed, switch::SwitchPort},
    kinds::bridge_vlan::{self, ATTACH_BATCH},
    plan::{Step, VlanStep},
};

use super::Owner;

/// When a change of the filter that failed is tried again, if no event asks for it before.
const RETRY: Duration = Duration::from_secs(5);

impl Owner {
    /// Brings the ports of filtered bridges in line with the links as they are now, and then their drivers. Answers when
    /// there is more to do: programs are attached a few at a time, so that requests need not wait for hundreds of ports.
    pub(super) async fn refresh_vlans(&mut self, observed: &Observed) -> Option<Instant> {
        let again = self.refresh_ports(observed).await;
        let doors = bridge_vlan::doors(&self.nat.ports, observed);
        if self.nat.doors.as_ref() != Some(&doors) {
            let (dataplane, wanted) = (Arc::clone(&self.shared.dataplane), doors.clone());
            match tokio::task::spawn_blocking(move || dataplane.set_doors(&wanted)).await {
                Ok(()) => self.nat.doors = Some(doors),
                Err(error) => error!(%error, "the look at drivers ended early"),
            }
        }
        again
    }

    async fn refresh_ports(&mut self, observed: &Observed) -> Option<Instant> {
        let wanted = {
            let state = self.shared.state();
            if state.port_vlans.is_empty() && self.nat.ports.is_empty() {
                return None;
            }
            bridge_vlan::desired(&state, observed)
        };
        let steps = bridge_vlan::steps(&wanted, &self.nat);
        let (mut slow, mut again) = (0, None);
        if let Err(error) = self.bring_in_line(wanted).await {
            warn!(%error, "the VLANs of a bridge could not be brought in line");
            again = Some(Instant::now() + RETRY);
        }
        for step in steps {
            let known = match &step {
                VlanStep::Put(port) => self.nat.ports.contains_key(&port.index),
                VlanStep::Remove(_) | VlanStep::Prepare { .. } | VlanStep::Withdraw(_) => false,
            };
            if !known {
                slow += 1;
                if slow > ATTACH_BATCH {
                    return Some(Instant::now());
                }
            }
            let step = Step::Vlan(step);
            if let Err(error) = self.act(&step).await {
                warn!(%step, %error, "the VLAN filter could not be brought in line");
                again = Some(Instant::now() + RETRY);
            }
        }
        again
    }

    async fn bring_in_line(&self, wanted: BTreeMap<u32, SwitchPort>) -> Result<(), KernelError> {
        let dataplane = Arc::clone(&self.shared.dataplane);
        tokio::task::spawn_blocking(move || dataplane.bring_in_line(&wanted))
            .await
            .unwrap_or_else(|error| Err(KernelError::other("change the VLANs of bridges", error.to_string())))
    }

    pub(super) async fn vlan(&mut self, step: &VlanStep) -> Result<(), KernelError> {
        match step {
            VlanStep::Put(port) => {
                self.shared.dataplane.put_switch_port(port)?;
                self.nat.ports.insert(port.index, port.clone());
            }
            VlanStep::Remove(index) => {
                self.shared.dataplane.remove_switch_port(*index)?;
                self.nat.ports.remove(index);
            }
            VlanStep::Prepare { vlans, held } => {
                let observed = self.shared.kernel.observe().await?;
                let Some(port) = bridge_vlan::prepared(vlans, *held, &observed) else {
                    let operation = format!("set the VLANs of {}", vlans.port);
                    return Err(KernelError::errno(operation, nix::errno::Errno::ENODEV as i32));
                };
                self.shared.dataplane.put_switch_port(&port)?;
                self.nat.ports.insert(port.index, port);
            }
            VlanStep::Withdraw(name) => {
                let observed = self.shared.kernel.observe().await?;
                if let Some(link) = observed.link(name) {
                    self.shared.dataplane.remove_switch_port(link.index)?;
                    self.nat.ports.remove(&link.index);
                }
            }
        }
        Ok(())
    }

    /// Frees stations that have not been heard of for long.
    pub(super) async fn age_stations(&self) {
        let dataplane = Arc::clone(&self.shared.dataplane);
        match tokio::task::spawn_blocking(move || dataplane.age_stations()).await {
            Ok(Ok(freed)) => tracing::debug!(freed, "stations were forgotten"),
            Ok(Err(error)) => warn!(%error, "silent stations could not be forgotten"),
            Err(error) => error!(%error, "forgetting silent stations ended early"),
        }
    }
}
