//! The maps of the programs, as hash maps.

use std::{
    cell::{Cell, RefCell, UnsafeCell},
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    ptr::NonNull,
};

use ipnet::IpNet;
use telecluster_common::{
    family::Address,
    maps::{
        Binding, Direction, EndpointKey, Flow, FlowKey, Forward, ForwardKey, FragmentKey, Fragmented, Local,
        Masquerade, Moved, Opening, PaceKey, Pair, PairKey, PlaceKey, PlacedPort, PoolKey, Range, RangeKey,
        Rule as RuleSlot, RuleStat, SourceKey, Timeouts, Uplink, local, rule, ticks,
    },
    nat::work::{Prefixed, Work},
    tables::{self, BindingRef, Claim, FlowRef, Limits, RangeRef, Route, Tables},
};

use super::{
    HALF_SIZE, INSIDE_INTERFACE, INSIDE_MTU,
    ways::{Front, Hops},
};
use crate::vectors::{LOCAL, UPLINK, UPLINK_ADDRESS, UPLINK_ADDRESS6};

/// Tables in memory.
#[derive(Debug, Default)]
pub struct HostTables {
    pub(super) ipv4: Family<[u8; 4]>,
    pub(super) ipv6: Family<[u8; 16]>,
    pub(super) generations: RefCell<HashMap<u32, u32>>,
    /// Of each rule: `maps::rule` bits.
    pub flags: HashMap<u32, u32>,
    pub openings: HashMap<u32, Opening>,
    pub(super) stats: RefCell<HashMap<u32, RuleStat>>,
    /// Sockets of the host: local address and port.
    pub sockets: Vec<(IpAddr, u16)>,
    /// Entries that fit in the flow table; 0: as many as there come.
    pub capacity: usize,
    /// How much one may take.
    pub limits: Limits,
    /// Of every rule; `None`: what is usual.
    pub timeouts: Option<Timeouts>,
    /// In seconds; `None`: what is usual.
    pub hold_down: Option<u32>,
    /// What senders whose packets were refused were told.
    pub told: RefCell<Vec<Vec<u8>>>,
    /// Nanoseconds.
    pub clock: Cell<u64>,
    /// Which hooks there are, and so what the fast path knows.
    pub front: Front,
    pub(super) hops: Hops,
    dice: Cell<u32>,
}

/// Where an entry stays until it is removed.
type Place<T> = Box<UnsafeCell<T>>;

/// A range of ports: what it matches, and where it leads.
type Ports<A> = (RangeKey<A>, RangeInclusive<u16>, Place<Range<A>>);

/// The tables of one address family. Flows are boxed so that a reference to one survives inserts of others.
#[derive(Debug)]
pub struct Family<A> {
    flows: RefCell<HashMap<FlowKey<A>, Place<Flow<A>>>>,
    bindings: RefCell<HashMap<EndpointKey<A>, Place<Binding<A>>>>,
    moved: RefCell<HashMap<EndpointKey<A>, Moved<A>>>,
    fragmented: RefCell<HashMap<FragmentKey<A>, Fragmented>>,
    paces: RefCell<HashMap<PaceKey<A>, u64>>,
    placed: RefCell<HashMap<PlaceKey<A>, PlacedPort>>,
    pub(super) pairs: RefCell<HashMap<PairKey<A>, Pair>>,
    half: RefCell<Vec<FlowKey<A>>>,
    half_next: Cell<usize>,
    work: Box<UnsafeCell<Work<A>>>,
    pub(super) forwards: HashMap<ForwardKey<A>, Forward<A>>,
    /// Without their ports, which are beside them.
    pub(super) ranges: Vec<Ports<A>>,
    pub(super) sources: Vec<(u32, IpNet)>,
    pub(super) masquerades: Vec<(IpNet, Masquerade)>,
    pub(super) pools: HashMap<PoolKey, A>,
}

/// What packets leave behind them in one address family and in the counters, without the ways that flows have learned.
#[derive(Debug, PartialEq)]
pub struct Left<A: Address> {
    flows: HashMap<FlowKey<A>, Flow<A>>,
    bindings: HashMap<EndpointKey<A>, Binding<A>>,
    moved: HashMap<EndpointKey<A>, Moved<A>>,
    placed: HashMap<PlaceKey<A>, PlacedPort>,
    paces: HashMap<PaceKey<A>, u64>,
    stats: HashMap<u32, RuleStat>,
}

