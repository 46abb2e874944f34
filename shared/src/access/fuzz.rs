//! The access file, which root writes by hand.

use super::{
    OwnUser, Role,
    identity::Identity,
    policy::{Place, Policy},
};

/// Its text.
///
/// # Errors
/// Why it is refused.
pub fn access_file(data: &[u8]) -> Result<(), String> {
    let text = std::str::from_utf8(data).map_err(|_| "no text")?;
    let policy = Policy::parse(text).map_err(|fault| {
        assert_eq!(fault.reason(), "ACCESS_FILE");
        fault.chain().split(['`', ':']).nth(1).unwrap_or_default().chars().take(30).collect::<String>()
    })?;
    let place = Place { own: 1, own_user: OwnUser::Nobody, socket_group: Some(7), group_id: &|_| None };
    let who = |uid, groups: &[u32]| Identity { uid, user: None, groups: groups.iter().copied().collect() };
    // Whatever the file says, root stays an admin, and a stranger whom it does not name is nobody.
    assert_eq!(policy.decide(&who(0, &[]), &place).map(|rights| rights.role), Some(Role::Admin));
    if !text.contains("4294967294") {
        assert_eq!(policy.decide(&who(u32::MAX - 1, &[]), &place), None, "{text}");
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use mutate::{Campaign, Form};

    #[test]
    fn access_file() {
        let tokens = [
            "[[grant]]",
            "users",
            "groups",
            "role",
            "viewer",
            "operator",
            "admin",
            "none",
            "networks",
            "quota",
            "ports",
            "machines",
            "images",
            "uplinks",
            "members",
            "unfiltered",
            "true",
            "lan",
            "/srv",
            "..",
            "eth1",
            "\"",
            "[",
            "]",
            "=",
            "\n",
            "-1",
            "4294967295",
        ];
        Campaign::new("access_file", Form::Text).tokens(&tokens).run(super::access_file);
    }
}
