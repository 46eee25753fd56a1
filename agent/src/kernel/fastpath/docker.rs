//! Docker's rules, which are on many hosts: may packets of a flow under way pass them by?
//!
//! A flow becomes fast only when its packets have come out of every rule, and has to again after any change of the
//! rules. So a rule that decides the same about every packet of a flow need not see them all: a flow that it drops is
//! never learned, and one that it lets pass it would let pass again. Rules by interfaces, addresses, ports and an
//! established connection are such; those by rate, time, chance or mark are not.
//!
//! Every other ruleset keeps all packets on the kernel's way because somebody may want to see what its rules count. In
//! the chains that Docker writes nobody does: `FORWARD` of the table `filter`, its own, and those of its table `nat`,
//! which see the first packet of a connection and no other. What is written there by others is taken by the same measure.

use netlink_packet_core::{NlaBuffer, NlasIterator};

use super::netfilter::{Chain, family, hook, number, text};

/// linux/netfilter/nf_tables.h
mod nft {
    pub(super) const RULE_TABLE: u16 = 1;
    pub(super) const RULE_CHAIN: u16 = 2;
    pub(super) const RULE_EXPRESSIONS: u16 = 4;
    pub(super) const NAME: u16 = 1;
    pub(super) const DATA: u16 = 2;
    pub(super) const IMMEDIATE_DATA: u16 = 2;
    pub(super) const DATA_VERDICT: u16 = 2;
    pub(super) const VERDICT_CODE: u16 = 1;
    pub(super) const VERDICT_CHAIN: u16 = 2;
    /// Of `meta` and `payload`: where to, and which, or from which header.
    pub(super) const TO_REGISTER: u16 = 1;
    pub(super) const KEY: u16 = 2;
    pub(super) const PAYLOAD_OFFSET: u16 = 3;
    pub(super) const PAYLOAD_LENGTH: u16 = 4;
    pub(super) const MATCH_INFO: u16 = 3;
    /// Keys of `meta`: interfaces by index and by name, protocols.
    pub(super) const META: [u32; 6] = [4, 5, 6, 7, 15, 16];
    pub(super) const NETWORK: u32 = 1;
    pub(super) const TRANSPORT: u32 = 2;
    pub(super) const DROP: u32 = 0;
    pub(super) const ACCEPT: u32 = 1;
    pub(super) const JUMP: u32 = (-3i32).cast_unsigned();
    pub(super) const GOTO: u32 = (-4i32).cast_unsigned();
    pub(super) const RETURN: u32 = (-5i32).cast_unsigned();
}

/// A rule, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    family: u8,
    table: String,
    chain: String,
    /// `None`: something in it is not known here.
    sense: Option<Sense>,
}

/// What a rule says, when it says the same to every packet of a flow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Sense {
    /// It matches packets of connections that connection tracking calls established.
    established: bool,
    verdict: Verdict,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Verdict {
    /// It only counts.
    #[default]
    Continue,
    Accept,
    Drop,
    Return,
    /// To another chain.
    Chain(String),
}

/// Whether this chain is one that Docker makes and its daemon's users write to.
fn is_dockers(name: &str) -> bool {
    name == "DOCKER" || name.starts_with("DOCKER-")
}

/// Whether Docker has written rules on this host.
pub(super) fn is_here(chains: &[Chain]) -> bool {
    chains.iter().any(|chain| chain.table == "filter" && chain.name == "DOCKER-USER")
}

/// Why a base chain cannot be passed by, if it cannot. `liberal`: connection tracking does not hold it against a TCP
/// connection that it has missed some of its packets.
pub(super) fn obstacle(base: &Chain, rules: &[Rule], liberal: bool) -> Option<String> {
    let other = || Some(format!("chain {} of the host's nftables table {} has rules", base.name, base.table));
    if !matches!(base.family, family::IPV4 | family::IPV6) {
        return other();
    }
    if base.kind == "nat" && base.table == "nat" {
        return None;
    }
    let place = (base.table.as_str(), base.name.as_str(), base.hook);
    let known = [("filter", "FORWARD", Some(hook::FORWARD)), ("raw", "PREROUTING", Some(hook::PREROUTING))];
    if !known.contains(&place) {
        return other();
    }
    let mut reached = vec![base.name.as_str()];
    let mut next = 0;
    while let Some(chain) = reached.get(next).copied() {
        next += 1;
        let of_chain = |rule: &&Rule| {
            (rule.family, rule.table.as_str(), rule.chain.as_str()) == (base.family, &base.table, chain)
        };
        for rule in rules.iter().filter(of_chain) {
            let unknown = || {
                format!(
                    "chain {chain} of the host's table {} has a rule that must see every packet",
                    base.table
                )
            };
            let Some(sense) = &rule.sense else { return Some(unknown()) };
            if sense.established && !liberal {
                return Some(format!(
                    "chain {chain} of the host's table {} asks for established connections, and \
                     net.netfilter.nf_conntrack_tcp_be_liberal is not 1",
                    base.table
                ));
            }
            match &sense.verdict {
                // A flow begins with a packet that is new, so only this way round is it sure that the others pass too.
                Verdict::Drop | Verdict::Return | Verdict::Chain(_) if sense.established => {
                    return Some(unknown());
                }
                Verdict::Continue | Verdict::Accept | Verdict::Drop | Verdict::Return => {}
                Verdict::Chain(name) if !is_dockers(name) => {
                    return Some(format!("chain {name} of the host's table {} has rules", base.table));
                }
                Verdict::Chain(name) if reached.contains(&name.as_str()) => {}
                Verdict::Chain(name) => reached.push(name),
            }
        }
    }
    None
}

