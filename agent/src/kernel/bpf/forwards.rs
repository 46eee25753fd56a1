//! A port forward as map entries, and back.
//!
//! A port alone is one entry of `forward4`. A range is cut into aligned blocks of powers of two, each a prefix in
//! `range4`: at most 30 for each transport, however long the range is. Networks that a forward is open to are prefixes in
//! `source4`, under the rule's slot; there, too, are the destinations that a masquerade leaves alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use aya::maps::lpm_trie::Key;
use ipnet::IpNet;
use telecluster_common::{
    maps::{Forward, ForwardKey, Range, RangeKey, SourceKey, Timeouts, rule},
    tcp::proto,
};

use super::{
    Plain,
    family::{Entry, Octets},
};
use crate::kernel::dataplane::{NatRule, Slot, Transport};

/// A forward's part of `NatRule::Forward`, in the terms of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Target<A> {
    uplink: u32,
    external: A,
    internal: A,
    /// What the inside port is further up than the one outside.
    shift: u16,
}

/// The entries of a forward, in the order in which they are made: what it is open to before what leads to it.
pub(super) fn entries<A: Octets>(slot: Slot, generation: u32, rule: &NatRule) -> Vec<Entry<A>> {
    let NatRule::Forward {
        uplink,
        external_ip,
        external_port,
        external_port_end,
        internal_ip,
        internal_port,
        transports,
        sources,
        hairpin: _,
        new_flows: _,
        timeouts: _,
    } = rule
    else {
        return Vec::new();
    };
    let Some(internal) = A::from_ip(*internal_ip) else {
        return Vec::new();
    };
    let external = external_ip.and_then(A::from_ip).unwrap_or(A::ANY);
    let single = |transport: &Transport| {
        let key = ForwardKey {
            uplink: *uplink,
            address: external,
            port: *external_port,
            proto: transport.number(),
            unused: 0,
        };
        let value = Forward { address: internal, port: *internal_port, unused: 0, rule: slot.0, generation };
        Entry::Forward(key, value)
    };
    let block = |transport: Transport, first: u16, bits: u32| {
        let port = first.to_be_bytes();
        let key = RangeKey { uplink: *uplink, address: external, proto: transport.number(), unused: 0, port };
        let shift = internal_port.wrapping_sub(*external_port);
        let value = Range { address: internal, shift, unused: 0, rule: slot.0, generation };
        Entry::Range(Key::new(RangeKey::<A>::FIXED + bits, Plain(key)), value)
    };
    let mut entries = networks(slot, generation, sources);
    if external_port == external_port_end {
        entries.extend(transports.iter().map(single));
    } else {
        for transport in transports {
            let blocks = blocks(*external_port..=*external_port_end);
            entries.extend(blocks.into_iter().map(|(first, bits)| block(*transport, first, bits)));
        }
    }
    entries
}

/// The entries of networks that a rule names.
pub(super) fn networks<A: Octets>(slot: Slot, generation: u32, networks: &[IpNet]) -> Vec<Entry<A>> {
    let entry = |net: &IpNet| {
        let key = SourceKey { rule: slot.0, address: A::from_ip(net.network())? };
        Some(Entry::Source(Key::new(u32::BITS + u32::from(net.prefix_len()), Plain(key)), generation))
    };
    networks.iter().filter_map(entry).collect()
}

/// Cuts a range into the fewest aligned powers of two: the first port of each, and how many bits its ports share.
fn blocks(ports: RangeInclusive<u16>) -> Vec<(u16, u32)> {
    let (mut first, end) = (u32::from(*ports.start()), u32::from(*ports.end()) + 1);
    let mut blocks = Vec::new();
    while first < end {
        // As large as the start is aligned, and as the rest allows.
        let size = first.trailing_zeros().min((end - first).ilog2()).min(u16::BITS);
        blocks.push((u16::try_from(first).unwrap_or(u16::MAX), u16::BITS - size));
        first += 1 << size;
    }
    blocks
}

/// The ports of a block.
pub(super) fn ports<A: Octets>(key: &Key<Plain<RangeKey<A>>>) -> RangeInclusive<u16> {
    let free = RangeKey::<A>::WHOLE.saturating_sub(key.prefix_len()).min(u16::BITS);
    let first = u16::from_be_bytes(key.data().0.port);
    let last = u32::from(first) | ((1 << free) - 1);
    first..=u16::try_from(last).unwrap_or(u16::MAX)
}

/// What the maps hold for one slot, gathered entry by entry.
pub(super) struct Parts<A> {
    /// What each transport has, as it comes: two blocks need not be neighbours.
    ports: BTreeMap<Transport, BTreeSet<(u16, u16)>>,
    targets: BTreeSet<Target<A>>,
    sources: BTreeSet<IpNet>,
}

impl<A: Octets> Default for Parts<A> {
    fn default() -> Self {
        Self { ports: BTreeMap::new(), targets: BTreeSet::new(), sources: BTreeSet::new() }
    }
}

impl<A: Octets> Parts<A> {
    pub(super) fn add_single(&mut self, key: ForwardKey<A>, value: Forward<A>) {
        let shift = value.port.wrapping_sub(key.port);
        let target = Target { uplink: key.uplink, external: key.address, internal: value.address, shift };
        self.add(key.proto, (key.port, key.port), target);
    }

    pub(super) fn add_block(&mut self, key: &Key<Plain<RangeKey<A>>>, value: Range<A>) {
        let RangeKey { uplink, address, proto, unused: _, port: _ } = key.data().0;
        let target = Target { uplink, external: address, internal: value.address, shift: value.shift };
        self.add(proto, ports(key).into_inner(), target);
    }

