//! Programs on uplinks.
//!
//! TCX links (kernel 6.6 and later) are pinned, so that they outlive the agent, and updated in place, so that no
//! packet meets an empty hook. Older kernels get clsact filters at a fixed priority and handle, replaced the same
//! way; the qdisc itself is never deleted, it may be somebody else's too.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use aya::programs::{
    SchedClassifier, TcAttachType,
    links::{FdLink, LinkOrder, PinnedLink},
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
};
use nix::{errno::Errno, net::if_::if_indextoname};
use tracing::{debug, info, warn};

use super::{
    failed,
    object::{Object, PROGRAM_NAMES},
};
use crate::kernel::{KernelError, dataplane::Attachment};

/// Where our clsact filters are: away from priorities that tools pick by themselves (49152 and down).
const PRIORITY: u16 = 0x7c1;
const HANDLE: TcHandle = TcHandle::new(0, 0x7c1);

/// The two hooks of an uplink, with the program of each: `PROGRAM_NAMES` in this order.
const HOOKS: [(TcAttachType, &str); 2] = [(TcAttachType::Ingress, "in"), (TcAttachType::Egress, "out")];

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

/// Keeps the programs and knows where they are attached.
#[derive(Debug)]
pub(super) struct Attacher {
    /// In the order of `HOOKS`.
    programs: [SchedClassifier; 2],
    links: PathBuf,
    attached: BTreeMap<u32, Mechanism>,
}

impl Attacher {
    /// Puts this run's programs where an earlier run's are attached.
    pub(super) fn adopt(object: &mut Object, directory: &Path) -> Result<Self, KernelError> {
        let load = |name: &str| {
            let pin = directory.join("progs").join(name);
            SchedClassifier::from_pin(&pin).map_err(|error| failed(format!("open {}", pin.display()), &error))
        };
        // A handle of our own: the object keeps its, and with them the log's map, elsewhere.
        let programs = [load(PROGRAM_NAMES[0])?, load(PROGRAM_NAMES[1])?];
        let _ = object;
        let mut attacher = Self { programs, links: directory.join("links"), attached: BTreeMap::new() };
        for (uplink, mechanism) in attacher.pinned()? {
            match attacher.replace(uplink, mechanism) {
                Ok(()) => {
                    debug!(uplink, mechanism = mechanism.name(), "adopted");
                    attacher.attached.insert(uplink, mechanism);
                }
                Err(error) => {
                    // The interface is gone, and its hooks with it.
                    warn!(uplink, %error, "an attachment of the last run is gone");
                    attacher.forget(uplink);
                }
            }
        }
        Ok(attacher)
    }

    pub(super) fn attachments(&self) -> Vec<Attachment> {
        let attachment =
            |(&uplink, &mechanism): (&u32, &Mechanism)| Attachment { uplink, mechanism: mechanism.name() };
        self.attached.iter().map(attachment).collect()
    }

    pub(super) fn attach(&mut self, uplink: u32) -> Result<(), KernelError> {
        if let Some(&mechanism) = self.attached.get(&uplink) {
            if self.is_live(uplink, mechanism) {
                return Ok(());
            }
            // The interface was deleted, and another has got its index.
            self.forget(uplink);
            self.attached.remove(&uplink);
        }
        let name = interface_name(uplink)?;
        let mechanism = self.attach_all(uplink, &name)?;
        self.attached.insert(uplink, mechanism);
        info!(interface = name, mechanism = mechanism.name(), "attached");
        Ok(())
    }

    pub(super) fn detach(&mut self, uplink: u32) -> Result<(), KernelError> {
        let Some(mechanism) = self.attached.remove(&uplink) else {
            return Ok(());
        };
        match mechanism {
            Mechanism::Tcx => self.forget(uplink),
            Mechanism::Clsact => {
                if let Ok(name) = interface_name(uplink) {
                    for (hook, _) in HOOKS {
                        detach_filter(&name, hook)?;
                    }
                }
                self.forget(uplink);
            }
        }
        info!(uplink, "detached");
        Ok(())
    }

    /// Both hooks or none.
    fn attach_all(&mut self, uplink: u32, name: &str) -> Result<Mechanism, KernelError> {
        match self.attach_tcx(uplink, name) {
            Ok(()) => return Ok(Mechanism::Tcx),
            // No TCX in this kernel: BPF_LINK_CREATE knows no such attach type.
            Err(error) if error.errno == Some(Errno::EINVAL as i32) => {
                self.forget(uplink);
            }
            Err(error) => {
                self.forget(uplink);
                return Err(error);
            }
        }
        let result = self.attach_clsact(name);
        if result.is_err() {
            for (hook, _) in HOOKS {
                if let Err(error) = detach_filter(name, hook) {
                    debug!(%error, "nothing to undo");
                }
            }
        }
        result?;
        let marker = self.links.join(format!("clsact-{uplink}"));
        fs::create_dir_all(&marker).map_err(|error| failed(format!("make {}", marker.display()), &error))?;
        Ok(Mechanism::Clsact)
    }

