//! The NAT data plane in eBPF: programs loaded and attached, maps filled and read.
//!
//! | file | what |
//! |---|---|
//! | [`object`], [`source`] | adopt programs and maps that are pinned, load and create what is missing |
//! | [`place`], [`record`] | the directory of pins; which of the pinned programs are of this very version |
//! | [`attach`] | put the programs on an interface: TCX, or clsact below 6.6 |
//! | [`guard`] | put them back when somebody has taken them off |
//! | [`rules`], [`family`], [`forwards`], [`local`], [`slots`] | rules and addresses into maps |
//! | [`switch`] | ports and their VLANs into maps, stations and counters out of them |
//! | [`flows`], [`collect`], [`bindings`] | flows out of maps: joined, and removed when they are over; external ports whose time is |
//! | [`loopback`] | where the host's own packets to its forwards turn |
//! | [`waiting`] | where fragments wait for their first one |
//! | [`epoch`], [`fast`] | when and where flows may take the fast path |
//! | [`xdp`] | both in drivers |
//! | [`probe`], [`leave`] | whether programs can be attached here; everything taken away |
//! | [`log`] | the programs' messages into the agent's log |
//! | [`batch`], [`mirror`] | many map entries with one system call; maps whose entries are known without any |

mod attach;
mod batch;
mod bindings;
mod btf;
mod collect;
mod epoch;
mod family;
mod fast;
mod flows;
mod forwarded;
mod forwards;
mod guard;
mod hooks;
mod join;
mod layout;
mod leave;
mod local;
pub mod log;
mod loopback;
mod mirror;
pub mod object;
mod place;
mod probe;
mod record;
mod rules;
mod shape;
mod slots;
mod source;
mod switch;
mod waiting;
mod xdp;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aya::programs::ProgramError;
use telecluster_common::{drop::DropReason, maps, tables::Limits, vlan::maps as vlan};

use self::{
    attach::Attacher, bindings::BindingTables, epoch::Epoch, fast::FastPorts, flows::FlowTables, hooks::Role,
    object::Object, rules::RuleMaps, switch::SwitchMaps, waiting::WaitingRooms, xdp::XdpPorts,
};
pub use self::{
    guard::watch as guard_filters, leave::take_away, switch::config as switch_config,
    xdp::watch as watch_drivers,
};
use super::{
    KernelError,
    dataplane::{
        Attachment, Counters, DataPlane, FastPath, FastPort, FlowVisitor, HoldDown, HostAddresses,
        MapPressure, NatRule, Slot,
    },
    switch::{PortDrops, Station, SwitchPort, VlanCounters, VlanPlane},
    xdp::{Door, Wishes, XdpReport},
};

/// How the data plane is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where maps, links and programs are pinned: `/sys/fs/bpf/telecluster`.
    pub directory: PathBuf,
    /// Flows that fit in the flow table of each address family; `None`: as many as in the tables that are there.
    pub flow_capacity: Option<u32>,
    /// How many of them nobody may have proven; 0: a quarter.
    pub unproven_flows: u32,
    /// How much one inside host or one rule may take.
    pub limits: Limits,
    /// How ports wait that nobody uses any more.
    pub hold_down: HoldDown,
    /// Where there may be programs in drivers.
    pub xdp: Wishes,
    /// Messages of the programs that are let through: aya-log's levels, 1 error to 5 trace.
    pub log_level: u8,
}

/// The data plane of the running kernel.
#[derive(Debug)]
pub struct BpfDataPlane {
    inner: Mutex<Inner>,
    flows: FlowTables,
    bindings: BindingTables,
    epoch: Arc<Epoch>,
}

#[derive(Debug)]
struct Inner {
    attacher: Attacher,
    rules: RuleMaps,
    switch: SwitchMaps,
    fast_ports: FastPorts,
    rooms: WaitingRooms,
    xdp: XdpPorts,
}

impl BpfDataPlane {
    /// Loads the programs, adopting what an earlier run has pinned: flows, rules and counters go on.
    /// Attaches nothing to an interface that has nothing attached yet.
    pub fn load(options: &Options) -> Result<(Self, Object), KernelError> {
        let mut object = object::load(options)?;
        let rules = RuleMaps::take(&mut object)?;
        let flows = FlowTables::open(&object, &options.directory)?;
        let bindings = BindingTables::open(&object, &options.directory, options.hold_down)?;
        let mut switch = SwitchMaps::take(&mut object)?;
        let epoch = Arc::new(Epoch::take(&mut object)?);
        let fast_ports = FastPorts::take(&mut object)?;
        let mut rooms = WaitingRooms::take(&mut object)?;
        let mut attacher = Attacher::adopt(&options.directory)?;
        rooms.adopt(&mut attacher);
        let xdp = XdpPorts::take(&mut object, &options.directory, &options.xdp)?;
        for port in switch.stale(&attacher) {
            switch.clear(&mut attacher, port)?;
        }
        let inner = Inner { attacher, rules, switch, fast_ports, rooms, xdp };
        Ok((Self { inner: Mutex::new(inner), flows, bindings, epoch }, object))
    }

