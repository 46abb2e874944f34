//! kvmctl against daemons with scripted answers.

use crate::fake::{Fake, RECORD, Ran};
use insta::assert_snapshot;
use std::{io::Write as _, process::Stdio};

#[test]
fn create_prints_the_object_in_every_format() {
    let fake = Fake::start();
    let create = "network create lan --mode nat -o";
    let table = fake.run(&format!("{create} table"));
    assert_eq!(table.code, Some(0), "{}", table.err);
    assert_eq!(table.out, "network lan created (nat, 192.168.100.1/24, bridge kvb-lan)\n");
    assert_eq!(table.err, "warning: eth0 is managed by DHCP\n");
    assert_eq!(fake.run(&format!("{create} name")).out, "lan\n");
    assert_snapshot!(fake.run(&format!("{create} yaml")).out);
    assert_snapshot!(fake.run(&format!("{create} json")).out);
}

#[test]
fn list_prints_every_page_in_every_format() {
    let fake = Fake::start();
    assert_eq!(fake.run("network list -o json").out, "[]\n");
    assert_eq!(fake.run("network list").out, "NAME  MODE  STATE  BRIDGE  PORTS  IPV4  IPV6\n");
    for name in ["lan", "wan", "lab"] {
        assert_eq!(fake.run(&format!("network create {name} --mode routed")).code, Some(0));
    }
    assert_snapshot!(fake.run("network list").out, @r"
    NAME  MODE    STATE  BRIDGE   PORTS  IPV4              IPV6
    lan   routed  ready  kvb-lan  0      192.168.100.1/24  -
    wan   routed  ready  kvb-lan  0      192.168.100.1/24  -
    lab   routed  ready  kvb-lan  0      192.168.100.1/24  -
    ");
    assert_eq!(fake.run("network list -o name").out, "lan\nwan\nlab\n");
    let json: serde_json::Value = serde_json::from_str(&fake.run("network list -o json").out).unwrap();
    assert_eq!(json[2]["name"], "lab");
    assert_eq!(json[0]["status"]["state"], "ready");
    let yaml: serde_json::Value = serde_saphyr::from_str(&fake.run("network list -o yaml").out).unwrap();
    assert_eq!(yaml, json);
}

#[test]
fn leases_are_listed_in_every_format() {
    let fake = Fake::start();
    assert_snapshot!(fake.run("network leases lan").out, @r"
    ADDRESS        MAC                HOSTNAME  PORT   EXPIRES
    192.168.100.2  52:54:00:00:00:01  www       web-0  2026-11-24T21:44:50.000Z
    fd00:1::2      -                  -         -      -
    ");
    assert_eq!(fake.run("network leases lan -o name").out, "192.168.100.2\nfd00:1::2\n");
    let json: serde_json::Value = serde_json::from_str(&fake.run("network leases lan -o json").out).unwrap();
    assert_eq!(json[0]["hostname"], "www");
    assert_eq!(json[1]["port"], serde_json::Value::Null);
}

#[test]
fn delete_says_so_in_every_format() {
    let fake = Fake::start();
    let delete = "network delete lan --force -o";
    assert_eq!(fake.run(&format!("{delete} table")).out, "network lan deleted\n");
    assert_eq!(fake.run(&format!("{delete} name")).out, "lan\n");
    let json: serde_json::Value = serde_json::from_str(&fake.run(&format!("{delete} json")).out).unwrap();
    assert_eq!(json, serde_json::json!({"name": "lan", "deleted": true}));
}

#[test]
fn a_refusal_has_causes_a_hint_and_the_trace_the_daemon_saw() {
    let fake = Fake::start();
    let ran = fake.run("network delete lan -v");
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
    // traceparent is version-trace-span-flags.
    let parent = ran.err.lines().nth(2).unwrap().trim().strip_prefix("caused by: ").unwrap();
    let trace = parent.split('-').nth(1).unwrap();
    assert_eq!(
        ran.err,
        format!(
            "error: cannot delete network `lan`\n  caused by: it has 2 ports\n  caused by: {parent}\n  \
             trace id: {trace}\n\nhint: delete them first, or use --force\n"
        )
    );
    assert!(!fake.run("network delete lan").err.contains("trace id"));
}

#[test]
fn a_run_that_cannot_start_says_what_stays() {
    let fake = Fake::start();
    let ran = fake.run("vm run web");
    assert_eq!(ran.code, Some(1));
    assert_snapshot!(ran.err, @r"
    error: machine `web` is recorded, but was not started
      caused by: cannot open disk `/a.img`

    hint: `kvmctl vm start web` tries again, `kvmctl vm delete web` takes it back
    ");
}

#[test]
fn a_wait_ends_by_the_state_not_by_its_change() {
    let fake = Fake::start();
    let running = fake.run("vm wait up --for running");
    assert_eq!((running.code, running.out.as_str()), (Some(0), "vm up is running (1 vCPU, 512M)\n"));
    assert_eq!(fake.run("vm wait down --for stopped -o name").out, "down\n");
}

#[test]
fn a_wait_that_takes_too_long_is_code_4() {
    let ran = Fake::start().run("vm wait slow --for running --timeout 300ms");
    assert_eq!(ran.code, Some(4));
    assert!(
        ran.err.starts_with("error: vm `slow` was not running within 0.3 s, it is starting\n"),
        "{}",
        ran.err
    );
}

#[test]
fn a_failed_machine_ends_the_wait_at_once() {
    let ran = Fake::start().run("vm wait broken --for running --timeout 1h");
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.starts_with("error: vm `broken` failed\n  caused by: cannot open disk"), "{}", ran.err);
}

#[test]
fn a_wait_outlives_a_restart_of_vmd() {
    assert_eq!(Fake::start().run("vm wait restart --for running").code, Some(0));
}

#[test]
fn a_wait_for_nothing_is_refused() {
    assert_eq!(Fake::start().run("vm wait nobody --for running").code, Some(1));
}

#[test]
fn a_wait_for_an_address_ends_when_the_guest_uses_one_and_prints_it_in_every_format() {
    let wait = |format: &str| Fake::start().run(&format!("vm wait late --for ip -o {format}"));
    assert_snapshot!(wait("table").out, @r"
    ADDRESS   NETWORK  PORT    EVIDENCE
    10.0.0.2  lan      late-0  static,observed
    ");
    assert_eq!(wait("name").out, "10.0.0.2\n");
    let expected = serde_json::json!([{
        "address": "10.0.0.2", "network": "lan", "port": "late-0", "evidence": ["static", "observed"],
    }]);
    let json: serde_json::Value = serde_json::from_str(&wait("json").out).unwrap();
    assert_eq!(json, expected);
    let yaml: serde_json::Value = serde_saphyr::from_str(&wait("yaml").out).unwrap();
    assert_eq!(yaml, expected);
}

#[test]
fn neither_a_recorded_nor_a_link_local_address_ends_the_wait() {
    for name in ["silent", "absent"] {
        let ran = Fake::start().run(&format!("vm wait {name} --for ip --timeout 1s"));
        assert_eq!((ran.code, ran.out.as_str()), (Some(4), ""));
        let text = format!("error: vm `{name}` used no address within 1 s, it is running\n");
        assert!(ran.err.starts_with(&text), "{}", ran.err);
    }
}

#[test]
fn what_can_never_have_an_address_is_not_waited_for() {
    let ran = Fake::start().run("vm wait dies --for ip --timeout 1h");
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.starts_with("error: vm `dies` failed\n"), "{}", ran.err);
    let ran = Fake::start().run("vm wait up --for ip --timeout 1h");
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("has no network card"), "{}", ran.err);
    let ran = Fake::start().run("vm wait late --for ip --timeout 1h --netd unix:///nonexistent/netd.sock");
    assert_eq!(ran.code, Some(3));
}

#[test]
fn a_machine_is_shown_with_what_netd_knows_and_without_netd_all_the_same() {
    let fake = Fake::start();
    let show = |more: &str| {
        let ran = fake.run(&format!("vm show silent -o json {more}"));
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
        serde_json::from_str::<serde_json::Value>(&ran.out).unwrap()["status"]["nics"][0].clone()
    };
    let nic = show("");
    assert_eq!(nic["addresses"][1], serde_json::json!({"address": "fe80::1", "evidence": ["observed"]}));
    let nic = show("--netd unix:///nonexistent/netd.sock");
    assert_eq!(nic["ipv4_address"], "10.0.0.2");
    assert!(nic["addresses"].is_null());
}

#[test]
fn a_console_over_a_pipe_shows_history_and_sends_the_input() {
    let fake = Fake::start();
    let mut child = fake
        .command("vm console web")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Ctrl-] has no meaning in a pipe; `!` makes the daemon end the stream.
    child.stdin.take().unwrap().write_all(b"root\x1d\n!").unwrap();
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert_eq!(ran.out, format!("{RECORD}ROOT\u{1d}\n!"));
    assert_eq!(ran.err, "");
}

