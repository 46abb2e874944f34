//! A look at the whole host for a diagnosis: everybody's rules, and what the kernel says of routes. Changes nothing.

use super::{
    LinuxKernel, nft, program, sysctl,
    trace::{self, TraceFlow},
};
use crate::model::IfName;
use futures_util::{StreamExt as _, TryStreamExt as _};
use rtnetlink::{
    RouteMessageBuilder,
    packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        link::{InfoBridge, InfoData, LinkAttribute, LinkInfo, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
    },
};
use serde_json::Value;
use shared::fault::{Fault, Kind};
use std::{collections::BTreeMap, fmt, fs, future::Future, net::IpAddr, time::Duration};

/// errno values that say why a packet would have no route.
const EXDEV: i32 = 18;
const EINVAL: i32 = 22;
const EACCES: i32 = 13;
const ENETUNREACH: i32 = 101;
const EHOSTUNREACH: i32 = 113;

/// What a diagnosis looks at beside links and routes.
#[derive(Debug)]
pub struct Inspection {
    /// `nft -j list ruleset` and `nft -a list ruleset`, or why there is none.
    pub rules: Result<(Value, String), Fault>,
    /// What iptables says of rules that nft has no words for.
    pub saves: Vec<Save>,
    /// Sysctls of single links, by key.
    pub sysctls: BTreeMap<String, String>,
    /// Bridges whose own switch of bridge netfilter is on, for IPv4 and IPv6.
    pub netfilter: BTreeMap<IfName, [bool; 2]>,
    /// Programs that are not there.
    pub missing: Vec<&'static str>,
}

/// Output of `iptables-save` or its like.
#[derive(Debug)]
pub struct Save {
    /// IPv4, not IPv6.
    pub v4: bool,
    /// Of the kernel's old iptables, not of nftables' tables.
    pub legacy: bool,
    /// What it printed.
    pub text: String,
}

/// What the kernel is asked of a route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteQuery {
    /// Where to.
    pub to: IpAddr,
    /// From which address; `None`: the host's own choice.
    pub from: Option<IpAddr>,
    /// By which interface the packet came in; `None`: it is the host's own.
    pub iif: Option<IfName>,
}

/// What the kernel says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteAnswer {
    /// It goes on.
    Unicast {
        /// By this interface.
        oif: IfName,
        /// To this next hop; `None`: on the link.
        gateway: Option<IpAddr>,
    },
    /// It is for this host.
    Local,
    /// It ends here.
    Refused(Refusal),
}

/// Why the kernel would not route a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No route leads there.
    NoRoute,
    /// A route says unreachable, or the interface it came in by does not forward.
    Unreachable,
    /// A route says prohibit.
    Prohibited,
    /// The way back leads to another interface, and strict reverse path filtering is on.
    ReversePath,
    /// An address that may not be seen there, or a route that says blackhole.
    Martian,
    /// In the kernel's words.
    Other(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoRoute => "no route leads there",
            Self::Unreachable => "a route says unreachable, or that interface does not forward",
            Self::Prohibited => "a route says prohibit",
            Self::ReversePath => {
                "the way back leads to another interface, and strict reverse path filtering is on"
            }
            Self::Martian => "an address that may not be seen there, or a route that says blackhole",
            Self::Other(words) => words,
        })
    }
}

/// Reads more of the host than netd needs for itself.
pub trait Inspect: Send + Sync + 'static {
    /// Everybody's rules, and switches of single links.
    ///
    /// # Errors
    /// INTERNAL if links or sysctls cannot be read.
    fn inspect(&self) -> impl Future<Output = Result<Inspection, Fault>> + Send;

    /// Asks for a route, as `ip route get` does: nothing is sent.
    ///
    /// # Errors
    /// INTERNAL if the kernel cannot be asked. That there is no route is an answer.
    fn route(&self, query: &RouteQuery) -> impl Future<Output = Result<RouteAnswer, Fault>> + Send;

    /// Watches real packets for `limit`, see `trace::watch`.
    ///
    /// # Errors
    /// As `trace::watch`.
    fn trace(
        &self,
        flow: &TraceFlow,
        instance: &str,
        limit: Duration,
    ) -> impl Future<Output = Result<Vec<String>, Fault>> + Send;
}