/// One message, after its netlink header; `None` when it is cut short.
pub(super) fn rule(payload: &[u8]) -> Option<Rule> {
    let mut rule = Rule {
        family: *payload.first()?,
        table: String::new(),
        chain: String::new(),
        sense: Some(Sense::default()),
    };
    for attribute in NlasIterator::new(payload.get(4..)?) {
        let attribute = attribute.ok()?;
        match attribute.kind() {
            nft::RULE_TABLE => rule.table = text(&attribute),
            nft::RULE_CHAIN => rule.chain = text(&attribute),
            nft::RULE_EXPRESSIONS => rule.sense = sense(attribute.value(), rule.family),
            _ => {}
        }
    }
    Some(rule)
}

fn sense(expressions: &[u8], family: u8) -> Option<Sense> {
    let mut sense = Sense::default();
    for expression in NlasIterator::new(expressions) {
        let expression = expression.ok()?;
        let name = text(&within(expression.value(), nft::NAME)?);
        let data = within(expression.value(), nft::DATA);
        let data = data.as_ref().map_or(&[][..], NlaBuffer::value);
        match name.as_str() {
            // What was loaded is compared; a counter is iptables' own, each rule has one.
            "cmp" | "bitwise" | "range" | "counter" => {}
            "immediate" => sense.verdict = verdict(data)?,
            "meta" if nft::META.contains(&key(data)?) && within(data, nft::TO_REGISTER).is_some() => {}
            "payload" if is_constant(data, family)? => {}
            // struct xt_udp: ports. struct xt_tcp: ports, then an option and flags, which not every segment has.
            "match" => {
                match (text(&within(data, nft::NAME)?).as_str(), within(data, nft::MATCH_INFO)?.value()) {
                    ("udp", _) => {}
                    ("tcp", info) if info.get(8..11)? == [0; 3] => {}
                    ("conntrack", info) if is_established(info)? => sense.established = true,
                    _ => return None,
                }
            }
            _ => return None,
        }
    }
    Some(sense)
}

fn verdict(immediate: &[u8]) -> Option<Verdict> {
    let data = within(immediate, nft::IMMEDIATE_DATA)?;
    let verdict = within(data.value(), nft::DATA_VERDICT)?;
    match number(&within(verdict.value(), nft::VERDICT_CODE)?)? {
        nft::ACCEPT => Some(Verdict::Accept),
        nft::DROP => Some(Verdict::Drop),
        nft::RETURN => Some(Verdict::Return),
        nft::JUMP | nft::GOTO => Some(Verdict::Chain(text(&within(verdict.value(), nft::VERDICT_CHAIN)?))),
        _ => None,
    }
}

/// Whether what is loaded of the packet is the same in all of a flow: protocol, addresses, ports.
fn is_constant(payload: &[u8], family: u8) -> Option<bool> {
    let number = |kind| number(&within(payload, kind)?);
    let (offset, length) = (number(nft::PAYLOAD_OFFSET)?, number(nft::PAYLOAD_LENGTH)?);
    let (protocol, addresses) = if family == family::IPV4 { (9, 12..=20) } else { (6, 8..=40) };
    let end = offset.checked_add(length)?;
    Some(match key(payload)? {
        // Nothing is loaded: it writes.
        _ if within(payload, nft::TO_REGISTER).is_none() => false,
        nft::NETWORK => {
            (offset, length) == (protocol, 1) || (addresses.contains(&offset) && addresses.contains(&end))
        }
        nft::TRANSPORT => end <= 4,
        _ => false,
    })
}

