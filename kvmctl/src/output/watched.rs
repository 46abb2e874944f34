//! Messages of a list that goes on.

use super::{
    Object,
    broken::{self, Broken},
};
use serde::Serialize;

/// What a message tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// An object that was there at the beginning.
    Present,
    /// All that there was has been told.
    Synced,
    /// An object was made, or what it is changed.
    Changed,
    /// An object is gone.
    Deleted,
    /// What came meanwhile is not known in full: the list begins anew.
    Gone,
}

impl Change {
    fn word(self) -> &'static str {
        match self {
            Self::Present => "present",
            Self::Synced => "synced",
            Self::Changed => "changed",
            Self::Deleted => "deleted",
            Self::Gone => "gone",
        }
    }
}

/// A message of a list that goes on.
#[derive(Clone, Debug, Serialize)]
pub struct Watched<T> {
    /// What it tells.
    pub change: Change,
    /// The object's full name, such as `networks/lan`; null with synced and gone.
    pub resource: Option<String>,
    /// The object as it is; null when it is deleted, and with synced and gone.
    #[serde(serialize_with = "broken::within", bound(serialize = "T: Object"))]
    pub object: Option<T>,
}

impl<T: Object> Watched<T> {
    /// A message about an object; of one that is deleted, only the name is known.
    #[must_use]
    pub fn new(change: Change, resource: Option<String>, object: Option<T>) -> Self {
        Self { change, resource, object: object.filter(|_| change != Change::Deleted) }
    }
}

impl<T: Object> Object for Watched<T> {
    const COLUMNS: &'static [&'static str] = T::COLUMNS;

    fn name(&self) -> &str {
        self.resource.as_deref().and_then(|resource| resource.rsplit('/').next()).unwrap_or_default()
    }

    fn row(&self) -> Vec<String> {
        let rest = match (&self.object, &self.resource) {
            (Some(object), _) => broken::row(object),
            (None, Some(resource)) => vec![resource.clone()],
            (None, None) => Vec::new(),
        };
        std::iter::once(self.change.word().to_owned()).chain(rest).collect()
    }

    fn sheet(&self) -> String {
        self.row().join("  ")
    }

    fn summary(&self) -> String {
        self.change.word().to_owned()
    }

    fn broken(&self) -> Option<Broken<'_>> {
        self.object.as_ref().and_then(Object::broken)
    }
}
