//! firewalld on a D-Bus of its own, started after netd.

use crate::{
    has,
    world::{ALL, World},
};
use integration_tests::wait;
use std::fs;

const BUS: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
  "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=@BUS@</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/> <allow own="*"/> <allow send_destination="*"/> <allow receive_sender="*"/>
  </policy>
</busconfig>
"#;

/// Starts both, and returns the environment that reaches them.
fn start(world: &mut World) -> String {
    let bus = world.host.path("bus");
    fs::write(world.host.path("bus.conf"), BUS.replace("@BUS@", &bus)).expect("bus.conf");
    world.start("bus", "exec dbus-daemon --config-file=$PWD/bus.conf --nofork --nopidfile");
    let environment = format!("export DBUS_SYSTEM_BUS_ADDRESS=unix:path={bus}");
    wait::until("D-Bus", || fs::exists(&bus).is_ok_and(|there| there).then_some(()));
    world.start(
        "firewalld",
        &format!(
            "{environment}; mkdir firewalld /run/firewalld
             cp /etc/firewalld/firewalld.conf firewalld/
             exec firewalld --nofork --nopid --system-config=$PWD/firewalld --log-file=$PWD/firewalld/log"
        ),
    );
    wait::until("firewalld", || {
        world.host.netns.succeeds(&format!("{environment}; firewall-cmd --state")).then_some(())
    });
    environment
}

#[test]
fn firewallds_rules_are_named_and_the_pasted_fix_works() {
    if !has("firewalld", "firewalld") || !has("dbus-daemon", "dbus-daemon") {
        return;
    }
    let mut world = World::new(ALL);
    let environment = start(&mut world);
    let foreign = world.foreign_tables();
    assert!(foreign.contains("table inet firewalld"), "{foreign}\n{}", world.log("firewalld"));

    let broken = world.broken();
    println!("broken by firewalld: {broken:?}");
    for pair in ["nat-a -> L", "L -> routed-b", "lan-a -> lan-b", "isolated-a -> isolated-b"] {
        assert!(broken.iter().any(|b| b.starts_with(pair)), "firewalld does not break {pair}");
    }

    let errors = world.errors();
    let refuses = errors.iter().find(|error| error["place"]["chain"] == "filter_FWD_public");
    let refuses = refuses.unwrap_or_else(|| panic!("{errors:#?}"));
    assert_eq!(refuses["place"]["family"], "inet");
    assert_eq!(refuses["place"]["table"], "firewalld");
    assert_eq!(refuses["place"]["base_chain"], "filter_FORWARD");
    assert_eq!(refuses["place"]["text"], "reject with icmpx admin-prohibited");
    let handle = refuses["place"]["handle"].as_u64().expect("handle");
    let chain = world.host.netns.sh("nft -a list chain inet firewalld filter_FWD_public");
    assert!(chain.contains(&format!("reject with icmpx admin-prohibited # handle {handle}")), "{chain}");
    for error in &errors {
        assert_eq!(error["program"], "firewalld", "{error:#}");
    }
    let why = world.why("routed-b --from 10.99.0.1:80");
    assert_eq!(why["verdict"], "drop");
    let last = why["steps"].as_array().and_then(|steps| steps.last()).expect("steps");
    assert_eq!(last["place"], refuses["place"], "{why:#}");

    let wrong = world.disagreements();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(world.foreign_tables(), foreign, "a diagnosis has changed firewalld's table");
    world.paste(&errors, &environment);
    world.wait_for_all("after the fix");
    let after = world.doctor();
    assert_eq!(after.code, 0, "{}", after.stdout);
    world.passes("routed-b --from 10.99.0.1:80");
}
