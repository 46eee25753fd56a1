//! The TeleCluster worker: bridges, links and NAT of one server, by REST.
//!
//! `REST request -> extract -> validate -> desired -> plan -> apply -> observe`

pub mod engine;
pub mod error;
pub mod kernel;
pub mod kinds;
pub mod loops;
pub mod model;
pub mod plan;
pub mod state;
pub mod store;
