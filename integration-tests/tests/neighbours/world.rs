//! A host with guests on networks of all modes, and what they must reach.

use integration_tests::{
    guest::Guest,
    host::{Outcome, TestHost},
    netns::Netns,
    wait,
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    process::{Child, Command},
};

/// Who, and its addresses.
const GUESTS: [(&str, &str, [&str; 2], [&str; 2]); 8] = [
    ("nat-a", "nat", ["10.61.0.11", "fd00:61::11"], ["10.61.0.1", "fd00:61::1"]),
    ("nat-b", "nat", ["10.61.0.12", "fd00:61::12"], ["10.61.0.1", "fd00:61::1"]),
    ("isolated-a", "isolated", ["10.62.0.11", "fd00:62::11"], ["10.62.0.1", "fd00:62::1"]),
    ("isolated-b", "isolated", ["10.62.0.12", "fd00:62::12"], ["10.62.0.1", "fd00:62::1"]),
    ("routed-a", "routed", ["10.63.0.11", "2001:db8:63::11"], ["10.63.0.1", "2001:db8:63::1"]),
    ("routed-b", "routed", ["10.63.0.12", "2001:db8:63::12"], ["10.63.0.1", "2001:db8:63::1"]),
    ("lan-a", "lan", ["10.99.0.11", "2001:db8:99::11"], ["10.99.0.1", "2001:db8:99::1"]),
    ("lan-b", "lan", ["10.99.0.12", "2001:db8:99::12"], ["10.99.0.1", "2001:db8:99::1"]),
];
/// All networks, one of each mode.
pub const ALL: &[&str] = &["nat", "isolated", "routed", "lan"];
/// The LAN's other host.
const LAN: [&str; 2] = ["10.99.0.1", "2001:db8:99::1"];

/// The host, its guests and its neighbours.
pub struct World {
    pub host: TestHost,
    guests: BTreeMap<&'static str, Guest>,
    neighbours: Vec<Child>,
}

impl World {
    /// With these networks, and bridge netfilter on: the worst case.
    pub fn new(networks: &[&str]) -> Self {
        let host = TestHost::new();
        host.netns
            .sh("sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1");
        for (subnet, gateway) in [("10.63.0.0/24", "10.99.0.2"), ("2001:db8:63::/64", "2001:db8:99::2")] {
            host.lan.sh(&format!("ip route add {subnet} via {gateway}"));
        }
        let mut world = Self { host, guests: BTreeMap::new(), neighbours: Vec::new() };
        world.add(networks);
        world.wait_for_all("before anybody else came");
        let healthy = world.doctor();
        assert_eq!(healthy.code, 0, "{}", healthy.stdout);
        world
    }

    /// Creates more networks with their guests.
    pub fn add(&mut self, networks: &[&str]) {
        for network in networks {
            self.host.ok(&format!(
                "network create {network} {}",
                match *network {
                    "nat" => "--mode nat --ipv4 10.61.0.1/24 --ipv6 fd00:61::1/64",
                    "isolated" => "--mode isolated --ipv4 10.62.0.1/24 --ipv6 fd00:62::1/64",
                    "routed" => "--mode routed --ipv4 10.63.0.1/24 --ipv6 2001:db8:63::1/64",
                    _ => "--mode bridged --uplink up0",
                }
            ));
        }
        for (name, network, addresses, gateways) in GUESTS {
            if !networks.contains(&network) {
                continue;
            }
            let ip = if network == "lan" {
                String::new()
            } else {
                addresses.map(|address| format!(" --ip {address}")).concat()
            };
            let port = self.host.ok_json(&format!("port create {network} {name}{ip}"));
            let field = |name: &str| port["status"][name].as_str().expect(name).to_owned();
            let guest = Guest::plug(&self.host.netns, &field("interface"), &field("mac"));
            guest.addresses(&[&format!("{}/24", addresses[0]), &format!("{}/64", addresses[1])]);
            guest.gateways(&gateways);
            self.guests.insert(name, guest);
        }
    }

    pub fn netns(&self, who: &str) -> &Netns {
        if who == "L" { &self.host.lan } else { &self.guests[who].netns }
    }

    fn addresses(who: &str) -> [&'static str; 2] {
        if who == "L" {
            return LAN;
        }
        GUESTS.iter().find(|(name, ..)| *name == who).expect("guest").2
    }

    pub fn reaches(&self, from: &str, to: &str) -> bool {
        self.netns(from).succeeds(&format!("ping -n -c 1 -W 1 {to}"))
    }

    /// Everything that is not as the modes promise: `nat-a -> L (10.99.0.1)`.
    pub fn broken(&self) -> Vec<String> {
        let allowed = [
            ("nat-a", "nat-b"),
            ("isolated-a", "isolated-b"),
            ("routed-a", "routed-b"),
            ("lan-a", "lan-b"),
            ("lan-a", "L"),
            ("L", "lan-b"),
            ("nat-a", "L"),
            ("routed-a", "L"),
            ("L", "routed-b"),
        ];
        let refused = [("nat-a", "isolated-a"), ("isolated-a", "L"), ("L", "nat-a"), ("routed-a", "nat-b")];
        let there = |who: &str| who == "L" || self.guests.contains_key(who);
        let all = allowed.map(|pair| (pair, true)).into_iter().chain(refused.map(|pair| (pair, false)));
        let mut broken = Vec::new();
        for ((from, to), wanted) in all.filter(|((from, to), _)| there(from) && there(to)) {
            for address in Self::addresses(to) {
                if self.reaches(from, address) != wanted {
                    broken.push(format!("{from} -> {to} ({address})"));
                }
            }
        }
        broken
    }

