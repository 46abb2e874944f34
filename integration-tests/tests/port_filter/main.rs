//! What a hostile guest writes ends at its port, and what an ordinary one writes passes.
//!
//! Frames are written into a tap, and read where they come out: never rules. That an attack is worth its name is a
//! test of its own: without the filter it gets through.

mod attacks;
mod isolated;
mod legitimate;
mod replaced;
mod reserved;
mod scene;

use attacks::{AT_LEAST, Attack, Group};
use integration_tests::{
    frames::{
        BROADCAST,
        arp::Arp,
        ethernet,
        ipv4::Ipv4,
        ipv6::{FRAGMENT, link_local},
        mac, mac_text,
    },
    host::TestHost,
    wait,
    wire::{Wire, same},
};
use scene::{PLACES, Scene};
use std::collections::BTreeMap;

/// Fewer would not be what the project promises.
const ATTACKS: usize = 60;
const LEGITIMATE: usize = 20;

/// All attacks that come out anywhere, and where.
fn through<'a>(scene: &Scene, attacks: impl IntoIterator<Item = &'a Attack>) -> Vec<String> {
    let mut through = Vec::new();
    for Attack { group, what, frame, .. } in attacks {
        let places = Scene::places(&scene.send(&[frame]));
        if !places.is_empty() {
            through.push(format!("{group:?}: {what}, at {}", places.join(", ")));
        }
    }
    through
}

/// All legitimate traffic that does not come out where it has to.
fn lost(scene: &Scene) -> Vec<String> {
    let traffic = legitimate::all(scene);
    assert!(traffic.len() >= LEGITIMATE);
    let mut lost = Vec::new();
    for traffic in traffic {
        let frames: Vec<&[u8]> = traffic.frames.iter().map(Vec::as_slice).collect();
        let heard = scene.send(&frames);
        for place in traffic.places {
            let arrived =
                |frame: &[u8]| heard[*place].iter().any(|seen| same(&anonymous(seen), &anonymous(frame)));
            if !frames.iter().all(|frame| arrived(frame)) {
                lost.push(format!("{}, at {}", traffic.what, PLACES[*place]));
            }
        }
    }
    lost
}

/// A frame without the identification of an IPv6 fragment: bridge netfilter puts fragments together, and takes them
/// apart again with one of its own.
fn anonymous(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if frame[12..14] == ethernet::IPV6.to_be_bytes() && frame.get(20) == Some(&FRAGMENT) {
        frame[58..62].fill(0);
    }
    frame
}

#[test]
fn no_attack_gets_through_and_all_else_does_with_bridge_netfilter_on_and_off() {
    let scene = Scene::nat("");
    let attacks = attacks::all(&scene);
    let mut counts = BTreeMap::new();
    for attack in &attacks {
        *counts.entry(attack.group).or_insert(0) += 1;
    }
    assert!(AT_LEAST.iter().all(|(group, least)| counts[group] >= *least), "{counts:?}");
    assert!(attacks.len() >= ATTACKS);
    for on in scene.host.bridge_netfilter_settings() {
        scene.host.set_bridge_netfilter(on);
        let through = through(&scene, &attacks);
        assert!(through.is_empty(), "{} get through, bridge netfilter {on}: {through:#?}", through.len());
        let lost = lost(&scene);
        assert!(lost.is_empty(), "lost, bridge netfilter {on}: {lost:#?}");
        println!(
            "bridge netfilter {on}: 0 of {} attacks through, {} sorts of traffic whole, {counts:?}",
            attacks.len(),
            legitimate::all(&scene).len()
        );
    }
}

#[test]
fn a_limited_port_is_filtered_all_the_same() {
    let scene = Scene::nat("--rate-out 1G");
    assert_eq!(through(&scene, &attacks::all(&scene)), Vec::<String>::new());
    assert_eq!(lost(&scene), Vec::<String>::new());
}

