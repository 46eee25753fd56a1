//! The kernel programs: entry points only. What they do is in `telecluster_common::nat` and `::vlan`, on what is in
//! [`maps`] and [`switch`], where a packet's bytes are in [`skb`], [`frame`] and [`xdp`], which has its own entry points.
#![no_std]
#![no_main]
// Inline assembly for BPF is unstable; it is used for a few instructions, see `skb` and `atomic`.
#![feature(asm_experimental_arch)]

mod atomic;
mod collect;
mod frame;
mod maps;
mod skb;
mod switch;
mod tables;
mod xdp;

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, TC_ACT_SHOT},
    helpers::{bpf_redirect, bpf_redirect_neigh},
    macros::classifier,
    programs::TcContext,
};
use aya_log_ebpf::debug;
use telecluster_common::{
    drop::DropReason,
    family::Address,
    maps::{Direction, stage},
    nat::{
        Departure, Next, Verdict, depart, established,
        fast::lan_out,
        first, fragment, icmp_error, lan_in, make, refuse,
        round::{Round, around, error_comes_home, error_leaves, home, leaves, part_comes_home},
        translate,
        turn::{is_for_uplink, is_own_error, is_turned_by, turn_in, turn_out},
    },
    packet::{Packet as _, note},
    tables::Host as _,
    vlan::{self, port_in, port_out},
};

use crate::{
    maps::STAGE,
    skb::Skb,
    switch::Maps,
    tables::{Kernel, LOOPBACK},
};

pub type A4 = [u8; 4];
pub type A6 = [u8; 16];

/// On to the next program, and then to the stack. Never "ok, stop": that would hide other people's programs.
const NEXT: i32 = -1; // TCX_NEXT (uapi/linux/bpf.h) and TC_ACT_UNSPEC (uapi/linux/pkt_cls.h)

/// Ingress of the uplink.
#[classifier]
pub fn tc_wan_in(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(&ctx);
    // A note that somebody else has left means nothing here.
    if !note::is_waiting(skb.note()) {
        skb.set_note(note::NONE);
    }
    hook(&ctx, Direction::In, stage::NAT4_IN, stage::NEXT6_IN)
}

/// Egress of the uplink.
#[classifier]
pub fn tc_wan_out(ctx: TcContext) -> i32 {
    if is_done(&ctx) {
        return NEXT;
    }
    hook(&ctx, Direction::Out, stage::NAT4_OUT, stage::NEXT6_OUT)
}

/// Ingress of an interface towards inside hosts.
#[classifier]
pub fn tc_lan_in(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(&ctx);
    skb.set_note(note::NONE);
    if skb.carries(A4::ETHERTYPE) {
        leave(&ctx, lan_in::<_, _, A4>(&mut skb, &Kernel::new(&ctx)), stage::FIRST4_OUT, stage::DEPART4)
    } else if skb.carries(A6::ETHERTYPE) {
        go_on(&ctx, stage::LAN6_IN)
    } else {
        NEXT
    }
}

/// Egress of an interface towards inside hosts.
#[classifier]
pub fn tc_lan_out(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(&ctx);
    if is_done(&ctx) || skb.note() != note::LEARN {
        return NEXT;
    }
    if skb.carries(A4::ETHERTYPE) {
        lan_out::<_, _, A4>(&mut skb, &Kernel::new(&ctx));
        NEXT
    } else {
        go_on(&ctx, stage::LAN6_OUT)
    }
}

/// Ingress of an interface that inside hosts reach the host by: what is for an uplink's address may turn back.
#[classifier]
pub fn tc_turn_in(ctx: TcContext) -> i32 {
    let (mut skb, kernel) = (Skb::new(&ctx), Kernel::new(&ctx));
    if !skb.is_for_us() {
        return NEXT;
    }
    // A note that somebody else has left means nothing here.
    skb.set_note(note::NONE);
    if is_for_uplink::<_, _, A4>(&mut skb, &kernel) {
        go_on(&ctx, stage::HOME4)
    } else if is_for_uplink::<_, _, A6>(&mut skb, &kernel) {
        go_on(&ctx, stage::HOME6)
    } else {
        NEXT
    }
}

