//! Between wire types and the model: requests are checked here, and nothing unchecked gets further in.

mod caller;
mod emit;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod nic;
mod parse;

pub use caller::caller;
pub use emit::{accelerator, broken_vm, containment, vm, vm_of_another};
pub use parse::{labels, resource, spec, stop_timeout};

/// Collection of machines in resource names.
pub const VMS: &str = "vms";
/// Collection of netd's networks in resource names.
pub const NETWORKS: &str = "networks";
