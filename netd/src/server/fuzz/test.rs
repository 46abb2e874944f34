use super::*;
use crate::fuzz::netd::Netd;
use std::fs;

fn labels() -> std::collections::HashMap<String, String> {
    [("role".to_owned(), "db".to_owned())].into()
}

fn network(name: &str, mode: wire::NetworkMode) -> wire::Network {
    let spec = wire::NetworkSpec { mode: mode.into(), ..Default::default() };
    wire::Network { name: format!("networks/{name}"), spec: Some(spec), ..Default::default() }
}

fn nat() -> wire::Network {
    let services = wire::NetworkServices {
        dhcp: wire::ServiceSwitch::On.into(),
        domain: "lan.example.com".into(),
        dns_upstreams: vec!["9.9.9.9".into()],
        lease_seconds: 600,
    };
    let spec = wire::NetworkSpec {
        mode: wire::NetworkMode::Nat.into(),
        ipv4_cidr: "10.9.0.1/24".into(),
        ipv6_cidr: "fd00:9::1/64".into(),
        uplink: "eth1".into(),
        mtu: 1400,
        services: Some(services),
        ..Default::default()
    };
    wire::Network { name: "networks/lan".into(), labels: labels(), spec: Some(spec), ..Default::default() }
}

fn port(name: &str, groups: &[&str]) -> wire::Port {
    let rate = |bits_per_second| Some(wire::Rate { bits_per_second, burst_bytes: 65_536 });
    let spec = wire::PortSpec {
        mac: "52:54:00:00:00:01".into(),
        filter: wire::PortFilter::On.into(),
        ipv4_address: "10.9.0.7".into(),
        ipv6_address: "fd00:9::7".into(),
        extra_addresses: vec!["10.9.0.8".into()],
        hostname: "db-1".into(),
        isolated: false,
        rate_in: rate(100_000_000),
        rate_out: rate(20_000_000),
        groups: groups.iter().map(|name| format!("groups/{name}")).collect(),
        tenant: "1000".into(),
    };
    wire::Port { name: name.into(), labels: labels(), spec: Some(spec), ..Default::default() }
}

fn plain(name: &str) -> wire::Port {
    wire::Port { name: name.into(), spec: Some(wire::PortSpec::default()), ..Default::default() }
}

fn group(name: &str, remote: wire::group_rule::Remote) -> wire::Group {
    let rule = wire::GroupRule {
        id: String::new(),
        direction: wire::RuleDirection::In.into(),
        protocol: wire::RuleProtocol::Tcp.into(),
        ports: Some(wire::PortRange { first: 80, last: 443 }),
        remote: Some(remote),
    };
    let spec = wire::GroupSpec {
        default_in: wire::GroupDefault::Deny.into(),
        default_out: wire::GroupDefault::Allow.into(),
        rules: vec![rule],
    };
    wire::Group { name: format!("groups/{name}"), labels: labels(), spec: Some(spec), ..Default::default() }
}

fn forward(target: &str) -> wire::Forward {
    let spec = wire::ForwardSpec {
        protocol: wire::ForwardProtocol::Udp.into(),
        listen_address: String::new(),
        listen_port: 8053,
        target: target.into(),
        target_port: 53,
    };
    wire::Forward { name: "networks/lan/forwards/-".into(), spec: Some(spec), ..Default::default() }
}

