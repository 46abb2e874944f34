//! What the tests stand on: network namespaces, daemons in them, guests, and witnesses that are not ours.
//!
//! Everything a test makes is in namespaces and folders of its own and goes away with the values here.

pub mod census;
pub mod client;
pub mod figures;
pub mod flows;
pub mod frames;
pub mod guest;
pub mod host;
pub mod machine;
pub mod netns;
pub mod rpc;
pub mod tap;
pub mod wait;
pub mod wire;
