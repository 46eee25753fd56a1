//! Programs written in BPF's own instructions, as measures for ours: what a compiler makes of a source is no matter here.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::{maps::MapData, programs::SchedClassifier};
use nix::libc;

/// One instruction: operation, registers (source and destination, four bits each), offset, value
/// (linux: Documentation/bpf/standardization/instruction-set.rst).
pub type Instruction = [u8; 8];

#[must_use]
pub const fn instruction(operation: u8, registers: u8, offset: i16, value: i32) -> Instruction {
    let [a, b] = offset.to_le_bytes();
    let [c, d, e, f] = value.to_le_bytes();
    [operation, registers, a, b, c, d, e, f]
}

/// The address of a pinned map into register 1.
#[must_use]
pub fn map_into_r1(map: &MapData) -> [Instruction; 2] {
    [instruction(0x18, 0x11, 0, map.fd().as_fd().as_raw_fd()), instruction(0, 0, 0, 0)]
}

/// Loads instructions as a program for TC, pinned beside the worker's.
#[must_use]
pub fn load(name: &str, code: &[Instruction]) -> SchedClassifier {
    let code = code.concat();
    let pin = CString::new(format!("/sys/fs/bpf/telecluster/progs/{name}")).expect("a path");
    // The attributes of BPF_PROG_LOAD as far as they are not 0, and of BPF_OBJ_PIN (linux/bpf.h).
    let mut load = [0u64; 16];
    load[0] = 3 | (code.len() as u64 / 8) << 32; // BPF_PROG_TYPE_SCHED_CLS
    load[1] = code.as_ptr() as u64;
    load[2] = c"GPL".as_ptr() as u64;
    let call = |command: libc::c_long, attributes: &mut [u64; 16]| {
        // SAFETY: attributes of that size, whose pointers are to what lives until the call returns.
        let done = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), 128) };
        assert!(done >= 0, "{name}: {}", io::Error::last_os_error());
        done
    };
    let program = call(5, &mut load).cast_unsigned();
    let mut attributes = [0u64; 16];
    (attributes[0], attributes[1]) = (pin.as_ptr() as u64, program);
    call(6, &mut attributes);
    SchedClassifier::from_pin(pin.to_str().expect("text")).expect("open the program")
}
