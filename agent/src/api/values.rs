//! What the values of request fields look like: one pure function per kind of value.
//!
//! Lenient where nothing can be misunderstood (`"2222"` for a number, as query parameters have it), strict
//! where a guess would open more than was asked for.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use serde_json::Value;
use telecluster_common::maps::Timeouts;

use super::fields::Fault;
use crate::model::{FlowTimeouts, LinkName, NameError, NamespaceName};

type Read<T> = Result<T, Fault>;

/// Longest description of a rule, in characters.
pub const DESCRIPTION_MAX: usize = 256;

/// More flows in a second than anybody means.
pub const MAX_NEW_FLOWS: i128 = 1_000_000;

/// Any text.
pub fn text(value: &Value) -> Read<String> {
    as_text(value).map(str::to_owned)
}

/// A text for people: one line of bounded length.
pub fn description(value: &Value) -> Read<String> {
    let text = as_text(value)?;
    if text.chars().any(char::is_control) {
        return Err(Fault::Value("contains a control character".into()));
    }
    match text.chars().count() {
        0..=DESCRIPTION_MAX => Ok(text.to_owned()),
        count => Err(Fault::Value(format!("has {count} characters, the most is {DESCRIPTION_MAX}"))),
    }
}

/// `true` and `false`, and what people write for them.
pub fn boolean(value: &Value) -> Read<bool> {
    let word = match value {
        Value::Bool(answer) => return Ok(*answer),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.to_ascii_lowercase(),
        Value::Null | Value::Array(_) | Value::Object(_) => String::new(),
    };
    match word.as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err(Fault::Type(format!("is {}, not true or false", shown(value)))),
    }
}

/// A whole number within bounds, also as text.
pub fn integer<T: TryFrom<i128>>(least: i128, most: i128) -> impl Fn(&Value) -> Read<T> {
    move |value| {
        let number = match value {
            Value::Number(number) => whole(&number.to_string()),
            Value::String(text) => whole(text.trim()),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        };
        let Some(number) = number else {
            return Err(Fault::Type(format!("is {}, not a whole number", shown(value))));
        };
        let out_of_range = || Fault::Value(format!("is {number}, must be {least} to {most}"));
        if number < least || number > most {
            return Err(out_of_range());
        }
        T::try_from(number).map_err(|_| out_of_range())
    }
}

