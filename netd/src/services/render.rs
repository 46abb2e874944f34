//! dnsmasq's configuration, made of validated values only. Pure.
//!
//! Text that a client chose is a `Name`, a `Domain` or an `IfName`, and has neither blanks nor commas nor line ends; a
//! guest's own words are nowhere in it.

use crate::model::{Mode, Network, Port, Services, Upstreams};
use ipnet::IpNet;
use std::{fmt::Write as _, net::IpAddr};

/// Cached answers, and questions that may wait for upstream servers at once.
const CACHE: u32 = 1000;
/// Only known MACs get an address, so that the number of ports is the true bound.
const MOST_LEASES: u32 = 100_000;
/// Seconds between unasked router advertisements, and how long guests may use the router after the last one.
const ADVERTISE: (u32, u32) = (60, 1800);
/// Enterprise number of examples (RFC 5612), under which each network has an identity in DHCPv6 (DUID-EN). Without one
/// dnsmasq makes up another whenever its lease file is lost, and guests could not renew.
const ENTERPRISE: u32 = 32_473;

/// Where dnsmasq runs, and as whom.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// The folder of the network, without characters that mean something to dnsmasq.
    pub folder: &'a str,
    /// The interface that guests are behind.
    pub interface: &'a str,
    /// User and group to change to; `None`: it cannot change, and need not.
    pub user: Option<(&'a str, &'a str)>,
}

/// The configuration file.
#[must_use]
pub fn config(network: &Network, services: &Services, around: Surroundings<'_>) -> String {
    let Surroundings { folder, interface, user } = around;
    let mut text = String::from("# Made by netd, which writes it anew.\n");
    let mut line = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    line("keep-in-foreground\nlog-facility=-\nquiet-dhcp\nquiet-dhcp6\nquiet-ra\npid-file".to_owned());
    if let Some((user, group)) = user {
        line(format!("user={user}\ngroup={group}"));
    }
    // Nothing but the network, even with every packet rule gone.
    line(format!("interface={interface}\nexcept-interface=lo\nbind-dynamic"));
    line(format!("cache-size={CACHE}\ndns-forward-max={CACHE}\nno-hosts\nhostsdir={folder}/names"));
    let domain = &services.domain;
    line(format!("domain={domain}\nlocal=/{domain}/\ndomain-needed"));
    match &services.upstreams {
        Upstreams::None => line("no-resolv".to_owned()),
        // A resolver of the host's that asks us would ask for ever.
        Upstreams::Host => line("resolv-file=/etc/resolv.conf\ndns-loop-detect".to_owned()),
        Upstreams::These(addresses) => {
            line("no-resolv\ndns-loop-detect".to_owned());
            addresses.iter().for_each(|address| line(format!("server={address}")));
        }
    }
    for net in [network.ipv4.map(IpNet::V4), network.ipv6.map(IpNet::V6)].into_iter().flatten() {
        line(format!("rev-server={}/{}", net.network(), net.prefix_len()));
    }
    line(format!(
        "dhcp-leasefile={folder}/leases\ndhcp-hostsdir={folder}/hosts\ndhcp-lease-max={MOST_LEASES}"
    ));
    // The server for these MACs, which the port filter vouches for. What a guest calls itself does not count: by its name
    // or client identifier it could be taken for another one. Nobody else has a static address.
    line("dhcp-authoritative\ndhcp-ignore-names\ndhcp-ignore-clid\nno-ping".to_owned());
    dhcp4(network, services, &mut line);
    dhcp6(network, services, interface, &mut line);
    text
}

fn dhcp4(network: &Network, services: &Services, line: &mut impl FnMut(String)) {
    let Some(net) = network.ipv4 else { return };
    let gateway = net.addr();
    line(format!("dhcp-range={},static,{},{}", net.network(), net.netmask(), services.lease_seconds));
    // Without a value: no such option, where dnsmasq would send one.
    line(match network.spec.mode {
        Mode::Isolated => "dhcp-option=option:router".to_owned(),
        _ => format!("dhcp-option=option:router,{gateway}"),
    });
    line(format!("dhcp-option=option:dns-server,{gateway}\ndhcp-option=option:mtu,{}", network.mtu));
    line(format!("dhcp-option=option:domain-search,{}", services.domain));
}

fn dhcp6(network: &Network, services: &Services, interface: &str, line: &mut impl FnMut(String)) {
    let Some(net) = network.ipv6 else { return };
    let gateway = net.addr();
    // Guests form an address of 64 bits of prefix. dnsmasq knows no shorter prefix: of a larger subnet, the part that
    // the gateway is in is advertised.
    let (length, slaac) = if net.prefix_len() <= 64 { (64, ",slaac") } else { (net.prefix_len(), "") };
    let start = ipnet::Ipv6Net::new_assert(gateway, length).network();
    line("enable-ra".to_owned());
    line(format!("dhcp-range={start},static{slaac},{length},{}", services.lease_seconds));
    line(format!("dhcp-duid={ENTERPRISE},{}", network.uid.simple()));
    line(format!("dhcp-option=option6:dns-server,[{gateway}]"));
    line(format!("dhcp-option=option6:domain-search,{}", services.domain));
    let (every, lifetime) = ADVERTISE;
    let lifetime = if network.spec.mode == Mode::Isolated { 0 } else { lifetime };
    line(format!("ra-param={interface},mtu:{},{every},{lifetime}", network.mtu));
}

/// What a port has in the folder `hosts`: its MAC, and the addresses and name that DHCP gives to it.
#[must_use]
pub fn reservation(network: &Network, port: &Port) -> String {
    let mut text = port.mac.to_string();
    if let Some(v4) = port.ipv4.filter(|_| network.ipv4.is_some()) {
        let _ = write!(text, ",{v4}");
    }
    if let Some(v6) = port.ipv6.filter(|_| network.ipv6.is_some()) {
        let _ = write!(text, ",[{v6}]");
    }
    let name = port.hostname().as_str();
    // dnsmasq finds the others by their address in the folder `names`.
    if !is_keyword(name) {
        let _ = write!(text, ",{name}");
    }
    text + "\n"
}

/// Whether dnsmasq would take a host name for a lease time or a keyword.
fn is_keyword(name: &str) -> bool {
    let number = name.strip_suffix(['s', 'm', 'h', 'd', 'w']).unwrap_or(name);
    matches!(name, "ignore" | "infinite" | "deprecated") || number.bytes().all(|b| b.is_ascii_digit())
}

/// What a port has in the folder `names`: in DNS its address has these names, the first one in reverse.
#[must_use]
pub fn names(services: &Services, port: &Port) -> String {
    let domain = &services.domain;
    let own = [port.ipv4.map(IpAddr::V4), port.ipv6.map(IpAddr::V6)];
    let mut text = String::new();
    for address in own.into_iter().flatten() {
        let name = port.hostname();
        let _ = write!(text, "{address} {name}.{domain} {name}");
        if *name != port.name {
            let _ = write!(text, " {0}.{domain} {0}", port.name);
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod test;
