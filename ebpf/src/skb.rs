//! Access to a socket buffer's bytes.

use core::{arch::asm, ptr::NonNull};

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC},
    helpers::{
        bpf_csum_diff, bpf_csum_update, bpf_l4_csum_replace, bpf_skb_adjust_room, bpf_skb_change_tail,
        bpf_skb_pull_data,
    },
    programs::TcContext,
};
use telecluster_common::packet::{ChecksumFix, Packet, Wire};

const ETHERNET: u32 = 14;

/// A socket buffer at a TC hook. `__sk_buff` is a view that the verifier translates, so it is read field by field.
pub struct Skb(pub(crate) *mut __sk_buff);

impl Skb {
    #[inline(always)]
    pub fn new(ctx: &TcContext) -> Self {
        Self(ctx.skb.skb)
    }

    /// Whether its frame is for this interface, not one that only passes by.
    #[inline(always)]
    pub fn is_for_us(&self) -> bool {
        // SAFETY: the context of the program that runs.
        unsafe { (*self.0).pkt_type == 0 } // PACKET_HOST (uapi/linux/if_packet.h)
    }
}

impl Packet for Skb {
    #[inline(always)]
    fn carries(&self, ethertype: u16) -> bool {
        // In `__sk_buff` it stands in network order.
        // SAFETY: the context of the program that runs.
        unsafe { (*self.0).protocol == u32::from(ethertype.to_be()) && (*self.0).vlan_present == 0 }
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: the context of the program that runs.
        unsafe { (*self.0).ifindex }
    }

    #[inline(always)]
    fn network_len(&self) -> u32 {
        // SAFETY: the context of the program that runs.
        unsafe { (*self.0).len - ETHERNET }
    }

    #[inline(always)]
    fn segments(&self) -> u32 {
        // SAFETY: the context of the program that runs.
        match unsafe { (*self.0).gso_segs } {
            0 => 1,
            segments => segments,
        }
    }

    #[inline(always)]
    fn segment_payload(&self) -> u32 {
        // SAFETY: the context of the program that runs.
        unsafe { (*self.0).gso_size }
    }

    #[inline(always)]
    fn came_in_through(&self) -> u32 {
        // SAFETY: the context of the program that runs.
        unsafe { (*self.0).ingress_ifindex }
    }

    #[inline(always)]
    fn note(&self) -> u32 {
        // SAFETY: the context of the program that runs.
        unsafe { (*self.0).tc_index }
    }

    #[inline(always)]
    fn set_note(&mut self, note: u32) {
        // SAFETY: the context of the program that runs.
        unsafe { (*self.0).tc_index = note }
    }

    #[inline(always)]
    fn make_linear(&mut self, len: usize) {
        // SAFETY: the context of the program that runs. A refusal shows in `at`.
        unsafe {
            let (data, end) = ((*self.0).data as usize, (*self.0).data_end as usize);
            if opaque(data + len) > end {
                bpf_skb_pull_data(self.0, len as u32);
            }
        }
    }

    #[inline(always)]
    fn at<T: Wire>(&mut self, offset: usize) -> Option<NonNull<T>> {
        // SAFETY: the context of the program that runs.
        let (data, end) = unsafe { ((*self.0).data as usize, (*self.0).data_end as usize) };
        let start = opaque(data + offset);
        if start + size_of::<T>() > end {
            return None;
        }
        NonNull::new(start as *mut T)
    }

    #[inline(always)]
    fn add_up<T: Wire>(&mut self, offset: usize, sum: u32) -> Option<u32> {
        self.at(offset).map(|bytes| added_up::<T>(bytes, sum))
    }

    #[inline(always)]
    fn quote(&mut self, keep: u32, room: u32) -> bool {
        // SAFETY: the context of the program that runs. Cutting comes first: it also ends segmentation offload.
        unsafe {
            bpf_skb_change_tail(self.0, keep, 0) == 0
                && bpf_skb_adjust_room(self.0, room as i32, BPF_ADJ_ROOM_MAC, 0) == 0
                && bpf_skb_pull_data(self.0, (*self.0).len) == 0
        }
    }

    #[inline(always)]
    fn resum(&mut self, difference: u16) {
        // SAFETY: the context of the program that runs. It refuses where no device has summed up (net/core/filter.c
        // `bpf_csum_update`): then nothing has to be done.
        unsafe {
            bpf_csum_update(self.0, u32::from(difference));
        }
    }

    #[inline(always)]
    fn commit(&mut self, fix: ChecksumFix) -> bool {
        let mangled = if fix.optional { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
        let offset = fix.offset as u32;
        // Addresses and ports in two calls: a partial checksum (CHECKSUM_PARTIAL) holds the addresses but not yet
        // the ports, and the helper knows by PSEUDO_HDR which it is told about.
        if fix.pseudo != 0 {
            let flags = u64::from(BPF_F_PSEUDO_HDR) | mangled;
            // SAFETY: the context of the program that runs; no pointer into the packet is used after this.
            if unsafe { bpf_l4_csum_replace(self.0.cast(), offset, 0, u64::from(fix.pseudo), flags) } != 0 {
                return false;
            }
        }
        if fix.body != 0 {
            // SAFETY: as above.
            if unsafe { bpf_l4_csum_replace(self.0.cast(), offset, 0, u64::from(fix.body), mangled) } != 0 {
                return false;
            }
        }
        if fix.uncovered != 0 {
            self.resum(fix.uncovered);
        }
        true
    }
}

/// [`Packet::add_up`] of what is reachable.
#[inline(always)]
pub fn added_up<T: Wire>(bytes: NonNull<T>, sum: u32) -> u32 {
    // SAFETY: the helper reads as many bytes as there are.
    unsafe {
        bpf_csum_diff(core::ptr::null_mut(), 0, bytes.as_ptr().cast(), size_of::<T>() as u32, sum) as u32
    }
}

/// Keeps LLVM from computing the checked end of an access and its start in two different registers: the verifier
/// would know the bounds of one and see the use of the other ("R2 offset is outside of the packet").
///
/// One real instruction, because an empty one is refused ("Invalid line_info").
#[inline(always)]
pub fn opaque(mut pointer: usize) -> usize {
    // SAFETY: copies a register onto itself.
    unsafe { asm!("{0} = {0}", inout(reg) pointer, options(nomem, nostack, preserves_flags)) }
    pointer
}
