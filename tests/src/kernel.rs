//! The loaded programs through `BPF_PROG_TEST_RUN`: real verifier, real maps, no interface.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    path::PathBuf,
    sync::Mutex,
};

use aya::{
    TestRun as _, TestRunOptions,
    maps::MapData,
    programs::{Program, SchedClassifier},
};
use nix::libc;
use telecluster_common::{
    drop::DropReason,
    maps::{Direction, RuleStat, Timeouts},
    tables::Limits,
};
use telecluster_worker::kernel::{
    bpf::{
        BpfDataPlane, Options,
        object::{Object, classifier, program},
    },
    dataplane::{DataPlane as _, Flow, HoldDown, HostAddresses, NatRule, NatType, Slot, Transport},
    xdp::{Wishes, Xdp},
};

use crate::{
    frame::TCP,
    vectors::{IPV4, IPV6, LOCAL, Machine, Outcome, Rule, UPLINK},
};

const NEXT: u32 = u32::MAX; // TCX_NEXT, -1
const SHOT: u32 = 2;

/// The programs with their maps, pinned in the sandbox's own BPF file system.
#[derive(Debug)]
pub struct Kernel {
    pub plane: BpfDataPlane,
    object: Object,
    /// Packets come as if a card had summed them up, and the kernel looks whether the sum is right afterwards: 6.16 and later.
    summed_up: bool,
}

impl Kernel {
    pub fn load() -> Self {
        Self::with(HoldDown::default(), 4096)
    }

    pub fn with(hold_down: HoldDown, flow_capacity: u32) -> Self {
        let options = Options {
            directory: PathBuf::from("/sys/fs/bpf/telecluster"),
            flow_capacity: Some(flow_capacity),
            unproven_flows: 0,
            limits: Limits::default(),
            hold_down,
            xdp: Wishes { others: Xdp::On, ..Wishes::default() },
            log_level: 3,
        };
        let (plane, object) = BpfDataPlane::load(&options).expect("load the programs");
        let addresses = HostAddresses {
            local: LOCAL.to_vec(),
            uplinks: vec![(UPLINK, IPV4.uplink), (UPLINK, IPV6.uplink)],
            external: vec![(UPLINK, IPV4.uplink), (UPLINK, IPV6.uplink)],
        };
        plane.set_addresses(&addresses).expect("set the addresses");
        Self { plane, object, summed_up: true }
    }

    /// Empties the tables and the slots of `rules`, for the next story: to load the programs takes much longer.
    pub fn forget(&mut self, rules: usize) {
        for slot in 0..u32::try_from(rules).expect("few rules") {
            self.plane.clear_slot(Slot(slot)).expect("empty a slot");
        }
        for family in ["4", "6"] {
            for table in ["flow", "binding", "moved", "fragment", "pace", "placed", "pair"] {
                clear(&format!("{table}{family}"));
            }
        }
    }

    pub fn program(&mut self, direction: Direction) -> &mut SchedClassifier {
        let name = match direction {
            Direction::In => "tc_wan_in",
            Direction::Out => "tc_wan_out",
        };
        classifier(&mut self.object, name).expect("the program")
    }

    /// What a program answers to a frame, and the frame afterwards.
    pub fn run_at(&mut self, name: &str, frame: &[u8]) -> (u32, Vec<u8>) {
        let mut out = vec![0; frame.len()];
        let options =
            TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::new() };
        let result = match program(&mut self.object, name).expect("the program") {
            Program::SchedClassifier(program) => program.test_run(options),
            Program::Xdp(program) => program.test_run(options),
            _ => panic!("{name} is of neither kind"),
        };
        (result.expect("run the program").return_value, out)
    }

    /// As aya's `test_run`, which has no flags.
    fn run_summed_up(&mut self, direction: Direction, frame: &[u8], out: &mut [u8]) -> io::Result<u32> {
        /// include/uapi/linux/bpf.h
        const BPF_PROG_TEST_RUN: libc::c_int = 10;
        const BPF_F_TEST_SKB_CHECKSUM_COMPLETE: u32 = 1 << 2;
        #[repr(C)]
        #[derive(Default)]
        struct TestRunAttr {
            program: u32,
            answer: u32,
            sizes: [u32; 2],
            data_in: u64,
            data_out: u64,
            repeat: u32,
            duration: u32,
            context_sizes: [u32; 2],
            contexts: [u64; 2],
            flags: u32,
            cpu: u32,
            batch: u32,
            unused: u32,
        }
        let size = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(io::Error::other);
        let fd = self.program(direction).fd().map_err(io::Error::other)?.as_fd().as_raw_fd();
        let mut attr = TestRunAttr {
            program: u32::try_from(fd).map_err(io::Error::other)?,
            sizes: [size(frame)?, size(out)?],
            data_in: frame.as_ptr() as u64,
            data_out: out.as_mut_ptr() as u64,
            repeat: 1,
            flags: if self.summed_up { BPF_F_TEST_SKB_CHECKSUM_COMPLETE } else { 0 },
            ..TestRunAttr::default()
        };
        // SAFETY: the attribute is complete for this command, the buffers are as long as it says and live until it returns.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attr, size_of::<TestRunAttr>())
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(attr.answer) }
    }

    /// Every live flow.
    pub fn flows(&self) -> Vec<Flow> {
        let all = Mutex::new(Vec::new());
        let visit = |part: &[Flow]| all.lock().expect("no visitor panics").extend_from_slice(part);
        self.plane.visit_flows(&visit).expect("list the flows");
        all.into_inner().expect("no visitor panics")
    }

    fn drops(&self) -> Vec<(DropReason, u64)> {
        self.plane.drops().expect("read the drop counters")
    }
}

