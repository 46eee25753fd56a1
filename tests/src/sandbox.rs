//! A thread with a network namespace and a BPF file system of its own. Both vanish with it, pins and all,
//! whatever became of the test.

use std::{any::Any, panic::resume_unwind, thread};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// Runs `test` in a new sandbox; a panic in it is a panic here.
pub fn run<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    let result: Result<T, Box<dyn Any + Send>> = thread::scope(|scope| {
        scope
            .spawn(|| {
                enter();
                test()
            })
            .join()
    });
    match result {
        Ok(value) => value,
        Err(panic) => resume_unwind(panic),
    }
}

fn enter() {
    let flags = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_FS;
    unshare(flags).expect("these tests need root: a namespace of their own");
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("make the mounts private");
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none).expect("mount a BPF file system");
}
