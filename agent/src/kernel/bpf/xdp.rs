//! Programs in drivers (native XDP), on the ports of the fast path and on those of bridges with VLANs: put there, adopted, taken
//! away, reported.
//!
//! They are an addition to the programs of [`super::attach`], which do everything that these pass on. So nothing here is an
//! error to a caller: what cannot be had is said once in the log and shown as a reason.
//!
//! A packet can only be sent from driver to driver. So there are programs in a driver only while they are on both sides, or at two
//! ports of a bridge, and `xdp_port` has an interface only while our program is in its driver.

mod candidate;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError, SyncSender, TrySendError},
    },
    thread,
    time::Duration,
};

use aya::{
    maps::{DevMapHash, MapData, PerCpuArray},
    programs::{
        Xdp as Program, XdpMode,
        links::{FdLink, PinnedLink},
        xdp::XdpLink,
    },
};
use aya_obj::programs::XdpAttachType;
use nix::errno::Errno;
use tracing::{debug, info, warn};

use self::candidate::{Candidate, Side, alone};
use super::{
    BpfDataPlane,
    attach::interface_name,
    failed,
    object::{self, Object},
};
use crate::kernel::{
    KernelError,
    dataplane::FastPort,
    ethtool, netdev, queue,
    xdp::{Door, Medium, Wishes, Xdp, XdpPort, XdpReport, hides_tags, objection, would_lose},
};

const ALONE: &str =
    "by itself it could send packets nowhere: nothing else is in a driver that they could leave through";
const DEAF: &str = "its driver does not send what other drivers hand to it; a veth pair does when the other end has GRO on \
                    (ethtool -K ... gro on)";

/// How often it is looked whether drivers still take what others hand to them, when nobody says that anything changed.
const PERIOD: Duration = Duration::from_secs(2);

/// How long a burst of changes is waited for.
const BURST: Duration = Duration::from_millis(50);

/// Starts a thread that looks again a moment after it was told to, by others or by the kernel, and every two seconds. It has nothing
/// to do where nobody insists on XDP: cards do not change their minds.
pub fn watch(plane: Arc<BpfDataPlane>, wishes: &Wishes) -> Result<SyncSender<()>, KernelError> {
    let (tell, told) = mpsc::sync_channel(1);
    if !wishes.insist() {
        return Ok(tell);
    }
    let run = move || {
        while told.recv_timeout(PERIOD) != Err(RecvTimeoutError::Disconnected) {
            thread::sleep(BURST);
            // What was said meanwhile is seen now.
            let _ = told.try_recv();
            plane.look_at_drivers();
        }
    };
    start("driver-watch", run)?;
    if let Some(changes) = netdev::Changes::open()? {
        let tell = tell.clone();
        let hear = move || {
            while changes.next().is_ok() && tell.try_send(()) != Err(TrySendError::Disconnected(())) {}
        };
        start("driver-events", hear)?;
    }
    Ok(tell)
}

fn start(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), KernelError> {
    let started = thread::Builder::new().name(name.to_owned()).spawn(run);
    started.map(drop).map_err(|error| KernelError::other("start the watch of drivers", error.to_string()))
}

/// For how many milliseconds a program of ours is waited for that was taken out a moment ago: when the last reference to
/// a link goes, the kernel takes it out later, by a work queue (`bpf_link_put`).
const LET_GO: u32 = 2000;

/// The programs in drivers.
pub(super) struct XdpPorts {
    wishes: Wishes,
    /// Or why there are none.
    programs: Result<BTreeMap<Side, Program>, String>,
    /// The `xdp_port` map.
    ports: DevMapHash<MapData>,
    /// The `xdp_stat` map.
    forwarded: PerCpuArray<MapData, u64>,
    links: PathBuf,
    attached: BTreeMap<u32, Side>,
    /// Where ours was taken out and may still be.
    leaving: BTreeSet<u32>,
    nat: Group,
    switch: Group,
}

/// Interfaces that programs of one kind were wanted at.
#[derive(Debug, Default)]
struct Group {
    given: Vec<Candidate>,
    /// Those among them that nothing speaks against.
    able: BTreeSet<u32>,
    /// What became of them.
    found: BTreeMap<u32, Result<String, String>>,
}

impl fmt::Debug for XdpPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("XdpPorts").field("attached", &self.attached).finish_non_exhaustive()
    }
}

