//! Flows that are over, removed by a program: between its look at an entry and the removal nobody can make it another one, see
//! `telecluster_common::nat::collect`.

use std::{marker::PhantomData, path::Path};

use aya::{TestRun as _, TestRunOptions, programs::SchedClassifier};
use telecluster_common::{
    maps::FlowKey,
    nat::collect::{BATCH4, BATCH6, START},
};

use super::failed;
use crate::kernel::KernelError;

/// An address family's program.
pub(super) trait Collected: Sized {
    const PROGRAM: &'static str;
    /// Keys that one run of it takes.
    const BATCH: usize;
}

impl Collected for [u8; 4] {
    const PROGRAM: &'static str = "tc_collect4";
    const BATCH: usize = BATCH4;
}

impl Collected for [u8; 16] {
    const PROGRAM: &'static str = "tc_collect6";
    const BATCH: usize = BATCH6;
}

#[derive(Debug)]
pub(super) struct Collector<A> {
    program: SchedClassifier,
    family: PhantomData<A>,
}

impl<A: Collected + Copy> Collector<A> {
    pub(super) fn open(directory: &Path) -> Result<Self, KernelError> {
        let pin = directory.join("progs").join(A::PROGRAM);
        let program = SchedClassifier::from_pin(&pin)
            .map_err(|error| failed(format!("open {}", pin.display()), &error))?;
        Ok(Self { program, family: PhantomData })
    }

    /// Removes those of the flows that are over; how many those were.
    pub(super) fn collect(&self, keys: &[FlowKey<A>]) -> Result<usize, KernelError> {
        let mut flows = 0;
        let mut frame = Vec::with_capacity(START + A::BATCH * size_of::<FlowKey<A>>());
        for some in keys.chunks(A::BATCH) {
            frame.clear();
            frame.resize(START, 0);
            frame.extend(some.iter().flat_map(bytes));
            let options = TestRunOptions { data_in: Some(&frame), ..TestRunOptions::new() };
            let result = self
                .program
                .test_run(options)
                .map_err(|error| failed(format!("run the BPF program {}", A::PROGRAM), &error))?;
            flows += result.return_value as usize;
        }
        Ok(flows)
    }
}

/// A key as memory has it.
fn bytes<A: Copy>(key: &FlowKey<A>) -> Vec<u8> {
    let start = std::ptr::from_ref(key).cast::<u8>();
    // SAFETY: `repr(C)` of integers and byte arrays without padding (asserted in `maps`): every byte is initialised.
    unsafe { std::slice::from_raw_parts(start, size_of::<FlowKey<A>>()) }.to_vec()
}
