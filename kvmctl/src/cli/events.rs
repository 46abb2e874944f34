//! `kvmctl events`.

use crate::{
    client::DaemonName,
    parse::{self, Cursor, Pattern},
};
use clap::Args;

/// Shown after the help.
pub const EXAMPLES: &str = "\
Examples:
  kvmctl events
  kvmctl events --kind repaired,degraded --resource 'networks/lan*'
  kvmctl events --follow -o json | jq -r .message
  kvmctl events --since n3f2a9c01.12-v99aabbcc.7";

/// `kvmctl events`.
#[derive(Args, Debug)]
pub struct Events {
    /// Only events after this place: the `cursor` of an event, or what the last list ended with
    #[arg(long, value_name = "CURSOR", value_parser = parse::cursor)]
    pub since: Option<Cursor>,
    /// Go on with new events until Ctrl-C, over restarts of the daemons too
    #[arg(short, long)]
    pub follow: bool,
    /// Only events of these kinds
    #[arg(long = "kind", value_name = "KIND", value_delimiter = ',', value_parser = KINDS)]
    pub kinds: Vec<String>,
    /// Only events of these objects; * stands for anything
    #[arg(long = "resource", value_name = "PATTERN", value_parser = parse::pattern)]
    pub resources: Vec<Pattern>,
    /// Only this daemon's events
    #[arg(long, value_name = "DAEMON", value_enum)]
    pub from: Option<DaemonName>,
}

/// The kinds of events of both daemons, as they are printed.
pub const KINDS: [&str; 20] = [
    "created",
    "updated",
    "deleted",
    "ready",
    "degraded",
    "recovered",
    "repaired",
    "drifted",
    "leased",
    "lease_ended",
    "state",
    "adopted",
    "unresponsive",
    "responsive",
    "exited",
    "crashed",
    "started",
    "stopped",
    "audit",
    "refused",
];

#[cfg(test)]
mod test {
    use super::*;
    use proto::events::v1::EventKind;
    use std::collections::BTreeSet;

    #[test]
    fn all_kinds_of_both_daemons_can_be_asked_for() {
        let words = (1..100).filter_map(|number| EventKind::try_from(number).ok());
        let words = words.map(|kind| kind.as_str_name());
        let words: BTreeSet<_> =
            words.map(|word| word.trim_start_matches("EVENT_KIND_").to_ascii_lowercase()).collect();
        assert_eq!(words, KINDS.map(str::to_owned).into());
    }
}
