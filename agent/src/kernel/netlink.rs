//! The kernel over rtnetlink. No process is started.

use std::{
    fs::File,
    net::IpAddr,
    os::fd::{AsRawFd, RawFd},
    sync::{Arc, Mutex, PoisonError, mpsc::RecvTimeoutError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags},
    link::{
        BridgePortState, BridgeStpState, InfoData, InfoVeth, LinkAttribute, LinkFlags, LinkMessage,
        VlanProtocol as WireVlanProtocol,
    },
};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;
use rtnetlink::{
    AddressMessageBuilder, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVlan,
    MulticastGroup,
};
use tokio::{
    io::unix::AsyncFd,
    sync::mpsc::{self, error::TrySendError},
};

use super::{
    Kernel, KernelError,
    fastpath::{drain, listen},
    forwarding,
    links::{ALIAS, At, Link, MAKING, Observed, OperState, Place, PortState},
    listeners::{self, Listener},
    netns, observe,
    places::Places,
    reach::{self, Through},
    rtnl::{Rtnl, io_error},
    step::{LinkStep, NewBridge, NewEnd, NewTun, NewVlan},
    tun::Tun,
    view::View,
};
use crate::model::VlanProtocol;

/// How long a port that is brought up may take until the kernel says that it is.
const CARRIER: Duration = Duration::from_secs(2);

/// How often a link is looked for that is being deleted.
const DELETION_LOOK: Duration = Duration::from_millis(1);

/// How long a gateway may take to answer before a change; one that does not is not waited for afterwards.
const GATEWAY_BEFORE: Duration = Duration::from_secs(2);
/// And after it, when its switch has to learn anew.
const GATEWAY_AFTER: Duration = Duration::from_secs(5);

/// The links of the namespace of the thread that opens it.
#[derive(Debug, Clone)]
pub struct NetlinkKernel {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    rtnl: Mutex<Rtnl>,
    /// Sockets of their own, so that reads never wait for a slow step.
    reader: Mutex<Reader>,
    /// The worker's own namespace.
    own: File,
}

/// What reads need, and what they found last.
#[derive(Debug)]
struct Reader {
    rtnl: Rtnl,
    view: View,
    places: Places,
    last: Arc<Observed>,
}

impl NetlinkKernel {
    /// Opens the sockets in the namespace of this thread.
    pub fn open() -> Result<Self, KernelError> {
        let own = File::open("/proc/thread-self/ns/net")
            .map_err(|error| io_error("open the worker's network namespace", &error))?;
        let again =
            own.try_clone().map_err(|error| io_error("open the worker's network namespace", &error))?;
        let reader = Reader {
            rtnl: Rtnl::open()?,
            places: Places::new(&own)?,
            view: View::open(again)?,
            last: Arc::default(),
        };
        let inner = Inner { rtnl: Mutex::new(Rtnl::open()?), reader: Mutex::new(reader), own };
        Ok(Self { inner: Arc::new(inner) })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        operation: &str,
        task: impl FnOnce(&Inner) -> Result<T, KernelError> + Send + 'static,
    ) -> Result<T, KernelError> {
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || task(&inner))
            .await
            .unwrap_or_else(|error| Err(KernelError::other(operation, error.to_string())))
    }
}

#[async_trait]
impl Kernel for NetlinkKernel {
    async fn observe(&self) -> Result<Arc<Observed>, KernelError> {
        self.blocking("observe", |inner| inner.observe(false)).await
    }

    async fn observe_owners(&self) -> Result<Arc<Observed>, KernelError> {
        self.blocking("observe", |inner| inner.observe(true)).await
    }

    async fn apply(&self, step: &LinkStep) -> Result<(), KernelError> {
        let step = step.clone();
        self.blocking("change a link", move |inner| inner.apply(&step)).await
    }

    async fn reachable(&self, link: &str, host: IpAddr) -> Result<bool, KernelError> {
        let link = link.to_owned();
        self.blocking("look for a gateway", move |inner| inner.reachable(&link, host, GATEWAY_BEFORE)).await
    }

    async fn listeners(&self) -> Result<Vec<Listener>, KernelError> {
        listeners::list().await
    }

