//! What the rules of others do with packets of guests.

use super::*;
use crate::diagnose::{
    packet::{Fact, Truth},
    program::{self, Hit, Hits, Program},
    rules::{Field, Place},
    traced,
    why::StepVerdict,
};
use crate::kernel::TraceFlow;
use proptest::prelude::*;
use serde_json::json;

fn dropped(judgement: &Judgement) -> &Place {
    match judgement {
        Judgement::Drop { by } => by,
        other => panic!("{other:#?}"),
    }
}

fn passes(judgement: &Judgement) -> bool {
    matches!(judgement, Judgement::Pass { .. })
}

fn answer(iif: &str, oif: &str) -> Packet {
    let ends = ["10.61.0.11", "1.1.1.1"].map(|address| address.parse().expect("address"));
    Packet::answer(&flow(ends, TCP), true).by(iif, Some(oif))
}

fn hits(hit: Hit) -> Hits {
    Hits::from([(name("kvb-lan"), hit)])
}

#[test]
fn dockers_policy_drops_guests_and_the_fix_goes_into_its_own_chain() {
    let ruleset = docker();
    for kind in [TCP, UDP, ICMP] {
        let met = at(&ruleset, Hook::Forward, out(kind));
        let place = dropped(last(&met));
        assert_eq!(place.to_string(), "table ip filter, chain FORWARD, policy drop");
        assert_eq!(program::of(&ruleset, place), Program::Docker);
        assert_eq!(
            program::fix(&ruleset, place, &hits(Hit { out: true, inward: true, ..Hit::default() })),
            "iptables -I DOCKER-USER -i kvb-lan -j ACCEPT\niptables -I DOCKER-USER -o kvb-lan -j ACCEPT"
        );
        // Docker needs bridge netfilter itself: it is not switched off.
        assert_eq!(
            program::fix(&ruleset, place, &hits(Hit { same: true, ..Hit::default() })),
            "iptables -I DOCKER-USER -i kvb-lan -o kvb-lan -j ACCEPT"
        );
    }
}

#[test]
fn what_nft_shows_as_xt_only_is_read_from_iptables() {
    let ruleset = docker();
    let met = at(&ruleset, Hook::Forward, answer("up0", "docker0"));
    let Judgement::Pass { by, .. } = last(&met) else { panic!("{met:#?}") };
    assert_eq!(by.handle, Some(14));
    // Without iptables nobody can tell.
    let unread = recorded(include_str!("../testdata/docker.nft.json"), "");
    let met = at(&unread, Hook::Forward, answer("up0", "docker0"));
    let Judgement::Unsure { drop: Some(drop), because } = last(&met) else { panic!("{met:#?}") };
    assert!(drop.policy);
    assert_eq!(because.handle, Some(14));
}

#[test]
fn a_type_of_address_is_read_from_iptables() {
    let ruleset = docker();
    let to = |kind: &'static [&'static str]| {
        let packet = out(TCP).with(Field::DestinationType, Fact::Words(kind));
        at(&ruleset, Hook::Prerouting, packet)
    };
    assert!(passes(last(&to(&["unicast"]))) && passes(last(&to(&["local"]))));
}

