//! Has the host a packet filter that forwarded packets must pass?
//!
//! The answer is on the safe side: a base chain at a hook that a forwarded packet passes, with a rule in it or a
//! policy other than accept, is in the way, whatever the rule says. nf_tables tells how many rules a chain has;
//! of the old iptables (`iptables-legacy`) it is known only which tables are loaded, and any is in the way. What Docker
//! writes is the exception: its rules are read, see [`super::docker`].

use std::fs;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NlaBuffer, NlasIterator};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use super::docker;
use crate::kernel::dump;

/// Tables of iptables-legacy that are loaded in this network namespace, a name a line.
const LEGACY: [&str; 2] = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"];

/// Whether connection tracking lets TCP connections go on of which it has missed packets.
const LIBERAL: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";

/// linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
mod nft {
    pub(super) const SUBSYSTEM: u16 = 10;
    pub(super) const NEW_CHAIN: u16 = 3;
    pub(super) const GET_CHAIN: u16 = 4;
    pub(super) const NEW_RULE: u16 = 6;
    pub(super) const GET_RULE: u16 = 7;
    pub(super) const CHAIN_TABLE: u16 = 1;
    pub(super) const CHAIN_NAME: u16 = 3;
    pub(super) const CHAIN_HOOK: u16 = 4;
    pub(super) const CHAIN_POLICY: u16 = 5;
    pub(super) const CHAIN_USE: u16 = 6;
    pub(super) const CHAIN_TYPE: u16 = 7;
    pub(super) const HOOK_NUMBER: u16 = 1;
}

/// linux/netfilter.h
pub(super) mod hook {
    pub(in super::super) const PREROUTING: u32 = 0;
    pub(in super::super) const FORWARD: u32 = 2;
    pub(in super::super) const POSTROUTING: u32 = 4;
    pub(in super::super) const ACCEPT: u32 = 1;
}

/// linux/netfilter.h NFPROTO_*
pub(super) mod family {
    pub(in super::super) const INET: u8 = 1;
    pub(in super::super) const IPV4: u8 = 2;
    pub(in super::super) const NETDEV: u8 = 5;
    pub(in super::super) const BRIDGE: u8 = 7;
    pub(in super::super) const IPV6: u8 = 10;
}

/// What of a chain decides whether it may be passed by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) family: u8,
    pub(super) table: String,
    pub(super) name: String,
    /// `filter`, `nat`, `route`.
    pub(super) kind: String,
    /// `None`: no base chain, only others jump to it.
    pub(super) hook: Option<u32>,
    pub(super) policy: Option<u32>,
    /// Rules in it, and jumps to it.
    pub(super) uses: u32,
}

/// Whether flows under way may pass by the host's rules; else which may not be passed by, in words.
pub(super) fn clear() -> Result<(), String> {
    let chains = readable_chains()?;
    let Some(first) = chains.iter().find(|chain| in_the_way(chain)) else { return Ok(()) };
    if !docker::is_here(&chains) {
        return Err(has_rules(first));
    }
    let rules = list(nft::GET_RULE, nft::NEW_RULE, docker::rule).map_err(|error| unread(&error))?;
    let liberal = fs::read_to_string(LIBERAL).is_ok_and(|value| value.trim() == "1");
    let mut passed = chains.iter().filter(|chain| in_the_way(chain));
    passed.find_map(|chain| docker::obstacle(chain, &rules, liberal)).map_or(Ok(()), Err)
}

/// Whether forwarded packets meet no rule of the host; else which, in words.
pub(super) fn absent() -> Result<(), String> {
    readable_chains()?.iter().find(|chain| in_the_way(chain)).map_or(Ok(()), |chain| Err(has_rules(chain)))
}

/// Every chain, where there are none that cannot be read.
fn readable_chains() -> Result<Vec<Chain>, String> {
    for path in LEGACY {
        // Absent: this kernel has no such thing.
        if let Some(table) = fs::read_to_string(path).unwrap_or_default().lines().next() {
            return Err(format!("the table {table} of iptables-legacy is loaded"));
        }
    }
    chains().map_err(|error| unread(&error))
}

fn unread(error: &std::io::Error) -> String {
    format!("the host's nftables rules cannot be read: {error}")
}

fn has_rules(chain: &Chain) -> String {
    format!("chain {} of the host's nftables table {} has rules", chain.name, chain.table)
}

/// Whether any chain of nf_tables bears such a name. One that cannot be read may.
pub(in crate::kernel) fn has_chain(such: impl Fn(&str) -> bool) -> bool {
    chains().map_or(true, |chains| chains.iter().any(|chain| such(&chain.name)))
}

fn in_the_way(chain: &Chain) -> bool {
    let Some(hook) = chain.hook else { return false };
    let passed = match chain.family {
        family::INET | family::IPV4 | family::IPV6 => {
            matches!(hook, hook::PREROUTING | hook::FORWARD | hook::POSTROUTING)
        }
        family::BRIDGE | family::NETDEV => true,
        _ => false,
    };
    passed && (chain.uses > 0 || chain.policy.is_some_and(|policy| policy != hook::ACCEPT))
}

/// Every chain of every family. None where the kernel has no nf_tables.
fn chains() -> std::io::Result<Vec<Chain>> {
    list(nft::GET_CHAIN, nft::NEW_CHAIN, chain)
}