impl XdpPorts {
    /// Loads the programs, and puts them where an earlier run's are.
    pub(super) fn take(object: &mut Object, directory: &Path, wishes: &Wishes) -> Result<Self, KernelError> {
        let programs = if wishes.are_off() {
            Err("XDP=off".to_owned())
        } else {
            load(object, directory).map_err(|error| {
                warn!(%error, "this kernel refuses the programs for drivers; everything works without them");
                error.to_string()
            })
        };
        let mut this = Self {
            wishes: wishes.clone(),
            programs,
            ports: object::take(object, "xdp_port")?,
            forwarded: object::take(object, "xdp_stat")?,
            links: directory.join("links"),
            attached: BTreeMap::new(),
            leaving: BTreeSet::new(),
            nat: Group::default(),
            switch: Group::default(),
        };
        for (index, side) in this.pinned()? {
            this.attached.insert(index, side);
            let wanted = interface_name(index)
                .is_ok_and(|name| this.wishes.of(&name) != Xdp::Off && this.refresh(index, side));
            if !wanted {
                this.close(index);
            }
        }
        Ok(this)
    }

    /// The ports of the fast path are these, and no others.
    pub(super) fn set(&mut self, ports: &[FastPort]) {
        self.arrange(ports.iter().map(Candidate::fast).collect(), false);
    }

    /// The ports of bridges with VLANs are these, and no others.
    pub(super) fn set_doors(&mut self, doors: &BTreeMap<u32, Door>) {
        self.arrange(Candidate::doors(doors), true);
    }

    fn group(&mut self, switch: bool) -> &mut Group {
        if switch { &mut self.switch } else { &mut self.nat }
    }

    /// Puts programs of one kind where they can be, and nowhere else.
    fn arrange(&mut self, given: Vec<Candidate>, switch: bool) {
        let wanted: BTreeMap<u32, Side> = given.iter().map(|port| (port.index, port.side)).collect();
        let ours = self.attached.iter().filter(|(_, side)| (**side == Side::Port) == switch);
        let stale = ours.filter(|(index, side)| wanted.get(index) != Some(side));
        for index in stale.map(|(index, _)| *index).collect::<Vec<_>>() {
            self.close(index);
        }
        let objections = self.objections(&given);
        let able: BTreeSet<u32> =
            given.iter().map(|port| port.index).filter(|index| !objections.contains_key(index)).collect();
        let lonely = alone(&given, |index| able.contains(&index));
        let mut found = BTreeMap::new();
        for side in [Side::Inside, Side::Outside, Side::Port] {
            for port in given.iter().filter(|port| port.side == side) {
                let index = port.index;
                let alone = lonely.contains(&index) || (side == Side::Outside && !self.has(Side::Inside));
                let result = match objections.get(&index).cloned() {
                    Some(why) => Err(why),
                    None if alone => Err(ALONE.to_owned()),
                    None => self.open(index, side),
                };
                if result.is_err() {
                    self.close(index);
                }
                found.insert(index, result);
            }
        }
        for index in alone(&given, |index| self.attached.contains_key(&index)) {
            self.close(index);
            found.insert(index, Err(ALONE.to_owned()));
        }
        let before = std::mem::take(&mut self.group(switch).found);
        for port in &given {
            let result = found.get(&port.index);
            if before.get(&port.index) != result {
                result.inspect(|result| tell(port, result));
            }
        }
        *self.group(switch) = Group { given, able, found };
    }

    /// Looks again at what others change without a word to us: whether the other end of a veth pair takes frames of drivers.
    pub(super) fn look_again(&mut self) {
        for switch in [false, true] {
            let given = self.group(switch).given.clone();
            let objections = self.objections(&given);
            let indexes = given.iter().map(|port| port.index);
            let able: BTreeSet<u32> = indexes.filter(|index| !objections.contains_key(index)).collect();
            if able != self.group(switch).able {
                self.arrange(given, switch);
            }
        }
    }

    /// An uplink has no programs any more; without one the inside has no use for them either.
    pub(super) fn leave(&mut self, uplink: u32) {
        if self.attached.get(&uplink) == Some(&Side::Outside) {
            self.close(uplink);
        }
        let left = self.nat.given.iter().filter(|port| port.index != uplink).copied().collect();
        self.arrange(left, false);
    }

