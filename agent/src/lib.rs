//! The TeleCluster worker: bridges, links and NAT of one server, by REST.
//!
//! `REST request -> extract -> validate -> desired -> plan -> apply -> observe`

pub mod engine;
pub mod error;
pub mod kernel;
pub mod model;
