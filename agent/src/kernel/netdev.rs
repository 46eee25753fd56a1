//! What the drivers of interfaces can do with XDP, as kernel 6.3 and later tell by the generic netlink family `netdev`
//! (Documentation/netlink/specs/netdev.yaml). Two short messages, written by hand.

use netlink_packet_core::{DefaultNla, Emitable as _, NLM_F_ACK, NLM_F_REQUEST, NlasIterator};
use netlink_sys::protocols::NETLINK_GENERIC;
use nix::errno::Errno;

use super::{KernelError, dump, rtnl::io_error};

const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

const GET_DEVICE: u8 = 1;
const INDEX: u16 = 1;
const XDP_FEATURES: u16 = 3;

/// `NETDEV_XDP_ACT_BASIC` and `NETDEV_XDP_ACT_NDO_XMIT`.
const NATIVE: u64 = 1;
const TRANSMITS: u64 = 4;

/// Of `struct nlmsghdr` and `struct genlmsghdr`.
const HEADER: usize = 16;
const GENERIC: usize = 4;

const OPERATION: &str = "ask what a driver can do with XDP";

/// What a driver can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abilities {
    /// Run programs.
    pub native: bool,
    /// Send frames that programs elsewhere redirect to it.
    pub transmits: bool,
}

/// Of the interface with this index. `None`: this kernel does not tell.
pub fn abilities(index: u32) -> Result<Option<Abilities>, KernelError> {
    let family = match ask(CONTROL, GET_FAMILY, FAMILY_NAME, b"netdev\0") {
        Ok(answer) => attribute(&answer, FAMILY_ID),
        Err(error) if error.errno == Some(Errno::ENOENT as i32) => return Ok(None),
        Err(error) => return Err(error),
    };
    let family = family.and_then(|value| value.try_into().ok()).map(u16::from_ne_bytes);
    let Some(family) = family else { return Ok(None) };
    let answer = ask(family, GET_DEVICE, INDEX, &index.to_ne_bytes())?;
    let features = attribute(&answer, XDP_FEATURES).and_then(|value| value.try_into().ok());
    Ok(features
        .map(u64::from_ne_bytes)
        .map(|features| Abilities { native: features & NATIVE != 0, transmits: features & TRANSMITS != 0 }))
}

/// One question with one attribute; the attributes of the answer.
fn ask(family: u16, command: u8, attribute: u16, value: &[u8]) -> Result<Vec<u8>, KernelError> {
    let failed = |error: std::io::Error| io_error(OPERATION, &error);
    let attribute = DefaultNla::new(attribute, value.to_vec());
    let mut message = vec![0; HEADER + GENERIC + attribute.buffer_len()];
    let length = u32::try_from(message.len()).unwrap_or(0);
    message[0..4].copy_from_slice(&length.to_ne_bytes());
    message[4..6].copy_from_slice(&family.to_ne_bytes());
    // The acknowledgement says that there is no more.
    message[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    message[HEADER] = command;
    message[HEADER + 1] = 1;
    attribute.emit(&mut message[HEADER + GENERIC..]);

    let socket = dump::open(NETLINK_GENERIC).map_err(failed)?;
    let mut answer = Vec::new();
    let show = |_, payload: &[u8]| answer = payload.get(GENERIC..).unwrap_or_default().to_vec();
    dump::ask(&socket, &message, show).map_err(failed)?;
    Ok(answer)
}

fn attribute(attributes: &[u8], kind: u16) -> Option<Vec<u8>> {
    NlasIterator::new(attributes)
        .map_while(Result::ok)
        .find(|attribute| attribute.kind() == kind)
        .map(|attribute| attribute.value().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_no_native_xdp_where_the_kernel_tells() {
        // Below 6.3 nothing is told, and that is not an error.
        let found = abilities(1).unwrap();
        assert!(found.is_none_or(|abilities| !abilities.native && !abilities.transmits), "{found:?}");
        assert!(abilities(u32::MAX >> 1).is_ok_and(|found| found.is_none()) || found.is_some());
    }
}
