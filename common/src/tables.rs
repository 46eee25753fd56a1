//! What the engine needs of its maps, clock and kernel.

use core::ptr::NonNull;

use crate::{
    family::Address,
    maps::{
        Binding, Direction, EndpointKey, Flow, FlowKey, Forward, ForwardKey, FragmentKey, Fragmented, Local,
        Masquerade, Moved, Opening, PaceKey, Pair, PairKey, PlaceKey, PlacedPort, PoolKey, REMOTES, Range,
        RangeKey, Rule, SourceKey, TICK_BITS, Uplink, lease,
    },
    nat::work::{Prefixed, Work},
};

/// What came of inserting a key that must not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    Ok,
    Exists,
    Full,
}

/// A flow in a table.
///
/// The kernel may recycle the memory for another flow while we hold it (hash elements are preallocated), so no
/// reference to it is ever handed out: fields are read and written one by one, each a plain load or store.
#[derive(Debug, Clone, Copy)]
pub struct FlowRef<A>(NonNull<Flow<A>>);

impl<A: Address> FlowRef<A> {
    /// # Safety
    /// `flow` must stay readable and writable as a [`Flow`] (of this or of another key) while the reference is used.
    #[inline(always)]
    pub const unsafe fn new(flow: NonNull<Flow<A>>) -> Self {
        Self(flow)
    }

    /// For the tables' own use: where the counters are.
    #[inline(always)]
    pub const fn as_ptr(self) -> *mut Flow<A> {
        self.0.as_ptr()
    }

    /// The key of the packets that answer those of `key`, which is this flow's.
    #[inline(always)]
    pub fn peer_of(self, key: &FlowKey<A>) -> FlowKey<A> {
        FlowKey {
            src: self.to_dst(),
            dst: self.to_src(),
            sport: self.to_dport(),
            dport: self.to_sport(),
            proto: key.proto,
            direction: 1 - (key.direction & 1),
            unused: 0,
        }
    }

    #[inline(always)]
    pub fn to_src(self) -> A {
        // SAFETY: readable by the contract of `new`; a Flow is aligned to eight bytes, and this is its start.
        unsafe { A::load(&raw const (*self.0.as_ptr()).to_src) }
    }

    #[inline(always)]
    pub fn to_dst(self) -> A {
        // SAFETY: as above, an address further on, which is a multiple of four bytes.
        unsafe { A::load(&raw const (*self.0.as_ptr()).to_dst) }
    }

    /// Notes that a packet of it was seen at `now`, in nanoseconds.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "ticks wrap")]
    pub fn see(self, now: u64) {
        self.set_last_seen((now >> TICK_BITS) as u32);
    }

    /// When it was last seen, and its lease: what changes whenever it is used, read at once. For [`Tables::own`].
    #[inline(always)]
    pub fn clock(self) -> u64 {
        // SAFETY: readable by the contract of `new`; the two fields are neighbours, aligned to eight bytes (asserted in `maps`).
        unsafe { self.clock_ptr().read_volatile() }
    }

    /// For the tables' own use: where the clock is.
    #[inline(always)]
    pub const fn clock_ptr(self) -> *mut u64 {
        // SAFETY: within the record.
        unsafe { (&raw mut (*self.0.as_ptr()).lease).cast() }
    }

    /// Somebody is removing it.
    #[inline(always)]
    pub fn is_owned(self) -> bool {
        self.lease() == lease::OWNED
    }

    /// A copy of the whole record.
    #[inline(always)]
    pub fn read(self) -> Flow<A> {
        // SAFETY: readable by the contract of `new`; every bit pattern is a Flow.
        unsafe { self.0.as_ptr().read() }
    }
}

/// A binding in a table; as with [`FlowRef`], its fields are read and written one by one.
#[derive(Debug, Clone, Copy)]
pub struct BindingRef<A>(NonNull<Binding<A>>);

impl<A: Address> BindingRef<A> {
    /// # Safety
    /// `binding` must stay readable and writable as a [`Binding`] while the reference is used.
    #[inline(always)]
    pub const unsafe fn new(binding: NonNull<Binding<A>>) -> Self {
        Self(binding)
    }

