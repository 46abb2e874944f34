//! Steps of a change: each durable commit, each change of the kernel, each effect on a process or a file. A test can
//! count them, and have the daemon die, fail or repeat itself at any of them. In debug builds only: a release build has
//! nothing of it but the calls themselves, which do the work and no more.
//!
//! `KVMCTL_STEPS` names a file, the plan, which is read at each step, so that one daemon can be given one plan after the
//! other. It has one line, and an empty or missing one means nothing:
//!
//! ```text
//!   TOKEN PHASE MODE NUMBER
//!
//!   TOKEN    any word; another one begins to count anew
//!   PHASE    start       before `serving` was called
//!            change      within `change`: what a request does, and what repairs drift
//!            background  all else
//!   MODE     count, kill-before, kill-after, fail (in place of the step), twice (one after the other)
//!   NUMBER   of the step that it is about, from 1; with count, anything
//! ```
//!
//! Each step of that phase is a line `TOKEN NUMBER NAME` in the file beside the plan whose name has `.log` appended,
//! written before the step is taken. NAME begins with `point` where there is nothing to take: a place between effects.

#[cfg(debug_assertions)]
mod plan;

use crate::fault::Fault;

/// From now on steps are those of changes, or of the background, and no more those of the start.
pub fn serving() {
    #[cfg(debug_assertions)]
    plan::serving();
}

/// Marks all steps of `work` as those of a change. What it spawns is not part of it.
#[cfg(debug_assertions)]
pub fn change<T>(work: impl Future<Output = T>) -> impl Future<Output = T> {
    plan::CHANGE.scope((), work)
}

/// Marks all steps of `work` as those of a change, in debug builds.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn change<T>(work: impl Future<Output = T>) -> impl Future<Output = T> {
    work
}

/// Takes a step that waits. `name` is for people, and the same in each run.
///
/// # Errors
/// What `work` says.
#[cfg(debug_assertions)]
pub async fn step<T, F>(name: impl FnOnce() -> String, work: impl Fn() -> F) -> Result<T, Fault>
where
    F: Future<Output = Result<T, Fault>>,
{
    let after = plan::reach(name)?;
    let mut result = work().await;
    if after == plan::After::Again && result.is_ok() {
        result = work().await;
    }
    after.die_if_told();
    result
}

/// Takes a step that waits.
///
/// # Errors
/// What `work` says.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub async fn step<T, F>(_: impl FnOnce() -> String, work: impl Fn() -> F) -> Result<T, Fault>
where
    F: Future<Output = Result<T, Fault>>,
{
    work().await
}

/// Takes a step that does not wait, as `step`.
///
/// # Errors
/// What `work` says.
#[inline(always)]
pub fn effect<T>(
    name: impl FnOnce() -> String,
    mut work: impl FnMut() -> Result<T, Fault>,
) -> Result<T, Fault> {
    #[cfg(debug_assertions)]
    {
        let after = plan::reach(name)?;
        let mut result = work();
        if after == plan::After::Again && result.is_ok() {
            result = work();
        }
        after.die_if_told();
        result
    }
    #[cfg(not(debug_assertions))]
    {
        let _ = name;
        work()
    }
}

/// A place between two effects of one step, where a daemon can die or fail.
///
/// # Errors
/// Only if the plan says so.
#[inline(always)]
pub fn point(name: impl FnOnce() -> String) -> Result<(), Fault> {
    effect(|| format!("point {}", name()), || Ok(()))
}
