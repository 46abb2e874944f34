//! Everybody's rules, which are no less than hostile: any program of the host may have written them.

use super::{
    eval::{self, Judgement, Layer},
    facts::flow,
    iptables, nft,
    packet::{Fact, Packet, Protocol},
    program,
    rules::{Family, Field, Hook},
    traced,
};
use crate::{fuzz::Outcome, kernel::TraceFlow};
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A JSON document with `json` and `text` of nft, `save` of iptables, and `trace` of `nft monitor trace`.
///
/// # Errors
/// If it is no JSON, or no packet meets a rule.
pub fn foreign_rules(data: &[u8]) -> Outcome {
    let document: Value = serde_json::from_slice(data).map_err(|_| "no JSON")?;
    let text = |key: &str| document.get(key).and_then(Value::as_str).unwrap_or_default();
    let mut ruleset = nft::ruleset(document.get("json").unwrap_or(&Value::Null), text("text"));
    iptables::fill(&mut ruleset, Family::Ip, text("save"));
    iptables::add_legacy(&mut ruleset, Family::Ip6, text("save"));
    let v4 = [Ipv4Addr::new(10, 61, 0, 11), Ipv4Addr::new(1, 1, 1, 1)].map(IpAddr::V4);
    let v6 = [Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x11), Ipv6Addr::LOCALHOST].map(IpAddr::V6);
    let mut met = 0;
    for (ends, kind, answers) in [
        (v4, (Protocol::Tcp, Some(443)), false),
        (v6, (Protocol::Udp, Some(67)), true),
        (v4, (Protocol::Icmp, None), true),
    ] {
        let flow = flow(ends, kind);
        let packet = if answers { Packet::answer(&flow, true) } else { Packet::first(&flow) };
        let packet = packet.by("kvb-lan", Some("up0"));
        let frame = packet.clone().with(Field::Bridged, Fact::Flag(true));
        for hook in [Hook::Ingress, Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output] {
            for (layer, packet) in [
                (Layer::Ip { v4: ends[0].is_ipv4() }, &packet),
                (Layer::Bridge, &frame),
                (Layer::Device("up0"), &packet),
            ] {
                for one in eval::hook(&ruleset, layer, hook, packet) {
                    met += 1;
                    if let Judgement::Drop { by } = &one.judgement {
                        let _ = program::of(&ruleset, by);
                        let _ = program::fix(&ruleset, by, &Default::default());
                    }
                }
            }
        }
    }
    let trace: Vec<String> = text("trace").lines().map(str::to_owned).collect();
    let watched = TraceFlow {
        tap: "kvp-a".parse().ok(),
        source: v4[0],
        destination: v4[1],
        protocol: "tcp",
        port: Some(443),
    };
    let traced = traced::read(&trace, &watched);
    assert!(traced.lines.len() <= 50);
    if met == 0 && traced.packets == 0 { Err("no packet meets a rule".into()) } else { Ok(()) }
}
