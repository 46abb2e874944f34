//! What a viewer is shown, call by call.

use crate::{ALICE, VIEWER, host_with, runtime};
use http_body::Body as _;
use integration_tests::{
    host::{TestHost, VMD_UID},
    malformed::Api,
    raw::{Daemon, Once, framed},
    user::as_user,
    wait,
};
use proto::access::v1::Role;
use std::{fs, os::unix::fs::chown, pin::Pin};
use tonic::{Status, body::Body};
use tower::{Service as _, ServiceExt as _};

const SECRET: &str = "hunter2";

/// The bytes of an answer; of a stream, those of what comes at once.
fn answer(
    host: &TestHost,
    daemon: Daemon,
    uid: u32,
    (path, stream): (&str, bool),
    message: &[u8],
) -> Vec<u8> {
    as_user(uid, VMD_UID, || {
        runtime().block_on(async {
            let mut channel = daemon.channel(host);
            let request = http::Request::post(format!("http://localhost{path}"))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(Body::new(Once(Some(framed(message).into()))))
                .expect("request");
            let response = channel.ready().await.expect("ready").call(request).await.expect("answer");
            let status = Status::from_header_map(response.headers());
            assert!(status.as_ref().is_none_or(|s| s.code() == tonic::Code::Ok), "{path}: {status:?}");
            let mut bytes = Vec::new();
            let mut body = response.into_body();
            while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                if let Ok(data) = frame.expect("frame").into_data() {
                    bytes.extend(data);
                    if stream {
                        break;
                    }
                }
            }
            bytes
        })
    })
}

/// A message whose first field is this text.
fn named(name: &str) -> Vec<u8> {
    [&[0x0a, u8::try_from(name.len()).expect("short")], name.as_bytes()].concat()
}

/// What to ask a call that viewers may make, so that it shows as much as it can.
fn request(path: &str) -> Vec<u8> {
    let method = path.rsplit('/').next().unwrap_or_default();
    match method {
        "GetNetwork" | "ListLeases" => named("networks/lan"),
        "GetPort" => named("networks/lan/ports/p"),
        "GetForward" => named("networks/lan/forwards/tcp-8080"),
        "GetGroup" => named("groups/g"),
        "GetVm" | "WatchVm" => named("vms/roots"),
        "ListPorts" | "ListForwards" => named("networks/-"),
        // Field 3, the parent.
        "WatchPorts" => [&[0x1a, 10][..], b"networks/-"].concat(),
        // Field 1, the revision: all that is kept.
        "WatchEvents" => vec![0x08, 1],
        "ListNetworks" | "ListGroups" | "ListVms" | "ListEvents" | "GetHost" | "WatchNetworks"
        | "WatchVms" => Vec::new(),
        other => panic!("{other} is new: what is to be asked?"),
    }
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn no_viewer_is_shown_a_host_path_or_a_kernel_command_line() {
    let mut host = host_with(&[]);
    host.ok("network create lan --mode nat");
    host.ok("group create g");
    host.ok("port create lan p");
    host.ok("forward add lan --protocol tcp --listen 8080 --to p");
    let image = host.path("images/alice.raw");
    fs::write(&image, [1; 4096]).expect("image");
    chown(&image, Some(ALICE), Some(VMD_UID)).expect("chown");
    host.netns.sh(&format!("chmod 660 {image}"));
    crate::ok(&host, ALICE, &format!("vm create alices --memory 64M --disk {image},format=raw"));
    let (kernel, initrd) = (host.path("vmlinuz"), host.path("initrd.img"));
    let words = format!(
        "vm create roots --memory 64M --kernel {kernel} --initrd {initrd} --cmdline password={SECRET}"
    );
    host.ok(&words);
    host.ok("vm start roots");
    // A machine whose error names a file.
    host.ok(&format!("vm create broken --memory 64M --kernel {kernel}"));
    fs::rename(&kernel, format!("{kernel}.away")).expect("rename");
    assert_ne!(host.kvmctl(&["vm", "start", "broken"]).code, 0);
    // A network whose DHCP server cannot be started, which says where it was looked for.
    host.kill_netd();
    host.netd_arguments.extend(["--dnsmasq".into(), host.path("no-such-dnsmasq")]);
    for pid in host.servers("lan") {
        let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("pid");
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    host.start_netd();
    crate::open(&host, "netd.sock");
    wait::until("the network to be degraded", || {
        let network = host.ok_json("network show lan");
        (network["status"]["state"] == "degraded").then_some(())
    });
    let folder = host.dir.path().display().to_string();
    let viewers = |path: &str| {
        let method = proto::METHODS.iter().find(|method| method.path == path).expect("a method");
        method.role == Role::Viewer.as_str_name().trim_start_matches("ROLE_").to_lowercase()
    };
    let (mut asked, mut bytes, mut told) = (0, 0, 0);
    let methods = Api::new().methods;
    let calls = methods
        .iter()
        .filter(|method| viewers(&method.path))
        .flat_map(|method| Daemon::of(&method.path).iter().map(move |daemon| (*daemon, method)));
    for (daemon, method) in calls {
        let message = request(&method.path);
        let seen = answer(&host, daemon, VIEWER, (&method.path, method.stream), &message);
        // The access file is the one that a refusal names, too.
        let seen = String::from_utf8_lossy(&seen).replace(&host.path("access.toml"), "").into_bytes();
        assert!(!seen.is_empty(), "{}: nothing was shown", method.path);
        for secret in [&*folder, SECRET, "/usr/", "/run/"] {
            assert!(
                !holds(&seen, secret),
                "{} shows `{secret}`: {}",
                method.path,
                String::from_utf8_lossy(&seen)
            );
        }
        // The same asked by root shows what was kept back: the test would see it.
        let all = answer(&host, daemon, 0, (&method.path, method.stream), &message);
        let all = String::from_utf8_lossy(&all).replace(&host.path("access.toml"), "").into_bytes();
        told += usize::from(holds(&all, &folder) || holds(&all, SECRET));
        asked += 1;
        bytes += seen.len();
    }
    println!("{asked} calls showed a viewer {bytes} bytes and no path; {told} of them show some to root");
    assert!(told >= 5, "{told}");
    // The owner sees what it named, and nothing of root's.
    let own = crate::ok(&host, ALICE, "vm list -o json");
    assert!(own.contains(&image) && !own.contains(SECRET) && !own.contains("vmlinuz"), "{own}");
    assert!(host.ok("vm show roots -o json").contains(SECRET));
}
