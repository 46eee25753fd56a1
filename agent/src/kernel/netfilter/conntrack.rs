//! The kernel's connections, by netlink: all of them listed, one of them ended.
//!
//! Messages are those of `netlink-packet-netfilter`; what it leaves undecoded (counters, start, ICMP identifiers) is
//! read here.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
};

use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    Nla as _, NlasIterator,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    conntrack::{
        ConntrackAttribute, ConntrackMessage, IPTuple, ProtoInfo, ProtoInfoTCP, ProtoTuple, Status, Tuple,
    },
};
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;

use crate::kernel::{KernelError, dump};

/// linux/netfilter/nfnetlink_conntrack.h: attributes, where the library has none.
mod cta {
    pub(super) const COUNTERS_ORIG: u16 = 9;
    pub(super) const COUNTERS_REPLY: u16 = 10;
    pub(super) const ID: u16 = 12;
    pub(super) const ZONE: u16 = 18;
    pub(super) const TIMESTAMP: u16 = 20;
    pub(super) const COUNTERS_PACKETS: u16 = 1;
    pub(super) const COUNTERS_BYTES: u16 = 2;
    pub(super) const TIMESTAMP_START: u16 = 1;
    pub(super) const PROTO_ICMP_ID: u16 = 4;
    pub(super) const PROTO_ICMPV6_ID: u16 = 7;
}

/// Without the flags that say how an attribute is encoded.
const KIND: u16 = 0x3fff;

/// From where to where. Of ICMP, the identifier stands for both ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) source: (IpAddr, u16),
    pub(super) destination: (IpAddr, u16),
}

/// Packets and bytes of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    pub(super) packets: u64,
    pub(super) bytes: u64,
}

/// One connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// IANA number.
    pub(super) protocol: u8,
    /// As its first packet came in.
    pub(super) original: Way,
    /// As answers come in.
    pub(super) reply: Way,
    pub(super) status: Status,
    /// Seconds until it ends when nothing comes any more.
    pub(super) remaining: u32,
    /// linux/netfilter/nf_conntrack_tcp.h `enum tcp_conntrack`.
    pub(super) tcp_state: Option<u8>,
    /// Both 0 where the kernel does not count (`nf_conntrack_acct`).
    pub(super) sent: Traffic,
    pub(super) answered: Traffic,
    /// Nanoseconds since 1970, where the kernel notes it (`nf_conntrack_timestamp`).
    pub(super) started: Option<u64>,
    /// By which the kernel finds it.
    key: Vec<ConntrackAttribute>,
}

/// Every connection of the network namespace, or an error.
pub(super) fn list() -> Result<Vec<Entry>, KernelError> {
    let failed = |error: io::Error| crate::kernel::rtnl::io_error("list the connections", &error);
    let socket = dump::open(NETLINK_NETFILTER).map_err(failed)?;
    let request = ConntrackMessage::Get(Vec::new());
    send(&socket, NetfilterProtoFamily::Unspec, request, NLM_F_DUMP).map_err(failed)?;
    let mut entries = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full().map_err(failed)?;
        if messages(&datagram, |message| entries.extend(entry(message))).map_err(failed)? {
            return Ok(entries);
        }
    }
}

/// Ends connections; those that have ended already are as good.
pub(super) fn end<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Result<usize, KernelError> {
    let failed = |error: io::Error| crate::kernel::rtnl::io_error("end a connection", &error);
    let socket = dump::open(NETLINK_NETFILTER).map_err(failed)?;
    let mut ended = 0;
    for entry in entries {
        let family = match entry.original.source.0 {
            IpAddr::V4(_) => NetfilterProtoFamily::IPv4,
            IpAddr::V6(_) => NetfilterProtoFamily::IPv6,
        };
        send(&socket, family, ConntrackMessage::Delete(entry.key.clone()), NLM_F_ACK).map_err(failed)?;
        let (datagram, _) = socket.recv_from_full().map_err(failed)?;
        match messages(&datagram, |_| ()) {
            Ok(_) => ended += 1,
            Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(ended)
}

fn send(
    socket: &Socket,
    family: NetfilterProtoFamily,
    message: ConntrackMessage,
    flags: u16,
) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message);
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0).map(drop)
}

