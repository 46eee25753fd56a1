//! A machine in memory, for tests: links, namespaces and a NAT data plane, which can fail at step n.
//!
//! It knows as much of the kernel's behaviour as plans rely on: names are unique per namespace, a moved link
//! loses its master and addresses, a veth carries when both ends are up, a TAP when a program has it open (here
//! none ever has), a port forwards when it carries, a VLAN link lives and dies with its parent.

mod filter;
mod machine;
mod nat;
mod switch;

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use ipnet::Ipv4Net;
use nix::errno::Errno;
use tokio::sync::mpsc;

pub(crate) use self::machine::device;
use self::machine::{apply, global, settle};
pub use self::{
    filter::FakeFilter,
    nat::{FakeDataPlane, Nat},
};
use super::{
    Kernel, KernelError,
    links::{LinkKind, Namespace, Observed},
    listeners::Listener,
    ovs::Presence,
    routes::Route,
    step::LinkStep,
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
        let namespace = |name: &str| Namespace { name: name.to_owned(), links: vec![lo.clone()].into() };
        let world = Observed {
            ovs: Presence::Absent,
            links: vec![lo.clone(), ens3, device(3, "ens4", LinkKind::Physical)].into(),
            namespaces: vec![namespace("lab1"), namespace("lab2")],
            own_names: Vec::new(),
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
        world.links.sort();
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

    /// They answer again.
    pub fn hear(&self, link: &str) {
        lock(&self.deaf).remove(link);
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
