//! The engine's tables, done with BPF maps and helpers.

use core::{ffi::c_void, ptr::NonNull};

use aya_ebpf::{
    EbpfContext, Global,
    bindings::{
        BPF_F_CURRENT_NETNS, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH,
        BPF_FIB_LKUP_RET_SUCCESS, BPF_NOEXIST, bpf_fib_lookup, bpf_fib_lookup__bindgen_ty_3,
        bpf_fib_lookup__bindgen_ty_4, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
    },
    btf_maps::lpm_trie::Key,
    helpers::{
        bpf_check_mtu, bpf_fib_lookup as ask_routes, bpf_get_prandom_u32, bpf_ktime_get_coarse_ns,
        bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp,
    },
};
use telecluster_common::{
    family::Address as _,
    maps::{
        Binding, Direction, EndpointKey, Flow, FlowKey, Forward, ForwardKey, FragmentKey, Fragmented, Local,
        Masquerade, MasqueradeKey, Moved, Opening, PaceKey, Pair, PairKey, PlaceKey, PlacedPort, PoolKey,
        Port, RangeKey, Rule, SourceKey, Uplink, forwarded, ticks,
    },
    nat::{
        fast::{HopRef, Ways, is_ahead, is_settled, stamp},
        work::{Prefixed, Work},
    },
    tables::{self, BindingRef, Claim, FlowRef, Host, Limits, RangeRef, Route, Tables, owned},
    tcp::proto,
};

use crate::atomic::{atomic_add, compare_exchange, compare_exchange32};
use crate::maps::{
    BINDING4, BINDING6, EPOCH, FLOW4, FLOW6, FORWARD4, FORWARD6, FORWARDED4, FORWARDED6, FRAGMENT4,
    FRAGMENT6, HALF_NEXT, HALF4, HALF6, HOP, LOCAL4, LOCAL6, MASQUERADE4, MASQUERADE6, MOVED4, MOVED6,
    OPENING, PACE4, PACE6, PAIR4, PAIR6, PLACED4, PLACED6, POOL4, POOL6, PORT, RANGE4, RANGE6, RULE,
    RULE_STAT, SOURCE4, SOURCE6, UPLINK4, UPLINK6, WAITING_ROOM, WORK4, WORK6,
};

const EEXIST: i32 = -17;

/// In every network namespace (include/net/net_namespace.h `LOOPBACK_IFINDEX`).
pub const LOOPBACK: u32 = 1;

/// Places of `half4` and of `half6`, a power of two; the agent sets it.
#[unsafe(no_mangle)]
pub static HALF_SIZE: Global<u32> = Global::new(1024);

/// How much one may take, see [`Limits`]; the agent sets it.
#[unsafe(no_mangle)]
pub static PORTS_PER_HOST: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static FLOWS_PER_HOST: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static FLOWS_PER_RULE: Global<u32> = Global::new(0);

/// In ticks; the agent sets it.
#[unsafe(no_mangle)]
pub static HOLD_DOWN: Global<u32> = Global::new(ticks(tables::HOLD_DOWN));

/// Maps, clock, dice and sockets of the running kernel.
pub struct Kernel(*mut c_void);

impl Kernel {
    #[inline(always)]
    pub fn new(ctx: &impl EbpfContext) -> Self {
        Self(ctx.as_ptr())
    }

    #[inline(always)]
    fn socket(&self, protocol: u8, tuple: bpf_sock_tuple__bindgen_ty_1, len: usize) -> bool {
        let mut tuple = bpf_sock_tuple { __bindgen_anon_1: tuple };
        let netns = BPF_F_CURRENT_NETNS as u64;
        // SAFETY: the context of the program that runs, a tuple on our stack, and the reference is given back.
        unsafe {
            let socket = if protocol == proto::TCP {
                bpf_skc_lookup_tcp(self.0, &raw mut tuple, len as u32, netns, 0)
            } else {
                bpf_sk_lookup_udp(self.0, &raw mut tuple, len as u32, netns, 0)
            };
            if socket.is_null() {
                return false;
            }
            bpf_sk_release(socket.cast());
        }
        true
    }
}

/// Family, source and destination, for the kernel's routes.
type Ends = (u8, bpf_fib_lookup__bindgen_ty_3, bpf_fib_lookup__bindgen_ty_4);

