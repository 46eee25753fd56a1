//! The NAT data plane in iptables, for kernels and hosts where eBPF cannot be.
//!
//! | file | what |
//! |---|---|
//! | [`lines`], [`comment`] | rules as lines of iptables, and back |
//! | [`hairpin`] | those for inside hosts that use the uplink's address |
//! | [`pace`] | those that hold a rule's new flows to its pace |
//! | [`script`] | what `iptables-restore` is told, what `iptables-save` tells |
//! | [`tables`], [`watch`] | our chains in the kernel: changed, adopted, put right |
//! | [`conntrack`], [`flows`] | the kernel's connections as flows of our rules |
//! | [`settings`] | what connection tracking is told and asked through `/proc/sys` |
//!
//! What it cannot do as the programs do it is in `docs/fallback.md`.

mod comment;
mod conntrack;
mod flows;
mod hairpin;
mod lines;
mod pace;
mod script;
mod settings;
mod tables;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use telecluster_common::{drop::DropReason, maps::Timeouts};

use self::{flows::Owners, lines::Placed, settings::Lifetimes, tables::Tables};
use super::{
    KernelError,
    bridge_filter::{self, BridgeFilter},
    dataplane::{
        Attachment, Counters, DataPlane, FastPath, FastPort, FlowVisitor, HostAddresses, MapPressure,
        NatRule, NatType, Slot,
    },
    fastpath::netfilter::has_chain,
    iptables::Iptables,
    switch::{PortDrops, Station, SwitchPort, VlanCounters, VlanPlane},
};

/// Beside what is refused; `docs/fallback.md` says more.
const DIFFERENCES: [&str; 8] = [
    "an inside socket may get another external port for each destination (no endpoint-independent mapping)",
    "only the very socket that the inside has sent to may answer, whatever nat_type says",
    "port_parity is not kept",
    "packets of a segmentation offload count as one",
    "timeouts are the kernel's: net.netfilter.nf_conntrack_*",
    "drops have no reasons, but for new flows beyond a rule's pace",
    "there is no fast path",
    "VLANs on ports of bridges are kept apart by the kernel's bridge, where it has a filter, by its rules and without counters",
];

/// The chains and connections of the running kernel.
#[derive(Debug)]
pub struct NetfilterDataPlane {
    tables: Arc<Mutex<Tables>>,
    iptables: Iptables,
    /// `iptables-legacy`: its changes are told to nobody.
    legacy: bool,
    host: Mutex<Host>,
    bridges: BridgeFilter,
}

/// What is only remembered: nothing hangs at an interface.
#[derive(Debug, Default)]
struct Host {
    attached: BTreeSet<u32>,
    addresses: HostAddresses,
}

impl NetfilterDataPlane {
    /// Adopts the chains of an earlier run, with what they have counted. Without rules nothing is changed.
    pub fn open(iptables: Iptables) -> Result<Self, KernelError> {
        let legacy = iptables.run("iptables-restore", &["--version"], "")?.contains("legacy");
        let tables = Tables::open(iptables.clone())?;
        let attached = tables.rules().values().map(|placed| placed.rule.uplink()).collect();
        let host = Host { attached, addresses: HostAddresses::default() };
        let tables = Arc::new(Mutex::new(tables));
        watch::watch(Arc::clone(&tables), legacy)?;
        Ok(Self { tables, iptables, legacy, host: Mutex::new(host), bridges: BridgeFilter::open()? })
    }

    /// Every change of the chains is whole by itself, so a panic elsewhere leaves nothing half done.
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn host(&self) -> MutexGuard<'_, Host> {
        self.host.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove(&self, slot: Slot) -> Result<(), KernelError> {
        let mut tables = self.tables();
        let before = tables.rules().clone();
        let mut after = before.clone();
        let Some(placed) = after.remove(&slot) else { return Ok(()) };
        tables.change(after)?;
        // In this order: between the two, nobody can make another one.
        if let Err(error) = end_flows([&placed.rule], &self.host().addresses) {
            tables.change_back(before);
            return Err(error);
        }
        Ok(())
    }
}

