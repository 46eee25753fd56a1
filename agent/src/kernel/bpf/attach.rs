//! Programs on interfaces, as [`hooks`](super::hooks) says.
//!
//! TCX links (kernel 6.6 and later) are pinned, so that they outlive the agent, and updated in place, so that no
//! packet meets an empty hook. Older kernels get clsact filters at a fixed priority and handle, replaced the same
//! way; the qdisc itself is never deleted, it may be somebody else's too.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use aya::programs::{
    SchedClassifier, TcAttachType,
    links::{FdLink, PinnedLink},
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
};
use nix::{errno::Errno, net::if_::if_indextoname};
use tracing::{debug, info, warn};

use super::{
    failed,
    hooks::{Hook, Place, Role},
};
use crate::kernel::{KernelError, dataplane::Attachment};

/// Of all our clsact filters.
const HANDLE: TcHandle = TcHandle::new(0, 0x7c1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mechanism {
    Tcx,
    Clsact,
}

impl Mechanism {
    fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// For how many milliseconds a program is waited for that was taken off a moment ago: when the last reference to a link
/// goes, the kernel takes it off later, by a work queue (`bpf_link_put`), and until then it is "there already".
const LET_GO: u32 = 2000;

/// Keeps the programs and knows where they are attached.
#[derive(Debug)]
pub(super) struct Attacher {
    programs: BTreeMap<&'static str, SchedClassifier>,
    links: PathBuf,
    attached: BTreeMap<(Role, u32), Mechanism>,
}

impl Attacher {
    /// Puts this run's programs where an earlier run's are attached.
    pub(super) fn adopt(directory: &Path) -> Result<Self, KernelError> {
        // Handles of our own: the object keeps its, and with them the log's map, elsewhere.
        let mut programs = BTreeMap::new();
        for Hook { program, .. } in Role::ALL.iter().flat_map(|role| role.hooks()) {
            let pin = directory.join("progs").join(program);
            let opened = SchedClassifier::from_pin(&pin)
                .map_err(|error| failed(format!("open {}", pin.display()), &error))?;
            programs.insert(*program, opened);
        }
        let mut attacher = Self { programs, links: directory.join("links"), attached: BTreeMap::new() };
        for ((role, index), mechanism) in attacher.pinned()? {
            match attacher.replace(role, index, mechanism) {
                Ok(()) => {
                    debug!(interface = index, ?role, mechanism = mechanism.name(), "adopted");
                    attacher.attached.insert((role, index), mechanism);
                }
                Err(error) => {
                    // The interface is gone, and its hooks with it.
                    warn!(interface = index, ?role, %error, "an attachment of the last run is gone");
                    attacher.forget(role, index);
                }
            }
        }
        Ok(attacher)
    }

    /// Takes the programs of an earlier run off every interface; which programs they are does not matter.
    pub(super) fn detach_all(directory: &Path) -> Result<(), KernelError> {
        let links = directory.join("links");
        let mut attacher = Self { programs: BTreeMap::new(), links, attached: BTreeMap::new() };
        attacher.attached = attacher.pinned()?;
        for (role, index) in attacher.attached.keys().copied().collect::<Vec<_>>() {
            if let Err(error) = attacher.detach(role, index) {
                // The interface is gone, and another has got its index.
                warn!(interface = index, ?role, %error, "nothing of ours is there any more");
                attacher.forget(role, index);
            }
        }
        Ok(())
    }

    pub(super) fn attachments(&self) -> Vec<Attachment> {
        let uplinks = self.attached.iter().filter(|((role, _), _)| *role == Role::Uplink);
        uplinks
            .map(|((_, uplink), mechanism)| Attachment { uplink: *uplink, mechanism: mechanism.name() })
            .collect()
    }

    /// Interfaces that have the programs of a role.
    pub(super) fn indexes(&self, role: Role) -> impl Iterator<Item = u32> {
        self.attached.keys().filter(move |(other, _)| *other == role).map(|(_, index)| *index)
    }

    pub(super) fn attach(&mut self, role: Role, index: u32) -> Result<(), KernelError> {
        if let Some(&mechanism) = self.attached.get(&(role, index)) {
            if self.is_live(role, index, mechanism) {
                return Ok(());
            }
            // The interface was deleted, and another has got its index.
            self.forget(role, index);
            self.attached.remove(&(role, index));
        }
        let name = interface_name(index)?;
        let mechanism = self.attach_all(role, index, &name)?;
        self.attached.insert((role, index), mechanism);
        info!(interface = name, ?role, mechanism = mechanism.name(), "attached");
        Ok(())
    }

    /// One that fails is still attached afterwards, and can be tried again.
    pub(super) fn detach(&mut self, role: Role, index: u32) -> Result<(), KernelError> {
        let Some(&mechanism) = self.attached.get(&(role, index)) else {
            return Ok(());
        };
        match mechanism {
            Mechanism::Tcx => {}
            Mechanism::Clsact => {
                if let Ok(name) = interface_name(index) {
                    role.hooks().iter().try_for_each(|hook| detach_filter(&name, hook))?;
                }
            }
        }
        self.attached.remove(&(role, index));
        self.forget(role, index);
        info!(interface = index, ?role, "detached");
        Ok(())
    }

    /// Puts back what somebody may have taken off these interfaces, `None`: off any. What is there still is replaced by itself.
    pub(super) fn put_back(&mut self, interfaces: Option<&BTreeSet<u32>>) {
        let attached = self.attached.iter().filter(|(_, mechanism)| **mechanism == Mechanism::Clsact);
        let bare = attached.filter(|((_, index), _)| interfaces.is_none_or(|bare| bare.contains(index)));
        for (role, index) in bare.map(|(place, _)| *place).collect::<Vec<_>>() {
            match interface_name(index).and_then(|name| self.attach_clsact(role, &name)) {
                // It was ourselves who took something off, of another role.
                Ok(0) => {}
                Ok(_) => {
                    warn!(interface = index, ?role, "somebody had removed filters: ours are there again")
                }
                // Most likely the interface itself is gone.
                Err(error) => debug!(interface = index, ?role, %error, "filters cannot be put back"),
            }
        }
    }

    /// All its hooks or none.
    fn attach_all(&mut self, role: Role, index: u32, name: &str) -> Result<Mechanism, KernelError> {
        match self.attach_tcx(role, index, name) {
            Ok(()) => return Ok(Mechanism::Tcx),
            // No TCX in this kernel: BPF_LINK_CREATE knows no such attach type.
            Err(error) if error.errno == Some(Errno::EINVAL as i32) => {
                self.forget(role, index);
            }
            Err(error) => {
                self.forget(role, index);
                return Err(error);
            }
        }
        let result = self.attach_clsact(role, name);
        if result.is_err() {
            for hook in role.hooks() {
                if let Err(error) = detach_filter(name, hook) {
                    debug!(%error, "it could not be undone");
                }
            }
        }
        result?;
        let marker = self.links.join(format!("{}-{index}", role.marker()));
        fs::create_dir_all(&marker).map_err(|error| failed(format!("make {}", marker.display()), &error))?;
        Ok(Mechanism::Clsact)
    }

    fn attach_tcx(&mut self, role: Role, index: u32, name: &str) -> Result<(), KernelError> {
        for Hook { program, at, label, place } in role.hooks() {
            let operation = || format!("attach {program} to {name} ({at:?}, TCX)");
            let pin = pin_path(&self.links, label, index);
            let [foremost, last] = [Place::Foremost, Place::Last].map(|place| self.at(index, *at, place));
            let mut patience = LET_GO;
            let (program, id) = loop {
                let [foremost, last] = [foremost, last].map(|name| self.programs.get(name?));
                let order = place.order(foremost, last);
                let options = TcAttachOptions::TcxOrder(order.map_err(|error| failed(operation(), &error))?);
                let program = find(&mut self.programs, program)?;
                let attached = program.attach_with_options(name, *at, options);
                match attached.map_err(|error| failed(operation(), &error)) {
                    Err(error) if error.errno == Some(Errno::EEXIST as i32) && patience > 0 => {
                        patience -= 1;
                        thread::sleep(Duration::from_millis(1));
                    }
                    done => break (program, done?),
                }
            };
            let link = program.take_link(id).map_err(|error| failed(operation(), &error))?;
            let link = FdLink::try_from(link).map_err(|error| failed(operation(), &error))?;
            link.pin(pin).map_err(|error| failed(operation(), &error))?;
        }
        Ok(())
    }

    /// What is attached at a place of a hook of an interface.
    fn at(&self, index: u32, hook: TcAttachType, place: Place) -> Option<&'static str> {
        let roles = self.attached.keys().filter(|(_, other)| *other == index).map(|(role, _)| role);
        let mut hooks = roles.flat_map(|role| role.hooks());
        hooks.find(|other| other.at == hook && other.place == place).map(|other| other.program)
    }

    /// Makes filters or replaces them; how many were not there.
    fn attach_clsact(&mut self, role: Role, name: &str) -> Result<usize, KernelError> {
        match tc::qdisc_add_clsact(name) {
            Ok(()) => {}
            Err(error) => {
                let error = failed(format!("add clsact to {name}"), &error);
                // there already, ours or somebody else's
                if error.errno != Some(Errno::EEXIST as i32) {
                    return Err(error);
                }
            }
        }
        let mut made = 0;
        for hook in role.hooks() {
            made += usize::from(attach_filter(find(&mut self.programs, hook.program)?, name, hook)?);
        }
        Ok(made)
    }

    /// This run's programs in place of the last run's, without a gap.
    fn replace(&mut self, role: Role, index: u32, mechanism: Mechanism) -> Result<(), KernelError> {
        let name = interface_name(index)?;
        match mechanism {
            Mechanism::Clsact => self.attach_clsact(role, &name).map(drop),
            Mechanism::Tcx => {
                for Hook { program, at, label, place: _ } in role.hooks() {
                    let operation = || format!("replace {program} on {name} ({at:?}, TCX)");
                    let pin = pin_path(&self.links, label, index);
                    let program = find(&mut self.programs, program)?;
                    let link = PinnedLink::from_pin(&pin).map_err(|error| failed(operation(), &error))?;
                    let link = SchedClassifierLink::try_from(FdLink::from(link))
                        .map_err(|error| failed(operation(), &error))?;
                    let id = program.attach_to_link(link).map_err(|error| failed(operation(), &error))?;
                    // The pin holds the link; ours may go.
                    drop(program.take_link(id).map_err(|error| failed(operation(), &error))?);
                }
                Ok(())
            }
        }
    }

    /// Still on the interface that has this index now?
    fn is_live(&self, role: Role, index: u32, mechanism: Mechanism) -> bool {
        let Ok(name) = interface_name(index) else {
            return false;
        };
        match mechanism {
            Mechanism::Clsact => true,
            Mechanism::Tcx => role.hooks().iter().all(|hook| {
                let program = self.programs.get(hook.program);
                let ours = program.and_then(|program| program.info().ok()).map(|info| info.id());
                SchedClassifier::query_tcx(&name, hook.at)
                    .is_ok_and(|(_, programs)| programs.iter().any(|info| Some(info.id()) == ours))
            }),
        }
    }

    /// Removes the pins of an interface; an unpinned TCX link detaches.
    fn forget(&self, role: Role, index: u32) {
        for Hook { label, .. } in role.hooks() {
            let pin = pin_path(&self.links, label, index);
            if pin.exists()
                && let Err(error) = fs::remove_file(&pin)
            {
                warn!(pin = %pin.display(), %error, "cannot remove");
            }
        }
        let marker = self.links.join(format!("{}-{index}", role.marker()));
        if marker.exists()
            && let Err(error) = fs::remove_dir(&marker)
        {
            warn!(marker = %marker.display(), %error, "cannot remove");
        }
    }

    /// Interfaces that the last run left something attached to.
    fn pinned(&self) -> Result<BTreeMap<(Role, u32), Mechanism>, KernelError> {
        let operation = || format!("read {}", self.links.display());
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(&self.links).map_err(|error| failed(operation(), &error))? {
            let name = entry.map_err(|error| failed(operation(), &error))?.file_name();
            if let Some((place, mechanism)) = read_pin(&name.to_string_lossy()) {
                found.insert(place, mechanism);
            }
        }
        Ok(found)
    }
}

fn find<'a>(
    programs: &'a mut BTreeMap<&'static str, SchedClassifier>,
    name: &str,
) -> Result<&'a mut SchedClassifier, KernelError> {
    programs
        .get_mut(name)
        .ok_or_else(|| KernelError::other(format!("find the BPF program {name}"), "it is not loaded"))
}

