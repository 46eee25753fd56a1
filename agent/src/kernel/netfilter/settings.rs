//! What the kernel's connection tracking is told and asked through `/proc/sys`, in this network namespace.
//!
//! Connections have counters and a start only when they are asked for, and the kernel gives them only to those that
//! begin after that. It is a setting of the host, so it is changed when the first rule is made and not before, and it
//! stays: others may rely on it by then.

use std::{collections::BTreeMap, fs};

use tracing::{info, warn};

const DIRECTORY: &str = "/proc/sys/net/netfilter";

/// Lets the kernel count what connections carry, and note when they began.
pub(super) fn count() {
    for (name, why) in [
        ("nf_conntrack_acct", "flows will be shown without packets and bytes"),
        ("nf_conntrack_timestamp", "the age of flows will be the time since their last packet"),
    ] {
        let path = format!("{DIRECTORY}/{name}");
        if fs::read_to_string(&path).is_ok_and(|value| value.trim() == "1") {
            continue;
        }
        match fs::write(&path, "1") {
            Ok(()) => info!(setting = name, "switched on: flows are shown with what they carry"),
            Err(error) => warn!(setting = name, %error, "could not be switched on: {why}"),
        }
    }
}

/// Connections that there are, and that fit.
pub(super) fn pressure() -> (u64, u64) {
    let read = |name: &str| number(name).unwrap_or(0);
    (read("nf_conntrack_count"), read("nf_conntrack_max"))
}

fn number(name: &str) -> Option<u64> {
    fs::read_to_string(format!("{DIRECTORY}/{name}")).ok()?.trim().parse().ok()
}

/// How long connections live without a packet, by the kernel's name for the setting.
#[derive(Debug, Clone, Default)]
pub(super) struct Lifetimes(BTreeMap<&'static str, u64>);

/// In the order of the kernel's states (linux/netfilter/nf_conntrack_tcp.h), from 1.
const TCP: [&str; 8] = [
    "nf_conntrack_tcp_timeout_syn_sent",
    "nf_conntrack_tcp_timeout_syn_recv",
    "nf_conntrack_tcp_timeout_established",
    "nf_conntrack_tcp_timeout_fin_wait",
    "nf_conntrack_tcp_timeout_close_wait",
    "nf_conntrack_tcp_timeout_last_ack",
    "nf_conntrack_tcp_timeout_time_wait",
    "nf_conntrack_tcp_timeout_close",
];
const UDP: &str = "nf_conntrack_udp_timeout";
const UDP_STREAM: &str = "nf_conntrack_udp_timeout_stream";
const ICMP: &str = "nf_conntrack_icmp_timeout";
const ICMPV6: &str = "nf_conntrack_icmpv6_timeout";
const GENERIC: &str = "nf_conntrack_generic_timeout";

impl Lifetimes {
    /// As they are now.
    pub(super) fn read() -> Self {
        let names = TCP.into_iter().chain([UDP, UDP_STREAM, ICMP, ICMPV6, GENERIC]);
        Self(names.filter_map(|name| Some((name, number(name)?))).collect())
    }

    /// Seconds that a connection has from its last packet on. `None` where the kernel does not say.
    pub(super) fn of(&self, protocol: u8, tcp_state: Option<u8>, assured: bool) -> Option<u64> {
        let name = match (protocol, tcp_state) {
            (6, Some(state)) => TCP.get(usize::from(state).checked_sub(1)?)?,
            (17, _) if assured => UDP_STREAM,
            (17, _) => UDP,
            (1, _) => ICMP,
            (58, _) => ICMPV6,
            (_, _) => GENERIC,
        };
        self.0.get(name).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_has_the_lifetime_of_its_name() {
        let lifetimes = Lifetimes(BTreeMap::from([(TCP[2], 432_000), (UDP, 30), (UDP_STREAM, 120)]));
        assert_eq!(lifetimes.of(6, Some(3), true), Some(432_000));
        assert_eq!(lifetimes.of(17, None, false), Some(30));
        assert_eq!(lifetimes.of(17, None, true), Some(120));
        assert_eq!(lifetimes.of(6, Some(0), false), None);
        assert_eq!(lifetimes.of(6, Some(9), false), None, "a state that this version does not know");
    }
}
