//! Events as they are printed.

use super::{
    Object, set,
    text::{Sheet, or_dash},
    time::rfc3339,
    word,
};
use proto::netd::v1::{self as wire, EventKind};
use serde::Serialize;

/// Something that happened without a request.
#[derive(Clone, Debug, Serialize)]
pub struct Event {
    /// Its number as text; the bare name of an event.
    #[serde(skip)]
    name: String,
    /// Grows from event to event.
    pub revision: i64,
    /// When it was seen.
    pub time: Option<String>,
    /// repaired, drifted, degraded or recovered.
    pub kind: String,
    /// The object; null: the packet rules as a whole.
    pub resource: Option<String>,
    /// In words.
    pub message: String,
}

impl From<wire::Event> for Event {
    fn from(event: wire::Event) -> Self {
        let kind = EventKind::try_from(event.kind).ok().map(|kind| kind.as_str_name());
        Self {
            name: event.revision.to_string(),
            revision: event.revision,
            time: rfc3339(event.time.as_ref()),
            kind: word(kind, "EVENT_KIND_", "unknown"),
            resource: set(event.resource),
            message: event.message,
        }
    }
}

impl Object for Event {
    const COLUMNS: &'static [&'static str] = &["REVISION", "TIME", "KIND", "RESOURCE", "MESSAGE"];

    fn name(&self) -> &str {
        &self.name
    }

    fn row(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            or_dash(self.time.as_deref()),
            self.kind.clone(),
            or_dash(self.resource.as_deref()),
            self.message.clone(),
        ]
    }

    fn sheet(&self) -> String {
        Sheet::default()
            .line("Revision", &self.name)
            .maybe("Time", self.time.as_deref())
            .line("Kind", &self.kind)
            .maybe("Resource", self.resource.as_deref())
            .line("Message", &self.message)
            .render()
    }

    fn summary(&self) -> String {
        self.message.clone()
    }
}
