//! Real machines: QEMU, Debian's kernel, and what is seen from inside.

use integration_tests::{
    host::{TestHost, VMD_UID},
    machine::{CMDLINE, Console},
    wait,
};
use std::{
    fs,
    net::TcpListener,
    path::Path,
    time::{Duration, Instant},
};

/// Creates and starts a machine; `words` go to the guest's kernel command line.
fn boot(host: &TestHost, name: &str, network: &str, words: &str) {
    let cmdline = format!("{CMDLINE} kv.name={name} {words}");
    let outcome = host.kvmctl(&[
        "vm",
        "run",
        name,
        "--memory",
        "256M",
        "--kernel",
        &host.path("vmlinuz"),
        "--initrd",
        &host.path("initrd.img"),
        "--cmdline",
        &cmdline,
        "--network",
        network,
    ]);
    assert_eq!(outcome.code, 0, "{}\n{}", outcome.stderr, host.logs());
}

/// A console of a machine that has come up.
fn ready(host: &TestHost, name: &str) -> Console {
    wait::until(&format!("{name} to be up"), || {
        host.ok(&format!("vm log {name}")).contains(&format!("GUEST READY {name}")).then_some(())
    });
    Console::attach(host, name)
}

fn vm(host: &TestHost, name: &str) -> serde_json::Value {
    host.ok_json(&format!("vm show {name}"))
}

#[test]
fn guests_outlive_both_daemons_and_lose_no_ping() {
    let mut host = TestHost::with_vmd();
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24 --ipv6 fd00:60::1/64");
    boot(
        &host,
        "a",
        "n,ip=10.60.0.11,ip=fd00:60::11",
        "kv.ip=eth0:10.60.0.11/24 kv.ip=eth0:fd00:60::11/64 kv.gw=eth0:10.60.0.1",
    );
    boot(&host, "b", "n,ip=10.60.0.12,ip=fd00:60::12", "kv.ip=eth0:10.60.0.12/24 kv.ip=eth0:fd00:60::12/64");
    let mut a = ready(&host, "a");
    drop(ready(&host, "b"));
    a.ok("ping -c 1 10.60.0.12 && ping -c 1 fd00:60::12 && ping -c 1 10.60.0.1");
    for to in ["10.60.0.12", "fd00:60::12", "10.99.0.1"] {
        a.ok(&format!("(ping {to} > /tmp/{to} 2>&1 & echo $! >> /tmp/pids); true"));
    }
    let before = ["a", "b"].map(|name| vm(&host, name)["status"]["pid"].clone());
    let count = |host: &TestHost| {
        Console::attach(host, "a").ok("wc -l < /tmp/10.60.0.12").trim().parse::<u32>().expect("count")
    };
    // One console at a time may write.
    drop(a);
    let mut answered = count(&host);
    for round in 0..2 {
        // In either order.
        if round == 0 {
            host.kill_vmd();
            host.kill_netd();
            host.start_netd();
            host.start_vmd();
        } else {
            host.kill_netd();
            host.kill_vmd();
            host.start_vmd();
            host.start_netd();
        }
        wait::until("both to be adopted", || {
            let running = ["a", "b"].iter().all(|name| vm(&host, name)["status"]["state"] == "running");
            running.then_some(())
        });
        // Pings went on meanwhile: a ping a second, so a few more lines than before.
        wait::until("more pings", || (count(&host) > answered + 1).then_some(()));
        answered = count(&host);
    }
    let after = ["a", "b"].map(|name| vm(&host, name)["status"]["pid"].clone());
    assert_eq!(before, after, "a machine was started anew");
    let mut a = Console::attach(&host, "a");
    a.ok("kill -INT $(cat /tmp/pids)");
    for to in ["10.60.0.12", "fd00:60::12", "10.99.0.1"] {
        let summary = wait::until("ping's summary", || {
            let text = a.ok(&format!("cat /tmp/{to}"));
            text.lines().find(|line| line.contains("packets transmitted")).map(str::to_owned)
        });
        let numbers: Vec<u32> = summary.split(' ').filter_map(|word| word.parse().ok()).collect();
        assert!(numbers[0] >= 4 && numbers[0] - numbers[1] <= 1, "{to}: {summary}");
    }
    let status = &vm(&host, "a")["status"];
    assert_eq!(status["adopted"], true);
    assert_eq!(status["nics"][0]["ipv4_address"], "10.60.0.11");
    assert_eq!(status["nics"][0]["ipv6_address"], "fd00:60::11");
}

