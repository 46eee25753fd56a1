//! The engine on the host: a frame is a `Vec<u8>` with a tag in it or beside it, the tables are hash maps.

use std::{
    cell::{Cell, RefCell, UnsafeCell},
    collections::{HashMap, HashSet},
    ptr::NonNull,
};

use telecluster_common::{
    packet::Wire,
    vlan::{
        Dropped, Verdict,
        decision::DecisionRef,
        frame::{Frame, Note, Tag, is_tag},
        maps::{
            Decision, FloodKey, Member, MemberKey, PortConfig, Station, StationKey, VlanStat, port, station,
        },
        port_in, port_out,
        tables::{StationRef, Switch},
        xdp::{self, Doors},
    },
};
use telecluster_worker::kernel::bpf::switch_config;

use super::{HOST, HOST_MAC, Machine, Port};

/// Interface index of port 0; the others follow.
const BRIDGE: u32 = 10;

fn index(port: usize) -> u32 {
    BRIDGE + u32::try_from(port).expect("few ports")
}

/// A frame at a hook.
#[derive(Debug, Clone)]
struct Bytes {
    bytes: Vec<u8>,
    beside: Option<Tag>,
    note: Note,
    port: u32,
    hosts: bool,
    segments: u32,
    copies: Vec<(u32, bool)>,
}

impl Bytes {
    /// As the kernel hands it to the hook on receipt, with the outer tag beside; or as a test run does.
    fn new(frame: &[u8], port: u32, beside: bool) -> Self {
        let mut frame = Self {
            bytes: frame.to_vec(),
            beside: None,
            note: Note(0xffff),
            port,
            hosts: false,
            segments: 1,
            copies: Vec::new(),
        };
        if beside {
            frame.take_out();
        }
        frame
    }

    fn kind(&self) -> u16 {
        self.bytes.get(12..14).map_or(0, |kind| u16::from_be_bytes([kind[0], kind[1]]))
    }

    fn take_out(&mut self) {
        if is_tag(self.kind()) && self.bytes.len() >= 18 {
            let control = u16::from_be_bytes([self.bytes[14], self.bytes[15]]);
            self.beside = Some(Tag { protocol: self.kind(), control });
            self.bytes.drain(12..16);
        }
    }

    fn put_in(&mut self, tag: Tag) {
        let tag = [tag.protocol.to_be_bytes(), tag.control.to_be_bytes()].concat();
        self.bytes.splice(12..12, tag);
    }

    fn on_the_wire(mut self) -> Vec<u8> {
        if let Some(tag) = self.beside.take() {
            self.put_in(tag);
        }
        self.bytes
    }
}

impl Frame for Bytes {
    fn port(&self) -> u32 {
        self.port
    }

    fn is_the_hosts_own(&self) -> bool {
        self.hosts
    }

    fn bytes(&self) -> u32 {
        u32::try_from(self.bytes.len()).expect("a frame")
    }

    fn segments(&self) -> u32 {
        self.segments
    }

    fn at<T: Wire>(&mut self, offset: usize) -> Option<NonNull<T>> {
        let bytes = self.bytes.get_mut(offset..offset.checked_add(size_of::<T>())?)?;
        NonNull::new(bytes.as_mut_ptr().cast())
    }

    fn tag_beside(&self) -> Option<Tag> {
        self.beside
    }

    /// As `skb_vlan_pop`: the next tag comes out of the bytes.
    fn pop(&mut self) -> bool {
        if self.beside.take().is_none() {
            if !is_tag(self.kind()) {
                return true;
            }
            self.bytes.drain(12..16);
        }
        self.take_out();
        true
    }

    /// As `skb_vlan_push`: the one that is beside goes into the bytes.
    fn push(&mut self, tag: Tag) -> bool {
        if let Some(inner) = self.beside.replace(tag) {
            self.put_in(inner);
        }
        true
    }

    fn note(&self) -> Note {
        self.note
    }

    fn set_note(&mut self, note: Note) {
        self.note = note;
    }

    fn copy_to(&mut self, port: u32, host: bool) {
        self.copies.push((port, host));
    }
}

