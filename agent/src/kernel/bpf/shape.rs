//! Of what fields key and value of a pinned map are, by the BTF that it was made with; aya does not tell.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use aya::maps::MapFd;
use aya_obj::generated::{bpf_btf_info, bpf_map_info};
use nix::libc;

use super::btf::Btf;

/// The fields of a key and of a value.
pub(super) type Fields = [&'static [&'static str]; 2];

/// include/uapi/linux/bpf.h, `enum bpf_cmd`.
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_BTF_GET_FD_BY_ID: libc::c_int = 19;

/// What differs between a map and what it should be; `None` when nothing does.
pub(super) fn difference(map: &MapFd, wanted: Fields) -> io::Result<Option<String>> {
    // SAFETY: all of it are numbers, for which zero is a value.
    let mut info = unsafe { std::mem::zeroed::<bpf_map_info>() };
    // SAFETY: this is what the kernel writes for a map.
    unsafe { describe(map.as_fd(), &mut info) }?;
    if info.btf_id == 0 {
        return Ok(Some("nothing says what its fields are (it has no BTF)".to_owned()));
    }
    let blob = blob(info.btf_id)?;
    let unknown = || io::Error::new(io::ErrorKind::InvalidData, "its BTF cannot be read");
    let types = Btf::parse(&blob).ok_or_else(unknown)?;
    for (part, number, wanted) in
        [("key", info.btf_key_type_id, wanted[0]), ("value", info.btf_value_type_id, wanted[1])]
    {
        let found = types.fields(number).ok_or_else(unknown)?;
        if let Some(difference) = first_difference(&found, wanted) {
            return Ok(Some(format!("its {part} has {difference}")));
        }
    }
    Ok(None)
}

fn first_difference(found: &[String], wanted: &[&str]) -> Option<String> {
    let longer = found.len().max(wanted.len());
    (0..longer).find_map(|index| {
        let (found, wanted) = (found.get(index).map(String::as_str), wanted.get(index).copied());
        let name =
            |field: Option<&str>| field.map_or("nothing more".to_owned(), |field| format!("`{field}`"));
        (found != wanted).then(|| format!("{}, this version has {}", name(found), name(wanted)))
    })
}

/// All that the kernel keeps of one load of BTF.
fn blob(number: u32) -> io::Result<Vec<u8>> {
    let mut attr = [number, 0, 0, 0];
    // SAFETY: the attribute is a number and zeros for this command, which writes nothing.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_BTF_GET_FD_BY_ID, attr.as_mut_ptr(), size_of_val(&attr)) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = libc::c_int::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just opened it for this call alone.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all of it are numbers, for which zero is a value.
    let mut info = unsafe { std::mem::zeroed::<bpf_btf_info>() };
    // SAFETY: this is what the kernel writes for BTF; there is no buffer yet.
    unsafe { describe(fd.as_fd(), &mut info) }?;
    let mut blob = vec![0; usize::try_from(info.btf_size).map_err(io::Error::other)?];
    info.btf = blob.as_mut_ptr() as u64;
    // SAFETY: the buffer is as long as `btf_size`, which the kernel goes by, and nothing else is asked for.
    unsafe { describe(fd.as_fd(), &mut info) }?;
    Ok(blob)
}

/// What the kernel says of an object of BPF.
///
/// # Safety
/// `T` must be the `bpf_..._info` of this kind of object, and the buffers that it names must be there.
unsafe fn describe<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    /// The part of `union bpf_attr` for this command.
    #[repr(C)]
    struct Attr {
        fd: u32,
        length: u32,
        info: u64,
    }
    let mut attr = Attr {
        fd: u32::try_from(object.as_raw_fd()).map_err(io::Error::other)?,
        length: u32::try_from(size_of::<T>()).map_err(io::Error::other)?,
        info: std::ptr::from_mut(info) as u64,
    };
    // SAFETY: the attribute is complete, and `info` has the length that it says.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &raw mut attr, size_of::<Attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_field_that_differs_is_told() {
        let found = ["src: 32 bits at 0", "port: 16 bits at 32"].map(str::to_owned);
        assert_eq!(first_difference(&found, &["src: 32 bits at 0", "port: 16 bits at 32"]), None);
        assert_eq!(
            first_difference(&found, &["dst: 32 bits at 0", "port: 16 bits at 32"]).unwrap(),
            "`src: 32 bits at 0`, this version has `dst: 32 bits at 0`"
        );
        assert_eq!(
            first_difference(&found, &["src: 32 bits at 0"]).unwrap(),
            "`port: 16 bits at 32`, this version has nothing more"
        );
        assert_eq!(
            first_difference(&[], &["x: 8 bits at 0"]).unwrap(),
            "nothing more, this version has `x: 8 bits at 0`"
        );
    }
}
