//! The engine on the host: a frame is a `Vec<u8>`, the tables are hash maps.

use std::{
    cell::{Cell, RefCell, UnsafeCell},
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    ptr::NonNull,
};

use ipnet::IpNet;
use telecluster_common::{
    checksum::{apply, fold},
    drop::DropReason,
    family::Address,
    maps::{
        Binding, Direction, EndpointKey, Flow, FlowKey, Forward, ForwardKey, FragmentKey, Fragmented, Local,
        Masquerade, Moved, Opening, PaceKey, Pair, PairKey, PlaceKey, PlacedPort, PoolKey, Port, Range,
        RangeKey, Rule as RuleSlot, RuleStat, SourceKey, Timeouts, Uplink, local, rule,
    },
    nat::{
        Next, Verdict, established,
        fast::{HopRef, Ways},
        first, fragment, icmp_error, make, refuse, translate,
        work::{Prefixed, Work},
    },
    packet::{ChecksumFix, Packet, Parsed, Wire, note, parse},
    tables::{self, BindingRef, Claim, FlowRef, Limits, RangeRef, Tables},
};

use crate::vectors::{LOCAL, Machine, Outcome, Rule, UPLINK, UPLINK_ADDRESS, UPLINK_ADDRESS6};

/// Where packets come from that go out.
pub const INSIDE_INTERFACE: u32 = 7;

/// Places for unproven flows: enough that only a test that wants it sees one go.
pub const HALF_SIZE: usize = 1024;

/// A frame in memory, as complete as a socket buffer without offloads.
struct Bytes<'a>(&'a mut Vec<u8>);

