//! Wire types that both daemons have, made of what both know.

mod caller;

pub use caller::caller;
