//! Everything that knows QEMU: its command line, its process, its monitor.

pub mod args;
pub mod files;
pub mod host;
pub mod launch;
pub mod qcow2;
pub mod qmp;
pub mod reach;
pub mod stderr;
pub mod tap;

pub use shared::process;