#[test]
fn firewallds_zone_refuses_guests_and_lets_answers_through() {
    let ruleset = firewalld();
    let met = at(&ruleset, Hook::Forward, out(TCP));
    let place = dropped(last(&met));
    assert_eq!((place.chain.as_str(), place.handle), ("filter_FWD_public", Some(101)));
    assert_eq!(place.text, "reject with icmpx admin-prohibited");
    assert_eq!((place.base.as_str(), place.priority), ("filter_FORWARD", 10));
    assert_eq!(program::of(&ruleset, place), Program::Firewalld);
    let fix = program::fix(&ruleset, place, &hits(Hit { out: true, ..Hit::default() }));
    assert!(fix.ends_with("\nfirewall-cmd --zone=trusted --change-interface=kvb-lan"), "{fix}");
    let fix = program::fix(&ruleset, place, &hits(Hit { inward: true, opened: true, ..Hit::default() }));
    assert!(
        fix.contains("--add-egress-zone=kvmctl-routed") && fix.ends_with("\nfirewall-cmd --reload"),
        "{fix}"
    );
    // A bridge that leads to the LAN must not become trusted for the sake of its own guests.
    let fix = program::fix(&ruleset, place, &hits(Hit { same: true, ..Hit::default() }));
    assert_eq!(
        fix,
        "sysctl -w net.bridge.bridge-nf-call-iptables=0\nsysctl -w net.bridge.bridge-nf-call-ip6tables=0"
    );
    let own = Hit { same: true, own_netfilter: true, ..Hit::default() };
    assert_eq!(
        program::fix(&ruleset, place, &hits(own)),
        "ip link set dev kvb-lan type bridge nf_call_iptables 0 nf_call_ip6tables 0"
    );
    assert!(passes(last(&at(&ruleset, Hook::Forward, answer("up0", "kvb-lan")))));
}

#[test]
fn firewallds_reverse_path_rule_is_understood() {
    let ends = ["fd00:61::11", "2606:4700::1"].map(|address| address.parse().expect("address"));
    let packet = |exists| {
        Packet::first(&flow(ends, TCP)).by("kvb-lan", None).with(Field::ReversePath, Fact::Flag(exists))
    };
    let ruleset = firewalld();
    assert!(passes(last(&at(&ruleset, Hook::Prerouting, packet(true)))));
    assert_eq!(dropped(last(&at(&ruleset, Hook::Prerouting, packet(false)))).handle, Some(52));
}

#[test]
fn firewalld_keeps_guests_from_dns_but_not_from_echo() {
    let ruleset = firewalld();
    let ends = ["10.61.0.11", "10.61.0.1"].map(|address| address.parse().expect("address"));
    let to_host = |kind| Packet::first(&flow(ends, kind)).by("kvb-lan", None);
    let met = at(&ruleset, Hook::Input, to_host((Protocol::Udp, Some(53))));
    assert_eq!(dropped(last(&met)).handle, Some(72));
    assert!(passes(last(&at(&ruleset, Hook::Input, to_host(ICMP)))));
    assert!(passes(last(&at(&ruleset, Hook::Input, to_host((Protocol::Tcp, Some(22)))))));
}

#[test]
fn ufw_drops_what_its_own_chains_do_not_accept() {
    let ruleset = ufw();
    let met = at(&ruleset, Hook::Forward, out(TCP));
    let place = dropped(last(&met));
    assert_eq!(place.to_string(), "table ip filter, chain FORWARD, policy drop");
    assert_eq!(program::of(&ruleset, place), Program::Ufw);
    assert_eq!(
        program::fix(&ruleset, place, &hits(Hit { out: true, inward: true, ..Hit::default() })),
        "ufw route allow in on kvb-lan\nufw route allow out on kvb-lan"
    );
    // ufw forwards echo requests, and answers.
    assert!(passes(last(&at(&ruleset, Hook::Forward, out(ICMP)))));
    assert!(passes(last(&at(&ruleset, Hook::Forward, answer("up0", "kvb-lan")))));
    let ends = ["fd00:61::11", "2606:4700::1"].map(|address| address.parse().expect("address"));
    let v6 = Packet::first(&flow(ends, TCP)).by("kvb-lan", Some("up0"));
    assert_eq!(dropped(last(&at(&ruleset, Hook::Forward, v6))).family, Family::Ip6);
}

#[test]
fn ufws_input_drops_dhcp_and_the_fix_opens_that_port_alone() {
    let ruleset = ufw();
    let ends = ["0.0.0.0", "255.255.255.255"].map(|address| address.parse().expect("address"));
    let packet = Packet::first(&flow(ends, (Protocol::Udp, Some(67)))).by("kvb-lan", None);
    let met = at(&ruleset, Hook::Input, packet);
    let place = dropped(last(&met));
    assert_eq!(place.chain, "ufw-skip-to-policy-input");
    let hit = Hit { services: [(Protocol::Udp, Some(67))].into(), ..Hit::default() };
    assert_eq!(program::fix(&ruleset, place, &hits(hit)), "ufw allow in on kvb-lan to any port 67 proto udp");
}