#[test]
fn an_address_is_waited_for_without_an_agent_in_the_guest() {
    let host = TestHost::with_vmd();
    host.ok("network create home --mode nat --ipv4 10.60.0.1/24");
    let words = "kv.ip=eth0:10.60.0.11/24 kv.gw=eth0:10.60.0.1";
    boot(&host, "nat", "home,ip=10.60.0.11,extra-ip=10.60.0.80", words);
    let mut console = ready(&host, "nat");
    // Recorded is not used: the guest has said nothing yet.
    let recorded = &vm(&host, "nat")["status"]["nics"][0];
    assert_eq!(recorded["ipv4_address"], "10.60.0.11");
    let wait = ["vm", "wait", "nat", "--for", "ip", "-o", "name", "--timeout"];
    let early = host.kvmctl(&[&wait[..], &["500ms"]].concat());
    assert_eq!(early.code, 4, "{} {}", early.stdout, early.stderr);
    let seen = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| host.kvmctl(&[&wait[..], &["20s"]].concat()));
        console.ok("ping -c 1 10.60.0.1");
        waiting.join().expect("wait")
    });
    assert_eq!((seen.code, seen.stdout.as_str()), (0, "10.60.0.11\n"), "{}", seen.stderr);
    let shown = vm(&host, "nat")["status"]["nics"][0]["addresses"].clone();
    let used = serde_json::json!({"address": "10.60.0.11", "evidence": ["static", "observed"]});
    assert!(shown.as_array().is_some_and(|addresses| addresses.contains(&used)), "{shown}");
    assert!(host.ok("vm show nat").contains("- 10.60.0.80 on home (static)\n"));
    assert!(host.ok("vm list").contains("10.60.0.11"));
    drop(console);
    // What it used before it was stopped does not count.
    host.ok("vm stop nat --force");
    host.ok("vm start nat");
    let anew = host.kvmctl(&[&wait[..], &["500ms"]].concat());
    assert_eq!(anew.code, 4, "{} {}", anew.stdout, anew.stderr);

    // On somebody else's network, with addresses that nobody but the guest knows.
    host.ok("network create office --mode bridged --uplink up0");
    boot(&host, "bridged", "office", "kv.ip=eth0:10.99.0.55/24 kv.ip=eth0:2001:db8:99::55/64");
    drop(ready(&host, "bridged"));
    assert!(vm(&host, "bridged")["status"]["nics"][0]["ipv4_address"].is_null());
    host.lan.sh("ping -c 1 -W 5 10.99.0.55 && ping -c 1 -W 5 2001:db8:99::55");
    let seen = host.ok_json("vm wait bridged --for ip --timeout 20s");
    let address = |address: &str| {
        serde_json::json!({
            "address": address, "network": "office", "port": "bridged-0", "evidence": ["observed"],
        })
    };
    let expected = serde_json::json!([address("10.99.0.55"), address("2001:db8:99::55")]);
    assert_eq!(seen, expected);
}