fn pin_path(links: &Path, label: &str, index: u32) -> PathBuf {
    links.join(format!("{label}-{index}"))
}

/// What the name of a pin, or of a marker, says.
fn read_pin(name: &str) -> Option<((Role, u32), Mechanism)> {
    let (label, index) = name.split_once('-')?;
    let index = index.parse().ok()?;
    Role::ALL.into_iter().find_map(|role| {
        if label == role.marker() {
            return Some(((role, index), Mechanism::Clsact));
        }
        role.hooks().iter().any(|hook| hook.label == label).then_some(((role, index), Mechanism::Tcx))
    })
}

pub(super) fn interface_name(index: u32) -> Result<String, KernelError> {
    let operation = || format!("find the interface with index {index}");
    let name = if_indextoname(index).map_err(|errno| KernelError::errno(operation(), errno as i32))?;
    // That of no interface is empty: nix (0.31) takes the null pointer of `if_indextoname(3)` for success.
    if name.is_empty() {
        return Err(KernelError::errno(operation(), Errno::ENODEV as i32));
    }
    name.into_string().map_err(|_| KernelError::other(operation(), "its name is no text"))
}

/// Our filter at our place: made, or replaced when it is there. Whether it was made.
fn attach_filter(program: &mut SchedClassifier, name: &str, hook: &Hook) -> Result<bool, KernelError> {
    let priority = hook.place.priority();
    let operation = || format!("attach {} to {name} ({:?}, clsact)", hook.program, hook.at);
    let options = NlOptions { priority, handle: HANDLE, classid: None };
    let (id, made) = match program.attach_with_options(name, hook.at, TcAttachOptions::Netlink(options)) {
        Ok(id) => (id, true),
        Err(error) => {
            let error = failed(operation(), &error);
            if error.errno != Some(Errno::EEXIST as i32) {
                return Err(error);
            }
            let link = SchedClassifierLink::attached(name, hook.at, priority, HANDLE, None)
                .map_err(|error| failed(operation(), &error))?;
            let id = program.attach_to_link(link).map_err(|error| failed(operation(), &error))?;
            (id, false)
        }
    };
    let link = program.take_link(id).map_err(|error| failed(operation(), &error))?;
    // Dropping it would detach, and a filter has no pin: it stays until `detach_filter`.
    std::mem::forget(link);
    Ok(made)
}