/// struct xt_conntrack_mtinfo3: nothing is asked but the state, and established is among what is wanted.
fn is_established(info: &[u8]) -> Option<bool> {
    // linux/netfilter/xt_conntrack.h XT_CONNTRACK_STATE, XT_CONNTRACK_STATE_BIT(IP_CT_ESTABLISHED)
    const STATE: u16 = 1;
    const ESTABLISHED: u16 = 2;
    let half = |at: usize| Some(u16::from_ne_bytes(*info.get(at..)?.first_chunk()?));
    Some(half(146)? == STATE && half(148)? == 0 && half(150)? & ESTABLISHED != 0)
}

fn key(data: &[u8]) -> Option<u32> {
    number(&within(data, nft::KEY)?)
}

fn within(attributes: &[u8], kind: u16) -> Option<NlaBuffer<&[u8]>> {
    NlasIterator::new(attributes).filter_map(Result::ok).find(|attribute| attribute.kind() == kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(chain: &str, verdict: Verdict) -> Rule {
        let sense = Some(Sense { established: false, verdict });
        Rule { family: family::IPV4, table: "filter".to_owned(), chain: chain.to_owned(), sense }
    }

    fn jump(from: &str, to: &str) -> Rule {
        says(from, Verdict::Chain(to.to_owned()))
    }

    fn forward() -> Chain {
        Chain {
            family: family::IPV4,
            table: "filter".to_owned(),
            name: "FORWARD".to_owned(),
            kind: "filter".to_owned(),
            hook: Some(hook::FORWARD),
            policy: Some(0),
            uses: 3,
        }
    }

    fn dockers() -> Vec<Rule> {
        vec![
            jump("FORWARD", "DOCKER-USER"),
            jump("FORWARD", "DOCKER-FORWARD"),
            jump("DOCKER-FORWARD", "DOCKER-CT"),
            jump("DOCKER-FORWARD", "DOCKER-BRIDGE"),
            jump("DOCKER-BRIDGE", "DOCKER"),
            says("DOCKER", Verdict::Drop),
            says("DOCKER-FORWARD", Verdict::Accept),
        ]
    }

    #[test]
    fn dockers_own_chains_are_no_obstacle_whatever_their_policy() {
        assert_eq!(obstacle(&forward(), &dockers(), false), None);
        let circle = [jump("FORWARD", "DOCKER"), jump("DOCKER", "FORWARD"), jump("DOCKER", "DOCKER")];
        assert!(obstacle(&forward(), &circle, false).is_some(), "it ends");
    }

    #[test]
    fn a_rule_that_is_not_understood_is_one_wherever_it_is_reached() {
        for chain in ["FORWARD", "DOCKER-USER", "DOCKER"] {
            let mut rules = dockers();
            rules.push(Rule { sense: None, ..says(chain, Verdict::Drop) });
            let why = obstacle(&forward(), &rules, true).expect("a reason");
            assert!(why.contains(chain) && why.contains("must see"), "{why}");
        }
        let mut rules = dockers();
        rules.push(Rule { sense: None, ..says("ELSEWHERE", Verdict::Drop) });
        rules.push(Rule { sense: None, family: family::IPV6, ..says("DOCKER", Verdict::Drop) });
        assert_eq!(obstacle(&forward(), &rules, true), None, "nothing leads there");
    }

    #[test]
    fn a_chain_of_somebody_else_is_one() {
        let mut rules = dockers();
        rules.push(jump("DOCKER-USER", "THEIRS"));
        assert!(obstacle(&forward(), &rules, true).expect("a reason").contains("THEIRS"));
        let mangle = Chain { table: "mangle".to_owned(), ..forward() };
        assert!(obstacle(&mangle, &dockers(), true).is_some());
        let inet = Chain { family: family::INET, ..forward() };
        assert!(obstacle(&inet, &dockers(), true).is_some());
    }

    #[test]
    fn established_connections_are_accepted_where_missing_packets_are_forgiven() {
        let established = |verdict| {
            let sense = Some(Sense { established: true, verdict });
            [dockers(), vec![Rule { sense, ..says("DOCKER-CT", Verdict::Accept) }]].concat()
        };
        assert_eq!(obstacle(&forward(), &established(Verdict::Accept), true), None);
        let why = obstacle(&forward(), &established(Verdict::Accept), false).expect("a reason");
        assert!(why.contains("nf_conntrack_tcp_be_liberal"), "{why}");
        assert!(obstacle(&forward(), &established(Verdict::Drop), true).is_some());
    }

    #[test]
    fn what_is_no_message_of_a_rule_is_not_read_past_its_end() {
        let message =
            [&[2, 0, 0, 0][..], &[8, 0, 1, 0, b'a', 0, 0, 0], &[12, 0, 4, 0, 9, 0, 1, 0, 0, 0, 0, 0]]
                .concat();
        for length in 0..message.len() {
            let read = rule(message.get(..length).unwrap_or_default());
            assert!(read.is_none_or(|rule| rule.sense.is_none_or(|sense| sense == Sense::default())));
        }
    }
}
