//! ICMP types (RFC 792, RFC 4443).

pub const ECHO_REPLY: u8 = 0;
pub const ECHO: u8 = 8;
pub const TIMESTAMP: u8 = 13;
pub const TIMESTAMP_REPLY: u8 = 14;
pub const UNREACHABLE: u8 = 3;
pub const SOURCE_QUENCH: u8 = 4;
pub const TIME_EXCEEDED: u8 = 11;
pub const PARAMETER_PROBLEM: u8 = 12;
/// Unreachable, the first error of ICMPv6.
pub const ERROR6_FIRST: u8 = 1;
/// Packet too big.
pub const TOO_BIG6: u8 = 2;
/// Parameter problem, the last one that is in use.
pub const ERROR6_LAST: u8 = 4;
pub const ECHO6: u8 = 128;
pub const ECHO_REPLY6: u8 = 129;
/// Router solicitation, the first of neighbour discovery (RFC 4861).
pub const ND_FIRST: u8 = 133;
/// Redirect, the last of it.
pub const ND_LAST: u8 = 137;