#[test]
fn libvirt_refuses_only_what_goes_to_its_own_bridge() {
    let ruleset = libvirt();
    assert!(at(&ruleset, Hook::Forward, out(TCP)).iter().all(|met| passes(&met.judgement)));
    let ends = ["10.61.0.11", "192.168.122.10"].map(|address| address.parse().expect("address"));
    let packet = Packet::first(&flow(ends, TCP)).by("kvb-lan", Some("virbr0"));
    let met = at(&ruleset, Hook::Forward, packet);
    let place = dropped(last(&met));
    assert_eq!((place.chain.as_str(), place.handle), ("LIBVIRT_FWI", Some(23)));
    assert_eq!(place.text, "oifname \"virbr0\" counter reject");
    assert_eq!(program::of(&ruleset, place), Program::Libvirt);
    let fix = program::fix(&ruleset, place, &hits(Hit { out: true, ..Hit::default() }));
    assert_eq!(fix, "iptables -I FORWARD -i kvb-lan -j ACCEPT");
}

#[test]
fn old_iptables_is_read_and_comes_with_its_own_program() {
    let mut ruleset = Ruleset::default();
    let save = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n:mine - [0:0]\n\
        -A FORWARD -i eth+ -p tcp -m multiport --dports 80,443 -m comment --comment \"a \\\"b\\\" c\" -j mine\n\
        -A FORWARD ! -s 10.61.0.0/24 -j ACCEPT\n-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
        -A FORWARD -m recent --rcheck --name x -j ACCEPT\n-A mine -g mine2\n:mine2 - [0:0]\n-A mine2 -j RETURN\nCOMMIT\n";
    iptables::add_legacy(&mut ruleset, Family::Ip, save);
    let met = at(&ruleset, Hook::Forward, out(TCP));
    let Judgement::Unsure { drop: Some(drop), because } = last(&met) else { panic!("{met:#?}") };
    assert_eq!(drop.to_string(), "legacy table ip filter, chain FORWARD, policy drop");
    assert!(because.text.contains("-m recent"));
    assert_eq!(program::of(&ruleset, drop), Program::Iptables);
    let fix = program::fix(&ruleset, drop, &hits(Hit { out: true, ..Hit::default() }));
    assert_eq!(fix, "iptables-legacy -I FORWARD -i kvb-lan -j ACCEPT");
    assert!(passes(last(&at(&ruleset, Hook::Forward, answer("up0", "kvb-lan")))));
    // Tables without a rule, as the modules leave them, are not worth a word.
    let mut ruleset = Ruleset::default();
    iptables::add_legacy(&mut ruleset, Family::Ip, "*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n");
    assert!(ruleset.tables.is_empty());
}

#[test]
fn an_administrators_table_is_opened_at_its_front() {
    let ruleset = forward("drop", &[json!([{"counter": null}])], &[]);
    let met = at(&ruleset, Hook::Forward, out(TCP));
    let place = dropped(last(&met));
    assert_eq!(program::of(&ruleset, place), Program::Nftables);
    assert_eq!(
        program::fix(&ruleset, place, &hits(Hit { out: true, inward: true, ..Hit::default() })),
        "nft insert rule inet t f iifname kvb-lan accept\nnft insert rule inet t f oifname kvb-lan accept"
    );
}

fn field(protocol: &str, field: &str) -> Value {
    json!({"payload": {"protocol": protocol, "field": field}})
}

fn is(left: &Value, op: &str, right: Value) -> Value {
    json!({"match": {"op": op, "left": left, "right": right}})
}

