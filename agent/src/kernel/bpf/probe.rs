//! Whether programs can be on hooks here, found out by putting one on a hook: in a network namespace made for it,
//! so that no interface of the host is touched.

use std::{path::Path, thread};

use aya::programs::{
    SchedClassifier, TcAttachType,
    tc::{self, NlOptions, TcAttachOptions},
};
use nix::sched::{CloneFlags, unshare};
use tracing::debug;

use super::failed;
use crate::kernel::KernelError;

/// Attaches a loaded program to a loopback interface, by TCX or else by clsact; it goes with its namespace.
pub(super) fn attaches(directory: &Path) -> Result<(), KernelError> {
    let pin = directory.join("progs").join("tc_wan_in");
    let attempt = move || {
        if let Err(errno) = unshare(CloneFlags::CLONE_NEWNET) {
            // That says nothing about programs; the first rule will tell.
            debug!(%errno, "no network namespace to try programs in");
            return Ok(());
        }
        let mut program = SchedClassifier::from_pin(&pin)
            .map_err(|error| failed(format!("open {}", pin.display()), &error))?;
        let tcx = program.attach_with_options(
            "lo",
            TcAttachType::Ingress,
            TcAttachOptions::TcxOrder(Default::default()),
        );
        if tcx.is_ok() {
            return Ok(());
        }
        tc::qdisc_add_clsact("lo")
            .map_err(|error| failed("try to attach a program: no TCX here, and add clsact", &error))?;
        program
            .attach_with_options("lo", TcAttachType::Ingress, TcAttachOptions::Netlink(NlOptions::default()))
            .map(drop)
            .map_err(|error| failed("try to attach a program to clsact", &error))
    };
    // A thread of its own: a namespace is left by ending.
    match thread::Builder::new().name("attach-probe".to_owned()).spawn(attempt).map(thread::JoinHandle::join)
    {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(KernelError::other("try to attach a program", "the attempt ended early")),
        Err(error) => Err(KernelError::other("try to attach a program", error.to_string())),
    }
}
