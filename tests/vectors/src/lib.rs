//! The packet engine without the worker: what the tests share with the fuzzers, which instrument all that they depend on.
//!
//! | module | what |
//! |---|---|
//! | [`frame`] | frames built byte by byte, checksums from scratch |
//! | [`vectors`] | packets in, packets and verdicts out: the same list for the host and the kernel |
//! | [`host`] | the engine over byte slices and hash maps |
//! | [`fuzz`] | the entry points of the fuzzers |

#![expect(clippy::panic, reason = "all of this crate is test code: a failure is a panic")]

pub mod frame;
pub mod fuzz;
pub mod host;
pub mod vectors;
