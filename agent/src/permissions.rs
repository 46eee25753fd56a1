//! What the kernel lets this process do.

use std::{fs, io};

/// The effective capabilities that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permissions {
    pub root: bool,
    /// Links, addresses, attaching programs.
    pub cap_net_admin: bool,
    /// Loading programs (linux 5.8).
    pub cap_bpf: bool,
    /// Network namespaces and mounts; loading programs on older kernels.
    pub cap_sys_admin: bool,
    /// ICMP sockets.
    pub cap_net_raw: bool,
}

// linux: include/uapi/linux/capability.h
const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_BPF: u32 = 39;

impl Permissions {
    /// Of this process, now.
    pub fn current() -> io::Result<Self> {
        let status = fs::read_to_string("/proc/self/status")?;
        Self::parse(&status)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no CapEff in /proc/self/status"))
    }

    /// From the text of `/proc/<pid>/status`.
    fn parse(status: &str) -> Option<Self> {
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let effective = u64::from_str_radix(field("CapEff:")?, 16).ok()?;
        // Uid: real, effective, saved set, file system
        let uid = field("Uid:")?.split_whitespace().nth(1)?;
        let has = |capability: u32| effective & (1 << capability) != 0;
        Some(Self {
            root: uid == "0",
            cap_net_admin: has(CAP_NET_ADMIN),
            cap_bpf: has(CAP_BPF),
            cap_sys_admin: has(CAP_SYS_ADMIN),
            cap_net_raw: has(CAP_NET_RAW),
        })
    }

    /// The capabilities without which the worker cannot work; `programs`: with the eBPF data plane.
    pub fn missing(&self, programs: bool) -> Vec<&'static str> {
        let mut missing = Vec::new();
        if !self.cap_net_admin {
            missing.push("CAP_NET_ADMIN");
        }
        if programs && !self.cap_bpf && !self.cap_sys_admin {
            missing.push("CAP_BPF or CAP_SYS_ADMIN");
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(uid: &str, effective: &str) -> String {
        format!("Name:\tworker\nUid:\t1000\t{uid}\t0\t0\nCapPrm:\t0000000000000000\nCapEff:\t{effective}\n")
    }

    #[test]
    fn root_with_everything_misses_nothing() {
        let permissions = Permissions::parse(&status("0", "000001ffffffffff")).unwrap();
        assert!(permissions.root && permissions.cap_net_raw);
        assert!(permissions.missing(true).is_empty());
    }

    #[test]
    fn root_of_a_container_may_miss_capabilities() {
        let permissions = Permissions::parse(&status("0", "00000000a80425fb")).unwrap();
        assert!(permissions.root && permissions.cap_net_raw);
        assert_eq!(permissions.missing(true), ["CAP_NET_ADMIN", "CAP_BPF or CAP_SYS_ADMIN"]);
        assert_eq!(permissions.missing(false), ["CAP_NET_ADMIN"], "iptables loads no programs");
    }

    #[test]
    fn two_capabilities_are_enough_without_root() {
        let permissions = Permissions::parse(&status("1000", "0000008000001000")).unwrap();
        assert!(!permissions.root && permissions.cap_bpf && permissions.cap_net_admin);
        assert!(permissions.missing(true).is_empty());
    }

    #[test]
    fn a_text_without_capabilities_is_refused() {
        assert_eq!(Permissions::parse("Name:\tworker\n"), None);
        assert_eq!(Permissions::parse(&status("0", "not hex")), None);
    }
}