/// Shows the connections of one datagram; true when there is no more to come.
fn messages(datagram: &[u8], mut show: impl FnMut(&[ConntrackAttribute])) -> io::Result<bool> {
    let mut rest = datagram;
    while !rest.is_empty() {
        let message = NetlinkMessage::<NetfilterMessage>::deserialize(rest).map_err(io::Error::other)?;
        match &message.payload {
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(answer) => {
                return match answer.code {
                    None => Ok(true),
                    Some(code) => Err(io::Error::from_raw_os_error(code.get().saturating_abs())),
                };
            }
            NetlinkPayload::InnerMessage(NetfilterMessage {
                inner: NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)),
                ..
            }) => show(attributes),
            _ => {}
        }
        let length = message.header.length as usize;
        rest = rest.get(length.max(1).next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// `None` when it is cut short, or nothing that has addresses.
fn entry(attributes: &[ConntrackAttribute]) -> Option<Entry> {
    let nowhere = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
    let mut entry = Entry {
        protocol: 0,
        original: Way { source: nowhere, destination: nowhere },
        reply: Way { source: nowhere, destination: nowhere },
        status: Status::empty(),
        remaining: 0,
        tcp_state: None,
        sent: Traffic::default(),
        answered: Traffic::default(),
        started: None,
        key: Vec::new(),
    };
    let (mut original, mut reply) = (None, None);
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(tuple) => {
                original = way(tuple);
                entry.key.push(attribute.clone());
            }
            ConntrackAttribute::CtaTupleReply(tuple) => reply = way(tuple),
            ConntrackAttribute::CtaStatus(status) => entry.status = *status,
            ConntrackAttribute::CtaTimeout(seconds) => entry.remaining = *seconds,
            ConntrackAttribute::CtaProtoInfo(infos) => {
                entry.tcp_state = infos.iter().find_map(|info| match info {
                    ProtoInfo::TCP(facts) => facts.iter().find_map(|fact| match fact {
                        ProtoInfoTCP::State(state) => Some(*state),
                        _ => None,
                    }),
                    _ => None,
                });
            }
            ConntrackAttribute::Other(other) => match other.kind() & KIND {
                cta::COUNTERS_ORIG => entry.sent = traffic(other),
                cta::COUNTERS_REPLY => entry.answered = traffic(other),
                cta::TIMESTAMP => {
                    entry.started = numbers(other)
                        .into_iter()
                        .find(|(kind, _)| *kind == cta::TIMESTAMP_START)
                        .map(|(_, at)| at);
                }
                cta::ID | cta::ZONE => entry.key.push(attribute.clone()),
                _ => {}
            },
            _ => {}
        }
    }
    let (protocol, original) = original?;
    (entry.protocol, entry.original, entry.reply) = (protocol, original, reply?.1);
    Some(entry)
}

