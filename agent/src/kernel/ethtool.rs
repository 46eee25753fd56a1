//! Offloads and driver of an interface, by the ioctl that `ethtool` uses (linux/ethtool.h). Its netlink family would need a
//! crate more for the same three answers.

use std::{
    collections::BTreeSet,
    ffi::c_char,
    os::{fd::AsRawFd as _, unix::net::UnixDatagram},
};

use nix::{errno::Errno, libc};

use super::{KernelError, rtnl::io_error};

const GET_DRIVER: u32 = 0x03;
const GET_STRINGS: u32 = 0x1b;
const GET_SET_SIZES: u32 = 0x37;
const GET_FEATURES: u32 = 0x3a;

/// `ETH_SS_FEATURES`.
const FEATURES: u32 = 4;
/// Words of a name (`ETH_GSTRING_LEN` is 32 bytes), and of `struct ethtool_drvinfo`.
const NAME: usize = 8;
const DRIVER: usize = 49;

nix::ioctl_readwrite_bad!(ethtool, libc::SIOCETHTOOL, libc::ifreq);

/// What the driver calls itself.
pub(super) fn driver(interface: &str) -> Result<String, KernelError> {
    let mut answer = vec![0; DRIVER];
    answer[0] = GET_DRIVER;
    ask(interface, &mut answer)?;
    Ok(text(answer.get(1..=NAME).unwrap_or_default()))
}

/// The offloads that are on, by the names that `ethtool -k` knows them by or longer ones.
pub(super) fn features(interface: &str) -> Result<BTreeSet<String>, KernelError> {
    // struct ethtool_sset_info: a mask of 64 bits, then one number
    let mut sizes = vec![GET_SET_SIZES, 0, 0, 0, 0];
    let mask = (1_u64 << FEATURES).to_ne_bytes();
    let [a, b, c, d, e, f, g, h] = mask;
    (sizes[2], sizes[3]) = (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]));
    ask(interface, &mut sizes)?;
    let count = sizes.get(4).map_or(0, |count| *count as usize).min(1024);

    let mut names = vec![0; 3 + count * NAME];
    (names[0], names[1], names[2]) = (GET_STRINGS, FEATURES, u32::try_from(count).unwrap_or(0));
    ask(interface, &mut names)?;
    let names = names.get(3..).unwrap_or_default().chunks(NAME).map(text);

    // blocks of 32 features: available, requested, active, never changed
    let blocks = count.div_ceil(32);
    let mut state = vec![0; 2 + blocks * 4];
    (state[0], state[1]) = (GET_FEATURES, u32::try_from(blocks).unwrap_or(0));
    ask(interface, &mut state)?;
    let active = |place: usize| {
        let block = state.get(2 + place / 32 * 4 + 2).copied().unwrap_or(0);
        block >> (place % 32) & 1 == 1
    };
    Ok(names.enumerate().filter(|(place, _)| active(*place)).map(|(_, name)| name).collect())
}

/// The question is in the buffer, and so is the answer; it is as large as the question says.
fn ask(interface: &str, buffer: &mut [u32]) -> Result<(), KernelError> {
    let operation = || format!("ask for the offloads of {interface}");
    // Any socket will do: it says which namespace is meant.
    let socket = UnixDatagram::unbound().map_err(|error| io_error(&operation(), &error))?;
    // SAFETY: a structure of the C library of which all zeros are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let name = interface.as_bytes();
    if name.len() >= request.ifr_name.len() {
        return Err(KernelError::other(operation(), "the name is too long"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = c_char::from_ne_bytes([*from]);
    }
    request.ifr_ifru.ifru_data = buffer.as_mut_ptr().cast();
    // SAFETY: the kernel reads and writes the buffer as far as its first words say, which is as long as it is.
    unsafe { ethtool(socket.as_raw_fd(), &raw mut request) }
        .map(drop)
        .map_err(|errno: Errno| KernelError::errno(operation(), errno as i32))
}

fn text(words: &[u32]) -> String {
    let bytes: Vec<u8> =
        words.iter().flat_map(|word| word.to_ne_bytes()).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_says_which_offloads_it_has() {
        let features = features("lo").unwrap();
        assert!(features.contains("tx-tcp-segmentation"), "{features:?}");
        assert!(!features.contains(""), "{features:?}");
        assert!(super::features("no-such-link").is_err() && driver("no-such-link").is_err());
    }
}
