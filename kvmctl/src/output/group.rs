//! Groups as they are printed.

use super::{
    Object,
    broken::{self, Broken},
    last_part, set,
    text::{Sheet, count},
    time::rfc3339,
    word,
};
use proto::netd::v1::{
    self as wire, GroupDefault, ObjectState, RuleDirection, RuleProtocol, group_rule::Remote,
};
use serde::Serialize;
use std::collections::BTreeMap;

/// A group.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    /// Its bare name.
    pub name: String,
    /// UUID.
    pub uid: String,
    /// Counts changes of the spec.
    pub generation: i64,
    /// When it was recorded.
    pub create_time: Option<String>,
    /// When its record last changed.
    pub update_time: Option<String>,
    /// Free text.
    pub labels: BTreeMap<String, String>,
    /// What was asked for.
    pub spec: GroupSpec,
    /// What came of it.
    pub status: GroupStatus,
}

/// What was asked for.
#[derive(Clone, Debug, Serialize)]
pub struct GroupSpec {
    /// allow or deny.
    pub default_in: String,
    /// allow or deny.
    pub default_out: String,
    /// What is allowed.
    pub rules: Vec<Rule>,
}

/// Something that is allowed.
#[derive(Clone, Debug, Serialize)]
pub struct Rule {
    /// Given by netd.
    pub id: String,
    /// in or out.
    pub direction: String,
    /// tcp, udp, icmp or any.
    pub protocol: String,
    /// Null: all ports, or none.
    pub first_port: Option<u32>,
    /// Null: as `first_port`.
    pub last_port: Option<u32>,
    /// Null: anybody, or a group.
    pub remote_cidr: Option<String>,
    /// Bare name. Null: anybody, or a prefix.
    pub remote_group: Option<String>,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct GroupStatus {
    /// ready or broken.
    pub state: String,
    /// Why it is broken.
    pub error: Option<String>,
    /// Number of ports that are in it.
    pub port_count: u32,
    /// Bare names of other groups whose rules name it.
    pub referring_groups: Vec<String>,
}

impl From<wire::GroupRule> for Rule {
    fn from(rule: wire::GroupRule) -> Self {
        let direction = RuleDirection::try_from(rule.direction).ok().map(|d| d.as_str_name());
        let protocol = RuleProtocol::try_from(rule.protocol).ok().map(|p| p.as_str_name());
        let (remote_cidr, remote_group) = match rule.remote {
            None => (None, None),
            Some(Remote::RemoteCidr(cidr)) => (set(cidr), None),
            Some(Remote::RemoteGroup(name)) => (None, Some(last_part(&name))),
        };
        Self {
            id: rule.id,
            direction: word(direction, "RULE_DIRECTION_", "unknown"),
            protocol: word(protocol, "RULE_PROTOCOL_", "unknown"),
            first_port: rule.ports.as_ref().map(|ports| ports.first),
            last_port: rule.ports.as_ref().map(|ports| ports.last),
            remote_cidr,
            remote_group,
        }
    }
}

impl Rule {
    /// `in tcp 80-90 from group web`.
    fn words(&self) -> String {
        let ports = match (self.first_port, self.last_port) {
            (Some(first), Some(last)) if first == last => format!(" {first}"),
            (Some(first), Some(last)) => format!(" {first}-{last}"),
            _ => String::new(),
        };
        let way = if self.direction == "out" { "to" } else { "from" };
        let remote = match (&self.remote_cidr, &self.remote_group) {
            (Some(cidr), _) => format!(" {way} {cidr}"),
            (_, Some(group)) => format!(" {way} group {group}"),
            _ => String::new(),
        };
        format!("{} {}{ports}{remote}", self.direction, self.protocol)
    }
}

impl From<wire::Group> for Group {
    fn from(group: wire::Group) -> Self {
        let spec = group.spec.unwrap_or_default();
        let status = group.status.unwrap_or_default();
        let state = ObjectState::try_from(status.state).ok().map(|state| state.as_str_name());
        let default = |value: i32, unset| {
            word(GroupDefault::try_from(value).ok().map(|d| d.as_str_name()), "GROUP_DEFAULT_", unset)
        };
        Self {
            name: last_part(&group.name),
            uid: group.uid,
            generation: group.generation,
            create_time: rfc3339(group.create_time.as_ref()),
            update_time: rfc3339(group.update_time.as_ref()),
            labels: group.labels.into_iter().collect(),
            spec: GroupSpec {
                default_in: default(spec.default_in, "deny"),
                default_out: default(spec.default_out, "allow"),
                rules: spec.rules.into_iter().map(Rule::from).collect(),
            },
            status: GroupStatus {
                state: word(state, "OBJECT_STATE_", "ready"),
                error: set(status.error),
                port_count: status.port_count,
                referring_groups: status.referring_groups.iter().map(|name| last_part(name)).collect(),
            },
        }
    }
}

impl Object for Group {
    const COLUMNS: &'static [&'static str] = &["NAME", "STATE", "IN", "OUT", "RULES", "PORTS"];

