//! One rtnetlink socket, request by request.
//!
//! Blocking, because the kernel answers before `send` returns; the caller runs it where it may block. Done
//! here and not by `netlink-proto`, because a message of a dump that cannot be decoded must fail the dump
//! (there it is logged and left out), and because the kernel's explanation of an error must be kept.

use std::{
    num::NonZeroI32,
    time::{Duration, Instant},
};

use netlink_packet_core::{
    DecodeError, ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::{
    libc,
    sys::{
        socket::{setsockopt, sockopt},
        time::{TimeVal, TimeValLike},
    },
};

use super::{KernelError, names};

/// Set on the messages of a dump during which something changed (linux/netlink.h).
const NLM_F_DUMP_INTR: u16 = 0x10;
/// How often a dump is begun again that was interrupted by a change.
const DUMP_ATTEMPTS: usize = 8;
/// A dump of many links comes in large pieces.
const RECEIVE_BUFFER: usize = 1 << 20;
/// The kernel answers at once; anything else is a fault, and must not stall the worker for ever.
const TIMEOUT_SECONDS: i64 = 5;
const TIMEOUT: Duration = Duration::from_secs(TIMEOUT_SECONDS.unsigned_abs());
/// How often an answer is asked for again that could not be read.
const RECEIVE_ATTEMPTS: usize = 3;
/// What a dump puts into one datagram at most, and more datagrams than any has.
const DATAGRAM: usize = 1 << 16;
const MOST_DATAGRAMS: usize = 1 << 16;
/// Header of the request that an error message repeats (NETLINK_CAP_ACK: without its payload).
const NLMSG_HEADER: usize = 16;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// A socket in the namespace of the thread that opened it, wherever it is used.
#[derive(Debug)]
pub(super) struct Rtnl {
    socket: Socket,
    sequence: u32,
    /// An answer was not read to its end, and the kernel begins no other dump on this socket before it is.
    unread: bool,
}

enum Failure {
    /// Something changed meanwhile; what was read does not fit together.
    Interrupted,
    Error(KernelError),
}

impl Rtnl {
    /// Opens a socket in the namespace of this thread.
    pub(super) fn open() -> Result<Self, KernelError> {
        let failed = |error: std::io::Error| io_error("open a netlink socket", &error);
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed)?;
        socket.bind_auto().map_err(failed)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
        socket.set_ext_ack(true).map_err(failed)?;
        socket.set_cap_ack(true).map_err(failed)?;
        socket.set_rx_buf_sz(RECEIVE_BUFFER).map_err(failed)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(TIMEOUT_SECONDS))
            .map_err(|errno| KernelError::errno("open a netlink socket", errno as i32))?;
        Ok(Self { socket, sequence: 0, unread: false })
    }

    /// One that the kernel lets ask for a part of what there is, and refuses what it does not understand.
    pub(super) fn open_strict() -> Result<Self, KernelError> {
        let rtnl = Self::open()?;
        (rtnl.socket.set_netlink_get_strict_chk(true))
            .map_err(|error| io_error("open a netlink socket", &error))?;
        Ok(rtnl)
    }

    /// Makes a change, and waits for the kernel's word on it.
    pub(super) fn change(
        &mut self,
        operation: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), KernelError> {
        match self.exchange(operation, message, NLM_F_REQUEST | NLM_F_ACK | flags) {
            Ok(_) => Ok(()),
            Err(Failure::Error(error)) => Err(error),
            Err(Failure::Interrupted) => Err(KernelError::other(operation, "interrupted")),
        }
    }

    /// One object.
    pub(super) fn get(
        &mut self,
        operation: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, KernelError> {
        match self.exchange(operation, message, NLM_F_REQUEST | NLM_F_ACK) {
            Ok(answers) => Ok(answers),
            Err(Failure::Error(error)) => Err(error),
            Err(Failure::Interrupted) => Err(KernelError::other(operation, "interrupted")),
        }
    }

    /// All objects of a kind, whole: begun again when something changed while it was read.
    pub(super) fn dump(
        &mut self,
        operation: &str,
        message: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, KernelError> {
        for _ in 0..DUMP_ATTEMPTS {
            match self.exchange(operation, message.clone(), NLM_F_REQUEST | NLM_F_DUMP) {
                Ok(answers) => return Ok(answers),
                Err(Failure::Error(error)) => return Err(error),
                Err(Failure::Interrupted) => {}
            }
        }
        Err(KernelError::other(operation, "it kept changing while it was read"))
    }

    fn exchange(
        &mut self,
        operation: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, Failure> {
        let failed = |error: std::io::Error| Failure::Error(io_error(operation, &error));
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut buffer = vec![0; request.buffer_len()];
        request.serialize(&mut buffer);
        if std::mem::replace(&mut self.unread, true) {
            self.drain();
        }
        self.socket.send(&buffer, 0).map_err(failed)?;
        let result = self.answers(operation);
        self.unread = result.is_err();
        result
    }

    /// What the kernel answers to the request that was sent last.
    fn answers(&mut self, operation: &str) -> Result<Vec<RouteNetlinkMessage>, Failure> {
        let failed = |error: std::io::Error| Failure::Error(io_error(operation, &error));
        let mut answers = Vec::new();
        let mut interrupted = false;
        loop {
            let datagram = self.receive().map_err(failed)?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let answer = read(rest).map_err(|error| {
                    Failure::Error(KernelError::other(
                        operation,
                        format!("the answer cannot be read: {error}"),
                    ))
                })?;
                // Messages are padded to 4 bytes.
                let length = (answer.header.length as usize).next_multiple_of(4).max(NLMSG_HEADER);
                rest = rest.get(length..).unwrap_or_default();
                // Left over from a request that timed out.
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    NetlinkPayload::Done(done) => {
                        return match NonZeroI32::new(done.code) {
                            Some(code) => Err(Failure::Error(refusal(operation, code, &[]))),
                            None if interrupted => Err(Failure::Interrupted),
                            None => Ok(answers),
                        };
                    }
                    NetlinkPayload::Error(ErrorMessage { code: None, .. }) => return Ok(answers),
                    NetlinkPayload::Error(ErrorMessage { code: Some(code), header, .. }) => {
                        return Err(Failure::Error(refusal(operation, code, &header)));
                    }
                    NetlinkPayload::Overrun(_) => return Err(Failure::Interrupted),
                    // Noop, and what a later kernel may add.
                    _ => {}
                }
            }
        }
    }

    /// The kernel has answered when `send` returns: what keeps us from reading it does so for the moment, and without the answer
    /// nobody knows whether the change was made.
    fn receive(&self) -> std::io::Result<Vec<u8>> {
        let began = Instant::now();
        let mut failed = 0;
        loop {
            match self.socket.recv_from_full() {
                Ok((datagram, _)) => return Ok(datagram),
                Err(error) if failed >= RECEIVE_ATTEMPTS || began.elapsed() >= TIMEOUT => return Err(error),
                Err(_) => failed += 1,
            }
        }
    }

    /// Reads what is left of an earlier answer.
    fn drain(&self) {
        let mut rest = Vec::with_capacity(DATAGRAM);
        for _ in 0..MOST_DATAGRAMS {
            rest.clear();
            if self.socket.recv(&mut rest, libc::MSG_DONTWAIT).is_err() {
                return;
            }
        }
    }
}

