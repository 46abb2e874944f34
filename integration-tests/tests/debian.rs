//! A Debian machine as clouds have it finds everything by itself.

use integration_tests::{client::resolver, debian, guest::Guest, host::TestHost, wait};
use std::time::Instant;

#[test]
fn a_debian_machine_needs_no_configuration_on_a_nat_network() {
    let host = TestHost::with_vmd();
    // A name outside, at an address outside.
    host.lan.sh("ip address add 203.0.113.9/32 dev lo; ip address add 2001:db8:9::9/128 dev lo nodad");
    let _resolver = resolver(&host.lan);
    host.ok("network create n --mode nat --ipv4 10.60.0.1/24 --ipv6 fd00:60::1/64 --dns 10.99.0.1");
    let other = host.ok_json("port create n other")["status"].clone();
    let text = |key: &str| other[key].as_str().expect(key).to_owned();
    let neighbour = Guest::plug(&host.netns, &text("interface"), &text("mac"));
    neighbour.dhcp4(&[]).expect("a lease");
    neighbour.has_address(&text("ipv6_address"));

    let begin = Instant::now();
    let mut console = debian::boot(&host, "", &["--memory", "512M", "--network", "n"]);
    println!("Debian is up after {:?}", begin.elapsed());

    let port =
        host.ok_json("port list n").as_array().expect("ports").iter().find(|p| p["name"] != "other").cloned();
    let port = port.expect("the machine's port");
    let own = |key: &str| port["status"][key].as_str().expect(key).to_owned();
    for address in [own("ipv4_address"), own("ipv6_address")] {
        wait::until(&format!("{address} in the machine"), || {
            let shown = console.ok("ip -o address show scope global");
            let line = shown.lines().find(|line| line.contains(&format!(" {address}/")))?;
            (!line.contains("tentative")).then_some(())
        });
    }
    // The bare name of a guest is for clients that use the domain they are told; networkd does not by itself.
    for (name, v4, v6) in [
        ("other.n.internal", text("ipv4_address"), text("ipv6_address")),
        ("outside.test", "203.0.113.9".to_owned(), "2001:db8:9::9".to_owned()),
    ] {
        for (database, address, family) in [("ahostsv4", &v4, "-4"), ("ahostsv6", &v6, "-6")] {
            wait::until(&format!("{name} to be {address}"), || {
                let (found, answers) = console.run(&format!("getent {database} {name}"));
                (found && answers.contains(address.as_str())).then_some(())
            });
            wait::until(&format!("an answer from {name} ({family})"), || {
                console.run(&format!("ping -n {family} -c 1 -W 2 {name}")).0.then_some(())
            });
        }
    }
    // It is known by its own name too, and netd knows how.
    assert_eq!(neighbour.dig("10.60.0.1", "deb.n.internal"), [own("ipv4_address")]);
    assert_eq!(neighbour.dig("10.60.0.1", "deb.n.internal AAAA"), [own("ipv6_address")]);
    let leases = host.ok("network leases n");
    assert!(leases.contains(&own("ipv4_address")), "{leases}");
    println!("{}", console.ok("systemd-analyze"));
}