fn sequences() -> Vec<Vec<(u8, Vec<u8>)>> {
    use wire::group_rule::Remote;
    let mask = |path: &str| Some(prost_types::FieldMask { paths: vec![path.into()] });
    let network_ = |network| {
        (0, wire::CreateNetworkRequest { network: Some(network), ..Default::default() }.encode_to_vec())
    };
    let port_ = |port| (7, wire::CreatePortRequest { port: Some(port) }.encode_to_vec());
    let group_ = |group| (18, wire::CreateGroupRequest { group: Some(group) }.encode_to_vec());
    let forward_ = |target, allow_absent| {
        (14, wire::CreateForwardRequest { forward: Some(forward(target)), allow_absent }.encode_to_vec())
    };
    let with = |name: &str, bridge: &str, uplink: &str, mode| {
        let mut network = network(name, mode);
        let spec = network.spec.as_mut().unwrap();
        (spec.bridge, spec.uplink) = (bridge.into(), uplink.into());
        network
    };
    let routed = {
        let mut network = network("wan", wire::NetworkMode::Routed);
        network.spec.as_mut().unwrap().ipv6_cidr = "fd00:1::1/64".into();
        network
    };
    let other_mtu = {
        let mut network = nat();
        network.spec.as_mut().unwrap().mtu = 1300;
        network
    };
    let update_network = (
        2,
        wire::UpdateNetworkRequest {
            network: Some(other_mtu),
            update_mask: mask("spec.mtu"),
            expected_generation: 1,
        },
    );
    let update_port = wire::UpdatePortRequest {
        port: Some(wire::Port {
            spec: Some(wire::PortSpec { isolated: true, ..Default::default() }),
            ..plain("networks/lan/ports/web")
        }),
        update_mask: mask("spec.isolated"),
        expected_generation: 0,
    };
    let update_group = wire::UpdateGroupRequest {
        group: Some(group("web", Remote::RemoteCidr("10.0.0.0/8".into()))),
        update_mask: mask("spec.rules"),
        expected_generation: 0,
    };
    let delete_port = (
        11,
        wire::DeletePortRequest { name: "networks/lan/ports/web".into(), uid: String::new() }.encode_to_vec(),
    );
    let delete_network =
        (3, wire::DeleteNetworkRequest { name: "networks/lan".into(), force: true }.encode_to_vec());
    let list = |sort| {
        (
            sort,
            wire::ListPortsRequest { parent: "networks/-".into(), page_size: 2, page_token: String::new() }
                .encode_to_vec(),
        )
    };
    let any = Remote::RemoteCidr("0.0.0.0/0".into());
    vec![
        vec![
            network_(nat()),
            port_(port("networks/lan/ports/web", &[])),
            list(13),
            delete_port.clone(),
            delete_network.clone(),
        ],
        vec![
            group_(group("web", any.clone())),
            group_(group("db", Remote::RemoteGroup("groups/web".into()))),
            network_(nat()),
            port_(port("networks/lan/ports/web", &["web", "db"])),
            (19, update_group.encode_to_vec()),
            (20, wire::DeleteGroupRequest { name: "groups/web".into() }.encode_to_vec()),
        ],
        vec![
            network_(nat()),
            forward_("web", true),
            port_(plain("networks/lan/ports/web")),
            (10, update_port.encode_to_vec()),
            (update_network.0, update_network.1.encode_to_vec()),
            delete_port,
            delete_network,
        ],
        vec![
            network_(network("lab", wire::NetworkMode::Isolated)),
            port_(plain("networks/lab/ports/a")),
            port_(plain("networks/lab/ports/b")),
        ],
        vec![network_(routed), port_(plain("networks/wan/ports/a")), (5, vec![])],
        vec![
            network_(with("nic", "", "eth1", wire::NetworkMode::Bridged)),
            network_(with("own", "br-lan", "", wire::NetworkMode::Bridged)),
            port_(plain("networks/own/ports/a")),
            port_(plain("networks/nic/ports/a")),
        ],
    ]
}

/// Writes the seeds that are messages and records: run it with `KVMCTL_WRITE_SEEDS=1` after the API or the model has
/// changed.
#[test]
fn the_seeds_are_of_this_api() {
    let write = std::env::var_os("KVMCTL_WRITE_SEEDS").is_some();
    for (number, sequence) in sequences().iter().enumerate() {
        let framed = |(sort, body): &(u8, Vec<u8>)| {
            let length = u16::try_from(body.len()).unwrap().to_le_bytes();
            [&[*sort], &length[..], &body[..]].concat()
        };
        let bytes: Vec<u8> = sequence.iter().flat_map(framed).collect();
        let path = mutate::folder("netd_requests").join(format!("sequence-{number}"));
        let records = mutate::folder("netd_records").join(format!("sequence-{number}"));
        Netd::with(|netd| {
            // All of each sequence is accepted, so that what is mutated goes deep.
            for (sort, body) in sequence.iter().filter(|(sort, _)| !matches!(sort, 3 | 11 | 20)) {
                netd.run(call(netd, *sort, body))
                    .unwrap_or_else(|status| panic!("{number}, {sort}: {status:?}"));
            }
            let kept = netd.documents();
            if write {
                for folder in ["netd_requests", "netd_records"] {
                    fs::create_dir_all(mutate::folder(folder)).unwrap();
                }
                fs::write(&path, &bytes).unwrap();
                fs::write(&records, kept.to_string()).unwrap();
            }
            netd.clear();
        });
        assert_eq!(fs::read(&path).ok(), Some(bytes), "{}: set KVMCTL_WRITE_SEEDS", path.display());
        crate::fuzz::netd_records(&fs::read(&records).unwrap()).unwrap();
    }
}
