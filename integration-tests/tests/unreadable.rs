//! Objects whose records cannot be read are in every list, with their names and the way out.

use integration_tests::{
    census::Census,
    guest::Guest,
    host::{TestHost, VMD_UID},
    wait,
};
use proto::{
    netd::v1::{ListNetworksRequest, network_service_client::NetworkServiceClient},
    vmd::v1::{ListVmsRequest, vm_service_client::VmServiceClient},
};
use serde_json::{Value, json};
use shared::store::{Op, Store};
use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

/// Makes records unreadable, as a newer version would, while the daemon is away. The folder stays its user's.
fn spoil(folder: &str, user: u32, records: &[(&'static str, &str)]) {
    let store = wait::until("the store", || Store::open(Path::new(folder)).ok());
    let ops = records.iter().map(|(kind, id)| Op::put(kind, *id, &"of a later version").expect("op"));
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    runtime.block_on(store.commit(ops.collect())).expect("commit");
    drop(store);
    // The thread that has the files closes them a moment later.
    wait::until("the store to be closed", || Store::open(Path::new(folder)).ok().map(drop));
    wait::until("the log to be gone", || {
        (!Path::new(folder).join("state.sqlite-wal").exists()).then_some(())
    });
    integration_tests::netns::run(Command::new("chown").args(["-R", &format!("{user}:{user}"), folder]));
}

/// (list, its names, the broken one's place in it, what its record is)
type Case = (&'static str, &'static [&'static str], usize, &'static str);

const CASES: [Case; 5] = [
    ("network list", &["a", "b", "c"], 1, "network b"),
    ("port list", &["x", "y", "z", "y"], 1, "port networks/a/ports/y"),
    ("forward list", &["tcp-80", "tcp-81"], 0, "forward networks/a/forwards/tcp-80"),
    ("group list", &["db", "web"], 1, "group web"),
    ("vm list", &["one", "two"], 0, "vm one"),
];

fn names(list: &Value) -> Vec<&str> {
    list.as_array().expect("list").iter().filter_map(|object| object["name"].as_str()).collect()
}

#[test]
fn what_cannot_be_read_is_in_every_list_with_its_name_and_the_way_out() {
    let mut host = TestHost::with_vmd();
    for name in ["a", "b", "c"] {
        host.ok(&format!("network create {name} --mode nat --dhcp off"));
    }
    for (network, name) in [("a", "x"), ("a", "y"), ("a", "z"), ("b", "y")] {
        host.port(network, name);
    }
    for port in [80, 81] {
        host.ok(&format!("forward add a --protocol tcp --listen {port} --to x:{port}"));
    }
    for name in ["db", "web"] {
        host.ok(&format!("group create {name}"));
    }
    for name in ["one", "two"] {
        host.ok(&format!("vm create {name} --network c"));
    }
    let whole: Vec<_> = CASES.map(|(list, ..)| host.ok_json(list)).into();
    let before = Census::of(&host.netns);
    host.kill_netd();
    host.kill_vmd();
    let records = CASES.map(|(.., record)| record.split_once(' ').expect("kind and id"));
    spoil(&host.path("netd-state"), 0, &records[..4]);
    spoil(&host.path("vmd-state"), VMD_UID, &records[4..]);
    host.start_netd();
    host.start_vmd();
    before.assert_same(&Census::of(&host.netns));
    for ((list, expected, at, record), whole) in CASES.into_iter().zip(&whole) {
        let shown = host.ok_json(list);
        assert_eq!(names(&shown), expected, "{list}: {shown}");
        for (index, object) in shown.as_array().expect("list").iter().enumerate() {
            if index != at {
                let same =
                    (&object["name"], &object["spec"]) == (&whole[index]["name"], &whole[index]["spec"]);
                assert!(same && object["status"]["state"] != "broken", "{list}: {object}");
                continue;
            }
            let status = &object["status"];
            assert_eq!(
                (&status["state"], &object["spec"]),
                (&json!("broken"), &Value::Null),
                "{list}: {object}"
            );
            let error = status["error"].as_str().expect("why");
            let way_out = format!("--forget '{record}'");
            assert!(error.contains("cannot be read") && error.contains(&way_out), "{error}");
            // As a look at it says.
            let verb = list.replace("list", "show");
            let network = object["network"].as_str();
            let words = verb.split(' ').chain(network).chain(object["name"].as_str());
            let get = host.kvmctl(&words.collect::<Vec<_>>());
            assert!(get.code != 0 && get.stderr.contains(&way_out), "{list}: {}", get.stderr);
        }
        let table = host.kvmctl(&list.split(' ').collect::<Vec<_>>());
        let line = table.stdout.lines().nth(at + 1).expect("a line");
        assert!(line.contains("broken") && line.contains(expected[at]), "{}", table.stdout);
        assert!(table.stderr.contains("is broken") && table.stderr.contains(record), "{}", table.stderr);
        println!("{list}: {line}");
    }
    // The ports of a network that cannot be read are listed, and those of none are not.
    assert_eq!(names(&host.ok_json("port list b")), ["y"]);
    assert_eq!(names(&host.ok_json("port list a")), ["x", "y", "z"]);
    assert!(host.kvmctl(&["port", "list", "none"]).stderr.contains("no network `none`"));
    for (list, expected, at) in [("network", ["a", "b", "c"], 1), ("port", ["y", "z", "y"], 0)] {
        watched(&host, list, &expected, at);
    }
    assert_eq!(pages(&host), ["networks/a", "networks/b", "networks/c", "vms/one", "vms/two"]);
}

/// The addresses that a DHCP server has given out.
fn leased(host: &TestHost) -> Vec<String> {
    let leases = host.ok_json("network leases n");
    let of = leases.as_array().expect("leases").iter();
    of.map(|lease| lease["address"].as_str().expect("address").to_owned()).collect()
}

#[test]
fn a_guest_whose_port_cannot_be_read_keeps_its_lease_and_its_name() {
    let mut host = TestHost::new();
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24 --ipv6 fd00:60::1/64");
    let guests = ["ada", "bob", "eve"].map(|name| {
        let port = host.ok_json(&format!("port create n {name}"))["status"].clone();
        let text = |key: &str| port[key].as_str().expect(key).to_owned();
        let guest = Guest::plug(&host.netns, &text("interface"), &text("mac"));
        guest.dhcp4(&[]).expect("a lease");
        (guest, text("ipv4_address"), text("ipv6_address"))
    });
    let [(ada, v4, v6), (bob, ..), _] = &guests;
    ada.has_address(v6);
    assert_eq!(ada.dhcp6()["ip"], v6.as_str());
    let servers = host.servers("n");
    let before = leased(&host);
    assert!(before.len() == 4 && before.contains(v4) && before.contains(v6), "{before:?}");
    host.kill_netd();
    spoil(&host.path("netd-state"), 0, &[("port", "networks/n/ports/ada")]);
    host.start_netd();
    // A lease of a port that goes is given back, hers is not.
    host.ok("port delete n eve");
    let mut seen = Vec::new();
    wait::until("the lease of the port that went to go", || {
        // The server empties its file before it writes it anew: twice the same is what is in it.
        let now = leased(&host);
        let settled = std::mem::replace(&mut seen, now) == seen;
        (settled && seen.len() < 4).then_some(())
    });
    assert!(seen.len() == 3 && seen.contains(v4) && seen.contains(v6), "{seen:?}");
    assert_eq!(host.servers("n"), servers, "the same process");
    assert_eq!(ada.dhcp4(&[]).expect("a lease")["ip"], v4.as_str());
    // As one knows it that is started now.
    host.netns.sh(&format!("kill -KILL {}", servers[0]));
    wait::until("her name", || (bob.dig("10.60.0.1", "ada") == [v4.as_str()]).then_some(()));
    assert_eq!(ada.dhcp4(&[]).expect("a lease")["ip"], v4.as_str());
    // A change of the network's settings takes it along.
    host.ok("network update n --lease-time 2h");
    assert_eq!(ada.dhcp4(&[]).expect("a lease")["ip"], v4.as_str());
}

/// A list that goes on begins with them too. `expected` are among its first messages.
fn watched(host: &TestHost, list: &str, expected: &[&str], broken: usize) {
    let mut command = host.kvmctl_command(&[list, "list", "--watch", "-o", "json"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("kvmctl");
    let lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
    let messages: Vec<Value> = lines
        .map(|line| serde_json::from_str(&line.expect("line")).expect("JSON"))
        .take_while(|message: &Value| message["change"] != "synced")
        .collect();
    child.kill().expect("kill");
    child.wait().expect("wait");
    for name in expected {
        assert!(messages.iter().any(|message| message["object"]["name"] == *name), "{name}: {messages:?}");
    }
    let told: Vec<_> = messages.iter().filter(|m| m["object"]["status"]["state"] == "broken").collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0]["object"]["name"] == expected[broken] && told[0]["object"]["spec"].is_null(), "{told:?}");
}

/// The names of all networks, then of all machines, read one by one.
fn pages(host: &TestHost) -> Vec<String> {
    let channel = |address: &str| shared::socket::channel(address).expect("an address");
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    runtime.block_on(async {
        let mut netd = NetworkServiceClient::new(channel(&host.netd_address()));
        let mut vmd = VmServiceClient::new(channel(&host.vmd_address()));
        let (mut names, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = ListNetworksRequest { page_size: 1, page_token };
            let page = netd.list_networks(request).await.expect("netd").into_inner();
            assert!(page.networks.len() <= 1);
            names.extend(page.networks.into_iter().map(|network| network.name));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        loop {
            let request = ListVmsRequest { page_size: 1, page_token };
            let page = vmd.list_vms(request).await.expect("vmd").into_inner();
            assert!(page.vms.len() <= 1);
            names.extend(page.vms.into_iter().map(|vm| vm.name));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return names;
            }
        }
    })
}
