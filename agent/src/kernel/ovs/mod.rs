//! Open vSwitch through its database, without `ovs-vsctl`.
//!
//! A change is written, announced (`next_cfg`), and done when ovs-vswitchd says so (`cur_cfg`). Rows that the
//! worker made bear its mark in `external_ids`; others are shown and left alone.

mod rows;
mod session;

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::errno::Errno;
use serde_json::Value;

use self::session::Session;
use super::{KernelError, step::NewBridge};

/// The VLAN in which a held port is alone: no VLAN of anybody's (802.1Q reserves it), and one that OVS accepts.
const PARKED: u16 = 4095;
/// How long ovs-vswitchd may take to do what it was told.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

/// Whether OVS is here, and what it has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Presence {
    /// There is no database socket.
    #[default]
    Absent,
    /// There is one, and it does not answer as it should.
    Broken(String),
    Present(Vec<OvsBridge>),
}

impl Presence {
    pub fn is_away(&self) -> bool {
        !matches!(self, Self::Present(_))
    }

    pub fn bridges(&self) -> &[OvsBridge] {
        match self {
            Self::Present(bridges) => bridges,
            Self::Absent | Self::Broken(_) => &[],
        }
    }

    /// A port and the bridge that it is a port of.
    pub fn port(&self, name: &str) -> Option<(&OvsBridge, &OvsPort)> {
        self.bridges()
            .iter()
            .find_map(|bridge| Some((bridge, bridge.ports.iter().find(|port| port.name == name)?)))
    }

    pub fn bridge(&self, name: &str) -> Option<&OvsBridge> {
        self.bridges().iter().find(|bridge| bridge.name == name)
    }
}

/// A bridge of OVS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OvsBridge {
    pub name: String,
    pub stp: bool,
    /// Made by the worker.
    pub ours: bool,
    /// Without the one that bears the bridge's own name.
    pub ports: Vec<OvsPort>,
}

/// A port of a bridge of OVS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OvsPort {
    pub name: String,
    pub tag: Option<u16>,
    pub trunks: BTreeSet<u16>,
    /// Made by the worker.
    pub ours: bool,
}

impl OvsPort {
    /// Held back: alone in a VLAN of its own.
    pub fn is_held(&self) -> bool {
        self.is_parked()
    }

    /// As the worker means them.
    pub fn vlans(&self) -> OvsVlans {
        let native = self.tag.filter(|tag| (1..PARKED).contains(tag));
        OvsVlans { native, tagged: self.trunks.clone() }
    }
}

/// The VLANs of a port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OvsVlans {
    /// Of frames without a tag.
    pub native: Option<u16>,
    pub tagged: BTreeSet<u16>,
}

/// The database behind a socket. Calls block.
#[derive(Debug)]
pub struct Ovs {
    socket: PathBuf,
}

