//! The waiting rooms of uplinks: where a part of a packet goes that came before the first one, and comes back from.
//!
//! A room is a veth pair with a slow queue (tbf) on its entrance. What the programs send in comes out at the other end,
//! where a program sends it back to the hook that it came from (`telecluster_common::nat::fragment` says when it has
//! waited for long enough). The queue makes that cheap: each turn costs as much as its length and [`TURN`] bytes more, so
//! that a flood of orphans takes some thousand turns a second, and what does not fit into it is dropped.
//!
//! The pair is a part of the data plane and no link of anybody's: it is not shown in any list, and has no address.

use std::{ffi::CStr, fmt};

use aya::maps::{HashMap, MapData};
use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoVeth, LinkAttribute, LinkMessage},
    tc::{TcAttribute, TcHandle, TcMessage, TcOption},
};
use nix::{
    errno::Errno,
    net::if_::{if_nameindex, if_nametoindex},
};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth};
use tracing::{info, warn};

use super::{
    attach::Attacher,
    failed,
    hooks::Role,
    object::{self, Object},
};
use crate::kernel::{KernelError, links::ROOM_ALIAS, rtnl::Rtnl};

/// The group of both ends from the moment that they are there: the kernel makes no link with an alias, and a worker that is killed before it has
/// given them theirs, which it does last, leaves a pair that it must know again. The letters "tcw".
const GROUP: u32 = 0x0074_6377;

/// The largest there is: what an uplink may send or receive, a room must let through.
const MTU: u32 = 65535;

/// Bytes that the queue lets through in a second, a turn counting [`TURN`] more than its packet has.
const RATE: u32 = 4 << 20;
const TURN: u16 = 512;

/// How much passes at once after a quiet time; more than the largest packet.
const BURST: u32 = 128 << 10;

/// Bytes of packets that wait.
const LIMIT: u32 = 512 << 10;

/// The `waiting_room` map.
pub(super) struct WaitingRooms(HashMap<MapData, u32, u32>);

impl fmt::Debug for WaitingRooms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WaitingRooms").finish_non_exhaustive()
    }
}

impl WaitingRooms {
    pub(super) fn take(object: &mut Object) -> Result<Self, KernelError> {
        object::take(object, "waiting_room").map(Self)
    }

    /// Makes the rooms fit what an earlier run has attached: an uplink may be gone since, or have been left without.
    pub(super) fn adopt(&mut self, attacher: &mut Attacher) {
        let uplinks: Vec<u32> = attacher.indexes(Role::Uplink).collect();
        for uplink in rooms().into_iter().filter(|uplink| !uplinks.contains(uplink)) {
            self.close(uplink, attacher);
        }
        for uplink in uplinks {
            self.open(uplink, attacher);
        }
    }

    /// Makes the room of an uplink, or leaves it as it is. Without one the uplink works too: then parts that come before
    /// the first one are dropped and counted, which is not worth refusing everything else for.
    pub(super) fn open(&mut self, uplink: u32, attacher: &mut Attacher) {
        match self.build(uplink, attacher) {
            Ok(()) => {}
            Err(error) => {
                warn!(interface = uplink, %error, "fragments that come out of order will be dropped");
                self.close(uplink, attacher);
            }
        }
    }

    /// Takes the room of an uplink away.
    pub(super) fn close(&mut self, uplink: u32, attacher: &mut Attacher) {
        let (entrance, exit) = names(uplink);
        // A key that is not there is what was wanted.
        let _ = self.0.remove(&uplink);
        let removed = (|| {
            let mut rtnl = Rtnl::open()?;
            if let Some(index) = index_of(&exit) {
                let _ = self.0.remove(&index);
                attacher.detach(Role::Room, index)?;
            }
            match find(&mut rtnl, &entrance)? {
                Some(Pair { index, .. }) => delete(&mut rtnl, &entrance, index),
                None => Ok(()),
            }
        })();
        if let Err(error) = removed {
            warn!(interface = uplink, %error, "the waiting room of its fragments stays");
        }
    }