/// Takes our filter off, if it is there.
fn detach_filter(name: &str, hook: &Hook) -> Result<(), KernelError> {
    let operation = || format!("detach {} from {name} ({:?}, clsact)", hook.program, hook.at);
    let link = SchedClassifierLink::attached(name, hook.at, hook.place.priority(), HANDLE, None)
        .map_err(|error| failed(operation(), &error))?;
    let detached = aya::programs::links::Link::detach(link).map_err(|error| failed(operation(), &error));
    match detached {
        // No such filter, or no qdisc that it could be in (linux: `tc_del_tfilter`).
        Err(error)
            if [Errno::ENOENT, Errno::EINVAL].map(|errno| Some(errno as i32)).contains(&error.errno) =>
        {
            Ok(())
        }
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_gone_has_no_name() {
        assert_eq!(interface_name(u32::MAX >> 1).unwrap_err().errno, Some(Errno::ENODEV as i32));
    }

    #[test]
    fn every_pin_tells_its_role_and_interface() {
        for role in Role::ALL {
            assert_eq!(read_pin(&format!("{}-7", role.marker())), Some(((role, 7), Mechanism::Clsact)));
            for hook in role.hooks() {
                assert_eq!(read_pin(&format!("{}-12", hook.label)), Some(((role, 12), Mechanism::Tcx)));
            }
        }
        assert_eq!(read_pin("other-3"), None);
        assert_eq!(read_pin("in-x"), None);
    }
}
