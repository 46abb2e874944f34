//! Groups.

use super::{invalid, labels, mask, missing, time};
use crate::{
    model::{Allowance, Direction, GroupSpec, IpProtocol, Remote, Rule},
    reconciler::{GroupChange, GroupView, NewGroup},
};
use ipnet::IpNet;
use proto::netd::v1::{self as wire, GroupDefault, RuleDirection, RuleProtocol, group_rule};
use shared::{
    fault::Fault,
    name::{Name, printable},
};
use std::{collections::BTreeSet, net::IpAddr};

/// Most rules of one group.
const MOST_RULES: usize = 64;

/// Checks a request to create a group.
pub fn new_group(group: Option<wire::Group>) -> Result<NewGroup, Fault> {
    let group = group.ok_or_else(|| missing("group"))?;
    let name = Name::from_resource(&group.name, "groups")?;
    let spec = spec(&group.spec.unwrap_or_default())
        .map_err(|fault| fault.context(format!("the spec of group `{name}` is not valid")))?;
    if spec.rules.iter().any(|rule| !rule.id.is_empty()) {
        return Err(invalid("INVALID_RULE_ID", "a rule of a new group has an id")
            .hint("leave it empty: netd gives one"));
    }
    Ok(NewGroup { name, spec, labels: labels(group.labels)? })
}

/// Checks a request to change a group.
pub fn group_change(request: wire::UpdateGroupRequest) -> Result<(Name, GroupChange), Fault> {
    let group = request.group.ok_or_else(|| missing("group"))?;
    let name = Name::from_resource(&group.name, "groups")?;
    let spec = group.spec.unwrap_or_default();
    let mut change = GroupChange {
        generation: (request.expected_generation != 0).then_some(request.expected_generation),
        ..GroupChange::default()
    };
    for path in mask(request.update_mask, "spec.rules")? {
        match path.as_str() {
            "labels" => change.labels = Some(labels(group.labels.clone())?),
            "spec.default_in" => change.deny_in = Some(denies(spec.default_in, Direction::In)?),
            "spec.default_out" => change.deny_out = Some(denies(spec.default_out, Direction::Out)?),
            "spec.rules" => change.rules = Some(rules(&spec.rules)?),
            other => {
                return Err(invalid("INVALID_MASK", format!("a group has no field `{}`", printable(other)))
                    .hint("such as labels, spec.default_in, spec.rules"));
            }
        }
    }
    Ok((name, change))
}

fn spec(spec: &wire::GroupSpec) -> Result<GroupSpec, Fault> {
    Ok(GroupSpec {
        deny_in: denies(spec.default_in, Direction::In)?,
        deny_out: denies(spec.default_out, Direction::Out)?,
        rules: rules(&spec.rules)?,
    })
}

fn denies(default: i32, direction: Direction) -> Result<bool, Fault> {
    match GroupDefault::try_from(default) {
        Ok(GroupDefault::Unspecified) => Ok(direction == Direction::In),
        Ok(GroupDefault::Allow) => Ok(false),
        Ok(GroupDefault::Deny) => Ok(true),
        Err(_) => Err(invalid("INVALID_DEFAULT", format!("there is no default of number {default}"))
            .hint("deny or allow")),
    }
}

fn rules(rules: &[wire::GroupRule]) -> Result<Vec<Rule>, Fault> {
    if rules.len() > MOST_RULES {
        let message = format!("{} rules of one group, and {MOST_RULES} is the most", rules.len());
        return Err(invalid("TOO_MANY_RULES", message).hint("a port can be in several groups"));
    }
    let mut checked: Vec<Rule> = Vec::new();
    for (at, wire) in rules.iter().enumerate() {
        let number = at + 1;
        let rule = rule(wire).map_err(|fault| fault.context(format!("rule {number} is not valid")))?;
        if let Some(first) = checked.iter().position(|other| other.allows == rule.allows) {
            return Err(invalid(
                "DUPLICATE_RULE",
                format!("rule {number} allows the very same as rule {}", first + 1),
            ));
        }
        checked.push(rule);
    }
    Ok(checked)
}

