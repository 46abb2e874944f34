//! The other end of the monitor, which may be a QEMU that its guest has taken over.

use super::*;
use crate::fuzz::Outcome;
use tokio::{io::AsyncReadExt as _, runtime::Runtime};

thread_local! {
    static RUNTIME: Runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
}

/// All that it says before it closes: greeting, answers to `qmp_capabilities` and one more command, events.
///
/// # Errors
/// Why it is not taken for QEMU.
pub fn qmp(data: &[u8]) -> Outcome {
    RUNTIME.with(|runtime| runtime.block_on(talk(data)))
}

async fn talk(data: &[u8]) -> Outcome {
    let (ours, mut theirs) = UnixStream::pair().map_err(|error| error.to_string())?;
    let say = async {
        // Our end may have closed: it has heard enough.
        let _ = theirs.write_all(data).await;
        let _ = theirs.shutdown().await;
        let mut heard = Vec::new();
        let _ = theirs.read_to_end(&mut heard).await;
        heard
    };
    let listen = async {
        let (qmp, mut events) = Qmp::negotiate(ours).await.map_err(|fault| fault.chain())?;
        let answer = qmp.execute("query-status", Value::Null).await;
        let mut heard = 0;
        while events.recv().await.is_some() {
            heard += 1;
        }
        assert!(heard <= data.iter().filter(|byte| **byte == b'\n').count(), "more events than lines");
        drop(qmp);
        answer.map(drop).or_else(|fault| match fault.reason() {
            // It spoke QMP, and that is all.
            "QMP_CLOSED" | "QMP_REFUSED" => Ok(()),
            other => Err(other.to_owned()),
        })
    };
    let (heard, outcome) = tokio::join!(say, listen);
    for line in heard.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        assert!(serde_json::from_slice::<Value>(line).is_ok(), "{}", line.escape_ascii());
    }
    outcome.map_err(|told| told.chars().take(60).collect())
}
