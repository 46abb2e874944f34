//! The lines of the audit log as events.

use super::{Audit, Record};
use crate::{
    events::{EventKind, News},
    store::Store,
};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

/// Longest name of an object in an event, in characters: a client may send any.
const LONGEST_NAME: usize = 200;

/// Tells each line from now on, until `stop`.
pub fn feed(audit: &Audit, store: Store, stop: CancellationToken) -> impl Future<Output = ()> + Send + use<> {
    let mut lines = audit.subscribe();
    async move {
        loop {
            let line = tokio::select! {
                () = stop.cancelled() => return,
                line = lines.recv() => line,
            };
            let news = match line {
                Ok(record) => news(&record),
                Err(RecvError::Lagged(missed)) => {
                    News::of(EventKind::Audit, "", format!("{missed} more lines are in the audit log only"))
                }
                Err(RecvError::Closed) => return,
            };
            store.tell(Vec::new(), vec![news]);
        }
    }
}

fn news(record: &Record) -> News {
    let kind = if record.code == "PERMISSION_DENIED" { EventKind::Refused } else { EventKind::Audit };
    let who = record.uid.map_or_else(|| "somebody".to_owned(), |uid| format!("uid {uid}"));
    let call = record.rpc.rsplit('/').next().unwrap_or_default();
    let why = if record.reason.is_empty() { String::new() } else { format!(", {}", record.reason) };
    let object: String = record.object.chars().take(LONGEST_NAME).collect();
    News::of(kind, object, format!("{who}: {call}: {}{why}", record.code))
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::{access::Role, time::Timestamp};

    #[test]
    fn a_line_is_told_by_who_what_and_what_came_of_it() {
        let mut record = Record {
            time: Timestamp::now(),
            sequence: 1,
            uid: Some(1000),
            role: Some(Role::Viewer),
            rpc: "/netd.v1.NetworkService/DeleteNetwork".into(),
            object: format!("networks/{}", "x".repeat(1 << 16)),
            code: "PERMISSION_DENIED",
            reason: "ROLE".into(),
            duration_us: 1,
            left_out: 0,
            lost: 0,
        };
        let told = news(&record);
        assert_eq!(told.kind, EventKind::Refused);
        assert_eq!(told.message, "uid 1000: DeleteNetwork: PERMISSION_DENIED, ROLE");
        assert_eq!(told.resource.len(), LONGEST_NAME);
        record = Record { code: "OK", reason: String::new(), uid: None, ..record };
        let told = news(&record);
        assert_eq!((told.kind, told.message.as_str()), (EventKind::Audit, "somebody: DeleteNetwork: OK"));
    }
}