/// Egress of such an interface: the other half of what has turned back, and the kernel's own errors about it.
#[classifier]
pub fn tc_turn_out(ctx: TcContext) -> i32 {
    let (mut skb, kernel) = (Skb::new(&ctx), Kernel::new(&ctx));
    let Some(slot) = note::turned_by(skb.note()) else {
        return if is_own_error::<_, _, A4>(&mut skb, &kernel) {
            go_on(&ctx, stage::ICMP4_OUT)
        } else if is_own_error::<_, _, A6>(&mut skb, &kernel) {
            go_on(&ctx, stage::ICMP6_OUT)
        } else {
            NEXT
        };
    };
    skb.set_note(note::NONE);
    if skb.carries(A4::ETHERTYPE) && is_turned_by::<_, A4>(&kernel, slot) {
        go_on(&ctx, stage::TURN4_OUT)
    } else if skb.carries(A6::ETHERTYPE) && is_turned_by::<_, A6>(&kernel, slot) {
        go_on(&ctx, stage::TURN6_OUT)
    } else {
        NEXT
    }
}

/// Egress of loopback: the host's own, to an address of an uplink.
#[classifier]
pub fn tc_lo_out(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    if skb.carries(A4::ETHERTYPE) {
        go_on(&ctx, stage::LEAVE4)
    } else if skb.carries(A6::ETHERTYPE) {
        go_on(&ctx, stage::LEAVE6)
    } else {
        NEXT
    }
}

/// What the host itself sends to a forward of its own, where it leaves and where its answers come in.
macro_rules! round {
    (
        $address:ty, $leave:ident, $leave_error:ident, $around:ident, $home:ident, $home_error:ident, $home_part:ident, $turn:ident,
        $fragment:ident, $icmp:ident, $leave_error_stage:ident, $home_error_stage:ident, $home_part_stage:ident
    ) => {
        #[classifier]
        pub fn $leave(ctx: TcContext) -> i32 {
            let mut skb = Skb::new(&ctx);
            skb.set_note(note::NONE);
            match leaves::<_, _, $address>(&mut skb, &Kernel::new(&ctx)) {
                Round::Done(verdict) => act(&ctx, verdict),
                Round::Turn => go_on(&ctx, stage::$turn),
                Round::IcmpError => go_on(&ctx, stage::$leave_error_stage),
                Round::Part => go_on(&ctx, stage::$fragment),
            }
        }

        #[classifier]
        pub fn $leave_error(ctx: TcContext) -> i32 {
            act(&ctx, error_leaves::<_, _, $address>(&mut Skb::new(&ctx), &Kernel::new(&ctx)))
        }

        #[classifier]
        pub fn $around(ctx: TcContext) -> i32 {
            act(&ctx, around::<_, _, $address>(&mut Skb::new(&ctx), &Kernel::new(&ctx)))
        }

        #[classifier]
        pub fn $home(ctx: TcContext) -> i32 {
            match home::<_, _, $address>(&mut Skb::new(&ctx), &Kernel::new(&ctx)) {
                Round::Done(verdict) => act(&ctx, verdict),
                Round::Turn => go_on(&ctx, stage::$turn),
                Round::IcmpError => go_on(&ctx, stage::$home_error_stage),
                Round::Part => go_on(&ctx, stage::$home_part_stage),
            }
        }

        #[classifier]
        pub fn $home_error(ctx: TcContext) -> i32 {
            match error_comes_home::<_, _, $address>(&mut Skb::new(&ctx), &Kernel::new(&ctx)) {
                Some(verdict) => act(&ctx, verdict),
                None => go_on(&ctx, stage::$icmp),
            }
        }

        #[classifier]
        pub fn $home_part(ctx: TcContext) -> i32 {
            match part_comes_home::<_, _, $address>(&mut Skb::new(&ctx), &Kernel::new(&ctx)) {
                Some(verdict) => act(&ctx, verdict),
                None => go_on(&ctx, stage::$fragment),
            }
        }
    };
}

round!(
    A4,
    tc_leave4,
    tc_leave_error4,
    tc_around4,
    tc_home4,
    tc_home_error4,
    tc_home_part4,
    TURN4_IN,
    FRAGMENT4_IN,
    ICMP4_IN,
    LEAVE_ERROR4,
    HOME_ERROR4,
    HOME_PART4
);
round!(
    A6,
    tc_leave6,
    tc_leave_error6,
    tc_around6,
    tc_home6,
    tc_home_error6,
    tc_home_part6,
    TURN6_IN,
    FRAGMENT6_IN,
    ICMP6_IN,
    LEAVE_ERROR6,
    HOME_ERROR6,
    HOME_PART6
);