/// Tables in memory. Stations are boxed so that a reference to one survives inserts of others.
#[derive(Debug, Default)]
struct Tables {
    ports: HashMap<u32, PortConfig>,
    members: HashMap<MemberKey, Member>,
    floods: HashMap<FloodKey, u32>,
    stations: RefCell<HashMap<StationKey, Box<UnsafeCell<Station>>>>,
    counts: RefCell<HashMap<u32, u32>>,
    stats: RefCell<HashMap<u32, VlanStat>>,
    not_learned: Cell<u64>,
    next_stat: u32,
    lookups: Cell<u64>,
    changes: Cell<u64>,
    /// `None`: nothing is kept.
    decisions: Option<RefCell<HashMap<u32, Box<UnsafeCell<Decision>>>>>,
    clock: Cell<u64>,
    /// Where a frame in a driver would go, and where none can.
    pointed_at: Cell<u32>,
    doorless: HashSet<u32>,
}

impl Tables {
    /// Who gets what is for everybody, anew.
    fn list(&mut self, ports: &[Port]) {
        self.floods.clear();
        for (number, port) in ports.iter().enumerate() {
            for vlan in port.switch_port(index(number), BRIDGE).vlans().into_keys() {
                let free = |place: &u16| {
                    !self.floods.contains_key(&FloodKey { bridge: BRIDGE, vlan, place: *place })
                };
                let place = (0..).find(free).expect("room for a port");
                self.floods.insert(FloodKey { bridge: BRIDGE, vlan, place }, index(number));
            }
        }
    }

    /// Those that are learned, on each port.
    fn count_stations(&mut self) {
        let counts = self.counts.get_mut();
        counts.clear();
        for station in self.stations.get_mut().values_mut().map(|station| station.get_mut()) {
            if station.flags & station::STATIC == 0 {
                *counts.entry(station.port).or_default() += 1;
            }
        }
    }
}

impl Switch for Tables {
    fn port(&self, index: u32) -> Option<PortConfig> {
        self.ports.get(&index).copied()
    }

    fn member(&self, key: &MemberKey) -> Option<Member> {
        self.members.get(key).copied()
    }

    fn flood(&self, key: &FloodKey) -> Option<u32> {
        self.floods.get(key).copied()
    }

    fn station(&self, key: &StationKey) -> Option<StationRef> {
        self.lookups.set(self.lookups.get() + 1);
        let stations = self.stations.borrow();
        let station = stations.get(key).and_then(|station| NonNull::new(station.get()));
        // SAFETY: the box stays while a frame is looked at: stations are removed in between.
        station.map(|station| unsafe { StationRef::new(station) })
    }

    fn add_station(&self, key: &StationKey, station: &Station) -> bool {
        self.stations.borrow_mut().entry(*key).or_insert_with(|| Box::new(UnsafeCell::new(*station)));
        true
    }

    fn stations_on(&self, port: u32) -> u32 {
        self.counts.borrow().get(&port).copied().unwrap_or(0)
    }

    fn count_station(&self, port: u32, more: bool) {
        let mut counts = self.counts.borrow_mut();
        let count = counts.entry(port).or_default();
        *count = if more { *count + 1 } else { count.checked_sub(1).expect("one was counted") };
    }

    fn count_not_learned(&self, _port: u32) {
        self.not_learned.set(self.not_learned.get() + 1);
    }

    fn count_rx(&self, stat: u32, packets: u32, bytes: u32) {
        let mut stats = self.stats.borrow_mut();
        let stat = stats.entry(stat).or_default();
        stat.rx_packets += u64::from(packets);
        stat.rx_bytes += u64::from(bytes);
    }

    fn count_tx(&self, stat: u32, packets: u32, bytes: u32) {
        let mut stats = self.stats.borrow_mut();
        let stat = stats.entry(stat).or_default();
        stat.tx_packets += u64::from(packets);
        stat.tx_bytes += u64::from(bytes);
    }

    fn changes(&self) -> u64 {
        self.changes.get()
    }

    fn changed(&self) {
        self.changes.set(self.changes.get() + 1);
    }

