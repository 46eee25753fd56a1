//! A socket buffer as the VLAN filter sees it: a frame with a tag in its bytes or beside them.

use core::{arch::asm, ptr::NonNull};

use aya_ebpf::{
    bindings::BPF_F_INGRESS,
    helpers::{bpf_clone_redirect, bpf_skb_vlan_pop, bpf_skb_vlan_push},
};
use telecluster_common::{
    packet::{Packet, Wire},
    vlan::frame::{Frame, Note, Tag},
};

use crate::skb::Skb;

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
    unsafe fn load32(from: NonNull<u8>) -> u32 {
        let word: u64;
        // SAFETY: a load of what the caller says is readable. LLVM would make four of it, because a packet's bytes may be
        // anywhere; the verifier forbids that only where the machine does.
        unsafe {
            asm!("{word} = *(u32 *)({from} + 0)", word = out(reg) word, from = in(reg) from.as_ptr(),
                options(pure, readonly, nostack, preserves_flags));
        }
        word as u32
    }

    #[inline(always)]
    unsafe fn load16(from: NonNull<u8>) -> u16 {
        let word: u64;
        // SAFETY: as above.
        unsafe {
            asm!("{word} = *(u16 *)({from} + 0)", word = out(reg) word, from = in(reg) from.as_ptr(),
                options(pure, readonly, nostack, preserves_flags));
        }
        word as u16
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