#[test]
fn a_console_that_is_taken_is_refused() {
    let ran = Fake::start().run("vm console busy");
    assert_eq!((ran.code, ran.err.as_str()), (Some(1), "error: somebody else writes\n"));
}

#[test]
fn a_log_tells_what_is_no_longer_kept() {
    let ran = Fake::start().run("vm log web");
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), RECORD));
    assert_eq!(ran.err, "note: 100 bytes are no longer kept\n");
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Fake::start().command("network list").stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
}

#[test]
fn the_host_is_shown_as_far_as_it_is_known() {
    let fake = Fake::start();
    let ran = fake.run("host show -o json --vmd unix:///nonexistent/vmd.sock");
    assert_eq!(ran.code, Some(3));
    let host: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(host["netd"]["version"], "1.2.3");
    assert!(host["vmd"].is_null());
    assert!(ran.err.starts_with("error: cannot reach vmd at unix:///nonexistent/vmd.sock\n"), "{}", ran.err);
}

#[test]
fn the_shell_is_offered_names_that_exist() {
    let fake = Fake::start();
    for name in ["lan", "lab", "wan"] {
        assert_eq!(fake.run(&format!("network create {name} --mode nat")).code, Some(0));
    }
    let complete = |words: &str| {
        let output = fake
            .command(&format!("-- {words}"))
            .env("COMPLETE", "bash")
            .env("_CLAP_COMPLETE_INDEX", (words.split(' ').count()).to_string())
            .env("_CLAP_IFS", " ")
            .arg("la")
            .output()
            .unwrap();
        Ran::from(output).out
    };
    assert_eq!(complete("kvmctl network show"), "lan lab");
    // No daemon: nothing, and no error text in the middle of the line.
    assert_eq!(complete("kvmctl --netd unix:///nonexistent network show"), "");
}

