//! A machine in memory, for tests: links, namespaces and a NAT data plane, which can fail at step n.
//!
//! It knows as much of the kernel's behaviour as plans rely on: names are unique per namespace, a moved link
//! loses its master and addresses, a veth carries when both ends are up, a TAP when a program has it open (here
//! none ever has), a port forwards when it carries, a VLAN link lives and dies with its parent.

mod switch;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use ipnet::Ipv4Net;
use nix::errno::Errno;
use telecluster_common::drop::DropReason;
use tokio::sync::mpsc;

use super::{
    Kernel, KernelError,
    dataplane::{
        Attachment, Counters, DataPlane, FastPath, FastPort, Flow, HostAddresses, MapPressure, NatRule, Slot,
    },
    filter::{FilterRule, Matched, PacketFilter},
    links::{
        ALIAS, Address, At, BridgePort, Link, LinkKind, Mac, Namespace, Observed, OperState, Peer, Place,
        PortState, TunInfo,
    },
    listeners::Listener,
    observe,
    ovs::Presence,
    routes::Route,
    step::LinkStep,
    switch::SwitchPort,
};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes one step fail; shared by the parts of a machine.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Mutex<Fault>>);

#[derive(Debug, Default)]
struct Fault {
    countdown: Option<usize>,
    steps: Vec<String>,
}

impl Faults {
    /// The step after `n` more steps fails, once.
    pub fn fail_after(&self, n: usize) {
        lock(&self.0).countdown = Some(n);
    }

    /// Nothing fails any more; answers whether something would still have.
    pub fn disarm(&self) -> bool {
        lock(&self.0).countdown.take().is_some()
    }

    /// The steps so far, failed ones included; forgets them.
    pub fn take_steps(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.0).steps)
    }

    /// Says that a step is about to be made; an error when it is the one that fails.
    pub fn step(&self, operation: &str) -> Result<(), KernelError> {
        let mut fault = lock(&self.0);
        fault.steps.push(operation.to_owned());
        match fault.countdown {
            None => Ok(()),
            Some(0) => {
                fault.countdown = None;
                Err(KernelError::errno(operation, Errno::EIO as i32))
            }
            Some(n) => {
                fault.countdown = Some(n - 1);
                Ok(())
            }
        }
    }
}

/// Links and namespaces in memory.
#[derive(Debug)]
pub struct FakeKernel {
    world: Mutex<Observed>,
    faults: Faults,
    listeners: Mutex<Vec<mpsc::Sender<()>>>,
    /// Links through which nobody answers.
    deaf: Mutex<BTreeSet<String>>,
    /// Sockets of the host.
    sockets: Mutex<Vec<Listener>>,
}

/// The gateway of the uplink.
pub const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

impl FakeKernel {
    /// A worker with `lo`, the uplink `ens3` (192.0.2.10/24, default route), `ens4`, and the namespaces
    /// `lab1` and `lab2`.
    pub fn new(faults: Faults) -> Self {
        let mut ens3 = device(2, "ens3", LinkKind::Physical);
        ens3.addresses.push(global("192.0.2.10/24"));
        let mut lo = device(1, "lo", LinkKind::Loopback);
        lo.mac = None;
        let namespace = |name: &str| Namespace { name: name.to_owned(), links: vec![lo.clone()] };
        let world = Observed {
            ovs: Presence::Absent,
            links: vec![lo.clone(), ens3, device(3, "ens4", LinkKind::Physical)],
            namespaces: vec![namespace("lab1"), namespace("lab2")],
            routes: vec![Route::new(Ipv4Net::default().into(), Some(GATEWAY), 2)],
            neighbours: Vec::new(),
            default_route: Some(2),
            ip_forward: false,
            ipv6_forward: Some(false),
        };
        Self {
            world: Mutex::new(world),
            faults,
            listeners: Mutex::new(Vec::new()),
            deaf: Mutex::default(),
            sockets: Mutex::default(),
        }
    }

    /// A program of the host listens.
    pub fn listen(&self, listener: Listener) {
        lock(&self.sockets).push(listener);
    }

    /// Changes the machine behind the worker's back; nobody is told until [`Self::notify`].
    pub fn edit(&self, change: impl FnOnce(&mut Observed)) {
        let mut world = lock(&self.world);
        change(&mut world);
        world.links.sort_by_key(|link| link.index);
        settle(&mut world);
    }