/// Removes what an iptables data plane has left, rules, flows and filters of bridges, so that another one can take over.
///
/// No program is run on a host that has no such chains: it may have no iptables either.
pub fn take_away(iptables: &Iptables) -> Result<(), KernelError> {
    bridge_filter::take_away()?;
    if !may_have_chains() {
        return Ok(());
    }
    let rules = tables::clear(iptables)?;
    if rules.is_empty() {
        return Ok(());
    }
    end_flows(&rules, &HostAddresses::default())
}

/// Whether the kernel has a chain of ours, or tables that only iptables-legacy can read.
fn may_have_chains() -> bool {
    const LEGACY: [&str; 2] = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"];
    let legacy = LEGACY.iter().any(|path| {
        fs::read_to_string(path).unwrap_or_default().lines().any(|table| table == "nat" || table == "mangle")
    });
    legacy || has_chain(|name| lines::Chain::ALL.iter().any(|chain| chain.name() == name))
}

fn end_flows<'a>(
    rules: impl IntoIterator<Item = &'a NatRule>,
    addresses: &HostAddresses,
) -> Result<(), KernelError> {
    let rules = rules.into_iter().enumerate().filter_map(|(n, rule)| Some((Slot(n.try_into().ok()?), rule)));
    let owners = Owners::new(rules, addresses);
    let entries = conntrack::list()?;
    let ended = conntrack::end(entries.iter().filter(|entry| owners.of(entry).is_some()))?;
    tracing::debug!(ended, "flows were ended");
    Ok(())
}