#[test]
fn a_port_that_was_changed_while_its_guest_ran_is_as_the_machine_says_at_the_next_start() {
    let mut host = TestHost::bare();
    let file = host.path("access.toml");
    let grant = format!("[[grant]]\nusers = [{VMD_UID}]\nrole = \"operator\"\nport_groups = [\"web\"]\n");
    std::fs::write(&file, grant).expect("access file");
    host.netd_arguments.extend(["--access-file".to_owned(), file]);
    host.start_netd();
    host.add_vmd();
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24");
    host.ok("group create web --default-in deny");
    boot(&host, "web", "n,ip=10.60.0.11,extra-ip=10.60.0.80,isolated,rate-out=50M,group=web", "");
    let port = |host: &TestHost| host.ok_json("port show n web-0");
    let made = port(&host);
    assert_eq!((&made["spec"]["filter"], &made["spec"]["isolated"]), (&"on".into(), &true.into()));
    assert_eq!(made["spec"]["extra_addresses"], serde_json::json!(["10.60.0.80"]));
    assert_eq!(made["spec"]["groups"], serde_json::json!(["web"]));
    assert_eq!(made["status"]["hostname"], "web");
    // Live, and netd is away when the machine is stopped: the port stays, changed.
    host.ok("port update n web-0 --filter off --no-group --no-extra-ip --isolated off --hostname other");
    assert_eq!(port(&host)["spec"]["filter"], "off");
    host.kill_netd();
    host.ok("vm stop web --force");
    host.start_netd();
    host.ok("vm start web");
    let anew = port(&host);
    assert_ne!(anew["uid"], made["uid"]);
    assert_eq!(anew["spec"], made["spec"]);
    assert_eq!(anew["status"]["hostname"], "web");
    assert_eq!(anew["status"]["ipv4_address"], "10.60.0.11");
    // An open port shows wherever the machine does.
    host.ok("vm create open --network n,filter=off");
    for words in ["vm list", "vm show open"] {
        assert!(host.ok(words).contains("filter"), "{words}");
    }
}

#[test]
fn a_machines_whole_life_leaves_nothing_behind() {
    let host = TestHost::with_vmd();
    host.ok("network create n --mode isolated");
    boot(&host, "web", "n", "kv.ip=eth0:10.60.0.11/24");
    assert_eq!(vm(&host, "web")["status"]["state"], "running");
    let pid = vm(&host, "web")["status"]["pid"].as_u64().expect("pid");
    let mut console = ready(&host, "web");
    // The MAC that is shown is the guest's.
    let shown = vm(&host, "web")["status"]["nics"][0]["mac"].as_str().expect("MAC").to_owned();
    assert_eq!(console.ok("cat /sys/class/net/eth0/address").trim(), shown);
    assert_eq!(host.ok_json("port list n").as_array().map(Vec::len), Some(1));

    host.ok("vm pause web");
    assert_eq!(vm(&host, "web")["status"]["state"], "paused");
    host.ok("vm resume web");
    console.ok("true");
    drop(console);
    host.ok("vm reset web");
    wait::until("a second boot", || {
        (host.ok("vm log web").matches("GUEST READY web").count() == 2).then_some(())
    });
    assert_eq!(vm(&host, "web")["status"]["pid"].as_u64(), Some(pid), "a reset keeps the process");

    host.ok("vm stop web --timeout 60s");
    let stopped = vm(&host, "web");
    assert_eq!(stopped["status"]["state"], "stopped");
    assert!(host.ok("vm log web").contains("GUEST DOWN poweroff"), "the guest was not asked");
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(host.ok_json("port list n"), serde_json::json!([]));

    host.ok("vm start web");
    host.ok("vm wait web --for running --timeout 20s");
    host.ok("vm stop web --force");
    host.ok("vm wait web --for stopped --timeout 20s");
    host.ok("vm delete web");
    assert_eq!(host.ok_json("vm list"), serde_json::json!([]));
    host.ok("network delete n");
    assert_eq!(integration_tests::census::left_in(&host, "vmd-run/vms"), Vec::<String>::new());
    assert_eq!(integration_tests::census::left_in(&host, "vmd-state/vms"), Vec::<String>::new());
    assert_eq!(host.machines(), Vec::<u32>::new(), "a process is left");
}