impl Kernel {
    /// Where the kernel would send a packet of the host's own.
    #[inline(always)]
    fn ask(&self, (family, src, dst): Ends, len: u32) -> Option<Route> {
        const SUCCESS: i64 = BPF_FIB_LKUP_RET_SUCCESS as i64;
        const NO_NEIGHBOUR: i64 = BPF_FIB_LKUP_RET_NO_NEIGH as i64;
        const TOO_LONG: i64 = BPF_FIB_LKUP_RET_FRAG_NEEDED as i64;
        // SAFETY: integers, of which 0 is one.
        let mut question: bpf_fib_lookup = unsafe { core::mem::zeroed() };
        question.family = family;
        // As if it had come in by loopback, which is how the kernel asks for its own.
        question.ifindex = LOOPBACK;
        question.__bindgen_anon_3 = src;
        question.__bindgen_anon_4 = dst;
        // With a length the route's own MTU counts too, and what the kernel has learned of it.
        question.__bindgen_anon_1.tot_len = if len > 0xffff { 0xffff } else { len as u16 };
        let fits = match self.put(&mut question) {
            // Whoever is not known yet is asked for when the packet is sent.
            SUCCESS | NO_NEIGHBOUR => true,
            // Then it does not say where; without a length it does.
            TOO_LONG => {
                question.ifindex = LOOPBACK;
                question.__bindgen_anon_1.tot_len = 0;
                let answer = self.put(&mut question);
                if !matches!(answer, SUCCESS | NO_NEIGHBOUR | TOO_LONG) {
                    return None;
                }
                false
            }
            _ => return None,
        };
        (question.ifindex != LOOPBACK).then_some(Route { interface: question.ifindex, fits })
    }

    #[inline(always)]
    fn put(&self, question: &mut bpf_fib_lookup) -> i64 {
        let len = size_of::<bpf_fib_lookup>() as i32;
        // SAFETY: the context of the program that runs, and a question on our stack.
        unsafe { ask_routes(self.0, question, len, 0) }
    }
}

impl Host for Kernel {
    #[inline(always)]
    fn rule(&self, slot: u32) -> Option<Rule> {
        RULE.get(slot).copied()
    }

    #[inline(always)]
    fn opening(&self, slot: u32) -> Option<Opening> {
        OPENING.get(slot).copied()
    }

    #[inline(always)]
    fn count(&self, slot: u32, direction: Direction, packets: u32, bytes: u32) {
        let Some(stat) = RULE_STAT.get_ptr_mut(slot) else {
            return;
        };
        // SAFETY: this CPU's own slot; the hooks run with softirqs off, so nothing interrupts the additions.
        let stat = unsafe { &mut *stat };
        match direction {
            Direction::In => {
                stat.packets_in += u64::from(packets);
                stat.bytes_in += u64::from(bytes);
            }
            Direction::Out => {
                stat.packets_out += u64::from(packets);
                stat.bytes_out += u64::from(bytes);
            }
        }
    }

    #[inline(always)]
    fn count_flow(&self, slot: u32) {
        if let Some(stat) = RULE_STAT.get_ptr_mut(slot) {
            // SAFETY: as in `count`.
            unsafe { (*stat).flows += 1 }
        }
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: reads a clock.
        unsafe { bpf_ktime_get_coarse_ns() }
    }

    #[inline(always)]
    fn waiting_room(&self, uplink: u32) -> Option<u32> {
        // SAFETY: four bytes, read at once.
        unsafe { WAITING_ROOM.get(uplink) }.copied()
    }

    #[inline(always)]
    fn limits(&self) -> Limits {
        Limits {
            ports_per_host: PORTS_PER_HOST.load(),
            flows_per_host: FLOWS_PER_HOST.load(),
            flows_per_rule: FLOWS_PER_RULE.load(),
        }
    }

    #[inline(always)]
    fn hold_down(&self) -> u32 {
        HOLD_DOWN.load()
    }

    #[inline(always)]
    fn mtu(&self, interface: u32) -> Option<u32> {
        let mut mtu = 0;
        // SAFETY: the context of the program that runs, and a number on our stack. Below 0 the interface is gone; else the number is
        // there, whether this packet fits or not.
        let answer = unsafe { bpf_check_mtu(self.0.cast(), interface, &raw mut mtu, 0, 0) };
        (answer >= 0).then_some(mtu)
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: no arguments.
        unsafe { bpf_get_prandom_u32() }
    }
}

impl Ways for Kernel {
    #[inline(always)]
    fn epoch(&self) -> u32 {
        EPOCH.get(0).map_or(0, |epoch| epoch.current)
    }

    #[inline(always)]
    fn settled_epoch(&self) -> u32 {
        let settled = EPOCH.get(0).filter(|epoch| is_settled(epoch.begun, self.now()));
        settled.map_or(0, |epoch| epoch.current)
    }

