//! The fast path's maps, and how much of it there is.

use std::{
    cell::{RefCell, UnsafeCell},
    collections::HashMap,
    ptr::NonNull,
};

use telecluster_common::{
    maps::{HOPS, Hop, Pair, PairKey, Port, TICK_BITS, ticks},
    nat::{
        fast::{HopRef, Ways, stamp},
        xdp::Doors,
    },
    packet::LinkHeader,
    tables::Tables as _,
};

use super::{HostTables, INSIDE_INTERFACE, INSIDE_MTU, Side};
use crate::vectors::UPLINK;

/// To whom the frames of vectors are sent: the router.
const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

const EPOCH: u32 = 7;

/// Which hooks packets meet on their way, and what is known of their hosts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Front {
    /// Those of the uplink, and no flow knows a way.
    #[default]
    Uplink,
    /// That of an interface towards inside hosts before them.
    Control(Hosts),
    /// Those of both drivers before these.
    Drivers(Hosts),
}

/// What is known of the hosts of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hosts {
    /// Nothing: more than hosts decides where packets go.
    Apart,
    /// What packets have shown that took the kernel's way.
    Learned,
    /// All that are routed know each other.
    Known,
}

/// Makes a test of each function, which meets all of them one after the other.
#[macro_export]
macro_rules! behind_any_hooks {
    ($($test:ident),* $(,)?) => {
        mod behind_any_hooks {
            $(#[test] fn $test() {
                for front in $crate::host::Front::ALL {
                    println!("{front:?}");
                    super::$test(front);
                }
            })*
        }
    };
}

impl Front {
    pub const ALL: [Self; 7] = [
        Self::Uplink,
        Self::Control(Hosts::Apart),
        Self::Control(Hosts::Learned),
        Self::Control(Hosts::Known),
        Self::Drivers(Hosts::Apart),
        Self::Drivers(Hosts::Learned),
        Self::Drivers(Hosts::Known),
    ];

    fn hosts(self) -> Option<Hosts> {
        match self {
            Self::Uplink => None,
            Self::Control(hosts) | Self::Drivers(hosts) => Some(hosts),
        }
    }
}

/// Where packets go, as the kernel would say it.
pub(super) fn link(interface: u32) -> LinkHeader {
    LinkHeader { dst: [2, 0, 0, 0, 0, if interface == UPLINK { 0x77 } else { 0x88 }], src: ROUTER_MAC }
}

/// The table of hops.
#[derive(Debug)]
pub(super) struct Hops(RefCell<HashMap<u32, Box<UnsafeCell<Hop>>>>);

/// Places of the ways out and in that hosts know which have not learned them.
const OUT: u32 = 1;
const IN: u32 = 2;

impl Default for Hops {
    fn default() -> Self {
        let hop = |from, interface| {
            let (stamp, mtu) = (u64::from(EPOCH), INSIDE_MTU);
            Box::new(UnsafeCell::new(Hop { stamp, interface, from, mtu, link: link(interface) }))
        };
        Self(RefCell::new(HashMap::from([
            (OUT, hop(INSIDE_INTERFACE, UPLINK)),
            (IN, hop(UPLINK, INSIDE_INTERFACE)),
        ])))
    }
}

impl HostTables {
    /// What these two know of each other.
    pub(super) fn acquaintance<A: Side>(&self, key: &PairKey<A>) -> Option<Pair> {
        match self.front.hosts()? {
            Hosts::Apart => None,
            Hosts::Learned => A::of(self).pairs.borrow().get(key).copied(),
            // The kernel forwards nothing of the host's own.
            Hosts::Known if self.is_local(key.src) || self.is_local(key.dst) => None,
            Hosts::Known => {
                let hop = if key.from == UPLINK { IN } else { OUT };
                let now = u32::try_from(self.clock.get() >> TICK_BITS).expect("a short story");
                Some(Pair { hop, stamp: EPOCH, lease: now + ticks(8) })
            }
        }
    }
}

impl Ways for HostTables {
    fn epoch(&self) -> u32 {
        if self.front == Front::Uplink { 0 } else { EPOCH }
    }

    fn settled_epoch(&self) -> u32 {
        self.epoch()
    }

    fn are_alike(&self) -> bool {
        matches!(self.front.hosts(), Some(Hosts::Learned | Hosts::Known))
    }

    fn hop(&self, slot: u32) -> Option<HopRef> {
        assert!(slot < HOPS);
        let mut hops = self.hops.0.borrow_mut();
        let hop = hops.entry(slot).or_insert_with(|| {
            let link = LinkHeader { dst: [0; 6], src: [0; 6] };
            Box::new(UnsafeCell::new(Hop { stamp: stamp::FREE, interface: 0, from: 0, mtu: 0, link }))
        });
        // SAFETY: the box stays for as long as the tables.
        NonNull::new(hop.get()).map(|hop| unsafe { HopRef::new(hop) })
    }

    fn take(&self, hop: HopRef, stamp: u64) -> bool {
        // SAFETY: see `hop`; nobody else is there.
        let present = unsafe { &mut (*hop.as_ptr()).stamp };
        let taken = *present == stamp;
        if taken {
            *present = stamp::BUSY;
        }
        taken
    }

    fn port(&self, interface: u32) -> Option<Port> {
        let port = Port { owner: interface, mtu: INSIDE_MTU, mac: ROUTER_MAC, unused: 0 };
        (self.front != Front::Uplink).then_some(port)
    }
}

impl Doors for HostTables {
    fn points_at(&self, interface: u32) -> bool {
        assert!([UPLINK, INSIDE_INTERFACE].contains(&interface), "there is no interface {interface}");
        true
    }
}