#[test]
fn a_nat_guest_is_seen_as_the_host_and_an_isolated_one_not_at_all() {
    let host = TestHost::with_vmd();
    host.ok("network create out --mode nat --ipv4 10.60.0.1/24 --ipv6 fd00:60::1/64");
    host.ok("network create in --mode isolated");
    boot(
        &host,
        "seen",
        "out,ip=10.60.0.11,ip=fd00:60::11",
        "kv.ip=eth0:10.60.0.11/24 kv.gw=eth0:10.60.0.1 kv.ip=eth0:fd00:60::11/64 kv.gw=eth0:fd00:60::1",
    );
    boot(&host, "hidden", "in", "kv.ip=eth0:10.61.0.11/24 kv.ip=eth0:10.99.0.55/24 kv.gw=eth0:10.99.0.2");
    let lan = host.lan.enter(|| TcpListener::bind("[::]:5000").expect("bind"));
    let mut seen = ready(&host, "seen");
    let mut hidden = ready(&host, "hidden");
    for (to, source) in [("10.99.0.1", "10.99.0.2"), ("2001:db8:99::1", "2001:db8:99::2")] {
        seen.ok(&format!("ping -c 1 -W 5 {to}"));
        let from = std::thread::scope(|scope| {
            // Closed at once, so that the guest's nc ends.
            let accepted = scope.spawn(|| lan.accept().expect("accept").1.ip().to_canonical());
            seen.run(&format!("nc -w 5 {to} 5000 < /dev/null"));
            accepted.join().expect("accept")
        });
        assert_eq!(from.to_string(), source);
    }
    for to in ["10.99.0.2", "10.99.0.1", "10.60.0.1", "10.60.0.11"] {
        assert!(!hidden.run(&format!("ping -c 2 -W 1 {to}")).0, "the isolated guest reaches {to}");
    }
}

#[test]
fn machines_that_cannot_be() {
    let mut host = TestHost::with_vmd();
    host.ok("network create n --mode isolated");
    let disk = host.path("disk.raw");
    fs::write(&disk, vec![0; 1 << 20]).expect("disk");
    std::os::unix::fs::chown(&disk, Some(VMD_UID), None).expect("chown");
    let secret = host.path("secret.raw");
    fs::write(&secret, vec![0; 1 << 20]).expect("disk");
    // Root's own: vmd's user may not read it.
    fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("mode");
    host.ok("vm create taken --network n,mac=52:54:00:00:00:aa");
    let raw = format!("{disk},format=raw");
    let unformatted = disk.clone();
    let missing = format!("{},format=raw", host.path("nosuch.raw"));
    let unreadable = format!("{secret},format=raw");
    let kernel = host.path("nosuch-kernel");
    let cases: Vec<(Vec<&str>, &[i32], &str)> = vec![
        (vec!["--disk", &missing], &[1], "nosuch.raw"),
        (vec!["--disk", &unreadable], &[1], "secret.raw"),
        (vec!["--disk", &unformatted], &[2], "format"),
        (
            vec!["--disk", &format!("{disk},format=vhdx")[..]]
                .into_iter()
                .map(|s| Box::leak(s.to_owned().into_boxed_str()) as &str)
                .collect(),
            &[1, 2],
            "vhdx",
        ),
        (vec!["--memory", "0"], &[1, 2], "0"),
        (vec!["--vcpus", "0"], &[1, 2], "0"),
        (vec!["--kernel", &kernel], &[1], "nosuch-kernel"),
        (vec!["--network", "n,mac=52:54:00:00:00:aa"], &[1], "taken"),
        (
            vec!["--network", "n,mac=52:54:00:00:00:ab", "--network", "n,mac=52:54:00:00:00:ab"],
            &[1, 2],
            "52:54:00:00:00:ab",
        ),
        (vec!["--network", "nosuch"], &[1], "nosuch"),
    ];
    for (arguments, codes, words) in cases {
        let outcome = host.kvmctl(&[&["vm", "create", "bad"], &arguments[..]].concat());
        assert!(codes.contains(&outcome.code), "{arguments:?}: {} {}", outcome.code, outcome.stderr);
        assert!(outcome.stderr.contains(words), "{arguments:?}: {}", outcome.stderr);
        assert!(outcome.stderr.contains("hint:") || outcome.code == 2, "{arguments:?}: {}", outcome.stderr);
    }
    assert_eq!(host.ok("vm list -o name").trim(), "taken");
    assert_eq!(host.ok_json("port list"), serde_json::json!([]));
    // A disk that is gone at the start: refused by name, and nothing is left.
    host.ok(&format!("vm create disky --disk {raw} --network n"));
    fs::remove_file(&disk).expect("remove");
    let refused = host.kvmctl(&["vm", "start", "disky"]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("disk.raw"), "{}", refused.stderr);
    assert_eq!(host.ok_json("port list"), serde_json::json!([]));
    // What netd refuses, in netd's words, and nothing is left.
    host.ok("network create sub --mode nat --ipv4 10.60.0.1/24");
    for (options, words) in [
        ("ip=10.61.0.5", "10.61.0.5 cannot be the guest's: it is outside the subnet 10.60.0.0/24"),
        ("ip=10.60.0.1", "the network's own gateway address"),
        ("extra-ip=10.60.0.255", "it stands for the subnet"),
    ] {
        host.ok(&format!("vm create astray --network sub,{options}"));
        let refused = host.kvmctl(&["vm", "start", "astray"]);
        assert_eq!(refused.code, 1);
        assert!(refused.stderr.contains(words) && refused.stderr.contains("hint:"), "{}", refused.stderr);
        assert_eq!(host.ok_json("port list"), serde_json::json!([]));
        host.ok("vm delete astray");
    }
    host.ok("port create sub other --hostname astray");
    host.ok("vm create astray --network sub");
    let refused = host.kvmctl(&["vm", "start", "astray"]);
    assert_eq!(refused.code, 1);
    for words in ["`astray` belongs to `networks/sub/ports/other`", "a machine is known by its own name"] {
        assert!(refused.stderr.contains(words), "{}", refused.stderr);
    }
    host.ok("port delete sub other");
    host.ok("vm start astray");
    host.ok("vm stop astray --force");
    host.ok("vm delete astray");
    // No netd: said so at once.
    host.kill_netd();
    let refused = host.kvmctl(&["vm", "start", "taken"]);
    assert!(matches!(refused.code, 1 | 3), "{}", refused.stderr);
    assert!(refused.stderr.contains("netd"), "{}", refused.stderr);
    host.kill_vmd();
    assert_eq!(host.kvmctl(&["vm", "list"]).code, 3);
}

