//! One record as the store keeps it: text that says itself what it is and whether it is whole.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use std::{borrow::Cow, collections::BTreeMap};
use uuid::Uuid;

/// Version of the form below. A record of a newer one is kept and not read.
pub const SCHEMA: i64 = 1;
/// Kind of the store's own record, which is written with each commit.
pub const OWN: &str = "store";

/// Kind and id.
pub type Key = (String, String);

/// All records of a store.
pub type Rows = BTreeMap<Key, Row>;

/// A record with its seal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Of `document`: the first half of its SHA-256.
    pub sum: Vec<u8>,
    /// JSON, as sealed; any bytes if it is damaged.
    pub document: Vec<u8>,
    /// Why it cannot be read.
    pub why: Option<String>,
}

/// What a row's document says. The key is in it once more, since a damaged key would make it another record.
#[derive(Debug, Serialize, Deserialize)]
pub struct Sealed<'a> {
    /// Instance id of the store.
    pub store: Uuid,
    /// Commit of the store in which this was written.
    pub rev: i64,
    /// Version of the form.
    pub schema: i64,
    /// Kind.
    #[serde(borrow)]
    pub kind: Cow<'a, str>,
    /// Id.
    #[serde(borrow)]
    pub id: Cow<'a, str>,
    /// The record itself.
    #[serde(borrow)]
    pub record: &'a RawValue,
}

fn sum(document: &[u8]) -> Vec<u8> {
    Sha256::digest(document)[..16].to_vec()
}

impl Row {
    /// Seals a record, JSON.
    ///
    /// # Errors
    /// If it is no JSON.
    pub fn seal(store: Uuid, rev: i64, (kind, id): (&str, &str), record: &str) -> serde_json::Result<Self> {
        let record = serde_json::from_str(record)?;
        let sealed = Sealed { store, rev, schema: SCHEMA, kind: kind.into(), id: id.into(), record };
        let document = serde_json::to_vec(&sealed)?;
        Ok(Self { sum: sum(&document), document, why: None })
    }

    /// A row as it was found, and the key that it was sealed with if it is whole.
    #[must_use]
    pub fn found(sum_found: Vec<u8>, document: Vec<u8>) -> (Self, Option<Key>) {
        let mut row = Self { sum: sum_found, document, why: None };
        if row.sum != sum(&row.document) {
            row.why = Some("it is damaged: its checksum does not match".to_owned());
            return (row, None);
        }
        let known =
            row.sealed().map(|sealed| (sealed.schema, (sealed.kind.into_owned(), sealed.id.into_owned())));
        let Some((schema, key)) = known else {
            row.why = Some("it was written by a newer version of this program".to_owned());
            return (row, None);
        };
        if schema > SCHEMA {
            row.why = Some(format!(
                "it was written by a newer version of this program (schema {schema}; this one knows {SCHEMA})"
            ));
        }
        (row, Some(key))
    }

    /// What the document says; nothing if it is not whole.
    #[must_use]
    pub fn sealed(&self) -> Option<Sealed<'_>> {
        serde_json::from_slice(&self.document).ok()
    }

    /// The record, JSON, if it can be read.
    #[must_use]
    pub fn record(&self) -> Option<&str> {
        self.why.is_none().then(|| self.sealed().map(|sealed| sealed.record.get())).flatten()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn every_changed_byte_is_noticed() {
        let row = Row::seal(Uuid::new_v4(), 7, ("network", "lan"), r#"{"name":"lan","mtu":1500}"#).unwrap();
        let (whole, key) = Row::found(row.sum.clone(), row.document.clone());
        assert_eq!(
            (whole.record(), key),
            (Some(r#"{"name":"lan","mtu":1500}"#), Some(("network".into(), "lan".into())))
        );
        let mut tried = 0;
        for at in 0..row.document.len() + row.sum.len() {
            for change in 1..=255 {
                let (mut sum, mut document) = (row.sum.clone(), row.document.clone());
                match at.checked_sub(document.len()) {
                    Some(in_sum) => sum[in_sum] ^= change,
                    None => document[at] ^= change,
                }
                let (found, key) = Row::found(sum, document);
                assert!(found.why.is_some() && found.record().is_none() && key.is_none(), "{at} {change}");
                tried += 1;
            }
        }
        for cut in 0..row.document.len() {
            assert!(Row::found(row.sum.clone(), row.document[..cut].to_vec()).0.why.is_some());
        }
        println!("{tried} changed bytes of a record noticed");
    }

    #[test]
    fn a_record_of_a_newer_form_is_kept_unread() {
        let document = br#"{"store":"67e5504410b1426f9247bb680e5fe0c8","rev":1,"schema":2,"kind":"n","id":"a","record":0}"#;
        let (row, key) = Row::found(sum(document), document.to_vec());
        assert!(row.why.as_ref().unwrap().contains("schema 2"), "{row:?}");
        assert_eq!((row.record(), key), (None, Some(("n".into(), "a".into()))));
        let other = br#"{"form":"another"}"#;
        assert!(Row::found(sum(other), other.to_vec()).0.why.unwrap().contains("newer"));
    }
}
