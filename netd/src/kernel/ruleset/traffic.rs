//! What the sets that traffic fills tell: drops by reason, addresses seen, and what may be answered. Pure.

use super::{
    super::{Element, Elements, Traffic},
    TABLE,
    sets::{DROPS, FLOWS, SEEN},
};
use crate::model::IfName;
use serde_json::Value;
use shared::mac::Mac;
use std::{collections::BTreeMap, net::IpAddr};

/// Reads a listing of the bridge table.
#[must_use]
pub fn traffic(listing: &Value) -> Traffic {
    let mut traffic = Traffic::default();
    for set in listing.pointer("/nftables").and_then(Value::as_array).into_iter().flatten() {
        let Some(name) = set.pointer("/set/name").and_then(Value::as_str) else { continue };
        let members = set.pointer("/set/elem").and_then(Value::as_array).into_iter().flatten();
        if let Some((_, reason)) = DROPS.iter().find(|(set, _)| *set == name) {
            for (tap, frames) in members.filter_map(dropped) {
                traffic.taps.entry(tap).or_default().drops.insert((*reason).to_owned(), frames);
            }
        } else if SEEN.contains(&name) {
            for (tap, address) in members.filter_map(seen) {
                traffic.taps.entry(tap).or_default().seen.insert(address);
            }
        } else if FLOWS.contains(&name) {
            for (tap, flow) in members.filter_map(flow) {
                traffic.taps.entry(tap).or_default().flows.insert(flow);
            }
        }
    }
    traffic
}

/// Reads a listing of one of the sets of packets that the host dropped.
#[must_use]
pub fn dropped_by_host(listing: &Value) -> BTreeMap<(IfName, Mac), u64> {
    let sets = listing.pointer("/nftables").and_then(Value::as_array).into_iter().flatten();
    let members = sets.filter_map(|set| set.pointer("/set/elem").and_then(Value::as_array)).flatten();
    members
        .filter_map(|member| {
            let packets = member.pointer("/elem/counter/packets")?.as_u64()?;
            let parts = key(member).pointer("/concat")?.as_array()?;
            let mac = parts.get(1)?.as_str()?.parse().ok()?;
            Some(((parts.first()?.as_str()?.parse().ok()?, mac), packets))
        })
        .collect()
}

/// Commands that put it back into new tables, in nft's own language, for the taps that are still there.
pub(super) fn text(traffic: &Traffic, elements: &Elements) -> String {
    let there = |tap: &IfName| elements.0.contains(&Element::Tap(tap.clone()));
    let mut text = String::new();
    for (tap, left) in traffic.taps.iter().filter(|(tap, _)| there(tap)) {
        for (reason, frames) in &left.drops {
            if let Some((set, _)) = DROPS.iter().find(|(_, known)| known == reason) {
                let member = format!("\"{tap}\" counter packets {frames} bytes 0");
                text += &format!("add element bridge {TABLE} {set} {{ {member} }}\n");
            }
        }
        for address in &left.seen {
            let set = SEEN[usize::from(address.is_ipv6())];
            text += &format!("add element bridge {TABLE} {set} {{ \"{tap}\" . {address} }}\n");
        }
        for (from, to, source, destination) in &left.flows {
            let set = FLOWS[usize::from(from.is_ipv6())];
            let member = format!("\"{tap}\" . {from} . {to} . {source} . {destination}");
            text += &format!("add element bridge {TABLE} {set} {{ {member} }}\n");
        }
    }
    text
}

/// The key of a member that carries more than its key.
fn key(member: &Value) -> &Value {
    member.pointer("/elem/val").unwrap_or(member)
}

fn dropped(member: &Value) -> Option<(IfName, u64)> {
    let frames = member.pointer("/elem/counter/packets")?.as_u64()?;
    Some((key(member).as_str()?.parse().ok()?, frames))
}

fn seen(member: &Value) -> Option<(IfName, IpAddr)> {
    let parts = key(member).pointer("/concat")?.as_array()?;
    Some((tap(parts)?, address(parts, 1)?))
}

fn flow(member: &Value) -> Option<(IfName, (IpAddr, IpAddr, u16, u16))> {
    let parts = key(member).pointer("/concat")?.as_array()?;
    let port = |at: usize| u16::try_from(parts.get(at)?.as_u64()?).ok();
    Some((tap(parts)?, (address(parts, 1)?, address(parts, 2)?, port(3)?, port(4)?)))
}

/// nft shows the name that belongs to an index, and the bare number of a tap that is gone.
fn tap(parts: &[Value]) -> Option<IfName> {
    let tap = parts.first()?.as_str()?;
    if tap.bytes().all(|b| b.is_ascii_digit()) { None } else { tap.parse().ok() }
}

fn address(parts: &[Value], at: usize) -> Option<IpAddr> {
    parts.get(at)?.as_str()?.parse().ok()
}

#[cfg(test)]
mod test {
    use super::*;
    use serde_json::json;

    #[test]
    fn drops_and_addresses_are_told_by_tap() {
        let listing = json!({"nftables": [
            {"set": {"name": "kv_drop_arp", "elem": [
                {"elem": {"val": "kvp-a", "counter": {"packets": 7, "bytes": 420}}},
                {"elem": {"val": "kvp-b", "counter": {"packets": 5_000_000_000_u64, "bytes": 1}}}]}},
            {"set": {"name": "kv_seen4", "elem": [
                {"elem": {"val": {"concat": ["kvp-a", "10.0.0.2"]}, "timeout": 1800, "expires": 3}}]}},
            {"set": {"name": "kv_seen6", "elem": [
                {"elem": {"val": {"concat": ["kvp-a", "fe80::1"]}, "timeout": 1800, "expires": 3}}]}},
            {"set": {"name": "kv_flow4", "elem": [
                {"elem": {"val": {"concat": ["kvp-a", "10.0.0.2", "10.0.0.3", 4000, 53]}, "timeout": 120, "expires": 3}}]}},
            {"set": {"name": "kv_mac", "elem": [{"concat": ["kvp-a", "52:54:00:00:00:01"]}]}}]});
        let traffic = traffic(&listing);
        let a = &traffic.taps[&"kvp-a".parse().unwrap()];
        assert_eq!(a.drops, [("arp".to_owned(), 7)].into());
        assert_eq!(a.flows, [("10.0.0.2".parse().unwrap(), "10.0.0.3".parse().unwrap(), 4000, 53)].into());
        assert_eq!(a.seen, ["10.0.0.2".parse().unwrap(), "fe80::1".parse().unwrap()].into());
        assert_eq!(traffic.taps[&"kvp-b".parse().unwrap()].drops["arp"], 5_000_000_000);
    }
}
