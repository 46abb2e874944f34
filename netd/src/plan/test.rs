//! Plans against a kernel in memory: nothing to do where all is well, exactly the repair where it is not.

use super::*;
use crate::{
    kernel::{
        Bucket, CellSpec, Kernel as _, Scope,
        fake::{FakeKernel, Host},
    },
    model::{
        Cell, PortSpec, Rate, Takeover,
        fixture::{self, link, name, network},
    },
};
use futures_util::FutureExt as _;
use proptest::prelude::*;
use shared::mac::Mac;

fn nat() -> Network {
    Network { ipv4: Some("10.1.0.1/24".parse().unwrap()), ..network("lan", Mode::Nat) }
}

fn port(network: &str, text: &str, filter: bool) -> Port {
    let plain = fixture::port(network, text);
    Port { spec: PortSpec { filter, ..plain.spec.clone() }, ..plain }
}

fn desired(networks: Vec<Network>, ports: Vec<Port>) -> Desired {
    Desired {
        instance: "0123456789abcdef0123456789abcdef".to_owned(),
        networks: networks.into_iter().map(|n| (n.name.clone(), n)).collect(),
        ports: ports.into_iter().map(|p| (p.key(), p)).collect(),
        ..Desired::default()
    }
}

fn observe(kernel: &FakeKernel) -> Observed {
    kernel.observe(&Scope::All).now_or_never().expect("the fake never waits").unwrap()
}

/// What is left to do, in the reconciler's order.
fn plan(desired: &Desired, kernel: &FakeKernel) -> Vec<Action> {
    let observed = observe(kernel);
    let mut actions = desired.plan_tables(&observed, Some("rules 0")).unwrap();
    actions.extend(desired.plan_sysctls(&observed));
    for network in desired.networks.values() {
        actions.extend(desired.plan_network(network, &observed).unwrap());
    }
    for port in desired.ports.values() {
        actions.extend(desired.plan_port(port, &observed).unwrap());
    }
    actions
}

/// A host that `desired` is in force on.
fn converged(desired: &Desired) -> FakeKernel {
    let kernel = FakeKernel::new();
    kernel.prepare(&plan(desired, &kernel));
    kernel
}

/// What a change by somebody else leads to.
fn drift(desired: &Desired, change: impl FnOnce(&mut Host)) -> Vec<Action> {
    let kernel = converged(desired);
    assert_eq!(plan(desired, &kernel), [], "converged");
    kernel.meddle(change);
    let actions = plan(desired, &kernel);
    kernel.prepare(&actions);
    assert_eq!(plan(desired, &kernel), [], "repaired");
    actions
}

#[test]
fn drift_of_a_bridge_is_repaired_by_exactly_one_action() {
    let desired = desired(vec![nat()], vec![]);
    let bridge = || link("kvb-lan");
    let mac = Mac::derived("lan", 0);
    let gateway = gateway_addresses(&nat()).remove(0);
    assert_eq!(drift(&desired, |host| host.link("kvb-lan").mtu = 1400), [Action::SetMtu(bridge(), 1500)]);
    assert_eq!(drift(&desired, |host| host.link("kvb-lan").mac = None), [Action::SetMac(bridge(), mac)]);
    assert_eq!(drift(&desired, |host| host.link("kvb-lan").up = false), [Action::SetUp(bridge(), true)]);
    assert_eq!(
        drift(&desired, |host| host.link("kvb-lan").addresses.clear()),
        [Action::AddAddress(bridge(), gateway)]
    );
    let alias = desired.alias("networks/lan");
    assert_eq!(
        drift(&desired, |host| host.link("kvb-lan").alias.push_str("/x")),
        [Action::SetAlias(bridge(), alias)]
    );
}

#[test]
fn a_bridge_that_was_half_made_is_made_anew() {
    let desired = desired(vec![nat()], vec![]);
    // It is marked before it comes up: one that is up has only lost its mark, and its ports with it if removed.
    let marked = Action::SetAlias(link("kvb-lan"), desired.alias("networks/lan"));
    assert_eq!(drift(&desired, |host| host.link("kvb-lan").alias.clear()), [marked]);
    let actions = drift(&desired, |host| {
        let link = host.link("kvb-lan");
        link.alias.clear();
        link.up = false;
    });
    assert!(
        matches!(
            actions.as_slice(),
            [
                Action::DeleteLink(_),
                Action::CreateBridge { .. },
                Action::AddAddress(..),
                Action::SetUp(_, true)
            ]
        ),
        "{actions:?}"
    );
}

