//! What is fuzzed: each function takes any bytes, and says whether it took them for something, or why not.
//!
//! cargo-fuzz calls them from `integration-tests/fuzz`, the tests below from mutated seeds. What has to hold of what
//! was accepted is asserted in them.

pub mod netd;

pub use crate::{
    capture::fuzz::{filter_program, pcapng},
    diagnose::fuzz::foreign_rules,
    kernel::fuzz::{conntrack, netlink, nft_listing, sockets},
    server::fuzz::netd_requests,
    services::fuzz::leases,
};
pub use netd::netd_records;

/// Taken for something, or refused for a reason of few words.
pub type Outcome = Result<(), String>;

#[cfg(test)]
mod test {
    use mutate::{Campaign, Form};

    #[test]
    fn netlink() {
        Campaign::new("netlink", Form::Bytes).run(super::netlink);
    }

    #[test]
    fn conntrack() {
        Campaign::new("conntrack", Form::Bytes).run(super::conntrack);
    }

    #[test]
    fn sockets() {
        let tokens = ["0A", "07", "0035", "FFFF", "00000000000000000000000001000000"];
        Campaign::new("sockets", Form::Text).tokens(&tokens).run(super::sockets);
    }

    #[test]
    fn nft_listing() {
        let tokens = [
            "set",
            "map",
            "chain",
            "rule",
            "elem",
            "name",
            "concat",
            "prefix",
            "range",
            "val",
            "counter",
            "packets",
            "kv_tap",
            "kv_mac",
            "kv_arp",
            "kv_ip6",
            "kv_forward4",
            "kv_any_forward6",
            "kv_open4",
            "kv_subnet4",
            "kv_drop_arp",
            "kv_drop_mac",
            "kv_seen4",
            "kv_seen6",
            "kv_flow4",
            "kv_flow6",
            "kv_gateway6",
            "kv_mark_0123",
            "kvp-a",
            "10.0.0.2",
            "fd00::2",
            "10.0.0.0/24",
            "0x50",
            "0xffff",
            "52:54:00:00:00:01",
            "tcp",
            "a\nb",
            "x\" }",
            "};flush ruleset",
            "",
        ];
        Campaign::new("nft_listing", Form::Json).tokens(&tokens).run(super::nft_listing);
    }

    #[test]
    fn foreign_rules() {
        let tokens = [
            "match",
            "left",
            "right",
            "op",
            "==",
            "!=",
            "in",
            "payload",
            "protocol",
            "field",
            "meta",
            "key",
            "ct",
            "jump",
            "goto",
            "target",
            "return",
            "accept",
            "drop",
            "vmap",
            "set",
            "xt",
            "prefix",
            "addr",
            "len",
            "range",
            "concat",
            "ip",
            "ip6",
            "inet",
            "bridge",
            "forward",
            "input",
            "DOCKER-USER",
            "FORWARD",
            "tcp",
            "dport",
            "iifname",
            "oifname",
            "state",
            "established",
            "@s",
            "-j",
            "-A",
            "-m",
            "--dport",
            "! -i",
        ];
        Campaign::new("foreign_rules", Form::Json).tokens(&tokens).run(super::foreign_rules);
    }

    #[test]
    fn leases() {
        let tokens = ["duid", "*", "52:54:00:aa:bb:cc", "10.61.0.11", "fd00::1", "-1", "9223372036854775808"];
        Campaign::new("leases", Form::Text).tokens(&tokens).run(super::leases);
    }

    #[test]
    fn filter_program() {
        let tokens = ["tcp port 80", "-w", "vlan", "6 0 0 96", "4096", "host a.b", "--"];
        Campaign::new("filter_program", Form::Text).tokens(&tokens).run(super::filter_program);
    }

    const TOKENS: [&str; 40] = [
        "networks/lan",
        "networks/lab",
        "networks/-",
        "networks/lan/ports/web",
        "networks/lan/ports/db",
        "networks/lan/forwards/-",
        "networks/lan/forwards/udp-8053",
        "groups/web",
        "groups/db",
        "web",
        "db",
        "db-1",
        "eth0",
        "eth1",
        "br-lan",
        "lo",
        "kvb-lan",
        "10.9.0.1/24",
        "10.9.0.7",
        "10.9.0.255",
        "192.0.2.1/24",
        "0.0.0.0/0",
        "fd00:9::1/64",
        "fd00:9::7",
        "::/0",
        "fe80::1",
        "127.0.0.1/8",
        "224.0.0.1",
        "52:54:00:00:00:01",
        "01:00:5e:00:00:01",
        "spec.mtu",
        "spec.groups",
        "spec.rules",
        "spec.services.dhcp",
        "labels",
        "*",
        "a\nb",
        "isolated",
        "nat",
        "kvp",
    ];

    #[test]
    fn netd_requests() {
        Campaign::new("netd_requests", Form::Requests).tokens(&TOKENS).run(super::netd_requests);
    }

    #[test]
    fn netd_records() {
        Campaign::new("netd_records", Form::Json).tokens(&TOKENS).run(super::netd_records);
    }

    #[test]
    fn pcapng() {
        Campaign::new("pcapng", Form::Bytes).run(super::pcapng);
    }
}
