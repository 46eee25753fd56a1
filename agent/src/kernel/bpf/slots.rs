//! Rule slots: which generation of a rule is in force, for which uplink, and what it has counted.

use aya::maps::{Array, MapData, PerCpuArray, PerCpuValues};
use telecluster_common::maps::{MAX_RULES, Opening, Rule, RuleStat, Timeouts, rule};

use super::{
    Plain, batch, failed,
    object::{self, Object, take},
};
use crate::kernel::{
    KernelError,
    dataplane::{Counters, NatRule, Slot},
};

type Result<T, E = KernelError> = std::result::Result<T, E>;

/// What an unused slot holds, besides its generation.
const UNUSED: Rule = Rule { generation: 0, uplink: 0, flags: 0, timeouts: Timeouts::RFC };

/// Uplink, flags and idle times of a rule's slot.
pub(super) fn said(rule: &NatRule) -> (u32, u32, Timeouts) {
    (rule.uplink(), rule.flags() | rule::THERE, rule.timeouts())
}

/// What the first packets of a rule's flows ask for.
pub(super) fn opening(rule: &NatRule) -> Opening {
    Opening { pool: u32::try_from(rule.pool().len()).unwrap_or(u32::MAX), flows_per_second: rule.new_flows() }
}

/// `rule`, `opening` and `rule_stat`.
pub(super) struct Slots {
    rules: Array<MapData, Plain<Rule>>,
    /// The same map, for reading all of it at once.
    table: MapData,
    openings: Array<MapData, Plain<Opening>>,
    stats: PerCpuArray<MapData, Plain<RuleStat>>,
}

impl Slots {
    pub(super) fn take(object: &mut Object) -> Result<Self> {
        Ok(Self {
            table: object::duplicate(object, "rule")?,
            rules: take(object, "rule")?,
            openings: take(object, "opening")?,
            stats: take(object, "rule_stat")?,
        })
    }

    pub(super) fn get(&self, slot: Slot) -> Result<Rule> {
        let rule = self
            .rules
            .get(&slot.0, 0)
            .map_err(|error| failed(format!("read rule slot {}", slot.0), &error))?;
        Ok(rule.0)
    }

    /// Begins a rule: counters at 0, and a generation that no flow has. Returns it.
    pub(super) fn begin(&mut self, slot: Slot, rule: &NatRule) -> Result<u32> {
        let generation = self.get(slot)?.generation.wrapping_add(1);
        self.reset_counters(slot)?;
        let (uplink, flags, timeouts) = said(rule);
        self.openings
            .set(slot.0, Plain(opening(rule)), 0)
            .map_err(|error| failed(format!("write what opens flows of slot {}", slot.0), &error))?;
        self.set(slot, Rule { generation, uplink, flags, timeouts })?;
        Ok(generation)
    }

    /// What the first packets of its flows ask for.
    pub(super) fn opening(&self, slot: Slot) -> Result<Opening> {
        let opening = self
            .openings
            .get(&slot.0, 0)
            .map_err(|error| failed(format!("read what opens flows of slot {}", slot.0), &error))?;
        Ok(opening.0)
    }

    /// A new generation for the rule that is there: its flows are dead at once. Returns it.
    pub(super) fn renew(&mut self, slot: Slot) -> Result<u32> {
        let present = self.get(slot)?;
        let generation = present.generation.wrapping_add(1);
        self.set(slot, Rule { generation, ..present })?;
        Ok(generation)
    }

    /// Ends the rule, and with it all of its flows.
    pub(super) fn retire(&mut self, slot: Slot) -> Result<()> {
        let present = self.get(slot)?;
        if !present.is_there() {
            return Ok(());
        }
        self.set(slot, Rule { generation: present.generation.wrapping_add(1), ..UNUSED })
    }

    fn set(&mut self, slot: Slot, rule: Rule) -> Result<()> {
        self.rules
            .set(slot.0, Plain(rule), 0)
            .map_err(|error| failed(format!("write rule slot {}", slot.0), &error))
    }

    /// Every slot, by its number.
    pub(super) fn all(&self) -> Result<Vec<Rule>> {
        let mut all = vec![UNUSED; MAX_RULES as usize];
        let sizes = (size_of::<u32>(), size_of::<Rule>());
        batch::for_each(self.table.fd(), sizes, |slot: &u32, rule: &Rule| {
            if let Some(place) = all.get_mut(*slot as usize) {
                *place = *rule;
            }
        })
        .map_err(|error| failed("read the rule slots", &error))?;
        Ok(all)
    }

    pub(super) fn counters(&self, slot: Slot) -> Result<Counters> {
        let values = self
            .stats
            .get(&slot.0, 0)
            .map_err(|error| failed(format!("read counters of slot {}", slot.0), &error))?;
        let mut sum = Counters::default();
        for Plain(stat) in values.iter() {
            let RuleStat { packets_in, bytes_in, packets_out, bytes_out, flows } = *stat;
            sum.packets_in += packets_in;
            sum.bytes_in += bytes_in;
            sum.packets_out += packets_out;
            sum.bytes_out += bytes_out;
            sum.flows += flows;
        }
        Ok(sum)
    }

    fn reset_counters(&mut self, slot: Slot) -> Result<()> {
        let operation = || format!("reset counters of slot {}", slot.0);
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| failed(operation(), &error))?;
        let zero = PerCpuValues::try_from(vec![Plain(RuleStat::default()); cpus])
            .map_err(|error| failed(operation(), &error))?;
        self.stats.set(slot.0, zero, 0).map_err(|error| failed(operation(), &error))
    }
}