    fn build(&mut self, uplink: u32, attacher: &mut Attacher) -> Result<(), KernelError> {
        let (entrance, exit) = names(uplink);
        let mut rtnl = Rtnl::open()?;
        let found = find(&mut rtnl, &entrance)?;
        if let Some(Pair { index, whole: false }) = found {
            delete(&mut rtnl, &entrance, index)?;
        }
        if !found.is_some_and(|pair| pair.whole) {
            create(&mut rtnl, &entrance, &exit)?;
            info!(interface = uplink, through = entrance, "fragments that come out of order can wait");
        }
        let index = |name: &str| {
            index_of(name).ok_or_else(|| KernelError::errno(format!("find {name}"), Errno::ENODEV as i32))
        };
        let (entrance, exit) = (index(&entrance)?, index(&exit)?);
        attacher.attach(Role::Room, exit)?;
        // The way back first.
        for (key, value) in [(exit, uplink), (uplink, entrance)] {
            self.0.insert(key, value, 0).map_err(|error| failed("write the map of waiting rooms", &error))?;
        }
        Ok(())
    }
}

/// Takes every room away, whatever became of the programs and maps.
pub(super) fn take_away() -> Result<(), KernelError> {
    let mut rtnl = Rtnl::open()?;
    for uplink in rooms() {
        let (entrance, _) = names(uplink);
        if let Some(Pair { index, .. }) = find(&mut rtnl, &entrance)? {
            delete(&mut rtnl, &entrance, index)?;
        }
    }
    Ok(())
}

/// The uplinks of the rooms that are there.
fn rooms() -> Vec<u32> {
    match if_nameindex() {
        Ok(interfaces) => interfaces.iter().filter_map(|interface| uplink_of(interface.name())).collect(),
        Err(errno) => {
            warn!(%errno, "cannot list the interfaces");
            Vec::new()
        }
    }
}

/// The two ends: 15 characters with the largest index there is room for, ten million interfaces.
fn names(uplink: u32) -> (String, String) {
    (format!("tcw-in-{uplink}"), format!("tcw-out-{uplink}"))
}

/// What the name of an entrance says.
fn uplink_of(name: &CStr) -> Option<u32> {
    name.to_str().ok()?.strip_prefix("tcw-in-")?.parse().ok()
}

fn index_of(name: &str) -> Option<u32> {
    if_nametoindex(name).ok()
}

/// A pair of ours, by its entrance.
#[derive(Debug, Clone, Copy)]
struct Pair {
    index: u32,
    /// Else a worker was killed that had just made it.
    whole: bool,
}

