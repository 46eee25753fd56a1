//! Ping and traceroute over raw ICMP sockets: no process is started, no text of a caller becomes an argument.
//!
//! A probe is a future: who drops it (a caller that has gone away) stops it. It never meets the engine.

mod packet;
mod ping;
mod socket;
mod trace;

use std::{
    fmt, io,
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6},
    time::Duration,
};

use tokio::time::timeout;

pub use self::{
    ping::{PingReport, RoundTrip, ping},
    trace::{Hop, TraceReport, trace},
};

/// A resolver that does not answer must not hold a request to its end.
const RESOLVE: Duration = Duration::from_secs(5);
/// Longest name of a host in bytes (RFC 1035).
const NAME_MAX: usize = 253;

/// An address or a name of a host, fit to be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target(String);

/// Why a text is no target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadTarget {
    #[error("is empty")]
    Empty,
    #[error("has more than {NAME_MAX} bytes")]
    TooLong,
    #[error("is neither an address nor the name of a host")]
    BadCharacter,
}

impl Target {
    pub fn new(text: &str) -> Result<Self, BadTarget> {
        let good =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'%');
        match text.as_bytes() {
            [] => Err(BadTarget::Empty),
            bytes if bytes.len() > NAME_MAX => Err(BadTarget::TooLong),
            [b'-' | b'%', ..] => Err(BadTarget::BadCharacter),
            bytes if bytes.iter().all(|byte| good(*byte)) => Ok(Self(text.to_owned())),
            _ => Err(BadTarget::BadCharacter),
        }
    }

    /// The address to send to; a name is looked up.
    pub async fn resolve(&self) -> Result<SocketAddr, String> {
        if let Some(address) = literal(&self.0) {
            return address;
        }
        let failed = |why: &dyn fmt::Display| format!("{}: the name cannot be resolved: {why}", self.0);
        match timeout(RESOLVE, tokio::net::lookup_host((self.0.as_str(), 0))).await {
            Ok(Ok(mut found)) => found.next().ok_or_else(|| failed(&"it has no address")),
            Ok(Err(error)) => Err(failed(&error)),
            Err(_) => Err(failed(&"no name server answered in time")),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `192.0.2.1`, `2001:db8::1`, `fe80::1%ens3`; `None` for a name.
fn literal(text: &str) -> Option<Result<SocketAddr, String>> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(Ok(SocketAddr::new(address, 0)));
    }
    let (address, scope) = text.split_once('%')?;
    let Ok(address) = address.parse::<Ipv6Addr>() else {
        return Some(Err(format!("{text}: only a link-local IPv6 address has an interface")));
    };
    let index = scope.parse().or_else(|_| nix::net::if_::if_nametoindex(scope));
    Some(match index {
        Ok(index) => Ok(SocketAddrV6::new(address, 0, 0, index).into()),
        Err(_) => Err(format!("{text}: there is no interface {scope}")),
    })
}

/// An error of a socket in words.
fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(errno) => nix::errno::Errno::from_raw(errno).desc().to_owned(),
        None => error.to_string(),
    }
}

fn milliseconds(time: Duration) -> f64 {
    // To the microsecond: what the clock is good for.
    (time.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_names_are_targets_and_options_are_not() {
        for good in ["8.8.8.8", "2001:db8::1", "fe80::1%ens3", "localhost", "_srv.lab.example", "a-b.c."] {
            assert!(Target::new(good).is_ok(), "{good}");
        }
        let long = "a".repeat(NAME_MAX + 1);
        for bad in ["", "-c1", "%x", "a b", "a;reboot", "$(id)", "a\n", "a\0", "é", "http://a/", &long] {
            assert!(Target::new(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn literals_ask_no_name_server() {
        let resolve = |text: &str| {
            let target = Target::new(text).unwrap();
            async move { target.resolve().await }
        };
        assert_eq!(resolve("192.0.2.1").await.unwrap(), "192.0.2.1:0".parse().unwrap());
        assert_eq!(resolve("::1").await.unwrap(), "[::1]:0".parse().unwrap());
        let SocketAddr::V6(scoped) = resolve("fe80::1%lo").await.unwrap() else { panic!("IPv4") };
        assert_eq!(scoped.scope_id(), 1);
        assert!(resolve("fe80::1%no-such-if").await.unwrap_err().contains("no interface"));
        assert!(resolve("192.0.2.1%lo").await.unwrap_err().contains("link-local"));
    }
}