    fn name(&self) -> &str {
        &self.name
    }

    fn row(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.status.state.clone(),
            self.spec.default_in.clone(),
            self.spec.default_out.clone(),
            self.spec.rules.len().to_string(),
            self.status.port_count.to_string(),
        ]
    }

    fn sheet(&self) -> String {
        let rules = self.spec.rules.iter().zip(1..);
        Sheet::default()
            .line("Name", &self.name)
            .line("Default in", &self.spec.default_in)
            .line("Default out", &self.spec.default_out)
            .line("Ports", self.status.port_count.to_string())
            .line("UID", &self.uid)
            .maybe("Created", self.create_time.as_deref())
            .items("Rules", rules.map(|(rule, number)| format!("{number}. {} ({})", rule.words(), rule.id)))
            .items("Named by groups", self.status.referring_groups.iter().cloned())
            .items("Labels", self.labels.iter().map(|(key, value)| format!("{key}={value}")))
            .render()
    }

    fn summary(&self) -> String {
        let spec = &self.spec;
        let rules = count(u64::try_from(spec.rules.len()).unwrap_or(u64::MAX), "rule");
        format!("in {}, out {}, {rules}", spec.default_in, spec.default_out)
    }

    fn broken(&self) -> Option<Broken<'_>> {
        broken::of((&self.name, None), &self.status.state, self.status.error.as_deref())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_group_tells_its_rules_in_words() {
        let rule = |direction: RuleDirection, protocol: RuleProtocol, ports, remote| wire::GroupRule {
            id: "r-0000000a".into(),
            direction: direction.into(),
            protocol: protocol.into(),
            ports,
            remote,
        };
        let range = |first, last| Some(wire::PortRange { first, last });
        let group = Group::from(wire::Group {
            name: "groups/web".into(),
            spec: Some(wire::GroupSpec {
                default_in: GroupDefault::Deny.into(),
                default_out: GroupDefault::Unspecified.into(),
                rules: vec![
                    rule(RuleDirection::In, RuleProtocol::Tcp, range(80, 90), None),
                    rule(
                        RuleDirection::In,
                        RuleProtocol::Udp,
                        range(53, 53),
                        Some(Remote::RemoteGroup("groups/dns".into())),
                    ),
                    rule(
                        RuleDirection::Out,
                        RuleProtocol::Any,
                        None,
                        Some(Remote::RemoteCidr("10.0.0.0/8".into())),
                    ),
                ],
            }),
            status: Some(wire::GroupStatus {
                port_count: 2,
                referring_groups: vec!["groups/db".into()],
                ..Default::default()
            }),
            ..Default::default()
        });
        assert_eq!(group.row(), ["web", "ready", "deny", "allow", "3", "2"]);
        assert_eq!(group.summary(), "in deny, out allow, 3 rules");
        let words: Vec<_> = group.spec.rules.iter().map(Rule::words).collect();
        assert_eq!(words, ["in tcp 80-90", "in udp 53 from group dns", "out any to 10.0.0.0/8"]);
        let sheet = group.sheet();
        assert!(sheet.contains("2. in udp 53 from group dns (r-0000000a)"), "{sheet}");
        assert!(sheet.contains("db"), "{sheet}");
    }
}