    #[inline(always)]
    fn are_alike(&self) -> bool {
        EPOCH.get(0).is_some_and(|epoch| is_ahead(epoch.alike, self.now()))
    }

    #[inline(always)]
    fn hop(&self, slot: u32) -> Option<HopRef> {
        // SAFETY: map memory stays mapped while the program runs.
        NonNull::new(HOP.get_ptr_mut(slot)?).map(|hop| unsafe { HopRef::new(hop) })
    }

    #[inline(always)]
    fn take(&self, hop: HopRef, old: u64) -> bool {
        // SAFETY: the stamp of an entry in map memory.
        unsafe { compare_exchange(&raw mut (*hop.as_ptr()).stamp, old, stamp::BUSY) == old }
    }

    #[inline(always)]
    fn port(&self, interface: u32) -> Option<Port> {
        // SAFETY: read at once; the agent replaces entries whole.
        unsafe { PORT.get(interface) }.copied()
    }
}

/// The tables of one family: the same code over its own maps. `$family` is its place in `half_next`.
macro_rules! tables {
    ($address:ty, $prefix:literal, $flow:ident, $half:ident, $family:literal, $work:ident, $binding:ident, $moved:ident,
     $fragment:ident, $pace:ident, $placed:ident, $pair:ident, $forward:ident, $forwarded:ident, $range:ident, $source:ident, $masquerade:ident, $uplink:ident, $local:ident,
     $pool:ident, $tuple:expr, $ends:expr) => {
        impl Tables<$address> for Kernel {
            #[inline(always)]
            fn flow(&self, key: &FlowKey<$address>) -> Option<FlowRef<$address>> {
                let flow = $flow.get_ptr_mut(key)?;
                // SAFETY: map memory stays mapped while the program runs (RCU), as this flow's or as another's.
                NonNull::new(flow).map(|flow| unsafe { FlowRef::new(flow) })
            }

            #[inline(always)]
            fn claim(&self, key: &FlowKey<$address>, flow: &Flow<$address>) -> Claim {
                match $flow.insert(key, flow, u64::from(BPF_NOEXIST)) {
                    Ok(()) => Claim::Ok,
                    Err(EEXIST) => Claim::Exists,
                    Err(_) => Claim::Full,
                }
            }

            #[inline(always)]
            fn own(&self, flow: FlowRef<$address>, clock: u64) -> bool {
                let Some(new) = owned(clock, self.now()) else {
                    return false;
                };
                // SAFETY: two fields of a flow in map memory, aligned to eight bytes.
                unsafe { compare_exchange(flow.clock_ptr(), clock, new) == clock }
            }

            #[inline(always)]
            fn remove(&self, key: &FlowKey<$address>) {
                // A missing key is what was wanted.
                let _ = $flow.remove(key);
            }

            #[inline(always)]
            fn touch(&self, flow: FlowRef<$address>, now: u64, packets: u32, bytes: u32) {
                let record = flow.as_ptr();
                // SAFETY: the fields of a flow in map memory.
                unsafe {
                    atomic_add(&raw mut (*record).packets, u64::from(packets));
                    atomic_add(&raw mut (*record).bytes, u64::from(bytes));
                }
                flow.see(now);
            }

            #[inline(always)]
            fn exchange(&self, key: &mut FlowKey<$address>) -> bool {
                let Some(next) = HALF_NEXT.get_ptr_mut($family) else {
                    return false;
                };
                // SAFETY: this CPU's own slots; the hooks run with softirqs off, so nothing interrupts.
                unsafe {
                    let place = *next & (HALF_SIZE.load() - 1);
                    *next = (*next).wrapping_add(1);
                    let Some(place) = $half.get_ptr_mut(place) else {
                        return false;
                    };
                    core::ptr::swap(place, key);
                }
                true
            }

            #[inline(always)]
            fn rewind(&self) {
                if let Some(next) = HALF_NEXT.get_ptr_mut($family) {
                    // SAFETY: as above. After four thousand million flows it begins at the first place once more, which does no harm.
                    unsafe { *next = (*next).max(HALF_SIZE.load()) }
                }
            }

            #[inline(always)]
            fn work(&self) -> Option<NonNull<Work<$address>>> {
                NonNull::new($work.get_ptr_mut(0)?)
            }

            #[inline(always)]
            fn binding(&self, key: &EndpointKey<$address>) -> Option<BindingRef<$address>> {
                let binding = $binding.get_ptr_mut(key)?;
                // SAFETY: map memory stays mapped while the program runs (RCU), as this binding's or as another's.
                NonNull::new(binding).map(|binding| unsafe { BindingRef::new(binding) })
            }

            #[inline(always)]
            fn claim_binding(&self, key: &EndpointKey<$address>, binding: &Binding<$address>) -> Claim {
                match $binding.insert(key, binding, u64::from(BPF_NOEXIST)) {
                    Ok(()) => Claim::Ok,
                    Err(EEXIST) => Claim::Exists,
                    Err(_) => Claim::Full,
                }
            }

            #[inline(always)]
            fn remove_binding(&self, key: &EndpointKey<$address>) {
                // A missing key is what was wanted.
                let _ = $binding.remove(key);
            }

            #[inline(always)]
            fn exchange_expiry(&self, binding: BindingRef<$address>, seen: u32, new: u32) -> bool {
                // SAFETY: a field of a binding in map memory, aligned to four bytes.
                unsafe { compare_exchange32(binding.expires_ptr(), seen, new) == seen }
            }

            #[inline(always)]
            fn moved(&self, key: &EndpointKey<$address>) -> Option<Moved<$address>> {
                // SAFETY: read at once; what it says is checked against the binding.
                unsafe { $moved.get(key) }.copied()
            }

            #[inline(always)]
            fn set_moved(&self, key: &EndpointKey<$address>, moved: &Moved<$address>) -> bool {
                $moved.insert(key, moved, 0).is_ok()
            }

            #[inline(always)]
            fn pace(&self, key: &PaceKey<$address>) -> Option<u64> {
                // SAFETY: eight bytes, read at once.
                unsafe { $pace.get(key) }.copied()
            }

            #[inline(always)]
            fn set_pace(&self, key: &PaceKey<$address>, next: u64) {
                // Without an entry nobody is held up.
                let _ = $pace.insert(key, next, 0);
            }

            #[inline(always)]
            fn placed(&self, key: &PlaceKey<$address>) -> Option<PlacedPort> {
                // SAFETY: four bytes, read at once.
                unsafe { $placed.get(key) }.copied()
            }

            #[inline(always)]
            fn set_placed(&self, key: &PlaceKey<$address>, port: &PlacedPort) {
                // As above.
                let _ = $placed.insert(key, port, 0);
            }

            #[inline(always)]
            fn fragmented(&self, key: &FragmentKey<$address>) -> Option<Fragmented> {
                // SAFETY: read at once; where it is half of each, no flow is found.
                unsafe { $fragment.get(key) }.copied()
            }

            #[inline(always)]
            fn set_fragmented(&self, key: &FragmentKey<$address>, fragmented: &Fragmented) {
                // Without an entry the others are dropped and counted.
                let _ = $fragment.insert(key, fragmented, 0);
            }

            #[inline(always)]
            fn pair(&self, key: &PairKey<$address>) -> Option<Pair> {
                // SAFETY: read at once, as a flow is.
                unsafe { $pair.get(key) }.copied()
            }

            #[inline(always)]
            fn set_pair(&self, key: &PairKey<$address>, pair: &Pair) {
                // Without an entry the next flow takes the kernel's way.
                let _ = $pair.insert(key, pair, 0);
            }

            #[inline(always)]
            fn forward(&self, key: &ForwardKey<$address>) -> Option<Forward<$address>> {
                // SAFETY: read at once; the agent replaces entries whole, and an old one is as good as a new one.
                unsafe { $forward.get(key) }.copied()
            }

            #[inline(always)]
            fn is_forwarded(&self, protocol: u8, port: u16) -> bool {
                let (word, bit) = forwarded(protocol, port);
                $forwarded.get(word).is_some_and(|bits| *bits >> bit & 1 == 1)
            }

            #[inline(always)]
            fn range(&self, key: &Prefixed<RangeKey<$address>>) -> Option<RangeRef<$address>> {
                let range = core::ptr::from_ref($range.get(trie_key(key))?);
                // SAFETY: map memory stays mapped while the program runs (RCU), and is only read.
                NonNull::new(range.cast_mut()).map(|range| unsafe { RangeRef::new(range) })
            }

            #[inline(always)]
            fn is_source(&self, key: &Prefixed<SourceKey<$address>>) -> bool {
                $source.get(trie_key(key)).is_some()
            }

            #[inline(always)]
            fn masquerade(&self, uplink: u32, address: $address) -> Option<Masquerade> {
                $masquerade.get(&Key::new($prefix, MasqueradeKey { uplink, address })).copied()
            }

            #[inline(always)]
            fn uplink(&self, uplink: u32) -> Option<Uplink<$address>> {
                // SAFETY: read at once; the agent replaces entries whole.
                unsafe { $uplink.get(uplink) }.copied()
            }

            #[inline(always)]
            fn pooled(&self, key: &PoolKey) -> Option<$address> {
                let address = $pool.get_ptr(key)?;
                // SAFETY: map memory stays mapped while the program runs (RCU), and values are aligned to eight bytes.
                Some(unsafe { <$address>::load(address) })
            }

            #[inline(always)]
            fn local(&self, address: $address) -> Option<Local> {
                // SAFETY: eight bytes, read at once.
                unsafe { $local.get(address) }.copied()
            }

            #[inline(always)]
            fn route(&self, src: $address, dst: $address, len: u32) -> Option<Route> {
                self.ask($ends(src, dst), len)
            }

            #[inline(always)]
            fn host_socket(&self, protocol: u8, remote: ($address, u16), local: ($address, u16)) -> bool {
                // The lookup sees the packet that the socket would receive: from the remote to the local address.
                let (tuple, len) = $tuple(remote, local);
                self.socket(protocol, tuple, len)
            }
        }
    };
}

