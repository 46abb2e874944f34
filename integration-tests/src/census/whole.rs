//! The picture of everything that a daemon can leave behind: the host's network, processes, folders, and what the
//! daemon itself holds.

use super::{Census, without};
use crate::{group::Group, host::TestHost, wait};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
};

/// One part each, after a line of its own with its name.
const SCRIPT: &str = "
    part() { echo \"=== $1\"; shift; \"$@\"; echo; }
    part links ip -j -d link
    part addresses ip -j address
    part routes ip -j route show table all
    part fdb bridge -j fdb
    part rules nft -s list ruleset
    part qdiscs tc -j qdisc
    for link in $(ip -br link | sed -n 's/^\\(kv[a-z]-[^ @]*\\).*/\\1/p'); do
        part \"filters $link\" tc -j filter show dev $link ingress
    done
    part flows cat /proc/net/nf_conntrack
    cd /proc/sys/net
    part sysctls grep -s . ipv4/ip_forward bridge/bridge-nf-call-* \\
        ipv4/conf/*/accept_redirects ipv4/conf/*/send_redirects ipv4/conf/*/proxy_arp ipv4/conf/*/arp_ignore \\
        ipv4/conf/*/rp_filter ipv4/conf/*/forwarding ipv6/conf/*/disable_ipv6 ipv6/conf/*/accept_ra \\
        ipv6/conf/*/accept_redirects ipv6/conf/*/addr_gen_mode ipv6/conf/*/forwarding || :
";

/// What comes and goes by itself, and numbers that the kernel gives.
const VOLATILE: [&str; 22] = [
    "ifindex",
    "link_index",
    "link_netnsid",
    "operstate",
    "flags",
    "promiscuity",
    "allmulti",
    "state",
    "id",
    "no",
    "port_id",
    "port_no",
    "designated_port",
    "valid_life_time",
    "preferred_life_time",
    "tentative",
    "nodad",
    "handle",
    "root_id",
    "designated_bridge",
    "bridge_id",
    "fdb_n_learned",
];

impl Census {
    /// Takes the complete picture of a host. Numbers and addresses that are made by chance (those of links, MACs of
    /// bridges and cells, the instance) have the same words in each picture.
    #[must_use]
    pub fn whole(host: &TestHost) -> Self {
        let mut parts = wait::until("link-local addresses", || {
            let text = host.netns.sh(SCRIPT);
            let parts = split(&text);
            super::settled(&json(&parts["addresses"])).then_some(parts)
        });
        let mut chance = chance(&json(&parts["links"]), &parts["rules"]);
        chance.push((host.dir.path().display().to_string(), "DIR".to_owned()));
        parts.insert("processes".to_owned(), processes(host));
        let groups = host.group.iter().flat_map(Group::tree);
        let groups = groups.map(|(name, members)| format!("{name}: {members} processes"));
        parts.insert("control groups".to_owned(), groups.collect::<Vec<_>>().join("\n"));
        for folder in ["netd-state", "netd-run"] {
            parts.insert(folder.to_owned(), folder_of(&host.dir.path().join(folder)));
        }
        // Before anything is sorted.
        for text in parts.values_mut() {
            for (word, name) in &chance {
                *text = text.replace(word, name);
            }
        }
        let tidied = parts.iter().map(|(name, text)| (name.clone(), tidy(name, text)));
        let census = tidied.filter(|(name, text)| !name.starts_with("filters") || text != "[]").collect();
        Self(census)
    }

    /// Looks until the host is as `self` says: what a daemon does after its answer, it does soon.
    ///
    /// # Panics
    /// With the first difference, if it never is.
    pub fn await_same(&self, host: &TestHost) {
        let mut now = None;
        let same = || {
            let census = Self::whole(host);
            let same = census == *self;
            now = Some(census);
            same.then_some(())
        };
        if wait::try_until(SOON, same).is_none()
            && let Some(now) = now
        {
            self.assert_same(&now);
        }
    }
}

/// Bound of `await_same`.
const SOON: std::time::Duration = std::time::Duration::from_secs(15);

fn split(text: &str) -> BTreeMap<String, String> {
    let mut parts = BTreeMap::new();
    for part in text.split("=== ").skip(1) {
        let (name, content) = part.split_once('\n').unwrap_or((part, ""));
        parts.insert(name.to_owned(), content.trim().to_owned());
    }
    parts
}

fn json(text: &str) -> Value {
    if text.is_empty() {
        return Value::Array(Vec::new());
    }
    serde_json::from_str(text).unwrap_or_else(|e| panic!("no JSON ({e}): {text}"))
}

/// Words that are made by chance, with what stands for them.
fn chance(links: &Value, rules: &str) -> Vec<(String, String)> {
    let mut words = Vec::new();
    if let Some((_, after)) = rules.split_once("chain kv_mark_") {
        let instance = after.split_whitespace().next().unwrap_or_default();
        words.push((instance.to_owned(), "INSTANCE".to_owned()));
    }
    for link in links.as_array().into_iter().flatten() {
        let name = link["ifname"].as_str().unwrap_or_default();
        if let Some(instance) = link["ifalias"].as_str().and_then(|alias| alias.split(':').nth(1)) {
            words.push((instance.to_owned(), "INSTANCE".to_owned()));
        }
        if name.starts_with("kvb-") || name.starts_with("kvs-") || name.starts_with("kvi-") {
            let mac = link["address"].as_str().unwrap_or_default();
            words.push((mac.to_owned(), format!("MAC-{name}")));
        }
    }
    words
}

fn tidy(name: &str, text: &str) -> String {
    match name.split(' ').next().unwrap_or_default() {
        "links" => {
            let mut links = json(text);
            for link in links.as_array_mut().into_iter().flatten() {
                // Of the flags, what an administrator sets.
                let up = link["flags"].as_array().is_some_and(|flags| flags.iter().any(|flag| flag == "UP"));
                link["up"] = up.into();
            }
            without(links, &VOLATILE)
        }
        "addresses" => {
            let mut addresses = json(text);
            super::drop_link_local(&mut addresses);
            for link in addresses.as_array_mut().into_iter().flatten() {
                if let Some(list) = link["addr_info"].as_array_mut() {
                    list.sort_by_key(ToString::to_string);
                }
            }
            without(addresses, &VOLATILE)
        }
        "routes" => {
            let mut routes = json(text);
            super::drop_link_local_routes(&mut routes);
            without(routes, &VOLATILE)
        }
        "fdb" => {
            let mut entries = json(text);
            if let Some(entries) = entries.as_array_mut() {
                entries.retain(|entry| entry["state"] == "static");
                for entry in entries {
                    // A cell's MAC is made by chance.
                    if entry["ifname"].as_str().is_some_and(|name| name.starts_with("kvs-")) {
                        entry["mac"] = "MAC".into();
                    }
                }
            }
            without(entries, &[])
        }
        "qdiscs" => {
            let mut qdiscs = json(text);
            if let Some(qdiscs) = qdiscs.as_array_mut() {
                // Those that the kernel gives each link come when it comes up.
                qdiscs.retain(|qdisc| qdisc["kind"] == "tbf" || qdisc["kind"] == "ingress");
            }
            without(qdiscs, &[])
        }
        "filters" => without(json(text), &[]),
        "flows" => {
            let translated = text.lines().filter_map(translated);
            translated.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join("\n")
        }
        "sysctls" => {
            let mut lines: Vec<_> = text.lines().collect();
            lines.sort_unstable();
            lines.join("\n")
        }
        _ => text.to_owned(),
    }
}

/// Protocol and addresses of a flow whose answers come from somebody else than it was sent to.
fn translated(line: &str) -> Option<String> {
    let values = |key: &str| -> Vec<&str> {
        line.split(' ').filter_map(|word| word.strip_prefix(key)?.strip_prefix('=')).collect()
    };
    let (sources, destinations) = (values("src"), values("dst"));
    let (ports, protocol) = (values("dport"), line.split_whitespace().nth(2)?);
    (sources.len() == 2 && destinations.first()? != sources.last()?).then(|| {
        format!(
            "{protocol} to {} {} answered by {}",
            destinations[0],
            ports.first().unwrap_or(&""),
            sources[1]
        )
    })
}

/// Programs that a daemon has started and that work in its run folder, with the sort of network namespace, and those
/// that have ended and were not asked for their status.
fn processes(host: &TestHost) -> String {
    let own = fs::read_link(format!("/run/netns/{}", host.netns.name())).ok();
    let inside = host.netns.enter(|| fs::read_link("/proc/thread-self/ns/net").ok()).or(own);
    let run = host.path("netd-run/");
    let mut found: Vec<String> = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let read = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
        let words = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        if words.contains(&run) {
            let same = fs::read_link(entry.path().join("ns/net")).ok() == inside;
            let place = if same { "on the host" } else { "in a namespace of its own" };
            found.push(format!("{} {place}", words.trim()));
            continue;
        }
        let stat = String::from_utf8_lossy(&read("stat")).into_owned();
        let after: Vec<&str> =
            stat.rsplit_once(')').map(|(_, after)| after.split_whitespace().collect()).unwrap_or_default();
        let child = after.get(1).is_some_and(|parent| parent.parse().ok() == host.netd_id());
        if child && after.first() == Some(&"Z") {
            let name = stat.split(['(', ')']).nth(1).unwrap_or_default();
            found.push(format!("ended and not reaped: {name}"));
        }
    }
    found.sort();
    found.join("\n")
}

/// Everything in a folder, with mode and owner; how long files are is their owner's matter.
fn folder_of(folder: &Path) -> String {
    fn walk(top: &Path, path: &Path, text: &mut Vec<String>) {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            let name = entry.path().strip_prefix(top).unwrap_or(path).display().to_string();
            // The store writes its copy some seconds later, by itself; the audit log stays.
            if name.starts_with("state.sqlite.copy") || name.starts_with("audit.jsonl") {
                continue;
            }
            text.push(format!("{name} {:o} {}:{}", meta.mode(), meta.uid(), meta.gid()));
            if meta.is_dir() {
                walk(top, &entry.path(), text);
            }
        }
    }
    let mut lines = Vec::new();
    walk(folder, folder, &mut lines);
    lines.sort();
    lines.join("\n")
}
