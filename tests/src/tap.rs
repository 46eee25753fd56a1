//! The far side of a TAP: what the program that runs a virtual machine does with it.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::fd::{AsFd as _, AsRawFd as _},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::lab::{Netns, PATIENCE};

nix::ioctl_write_ptr_bad!(
    set_interface,
    nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
    libc::ifreq
);

/// An open TAP: frames without a header.
#[derive(Debug)]
pub struct Tap(File);

impl Tap {
    /// Opens a TAP of that namespace as a user other than root would.
    pub fn open(netns: &Netns, name: &str, flags: libc::c_int, user: u32) -> io::Result<Self> {
        netns.run(|| {
            // By root, because not every host lets everybody open it; who may have the TAP is asked later.
            let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
            become_user(user)?;
            attach(&file, name, flags)?;
            Ok(Self(file))
        })
    }

    pub fn send(&mut self, frame: &[u8]) {
        self.0.write_all(frame).expect("write a frame");
    }

    /// The first frame that is asked for, of all that come.
    pub fn receive(&mut self, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let deadline = Instant::now() + PATIENCE;
        let mut frame = [0; 2048];
        loop {
            assert!(Instant::now() < deadline, "the frame did not come");
            let mut ready = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            let wait = PollTimeout::try_from(Duration::from_millis(100)).expect("a short time");
            if poll(&mut ready, wait).expect("wait for a frame") == 0 {
                continue;
            }
            let length = self.0.read(&mut frame).expect("read a frame");
            if wanted(&frame[..length]) {
                return frame[..length].to_vec();
            }
        }
    }
}

/// For this thread only, which ends soon: the library call would change the whole process.
fn become_user(user: u32) -> io::Result<()> {
    // SAFETY: two system calls with numbers.
    let results = unsafe {
        [
            libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()),
            libc::syscall(libc::SYS_setresgid, user, user, user),
            libc::syscall(libc::SYS_setresuid, user, user, user),
        ]
    };
    results.into_iter().try_for_each(|result| Errno::result(result).map(drop).map_err(io::Error::from))
}

fn attach(file: &File, name: &str, flags: libc::c_int) -> io::Result<()> {
    let mut ifr_name = [0; libc::IFNAMSIZ];
    for (to, from) in ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let flags = libc::c_short::try_from(libc::IFF_TAP | libc::IFF_NO_PI | flags).expect("flags fit");
    let request = libc::ifreq { ifr_name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags } };
    // SAFETY: the kernel reads one ifreq that outlives the call.
    unsafe { set_interface(file.as_raw_fd(), &raw const request) }.map(drop).map_err(io::Error::from)
}
