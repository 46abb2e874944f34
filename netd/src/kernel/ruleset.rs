//! The packet rules: two tables whose chains and rules never change, and sets that hold everything else. Pure.
//!
//! `bridge kvmctl` (`ruleset/bridge.nft`) checks what a guest puts on the wire, `inet kvmctl` (`ruleset/inet.nft`) what
//! passes or reaches the host; `ruleset/*-groups.nft` is what both have for groups. They are in nft's own language: the JSON of nft 1.0.6 cannot declare the sets of raw
//! bytes that neighbour discovery is compared with. What changes from port to port goes by JSON.

mod sets;
mod traffic;

use super::{Element, Elements, Traffic};
use nftables::{
    batch::Batch,
    schema::{NfListObject, Table},
    types::NfFamily,
};
use serde_json::Value;
use sets::{element, fields, filled_by_traffic, members};
use std::collections::BTreeSet;

pub use sets::{HOST_DROPS, HOST_LIMITS};
pub use traffic::{dropped_by_host, traffic};

/// Name of both tables.
pub const TABLE: &str = "kvmctl";
/// An empty chain whose name carries the instance: nft 1.0.6 has no table comments in JSON.
pub const MARK: &str = "kv_mark_";
/// Both families that have a table, with the static part of it. A chain comes before those that jump to it.
const TABLES: [(NfFamily, [&str; 2]); 2] = [
    (NfFamily::Bridge, [include_str!("ruleset/bridge-groups.nft"), include_str!("ruleset/bridge.nft")]),
    (NfFamily::INet, [include_str!("ruleset/inet-groups.nft"), include_str!("ruleset/inet.nft")]),
];
/// Both families that have a table.
pub const FAMILIES: [NfFamily; 2] = [NfFamily::Bridge, NfFamily::INet];

/// nft's word for a family of ours.
#[must_use]
pub fn word(family: NfFamily) -> &'static str {
    match family {
        NfFamily::Bridge => "bridge",
        _ => "inet",
    }
}

/// One table as `nft -j list table` prints it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Everything static, in a form that is equal exactly when the rules are.
    pub rules: String,
    /// Instance of the mark chain.
    pub instance: Option<String>,
    /// Members of our sets. A member that is not ours or does not parse is in `rules`, so that it shows.
    pub elements: Elements,
}

/// Reads a listing.
#[must_use]
pub fn read(listing: &Value) -> Listing {
    let mut read = Listing::default();
    let mut others = BTreeSet::new();
    let mut rules = Vec::new();
    for object in listing.pointer("/nftables").and_then(Value::as_array).into_iter().flatten() {
        if object.get("metainfo").is_some() {
            continue;
        }
        let mut object = object.clone();
        if let Some(name) = object.pointer("/chain/name").and_then(Value::as_str)
            && let Some(instance) = name.strip_prefix(MARK)
        {
            read.instance = Some(instance.to_owned());
        }
        let sort = if object.get("map").is_some() { "map" } else { "set" };
        if let Some(set) = object.get_mut(sort).and_then(Value::as_object_mut) {
            let name = set.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
            let found = set.remove("elem").filter(|_| !filled_by_traffic(&name));
            for member in found.as_ref().and_then(Value::as_array).into_iter().flatten() {
                let fields = fields(member);
                match element(&name, &fields) {
                    Some(element) => drop(read.elements.0.insert(element)),
                    None => drop(others.insert((name.clone(), fields.join(" . ")))),
                }
            }
        }
        forget_changing(&mut object);
        rules.push(object.to_string());
    }
    let implied: BTreeSet<_> =
        read.elements.0.iter().flat_map(|e| members(e).split_off(1)).map(|member| member.key()).collect();
    rules.extend(others.difference(&implied).map(|(set, member)| format!("{set} has {member}")));
    rules.extend(implied.difference(&others).map(|(set, member)| format!("{set} lacks {member}")));
    read.rules = rules.join("\n");
    read
}

/// Removes what differs from one listing to the next though the rules are the same.
fn forget_changing(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("handle");
            if let Some(counter) = map.get_mut("counter").and_then(Value::as_object_mut) {
                counter.remove("packets");
                counter.remove("bytes");
            }
            map.values_mut().for_each(forget_changing);
            // The order of an anonymous set's members is the kernel's.
            if let Some(members) = map.get_mut("set").and_then(Value::as_array_mut) {
                members.sort_by_key(Value::to_string);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(forget_changing),
        _ => {}
    }
}

/// One transaction, in nft's own language, that leaves both tables as they must be, whatever they were; `traffic` is
/// what was counted and seen until now.
#[must_use]
pub fn replace(instance: &str, elements: &Elements, traffic: &Traffic) -> String {
    let mut text = String::new();
    for (family, rules) in TABLES {
        let family = word(family);
        // `delete` alone fails where there is no table; nft 1.0.6 has no `destroy`.
        text += &format!("add table {family} {TABLE}\ndelete table {family} {TABLE}\n");
        text += &rules.concat();
        text += &format!("add chain {family} {TABLE} {MARK}{instance}\n");
    }
    text + &sets::text(elements) + &traffic::text(traffic, elements)
}

/// The members that elements stand for, in words.
#[must_use]
pub fn describe(elements: &Elements) -> Vec<String> {
    let keys = elements.0.iter().flat_map(|element| members(element).into_iter().map(|m| m.key()));
    keys.map(|(set, member)| format!("`{member}` in {set}")).collect()
}

/// One transaction that removes and adds members.
#[must_use]
pub fn change(remove: &Elements, add: &Elements) -> Batch<'static> {
    let gone = remove.0.difference(&add.0).filter_map(|element| match element {
        Element::Tap(tap) => Some(tap),
        _ => None,
    });
    let removed: Vec<_> = sets::objects(remove).into_iter().chain(gone.flat_map(sets::counters)).collect();
    let mut batch = Batch::new();
    // Deleting a missing member fails the transaction: add it first.
    removed.iter().for_each(|object| batch.add(object.clone()));
    removed.into_iter().for_each(|object| batch.delete(object));
    sets::objects(add).into_iter().for_each(|object| batch.add(object));
    batch
}

/// One transaction that removes both tables.
#[must_use]
pub fn remove() -> Batch<'static> {
    let mut batch = Batch::new();
    for family in FAMILIES {
        batch.add(table(family));
        batch.delete(table(family));
    }
    batch
}

fn table(family: NfFamily) -> NfListObject<'static> {
    NfListObject::Table(Table { family, name: TABLE.into(), handle: None })
}

#[cfg(test)]
mod test;
