//! What the engine needs of its maps, clock and kernel.

use core::ptr::NonNull;

use crate::maps::{Direction, Flow, FlowKey, Forward, ForwardKey, Masquerade};

/// The two flow tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// `half4`: flows that nobody has answered yet. When it is full, the least recently used one goes.
    Unproven,
    /// `flow4`: flows that were answered. Nothing is ever pushed out of it.
    Proven,
}

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
pub struct FlowRef(NonNull<Flow>);

impl FlowRef {
    /// # Safety
    /// `flow` must stay readable and writable as a [`Flow`] (of this or of another key) while the reference is used.
    #[inline(always)]
    pub const unsafe fn new(flow: NonNull<Flow>) -> Self {
        Self(flow)
    }

    /// For the tables' own use: where the counters are.
    #[inline(always)]
    pub const fn as_ptr(self) -> *mut Flow {
        self.0.as_ptr()
    }

    /// The key of the packets that answer those of `key`, which is this flow's.
    #[inline(always)]
    pub fn peer_of(self, key: &FlowKey) -> FlowKey {
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

    /// A copy of the whole record.
    #[inline(always)]
    pub fn read(self) -> Flow {
        // SAFETY: readable by the contract of `new`; every bit pattern is a Flow.
        unsafe { self.0.as_ptr().read() }
    }
}

macro_rules! field {
    ($($get:ident, $set:ident: $kind:ty;)*) => {
        impl FlowRef {
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
    to_src, set_to_src: [u8; 4];
    to_dst, set_to_dst: [u8; 4];
    to_sport, set_to_sport: u16;
    to_dport, set_to_dport: u16;
    address_difference, set_address_difference: u16;
    port_difference, set_port_difference: u16;
    rule, set_rule: u32;
    generation, set_generation: u32;
    uplink, set_uplink: u32;
    created, set_created: u32;
    synced, set_synced: u32;
    state, set_state: u8;
    flags, set_flags: u8;
    last_seen, set_last_seen: u64;
}

/// Maps, clock, dice and sockets.
pub trait Tables {
    fn flow(&self, tier: Tier, key: &FlowKey) -> Option<FlowRef>;

    /// Inserts; an existing key is left alone.
    fn claim(&self, tier: Tier, key: &FlowKey, flow: &Flow) -> Claim;

    /// The same with a copy of a flow that is in a table: without a copy on a stack of 512 bytes.
    fn claim_copy(&self, tier: Tier, key: &FlowKey, flow: FlowRef) -> Claim;

    /// Removes; a missing key is no error.
    fn remove(&self, tier: Tier, key: &FlowKey);

    /// Adds to the flow's counters, whatever other CPUs do at the same time, and sets `last_seen`.
    fn touch(&self, flow: FlowRef, now: u64, packets: u32, bytes: u32);

    /// The present generation of the rule in a slot.
    fn generation(&self, slot: u32) -> Option<u32>;

    /// Adds to the rule's counters.
    fn count(&self, slot: u32, direction: Direction, packets: u32, bytes: u32);

    /// Counts a new flow of the rule.
    fn count_flow(&self, slot: u32);

    fn forward(&self, key: &ForwardKey) -> Option<Forward>;

    /// The longest masqueraded prefix of this uplink that covers the address.
    fn masquerade(&self, uplink: u32, address: [u8; 4]) -> Option<Masquerade>;

    /// The address that the uplink masquerades to.
    fn uplink_address(&self, uplink: u32) -> Option<[u8; 4]>;

    /// Is this one of the host's own addresses?
    fn is_local(&self, address: [u8; 4]) -> bool;

    /// Does a socket of the host hold this local address and port, listening or connected to that remote?
    fn host_socket(&self, proto: u8, remote: ([u8; 4], u16), local: ([u8; 4], u16)) -> bool;

    /// Nanoseconds since boot (CLOCK_MONOTONIC, coarse).
    fn now(&self) -> u64;

    /// Unpredictable bits.
    fn random(&self) -> u32;
}
