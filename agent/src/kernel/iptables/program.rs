//! One run of a program: what it is told, what it says, and an end, whatever it does.
//!
//! Both lie in files in memory and not in pipes: one that reads nothing, or whose children live on, holds up nobody.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::process::CommandExt as _,
    process::{Child, Command, ExitStatus, Output},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        memfd::{MFdFlags, memfd_create},
        signal::{Signal, killpg},
    },
    unistd::Pid,
};

/// How long it is waited for between two looks, at least and at most.
const LOOK: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));
/// For the kernel to end what was killed; more than that takes only a call that does not come back.
const BURIAL: Duration = Duration::from_secs(1);

/// Runs it to its end, or ends it. `None`: it had not ended in time.
pub(super) fn run(mut command: Command, input: &str, time: Duration) -> io::Result<Option<Output>> {
    let (mut told, mut said, mut complained) = (memory()?, memory()?, memory()?);
    told.write_all(input.as_bytes())?;
    told.rewind()?;
    command.stdin(told).stdout(said.try_clone()?).stderr(complained.try_clone()?);
    // With a group of its own, what it has started can be ended too.
    let mut child = command.process_group(0).spawn()?;
    let Some(status) = ended(&mut child, time) else {
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        // It may have ended just now.
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        let _ = ended(&mut child, BURIAL);
        return Ok(None);
    };
    Ok(Some(Output { status, stdout: all(&mut said)?, stderr: all(&mut complained)? }))
}

fn memory() -> io::Result<File> {
    Ok(memfd_create(c"iptables", MFdFlags::MFD_CLOEXEC)?.into())
}

fn all(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Looks again after an eighth of the time that it has taken so far: next to nothing is lost, and nobody spins.
fn ended(child: &mut Child, time: Duration) -> Option<ExitStatus> {
    let began = Instant::now();
    loop {
        // Only who has no such child is told of an error, and we have it.
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        let taken = began.elapsed();
        if taken >= time {
            return None;
        }
        thread::sleep((taken / 8).clamp(LOOK.0, LOOK.1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATE: Duration = Duration::from_secs(60);

    fn shell(line: &str) -> Command {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", line]);
        shell
    }

    #[test]
    fn what_goes_in_comes_out_however_much() {
        let much = "-A CHAIN -j RETURN\n".repeat(100_000);
        let output = run(shell("cat; echo done >&2; exit 3"), &much, LATE).unwrap().unwrap();
        assert!(output.stdout == much.as_bytes() && output.stderr == b"done\n");
        assert_eq!(output.status.code(), Some(3));
        // And none of it has to be read.
        assert!(run(shell("exit 0"), &much, LATE).unwrap().unwrap().status.success());
    }

    #[test]
    fn one_that_does_not_end_is_ended_with_what_it_has_started() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        let command = shell(&format!("sleep 3600 & echo $! >{}; wait", file.display()));
        assert!(run(command, "", Duration::from_secs(2)).unwrap().is_none());
        let pid = std::fs::read_to_string(file).unwrap();
        let state = || std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        let began = Instant::now();
        // Nobody may have buried it yet.
        while !(state().is_empty() || state().contains(") Z")) {
            assert!(began.elapsed() < LATE, "{}", state());
            thread::sleep(LOOK.1);
        }
    }
}
