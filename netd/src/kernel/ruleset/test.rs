//! The rules as they are written, and as nft prints them.
//!
//! `testdata/listing-*.json` is what nft 1.0.6 prints after the transaction for `example()`. All are written anew by `cargo test -p netd -- --exact` of the first test with
//! `NETD_WRITE_TESTDATA=1`; read the difference before committing it.

use super::{super::Element, *};
use crate::{
    kernel::{Allow, Allowed, Peer, Place, With, netns::in_own_netns},
    model::{Direction, Forwarding, IfName, Protocol},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::prelude::*;
use serde_json::json;
use shared::mac::Mac;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::{
    fmt::Debug,
    fs,
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
    str::FromStr,
};

const INSTANCE: &str = "0123456789abcdef0123456789abcdef";

fn forwarding<A: FromStr<Err: Debug>>(
    listen: Option<&str>,
    port: u16,
    to: &str,
    to_port: u16,
) -> Forwarding<A> {
    let listen = listen.map(|listen| listen.parse().unwrap());
    Forwarding { protocol: Protocol::Tcp, listen, port, to: to.parse().unwrap(), to_port }
}

/// Every sort of element once.
fn example() -> Elements {
    let name = |text: &str| text.parse().unwrap();
    let protocols = |first, last| Allowed::Protocols { first, last };
    let ports = |protocol, first, last| Allowed::Ports { protocol, first, last };
    let mut elements = BTreeSet::from([
        Element::IsolatedBridge(name("kvb-lab")),
        Element::GuestBridge(name("kvb-lan")),
        Element::GuestBridge(name("kvb-wan")),
        Element::NatBridge(name("kvb-lan")),
        Element::RoutedBridge(name("kvb-wan")),
        Element::AnyUplink(name("kvb-lan")),
        Element::Uplink(name("kvb-wan"), name("eth1")),
        Element::Subnet4(name("kvb-lan"), "192.168.100.0/24".parse().unwrap()),
        Element::Subnet4(name("kvb-wan"), "203.0.113.0/25".parse().unwrap()),
        Element::Subnet6(name("kvb-lan"), "fd00:1::/64".parse().unwrap()),
        Element::BridgeMac(name("kvb-lan"), "52:54:00:00:00:fe".parse().unwrap()),
        Element::Gateway4(name("kvb-lan"), "192.168.100.1".parse().unwrap()),
        Element::Gateway6(name("kvb-lan"), "fd00:1::1".parse().unwrap()),
        Element::FilteredTap(name("kvp-web")),
        Element::TapMac(name("kvp-web"), "52:54:00:12:34:56".parse().unwrap()),
        Element::IsolatedTap(name("kvp-quiet")),
        Element::Tap(name("kvp-web")),
        Element::AnyAddress4(name("kvp-quiet")),
        Element::AnyAddress6(name("kvp-quiet")),
        Element::TapAddress4(
            name("kvp-web"),
            "52:54:00:12:34:56".parse().unwrap(),
            "192.168.100.2".parse().unwrap(),
        ),
        Element::TapAddress6(name("kvp-web"), "fd00:1::5054:ff:fe12:3456".parse().unwrap()),
        // Of leading zeros, which a number of raw bytes has not.
        Element::TapAddress6(name("kvp-web"), "64:ff9b::1".parse().unwrap()),
        Element::Apart4(name("kvb-lan"), "192.168.100.2".parse().unwrap()),
        Element::Apart6(name("kvb-lan"), "fd00:1::2".parse().unwrap()),
        Element::ReflectedTap(name("kvp-web")),
        Element::Forward4(forwarding(Some("203.0.113.9"), 8080, "192.168.100.2", 80)),
        Element::Forward4(forwarding(None, 443, "192.168.100.2", 443)),
        Element::Forward6(forwarding(Some("2001:db8::9"), 8080, "fd00:1::2", 80)),
        Element::Forward6(Forwarding { protocol: Protocol::Udp, ..forwarding(None, 53, "fd00:1::2", 5353) }),
        Element::Open4(name("kvb-lan"), "192.168.100.2".parse().unwrap(), Protocol::Tcp, 80),
        Element::Open6(name("kvb-lan"), "fd00:1::2".parse().unwrap(), Protocol::Udp, 5353),
        Element::StationTap(name("kvp-quiet")),
        Element::TapProfile(name("kvp-web"), 1),
        Element::TapProfile(name("kvp-quiet"), 0xfffe),
    ]);
    for direction in [Direction::In, Direction::Out] {
        elements.insert(Element::GroupedTap(direction, name("kvp-web")));
        for address in ["192.168.100.2", "fd00:1::5054:ff:fe12:3456"] {
            let address = address.parse().unwrap();
            elements.insert(Element::GroupedAddress(direction, name("kvb-lan"), address));
            elements.insert(Element::AddressProfile(name("kvb-lan"), address, 0x1a));
        }
        let reaches = [
            ("0.0.0.0/0", protocols(1, 1)),
            ("10.0.0.0/8", protocols(2, 255)),
            ("192.0.2.7/32", protocols(17, 17)),
            ("::/0", protocols(58, 58)),
            ("fd00:1::/64", protocols(1, 57)),
            ("0.0.0.0/0", ports(6, 22, 22)),
            ("10.0.0.0/8", ports(6, 1024, 2047)),
            ("192.0.2.7/32", ports(17, 0, 65535)),
            ("::/0", ports(17, 53, 53)),
            ("fd00:1::1/128", ports(6, 1, 1023)),
            ("192.0.2.8/32", ports(6, 23, 23)),
        ];
        for place in [Place::Bridge, Place::Host] {
            let mut allow = |remote, what| {
                elements.insert(Element::Allow(place, Allow { direction, profile: 1, remote, what }));
            };
            for (net, what) in reaches {
                allow(With::Net(net.parse().unwrap()), what);
            }
            for what in [protocols(1, 1), protocols(2, 255), ports(17, 53, 53), ports(6, 1, 1023)] {
                allow(With::Profile(0xfffe), what);
            }
            for address in ["192.168.100.2", "fd00:1::5054:ff:fe12:3456"] {
                let address = address.parse().unwrap();
                elements.insert(Element::Peer(place, Peer { direction, profile: 1, address, peer: 0x1a }));
            }
        }
    }
    Elements(elements)
}

fn testdata(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/kernel/testdata").join(file)
}

/// One object a line.
fn lines(value: &Value) -> String {
    let objects = value.pointer("/nftables").and_then(Value::as_array).expect("nft's own form");
    let lines: Vec<_> = objects.iter().map(|object| format!("    {object}")).collect();
    format!("{{\n  \"nftables\": [\n{}\n  ]\n}}\n", lines.join(",\n"))
}

/// Compares with a file, or writes it if told to.
fn assert_same_as_file(file: &str, now: &str) {
    if std::env::var_os("NETD_WRITE_TESTDATA").is_some() {
        fs::write(testdata(file), now).unwrap();
    }
    // By value: whether serde_json keeps the order of keys depends on what else is built with it.
    let objects = |text: &str| -> Vec<Value> {
        serde_json::from_str::<Value>(text).unwrap()["nftables"].as_array().unwrap().clone()
    };
    let (golden, now) = (objects(&fs::read_to_string(testdata(file)).unwrap()), objects(now));
    for (at, (golden, now)) in golden.iter().zip(&now).enumerate() {
        assert_eq!(golden, now, "{file}, object {at}");
    }
    assert_eq!(golden.len(), now.len(), "{file}");
}

fn listing(file: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(testdata(file)).unwrap()).unwrap()
}