#[test]
fn drift_of_a_tap_is_repaired_by_exactly_one_action() {
    let desired = desired(vec![nat()], vec![port("lan", "a", true)]);
    let tap = || link("kvp-lan-a");
    let spec = desired.tap(&desired.ports[&(name("lan"), name("a"))], &desired.networks[&name("lan")]);
    assert!(!spec.flags.learning && !spec.flags.flood && spec.flags.bpdu_guard && spec.flags.root_block);
    let repair = || [Action::RepairTap(spec.clone())];
    assert_eq!(drift(&desired, |host| host.link("kvp-lan-a").master = None), repair());
    assert_eq!(drift(&desired, |host| host.link("kvp-lan-a").master = Some(link("eth0"))), repair());
    assert_eq!(
        drift(&desired, |host| host.link("kvp-lan-a").port.as_mut().unwrap().learning = true),
        repair()
    );
    assert_eq!(
        drift(&desired, |host| host.link("kvp-lan-a").port.as_mut().unwrap().reserved_groups = 0),
        repair()
    );
    assert_eq!(
        drift(&desired, |host| host.link("kvp-lan-a").port.as_mut().unwrap().bpdu_guard = false),
        repair()
    );
    assert_eq!(drift(&desired, |host| host.link("kvp-lan-a").mtu = 900), [Action::SetMtu(tap(), 1500)]);
    assert_eq!(drift(&desired, |host| host.link("kvp-lan-a").up = false), [Action::SetUp(tap(), true)]);
    // Owner, persistence and a half made one cannot be mended.
    let anew = || [Action::DeleteLink(tap()), Action::CreateTap(spec.clone())];
    let kind = |owner, persist| LinkKind::Tap { owner: Some(owner), persist };
    assert_eq!(drift(&desired, |host| host.link("kvp-lan-a").kind = kind(7, true)), anew());
    assert_eq!(drift(&desired, |host| host.link("kvp-lan-a").kind = kind(1000, false)), anew());
    // A lost mark is no reason to pull the tap from under a running guest.
    let marked = [Action::SetAlias(tap(), spec.alias.clone())];
    assert_eq!(drift(&desired, |host| host.link("kvp-lan-a").alias.clear()), marked);
}

#[test]
fn drift_of_a_limit_is_repaired_by_exactly_one_action() {
    let rate = |bits_per_second| Rate { bits_per_second, burst_bytes: 20_000 };
    let mut limited = port("lan", "a", true);
    (limited.spec.rate_in, limited.spec.rate_out) = (Some(rate(8_000_000)), Some(rate(16_000_000)));
    let desired = desired(vec![nat()], vec![limited]);
    let (tap, ifb) = (|| link("kvp-lan-a"), || link("kvi-lan-a"));
    let redirect = || Action::Redirect { tap: tap(), ifb: ifb() };
    let toward = [Action::SetRate(tap(), rate(8_000_000))];
    assert_eq!(drift(&desired, |host| host.link("kvp-lan-a").bucket = None), toward);
    let other = Some(Bucket::of(rate(9_000_000)));
    assert_eq!(drift(&desired, |host| host.link("kvp-lan-a").bucket = other), toward);
    let from = [Action::SetRate(ifb(), rate(16_000_000))];
    assert_eq!(drift(&desired, |host| host.link("kvi-lan-a").bucket = other), from);
    assert_eq!(drift(&desired, |host| host.link("kvp-lan-a").redirect = None), [redirect()]);
    assert_eq!(drift(&desired, |host| host.link("kvp-lan-a").redirect = Some(1)), [redirect()]);
    assert_eq!(drift(&desired, |host| host.link("kvi-lan-a").up = false), [Action::SetUp(ifb(), true)]);
    let alias = desired.alias("networks/lan/ports/a");
    assert_eq!(
        drift(&desired, |host| host.link("kvi-lan-a").alias.clear()),
        [Action::SetAlias(ifb(), alias.clone())]
    );
    // The ifb comes first, with its rate; then what is led through it.
    let create = Action::CreateIfb { name: ifb(), alias, rate: rate(16_000_000) };
    assert_eq!(drift(&desired, |host| host.delete_link(&ifb())), [create.clone(), redirect()]);
    let half_made = drift(&desired, |host| {
        let link = host.link("kvi-lan-a");
        link.alias.clear();
        link.up = false;
    });
    assert_eq!(half_made, [Action::DeleteLink(ifb()), create, redirect()]);
    // Somebody else's link is refused, and nothing is led through it.
    let kernel = converged(&desired);
    kernel.meddle(|host| host.link("kvi-lan-a").group = 0);
    let port = &desired.ports[&(name("lan"), name("a"))];
    assert_eq!(desired.plan_port(port, &observe(&kernel)).unwrap_err().reason(), "FOREIGN_LINK");
}

