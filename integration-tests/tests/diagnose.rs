//! What a diagnosis finds without any neighbour, and what it leaves behind.

use integration_tests::{
    guest::Guest,
    host::{TestHost, VMD_UID},
    netns::Netns,
    wait,
};
use serde_json::Value;
use std::net::UdpSocket;

fn errors(host: &TestHost) -> Vec<Value> {
    let outcome = host.kvmctl(&["doctor", "-o", "json"]);
    let findings: Value = serde_json::from_str(&outcome.stdout).expect("JSON");
    let errors: Vec<_> =
        findings.as_array().expect("findings").iter().filter(|f| f["severity"] == "error").cloned().collect();
    assert_eq!(outcome.code, i32::from(!errors.is_empty()), "{}", outcome.stdout);
    errors
}

#[test]
fn reverse_path_filtering_that_drops_is_found_and_the_fix_works() {
    let host = TestHost::new();
    // A second provider: what is behind it is not where the default route leads.
    let second = Netns::new("second");
    host.netns.join("up1", &second, "lan1");
    host.netns.sh("ip address add 10.98.0.2/24 dev up1");
    second.sh("sysctl -qw net.ipv4.conf.all.arp_announce=2
         ip address add 10.98.0.1/24 dev lan1; ip address add 10.97.0.1/32 dev lo
         ip route add 10.63.0.0/24 via 10.98.0.2");
    host.ok("network create dmz --mode routed --ipv4 10.63.0.1/24 --uplink up1");
    let port = host.ok_json("port create dmz web --ip 10.63.0.11");
    let field = |name: &str| port["status"][name].as_str().expect(name);
    let guest = Guest::plug(&host.netns, field("interface"), field("mac"));
    guest.addresses(&["10.63.0.11/24"]);
    guest.gateways(&["10.63.0.1"]);
    host.netns.sh("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.up1.rp_filter=1");

    let receiver = guest.netns.enter(|| UdpSocket::bind("10.63.0.11:9999")).expect("bind");
    receiver.set_nonblocking(true).expect("socket");
    let sender = second.enter(|| UdpSocket::bind("10.97.0.1:0")).expect("bind");
    let refused = || {
        let counters = host.netns.json("nstat --json -asz TcpExtIPReversePathFilter");
        counters["kernel"]["TcpExtIPReversePathFilter"].as_u64().expect("counter")
    };
    let before = refused();
    wait::until("the kernel's own counter", || {
        sender.send_to(b"one", "10.63.0.11:9999").expect("send");
        (refused() > before).then_some(())
    });
    assert!(receiver.recv(&mut [0; 8]).is_err());

    let found = errors(&host);
    let strict = found.iter().find(|error| error["reason"] == "REVERSE_PATH");
    let strict = strict.unwrap_or_else(|| panic!("{found:#?}"));
    assert_eq!(strict["location"], "net.ipv4.conf.up1.rp_filter");
    let why = |arguments: &str| {
        let words: Vec<_> = arguments.split_whitespace().chain(["-o", "json"]).collect();
        serde_json::from_str::<Value>(&host.kvmctl(&words).stdout).expect("JSON")
    };
    let told = why("why web --from 10.97.0.1:9999 --protocol udp");
    let last = told["steps"].as_array().and_then(|steps| steps.last()).expect("steps").clone();
    assert_eq!((&last["stage"], &last["verdict"]), (&"route".into(), &"drop".into()), "{told:#}");
    assert_eq!(last["fix"], strict["fix"]);

    host.netns.sh(strict["fix"].as_str().expect("fix"));
    wait::until("a datagram", || {
        sender.send_to(b"two", "10.63.0.11:9999").expect("send");
        receiver.recv(&mut [0; 8]).ok()
    });
    assert!(errors(&host).iter().all(|error| error["reason"] != "REVERSE_PATH"));
}

#[test]
fn a_rule_on_frames_is_found_and_the_fix_works() {
    let host = TestHost::new();
    host.ok("network create in --mode isolated --ipv4 10.62.0.1/24");
    let guests: Vec<_> = [("a", "10.62.0.11"), ("b", "10.62.0.12")]
        .into_iter()
        .map(|(name, address)| {
            let port = host.ok_json(&format!("port create in {name} --ip {address}"));
            let field = |name: &str| port["status"][name].as_str().expect(name).to_owned();
            let guest = Guest::plug(&host.netns, &field("interface"), &field("mac"));
            guest.addresses(&[&format!("{address}/24")]);
            guest
        })
        .collect();
    let pings = || guests[0].netns.succeeds("ping -n -c 1 -W 1 10.62.0.12");
    wait::until("the neighbour", || pings().then_some(()));
    assert_eq!(errors(&host), Vec::<Value>::new());
    host.netns.sh("nft add table bridge strict
         nft 'add chain bridge strict pass { type filter hook forward priority 0; policy drop; }'
         nft add rule bridge strict pass ether type arp accept");
    assert!(!pings());
    let found = errors(&host);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0]["place"]["family"], "bridge");
    assert_eq!(found[0]["place"]["chain"], "pass");
    assert_eq!(found[0]["program"], "nftables");
    host.netns.sh(found[0]["fix"].as_str().expect("fix"));
    wait::until("the neighbour again", || pings().then_some(()));
    assert_eq!(errors(&host), Vec::<Value>::new());
}

