//! TUN and TAP devices: the ioctls of linux/if_tun.h, which netlink has no replacement for.

use std::{
    ffi::{c_int, c_short, c_uint, c_ulong},
    fs::{File, OpenOptions},
    io,
    os::fd::AsRawFd,
};

use nix::{errno::Errno, libc, request_code_write};

use super::{KernelError, netns, rtnl::io_error, step::NewTun};

const DEVICE: &str = "/dev/net/tun";

// The request codes say `int` whatever the argument is; owner, group and persistence go by value.
const SET_PERSIST: c_ulong = request_code_write!(b'T', 203, size_of::<c_int>());
const SET_OWNER: c_ulong = request_code_write!(b'T', 204, size_of::<c_int>());
const SET_GROUP: c_ulong = request_code_write!(b'T', 206, size_of::<c_int>());

nix::ioctl_write_ptr_bad!(set_interface, request_code_write!(b'T', 202, size_of::<c_int>()), libc::ifreq);
nix::ioctl_write_ptr_bad!(set_index, request_code_write!(b'T', 218, size_of::<c_uint>()), c_uint);

/// A device that goes when this is dropped, unless it was kept.
#[derive(Debug)]
pub(super) struct Tun(File);

impl Tun {
    /// Makes a device in a namespace; one of that name that exists already is an error.
    pub(super) fn create(namespace: &File, operation: &str, tun: &NewTun) -> Result<Self, KernelError> {
        let failed = |errno: Errno| KernelError::errno(operation, errno as i32);
        // The device belongs to the namespace of the thread that opens the file.
        let file = netns::inside(namespace, "of the worker", || open(operation))?;
        if let Some(index) = tun.index {
            // SAFETY: the kernel reads one integer, which outlives the call.
            unsafe { set_index(file.as_raw_fd(), &raw const index) }.map_err(failed)?;
        }
        let request = request(tun).ok_or_else(|| KernelError::other(operation, "the name is too long"))?;
        // SAFETY: the kernel reads and writes one ifreq; what it writes is not looked at.
        unsafe { set_interface(file.as_raw_fd(), &raw const request) }.map_err(|errno| match errno {
            // IFF_TUN_EXCL
            Errno::EBUSY if tun.index.is_none() => KernelError::errno(operation, Errno::EEXIST as i32),
            errno => failed(errno),
        })?;
        let this = Self(file);
        for (request, id) in [(SET_OWNER, tun.owner), (SET_GROUP, tun.group)] {
            if let Some(id) = id {
                this.set(operation, request, c_ulong::from(id))?;
            }
        }
        Ok(this)
    }

    /// Lets it stay although nobody has it open.
    pub(super) fn keep(self, operation: &str) -> Result<(), KernelError> {
        self.set(operation, SET_PERSIST, 1)
    }

    fn set(&self, operation: &str, request: c_ulong, value: c_ulong) -> Result<(), KernelError> {
        // SAFETY: these requests take a number, no pointer.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), request, value) };
        Errno::result(result).map(drop).map_err(|errno| KernelError::errno(operation, errno as i32))
    }
}

fn open(operation: &str) -> Result<File, KernelError> {
    OpenOptions::new().read(true).write(true).open(DEVICE).map_err(|error| match error.kind() {
        // No such file, or (ENODEV) a file without the module behind it.
        io::ErrorKind::NotFound => unsupported(operation),
        _ if error.raw_os_error() == Some(libc::ENODEV) => unsupported(operation),
        _ => io_error(operation, &error),
    })
}

fn unsupported(operation: &str) -> KernelError {
    let mut error = KernelError::errno(operation, Errno::EOPNOTSUPP as i32);
    error.extack = Some(format!("{DEVICE} is missing: the kernel needs the module tun"));
    error
}

fn request(tun: &NewTun) -> Option<libc::ifreq> {
    let mut flags =
        libc::IFF_NO_PI | libc::IFF_TUN_EXCL | if tun.tap { libc::IFF_TAP } else { libc::IFF_TUN };
    if tun.multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    if tun.vnet_hdr {
        flags |= libc::IFF_VNET_HDR;
    }
    let mut name = [0; libc::IFNAMSIZ];
    // The last byte stays 0.
    let place = name.get_mut(..tun.name.len()).filter(|place| place.len() < libc::IFNAMSIZ)?;
    for (to, from) in place.iter_mut().zip(tun.name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // Sixteen flags; the highest makes the number negative.
    let [low, high, ..] = flags.to_le_bytes();
    let flags = c_short::from_le_bytes([low, high]);
    Some(libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_must_leave_room_for_its_end() {
        let tun = |name: &str| NewTun { name: name.into(), tap: true, ..NewTun::default() };
        assert!(request(&tun("a-name-of-15-by")).is_some());
        assert!(request(&tun("a-name-of-16-byt")).is_none());
        assert!(request(&tun(&"x".repeat(100))).is_none());
    }
}
