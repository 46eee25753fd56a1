//! What the programs write about packets: flows, whose external ports they have, packets in parts, who takes how much.

use core::mem::MaybeUninit;

/// Key of `flow4` and `flow6`: the packet as it arrives at the program, before translation.
///
/// IPv4: 16 bytes, so that in the kernel's hash element (48 bytes of header, then key, then value;
/// kernel/bpf/hashtab.c `struct htab_elem`) the value starts at byte 64 and is one cache line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C, align(4))]
pub struct FlowKey<A> {
    pub src: A,
    pub dst: A,
    /// ICMP echo: the identifier stands where the asking side's port would, the other port is 0.
    pub sport: u16,
    pub dport: u16,
    /// IANA number: 6, 17, 1 or 58.
    pub proto: u8,
    /// [`Direction`](super::Direction): 0 in, 1 out.
    pub direction: u8,
    /// 0; in the list of unproven flows the last bits of the flow's `created`.
    pub unused: u16,
}

impl<A: Copy> FlowKey<A> {
    /// The same, stored word by word. The kernel hashes and compares whole words of a key: of one that was stored in parts a
    /// processor cannot hand on what it has not yet written, and waits: an established packet took 80 ns, and takes 74.
    #[inline(always)]
    #[must_use]
    pub fn by_words(&self) -> Self {
        let (mut copy, from) = (MaybeUninit::<Self>::uninit(), (&raw const *self).cast::<u32>());
        let to = copy.as_mut_ptr().cast::<u32>();
        let mut word = 0;
        while word < size_of::<Self>() / size_of::<u32>() {
            // SAFETY: a key is whole words without padding (asserted in `maps`), aligned to one; all of it is written.
            unsafe { to.add(word).write_volatile(from.add(word).read()) };
            word += 1;
        }
        // SAFETY: as above.
        unsafe { copy.assume_init() }
    }

    /// The key of a packet that goes back the way that this one came.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(&self) -> Self {
        let &Self { src, dst, sport, dport, proto, direction, unused } = self;
        Self { src: dst, dst: src, sport: dport, dport: sport, proto, direction: 1 - (direction & 1), unused }
    }
}

/// One direction of a flow: connection tracking and translation in one record. IPv4: 64 bytes, one cache line, all
/// that a packet needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Flow<A> {
    pub to_src: A,
    pub to_dst: A,
    pub to_sport: u16,
    pub to_dport: u16,
    /// What the addresses add to a checksum that covers them, see [`crate::checksum`].
    pub address_difference: u16,
    /// What the ports add.
    pub port_difference: u16,
    /// Slot of the rule that made it, and that rule's generation then: another generation now means that the rule
    /// is gone, and the flow with it. The rule's slot knows the uplink and the timeouts.
    pub rule: u32,
    pub generation: u32,
    /// Where it goes without asking the stack; 0: the stack is asked.
    pub hop: u32,
    /// What `hop` was learned under: another stamp now means that it may be wrong.
    pub stamp: u32,
    /// Until when `hop` may be used, in ticks of 2^20 ns since boot.
    pub lease: u32,
    /// In ticks of 2^20 ns since boot.
    pub last_seen: u32,
    /// As they would be on the wire: a segmented super-packet counts its segments.
    pub packets: u64,
    /// Of IP, as the stack saw them: a super-packet's headers count once.
    pub bytes: u64,
    /// Seconds since boot.
    pub created: u32,
    /// [`crate::tcp::FlowState`].
    pub state: u8,
    /// [`flag`]s.
    pub flags: u8,
    /// When this direction last told the other that it is busy, in units of 2^32 ns.
    pub synced: u16,
}

/// Values of [`Flow::lease`] that are no time.
pub mod lease {
    /// A packet was seen to go that way, once. A bridge that does not know a station sends to every port, so one
    /// sight of it proves nothing.
    pub const SEEN: u32 = 0;
    /// The way is known, but that of the other direction is not.
    pub const WAITING: u32 = 1;
    /// Somebody is removing the entry.
    pub const OWNED: u32 = 2;
}

