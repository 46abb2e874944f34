//! Network namespaces for tests on the real kernel.

use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::future::Future;

/// Runs `work` on a thread in a network namespace of its own. Children of that thread are there too.
pub fn in_own_netns<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(|| {
        // SAFETY: only the network namespace changes, which has no effect on memory or descriptors.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
            .expect("this test needs CAP_SYS_ADMIN for a network namespace of its own: run it as root");
        work()
    });
    thread.join().expect("see the panic above")
}

/// As `in_own_netns`, for a future.
pub fn block_on_in_own_netns<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    in_own_netns(|| {
        // One thread, so that every socket, file and child belongs to that namespace.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(work)
    })
}
