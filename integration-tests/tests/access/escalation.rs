//! A vmd that somebody has taken over asks netd for all that it should not get.

use crate::{ALICE, audit, host, runtime};
use integration_tests::{census::Census, host::VMD_UID, raw::Daemon, user::as_user};
use proto::netd::v1::{
    CaptureRequest, CreateForwardRequest, CreateGroupRequest, CreateNetworkRequest, CreatePortRequest,
    DeleteForwardRequest, DeleteNetworkRequest, DeletePortRequest, ExplainRequest, Forward, ForwardSpec,
    Group, Network, NetworkMode, NetworkSpec, Port, PortFilter, PortSpec, Rate, UpdateNetworkRequest,
    UpdatePortRequest, capture_service_client::CaptureServiceClient,
    diagnose_service_client::DiagnoseServiceClient, forward_service_client::ForwardServiceClient,
    group_service_client::GroupServiceClient, network_service_client::NetworkServiceClient,
    port_service_client::PortServiceClient,
};
use tonic::{Code, Status, transport::Channel};

/// Text that would be a rule, if any text of a client reached nft.
const NFT: &str = "}; flush ruleset; table inet x {";

/// One more than the most labels that are taken.
const LABELS: usize = 65;

struct Attempt {
    what: String,
    result: Result<(), Status>,
}

struct Thief {
    channel: Channel,
    attempts: Vec<Attempt>,
}

impl Thief {
    fn note(&mut self, what: &str, result: Result<(), Status>) {
        self.attempts.push(Attempt { what: what.to_owned(), result });
    }

    async fn create(&mut self, what: &str, name: &str, spec: PortSpec) {
        let port = Port { name: name.into(), spec: Some(spec), ..Default::default() };
        self.create_as(what, port).await;
    }

    async fn create_as(&mut self, what: &str, port: Port) {
        let mut ports = PortServiceClient::new(self.channel.clone());
        let result = ports.create_port(CreatePortRequest { port: Some(port) }).await;
        self.note(what, result.map(drop));
    }

    async fn network(&mut self, what: &str, spec: NetworkSpec) {
        let mut networks = NetworkServiceClient::new(self.channel.clone());
        let network = Network { name: "networks/evil".into(), spec: Some(spec), ..Default::default() };
        let request = CreateNetworkRequest { network: Some(network), validate_only: false };
        let result = networks.create_network(request).await;
        self.note(what, result.map(drop));
    }

    async fn update(&mut self, what: &str, name: &str, path: &str, spec: PortSpec) {
        let mut ports = PortServiceClient::new(self.channel.clone());
        let update_mask = Some(prost_types::FieldMask { paths: vec![path.into()] });
        let port = Some(Port { name: name.into(), spec: Some(spec), ..Default::default() });
        let result = ports.update_port(UpdatePortRequest { port, update_mask, expected_generation: 0 }).await;
        self.note(what, result.map(drop));
    }
}