impl DataPlane for NetfilterDataPlane {
    fn backend(&self) -> &'static str {
        "iptables"
    }

    fn differences(&self) -> &'static [&'static str] {
        &DIFFERENCES
    }

    fn shortcoming(&self, rule: &NatRule) -> Option<&'static str> {
        match rule {
            NatRule::Masquerade { nat: NatType::FullCone, .. } => Some(
                "iptables has no full_cone: only the very sockets that an inside socket has sent to may answer",
            ),
            NatRule::Masquerade { parity: true, .. } => Some("iptables does not keep the parity of ports"),
            NatRule::Masquerade { timeouts, .. } | NatRule::Forward { timeouts, .. }
                if *timeouts != Timeouts::RFC =>
            {
                Some(
                    "iptables has no timeouts for a rule: flows may be idle for as long as nf_conntrack's settings say",
                )
            }
            NatRule::Masquerade { .. } | NatRule::Forward { .. } => None,
        }
    }

    fn attach(&self, uplink: u32) -> Result<(), KernelError> {
        self.host().attached.insert(uplink);
        Ok(())
    }

    fn detach(&self, uplink: u32) -> Result<(), KernelError> {
        self.host().attached.remove(&uplink);
        Ok(())
    }

    fn attachments(&self) -> Vec<Attachment> {
        let host = self.host();
        host.attached.iter().map(|uplink| Attachment { uplink: *uplink, mechanism: "iptables" }).collect()
    }

    fn put_rule(&self, slot: Slot, rule: &NatRule) -> Result<(), KernelError> {
        let uplink = tables::interface_name(rule.uplink())?;
        let mut tables = self.tables();
        let mut rules = tables.rules().clone();
        rules.insert(slot, Placed { rule: rule.clone(), uplink });
        tables.change(rules)?;
        // Connection tracking may be a module, which comes with the first rule.
        settings::count();
        Ok(())
    }

    fn remove_rule(&self, slot: Slot, _rule: &NatRule) -> Result<(), KernelError> {
        self.remove(slot)
    }

    fn clear_slot(&self, slot: Slot) -> Result<(), KernelError> {
        self.remove(slot)
    }

    fn rules(&self) -> Result<BTreeMap<Slot, Option<NatRule>>, KernelError> {
        let tables = self.tables();
        Ok(tables.rules().iter().map(|(slot, placed)| (*slot, Some(placed.rule.clone()))).collect())
    }

    /// What comes in by whatever is no uplink may turn.
    fn set_turns(&self, _interfaces: &BTreeSet<u32>) -> Result<(), KernelError> {
        Ok(())
    }

    /// The kernel masquerades to the address that an interface has; they are for those who use it from inside, and for telling
    /// whose a connection is.
    fn set_addresses(&self, addresses: &HostAddresses) -> Result<(), KernelError> {
        let uplinks = hairpin::uplinks(addresses, |index| tables::interface_name(index).ok());
        self.tables().set_uplinks(uplinks)?;
        self.host().addresses = addresses.clone();
        Ok(())
    }

    /// There is no fast path for them.
    fn set_ports(&self, _ports: &[FastPort]) -> Result<(), KernelError> {
        Ok(())
    }

    fn fast_path(&self) -> FastPath {
        FastPath::Closed("the NAT is iptables', which has no fast path".to_owned())
    }

    fn counters(&self, slot: Slot) -> Result<Counters, KernelError> {
        Ok(self.counters_of(&[slot])?.remove(&slot).unwrap_or_default())
    }

    fn counters_of(&self, slots: &[Slot]) -> Result<BTreeMap<Slot, Counters>, KernelError> {
        let mut counted = match slots.is_empty() {
            true => BTreeMap::new(),
            false => tables::counters(&self.iptables)?,
        };
        Ok(slots.iter().map(|slot| (*slot, counted.remove(slot).unwrap_or_default())).collect())
    }

    fn visit_flows(&self, visit: FlowVisitor<'_>) -> Result<(), KernelError> {
        let rules = self.tables().rules().clone();
        if rules.is_empty() {
            return Ok(());
        }
        let addresses = self.host().addresses.clone();
        let owners = Owners::new(rules.iter().map(|(slot, placed)| (*slot, &placed.rule)), &addresses);
        let lifetimes = Lifetimes::read();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let entries = conntrack::list()?;
        let owned = entries.iter().filter_map(|entry| Some((entry, owners.of(entry)?)));
        let flows: Vec<_> = owned.map(|(entry, owner)| flows::flow(entry, owner, &lifetimes, now)).collect();
        visit(&flows);
        Ok(())
    }

    /// What iptables drops, it counts nowhere by reason; but for what our own lines drop.
    fn drops(&self) -> Result<Vec<(DropReason, u64)>, KernelError> {
        let paced = self.tables().rules().values().any(|placed| placed.rule.new_flows() != 0);
        let refused = if paced { tables::refused(&self.iptables)? } else { 0 };
        Ok(DropReason::ALL.map(|reason| (reason, if reason == pace::REASON { refused } else { 0 })).into())
    }

    fn pressure(&self) -> Result<Vec<MapPressure>, KernelError> {
        let (entries, capacity) = settings::pressure();
        Ok(vec![MapPressure { map: "nf_conntrack", entries, capacity }])
    }

    /// The kernel frees what has expired. Where nobody tells of changes to the chains, this is the time to look.
    fn collect_garbage(&self) -> Result<usize, KernelError> {
        if self.legacy {
            // It has said what went wrong, and there is a next time.
            let _ = watch::look(&self.tables);
        }
        Ok(0)
    }
}

/// By the kernel's own filter.
impl VlanPlane for NetfilterDataPlane {
    fn put_switch_port(&self, port: &SwitchPort) -> Result<(), KernelError> {
        self.bridges.put(port)
    }

    fn bring_in_line(&self, ports: &BTreeMap<u32, SwitchPort>) -> Result<(), KernelError> {
        self.bridges.settle(ports)
    }

    fn remove_switch_port(&self, index: u32) -> Result<(), KernelError> {
        self.bridges.remove(index)
    }

    fn switch_ports(&self) -> Result<BTreeMap<u32, SwitchPort>, KernelError> {
        self.bridges.ports()
    }

    /// It counts ports, not their VLANs.
    fn vlan_counters(&self) -> Result<Vec<VlanCounters>, KernelError> {
        Ok(Vec::new())
    }

    /// And what it drops, nowhere by reason.
    fn port_drops(&self) -> Result<Vec<PortDrops>, KernelError> {
        Ok(Vec::new())
    }

    fn stations(&self) -> Result<Vec<Station>, KernelError> {
        self.bridges.stations()
    }

    /// The kernel forgets them.
    fn age_stations(&self) -> Result<usize, KernelError> {
        Ok(0)
    }
}
