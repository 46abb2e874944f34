//! `kvmctl group`.

use crate::{
    cli::{AddRule, Default as OrElse, Direction, GroupCommand, IpProtocol, RuleCommand},
    client::{Clients, DEADLINE, within},
    listing,
    output::{Printer, Stop, group::Group},
    resource,
};
use prost_types::FieldMask;
use proto::netd::v1::{self as wire, GroupDefault, RuleDirection, RuleProtocol, group_rule::Remote};
use shared::{
    fault::{Fault, Kind},
    name::{Name, printable},
};

/// Carries out a command on groups.
///
/// # Errors
/// Whatever ended it early.
pub async fn run(command: GroupCommand, clients: &Clients, printer: &mut Printer<'_>) -> Result<(), Stop> {
    match command {
        GroupCommand::Create(create) => {
            let spec = wire::GroupSpec {
                default_in: or_else(create.default_in),
                default_out: or_else(create.default_out),
                rules: Vec::new(),
            };
            let name = resource::group(&create.name);
            let group = wire::Group { name, spec: Some(spec), ..Default::default() };
            let request = wire::CreateGroupRequest { group: Some(group) };
            let mut groups = clients.groups()?;
            let call = groups.create_group(within(DEADLINE, request));
            let group: Group = clients.netd.call(DEADLINE, call).await?.into();
            printer.changed("group", "created", &group)
        }
        GroupCommand::List => printer.list(&listing::groups(clients).await?),
        GroupCommand::Show(group) => printer.show(&Group::from(get(clients, &group.name).await?)),
        GroupCommand::Delete(group) => {
            let request = wire::DeleteGroupRequest { name: resource::group(&group.name) };
            let mut groups = clients.groups()?;
            let call = groups.delete_group(within(DEADLINE, request));
            clients.netd.call(DEADLINE, call).await?;
            printer.deleted("group", group.name.as_str())
        }
        GroupCommand::Rule(RuleCommand::Add(add)) => {
            let group = get(clients, &add.group.name).await?;
            let rule = rule(&add);
            let changed = with_rules(clients, group, |rules| {
                rules.push(rule);
                Ok(())
            });
            printer.changed("group", "changed", &changed.await?)
        }
        GroupCommand::Rule(RuleCommand::Delete { group, rule }) => {
            let group = get(clients, &group.name).await?;
            let changed = with_rules(clients, group, |rules| {
                let at = position(rules, &rule)?;
                rules.remove(at);
                Ok(())
            });
            printer.changed("group", "changed", &changed.await?)
        }
    }
}

async fn get(clients: &Clients, name: &Name) -> Result<wire::Group, Fault> {
    let request = wire::GetGroupRequest { name: resource::group(name) };
    let mut groups = clients.groups()?;
    let call = groups.get_group(within(DEADLINE, request));
    clients.netd.call(DEADLINE, call).await
}

/// Changes the rules, unless somebody else changed the group in between.
async fn with_rules(
    clients: &Clients,
    group: wire::Group,
    change: impl FnOnce(&mut Vec<wire::GroupRule>) -> Result<(), Fault>,
) -> Result<Group, Fault> {
    let mut spec = group.spec.unwrap_or_default();
    change(&mut spec.rules)?;
    let request = wire::UpdateGroupRequest {
        expected_generation: group.generation,
        group: Some(wire::Group { name: group.name, spec: Some(spec), ..Default::default() }),
        update_mask: Some(FieldMask { paths: vec!["spec.rules".to_owned()] }),
    };
    let mut groups = clients.groups()?;
    let call = groups.update_group(within(DEADLINE, request));
    Ok(clients.netd.call(DEADLINE, call).await?.into())
}

/// Where the rule is that a user calls by its id or its number, counted from 1.
fn position(rules: &[wire::GroupRule], called: &str) -> Result<usize, Fault> {
    let by_number = called.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
    let found =
        by_number.filter(|at| *at < rules.len()).or_else(|| rules.iter().position(|rule| rule.id == called));
    found.ok_or_else(|| {
        Fault::new(Kind::NotFound, "RULE_NOT_FOUND", format!("the group has no rule `{}`", printable(called)))
            .hint("`kvmctl group show` lists its rules with number and id")
    })
}

fn rule(add: &AddRule) -> wire::GroupRule {
    let direction = match add.direction {
        Direction::In => RuleDirection::In,
        Direction::Out => RuleDirection::Out,
    };
    let protocol = match add.protocol {
        IpProtocol::Tcp => RuleProtocol::Tcp,
        IpProtocol::Udp => RuleProtocol::Udp,
        IpProtocol::Icmp => RuleProtocol::Icmp,
        IpProtocol::Any => RuleProtocol::Any,
    };
    let group = add.remote_group.as_ref().map(|name| Remote::RemoteGroup(resource::group(name)));
    wire::GroupRule {
        id: String::new(),
        direction: direction.into(),
        protocol: protocol.into(),
        ports: add.ports.map(|(first, last)| wire::PortRange { first: first.into(), last: last.into() }),
        remote: add.remote.clone().map(Remote::RemoteCidr).or(group),
    }
}

fn or_else(choice: OrElse) -> i32 {
    match choice {
        OrElse::Allow => GroupDefault::Allow,
        OrElse::Deny => GroupDefault::Deny,
    }
    .into()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_rule_is_called_by_number_or_id() {
        let rules = ["r-0000000a", "r-0000000b"]
            .map(|id| wire::GroupRule { id: id.to_owned(), ..Default::default() });
        assert_eq!(position(&rules, "1").unwrap(), 0);
        assert_eq!(position(&rules, "r-0000000b").unwrap(), 1);
        for wrong in ["0", "3", "-1", "", "r-0000000c", "0000000a"] {
            assert_eq!(position(&rules, wrong).unwrap_err().reason(), "RULE_NOT_FOUND", "{wrong}");
        }
    }
}
