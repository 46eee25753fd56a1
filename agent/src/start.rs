//! Where a configuration becomes a running engine. The one place that knows every part.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use tracing::{info, warn};

use crate::{
    choice::{self, Choice, Loaded},
    config::{Config, Ovs},
    engine::{self, Engine},
    kernel::{
        Kernel as _,
        bpf::{self, object::Object},
        dataplane::DataPlane,
        fastpath,
        host::HostKernel,
        iptables::Iptables,
        netfilter,
        netlink::NetlinkKernel,
        ovs,
    },
    kinds::roles::{Holder, Roles},
    model::LinkName,
    store::{RedbStore, Store},
};

/// Opens the store, loads or adopts the data plane, reconciles, and hands out the engine.
pub async fn start(config: &Config) -> Result<Engine> {
    let kernel = Arc::new(HostKernel::new(NetlinkKernel::open()?, ovs::Ovs::new(&config.ovs_socket)));
    if let Some(wan) = &config.wan_interface
        && kernel.observe().await?.link(wan.as_str()).is_none()
    {
        bail!(
            "there is no interface {wan}: set WAN_INTERFACE to one of this host, or unset it to have it detected"
        );
    }
    let options = options(config);
    for problem in Roles::of(&options, &*kernel.observe().await?).holders().iter().filter_map(Holder::problem)
    {
        warn!("{problem}");
    }
    let store = open_store(config)?;
    let Choice { loaded, reason } = choice::choose(config, Some(config.flow_capacity))?;
    let dataplane: Arc<dyn DataPlane> = match loaded {
        Loaded::Ebpf(loaded) => {
            let (dataplane, object) = *loaded;
            log_programs(&object);
            let epoch = dataplane.epoch();
            let dataplane = Arc::new(dataplane);
            bpf::guard_filters(Arc::clone(&dataplane))?;
            let drivers = bpf::watch_drivers(Arc::clone(&dataplane), &config.xdp)?;
            fastpath::watch(config.netfilter, move |notice| {
                let something = notice != fastpath::Notice::Quiet;
                epoch.hear(notice);
                if something {
                    // It has been told already when there is no room.
                    let _ = drivers.try_send(());
                }
            })?;
            dataplane
        }
        Loaded::Iptables(dataplane) => Arc::new(*dataplane),
    };
    let options = engine::Options { dataplane_reason: reason, ..options };
    Ok(Engine::start(kernel, dataplane, Arc::new(Iptables::default()), store, options).await?)
}

/// What the engine is told, but for what is only known once it has a data plane.
pub fn options(config: &Config) -> engine::Options {
    let name = |link: &Option<LinkName>| link.as_ref().map(ToString::to_string);
    engine::Options {
        wan_interface: name(&config.wan_interface),
        lan_interface: name(&config.lan_interface),
        external_bridge: name(&config.external_bridge),
        internal_bridge: name(&config.internal_bridge),
        api_port: Some(config.listen.port()),
        require_ovs: config.ovs == Ovs::Require,
        dataplane_reason: String::new(),
    }
}

/// Removes everything that is the worker's: rules, programs, pins, links, state.
pub async fn teardown(config: &Config) -> Result<()> {
    let store = open_store(config)?;
    let kernel = Arc::new(HostKernel::new(NetlinkKernel::open()?, ovs::Ovs::new(&config.ovs_socket)));
    // Whichever it is, what the other one has left goes with the choice.
    let (dataplane, _object) = choice::choose(config, None)?.loaded.split();
    let report = engine::teardown(kernel, dataplane, Arc::new(Iptables::default()), store).await?;
    for removed in &report.removed {
        info!(removed, "removed");
    }
    if !report.left.is_empty() {
        let left: Vec<_> = report.left.iter().map(|(what, why)| format!("{what} ({why})")).collect();
        bail!("could not remove {}", left.join(", "));
    }
    // Rules that the store does not know, of another one.
    netfilter::take_away(&Iptables::default())?;
    bpf::take_away(&config.bpf_dir)?;
    Ok(())
}

fn open_store(config: &Config) -> Result<Arc<dyn Store>> {
    let path = config.state_dir.display();
    let store =
        RedbStore::open(&config.state_dir).with_context(|| format!("the state in {path} cannot be used"))?;
    Ok(Arc::new(store))
}

/// Lets the programs' messages appear in the log. Without them everything else works.
fn log_programs(object: &Object) {
    if let Err(error) = bpf::log::forward(object) {
        warn!(error = format!("{error:#}"), "the programs' messages will not be seen");
    }
}
