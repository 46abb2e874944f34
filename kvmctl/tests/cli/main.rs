//! The kvmctl program as a whole. One test program: linking is what takes the time.

#![expect(
    clippy::unwrap_used,
    reason = "clippy.toml allows it in tests, but knows no helpers of integration tests"
)]

mod daemons;
mod fake;
mod terminal;
mod usage;
