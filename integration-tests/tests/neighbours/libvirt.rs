//! libvirt with its default network, started after netd.

use crate::{
    has,
    world::{ALL, World},
};
use integration_tests::{netns::Netns, wait};
use std::fs;

const DEFAULT: &str = "<network><name>default</name><forward mode='nat'/><bridge name='virbr0' stp='on' delay='0'/>
<ip address='192.168.122.1' netmask='255.255.255.0'><dhcp><range start='192.168.122.2' end='192.168.122.99'/></dhcp></ip>
</network>";
const CONFIG: &str = "unix_sock_dir = \"@DIR@/sock\"\nauth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\n";

/// libvirtd with its network driver alone: the others want users and devices of the host.
fn start(world: &mut World) {
    let dir = world.host.path("libvirt");
    fs::create_dir(&dir).expect("folder");
    fs::write(format!("{dir}/libvirtd.conf"), CONFIG.replace("@DIR@", &dir)).expect("libvirtd.conf");
    fs::write(format!("{dir}/default.xml"), DEFAULT).expect("default.xml");
    world.start(
        "libvirt",
        "cd libvirt; mkdir sock lib cache etc drivers
         ln -s /usr/lib/*/libvirt/connection-driver/libvirt_driver_network.so drivers/
         mount --bind lib /var/lib; mount --bind cache /var/cache; mount --bind etc /etc/libvirt
         mkdir -p /var/lib/libvirt/dnsmasq
         export LIBVIRT_DRIVER_DIR=$PWD/drivers
         exec libvirtd -f $PWD/libvirtd.conf -p $PWD/pid",
    );
    let address = format!("network+unix:///system?socket={dir}/sock/libvirt-sock");
    let virsh = |words: &str| world.host.netns.succeeds(&format!("virsh -c '{address}' {words}"));
    wait::until("libvirt", || virsh("uri").then_some(()));
    assert!(virsh(&format!("net-define {dir}/default.xml")), "{}", world.log("libvirt"));
    assert!(virsh("net-start default"), "{}", world.log("libvirt"));
}

#[test]
fn libvirts_network_breaks_nothing_and_is_named_where_it_refuses() {
    if !has("libvirtd", "libvirt-daemon")
        || !has("virsh", "libvirt-clients")
        || !has("dnsmasq", "dnsmasq-base")
    {
        return;
    }
    let mut world = World::new(ALL);
    start(&mut world);
    let foreign = world.foreign_tables();
    assert!(foreign.contains("LIBVIRT_FWI"), "{foreign}\n{}", world.log("libvirt"));
    world.wait_for_all("beside libvirt");
    let healthy = world.doctor();
    assert_eq!(healthy.code, 0, "{}", healthy.stdout);

    // A guest of libvirt's, of which its rules keep everybody away who is not on that network.
    let theirs = Netns::new("theirs");
    world.host.netns.join("vnet0", &theirs, "eth0");
    world.host.netns.sh("ip link set vnet0 master virbr0");
    theirs.sh("ip address add 192.168.122.10/24 dev eth0; ip route add default via 192.168.122.1");
    wait::until("libvirt's guest", || {
        world.host.netns.succeeds("ping -n -c 1 -W 1 192.168.122.10").then_some(())
    });
    assert!(!world.reaches("nat-a", "192.168.122.10"));
    let why = world.why("nat-a 192.168.122.10");
    assert_eq!(why["verdict"], "drop", "{why:#}");
    let last = why["steps"].as_array().and_then(|steps| steps.last()).expect("steps");
    assert_eq!(last["program"], "libvirt", "{why:#}");
    assert_eq!(last["place"]["chain"], "LIBVIRT_FWI");
    assert_eq!(last["place"]["base_chain"], "FORWARD");
    assert!(last["place"]["text"].to_string().contains("virbr0"), "{why:#}");

    assert_eq!(world.foreign_tables(), foreign, "a diagnosis has changed libvirt's tables");
    world.paste(std::slice::from_ref(last), "");
    wait::until("the way to libvirt's guest", || world.reaches("nat-a", "192.168.122.10").then_some(()));
    world.passes("nat-a 192.168.122.10");
}