#[test]
fn drift_of_the_rules_is_repaired_by_their_members_alone() {
    let desired = desired(vec![nat()], vec![port("lan", "a", true)]);
    let element = Element::GuestBridge(link("kvb-lan"));
    let stray = Element::FilteredTap(link("gone"));
    let actions = drift(&desired, |host| {
        let elements = &mut host.tables.as_mut().unwrap().elements.0;
        elements.remove(&element);
        elements.insert(stray.clone());
    });
    let set = |element| Elements([element].into());
    assert_eq!(actions, [Action::ChangeElements { remove: set(stray), add: set(element) }]);
    let actions = drift(&desired, |host| host.tables.as_mut().unwrap().rules = 5);
    assert!(matches!(actions.as_slice(), [Action::ReplaceTables { .. }]));
    let actions = drift(&desired, |host| host.tables = None);
    assert!(matches!(actions.as_slice(), [Action::ReplaceTables { .. }]));
}

#[test]
fn each_mode_has_its_members() {
    let members = |network: &Network| {
        let mut text: Vec<_> = desired(vec![network.clone()], vec![])
            .network_elements(network)
            .0
            .iter()
            .map(|e| format!("{e:?}"))
            .collect();
        text.sort();
        text.join(" ")
    };
    assert_eq!(members(&network("x", Mode::Bridged)), "");
    assert_eq!(members(&network("x", Mode::Isolated)), "IsolatedBridge(\"kvb-x\")");
    assert_eq!(
        members(&nat()),
        format!(
            "AnyUplink(\"kvb-lan\") BridgeMac(\"kvb-lan\", {}) Gateway4(\"kvb-lan\", 10.1.0.1) GuestBridge(\"kvb-lan\") NatBridge(\"kvb-lan\") Subnet4(\"kvb-lan\", 10.1.0.0/24)",
            nat().bridge_mac
        )
    );
    let mut routed = Network { ipv6: Some("fd00::1/64".parse().unwrap()), ..network("r", Mode::Routed) };
    routed.spec.uplink = Some(link("eth1"));
    assert_eq!(
        members(&routed),
        format!(
            "BridgeMac(\"kvb-r\", {}) Gateway6(\"kvb-r\", fd00::1) GuestBridge(\"kvb-r\") RoutedBridge(\"kvb-r\") Subnet6(\"kvb-r\", fd00::/64) Uplink(\"kvb-r\", \"eth1\")",
            routed.bridge_mac
        )
    );
}

#[test]
fn an_uplink_that_is_taken_over_counts_as_its_bridge() {
    let (_kernel, taken) = nic();
    let mut behind = nat();
    behind.spec.uplink = Some(link("eth1"));
    let desired = desired(vec![behind.clone(), taken], vec![]);
    assert!(desired.network_elements(&behind).0.contains(&Element::Uplink(link("kvb-lan"), link("kvb-nic"))));
}

