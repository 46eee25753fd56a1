//! Whether the kernel forwards packets, one switch for each address family.
//!
//! IPv6's has a trap: a host that forwards ignores router advertisements, and would lose its own default route some
//! time later. `accept_ra` = 2 says "accept them although you forward"; where nothing is forwarded it means the same
//! as 1, so it need not be put back.

use std::{fs, io, path::Path};

use super::KernelError;

const IPV4: &str = "/proc/sys/net/ipv4/ip_forward";
const IPV6: &str = "/proc/sys/net/ipv6/conf/all/forwarding";
const IPV6_INTERFACES: &str = "/proc/sys/net/ipv6/conf";

pub(super) fn ipv4() -> Result<bool, KernelError> {
    let text = fs::read_to_string(IPV4).map_err(|error| failed(format!("read {IPV4}"), &error))?;
    Ok(text.trim() != "0")
}

/// `None` where the kernel has no IPv6.
pub(super) fn ipv6() -> Result<Option<bool>, KernelError> {
    match fs::read_to_string(IPV6) {
        Ok(text) => Ok(Some(text.trim() != "0")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(format!("read {IPV6}"), &error)),
    }
}

pub(super) fn set_ipv4(operation: &str, on: bool) -> Result<(), KernelError> {
    fs::write(IPV4, digit(on)).map_err(|error| failed(operation, &error))
}

pub(super) fn set_ipv6(operation: &str, on: bool) -> Result<(), KernelError> {
    if on {
        keep_advertised(operation)?;
    }
    fs::write(IPV6, digit(on)).map_err(|error| failed(operation, &error))
}

/// Interfaces that listen to routers go on listening.
fn keep_advertised(operation: &str) -> Result<(), KernelError> {
    let entries = fs::read_dir(IPV6_INTERFACES).map_err(|error| failed(operation, &error))?;
    for entry in entries {
        let path = entry.map_err(|error| failed(operation, &error))?.path().join("accept_ra");
        match listens(&path) {
            Ok(false) => {}
            Ok(true) => fs::write(&path, "2").map_err(|error| failed(operation, &error))?,
            // It went away meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(operation, &error)),
        }
    }
    Ok(())
}

fn listens(path: &Path) -> io::Result<bool> {
    Ok(fs::read_to_string(path)?.trim() == "1")
}

fn digit(on: bool) -> &'static str {
    if on { "1" } else { "0" }
}

fn failed(operation: impl Into<String>, error: &io::Error) -> KernelError {
    match error.raw_os_error() {
        Some(errno) => KernelError::errno(operation, errno),
        None => KernelError::other(operation, error.to_string()),
    }
}
