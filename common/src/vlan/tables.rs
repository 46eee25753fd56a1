//! What the VLAN filter needs of its maps and clock.

use core::ptr::NonNull;

use super::decision::DecisionRef;
use super::maps::{FloodKey, Member, MemberKey, PortConfig, Station, StationKey};

/// A station in the table.
///
/// The kernel may recycle the memory for another station while we hold it, so no reference to it is ever handed out:
/// fields are read and written one by one, each a plain load or store.
#[derive(Debug, Clone, Copy)]
pub struct StationRef(NonNull<Station>);

impl StationRef {
    /// # Safety
    /// `station` must stay readable and writable as a [`Station`] (of this or of another key) while the reference is
    /// used.
    #[inline(always)]
    pub const unsafe fn new(station: NonNull<Station>) -> Self {
        Self(station)
    }
}

macro_rules! field {
    ($($get:ident, $set:ident: $kind:ty;)*) => {
        impl StationRef {
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
    port, set_port: u32;
    flags, set_flags: u32;
    previous, set_previous: u32;
    updated, set_updated: u64;
}

/// Maps and clock.
pub trait Switch {
    /// `None`: not a port of a filtered bridge.
    fn port(&self, index: u32) -> Option<PortConfig>;

    fn member(&self, key: &MemberKey) -> Option<Member>;

    /// The port at a place of a VLAN's list.
    fn flood(&self, key: &FloodKey) -> Option<u32>;

    fn station(&self, key: &StationKey) -> Option<StationRef>;

    /// Inserts; false when the table is full. One that is there already is left alone.
    fn add_station(&self, key: &StationKey, station: &Station) -> bool;

    /// Stations learned on a port, as far as they are counted.
    fn stations_on(&self, port: u32) -> u32;

    /// One more, or one less, was learned on a port.
    fn count_station(&self, port: u32, more: bool);

    /// A frame's sender was not learned.
    fn count_not_learned(&self, port: u32);

    fn count_rx(&self, stat: u32, packets: u32, bytes: u32);

    fn count_tx(&self, stat: u32, packets: u32, bytes: u32);

    /// A number that was never there before whenever ports, members or stations have changed in a way that a [decision] may
    /// depend on.
    ///
    /// [decision]: super::decision
    fn changes(&self) -> u64;

    /// They have.
    fn changed(&self);

    /// This processor's decision at a place below [`super::maps::MAX_DECISIONS`].
    fn decision(&self, place: u32) -> Option<DecisionRef>;

    /// The kernel's own ticks (jiffies): what costs least of all clocks.
    fn ticks(&self) -> u64;

    /// Nanoseconds since boot (CLOCK_MONOTONIC, coarse).
    fn now(&self) -> u64;
}
