//! Objects whose records cannot be read: nothing is known but a name and why.

use super::Object;
use serde::{Serialize, Serializer};

/// What is known of such an object, as programs read it.
#[derive(Clone, Debug, Serialize)]
pub struct Broken<'a> {
    /// Its bare name.
    pub name: &'a str,
    /// Bare name of its network, of one that is on a network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<&'a str>,
    /// Always null.
    pub spec: (),
    /// `broken`, and why.
    pub status: Status<'a>,
}

/// The state of such an object.
#[derive(Clone, Debug, Serialize)]
pub struct Status<'a> {
    /// `broken`.
    pub state: &'a str,
    /// What is wrong, and the way out.
    pub error: &'a str,
}

/// What there is to say if `state` is that of such an object.
pub(super) fn of<'a>(
    (name, network): (&'a str, Option<&'a str>),
    state: &'a str,
    error: Option<&'a str>,
) -> Option<Broken<'a>> {
    let status = Status { state, error: error.unwrap_or_default() };
    (state == "broken").then_some(Broken { name, network, spec: (), status })
}

/// An object as programs read it: without defaults that look as if they had been asked for.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Shown<'a, T> {
    /// As it is.
    Whole(&'a T),
    /// What is known.
    Broken(Broken<'a>),
}

impl<'a, T: Object> From<&'a T> for Shown<'a, T> {
    fn from(object: &'a T) -> Self {
        object.broken().map_or(Self::Whole(object), Self::Broken)
    }
}

/// For serde, of an object within another.
pub(super) fn within<T: Object, S: Serializer>(object: &Option<T>, to: S) -> Result<S::Ok, S::Error> {
    object.as_ref().map(Shown::from).serialize(to)
}

/// A line of a list: where nothing is known, no cell but these has anything in it.
pub(super) fn row<T: Object>(object: &T) -> Vec<String> {
    let cells = object.row();
    if object.broken().is_none() {
        return cells;
    }
    let known = |head: &str| matches!(head, "NAME" | "NETWORK" | "STATE");
    let cells = T::COLUMNS.iter().zip(cells);
    cells.map(|(head, cell)| if known(head) { cell } else { "-".to_owned() }).collect()
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::{
        output::Format,
        output::{Printer, forward::Forward, group::Group, network::Network, port::Port, vm::Vm},
    };
    use proto::{netd::v1 as netd, vmd::v1 as vmd};

    const WHY: &str = "the record cannot be read; give it up";

    fn printed<T: Object>(object: &T, format: Format) -> (String, String) {
        let (mut out, mut remarks) = (Vec::new(), Vec::new());
        Printer::new(format, &mut out, &mut remarks).list(std::slice::from_ref(object)).unwrap();
        (String::from_utf8(out).unwrap(), String::from_utf8(remarks).unwrap())
    }

    /// In every format, with no word that was not sent.
    fn says_so<T: Object>(object: &T) {
        let (table, remarks) = printed(object, Format::Table);
        let row: Vec<_> = table.lines().nth(1).unwrap().split_whitespace().collect();
        assert!(row.iter().all(|cell| ["a", "lan", "broken", "-"].contains(cell)), "{table}");
        assert!(row.contains(&"a") && row.contains(&"broken"), "{table}");
        assert_eq!(remarks, {
            let on = if row.contains(&"lan") { " on network `lan`" } else { "" };
            format!("warning: `a`{on} is broken: {WHY}\n")
        });
        let (json, remarks) = printed(object, Format::Json);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json[0]["status"], serde_json::json!({ "state": "broken", "error": WHY }));
        assert!(json[0]["name"] == "a" && json[0]["spec"].is_null() && remarks.is_empty(), "{json}");
        assert_eq!(printed(object, Format::Name).0, "a\n");
    }

    #[test]
    fn nothing_is_said_of_them_that_is_not_known() {
        let (state, error) = (netd::ObjectState::Broken.into(), WHY.to_owned());
        let status = Some(netd::NetworkStatus { state, error: error.clone(), ..Default::default() });
        says_so(&Network::from(netd::Network { name: "networks/a".into(), status, ..Default::default() }));
        let status = Some(netd::PortStatus { state, error: error.clone(), ..Default::default() });
        let name = "networks/lan/ports/a".into();
        says_so(&Port::from(netd::Port { name, status, ..Default::default() }));
        let status = Some(netd::ForwardStatus { state, error: error.clone(), ..Default::default() });
        let name = "networks/lan/forwards/a".into();
        says_so(&Forward::from(netd::Forward { name, status, ..Default::default() }));
        let status = Some(netd::GroupStatus { state, error: error.clone(), ..Default::default() });
        says_so(&Group::from(netd::Group { name: "groups/a".into(), status, ..Default::default() }));
        let status = Some(vmd::VmStatus { state: vmd::VmState::Broken.into(), error, ..Default::default() });
        says_so(&Vm::from(vmd::Vm { name: "vms/a".into(), status, ..Default::default() }));
    }
}
