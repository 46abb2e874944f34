//! What all three programs need: names, errors, sockets, the state store, telemetry and an orderly end.
//! It knows gRPC and knows no resource.

pub mod access;
pub mod audit;
mod bucket;
pub mod events;
pub mod fault;
pub mod limits;
pub mod look;
pub mod mac;
pub mod name;
pub mod process;
pub mod serve;
pub mod shutdown;
pub mod slots;
pub mod socket;
mod status;
pub mod steps;
pub mod store;
pub mod syscalls;
pub mod telemetry;
pub mod time;
pub mod watch;
pub mod wire;
