//! What cannot be is refused with a reason, a hint and the right exit code, and leaves nothing behind.

use integration_tests::{census::Census, host::TestHost};

/// Runs commands that must fail, and looks at the host before and after.
fn refused(host: &TestHost, cases: &[(&[&str], i32, &str)]) {
    let before = Census::of(&host.netns);
    let networks = host.ok("network list -o json");
    let ports = host.ok("port list -o json");
    for (arguments, code, words) in cases {
        let outcome = host.kvmctl(arguments);
        let said = &outcome.stderr;
        assert_eq!(outcome.code, *code, "kvmctl {arguments:?}: {said}");
        assert!(said.contains(words), "kvmctl {arguments:?} does not say `{words}`: {said}");
        let helps = said.contains("hint:") || said.contains("For more information") || said.contains("tip:");
        assert!(helps, "kvmctl {arguments:?} does not say what to do: {said}");
        assert!(outcome.stdout.is_empty(), "kvmctl {arguments:?} printed {}", outcome.stdout);
    }
    assert_eq!(networks, host.ok("network list -o json"));
    assert_eq!(ports, host.ok("port list -o json"));
    before.assert_same(&Census::of(&host.netns));
}

#[test]
fn names_that_are_none() {
    let host = TestHost::new();
    host.ok("network create good --mode isolated");
    let long = "x".repeat(300);
    for name in ["a/b", "..", "a\nb", "A", "", "-x", &long] {
        // clap takes a leading hyphen for an option: that is a usage error too.
        let code = |outcome: integration_tests::host::Outcome| {
            assert!(matches!(outcome.code, 1 | 2), "{name:?}: {}", outcome.stderr);
        };
        code(host.kvmctl(&["network", "create", name, "--mode", "isolated"]));
        code(host.kvmctl(&["port", "create", "good", name]));
        code(host.kvmctl(&["port", "create", name, "p"]));
    }
    assert_eq!(host.ok("network list -o name").trim(), "good");
    assert_eq!(host.ok("port list -o name").trim(), "");
}

#[test]
fn subnets_that_overlap_or_are_none() {
    let host = TestHost::new();
    host.ok("network create first --mode nat --ipv4 10.60.0.1/16 --ipv6 fd00:60::1/64");
    host.netns.sh("ip route add 10.90.0.0/16 via 10.99.0.1");
    let create = |spec: &'static [&'static str]| [&["network", "create", "n", "--mode"], spec].concat();
    let cases: Vec<(Vec<&str>, &str)> = vec![
        (create(&["nat", "--ipv4", "10.60.7.1/24"]), "network `first`"),
        (create(&["routed", "--ipv4", "10.0.0.1/8"]), "overlaps"),
        (create(&["nat", "--ipv4", "10.99.0.77/24"]), "interface `up0`"),
        (create(&["nat", "--ipv4", "10.90.1.1/24"]), "a route by `up0`"),
        (create(&["nat", "--ipv6", "fd00:60::9/48"]), "network `first`"),
        (create(&["nat", "--ipv4", "10.1.0.0/24"]), "is the network itself"),
        (create(&["nat", "--ipv4", "127.0.0.1/8"]), "cannot be used"),
    ];
    let cases: Vec<_> = cases.iter().map(|(arguments, words)| (arguments.as_slice(), 1, *words)).collect();
    refused(&host, &cases);
    // What the client can tell by itself is a usage error.
    for spec in [["--ipv4", "300.1.1.1/24"], ["--mtu", "20"]] {
        let outcome = host.kvmctl(&[&["network", "create", "n", "--mode", "nat"], &spec[..]].concat());
        assert!(matches!(outcome.code, 1 | 2), "{}", outcome.stderr);
        assert!(outcome.stderr.contains(spec[1]), "{}", outcome.stderr);
    }
    assert_eq!(host.ok("network list -o name").trim(), "first");
}