/// How long flows may be idle: an object with any of its fields, or the same as text.
pub fn timeouts(value: &Value) -> Read<FlowTimeouts> {
    let parsed: Value;
    let object = match value {
        Value::Object(object) => Some(object),
        Value::String(text) => {
            parsed = serde_json::from_str(text).unwrap_or_default();
            parsed.as_object()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => None,
    };
    let Some(object) = object else {
        return Err(Fault::Type(format!("is {}, not an object of seconds", shown(value))));
    };
    let mut timeouts = FlowTimeouts::default();
    for (name, value) in object {
        let field = match name.as_str() {
            "tcp_established" => &mut timeouts.tcp_established,
            "tcp_transitory" => &mut timeouts.tcp_transitory,
            "tcp_opening" => timeouts.tcp_opening.insert(0),
            "udp" => &mut timeouts.udp,
            "icmp" => &mut timeouts.icmp,
            other => {
                let known = "tcp_established, tcp_transitory, tcp_opening, udp, icmp";
                return Err(Fault::Value(format!("has no {}; it may have {known}", shown(&other.into()))));
            }
        };
        let seconds = integer(FlowTimeouts::LEAST.into(), FlowTimeouts::MOST.into())(value);
        *field = seconds.map_err(|fault| match fault {
            Fault::Type(why) => Fault::Type(format!("{name} {why}")),
            Fault::Value(why) => Fault::Value(format!("{name} {why}")),
            Fault::Unsupported(why) => Fault::Unsupported(format!("{name} {why}")),
        })?;
    }
    // Of two equal ones the second says nothing.
    Ok(Timeouts::from(timeouts).into())
}

/// A port of TCP or UDP; 0 is none.
pub fn port(value: &Value) -> Read<u16> {
    integer(1, u16::MAX.into())(value)
}

/// The kernel's bounds for an IPv4 link: RFC 791's least, and the largest IP packet.
pub fn mtu(value: &Value) -> Read<u32> {
    integer(68, 65_535)(value)
}

/// An interface name that is safe to create and to hand on.
pub fn link_name(value: &Value) -> Read<LinkName> {
    LinkName::new(as_text(value)?).map_err(|why| bad_name(&why))
}

/// The name of a network namespace.
pub fn namespace_name(value: &Value) -> Read<NamespaceName> {
    NamespaceName::new(as_text(value)?).map_err(|why| bad_name(&why))
}

/// A user by name or number.
pub fn user(value: &Value) -> Read<u32> {
    identity(value, "user", crate::users::user_id)
}

/// A group by name or number.
pub fn group(value: &Value) -> Read<u32> {
    identity(value, "group", crate::users::group_id)
}

fn identity(value: &Value, what: &str, look_up: impl Fn(&str) -> Option<u32>) -> Read<u32> {
    let name = match value {
        // The highest number means nobody in particular.
        Value::Number(_) => return integer(0, i128::from(u32::MAX) - 1)(value),
        Value::String(text) if text.bytes().all(|digit| digit.is_ascii_digit()) && !text.is_empty() => {
            return integer(0, i128::from(u32::MAX) - 1)(value);
        }
        _ => as_text(value)?,
    };
    // No name is longer (LOGIN_NAME_MAX), and a zero byte would end it early.
    let plausible = (1..=256).contains(&name.len()) && !name.contains('\0');
    let id = if plausible { look_up(name) } else { None };
    id.ok_or_else(|| Fault::Value(format!("is {}, and this host has no such {what}", shown(value))))
}

/// A VLAN id; 0 and 4095 are reserved (IEEE 802.1Q).
pub fn vlan_id(value: &Value) -> Read<u16> {
    integer(1, 4094)(value)
}

/// An address of either family, with or without a prefix length.
pub fn address(value: &Value) -> Read<(IpAddr, Option<u8>)> {
    let text = as_text(value)?;
    let address = match text.parse::<IpAddr>() {
        Ok(ip) => (ip, None),
        Err(_) => match text.parse::<IpNet>() {
            Ok(net) => (net.addr(), Some(net.prefix_len())),
            Err(_) => {
                return Err(Fault::Value(format!("is {}, not an address like 10.0.0.1", shown(value))));
            }
        },
    };
    if address.0.is_unspecified() || address.0.is_multicast() {
        return Err(Fault::Value(format!("is {}, not an address of an interface", address.0)));
    }
    Ok(address)
}

/// A prefix length: `24`, `"24"`, `"/24"`, `"255.255.255.0"`.
pub fn netmask(value: &Value) -> Read<u8> {
    let Value::String(text) = value else { return integer(0, 128)(value) };
    if let Ok(mask) = text.parse::<IpAddr>() {
        return ipnet::ip_mask_to_prefix(mask)
            .map_err(|_| Fault::Value(format!("is {}, whose bits are not in a row", shown(value))));
    }
    integer(0, 128)(&Value::String(text.trim_start_matches('/').to_owned()))
}

/// Any address of either family.
pub fn ip(value: &Value) -> Read<IpAddr> {
    as_text(value)?.parse().map_err(|_| Fault::Value(format!("is {}, not an IP address", shown(value))))
}

/// An address that one other host can have, and that routers carry.
pub fn host_ip(value: &Value) -> Read<IpAddr> {
    let address = ip(value)?;
    let zero_network = matches!(address, IpAddr::V4(ip) if ip.octets()[0] == 0);
    let reserved = matches!(address, IpAddr::V4(ip) if ip.octets()[0] >= 240);
    let link_local = matches!(address, IpAddr::V6(ip) if ip.is_unicast_link_local());
    let mapped = matches!(address, IpAddr::V6(ip) if is_mapped(ip));
    let what = if address.is_unspecified() || zero_network {
        "no host's address"
    } else if address.is_loopback() {
        "a loopback address, which no packet from outside may reach"
    } else if address.is_multicast() {
        "a multicast address"
    } else if reserved {
        "a broadcast or reserved address"
    } else if link_local {
        "a link-local address, which no router carries"
    } else if mapped {
        "an IPv4 address in IPv6's clothes; write it as IPv4"
    } else {
        return Ok(address);
    };
    Err(Fault::Value(format!("is {address}, {what}")))
}

/// `::ffff:192.0.2.1`, which never appears on a wire.
fn is_mapped(ip: Ipv6Addr) -> bool {
    ip.to_ipv4_mapped().is_some()
}

/// A network of hosts; host bits are cleared, an address alone is a network of one.
pub fn host_network(value: &Value) -> Read<IpNet> {
    let network = network(value)?.trunc();
    let first = network.network();
    let link_local = matches!(first, IpAddr::V6(ip) if ip.is_unicast_link_local() || is_mapped(ip));
    if first.is_multicast() || first.is_loopback() || link_local {
        return Err(Fault::Value(format!("is {network}, whose packets no uplink carries")));
    }
    Ok(network)
}

/// An address with its prefix length, either family: what an interface gets.
pub fn interface_address(value: &Value) -> Read<IpNet> {
    let address = network(value)?;
    if address.addr().is_unspecified() || address.addr().is_multicast() {
        return Err(Fault::Value(format!("is {address}, not an address of an interface")));
    }
    Ok(address)
}

/// One word of a few, in any case.
pub fn choice<T: Copy>(words: &'static [(&'static str, T)]) -> impl Fn(&Value) -> Read<T> {
    move |value| {
        let word = as_text(value)?;
        let found = words.iter().find(|(known, _)| known.eq_ignore_ascii_case(word));
        found.map(|(_, meaning)| *meaning).ok_or_else(|| {
            let known = words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
            Fault::Value(format!("is {}, must be one of: {known}", shown(value)))
        })
    }
}