/// The first message; what somebody called a link need not be text.
fn read(bytes: &[u8]) -> Result<NetlinkMessage<RouteNetlinkMessage>, DecodeError> {
    NetlinkMessage::deserialize(bytes).or_else(|error| match names::readable(bytes) {
        Some(message) => NetlinkMessage::deserialize(&message),
        None => Err(error),
    })
}

/// An I/O error as a kernel error.
pub(super) fn io_error(operation: &str, error: &std::io::Error) -> KernelError {
    match error.raw_os_error() {
        Some(errno) => KernelError::errno(operation, errno),
        None => KernelError::other(operation, error.to_string()),
    }
}

fn refusal(operation: &str, code: NonZeroI32, repeated: &[u8]) -> KernelError {
    let mut error = KernelError::errno(operation, code.get().saturating_abs());
    error.extack = extack(repeated.get(NLMSG_HEADER..).unwrap_or_default());
    error
}

/// The text among the attributes that follow the repeated header (linux: `netlink_ack`).
fn extack(mut attributes: &[u8]) -> Option<String> {
    while let [l0, l1, k0, k1, rest @ ..] = attributes {
        let length = usize::from(u16::from_ne_bytes([*l0, *l1])).checked_sub(4)?;
        let value = rest.get(..length)?;
        if u16::from_ne_bytes([*k0, *k1]) == NLMSGERR_ATTR_MSG {
            let text = value.split(|byte| *byte == 0).next()?;
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        attributes = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_explanation_is_found_behind_other_attributes() {
        let mut bytes = vec![8, 0, 2, 0, 1, 2, 3, 4];
        bytes.extend([10, 0, 1, 0]);
        bytes.extend(b"no it\0\0\0");
        assert_eq!(extack(&bytes).as_deref(), Some("no it"));
    }

    #[test]
    fn truncated_attributes_are_no_explanation() {
        assert_eq!(extack(&[200, 0, 1, 0, b'x']), None);
        assert_eq!(extack(&[2, 0, 1, 0]), None);
        assert_eq!(extack(&[]), None);
    }
}
