//! Where a list of events of both daemons goes on.

use super::Invalid;
use std::{fmt, str::FromStr};

/// A place in one daemon's events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The daemon's life; empty where the daemon gave none.
    pub epoch: String,
    /// 0: before all events.
    pub revision: i64,
}

/// A place in the events of both daemons, such as `n3f2a9c01.12-v99aabbcc.7`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// netd's.
    pub netd: Place,
    /// vmd's.
    pub vmd: Place,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { netd, vmd } = self;
        write!(f, "n{}.{}-v{}.{}", netd.epoch, netd.revision, vmd.epoch, vmd.revision)
    }
}

impl FromStr for Cursor {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wrong = || {
            Invalid::new("not a place in the events")
                .hint("it comes with events that were printed: `kvmctl events -o name | tail -n 1`")
        };
        let place = |text: &str, letter: char| {
            let (epoch, revision) = text.strip_prefix(letter)?.split_once('.')?;
            let plain = epoch.len() <= 64 && epoch.bytes().all(|byte| byte.is_ascii_alphanumeric());
            let digits = revision.bytes().all(|byte| byte.is_ascii_digit());
            let revision = revision.parse().ok().filter(|_| plain && digits)?;
            Some(Place { epoch: epoch.to_owned(), revision })
        };
        let (netd, vmd) = text.split_once('-').ok_or_else(wrong)?;
        let netd = place(netd, 'n').ok_or_else(wrong)?;
        let vmd = place(vmd, 'v').ok_or_else(wrong)?;
        Ok(Self { netd, vmd })
    }
}

/// A place in the events of both daemons.
///
/// # Errors
/// If it is none that `kvmctl events` prints.
pub fn cursor(text: &str) -> Result<Cursor, Invalid> {
    text.parse()
}

/// Resource names: text in which `*` stands for anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

/// A pattern of resource names; every text is one.
///
/// # Errors
/// Never.
pub fn pattern(text: &str) -> Result<Pattern, Invalid> {
    Ok(Pattern(text.to_owned()))
}

impl Pattern {
    /// Whether a name is meant.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        // There is a first part always.
        let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        for part in parts {
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(last)
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_printed_is_read_and_nothing_else() {
        let cursor: Cursor = "n3f2a9c01.12-v99aabbcc.7".parse().unwrap();
        assert_eq!((cursor.netd.revision, cursor.vmd.epoch.as_str()), (12, "99aabbcc"));
        assert_eq!("n.0-v.0".parse::<Cursor>().unwrap(), Cursor::default());
        for bad in [
            "",
            "12",
            "-1",
            "n.1",
            "n.1-v",
            "n.1-v.",
            "v.1-n.1",
            "n.+1-v.1",
            "n.-1-v.1",
            "n.1-v.1-",
            "n.1-v. 1",
            "n.9223372036854775808-v.1",
            "né.1-v.1",
            "n.1-v.1\n",
        ] {
            assert!(bad.parse::<Cursor>().is_err(), "{bad}");
        }
    }

    #[test]
    fn stars_stand_for_anything() {
        let matches = |text: &str, name: &str| pattern(text).unwrap().matches(name);
        assert!(matches("networks/lan", "networks/lan"));
        assert!(!matches("networks/lan", "networks/lan/ports/p"));
        assert!(matches("networks/lan*", "networks/lan/ports/p"));
        assert!(matches("networks/*/ports/p", "networks/lan/ports/p"));
        assert!(!matches("networks/*/ports/p", "networks/lan/ports/pp"));
        assert!(matches("*", "") && matches("**", "x") && matches("", ""));
        assert!(!matches("a*a", "a"), "the same sign is not both");
        assert!(matches("*web", "vms/web") && !matches("*web", "vms/web2"));
    }

    /// The plain definition.
    fn slow(pattern: &[char], name: &[char]) -> bool {
        match pattern.split_first() {
            None => name.is_empty(),
            Some(('*', rest)) => (0..=name.len()).any(|at| slow(rest, &name[at..])),
            Some((c, rest)) => name.first() == Some(c) && slow(rest, &name[1..]),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn any_text_is_read_as_it_is_printed_or_refused(text in "([nv][a-f0-9]{0,3}[.][0-9]{1,20}-?){0,3}|\\PC{0,30}") {
            if let Ok(cursor) = text.parse::<Cursor>() {
                prop_assert_eq!(cursor.to_string().parse::<Cursor>().unwrap(), cursor);
            }
        }

        #[test]
        fn a_cursor_is_read_as_it_was(epoch in "[0-9a-f]{8}", netd in 0..i64::MAX, vmd in 0..i64::MAX) {
            let place = |revision| Place { epoch: epoch.clone(), revision };
            let cursor = Cursor { netd: place(netd), vmd: place(vmd) };
            prop_assert_eq!(cursor.to_string().parse::<Cursor>().unwrap(), cursor);
        }

        #[test]
        fn a_pattern_matches_as_its_definition_says(pattern in "[ab*]{0,6}", name in "[ab]{0,6}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(super::pattern(&pattern).unwrap().matches(&name), slow(&chars(&pattern), &chars(&name)));
        }
    }
}
