//! Docker's engine, started after netd.

use crate::{
    has,
    world::{ALL, World},
};
use integration_tests::wait;

/// The engine with its rules, as a distribution starts it, but with all of its files in the test's folder.
fn start(world: &mut World) {
    world.start(
        "docker",
        "mkdir -p docker/etc; mount --bind docker/etc /etc/docker
         exec dockerd --data-root $PWD/docker/data --exec-root $PWD/docker/exec \
         --pidfile $PWD/docker/pid --host unix://$PWD/docker/sock --cgroup-parent kvtest",
    );
    let socket = world.host.path("docker/sock");
    wait::until("Docker's engine", || {
        world
            .host
            .netns
            .succeeds(&format!("docker --host unix://{socket} version && ip link show docker0"))
            .then_some(())
    });
}

fn is_missing() -> bool {
    !has("dockerd", "docker.io") || !has("iptables", "iptables")
}

/// Docker closes the forward chain only if it is Docker who switches forwarding on.
#[test]
fn docker_breaks_nothing_where_netd_forwards_already() {
    if is_missing() {
        return;
    }
    let mut world = World::new(ALL);
    start(&mut world);
    assert!(world.foreign_tables().contains("DOCKER-USER"), "{}", world.log("docker"));
    world.wait_for_all("beside Docker");
    let healthy = world.doctor();
    assert_eq!(healthy.code, 0, "{}", healthy.stdout);
}

#[test]
fn dockers_policy_is_named_and_the_pasted_fix_works() {
    if is_missing() {
        return;
    }
    let mut world = World::new(&["isolated", "lan"]);
    start(&mut world);
    world.add(&["nat", "routed"]);
    let foreign = world.foreign_tables();
    assert!(foreign.contains("DOCKER-USER"), "{foreign}\n{}", world.log("docker"));

    let broken = world.broken();
    println!("broken by Docker: {broken:?}");
    for pair in ["nat-a -> L (10.99.0.1)", "lan-a -> lan-b", "isolated-a -> isolated-b (10.62.0.12)"] {
        assert!(broken.iter().any(|b| b.starts_with(pair)), "Docker does not break {pair}");
    }

    let errors = world.errors();
    assert_eq!(errors.len(), 1, "{errors:#?}");
    let place = &errors[0]["place"];
    for (field, value) in [
        ("family", "ip"),
        ("table", "filter"),
        ("chain", "FORWARD"),
        ("hook", "forward"),
        ("text", "policy drop"),
    ] {
        assert_eq!(place[field], value, "{errors:#?}");
    }
    assert_eq!(place["policy"], true);
    assert_eq!(errors[0]["program"], "Docker");
    assert_eq!(errors[0]["networks"], serde_json::json!(["isolated", "lan", "nat", "routed"]));

    // One packet: the same place, by reading, and by watching real ones.
    let mut pings = world.netns("nat-a").spawn("ping", &["-n", "-i", "0.2", "10.99.0.1"]);
    let why = world.why("nat-a 10.99.0.1 --trace 2");
    pings.kill().expect("kill");
    pings.wait().expect("wait");
    assert_eq!(why["verdict"], "drop", "{why:#}");
    let last = why["steps"].as_array().and_then(|steps| steps.last()).expect("steps");
    assert_eq!((&last["stage"], &last["program"]), (&"forward".into(), &"Docker".into()), "{why:#}");
    assert_eq!(&last["place"], place);
    assert!(why["trace"]["packet_count"].as_u64() > Some(0), "{why:#}");
    assert!(why["trace"]["lines"].to_string().contains("ip filter FORWARD policy drop"), "{why:#}");
    let unseen = world.why("nat-b 10.99.0.1 --trace 1");
    assert_eq!(unseen["trace"]["packet_count"], 0);

    let wrong = world.disagreements();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(world.foreign_tables(), foreign, "a diagnosis has changed Docker's tables");
    assert!(!world.host.netns.sh("nft list tables").contains("trace"));
    world.paste(&errors, "");
    world.wait_for_all("after the fix");
    let after = world.doctor();
    assert_eq!(after.code, 0, "{}", after.stdout);
    world.passes("nat-a 10.99.0.1");
    world.passes("routed-b --from 10.99.0.1");
    world.passes("isolated-a 10.62.0.12");
}
