//! The engine on the host: a frame is a `Vec<u8>`, the tables are hash maps.

use std::{
    cell::{Cell, RefCell, UnsafeCell},
    collections::HashMap,
    net::Ipv4Addr,
    ptr::NonNull,
};

use telecluster_common::{
    checksum::{apply, fold},
    drop::DropReason,
    maps::{Direction, Flow, FlowKey, Forward, ForwardKey, Masquerade, RuleStat},
    nat::{Verdict, wan_in, wan_out},
    packet::{ChecksumFix, Packet, Wire},
    tables::{Claim, FlowRef, Tables, Tier},
};

use crate::vectors::{LOCAL, Machine, Outcome, Rule, UPLINK, UPLINK_ADDRESS};

/// A frame in memory, as complete as a socket buffer without offloads.
struct Bytes<'a>(&'a mut [u8]);

impl Packet for Bytes<'_> {
    fn is_untagged_ipv4(&self) -> bool {
        self.0.get(12..14) == Some(&[8, 0])
    }

    fn interface(&self) -> u32 {
        UPLINK
    }

    fn network_len(&self) -> u32 {
        u32::try_from(self.0.len() - 14).expect("a frame")
    }

    fn segments(&self) -> u32 {
        1
    }

    fn make_linear(&mut self, _len: usize) {}

    fn at<T: Wire>(&mut self, offset: usize) -> Option<NonNull<T>> {
        let bytes = self.0.get_mut(offset..offset.checked_add(size_of::<T>())?)?;
        NonNull::new(bytes.as_mut_ptr().cast())
    }

    fn commit(&mut self, fix: ChecksumFix) -> bool {
        let Some(field) = self.0.get_mut(fix.offset..fix.offset + 2) else {
            return false;
        };
        let old = [field[0], field[1]];
        if (fix.optional && old == [0, 0]) || (fix.pseudo == 0 && fix.body == 0) {
            return true;
        }
        let mut new = apply(old, fold(u32::from(fix.pseudo) + u32::from(fix.body)));
        if fix.optional && new == [0, 0] {
            new = [0xff, 0xff];
        }
        field.copy_from_slice(&new);
        true
    }
}

/// Tables in memory. Flows are boxed so that a reference to one survives inserts of others.
#[derive(Debug, Default)]
pub struct HostTables {
    proven: RefCell<HashMap<FlowKey, Box<UnsafeCell<Flow>>>>,
    unproven: RefCell<HashMap<FlowKey, Box<UnsafeCell<Flow>>>>,
    generations: RefCell<HashMap<u32, u32>>,
    stats: RefCell<HashMap<u32, RuleStat>>,
    forwards: HashMap<ForwardKey, Forward>,
    masquerades: Vec<(ipnet::Ipv4Net, Masquerade)>,
    /// Sockets of the host: local address and port.
    pub sockets: Vec<([u8; 4], u16)>,
    /// Entries that fit in each flow table; 0: as many as there come.
    pub capacity: usize,
    /// Nanoseconds.
    pub clock: Cell<u64>,
    dice: Cell<u32>,
}

impl HostTables {
    fn table(&self, tier: Tier) -> &RefCell<HashMap<FlowKey, Box<UnsafeCell<Flow>>>> {
        match tier {
            Tier::Proven => &self.proven,
            Tier::Unproven => &self.unproven,
        }
    }

    /// Flow entries of a table, two for a flow.
    pub fn entries(&self, tier: Tier) -> usize {
        self.table(tier).borrow().len()
    }

    /// Forgets one entry, as an LRU table does under a flood.
    pub fn evict(&self, tier: Tier, key: &FlowKey) -> bool {
        self.table(tier).borrow_mut().remove(key).is_some()
    }

    pub fn record(&self, key: &FlowKey) -> Option<Flow> {
        [Tier::Proven, Tier::Unproven].into_iter().find_map(|tier| self.flow(tier, key)).map(FlowRef::read)
    }
}

impl Tables for HostTables {
    fn flow(&self, tier: Tier, key: &FlowKey) -> Option<FlowRef> {
        let table = self.table(tier).borrow();
        // SAFETY: the box stays until the entry is removed, and the engine does not use a flow after that.
        table.get(key).and_then(|flow| NonNull::new(flow.get())).map(|flow| unsafe { FlowRef::new(flow) })
    }

    fn claim(&self, tier: Tier, key: &FlowKey, flow: &Flow) -> Claim {
        let mut table = self.table(tier).borrow_mut();
        if table.contains_key(key) {
            return Claim::Exists;
        }
        if self.capacity != 0 && table.len() >= self.capacity {
            return Claim::Full;
        }
        table.insert(*key, Box::new(UnsafeCell::new(*flow)));
        Claim::Ok
    }