    /// Does a step behind the worker's back.
    pub fn act(&self, step: &LinkStep) -> Result<(), KernelError> {
        let mut world = lock(&self.world);
        let mut next = world.clone();
        apply(&mut next, step).map_err(|errno| KernelError::errno(step.to_string(), errno as i32))?;
        settle(&mut next);
        *world = next;
        Ok(())
    }

    /// From now on nobody answers through that link.
    pub fn deafen(&self, link: &str) {
        lock(&self.deaf).insert(link.to_owned());
    }

    /// Tells the listeners that something has changed.
    pub fn notify(&self) {
        lock(&self.listeners).retain(|listener| match listener.try_send(()) {
            Ok(()) | Err(mpsc::error::TrySendError::Full(())) => true,
            Err(mpsc::error::TrySendError::Closed(())) => false,
        });
    }
}

#[async_trait]
impl Kernel for FakeKernel {
    async fn observe(&self) -> Result<Arc<Observed>, KernelError> {
        Ok(Arc::new(lock(&self.world).clone()))
    }

    async fn apply(&self, step: &LinkStep) -> Result<(), KernelError> {
        self.faults.step(&step.to_string())?;
        match step {
            LinkStep::Reach { link, gateway } if !self.reachable(link, *gateway).await? => {
                Err(KernelError::errno(step.to_string(), Errno::EHOSTUNREACH as i32))
            }
            step => self.act(step),
        }
    }

    async fn reachable(&self, link: &str, _host: IpAddr) -> Result<bool, KernelError> {
        Ok(!lock(&self.deaf).contains(link))
    }

    async fn listeners(&self) -> Result<Vec<Listener>, KernelError> {
        Ok(lock(&self.sockets).clone())
    }

    fn events(&self) -> Result<mpsc::Receiver<()>, KernelError> {
        let (sender, receiver) = mpsc::channel(1);
        lock(&self.listeners).push(sender);
        Ok(receiver)
    }
}

/// A link that is up.
pub(crate) fn device(index: u32, name: &str, kind: LinkKind) -> Link {
    Link {
        index,
        name: name.to_owned(),
        kind,
        up: true,
        operstate: OperState::Up,
        mtu: 1500,
        mac: Some(mac_of(index)),
        alias: None,
        half_made: false,
        master: None,
        peer: None,
        addresses: Vec::new(),
        port: None,
        parent: None,
        vlan: None,
        tun: None,
    }
}

fn mac_of(index: u32) -> Mac {
    let [a, b, c, d] = index.to_be_bytes();
    Mac([2, 0, a, b, c, d])
}

fn global(net: &str) -> Address {
    // Only called with literals.
    Address::plain(net.parse().unwrap_or_default())
}

type Step<T = ()> = Result<T, Errno>;

fn links_mut<'a>(world: &'a mut Observed, place: &Place) -> Step<&'a mut Vec<Link>> {
    match place {
        Place::Here => Ok(&mut world.links),
        Place::Named(name) => world
            .namespaces
            .iter_mut()
            .find(|ns| ns.name == *name)
            .map(|ns| &mut ns.links)
            .ok_or(Errno::ENOENT),
    }
}

fn link_mut<'a>(world: &'a mut Observed, at: &At) -> Step<&'a mut Link> {
    links_mut(world, &at.place)?.iter_mut().find(|link| link.name == at.name).ok_or(Errno::ENODEV)
}

fn new_link(world: &mut Observed, at: &At, kind: LinkKind, index: Option<u32>) -> Step<Link> {
    // Indexes are unique on the whole fake machine, so that a moved link can keep its own.
    let free = world.everywhere().map(|(_, link)| link.index).max().unwrap_or(0) + 1;
    let links = links_mut(world, &at.place)?;
    if links.iter().any(|link| link.name == at.name) {
        return Err(Errno::EEXIST);
    }
    if index.is_some_and(|index| links.iter().any(|link| link.index == index)) {
        return Err(Errno::EBUSY);
    }
    let mut link = device(index.unwrap_or(free), &at.name, kind);
    link.up = false;
    link.operstate = OperState::Down;
    link.alias = Some(ALIAS.to_owned());
    Ok(link)
}