tables!(
    [u8; 4],
    64,
    FLOW4,
    HALF4,
    0,
    WORK4,
    BINDING4,
    MOVED4,
    FRAGMENT4,
    PACE4,
    PLACED4,
    PAIR4,
    FORWARD4,
    FORWARDED4,
    RANGE4,
    SOURCE4,
    MASQUERADE4,
    UPLINK4,
    LOCAL4,
    POOL4,
    tuple4,
    ends4
);
tables!(
    [u8; 16],
    160,
    FLOW6,
    HALF6,
    1,
    WORK6,
    BINDING6,
    MOVED6,
    FRAGMENT6,
    PACE6,
    PLACED6,
    PAIR6,
    FORWARD6,
    FORWARDED6,
    RANGE6,
    SOURCE6,
    MASQUERADE6,
    UPLINK6,
    LOCAL6,
    POOL6,
    tuple6,
    ends6
);

/// The same bytes as aya's own key of a trie.
#[inline(always)]
fn trie_key<K>(key: &Prefixed<K>) -> &Key<K> {
    const { assert!(size_of::<Prefixed<K>>() == size_of::<Key<K>>()) }
    // SAFETY: both are the number of bits, then the key, without padding (asserted); a `Key` is aligned to one byte.
    unsafe { &*core::ptr::from_ref(key).cast() }
}