/// A host with an address and routes on `eth1`, and a network that takes it over.
fn nic() -> (FakeKernel, Network) {
    let kernel = FakeKernel::new();
    let address = |net: &str| Address {
        net: net.parse().unwrap(),
        broadcast: None,
        no_prefix_route: false,
        valid_seconds: None,
    };
    let route = |to: &str, via: &str, metric| Route {
        destination: to.parse().unwrap(),
        gateway: Some(via.parse().unwrap()),
        source: None,
        metric,
        table: 254,
        protocol: 4,
        scope: 0,
        mtu: None,
        on_link: false,
    };
    kernel.prepare(&[
        Action::SetUp(link("eth1"), true),
        Action::AddAddress(link("eth1"), address("192.0.2.10/24")),
        Action::AddAddress(link("eth1"), address("2001:db8::10/64")),
        Action::AddRoute(link("eth1"), route("0.0.0.0/0", "192.0.2.1", None)),
        Action::AddRoute(link("eth1"), route("::/0", "2001:db8::1", Some(1024))),
    ]);
    let eth1 = observe(&kernel).links.remove(&link("eth1")).unwrap();
    let mut network = network("nic", Mode::Bridged);
    network.spec.uplink = Some(link("eth1"));
    network.bridge_mac = eth1.mac.unwrap();
    let mut routes = eth1.routes;
    routes.sort_by_key(|route| route.gateway.is_some());
    network.takeover = Some(Takeover { addresses: eth1.addresses, routes, was_up: true });
    (kernel, network)
}

/// A word an action, for orders.
fn words(actions: &[Action]) -> String {
    let word = |action: &Action| match action {
        Action::CreateBridge { name, .. } => format!("+{name}"),
        Action::DeleteLink(name) => format!("-{name}"),
        Action::SetUp(name, up) => format!("{name}:{}", if *up { "up" } else { "down" }),
        Action::SetMaster(name, master) => {
            format!("{name}>{}", master.as_ref().map_or("none", IfName::as_str))
        }
        Action::AddAddress(name, _) => format!("{name}+address"),
        Action::DeleteAddress(name, _) => format!("{name}-address"),
        Action::AddRoute(name, _) => format!("{name}+route"),
        Action::DeleteRoute(name, _) => format!("{name}-route"),
        Action::ReplaceTables { .. } | Action::ChangeElements { .. } | Action::RemoveTables => {
            "rules".to_owned()
        }
        Action::SetSysctl { .. } => "sysctl".to_owned(),
        Action::CopyNeighbours { from, to } => format!("neighbours:{from}>{to}"),
        other => format!("{other:?}"),
    };
    let mut words: Vec<_> = actions.iter().map(word).collect();
    words.dedup();
    words.join(" ")
}

#[test]
fn a_takeover_makes_before_it_breaks_and_its_removal_mirrors_it() {
    let (kernel, network) = nic();
    let before = kernel.picture();
    let mut desired = desired(vec![network], vec![]);
    let actions = desired.plan_network(&desired.networks[&name("nic")], &observe(&kernel)).unwrap();
    assert_eq!(
        words(&actions),
        "+kvb-nic kvb-nic:up kvb-nic+address eth1>kvb-nic neighbours:eth1>kvb-nic kvb-nic+route eth1-route eth1-address"
    );
    kernel.prepare(&actions);
    let record = desired.networks.get_mut(&name("nic")).unwrap();
    assert_eq!(desired_plan(record, &kernel), []);
    record.deleting = true;
    let actions = desired_plan(record, &kernel);
    assert_eq!(
        words(&actions),
        "neighbours:kvb-nic>eth1 eth1+address eth1+route kvb-nic-route eth1>none -kvb-nic"
    );
    kernel.prepare(&actions);
    assert_eq!(desired_plan(record, &kernel), []);
    assert_eq!(kernel.picture(), before);
}

fn desired_plan(network: &Network, kernel: &FakeKernel) -> Vec<Action> {
    desired(vec![network.clone()], vec![]).plan_network(network, &observe(kernel)).unwrap()
}

#[test]
fn a_nic_that_was_down_or_went_away_is_given_back_as_it_was() {
    let (kernel, mut network) = nic();
    network.takeover.as_mut().unwrap().was_up = false;
    kernel.prepare(&desired_plan(&network, &kernel));
    network.deleting = true;
    assert!(words(&desired_plan(&network, &kernel)).ends_with("eth1>none eth1:down -kvb-nic"));
    kernel.meddle(|host| host.delete_link(&link("eth1")));
    assert_eq!(words(&desired_plan(&network, &kernel)), "-kvb-nic");
    network.deleting = false;
    let fault = desired(vec![network.clone()], vec![]).plan_network(&network, &observe(&kernel)).unwrap_err();
    assert_eq!(fault.reason(), "LINK_GONE");
}