    fn claim_copy(&self, tier: Tier, key: &FlowKey, flow: FlowRef) -> Claim {
        self.claim(tier, key, &flow.read())
    }

    fn remove(&self, tier: Tier, key: &FlowKey) {
        self.table(tier).borrow_mut().remove(key);
    }

    fn touch(&self, flow: FlowRef, now: u64, packets: u32, bytes: u32) {
        // SAFETY: see `flow`.
        let record = unsafe { &mut *flow.as_ptr() };
        record.packets += u64::from(packets);
        record.bytes += u64::from(bytes);
        record.last_seen = now;
    }

    fn generation(&self, slot: u32) -> Option<u32> {
        self.generations.borrow().get(&slot).copied()
    }

    fn count(&self, slot: u32, direction: Direction, packets: u32, bytes: u32) {
        let mut stats = self.stats.borrow_mut();
        let stat = stats.entry(slot).or_default();
        let (p, b) = match direction {
            Direction::In => (&mut stat.packets_in, &mut stat.bytes_in),
            Direction::Out => (&mut stat.packets_out, &mut stat.bytes_out),
        };
        *p += u64::from(packets);
        *b += u64::from(bytes);
    }

    fn count_flow(&self, slot: u32) {
        self.stats.borrow_mut().entry(slot).or_default().flows += 1;
    }

    fn forward(&self, key: &ForwardKey) -> Option<Forward> {
        self.forwards.get(key).copied()
    }

    fn masquerade(&self, uplink: u32, address: [u8; 4]) -> Option<Masquerade> {
        let covering = self
            .masquerades
            .iter()
            .filter(|(net, _)| uplink == UPLINK && net.contains(&Ipv4Addr::from(address)));
        covering.max_by_key(|(net, _)| net.prefix_len()).map(|(_, rule)| *rule)
    }

    fn uplink_address(&self, uplink: u32) -> Option<[u8; 4]> {
        (uplink == UPLINK).then(|| UPLINK_ADDRESS.octets())
    }

    fn is_local(&self, address: [u8; 4]) -> bool {
        LOCAL.iter().any(|local| local.octets() == address)
    }

    fn host_socket(&self, _protocol: u8, _remote: ([u8; 4], u16), local: ([u8; 4], u16)) -> bool {
        self.sockets.contains(&local)
    }

    fn now(&self) -> u64 {
        self.clock.get()
    }

    fn random(&self) -> u32 {
        // any sequence will do; this one repeats itself from run to run (Knuth's MMIX constants, upper bits)
        let next = self.dice.get().wrapping_mul(0x915f_77f5).wrapping_add(0x3039);
        self.dice.set(next);
        next.rotate_left(13)
    }
}

/// The engine with its tables, as the vectors want it.
#[derive(Debug, Default)]
pub struct Host {
    pub tables: HostTables,
}

impl Machine for Host {
    fn put(&mut self, slot: u32, rule: &Rule) {
        self.tables.generations.borrow_mut().insert(slot, 1);
        match rule {
            Rule::Forward { proto, port, to, address } => {
                let address = address.map_or([0; 4], |a| a.octets());
                let key = ForwardKey { uplink: UPLINK, address, port: *port, proto: *proto, unused: 0 };
                let value =
                    Forward { address: to.0.octets(), port: to.1, unused: 0, rule: slot, generation: 1 };
                self.tables.forwards.insert(key, value);
            }
            Rule::Masquerade { source } => {
                self.tables.masquerades.push((*source, Masquerade { rule: slot, generation: 1 }));
            }
        }
    }

    fn remove(&mut self, slot: u32, _rule: &Rule) {
        self.tables.generations.borrow_mut().insert(slot, 2);
        self.tables.forwards.retain(|_, value| value.rule != slot);
        self.tables.masquerades.retain(|(_, value)| value.rule != slot);
    }

    fn run(&mut self, direction: Direction, frame: &[u8]) -> (Outcome, Vec<u8>) {
        let mut frame = frame.to_vec();
        let verdict = match direction {
            Direction::In => wan_in(&mut Bytes(&mut frame), &self.tables),
            Direction::Out => wan_out(&mut Bytes(&mut frame), &self.tables),
        };
        match verdict {
            Verdict::Pass => (Outcome::Passed, frame),
            Verdict::Drop(reason) => (Outcome::Dropped(reason), frame),
        }
    }

    fn counters(&mut self, slot: u32) -> RuleStat {
        self.tables.stats.borrow().get(&slot).copied().unwrap_or_default()
    }
}

/// So that a reason that the vectors never see does not go unnoticed.
pub const REASONS: [DropReason; DropReason::COUNT as usize] = DropReason::ALL;
