//! Memory that is in use no more: what glibc's allocator keeps of what was freed, which left to itself is twice what the idle
//! worker has in use, and what was read of the program's own file.

use std::{ffi::c_void, ptr::NonNull};

use nix::{
    libc::{M_ARENA_MAX, M_MMAP_THRESHOLD, c_int, malloc_trim, mallopt},
    sys::mman::{MmapAdvise, madvise},
    unistd::{SysconfVar, sysconf},
};

/// The runtime has many threads that now and then read all of the links, and each would keep what it has freed in an
/// arena of its own.
const ARENAS: c_int = 2;
/// Larger pieces go back to the kernel when they are freed. It is glibc's own default, which would otherwise grow with the
/// first large piece that is freed, up to 32 MiB.
const LARGE: c_int = 128 * 1024;

/// Before there are other threads.
pub fn few_arenas() {
    // SAFETY: it only sets numbers of the allocator, and nobody else is there yet.
    unsafe {
        mallopt(M_ARENA_MAX, ARENAS);
        mallopt(M_MMAP_THRESHOLD, LARGE);
    }
}

/// After the start: reading the programs' object, its types and the kernel's takes 12 MB that are not needed again, and
/// what little stays lies behind them.
pub fn give_back() {
    // SAFETY: it touches only what is free, under the allocator's own locks.
    unsafe {
        malloc_trim(0);
    }
}

/// After a large constant of the program was read: its pages are in the file, and come back when somebody reads them again.
///
/// # Safety
///
/// The bytes are of a `static` that is never written, not of memory that was allocated: that would be zeroes afterwards.
pub unsafe fn forget(constant: &'static [u8]) {
    let Ok(Some(page)) = sysconf(SysconfVar::PAGE_SIZE) else { return };
    let Ok(page) = usize::try_from(page) else { return };
    // Only what lies in it whole: what is beside it may be somebody else's.
    let before = constant.as_ptr().align_offset(page);
    let Some(rest) = constant.get(before..) else { return };
    let whole = rest.len() - rest.len() % page;
    let start = NonNull::from(rest).cast::<c_void>();
    // SAFETY: the mapping is of a file, as the caller promises: the same bytes are read afterwards. A refusal changes nothing.
    let _ = unsafe { madvise(start, whole, MmapAdvise::MADV_DONTNEED) };
}

#[cfg(test)]
mod tests {
    use super::*;

    static CONSTANT: &[u8] = include_bytes!("../../docs/openapi.json");

    #[test]
    fn what_was_forgotten_can_be_read_again() {
        let before = CONSTANT.to_vec();
        for part in [CONSTANT, &CONSTANT[5000..20000], &CONSTANT[1..3], &[]] {
            // SAFETY: it is a static of this program.
            unsafe { forget(part) };
        }
        assert!(CONSTANT == before);
    }
}