impl Ovs {
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// What there is.
    pub fn observe(&self) -> Presence {
        let looked = Session::open(&self.socket).and_then(|mut session| session.transact(rows::selects()));
        match looked {
            Ok(results) => Presence::Present(rows::read(&results)),
            // A socket that nobody listens on is left over.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                Presence::Absent
            }
            Err(error) => Presence::Broken(format!("{}: {error}", self.socket.display())),
        }
    }

    pub(super) fn create_bridge(&self, operation: &str, bridge: &NewBridge) -> Result<(), KernelError> {
        let mut session = self.session(operation)?;
        let undo = |_: &KernelError| drop(self.delete_bridge(operation, &bridge.name));
        self.change(operation, &mut session, rows::create_bridge(bridge, datapath()))?;
        self.check(operation, &mut session, &bridge.name).inspect_err(undo)
    }

    pub(super) fn delete_bridge(&self, operation: &str, name: &str) -> Result<(), KernelError> {
        let mut session = self.session(operation)?;
        let found = self.find(operation, &mut session, "Bridge", name)?;
        let Some(operations) = rows::delete_bridge(name, &found) else {
            return Err(KernelError::errno(operation, Errno::ENODEV as i32));
        };
        self.change(operation, &mut session, operations)
    }

    pub(super) fn add_port(
        &self,
        operation: &str,
        bridge: &str,
        port: &str,
        vlans: &OvsVlans,
    ) -> Result<(), KernelError> {
        let mut session = self.session(operation)?;
        self.change(operation, &mut session, rows::add_port(bridge, port, vlans))?;
        self.check(operation, &mut session, port).inspect_err(|_| drop(self.remove_port(operation, port)))
    }

    pub(super) fn remove_port(&self, operation: &str, port: &str) -> Result<(), KernelError> {
        let mut session = self.session(operation)?;
        let found = self.find(operation, &mut session, "Port", port)?;
        match rows::remove_port(&found) {
            Some(operations) => self.change(operation, &mut session, operations),
            None => Err(KernelError::errno(operation, Errno::ENODEV as i32)),
        }
    }

    pub(super) fn set_vlans(&self, operation: &str, port: &str, vlans: &OvsVlans) -> Result<(), KernelError> {
        self.change(operation, &mut self.session(operation)?, rows::set_vlans(port, vlans))
    }

    pub(super) fn hold(&self, operation: &str, port: &str) -> Result<(), KernelError> {
        let parked = OvsVlans { native: Some(PARKED), tagged: BTreeSet::new() };
        self.set_vlans(operation, port, &parked)
    }

    pub(super) fn set_stp(&self, operation: &str, bridge: &str, stp: bool) -> Result<(), KernelError> {
        self.change(operation, &mut self.session(operation)?, rows::set_stp(bridge, stp))
    }

    pub(super) fn set_mtu(&self, operation: &str, bridge: &str, mtu: u32) -> Result<(), KernelError> {
        self.change(operation, &mut self.session(operation)?, rows::set_mtu(bridge, mtu))
    }

    fn session(&self, operation: &str) -> Result<Session, KernelError> {
        Session::open(&self.socket).map_err(|error| failed(operation, &error))
    }

    fn find(
        &self,
        operation: &str,
        session: &mut Session,
        table: &str,
        name: &str,
    ) -> Result<Value, KernelError> {
        let mut found = session
            .transact(vec![rows::find(table, name, "_uuid")])
            .map_err(|error| failed(operation, &error))?;
        Ok(found.swap_remove(0))
    }

    /// Writes, and waits until it is in force.
    fn change(
        &self,
        operation: &str,
        session: &mut Session,
        mut operations: Vec<Value>,
    ) -> Result<(), KernelError> {
        let failed = |error: io::Error| failed(operation, &error);
        operations.extend(rows::announce());
        let results = session.transact(operations).map_err(failed)?;
        let Some(wanted) = results.last().and_then(|result| rows::number(result, "next_cfg")) else {
            return Err(KernelError::other(operation, "OVS's database is empty: run `ovs-vsctl init`"));
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let results = session.transact(rows::progress()).map_err(failed)?;
            match results.first().and_then(|result| rows::number(result, "cur_cfg")) {
                Some(current) if current >= wanted => return Ok(()),
                Some(_) | None if Instant::now() < deadline => thread::sleep(POLL),
                Some(_) | None => {
                    return Err(KernelError::other(
                        operation,
                        "the database took it, and ovs-vswitchd does not follow: is it running?",
                    ));
                }
            }
        }
    }

    /// What ovs-vswitchd could not do it says in the interface's row.
    fn check(&self, operation: &str, session: &mut Session, interface: &str) -> Result<(), KernelError> {
        let results = session
            .transact(vec![rows::find("Interface", interface, "error")])
            .map_err(|error| failed(operation, &error))?;
        match results.first().and_then(rows::complaint) {
            Some(complaint) => Err(KernelError::other(operation, format!("ovs-vswitchd: {complaint}"))),
            None => Ok(()),
        }
    }
}

fn failed(operation: &str, error: &io::Error) -> KernelError {
    KernelError::other(operation, format!("OVS's database: {error}"))
}

/// The kernel's datapath where its module is loaded; else OVS's own in user space, which works everywhere.
fn datapath() -> &'static str {
    if Path::new("/sys/module/openvswitch").exists() { "system" } else { "netdev" }
}