/// Names that are none, and specs that take what is another's.
async fn ports(thief: &mut Thief, alices_mac: &str, alices_address: &str) {
    for (what, name) in [
        ("a path as a name", "networks/lan/ports/../../etc"),
        ("a slash in a name", "networks/lan/ports/a/b"),
        ("two dots", "networks/lan/ports/.."),
        ("an interface's name", "networks/lan/ports/kvb-lan@eth0"),
        ("an option", "networks/lan/ports/--help"),
        ("a line break", "networks/lan/ports/a\nb"),
        ("a NUL", "networks/lan/ports/a\0b"),
        ("a name of 300 characters", &format!("networks/lan/ports/{}", "x".repeat(300))),
        ("a letter that looks like another", "networks/lan/ports/p\u{430}"),
        ("text of nft as a name", &format!("networks/lan/ports/{NFT}")),
        ("text of nft as a network", &format!("networks/{NFT}/ports/a")),
        ("a network of another's", "networks/dmz/ports/a"),
        ("all networks", "networks/-/ports/a"),
        ("no network", "ports/a"),
    ] {
        thief.create(what, name, PortSpec::default()).await;
    }
    let name = "networks/lan/ports/evil";
    let plain = PortSpec::default;
    let address = |text: &str| PortSpec { ipv4_address: text.into(), ..plain() };
    let mac = |text: &str| PortSpec { mac: text.into(), ..plain() };
    for (what, spec) in [
        ("no filter", PortSpec { filter: PortFilter::Off.into(), ..plain() }),
        ("another guest's MAC", mac(alices_mac)),
        ("a multicast MAC", mac("01:00:5e:00:00:01")),
        ("the broadcast MAC", mac("ff:ff:ff:ff:ff:ff")),
        ("text of nft as a MAC", mac(NFT)),
        ("the gateway's address", address("10.60.0.1")),
        ("another guest's address", address(alices_address)),
        ("an address of another network", address("10.61.0.5")),
        ("an address of the host", address("10.99.0.2")),
        ("a multicast address", address("224.0.0.1")),
        ("loopback", address("127.0.0.1")),
        ("everything as an address", address("0.0.0.0/0")),
        ("text of nft as an address", address(NFT)),
        (
            "the gateway's address as an extra one",
            PortSpec { extra_addresses: vec!["10.60.0.1".into()], ..plain() },
        ),
        (
            "a prefix as an extra address",
            PortSpec { extra_addresses: vec!["10.60.0.0/24".into()], ..plain() },
        ),
        ("10,000 extra addresses", PortSpec { extra_addresses: vec!["10.60.0.9".into(); 10_000], ..plain() }),
        ("text of nft as a host name", PortSpec { hostname: NFT.into(), ..plain() }),
        ("dnsmasq's syntax as a host name", PortSpec { hostname: "a,10.60.0.1".into(), ..plain() }),
        ("another guest's host name", PortSpec { hostname: "alices".into(), ..plain() }),
        ("text of nft as a group", PortSpec { groups: vec![format!("groups/{NFT}")], ..plain() }),
        ("a group that is not there", PortSpec { groups: vec!["groups/none".into()], ..plain() }),
        ("100,000 groups", PortSpec { groups: vec!["groups/g".into(); 100_000], ..plain() }),
        (
            "a rate of one bit",
            PortSpec { rate_in: Some(Rate { bits_per_second: 1, burst_bytes: 1 }), ..plain() },
        ),
        (
            "the largest rate there is",
            PortSpec { rate_out: Some(Rate { bits_per_second: u64::MAX, burst_bytes: u32::MAX }), ..plain() },
        ),
    ] {
        thief.create(what, name, spec).await;
    }
    let spec = PortSpec { groups: vec!["groups/g".into()], ..plain() };
    thief.create("a group that is not granted", name, spec.clone()).await;
    thief.update("the same, later", "networks/lan/ports/own", "spec.groups", spec).await;
    let labels = (0..LABELS).map(|number| (number.to_string(), NFT.to_owned())).collect();
    let port = Port { name: name.into(), labels, ..Default::default() };
    thief.create_as("more labels than there may be", port).await;
}

/// What belongs to others, and what is an admin's.
async fn others(thief: &mut Thief, alices_uid: &str) {
    let alices = "networks/lan/ports/alices";
    thief.create("another's port, to get its tap", alices, PortSpec::default()).await;
    thief.update("isolation of another's port", alices, "spec.isolated", PortSpec::default()).await;
    let off = || PortSpec { filter: PortFilter::Off.into(), ..PortSpec::default() };
    thief.update("the filter of another's port", alices, "spec.filter", off()).await;
    thief.update("the filter of an own port", "networks/lan/ports/own", "spec.filter", off()).await;
    let mut client = PortServiceClient::new(thief.channel.clone());
    for (what, name, uid) in [
        ("another's port", alices, ""),
        ("another's port by its UUID", alices, alices_uid),
        ("an own name with another's UUID", "networks/lan/ports/own", alices_uid),
        ("text of nft as a UUID", "networks/lan/ports/own", NFT),
    ] {
        let result = client.delete_port(DeletePortRequest { name: name.into(), uid: uid.into() }).await;
        thief.note(&format!("delete: {what}"), result.map(drop));
    }
    let capture = |name: &str, filter: &str| CaptureRequest {
        name: name.into(),
        filter: filter.into(),
        max_frames: 1,
        ..Default::default()
    };
    let mut captures = CaptureServiceClient::new(thief.channel.clone());
    for (what, name, filter) in [
        ("another's frames", alices, ""),
        ("an option of tcpdump", "networks/lan/ports/own", "-w /etc/passwd"),
        ("a command", "networks/lan/ports/own", "; id > /tmp/x"),
    ] {
        let result = captures.capture(capture(name, filter)).await;
        thief.note(&format!("capture: {what}"), result.map(drop));
    }
    let mut diagnose = DiagnoseServiceClient::new(thief.channel.clone());
    let explain = ExplainRequest {
        vm: "vms/alices".into(),
        peer: "192.0.2.1".into(),
        trace_seconds: 1,
        ..Default::default()
    };
    let result = diagnose.explain(explain).await;
    thief.note("trace another's packets", result.map(drop));
    admins(thief).await;
}

