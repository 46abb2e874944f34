//! Hosts that are not as they should be, and the ways of single packets.

use super::*;
use crate::{
    diagnose::{
        probe,
        why::{self, Asked, Step, StepVerdict},
    },
    kernel::{Link, LinkKind, Refusal, RouteAnswer, RouteQuery},
    model::{Network, Port, State},
    plan,
};
use serde_json::json;
use shared::{fault::Kind, time::Timestamp};
use uuid::Uuid;

fn link(mtu: u32, address: Option<&str>) -> Link {
    let addresses = address.map(|net| {
        serde_json::from_value(json!({"net": net, "no_prefix_route": false, "valid_seconds": null}))
            .expect("address")
    });
    let up = Link { mtu, up: true, carrier: true, ..Link::new(1, LinkKind::Nic) };
    Link { addresses: addresses.into_iter().collect(), ..up }
}

fn network(name: &str, mode: &str, net: Option<&str>, uplink: Option<&str>) -> Network {
    let now = Timestamp::now();
    serde_json::from_value(json!({
        "name": name, "uid": Uuid::nil(), "generation": 1, "created": now, "updated": now, "labels": {},
        "spec": {"mode": mode, "ipv4": net, "ipv6": null, "bridge": null, "uplink": uplink, "mtu": null},
        "bridge": format!("kvb-{name}"), "bridge_mac": "02:00:00:00:00:01", "ipv4": net, "ipv6": null,
        "mtu": 1500, "takeover": null, "deleting": false,
    }))
    .expect("network")
}

fn port(network: &str, name: &str, address: Option<&str>, vm: Option<&str>) -> Port {
    let now = Timestamp::now();
    let labels = vm.map_or(json!({}), |vm| json!({"vm": format!("vms/{vm}")}));
    serde_json::from_value(json!({
        "network": network, "name": name, "uid": Uuid::nil(), "generation": 1, "created": now, "updated": now,
        "labels": labels, "asked_mac": null, "filter": true, "mac": "52:54:00:00:00:01", "ipv4": address,
        "tap": format!("kvp-{name}"), "owner": 0, "deleting": false,
    }))
    .expect("port")
}

/// A host with one nat network, all in order.
fn healthy() -> Facts {
    let mut facts = Facts { ruleset: Some(Ruleset::default()), ..Facts::default() };
    facts.add(network("lan", "nat", Some("10.61.0.1/24"), None));
    facts.desired.ports.extend([port("lan", "web", Some("10.61.0.2"), None)].map(|port| (port.key(), port)));
    facts.observed.links.insert(name("kvp-web"), link(1500, None));
    facts.observed.links.insert(name("up0"), link(1500, Some("10.99.0.2/24")));
    facts.observed.sysctls.insert(plan::FORWARD4.to_owned(), "1".to_owned());
    facts.answer(None);
    facts
}

impl Facts {
    fn add(&mut self, network: Network) {
        let net = network.ipv4.map(|net| net.to_string());
        self.observed.links.insert(network.bridge.clone(), link(1500, net.as_deref()));
        self.desired.networks.insert(network.name.clone(), network);
    }

    /// The kernel's answers: by `up0`, or as given for the way out.
    fn answer(&mut self, out: Option<RouteAnswer>) {
        for _ in 0..2 {
            for query in probe::queries(self) {
                let outward = query.iif.as_ref().is_some_and(|iif| iif.as_str().starts_with("kvb"));
                let oif = if outward { "up0" } else { "kvb-lan" };
                let fine = RouteAnswer::Unicast { oif: name(oif), gateway: None };
                let answer = out.clone().filter(|_| outward).unwrap_or(fine);
                self.routes.insert(query, answer);
            }
        }
    }

    fn only(&self) -> Finding {
        let mut found = super::super::diagnose(self);
        assert_eq!(found.len(), 1, "{found:#?}");
        found.remove(0)
    }
}

#[test]
fn a_host_that_is_in_order_has_no_findings() {
    assert_eq!(super::super::diagnose(&healthy()), Vec::new());
}

#[test]
fn forwarding_that_is_off_is_an_error_with_its_switch() {
    let mut facts = healthy();
    facts.observed.sysctls.insert(plan::FORWARD4.to_owned(), "0".to_owned());
    let finding = facts.only();
    assert_eq!((finding.reason, finding.fix.as_str()), ("FORWARDING_OFF", "sysctl -w net.ipv4.ip_forward=1"));
    assert_eq!(errors(&facts).len(), 1);
    let mut facts = healthy();
    facts.observed.sysctls.insert("net/ipv4/conf/up0/forwarding".to_owned(), "0".to_owned());
    assert_eq!(facts.only().fix, "sysctl -w net.ipv4.conf.up0.forwarding=1");
}

