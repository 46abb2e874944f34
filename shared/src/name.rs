//! Names that users give to networks, ports and machines.

use crate::fault::{Fault, Kind};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// A DNS label (RFC 1123): 1 to 63 of `a-z`, `0-9` and `-`, beginning and ending with a letter or digit.
///
/// It is safe as a file name, in a log line and as a guest's host name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// Longest name, in bytes.
    pub const MAX_LEN: usize = 63;

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads the name out of a resource name such as `networks/lan`, where `collection` is `networks`.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if the text is not that collection, one slash and a valid name.
    pub fn from_resource(resource: &str, collection: &str) -> Result<Self, Fault> {
        resource
            .strip_prefix(collection)
            .and_then(|rest| rest.strip_prefix('/'))
            .ok_or_else(|| {
                Fault::new(
                    Kind::InvalidArgument,
                    "INVALID_RESOURCE_NAME",
                    format!("`{}` is not a resource name", printable(resource)),
                )
                .hint(format!("write `{collection}/NAME`"))
            })?
            .parse()
    }
}

impl FromStr for Name {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let wrong = |why: &str| {
            Err(Fault::new(
                Kind::InvalidArgument,
                "INVALID_NAME",
                format!("`{}` is not a valid name: {why}", printable(text)),
            )
            .hint("use 1 to 63 of a-z, 0-9 and -, beginning and ending with a letter or digit"))
        };
        if text.is_empty() {
            return wrong("it is empty");
        }
        if text.len() > Self::MAX_LEN {
            return wrong(&format!("it has {} bytes, and {} is the most", text.len(), Self::MAX_LEN));
        }
        if let Some(bad) = text.chars().find(|c| !(c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-'))
        {
            return wrong(&format!("it contains {bad:?}"));
        }
        if text.starts_with('-') || text.ends_with('-') {
            return wrong("it begins or ends with `-`");
        }
        Ok(Self(text.to_owned()))
    }
}

/// Untrusted text made fit for one line of an error message: escaped, and at most 40 characters.
#[must_use]
pub fn printable(text: &str) -> String {
    const MOST: usize = 40;
    let mut out: String = text.chars().take(MOST).flat_map(char::escape_debug).collect();
    if text.chars().nth(MOST).is_some() {
        out.push('…');
    }
    out
}

impl TryFrom<String> for Name {
    type Error = Fault;

    fn try_from(text: String) -> Result<Self, Fault> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn labels_are_names() {
        for good in ["a", "web-0", "0", &"x".repeat(63)] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn everything_else_is_refused_with_a_hint() {
        let long = "x".repeat(300);
        for bad in ["", "a/b", "..", "a\nb", "-a", "a-", "A", "a_b", "é", "a%d", &long] {
            let fault = bad.parse::<Name>().unwrap_err();
            assert_eq!(fault.kind(), Kind::InvalidArgument, "{bad:?}");
            assert!(!fault.hints().is_empty());
            assert!(!fault.to_string().contains('\n'));
            assert!(fault.to_string().len() < 200);
        }
    }

    #[test]
    fn resource_names_need_their_collection() {
        assert_eq!(Name::from_resource("networks/lan", "networks").unwrap().as_str(), "lan");
        for bad in ["lan", "vms/lan", "networks/", "networks/a/b", "networkslan"] {
            assert!(Name::from_resource(bad, "networks").is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_parsed_name_is_one_path_component(text in "\\PC{0,80}") {
            if let Ok(name) = text.parse::<Name>() {
                let path = std::path::Path::new(name.as_str());
                prop_assert_eq!(path.components().count(), 1);
                prop_assert!(matches!(path.components().next(), Some(std::path::Component::Normal(_))));
            }
        }
    }
}