async fn admins(thief: &mut Thief) {
    let bridged = |bridge: &str, uplink: &str| NetworkSpec {
        mode: NetworkMode::Bridged.into(),
        bridge: bridge.into(),
        uplink: uplink.into(),
        ..Default::default()
    };
    thief.network("bridge the host's NIC", bridged("", "up0")).await;
    thief.network("bridge lo", bridged("", "lo")).await;
    thief.network("another's bridge", bridged("docker0", "")).await;
    let nat = NetworkSpec { mode: NetworkMode::Nat.into(), uplink: NFT.into(), ..Default::default() };
    thief.network("text of nft as an uplink", nat).await;
    let mut networks = NetworkServiceClient::new(thief.channel.clone());
    let name = "networks/lan".to_owned();
    let result = networks.delete_network(DeleteNetworkRequest { name: name.clone(), force: true }).await;
    thief.note("delete the network", result.map(drop));
    let spec = NetworkSpec { uplink: "up0".into(), ..Default::default() };
    let request = UpdateNetworkRequest {
        network: Some(Network { name, spec: Some(spec), ..Default::default() }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["spec.uplink".into()] }),
        expected_generation: 0,
    };
    let result = networks.update_network(request).await;
    thief.note("change the network's uplink", result.map(drop));
    let mut forwards = ForwardServiceClient::new(thief.channel.clone());
    let spec = ForwardSpec { protocol: 1, listen_port: 22, target: "own".into(), ..Default::default() };
    let forward =
        Forward { name: "networks/lan/forwards/ssh".into(), spec: Some(spec), ..Default::default() };
    let request = CreateForwardRequest { forward: Some(forward), allow_absent: true };
    let result = forwards.create_forward(request).await;
    thief.note("take the host's port 22", result.map(drop));
    let name = "networks/lan/forwards/tcp-8080".to_owned();
    let result = forwards.delete_forward(DeleteForwardRequest { name }).await;
    thief.note("delete a forward", result.map(drop));
    let mut groups = GroupServiceClient::new(thief.channel.clone());
    let group = Some(Group { name: "groups/evil".into(), ..Default::default() });
    let result = groups.create_group(CreateGroupRequest { group }).await;
    thief.note("make a group", result.map(drop));
}

#[test]
fn a_stolen_vmd_gets_ports_on_its_networks_and_nothing_more() {
    let host = host();
    host.ok("network create lan --mode nat --ipv4 10.60.0.1/24");
    host.ok("network create dmz --mode nat --ipv4 10.61.0.1/24");
    host.ok("group create g");
    crate::ok(&host, ALICE, "port create lan alices");
    crate::ok(&host, VMD_UID, "port create lan own");
    host.ok("forward add lan --protocol tcp --listen 8080 --to alices");
    let alices = host.ok_json("port show lan alices");
    let field = |name: &str| alices["status"][name].as_str().expect(name).to_owned();
    let (mac, address) = (field("mac"), field("ipv4_address"));
    let uid = alices["uid"].as_str().expect("uid").to_owned();
    let objects = || {
        ["network list", "port list", "group list", "forward list"].map(|list| host.ok_json(list).to_string())
    };
    let before = (Census::of(&host.netns), objects());
    let attempts = as_user(VMD_UID, VMD_UID, || {
        runtime().block_on(async {
            let mut thief = Thief { channel: Daemon::Netd.channel(&host), attempts: Vec::new() };
            ports(&mut thief, &mac, &address).await;
            others(&mut thief, &uid).await;
            thief.attempts
        })
    });
    for Attempt { what, result } in &attempts {
        let status = result.as_ref().err().unwrap_or_else(|| panic!("{what}: it worked"));
        let refusal = matches!(
            status.code(),
            Code::PermissionDenied
                | Code::InvalidArgument
                | Code::AlreadyExists
                | Code::NotFound
                | Code::FailedPrecondition
        );
        assert!(refusal, "{what}: {status:?}");
    }
    assert!(attempts.len() >= 30, "{}", attempts.len());
    assert_eq!(objects(), before.1);
    before.0.assert_same(&Census::of(&host.netns));
    let is_denied = |line: &&serde_json::Value| line["code"] != "OK";
    let lines = audit(&host, "netd-state", |lines| lines.iter().any(|line| is_denied(&line)));
    let denied = lines.iter().filter(is_denied).count();
    println!(
        "{} attempts from vmd's uid, all refused; {denied} of them are in the audit log",
        attempts.len()
    );
    // It can still do what it is for, up to its quota.
    crate::ok(&host, VMD_UID, "port create lan more");
    crate::ok(&host, VMD_UID, "port delete lan more");
}
