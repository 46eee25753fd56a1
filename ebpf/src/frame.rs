//! Frames as the VLAN filter sees them: a socket buffer, with a tag in its bytes or beside them; and what a driver has, with
//! the tag in its bytes.

use core::ptr::NonNull;

use aya_ebpf::{
    bindings::BPF_F_INGRESS,
    helpers::{bpf_clone_redirect, bpf_skb_vlan_pop, bpf_skb_vlan_push, bpf_xdp_adjust_head},
};
use telecluster_common::{
    packet::{LinkHeader, Packet, Wire},
    vlan::frame::{Frame, Note, Tag},
};

use crate::{skb::Skb, xdp::Bytes};

impl Frame for Skb {
    #[inline(always)]
    fn port(&self) -> u32 {
        // SAFETY: the context of the program that runs.
        unsafe { (*self.0).ifindex }
    }

    #[inline(always)]
    fn is_the_hosts_own(&self) -> bool {
        // SAFETY: the context of the program that runs.
        unsafe { (*self.0).ingress_ifindex == 0 }
    }

    #[inline(always)]
    fn bytes(&self) -> u32 {
        // SAFETY: the context of the program that runs.
        unsafe { (*self.0).len }
    }

    #[inline(always)]
    fn segments(&self) -> u32 {
        Packet::segments(self)
    }

    #[inline(always)]
    fn at<T: Wire>(&mut self, offset: usize) -> Option<NonNull<T>> {
        Packet::make_linear(self, offset + size_of::<T>());
        Packet::at(self, offset)
    }

    #[inline(always)]
    fn tag_beside(&self) -> Option<Tag> {
        // SAFETY: the context of the program that runs.
        let (present, protocol, control) =
            unsafe { ((*self.0).vlan_present, (*self.0).vlan_proto, (*self.0).vlan_tci) };
        if present == 0 {
            return None;
        }
        Some(Tag { protocol: u16::from_be(protocol as u16), control: control as u16 })
    }

    #[inline(always)]
    fn pop(&mut self) -> bool {
        // SAFETY: the context of the program that runs; no pointer into the packet is used after this.
        unsafe { bpf_skb_vlan_pop(self.0) == 0 }
    }

    #[inline(always)]
    fn push(&mut self, tag: Tag) -> bool {
        // SAFETY: as above.
        unsafe { bpf_skb_vlan_push(self.0, tag.protocol.to_be(), tag.control) == 0 }
    }

    #[inline(always)]
    fn note(&self) -> Note {
        // SAFETY: the context of the program that runs.
        Note(unsafe { (*self.0).tc_index } as u16)
    }

    #[inline(always)]
    fn set_note(&mut self, note: Note) {
        // SAFETY: the context of the program that runs.
        unsafe { (*self.0).tc_index = u32::from(note.0) }
    }

    #[inline(always)]
    fn copy_to(&mut self, port: u32, host: bool) {
        let flags = if host { u64::from(BPF_F_INGRESS) } else { 0 };
        // SAFETY: the context of the program that runs; no pointer into the packet is used after this. A port that
        // is down takes no copy; the others are not to suffer for it.
        unsafe { bpf_clone_redirect(self.0, port, flags) };
    }
}

/// Of both addresses.
const ADDRESSES: usize = 12;
/// Of a tag.
const TAG: usize = 4;

impl Frame for Bytes {
    #[inline(always)]
    fn port(&self) -> u32 {
        Packet::interface(self)
    }

    #[inline(always)]
    fn is_the_hosts_own(&self) -> bool {
        false
    }

    #[inline(always)]
    fn bytes(&self) -> u32 {
        // SAFETY: the context of the program that runs.
        unsafe { (*self.0).data_end - (*self.0).data }
    }

    #[inline(always)]
    fn segments(&self) -> u32 {
        1
    }

    #[inline(always)]
    fn at<T: Wire>(&mut self, offset: usize) -> Option<NonNull<T>> {
        Packet::at(self, offset)
    }

    #[inline(always)]
    fn tag_beside(&self) -> Option<Tag> {
        None
    }

    #[inline(always)]
    fn pop(&mut self) -> bool {
        let Some(start) = Packet::at::<[u8; ADDRESSES + TAG]>(self, 0) else { return false };
        // SAFETY: `at` checked the bounds of all of it.
        unsafe {
            let addresses = LinkHeader::read(start.cast().as_ref());
            addresses.write(start.byte_add(TAG).cast().as_mut());
        }
        // SAFETY: the context of the program that runs; no pointer into the packet is used after this. There is so much.
        unsafe { bpf_xdp_adjust_head(self.0, TAG as i32) == 0 }
    }

    #[inline(always)]
    fn push(&mut self, tag: Tag) -> bool {
        // SAFETY: the context of the program that runs; no pointer into the packet was taken before that is used now.
        if unsafe { bpf_xdp_adjust_head(self.0, -(TAG as i32)) } != 0 {
            return false;
        }
        let Some(start) = Packet::at::<[u8; ADDRESSES + TAG]>(self, 0) else { return false };
        let [a, b] = tag.protocol.to_be_bytes();
        let [c, d] = tag.control.to_be_bytes();
        // SAFETY: as above.
        unsafe {
            let addresses = LinkHeader::read(start.byte_add(TAG).cast().as_ref());
            addresses.write(start.cast().as_mut());
            start.byte_add(ADDRESSES).cast().write_unaligned([a, b, c, d]);
        }
        true
    }

    /// Whoever comes next meets the frame anew.
    #[inline(always)]
    fn note(&self) -> Note {
        Note::default()
    }

    #[inline(always)]
    fn set_note(&mut self, _note: Note) {}

    /// There is one frame, and one that is redirected is gone.
    #[inline(always)]
    fn copy_to(&mut self, _port: u32, _host: bool) {}
}
