//! What is told of records and of what they stand for.

use super::Reconciler;
use crate::{
    kernel::Kernel,
    model::{Forward, Group, Network, Port, State},
};
use serde::Serialize;
use serde_json::Value;
use shared::events::{EventKind, EventLog, News};

/// What is told of a record.
pub(super) trait Recorded: Serialize {
    /// Its resource name.
    fn resource(&self) -> String;
    /// Whether it is on its way out; the end of that is what is told.
    fn deleting(&self) -> bool;
    /// What a new one is, in a few words.
    fn summary(&self) -> String;
}

impl Recorded for Network {
    fn resource(&self) -> String {
        Self::resource(self)
    }

    fn deleting(&self) -> bool {
        self.deleting
    }

    fn summary(&self) -> String {
        let subnets =
            self.ipv4.iter().map(ToString::to_string).chain(self.ipv6.iter().map(ToString::to_string));
        let mode = word(&self.spec.mode);
        std::iter::once(mode).chain(subnets).collect::<Vec<_>>().join(", ")
    }
}

impl Recorded for Port {
    fn resource(&self) -> String {
        Self::resource(self)
    }

    fn deleting(&self) -> bool {
        self.deleting
    }

    fn summary(&self) -> String {
        let addresses = self.addresses().map(|address| address.to_string());
        std::iter::once(self.mac.to_string()).chain(addresses).collect::<Vec<_>>().join(", ")
    }
}

impl Recorded for Forward {
    fn resource(&self) -> String {
        Self::resource(self)
    }

    fn deleting(&self) -> bool {
        self.deleting
    }

    fn summary(&self) -> String {
        format!("{} port {} to `{}`", word(&self.spec.protocol), self.spec.listen_port, self.spec.target)
    }
}

impl Recorded for Group {
    fn resource(&self) -> String {
        Self::resource(self)
    }

    fn deleting(&self) -> bool {
        false
    }

    fn summary(&self) -> String {
        format!("{} rule(s)", self.rules.len())
    }
}

/// The word that a record has for a value.
fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// What is to be told when a record is written in place of another, or of none.
pub(super) fn recorded<T: Recorded>(before: Option<&T>, after: &T) -> Vec<News> {
    let (kind, message) = match before {
        _ if after.deleting() => return Vec::new(),
        None => (EventKind::Created, after.summary()),
        Some(before) => match changes(before, after) {
            fields if fields.is_empty() => return Vec::new(),
            fields => (EventKind::Updated, fields.join(", ")),
        },
    };
    vec![News::of(kind, after.resource(), message)]
}

/// The fields in which two records differ, those of the spec by their own names; times and counts of changes aside.
fn changes<T: Serialize>(before: &T, after: &T) -> Vec<String> {
    let fields = |value: &T| match serde_json::to_value(value) {
        Ok(Value::Object(mut fields)) => {
            let spec = fields.remove("spec").and_then(|spec| spec.as_object().cloned()).unwrap_or_default();
            fields.extend(spec.into_iter().map(|(name, value)| (format!("spec.{name}"), value)));
            fields
        }
        _ => serde_json::Map::new(),
    };
    let (before, after) = (fields(before), fields(after));
    let names = before.keys().chain(after.keys().filter(|name| !before.contains_key(*name)));
    names
        .filter(|name| {
            !matches!(name.as_str(), "updated" | "generation") && before.get(*name) != after.get(*name)
        })
        .map(|name| name.strip_prefix("spec.").unwrap_or(name).to_owned())
        .collect()
}

impl<K: Kernel> Reconciler<K> {
    pub(super) fn tell(&self, kind: EventKind, resource: &str, message: String) {
        self.0.store.tell(Vec::new(), vec![News::of(kind, resource, message)]);
    }

    /// A new object is in force.
    pub(super) fn ready(&self, resource: String) {
        self.set_state(resource.clone(), State::Ready);
        self.0.store.tell(Vec::new(), vec![News::of(EventKind::Ready, resource, "")]);
    }

    /// Tells that netd ends, as the last thing. What was told before is then safe from the host's end too.
    pub async fn ended(&self) {
        let news = News::of(EventKind::Stopped, "", "netd ended");
        if let Err(fault) = self.0.store.commit_telling(Vec::new(), vec![news]).await {
            tracing::warn!(error = fault.chain(), "cannot keep the last event");
        }
    }

    /// What happened.
    #[must_use]
    pub fn log(&self) -> &EventLog {
        self.0.store.events()
    }
}