    /// Waits until all is as the modes promise; the first pings may be lost while neighbours are found.
    pub fn wait_for_all(&self, when: &str) {
        let mut broken = Vec::new();
        wait::until(&format!("the packet matrix {when}"), || {
            broken = self.broken();
            if !broken.is_empty() {
                eprintln!("{when}: {broken:?}");
            }
            broken.is_empty().then_some(())
        });
    }

    pub fn doctor(&self) -> Outcome {
        self.host.kvmctl(&["doctor", "-o", "json"])
    }

    /// What the doctor calls an error, after it has ended with 1.
    pub fn errors(&self) -> Vec<Value> {
        let outcome = self.doctor();
        assert_eq!(outcome.code, 1, "{}{}", outcome.stdout, outcome.stderr);
        let findings: Value = serde_json::from_str(&outcome.stdout).expect("JSON");
        let errors = findings.as_array().expect("findings").iter().filter(|f| f["severity"] == "error");
        errors.cloned().collect()
    }

    /// As a person would: all lines of all errors' fixes into a root shell.
    pub fn paste(&self, errors: &[Value], environment: &str) {
        for error in errors {
            let fix = error["fix"].as_str().unwrap_or_else(|| panic!("no fix: {error:#}"));
            println!("# {}\n{fix}", error["location"]);
            self.host.netns.sh(&format!("{environment}\n{fix}"));
        }
    }

    /// `kvmctl why`, whatever it says.
    pub fn why(&self, arguments: &str) -> Value {
        let mut words = vec!["why"];
        words.extend(arguments.split_whitespace());
        words.extend(["-o", "json"]);
        let outcome = self.host.kvmctl(&words);
        serde_json::from_str(&outcome.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}{}", outcome.stdout, outcome.stderr))
    }

    /// Where `why` and real packets disagree, over guests of all modes and both IP versions.
    pub fn disagreements(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (from, _, _, gateways) in GUESTS.iter().filter(|(name, ..)| name.ends_with("-a")) {
            let lan = *from == "lan-a";
            let others = ["nat-b", "isolated-b", "routed-b", "lan-b", "L"].into_iter();
            // What the LAN's own router does is not for this host to know.
            let others = others.filter(|to| !lan || to.starts_with("lan") || *to == "L");
            // To this host an isolated network's subnet is any other, which the LAN's router may know.
            let isolated = *from == "isolated-a";
            let others = others.filter(|to| isolated || !to.starts_with("isolated"));
            // A guest of the LAN answers by the LAN's router, which does not forward.
            let others = others.filter(|to| *from != "routed-a" || *to != "lan-b");
            let addresses = others.flat_map(Self::addresses).chain(*gateways).chain(["10.99.0.2"]);
            for address in addresses {
                // None is recorded of a guest of the LAN.
                let own = Self::addresses(from)[usize::from(address.contains(':'))];
                let why = self.why(&format!("{from} {address} --source {own}"));
                let arrives = self.reaches(from, address);
                // That nobody has an address is not for this host to know.
                let nobody = isolated && gateways.contains(&address);
                let agrees = match why["verdict"].as_str() {
                    Some("pass") => arrives,
                    Some("drop") => !arrives,
                    _ => nobody,
                };
                if !agrees {
                    let steps = why["steps"].as_array().into_iter().flatten();
                    let story: Vec<_> =
                        steps.map(|s| format!("{} {}: {}", s["verdict"], s["stage"], s["detail"])).collect();
                    wrong.push(format!("{from} -> {address} answered: {arrives}\n  {}", story.join("\n  ")));
                }
            }
        }
        wrong
    }

    /// As `why`, which has to say that the packet passes.
    pub fn passes(&self, arguments: &str) {
        let why = self.why(arguments);
        assert_eq!(why["verdict"], "pass", "{why:#}");
    }

    /// All tables but ours, without counters.
    pub fn foreign_tables(&self) -> String {
        let tables = self.host.netns.sh("nft list tables");
        let foreign = tables.lines().filter(|line| !line.contains("kvmctl"));
        foreign.map(|table| self.host.netns.sh(&format!("nft -s -a list {table}"))).collect()
    }

    /// Starts a neighbour in the host's namespace, with a /run of its own.
    pub fn start(&mut self, name: &str, script: &str) {
        let log = std::fs::File::create(self.host.path(&format!("{name}.log"))).expect("log");
        let child = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.host.netns.name()))
            .args(["unshare", "--mount", "sh", "-euc"])
            .arg(format!("mount -t tmpfs -o mode=755 none /run\ncd {}\n{script}", self.host.path("")))
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .spawn()
            .expect("nsenter");
        self.neighbours.push(child);
    }

    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.host.path(&format!("{name}.log"))).unwrap_or_default()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for child in &mut self.neighbours {
            // Asked first, so that it takes its own children along; the namespace's end takes the rest.
            let _ = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
        }
        for child in &mut self.neighbours {
            let _ = child.wait();
        }
    }
}