    fn attach_tcx(&mut self, uplink: u32, name: &str) -> Result<(), KernelError> {
        for (program, (hook, label)) in self.programs.iter_mut().zip(HOOKS) {
            let operation = || format!("attach to {name} ({hook:?}, TCX)");
            let id = program
                .attach_with_options(name, hook, TcAttachOptions::TcxOrder(LinkOrder::default()))
                .map_err(|error| failed(operation(), &error))?;
            let link = program.take_link(id).map_err(|error| failed(operation(), &error))?;
            let link = FdLink::try_from(link).map_err(|error| failed(operation(), &error))?;
            link.pin(pin_path(&self.links, label, uplink)).map_err(|error| failed(operation(), &error))?;
        }
        Ok(())
    }

    fn attach_clsact(&mut self, name: &str) -> Result<(), KernelError> {
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
        for (program, (hook, _)) in self.programs.iter_mut().zip(HOOKS) {
            attach_filter(program, name, hook)?;
        }
        Ok(())
    }

    /// This run's programs in place of the last run's, without a gap.
    fn replace(&mut self, uplink: u32, mechanism: Mechanism) -> Result<(), KernelError> {
        let name = interface_name(uplink)?;
        match mechanism {
            Mechanism::Clsact => self.attach_clsact(&name),
            Mechanism::Tcx => {
                for (program, (hook, label)) in self.programs.iter_mut().zip(HOOKS) {
                    let operation = || format!("replace the program on {name} ({hook:?}, TCX)");
                    let pin = pin_path(&self.links, label, uplink);
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
    fn is_live(&self, uplink: u32, mechanism: Mechanism) -> bool {
        let Ok(name) = interface_name(uplink) else {
            return false;
        };
        match mechanism {
            Mechanism::Clsact => true,
            Mechanism::Tcx => HOOKS.iter().zip(&self.programs).all(|((hook, _), program)| {
                let ours = program.info().map(|info| info.id()).ok();
                SchedClassifier::query_tcx(&name, *hook)
                    .is_ok_and(|(_, programs)| programs.iter().any(|info| Some(info.id()) == ours))
            }),
        }
    }

    /// Removes the pins of an uplink; an unpinned TCX link detaches.
    fn forget(&self, uplink: u32) {
        for (_, label) in HOOKS {
            let pin = pin_path(&self.links, label, uplink);
            if pin.exists()
                && let Err(error) = fs::remove_file(&pin)
            {
                warn!(pin = %pin.display(), %error, "cannot remove");
            }
        }
        let marker = self.links.join(format!("clsact-{uplink}"));
        if marker.exists()
            && let Err(error) = fs::remove_dir(&marker)
        {
            warn!(marker = %marker.display(), %error, "cannot remove");
        }
    }

    /// Uplinks that the last run left something attached to.
    fn pinned(&self) -> Result<BTreeMap<u32, Mechanism>, KernelError> {
        let operation = || format!("read {}", self.links.display());
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(&self.links).map_err(|error| failed(operation(), &error))? {
            let name = entry.map_err(|error| failed(operation(), &error))?.file_name();
            let name = name.to_string_lossy();
            let Some((label, uplink)) = name.split_once('-') else {
                continue;
            };
            let Ok(uplink) = uplink.parse() else {
                continue;
            };
            let mechanism = if label == "clsact" { Mechanism::Clsact } else { Mechanism::Tcx };
            found.insert(uplink, mechanism);
        }
        Ok(found)
    }
}

fn pin_path(links: &Path, label: &str, uplink: u32) -> PathBuf {
    links.join(format!("{label}-{uplink}"))
}

fn interface_name(index: u32) -> Result<String, KernelError> {
    let operation = || format!("find the interface with index {index}");
    let name = if_indextoname(index).map_err(|errno| KernelError::errno(operation(), errno as i32))?;
    name.into_string().map_err(|_| KernelError::other(operation(), "its name is no text"))
}

/// Our filter at our place: made, or replaced when it is there.
fn attach_filter(program: &mut SchedClassifier, name: &str, hook: TcAttachType) -> Result<(), KernelError> {
    let operation = || format!("attach to {name} ({hook:?}, clsact)");
    let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
    let id = match program.attach_with_options(name, hook, TcAttachOptions::Netlink(options)) {
        Ok(id) => id,
        Err(error) => {
            let error = failed(operation(), &error);
            if error.errno != Some(Errno::EEXIST as i32) {
                return Err(error);
            }
            let link = SchedClassifierLink::attached(name, hook, PRIORITY, HANDLE, None)
                .map_err(|error| failed(operation(), &error))?;
            program.attach_to_link(link).map_err(|error| failed(operation(), &error))?
        }
    };
    let link = program.take_link(id).map_err(|error| failed(operation(), &error))?;
    // Dropping it would detach, and a filter has no pin: it stays until `detach_filter`.
    std::mem::forget(link);
    Ok(())
}

fn detach_filter(name: &str, hook: TcAttachType) -> Result<(), KernelError> {
    let operation = || format!("detach from {name} ({hook:?}, clsact)");
    let link = SchedClassifierLink::attached(name, hook, PRIORITY, HANDLE, None)
        .map_err(|error| failed(operation(), &error))?;
    aya::programs::links::Link::detach(link).map_err(|error| failed(operation(), &error))
}
