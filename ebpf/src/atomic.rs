//! Additions and exchanges that other CPUs cannot come between.

use core::arch::asm;

/// The target has no compare-and-swap in Rust's eyes, so `AtomicU64::fetch_add` does not exist there.
///
/// # Safety
/// `counter` must be writable and aligned.
#[inline(always)]
pub unsafe fn atomic_add(counter: *mut u64, value: u64) {
    // SAFETY: one atomic addition, by the caller's contract.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) value, options(nostack)) }
}

/// What was there before; `new` is there now if that was `old`.
///
/// # Safety
/// `place` must be writable and aligned.
#[inline(always)]
pub unsafe fn compare_exchange(place: *mut u64, mut old: u64, new: u64) -> u64 {
    // SAFETY: one atomic exchange, by the caller's contract; it compares with r0 and answers there.
    unsafe {
        asm!("r0 = cmpxchg_64({0} + 0, r0, {1})", in(reg) place, in(reg) new, inout("r0") old, options(nostack));
    }
    old
}

/// The same with four bytes.
///
/// # Safety
/// `place` must be writable and aligned.
#[inline(always)]
pub unsafe fn compare_exchange32(place: *mut u32, old: u32, new: u32) -> u32 {
    let mut found = u64::from(old);
    // SAFETY: one atomic exchange, by the caller's contract; it compares with w0 and answers there.
    unsafe {
        asm!(
            "w0 = cmpxchg32_32(r2 + 0, w0, w3)",
            in("r2") place,
            in("r3") u64::from(new),
            inout("r0") found,
            options(nostack),
        );
    }
    found as u32
}