#[test]
fn strict_reverse_path_filtering_counts_where_it_kills() {
    let mut facts = healthy();
    facts.observed.sysctls.insert("net/ipv4/conf/up0/rp_filter".to_owned(), "1".to_owned());
    assert_eq!(super::super::diagnose(&facts), Vec::new());
    let back: Vec<RouteQuery> =
        facts.routes.keys().filter(|query| query.iif == Some(name("up0"))).cloned().collect();
    assert_eq!(back.len(), 1);
    facts.routes.insert(back[0].clone(), RouteAnswer::Refused(Refusal::ReversePath));
    let finding = facts.only();
    assert_eq!(
        (finding.reason, finding.fix.as_str()),
        ("REVERSE_PATH", "sysctl -w net.ipv4.conf.up0.rp_filter=2")
    );
    assert_eq!(finding.location, "net.ipv4.conf.up0.rp_filter");
}

#[test]
fn a_way_out_that_is_missing_or_another_is_an_error() {
    let mut facts = healthy();
    facts.routes.clear();
    facts.answer(Some(RouteAnswer::Refused(Refusal::NoRoute)));
    assert_eq!(facts.only().reason, "NO_DEFAULT_ROUTE");

    let mut facts = healthy();
    facts.observed.links.insert(name("up1"), link(1500, None));
    facts.add(network("dmz", "routed", Some("10.63.0.1/24"), Some("up1")));
    facts.answer(None);
    let finding = facts.only();
    assert_eq!(
        (finding.reason, finding.networks.as_slice()),
        ("ROUTE_NOT_BY_UPLINK", &["dmz".to_owned()][..])
    );
}

#[test]
fn links_that_do_not_fit_are_named() {
    let mut facts = healthy();
    facts.observed.links.insert(name("up0"), link(1400, None));
    let finding = facts.only();
    assert_eq!((finding.reason, finding.severity), ("MTU_MISMATCH", super::super::Severity::Warning));

    let mut facts = healthy();
    facts.add(network("office", "bridged", None, Some("eth1")));
    let mut nic = link(1400, None);
    nic.master = Some(name("kvb-office"));
    facts.observed.links.insert(name("eth1"), nic);
    let finding = facts.only();
    assert_eq!((finding.reason, finding.fix.as_str()), ("MTU_MISMATCH", "ip link set dev eth1 mtu 1500"));
    assert_eq!(finding.severity, super::super::Severity::Error);
    if let Some(nic) = facts.observed.links.get_mut(&name("eth1")) {
        (nic.mtu, nic.up) = (1500, false);
    }
    assert_eq!(facts.only().fix, "ip link set dev eth1 up");
}

#[test]
fn objects_programs_and_warnings_that_netd_knows_of_are_told() {
    let mut facts = healthy();
    facts.states.insert("networks/lan".to_owned(), State::Degraded("the bridge is gone".to_owned()));
    facts.states.insert("networks/lan/ports/web".to_owned(), State::Degraded("the tap is gone".to_owned()));
    facts.warnings.push("a record cannot be read".to_owned());
    facts.missing = vec!["nft", "dnsmasq"];
    let found = super::super::diagnose(&facts);
    let reasons: Vec<_> = found.iter().map(|finding| finding.reason).collect();
    for reason in ["NETWORK_DEGRADED", "PORT_DEGRADED", "HOST_WARNING", "PROGRAM_MISSING"] {
        assert!(reasons.contains(&reason), "{reasons:?}");
    }
    assert_eq!(reasons.len(), 5);
    assert!(found.is_sorted_by_key(|finding| finding.severity));
}

#[test]
fn all_that_one_rule_is_in_the_way_of_is_one_finding() {
    let mut facts = healthy();
    facts.add(network("in", "isolated", Some("10.62.0.1/24"), None));
    facts.ruleset = Some(docker());
    facts.observed.sysctls.insert(plan::BRIDGE_NF.to_owned(), "1".to_owned());
    let finding = facts.only();
    assert_eq!(
        (finding.reason, finding.program),
        ("RULE_DROPS", Some(crate::diagnose::program::Program::Docker))
    );
    assert_eq!(finding.networks, ["in", "lan"]);
    assert_eq!(
        finding.what,
        "a rule of another program drops IPv4 between guests of `in`; IPv4 between guests of `lan`; IPv4 from guests \
         of `lan` to the outside; answers (IPv4) from the outside to guests of `lan`"
    );
    assert_eq!(
        finding.fix,
        "iptables -I DOCKER-USER -i kvb-in -o kvb-in -j ACCEPT\niptables -I DOCKER-USER -i kvb-lan -j ACCEPT\n\
         iptables -I DOCKER-USER -o kvb-lan -j ACCEPT"
    );
    // Frames do not meet it when bridge netfilter is off.
    facts.observed.sysctls.insert(plan::BRIDGE_NF.to_owned(), "0".to_owned());
    assert_eq!(facts.only().networks, ["lan"]);
}

