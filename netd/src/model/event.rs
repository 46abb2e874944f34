//! What happened without a request.

use serde::{Deserialize, Serialize};
use shared::time::Timestamp;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Grows from event to event, with gaps.
    pub revision: i64,
    /// When it was seen.
    pub time: Timestamp,
    /// What it tells of.
    pub kind: EventKind,
    /// The object; empty: the packet rules as a whole.
    pub resource: String,
    /// In words.
    pub message: String,
}

/// What an event tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// Changed by somebody else, and put right.
    Repaired,
    /// Changed by somebody else, and not put right yet.
    Drifted,
    /// Cannot be brought to its record.
    Degraded,
    /// Is as recorded again.
    Recovered,
}
