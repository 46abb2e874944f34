//! Doing something as another user, in a thread: sockets remember who connected, which is the thread.

use rustix::{
    process::{Gid, Uid},
    thread::{set_thread_gid, set_thread_groups, set_thread_res_uid},
};

/// Runs `work` in a thread of this user, whose only group is `gid`.
///
/// # Panics
/// Without root, or if `work` does.
pub fn as_user<T: Send>(uid: u32, gid: u32, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            set_thread_groups(&[]).expect("groups");
            set_thread_gid(Gid::from_raw(gid)).expect("group");
            let user = Uid::from_raw(uid);
            set_thread_res_uid(user, user, user).expect("user");
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