    /// What has to hear of the kernel's changes.
    pub fn epoch(&self) -> Arc<Epoch> {
        Arc::clone(&self.epoch)
    }

    /// After somebody has taken filters off these interfaces, or who knows which.
    fn put_back(&self, interfaces: Option<&BTreeSet<u32>>) {
        self.inner().attacher.put_back(interfaces);
    }

    fn look_at_drivers(&self) {
        self.inner().xdp.look_again();
    }

    /// A panic elsewhere must not take the data plane with it: every change of the maps is whole by itself.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether programs that load can also be attached, tried where nobody is disturbed.
pub fn can_attach(options: &Options) -> Result<(), KernelError> {
    probe::attaches(&options.directory)
}

impl DataPlane for BpfDataPlane {
    fn backend(&self) -> &'static str {
        "ebpf"
    }

    fn attach(&self, uplink: u32) -> Result<(), KernelError> {
        let Inner { attacher, rooms, .. } = &mut *self.inner();
        attacher.attach(Role::Uplink, uplink)?;
        rooms.open(uplink, attacher);
        Ok(())
    }

    fn detach(&self, uplink: u32) -> Result<(), KernelError> {
        let Inner { attacher, rooms, xdp, .. } = &mut *self.inner();
        xdp.leave(uplink);
        attacher.detach(Role::Uplink, uplink)?;
        rooms.close(uplink, attacher);
        Ok(())
    }

    fn attachments(&self) -> Vec<Attachment> {
        self.inner().attacher.attachments()
    }

    fn put_rule(&self, slot: Slot, rule: &NatRule) -> Result<(), KernelError> {
        self.inner().rules.put(slot, rule)
    }

    fn remove_rule(&self, slot: Slot, rule: &NatRule) -> Result<(), KernelError> {
        self.inner().rules.remove(slot, rule)
    }

    fn clear_slot(&self, slot: Slot) -> Result<(), KernelError> {
        self.inner().rules.clear(slot)
    }

    fn rules(&self) -> Result<BTreeMap<Slot, Option<NatRule>>, KernelError> {
        self.inner().rules.list()
    }

    fn set_addresses(&self, addresses: &HostAddresses) -> Result<(), KernelError> {
        self.inner().rules.set_addresses(addresses)
    }

    fn set_ports(&self, ports: &[FastPort]) -> Result<(), KernelError> {
        let Inner { attacher, fast_ports, xdp, .. } = &mut *self.inner();
        fast_ports.set(ports, attacher)?;
        xdp.set(ports);
        self.epoch.raise()
    }

    fn set_turns(&self, interfaces: &BTreeSet<u32>) -> Result<(), KernelError> {
        let attacher = &mut self.inner().attacher;
        let attached: Vec<u32> = attacher.indexes(Role::Turn).collect();
        for index in attached.into_iter().filter(|index| !interfaces.contains(index)) {
            attacher.detach(Role::Turn, index)?;
        }
        interfaces.iter().try_for_each(|index| attacher.attach(Role::Turn, *index))?;
        match interfaces.is_empty() {
            true => attacher.detach(Role::Loopback, loopback::INDEX),
            false => loopback::open(attacher),
        }
    }

    fn fast_path(&self) -> FastPath {
        self.epoch.fast_path()
    }

    fn xdp(&self) -> Result<XdpReport, KernelError> {
        self.inner().xdp.report()
    }

    fn counters(&self, slot: Slot) -> Result<Counters, KernelError> {
        self.inner().rules.counters(slot)
    }

    fn visit_flows(&self, visit: FlowVisitor<'_>) -> Result<(), KernelError> {
        let rules = self.inner().rules.slots()?;
        self.flows.visit(&rules, self.epoch.current()?, visit)
    }

    fn drops(&self) -> Result<Vec<(DropReason, u64)>, KernelError> {
        self.inner().rules.drops()
    }