    /// For the tables' own use: where the time is at which it expires.
    #[inline(always)]
    pub const fn expires_ptr(self) -> *mut u32 {
        // SAFETY: within the record.
        unsafe { &raw mut (*self.0.as_ptr()).expires }
    }

    /// A copy of the whole record.
    #[inline(always)]
    pub fn read(self) -> Binding<A> {
        // SAFETY: readable by the contract of `new`; every bit pattern is a Binding.
        unsafe { self.0.as_ptr().read() }
    }

    #[inline(always)]
    pub fn inside(self) -> A {
        // SAFETY: readable by the contract of `new`; a Binding is aligned to four bytes, and this is its start.
        unsafe { A::load(&raw const (*self.0.as_ptr()).inside) }
    }

    /// Has the inside sent to this address lately?
    #[inline(always)]
    pub fn knows(self, remote: A) -> bool {
        let mut place = 0;
        while place < REMOTES {
            // SAFETY: as above; the addresses are a multiple of four bytes after the start, and `place` is in bounds.
            let known = unsafe { A::load((&raw const (*self.0.as_ptr()).remotes).cast::<A>().add(place)) };
            if known.same(remote) {
                return true;
            }
            place += 1;
        }
        false
    }

    /// The inside sends to this address.
    #[inline(always)]
    pub fn remember(self, remote: A) {
        if self.knows(remote) {
            return;
        }
        let place = self.next();
        self.set_next(place.wrapping_add(1));
        // SAFETY: writable by the contract of `new`; the place is in bounds.
        unsafe {
            let remotes = (&raw mut (*self.0.as_ptr()).remotes).cast::<A>();
            remotes.add(place as usize & (REMOTES - 1)).write(remote);
        }
    }
}

impl<A: Address> BindingRef<A> {
    /// It knows nobody any more.
    #[inline(always)]
    pub fn forget(self) {
        let mut place = 0;
        while place < REMOTES {
            // SAFETY: writable by the contract of `new`; `place` is in bounds.
            unsafe { (&raw mut (*self.0.as_ptr()).remotes).cast::<A>().add(place).write(A::ANY) };
            place += 1;
        }
    }
}

/// A block of a range in a table; as with [`FlowRef`], its fields are read one by one.
#[derive(Debug, Clone, Copy)]
pub struct RangeRef<A>(NonNull<Range<A>>);

impl<A: Address> RangeRef<A> {
    /// # Safety
    /// `range` must stay readable as a [`Range`] while the reference is used.
    #[inline(always)]
    pub const unsafe fn new(range: NonNull<Range<A>>) -> Self {
        Self(range)
    }

    /// Where one of its ports leads, written down.
    #[inline(always)]
    pub fn resolve(self, port: u16, target: &mut Forward<A>) {
        let range = self.0.as_ptr();
        // SAFETY: readable by the contract of `new`; every bit pattern is a Range, which is aligned to four bytes and
        // whose address is its start.
        unsafe {
            target.address = A::load(&raw const (*range).address);
            target.port = port.wrapping_add((&raw const (*range).shift).read_volatile());
            target.unused = 0;
            target.rule = (&raw const (*range).rule).read_volatile();
            target.generation = (&raw const (*range).generation).read_volatile();
        }
    }
}

macro_rules! field {
    ($record:ident: $($get:ident, $set:ident: $kind:ty;)*) => {
        impl<A: Address> $record<A> {
            $(
                #[inline(always)]
                pub fn $get(self) -> $kind {
                    // SAFETY: readable by the contract of `new`; the type has no invalid bit patterns.
                    unsafe { (&raw const (*self.0.as_ptr()).$get).read_volatile() }
                }

                #[inline(always)]
                pub fn $set(self, value: $kind) {
                    // SAFETY: writable by the contract of `new`.
                    unsafe { (&raw mut (*self.0.as_ptr()).$get).write_volatile(value) }
                }
            )*
        }
    };
}