fn asked(vm: &str, other: &str) -> Asked {
    Asked {
        vm: vm.parse().expect("name"),
        network: None,
        other: other.parse().map_err(|_| other.parse().expect("name")),
        outward: true,
        protocol: Protocol::Tcp,
        port: Some(80),
        source: None,
    }
}

fn explain(facts: &mut Facts, asked: &Asked) -> Vec<Step> {
    let question = why::resolve(facts, asked).expect("question");
    for _ in 0..2 {
        for query in question.queries(facts) {
            let guest = query.iif.as_ref().is_some_and(|iif| iif.as_str().starts_with("kvb"));
            let oif = name(if guest { "up0" } else { "kvb-lan" });
            facts.routes.insert(query, RouteAnswer::Unicast { oif, gateway: None });
        }
    }
    why::explain(facts, &question)
}

#[test]
fn a_way_is_told_to_where_it_ends() {
    let mut facts = healthy();
    facts.ruleset = Some(docker());
    let steps = explain(&mut facts, &asked("web", "192.0.2.1"));
    let last = steps.last().expect("step");
    assert_eq!((last.stage, last.verdict), ("forward", StepVerdict::Drop));
    assert_eq!(last.fix, "iptables -I DOCKER-USER -i kvb-lan -j ACCEPT");
    assert_eq!(why::verdict(&steps), StepVerdict::Drop);
    // With the tap of no machine it ends at once.
    if let Some(tap) = facts.observed.links.get_mut(&name("kvp-web")) {
        tap.carrier = false;
    }
    let steps = explain(&mut facts, &asked("web", "192.0.2.1"));
    assert_eq!(steps.last().map(|step| (step.stage, step.verdict)), Some(("port", StepVerdict::Drop)));
}

#[test]
fn where_nothing_translates_a_nat_guest_gets_no_answer() {
    let mut facts = healthy();
    let steps = explain(&mut facts, &asked("web", "192.0.2.1"));
    assert_eq!(steps.last().map(|step| (step.stage, step.verdict)), Some(("nat", StepVerdict::Drop)));
}

#[test]
fn a_network_without_a_gateway_has_no_way_out() {
    let mut facts = healthy();
    facts.add(network("in", "isolated", Some("10.62.0.1/24"), None));
    let own = port("in", "db", Some("10.62.0.2"), None);
    facts.observed.links.insert(own.tap.clone(), link(1500, None));
    facts.desired.ports.insert(own.key(), own);
    let steps = explain(&mut facts, &asked("db", "192.0.2.1"));
    assert_eq!(steps.last().map(|step| (step.stage, step.verdict)), Some(("route", StepVerdict::Drop)));
    // Nobody is known to have that address.
    assert_eq!(why::verdict(&explain(&mut facts, &asked("db", "10.62.0.9"))), StepVerdict::Unknown);
    let other = port("in", "other", Some("10.62.0.9"), None);
    facts.desired.ports.insert(other.key(), other);
    assert_eq!(why::verdict(&explain(&mut facts, &asked("db", "10.62.0.9"))), StepVerdict::Pass);
}

