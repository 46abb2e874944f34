//! netd dies at its system calls, and its system calls fail.

use integration_tests::{soak, steps};

/// Of the places, in `make test`.
const STRIDE: usize = 8;

#[test]
fn netd_may_die_at_a_system_call_and_may_find_no_room() {
    let swept =
        ["port create", "port delete", "network create, nat with DHCP", "network delete, nat with DHCP"];
    let operations: Vec<_> =
        steps::all().into_iter().filter(|operation| swept.contains(&operation.name.as_str())).collect();
    assert_eq!(operations.len(), swept.len());
    let stride = if soak() { 1 } else { STRIDE };
    let (tally, calls, places) = steps::sweep(&operations, stride);
    for failure in &tally.failures {
        println!("{failure}");
    }
    println!(
        "system calls: {} operations, their first {calls} calls at {places} places, 1 in {stride} of them tried: {} runs, {} deaths, {} leaked, {} of {} retries succeeded",
        tally.operations,
        tally.runs,
        tally.steps,
        tally.failures.len(),
        tally.retries.1,
        tally.retries.0
    );
    assert!(tally.failures.is_empty(), "{} failed", tally.failures.len());
    assert!(tally.steps > 0, "netd never died");
}
