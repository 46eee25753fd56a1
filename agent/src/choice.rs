//! Which data plane does the NAT, and why: eBPF where it can be, else iptables. The one that is chosen takes away what
//! the other one has left, so that no packet is translated twice.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use telecluster_common::tables::Limits;
use tracing::{info, warn};

use crate::{
    config::{Config, Dataplane},
    kernel::{
        KernelError,
        bpf::{self, BpfDataPlane, object::Object},
        dataplane::{DataPlane, HoldDown},
        iptables::Iptables,
        netfilter::{self, NetfilterDataPlane},
    },
};

/// A data plane that is ready.
pub(crate) enum Loaded {
    /// With its object, which must live as long.
    Ebpf(Box<(BpfDataPlane, Object)>),
    Iptables(Box<NetfilterDataPlane>),
}

/// The data plane, and why it is this one.
pub(crate) struct Choice {
    pub(crate) loaded: Loaded,
    pub(crate) reason: String,
}

impl Loaded {
    /// For a short use: the object is kept beside it.
    pub(crate) fn split(self) -> (Arc<dyn DataPlane>, Option<Object>) {
        match self {
            Self::Ebpf(loaded) => {
                let (dataplane, object) = *loaded;
                (Arc::new(dataplane), Some(object))
            }
            Self::Iptables(dataplane) => (Arc::new(*dataplane), None),
        }
    }
}

/// Loads or adopts what `DATAPLANE` says; `auto` tries eBPF.
pub(crate) fn choose(config: &Config, flow_capacity: Option<u32>) -> Result<Choice> {
    let options = bpf::Options {
        directory: config.bpf_dir.clone(),
        flow_capacity,
        unproven_flows: config.unproven_flows,
        limits: config.limits,
        hold_down: config.hold_down,
        xdp: config.xdp.clone(),
        log_level: config.log_level.programs(),
    };
    let choice = match config.dataplane {
        Dataplane::Iptables => iptables(config, "DATAPLANE is iptables".to_owned())?,
        Dataplane::Ebpf => ebpf(BpfDataPlane::load(&options), "DATAPLANE is ebpf")?,
        Dataplane::Auto => {
            // Flows that this version cannot adopt are for the operator to give up, not for us.
            bpf::object::adoptable(&options).context("the eBPF data plane cannot be used")?;
            match BpfDataPlane::load(&options).and_then(|loaded| bpf::can_attach(&options).map(|()| loaded)) {
                Err(error) if !is_of_settings(&error) => {
                    warn!(%error, "eBPF cannot be used here: the NAT will be iptables'");
                    iptables(config, format!("eBPF cannot be used here: {error}"))?
                }
                result => ebpf(result, "the kernel takes the eBPF programs")?,
            }
        }
    };
    info!(dataplane = choice.name(), reason = choice.reason, "data plane chosen");
    Ok(choice)
}

impl Choice {
    fn name(&self) -> &'static str {
        match &self.loaded {
            Loaded::Ebpf(loaded) => loaded.0.backend(),
            Loaded::Iptables(dataplane) => dataplane.backend(),
        }
    }
}

/// Not enough memory for as many flows as were asked for says nothing about eBPF.
fn is_of_settings(error: &KernelError) -> bool {
    error.errno == Some(Errno::ENOMEM as i32)
}

fn ebpf(result: Result<(BpfDataPlane, Object), KernelError>, reason: &str) -> Result<Choice> {
    let loaded = result.context("the eBPF data plane cannot be used")?;
    netfilter::take_away(&Iptables::default())
        .context("the iptables data plane of an earlier run cannot be removed")?;
    Ok(Choice { loaded: Loaded::Ebpf(Box::new(loaded)), reason: reason.to_owned() })
}

fn iptables(config: &Config, reason: String) -> Result<Choice> {
    let dataplane = NetfilterDataPlane::open(Iptables::default())
        .with_context(|| format!("the iptables data plane cannot be used ({reason})"))?;
    bpf::take_away(&config.bpf_dir).context("the programs of an earlier run cannot be removed")?;
    if config.limits != Limits::default() {
        warn!(limits = ?config.limits, "iptables cannot hold inside hosts to these limits");
    }
    if config.hold_down != HoldDown::default() {
        warn!(hold_down = ?config.hold_down, "iptables keeps no port from others that nobody uses any more");
    }
    Ok(Choice { loaded: Loaded::Iptables(Box::new(dataplane)), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_flows_for_the_memory_are_no_reason_to_do_without_ebpf() {
        assert!(is_of_settings(&KernelError::errno("create the BPF maps", Errno::ENOMEM as i32)));
        assert!(!is_of_settings(&KernelError::errno("load the BPF program", Errno::EPERM as i32)));
        assert!(!is_of_settings(&KernelError::other("load the BPF program", "no BTF")));
    }
}
