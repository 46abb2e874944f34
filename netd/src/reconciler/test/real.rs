//! One takeover on the real kernel, in a network namespace of its own: what the kernel in memory is held against.

use super::*;
use crate::kernel::{LinuxKernel, netns::block_on_in_own_netns};
use rtnetlink::{LinkUnspec, LinkVeth};

/// Addresses and routes of both NICs, in an order that does not depend on history.
async fn look(kernel: &LinuxKernel) -> Vec<String> {
    let observed = kernel.observe(&Scope::All).await.unwrap();
    let mut lines = Vec::new();
    for name in ["eth0", "eth1"] {
        let link = &observed.links[&link(name)];
        lines.push(format!("{name} up={} master={:?}", link.up, link.master));
        lines.extend(link.addresses.iter().map(|address| format!("{name} {address:?}")));
        lines.extend(link.routes.iter().map(|route| format!("{name} {route:?}")));
    }
    lines.sort();
    lines
}

#[test]
fn a_nic_goes_into_a_bridge_and_back_as_it_was() {
    block_on_in_own_netns(async {
        let (connection, netlink, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        for (nic, peer) in [("eth0", "peer0"), ("eth1", "peer1")] {
            netlink.link().add(LinkVeth::new(nic, peer).build()).execute().await.unwrap();
            for name in [nic, peer] {
                let up = LinkUnspec::new_with_name(name).up().build();
                netlink.link().set(up).execute().await.unwrap();
            }
        }
        let kernel = LinuxKernel::new().unwrap();
        let managed = Address { no_prefix_route: true, ..address("198.51.100.10/24") };
        let mut actions = vec![Action::AddAddress(link("eth0"), address("192.0.2.11/24"))];
        for net in ["192.0.2.10/24", "192.0.2.12/24", "2001:db8::10/64"] {
            actions.push(Action::AddAddress(link("eth1"), address(net)));
        }
        actions.push(Action::AddAddress(link("eth1"), managed));
        let connected = Route { protocol: 2, scope: 253, ..route("198.51.100.0/24", None, Some(100)) };
        actions.push(Action::AddRoute(link("eth1"), connected));
        let source = Some("192.0.2.12".parse().unwrap());
        for route in [
            route("0.0.0.0/0", Some("192.0.2.1"), None),
            Route { source, ..route("203.0.113.0/24", Some("192.0.2.9"), None) },
            route("::/0", Some("2001:db8::1"), Some(1024)),
        ] {
            actions.push(Action::AddRoute(link("eth1"), route));
        }
        // Somebody else's, of the same destination and metric.
        actions.push(Action::AddRoute(link("eth0"), route("0.0.0.0/0", Some("192.0.2.1"), None)));
        for action in &actions {
            kernel.apply(action).await.unwrap();
        }
        let before = look(&kernel).await;
        assert!(before.len() > actions.len(), "{before:#?}");

        let dir = tempfile::tempdir().unwrap();
        let netd = Reconciler::load(kernel.clone(), reopen(dir.path()), Services::none()).await.unwrap();
        let spec = NetworkSpec { uplink: Some(link("eth1")), ..spec(Mode::Bridged) };
        netd.create_network(network("nic", spec), false).await.unwrap();
        netd.create_port(port("nic", "web")).await.unwrap();
        netd.converge().await.unwrap();
        assert_eq!(netd.network(&name("nic")).unwrap().state, State::Ready);
        assert_eq!(netd.port(&name("nic"), &name("web")).unwrap().state, State::Ready);
        let taken = look(&kernel).await;
        let of = |lines: &[String], nic: &str| {
            lines.iter().filter(|l| l.starts_with(nic)).cloned().collect::<Vec<_>>()
        };
        assert_eq!(of(&taken, "eth0"), of(&before, "eth0"), "the other NIC keeps what is its own");
        assert!(
            of(&taken, "eth1").iter().all(|line| !line.contains("192.0.2") && !line.contains("2001:")),
            "{taken:#?}"
        );
        netd.delete_network(name("nic"), true).await.unwrap();
        assert_eq!(look(&kernel).await, before);
    });
}
