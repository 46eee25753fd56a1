//! What a change comes to: steps for the kernel, writes for the store. Made by pure functions in `kinds`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use crate::{
    engine::Options,
    kernel::{
        KernelError,
        dataplane::{FastPort, HostAddresses, NatRule, Slot},
        filter::FilterRule,
        links::{At, Observed},
        listeners::Listener,
        step::LinkStep,
        switch::SwitchPort,
        xdp::Door,
    },
    kinds::lan::Insides,
    model::bridge_vlan::PortVlans,
    state::{Record, State, Write},
};

/// One change to the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Link(LinkStep),
    Nat(NatStep),
    Filter(FilterStep),
    Vlan(VlanStep),
}

/// One change to the NAT data plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NatStep {
    Attach(u32),
    Detach(u32),
    PutRule(Slot, NatRule),
    RemoveRule(Slot, NatRule),
    SetAddresses(HostAddresses),
    /// Where the fast path may begin and end.
    SetPorts(Vec<FastPort>),
    /// Where what inside hosts send to an uplink's address may turn back.
    SetTurns(BTreeSet<u32>),
}

/// One change to the VLAN filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VlanStep {
    Put(SwitchPort),
    Remove(u32),
    /// A link that the plan has just made, on its way into a bridge: only then it has an index.
    Prepare {
        vlans: PortVlans,
        /// It will be held: it would close a ring.
        held: bool,
    },
    /// Undoes that.
    Withdraw(String),
}

/// A change to the worker's own filter rules, all of them in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterStep {
    pub before: Vec<FilterRule>,
    pub after: Vec<FilterRule>,
}

/// What the data plane holds, as far as the engine knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Installed {
    pub attached: BTreeSet<u32>,
    pub addresses: HostAddresses,
    pub filter: Vec<FilterRule>,
    /// Ports of bridges with VLANs, by index.
    pub ports: BTreeMap<u32, SwitchPort>,
    /// What matters of those ports in their drivers; `None`: an earlier run may have said something else.
    pub doors: Option<BTreeMap<u32, Door>>,
    /// Where the fast path may begin and end.
    pub fast_ports: Vec<FastPort>,
    /// Where what inside hosts send to an uplink's address may turn back.
    pub turns: BTreeSet<u32>,
    rules: BTreeMap<Slot, NatRule>,
    /// How many rules each uplink has; follows from `rules`, and saves going through all of them.
    uplinks: BTreeMap<u32, usize>,
    /// Follows from `rules` too.
    insides: Insides,
}

/// What plans are made from.
#[derive(Debug, Clone, Copy)]
pub struct World<'a> {
    pub observed: &'a Observed,
    pub state: &'a State,
    pub nat: &'a Installed,
    pub options: &'a Options,
    /// 12 hexadecimal digits that no rule has yet.
    pub fresh_id: &'a str,
    /// Gateways that answered just before the change and that it could cut off.
    pub reachable: &'a [IpAddr],
    /// Sockets of the host that a new forward could take packets from.
    pub listeners: &'a [Listener],
}

/// What an answer shows afterwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    Bridge(String),
    /// By either end, wherever it is.
    Veth(At),
    Tun(String),
    VlanLink(String),
    PortVlans {
        bridge: String,
        port: String,
    },
    Rule(String),
    Firewall(String),
    Gone(Vec<String>),
}

/// A change that may happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub steps: Vec<Step>,
    pub writes: Vec<Write>,
    pub subject: Subject,
    /// One sentence with names, for when it is done.
    pub message: String,
    pub warnings: Vec<String>,
}

impl Plan {
    pub fn new(subject: Subject, message: impl Into<String>) -> Self {
        Self { steps: Vec::new(), writes: Vec::new(), subject, message: message.into(), warnings: Vec::new() }
    }

    /// Nothing to do: everything is so already.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.writes.is_empty()
    }

    /// Whether it changes links, ports and their VLANs, or what they are meant to be.
    pub fn is_about_links(&self) -> bool {
        let steps = self.steps.iter().any(|step| match step {
            Step::Link(LinkStep::SetIpForwarding(_) | LinkStep::SetIpv6Forwarding(_)) => false,
            Step::Link(_) | Step::Vlan(_) => true,
            Step::Nat(_) | Step::Filter(_) => false,
        });
        let records = self.writes.iter().any(|write| match write {
            Write::Put(record) | Write::Forget(record) => {
                !matches!(record, Record::Rule(_) | Record::Firewall(_))
            }
        });
        steps || records
    }

    pub fn link(&mut self, step: LinkStep) {
        self.steps.push(Step::Link(step));
    }

    pub fn put(&mut self, record: Record) {
        self.writes.push(Write::Put(record));
    }

    pub fn forget(&mut self, record: Record) {
        self.writes.push(Write::Forget(record));
    }
}

impl Step {
    /// The links that this step makes.
    pub fn makes(&self) -> Vec<At> {
        match self {
            Self::Link(step) => step.makes(),
            Self::Nat(_) | Self::Filter(_) | Self::Vlan(_) => Vec::new(),
        }
    }

