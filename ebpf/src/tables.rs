//! The engine's tables, done with BPF maps and helpers.

use core::{arch::asm, ptr::NonNull};

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_CURRENT_NETNS, BPF_NOEXIST, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1,
    },
    btf_maps::lpm_trie::Key,
    helpers::{
        bpf_get_prandom_u32, bpf_ktime_get_coarse_ns, bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp,
    },
    programs::TcContext,
};
use telecluster_common::{
    maps::{Direction, Flow, FlowKey, Forward, ForwardKey, Masquerade, MasqueradeKey},
    tables::{Claim, FlowRef, Tables, Tier},
    tcp::proto,
};

use crate::maps::{FLOW4, FORWARD4, HALF4, LOCAL4, MASQUERADE4, RULE, RULE_STAT, UPLINK4};

const EEXIST: i32 = -17;

/// Maps, clock, dice and sockets of the running kernel.
pub struct Kernel(*mut __sk_buff);

impl Kernel {
    #[inline(always)]
    pub fn new(ctx: &TcContext) -> Self {
        Self(ctx.skb.skb)
    }
}

impl Tables for Kernel {
    #[inline(always)]
    fn flow(&self, tier: Tier, key: &FlowKey) -> Option<FlowRef> {
        let flow = match tier {
            Tier::Proven => FLOW4.get_ptr_mut(key),
            Tier::Unproven => HALF4.get_ptr_mut(key),
        }?;
        // SAFETY: map memory stays mapped while the program runs (RCU), as this flow's or as another's.
        NonNull::new(flow).map(|flow| unsafe { FlowRef::new(flow) })
    }

    #[inline(always)]
    fn claim(&self, tier: Tier, key: &FlowKey, flow: &Flow) -> Claim {
        let flags = u64::from(BPF_NOEXIST);
        let result = match tier {
            Tier::Proven => FLOW4.insert(key, flow, flags),
            Tier::Unproven => HALF4.insert(key, flow, flags),
        };
        match result {
            Ok(()) => Claim::Ok,
            Err(EEXIST) => Claim::Exists,
            Err(_) => Claim::Full,
        }
    }

    #[inline(always)]
    fn claim_copy(&self, tier: Tier, key: &FlowKey, flow: FlowRef) -> Claim {
        // SAFETY: map memory, which the kernel copies from; a change meanwhile is a change that came too late.
        self.claim(tier, key, unsafe { &*flow.as_ptr() })
    }

    #[inline(always)]
    fn remove(&self, tier: Tier, key: &FlowKey) {
        // A missing key is what was wanted.
        let _ = match tier {
            Tier::Proven => FLOW4.remove(key),
            Tier::Unproven => HALF4.remove(key),
        };
    }

    #[inline(always)]
    fn touch(&self, flow: FlowRef, now: u64, packets: u32, bytes: u32) {
        let record = flow.as_ptr();
        // SAFETY: the fields of a flow in map memory.
        unsafe {
            atomic_add(&raw mut (*record).packets, u64::from(packets));
            atomic_add(&raw mut (*record).bytes, u64::from(bytes));
        }
        flow.set_last_seen(now);
    }

    #[inline(always)]
    fn generation(&self, slot: u32) -> Option<u32> {
        RULE.get(slot).map(|rule| rule.generation)
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
    fn forward(&self, key: &ForwardKey) -> Option<Forward> {
        // SAFETY: read at once; the agent replaces entries whole, and an old one is as good as a new one here.
        unsafe { FORWARD4.get(key) }.copied()
    }

    #[inline(always)]
    fn masquerade(&self, uplink: u32, address: [u8; 4]) -> Option<Masquerade> {
        MASQUERADE4.get(&Key::new(64, MasqueradeKey { uplink, address })).copied()
    }

    #[inline(always)]
    fn uplink_address(&self, uplink: u32) -> Option<[u8; 4]> {
        // SAFETY: four bytes, read at once.
        unsafe { UPLINK4.get(uplink) }.map(|uplink| uplink.address)
    }

    #[inline(always)]
    fn is_local(&self, address: [u8; 4]) -> bool {
        LOCAL4.get_ptr(address).is_some()
    }

    #[inline(always)]
    fn host_socket(&self, protocol: u8, remote: ([u8; 4], u16), local: ([u8; 4], u16)) -> bool {
        // The lookup sees the packet that the socket would receive: from the remote to the local address.
        let mut tuple = bpf_sock_tuple {
            __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 {
                ipv4: bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
                    saddr: u32::from_ne_bytes(remote.0),
                    daddr: u32::from_ne_bytes(local.0),
                    sport: remote.1.to_be(),
                    dport: local.1.to_be(),
                },
            },
        };
        let len = size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1>() as u32;
        let netns = BPF_F_CURRENT_NETNS as u64;
        // SAFETY: the context of the program that runs, a tuple on our stack, and the reference is given back.
        unsafe {
            let socket = if protocol == proto::TCP {
                bpf_skc_lookup_tcp(self.0.cast(), &raw mut tuple, len, netns, 0)
            } else {
                bpf_sk_lookup_udp(self.0.cast(), &raw mut tuple, len, netns, 0)
            };
            if socket.is_null() {
                return false;
            }
            bpf_sk_release(socket.cast());
        }
        true
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: reads a clock.
        unsafe { bpf_ktime_get_coarse_ns() }
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: no arguments.
        unsafe { bpf_get_prandom_u32() }
    }
}

/// The target has no compare-and-swap in Rust's eyes, so `AtomicU64::fetch_add` does not exist there.
///
/// # Safety
/// `counter` must be writable and aligned.
#[inline(always)]
pub unsafe fn atomic_add(counter: *mut u64, value: u64) {
    // SAFETY: one atomic addition, by the caller's contract.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) value, options(nostack)) }
}
