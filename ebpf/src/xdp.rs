//! A packet before it is a socket buffer: frames of fast flows are translated and sent on here.
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
        xdp::{Doors, early},
    },
    packet::{Checksum, ChecksumFix, Packet, Wire, note},
};

use crate::{
    A4, A6,
    maps::{XDP_PORT, XDP_STAGE, XDP_STAT, count_drop},
    skb::{added_up, opaque},
    tables::Kernel,
};

const ETHERNET: usize = 14;

/// Native ingress of the uplink.
#[xdp]
pub fn xdp_wan_in(ctx: XdpContext) -> u32 {
    hook(&ctx, Direction::In, xdp_stage::WAN6)
}

/// Native ingress of an interface towards inside hosts.
#[xdp]
pub fn xdp_lan_in(ctx: XdpContext) -> u32 {
    hook(&ctx, Direction::Out, xdp_stage::LAN6)
}

/// IPv6 has a program of its own, with a stack of its own, as at the later hooks.
#[xdp]
pub fn xdp_wan6_in(ctx: XdpContext) -> u32 {
    act(early::<_, _, A6>(&mut Bytes::new(&ctx), &Kernel::new(&ctx), Direction::In))
}

/// The same from the inside.
#[xdp]
pub fn xdp_lan6_in(ctx: XdpContext) -> u32 {
    act(early::<_, _, A6>(&mut Bytes::new(&ctx), &Kernel::new(&ctx), Direction::Out))
}

#[inline(always)]
fn hook(ctx: &XdpContext, direction: Direction, next6: u32) -> u32 {
    let mut frame = Bytes::new(ctx);
    if frame.carries(A4::ETHERTYPE) {
        return act(early::<_, _, A4>(&mut frame, &Kernel::new(ctx), direction));
    }
    if frame.carries(A6::ETHERTYPE) {
        // SAFETY: nothing here has to be dropped. It comes back only when the place is empty.
        unsafe { XDP_STAGE.tail_call(ctx, next6) }
    }
    XDP_PASS
}

#[inline(always)]
fn act(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Pass => XDP_PASS,
        // `points_at` has said where.
        Verdict::Redirect(_) => {
            if let Some(count) = XDP_STAT.get_ptr_mut(0) {
                // SAFETY: this CPU's own; programs of a driver's queue run with softirqs off.
                unsafe { *count += 1 }
            }
            XDP_REDIRECT
        }
        // Of other hooks.
        Verdict::Around | Verdict::Neighbour(_) | Verdict::Home => XDP_ABORTED,
        // Half translated, which the bounds that were checked before rule out: it must go nowhere.
        Verdict::Drop(reason) | Verdict::Refuse(reason) => {
            count_drop(reason);
            XDP_ABORTED
        }
    }
}

impl Doors for Kernel {
    #[inline(always)]
    fn points_at(&self, interface: u32) -> bool {
        // The helper only notes where a packet would go; the program's answer decides whether it does.
        XDP_PORT.redirect(interface, u64::from(XDP_PASS)).is_ok()
    }
}

/// A frame in the driver's memory.
struct Bytes(*mut xdp_md);

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
        field.0 = fix.applied(field.0);
        true
    }
}
