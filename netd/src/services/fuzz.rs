//! dnsmasq's lease file, which has text in it that guests chose.

use super::lease::{Gone, holders, leases as read, without};
use crate::fuzz::Outcome;
use std::collections::BTreeSet;

/// A lease file.
///
/// # Errors
/// If there is no lease in it.
pub fn leases(data: &[u8]) -> Outcome {
    let found = read(data);
    assert!(found.is_sorted_by_key(|lease| lease.address));
    assert_eq!(without(data, &Gone::default()), data, "what is not pruned stays");
    let all: Gone = found.iter().map(|lease| lease.address).collect();
    let rest = without(data, &all);
    assert!(read(&rest).is_empty(), "{}", rest.escape_ascii());
    let (held, known) = holders(data, &all);
    let every: BTreeSet<_> = found.iter().map(|lease| (lease.address, lease.expires)).collect();
    assert!(held == every && known.len() <= found.len());
    for lease in &found {
        // The one address goes, the others stay.
        let rest = read(&without(data, &Gone::from_iter([lease.address])));
        assert_eq!(rest.len(), found.iter().filter(|other| other.address != lease.address).count());
    }
    if found.is_empty() { Err("no lease".into()) } else { Ok(()) }
}