field! {
    FlowRef:
    to_sport, set_to_sport: u16;
    to_dport, set_to_dport: u16;
    address_difference, set_address_difference: u16;
    port_difference, set_port_difference: u16;
    rule, set_rule: u32;
    generation, set_generation: u32;
    hop, set_hop: u32;
    stamp, set_stamp: u32;
    lease, set_lease: u32;
    last_seen, set_last_seen: u32;
    packets, set_packets: u64;
    created, set_created: u32;
    state, set_state: u8;
    flags, set_flags: u8;
    synced, set_synced: u16;
}

field! {
    BindingRef:
    port, set_port: u16;
    remote_port, set_remote_port: u16;
    rule, set_rule: u32;
    generation, set_generation: u32;
    expires, set_expires: u32;
    flows, set_flows: u32;
    next, set_next: u32;
}

/// How much one may take; 0: as much as there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    pub ports_per_host: u32,
    /// New ones in a second.
    pub flows_per_host: u32,
    pub flows_per_rule: u32,
}

/// How long a port that nobody uses any more waits before another socket may have it, in seconds, unless the agent says otherwise
/// (RFC 6888 REQ-8).
pub const HOLD_DOWN: u32 = 120;

/// So long has an entry not been used, by its clock, when somebody takes it for his own, in ticks: longer than any flow may be
/// idle, and so whoever else meets it takes it for over. What is more than that is how long ago it was taken.
pub const TAKEN: u32 = 1 << 30;

/// The clock of an entry that somebody owns since `now`, which had this one before; `None`: it is owned already.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "ticks wrap")]
pub const fn owned(clock: u64, now: u64) -> Option<u64> {
    let [a, b, c, d, ..] = clock.to_ne_bytes();
    if u32::from_ne_bytes([a, b, c, d]) == lease::OWNED {
        return None;
    }
    let [a, b, c, d] = lease::OWNED.to_ne_bytes();
    let [e, f, g, h] = ((now >> TICK_BITS) as u32).wrapping_sub(TAKEN).to_ne_bytes();
    Some(u64::from_ne_bytes([a, b, c, d, e, f, g, h]))
}

/// Where a packet of the host's own goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Index of the interface that it leaves through.
    pub interface: u32,
    /// Whether the way there is wide enough for it.
    pub fits: bool,
}

/// What both families share: rules, clock, dice.
pub trait Host {
    /// What is in a rule's slot now.
    fn rule(&self, slot: u32) -> Option<Rule>;

    /// What the first packet of a flow asks of a rule.
    fn opening(&self, slot: u32) -> Option<Opening>;

    /// Adds to the rule's counters.
    fn count(&self, slot: u32, direction: Direction, packets: u32, bytes: u32);

    /// Counts a new flow of the rule.
    fn count_flow(&self, slot: u32);

    /// Nanoseconds since boot (CLOCK_MONOTONIC, coarse).
    fn now(&self) -> u64;

    /// Index of the interface that a fragment is sent through which has to wait for its first one, and which comes back
    /// to this uplink.
    fn waiting_room(&self, uplink: u32) -> Option<u32>;

    fn limits(&self) -> Limits;

    /// How long a port that nobody uses any more is kept from others, in ticks.
    fn hold_down(&self) -> u32;

    /// Unpredictable bits.
    fn random(&self) -> u32;

    /// What an interface takes, in bytes of IP.
    fn mtu(&self, interface: u32) -> Option<u32>;
}

/// Flows, rules by what they match, and sockets, of one address family.
pub trait Tables<A: Address>: Host {
    fn flow(&self, key: &FlowKey<A>) -> Option<FlowRef<A>>;

    /// Inserts; an existing key is left alone.
    fn claim(&self, key: &FlowKey<A>, flow: &Flow<A>) -> Claim;

    /// Makes an entry the caller's to remove, if its clock still is `clock`. False: it has been used meanwhile, or somebody
    /// else is removing it. See [`crate::nat::collect`].
    fn own(&self, flow: FlowRef<A>, clock: u64) -> bool;

    /// Removes what the caller owns, or has just made; a missing key is no error.
    fn remove(&self, key: &FlowKey<A>);

    /// Adds to the flow's counters, whatever other CPUs do at the same time, and sets `last_seen`.
    fn touch(&self, flow: FlowRef<A>, now: u64, packets: u32, bytes: u32);