impl Inspect for LinuxKernel {
    async fn inspect(&self) -> Result<Inspection, Fault> {
        let rules = nft::everything().await;
        let xt =
            rules.as_ref().is_ok_and(|(_, text)| text.contains("xt match") || text.contains("xt target"))
                || rules.as_ref().is_ok_and(|(json, _)| has_xt(json));
        let mut saves = Vec::new();
        for v4 in [true, false] {
            let name = if v4 { "iptables" } else { "ip6tables" };
            if xt && let Some(text) = save(&format!("{name}-nft-save")).await {
                saves.push(Save { v4, legacy: false, text });
            }
            // Only where there are such tables: asking for them by name would make them.
            let tables = if v4 { "ip_tables_names" } else { "ip6_tables_names" };
            let any = fs::read_to_string(format!("/proc/self/net/{tables}")).unwrap_or_default();
            if !any.trim().is_empty()
                && let Some(text) = save(&format!("{name}-legacy-save")).await
            {
                saves.push(Save { v4, legacy: true, text });
            }
        }
        let mut netfilter = BTreeMap::new();
        let mut sysctls = BTreeMap::new();
        for message in self.link_messages().await? {
            let Some(name) = name(&message) else { continue };
            if let Some(own) = own_netfilter(&message) {
                netfilter.insert(name.clone(), own);
            }
            // A tap has no addresses, and there may be many.
            if !is_tap(&message) {
                for key in
                    [format!("net/ipv4/conf/{name}/rp_filter"), format!("net/ipv4/conf/{name}/forwarding")]
                {
                    sysctls.extend(sysctl::read(&key)?.map(|value| (key, value)));
                }
            }
        }
        for key in ["net/ipv4/conf/all/rp_filter", "net/bridge/bridge-nf-call-ip6tables"] {
            sysctls.extend(sysctl::read(key)?.map(|value| (key.to_owned(), value)));
        }
        let missing = ["nft", "dnsmasq"].into_iter().filter(|program| !program::exists(program)).collect();
        Ok(Inspection { rules, saves, sysctls, netfilter, missing })
    }

    async fn route(&self, query: &RouteQuery) -> Result<RouteAnswer, Fault> {
        let answer = self.ask(query).await?;
        match (&answer, &query.iif, query.from) {
            (RouteAnswer::Refused(Refusal::Martian), Some(iif), Some(from)) if from.is_ipv4() => {
                Ok(self.reason(query.to, from, iif).await?.map_or(answer, RouteAnswer::Refused))
            }
            _ => Ok(answer),
        }
    }

    async fn trace(&self, flow: &TraceFlow, instance: &str, limit: Duration) -> Result<Vec<String>, Fault> {
        trace::watch(flow, instance, limit).await
    }
}

impl LinuxKernel {
    async fn ask(&self, query: &RouteQuery) -> Result<RouteAnswer, Fault> {
        let iif = match &query.iif {
            Some(name) => Some(self.index(name).await?),
            None => None,
        };
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetRoute(route_request(query, iif)));
        request.header.flags = NLM_F_REQUEST;
        let failed = |e: &dyn std::error::Error| {
            Fault::new(Kind::Internal, "NETLINK", format!("cannot ask for the route to {}", query.to))
                .cause(e)
        };
        let mut answers = self.netlink().request(request).map_err(|e| failed(&e))?;
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::Error(error) => {
                    return Ok(RouteAnswer::Refused(refusal(-error.raw_code())));
                }
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => {
                    return self.route_answer(&route).await;
                }
                _ => {}
            }
        }
        Err(Fault::new(Kind::Internal, "NETLINK", format!("no answer on the route to {}", query.to)))
    }

    /// Why the kernel refuses a packet that came in by `iif`: since Linux 6.14 it says EINVAL whatever the reason.
    async fn reason(&self, to: IpAddr, from: IpAddr, iif: &IfName) -> Result<Option<Refusal>, Fault> {
        let own = |to| RouteQuery { to, from: None, iif: None };
        if let RouteAnswer::Refused(why) = self.ask(&own(to)).await? {
            return Ok(Some(why));
        }
        let number = |key: &str| -> Result<u8, Fault> {
            Ok(sysctl::read(key)?.and_then(|value| value.parse().ok()).unwrap_or(0))
        };
        if number(&format!("net/ipv4/conf/{iif}/forwarding"))? == 0 {
            return Ok(Some(Refusal::Unreachable));
        }
        // The larger of both counts: 1 is strict, 2 is loose.
        let filter =
            number("net/ipv4/conf/all/rp_filter")?.max(number(&format!("net/ipv4/conf/{iif}/rp_filter"))?);
        let back = self.ask(&own(from)).await?;
        let elsewhere = !matches!(&back, RouteAnswer::Unicast { oif, .. } if oif == iif);
        let nowhere = matches!(back, RouteAnswer::Refused(_));
        Ok((filter == 1 && elsewhere || filter == 2 && nowhere).then_some(Refusal::ReversePath))
    }

    async fn link_messages(&self) -> Result<Vec<LinkMessage>, Fault> {
        let _dump = self.dump.lock().await;
        let links = self.netlink().link().get().execute();
        links
            .try_collect()
            .await
            .map_err(|e| Fault::new(Kind::Internal, "NETLINK", "cannot list the links").cause(&e))
    }

    async fn route_answer(&self, route: &RouteMessage) -> Result<RouteAnswer, Fault> {
        match route.header.kind {
            RouteType::Local | RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast => {
                return Ok(RouteAnswer::Local);
            }
            RouteType::BlackHole => return Ok(RouteAnswer::Refused(Refusal::Martian)),
            RouteType::Unreachable => return Ok(RouteAnswer::Refused(Refusal::NoRoute)),
            RouteType::Prohibit => return Ok(RouteAnswer::Refused(Refusal::Prohibited)),
            _ => {}
        }
        let mut oif = None;
        let mut gateway = None;
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Oif(index) => oif = Some(*index),
                RouteAttribute::Gateway(RouteAddress::Inet(v4)) => gateway = Some(IpAddr::V4(*v4)),
                RouteAttribute::Gateway(RouteAddress::Inet6(v6)) => gateway = Some(IpAddr::V6(*v6)),
                _ => {}
            }
        }
        let Some(index) = oif else { return Ok(RouteAnswer::Refused(Refusal::NoRoute)) };
        let failed = |e| Fault::new(Kind::Internal, "NETLINK", "cannot look at a link").cause(&e);
        let link =
            self.netlink().link().get().match_index(index).execute().try_next().await.map_err(failed)?;
        let named = link.as_ref().and_then(name);
        Ok(named.map_or(RouteAnswer::Refused(Refusal::NoRoute), |oif| RouteAnswer::Unicast { oif, gateway }))
    }
}

