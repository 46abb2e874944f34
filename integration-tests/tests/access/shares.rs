//! What one user may have of what costs all of them something: changes, and diagnoses.

use crate::{ALICE, BOB, NOBODY, grants, host, kvmctl, ok, refused, runtime, write_access_file};
use integration_tests::{
    host::VMD_UID,
    raw::{self, Daemon},
    user::as_user,
    wait,
};
use shared::fault::Fault;
use std::{os::unix::process::CommandExt as _, process::Stdio, time::Instant};
use tonic::Code;

/// At once, with one change a second.
const BURST: usize = 40;

#[test]
fn a_user_who_makes_changes_without_end_is_slowed_down_and_nobody_else() {
    let host = host();
    let slow =
        format!("quota = {{ changes_per_second = 1 }}\n[[grant]]\nusers = [{BOB}]\nrole = \"operator\"");
    let images = host.path("images");
    let text = grants(&images).replacen(&format!("[{ALICE}, {BOB}]"), &format!("[{ALICE}]"), 1);
    let (begin, rest) = text.split_once("quota = ").expect("a quota");
    let (_, rest) = rest.split_once('\n').expect("more");
    write_access_file(&host, &format!("{begin}{slow}\n{rest}"));
    host.ok("network create lan --mode isolated");
    // Deletes of what is not there: refused ones count as well.
    let calls = |uid: u32, daemon: Daemon, path: &str, most: usize| {
        as_user(uid, VMD_UID, || {
            runtime().block_on(async {
                let mut channel = daemon.channel(&host);
                for made in 0..most {
                    let status =
                        raw::call(&mut channel, path, false, raw::framed(&[])).await.expect("answer");
                    if status.code() == Code::ResourceExhausted {
                        return (made, Some(Fault::from(status)));
                    }
                    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
                }
                (most, None)
            })
        })
    };
    for (daemon, path, looks) in [
        (Daemon::Netd, "/netd.v1.PortService/DeletePort", "port list"),
        (Daemon::Vmd, "/vmd.v1.VmService/DeleteVm", "vm list"),
    ] {
        let begin = Instant::now();
        let (made, fault) = calls(ALICE, daemon, path, 10_000);
        let seconds = usize::try_from(begin.elapsed().as_secs()).expect("few");
        let fault = fault.expect("it is refused some time");
        assert!((BURST..=BURST + seconds + 1).contains(&made), "{made} calls in {seconds} s");
        assert_eq!(fault.reason(), "TOO_MANY_CHANGES");
        let wait = fault.retry().expect("when to try again");
        assert!(wait.as_secs_f64() <= 1.0 && fault.hints().len() == 2, "{wait:?}: {:?}", fault.hints());
        println!("{path}: {made} changes at once, then one in {} ms", wait.as_millis());
        for uid in [BOB, 0] {
            let (_, fault) = calls(uid, daemon, path, 3 * BURST);
            assert!(fault.is_none(), "uid {uid}: {fault:?}");
        }
        // Looks are no changes.
        ok(&host, ALICE, looks);
    }
}

#[test]
fn a_user_has_one_diagnosis_at_a_time_and_keeps_nobody_else_from_theirs() {
    let host = host();
    host.ok("network create lan --mode nat --ipv4 10.60.0.1/24");
    ok(&host, ALICE, "port create lan a");
    let mut command = host.kvmctl_command(&["why", "a", "10.99.0.1", "--trace", "50"]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).uid(ALICE).gid(VMD_UID);
    let mut long = command.spawn().expect("kvmctl");
    let says = format!("a diagnosis of uid {ALICE} is running");
    wait::until("the trace", || {
        host.netns.json("nft -j list tables").to_string().contains("kvmctl_trace").then_some(())
    });
    refused(&host, ALICE, "doctor", &says);
    refused(&host, ALICE, "why a 10.99.0.1", &says);
    for uid in [BOB, 0] {
        assert!([0, 1].contains(&kvmctl(&host, uid, "doctor").code), "uid {uid}");
        assert!(!kvmctl(&host, uid, "doctor").stderr.contains("TOO_MANY"), "uid {uid}");
    }
    assert_ne!(kvmctl(&host, NOBODY, "doctor").code, 0);
    long.kill().expect("it runs");
    long.wait().expect("its end");
    // Whoever goes away leaves room.
    wait::until("there is room again", || {
        (!kvmctl(&host, ALICE, "doctor").stderr.contains(&says)).then_some(())
    });
}