fn json_of(batch: Batch<'static>) -> Value {
    serde_json::to_value(batch.to_nftables()).unwrap()
}

fn nft(arguments: &[&str], input: &[u8]) -> Value {
    let mut child = Command::new("nft")
        .args(arguments)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("this test needs nft");
    let stdin = child.stdin.take();
    // nft does not read what it was not told to.
    if !input.is_empty() {
        stdin.unwrap().write_all(input).unwrap();
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "nft {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status().expect("this test needs ip");
    assert!(status.success(), "ip {arguments:?}");
}

fn load(batch: Batch<'static>) {
    nft(&["-j", "-f", "-"], json_of(batch).to_string().as_bytes());
}

fn load_all(elements: &Elements) {
    nft(&["-f", "-"], replace(INSTANCE, elements, &Traffic::default()).as_bytes());
}

fn list(family: &str) -> Value {
    nft(&["-j", "list", "table", family, TABLE], &[])
}

/// Both tables read back.
fn read_both() -> (Listing, Listing) {
    (read(&list("bridge")), read(&list("inet")))
}

#[test]
fn the_transaction_and_its_listings_are_the_recorded_ones() {
    let (bridge, inet) = in_own_netns(|| {
        load_all(&example());
        (list("bridge"), list("inet"))
    });
    for (file, mut listing) in [("listing-bridge.json", bridge), ("listing-inet.json", inet)] {
        // Handles and the release name differ from host to host.
        forget_changing(&mut listing);
        listing
            .pointer_mut("/nftables")
            .and_then(Value::as_array_mut)
            .unwrap()
            .retain(|o| o.get("metainfo").is_none());
        // The order of a set's members is the kernel's.
        for object in listing.pointer_mut("/nftables").and_then(Value::as_array_mut).unwrap() {
            for members in ["/set/elem", "/map/elem"] {
                if let Some(members) = object.pointer_mut(members).and_then(Value::as_array_mut) {
                    members.sort_by_key(Value::to_string);
                }
            }
        }
        assert_same_as_file(file, &lines(&listing));
    }
}

#[test]
fn nft_takes_the_transaction_twice_and_prints_what_was_asked() {
    let (first, second) = in_own_netns(|| {
        nft(&["-c", "-f", "-"], replace(INSTANCE, &example(), &Traffic::default()).as_bytes());
        load_all(&example());
        let first = read_both();
        load_all(&example());
        (first, read_both())
    });
    assert_eq!(first, second, "the rules read the same every time they are written");
    for listing in [&first.0, &first.1] {
        assert_eq!(listing.instance.as_deref(), Some(INSTANCE));
    }
    let both = Elements(first.0.elements.0.union(&first.1.elements.0).cloned().collect());
    assert_eq!(both, example());
}

#[test]
fn members_come_and_go_in_a_running_table() {
    let (rules_only, full, emptied, again) = in_own_netns(|| {
        load_all(&Elements::default());
        let rules_only = read_both();
        load(change(&Elements::default(), &example()));
        // Present ones are passed over, and so are missing ones that are removed.
        load(change(&Elements::default(), &example()));
        let full = read_both();
        load(change(&example(), &Elements::default()));
        load(change(&example(), &Elements::default()));
        let emptied = read_both();
        load(change(&example(), &example()));
        let again = read_both();
        load(remove());
        load(remove());
        let left = nft(&["-j", "list", "ruleset"], &[]);
        assert_eq!(left["nftables"].as_array().map(Vec::len), Some(1), "{left}");
        (rules_only, full, emptied, again)
    });
    assert_eq!(rules_only.0.rules, full.0.rules, "members do not show in the rules");
    assert_eq!(rules_only.1.rules, full.1.rules, "members do not show in the rules");
    assert_eq!(rules_only, emptied);
    assert_eq!(full, again);
}

#[test]
fn a_port_of_the_host_leads_elsewhere_in_one_transaction() {
    let to = |address: &str| Elements([Element::Forward4(forwarding(None, 80, address, 80))].into());
    let (before, now) = in_own_netns(move || {
        load_all(&to("10.0.0.2"));
        let before = read_both();
        load(change(&to("10.0.0.2"), &to("10.0.0.3")));
        (before, read_both())
    });
    assert_eq!((before.1.elements, now.1.elements), (to("10.0.0.2"), to("10.0.0.3")));
    assert_eq!(before.1.rules, now.1.rules, "where a map leads is no rule");
}

#[test]
fn recorded_listings_read_as_the_example() {
    let bridge = read(&listing("listing-bridge.json"));
    let inet = read(&listing("listing-inet.json"));
    assert_eq!(Elements(bridge.elements.0.union(&inet.elements.0).cloned().collect()), example());
    assert_eq!((bridge.instance.as_deref(), inet.instance.as_deref()), (Some(INSTANCE), Some(INSTANCE)));
}

/// Where in the listing the first object of that sort and name is.
fn find<'a>(listing: &'a mut Value, sort: &str, wanted: impl Fn(&Value) -> bool) -> &'a mut Value {
    let objects = listing.pointer_mut("/nftables").and_then(Value::as_array_mut).unwrap();
    objects
        .iter_mut()
        .filter_map(|object| object.get_mut(sort))
        .find(|object| wanted(object))
        .expect("is there")
}