    fn pressure(&self) -> Result<Vec<MapPressure>, KernelError> {
        let mut pressure = self.flows.pressure()?;
        pressure.extend(self.bindings.pressure()?);
        pressure.extend(self.inner().rules.pressure()?);
        Ok(pressure)
    }

    fn collect_garbage(&self) -> Result<usize, KernelError> {
        let rules = self.inner().rules.slots()?;
        self.bindings.collect_garbage(&rules)?;
        self.flows.collect_garbage(&rules)
    }
}

impl VlanPlane for BpfDataPlane {
    fn put_switch_port(&self, port: &SwitchPort) -> Result<(), KernelError> {
        let Inner { attacher, switch, .. } = &mut *self.inner();
        switch.put(attacher, port)
    }

    fn remove_switch_port(&self, index: u32) -> Result<(), KernelError> {
        let Inner { attacher, switch, .. } = &mut *self.inner();
        switch.remove(attacher, index)
    }

    fn set_doors(&self, doors: &BTreeMap<u32, Door>) {
        self.inner().xdp.set_doors(doors);
    }

    fn switch_ports(&self) -> Result<BTreeMap<u32, SwitchPort>, KernelError> {
        self.inner().switch.ports()
    }

    fn vlan_counters(&self) -> Result<Vec<VlanCounters>, KernelError> {
        self.inner().switch.vlan_counters()
    }

    fn port_drops(&self) -> Result<Vec<PortDrops>, KernelError> {
        self.inner().switch.drops()
    }

    fn stations(&self) -> Result<Vec<Station>, KernelError> {
        self.inner().switch.stations()
    }

    fn age_stations(&self) -> Result<usize, KernelError> {
        self.inner().switch.age()
    }
}

/// What aya says, with the errno that is somewhere in its chain of causes, and the verifier's last words.
fn failed(operation: impl Into<String>, error: &(dyn std::error::Error + 'static)) -> KernelError {
    let operation = operation.into();
    let mut extack = None;
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(ProgramError::LoadError { verifier_log, .. }) = error.downcast_ref() {
            let log = verifier_log.to_string();
            tracing::debug!(operation, "{log}");
            extack = last_words(&log).map(str::to_owned);
        }
        if let Some(errno) = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error) {
            return KernelError { extack, ..KernelError::errno(operation, errno) };
        }
        cause = error.source();
    }
    KernelError { extack, ..KernelError::other(operation, error.to_string()) }
}

/// Why the verifier refused a program: its last line but for the statistics that follow (kernel/bpf/verifier.c
/// `print_verification_stats`).
fn last_words(log: &str) -> Option<&str> {
    const STATISTICS: [&str; 3] = ["processed ", "verification time ", "stack depth "];
    let lines = log.lines().rev().map(str::trim).filter(|line| !line.is_empty());
    lines.into_iter().find(|line| !STATISTICS.iter().any(|word| line.starts_with(word)))
}

/// Map keys and values of `telecluster_common`, for aya.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(transparent)]
struct Plain<T>(T);

macro_rules! plain {
    ($($module:ident::$kind:ident $(<$address:ident>)?),* $(,)?) => {
        $(
            // SAFETY: `repr(C)` of integers and byte arrays without padding (asserted in `maps`), so that every
            // bit pattern is valid and every byte is initialised.
            unsafe impl $(<$address: family::Octets>)? aya::Pod for Plain<$module::$kind $(<$address>)?> {}
        )*
    };
}

plain!(maps::ForwardKey<A>, maps::Forward<A>, maps::MasqueradeKey<A>, maps::Masquerade, maps::Uplink<A>);
plain!(maps::Local, maps::PoolKey);
plain!(maps::RangeKey<A>, maps::Range<A>, maps::SourceKey<A>);
plain!(maps::Rule, maps::RuleStat, maps::Opening, maps::Epoch, maps::Port);
plain!(vlan::PortConfig, vlan::MemberKey, vlan::Member, vlan::FloodKey, vlan::StationKey, vlan::Station);
plain!(vlan::VlanStat, vlan::VlanDrops, vlan::PortStat);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verifiers_reason_comes_before_its_statistics() {
        let log = "0: R1=ctx() R10=fp0\n; let x = 1;\n12: (71) r1 = *(u8 *)(r2 +0)\n\
                   invalid access to packet, off=0 size=1, R2(id=0,off=0,r=0)\n\
                   verification time 12 usec\nstack depth 96+32\nprocessed 13 insns (limit 1000000)\n\n";
        assert_eq!(last_words(log), Some("invalid access to packet, off=0 size=1, R2(id=0,off=0,r=0)"));
        assert_eq!(last_words(""), None);
    }
}