/// The protocol, and the way.
fn way(tuple: &[Tuple]) -> Option<(u8, Way)> {
    let (mut protocol, mut source, mut destination) = (None, None, None);
    let (mut source_port, mut destination_port) = (0, 0);
    for part in tuple {
        match part {
            Tuple::Ip(addresses) => {
                for address in addresses {
                    match address {
                        IPTuple::SourceAddress(ip) => source = Some(*ip),
                        IPTuple::DestinationAddress(ip) => destination = Some(*ip),
                        _ => {}
                    }
                }
            }
            Tuple::Proto(facts) => {
                for fact in facts {
                    match fact {
                        ProtoTuple::Protocol(number) => protocol = Some(u8::from(*number)),
                        ProtoTuple::SourcePort(port) => source_port = *port,
                        ProtoTuple::DestinationPort(port) => destination_port = *port,
                        ProtoTuple::Other(other)
                            if matches!(other.kind() & KIND, cta::PROTO_ICMP_ID | cta::PROTO_ICMPV6_ID) =>
                        {
                            let id = bytes(other).first_chunk().map_or(0, |id| u16::from_be_bytes(*id));
                            (source_port, destination_port) = (id, id);
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let way = Way { source: (source?, source_port), destination: (destination?, destination_port) };
    Some((protocol?, way))
}

fn traffic(attribute: &DefaultNla) -> Traffic {
    let mut traffic = Traffic::default();
    for (kind, value) in numbers(attribute) {
        match kind {
            cta::COUNTERS_PACKETS => traffic.packets = value,
            cta::COUNTERS_BYTES => traffic.bytes = value,
            _ => {}
        }
    }
    traffic
}

/// The 64-bit numbers within an attribute.
fn numbers(attribute: &DefaultNla) -> Vec<(u16, u64)> {
    let bytes = bytes(attribute);
    NlasIterator::new(&bytes)
        .filter_map(Result::ok)
        .filter_map(|inner| Some((inner.kind() & KIND, u64::from_be_bytes(*inner.value().first_chunk()?))))
        .collect()
}

fn bytes(attribute: &DefaultNla) -> Vec<u8> {
    let mut bytes = vec![0; attribute.value_len()];
    attribute.emit_value(&mut bytes);
    bytes
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A connection: protocol, four sockets, status.
    pub(in crate::kernel::netfilter) fn connection(
        protocol: u8,
        [from, to, reply_from, reply_to]: [&str; 4],
        status: Status,
    ) -> Entry {
        let socket = |text: &str| {
            let socket: std::net::SocketAddr = text.parse().unwrap();
            (socket.ip(), socket.port())
        };
        Entry {
            protocol,
            original: Way { source: socket(from), destination: socket(to) },
            reply: Way { source: socket(reply_from), destination: socket(reply_to) },
            status,
            remaining: 100,
            tcp_state: None,
            sent: Traffic { packets: 3, bytes: 300 },
            answered: Traffic { packets: 2, bytes: 200 },
            started: None,
            key: Vec::new(),
        }
    }

    /// A ping from 10.0.0.5 that left as 192.0.2.1, as the kernel sends it.
    #[test]
    fn a_ping_is_read_with_its_identifier_counters_and_start() {
        let nested = |kind: u16, parts: &[Vec<u8>]| attribute(kind | 0x8000, &parts.concat());
        let addresses = |source: [u8; 4], destination: [u8; 4]| {
            nested(1, &[attribute(1, &source), attribute(2, &destination)])
        };
        let echo = nested(2, &[attribute(1, &[1]), attribute(4, &[0x12, 0x34]), attribute(5, &[8])]);
        let number = |kind, value: u64| attribute(kind, &value.to_be_bytes());
        let mut payload = vec![2, 0, 0, 0];
        for part in [
            nested(1, &[addresses([10, 0, 0, 5], [192, 0, 2, 2]), echo.clone()]),
            nested(2, &[addresses([192, 0, 2, 2], [192, 0, 2, 1]), echo]),
            attribute(3, &0x19au32.to_be_bytes()),
            attribute(7, &29u32.to_be_bytes()),
            nested(9, &[number(1, 5), number(2, 420)]),
            nested(10, &[number(1, 4), number(2, 336)]),
            attribute(12, &7u32.to_be_bytes()),
            nested(20, &[number(1, 1_700_000_000_000_000_000)]),
        ] {
            payload.extend(part);
        }
        let mut datagram = u32::try_from(payload.len() + 16).unwrap().to_ne_bytes().to_vec();
        datagram.extend([0x0100u16.to_ne_bytes(), 2u16.to_ne_bytes()].concat());
        datagram.extend([0; 8]);
        datagram.extend(payload);
        let mut entries = Vec::new();
        assert!(!messages(&datagram, |message| entries.extend(entry(message))).unwrap());
        let [found] = &entries[..] else { panic!("{entries:?}") };
        assert_eq!(found.protocol, 1);
        assert_eq!(found.original.source, ("10.0.0.5".parse().unwrap(), 0x1234));
        assert_eq!(found.reply.destination, ("192.0.2.1".parse().unwrap(), 0x1234));
        assert!(found.status.contains(Status::SrcNat | Status::SeenReply));
        assert_eq!(found.sent, Traffic { packets: 5, bytes: 420 });
        assert_eq!(found.answered, Traffic { packets: 4, bytes: 336 });
        assert_eq!((found.remaining, found.started), (29, Some(1_700_000_000_000_000_000)));
        assert_eq!(found.key.len(), 2, "tuple and id");
    }

    #[test]
    fn a_message_without_addresses_is_no_connection() {
        assert_eq!(entry(&[ConntrackAttribute::CtaTimeout(3)]), None);
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }
}