/// A list; as query parameter separated by commas.
pub fn list<T>(item: impl Fn(&Value) -> Read<T>) -> impl Fn(&Value) -> Read<Vec<T>> {
    move |value| match value {
        Value::Array(items) => items.iter().map(&item).collect(),
        Value::String(text) => (text.split(',').map(str::trim))
            .filter(|text| !text.is_empty())
            .map(|text| item(&Value::String(text.to_owned())))
            .collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
            Err(Fault::Type(format!("is {}, not a list", shown(value))))
        }
    }
}

fn as_text(value: &Value) -> Read<&str> {
    value.as_str().ok_or_else(|| Fault::Type(format!("is {}, not a text", shown(value))))
}

/// A network of either family, or an address alone.
pub fn network(value: &Value) -> Read<IpNet> {
    let text = as_text(value)?;
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| Fault::Value(format!("is {}, not a network like 192.168.100.0/24", shown(value))))
}

fn bad_name(why: &NameError) -> Fault {
    Fault::Value(format!("the name {why}"))
}

/// `2222`, `-1`, `2222.0`: a number without a fraction.
fn whole(text: &str) -> Option<i128> {
    let digits = text.split_once('.').map_or(text, |(digits, fraction)| {
        if !fraction.is_empty() && fraction.bytes().all(|digit| digit == b'0') { digits } else { "" }
    });
    digits.parse().ok()
}