/// The pair whose entrance has this name, which must be ours.
fn find(rtnl: &mut Rtnl, name: &str) -> Result<Option<Pair>, KernelError> {
    let operation = format!("find {name}");
    let request = LinkUnspec::new_with_name(name).build();
    let answers = match rtnl.get(&operation, RouteNetlinkMessage::GetLink(request)) {
        Ok(answers) => answers,
        Err(error) if error.errno == Some(Errno::ENODEV as i32) => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some(RouteNetlinkMessage::NewLink(message)) = answers.into_iter().next() else {
        return Ok(None);
    };
    let has = |mark: LinkAttribute| message.attributes.contains(&mark);
    let whole = has(LinkAttribute::IfAlias(ROOM_ALIAS.to_owned()));
    if !whole && !has(LinkAttribute::Group(GROUP)) {
        return Err(KernelError::other(operation, "somebody else has a link of that name"));
    }
    Ok(Some(Pair { index: message.header.index, whole }))
}

/// Both ends, or nothing.
fn create(rtnl: &mut Rtnl, entrance: &str, exit: &str) -> Result<(), KernelError> {
    let operation = format!("make the pair of {entrance} and {exit}");
    let mut peer = LinkUnspec::new_with_name(exit).mtu(MTU).build();
    peer.attributes.push(LinkAttribute::Group(GROUP));
    let mut message = LinkMessageBuilder::<LinkVeth>::new(entrance, exit)
        .mtu(MTU)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build();
    message.attributes.push(LinkAttribute::Group(GROUP));
    rtnl.change(&operation, RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)?;
    let index =
        |name: &str| index_of(name).ok_or_else(|| KernelError::errno(&operation, Errno::ENODEV as i32));
    let mut furnish = || {
        let (first, second) = (index(entrance)?, index(exit)?);
        no_addresses(rtnl, &operation, first)?;
        no_addresses(rtnl, &operation, second)?;
        slow_down(rtnl, &operation, first)?;
        let named = |index| LinkUnspec::new_with_index(index).alias(ROOM_ALIAS).build();
        let up = |index| LinkUnspec::new_with_index(index).up().build();
        // By the alias of the entrance the pair is known to be whole.
        for message in [named(second), up(first), up(second), named(first)] {
            rtnl.change(&operation, RouteNetlinkMessage::SetLink(message), 0)?;
        }
        Ok(())
    };
    let furnished = furnish();
    if furnished.is_err()
        && let Some(index) = index_of(entrance)
    {
        delete(rtnl, entrance, index)?;
    }
    furnished
}

/// No address of IPv6 by itself, and nothing that the kernel would say with one.
fn no_addresses(rtnl: &mut Rtnl, operation: &str, index: u32) -> Result<(), KernelError> {
    let mut message = LinkUnspec::new_with_index(index).build();
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]));
    match rtnl.change(operation, RouteNetlinkMessage::SetLink(message), 0) {
        // a kernel without IPv6
        Err(error) if error.errno == Some(Errno::EAFNOSUPPORT as i32) => Ok(()),
        result => result,
    }
}

/// Puts the queue on the entrance (linux/pkt_sched.h: `struct tc_tbf_qopt`, of two `struct tc_ratespec`).
fn slow_down(rtnl: &mut Rtnl, operation: &str, index: u32) -> Result<(), KernelError> {
    const PARAMETERS: u16 = 1; // TCA_TBF_PARMS
    const BURST_SIZE: u16 = 6; // TCA_TBF_BURST
    const ETHERNET: u8 = 1; // TC_LINKLAYER_ETHERNET: the rate needs no table
    let mut parameters = Vec::with_capacity(36);
    for (rate, overhead) in [(RATE, TURN), (0, 0)] {
        parameters.extend([0, ETHERNET]);
        parameters.extend(overhead.to_ne_bytes());
        parameters.extend([0; 4]);
        parameters.extend(rate.to_ne_bytes());
    }
    parameters.extend(LIMIT.to_ne_bytes());
    // buffer and mtu, which the burst's size stands for
    parameters.extend([0; 8]);

    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = TcHandle::ROOT;
    message.attributes.push(TcAttribute::Kind("tbf".to_owned()));
    message.attributes.push(TcAttribute::Options(vec![
        TcOption::Other(DefaultNla::new(PARAMETERS, parameters)),
        TcOption::Other(DefaultNla::new(BURST_SIZE, BURST.to_ne_bytes().to_vec())),
    ]));
    let request = RouteNetlinkMessage::NewQueueDiscipline(message);
    rtnl.change(operation, request, NLM_F_CREATE | NLM_F_REPLACE)
}

/// One end goes, and the other with it.
fn delete(rtnl: &mut Rtnl, name: &str, index: u32) -> Result<(), KernelError> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    rtnl.change(&format!("delete {name}"), RouteNetlinkMessage::DelLink(message), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_the_kernel_and_tell_the_uplink() {
        let (entrance, exit) = names(9_999_999);
        assert!(entrance.len() <= 15 && exit.len() <= 15);
        assert_eq!(uplink_of(c"tcw-in-9999999"), Some(9_999_999));
        assert_eq!(uplink_of(c"tcw-in-x"), None);
        assert_eq!(uplink_of(c"eth0"), None);
    }
}