/// The programs that those on the hooks go on to, of one family and direction: whatever packet; the first one of a flow;
/// the making of that flow; an ICMP error; a part of a packet. Each leaves to the next what it cannot do, in memory of this CPU.
macro_rules! nat {
    (
        $address:ty, $direction:ident, $nat:ident, $first:ident, $first_stage:ident, $make:ident, $make_stage:ident,
        $icmp:ident, $icmp_stage:ident, $fragment:ident, $fragment_stage:ident
    ) => {
        #[classifier]
        pub fn $nat(ctx: TcContext) -> i32 {
            let (mut skb, kernel) = (Skb::new(&ctx), Kernel::new(&ctx));
            match translate::<_, _, $address>(&mut skb, &kernel, Direction::$direction) {
                Next::Done(verdict) => act(&ctx, verdict),
                Next::First => go_on(&ctx, stage::$first_stage),
                Next::IcmpError => go_on(&ctx, stage::$icmp_stage),
                Next::Fragment => go_on(&ctx, stage::$fragment_stage),
            }
        }

        #[classifier]
        pub fn $fragment(ctx: TcContext) -> i32 {
            let (mut skb, kernel) = (Skb::new(&ctx), Kernel::new(&ctx));
            match fragment::<_, _, $address>(&mut skb, &kernel, Direction::$direction) {
                Next::Done(verdict) => act(&ctx, verdict),
                Next::First => go_on(&ctx, stage::$first_stage),
                Next::IcmpError => go_on(&ctx, stage::$icmp_stage),
                // never a fragment of a fragment
                Next::Fragment => act(&ctx, Verdict::Drop(DropReason::Program)),
            }
        }

        #[classifier]
        pub fn $first(ctx: TcContext) -> i32 {
            match first::<_, $address>(&Kernel::new(&ctx), Direction::$direction) {
                Some(verdict) => act_or_refuse::<$address>(&ctx, verdict, Direction::$direction),
                None => go_on(&ctx, stage::$make_stage),
            }
        }

        #[classifier]
        pub fn $make(ctx: TcContext) -> i32 {
            let verdict =
                make::<_, _, $address>(&mut Skb::new(&ctx), &Kernel::new(&ctx), Direction::$direction);
            act_or_refuse::<$address>(&ctx, verdict, Direction::$direction)
        }

        #[classifier]
        pub fn $icmp(ctx: TcContext) -> i32 {
            act(
                &ctx,
                icmp_error::<_, _, $address>(&mut Skb::new(&ctx), &Kernel::new(&ctx), Direction::$direction),
            )
        }
    };
}

nat!(
    A4,
    In,
    tc_nat4_in,
    tc_first4_in,
    FIRST4_IN,
    tc_make4_in,
    MAKE4_IN,
    tc_icmp4_in,
    ICMP4_IN,
    tc_fragment4_in,
    FRAGMENT4_IN
);
nat!(
    A4,
    Out,
    tc_nat4_out,
    tc_first4_out,
    FIRST4_OUT,
    tc_make4_out,
    MAKE4_OUT,
    tc_icmp4_out,
    ICMP4_OUT,
    tc_fragment4_out,
    FRAGMENT4_OUT
);
nat!(
    A6,
    In,
    tc_nat6_in,
    tc_first6_in,
    FIRST6_IN,
    tc_make6_in,
    MAKE6_IN,
    tc_icmp6_in,
    ICMP6_IN,
    tc_fragment6_in,
    FRAGMENT6_IN
);
nat!(
    A6,
    Out,
    tc_nat6_out,
    tc_first6_out,
    FIRST6_OUT,
    tc_make6_out,
    MAKE6_OUT,
    tc_icmp6_out,
    ICMP6_OUT,
    tc_fragment6_out,
    FRAGMENT6_OUT
);