    fn events(&self) -> Result<mpsc::Receiver<()>, KernelError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Nsid,
            // Whether anything is forwarded at all.
            MulticastGroup::Ipv4Netconf,
            MulticastGroup::Ipv6Netconf,
        ];
        let socket = listen(NETLINK_ROUTE, groups.map(|group| group as u32))?;
        // Also of the namespaces that this one has a number for: those with the far end of one of its pairs.
        if let Err(error) = socket.set_listen_all_namespaces(true) {
            tracing::warn!(%error, "what happens to far ends in other namespaces is not heard of: grant CAP_NET_BROADCAST");
        }
        // SAFETY: the socket owns its descriptor, which stays open and the same until both are dropped together.
        let events = unsafe { AsyncFd::register(socket) }
            .map_err(|error| io_error("listen to the kernel's events", &error.into()))?;
        // One message in the channel says it all: look again.
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    ready = events.readable() => {
                        let Ok(mut ready) = ready else { return };
                        // What it is about is for `observe` to tell; names in it need not even be text.
                        let heard = drain(events.get_ref(), |_| true);
                        ready.clear_ready();
                        // Full: the last event has not been looked at yet, and covers this one.
                        if heard && matches!(sender.try_send(()), Err(TrySendError::Closed(()))) {
                            return;
                        }
                    }
                    () = sender.closed() => return,
                }
            }
        });
        Ok(receiver)
    }
}

impl Inner {
    fn observe(&self, owners: bool) -> Result<Arc<Observed>, KernelError> {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let Reader { rtnl, view, places, last } = &mut *reader;
        if owners {
            view.doubt_tuns();
        }
        *last = observe::observe(view, places, rtnl, &self.own, last).inspect_err(|_| view.distrust())?;
        Ok(Arc::clone(last))
    }

