//! The TeleCluster worker: bridges, links and NAT of one server, by REST.
//!
//! `REST request -> extract -> validate -> desired -> plan -> apply -> observe`

pub mod api;
pub mod check;
mod choice;
pub mod config;
pub mod engine;
pub mod error;
pub mod kernel;
pub mod kinds;
pub mod logging;
pub mod loops;
pub mod memory;
pub mod metrics;
pub mod model;
pub mod permissions;
pub mod plan;
pub mod probe;
pub mod serve;
pub mod start;
pub mod state;
pub mod store;
pub mod topology;
pub mod users;