#[test]
fn matches_are_yes_no_or_unknown() {
    let drop = |condition: Value| forward("accept", &[json!([condition, {"drop": null}])], &[]);
    let judged = |condition: Value| match last(&at(&drop(condition), Hook::Forward, out(TCP))) {
        Judgement::Drop { .. } => Truth::Yes,
        Judgement::Pass { .. } => Truth::No,
        Judgement::Unsure { .. } => Truth::Unknown,
    };
    let meta = |key: &str| json!({"meta": {"key": key}});
    let prefix = |addr: &str, len: u8| json!({"prefix": {"addr": addr, "len": len}});
    for (condition, expected) in [
        (is(&meta("iifname"), "==", json!("kvb-lan")), Truth::Yes),
        (is(&meta("iifname"), "==", json!("kvb-*")), Truth::Yes),
        (is(&meta("iifname"), "!=", json!("kvb-*")), Truth::No),
        (is(&meta("oifname"), "==", json!({"set": ["up0", "up1"]})), Truth::Yes),
        (is(&meta("l4proto"), "==", json!(6)), Truth::Yes),
        (is(&meta("l4proto"), "==", json!({"set": ["udp", "icmp"]})), Truth::No),
        (is(&meta("nfproto"), "==", json!("ipv6")), Truth::No),
        (is(&meta("mark"), "==", json!(1)), Truth::Unknown),
        (is(&field("ip", "saddr"), "==", prefix("10.61.0.0", 16)), Truth::Yes),
        (is(&field("ip", "daddr"), "!=", json!("1.1.1.1")), Truth::No),
        (is(&field("ip", "daddr"), "==", json!({"range": ["1.1.1.0", "1.1.1.9"]})), Truth::Yes),
        // A field that is missing matches nothing, not even its contrary.
        (is(&field("ip6", "saddr"), "!=", json!("::1")), Truth::No),
        (is(&field("udp", "dport"), "!=", json!(53)), Truth::No),
        (is(&field("arp", "operation"), "==", json!("request")), Truth::No),
        (is(&field("ip", "ttl"), "==", json!(64)), Truth::Unknown),
        (is(&field("tcp", "dport"), "<", json!(444)), Truth::Yes),
        (is(&field("tcp", "dport"), ">=", json!(444)), Truth::No),
        (is(&field("tcp", "dport"), "==", json!({"range": [1, 1023]})), Truth::Yes),
        (is(&field("th", "dport"), "==", json!({"set": [80, {"range": [440, 450]}]})), Truth::Yes),
        (is(&json!({"ct": {"key": "state"}}), "in", json!(["established", "related"])), Truth::No),
        (is(&json!({"ct": {"key": "state"}}), "==", json!({"set": ["new"]})), Truth::Yes),
        (is(&json!({"ct": {"key": "status"}}), "in", json!("dnat")), Truth::No),
        (is(&json!({"exthdr": {"name": "frag"}}), "==", json!(false)), Truth::Yes),
        (is(&json!({"&": [meta("mark"), 1]}), "==", json!(0)), Truth::Unknown),
        (json!({"limit": {"rate": 3, "per": "minute"}}), Truth::Unknown),
        (json!({"set": {"op": "add", "elem": "x", "set": "@s", "stmt": [{"limit": {}}]}}), Truth::Unknown),
        (json!({"set": {"op": "add", "elem": "x", "set": "@s", "stmt": [{"counter": null}]}}), Truth::Yes),
        (json!({"log": {"prefix": "x"}}), Truth::Yes),
        (json!({"something new": {}}), Truth::Unknown),
        (
            is(
                &json!({"concat": [meta("iifname"), field("tcp", "dport")]}),
                "==",
                json!({"set": [{"concat": ["kvb-lan", 443]}]}),
            ),
            Truth::Yes,
        ),
    ] {
        assert_eq!(judged(condition.clone()), expected, "{condition}");
    }
}

