//! A packet before it is a socket buffer: frames of fast flows are translated and sent on here, and those of VLANs switched.
//!
//! Its checksums are whole (see `telecluster_common::nat::xdp`), so they are changed by arithmetic, and there is nobody to
//! leave a note for: what is sent from here meets no other hook.

use core::ptr::NonNull;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{xdp_action::XDP_ABORTED, xdp_action::XDP_PASS, xdp_action::XDP_REDIRECT, xdp_md},
    macros::xdp,
    programs::XdpContext,
};
use telecluster_common::{
    family::Address,
    maps::{Direction, xdp_stage},
    nat::{
        Verdict,
        xdp::{Doors, Early, early, first, make, notable},
    },
    packet::{Checksum, ChecksumFix, Packet, Wire, note},
    tables::Tables,
    vlan::xdp as switch,
};

use crate::{
    A4, A6,
    maps::{XDP_PORT, XDP_STAGE, XDP_STAT, count_drop},
    skb::{added_up, opaque},
    switch::Maps,
    tables::Kernel,
};

const ETHERNET: usize = 14;

/// Native ingress of the uplink.
#[xdp]
pub fn xdp_wan_in(ctx: XdpContext) -> u32 {
    hook(&ctx, Direction::In, (xdp_stage::FIRST4_IN, xdp_stage::NOTABLE4), xdp_stage::WAN6)
}

/// Native ingress of an interface towards inside hosts.
#[xdp]
pub fn xdp_lan_in(ctx: XdpContext) -> u32 {
    hook(&ctx, Direction::Out, (xdp_stage::FIRST4_OUT, xdp_stage::NOTABLE4), xdp_stage::LAN6)
}

/// IPv6 has a program of its own, with a stack of its own, as at the later hooks.
#[xdp]
pub fn xdp_wan6_in(ctx: XdpContext) -> u32 {
    next::<A6>(&ctx, Direction::In, (xdp_stage::FIRST6_IN, xdp_stage::NOTABLE6))
}

/// The same from the inside.
#[xdp]
pub fn xdp_lan6_in(ctx: XdpContext) -> u32 {
    next::<A6>(&ctx, Direction::Out, (xdp_stage::FIRST6_OUT, xdp_stage::NOTABLE6))
}

/// The programs that those go on to, of one family: for the first packet of a flow that comes in or goes out, the making of
/// the flow, and for what says something about its flow.
macro_rules! more {
    ($address:ty, $first_in:ident, $first_out:ident, $make:ident, $make_stage:ident, $notable:ident) => {
        #[xdp]
        pub fn $first_in(ctx: XdpContext) -> u32 {
            decide::<$address>(&ctx, Direction::In, xdp_stage::$make_stage)
        }

        #[xdp]
        pub fn $first_out(ctx: XdpContext) -> u32 {
            decide::<$address>(&ctx, Direction::Out, xdp_stage::$make_stage)
        }

        #[xdp]
        pub fn $make(ctx: XdpContext) -> u32 {
            act(make::<_, _, $address>(&mut Bytes::new(&ctx), &Kernel::new(&ctx)))
        }

        #[xdp]
        pub fn $notable(ctx: XdpContext) -> u32 {
            act(notable::<_, _, $address>(&mut Bytes::new(&ctx), &Kernel::new(&ctx)))
        }
    };
}

more!(A4, xdp_first4_in, xdp_first4_out, xdp_make4, MAKE4, xdp_notable4);
more!(A6, xdp_first6_in, xdp_first6_out, xdp_make6, MAKE6, xdp_notable6);

/// Native ingress of a port of a bridge with VLANs.
#[xdp]
pub fn xdp_port_in(ctx: XdpContext) -> u32 {
    if switch::early(&mut Bytes::new(&ctx), &Maps) { redirected() } else { XDP_PASS }
}

#[inline(always)]
fn hook(ctx: &XdpContext, direction: Direction, stages4: (u32, u32), next6: u32) -> u32 {
    let frame = Bytes::new(ctx);
    if frame.carries(A4::ETHERTYPE) {
        return next::<A4>(ctx, direction, stages4);
    }
    if frame.carries(A6::ETHERTYPE) {
        return go_on(ctx, next6);
    }
    XDP_PASS
}

#[inline(always)]
fn next<A: Address>(ctx: &XdpContext, direction: Direction, (first, notable): (u32, u32)) -> u32
where
    Kernel: Tables<A>,
{
    match early::<_, _, A>(&mut Bytes::new(ctx), &Kernel::new(ctx), direction) {
        Early::Done(verdict) => act(verdict),
        Early::First => go_on(ctx, first),
        Early::Notable => go_on(ctx, notable),
    }
}

