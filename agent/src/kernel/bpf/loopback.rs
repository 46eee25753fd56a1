//! Loopback, where what the host itself sends to one of its forwards goes out, and where the answers come in again.
//!
//! The kernel takes no IPv4 packet in that comes from one of its own addresses, unless the interface is told so
//! (`accept_local`, Documentation/networking/ip-sysctl.rst). Nobody outside can send to loopback, so for that one it opens
//! nothing. It stays on when the programs go, as forwarding does.

use std::fs;

use tracing::{info, warn};

use super::{attach::Attacher, hooks::Role};
use crate::kernel::{ACCEPT_LOCAL, KernelError};

/// In every network namespace (include/net/net_namespace.h `LOOPBACK_IFINDEX`).
pub(super) const INDEX: u32 = 1;

/// Lets the host reach its own forwards.
pub(super) fn open(attacher: &mut Attacher) -> Result<(), KernelError> {
    attacher.attach(Role::Loopback, INDEX)?;
    let on = fs::read_to_string(ACCEPT_LOCAL).is_ok_and(|text| text.trim() == "1");
    if !on {
        match fs::write(ACCEPT_LOCAL, "1") {
            Ok(()) => {
                info!(setting = "net.ipv4.conf.lo.accept_local", "switched on: the host reaches its forwards")
            }
            Err(error) => warn!(
                setting = "net.ipv4.conf.lo.accept_local",
                %error,
                "cannot be switched on: the host itself does not reach forwards of IPv4"
            ),
        }
    }
    Ok(())
}