/// Runs one program for what it says; `None` if it is not there or has nothing to say.
async fn save(program: &str) -> Option<String> {
    if !program::exists(program) {
        return None;
    }
    let output = program::run(program, &[], &[]).await.ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn has_xt(json: &Value) -> bool {
    let rules = json.pointer("/nftables").and_then(Value::as_array).into_iter().flatten();
    let parts = rules.filter_map(|o| o.pointer("/rule/expr")?.as_array()).flatten();
    parts.into_iter().any(|part| part.get("xt").is_some())
}

fn name(message: &LinkMessage) -> Option<IfName> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => name.parse().ok(),
        _ => None,
    })
}

fn infos(message: &LinkMessage) -> impl Iterator<Item = &LinkInfo> {
    message
        .attributes
        .iter()
        .filter_map(|a| if let LinkAttribute::LinkInfo(i) = a { Some(i) } else { None })
        .flatten()
}

fn is_tap(message: &LinkMessage) -> bool {
    infos(message).any(|info| matches!(info, LinkInfo::Data(InfoData::Tun(_))))
}

pub(super) fn own_netfilter(message: &LinkMessage) -> Option<[bool; 2]> {
    let data = infos(message)
        .find_map(|i| if let LinkInfo::Data(InfoData::Bridge(b)) = i { Some(b) } else { None })?;
    let mut own = [false; 2];
    for attribute in data {
        match attribute {
            InfoBridge::NfCallIpTables(on) => own[0] = *on,
            InfoBridge::NfCallIp6Tables(on) => own[1] = *on,
            _ => {}
        }
    }
    Some(own)
}

fn route_request(query: &RouteQuery, iif: Option<u32>) -> RouteMessage {
    let mut message = RouteMessageBuilder::<IpAddr>::new().build();
    let length = if query.to.is_ipv4() { 32 } else { 128 };
    message.header = Default::default();
    message.header.address_family = match query.to {
        IpAddr::V4(_) => rtnetlink::packet_route::AddressFamily::Inet,
        IpAddr::V6(_) => rtnetlink::packet_route::AddressFamily::Inet6,
    };
    message.header.destination_prefix_length = length;
    message.attributes.push(RouteAttribute::Destination(query.to.into()));
    if let Some(from) = query.from {
        message.header.source_prefix_length = length;
        message.attributes.push(RouteAttribute::Source(from.into()));
    }
    message.attributes.extend(iif.map(RouteAttribute::Iif));
    message
}

fn refusal(errno: i32) -> Refusal {
    match errno {
        ENETUNREACH => Refusal::NoRoute,
        EHOSTUNREACH => Refusal::Unreachable,
        EACCES => Refusal::Prohibited,
        EXDEV => Refusal::ReversePath,
        EINVAL => Refusal::Martian,
        other => Refusal::Other(std::io::Error::from_raw_os_error(other).to_string()),
    }
}