    fn decision(&self, place: u32) -> Option<DecisionRef> {
        let mut decisions = self.decisions.as_ref()?.borrow_mut();
        let decision = NonNull::new(decisions.entry(place).or_default().get())?;
        // SAFETY: the box stays, and there is one thread.
        Some(unsafe { DecisionRef::new(decision) })
    }

    /// As often as on most kernels.
    fn ticks(&self) -> u64 {
        self.clock.get() / 4_000_000
    }

    fn now(&self) -> u64 {
        self.clock.get()
    }
}

impl Doors for Tables {
    fn points_at(&self, port: u32) -> bool {
        assert_ne!(port, BRIDGE, "the host is behind no driver");
        self.pointed_at.set(port);
        !self.doorless.contains(&port)
    }
}

/// The engine with its tables, and a kernel's bridge for what it passes on: no more than that it floods.
#[derive(Debug)]
pub struct Engine {
    tables: Tables,
    ports: Vec<Port>,
    /// Where tags are when the hook runs.
    beside: bool,
    /// Frames meet the program in the driver first.
    in_drivers: bool,
    /// How many went on from there.
    pub switched: u64,
    /// Why frames were dropped, in order.
    pub drops: Vec<Dropped>,
}

impl Engine {
    pub fn new(ports: &[Port], beside: bool) -> Self {
        let tables = Tables { decisions: Some(RefCell::default()), ..Tables::default() };
        Self::with(tables, ports, beside)
    }

    /// One that decides anew for each frame.
    pub fn without_decisions(ports: &[Port], beside: bool) -> Self {
        Self::with(Tables::default(), ports, beside)
    }

    /// One whose ports have the program in their drivers too, where tags are in the frames; but for those that have no door.
    pub fn in_drivers(ports: &[Port], doorless: &[usize]) -> Self {
        let mut engine = Self::new(ports, true);
        engine.in_drivers = true;
        engine.tables.doorless = doorless.iter().map(|port| index(*port)).collect();
        engine
    }

    fn with(tables: Tables, ports: &[Port], beside: bool) -> Self {
        // Two seconds after boot nothing may look as if it had aged.
        tables.clock.set(2_000_000_000);
        let mut engine =
            Self { tables, ports: Vec::new(), beside, in_drivers: false, switched: 0, drops: Vec::new() };
        for (number, port) in ports.iter().enumerate() {
            engine.ports.push(Port::plain());
            engine.put_port(number, port);
        }
        engine
    }

    /// As the agent does: all that frames are decided by first, and then that it has changed.
    fn put_port(&mut self, number: usize, port: &Port) {
        self.ports[number] = port.clone();
        let port = port.switch_port(index(number), BRIDGE);
        let (index, vlans) = (port.index, port.vlans());
        let Self { tables, ports, .. } = self;
        tables.members.retain(|key, _| key.port != index || vlans.contains_key(&key.vlan));
        let mut native_stat = 0;
        for (vlan, untagged) in &vlans {
            let next = tables.next_stat;
            let key = MemberKey { port: index, vlan: *vlan, unused: 0 };
            let member = tables.members.entry(key).or_insert(Member { untagged: 0, stat: next });
            member.untagged = u32::from(*untagged);
            tables.next_stat += u32::from(member.stat == next);
            if port.native == Some(*vlan) {
                native_stat = member.stat;
            }
        }
        tables.list(ports);
        let old = tables.ports.insert(index, switch_config(&port, native_stat));
        let forwarded = |config: PortConfig| config.flags & port::FORWARDING != 0;
        let stopped = old.is_some_and(forwarded) && !port.forwarding;
        tables.stations.get_mut().retain(|key, station| {
            let station = station.get_mut();
            station.port != index
                || station.flags & station::STATIC == 0 && vlans.contains_key(&key.vlan) && !stopped
        });
        for (vlan, mac) in &port.stations {
            let key = StationKey { bridge: BRIDGE, mac: mac.0, vlan: *vlan };
            let record = Station { port: index, flags: station::STATIC, ..Station::default() };
            tables.stations.get_mut().insert(key, Box::new(UnsafeCell::new(record)));
        }
        tables.count_stations();
        tables.changed();
    }

    /// How often a station was looked up.
    pub fn lookups(&self) -> u64 {
        self.tables.lookups.get()
    }