impl Packet for Bytes<'_> {
    fn carries(&self, ethertype: u16) -> bool {
        self.0.get(12..14) == Some(&ethertype.to_be_bytes())
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

    fn segment_payload(&self) -> u32 {
        0
    }

    fn came_in_through(&self) -> u32 {
        INSIDE_INTERFACE
    }

    fn note(&self) -> u32 {
        note::NONE
    }

    fn set_note(&mut self, _note: u32) {}

    fn make_linear(&mut self, _len: usize) {}

    fn quote(&mut self, keep: u32, room: u32) -> bool {
        self.0.truncate(keep as usize);
        self.0.splice(14..14, std::iter::repeat_n(0, room as usize));
        true
    }

    fn resum(&mut self, _difference: u16) {}

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

/// Tables in memory.
#[derive(Debug, Default)]
pub struct HostTables {
    ipv4: Family<[u8; 4]>,
    ipv6: Family<[u8; 16]>,
    generations: RefCell<HashMap<u32, u32>>,
    /// Of each rule: `maps::rule` bits.
    pub flags: HashMap<u32, u32>,
    pub openings: HashMap<u32, Opening>,
    stats: RefCell<HashMap<u32, RuleStat>>,
    /// Sockets of the host: local address and port.
    pub sockets: Vec<(IpAddr, u16)>,
    /// Entries that fit in the flow table; 0: as many as there come.
    pub capacity: usize,
    /// How much one may take.
    pub limits: Limits,
    /// What senders whose packets were refused were told.
    pub told: RefCell<Vec<Vec<u8>>>,
    /// Nanoseconds.
    pub clock: Cell<u64>,
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
    half: RefCell<Vec<FlowKey<A>>>,
    half_next: Cell<usize>,
    work: Box<UnsafeCell<Work<A>>>,
    forwards: HashMap<ForwardKey<A>, Forward<A>>,
    /// Without their ports, which are beside them.
    ranges: Vec<Ports<A>>,
    sources: Vec<(u32, IpNet)>,
    masquerades: Vec<(IpNet, Masquerade)>,
    pools: HashMap<PoolKey, A>,
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
}

impl tables::Host for HostTables {
    fn rule(&self, slot: u32) -> Option<RuleSlot> {
        let generation = *self.generations.borrow().get(&slot)?;
        let flags = self.flags.get(&slot).copied().unwrap_or(0);
        Some(RuleSlot { generation, used: 1, uplink: UPLINK, flags, timeouts: Timeouts::RFC })
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

    fn random(&self) -> u32 {
        // any sequence will do; this one repeats itself from run to run (Knuth's MMIX constants, upper bits)
        let next = self.dice.get().wrapping_mul(0x915f_77f5).wrapping_add(0x3039);
        self.dice.set(next);
        next.rotate_left(13)
    }
}

/// The vectors are about translation: no flow knows a way.
impl Ways for HostTables {
    fn epoch(&self) -> u32 {
        0
    }

    fn settled_epoch(&self) -> u32 {
        0
    }

    fn are_alike(&self) -> bool {
        false
    }

    fn hop(&self, _slot: u32) -> Option<HopRef> {
        None
    }

    fn take(&self, _hop: HopRef, _stamp: u64) -> bool {
        false
    }

    fn port(&self, _interface: u32) -> Option<Port> {
        None
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
        let Some(new) = tables::owned(clock).filter(|_| flow.clock() == clock) else { return false };
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
        side.half_next.set((place + 1) % HALF_SIZE);
        std::mem::swap(&mut side.half.borrow_mut()[place], key);
        true
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

    fn pair(&self, _key: &PairKey<A>) -> Option<Pair> {
        None
    }

    fn set_pair(&self, _key: &PairKey<A>, _pair: &Pair) {}

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

    /// The vectors are about what leaves, not where.
    fn route(&self, _src: A, _dst: A) -> Option<u32> {
        None
    }

    fn host_socket(&self, _protocol: u8, _remote: (A, u16), local: (A, u16)) -> bool {
        self.sockets.contains(&(local.0.ip(), local.1))
    }
}

/// The engine with its tables, as the vectors want it.
#[derive(Debug, Default)]
pub struct Host {
    pub tables: HostTables,
}

impl Host {
    fn put_forward<A: Side>(&mut self, slot: u32, rule: &Rule) {
        let Rule::Forward { proto, ports, to, address, sources } = rule else { return };
        let sources_only = if sources.is_empty() { 0 } else { rule::SOURCES };
        let flags = sources_only | rule::HAIRPIN;
        self.tables.flags.insert(slot, flags);
        let (uplink, proto, unused) = (UPLINK, *proto, 0);
        let (address, inside) = (address.map_or(A::ANY, A::from_ip), A::from_ip(to.0));
        let side = A::of_mut(&mut self.tables);
        side.sources.extend(sources.iter().map(|net| (slot, *net)));
        if ports.start() == ports.end() {
            let key = ForwardKey { uplink, address, port: *ports.start(), proto, unused: 0 };
            let value = Forward { address: inside, port: to.1, unused, rule: slot, generation: 1 };
            side.forwards.insert(key, value);
        } else {
            let key = RangeKey { uplink, address, proto, unused: 0, port: [0; 2] };
            let shift = to.1.wrapping_sub(*ports.start());
            let value = Range { address: inside, shift, unused, rule: slot, generation: 1 };
            side.ranges.push((key, ports.clone(), Box::new(UnsafeCell::new(value))));
        }
    }

    fn put_pool<A: Side>(&mut self, slot: u32, pool: &[IpAddr]) {
        let opening =
            Opening { pool: u32::try_from(pool.len()).expect("few addresses"), flows_per_second: 0 };
        self.tables.openings.insert(slot, opening);
        let entry = |(number, ip): (u32, &IpAddr)| (PoolKey { rule: slot, number }, A::from_ip(*ip));
        A::of_mut(&mut self.tables).pools.extend((0..).zip(pool).map(entry));
    }

    fn forget_rule<A: Side>(&mut self, slot: u32) {
        let side = A::of_mut(&mut self.tables);
        side.forwards.retain(|_, value| value.rule != slot);
        side.ranges.retain_mut(|(_, _, range)| range.get_mut().rule != slot);
        side.sources.retain(|(rule, _)| *rule != slot);
        side.masquerades.retain(|(_, value)| value.rule != slot);
        side.pools.retain(|key, _| key.rule != slot);
    }
}

impl Machine for Host {
    fn put(&mut self, slot: u32, rule: &Rule) {
        self.tables.generations.borrow_mut().insert(slot, 1);
        match rule {
            Rule::Forward { to, .. } if to.0.is_ipv4() => self.put_forward::<[u8; 4]>(slot, rule),
            Rule::Forward { .. } => self.put_forward::<[u8; 16]>(slot, rule),
            Rule::Masquerade { source, nat, except, pool } => {
                match source {
                    IpNet::V4(_) => self.put_pool::<[u8; 4]>(slot, pool),
                    IpNet::V6(_) => self.put_pool::<[u8; 16]>(slot, pool),
                }
                let excepts = if except.is_empty() { 0 } else { rule::EXCEPT };
                self.tables.flags.insert(slot, nat.flags() | excepts);
                let networks = except.iter().map(|net| (slot, *net));
                match source {
                    IpNet::V4(_) => self.tables.ipv4.sources.extend(networks),
                    IpNet::V6(_) => self.tables.ipv6.sources.extend(networks),
                }
                let rule = (*source, Masquerade { rule: slot, generation: 1 });
                match source {
                    IpNet::V4(_) => self.tables.ipv4.masquerades.push(rule),
                    IpNet::V6(_) => self.tables.ipv6.masquerades.push(rule),
                }
            }
        }
    }

    fn remove(&mut self, slot: u32, _rule: &Rule) {
        self.tables.generations.borrow_mut().insert(slot, 2);
        self.forget_rule::<[u8; 4]>(slot);
        self.forget_rule::<[u8; 16]>(slot);
    }

    /// As the programs do it: the short way first, then the whole one.
    fn run(&mut self, direction: Direction, frame: &[u8]) -> (Outcome, Vec<u8>) {
        let mut frame = frame.to_vec();
        let tables = &self.tables;
        let mut packet = Bytes(&mut frame);
        let verdict = if packet.carries(<[u8; 4]>::ETHERTYPE) {
            established::<_, _, [u8; 4]>(&mut packet, tables, direction)
                .unwrap_or_else(|| whole::<[u8; 4]>(&mut packet, tables, direction))
        } else {
            established::<_, _, [u8; 16]>(&mut packet, tables, direction)
                .unwrap_or_else(|| whole::<[u8; 16]>(&mut packet, tables, direction))
        };
        match verdict {
            Verdict::Pass => (Outcome::Passed, frame),
            Verdict::Drop(reason) => (Outcome::Dropped(reason), frame),
            Verdict::Refuse(reason) => {
                let mut packet = Bytes(&mut frame);
                let told = direction == Direction::Out
                    && if packet.carries(<[u8; 4]>::ETHERTYPE) {
                        refuse::<_, _, [u8; 4]>(&mut packet, tables).is_some()
                    } else {
                        refuse::<_, _, [u8; 16]>(&mut packet, tables).is_some()
                    };
                if told {
                    self.tables.told.borrow_mut().push(frame.clone());
                }
                (Outcome::Dropped(reason), frame)
            }
            Verdict::Redirect(interface) | Verdict::Neighbour(interface) => (Outcome::Sent(interface), frame),
            Verdict::Around | Verdict::Home => panic!("nothing here is the host's own: {verdict:?}"),
        }
    }

    fn counters(&mut self, slot: u32) -> RuleStat {
        self.tables.stats.borrow().get(&slot).copied().unwrap_or_default()
    }
}

/// Where the transport header of a frame is that can be told to a flow, or the ICMP error.
pub fn transport_offset(frame: &mut Vec<u8>) -> Option<usize> {
    fn offset<A: Side>(packet: &mut Bytes<'_>) -> Option<usize> {
        match parse::<_, A>(packet) {
            Parsed::Flow(headers) => Some(headers.transport_offset),
            Parsed::IcmpError { offset, .. } => Some(offset),
            Parsed::Other | Parsed::Flowless { .. } | Parsed::Fragment => None,
        }
    }
    let mut packet = Bytes(frame);
    offset::<[u8; 4]>(&mut packet).or_else(|| offset::<[u8; 16]>(&mut packet))
}

/// The programs behind the one on the hook, one after the other.
fn whole<A: Side>(packet: &mut Bytes<'_>, tables: &HostTables, direction: Direction) -> Verdict {
    let mut next = translate::<_, _, A>(packet, tables, direction);
    if next == Next::Fragment {
        next = fragment::<_, _, A>(packet, tables, direction);
    }
    match next {
        Next::Done(verdict) => verdict,
        Next::Fragment => Verdict::Drop(DropReason::Program),
        Next::First => {
            first::<_, A>(tables, direction).unwrap_or_else(|| make::<_, _, A>(packet, tables, direction))
        }
        Next::IcmpError => icmp_error::<_, _, A>(packet, tables, direction),
    }
}

/// So that a reason that the vectors never see does not go unnoticed.
pub const REASONS: [DropReason; DropReason::COUNT as usize] = DropReason::ALL;