    pub(super) fn add_source(&mut self, key: &Key<Plain<SourceKey<A>>>) {
        let prefix = u8::try_from(key.prefix_len().saturating_sub(u32::BITS)).unwrap_or(u8::MAX);
        self.sources.extend(IpNet::new(key.data().0.address.ip(), prefix));
    }

    /// The networks alone, of a rule that is no forward.
    pub(super) fn into_networks(self) -> Vec<IpNet> {
        self.sources.into_iter().collect()
    }

    fn add(&mut self, protocol: u8, ports: (u16, u16), target: Target<A>) {
        let transport = if protocol == proto::TCP { Transport::Tcp } else { Transport::Udp };
        self.ports.entry(transport).or_default().insert(ports);
        self.targets.insert(target);
    }

    /// The forward, when that is one: all of its transports have the same ports without a gap, and lead to one place.
    pub(super) fn rule(self, flags: u32, new_flows: u32, timeouts: Timeouts) -> Option<NatRule> {
        let mut targets = self.targets.into_iter();
        let (Some(Target { uplink, external, internal, shift }), None) = (targets.next(), targets.next())
        else {
            return None;
        };
        if (flags & rule::SOURCES != 0) == self.sources.is_empty() {
            return None;
        }
        let mut ranges = self.ports.values().map(whole);
        let (first, last) = ranges.next()??;
        if ranges.any(|other| other != Some((first, last))) {
            return None;
        }
        Some(NatRule::Forward {
            uplink,
            external_ip: (external != A::ANY).then(|| external.ip()),
            external_port: first,
            external_port_end: last,
            internal_ip: internal.ip(),
            internal_port: first.wrapping_add(shift),
            transports: self.ports.into_keys().collect(),
            sources: self.sources.into_iter().collect(),
            hairpin: flags & rule::HAIRPIN != 0,
            new_flows,
            timeouts,
        })
    }
}

/// First and last port of blocks without a gap.
fn whole(blocks: &BTreeSet<(u16, u16)>) -> Option<(u16, u16)> {
    let &(first, mut last) = blocks.first()?;
    for (next, end) in blocks.iter().skip(1) {
        if last.checked_add(1) != Some(*next) {
            return None;
        }
        last = *end;
    }
    Some((first, last))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type A4 = [u8; 4];

    fn forward(ports: RangeInclusive<u16>, internal_port: u16, sources: &[&str]) -> NatRule {
        NatRule::Forward {
            uplink: 2,
            external_ip: Some([203, 0, 113, 1].into()),
            external_port: *ports.start(),
            external_port_end: *ports.end(),
            internal_ip: [192, 168, 100, 10].into(),
            internal_port,
            transports: vec![Transport::Tcp, Transport::Udp],
            sources: sources.iter().map(|net| net.parse().unwrap()).collect(),
            hairpin: true,
            new_flows: 100,
            timeouts: Timeouts { udp: 30, ..Timeouts::RFC },
        }
    }

    /// What is put, read back, but for the entries that `lost` picks.
    fn read_back(rule: &NatRule, lost: impl Fn(usize) -> bool) -> Option<NatRule> {
        let mut parts = Parts::<A4>::default();
        for (place, entry) in entries::<A4>(Slot(7), 3, rule).into_iter().enumerate() {
            match entry {
                _ if lost(place) => {}
                Entry::Forward(key, value) => parts.add_single(key, value),
                Entry::Range(key, value) => parts.add_block(&key, value),
                Entry::Source(key, generation) => {
                    assert_eq!(generation, 3);
                    parts.add_source(&key);
                }
                Entry::Masquerade(..) | Entry::Pool(_) => panic!("a forward is no masquerade"),
            }
        }
        parts.rule(rule.flags(), rule.new_flows(), rule.timeouts())
    }

    #[test]
    fn a_port_alone_is_one_entry_for_each_transport() {
        let rule = forward(2222..=2222, 22, &[]);
        assert_eq!(entries::<A4>(Slot(7), 3, &rule).len(), 2);
        assert_eq!(read_back(&rule, |_| false), Some(rule));
    }

    #[test]
    fn a_range_that_lacks_a_block_is_not_taken_for_a_whole_one() {
        let rule = forward(1001..=1998, 1001, &["198.51.100.0/24"]);
        for lost in 0..entries::<A4>(Slot(7), 3, &rule).len() {
            assert_ne!(read_back(&rule, |place| place == lost), Some(rule.clone()), "entry {lost}");
        }
    }

    proptest! {
        #[test]
        fn blocks_are_few_and_cover_each_port_once(start: u16, length: u16) {
            let end = start.saturating_add(length);
            let blocks = blocks(start..=end);
            prop_assert!(blocks.len() <= 30, "{} blocks", blocks.len());
            let mut next = u32::from(start);
            for (first, bits) in blocks {
                prop_assert_eq!(u32::from(first), next);
                let size = 1u32 << (16 - bits);
                prop_assert_eq!(next % size, 0, "not aligned");
                next += size;
            }
            prop_assert_eq!(next, u32::from(end) + 1);
        }

        #[test]
        fn what_is_put_is_read_back(start: u16, length: u16, internal: u16, some: bool) {
            let sources: &[&str] = if some { &["10.0.0.0/8", "198.51.100.7/32"] } else { &[] };
            let rule = forward(start..=start.saturating_add(length), internal, sources);
            prop_assert_eq!(read_back(&rule, |_| false), Some(rule));
        }
    }
}