    fn apply(&self, step: &LinkStep) -> Result<(), KernelError> {
        let operation = step.to_string();
        match step {
            LinkStep::CreateBridge(bridge) => self.create_bridge(&operation, bridge),
            LinkStep::CreateVeth(ends) => self.create_veth(&operation, ends),
            LinkStep::CreateTun(tun) => self.create_tun(&operation, tun),
            LinkStep::CreateVlan(vlan) => self.create_vlan(&operation, vlan),
            LinkStep::DeleteLink(at) => self.at(&at.place, |rtnl| delete(rtnl, &operation, &at.name)),
            LinkStep::SetMaster { port, master } => self.here(|rtnl| {
                let master = match master {
                    Some(master) => index_of(rtnl, &operation, master)?,
                    None => 0,
                };
                let message = named(rtnl, &operation, port)?.controller(master).build();
                rtnl.change(&operation, RouteNetlinkMessage::SetLink(message), 0)
            }),
            LinkStep::SetUp { link, up } => self.at(&link.place, |rtnl| {
                let message = named(rtnl, &operation, &link.name)?;
                let message = if *up { message.up() } else { message.down() };
                rtnl.change(&operation, RouteNetlinkMessage::SetLink(message.build()), 0)
            }),
            LinkStep::AddAddress { link, address } => self.at(&link.place, |rtnl| {
                let message = address_message(index_of(rtnl, &operation, &link.name)?, address);
                rtnl.change(&operation, RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
            }),
            LinkStep::RemoveAddress { link, address } => self.at(&link.place, |rtnl| {
                let message = address_message(index_of(rtnl, &operation, &link.name)?, address);
                rtnl.change(&operation, RouteNetlinkMessage::DelAddress(message), 0)
            }),
            LinkStep::CarryAddress { link, address } => self.at(&link.place, |rtnl| {
                let mut message = address_message(index_of(rtnl, &operation, &link.name)?, &address.net);
                let mut flags = AddressFlags::empty();
                flags.set(AddressFlags::Noprefixroute, !address.prefix_route);
                // It was the host's before: nobody has to be asked whether it is free.
                flags.set(AddressFlags::Nodad, address.net.addr().is_ipv6());
                message.attributes.push(AddressAttribute::Flags(flags));
                message.attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Broadcast(_)));
                message.attributes.extend(address.broadcast.map(AddressAttribute::Broadcast));
                rtnl.change(&operation, RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
            }),
            LinkStep::AddRoute(route) => self.here(|rtnl| {
                let message = RouteNetlinkMessage::NewRoute(route.message());
                rtnl.change(&operation, message, NLM_F_CREATE | NLM_F_EXCL)
            }),
            LinkStep::RemoveRoute(route) => {
                self.here(|rtnl| rtnl.change(&operation, RouteNetlinkMessage::DelRoute(route.message()), 0))
            }
            LinkStep::AddNeighbour(neighbour) => self.here(|rtnl| {
                let message = RouteNetlinkMessage::NewNeighbour(neighbour.message());
                rtnl.change(&operation, message, NLM_F_CREATE | NLM_F_REPLACE)
            }),
            LinkStep::RemoveNeighbour(neighbour) => self.here(|rtnl| {
                rtnl.change(&operation, RouteNetlinkMessage::DelNeighbour(neighbour.message()), 0)
            }),
            LinkStep::SetMac { link, mac } => self.here(|rtnl| {
                let message = named(rtnl, &operation, link)?.address(mac.0.to_vec()).build();
                rtnl.change(&operation, RouteNetlinkMessage::SetLink(message), 0)
            }),
            LinkStep::Reach { link, gateway } => {
                if self.reachable(link, *gateway, GATEWAY_AFTER)? {
                    return Ok(());
                }
                Err(KernelError::errno(operation, Errno::EHOSTUNREACH as i32))
            }
            LinkStep::Move { name, from, to } => self.with_fd(to, |fd| {
                self.at(from, |rtnl| {
                    let message = named(rtnl, &operation, name)?.setns_by_fd(fd).build();
                    rtnl.change(&operation, RouteNetlinkMessage::SetLink(message), 0)
                })
            }),
            LinkStep::Hold { port, bridge: _, hold } => {
                self.here(|rtnl| set_hold(rtnl, &operation, port, *hold))
            }
            LinkStep::SetMtu { link, mtu } => self.at(&link.place, |rtnl| {
                let message = named(rtnl, &operation, &link.name)?.mtu(*mtu).build();
                rtnl.change(&operation, RouteNetlinkMessage::SetLink(message), 0)
            }),
            LinkStep::SetStp { bridge, stp } => self.here(|rtnl| {
                let state = if *stp { BridgeStpState::KernelStp } else { BridgeStpState::Disabled };
                let index = index_of(rtnl, &operation, bridge)?;
                let message = LinkMessageBuilder::<LinkBridge>::new(bridge).index(index).stp_state(state);
                rtnl.change(&operation, RouteNetlinkMessage::NewLink(message.build()), 0)
            }),
            // `HostKernel` does it.
            LinkStep::SetPortVlans { .. } => Err(KernelError::errno(operation, Errno::EOPNOTSUPP as i32)),
            LinkStep::SetIpForwarding(on) => forwarding::set_ipv4(&operation, *on),
            LinkStep::SetIpv6Forwarding(on) => forwarding::set_ipv6(&operation, *on),
        }
    }

    fn reachable(&self, name: &str, host: IpAddr, patience: Duration) -> Result<bool, KernelError> {
        let operation = format!("look for {host} through {name}");
        self.here(|rtnl| {
            let index = index_of(rtnl, &operation, name)?;
            wait_for_carrier(rtnl, &operation, name)?;
            reach::answers(rtnl, &self.own, Through { index, name }, host, patience)
        })
    }