fn apply(world: &mut Observed, step: &LinkStep) -> Step {
    match step {
        LinkStep::CreateBridge(bridge) => {
            let at = At::here(&bridge.name);
            let mut link = new_link(world, &at, LinkKind::Bridge { stp: bridge.stp }, bridge.index)?;
            link.mtu = bridge.mtu.unwrap_or(link.mtu);
            link.mac = bridge.mac.or(link.mac);
            insert(world, &at.place, link)
        }
        LinkStep::CreateVeth([one, two]) => {
            let mut made = Vec::new();
            for end in [one, two] {
                let mut link = new_link(world, &end.at, LinkKind::Veth, end.index)?;
                link.mtu = end.mtu.unwrap_or(link.mtu);
                link.mac = end.mac.or(link.mac);
                insert(world, &end.at.place, link.clone())?;
                made.push(Peer { place: end.at.place.clone(), index: link.index });
            }
            link_mut(world, &one.at)?.peer = made.pop();
            link_mut(world, &two.at)?.peer = made.pop();
            Ok(())
        }
        LinkStep::CreateTun(tun) => {
            let at = At::here(&tun.name);
            let kind = if tun.tap { LinkKind::Tap } else { LinkKind::Tun };
            let mut link = new_link(world, &at, kind, tun.index)?;
            link.mtu = tun.mtu.unwrap_or(link.mtu);
            link.mac = tun.mac.or(link.mac).filter(|_| tun.tap);
            link.tun = Some(TunInfo {
                owner: tun.owner,
                group: tun.group,
                persist: true,
                multi_queue: tun.multi_queue,
                vnet_hdr: tun.vnet_hdr,
                open: false,
            });
            insert(world, &at.place, link)
        }
        LinkStep::CreateVlan(vlan) => {
            let at = At::here(&vlan.name);
            let parent = link_mut(world, &At::here(&vlan.parent))?.clone();
            if world.on_top_of(&at.place, &parent).any(|link| link.vlan == Some(vlan.tag)) {
                return Err(Errno::EEXIST);
            }
            let mut link = new_link(world, &at, LinkKind::Vlan, vlan.index)?;
            link.mtu = vlan.mtu.unwrap_or(parent.mtu);
            link.mac = vlan.mac.or(parent.mac);
            (link.parent, link.vlan) = (Some(parent.index), Some(vlan.tag));
            insert(world, &at.place, link)
        }
        LinkStep::DeleteLink(at) => {
            let link = link_mut(world, at)?.clone();
            let on_top: Vec<_> =
                world.on_top_of(&at.place, &link).map(|top| At::new(at.place.clone(), &top.name)).collect();
            for top in on_top {
                apply(world, &LinkStep::DeleteLink(top))?;
            }
            links_mut(world, &at.place)?.retain(|other| other.index != link.index);
            for port in links_mut(world, &at.place)?.iter_mut().filter(|port| port.master == Some(link.index))
            {
                port.master = None;
                port.port = None;
            }
            if let Some(peer) = link.peer {
                links_mut(world, &peer.place)?.retain(|other| other.index != peer.index);
            }
            Ok(())
        }
        LinkStep::SetMaster { port, master } => {
            let master = match master {
                None => None,
                Some(name) => {
                    Some(world.link(name).filter(|link| link.is_bridge()).ok_or(Errno::ENODEV)?.index)
                }
            };
            let link = link_mut(world, &At::here(port))?;
            if link.is_bridge() && master.is_some() {
                return Err(Errno::ELOOP);
            }
            link.master = master;
            link.port = master.map(|_| BridgePort::new(PortState::Disabled));
            Ok(())
        }
        LinkStep::SetUp { link, up } => {
            let index = link_mut(world, link)?.index;
            let parent = link_mut(world, link)?.parent;
            let links = links_mut(world, &link.place)?;
            let lower = links.iter().find(|other| Some(other.index) == parent);
            if *up && lower.is_some_and(|lower| !lower.up) {
                return Err(Errno::ENETDOWN);
            }
            for other in links.iter_mut() {
                // VLANs go down and come up with their parent.
                if other.index == index || other.parent == Some(index) {
                    other.up = *up;
                }
            }
            Ok(())
        }
        LinkStep::AddAddress { link, address } => {
            let link = link_mut(world, link)?;
            if link.addresses.iter().any(|known| known.net == *address) {
                return Err(Errno::EEXIST);
            }
            link.addresses.push(Address::plain(*address));
            Ok(())
        }
        LinkStep::RemoveAddress { link, address } => {
            let link = link_mut(world, link)?;
            let count = link.addresses.len();
            link.addresses.retain(|known| known.net != *address);
            if link.addresses.len() == count { Err(Errno::EADDRNOTAVAIL) } else { Ok(()) }
        }
        LinkStep::CarryAddress { link, address } => {
            let link = link_mut(world, link)?;
            if link.addresses.iter().any(|known| known.net == address.net) {
                return Err(Errno::EEXIST);
            }
            link.addresses.push(address.clone());
            Ok(())
        }
        LinkStep::AddRoute(route) => {
            if world.routes.contains(route) {
                return Err(Errno::EEXIST);
            }
            world.routes.push(route.clone());
            Ok(())
        }
        LinkStep::RemoveRoute(route) => {
            let count = world.routes.len();
            world.routes.retain(|known| known != route);
            if world.routes.len() == count { Err(Errno::ESRCH) } else { Ok(()) }
        }
        LinkStep::AddNeighbour(neighbour) => {
            world
                .neighbours
                .retain(|known| (known.interface, known.ip) != (neighbour.interface, neighbour.ip));
            world.neighbours.push(*neighbour);
            Ok(())
        }
        LinkStep::RemoveNeighbour(neighbour) => {
            let count = world.neighbours.len();
            world.neighbours.retain(|known| known != neighbour);
            if world.neighbours.len() == count { Err(Errno::ENOENT) } else { Ok(()) }
        }
        LinkStep::SetMac { link, mac } => {
            link_mut(world, &At::here(link))?.mac = Some(*mac);
            Ok(())
        }
        LinkStep::Reach { .. } => Ok(()),
        LinkStep::Move { name, from, to } => {
            if links_mut(world, to)?.iter().any(|link| link.name == *name) {
                return Err(Errno::EEXIST);
            }
            let mut link = link_mut(world, &At::new(from.clone(), name))?.clone();
            links_mut(world, from)?.retain(|other| other.index != link.index);
            (link.master, link.port, link.up) = (None, None, false);
            link.addresses.clear();
            let (index, peer) = (link.index, link.peer.clone());
            insert(world, to, link)?;
            if let Some(peer) = peer {
                for end in links_mut(world, &peer.place)?.iter_mut().filter(|end| end.index == peer.index) {
                    end.peer = Some(Peer { place: to.clone(), index });
                }
            }
            Ok(())
        }
        LinkStep::Hold { port, bridge: _, hold } => {
            let link = link_mut(world, &At::here(port))?;
            let state = link.port.as_mut().ok_or(Errno::EOPNOTSUPP)?;
            state.guarded = *hold;
            if state.state != PortState::Disabled {
                state.state = if *hold { PortState::Listening } else { PortState::Forwarding };
            }
            Ok(())
        }
        LinkStep::SetMtu { link, mtu } => {
            link_mut(world, link)?.mtu = *mtu;
            Ok(())
        }
        LinkStep::SetStp { bridge, stp } => {
            link_mut(world, &At::here(bridge))?.kind = LinkKind::Bridge { stp: *stp };
            Ok(())
        }
        LinkStep::SetIpv6Forwarding(on) => {
            world.ipv6_forward = Some(*on);
            Ok(())
        }
        // It has no Open vSwitch.
        LinkStep::SetPortVlans { .. } => Err(Errno::EOPNOTSUPP),
        LinkStep::SetIpForwarding(on) => {
            world.ip_forward = *on;
            Ok(())
        }
    }
}

