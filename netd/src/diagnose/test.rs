//! Rules as real programs wrote them, and hosts that are not as they should be.

mod health;
mod rules;

use super::{
    Finding,
    eval::{self, Judgement, Layer, Met},
    facts::{Facts, flow},
    iptables, nft,
    packet::{Packet, Protocol},
    rules::{Family, Hook, Ruleset},
};
use crate::model::IfName;
use serde_json::Value;

/// What each program wrote, recorded on a host that it alone was on: `nft -j list ruleset`, `nft -s -a list ruleset`,
/// and `iptables-nft-save`.
fn recorded(json: &str, text: &str) -> Ruleset {
    nft::ruleset(&serde_json::from_str(json).expect("JSON"), text)
}

fn docker() -> Ruleset {
    let mut ruleset =
        recorded(include_str!("testdata/docker.nft.json"), include_str!("testdata/docker.nft.txt"));
    iptables::fill(&mut ruleset, Family::Ip, include_str!("testdata/docker.save"));
    ruleset
}

fn firewalld() -> Ruleset {
    recorded(include_str!("testdata/firewalld.nft.json"), include_str!("testdata/firewalld.nft.txt"))
}

fn ufw() -> Ruleset {
    let mut ruleset = recorded(include_str!("testdata/ufw.nft.json"), include_str!("testdata/ufw.nft.txt"));
    iptables::fill(&mut ruleset, Family::Ip, include_str!("testdata/ufw.save"));
    iptables::fill(&mut ruleset, Family::Ip6, include_str!("testdata/ufw.save6"));
    ruleset
}

fn libvirt() -> Ruleset {
    let mut ruleset =
        recorded(include_str!("testdata/libvirt.nft.json"), include_str!("testdata/libvirt.nft.txt"));
    iptables::fill(&mut ruleset, Family::Ip, include_str!("testdata/libvirt.save"));
    ruleset
}

/// Rules in nft's own JSON, of one table `inet t` with a forward chain `f`.
fn forward(policy: &str, rules: &[Value], more: &[Value]) -> Ruleset {
    let mut objects = vec![serde_json::json!({"chain": {
        "family": "inet", "table": "t", "name": "f", "type": "filter", "hook": "forward", "prio": 0, "policy": policy
    }})];
    objects.extend(more.iter().cloned());
    objects.extend(rules.iter().enumerate().map(|(number, expr)| {
        serde_json::json!({"rule": {
            "family": "inet", "table": "t", "chain": "f", "handle": number + 1, "expr": expr
        }})
    }));
    nft::ruleset(&serde_json::json!({ "nftables": objects }), "")
}

fn name(text: &str) -> IfName {
    text.parse().expect("name")
}

/// The first packet from a guest to the outside, or the answer to it, at a hook.
fn at(ruleset: &Ruleset, hook: Hook, packet: Packet) -> Vec<Met> {
    eval::hook(ruleset, Layer::Ip { v4: packet.is_v4() }, hook, &packet)
}

fn out(kind: (Protocol, Option<u16>)) -> Packet {
    let ends = ["10.61.0.11", "1.1.1.1"].map(|address| address.parse().expect("address"));
    Packet::first(&flow(ends, kind)).by("kvb-lan", Some("up0"))
}

const TCP: (Protocol, Option<u16>) = (Protocol::Tcp, Some(443));
const UDP: (Protocol, Option<u16>) = (Protocol::Udp, Some(443));
const ICMP: (Protocol, Option<u16>) = (Protocol::Icmp, None);

/// The verdict of the last chain that was met.
fn last(met: &[Met]) -> &Judgement {
    &met.last().expect("a chain").judgement
}

fn errors(facts: &Facts) -> Vec<Finding> {
    super::diagnose(facts).into_iter().filter(|f| f.severity == super::Severity::Error).collect()
}