    fn here<T>(&self, task: impl FnOnce(&mut Rtnl) -> Result<T, KernelError>) -> Result<T, KernelError> {
        task(&mut self.rtnl.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Does something in a place.
    fn at<T: Send>(
        &self,
        place: &Place,
        task: impl FnOnce(&mut Rtnl) -> Result<T, KernelError> + Send,
    ) -> Result<T, KernelError> {
        match place {
            Place::Here => self.here(task),
            Place::Named(name) => netns::inside(&netns::open(name)?, name, || task(&mut Rtnl::open()?)),
        }
    }

    fn with_fd<T>(
        &self,
        place: &Place,
        task: impl FnOnce(RawFd) -> Result<T, KernelError>,
    ) -> Result<T, KernelError> {
        match place {
            Place::Here => task(self.own.as_raw_fd()),
            Place::Named(name) => {
                let file = netns::open(name)?;
                task(file.as_raw_fd())
            }
        }
    }

    fn create_bridge(&self, operation: &str, bridge: &NewBridge) -> Result<(), KernelError> {
        let NewBridge { name, stp, mtu, mac, index, ovs: _ } = bridge;
        let stp = if *stp { BridgeStpState::KernelStp } else { BridgeStpState::Disabled };
        let mut message = in_the_making(LinkMessageBuilder::<LinkBridge>::new(name).stp_state(stp));
        if let Some(mtu) = mtu {
            // Another one: see below.
            message = message.mtu(mtu ^ 1);
        }
        if let Some(mac) = mac {
            message = message.address(mac.0.to_vec());
        }
        if let Some(index) = index {
            message = message.index(*index);
        }
        let message = RouteNetlinkMessage::NewLink(message.build());
        self.here(|rtnl| {
            rtnl.change(operation, message, NLM_F_CREATE | NLM_F_EXCL)?;
            // Creation ignores IFLA_IFALIAS. Without its mark it would not be ours, so it goes again.
            let mut finish = || {
                // Only a change pins it. Else the bridge takes the least of its ports (linux: `br_mtu_auto_adjust`).
                if let Some(mtu) = mtu {
                    let message = named(rtnl, operation, name)?.mtu(*mtu).build();
                    rtnl.change(operation, RouteNetlinkMessage::SetLink(message), 0)?;
                }
                mark(rtnl, operation, name)
            };
            finish().inspect_err(|_| drop(delete(rtnl, operation, name)))
        })
    }

    /// Both ends are made where they belong, so their names need not be free anywhere else.
    fn create_veth(&self, operation: &str, ends: &[NewEnd; 2]) -> Result<(), KernelError> {
        let [one, two] = ends;
        self.with_fd(&one.at.place, |fd1| {
            self.with_fd(&two.at.place, |fd2| {
                let peer = end(LinkUnspec::new_with_name(&two.at.name), two, fd2);
                let message = end(LinkMessageBuilder::<LinkVeth>::new(&one.at.name, &two.at.name), one, fd1)
                    .set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())));
                let message = RouteNetlinkMessage::NewLink(message.build());
                self.here(|rtnl| rtnl.change(operation, message, NLM_F_CREATE | NLM_F_EXCL))
            })
        })?;
        let marked = ends
            .iter()
            .try_for_each(|NewEnd { at, .. }| self.at(&at.place, |rtnl| mark(rtnl, operation, &at.name)));
        marked.inspect_err(|_| {
            // Deleting one end deletes both.
            drop(self.at(&one.at.place, |rtnl| delete(rtnl, operation, &one.at.name)));
        })
    }
}

impl Inner {
    /// The device goes again with its file unless everything succeeds.
    fn create_tun(&self, operation: &str, tun: &NewTun) -> Result<(), KernelError> {
        let device = Tun::create(&self.own, operation, tun)?;
        self.here(|rtnl| {
            let mut message = named(rtnl, operation, &tun.name)?.alias(ALIAS);
            if let Some(mtu) = tun.mtu {
                message = message.mtu(mtu);
            }
            if let Some(mac) = tun.mac.filter(|_| tun.tap) {
                message = message.address(mac.0.to_vec());
            }
            rtnl.change(operation, RouteNetlinkMessage::SetLink(message.build()), 0)
        })?;
        device.keep(operation)
    }