    /// Puts the key into the next place of the list of unproven flows, and what was there, the oldest one, into the
    /// key. A key of protocol 0 is an empty place.
    fn exchange(&self, key: &mut FlowKey<A>) -> bool;

    /// While no place has been used twice, the oldest is in the first one: it is the next.
    fn rewind(&self);

    /// Memory of this CPU's own, see [`Work`].
    fn work(&self) -> Option<NonNull<Work<A>>>;

    fn binding(&self, key: &EndpointKey<A>) -> Option<BindingRef<A>>;

    /// Inserts; an existing key is left alone.
    fn claim_binding(&self, key: &EndpointKey<A>, binding: &Binding<A>) -> Claim;

    fn remove_binding(&self, key: &EndpointKey<A>);

    /// Sets when it expires to `new`, if that is still `seen`; at once, whatever other CPUs do. False: it is not.
    fn exchange_expiry(&self, binding: BindingRef<A>, seen: u32, new: u32) -> bool;

    fn moved(&self, key: &EndpointKey<A>) -> Option<Moved<A>>;

    /// Inserts or replaces. False: no room.
    fn set_moved(&self, key: &EndpointKey<A>, moved: &Moved<A>) -> bool;

    fn pace(&self, key: &PaceKey<A>) -> Option<u64>;

    /// Inserts or replaces; the one that was used least lately goes for it.
    fn set_pace(&self, key: &PaceKey<A>, next: u64);

    fn placed(&self, key: &PlaceKey<A>) -> Option<PlacedPort>;

    /// As [`Tables::set_pace`].
    fn set_placed(&self, key: &PlaceKey<A>, port: &PlacedPort);

    fn fragmented(&self, key: &FragmentKey<A>) -> Option<Fragmented>;

    /// Inserts or replaces; the one that was used least lately goes for it.
    fn set_fragmented(&self, key: &FragmentKey<A>, fragmented: &Fragmented);

    fn pair(&self, key: &PairKey<A>) -> Option<Pair>;

    /// As [`Tables::set_fragmented`].
    fn set_pair(&self, key: &PairKey<A>, pair: &Pair);

    fn forward(&self, key: &ForwardKey<A>) -> Option<Forward<A>>;

    /// Whether any forward, of whichever uplink and address, has this port: without one there is nothing to look for.
    fn is_forwarded(&self, protocol: u8, port: u16) -> bool;

    /// The block of a range of ports that this one is in.
    fn range(&self, key: &Prefixed<RangeKey<A>>) -> Option<RangeRef<A>>;

    /// Does a rule name a network that this address is in? Of forwards that are not open to everybody it is a source, of a
    /// masquerade with exceptions a destination: asked of those only.
    fn is_source(&self, key: &Prefixed<SourceKey<A>>) -> bool;

    /// The longest masqueraded prefix of this uplink that covers the address.
    fn masquerade(&self, uplink: u32, address: A) -> Option<Masquerade>;

    /// The uplink, when it has an address of this family.
    fn uplink(&self, uplink: u32) -> Option<Uplink<A>>;

    /// An address of the pool of a masquerade.
    fn pooled(&self, key: &PoolKey) -> Option<A>;

    /// What is known of an address of the host's own, or of a pool.
    fn local(&self, address: A) -> Option<Local>;

    /// Index of the uplink that this is an address of; 0: of none.
    #[inline(always)]
    fn uplink_of(&self, address: A) -> u32 {
        self.local(address).map_or(0, |local| local.uplink)
    }

    /// Is this one of the host's own addresses, or of a pool?
    #[inline(always)]
    fn is_local(&self, address: A) -> bool {
        self.local(address).is_some()
    }

    /// Where the kernel would send a packet of the host's own with so many bytes; `None`: to nobody.
    fn route(&self, src: A, dst: A, len: u32) -> Option<Route>;

    /// Does a socket of the host hold this local address and port, listening or connected to that remote?
    fn host_socket(&self, proto: u8, remote: (A, u16), local: (A, u16)) -> bool;
}