#[test]
fn uplinks_and_bridges_that_cannot_be_used() {
    let host = TestHost::new();
    host.netns.sh("ip link add br-other type bridge; ip link add nic1 type veth peer name nic1-peer
                   ip link set nic1 master br-other; ip link add nic2 type veth peer name nic2-peer
                   ip link add nic3 type veth peer name nic3-peer; ip link set nic3-peer up; ip link set nic3 up
                   ip address add 10.88.0.2/24 dev nic3
                   ip route add 10.89.0.0/16 nexthop via 10.88.0.1 dev nic3 nexthop via 10.99.0.1 dev up0
                   ip link set nic2 up; ip link add link nic2 name mac0 type macvlan mode bridge");
    let bridged = |link: &'static str| ["network", "create", "n", "--mode", "bridged", "--uplink", link];
    refused(
        &host,
        &[
            (&bridged("nosuch0"), 1, "there is no interface `nosuch0`"),
            (&bridged("lo"), 1, "loopback"),
            (&bridged("nic1"), 1, "is a port of `br-other`"),
            (&bridged("br-other"), 1, "is a bridge"),
            (&bridged("nic2"), 1, "carries `mac0`"),
            (&bridged("nic3"), 1, "several next hops"),
            (&["network", "create", "n", "--mode", "bridged", "--bridge", "up0"], 1, "is not a bridge"),
            (&["network", "create", "n", "--mode", "bridged"], 1, "either a bridge or an uplink"),
            (&["network", "create", "n", "--mode", "nat", "--uplink", "nosuch0"], 1, "there is no interface"),
            (&["network", "create", "n", "--mode", "isolated", "--uplink", "up0"], 1, "no way out"),
            (&["network", "create", "n", "--mode", "wrong"], 2, "wrong"),
        ],
    );
}

#[test]
fn ports_that_cannot_be() {
    let host = TestHost::new();
    host.ok("network create lan --mode isolated");
    host.ok("port create lan a --mac 52:54:00:00:00:01");
    refused(
        &host,
        &[
            (&["port", "create", "nosuch", "p"], 1, "there is no network `nosuch`"),
            (
                &["port", "create", "lan", "b", "--mac", "52:54:00:00:00:01"],
                1,
                "belongs to `networks/lan/ports/a`",
            ),
            (&["port", "create", "lan", "b", "--mac", "01:00:5e:00:00:01"], 2, "group address"),
            (&["port", "create", "lan", "a", "--mac", "52:54:00:00:00:02"], 1, "another spec"),
            (&["port", "delete", "lan", "nosuch"], 1, "there is no port `nosuch`"),
            (&["network", "delete", "lan"], 1, "port(s): `a`"),
            (&["network", "delete", "nosuch"], 1, "there is no network `nosuch`"),
        ],
    );
}

#[test]
fn addresses_and_changes_of_ports_that_cannot_be() {
    let host = TestHost::new();
    host.ok("network create lan --mode nat --ipv4 10.60.0.1/24 --ipv6 fd00:60::1/64");
    host.ok("port create lan a --ip 10.60.0.10 --ip fd00:60::10 --extra-ip 10.60.0.80 --hostname www");
    let with = |arguments: &'static [&'static str]| [&["port", "create", "lan", "b"], arguments].concat();
    let change = |arguments: &'static [&'static str]| [&["port", "update", "lan", "a"], arguments].concat();
    let long = "x".repeat(300);
    let named = [&["port", "create", "lan", "b", "--hostname"][..], &[long.as_str()]].concat();
    let cases = [
        (with(&["--ip", "10.61.0.5"]), 1, "outside the subnet 10.60.0.0/24"),
        (with(&["--ip", "10.60.0.1"]), 1, "own gateway address"),
        (with(&["--ip", "fd00:60::1"]), 1, "own gateway address"),
        (with(&["--ip", "10.60.0.10"]), 1, "belongs to `networks/lan/ports/a`"),
        (with(&["--ip", "fd00:60::10"]), 1, "belongs to `networks/lan/ports/a`"),
        (with(&["--ip", "10.60.0.80"]), 1, "belongs to `networks/lan/ports/a`"),
        (with(&["--extra-ip", "10.60.0.10"]), 1, "belongs to `networks/lan/ports/a`"),
        (with(&["--ip", "10.60.0.255"]), 1, "stands for the subnet"),
        (with(&["--ip", "fe80::1"]), 1, "link-local"),
        (with(&["--ip", "10.60.0.5", "--ip", "10.60.0.6"]), 1, "one address of each"),
        (with(&["--ip", "10.60.0.5/24"]), 2, "invalid"),
        (with(&["--hostname", "www"]), 1, "belongs to `networks/lan/ports/a`"),
        (with(&["--hostname", "w\u{7}w"]), 2, "not a valid name"),
        (named, 2, "not a valid name"),
        (change(&["--extra-ip", "10.60.0.1"]), 1, "own gateway address"),
        (change(&["--extra-ip", "192.0.2.1"]), 1, "outside the subnet"),
        (change(&[]), 2, "required"),
    ];
    let cases: Vec<_> =
        cases.iter().map(|(arguments, code, words)| (arguments.as_slice(), *code, *words)).collect();
    refused(&host, &cases);
    // The same create again is the same port, whatever was asked of it.
    host.ok("port create lan a --ip 10.60.0.10 --ip fd00:60::10 --extra-ip 10.60.0.80 --hostname www");
}

#[test]
fn a_foreign_table_of_our_name_is_not_touched() {
    let host = TestHost::new();
    host.netns.sh("nft add table inet kvmctl; nft add chain inet kvmctl theirs");
    refused(&host, &[(&["network", "create", "n", "--mode", "nat"], 1, "this netd did not make")]);
}

#[test]
fn a_stopped_daemon_is_exit_code_3_with_its_address() {
    let mut host = TestHost::new();
    host.kill_netd();
    for arguments in [["network", "list"], ["port", "list"]] {
        let outcome = host.kvmctl(&arguments);
        assert_eq!(outcome.code, 3, "{}", outcome.stderr);
        assert!(outcome.stderr.contains("netd") && outcome.stderr.contains("hint:"), "{}", outcome.stderr);
        assert!(outcome.stderr.contains(&host.path("netd.sock")), "{}", outcome.stderr);
    }
}
