//! The kernel programs: entry points only. What they do is in `telecluster_common::nat`, on what is in [`maps`],
//! where a packet's bytes are in [`skb`].
#![no_std]
#![no_main]
// Inline assembly for BPF is unstable; it is used for two instructions, see `skb` and `tables`.
#![feature(asm_experimental_arch)]

mod maps;
mod skb;
mod tables;

use aya_ebpf::{bindings::TC_ACT_SHOT, macros::classifier, programs::TcContext};
use aya_log_ebpf::debug;
use telecluster_common::nat::{Verdict, wan_in, wan_out};

use crate::{skb::Skb, tables::Kernel};

/// On to the next program, and then to the stack. Never "ok, stop": that would hide other people's programs.
const NEXT: i32 = -1; // TCX_NEXT (uapi/linux/bpf.h) and TC_ACT_UNSPEC (uapi/linux/pkt_cls.h)

/// Ingress of the uplink.
#[classifier]
pub fn tc_wan_in(ctx: TcContext) -> i32 {
    let verdict = wan_in(&mut Skb::new(&ctx), &Kernel::new(&ctx));
    act(&ctx, verdict)
}

/// Egress of the uplink.
#[classifier]
pub fn tc_wan_out(ctx: TcContext) -> i32 {
    let verdict = wan_out(&mut Skb::new(&ctx), &Kernel::new(&ctx));
    act(&ctx, verdict)
}

#[inline(always)]
fn act(ctx: &TcContext, verdict: Verdict) -> i32 {
    let reason = match verdict {
        Verdict::Pass => return NEXT,
        Verdict::Drop(reason) => reason,
    };
    maps::count_drop(reason);
    debug!(ctx, "dropped {} bytes, reason {}", ctx.len(), reason as u32);
    TC_ACT_SHOT as i32
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel hands some helpers only to programs that say they are under the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
