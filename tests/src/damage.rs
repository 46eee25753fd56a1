//! Frames that something has happened to: bytes of them are others, and they may be cut short.

use proptest::{
    prelude::*,
    sample::Index,
    test_runner::{Config, RngAlgorithm, TestCaseResult, TestRng, TestRunner},
};
use telecluster_common::maps::Direction;

use crate::frame::Frame;

pub const CASES: u32 = 4096;

/// Runs a test with each of [`CASES`] damaged frames, of which fewer than `most` bytes are others: the same ones in every run, so that a
/// failure does not depend on luck.
pub fn with_damaged(
    frames: &[(Direction, Frame)],
    most: usize,
    test: impl Fn(Direction, Vec<u8>) -> TestCaseResult,
) {
    let changes = prop::collection::vec((any::<Index>(), any::<u8>()), 0..most);
    let damages = (any::<Index>(), changes, prop::option::of(any::<Index>()));
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let dice = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let outcome = TestRunner::new_with_rng(config, dice).run(&damages, |(which, changes, cut)| {
        let (direction, frame) = which.get(frames);
        let mut bytes = frame.bytes();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Some(cut) = cut {
            // BPF_PROG_TEST_RUN wants the whole IP header
            let least = if frame.src.is_ipv4() { 34 } else { 54 };
            bytes.truncate(least + cut.index(bytes.len() + 1 - least));
        }
        test(*direction, bytes)
    });
    outcome.expect("all is as it should be");
}
