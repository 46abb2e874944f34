//! Changes and reads our tables by nft(8): the crate's own helpers lose what nft says on stderr, so this is ours.

use super::{
    Elements, Tables, Traffic, conntrack, program,
    ruleset::{self, FAMILIES, TABLE, word},
};
use nftables::{batch::Batch, types::NfFamily};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use shared::{
    fault::{Fault, Kind},
    steps,
};

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

/// Removes and adds members of sets, and ends flows that began while a forward was missing.
///
/// # Errors
/// INTERNAL with nft's own words. Nothing was changed.
pub async fn change(remove: &Elements, add: &Elements) -> Result<(), Fault> {
    apply(ruleset::change(remove, add)).await?;
    steps::point(|| "between rules and flows".to_owned())?;
    conntrack::begin_anew(add).await;
    Ok(())
}

/// Replaces both tables, keeps what traffic has left in them, and ends flows that began while a forward was missing.
///
/// # Errors
/// INTERNAL with nft's own words. Nothing was changed.
pub async fn replace(instance: &str, elements: &Elements) -> Result<(), Fault> {
    let traffic = traffic().await?;
    if let Err(fault) = apply_text(&ruleset::replace(instance, elements, &traffic)).await {
        // A tap that went meanwhile is no longer known to nft. The rules matter more than what was seen.
        tracing::warn!(error = fault.chain(), "what guests' frames have left cannot be kept");
        apply_text(&ruleset::replace(instance, elements, &Traffic::default())).await?;
    }
    conntrack::begin_anew(elements).await;
    Ok(())
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
    let sets = ruleset::HOST_DROPS.map(|(set, _)| ["-j", "list", "set", word(NfFamily::INet), TABLE, set]);
    let (bridge, flows, dns) =
        tokio::join!(list(word(NfFamily::Bridge), TABLE), listed(&sets[0]), listed(&sets[1]));
    let mut traffic = bridge?.as_ref().map(ruleset::traffic).unwrap_or_default();
    for (listing, (_, reason)) in [flows?, dns?].iter().zip(ruleset::HOST_DROPS) {
        for (guest, packets) in listing.as_ref().map(ruleset::dropped_by_host).unwrap_or_default() {
            traffic.by_host.entry(guest).or_default().insert(reason, packets);
        }
    }
    Ok(traffic)
}

/// Reads both tables.
///
/// # Errors
/// INTERNAL with nft's own words.
#[tracing::instrument(level = "info", skip_all)]
pub async fn read() -> Result<Tables, Fault> {
    let (bridge, inet) = tokio::join!(list(word(FAMILIES[0]), TABLE), list(word(FAMILIES[1]), TABLE));
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

/// One table; `None` if there is none.
///
/// # Errors
/// INTERNAL with nft's own words.
pub async fn list(family: &str, table: &str) -> Result<Option<Value>, Fault> {
    listed(&["-j", "list", "table", family, table]).await
}

async fn listed(arguments: &[&str]) -> Result<Option<Value>, Fault> {
    match run(arguments, &[]).await {
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

/// Everybody's rules: as JSON, and in nft's words with handles and without counts.
///
/// # Errors
/// As `version`; INTERNAL with nft's own words.
pub async fn everything() -> Result<(Value, String), Fault> {
    let (json, text) =
        tokio::join!(run(&["-j", "list", "ruleset"], &[]), run(&["-s", "-a", "list", "ruleset"], &[]));
    let json = serde_json::from_slice(&json?)
        .map_err(|e| Fault::internal("nft printed something that is not JSON").cause(&e))?;
    Ok((json, String::from_utf8_lossy(&text?).into_owned()))
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
    let output = program::run("nft", arguments, input).await?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let words = words.lines().next().unwrap_or("nft said nothing").to_owned();
    let hint = if words.contains(UNSUPPORTED) { too_old(&program_version().await) } else { None };
    let fault =
        Fault::new(Kind::Internal, "NFT", "nft refused the rules").cause(&std::io::Error::other(words));
    Err(match hint {
        Some(hint) => fault.hint(hint),
        None => fault,
    })
}

/// nft's words for EOPNOTSUPP.
const UNSUPPORTED: &str = "Operation not supported";

/// First line of `nft --version`; nothing if it cannot be told.
async fn program_version() -> String {
    let output = program::run("nft", &["--version"], &[]).await;
    let text = output.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned()
}

/// What to do if a kernel does not support a rule that this version wrote.
///
/// nft before 1.1.0 converts the byte order of `meta l4proto` where it is looked up in intervals, though it is one byte
/// (mended by its commit 9fe58952c45a). Kernels that take only whole words in nft_byteorder (Debian's 6.12.118) refuse it.
fn too_old(version: &str) -> Option<String> {
    let number = version.strip_prefix("nftables v")?.split(' ').next()?;
    let parts: Vec<u32> = number.split('.').map(str::parse).collect::<Result<_, _>>().ok()?;
    (parts.as_slice() < [1, 1].as_slice())
        .then(|| format!("this kernel refuses what nft {number} writes: install nftables 1.1.0 or newer"))
}

#[cfg(test)]
mod test {
    use super::too_old;

    #[test]
    fn an_nft_is_too_old_before_1_1() {
        for version in ["nftables v1.0.6 (Lester Gooch #5)", "nftables v0.9.8 (E.D.S.)"] {
            let hint = too_old(version).expect(version);
            assert!(hint.contains("install nftables 1.1.0 or newer"), "{hint}");
        }
        for version in ["nftables v1.1.0 (Commodore Bullmoose)", "nftables v1.1.3", "nftables v2.0", "", "v1"]
        {
            assert_eq!(too_old(version), None, "{version}");
        }
    }
}