/// Tells an inside host that there is no room for its flow.
#[classifier]
pub fn tc_refuse4(ctx: TcContext) -> i32 {
    send_back(refuse::<_, _, A4>(&mut Skb::new(&ctx), &Kernel::new(&ctx)))
}

/// The same for IPv6.
#[classifier]
pub fn tc_refuse6(ctx: TcContext) -> i32 {
    send_back(refuse::<_, _, A6>(&mut Skb::new(&ctx), &Kernel::new(&ctx)))
}

#[inline(always)]
fn send_back(interface: Option<u32>) -> i32 {
    match interface {
        // SAFETY: no memory is involved: the next hop is looked up by the addresses in the packet.
        Some(interface) => unsafe { bpf_redirect_neigh(interface, core::ptr::null_mut(), 0, 0) as i32 },
        None => TC_ACT_SHOT as i32,
    }
}

/// What has turned back, where it comes in and where it leaves.
macro_rules! turn {
    ($address:ty, $name:ident, $half:ident, $first:ident, $icmp:ident, $fragment:ident) => {
        #[classifier]
        pub fn $name(ctx: TcContext) -> i32 {
            match $half::<_, _, $address>(&mut Skb::new(&ctx), &Kernel::new(&ctx)) {
                Next::Done(verdict) => act(&ctx, verdict),
                Next::Fragment => go_on(&ctx, stage::$fragment),
                Next::First => go_on(&ctx, stage::$first),
                Next::IcmpError => go_on(&ctx, stage::$icmp),
            }
        }
    };
}

turn!(A4, tc_turn4_in, turn_in, FIRST4_IN, ICMP4_IN, FRAGMENT4_IN);
turn!(A4, tc_turn4_out, turn_out, FIRST4_OUT, ICMP4_OUT, FRAGMENT4_OUT);
turn!(A6, tc_turn6_in, turn_in, FIRST6_IN, ICMP6_IN, FRAGMENT6_IN);
turn!(A6, tc_turn6_out, turn_out, FIRST6_OUT, ICMP6_OUT, FRAGMENT6_OUT);

/// The next packet of an IPv6 flow from the outside.
#[classifier]
pub fn tc_next6_in(ctx: TcContext) -> i32 {
    next6(&ctx, Direction::In, stage::NAT6_IN)
}

/// The same from the inside.
#[classifier]
pub fn tc_next6_out(ctx: TcContext) -> i32 {
    next6(&ctx, Direction::Out, stage::NAT6_OUT)
}

/// IPv6 towards the outside, where it comes in.
#[classifier]
pub fn tc_lan6_in(ctx: TcContext) -> i32 {
    let departure = lan_in::<_, _, A6>(&mut Skb::new(&ctx), &Kernel::new(&ctx));
    leave(&ctx, departure, stage::FIRST6_OUT, stage::DEPART6)
}

#[inline(always)]
fn leave(ctx: &TcContext, departure: Departure, first: u32, whole: u32) -> i32 {
    match departure {
        Departure::Done(verdict) => act(ctx, verdict),
        Departure::First => go_on(ctx, first),
        Departure::Whole => go_on(ctx, whole),
    }
}

/// Towards the outside, where it comes in: a packet that says something about its flow.
#[classifier]
pub fn tc_depart4(ctx: TcContext) -> i32 {
    act(&ctx, depart::<_, _, A4>(&mut Skb::new(&ctx), &Kernel::new(&ctx)))
}

/// The same for IPv6.
#[classifier]
pub fn tc_depart6(ctx: TcContext) -> i32 {
    act(&ctx, depart::<_, _, A6>(&mut Skb::new(&ctx), &Kernel::new(&ctx)))
}

/// IPv6 to the inside, where it leaves.
#[classifier]
pub fn tc_lan6_out(ctx: TcContext) -> i32 {
    lan_out::<_, _, A6>(&mut Skb::new(&ctx), &Kernel::new(&ctx));
    NEXT
}

/// Translates the next packet of an IPv4 flow; everything else goes on to a program of its own, with a stack of its
/// own. IPv6 packets all do: their keys alone would fill this one's.
#[inline(always)]
fn hook(ctx: &TcContext, direction: Direction, nat4: u32, next6: u32) -> i32 {
    let mut skb = Skb::new(ctx);
    if skb.carries(A4::ETHERTYPE) {
        match established::<_, _, A4>(&mut skb, &Kernel::new(ctx), direction) {
            Some(verdict) => act(ctx, verdict),
            None => go_on(ctx, nat4),
        }
    } else if skb.carries(A6::ETHERTYPE) {
        go_on(ctx, next6)
    } else {
        NEXT
    }
}