#[test]
fn a_nic_that_somebody_put_into_another_bridge_is_refused() {
    let (kernel, network) = nic();
    kernel.meddle(|host| host.link("eth1").master = Some(link("br0")));
    let fault = desired(vec![network.clone()], vec![]).plan_network(&network, &observe(&kernel)).unwrap_err();
    assert_eq!(fault.reason(), "UPLINK_IN_USE");
    assert!(fault.to_string().contains("`br0`") && !fault.hints().is_empty());
}

#[test]
fn rules_come_before_links_and_the_deaf_uplink_before_forwarding() {
    let (kernel, _) = nic();
    kernel.meddle(|host| {
        for (_, route) in &mut host.routes {
            if route.gateway.is_some() && route.destination.addr().is_ipv6() {
                route.protocol = 9;
            }
        }
    });
    let network = Network { ipv6: Some("fd00::1/64".parse().unwrap()), ..nat() };
    let desired = desired(vec![network], vec![port("lan", "a", true)]);
    let actions = plan(&desired, &kernel);
    assert!(matches!(actions[0], Action::ReplaceTables { .. }));
    let keys: Vec<_> = actions
        .iter()
        .filter_map(
            |action| if let Action::SetSysctl { key, .. } = action { Some(key.as_str()) } else { None },
        )
        .collect();
    assert_eq!(keys, ["net/ipv6/conf/eth1/accept_ra", FORWARD4, FORWARD6]);
    let first_link = actions.iter().position(|a| matches!(a, Action::CreateBridge { .. })).unwrap();
    let tap = actions.iter().position(|a| matches!(a, Action::CreateTap(_))).unwrap();
    assert!(first_link > 3 && tap > first_link);
}

#[test]
fn links_of_somebody_else_are_refused_and_never_removed() {
    let mut all = desired(vec![nat()], vec![port("lan", "a", true)]);
    let kernel = converged(&all);
    kernel.meddle(|host| {
        host.link("kvb-lan").alias = "kvmctl:ffffffffffffffffffffffffffffffff:networks/lan".to_owned();
        host.link("kvp-lan-a").group = 0;
    });
    let observed = observe(&kernel);
    let (network, port) = (nat(), port("lan", "a", true));
    assert_eq!(all.plan_network(&network, &observed).unwrap_err().reason(), "FOREIGN_LINK");
    assert_eq!(all.plan_port(&port, &observed).unwrap_err().reason(), "FOREIGN_LINK");
    assert_eq!(all.plan_network(&Network { deleting: true, ..network }, &observed).unwrap(), []);
    assert_eq!(all.plan_port(&Port { deleting: true, ..port }, &observed).unwrap(), []);
    all.networks.clear();
    assert_eq!(all.strays(&observed), [link("kvb-lan")]);
}

const MODES: [Mode; 3] = [Mode::Isolated, Mode::Nat, Mode::Routed];

prop_compose! {
    fn any_network()(mode in 0..3_usize, v6 in any::<bool>(), uplink in any::<bool>(), jumbo in any::<bool>()) -> (Mode, bool, bool, bool) {
        (MODES[mode], v6, uplink, jumbo)
    }
}

prop_compose! {
    fn any_desired()(
        networks in prop::collection::vec(any_network(), 1..6),
        ports in prop::collection::vec((0..6_usize, any::<bool>(), any::<[bool; 2]>()), 0..20),
        with_nic in any::<bool>(),
    ) -> (FakeKernel, Desired) {
        let (kernel, nic) = nic();
        let mut made: Vec<Network> = networks.iter().enumerate().map(|(at, (mode, v6, uplink, jumbo))| {
            let mut made = network(&format!("n{at}"), *mode);
            let gateway = mode.has_gateway();
            made.ipv4 = gateway.then(|| format!("10.{at}.0.1/16").parse().unwrap());
            made.ipv6 = (gateway && *v6).then(|| format!("fd00:{at}::1/64").parse().unwrap());
            made.spec.uplink = (gateway && *uplink).then(|| link("eth1"));
            made.mtu = if *jumbo { 9000 } else { 1500 };
            made
        }).collect();
        if with_nic {
            made.push(nic);
        }
        let ports = ports.iter().enumerate().map(|(at, (on, filter, limited))| {
            let mut port = port(made[on % made.len()].name.as_str(), &format!("p{at}"), *filter);
            let rate = Rate { bits_per_second: 8_000_000, burst_bytes: 20_000 };
            [port.spec.rate_in, port.spec.rate_out] = limited.map(|limited| limited.then_some(rate));
            port
        }).collect();
        (kernel, desired(made, ports))
    }
}