/// How much of one processor a process wants, over about three seconds: what it ran and what it waited for its turn, so
/// that it does not matter how busy the machine is.
fn demand(pid: u64) -> f64 {
    let wanted = || -> u64 {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("threads").flatten();
        let stats = threads.filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok());
        // Nanoseconds on a processor, and waiting for one.
        stats
            .map(|stat| stat.split(' ').take(2).filter_map(|field| field.parse::<u64>().ok()).sum::<u64>())
            .sum()
    };
    let (begin, before) = (Instant::now(), wanted());
    wait::until("the end of what is measured", || (begin.elapsed() > Duration::from_secs(3)).then_some(()));
    (wanted() - before) as f64 / begin.elapsed().as_nanos() as f64
}

#[test]
fn ports_of_machines_that_vmd_has_no_record_of_are_named_and_stay() {
    let mut host = TestHost::with_vmd();
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24 --dhcp off");
    host.ok("vm create web --network n");
    host.ok("vm start web");
    // Somebody else's is none of vmd's.
    host.port("n", "other");
    let warnings = |host: &TestHost| host.ok_json("host show")["vmd"]["warnings"].to_string();
    assert!(!warnings(&host).contains("networks/n/ports"), "{}", warnings(&host));
    let pid = vm(&host, "web")["status"]["pid"].clone();
    host.kill_vmd();
    let (state, aside) = (host.path("vmd-state"), host.path("aside"));
    std::fs::rename(&state, &aside).expect("rename");
    host.netns.sh(&format!("install -d -m 700 -o {VMD_UID} -g {VMD_UID} {state}"));
    host.start_vmd();
    let named = warnings(&host);
    assert!(
        named.contains("networks/n/ports/web-0") && named.contains("kvmctl port delete n web-0"),
        "{named}"
    );
    assert!(!named.contains("ports/other"), "{named}");
    assert_eq!(host.ok_json("port show n web-0")["status"]["attached"], true);
    host.kill_vmd();
    std::fs::remove_dir_all(&state).expect("remove");
    std::fs::rename(&aside, &state).expect("rename");
    host.start_vmd();
    assert_eq!(vm(&host, "web")["status"]["pid"], pid, "adopted");
    assert!(!warnings(&host).contains("networks/n/ports"), "{}", warnings(&host));
}

