//! Each call of the API by each role.

use crate::{ADMIN, ALICE, NOBODY, VIEWER, audit, host, runtime};
use integration_tests::{
    host::VMD_UID,
    malformed::Api,
    raw::{self, Daemon},
    user::as_user,
    wait,
};
use shared::fault::Fault;
use tonic::Code;

/// Who may at least. What is not here has no place in the API.
const VIEWERS: &[&str] = &[
    "netd.v1.NetworkService/GetNetwork",
    "netd.v1.NetworkService/ListNetworks",
    "netd.v1.NetworkService/ListLeases",
    "netd.v1.NetworkService/WatchNetworks",
    "netd.v1.PortService/GetPort",
    "netd.v1.PortService/ListPorts",
    "netd.v1.PortService/WatchPorts",
    "netd.v1.ForwardService/GetForward",
    "netd.v1.ForwardService/ListForwards",
    "netd.v1.GroupService/GetGroup",
    "netd.v1.GroupService/ListGroups",
    "events.v1.EventService/ListEvents",
    "events.v1.EventService/WatchEvents",
    "netd.v1.HostService/GetHost",
    "vmd.v1.VmService/GetVm",
    "vmd.v1.VmService/ListVms",
    "vmd.v1.VmService/WatchVm",
    "vmd.v1.VmService/WatchVms",
    "vmd.v1.HostService/GetHost",
    "grpc.health.v1.Health/Check",
];
const OPERATORS: &[&str] = &[
    "netd.v1.PortService/CreatePort",
    "netd.v1.PortService/UpdatePort",
    "netd.v1.PortService/DeletePort",
    "netd.v1.CaptureService/Capture",
    "netd.v1.DiagnoseService/Diagnose",
    "netd.v1.DiagnoseService/Explain",
    "vmd.v1.VmService/CreateVm",
    "vmd.v1.VmService/DeleteVm",
    "vmd.v1.VmService/StartVm",
    "vmd.v1.VmService/StopVm",
    "vmd.v1.VmService/ResetVm",
    "vmd.v1.VmService/PauseVm",
    "vmd.v1.VmService/ResumeVm",
    "vmd.v1.VmService/ReadConsoleLog",
    "vmd.v1.VmService/AttachConsole",
];
const ADMINS: &[&str] = &[
    "netd.v1.NetworkService/CreateNetwork",
    "netd.v1.NetworkService/UpdateNetwork",
    "netd.v1.NetworkService/DeleteNetwork",
    "netd.v1.ForwardService/CreateForward",
    "netd.v1.ForwardService/DeleteForward",
    "netd.v1.GroupService/CreateGroup",
    "netd.v1.GroupService/UpdateGroup",
    "netd.v1.GroupService/DeleteGroup",
];

/// 1: viewer, 2: operator, 3: admin.
fn needed(path: &str) -> usize {
    let name = path.trim_start_matches('/');
    [VIEWERS, OPERATORS, ADMINS]
        .iter()
        .position(|names| names.contains(&name))
        .unwrap_or_else(|| panic!("{path} has no entry: who may call it?"))
        + 1
}

#[test]
fn each_call_asks_for_its_role_and_nobody_gets_by() {
    let host = host();
    let mut methods: Vec<(String, bool)> =
        Api::new().methods.iter().map(|method| (method.path.clone(), method.stream)).collect();
    assert_eq!(methods.len() + 1, VIEWERS.len() + OPERATORS.len() + ADMINS.len(), "{methods:?}");
    methods.push(("/grpc.health.v1.Health/Check".into(), false));
    let (mut allowed, mut denied) = (0, 0);
    for (rank, uid) in [NOBODY, VIEWER, ALICE, ADMIN].into_iter().enumerate() {
        let call = |daemon: Daemon, path: &str, stream| {
            as_user(uid, VMD_UID, || {
                runtime().block_on(async {
                    // A message without a field: whoever is let in is told what is missing, and changes nothing.
                    let mut channel = daemon.channel(&host);
                    raw::call(&mut channel, path, stream, raw::framed(&[])).await.expect("an answer")
                })
            })
        };
        let calls = methods
            .iter()
            .flat_map(|(path, stream)| Daemon::of(path).iter().map(move |daemon| (*daemon, path, *stream)));
        for (daemon, path, stream) in calls {
            let status = call(daemon, path, stream);
            if rank >= needed(path) {
                assert_ne!(status.code(), Code::PermissionDenied, "uid {uid}, {path}: {status:?}");
                assert_ne!(status.code(), Code::Unimplemented, "{path}");
                allowed += 1;
            } else {
                assert_eq!(status.code(), Code::PermissionDenied, "uid {uid}, {path}: {status:?}");
                let fault = Fault::from(status);
                assert_eq!(fault.reason(), "ROLE_NEEDED", "{path}");
                let role = ["", "viewer", "operator", "admin"][needed(path)];
                assert_eq!(fault.metadata()["needed_role"], role, "{path}");
                assert!(fault.hints()[0].contains("access.toml"), "{:?}", fault.hints());
                denied += 1;
            }
        }
        // What no file of the API names is an admin's to be told that it is not there.
        let status = call(Daemon::Netd, "/netd.v1.NetworkService/DropTables", false);
        let expected = if uid == ADMIN { Code::Unimplemented } else { Code::PermissionDenied };
        assert_eq!(status.code(), expected, "{status:?}");
    }
    println!("{} calls x 4 roles: {allowed} allowed, {denied} denied", methods.len());
    let count = |written: &[Vec<serde_json::Value>], uid: u32| {
        written.iter().flatten().filter(|line| line["uid"] == uid).count()
    };
    let written = wait::until("lines of the refused", || {
        let written = ["netd-state", "vmd-state"].map(|folder| audit(&host, folder, |_| true));
        (count(&written, NOBODY) > 20 && count(&written, VIEWER) > 20).then_some(written)
    });
    for line in written.iter().flatten().filter(|line| line["code"] == "PERMISSION_DENIED") {
        assert_eq!(line["reason"], "ROLE_NEEDED", "{line}");
    }
    let of = |uid| count(&written, uid);
    println!(
        "audit: {} lines of nobody, {} of the viewer, {} of the operator",
        of(NOBODY),
        of(VIEWER),
        of(ALICE)
    );
    assert_eq!(host.ok("network list -o name"), "");
}

/// A connection without credentials is nobody's, whatever uid it would have had.
#[test]
fn a_user_without_a_grant_and_outside_of_the_group_is_nobody() {
    let host = host();
    let stranger = 64_109;
    let status = as_user(stranger, stranger, || {
        runtime().block_on(async {
            let mut channel = Daemon::Netd.channel(&host);
            let path = "/netd.v1.NetworkService/ListNetworks";
            raw::call(&mut channel, path, false, raw::framed(&[])).await.expect("an answer")
        })
    });
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("has no role here"), "{}", status.message());
}
