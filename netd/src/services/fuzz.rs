//! dnsmasq's lease file, which has text in it that guests chose.

use super::lease::{holders, leases as read, without};
use crate::fuzz::Outcome;
use std::collections::BTreeSet;

/// A lease file.
///
/// # Errors
/// If there is no lease in it.
pub fn leases(data: &[u8]) -> Outcome {
    let found = read(data);
    assert!(found.is_sorted_by_key(|lease| lease.address));
    assert_eq!(without(data, &BTreeSet::new()), data, "what is not pruned stays");
    let all: BTreeSet<_> = found.iter().map(|lease| lease.address).collect();
    let rest = without(data, &all);
    assert!(read(&rest).is_empty(), "{}", rest.escape_ascii());
    let (held, known) = holders(data, &all);
    assert!(held == found.len() && known.len() <= held);
    for lease in &found {
        // The one address goes, the others stay.
        let rest = read(&without(data, &BTreeSet::from([lease.address])));
        assert_eq!(rest.len(), found.iter().filter(|other| other.address != lease.address).count());
    }
    if found.is_empty() { Err("no lease".into()) } else { Ok(()) }
}