/// Everything of a kind, of every family. One that cannot be read is an error: it might be in the way.
fn list<T>(get: u16, new: u16, read: impl Fn(&[u8]) -> Option<T>) -> std::io::Result<Vec<T>> {
    let mut found = Vec::new();
    let mut unread = false;
    let asked = dump::ask(&dump::open(NETLINK_NETFILTER)?, &request(get), |kind, payload| {
        if kind == (nft::SUBSYSTEM << 8 | new) {
            let one = read(payload);
            unread |= one.is_none();
            found.extend(one);
        }
    });
    let errno = |error: &std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or_default());
    match asked.as_ref().map_err(errno) {
        Err(Errno::EOPNOTSUPP | Errno::EINVAL | Errno::EPROTONOSUPPORT) => Ok(Vec::new()),
        Ok(()) if unread => Err(Errno::EBADMSG.into()),
        _ => asked.map(|()| found),
    }
}

/// A netlink header and a `struct nfgenmsg` of no family in particular.
fn request(kind: u16) -> [u8; 20] {
    let mut bytes = [0; 20];
    let mut buffer = NetlinkBuffer::new(&mut bytes);
    buffer.set_length(20);
    buffer.set_message_type(nft::SUBSYSTEM << 8 | kind);
    buffer.set_flags(NLM_F_REQUEST | NLM_F_DUMP);
    buffer.set_sequence_number(1);
    bytes
}

/// One message, after its netlink header; `None` when it is cut short.
fn chain(payload: &[u8]) -> Option<Chain> {
    let mut chain = Chain { family: *payload.first()?, ..Chain::default() };
    for attribute in NlasIterator::new(payload.get(4..)?) {
        let attribute = attribute.ok()?;
        match attribute.kind() {
            nft::CHAIN_TABLE => chain.table = text(&attribute),
            nft::CHAIN_NAME => chain.name = text(&attribute),
            nft::CHAIN_TYPE => chain.kind = text(&attribute),
            nft::CHAIN_POLICY => chain.policy = number(&attribute),
            nft::CHAIN_USE => chain.uses = number(&attribute)?,
            nft::CHAIN_HOOK => {
                let hooks = NlasIterator::new(attribute.value()).filter_map(Result::ok);
                chain.hook =
                    hooks.filter(|hook| hook.kind() == nft::HOOK_NUMBER).find_map(|hook| number(&hook));
            }
            _ => {}
        }
    }
    Some(chain)
}

pub(super) fn text(attribute: &NlaBuffer<&[u8]>) -> String {
    String::from_utf8_lossy(attribute.value()).trim_end_matches('\0').to_owned()
}

pub(super) fn number(attribute: &NlaBuffer<&[u8]>) -> Option<u32> {
    attribute.value().first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_with_rules_where_forwarded_packets_pass_is_in_the_way() {
        let forward = Chain { family: family::INET, hook: Some(hook::FORWARD), uses: 1, ..Chain::default() };
        assert!(in_the_way(&forward));
        assert!(!in_the_way(&Chain { uses: 0, ..forward.clone() }), "an empty chain");
        assert!(!in_the_way(&Chain { uses: 0, policy: Some(hook::ACCEPT), ..forward.clone() }));
        assert!(in_the_way(&Chain { uses: 0, policy: Some(0), ..forward.clone() }), "policy drop");
        assert!(!in_the_way(&Chain { hook: Some(1), ..forward.clone() }), "input: for the host only");
        assert!(!in_the_way(&Chain { hook: None, ..forward.clone() }), "nothing leads there but a jump");
        assert!(in_the_way(&Chain { family: family::BRIDGE, hook: Some(1), ..forward.clone() }));
        assert!(!in_the_way(&Chain { family: 3, ..forward }), "ARP");
    }

    /// As the kernel sent it for `table inet t { chain c { type filter hook forward priority 0; accept; } }`.
    #[test]
    fn a_chain_is_read_from_its_message() {
        let mut payload = vec![family::INET, 0, 0, 1];
        payload.extend(attribute(nft::CHAIN_TABLE, b"t\0"));
        payload.extend(attribute(2, &7u64.to_be_bytes()));
        payload.extend(attribute(nft::CHAIN_NAME, b"c\0"));
        let mut hook = attribute(nft::HOOK_NUMBER, &hook::FORWARD.to_be_bytes());
        hook.extend(attribute(2, &0u32.to_be_bytes()));
        payload.extend(attribute(nft::CHAIN_HOOK | 0x8000, &hook));
        payload.extend(attribute(nft::CHAIN_POLICY, &hook::ACCEPT.to_be_bytes()));
        payload.extend(attribute(nft::CHAIN_USE, &1u32.to_be_bytes()));
        let expected = Chain {
            family: family::INET,
            table: "t".to_owned(),
            name: "c".to_owned(),
            kind: String::new(),
            hook: Some(hook::FORWARD),
            policy: Some(hook::ACCEPT),
            uses: 1,
        };
        assert_eq!(chain(&payload), Some(expected));
        for length in 0..payload.len() {
            // Nothing that is cut short is read past its end.
            let _ = chain(payload.get(..length).unwrap_or_default());
        }
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }
}