#[test]
fn a_tap_that_was_deleted_while_vmd_was_away_is_told_as_soon_as_it_is_back() {
    let mut host = TestHost::with_vmd();
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24 --dhcp off");
    for name in ["web", "whole"] {
        host.ok(&format!("vm create {name} --network n"));
        host.ok(&format!("vm start {name}"));
    }
    let pids = ["web", "whole"].map(|name| vm(&host, name)["status"]["pid"].clone());
    let tap = vm(&host, "web")["status"]["nics"][0]["interface"].as_str().expect("tap").to_owned();
    host.kill_vmd();
    let index = || host.netns.json(&format!("ip -j link show {tap}"))[0]["ifindex"].clone();
    let before = index();
    host.netns.sh(&format!("ip link delete {tap}"));
    wait::until("another tap of that name", || {
        (host.netns.succeeds(&format!("ip link show {tap}")) && index() != before).then_some(())
    });
    host.start_vmd();
    wait::until("the machine to say so", || {
        vm(&host, "web")["status"]["warnings"].to_string().contains(&tap).then_some(())
    });
    let whole = vm(&host, "whole");
    assert!(!whole["status"]["warnings"].to_string().contains("was deleted under"), "{whole}");
    assert_eq!(["web", "whole"].map(|name| vm(&host, name)["status"]["pid"].clone()), pids, "adopted");
    host.ok("vm stop web --force");
    host.ok("vm start web");
    let web = vm(&host, "web");
    assert!(!web["status"]["warnings"].to_string().contains(&tap), "{web}");
}

#[test]
fn a_guest_whose_tap_was_deleted_costs_no_time_and_gets_its_network_back_by_a_restart() {
    let host = TestHost::with_vmd();
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24");
    let words = "kv.ip=eth0:10.60.0.11/24 kv.gw=eth0:10.60.0.1";
    boot(&host, "web", "n,ip=10.60.0.11", words);
    let mut console = ready(&host, "web");
    console.ok("ping -c 1 10.60.0.1");
    drop(console);
    let show = || vm(&host, "web");
    let (pid, tap) =
        (show()["status"]["pid"].as_u64().expect("pid"), show()["status"]["nics"][0]["interface"].clone());
    let tap = tap.as_str().expect("tap").to_owned();
    let told = || show()["status"]["warnings"].to_string().contains(&tap);
    assert!(!told());
    let before = demand(pid);
    host.netns.sh(&format!("ip link delete {tap}"));
    wait::until("another tap of that name", || {
        host.netns.succeeds(&format!("ip link show {tap}")).then_some(())
    });
    wait::until("the machine to say so", || told().then_some(()));
    assert!(host.ok("vm show web").contains("was deleted under the guest"));
    let mut console = Console::attach(&host, "web");
    // The guest sends into nowhere, and is not told.
    assert!(!console.run("ping -c 2 -W 1 10.60.0.1").0, "a dead descriptor still works");
    drop(console);
    // One that turns over a dead descriptor never comes to rest.
    let mut after = Vec::new();
    wait::until("QEMU to come to rest", || {
        after.push(demand(pid));
        after.last().is_some_and(|now| *now < 0.3).then_some(())
    });
    println!("QEMU wants {before:.2} of a processor before its tap was deleted, {after:.2?} afterwards");
    let now = show();
    assert_eq!((&now["status"]["state"], now["status"]["pid"].as_u64()), (&"running".into(), Some(pid)));
    host.ok("vm stop web --force");
    host.ok("vm start web");
    let mut console = ready_again(&host, "web");
    console.ok("ping -c 1 10.60.0.1");
    drop(console);
    assert!(!told(), "{}", show());
}

/// As `ready`, for the second start: the log keeps what the first said.
fn ready_again(host: &TestHost, name: &str) -> Console {
    wait::until(&format!("{name} to be up again"), || {
        let log = host.ok(&format!("vm log {name}"));
        (log.matches(&format!("GUEST READY {name}")).count() == 2).then_some(())
    });
    Console::attach(host, name)
}