    fn create_vlan(&self, operation: &str, vlan: &NewVlan) -> Result<(), KernelError> {
        let NewVlan { name, parent, tag, mtu, mac, index } = vlan;
        let protocol = match tag.protocol {
            VlanProtocol::Dot1q => WireVlanProtocol::Ieee8021Q,
            VlanProtocol::Dot1ad => WireVlanProtocol::Ieee8021Ad,
        };
        self.here(|rtnl| {
            let parent = index_of(rtnl, operation, parent)?;
            let mut message = in_the_making(LinkVlan::new(name, parent, tag.id).protocol(protocol));
            if let Some(mtu) = mtu {
                message = message.mtu(*mtu);
            }
            if let Some(mac) = mac {
                message = message.address(mac.0.to_vec());
            }
            if let Some(index) = index {
                message = message.index(*index);
            }
            let message = RouteNetlinkMessage::NewLink(message.build());
            rtnl.change(operation, message, NLM_F_CREATE | NLM_F_EXCL).map_err(no_vlans)?;
            mark(rtnl, operation, name).inspect_err(|_| drop(delete(rtnl, operation, name)))
        })
    }
}

/// Says what is missing when the kernel does not know VLAN links at all.
fn no_vlans(mut error: KernelError) -> KernelError {
    let unknown = error.extack.as_deref().is_none_or(|text| text.contains("Unknown device type"));
    if error.errno == Some(Errno::EOPNOTSUPP as i32) && unknown {
        error.extack =
            Some("VLAN links need the kernel's module 8021q, which this kernel does not have".into());
    }
    error
}

fn end<T>(mut message: LinkMessageBuilder<T>, end: &NewEnd, namespace: RawFd) -> LinkMessageBuilder<T> {
    let NewEnd { at: At { place, .. }, mtu, mac, index } = end;
    message = in_the_making(message);
    if let Some(mtu) = mtu {
        message = message.mtu(*mtu);
    }
    if let Some(mac) = mac {
        message = message.address(mac.0.to_vec());
    }
    if let Some(index) = index {
        message = message.index(*index);
    }
    match place {
        Place::Here => message,
        Place::Named(_) => message.setns_by_fd(namespace),
    }
}

fn find(rtnl: &mut Rtnl, operation: &str, name: &str) -> Result<Link, KernelError> {
    let request = LinkUnspec::new_with_name(name).build();
    let answers = rtnl.get(operation, RouteNetlinkMessage::GetLink(request))?;
    let found = answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(message) => Some(observe::single(message)),
        _ => None,
    });
    found.ok_or_else(|| KernelError::errno(operation, Errno::ENODEV as i32))
}

fn index_of(rtnl: &mut Rtnl, operation: &str, name: &str) -> Result<u32, KernelError> {
    Ok(find(rtnl, operation, name)?.index)
}

/// A message about an existing link, by index: by name the kernel would take it for a rename.
fn named(
    rtnl: &mut Rtnl,
    operation: &str,
    name: &str,
) -> Result<LinkMessageBuilder<LinkUnspec>, KernelError> {
    Ok(LinkUnspec::new_with_index(index_of(rtnl, operation, name)?))
}

/// What is made is recognised, although creation ignores its alias.
fn in_the_making<T>(message: LinkMessageBuilder<T>) -> LinkMessageBuilder<T> {
    message.append_extra_attribute(LinkAttribute::Group(MAKING))
}

/// Ends the making of a link.
fn mark(rtnl: &mut Rtnl, operation: &str, name: &str) -> Result<(), KernelError> {
    let message = named(rtnl, operation, name)?.alias(ALIAS);
    let message = message.append_extra_attribute(LinkAttribute::Group(0)).build();
    rtnl.change(operation, RouteNetlinkMessage::SetLink(message), 0)
}