#[inline(always)]
fn ends4(src: [u8; 4], dst: [u8; 4]) -> Ends {
    const AF_INET: u8 = 2;
    let (src, dst) = (u32::from_ne_bytes(src), u32::from_ne_bytes(dst));
    (AF_INET, bpf_fib_lookup__bindgen_ty_3 { ipv4_src: src }, bpf_fib_lookup__bindgen_ty_4 { ipv4_dst: dst })
}

#[inline(always)]
fn ends6(src: [u8; 16], dst: [u8; 16]) -> Ends {
    const AF_INET6: u8 = 10;
    let (src, dst) = (words(src), words(dst));
    (AF_INET6, bpf_fib_lookup__bindgen_ty_3 { ipv6_src: src }, bpf_fib_lookup__bindgen_ty_4 { ipv6_dst: dst })
}

#[inline(always)]
fn tuple4(remote: ([u8; 4], u16), local: ([u8; 4], u16)) -> (bpf_sock_tuple__bindgen_ty_1, usize) {
    let ipv4 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
        saddr: u32::from_ne_bytes(remote.0),
        daddr: u32::from_ne_bytes(local.0),
        sport: remote.1.to_be(),
        dport: local.1.to_be(),
    };
    (bpf_sock_tuple__bindgen_ty_1 { ipv4 }, size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1>())
}

#[inline(always)]
fn tuple6(remote: ([u8; 16], u16), local: ([u8; 16], u16)) -> (bpf_sock_tuple__bindgen_ty_1, usize) {
    let ipv6 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
        saddr: words(remote.0),
        daddr: words(local.0),
        sport: remote.1.to_be(),
        dport: local.1.to_be(),
    };
    (bpf_sock_tuple__bindgen_ty_1 { ipv6 }, size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2>())
}

#[inline(always)]
fn words(address: [u8; 16]) -> [u32; 4] {
    // SAFETY: as many bytes, and every bit pattern is valid.
    unsafe { core::mem::transmute(address) }
}
