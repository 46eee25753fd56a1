//! What is over, removed by a program: between its look at an entry and the removal nobody can make it another one, see
//! `telecluster_common::nat::collect` and `nat::release`.

use std::{marker::PhantomData, path::Path};

use aya::{TestRun as _, TestRunOptions, programs::SchedClassifier};
use telecluster_common::{
    maps::{EndpointKey, FlowKey},
    nat::{
        collect::{BATCH4, BATCH6, HELD_DOWN, START},
        release,
    },
};

use super::failed;
use crate::kernel::KernelError;

/// Keys of a table, and the program that removes what is under them if it is over.
pub(super) trait Collected: Copy {
    const PROGRAM: &'static str;
    /// Keys that one run of it takes.
    const BATCH: usize;
}

impl Collected for FlowKey<[u8; 4]> {
    const PROGRAM: &'static str = "tc_collect4";
    const BATCH: usize = BATCH4;
}

impl Collected for FlowKey<[u8; 16]> {
    const PROGRAM: &'static str = "tc_collect6";
    const BATCH: usize = BATCH6;
}

impl Collected for EndpointKey<[u8; 4]> {
    const PROGRAM: &'static str = "tc_release4";
    const BATCH: usize = release::BATCH4;
}

impl Collected for EndpointKey<[u8; 16]> {
    const PROGRAM: &'static str = "tc_release6";
    const BATCH: usize = release::BATCH6;
}

#[derive(Debug)]
pub(super) struct Collector<K> {
    program: SchedClassifier,
    keys: PhantomData<K>,
}

impl<K: Collected> Collector<K> {
    pub(super) fn open(directory: &Path) -> Result<Self, KernelError> {
        let pin = directory.join("progs").join(K::PROGRAM);
        let program = SchedClassifier::from_pin(&pin)
            .map_err(|error| failed(format!("open {}", pin.display()), &error))?;
        Ok(Self { program, keys: PhantomData })
    }

    /// Removes what is over of that; how many flows or bindings those were. `held_down`: for how many ticks a binding has to have been
    /// over.
    pub(super) fn collect(&self, keys: &[K], held_down: u32) -> Result<usize, KernelError> {
        let mut removed = 0;
        let mut frame = Vec::with_capacity(START + K::BATCH * size_of::<K>());
        for some in keys.chunks(K::BATCH) {
            frame.clear();
            frame.resize(START, 0);
            frame[HELD_DOWN..HELD_DOWN + size_of::<u32>()].copy_from_slice(&held_down.to_ne_bytes());
            frame.extend(some.iter().flat_map(bytes));
            let options = TestRunOptions { data_in: Some(&frame), ..TestRunOptions::new() };
            let result = self
                .program
                .test_run(options)
                .map_err(|error| failed(format!("run the BPF program {}", K::PROGRAM), &error))?;
            removed += result.return_value as usize;
        }
        Ok(removed)
    }
}

/// A key as memory has it.
fn bytes<K: Collected>(key: &K) -> Vec<u8> {
    let start = std::ptr::from_ref(key).cast::<u8>();
    // SAFETY: `repr(C)` of integers and byte arrays without padding (asserted in `maps`): every byte is initialised.
    unsafe { std::slice::from_raw_parts(start, size_of::<K>()) }.to_vec()
}