fn insert(world: &mut Observed, place: &Place, link: Link) -> Step {
    let links = links_mut(world, place)?;
    links.push(link);
    links.sort_by_key(|link| link.index);
    Ok(())
}

/// What the kernel changes by itself: carrier, the state of bridge ports, routes that lead nowhere.
fn settle(world: &mut Observed) {
    let Observed { links, routes, neighbours, .. } = world;
    let there = |index: u32| links.iter().any(|link| link.index == index);
    routes.retain(|route| there(route.interface));
    neighbours.retain(|neighbour| there(neighbour.interface));
    // The order of a listing says nothing.
    routes.sort_by_key(|route| (route.interface, route.metric, route.destination));
    world.default_route = observe::default_route(routes);
    let snapshot = world.clone();
    let carries = |link: &Link| match &link.peer {
        Some(_) => link.up && snapshot.peer_of(link).is_some_and(|(_, peer)| peer.up),
        // No program has it open.
        None if link.tun.is_some() => false,
        None => link.up,
    };
    let stp = |link: &Link| {
        let master = link.master.and_then(|index| snapshot.by_index(&Place::Here, index));
        matches!(master.map(|master| &master.kind), Some(LinkKind::Bridge { stp: true }))
    };
    let all = std::iter::once(&mut world.links).chain(world.namespaces.iter_mut().map(|ns| &mut ns.links));
    for link in all.flatten() {
        let carrier = carries(link);
        link.operstate = match (link.up, carrier) {
            (true, true) => OperState::Up,
            (true, false) if link.tun.is_some() => OperState::Down,
            (true, false) => OperState::LowerLayerDown,
            (false, _) => OperState::Down,
        };
        let first = if stp(link) { PortState::Listening } else { PortState::Forwarding };
        if let Some(port) = &mut link.port {
            match (carrier, port.state) {
                (false, _) => port.state = PortState::Disabled,
                (true, PortState::Disabled) => port.state = first,
                (true, _) => {}
            }
        }
    }
}