#[test]
fn what_is_degraded_is_found() {
    let host = TestHost::new();
    host.netns.sh("ip link add br-old type bridge; ip link set br-old up");
    host.ok("network create old --mode bridged --bridge br-old");
    assert_eq!(errors(&host), Vec::<Value>::new());
    host.netns.sh("ip link delete br-old");
    wait::until("the finding", || {
        errors(&host).iter().any(|e| e["reason"] == "NETWORK_DEGRADED").then_some(())
    });
}

#[test]
fn a_trace_leaves_nothing_and_touches_nothing_of_others() {
    let mut host = TestHost::new();
    host.ok("network create lan --mode nat --ipv4 10.61.0.1/24");
    let (tap, mac) = host.port_with("lan", "web", &["10.61.0.11"]);
    let _guest = Guest::plug(&host.netns, &tap, &mac);
    let tables = || host_tables(&host);
    assert!(!tables().contains("kvmctl_trace"));
    host.ok("why web 10.99.0.1 --trace 1");
    assert!(!tables().contains("kvmctl_trace"));

    // Only root and the port's owner may watch, and the owner no packets of another's address.
    let as_other = |arguments: &str| {
        let mut command = std::process::Command::new("setpriv");
        command.args(["--reuid", &VMD_UID.to_string(), "--regid", &VMD_UID.to_string(), "--clear-groups"]);
        command.args([&host.path("kvmctl"), "--netd", &host.netd_address()]).args(arguments.split(' '));
        let output = integration_tests::netns::output(&mut command);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(as_other("why web 10.99.0.1").0, Some(0));
    let (_, words) = as_other("why web 10.99.0.1 --trace 1");
    assert!(words.contains("belongs to uid 0"), "{words}");
    let (code, words) = as_other("port create lan own --ip 10.61.0.12");
    assert_eq!(code, Some(0), "{words}");
    let (_, words) = as_other("why own 10.99.0.1 --trace 1");
    assert!(!words.contains("rror"), "{words}");
    let (code, words) = as_other("why own 10.99.0.1 --source 10.61.0.11 --trace 1");
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains("10.61.0.11 is not known to be an address of port `own`"), "{words}");

    // What a netd that was killed in the middle leaves, the next one removes, and nothing else.
    let shown: Value =
        serde_json::from_str(&host.kvmctl(&["host", "show", "-o", "json"]).stdout).expect("JSON");
    let instance = shown["netd"]["instance_id"].as_str().expect("instance");
    host.netns.sh(&format!(
        "nft add table inet kvmctl_trace; nft add chain inet kvmctl_trace kv_mark_{instance}
         nft add table bridge kvmctl_trace"
    ));
    host.kill_netd();
    host.start_netd();
    let tables = host_tables(&host);
    assert!(!tables.contains("inet kvmctl_trace") && tables.contains("bridge kvmctl_trace"), "{tables}");
    let refused = host.kvmctl(&["why", "web", "10.99.0.1", "--trace", "1"]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("table `bridge kvmctl_trace` that is not netd's"), "{}", refused.stderr);
}

fn host_tables(host: &TestHost) -> String {
    host.netns.sh("nft list tables")
}
