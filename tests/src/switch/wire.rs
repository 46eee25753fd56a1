//! Packet sockets: frames into an interface and out of it, tags and all.

use std::{
    io,
    mem::{size_of, zeroed},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use nix::{libc, net::if_::if_nametoindex};

use super::frames::Q;
use crate::lab::PATIENCE;

/// ETH_P_ALL and AF_PACKET, as wide as a socket address has them.
const EVERYTHING: u16 = 3;
const FAMILY: u16 = 17;
/// linux/if_packet.h
const PACKET_AUXDATA: libc::c_int = 8;
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
const TP_STATUS_VLAN_VALID: u32 = 1 << 4;
const TP_STATUS_VLAN_TPID_VALID: u32 = 1 << 6;

/// One interface as a packet socket sees it.
#[derive(Debug)]
pub struct Wire {
    socket: OwnedFd,
    pub index: u32,
}

impl Wire {
    /// Everything that comes in.
    pub fn all(interface: &str) -> Self {
        Self::open(interface, EVERYTHING)
    }

    /// What comes in with one EtherType. Unlike [`Wire::all`], it sees a frame only after the programs have.
    pub fn kind(interface: &str, kind: u16) -> Self {
        Self::open(interface, kind)
    }

    fn open(interface: &str, kind: u16) -> Self {
        let index = if_nametoindex(interface).unwrap_or_else(|error| panic!("{interface}: {error}"));
        // SAFETY: plain system calls on a descriptor of our own, with structures of the right size.
        let socket = unsafe {
            let flags = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
            let fd = libc::socket(libc::AF_PACKET, flags, 0);
            assert!(fd >= 0, "a packet socket: {}", io::Error::last_os_error());
            let socket = OwnedFd::from_raw_fd(fd);
            for option in [PACKET_AUXDATA, PACKET_IGNORE_OUTGOING] {
                let on: libc::c_int = 1;
                let size = length::<libc::c_int>();
                let done = libc::setsockopt(fd, libc::SOL_PACKET, option, (&raw const on).cast(), size);
                assert_eq!(done, 0, "a socket option: {}", io::Error::last_os_error());
            }
            let room: libc::c_int = 8 << 20;
            let size = length::<libc::c_int>();
            libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, (&raw const room).cast(), size);
            let mut address: libc::sockaddr_ll = zeroed();
            address.sll_family = FAMILY;
            address.sll_protocol = kind.to_be();
            address.sll_ifindex = index.cast_signed();
            let size = length::<libc::sockaddr_ll>();
            let done = libc::bind(fd, (&raw const address).cast(), size);
            assert_eq!(done, 0, "bind to {interface}: {}", io::Error::last_os_error());
            socket
        };
        Self { socket, index }
    }

    /// Sends a frame out of the interface; an error is the kernel's answer to the sender.
    pub fn try_send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: a buffer that lives until the call returns.
        let sent = unsafe {
            // The interface that it is bound to, and the frame's own EtherType.
            let mut address: libc::sockaddr_ll = zeroed();
            address.sll_family = FAMILY;
            address.sll_ifindex = self.index.cast_signed();
            address.sll_halen = 6;
            let size = length::<libc::sockaddr_ll>();
            let fd = self.socket.as_raw_fd();
            libc::sendto(fd, frame.as_ptr().cast(), frame.len(), 0, (&raw const address).cast(), size)
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    #[track_caller]
    pub fn send(&self, frame: &[u8]) {
        self.try_send(frame).expect("send a frame");
    }

    /// The next frame, with the tag that the kernel has taken out put back; `None` when there is none yet.
    pub fn receive(&self) -> Option<Vec<u8>> {
        let mut buffer = vec![0u8; 70_000];
        let mut control = [0u64; 16];
        // SAFETY: buffers of the sizes given, which live until the call returns; the control message is read with
        // the macros that are made for it, and copied.
        unsafe {
            let mut vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            let mut message: libc::msghdr = zeroed();
            message.msg_iov = &raw mut vector;
            message.msg_iovlen = 1;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = size_of_val(&control) as _;
            let length = libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT);
            if length < 0 {
                let error = io::Error::last_os_error();
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "receive: {error}");
                return None;
            }
            buffer.truncate(length.cast_unsigned());
            let mut header = libc::CMSG_FIRSTHDR(&raw const message);
            while !header.is_null() {
                if (*header).cmsg_level == libc::SOL_PACKET && (*header).cmsg_type == PACKET_AUXDATA {
                    let data: libc::tpacket_auxdata =
                        libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>().read_unaligned();
                    if data.tp_status & TP_STATUS_VLAN_VALID != 0 {
                        let known = data.tp_status & TP_STATUS_VLAN_TPID_VALID != 0;
                        let protocol = if known { data.tp_vlan_tpid } else { Q };
                        let tag = [protocol.to_be_bytes(), data.tp_vlan_tci.to_be_bytes()].concat();
                        buffer.splice(12..12, tag);
                    }
                }
                header = libc::CMSG_NXTHDR(&raw const message, header);
            }
        }
        Some(buffer)
    }

    /// Every frame before the one that is `last`; a panic when that does not come.
    #[track_caller]
    pub fn until(&self, last: &[u8]) -> Vec<Vec<u8>> {
        let deadline = Instant::now() + PATIENCE;
        let mut frames = Vec::new();
        loop {
            match self.receive() {
                Some(frame) if frame == last => return frames,
                Some(frame) => frames.push(frame),
                None => {
                    assert!(Instant::now() < deadline, "the last frame did not come; before it {frames:x?}");
                    std::thread::sleep(Duration::from_micros(200));
                }
            }
        }
    }

    /// Every frame that is there.
    pub fn pending(&self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.receive()).collect()
    }
}

/// Of a structure that a system call is given.
fn length<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).expect("a small structure")
}