/// Deletes every entry of a hash map, whatever its keys are.
fn clear(name: &str) {
    /// include/uapi/linux/bpf.h, `enum bpf_cmd`.
    const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
    const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;
    #[repr(C)]
    struct ElementAttr {
        map: u32,
        key: u64,
        /// Of `BPF_MAP_GET_NEXT_KEY` where the next key goes.
        value: u64,
        flags: u64,
    }
    let map = MapData::from_pin(format!("/sys/fs/bpf/telecluster/maps/{name}")).expect("open the map");
    let mut key = vec![0_u8; map.info().expect("describe the map").key_size() as usize];
    let call = |command: libc::c_int, key: u64, value: u64| {
        let map = u32::try_from(map.fd().as_fd().as_raw_fd()).expect("a descriptor");
        let mut attr = ElementAttr { map, key, value, flags: 0 };
        // SAFETY: the attribute is complete for these commands, and the keys are as long as the map's.
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attr, size_of::<ElementAttr>()) == 0 }
    };
    // The first key, until there is none.
    while call(BPF_MAP_GET_NEXT_KEY, 0, key.as_mut_ptr() as u64) {
        assert!(call(BPF_MAP_DELETE_ELEM, key.as_ptr() as u64, 0), "delete an entry of {name}");
    }
}

fn nat_rule(rule: &Rule) -> NatRule {
    match rule {
        Rule::Forward { proto, ports, to, address, sources } => NatRule::Forward {
            uplink: UPLINK,
            external_ip: *address,
            external_port: *ports.start(),
            external_port_end: *ports.end(),
            internal_ip: to.0,
            internal_port: to.1,
            transports: vec![if *proto == TCP { Transport::Tcp } else { Transport::Udp }],
            sources: sources.clone(),
            hairpin: true,
            new_flows: 0,
            timeouts: Timeouts::RFC,
        },
        Rule::Masquerade { source, nat, except, pool } => NatRule::Masquerade {
            uplink: UPLINK,
            source: *source,
            nat: NatType::from_flags(*nat),
            parity: false,
            except: except.clone(),
            pool: pool.clone(),
            new_flows: 0,
            timeouts: Timeouts::RFC,
        },
    }
}

impl Machine for Kernel {
    fn put(&mut self, slot: u32, rule: &Rule) {
        self.plane.put_rule(Slot(slot), &nat_rule(rule)).expect("put a rule");
    }

    fn remove(&mut self, slot: u32, rule: &Rule) {
        self.plane.remove_rule(Slot(slot), &nat_rule(rule)).expect("remove a rule");
    }

    fn run(&mut self, direction: Direction, frame: &[u8]) -> (Outcome, Vec<u8>) {
        let before = self.drops();
        let mut out = vec![0; frame.len()];
        let result = match self.run_summed_up(direction, frame, &mut out) {
            Err(error) if self.summed_up && error.raw_os_error() == Some(libc::EINVAL) => {
                eprintln!("this kernel cannot run programs on packets that a card has summed up: without");
                self.summed_up = false;
                self.run_summed_up(direction, frame, &mut out)
            }
            result => result,
        };
        let outcome = match result.expect("run the program, and a right sum over the packet") {
            NEXT => Outcome::Passed,
            SHOT => {
                let after = self.drops();
                let grown: Vec<_> = before.iter().zip(&after).filter(|(b, a)| a.1 != b.1).collect();
                assert_eq!(grown.len(), 1, "a drop is counted once, under one reason: {before:?} {after:?}");
                assert_eq!(grown[0].1.1, grown[0].0.1 + 1);
                Outcome::Dropped(grown[0].1.0)
            }
            other => panic!("a verdict that is none of ours: {other}"),
        };
        (outcome, out)
    }

    fn counters(&mut self, slot: u32) -> RuleStat {
        let counters = self.plane.counters(Slot(slot)).expect("read the counters");
        RuleStat {
            packets_in: counters.packets_in,
            bytes_in: counters.bytes_in,
            packets_out: counters.packets_out,
            bytes_out: counters.bytes_out,
            flows: counters.flows,
        }
    }
}
