//! A machine with Debian as clouds have it (`guest/debian.sh`).

use crate::{
    host::{TestHost, VMD_UID, workspace},
    machine::{CMDLINE, Console},
    netns, wait,
};
use std::process::Command;

/// Name of the machine.
pub const NAME: &str = "deb";

/// Starts it, with more arguments for `kvmctl vm run`, and waits until it is up. `cmdline` is more for its kernel.
///
/// # Panics
/// If Debian was not built, or does not come up.
pub fn boot(host: &TestHost, cmdline: &str, arguments: &[&str]) -> Console {
    let folder = workspace().join("target/guest/debian");
    assert!(
        folder.join("disk.img").exists(),
        "no Debian machine: run `integration-tests/guest/debian.sh target/guest/debian` first"
    );
    let disk = host.path("disk.img");
    netns::run(Command::new("cp").args(["--sparse=always"]).arg(folder.join("disk.img")).arg(&disk));
    std::os::unix::fs::chown(&disk, Some(VMD_UID), Some(VMD_UID)).expect("chown");
    let [kernel, initrd] = ["vmlinuz", "initrd.img"].map(|file| {
        let copy = host.path(&format!("debian-{file}"));
        std::fs::copy(folder.join(file), &copy).expect("copy");
        copy
    });
    let cmdline =
        format!("{CMDLINE} root=/dev/vda rw systemd.firstboot=off systemd.show_status=false {cmdline}");
    let disk = format!("{disk},format=raw,cache=unsafe");
    let own =
        ["vm", "run", NAME, "--kernel", &kernel, "--initrd", &initrd, "--cmdline", &cmdline, "--disk", &disk];
    let outcome = host.kvmctl(&[&own[..], arguments].concat());
    assert_eq!(outcome.code, 0, "{}\n{}", outcome.stderr, host.logs());
    wait::until_within("Debian to be up", 5 * wait::PATIENCE, || {
        host.ok(&format!("vm log {NAME}")).contains("GUEST READY").then_some(())
    });
    Console::attach(host, NAME)
}
