//! What a machine or a port leaves behind: its owner gets it again, and nobody else does.

use crate::{ADMIN, ALICE, BOB, host, ok, refused};
use integration_tests::host::TestHost;
use serde_json::Value;

/// Address and MAC of a port.
fn has(host: &TestHost, port: &str) -> (String, String) {
    let shown: Value =
        serde_json::from_str(&ok(host, ADMIN, &format!("port show lan {port} -o json"))).expect("JSON");
    let text = |key: &str| shown["status"][key].as_str().expect(key).to_owned();
    (text("ipv4_address"), text("mac"))
}

/// What the rules say of an address, in nft's own words.
fn leads_to(host: &TestHost, address: &str) -> bool {
    let map = host.netns.json("nft -j list map inet kvmctl kv_any_forward4");
    map.to_string().contains(address)
}

fn restart(host: &TestHost, uid: u32, machine: &str) {
    ok(host, uid, &format!("vm stop {machine} --force"));
    ok(host, uid, &format!("vm start {machine}"));
}

#[test]
fn nobody_inherits_an_address_a_mac_or_a_forward_of_another() {
    let host = host();
    ok(&host, ADMIN, "network create lan --mode nat --ipv4 10.77.0.1/24");
    for uid in [ALICE, BOB] {
        // The same name, one after the other: what netd sees are ports of vmd's.
        ok(&host, uid, "vm create web --network lan --memory 64M");
        ok(&host, uid, "vm start web");
        if uid == ALICE {
            ok(&host, ADMIN, "forward add lan --protocol tcp --listen 18080 --to web:80");
        }
        let first = has(&host, "web-0");
        restart(&host, uid, "web");
        assert_eq!(has(&host, "web-0"), first, "a machine keeps what it has over a restart");
        assert_eq!(leads_to(&host, &first.0), uid == ALICE);
        if uid == BOB {
            let shown = ok(&host, ADMIN, "forward list lan");
            assert!(shown.contains("pending"), "{shown}");
            let shown: Value =
                serde_json::from_str(&ok(&host, ADMIN, "forward show lan tcp-18080 -o json")).expect("JSON");
            let why = shown["status"]["error"].as_str().expect("error");
            assert!(
                why.contains(&format!("for `{BOB}`")) && why.contains(&format!("for `{ALICE}`")),
                "{why}"
            );
        }
        ok(&host, uid, "vm stop web --force");
        ok(&host, uid, "vm delete web");
        let (address, mac) = first;
        if uid == ALICE {
            refused(&host, BOB, &format!("port create lan x --ip {address}"), "is set aside for a port");
            refused(
                &host,
                BOB,
                &format!("port create lan x --extra-ip {address}"),
                "is set aside for a port",
            );
            refused(&host, BOB, &format!("port create lan x --mac {mac}"), "is set aside for a port");
            ok(&host, BOB, "port create lan web-0");
            assert!(has(&host, "web-0").0 != address && has(&host, "web-0").1 != mac);
            ok(&host, BOB, "port delete lan web-0");
            let words = format!("vm create web --network lan,ip={address} --memory 64M");
            ok(&host, BOB, &words);
            refused(&host, BOB, "vm start web", "is set aside for a port");
            ok(&host, BOB, "vm delete web");
        } else {
            ok(&host, ALICE, "vm create web --network lan --memory 64M");
            ok(&host, ALICE, "vm start web");
            let again = has(&host, "web-0");
            assert!(again.0 != address && again.1 != mac);
            assert!(leads_to(&host, &again.0), "its owner's machine is back, and so is the forward");
            println!("after {address} of another: {} again", again.0);
            // An admin may name what is set aside.
            ok(&host, ADMIN, &format!("port create lan named --ip {address}"));
        }
    }
}

#[test]
fn an_operator_who_makes_and_deletes_ports_takes_nothing_that_is_set_aside_for_others() {
    let host = host();
    ok(&host, ADMIN, "network create lan --mode nat --ipv4 10.77.0.1/29");
    ok(&host, BOB, "port create lan b");
    let bobs = has(&host, "b");
    ok(&host, BOB, "port delete lan b");
    // More than the subnet has addresses, and each within the quota.
    for at in 0..8 {
        ok(&host, ALICE, &format!("port create lan x{at}"));
        ok(&host, ALICE, &format!("port delete lan x{at}"));
    }
    ok(&host, BOB, "port create lan new");
    let new = has(&host, "new");
    println!("set aside for bob: {bobs:?}; a new port of his got {new:?}");
    assert_ne!(new.0, bobs.0);
    ok(&host, BOB, "port create lan b");
    assert_eq!(has(&host, "b"), bobs);
}