/// A NAT data plane in memory.
#[derive(Debug)]
pub struct FakeDataPlane {
    nat: Mutex<Nat>,
    switch: Mutex<BTreeMap<u32, SwitchPort>>,
    faults: Faults,
}

/// What the fake data plane holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nat {
    pub attached: BTreeSet<u32>,
    pub rules: BTreeMap<Slot, NatRule>,
    pub addresses: HostAddresses,
    pub ports: Vec<FastPort>,
    pub turns: BTreeSet<u32>,
    pub counters: BTreeMap<Slot, Counters>,
    pub flows: Vec<Flow>,
    /// Times that garbage was collected.
    pub collections: usize,
}

impl FakeDataPlane {
    pub fn new(faults: Faults) -> Self {
        Self { nat: Mutex::default(), switch: Mutex::default(), faults }
    }

    pub fn nat(&self) -> Nat {
        lock(&self.nat).clone()
    }

    pub fn edit(&self, change: impl FnOnce(&mut Nat)) {
        change(&mut lock(&self.nat));
    }
}

impl DataPlane for FakeDataPlane {
    fn backend(&self) -> &'static str {
        "fake"
    }

    fn attach(&self, uplink: u32) -> Result<(), KernelError> {
        self.faults.step(&format!("attach to {uplink}"))?;
        lock(&self.nat).attached.insert(uplink);
        Ok(())
    }

    fn detach(&self, uplink: u32) -> Result<(), KernelError> {
        self.faults.step(&format!("detach from {uplink}"))?;
        lock(&self.nat).attached.remove(&uplink);
        Ok(())
    }

    fn attachments(&self) -> Vec<Attachment> {
        lock(&self.nat)
            .attached
            .iter()
            .map(|uplink| Attachment { uplink: *uplink, mechanism: "fake" })
            .collect()
    }

    fn put_rule(&self, slot: Slot, rule: &NatRule) -> Result<(), KernelError> {
        let operation = format!("put rule {}", slot.0);
        self.faults.step(&operation)?;
        let mut nat = lock(&self.nat);
        match nat.rules.get(&slot) {
            Some(other) if other != rule => Err(KernelError::errno(operation, Errno::EEXIST as i32)),
            Some(_) => Ok(()),
            None => {
                nat.rules.insert(slot, rule.clone());
                Ok(())
            }
        }
    }

    fn remove_rule(&self, slot: Slot, rule: &NatRule) -> Result<(), KernelError> {
        let operation = format!("remove rule {}", slot.0);
        self.faults.step(&operation)?;
        let mut nat = lock(&self.nat);
        if nat.rules.get(&slot) != Some(rule) {
            return Err(KernelError::errno(operation, Errno::ENOENT as i32));
        }
        nat.rules.remove(&slot);
        nat.counters.remove(&slot);
        nat.flows.retain(|flow| flow.slot != slot);
        Ok(())
    }

    fn clear_slot(&self, slot: Slot) -> Result<(), KernelError> {
        self.faults.step(&format!("clear slot {}", slot.0))?;
        lock(&self.nat).rules.remove(&slot);
        Ok(())
    }

    fn rules(&self) -> Result<BTreeMap<Slot, Option<NatRule>>, KernelError> {
        Ok(lock(&self.nat).rules.iter().map(|(slot, rule)| (*slot, Some(rule.clone()))).collect())
    }

    fn set_addresses(&self, addresses: &HostAddresses) -> Result<(), KernelError> {
        self.faults.step("set addresses")?;
        lock(&self.nat).addresses = addresses.clone();
        Ok(())
    }

    fn set_ports(&self, ports: &[FastPort]) -> Result<(), KernelError> {
        self.faults.step("set fast ports")?;
        lock(&self.nat).ports = ports.to_vec();
        Ok(())
    }

    fn set_turns(&self, interfaces: &BTreeSet<u32>) -> Result<(), KernelError> {
        self.faults.step("set where packets turn back")?;
        lock(&self.nat).turns.clone_from(interfaces);
        Ok(())
    }

    fn fast_path(&self) -> FastPath {
        FastPath::Open
    }

    fn counters(&self, slot: Slot) -> Result<Counters, KernelError> {
        Ok(lock(&self.nat).counters.get(&slot).copied().unwrap_or_default())
    }

    fn flows(&self) -> Result<Vec<Flow>, KernelError> {
        Ok(lock(&self.nat).flows.clone())
    }

    fn drops(&self) -> Result<Vec<(DropReason, u64)>, KernelError> {
        Ok(DropReason::ALL.iter().map(|reason| (*reason, 0)).collect())
    }

    fn pressure(&self) -> Result<Vec<MapPressure>, KernelError> {
        let entries = lock(&self.nat).flows.len() as u64;
        Ok(vec![MapPressure { map: "flow4", entries, capacity: 65536 }])
    }

    fn collect_garbage(&self) -> Result<usize, KernelError> {
        lock(&self.nat).collections += 1;
        Ok(0)
    }
}

