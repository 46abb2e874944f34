//! What the tests stand on: network namespaces, daemons in them, guests, and witnesses that are not ours.
//!
//! Everything a test makes is in namespaces and folders of its own and goes away with the values here.

pub mod census;
pub mod client;
pub mod debian;
pub mod figures;
pub mod flows;
pub mod frames;
pub mod group;
pub mod guest;
pub mod history;
pub mod host;
pub mod machine;
pub mod malformed;
pub mod netns;
pub mod objects;
pub mod random;
pub mod raw;
pub mod rpc;
pub mod steps;
pub mod tap;
pub mod user;
pub mod wait;
pub mod wire;

/// Whether the long versions of tests were asked for (`make soak`).
#[must_use]
pub fn soak() -> bool {
    std::env::var_os("KVMCTL_SOAK").is_some_and(|value| value == "1")
}
