//! Every entry of a hash map or an array with few system calls: `BPF_MAP_LOOKUP_BATCH`, which aya does not have.

use std::{
    io,
    ops::Range,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::maps::MapFd;
use nix::libc;

/// include/uapi/linux/bpf.h, `enum bpf_cmd`.
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;

/// Entries per call. A call returns whole buckets, so this must exceed the longest chain of one bucket.
const CHUNK: u32 = 4096;

/// The part of `union bpf_attr` that the batch commands use (include/uapi/linux/bpf.h, `struct { } batch`).
#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Calls `visit` with every entry. Entries that come or go meanwhile may be missed or seen.
///
/// `K` and `V` must be the map's key and value: plain data of exactly its key and value size.
pub(super) fn for_each<K: Copy, V: Copy>(
    fd: &MapFd,
    sizes: (usize, usize),
    visit: impl FnMut(&K, &V),
) -> io::Result<()> {
    for_each_in(fd, sizes, 0..u32::MAX, visit)
}

/// The same of some buckets of a hash map, and of a few behind them: a call reads on until it has its chunk.
pub(super) fn for_each_in<K: Copy, V: Copy>(
    fd: &MapFd,
    sizes: (usize, usize),
    buckets: Range<u32>,
    mut visit: impl FnMut(&K, &V),
) -> io::Result<()> {
    if (size_of::<K>(), size_of::<V>()) != sizes {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the map has other key and value sizes"));
    }
    let mut capacity = CHUNK;
    let mut keys: Vec<K> = Vec::with_capacity(capacity as usize);
    let mut values: Vec<V> = Vec::with_capacity(capacity as usize);
    // The kernel's cursor: a bucket number for hash maps, an index for arrays.
    let (mut cursor, mut started) = (buckets.start, buckets.start > 0);
    loop {
        let mut next = 0u32;
        let mut attr = BatchAttr {
            in_batch: if started { (&raw mut cursor) as u64 } else { 0 },
            out_batch: (&raw mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: capacity,
            map_fd: u32::try_from(fd.as_fd().as_raw_fd()).map_err(io::Error::other)?,
            ..BatchAttr::default()
        };
        // SAFETY: the attribute is complete for this command, the buffers have room for `count` entries of the
        // sizes checked above, and the cursors live until the call returns.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut attr, size_of::<BatchAttr>())
        };
        let error = (result < 0).then(io::Error::last_os_error);
        match error.as_ref().and_then(io::Error::raw_os_error) {
            None | Some(libc::ENOENT) => {}
            Some(libc::EINTR) => continue,
            Some(libc::ENOSPC) => {
                // one bucket alone has more entries than there is room
                capacity = capacity.saturating_mul(2);
                keys.reserve(capacity as usize);
                values.reserve(capacity as usize);
                continue;
            }
            Some(_) => return Err(error.unwrap_or_else(io::Error::last_os_error)),
        }
        // SAFETY: the kernel has written `count` entries of plain data.
        unsafe {
            keys.set_len(attr.count as usize);
            values.set_len(attr.count as usize);
        }
        for (key, value) in keys.iter().zip(&values) {
            visit(key, value);
        }
        keys.clear();
        values.clear();
        if error.is_some() || next >= buckets.end {
            return Ok(()); // ENOENT: that was the last bucket
        }
        (cursor, started) = (next, true);
    }
}

/// The part of `union bpf_attr` that commands about one entry use.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The number of the program at a place of a program array.
pub(super) fn program_at(fd: &MapFd, place: u32) -> io::Result<Option<u32>> {
    /// include/uapi/linux/bpf.h, `enum bpf_cmd`.
    const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
    let mut number = 0u32;
    let mut attr = ElementAttr {
        map_fd: u32::try_from(fd.as_fd().as_raw_fd()).map_err(io::Error::other)?,
        key: (&raw const place) as u64,
        value: (&raw mut number) as u64,
        flags: 0,
    };
    // SAFETY: the attribute is complete for this command; a program array has keys and values of four bytes, which live until
    // the call returns.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_ELEM, &raw mut attr, size_of::<ElementAttr>()) };
    match (result < 0).then(io::Error::last_os_error) {
        None => Ok(Some(number)),
        Some(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Some(error) => Err(error),
    }
}

/// Deletes one entry. False: it was gone already.
pub(super) fn delete<K: Copy>(fd: &MapFd, key: &K) -> io::Result<bool> {
    /// include/uapi/linux/bpf.h, `enum bpf_cmd`.
    const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
    let mut attr = ElementAttr {
        map_fd: u32::try_from(fd.as_fd().as_raw_fd()).map_err(io::Error::other)?,
        key: std::ptr::from_ref(key) as u64,
        value: 0,
        flags: 0,
    };
    // SAFETY: the attribute is complete for this command; the key lives until the call returns.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_DELETE_ELEM, &raw mut attr, size_of::<ElementAttr>()) };
    match (result < 0).then(io::Error::last_os_error) {
        None => Ok(true),
        Some(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Some(error) => Err(error),
    }
}