    /// Frames that came in and went out, of a port in a VLAN.
    pub fn counters(&self, port: usize, vlan: u16) -> VlanStat {
        let key = MemberKey { port: index(port), vlan, unused: 0 };
        let member = self.tables.members.get(&key).expect("a member");
        self.tables.stats.borrow().get(&member.stat).copied().unwrap_or_default()
    }

    /// Of all ports in all VLANs.
    pub fn all_counters(&self) -> HashMap<u32, VlanStat> {
        self.tables.stats.borrow().clone()
    }

    pub fn wait_milliseconds(&self, time: u64) {
        self.tables.clock.set(self.tables.clock.get() + time * 1_000_000);
    }

    pub fn stations_on(&self, port: usize) -> u32 {
        self.tables.stations_on(index(port))
    }

    pub fn not_learned(&self) -> u64 {
        self.tables.not_learned.get()
    }

    /// A super-packet of so many segments into a port.
    pub fn send_segments(&mut self, port: usize, frame: &[u8], segments: u32) -> Vec<(usize, Vec<u8>)> {
        let mut bytes = Bytes::new(frame, index(port), self.beside);
        bytes.segments = segments;
        let verdict = port_in(&mut bytes, &self.tables);
        self.follow(port, bytes, verdict)
    }

    fn follow(&mut self, port: usize, mut bytes: Bytes, verdict: Verdict) -> Vec<(usize, Vec<u8>)> {
        let mut targets: Vec<u32> =
            std::mem::take(&mut bytes.copies).into_iter().map(|(port, _)| port).collect();
        match verdict {
            Verdict::Drop(dropped) => self.drops.push(dropped),
            Verdict::Forward { port, host } => {
                assert_eq!(host, port == BRIDGE, "only the bridge itself is the host");
                targets.push(port);
            }
            Verdict::Pass => {
                let stops = bytes.bytes[..5] == [1, 0x80, 0xc2, 0, 0]
                    && bytes.bytes[5] & 0xf0 == 0
                    && bytes.bytes[5] != 0;
                let unicast_to_host = bytes.bytes[..6] == HOST_MAC;
                targets = match (stops, unicast_to_host) {
                    (true, _) => Vec::new(),
                    (false, true) => vec![BRIDGE],
                    (false, false) => {
                        (0..self.ports.len()).filter(|other| *other != port).map(index).collect()
                    }
                };
            }
        }
        let mut out = Vec::new();
        for target in targets {
            let mut copy = Bytes { port: target, ..bytes.clone() };
            let number = usize::try_from(target - BRIDGE).expect("a port");
            match port_out(&mut copy, &self.tables) {
                Verdict::Pass => {
                    assert_eq!(copy.note, Note::default(), "a note leaves with the frame");
                    out.push((number, copy.on_the_wire()));
                }
                Verdict::Drop(dropped) => self.drops.push(dropped),
                Verdict::Forward { .. } => panic!("forwarded on the way out"),
            }
        }
        out
    }
}

impl Machine for Engine {
    fn send(&mut self, port: usize, frame: &[u8]) -> Vec<(usize, Vec<u8>)> {
        if self.in_drivers && port != HOST {
            let mut bytes = Bytes::new(frame, index(port), false);
            if xdp::early(&mut bytes, &self.tables) {
                self.switched += 1;
                let number = usize::try_from(self.tables.pointed_at.get() - BRIDGE).expect("a port");
                return vec![(number, bytes.on_the_wire())];
            }
            assert_eq!(bytes.on_the_wire(), frame, "what goes on is as it was");
        }
        let mut bytes = Bytes::new(frame, index(port), self.beside);
        bytes.hosts = port == HOST;
        let verdict = port_in(&mut bytes, &self.tables);
        self.follow(port, bytes, verdict)
    }

    fn shows_the_hosts_tags(&self) -> bool {
        true
    }

    fn put(&mut self, number: usize, port: &Port) -> bool {
        self.put_port(number, port);
        true
    }

    fn wait(&mut self, seconds: u64) -> bool {
        self.wait_milliseconds(1000 * seconds);
        true
    }
}
