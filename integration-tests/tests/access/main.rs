//! Who may do what, asked by users without any privilege over the daemons' real sockets.

mod escalation;
mod inheritance;
mod matrix;
mod ownership;
mod policy;
mod secrets;
mod shares;

use integration_tests::{
    host::{Outcome, TestHost, VMD_UID, program_path},
    user::as_user,
    wait,
};
use std::{fs, os::unix::fs::PermissionsExt as _};
use tokio::runtime::Runtime;

/// Nobody's on any system. All are members of the sockets' group.
const NOBODY: u32 = 64_101;
const VIEWER: u32 = 64_102;
const ALICE: u32 = 64_103;
const BOB: u32 = 64_104;
const ADMIN: u32 = 64_105;

/// What the tests' access file grants.
fn grants(images: &str) -> String {
    format!(
        r#"
        images = ["{images}"]
        [[grant]]
        users = [{NOBODY}]
        role = "nobody"
        [[grant]]
        users = [{VIEWER}]
        role = "viewer"
        [[grant]]
        users = [{ALICE}, {BOB}]
        role = "operator"
        networks = ["lan"]
        port_groups = ["web"]
        quota = {{ ports = 4, ports_per_network = 3, machines = 2, vcpus = 4, memory_mib = 2048 }}
        [[grant]]
        users = [{VMD_UID}]
        role = "operator"
        networks = ["lan"]
        port_groups = ["web"]
        [[grant]]
        users = [{ADMIN}]
        role = "admin"
        "#
    )
}

fn write_access_file(host: &TestHost, text: &str) {
    let file = host.dir.path().join("access.toml");
    fs::write(file.with_extension("new"), text).expect("access file");
    fs::set_permissions(file.with_extension("new"), fs::Permissions::from_mode(0o644)).expect("mode");
    fs::rename(file.with_extension("new"), file).expect("access file");
}

/// A host whose daemons know these users, whose QEMU is not real, and whose sockets everybody can reach: what keeps
/// callers out is not a folder's mode.
fn host() -> TestHost {
    host_with(&[])
}

fn host_with(netd_arguments: &[&str]) -> TestHost {
    let mut host = TestHost::bare();
    let images = host.path("images");
    fs::create_dir(&images).expect("images");
    write_access_file(&host, &grants(&images));
    let arguments = ["--access-file".to_owned(), host.path("access.toml")];
    host.vmd_arguments.extend(arguments.clone());
    host.netd_arguments.extend(arguments);
    host.netd_arguments.extend(netd_arguments.iter().map(|&argument| argument.to_owned()));
    let fake = host.path("fake-qemu");
    fs::copy(program_path("fake-qemu"), &fake).expect("copy");
    host.qemu = Some(fake);
    host.start_netd();
    host.add_vmd();
    open(&host, "netd.sock");
    open(&host, "vmd-run/vmd.sock");
    // It sets the mode of its folder after it has the socket, and before it answers.
    host.ok("vm list");
    fs::set_permissions(host.path("vmd-run"), fs::Permissions::from_mode(0o711)).expect("mode");
    host
}

/// Lets everybody connect to a socket, once its daemon has set the mode itself.
fn open(host: &TestHost, socket: &str) {
    let mode = || fs::metadata(host.path(socket)).expect("socket").permissions().mode() & 0o777;
    wait::until("the socket's own mode", || (mode() == 0o660).then_some(()));
    fs::set_permissions(host.path(socket), fs::Permissions::from_mode(0o666)).expect("mode");
}

/// Runs kvmctl as a user; arguments are split at blanks.
fn kvmctl(host: &TestHost, uid: u32, arguments: &str) -> Outcome {
    as_user(uid, VMD_UID, || host.kvmctl(&arguments.split_whitespace().collect::<Vec<_>>()))
}

/// As `kvmctl`, which has to succeed.
fn ok(host: &TestHost, uid: u32, arguments: &str) -> String {
    let outcome = kvmctl(host, uid, arguments);
    assert_eq!(outcome.code, 0, "uid {uid}: kvmctl {arguments}\n{}{}", outcome.stdout, outcome.stderr);
    outcome.stdout
}

/// As `kvmctl`, which has to be refused with these words.
fn refused(host: &TestHost, uid: u32, arguments: &str, words: &str) {
    let outcome = kvmctl(host, uid, arguments);
    assert_eq!(outcome.code, 1, "uid {uid}: kvmctl {arguments}\n{}{}", outcome.stdout, outcome.stderr);
    assert!(
        outcome.stderr.contains(words),
        "uid {uid}: kvmctl {arguments}: no `{words}` in {}",
        outcome.stderr
    );
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime")
}

/// The lines of a daemon's audit log, as soon as they are `enough`: they may be written after the answer. `folder` is
/// its state folder.
fn audit(
    host: &TestHost,
    folder: &str,
    enough: impl Fn(&[serde_json::Value]) -> bool,
) -> Vec<serde_json::Value> {
    let path = host.dir.path().join(folder).join("audit.jsonl");
    wait::until("lines of the audit log", || {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let lines: Vec<_> = whole.map(|line| serde_json::from_str(line).expect("JSON")).collect();
        enough(&lines).then_some(lines)
    })
}
