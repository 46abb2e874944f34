use super::*;
use crate::{config::Config, model::test_spec, ports::FakePorts};
use clap::Parser as _;
use shared::access::{Rights, Role};
use std::path::Path;

fn caller(uid: u32, role: Role) -> Caller {
    let rights = Rights { role, ..Caller::root().rights };
    Caller::new(uid, None, rights, Path::new("/etc/kvmctl/access.toml").into())
}

fn start(by: &Caller) -> Request<StartVmRequest> {
    let mut request = Request::new(StartVmRequest { name: "vms/web".into() });
    request.extensions_mut().insert(by.clone());
    request
}

#[tokio::test]
async fn a_former_admins_machine_is_not_started_with_an_admins_reach() {
    const OWNER: u32 = 3_999_000_002;
    for (made_as, refused) in [(Role::Admin, true), (Role::Operator, false)] {
        let dir = tempfile::tempdir().unwrap();
        let option = |name: &str| dir.path().join(name).display().to_string();
        let (state, run, qemu) = (option("state"), option("run"), option("qemu"));
        let config = Config::parse_from([
            "vmd",
            "--accel",
            "tcg",
            "--state-dir",
            &state,
            "--run-dir",
            &run,
            "--qemu",
            &qemu,
        ]);
        let ports = FakePorts::with_networks([]);
        let stop = CancellationToken::new();
        let supervisor = Supervisor::open(&config, ports, stop.clone()).await.unwrap();
        let owner = caller(OWNER, made_as);
        let new = NewVm {
            name: "web".parse().unwrap(),
            labels: [].into(),
            spec: test_spec(),
            owner: owner.clone(),
        };
        supervisor.create(new).await.unwrap();
        let server = Server { supervisor, stop };
        // There is no such QEMU, which is what a start that is let through fails of.
        let of = async |by: &Caller| server.start_vm(start(by)).await.unwrap_err();
        let by_operator = of(&caller(OWNER, Role::Operator)).await;
        assert_eq!(by_operator.message().contains("was made by an admin"), refused, "{by_operator:?}");
        assert_eq!(by_operator.code() == tonic::Code::PermissionDenied, refused, "{by_operator:?}");
        let by_admin = of(&caller(0, Role::Admin)).await;
        assert_ne!(by_admin.code(), tonic::Code::PermissionDenied, "{by_admin:?}");
    }
}