    /// The steps that put back what this one changes, given the machine before the plan began.
    pub fn inverse(&self, observed: &Observed, nat: &Installed) -> Vec<Self> {
        match self {
            Self::Link(step) => step.inverse(observed).into_iter().map(Self::Link).collect(),
            Self::Nat(step) => step.inverse(nat).into_iter().map(Self::Nat).collect(),
            Self::Filter(FilterStep { before, after }) => {
                vec![Self::Filter(FilterStep { before: after.clone(), after: before.clone() })]
            }
            Self::Vlan(step) => step.inverse(nat).into_iter().map(Self::Vlan).collect(),
        }
    }

    /// Whether an error says that there is nothing left to do.
    pub fn finds_it_done(&self, error: &KernelError) -> bool {
        match self {
            Self::Link(step) => step.finds_it_done(error),
            Self::Nat(_) | Self::Filter(_) | Self::Vlan(_) => false,
        }
    }
}

impl NatStep {
    fn inverse(&self, before: &Installed) -> Option<Self> {
        match self {
            Self::Attach(uplink) => (!before.attached.contains(uplink)).then_some(Self::Detach(*uplink)),
            Self::Detach(uplink) => before.attached.contains(uplink).then_some(Self::Attach(*uplink)),
            Self::PutRule(slot, rule) => {
                (before.rules.get(slot) != Some(rule)).then(|| Self::RemoveRule(*slot, rule.clone()))
            }
            Self::RemoveRule(slot, rule) => Some(Self::PutRule(*slot, rule.clone())),
            Self::SetAddresses(_) => Some(Self::SetAddresses(before.addresses.clone())),
            Self::SetPorts(_) => Some(Self::SetPorts(before.fast_ports.clone())),
            Self::SetTurns(_) => Some(Self::SetTurns(before.turns.clone())),
        }
    }
}

impl VlanStep {
    fn inverse(&self, before: &Installed) -> Option<Self> {
        let put = |index: &u32| before.ports.get(index).cloned().map(Self::Put);
        match self {
            Self::Put(port) => Some(put(&port.index).unwrap_or(Self::Remove(port.index))),
            Self::Remove(index) => put(index),
            Self::Prepare { vlans, held: _ } => Some(Self::Withdraw(vlans.port.clone())),
            Self::Withdraw(_) => None,
        }
    }
}

impl Installed {
    pub fn rules(&self) -> &BTreeMap<Slot, NatRule> {
        &self.rules
    }

    /// How many rules the uplink has.
    pub fn rules_of(&self, uplink: u32) -> usize {
        self.uplinks.get(&uplink).copied().unwrap_or(0)
    }

    /// Uplinks that have rules.
    pub fn uplinks(&self) -> impl Iterator<Item = u32> {
        self.uplinks.keys().copied()
    }

    /// The inside hosts and networks that rules are about.
    pub fn insides(&self) -> &Insides {
        &self.insides
    }

    pub fn put(&mut self, slot: Slot, rule: NatRule) {
        self.remove(slot);
        self.insides.add(&rule);
        *self.uplinks.entry(rule.uplink()).or_default() += 1;
        self.rules.insert(slot, rule);
    }

    fn remove(&mut self, slot: Slot) {
        let Some(rule) = self.rules.remove(&slot) else { return };
        self.insides.remove(&rule);
        let left = self.rules_of(rule.uplink()).saturating_sub(1);
        if left == 0 {
            self.uplinks.remove(&rule.uplink());
        } else {
            self.uplinks.insert(rule.uplink(), left);
        }
    }

    /// Keeps the books after a step was made.
    pub fn note(&mut self, step: &NatStep) {
        match step {
            NatStep::Attach(uplink) => drop(self.attached.insert(*uplink)),
            NatStep::Detach(uplink) => drop(self.attached.remove(uplink)),
            NatStep::PutRule(slot, rule) => self.put(*slot, rule.clone()),
            NatStep::RemoveRule(slot, _) => self.remove(*slot),
            NatStep::SetAddresses(addresses) => self.addresses = addresses.clone(),
            NatStep::SetPorts(ports) => self.fast_ports.clone_from(ports),
            NatStep::SetTurns(interfaces) => self.turns.clone_from(interfaces),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(step) => step.fmt(f),
            Self::Nat(NatStep::Attach(uplink)) => write!(f, "attach the programs to interface {uplink}"),
            Self::Nat(NatStep::Detach(uplink)) => write!(f, "detach the programs from interface {uplink}"),
            Self::Nat(NatStep::PutRule(slot, _)) => write!(f, "put the rule of slot {}", slot.0),
            Self::Nat(NatStep::RemoveRule(slot, _)) => write!(f, "remove the rule of slot {}", slot.0),
            Self::Nat(NatStep::SetAddresses(_)) => f.write_str("set the host's addresses"),
            Self::Filter(FilterStep { before, after }) => {
                write!(f, "change the firewall from {} to {} rules", before.len(), after.len())
            }
            Self::Vlan(VlanStep::Put(port)) => write!(f, "set the VLANs of interface {}", port.index),
            Self::Vlan(VlanStep::Remove(index)) => write!(f, "filter interface {index} no longer"),
            Self::Vlan(VlanStep::Prepare { vlans, .. }) => write!(f, "set the VLANs of {}", vlans.port),
            Self::Vlan(VlanStep::Withdraw(port)) => write!(f, "filter {port} no longer"),
            Self::Nat(NatStep::SetPorts(_)) => f.write_str("set the ports of the fast path"),
            Self::Nat(NatStep::SetTurns(_)) => f.write_str("set where packets turn back"),
        }
    }
}
