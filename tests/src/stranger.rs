//! A program of somebody else: it counts packets and lets them pass to whoever comes next.

use std::{
    fmt, io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
};

use aya::{
    maps::{Array, Map, MapData},
    programs::{
        LinkOrder, SchedClassifier, TcAttachType,
        tc::{self, NlOptions, TcAttachOptions},
    },
};
use nix::libc;

/// Loaded, and pinned so that `tc` and aya find it.
pub struct Stranger {
    program: SchedClassifier,
    packets: Array<MapData, u64>,
}

impl fmt::Debug for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stranger").field("program", &self.program).finish_non_exhaustive()
    }
}

/// On which side of those that are there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Before,
    Behind,
}

/// include/uapi/linux/bpf.h
const MAP_CREATE: libc::c_int = 0;
const PROG_LOAD: libc::c_int = 5;
const OBJ_PIN: libc::c_int = 6;
const ARRAY: u32 = 2;
const SCHED_CLS: u32 = 3;

impl Stranger {
    /// `pin`: a path on a BPF file system where nothing is yet.
    pub fn load(pin: &Path) -> Self {
        let map = bpf(MAP_CREATE, &mut words(&[ARRAY, 4, 8, 1])).expect("make a map");
        // SAFETY: the kernel has just handed this descriptor out, and nobody else has it.
        let map = unsafe { OwnedFd::from_raw_fd(map) };
        let code = count_and_pass(u32::try_from(map.as_raw_fd()).expect("a descriptor"));
        let license = c"GPL";
        let mut attr = [words(&[SCHED_CLS, u32::try_from(code.len()).expect("few")]), vec![0; 120]].concat();
        attr[8..16].copy_from_slice(&(code.as_ptr() as u64).to_ne_bytes());
        attr[16..24].copy_from_slice(&(license.as_ptr() as u64).to_ne_bytes());
        let program = bpf(PROG_LOAD, &mut attr).expect("load a program");
        // SAFETY: as above.
        let program = unsafe { OwnedFd::from_raw_fd(program) };
        let path = std::ffi::CString::new(pin.to_str().expect("text")).expect("no zero in it");
        let mut attr = (path.as_ptr() as u64).to_ne_bytes().to_vec();
        attr.extend(words(&[u32::try_from(program.as_raw_fd()).expect("a descriptor"), 0]));
        bpf(OBJ_PIN, &mut attr).expect("pin a program");
        let data = MapData::from_fd(map).expect("a map");
        Self {
            program: SchedClassifier::from_pin(pin).expect("a program"),
            packets: Array::try_from(Map::from_map_data(data).expect("a map")).expect("an array"),
        }
    }

    /// Attaches it in the namespace of this thread, for as long as the interface is there; by TCX or else by clsact.
    pub fn attach(&mut self, interface: &str, at: TcAttachType, side: Side) {
        let order = match side {
            Side::Before => LinkOrder::first(),
            Side::Behind => LinkOrder::last(),
        };
        let tcx = self.program.attach_with_options(interface, at, TcAttachOptions::TcxOrder(order));
        let link = tcx.or_else(|_| {
            // It may be there.
            let _ = tc::qdisc_add_clsact(interface);
            let priority = match side {
                Side::Before => 1,
                Side::Behind => 40000,
            };
            let options = NlOptions { priority, ..NlOptions::default() };
            self.program.attach_with_options(interface, at, TcAttachOptions::Netlink(options))
        });
        let link = self.program.take_link(link.expect("attach a program")).expect("its link");
        // Dropping it would detach.
        std::mem::forget(link);
    }

    /// How many packets it has seen.
    pub fn packets(&self) -> u64 {
        self.packets.get(&0, 0).expect("its count")
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn bpf(command: libc::c_int, attr: &mut [u8]) -> io::Result<i32> {
    // SAFETY: the attribute is as long as is said, and what it points to lives in the caller's frame.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), attr.len()) };
    match result < 0 {
        true => Err(io::Error::last_os_error()),
        false => i32::try_from(result).map_err(io::Error::other),
    }
}

/// Each instruction is `struct bpf_insn`: code, registers (target below, source above), offset, immediate.
fn count_and_pass(map: u32) -> Vec<u64> {
    let instruction = |code: u8, registers: u8, offset: i16, immediate: u32| {
        let [o0, o1] = offset.to_ne_bytes();
        let [i0, i1, i2, i3] = immediate.to_ne_bytes();
        u64::from_ne_bytes([code, registers, o0, o1, i0, i1, i2, i3])
    };
    vec![
        instruction(0x62, 0x0a, -4, 0), // *(u32 *)(r10 - 4) = 0: the key
        instruction(0xbf, 0xa2, 0, 0),  // r2 = r10
        instruction(0x07, 0x02, 0, (-4_i32).cast_unsigned()), // r2 += -4
        instruction(0x18, 0x11, 0, map), // r1 = the map
        instruction(0x00, 0x00, 0, 0),  // its second half
        instruction(0x85, 0x00, 0, 1),  // r0 = bpf_map_lookup_elem(r1, r2)
        instruction(0x15, 0x00, 2, 0),  // if r0 == 0 skip two
        instruction(0xb7, 0x01, 0, 1),  // r1 = 1
        instruction(0xdb, 0x10, 0, 0),  // lock *(u64 *)(r0 + 0) += r1
        instruction(0xb7, 0x00, 0, u32::MAX), // r0 = -1: TCX_NEXT, TC_ACT_UNSPEC
        instruction(0x95, 0x00, 0, 0),  // exit
    ]
}