fn rule(rule: &wire::GroupRule) -> Result<Rule, Fault> {
    let direction = match rule.direction() {
        RuleDirection::In => Direction::In,
        RuleDirection::Out => Direction::Out,
        RuleDirection::Unspecified => {
            return Err(invalid("INVALID_DIRECTION", "the direction is missing").hint("in or out"));
        }
    };
    let protocol = match rule.protocol() {
        RuleProtocol::Tcp => IpProtocol::Tcp,
        RuleProtocol::Udp => IpProtocol::Udp,
        RuleProtocol::Icmp => IpProtocol::Icmp,
        RuleProtocol::Any => IpProtocol::Any,
        RuleProtocol::Unspecified => {
            return Err(
                invalid("INVALID_PROTOCOL", "the protocol is missing").hint("one of tcp, udp, icmp, any")
            );
        }
    };
    let ports = rule.ports.as_ref().map(ports).transpose()?;
    if ports.is_some() && !matches!(protocol, IpProtocol::Tcp | IpProtocol::Udp) {
        return Err(invalid("PORT_WITHOUT_PROTOCOL", "only TCP and UDP have ports")
            .hint("leave the port out, or name tcp or udp"));
    }
    let remote = match &rule.remote {
        None => Remote::Any,
        Some(group_rule::Remote::RemoteCidr(cidr)) => Remote::Net(cidr_of(cidr)?),
        Some(group_rule::Remote::RemoteGroup(name)) => Remote::Group(Name::from_resource(name, "groups")?),
    };
    Ok(Rule { id: rule.id.clone(), allows: Allowance { direction, protocol, ports, remote } })
}

fn ports(range: &wire::PortRange) -> Result<(u16, u16), Fault> {
    let last = if range.last == 0 { range.first } else { range.last };
    let port = |number: u32| {
        u16::try_from(number).ok().filter(|port| *port != 0).ok_or_else(|| {
            invalid("INVALID_PORT", format!("there is no port {number}"))
                .hint("from 1 to 65535; leave it out for all ports")
        })
    };
    let (first, last) = (port(range.first)?, port(last)?);
    if first > last {
        return Err(invalid("INVALID_PORT", format!("the range from {first} to {last} is empty"))
            .hint(format!("write {last}-{first}")));
    }
    Ok((first, last))
}

fn cidr_of(text: &str) -> Result<IpNet, Fault> {
    let net = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(|e| {
        invalid("INVALID_CIDR", format!("`{}` is not an address prefix", printable(text)))
            .cause(&e)
            .hint("such as 10.0.0.0/8, fd00:1::/64 or 192.0.2.7")
    })?;
    if net != net.trunc() {
        return Err(invalid("INVALID_CIDR", format!("{net} has bits of a host in it")).hint(format!(
            "write {} for that prefix, or {} for that host",
            net.trunc(),
            net.addr()
        )));
    }
    Ok(net)
}

/// A group for the wire.
pub fn group(view: GroupView) -> wire::Group {
    let GroupView { group, ports, referring } = view;
    let default = |deny| if deny { GroupDefault::Deny } else { GroupDefault::Allow }.into();
    wire::Group {
        name: group.resource(),
        uid: group.uid.to_string(),
        generation: group.generation,
        create_time: time(group.created),
        update_time: time(group.updated),
        spec: Some(wire::GroupSpec {
            default_in: default(group.deny_in),
            default_out: default(group.deny_out),
            rules: group.rules.iter().map(rule_for_wire).collect(),
        }),
        status: Some(wire::GroupStatus {
            port_count: u32::try_from(ports).unwrap_or(u32::MAX),
            referring_groups: referring.iter().map(|name| format!("groups/{name}")).collect(),
            state: wire::ObjectState::Ready.into(),
            error: String::new(),
        }),
        labels: group.labels.into_iter().collect(),
    }
}

fn rule_for_wire(rule: &Rule) -> wire::GroupRule {
    let Allowance { direction, protocol, ports, remote } = &rule.allows;
    let direction = match direction {
        Direction::In => RuleDirection::In,
        Direction::Out => RuleDirection::Out,
    };
    let protocol = match protocol {
        IpProtocol::Tcp => RuleProtocol::Tcp,
        IpProtocol::Udp => RuleProtocol::Udp,
        IpProtocol::Icmp => RuleProtocol::Icmp,
        IpProtocol::Any => RuleProtocol::Any,
    };
    wire::GroupRule {
        id: rule.id.clone(),
        direction: direction.into(),
        protocol: protocol.into(),
        ports: ports.map(|(first, last)| wire::PortRange { first: first.into(), last: last.into() }),
        remote: match remote {
            Remote::Any => None,
            Remote::Net(net) => Some(group_rule::Remote::RemoteCidr(net.to_string())),
            Remote::Group(name) => Some(group_rule::Remote::RemoteGroup(format!("groups/{name}"))),
        },
    }
}

/// The groups of a port for the wire.
pub fn group_names(group: &BTreeSet<Name>) -> Vec<String> {
    group.iter().map(|name| format!("groups/{name}")).collect()
}

#[cfg(test)]
mod test;
