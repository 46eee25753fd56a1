//! The kernel programs: entry points only. What they do is in `telecluster_common::nat` and `::vlan`, on what is in
//! [`maps`] and [`switch`], where a packet's bytes are in [`skb`] and [`frame`].
#![no_std]
#![no_main]
// Inline assembly for BPF is unstable; it is used for two instructions, see `skb` and `tables`.
#![feature(asm_experimental_arch)]

mod frame;
mod maps;
mod skb;
mod switch;
mod tables;

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, TC_ACT_SHOT},
    helpers::bpf_redirect,
    macros::classifier,
    programs::TcContext,
};
use aya_log_ebpf::debug;
use telecluster_common::{
    nat::{Verdict, wan_in, wan_out},
    vlan::{self, port_in, port_out},
};

use crate::{skb::Skb, switch::Maps, tables::Kernel};

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

/// From a port of a bridge with VLANs into the bridge: a port's ingress, the bridge's own egress.
#[classifier]
pub fn tc_port_in(ctx: TcContext) -> i32 {
    let verdict = port_in(&mut Skb::new(&ctx), &Maps);
    switched(&ctx, verdict)
}

/// From the bridge out of a port: a port's egress, the bridge's own ingress.
#[classifier]
pub fn tc_port_out(ctx: TcContext) -> i32 {
    let verdict = port_out(&mut Skb::new(&ctx), &Maps);
    switched(&ctx, verdict)
}

#[inline(always)]
fn switched(ctx: &TcContext, verdict: vlan::Verdict) -> i32 {
    match verdict {
        vlan::Verdict::Pass => NEXT,
        vlan::Verdict::Forward { port, host } => {
            let flags = if host { u64::from(BPF_F_INGRESS) } else { 0 };
            // SAFETY: no pointers.
            unsafe { bpf_redirect(port, flags) as i32 }
        }
        vlan::Verdict::Drop(reason) => {
            // SAFETY: the context of the program that runs.
            let port = unsafe { (*ctx.skb.skb).ifindex };
            switch::count_drop(port, reason);
            debug!(ctx, "port {}: dropped {} bytes, reason {}", port, ctx.len(), reason as u32);
            TC_ACT_SHOT as i32
        }
    }
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