/// A packet filter in memory.
#[derive(Debug)]
pub struct FakeFilter {
    rules: Mutex<Vec<FilterRule>>,
    listeners: Mutex<Vec<mpsc::Sender<()>>>,
    faults: Faults,
}

impl FakeFilter {
    pub fn new(faults: Faults) -> Self {
        Self { rules: Mutex::default(), listeners: Mutex::default(), faults }
    }

    /// As `iptables -F` of somebody else.
    pub fn flush(&self) {
        lock(&self.rules).clear();
        for listener in lock(&self.listeners).iter() {
            // One message says it all: a full channel has it.
            let _ = listener.try_send(());
        }
    }

    pub fn rules(&self) -> Vec<FilterRule> {
        lock(&self.rules).clone()
    }
}

impl PacketFilter for FakeFilter {
    fn change(&self, before: &[FilterRule], after: &[FilterRule]) -> Result<(), KernelError> {
        self.faults.step("change the firewall")?;
        let mut rules = lock(&self.rules);
        if *rules != before {
            return Err(KernelError::errno("change the firewall", Errno::ESTALE as i32));
        }
        *rules = after.to_vec();
        Ok(())
    }

    fn events(&self) -> Result<mpsc::Receiver<()>, KernelError> {
        let (sender, receiver) = mpsc::channel(1);
        lock(&self.listeners).push(sender);
        Ok(receiver)
    }

    fn restore(&self, rules: &[FilterRule]) -> Result<bool, KernelError> {
        self.faults.step("restore the firewall")?;
        let mut held = lock(&self.rules);
        let changed = *held != rules;
        *held = rules.to_vec();
        Ok(changed)
    }

    fn matched(&self) -> Result<BTreeMap<String, Matched>, KernelError> {
        Ok(lock(&self.rules).iter().map(|rule| (rule.id.clone(), Matched::default())).collect())
    }
}