#[test]
fn the_doctor_ends_with_1_while_something_is_in_the_way() {
    let fake = Fake::start();
    let ran = fake.run("doctor");
    assert_eq!((ran.code, ran.err.as_str()), (Some(1), ""));
    insta::assert_snapshot!(ran.out, @r"
    error: a rule of another program drops TCP over IPv4 from guests of `lan` to the outside
      where  table ip filter, chain FORWARD, policy drop
      who    Docker
      fix    iptables -I DOCKER-USER -i kvb-lan -j ACCEPT
             iptables -I DOCKER-USER -o kvb-lan -j ACCEPT

    warning: a record cannot be read\u{7}
    ");
    let json: serde_json::Value = serde_json::from_str(&fake.run("doctor -o json").out).unwrap();
    assert_eq!(json[0]["networks"], serde_json::json!(["lan"]));
    assert!(json[0]["place"].is_null());
    assert_eq!(fake.run("why web 192.0.2.1").code, Some(0));
    let ran = fake.run("doctor");
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "nothing is in the way of guests' packets\n"));
    assert_eq!(fake.run("doctor -o json").out, "[]\n");
}

#[test]
fn a_way_is_told_step_by_step_and_ends_with_1_where_the_packet_does() {
    let fake = Fake::start();
    let ran = fake.run("why web --from 192.0.2.1:22 --trace 5");
    assert_eq!((ran.code, ran.err.as_str()), (Some(1), ""));
    insta::assert_snapshot!(ran.out, @r"
    tcp from 10.61.0.2 to 192.0.2.1 port 22, web-0 on network lan

    pass     port     192.0.2.1, Tcp
    drop     forward  192.0.2.1, Tcp

    it would die at: forward, most likely made by Docker
    fix: iptables -I DOCKER-USER -o kvb-lan -j ACCEPT

    trace: 2 packets seen, 1 dropped by rules
      ip filter FORWARD policy drop
    ");
    let ran = fake.run("why web db");
    assert_eq!(ran.code, Some(0));
    assert!(ran.out.contains("vms/db, Icmp") && ran.out.contains("it would arrive"), "{}", ran.out);
    assert_eq!(fake.run("why web 192.0.2.1 -o name").out, "web\n");
}
