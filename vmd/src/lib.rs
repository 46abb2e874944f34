//! vmd runs the virtual machines of one host, without any privilege.
//!
//! `server` speaks `vmd.v1`; `supervisor` knows which machines there are; one `driver` task a machine is the only
//! one that touches it; `machine` is the pure life cycle the driver follows; `qemu` is everything that knows QEMU;
//! `ports` asks netd for taps. A guest outlives vmd: the next vmd adopts it (`adopt`).

pub mod adopt;
pub mod config;
pub mod console;
pub mod convert;
pub mod driver;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod jail;
pub mod machine;
pub mod model;
pub mod ports;
pub mod qemu;
pub mod server;
pub mod start;
pub mod supervisor;