#[inline(always)]
fn decide<A: Address>(ctx: &XdpContext, direction: Direction, make: u32) -> u32
where
    Kernel: Tables<A>,
{
    if first::<_, _, A>(&Bytes::new(ctx), &Kernel::new(ctx), direction) { go_on(ctx, make) } else { XDP_PASS }
}

/// To another program.
#[inline(always)]
fn go_on(ctx: &XdpContext, stage: u32) -> u32 {
    // SAFETY: nothing here has to be dropped. It comes back only when the place is empty.
    unsafe { XDP_STAGE.tail_call(ctx, stage) }
    XDP_PASS
}

#[inline(always)]
fn act(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Pass => XDP_PASS,
        Verdict::Redirect(_) => redirected(),
        // Of other hooks.
        Verdict::Around | Verdict::Neighbour(_) | Verdict::Home => XDP_ABORTED,
        // Half translated, which the bounds that were checked before rule out: it must go nowhere.
        Verdict::Drop(reason) | Verdict::Refuse(reason) => {
            count_drop(reason);
            XDP_ABORTED
        }
    }
}

/// `points_at` has said where to.
#[inline(always)]
fn redirected() -> u32 {
    if let Some(count) = XDP_STAT.get_ptr_mut(0) {
        // SAFETY: this CPU's own; programs of a driver's queue run with softirqs off.
        unsafe { *count += 1 }
    }
    XDP_REDIRECT
}

#[inline(always)]
fn points_at(interface: u32) -> bool {
    // The helper only notes where a packet would go; the program's answer decides whether it does.
    XDP_PORT.redirect(interface, u64::from(XDP_PASS)).is_ok()
}

impl Doors for Kernel {
    #[inline(always)]
    fn points_at(&self, interface: u32) -> bool {
        points_at(interface)
    }
}

impl switch::Doors for Maps {
    #[inline(always)]
    fn points_at(&self, port: u32) -> bool {
        points_at(port)
    }
}

/// A frame in the driver's memory.
pub struct Bytes(pub *mut xdp_md);

impl Bytes {
    #[inline(always)]
    fn new(ctx: &XdpContext) -> Self {
        Self(ctx.as_ptr().cast())
    }

    #[inline(always)]
    fn place<T: Wire>(&self, offset: usize) -> Option<NonNull<T>> {
        // SAFETY: the context of the program that runs.
        let (data, end) = unsafe { ((*self.0).data as usize, (*self.0).data_end as usize) };
        let start = opaque(data + offset);
        if start + size_of::<T>() > end {
            return None;
        }
        NonNull::new(start as *mut T)
    }
}

impl Packet for Bytes {
    #[inline(always)]
    fn carries(&self, ethertype: u16) -> bool {
        // A tag that the card has not taken off stands here instead.
        // SAFETY: `place` checked the bounds.
        self.place::<Checksum>(ETHERNET - 2)
            .is_some_and(|kind| u16::from_be_bytes(unsafe { kind.as_ref() }.0) == ethertype)
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: the context of the program that runs.
        unsafe { (*self.0).ingress_ifindex }
    }

    #[inline(always)]
    fn network_len(&self) -> u32 {
        // SAFETY: the context of the program that runs.
        let (data, end) = unsafe { ((*self.0).data as usize, (*self.0).data_end as usize) };
        (end - data - ETHERNET) as u32
    }

    #[inline(always)]
    fn segments(&self) -> u32 {
        1
    }

    #[inline(always)]
    fn segment_payload(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn came_in_through(&self) -> u32 {
        self.interface()
    }

    #[inline(always)]
    fn note(&self) -> u32 {
        note::NONE
    }

    #[inline(always)]
    fn set_note(&mut self, _note: u32) {}

    #[inline(always)]
    fn make_linear(&mut self, _len: usize) {}

    #[inline(always)]
    fn at<T: Wire>(&mut self, offset: usize) -> Option<NonNull<T>> {
        self.place(offset)
    }

    #[inline(always)]
    fn add_up<T: Wire>(&mut self, offset: usize, sum: u32) -> Option<u32> {
        self.place(offset).map(|bytes| added_up::<T>(bytes, sum))
    }

    #[inline(always)]
    fn quote(&mut self, _keep: u32, _room: u32) -> bool {
        // Errors are made where the packet's next hop is looked up.
        false
    }

    #[inline(always)]
    fn resum(&mut self, _difference: u16) {}

    #[inline(always)]
    fn commit(&mut self, fix: ChecksumFix) -> bool {
        let Some(mut field) = self.place::<Checksum>(fix.offset) else { return false };
        // SAFETY: `place` checked the bounds; nothing else holds the packet.
        let field = unsafe { field.as_mut() };
        fix.apply(&mut field.0);
        true
    }
}