    pub(super) fn report(&self) -> Result<XdpReport, KernelError> {
        let found = self.nat.found.iter().chain(&self.switch.found);
        let ports = found.map(|(index, result)| {
            let (native, reason) = match result {
                Ok(why) => (true, why.clone()),
                Err(why) => (false, why.clone()),
            };
            XdpPort { index: *index, native, reason }
        });
        let counts = self.forwarded.get(&0, 0);
        let counts =
            counts.map_err(|error| failed("read the count of packets sent on in drivers", &error))?;
        Ok(XdpReport { ports: ports.collect(), packets: counts.iter().sum() })
    }

    fn has(&self, side: Side) -> bool {
        self.attached.values().any(|other| *other == side)
    }

    /// Why there is none to be at some of these ports, before anything is tried.
    fn objections(&self, ports: &[Candidate]) -> BTreeMap<u32, String> {
        let why = |port: &Candidate| {
            let name = match interface_name(port.index) {
                Ok(name) => name,
                Err(error) => return Some(error.to_string()),
            };
            if let Some(why) = objection(self.wishes.of(&name), port.medium) {
                return Some(why.to_owned());
            }
            if port.side == Side::Port {
                let known = ethtool::driver(&name).and_then(|driver| Ok((driver, ethtool::features(&name)?)));
                match known.map(|(driver, features)| hides_tags(&driver, &features, port.tags)) {
                    Ok(None) => {}
                    Ok(Some(why)) => return Some(why.to_owned()),
                    Err(error) => return Some(error.to_string()),
                }
            }
            // Of a card it is known only when the program is there.
            let deaf = port.medium == Medium::Software
                && netdev::abilities(port.index).is_ok_and(|found| found.is_some_and(|able| !able.transmits));
            if deaf { Some(DEAF.to_owned()) } else { self.programs.as_ref().err().cloned() }
        };
        ports.iter().filter_map(|port| Some((port.index, why(port)?))).collect()
    }

    /// Puts the program into the driver, or finds it there. Why, or why not.
    fn open(&mut self, index: u32, side: Side) -> Result<String, String> {
        let name = interface_name(index).map_err(|error| error.to_string())?;
        let wish = self.wishes.of(&name);
        if !(self.attached.contains_key(&index) && self.refresh(index, side)) {
            self.close(index);
            self.attach(index, &name, side, wish)?;
            self.attached.insert(index, side);
        }
        match self.ports.insert(index, index, None, 0) {
            Ok(()) => Ok(format!("XDP={wish}, and its driver does it natively")),
            Err(error) => {
                Err(failed(format!("let packets be sent to {name} in drivers"), &error).to_string())
            }
        }
    }

    /// Attaches and pins, or leaves the interface as it was.
    fn attach(&mut self, index: u32, name: &str, side: Side, wish: Xdp) -> Result<(), String> {
        let text = |error: KernelError| error.to_string();
        let before = ethtool::features(name).map_err(text)?;
        if wish == Xdp::Auto {
            let driver = ethtool::driver(name).map_err(text)?;
            refuse_loss(&would_lose(&driver, &before).into_iter().collect())?;
            if let Some(kind) = queue::shaper(index).map_err(text)? {
                return Err(format!(
                    "packets sent on in its driver would pass its queue by ({kind}); XDP=on insists"
                ));
            }
        }
        let operation = || format!("attach {} to {name}", side.program());
        let pin = self.pin(index, side);
        let programs = self.programs.as_mut().map_err(|why| why.clone())?;
        let program = programs.get_mut(&side).ok_or_else(|| "there is no program for it".to_owned())?;
        let mut patience = if self.leaving.remove(&index) { LET_GO } else { 0 };
        let link = loop {
            let attached =
                program.attach_to_if_index(index, XdpMode::Driver).and_then(|id| program.take_link(id));
            match attached.map_err(|error| failed(operation(), &error)) {
                Err(error) if error.errno == Some(Errno::EBUSY as i32) && patience > 0 => {
                    patience -= 1;
                    thread::sleep(Duration::from_millis(1));
                }
                done => break done.map_err(|error| explain(&error))?,
            }
        };
        // Until it is pinned, dropping it detaches.
        let link = FdLink::try_from(link).map_err(|_| "the kernel has no BPF link for XDP".to_owned())?;
        if wish == Xdp::Auto {
            let after = ethtool::features(name).map_err(text)?;
            refuse_loss(&before.difference(&after).cloned().collect())?;
        }
        match netdev::abilities(index).map_err(text)? {
            Some(abilities) if !abilities.transmits => {
                return Err(
                    "its driver does not send what other drivers hand to it (a veth pair does when the \
                            other end has GRO on: ethtool -K ... gro on)"
                        .to_owned(),
                );
            }
            None if wish == Xdp::Auto => {
                return Err("this kernel does not tell what the driver can send; XDP=on insists".to_owned());
            }
            Some(_) | None => {}
        }
        link.pin(&pin).map(drop).map_err(|error| failed(operation(), &error).to_string())
    }