impl<A: Address> Default for Family<A> {
    fn default() -> Self {
        let key = FlowKey { src: A::ANY, dst: A::ANY, sport: 0, dport: 0, proto: 0, direction: 0, unused: 0 };
        // SAFETY: integers and byte arrays.
        let work: Work<A> = unsafe { std::mem::zeroed() };
        Self {
            flows: RefCell::default(),
            bindings: RefCell::default(),
            moved: RefCell::default(),
            fragmented: RefCell::default(),
            paces: RefCell::default(),
            placed: RefCell::default(),
            pairs: RefCell::default(),
            half: RefCell::new(vec![key; HALF_SIZE]),
            half_next: Cell::new(0),
            work: Box::new(UnsafeCell::new(work)),
            forwards: HashMap::new(),
            ranges: Vec::new(),
            sources: Vec::new(),
            masquerades: Vec::new(),
            pools: HashMap::new(),
        }
    }
}

/// An address that knows its tables.
pub trait Side: Address {
    const UPLINK: IpAddr;

    fn of(tables: &HostTables) -> &Family<Self>;
    fn of_mut(tables: &mut HostTables) -> &mut Family<Self>;
    fn ip(self) -> IpAddr;
    fn from_ip(ip: IpAddr) -> Self;
}

impl Side for [u8; 4] {
    const UPLINK: IpAddr = IpAddr::V4(UPLINK_ADDRESS);

    fn of(tables: &HostTables) -> &Family<Self> {
        &tables.ipv4
    }

    fn of_mut(tables: &mut HostTables) -> &mut Family<Self> {
        &mut tables.ipv4
    }

    fn ip(self) -> IpAddr {
        Ipv4Addr::from(self).into()
    }

    fn from_ip(ip: IpAddr) -> Self {
        let IpAddr::V4(ip) = ip else { panic!("{ip} is no IPv4 address") };
        ip.octets()
    }
}

impl Side for [u8; 16] {
    const UPLINK: IpAddr = IpAddr::V6(UPLINK_ADDRESS6);

    fn of(tables: &HostTables) -> &Family<Self> {
        &tables.ipv6
    }

    fn of_mut(tables: &mut HostTables) -> &mut Family<Self> {
        &mut tables.ipv6
    }

    fn ip(self) -> IpAddr {
        Ipv6Addr::from(self).into()
    }

    fn from_ip(ip: IpAddr) -> Self {
        let IpAddr::V6(ip) = ip else { panic!("{ip} is no IPv6 address") };
        ip.octets()
    }
}

impl HostTables {
    /// Flow entries, two for a flow.
    pub fn entries<A: Side>(&self) -> usize {
        A::of(self).flows.borrow().len()
    }

    /// Forgets one entry.
    pub fn forget<A: Side>(&self, key: &FlowKey<A>) -> bool {
        A::of(self).flows.borrow_mut().remove(key).is_some()
    }

    pub fn record<A: Side>(&self, key: &FlowKey<A>) -> Option<Flow<A>> {
        self.flow(key).map(FlowRef::read)
    }

    pub fn left<A: Side>(&self) -> Left<A> {
        let side = A::of(self);
        let still = |flow: FlowRef<A>| Flow { hop: 0, stamp: 0, lease: 0, ..flow.read() };
        let flows: Vec<_> = side.flows.borrow().keys().copied().collect();
        let bindings: Vec<_> = side.bindings.borrow().keys().copied().collect();
        Left {
            flows: flows.into_iter().filter_map(|key| Some((key, still(self.flow(&key)?)))).collect(),
            bindings: bindings
                .into_iter()
                .filter_map(|key| Some((key, self.binding(&key)?.read())))
                .collect(),
            moved: side.moved.borrow().clone(),
            placed: side.placed.borrow().clone(),
            paces: side.paces.borrow().clone(),
            stats: self.stats.borrow().clone(),
        }
    }
}

impl tables::Host for HostTables {
    fn rule(&self, slot: u32) -> Option<RuleSlot> {
        let generation = *self.generations.borrow().get(&slot)?;
        let flags = rule::THERE | self.flags.get(&slot).copied().unwrap_or(0);
        let timeouts = self.timeouts.unwrap_or(Timeouts::RFC);
        Some(RuleSlot { generation, uplink: UPLINK, flags, timeouts })
    }

