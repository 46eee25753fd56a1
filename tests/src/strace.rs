//! System calls of a running worker that fail, by strace.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    thread,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::lab::Worker;

/// A call that fails: its name, the error, and the how manieth of each thread it is.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub call: &'static str,
    pub error: &'static str,
    pub when: u32,
}

/// Faults of a worker, until it is dropped.
#[derive(Debug)]
pub struct Faults {
    strace: Child,
    /// What it saw.
    log: tempfile::NamedTempFile,
}

impl Faults {
    /// Returns when the worker is watched, with all threads that it has or starts.
    pub fn inject(worker: &Worker, fault: Fault) -> Self {
        Self::watch(fault, &["-f".to_owned(), "-p".to_owned(), worker.pid().to_string()], 1)
    }

    /// The same with the threads that it has, and nothing that it starts. To follow programs that it runs holds them up for ever
    /// now and then.
    pub fn inject_into_threads(worker: &Worker, fault: Fault) -> Self {
        let threads = fs::read_dir(format!("/proc/{}/task", worker.pid())).expect("the worker's threads");
        let threads =
            threads.map(|thread| thread.expect("a thread").file_name().into_string().expect("a number"));
        let watched: Vec<String> = threads.flat_map(|thread| ["-p".to_owned(), thread]).collect();
        Self::watch(fault, &watched, watched.len() / 2)
    }

    fn watch(fault: Fault, whom: &[String], many: usize) -> Self {
        let Fault { call, error, when } = fault;
        let log = tempfile::NamedTempFile::new().expect("a file for what strace sees");
        let mut strace = Command::new("strace")
            .args(["-o", log.path().to_str().expect("a path")])
            .args(whom)
            .args(["-e", &format!("trace={call}"), "-e", &format!("inject={call}:error={error}:when={when}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace");
        let mut words = BufReader::new(strace.stderr.take().expect("its standard error"));
        let mut attached = 0;
        while attached < many {
            let mut line = String::new();
            let read = words.read_line(&mut line).expect("read from strace");
            assert!(read > 0, "strace ended before it was attached");
            // A thread may have ended meanwhile.
            attached += usize::from(line.contains("attached") || line.contains("attach: "));
        }
        // It goes on to speak of new threads, and must not be held up.
        thread::spawn(move || std::io::copy(&mut words, &mut std::io::sink()));
        Self { strace, log }
    }

    /// How many calls have failed so far.
    pub fn count(&self) -> usize {
        fs::read_to_string(self.log.path()).expect("what strace saw").matches("(INJECTED)").count()
    }

    /// Whether a call with this among its arguments has failed.
    pub fn has_failed(&self, argument: &str) -> bool {
        let log = fs::read_to_string(self.log.path()).expect("what strace saw");
        log.lines().any(|line| line.contains(argument) && line.contains("(INJECTED)"))
    }

    /// Lets the worker go; how many calls have failed.
    pub fn end(mut self) -> usize {
        self.detach();
        self.count()
    }

    fn detach(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.strace.id()).expect("a process id"));
        let _ = kill(pid, Signal::SIGINT);
        let _ = self.strace.wait();
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        if matches!(self.strace.try_wait(), Ok(None)) {
            self.detach();
        }
    }
}
