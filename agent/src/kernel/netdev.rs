//! What the drivers of interfaces can do with XDP, as kernel 6.3 and later tell by the generic netlink family `netdev`
//! (Documentation/netlink/specs/netdev.yaml). Two short messages, written by hand.

use netlink_packet_core::{DefaultNla, Emitable as _, NLM_F_ACK, NLM_F_REQUEST, NlasIterator};
use netlink_sys::{Socket, protocols::NETLINK_GENERIC};
use nix::errno::Errno;

use super::{KernelError, dump, rtnl::io_error};

const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const FAMILY_GROUPS: u16 = 7;
const GROUP_NAME: u16 = 1;
const GROUP_ID: u16 = 2;

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
    let family = family()?.and_then(|family| attribute(&family, FAMILY_ID));
    let family = family.and_then(|value| value.try_into().ok()).map(u16::from_ne_bytes);
    let Some(family) = family else { return Ok(None) };
    let answer = ask(family, GET_DEVICE, INDEX, &index.to_ne_bytes())?;
    let features = attribute(&answer, XDP_FEATURES).and_then(|value| value.try_into().ok());
    Ok(features
        .map(u64::from_ne_bytes)
        .map(|features| Abilities { native: features & NATIVE != 0, transmits: features & TRANSMITS != 0 }))
}

/// Says when what an interface of this namespace can do has changed: that of a veth changes with its other end, wherever that is.
#[derive(Debug)]
pub struct Changes(Socket);

impl Changes {
    /// `None`: this kernel does not tell.
    pub fn open() -> Result<Option<Self>, KernelError> {
        let groups = family()?.and_then(|family| attribute(&family, FAMILY_GROUPS));
        let Some(group) = groups.and_then(|groups| group(&groups, b"mgmt\0")) else { return Ok(None) };
        let open = || {
            let mut socket = Socket::new(NETLINK_GENERIC)?;
            socket.bind_auto()?;
            socket.add_membership(group)?;
            Ok(socket)
        };
        open()
            .map(|socket| Some(Self(socket)))
            .map_err(|error| io_error("hear of changes of drivers", &error))
    }

    /// Waits for the next one. What was too much at once has been one too.
    pub fn next(&self) -> Result<(), KernelError> {
        match self.0.recv_from_full() {
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => Ok(()),
            Err(error) => Err(io_error("hear of changes of drivers", &error)),
        }
    }
}

/// What there is to know of the family; `None`: this kernel has none such.
fn family() -> Result<Option<Vec<u8>>, KernelError> {
    match ask(CONTROL, GET_FAMILY, FAMILY_NAME, b"netdev\0") {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.errno == Some(Errno::ENOENT as i32) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The number of a multicast group, from a list of them.
fn group(groups: &[u8], name: &[u8]) -> Option<u32> {
    let groups = NlasIterator::new(groups).map_while(Result::ok);
    let mut named = groups.filter(|group| attribute(group.value(), GROUP_NAME).as_deref() == Some(name));
    attribute(named.next()?.value(), GROUP_ID)?.try_into().ok().map(u32::from_ne_bytes)
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
    fn changes_are_heard_of_where_abilities_are_told() {
        let tells = abilities(1).unwrap().is_some();
        assert_eq!(Changes::open().unwrap().is_some(), tells);
    }

    #[test]
    fn loopback_has_no_native_xdp_where_the_kernel_tells() {
        // Below 6.3 nothing is told, and that is not an error.
        let found = abilities(1).unwrap();
        assert!(found.is_none_or(|abilities| !abilities.native && !abilities.transmits), "{found:?}");
        assert!(abilities(u32::MAX >> 1).is_ok_and(|found| found.is_none()) || found.is_some());
    }
}
