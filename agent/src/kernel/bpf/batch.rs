//! Every entry of a hash map or an array with few system calls: `BPF_MAP_LOOKUP_BATCH`, which aya does not have.

use std::{
    io,
    mem::MaybeUninit,
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
    check_sizes::<K, V>(sizes)?;
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

/// include/uapi/linux/bpf.h, `enum bpf_cmd`.
const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_int = 21;

/// Of an update: only where nothing is.
const BPF_NOEXIST: u64 = 1;

/// One command about one entry. `unless`: the errno of what is no failure; `None` is answered then.
///
/// # Safety
/// `K` must be the map's key, and `value` room for its value.
unsafe fn element<K: Copy, V>(
    command: libc::c_int,
    fd: &MapFd,
    (key, value): (&K, *mut V),
    flags: u64,
    unless: libc::c_int,
) -> io::Result<Option<()>> {
    let mut attr = ElementAttr {
        map_fd: u32::try_from(fd.as_fd().as_raw_fd()).map_err(io::Error::other)?,
        key: std::ptr::from_ref(key) as u64,
        value: value as u64,
        flags,
    };
    // SAFETY: the attribute is complete for these commands; key and value are what the map has, by the caller's contract, and live
    // until the call returns.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attr, size_of::<ElementAttr>()) };
    match (result < 0).then(io::Error::last_os_error) {
        None => Ok(Some(())),
        Some(error) if error.raw_os_error() == Some(unless) => Ok(None),
        Some(error) => Err(error),
    }
}

/// The number of the program at a place of a program array.
pub(super) fn program_at(fd: &MapFd, place: u32) -> io::Result<Option<u32>> {
    let mut number = 0u32;
    // SAFETY: a program array has keys and values of four bytes.
    let found = unsafe { element(BPF_MAP_LOOKUP_ELEM, fd, (&place, &raw mut number), 0, libc::ENOENT) }?;
    Ok(found.map(|()| number))
}

/// Takes an entry out, at once; what it was.
///
/// `K` and `V` must be the map's key and value: plain data of exactly its key and value size.
pub(super) fn take<K: Copy, V: Copy>(fd: &MapFd, sizes: (usize, usize), key: &K) -> io::Result<Option<V>> {
    check_sizes::<K, V>(sizes)?;
    let mut value = MaybeUninit::<V>::uninit();
    let place = (key, value.as_mut_ptr());
    // SAFETY: the sizes were checked.
    let taken = unsafe { element(BPF_MAP_LOOKUP_AND_DELETE_ELEM, fd, place, 0, libc::ENOENT) }?;
    // SAFETY: the kernel has written a value of plain data.
    Ok(taken.map(|()| unsafe { value.assume_init() }))
}

/// Puts an entry where none is.
///
/// `K` and `V` as above.
pub(super) fn put<K: Copy, V: Copy>(fd: &MapFd, sizes: (usize, usize), key: &K, value: &V) -> io::Result<()> {
    check_sizes::<K, V>(sizes)?;
    let mut value = *value;
    // SAFETY: the sizes were checked.
    unsafe { element(BPF_MAP_UPDATE_ELEM, fd, (key, &raw mut value), BPF_NOEXIST, libc::EEXIST) }?;
    Ok(())
}

fn check_sizes<K, V>(sizes: (usize, usize)) -> io::Result<()> {
    if (size_of::<K>(), size_of::<V>()) == sizes {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "the map has other key and value sizes"))
}
