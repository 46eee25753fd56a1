//! Netlink dumps of subsystems that rtnetlink does not speak: a request, then datagrams of messages until the kernel
//! says that there is no more.

use std::io;

use netlink_packet_core::NetlinkBuffer;
use netlink_sys::{Socket, SocketAddr};
use nix::{
    errno::Errno,
    sys::{
        socket::{setsockopt, sockopt},
        time::{TimeVal, TimeValLike as _},
    },
};

/// A socket that waits five seconds for an answer and no longer.
pub(super) fn open(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(5))?;
    Ok(socket)
}

/// Sends a request and shows type and payload of each message of the answer.
pub(super) fn ask(socket: &Socket, request: &[u8], mut show: impl FnMut(u16, &[u8])) -> io::Result<()> {
    socket.send(request, 0)?;
    while !each(&socket.recv_from_full()?.0, &mut show)? {}
    Ok(())
}

/// The messages of one datagram; true when no more will come.
fn each(datagram: &[u8], show: &mut impl FnMut(u16, &[u8])) -> Result<bool, Errno> {
    // linux/netlink.h NLMSG_ERROR, NLMSG_DONE
    const ERROR: u16 = 2;
    const DONE: u16 = 3;
    let mut rest = datagram;
    while !rest.is_empty() {
        let buffer = NetlinkBuffer::new_checked(rest).map_err(|_| Errno::EBADMSG)?;
        let payload = buffer.payload();
        match buffer.message_type() {
            DONE => return Ok(true),
            ERROR => {
                let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                // Zero is an acknowledgement.
                return if code == 0 { Ok(true) } else { Err(Errno::from_raw(code.wrapping_neg())) };
            }
            kind => show(kind, payload),
        }
        rest = rest.get((buffer.length() as usize).next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 16 + payload.len()];
        let length = u32::try_from(bytes.len()).unwrap();
        let mut buffer = NetlinkBuffer::new(&mut bytes);
        buffer.set_length(length);
        buffer.set_message_type(kind);
        bytes[16..].copy_from_slice(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn messages_are_shown_until_the_kernel_says_that_there_are_no_more() {
        let mut seen = Vec::new();
        let mut show = |kind: u16, payload: &[u8]| seen.push((kind, payload.to_vec()));
        let some = [message(20, b"abc"), message(21, b"")].concat();
        assert_eq!(each(&some, &mut show), Ok(false));
        assert_eq!(
            each(&[message(20, b"z"), message(3, &[0; 4]), message(20, b"no")].concat(), &mut show),
            Ok(true)
        );
        assert_eq!(seen, [(20, b"abc".to_vec()), (21, Vec::new()), (20, b"z".to_vec())]);
    }

    #[test]
    fn what_the_kernel_refuses_and_what_is_cut_short_is_an_error() {
        let mut show = |_: u16, _: &[u8]| ();
        let refused = (-(Errno::EPERM as i32)).to_ne_bytes();
        assert_eq!(each(&message(2, &refused), &mut show), Err(Errno::EPERM));
        assert_eq!(each(&message(2, &[0; 4]), &mut show), Ok(true), "an acknowledgement");
        let whole = message(20, b"abcd");
        for length in 1..whole.len() {
            assert_eq!(each(&whole[..length], &mut show), Err(Errno::EBADMSG), "{length} bytes");
        }
    }
}