/// Deletes a link of the thread's namespace, and returns when it is gone.
///
/// The kernel lets go of RTNL then, but keeps who asked for tens of milliseconds more, until every processor has
/// forgotten the link (linux: `netdev_run_todo`, `rcu_barrier`). Nothing that follows needs that, so a thread of its own waits for it.
fn delete(rtnl: &mut Rtnl, operation: &str, name: &str) -> Result<(), KernelError> {
    let index = index_of(rtnl, operation, name)?;
    let mut message = LinkMessage::default();
    message.header.index = index;
    let (mut own, asked) = (Rtnl::open()?, operation.to_owned());
    let (sender, answer) = std::sync::mpsc::channel();
    let ask = move || {
        let result = own.change(&asked, RouteNetlinkMessage::DelLink(message), 0);
        // Nobody listens any more when the link was seen to be gone.
        let _ = sender.send(result);
    };
    (std::thread::Builder::new().name("delete-link".to_owned()).spawn(ask))
        .map_err(|error| io_error(operation, &error))?;
    loop {
        match answer.recv_timeout(DELETION_LOOK) {
            Ok(result) => return result,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(KernelError::other(operation, "nobody waited for the kernel's answer"));
            }
            Err(RecvTimeoutError::Timeout) if is_gone(rtnl, operation, index) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// Whether the kernel says so; when it cannot be asked, its answer to the deletion tells.
fn is_gone(rtnl: &mut Rtnl, operation: &str, index: u32) -> bool {
    let request = LinkUnspec::new_with_index(index).build();
    let looked = rtnl.get(operation, RouteNetlinkMessage::GetLink(request));
    looked.is_err_and(|error| error.errno == Some(Errno::ENODEV as i32))
}

fn address_message(index: u32, address: &IpNet) -> netlink_packet_route::address::AddressMessage {
    match address {
        IpNet::V4(net) => AddressMessageBuilder::<std::net::Ipv4Addr>::new()
            .index(index)
            .address(net.addr(), net.prefix_len())
            .build(),
        IpNet::V6(net) => AddressMessageBuilder::<std::net::Ipv6Addr>::new()
            .index(index)
            .address(net.addr(), net.prefix_len())
            .build(),
    }
}

/// Guards a port, and takes it out of the forwarding state as soon as the kernel allows it.
///
/// The state that does it is listening: with spanning tree off the kernel turns blocking into forwarding at
/// once (linux: `br_port_state_selection`, `br_make_forwarding`), while listening passes nothing and stays.
/// Yet the state alone has a window: it can be set only when the link is up, when it forwards already, and it is
/// forgotten when the carrier goes and comes. So the guard comes first: locked (nothing unknown comes in),
/// not learning (so everything is unknown), no flooding (nothing but known unicast goes out, and nothing is
/// known to be there). It can be set on a port that is down, and stays.
fn set_hold(rtnl: &mut Rtnl, operation: &str, port: &str, hold: bool) -> Result<(), KernelError> {
    let index = index_of(rtnl, operation, port)?;
    let guard = LinkBridgePort::new(index)
        .learning(!hold)
        .flood(!hold)
        .mcast_flood(!hold)
        .bcast_flood(!hold)
        .locked(hold)
        .build();
    rtnl.change(operation, RouteNetlinkMessage::NewLink(guard), 0)?;
    let state = if hold { BridgePortState::Listening } else { BridgePortState::Forwarding };
    let now = find(rtnl, operation, port)?.port.map(|port| port.state);
    if !hold && now == Some(PortState::Forwarding) {
        return Ok(());
    }
    if !wait_for_carrier(rtnl, operation, port)? {
        // Nothing to block without a carrier; the guard is on for when it comes.
        return Ok(());
    }
    let message = LinkBridgePort::new(index).state(state).build();
    match rtnl.change(operation, RouteNetlinkMessage::NewLink(message), 0) {
        // The carrier went again: as above. Or spanning tree took over the port's state meanwhile.
        Err(error) if matches!(error.errno.map(Errno::from_raw), Some(Errno::ENETDOWN | Errno::EBUSY)) => {
            Ok(())
        }
        result => result,
    }
}

/// Waits until a link that is meant to be up is: the kernel sets the operational state a little later.
fn wait_for_carrier(rtnl: &mut Rtnl, operation: &str, name: &str) -> Result<bool, KernelError> {
    let deadline = Instant::now() + CARRIER;
    loop {
        let request = LinkUnspec::new_with_name(name).build();
        let answers = rtnl.get(operation, RouteNetlinkMessage::GetLink(request))?;
        let Some(RouteNetlinkMessage::NewLink(message)) = answers.into_iter().next() else {
            return Ok(false);
        };
        // No lower layer: the peer is down, and there is no telling when it comes up.
        let lower_up = message.header.flags.contains(LinkFlags::LowerUp);
        let link = observe::single(message);
        if link.operstate == OperState::Up {
            return Ok(true);
        }
        if !link.up || !lower_up || Instant::now() > deadline {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