#[test]
fn a_cells_link_is_kept_but_not_made_and_reaches_no_host() {
    let cell = Cell { link: link("kvs-lab"), mac: Mac::derived("cell", 0) };
    let lab = Network { cell: Some(cell), ..network("lab", Mode::Isolated) };
    let desired = Desired {
        instance: "i".to_owned(),
        networks: BTreeMap::from([(lab.name.clone(), lab.clone())]),
        ..Desired::default()
    };
    assert!(desired.network_elements(&lab).0.contains(&Element::IsolatedTap(link("kvs-lab"))));
    let kernel = FakeKernel::new();
    let observe = || kernel.observe(&Scope::Host).now_or_never().unwrap().unwrap();
    kernel.prepare(&desired.plan_network(&lab, &observe()).unwrap());
    assert_eq!(desired.plan_network(&lab, &observe()).unwrap(), [], "it comes with its process");
    let (outer, inner_mac) = super::cell(&lab, "i").unwrap();
    kernel.prepare(&[Action::CreateCell(CellSpec { outer, inner_mac, pid: 1 })]);
    assert_eq!(desired.plan_network(&lab, &observe()).unwrap(), []);
    assert_eq!(desired.strays(&observe()), Vec::<IfName>::new());
    kernel.prepare(&[
        Action::SetMaster(link("kvs-lab"), None),
        Action::SetUp(link("kvs-lab"), false),
        Action::SetAlias(link("kvs-lab"), String::new()),
    ]);
    let repair = desired.plan_network(&lab, &observe()).unwrap();
    assert_eq!(repair.len(), 3, "{repair:?}");
    kernel.prepare(&repair);
    assert_eq!(desired.plan_network(&lab, &observe()).unwrap(), []);
    let gone = Network { deleting: true, ..lab };
    let removal = desired.plan_network(&gone, &observe()).unwrap();
    assert_eq!(removal, [Action::DeleteLink(link("kvs-lab")), Action::DeleteLink(link("kvb-lab"))]);
}

proptest! {
    #[test]
    fn one_round_converges_whatever_is_asked((kernel, mut desired) in any_desired(), gone in any::<prop::sample::Index>()) {
        let before = kernel.picture();
        kernel.prepare(&plan(&desired, &kernel));
        prop_assert_eq!(plan(&desired, &kernel), []);
        prop_assert_eq!(desired.strays(&observe(&kernel)), []);
        // Any link that somebody removes comes back the same.
        let good = kernel.picture();
        let ours: Vec<_> = good.links.iter().filter(|(_, l)| l.group == LINK_GROUP).map(|(n, _)| n.clone()).collect();
        let victim = gone.get(&ours);
        kernel.meddle(|host| host.delete_link(victim));
        kernel.prepare(&plan(&desired, &kernel));
        prop_assert_eq!(plan(&desired, &kernel), []);
        prop_assert_eq!(&kernel.picture(), &good);
        // And all of it goes without a trace, but for host-wide sysctls, whose former values nobody saved here.
        desired.ports.values_mut().for_each(|port| port.deleting = true);
        desired.networks.values_mut().for_each(|network| network.deleting = true);
        let removal: Vec<_> = plan(&desired, &kernel);
        kernel.prepare(&removal);
        desired.ports.clear();
        desired.networks.clear();
        kernel.prepare(&plan(&desired, &kernel));
        let after = kernel.picture();
        prop_assert_eq!((after.links, after.routes, after.tables), (before.links, before.routes, before.tables));
    }
}
