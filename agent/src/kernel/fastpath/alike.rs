//! Does nothing but addresses and traffic class decide where a forwarded packet goes?
//!
//! Then the first packet of a flow may go where others between the same hosts went. The answer is on the safe side: a rule
//! of the routing policy that asks for anything else (ports, protocol, a mark) and any IPsec policy is a no, whomever it is
//! about, and so is any rule of a packet filter, whatever becomes of flows under way.

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NlasIterator};
use netlink_sys::{
    Socket,
    protocols::{NETLINK_ROUTE, NETLINK_XFRM},
};
use nix::errno::Errno;
use rtnetlink::MulticastGroup;

use super::{listen, netfilter};
use crate::kernel::{KernelError, dump};

/// linux/fib_rules.h
mod rule {
    pub(super) const GET: u16 = 34;
    pub(super) const NEW: u16 = 32;
    /// Bytes of `struct fib_rule_hdr`.
    pub(super) const HEADER: usize = 12;

    const FWMARK: u16 = 10;
    const IP_PROTO: u16 = 22;
    const SPORT_RANGE: u16 = 23;
    const DPORT_RANGE: u16 = 24;
    const FLOWLABEL: u16 = 26;

    /// Attributes that tell packets between two hosts apart.
    pub(super) const TELL_APART: [u16; 5] = [FWMARK, IP_PROTO, SPORT_RANGE, DPORT_RANGE, FLOWLABEL];
}

/// linux/xfrm.h
mod xfrm {
    pub(super) const NEW_POLICY: u16 = 0x13;
    pub(super) const GET_POLICY: u16 = 0x15;
    pub(super) const POLICY_EVENTS: u32 = 4;
}

/// Whether packets between two hosts are all alike; else why not, in words.
pub(super) fn alike() -> Result<(), String> {
    netfilter::absent()?;
    let unread = |what: &'static str| move |error| format!("the host's {what} cannot be read: {error}");
    if ask(NETLINK_ROUTE, rule::GET, rule::HEADER, |kind, payload| kind == rule::NEW && tells_apart(payload))
        .map_err(unread("routing rules"))?
    {
        return Err("a rule of the host's routing policy asks for more than addresses".to_owned());
    }
    if ask(NETLINK_XFRM, xfrm::GET_POLICY, 0, |kind, _| kind == xfrm::NEW_POLICY)
        .map_err(unread("IPsec policies"))?
    {
        return Err("the host has IPsec policies".to_owned());
    }
    Ok(())
}

/// Sockets that hear of changes to the answer, besides the packet filter's. A kernel without IPsec has one less.
pub(super) fn events() -> Result<(Socket, Option<Socket>), KernelError> {
    let rules = [MulticastGroup::Ipv4Rule, MulticastGroup::Ipv6Rule].map(|group| group as u32);
    let policies = listen(NETLINK_XFRM, [xfrm::POLICY_EVENTS]).ok();
    Ok((listen(NETLINK_ROUTE, rules)?, policies))
}

/// Whether any message of a dump is such. None is where the kernel has no such thing.
fn ask(
    protocol: isize,
    kind: u16,
    header: usize,
    such: impl Fn(u16, &[u8]) -> bool,
) -> std::io::Result<bool> {
    let mut any = false;
    let asked = dump::open(protocol).and_then(|socket| {
        dump::ask(&socket, &request(kind, header), |kind, payload| any |= such(kind, payload))
    });
    match asked {
        Err(error) if error.raw_os_error() == Some(Errno::EPROTONOSUPPORT as i32) => Ok(false),
        asked => asked.map(|()| any),
    }
}

/// A netlink header, and so many bytes of zeros: of no family in particular.
fn request(kind: u16, header: usize) -> Vec<u8> {
    let mut bytes = vec![0; 16 + header];
    #[expect(clippy::cast_possible_truncation, reason = "a few bytes")]
    let length = bytes.len() as u32;
    let mut buffer = NetlinkBuffer::new(&mut bytes);
    buffer.set_length(length);
    buffer.set_message_type(kind);
    buffer.set_flags(NLM_F_REQUEST | NLM_F_DUMP);
    buffer.set_sequence_number(1);
    bytes
}

/// Whether a rule of the routing policy asks for more than addresses. One that cannot be read may.
fn tells_apart(payload: &[u8]) -> bool {
    let Some(attributes) = payload.get(rule::HEADER..) else { return true };
    NlasIterator::new(attributes)
        .any(|attribute| attribute.map_or(true, |attribute| rule::TELL_APART.contains(&attribute.kind())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy_rule(attributes: &[(u16, u32)]) -> Vec<u8> {
        let mut payload = vec![0; rule::HEADER];
        for (kind, value) in attributes {
            payload.extend(8u16.to_ne_bytes());
            payload.extend(kind.to_ne_bytes());
            payload.extend(value.to_ne_bytes());
        }
        payload
    }

    #[test]
    fn a_rule_that_asks_for_ports_or_marks_tells_packets_apart() {
        let (destination, priority, table, dscp) = (1, 6, 15, 25);
        assert!(!tells_apart(&policy_rule(&[(priority, 32766), (table, 254)])));
        assert!(!tells_apart(&policy_rule(&[(destination, 1), (dscp, 8)])), "the class is known");
        for kind in rule::TELL_APART {
            assert!(tells_apart(&policy_rule(&[(table, 254), (kind, 1)])), "{kind}");
        }
        assert!(
            tells_apart(&[0; 4]) && tells_apart(&[&[0; rule::HEADER][..], &[9, 0]].concat()),
            "cut short"
        );
    }

    #[test]
    fn the_kernel_answers_what_it_is_asked() {
        assert_eq!(ask(NETLINK_ROUTE, rule::GET, rule::HEADER, |kind, _| kind == rule::NEW).ok(), Some(true));
        assert_eq!(ask(NETLINK_XFRM, xfrm::GET_POLICY, 0, |_, _| false).ok(), Some(false));
    }
}