#[inline(always)]
fn next6(ctx: &TcContext, direction: Direction, nat6: u32) -> i32 {
    match established::<_, _, A6>(&mut Skb::new(ctx), &Kernel::new(ctx), direction) {
        Some(verdict) => act(ctx, verdict),
        None => go_on(ctx, nat6),
    }
}

/// To another program.
#[inline(always)]
fn go_on(ctx: &TcContext, stage: u32) -> i32 {
    // SAFETY: nothing here has to be dropped. It comes back only when the place is empty.
    unsafe { STAGE.tail_call(ctx, stage) }
    act(ctx, Verdict::Drop(DropReason::Program))
}

/// Where fragments come out that had to wait for their first one: back to the hook that they were sent from. The kernel's
/// own packets on this interface end here.
#[classifier]
pub fn tc_waited(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    let note = skb.note();
    let Some(uplink) = Kernel::new(&ctx).waiting_room(skb.interface()) else {
        return TC_ACT_SHOT as i32;
    };
    if !note::is_waiting(note) {
        return TC_ACT_SHOT as i32;
    }
    let flags = if note::is_out(note) { 0 } else { u64::from(BPF_F_INGRESS) };
    // SAFETY: no pointers.
    unsafe { bpf_redirect(uplink, flags) as i32 }
}

/// Sent here by the fast path: nothing is left to do, and the note has been read.
#[inline(always)]
fn is_done(ctx: &TcContext) -> bool {
    let mut skb = Skb::new(ctx);
    let done = skb.note() == note::DONE;
    if done {
        skb.set_note(note::NONE);
    }
    done
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
        vlan::Verdict::Drop(dropped) => {
            // SAFETY: the context of the program that runs.
            let port = unsafe { (*ctx.skb.skb).ifindex };
            switch::count_drop(port, dropped);
            let (vlan, reason) = (u32::from(dropped.vlan), dropped.reason as u32);
            debug!(ctx, "port {}, VLAN {}: dropped {} bytes, reason {}", port, vlan, ctx.len(), reason);
            TC_ACT_SHOT as i32
        }
    }
}

/// What goes out and is refused becomes an answer, in a program of its own.
#[inline(always)]
fn act_or_refuse<A: Address>(ctx: &TcContext, verdict: Verdict, direction: Direction) -> i32 {
    if let (Verdict::Refuse(_), Direction::Out) = (verdict, direction) {
        let shot = act(ctx, verdict);
        let place = if A::ETHERTYPE == A4::ETHERTYPE { stage::REFUSE4 } else { stage::REFUSE6 };
        // SAFETY: nothing here has to be dropped. It comes back only when the place is empty.
        unsafe { STAGE.tail_call(ctx, place) }
        return shot;
    }
    act(ctx, verdict)
}

#[inline(always)]
fn act(ctx: &TcContext, verdict: Verdict) -> i32 {
    let reason = match verdict {
        Verdict::Pass => return NEXT,
        // SAFETY: no memory is involved; a missing interface is a dropped packet.
        Verdict::Redirect(interface) => return unsafe { bpf_redirect(interface, 0) } as i32,
        // SAFETY: as above; the next hop is looked up by the addresses in the packet.
        Verdict::Neighbour(interface) => {
            return unsafe { bpf_redirect_neigh(interface, core::ptr::null_mut(), 0, 0) as i32 };
        }
        // SAFETY: as above.
        Verdict::Home => return unsafe { bpf_redirect(LOOPBACK, u64::from(BPF_F_INGRESS)) } as i32,
        Verdict::Around => {
            let ipv4 = Skb::new(ctx).carries(A4::ETHERTYPE);
            // SAFETY: nothing here has to be dropped. It comes back only when the place is empty.
            unsafe { STAGE.tail_call(ctx, if ipv4 { stage::AROUND4 } else { stage::AROUND6 }) }
            DropReason::Program
        }
        Verdict::Drop(reason) | Verdict::Refuse(reason) => reason,
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