/// What `read` makes of the recorded inet listing after a change.
fn after(change: impl FnOnce(&mut Value)) -> Listing {
    let mut changed = listing("listing-inet.json");
    change(&mut changed);
    read(&changed)
}

#[test]
fn counters_and_handles_are_no_difference() {
    let same = after(|listing| {
        let rule = find(listing, "rule", |rule| rule.to_string().contains("counter"));
        rule["handle"] = json!(4711);
        let counter =
            rule["expr"].as_array_mut().unwrap().iter_mut().find_map(|e| e.get_mut("counter")).unwrap();
        *counter = json!({"packets": 12, "bytes": 3456});
        let metainfo = json!({"metainfo": {"version": "9.9.9"}});
        listing["nftables"].as_array_mut().unwrap().insert(0, metainfo);
    });
    assert_eq!(same, read(&listing("listing-inet.json")));
}

#[test]
fn every_change_of_the_rules_is_a_difference() {
    let good = read(&listing("listing-inet.json"));
    let changed = |what: &str, change: &dyn Fn(&mut Value)| {
        let now = after(change);
        assert_ne!(now.rules, good.rules, "{what}");
    };
    let accept_all = json!({"rule": {"family": "inet", "table": TABLE, "chain": "kv_forward", "expr": [{"accept": null}]}});
    changed("a rule added", &|l| l["nftables"].as_array_mut().unwrap().push(accept_all.clone()));
    changed("a rule removed", &|l| drop(l["nftables"].as_array_mut().unwrap().pop()));
    changed("two rules exchanged", &|l| {
        let objects = l["nftables"].as_array_mut().unwrap();
        let last = objects.len() - 1;
        objects.swap(last, last - 1);
    });
    changed("a drop made an accept", &|l| {
        let rule = find(l, "rule", |rule| rule.to_string().contains("drop"));
        let statement = rule["expr"].as_array_mut().unwrap().last_mut().unwrap();
        *statement = json!({"accept": null});
    });
    changed("a policy", &|l| find(l, "chain", |c| c["name"] == "kv_forward")["policy"] = json!("drop"));
    changed("a priority", &|l| find(l, "chain", |c| c["name"] == "kv_forward")["prio"] = json!(10));
    changed("the flags of a set", &|l| {
        find(l, "set", |s| s["name"] == "kv_guest")["flags"] = json!(["timeout"])
    });
    // `kv_same` is implied by others: what is missing or too much there shows in the rules.
    changed("a member of kv_same removed", &|l| {
        drop(find(l, "set", |s| s["name"] == "kv_same")["elem"].as_array_mut().unwrap().pop());
    });
    changed("a member of kv_same added", &|l| {
        let pair = json!({"concat": ["eth0", "eth1"]});
        find(l, "set", |s| s["name"] == "kv_same")["elem"].as_array_mut().unwrap().push(pair);
    });
    changed("a member of a map that is not ours", &|l| {
        let pair = json!([{"concat": ["sctp", 80]}, {"concat": ["10.0.0.2", 80]}]);
        find(l, "map", |m| m["name"] == "kv_any_forward4")["elem"].as_array_mut().unwrap().push(pair);
    });
    changed("a member that is not ours", &|l| {
        let set = find(l, "set", |s| s["name"] == "kv_guest");
        set["elem"].as_array_mut().unwrap().push(json!("a name that is no name"));
    });
    let fewer = after(|l| {
        let set = find(l, "set", |s| s["name"] == "kv_routed");
        set["elem"].as_array_mut().unwrap().clear();
    });
    assert_eq!(fewer.rules, good.rules, "a member of another set is no rule");
    assert_eq!(good.elements.0.difference(&fewer.elements.0).count(), 1);
}