#[test]
fn sets_maps_jumps_and_returns_lead_where_nft_leads() {
    let chain = |name: &str| json!({"chain": {"family": "inet", "table": "t", "name": name}});
    let rule = |chain: &str, expr: Value| json!({"rule": {"family": "inet", "table": "t", "chain": chain, "handle": 90, "expr": expr}});
    let set = json!({"set": {"family": "inet", "table": "t", "name": "s", "type": "ifname",
        "elem": [{"elem": {"val": "kvb-lan", "counter": {"packets": 0, "bytes": 0}}}]}});
    let map = json!({"map": {"family": "inet", "table": "t", "name": "m", "type": "ifname", "map": "verdict",
        "elem": [["kvb-lan", {"jump": {"target": "inner"}}]]}});
    let iif = json!({"meta": {"key": "iifname"}});
    let ends_in = |rules: &[&Value], inner: &[&Value]| {
        let mut more = vec![chain("inner"), chain("other"), set.clone(), map.clone()];
        more.extend(inner.iter().map(|expr| rule("inner", (*expr).clone())));
        let met = at(
            &forward("drop", &rules.iter().map(|rule| (*rule).clone()).collect::<Vec<_>>(), &more),
            Hook::Forward,
            out(TCP),
        );
        match last(&met) {
            Judgement::Pass { by, .. } => format!("accept in {}", by.chain),
            Judgement::Drop { by } if by.policy => "policy".to_owned(),
            Judgement::Drop { by } => format!("drop in {}", by.chain),
            Judgement::Unsure { .. } => "unsure".to_owned(),
        }
    };
    let (accept, drop) = (json!([{"accept": null}]), json!([{"drop": null}]));
    let jump = json!([{"jump": {"target": "inner"}}]);
    let goto = json!([{"goto": {"target": "inner"}}]);
    let back = json!([{"return": null}]);
    assert_eq!(ends_in(&[&json!([is(&iif, "==", json!("@s")), {"accept": null}])], &[]), "accept in f");
    assert_eq!(ends_in(&[&json!([is(&iif, "!=", json!("@s")), {"accept": null}])], &[]), "policy");
    assert_eq!(ends_in(&[&json!([is(&iif, "==", json!("@gone")), {"accept": null}])], &[]), "unsure");
    let by_map = json!([{"vmap": {"key": iif, "data": "@m"}}]);
    assert_eq!(ends_in(&[&by_map], &[&drop]), "drop in inner");
    assert_eq!(ends_in(&[&by_map, &accept], &[&back]), "accept in f");
    let here = json!([{"vmap": {"key": iif, "data": {"set": [["kvb-x", {"drop": null}], ["kvb-lan", {"accept": null}]]}}}]);
    assert_eq!(ends_in(&[&here], &[]), "accept in f");
    assert_eq!(ends_in(&[&jump, &accept], &[]), "accept in f");
    assert_eq!(ends_in(&[&goto, &accept], &[]), "policy");
    assert_eq!(ends_in(&[&goto, &accept], &[&back]), "policy");
    assert_eq!(ends_in(&[&jump, &drop], &[&accept]), "accept in inner");
    // A rule that may match leaves both ends open, and one that accepts before anything drops closes them.
    let maybe = json!([{"limit": {"rate": 1, "per": "second"}}, {"accept": null}]);
    assert_eq!(ends_in(&[&maybe], &[]), "unsure");
    assert_eq!(ends_in(&[&maybe, &accept], &[]), "accept in f");
    assert_eq!(ends_in(&[&json!([{"queue": null}])], &[]), "unsure");
    // nft has no loops; what claims to be one is not followed for ever.
    assert_eq!(ends_in(&[&jump], &[&jump]), "unsure");
}

#[test]
fn chains_are_met_by_priority_to_the_first_that_drops() {
    let base = |family: &str, name: &str, prio: i32, policy: &str| {
        json!({"chain": {"family": family, "table": name, "name": "c", "type": "filter", "hook": "forward",
            "prio": prio, "policy": policy}})
    };
    let listing = json!({"nftables": [
        base("inet", "late", 10, "drop"), base("ip", "first", -5, "accept"), base("ip6", "not", -9, "drop"),
        base("inet", "middle", 0, "drop"), base("arp", "never", -400, "drop"),
    ]});
    let met = at(&nft::ruleset(&listing, ""), Hook::Forward, out(TCP));
    let tables: Vec<_> = met.iter().map(|met| met.chain.table.as_str()).collect();
    assert_eq!(tables, ["first", "middle"]);
}