#[test]
fn packets_are_watched_by_root_and_by_the_owner_of_their_address() {
    let mut facts = healthy();
    let mut own = port("lan", "own", Some("10.61.0.3"), None);
    own.owner = 1000;
    facts.desired.ports.insert(own.key(), own);
    facts.seen.insert(name("kvp-own"), ["10.61.0.9".parse().unwrap()].into());
    let may = |facts: &Facts, source: Option<&str>, outward: bool, uid: u32| {
        let source = source.map(|source| source.parse().unwrap());
        let asked = Asked { source, outward, ..asked("own", "192.0.2.1") };
        let result = why::resolve(facts, &asked).expect("question").may_watch(facts, uid);
        result.map_err(|fault| {
            assert_eq!(fault.kind(), Kind::PermissionDenied);
            assert!(!fault.hints().is_empty());
            fault.reason().to_owned()
        })
    };
    for outward in [true, false] {
        for source in [None, Some("10.61.0.3"), Some("10.61.0.9")] {
            assert_eq!(may(&facts, source, outward, 1000), Ok(()));
            assert_eq!(may(&facts, source, outward, 1001), Err("NOT_OWNER".to_owned()));
        }
        // The address of another's guest.
        assert_eq!(may(&facts, Some("10.61.0.2"), outward, 1000), Err("NOT_ITS_ADDRESS".to_owned()));
        assert_eq!(may(&facts, Some("10.61.0.2"), outward, 0), Ok(()));
    }
    // Nor one that its own guest took from there.
    facts.seen.insert(name("kvp-own"), ["10.61.0.2".parse().unwrap()].into());
    assert_eq!(may(&facts, Some("10.61.0.2"), true, 1000), Err("NOT_ITS_ADDRESS".to_owned()));
    // An address that is only assumed may be anyone's.
    let mut unknown = port("lan", "own", None, None);
    unknown.owner = 1000;
    facts.desired.ports.insert(unknown.key(), unknown);
    facts.seen.clear();
    assert_eq!(may(&facts, None, true, 1000), Err("NOT_ITS_ADDRESS".to_owned()));
}

#[test]
fn a_label_is_no_way_to_take_anothers_name() {
    let mut facts = healthy();
    let mut label = port("lan", "trap", Some("10.61.0.66"), Some("web"));
    facts.desired.ports.insert(label.key(), label.clone());
    let resolve = |facts: &Facts, asked: &Asked| why::resolve(facts, asked);
    let question = resolve(&facts, &asked("web", "192.0.2.1")).expect("question");
    assert_eq!(question.port.name.as_str(), "trap", "one owner's machine is meant before its port");
    label.owner = 1000;
    facts.desired.ports.insert(label.key(), label);
    for asked in [asked("web", "192.0.2.1"), asked("trap", "web")] {
        let fault = resolve(&facts, &asked).unwrap_err();
        assert_eq!(fault.reason(), "AMBIGUOUS_PORT");
        let hints = fault.hints().join(" ");
        assert!(
            hints.contains("web on lan of uid 0") && hints.contains("trap on lan of uid 1000"),
            "{hints}"
        );
    }
}

#[test]
fn names_lead_to_ports_and_addresses() {
    let mut facts = healthy();
    facts.add(network("in", "isolated", None, None));
    for port in [
        port("lan", "vm-db-0", Some("10.61.0.3"), Some("db")),
        port("lan", "vm-two-0", Some("10.61.0.4"), Some("two")),
        port("in", "vm-two-1", None, Some("two")),
    ] {
        facts.desired.ports.insert(port.key(), port);
    }
    let resolve = |asked: &Asked| why::resolve(&facts, asked);
    let question = resolve(&asked("web", "db")).expect("question");
    assert_eq!(question.other.to_string(), "10.61.0.3");
    assert_eq!(question.guest, ("10.61.0.2".parse().unwrap(), "recorded"));
    assert_eq!(resolve(&asked("db", "192.0.2.1")).expect("question").port.name.as_str(), "vm-db-0");
    assert_eq!(resolve(&asked("nobody", "192.0.2.1")).unwrap_err().kind(), Kind::NotFound);
    assert_eq!(resolve(&asked("web", "nobody")).unwrap_err().kind(), Kind::NotFound);
    assert_eq!(resolve(&asked("two", "192.0.2.1")).unwrap_err().reason(), "AMBIGUOUS_PORT");
    let on = |network: &str| Asked { network: Some(network.parse().unwrap()), ..asked("two", "192.0.2.1") };
    assert!(resolve(&on("lan")).is_ok());
    // Nobody knows the address of a guest where there is no subnet.
    assert_eq!(resolve(&on("in")).unwrap_err().reason(), "NO_ADDRESS");
    facts.seen.insert(name("kvp-vm-two-1"), ["fe80::1", "10.9.9.8"].map(|a| a.parse().unwrap()).into());
    let resolve = |asked: &Asked| why::resolve(&facts, asked);
    assert_eq!(resolve(&on("in")).expect("question").guest, ("10.9.9.8".parse().unwrap(), "seen"));
    let given = Asked { source: Some("10.9.9.9".parse().unwrap()), ..on("in") };
    assert_eq!(resolve(&given).expect("question").guest.1, "as given");
    let mixed = Asked { source: Some("fd00::1".parse().unwrap()), ..asked("web", "192.0.2.1") };
    assert_eq!(resolve(&mixed).unwrap_err().reason(), "ADDRESS_FAMILY");
}