#[test]
fn a_table_without_our_mark_has_no_instance() {
    let foreign = after(|l| {
        l["nftables"].as_array_mut().unwrap().retain(|object| !object.to_string().contains(MARK));
    });
    assert_eq!(foreign.instance, None);
}

#[test]
fn traffic_is_no_difference_and_goes_with_its_tap() {
    let tap = "kvp-web";
    let (before, during, counted, kept, after, anew) = in_own_netns(move || {
        ip(&["tuntap", "add", tap, "mode", "tap"]);
        load_all(&example());
        let before = read_both();
        let text = format!(
            "add element bridge {TABLE} kv_drop_mac {{ \"{tap}\" counter packets 7 bytes 420 }}
             add element bridge {TABLE} kv_seen4 {{ \"{tap}\" . 192.168.100.2 }}
             add element bridge {TABLE} kv_flow6 {{ \"{tap}\" . fd00:1::2 . fd00:1::3 . 4000 . 53 }}\n"
        );
        nft(&["-f", "-"], text.as_bytes());
        let (during, counted) = (read_both(), traffic(&list("bridge")));
        nft(&["-f", "-"], replace(INSTANCE, &example(), &counted).as_bytes());
        let kept = traffic(&list("bridge"));
        load(change(&Elements([Element::Tap(tap.parse().unwrap())].into()), &Elements::default()));
        let after = traffic(&list("bridge"));
        ip(&["link", "delete", tap]);
        ip(&["tuntap", "add", tap, "mode", "tap"]);
        (before, during, counted, kept, after, traffic(&list("bridge")))
    });
    assert_eq!(counted, kept, "new rules do not forget");
    assert_eq!(before.0.rules, during.0.rules);
    let of_tap = &counted.taps[&tap.parse().unwrap()];
    assert_eq!(of_tap.drops, [("mac".to_owned(), 7)].into());
    assert_eq!(of_tap.seen, ["192.168.100.2".parse().unwrap()].into());
    let flow = ("fd00:1::2".parse().unwrap(), "fd00:1::3".parse().unwrap(), 4000, 53);
    assert_eq!(of_tap.flows, [flow].into());
    assert_eq!(after.taps.len(), 1, "an address seen goes by itself, after its time");
    assert!(after.taps[&tap.parse().unwrap()].drops.is_empty());
    assert_eq!(anew.taps, [].into(), "a tap of the same name has not been seen");
}

/// An element of a sort, out of what chance gave.
fn element_of(sort: usize, [a, b]: [IfName; 2], v4: Ipv4Addr, v6: Ipv6Addr, mac: Mac) -> Element {
    let length = 1 + v6.octets()[0] % 32;
    let [_, _, x, y] = v4.octets();
    let (port, to_port) = (u16::from_be_bytes([x, y]), u16::from_be_bytes([y, x]));
    match sort {
        0 => Element::IsolatedBridge(a),
        1 => Element::GuestBridge(a),
        2 => Element::NatBridge(a),
        3 => Element::RoutedBridge(a),
        4 => Element::AnyUplink(a),
        5 => Element::Uplink(a, b),
        6 => Element::Subnet4(a, Ipv4Net::new(v4, length).unwrap().trunc()),
        7 => Element::Subnet6(a, Ipv6Net::new(v6, length * 4).unwrap().trunc()),
        8 => Element::Gateway4(a, v4),
        9 => Element::Gateway6(a, v6),
        10 => Element::FilteredTap(a),
        11 => Element::TapMac(a, mac),
        12 => Element::IsolatedTap(a),
        13 => Element::Tap(a),
        14 => Element::AnyAddress4(a),
        15 => Element::AnyAddress6(a),
        16 => Element::TapAddress4(a, mac, v4),
        17 => Element::TapAddress6(a, v6),
        18 => Element::Apart4(a, v4),
        19 => Element::Apart6(a, v6),
        20 => Element::ReflectedTap(a),
        21 => Element::Open4(a, v4, Protocol::Udp, to_port),
        22 => Element::Open6(a, v6, Protocol::Tcp, to_port),
        23 => Element::Forward4(Forwarding { protocol: Protocol::Tcp, listen: None, port, to: v4, to_port }),
        24 => Element::Forward6(Forwarding { protocol: Protocol::Udp, listen: None, port, to: v6, to_port }),
        25 => {
            let listen = Some(Ipv4Addr::from(!u32::from(v4)));
            Element::Forward4(Forwarding { protocol: Protocol::Udp, listen, port, to: v4, to_port })
        }
        26 => {
            let listen = Some(Ipv6Addr::from(!u128::from(v6)));
            Element::Forward6(Forwarding { protocol: Protocol::Tcp, listen, port, to: v6, to_port })
        }
        27 => Element::StationTap(a),
        28 => Element::GroupedTap(direction_of(v4), a),
        29 => Element::TapProfile(a, port_of(v6)),
        30 => Element::GroupedAddress(direction_of(v4), a, address_of(v4, v6)),
        31 => Element::AddressProfile(a, address_of(v4, v6), port_of(v6)),
        32 => Element::Allow(place_of(mac), allow_of(v4, v6)),
        _ => Element::Peer(place_of(mac), peer_of(v4, v6)),
    }
}

fn direction_of(v4: Ipv4Addr) -> Direction {
    if v4.octets()[0].is_multiple_of(2) { Direction::In } else { Direction::Out }
}

fn address_of(v4: Ipv4Addr, v6: Ipv6Addr) -> IpAddr {
    if v4.octets()[1].is_multiple_of(2) { v4.into() } else { v6.into() }
}

fn place_of(mac: Mac) -> Place {
    if mac.bytes()[1].is_multiple_of(2) { Place::Bridge } else { Place::Host }
}

fn port_of(v6: Ipv6Addr) -> u16 {
    v6.segments()[1]
}

fn peer_of(v4: Ipv4Addr, v6: Ipv6Addr) -> Peer {
    let (direction, address) = (direction_of(v4), address_of(v4, v6));
    Peer { direction, profile: port_of(v6).max(1), address, peer: v6.segments()[2] }
}

fn allow_of(v4: Ipv4Addr, v6: Ipv6Addr) -> Allow {
    let net = |length: u8| IpNet::new(address_of(v4, v6), length).unwrap().trunc();
    let [first, last, length, protocol] = v4.octets();
    let what = if protocol % 2 == 0 {
        Allowed::Protocols { first: first.min(last), last: first.max(last) }
    } else {
        let (a, b) = (v6.segments()[2], v6.segments()[3]);
        Allowed::Ports { protocol: if length % 2 == 0 { 6 } else { 17 }, first: a.min(b), last: a.max(b) }
    };
    let peer = v6.segments()[4];
    let remote = if peer % 3 == 1 { With::Profile(peer) } else { With::Net(net(length % 33)) };
    Allow { direction: direction_of(v4), profile: port_of(v6), remote, what }
}

prop_compose! {
    fn any_element()(sort in 0..34_usize, a in "[a-z][a-z0-9.-]{0,14}", b in "[a-z][a-z0-9.-]{0,14}", ip in any::<u32>(), ip6 in any::<u128>(), mac in any::<[u8; 5]>()) -> Element {
        let mac = Mac::from_bytes([2, mac[0], mac[1], mac[2], mac[3], mac[4]]).unwrap();
        element_of(sort, [a.parse().unwrap(), b.parse().unwrap()], ip.into(), ip6.into(), mac)
    }
}

proptest! {
    #[test]
    fn what_is_written_reads_back(element_ in any_element()) {
        let first = &members(&element_)[0];
        let one = sets::objects(&Elements([element_.clone()].into()));
        let listed = one
            .iter()
            .map(|object| serde_json::to_value(object).unwrap())
            .find(|object| object["element"]["name"] == first.set)
            .unwrap();
        let read = element(first.set, &fields(&listed["element"]["elem"][0]));
        prop_assert_eq!(read, Some(element_.clone()));
        for member in &members(&element_)[1..] {
            let fields: Vec<String> = member.key().1.split(" . ").map(str::to_owned).collect();
            prop_assert_eq!(element(member.set, &fields), None, "{}", member.set);
        }
    }
}
