//! netd: owns bridges, taps, NAT and packet rules of one host, and serves them as `netd.v1`.
//!
//! A request becomes kernel state in four steps: `server` and `convert` make model types of it, `alloc` decides
//! names and addresses, the record is committed, and `reconciler` carries out what `plan` says is missing.

pub mod alloc;
mod capture;
pub mod config;
mod convert;
pub mod diagnose;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod kernel;
pub mod model;
pub mod plan;
pub mod privilege;
pub mod reconciler;
pub mod server;
pub mod services;