#[test]
fn a_trace_tells_packets_of_the_flow_from_others() {
    let flow = TraceFlow {
        tap: Some(name("kvp-web")),
        source: "10.60.0.11".parse().unwrap(),
        destination: "10.99.0.1".parse().unwrap(),
        protocol: "icmp",
        port: None,
    };
    // As nft 1.0.6 printed it, shortened: the kernel renumbers a packet once it is routed.
    let header =
        "ether saddr 66:6d:7f:d8:74:56 ip saddr 10.60.0.11 ip daddr 10.99.0.1 ip ttl 64 ip protocol icmp ";
    let lines: Vec<String> = [
        format!("trace id f866704d bridge kvmctl_trace prerouting packet: iif \"p0\" {header}"),
        "trace id f866704d bridge kvmctl_trace prerouting rule meta nftrace set 1 (verdict continue)".into(),
        "trace id f866704d bridge kvmctl_trace prerouting policy accept ".into(),
        format!("trace id f866704d inet kvmctl_trace prerouting packet: iif \"br0\" {header}"),
        "trace id f866704d inet kvmctl_trace prerouting policy accept ".into(),
        format!("trace id 880bf248 inet f fw packet: iif \"br0\" oif \"up0\" {header}"),
        "trace id 880bf248 inet f fw policy drop ".into(),
        "trace id 11111111 inet f fw packet: iif \"br0\" ip saddr 10.60.0.12 ip daddr 10.99.0.1 ip ttl 64 "
            .into(),
        "trace id 11111111 inet f fw rule drop (verdict drop)".into(),
    ]
    .into();
    let traced = traced::read(&lines, &flow);
    assert_eq!((traced.packets, traced.dropped), (1, 1));
    assert_eq!(traced.lines, ["inet f fw policy drop"]);
    assert_eq!(traced.verdict(), StepVerdict::Drop);
    assert_eq!(traced::read(&[], &flow).verdict(), StepVerdict::Unknown);
}

proptest! {
    #[test]
    fn no_text_makes_the_readers_panic(text in "\\PC{0,80}", line in "(-[AmijosdpgG!]|--[a-z]{1,9}|[A-Z0-9./,:!\" ]{1,9}| ){0,20}") {
        let mut ruleset = docker();
        iptables::fill(&mut ruleset, Family::Ip, &text);
        iptables::add_legacy(&mut ruleset, Family::Ip, &format!("*filter\n:FORWARD DROP [0:0]\n-A FORWARD {line}"));
        at(&ruleset, Hook::Forward, out(TCP));
        let _ = nft::ruleset(&serde_json::json!({"nftables": [{"rule": {"family": "ip", "expr": [{"match": text}]}}]}), &text);
    }
}

/// Each of 16 chains jumps ten times to the next: nft takes it, and there are 10^16 ways through it.
#[test]
fn rules_with_more_ways_than_can_be_walked_cannot_be_told() {
    let accept = serde_json::json!({"match": {"op": "==", "left": {"meta": {"key": "mark"}}, "right": 7}});
    let jump = |to: usize| serde_json::json!([accept, {"jump": {"target": format!("c{to}")}}]);
    let more: Vec<_> = (1..16)
        .flat_map(|chain| (0..10).map(move |number| (chain, number)))
        .map(|(chain, number)| {
            serde_json::json!({"rule": {
                "family": "inet", "table": "t", "chain": format!("c{chain}"), "handle": 100 * chain + number,
                "expr": jump(chain + 1)
            }})
        })
        .chain([serde_json::json!({"rule": {
            "family": "inet", "table": "t", "chain": "c16", "handle": 9, "expr": [{"counter": null}]
        }})])
        .collect();
    let ruleset = forward("accept", &[jump(1)], &more);
    let met = at(&ruleset, Hook::Forward, out(TCP));
    assert!(matches!(last(&met), Judgement::Unsure { .. }), "{met:?}");
}