/// Bits of [`Flow::flags`].
pub mod flag {
    /// The direction of the flow's first packet.
    pub const OPENER: u8 = 1;
    /// The other side has answered.
    pub const ANSWERED: u8 = 2;
    /// TCP: this direction has sent FIN.
    pub const FINISHED: u8 = 4;
    /// It cannot come from a forged source: nothing pushes it out of the table.
    pub const PROVEN: u8 = 8;
    /// TCP: this direction has sent a reset, or somebody in its name.
    pub const ABORTED: u8 = 16;
}

/// An address and a port of one protocol. Key of `binding4` (the outside's view of an inside socket) and of `moved4`
/// (an inside socket), and of their twins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C, align(4))]
pub struct EndpointKey<A> {
    pub address: A,
    /// ICMP echo: the identifier.
    pub port: u16,
    pub proto: u8,
    /// Always 0.
    pub unused: u8,
}

/// [`Binding::expires`] while somebody is removing it.
pub const RELEASED: u32 = 0;

/// Addresses outside that a binding remembers.
pub const REMOTES: usize = 8;

/// Value of `binding4` and `binding6`: whom an external port belongs to. Its existence is the ownership: it is inserted
/// only where none is, so two inside hosts never share a port (RFC 4787 REQ-1 and REQ-3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Binding<A> {
    pub inside: A,
    pub port: u16,
    /// Symmetric rules: the only port outside that it is for.
    pub remote_port: u16,
    pub rule: u32,
    pub generation: u32,
    /// In ticks of 2^20 ns since boot. Nobody else gets the port until the hold-down after that is over. [`RELEASED`]: somebody is removing it.
    pub expires: u32,
    /// Flows that it has carried.
    pub flows: u32,
    /// Where the next of `remotes` goes.
    pub next: u32,
    /// Whom the inside has sent to lately: who may send to it, unless the rule says otherwise.
    pub remotes: [A; REMOTES],
}

/// Value of `moved4` and `moved6`: where an inside socket appears outside whose own port was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Moved<A> {
    pub address: A,
    pub port: u16,
    /// Always 0.
    pub unused: u16,
}

/// Packets in parts that can be on their way at once: the size of `fragment4` and of `fragment6`.
pub const MAX_FRAGMENTED: u32 = 8192;

/// Inside hosts and rules whose pace is known at once: the size of `pace4` and of `pace6`.
pub const MAX_PACED: u32 = 16384;

/// Ports of limited inside hosts that are known at once: the size of `placed4` and of `placed6`.
pub const MAX_PLACED: u32 = 65536;

/// Uplinks at which fragments can wait: the size of `waiting_room`.
pub const MAX_WAITING_ROOMS: u32 = 512;

/// Key of `pace4` and `pace6`; the value is when the next flow may be made, in nanoseconds since boot, were there no second
/// that may come at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C, align(4))]
pub struct PaceKey<A> {
    /// 0.0.0.0 or ::, the rule as a whole.
    pub host: A,
    pub rule: u32,
}

/// Key of `placed4` and `placed6`: one of the ports that an inside host may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C, align(4))]
pub struct PlaceKey<A> {
    pub host: A,
    pub number: u32,
}

/// Value of `placed4` and `placed6`: which one it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct PlacedPort {
    pub port: u16,
    pub proto: u8,
    /// Always 0.
    pub unused: u8,
}

/// Key of `fragment4` and `fragment6`: a packet that comes in parts, as its sender has named it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C, align(4))]
pub struct FragmentKey<A> {
    pub src: A,
    pub dst: A,
    pub id: u32,
    /// IPv4: the protocol; IPv6: 0, only the first part is sure to know it.
    pub proto: u8,
    /// [`Direction`](super::Direction): 0 in, 1 out.
    pub direction: u8,
    /// Always 0.
    pub unused: u16,
}

/// Value of `fragment4` and `fragment6`: what only the first part says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Fragmented {
    /// As in [`FlowKey`].
    pub sport: u16,
    pub dport: u16,
    /// In ticks of 2^20 ns since boot.
    pub expires: u32,
    pub proto: u8,
    /// Always 0.
    pub unused: [u8; 3],
}