    fn opening(&self, slot: u32) -> Option<Opening> {
        self.openings.get(&slot).copied()
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

    fn now(&self) -> u64 {
        self.clock.get()
    }

    /// Nobody brings anything back.
    fn waiting_room(&self, _uplink: u32) -> Option<u32> {
        None
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn hold_down(&self) -> u32 {
        ticks(self.hold_down.unwrap_or(tables::HOLD_DOWN))
    }

    /// The vectors' uplink is loopback.
    fn mtu(&self, _interface: u32) -> Option<u32> {
        Some(65536)
    }

    fn random(&self) -> u32 {
        // any sequence will do; this one repeats itself from run to run (Knuth's MMIX constants, upper bits)
        let next = self.dice.get().wrapping_mul(0x915f_77f5).wrapping_add(0x3039);
        self.dice.set(next);
        next.rotate_left(13)
    }
}

impl<A: Side> Tables<A> for HostTables {
    fn flow(&self, key: &FlowKey<A>) -> Option<FlowRef<A>> {
        let table = A::of(self).flows.borrow();
        // SAFETY: the box stays until the entry is removed, and the engine does not use a flow after that.
        table.get(key).and_then(|flow| NonNull::new(flow.get())).map(|flow| unsafe { FlowRef::new(flow) })
    }

    fn claim(&self, key: &FlowKey<A>, flow: &Flow<A>) -> Claim {
        let mut table = A::of(self).flows.borrow_mut();
        if table.contains_key(key) {
            return Claim::Exists;
        }
        if self.capacity != 0 && table.len() >= self.capacity {
            return Claim::Full;
        }
        table.insert(*key, Box::new(UnsafeCell::new(*flow)));
        Claim::Ok
    }

    fn own(&self, flow: FlowRef<A>, clock: u64) -> bool {
        let new = tables::owned(clock, self.clock.get()).filter(|_| flow.clock() == clock);
        let Some(new) = new else { return false };
        // SAFETY: see `flow`.
        unsafe { flow.clock_ptr().write(new) }
        true
    }

    fn remove(&self, key: &FlowKey<A>) {
        A::of(self).flows.borrow_mut().remove(key);
    }

    fn touch(&self, flow: FlowRef<A>, now: u64, packets: u32, bytes: u32) {
        // SAFETY: see `flow`.
        let record = unsafe { &mut *flow.as_ptr() };
        record.packets += u64::from(packets);
        record.bytes += u64::from(bytes);
        flow.see(now);
    }

    fn exchange(&self, key: &mut FlowKey<A>) -> bool {
        let side = A::of(self);
        let place = side.half_next.get();
        side.half_next.set(place + 1);
        std::mem::swap(&mut side.half.borrow_mut()[place % HALF_SIZE], key);
        true
    }

    fn rewind(&self) {
        let next = &A::of(self).half_next;
        next.set(next.get().max(HALF_SIZE));
    }

    fn work(&self) -> Option<NonNull<Work<A>>> {
        NonNull::new(A::of(self).work.get())
    }

    fn binding(&self, key: &EndpointKey<A>) -> Option<BindingRef<A>> {
        let table = A::of(self).bindings.borrow();
        // SAFETY: as in `flow`.
        table.get(key).and_then(|held| NonNull::new(held.get())).map(|held| unsafe { BindingRef::new(held) })
    }

    fn claim_binding(&self, key: &EndpointKey<A>, binding: &Binding<A>) -> Claim {
        let mut table = A::of(self).bindings.borrow_mut();
        if table.contains_key(key) {
            return Claim::Exists;
        }
        table.insert(*key, Box::new(UnsafeCell::new(*binding)));
        Claim::Ok
    }

    fn remove_binding(&self, key: &EndpointKey<A>) {
        A::of(self).bindings.borrow_mut().remove(key);
    }

    fn exchange_expiry(&self, binding: BindingRef<A>, seen: u32, new: u32) -> bool {
        let same = binding.expires() == seen;
        if same {
            binding.set_expires(new);
        }
        same
    }

    fn pace(&self, key: &PaceKey<A>) -> Option<u64> {
        A::of(self).paces.borrow().get(key).copied()
    }

    fn set_pace(&self, key: &PaceKey<A>, next: u64) {
        A::of(self).paces.borrow_mut().insert(*key, next);
    }

    fn placed(&self, key: &PlaceKey<A>) -> Option<PlacedPort> {
        A::of(self).placed.borrow().get(key).copied()
    }

    fn set_placed(&self, key: &PlaceKey<A>, port: &PlacedPort) {
        A::of(self).placed.borrow_mut().insert(*key, *port);
    }

    fn fragmented(&self, key: &FragmentKey<A>) -> Option<Fragmented> {
        A::of(self).fragmented.borrow().get(key).copied()
    }

    fn set_fragmented(&self, key: &FragmentKey<A>, fragmented: &Fragmented) {
        A::of(self).fragmented.borrow_mut().insert(*key, *fragmented);
    }

    fn pair(&self, key: &PairKey<A>) -> Option<Pair> {
        self.acquaintance(key)
    }

    fn set_pair(&self, key: &PairKey<A>, pair: &Pair) {
        A::of(self).pairs.borrow_mut().insert(*key, *pair);
    }

    fn moved(&self, key: &EndpointKey<A>) -> Option<Moved<A>> {
        A::of(self).moved.borrow().get(key).copied()
    }

    fn set_moved(&self, key: &EndpointKey<A>, moved: &Moved<A>) -> bool {
        A::of(self).moved.borrow_mut().insert(*key, *moved);
        true
    }

    fn forward(&self, key: &ForwardKey<A>) -> Option<Forward<A>> {
        A::of(self).forwards.get(key).copied()
    }

    fn is_forwarded(&self, protocol: u8, port: u16) -> bool {
        let mut singles = A::of(self).forwards.keys();
        let mut ranges = A::of(self).ranges.iter();
        singles.any(|key| (key.proto, key.port) == (protocol, port))
            || ranges.any(|(key, ports, _)| key.proto == protocol && ports.contains(&port))
    }

    fn range(&self, key: &Prefixed<RangeKey<A>>) -> Option<RangeRef<A>> {
        let (wanted, port) = (RangeKey { port: [0; 2], ..key.key }, u16::from_be_bytes(key.key.port));
        let mut ranges = A::of(self).ranges.iter();
        let (_, _, range) = ranges.find(|(key, ports, _)| *key == wanted && ports.contains(&port))?;
        // SAFETY: the box stays until the rule is removed, and nothing writes to it.
        NonNull::new(range.get()).map(|range| unsafe { RangeRef::new(range) })
    }

    fn is_source(&self, key: &Prefixed<SourceKey<A>>) -> bool {
        let SourceKey { rule, address } = key.key;
        A::of(self).sources.iter().any(|(slot, net)| *slot == rule && net.contains(&address.ip()))
    }

    fn masquerade(&self, uplink: u32, address: A) -> Option<Masquerade> {
        let covering =
            A::of(self).masquerades.iter().filter(|(net, _)| uplink == UPLINK && net.contains(&address.ip()));
        covering.max_by_key(|(net, _)| net.prefix_len()).map(|(_, rule)| *rule)
    }

    fn uplink(&self, uplink: u32) -> Option<Uplink<A>> {
        let pools = &A::of(self).pools;
        let to_it = A::of(self).masquerades.iter();
        let to_it = to_it.filter(|(_, rule)| !pools.contains_key(&PoolKey { rule: rule.rule, number: 0 }));
        let masquerades = u32::try_from(to_it.count()).expect("few rules");
        (uplink == UPLINK).then(|| Uplink { address: A::from_ip(A::UPLINK), masquerades })
    }

    fn pooled(&self, key: &PoolKey) -> Option<A> {
        A::of(self).pools.get(key).copied()
    }

    /// No interface has the addresses of pools.
    fn local(&self, address: A) -> Option<Local> {
        if A::of(self).pools.values().any(|pooled| pooled.same(address)) {
            return Some(Local { uplink: UPLINK, flags: local::POOL | local::ABSENT });
        }
        let uplink = if address.ip() == A::UPLINK { UPLINK } else { 0 };
        LOCAL.contains(&address.ip()).then_some(Local { uplink, flags: 0 })
    }

    fn route(&self, _src: A, _dst: A, len: u32) -> Option<Route> {
        Some(Route { interface: INSIDE_INTERFACE, fits: len <= INSIDE_MTU })
    }

    fn host_socket(&self, _protocol: u8, _remote: (A, u16), local: (A, u16)) -> bool {
        self.sockets.contains(&(local.0.ip(), local.1))
    }
}
