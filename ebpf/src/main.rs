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
    drop::DropReason,
    family::Address,
    maps::{Direction, stage},
    nat::{Verdict, established, translate},
    packet::Packet as _,
    vlan::{self, port_in, port_out},
};

use crate::{maps::STAGE, skb::Skb, switch::Maps, tables::Kernel};

type A4 = [u8; 4];
type A6 = [u8; 16];

/// On to the next program, and then to the stack. Never "ok, stop": that would hide other people's programs.
const NEXT: i32 = -1; // TCX_NEXT (uapi/linux/bpf.h) and TC_ACT_UNSPEC (uapi/linux/pkt_cls.h)

/// Ingress of the uplink.
#[classifier]
pub fn tc_wan_in(ctx: TcContext) -> i32 {
    hook(&ctx, Direction::In, stage::NAT4_IN, stage::NAT6_IN)
}

/// Egress of the uplink.
#[classifier]
pub fn tc_wan_out(ctx: TcContext) -> i32 {
    hook(&ctx, Direction::Out, stage::NAT4_OUT, stage::NAT6_OUT)
}

/// IPv4 from the outside that is not simply the next packet of a flow.
#[classifier]
pub fn tc_nat4_in(ctx: TcContext) -> i32 {
    act(&ctx, translate::<_, _, A4>(&mut Skb::new(&ctx), &Kernel::new(&ctx), Direction::In))
}

/// The same from the inside.
#[classifier]
pub fn tc_nat4_out(ctx: TcContext) -> i32 {
    act(&ctx, translate::<_, _, A4>(&mut Skb::new(&ctx), &Kernel::new(&ctx), Direction::Out))
}

/// IPv6 from the outside.
#[classifier]
pub fn tc_nat6_in(ctx: TcContext) -> i32 {
    act(&ctx, translate::<_, _, A6>(&mut Skb::new(&ctx), &Kernel::new(&ctx), Direction::In))
}

/// IPv6 from the inside.
#[classifier]
pub fn tc_nat6_out(ctx: TcContext) -> i32 {
    act(&ctx, translate::<_, _, A6>(&mut Skb::new(&ctx), &Kernel::new(&ctx), Direction::Out))
}

/// Translates the next packet of an IPv4 flow; everything else goes on to a program of its own, with a stack of its
/// own. IPv6 packets all do: their keys alone would fill this one's.
#[inline(always)]
fn hook(ctx: &TcContext, direction: Direction, nat4: u32, nat6: u32) -> i32 {
    let mut skb = Skb::new(ctx);
    let next = if skb.carries(A4::ETHERTYPE) {
        if let Some(verdict) = established::<_, _, A4>(&mut skb, &Kernel::new(ctx), direction) {
            return act(ctx, verdict);
        }
        nat4
    } else if skb.carries(A6::ETHERTYPE) {
        nat6
    } else {
        return NEXT;
    };
    // SAFETY: nothing here has to be dropped. It comes back only when the place is empty.
    unsafe { STAGE.tail_call(ctx, next) }
    act(ctx, Verdict::Drop(DropReason::Program))
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