    /// This run's program in place of the one that is there; false when none of ours is there any more.
    fn refresh(&mut self, index: u32, side: Side) -> bool {
        let pin = self.pin(index, side);
        let Some(program) = self.programs.as_mut().ok().and_then(|programs| programs.get_mut(&side)) else {
            return false;
        };
        let replaced = PinnedLink::from_pin(&pin)
            .map_err(|error| error.to_string())
            .and_then(|link| XdpLink::try_from(FdLink::from(link)).map_err(|error| error.to_string()))
            .and_then(|link| program.attach_to_link(link).map_err(|error| error.to_string()))
            // The pin holds the link; ours may go.
            .and_then(|id| program.take_link(id).map(drop).map_err(|error| error.to_string()));
        match replaced {
            Ok(()) => true,
            Err(error) => {
                debug!(interface = index, error, "the program in the driver is gone");
                false
            }
        }
    }

    /// Takes the program out of the driver, if ours is there: packets stop to be sent there first.
    fn close(&mut self, index: u32) {
        // A key that is not there is what was wanted.
        let _ = self.ports.remove(index);
        let Some(side) = self.attached.remove(&index) else { return };
        let pin = self.pin(index, side);
        match fs::remove_file(&pin) {
            Ok(()) => {
                self.leaving.insert(index);
                info!(interface = index, "the program in its driver was taken out");
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => warn!(pin = %pin.display(), %error, "cannot remove"),
        }
    }

    fn pin(&self, index: u32, side: Side) -> PathBuf {
        self.links.join(side.pin(index))
    }

    /// Interfaces that the last run left a program in the driver of.
    fn pinned(&self) -> Result<BTreeMap<u32, Side>, KernelError> {
        let operation = || format!("read {}", self.links.display());
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(&self.links).map_err(|error| failed(operation(), &error))? {
            let name = entry.map_err(|error| failed(operation(), &error))?.file_name();
            found.extend(Side::read_pin(&name.to_string_lossy()));
        }
        Ok(found)
    }
}

fn load(object: &mut Object, directory: &Path) -> Result<BTreeMap<Side, Program>, KernelError> {
    object::load_xdp(object, directory)?;
    Side::ALL
        .into_iter()
        .map(|side| {
            let pin = directory.join("progs").join(side.program());
            let program = Program::from_pin(&pin, XdpAttachType::Interface)
                .map_err(|error| failed(format!("open {}", pin.display()), &error))?;
            Ok((side, program))
        })
        .collect()
}

fn refuse_loss(lost: &BTreeSet<String>) -> Result<(), String> {
    if lost.is_empty() {
        return Ok(());
    }
    let lost: Vec<&str> = lost.iter().map(String::as_str).collect();
    Err(format!("its driver gives up {} for XDP; XDP=on insists", lost.join(", ")))
}

/// What the kernel's answer means here.
fn explain(error: &KernelError) -> String {
    match error.errno.map(Errno::from_raw) {
        Some(Errno::EBUSY | Errno::EEXIST) => "another XDP program is there, and is left alone".to_owned(),
        Some(Errno::EOPNOTSUPP) => "its driver has no native XDP".to_owned(),
        _ => error.to_string(),
    }
}

/// One line, and only about what somebody might have expected to be otherwise.
fn tell(port: &Candidate, result: &Result<String, String>) {
    let interface = port.index;
    match result {
        Ok(why) => info!(interface, why, "packets are sent on in its driver"),
        Err(why) if port.medium == Medium::Software => {
            debug!(interface, why, "packets are sent on behind its driver")
        }
        Err(why) => info!(interface, why, "packets are sent on behind its driver"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_already_is_left_alone_and_called_so() {
        let busy = KernelError::errno("attach", Errno::EBUSY as i32);
        assert!(explain(&busy).contains("left alone"));
        assert!(refuse_loss(&BTreeSet::new()).is_ok());
        let lost = refuse_loss(&["rx-lro".to_owned()].into()).unwrap_err();
        assert!(lost.contains("rx-lro") && lost.contains("XDP=on"), "{lost}");
    }
}
