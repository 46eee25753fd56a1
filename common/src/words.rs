//! Words of a packet, which may begin anywhere.
//!
//! The type of packet bytes has no alignment, so LLVM reads and writes them one by one. The kernel's verifier forbids a word
//! only where the machine does (kernel/bpf/verifier.c `check_pkt_ptr_alignment`, without `CONFIG_HAVE_EFFICIENT_UNALIGNED_ACCESS`).
//! LLVM's own switch for that, `allows-misaligned-mem-access`, makes such words of the stack too, which the verifier never takes.
//! All words are as this machine reads them.

#[cfg(target_arch = "bpf")]
use core::{arch::asm, hint::assert_unchecked};

#[inline(always)]
#[must_use]
pub(crate) fn load16(bytes: &[u8; 2]) -> u16 {
    #[cfg(not(target_arch = "bpf"))]
    return u16::from_ne_bytes(*bytes);
    #[cfg(target_arch = "bpf")]
    {
        let word: u64;
        // SAFETY: reads the two bytes; the upper ones of the register become 0.
        unsafe {
            asm!("{word} = *(u16 *)({from} + 0)", word = out(reg) word, from = in(reg) bytes,
                options(pure, readonly, nostack, preserves_flags));
            assert_unchecked(word <= u16::MAX as u64);
        }
        word as u16
    }
}

#[inline(always)]
#[must_use]
pub(crate) fn load32(bytes: &[u8; 4]) -> u32 {
    #[cfg(not(target_arch = "bpf"))]
    return u32::from_ne_bytes(*bytes);
    #[cfg(target_arch = "bpf")]
    {
        let word: u64;
        // SAFETY: reads the four bytes; the upper ones of the register become 0.
        unsafe {
            asm!("{word} = *(u32 *)({from} + 0)", word = out(reg) word, from = in(reg) bytes,
                options(pure, readonly, nostack, preserves_flags));
            assert_unchecked(word <= u32::MAX as u64);
        }
        word as u32
    }
}

#[inline(always)]
pub(crate) fn store16(bytes: &mut [u8; 2], word: u16) {
    #[cfg(not(target_arch = "bpf"))]
    {
        *bytes = word.to_ne_bytes();
    }
    #[cfg(target_arch = "bpf")]
    // SAFETY: writes the two bytes.
    unsafe {
        asm!("*(u16 *)({to} + 0) = {word}", to = in(reg) bytes, word = in(reg) word,
            options(nostack, preserves_flags));
    }
}

#[inline(always)]
pub(crate) fn store32(bytes: &mut [u8; 4], word: u32) {
    #[cfg(not(target_arch = "bpf"))]
    {
        *bytes = word.to_ne_bytes();
    }
    #[cfg(target_arch = "bpf")]
    // SAFETY: writes the four bytes.
    unsafe {
        asm!("*(u32 *)({to} + 0) = {word}", to = in(reg) bytes, word = in(reg) word,
            options(nostack, preserves_flags));
    }
}

/// Whether six bytes of a packet are these.
#[inline(always)]
#[must_use]
pub(crate) fn same6(bytes: &[u8; 6], [a, b, c, d, e, f]: [u8; 6]) -> bool {
    let ([first], rest) = bytes.as_chunks::<4>() else { return false };
    let ([last], []) = rest.as_chunks::<2>() else { return false };
    load32(first) == u32::from_ne_bytes([a, b, c, d]) && load16(last) == u16::from_ne_bytes([e, f])
}