/// The value in a message: short, on one line.
fn shown(value: &Value) -> String {
    const MAX: usize = 60;
    let text = match value {
        Value::Array(_) => return "a list".into(),
        Value::Object(_) => return "an object".into(),
        Value::String(text) => format!("{text:?}"),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    };
    if text.chars().count() <= MAX { text } else { text.chars().take(MAX).chain("...".chars()).collect() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_port_is_1_to_65535_as_number_or_text() {
        for good in [json!(1), json!(65_535), json!("2222"), json!(2222.0)] {
            assert!(port(&good).is_ok(), "{good}");
        }
        for bad in [json!(0), json!(65_536), json!(-1), json!("0"), json!(1e30)] {
            assert!(matches!(port(&bad), Err(Fault::Value(_) | Fault::Type(_))), "{bad}");
        }
        for bad in [
            json!(1.5),
            json!("ssh"),
            json!(""),
            json!(true),
            json!([1]),
            json!({}),
            json!("1."),
            json!("0x16"),
        ] {
            assert!(matches!(port(&bad), Err(Fault::Type(_))), "{bad}");
        }
    }

    #[test]
    fn a_boolean_may_be_a_word() {
        for (value, answer) in
            [(json!(true), true), (json!("False"), false), (json!(1), true), (json!("off"), false)]
        {
            assert_eq!(boolean(&value).unwrap(), answer);
        }
        for bad in [json!(2), json!("maybe"), json!(""), json!([])] {
            assert!(boolean(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_that_could_be_options_or_are_too_long_are_refused() {
        assert_eq!(link_name(&json!("veth-vm1")).unwrap().as_str(), "veth-vm1");
        for bad in ["", "-x", ".", "..", "a-name-of-16-byt", "a/b", "a b", "é", "a\0b"] {
            assert!(matches!(link_name(&json!(bad)), Err(Fault::Value(_))), "{bad}");
        }
        assert!(matches!(link_name(&json!(5)), Err(Fault::Type(_))));
    }

    #[test]
    fn an_inside_host_is_one_host() {
        assert_eq!(host_ip(&json!("192.168.100.10")).unwrap(), IpAddr::from([192, 168, 100, 10]));
        assert_eq!(host_ip(&json!("2001:db8::1")).unwrap().to_string(), "2001:db8::1");
        for bad in [
            "::",
            "::1",
            "ff02::1",
            "fe80::1",
            "::ffff:10.0.0.1",
            "2001:db8::1/64",
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "host",
            "10.0.0.1/24",
            "010.0.0.1",
        ] {
            assert!(matches!(host_ip(&json!(bad)), Err(Fault::Value(_))), "{bad}");
        }
    }

    #[test]
    fn a_user_is_a_name_or_a_number_of_this_host() {
        assert_eq!(user(&json!("root")), Ok(0));
        assert_eq!(user(&json!("1000")), Ok(1000));
        assert_eq!(group(&json!(1000)), Ok(1000));
        for bad in [json!("no such user"), json!(-1), json!(4_294_967_295_u32), json!(""), json!("a\0b")] {
            assert!(matches!(user(&bad), Err(Fault::Value(_))), "{bad}");
        }
        assert!(matches!(user(&json!(["root"])), Err(Fault::Type(_))));
    }

    #[test]
    fn a_netmask_is_a_length_or_dotted() {
        for good in [json!(24), json!("24"), json!("/24"), json!("255.255.255.0")] {
            assert_eq!(netmask(&good), Ok(24), "{good}");
        }
        assert_eq!(netmask(&json!("ffff:ffff::")), Ok(32));
        for bad in [json!("255.0.255.0"), json!(129), json!("24/")] {
            assert!(netmask(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_address_may_bring_its_prefix() {
        assert_eq!(address(&json!("10.0.0.1")).unwrap().1, None);
        assert_eq!(address(&json!("10.0.0.1/16")).unwrap().1, Some(16));
        assert_eq!(address(&json!("fd00::1/64")).unwrap().1, Some(64));
        for bad in ["0.0.0.0", "224.0.0.1/24", "host", "10.0.0.1/33", ""] {
            assert!(address(&json!(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_network_loses_its_host_bits() {
        assert_eq!(host_network(&json!("192.168.100.7/24")).unwrap().to_string(), "192.168.100.0/24");
        assert_eq!(host_network(&json!("10.1.2.3")).unwrap().to_string(), "10.1.2.3/32");
        assert_eq!(host_network(&json!("fd00:1::5/64")).unwrap().to_string(), "fd00:1::/64");
        for bad in [
            "fe80::/10",
            "ff00::/8",
            "::1/128",
            "::ffff:10.0.0.0/120",
            "10.0.0.0/33",
            "10.0.0.0/",
            "/24",
            "lan",
            "224.0.0.0/4",
            "127.0.0.0/8",
        ] {
            assert!(matches!(host_network(&json!(bad)), Err(Fault::Value(_))), "{bad}");
        }
    }

    #[test]
    fn a_list_may_be_text_with_commas() {
        let addresses = list(interface_address);
        assert_eq!(addresses(&json!("10.0.0.1/24, 10.0.1.1/24")).unwrap().len(), 2);
        assert_eq!(addresses(&json!(["10.0.0.1/24"])).unwrap().len(), 1);
        assert!(addresses(&json!(["10.0.0.1/24", 7])).is_err());
    }

    #[test]
    fn a_description_is_one_bounded_line() {
        assert!(description(&json!("SSH de María a VM1")).is_ok());
        assert!(description(&json!("é".repeat(DESCRIPTION_MAX))).is_ok());
        assert!(description(&json!("é".repeat(DESCRIPTION_MAX + 1))).is_err());
        assert!(description(&json!("a\nb")).is_err());
    }

    #[test]
    fn a_message_does_not_repeat_a_long_value() {
        let Err(Fault::Type(why)) = port(&json!("9".repeat(10_000))) else { panic!("it was accepted") };
        assert!(why.len() < 100, "{why}");
    }
}
