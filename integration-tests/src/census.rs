//! A complete picture of a host, by tools that are not ours, to compare before and after.

mod whole;

use crate::{host::TestHost, netns::Netns, wait};
use serde_json::Value;
use std::{collections::BTreeMap, fs, path::Path};

/// Everything that a test may have changed on a host. Two are equal exactly when nothing is left behind.
#[derive(Debug, PartialEq)]
pub struct Census(BTreeMap<String, String>);

impl Census {
    /// Takes the picture of a namespace.
    #[must_use]
    pub fn of(netns: &Netns) -> Self {
        settle(netns);
        let mut census = BTreeMap::new();
        // A bridge has `tso_max_size` of the ports that it had, also when they are gone.
        census.insert(
            "links",
            without(
                netns.json("ip -j -d link"),
                &["operstate", "flags", "promiscuity", "allmulti", "state", "tso_max_size"],
            ),
        );
        let mut addresses = netns.json("ip -j address");
        drop_link_local(&mut addresses);
        census.insert(
            "addresses",
            without(
                addresses,
                &["operstate", "flags", "valid_life_time", "preferred_life_time", "tentative", "nodad"],
            ),
        );
        // Of both families.
        let mut routes = netns.json("ip -j route show table all");
        drop_link_local_routes(&mut routes);
        census.insert("routes", without(routes, &["flags"]));
        // Learnt and multicast entries come and go with traffic.
        let mut fdb = netns.json("bridge -j fdb");
        if let Some(entries) = fdb.as_array_mut() {
            entries.retain(|entry| entry["state"] == "static");
        }
        census.insert("fdb", without(fdb, &[]));
        // Stateless: counters of packets that the host sends by itself, such as IGMP reports, are no change.
        census.insert("rules", netns.sh("nft -s list ruleset"));
        census.insert(
            "forwarding",
            netns.sh(
                "sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding net.ipv4.conf.all.accept_redirects",
            ),
        );
        Self(census.into_iter().map(|(what, text)| (what.to_owned(), text)).collect())
    }

    /// Panics with the first difference.
    ///
    /// # Panics
    /// If there is one.
    pub fn assert_same(&self, now: &Self) {
        for (what, before) in &self.0 {
            let now = now.0.get(what).map_or("", String::as_str);
            let gone: Vec<_> = before.lines().filter(|line| !now.contains(line)).collect();
            let new: Vec<_> = now.lines().filter(|line| !before.contains(line)).collect();
            let moved = gone.is_empty() && new.is_empty() && before != now;
            let all = if moved { format!("\n{before}\nis now\n{now}") } else { String::new() };
            assert!(before == now, "{what} changed:\ngone {gone:#?}\nnew {new:#?}{all}");
        }
        let new: Vec<_> = now.0.iter().filter(|(what, _)| !self.0.contains_key(*what)).collect();
        assert!(new.is_empty(), "new: {new:#?}");
    }
}

/// Waits until the kernel has given each running link of the host's own its link-local address.
fn settle(netns: &Netns) {
    wait::until("link-local addresses", || settled(&netns.json("ip -j address")).then_some(()));
}

fn settled(links: &Value) -> bool {
    links.as_array().into_iter().flatten().all(|link| {
        let own = !link["ifname"].as_str().unwrap_or_default().starts_with("kv");
        let addressed = || {
            let addresses = link["addr_info"].as_array().into_iter().flatten();
            addresses.into_iter().any(|a| a["scope"] == "link" && a["tentative"] != true)
        };
        !own || link["operstate"] != "UP" || link.get("master").is_some() || addressed()
    })
}

/// A bridge of netd with IPv6 gets its link-local address, and the route to it, when the kernel finds time.
fn drop_link_local(addresses: &mut Value) {
    for link in addresses.as_array_mut().into_iter().flatten() {
        let ours = link["ifname"].as_str().is_some_and(|name| name.starts_with("kvb-"));
        if let Some(list) = link["addr_info"].as_array_mut().filter(|_| ours) {
            list.retain(|address| address["scope"] != "link");
        }
    }
}

/// As `drop_link_local`, of routes.
fn drop_link_local_routes(routes: &mut Value) {
    if let Some(routes) = routes.as_array_mut() {
        let begins = |route: &Value, key: &str, with: &str| {
            route[key].as_str().is_some_and(|text| text.starts_with(with))
        };
        // That of all groups comes with a carrier, if not at once.
        let kernels = |route: &Value| begins(route, "dst", "fe80:") || route["dst"] == "ff00::/8";
        routes.retain(|route| !(begins(route, "dev", "kvb-") && kernels(route)));
    }
}

/// Names of what lies in a folder of the host's, files of the state store aside.
#[must_use]
pub fn left_in(host: &TestHost, folder: &str) -> Vec<String> {
    fn walk(path: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, found);
            }
            found.push(path.display().to_string());
        }
    }
    let mut found = Vec::new();
    walk(&host.dir.path().join(folder), &mut found);
    found.retain(|path| {
        !path.contains("state.sqlite") && !path.ends_with("/lock") && !path.ends_with(".sock")
    });
    found.sort();
    found
}

/// Drops what changes by itself, such as carriers and lifetimes.
fn without(mut value: Value, keys: &[&str]) -> String {
    fn strip(value: &mut Value, keys: &[&str]) {
        match value {
            Value::Object(map) => {
                map.retain(|key, _| !keys.contains(&key.as_str()) && !key.ends_with("_timer"));
                map.values_mut().for_each(|value| strip(value, keys));
            }
            Value::Array(items) => items.iter_mut().for_each(|value| strip(value, keys)),
            _ => {}
        }
    }
    strip(&mut value, keys);
    // The kernel's order of entries says nothing.
    if let Some(items) = value.as_array_mut() {
        items.sort_by_key(ToString::to_string);
    }
    serde_json::to_string_pretty(&value).unwrap_or_default()
}