#[test]
fn without_the_filter_all_attacks_get_through() {
    let scene = Scene::nat("--filter off");
    scene.host.set_bridge_netfilter(false);
    let mut wrong = Vec::new();
    for Attack { group, what, frame, reason, .. } in attacks::all(&scene) {
        let comes_out = !Scene::places(&scene.send(&[&frame])).is_empty();
        if comes_out != reason.is_some() {
            wrong.push(format!("{group:?}: {what} {}", if comes_out { "comes out" } else { "does not" }));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn on_a_bridge_of_the_hosts_declared_addresses_are_checked_and_all_else_always() {
    let scene = Scene::bridged(true);
    let attacks = attacks::all(&scene);
    assert_eq!(through(&scene, &attacks), Vec::<String>::new());
    assert_eq!(lost(&scene), Vec::<String>::new());

    // Which addresses there are is for the LAN to say.
    let scene = Scene::bridged(false);
    let attacks = attacks::all(&scene);
    let of_addresses =
        |attack: &&Attack| attack.of_an_address || matches!(attack.group, Group::Ipv4 | Group::Ipv6);
    let (addresses, others): (Vec<_>, Vec<_>) = attacks.iter().partition(of_addresses);
    assert!(others.len() >= ATTACKS);
    assert_eq!(through(&scene, others), Vec::<String>::new());
    assert_eq!(lost(&scene), Vec::<String>::new());
    assert!(!through(&scene, addresses).is_empty(), "addresses are checked that nobody declared");
}

#[test]
fn each_attack_is_counted_by_its_reason() {
    let scene = Scene::nat("");
    let mut expected = BTreeMap::<&str, u64>::new();
    let attacks = attacks::all(&scene);
    for (group, _) in AT_LEAST {
        let of_group: Vec<&Attack> = attacks.iter().filter(|attack| attack.group == group).collect();
        for reason in of_group.iter().filter_map(|attack| attack.reason) {
            *expected.entry(reason).or_default() += 1;
        }
        scene.send(&of_group.iter().map(|attack| attack.frame.as_slice()).collect::<Vec<_>>());
        // They are shown as they were a moment ago.
        let port = wait::until(&format!("as many drops as attacks up to {group:?}"), || {
            let port = scene.port("a");
            let counts = port["status"]["drops"].as_object()?.values();
            let all: u64 = counts.map(|count| count.as_u64().expect("count")).sum();
            (all >= expected.values().sum()).then_some(port)
        });
        let drops = port["status"]["drops"].as_object().expect("drops");
        let drops: BTreeMap<&str, u64> =
            drops.iter().map(|(reason, count)| (reason.as_str(), count.as_u64().expect("count"))).collect();
        assert_eq!(drops, expected, "after {group:?}");
    }
    assert_eq!(expected.len(), 8, "not every reason was had: {expected:?}");
    assert!(scene.port("b")["status"]["drops"].as_object().is_none_or(serde_json::Map::is_empty));
}

#[test]
fn a_filter_that_is_off_is_shown_and_lets_anything_pass() {
    let scene = Scene::nat("");
    let payload = Ipv4::echo((scene.own.ipv4, scene.neighbour.ipv4)).bytes();
    let attack = scene.own.to(scene.neighbour.mac).tagged(&[(ethernet::VLAN, 5)], ethernet::IPV4, &payload);
    let passes = || !Scene::places(&scene.send(&[&attack])).is_empty();
    let shown = || {
        let list = scene.host.ok("port list n");
        let listed = list.lines().find(|line| line.contains("kvp-a")).expect("port a").to_owned();
        let all = scene.host.ok("port list");
        let all = all.lines().find(|line| line.contains("kvp-a")).expect("port a").to_owned();
        let show = scene.host.ok("port show n a");
        let show = show.lines().find(|line| line.starts_with("Filter")).expect("filter").to_owned();
        assert_eq!(scene.port("a")["spec"]["filter"], show.split_whitespace().last().expect("value"));
        [listed, all, show].map(|line| line.split_whitespace().last().expect("value").to_owned())
    };
    assert!(!passes());
    assert_eq!(shown(), ["on"; 3]);
    scene.host.ok("port update n a --filter off");
    assert!(passes());
    assert_eq!(shown(), ["off"; 3]);
    scene.host.ok("port update n a --filter on");
    assert!(!passes());
    assert_eq!(shown(), ["on"; 3]);
}

/// The filter knows the gateway's link-local address by its form, whatever the host's own links do.
#[test]
fn the_gateways_link_local_address_is_made_from_its_mac() {
    let host = TestHost::new();
    host.netns.sh("sysctl -qw net.ipv6.conf.default.addr_gen_mode=3");
    host.ok("network create n --mode nat --ipv6 fd00:60::1/64");
    let (tap, _) = host.port("n", "a");
    let _wire = Wire::plug(&host.netns, &tap);
    let link = host.netns.json("ip -j link show kvb-n");
    let expected = link_local(mac(link[0]["address"].as_str().expect("MAC")));
    let address = wait::until("a link-local address", || {
        let link = host.netns.json("ip -j address show dev kvb-n");
        let found = link[0]["addr_info"].as_array()?.iter().find(|address| address["scope"] == "link")?;
        Some(found["local"].as_str()?.to_owned())
    });
    assert_eq!(address, expected.to_string());
}

/// Were our checksums wrong, receivers would lose what the filter lets pass, and an attack would prove nothing.
#[test]
fn the_host_understands_our_frames() {
    let scene = Scene::nat("");
    let answers = |frame: &[u8], ethertype: u16, is_answer: fn(&[u8]) -> bool| {
        scene.wire.drain();
        scene.wire.send(frame);
        wait::until("the host's answer", || {
            while let Some(heard) = scene.wire.receive() {
                if heard[12..14] == ethertype.to_be_bytes() && is_answer(&heard) {
                    return Some(());
                }
            }
            None
        });
    };
    let (own, gateway) = (scene.own, scene.gateway);
    // ARP's reply; and since the host knows us then, echo's.
    let request = Arp::request(own.arp(), gateway.ipv4).bytes();
    let request = own.to(BROADCAST).frame(ethernet::ARP, &request);
    answers(&request, ethernet::ARP, |frame| frame[20..22] == [0, 2]);
    let echo = own.ipv4(gateway.mac, &Ipv4::echo((own.ipv4, gateway.ipv4)));
    answers(&echo, ethernet::IPV4, |frame| frame[23] == 1 && frame[34] == 0);
    for traffic in legitimate::all(&scene) {
        match traffic.what {
            "a question for the gateway" => {
                answers(&traffic.frames[0], ethernet::IPV6, |frame| frame[20] == 58 && frame[54] == 136);
            }
            "an echo request to the gateway" => {
                // The host asks for our MAC before it answers.
                scene.host.netns.sh(&format!(
                    "ip neigh replace {} lladdr {} dev kvb-n nud permanent",
                    own.ipv6,
                    mac_text(own.mac)
                ));
                answers(&traffic.frames[0], ethernet::IPV6, |frame| frame[20] == 58 && frame[54] == 129);
            }
            _ => {}
        }
    }
}
