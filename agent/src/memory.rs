//! What glibc's allocator keeps of what was freed. Left to itself, that is twice what the idle worker has in use.

use nix::libc::{M_ARENA_MAX, M_MMAP_THRESHOLD, c_int, malloc_trim, mallopt};

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
