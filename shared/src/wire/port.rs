//! What is asked of a port: of netd, and of vmd for a NIC. vmd says at once what netd would say at each start.

use crate::{
    fault::{Fault, Kind},
    name::{Name, printable},
};
use std::{collections::BTreeSet, net::IpAddr, str::FromStr};

/// Most extra addresses of one port.
const MOST_EXTRA: usize = 64;
/// Most groups of one port.
const MOST_GROUPS: usize = 8;
/// Slowest rate, bits per second: a frame of 1,500 bytes then takes one and a half seconds.
pub const SLOWEST_RATE: u64 = 8_000;

fn invalid(reason: &str, message: impl Into<String>) -> Fault {
    Fault::new(Kind::InvalidArgument, reason, message)
}

/// An address without prefix length; empty is none. `what` it is to be, and an example of one, are for the error.
///
/// # Errors
/// INVALID_ARGUMENT, INVALID_ADDRESS.
pub fn address<T: FromStr>(text: &str, what: &str, example: &str) -> Result<Option<T>, Fault> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        invalid("INVALID_ADDRESS", format!("`{}` is not {what}", printable(text)))
            .hint(format!("write it without a prefix length, such as {example}"))
    })
}

/// Addresses beside the first of each family.
///
/// # Errors
/// INVALID_ARGUMENT: INVALID_ADDRESS, or TOO_MANY_ADDRESSES from 65 on.
pub fn extra_addresses(texts: &[String]) -> Result<BTreeSet<IpAddr>, Fault> {
    if texts.len() > MOST_EXTRA {
        let message = format!("there are {} extra addresses, and {MOST_EXTRA} is the most", texts.len());
        return Err(invalid("TOO_MANY_ADDRESSES", message).hint("route a subnet to the guest instead"));
    }
    let one = |text: &String| {
        address(text, "an address", "192.168.100.10")?.ok_or_else(|| {
            invalid("INVALID_ADDRESS", "an extra address is empty").hint("leave it out of the list")
        })
    };
    texts.iter().map(one).collect()
}

/// The groups of a port, by their resource names.
///
/// # Errors
/// INVALID_ARGUMENT: no name of a group, or TOO_MANY_GROUPS from 9 on.
pub fn groups(resources: &[String]) -> Result<BTreeSet<Name>, Fault> {
    if resources.len() > MOST_GROUPS {
        let message =
            format!("there are {} groups of one port, and {MOST_GROUPS} is the most", resources.len());
        return Err(invalid("TOO_MANY_GROUPS", message).hint("put the rules into fewer groups"));
    }
    resources.iter().map(|resource| Name::from_resource(resource, "groups")).collect()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn lists_are_short_and_name_what_they_mean() {
        let names = |count| (0..count).map(|n| format!("groups/g{n}")).collect::<Vec<_>>();
        assert_eq!(groups(&names(8)).unwrap().len(), 8);
        assert_eq!(groups(&names(9)).unwrap_err().reason(), "TOO_MANY_GROUPS");
        assert!(groups(&["g".to_owned()]).is_err());
        let extra = |count: usize| (1..=count).map(|n| format!("10.0.0.{n}")).collect::<Vec<_>>();
        assert_eq!(extra_addresses(&extra(64)).unwrap().len(), 64);
        assert_eq!(extra_addresses(&extra(65)).unwrap_err().reason(), "TOO_MANY_ADDRESSES");
        for bad in ["", "10.0.0.0/24", "10.0.0.2\n"] {
            assert_eq!(
                extra_addresses(&[bad.to_owned()]).unwrap_err().reason(),
                "INVALID_ADDRESS",
                "{bad:?}"
            );
        }
    }
}
