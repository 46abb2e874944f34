//! Runs nft(8): the crate's own helpers lose what nft says on stderr, so this is ours.

use super::{
    Tables, Traffic,
    ruleset::{self, FAMILIES, TABLE, word},
};
use nftables::{batch::Batch, types::NfFamily};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use shared::fault::{Fault, Kind};
use std::{process::Stdio, time::Duration};
use tokio::{io::AsyncWriteExt as _, process::Command, time::timeout};

/// Longest run of nft; a whole replacement with thousands of members takes well under a second.
const LIMIT: Duration = Duration::from_secs(20);

/// Carries out a transaction.
///
/// # Errors
/// INTERNAL with nft's own words. Nothing was changed.
#[tracing::instrument(level = "info", skip_all)]
pub async fn apply(batch: Batch<'static>) -> Result<(), Fault> {
    let text = serde_json::to_vec(&batch.to_nftables())
        .map_err(|e| Fault::internal("cannot write rules as JSON").cause(&e))?;
    run(&["-j", "-f", "-"], &text).await.map(drop)
}

/// As `apply`, for a transaction in nft's own language. It must be made of typed values only: nft looks up host names.
///
/// # Errors
/// INTERNAL with nft's own words. Nothing was changed.
#[tracing::instrument(level = "info", skip_all)]
pub async fn apply_text(text: &str) -> Result<(), Fault> {
    run(&["-f", "-"], text.as_bytes()).await.map(drop)
}

/// What guests' frames have left in the sets; nothing where there are no tables.
///
/// # Errors
/// INTERNAL with nft's own words.
#[tracing::instrument(level = "info", skip_all)]
pub async fn traffic() -> Result<Traffic, Fault> {
    let listing = list(NfFamily::Bridge).await?;
    Ok(listing.as_ref().map(ruleset::traffic).unwrap_or_default())
}

/// Reads both tables.
///
/// # Errors
/// INTERNAL with nft's own words.
#[tracing::instrument(level = "info", skip_all)]
pub async fn read() -> Result<Tables, Fault> {
    let (bridge, inet) = tokio::join!(list(FAMILIES[0]), list(FAMILIES[1]));
    let mut tables = Tables::default();
    let mut digest = Some(Sha256::new());
    for listing in [bridge?, inet?] {
        let Some(listing) = listing else {
            digest = None;
            continue;
        };
        let listing = ruleset::read(&listing);
        tables.foreign |= listing.instance.is_none();
        tables.instance = tables.instance.or(listing.instance);
        tables.elements.0.extend(listing.elements.0);
        if let Some(digest) = &mut digest {
            digest.update(listing.rules);
        }
    }
    tables.digest = digest.map(|digest| format!("{:x}", digest.finalize()));
    Ok(tables)
}

async fn list(family: NfFamily) -> Result<Option<Value>, Fault> {
    match run(&["-j", "list", "table", word(family), TABLE], &[]).await {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|e| Fault::internal("nft printed something that is not JSON").cause(&e)),
        // A missing program says the same, but not of nft's rules.
        Err(fault)
            if fault.kind() == Kind::Internal
                && fault.causes().iter().any(|c| c.contains("No such file or directory")) =>
        {
            Ok(None)
        }
        Err(fault) => Err(fault),
    }
}

/// First line of `nft --version`.
///
/// # Errors
/// FAILED_PRECONDITION if nft is missing.
pub async fn version() -> Result<String, Fault> {
    let text = run(&["--version"], &[]).await?;
    Ok(String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned())
}

async fn run(arguments: &[&str], input: &[u8]) -> Result<Vec<u8>, Fault> {
    let failed = |what: &str| Fault::new(Kind::Internal, "NFT", what);
    let mut child = Command::new("nft")
        .args(arguments)
        .env_clear()
        .env("LC_ALL", "C")
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| {
            failed("cannot run nft").with_kind(Kind::FailedPrecondition).cause(&e).hint("install nftables")
        })?;
    let mut stdin = child.stdin.take();
    let feed = async move {
        if let Some(stdin) = &mut stdin {
            // A failure shows in nft's own words below.
            let _ = stdin.write_all(input).await;
        }
        drop(stdin);
    };
    let (output, ()) = timeout(LIMIT, async { tokio::join!(child.wait_with_output(), feed) })
        .await
        .map_err(|_| failed("nft did not end in time"))?;
    let output = output.map_err(|e| failed("cannot read nft's answer").cause(&e))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let words = words.lines().next().unwrap_or("nft said nothing").to_owned();
    Err(failed("nft refused the rules").cause(&std::io::Error::other(words)))
}
