//! A machine's control group.

use super::{Context, confine::Confined, undo::Undo};
use crate::{
    jail::{Layer, groups::limits::Limits},
    model::Record,
};
use shared::{fault::Fault, steps};

/// Removes what an earlier run has left of it. What goes on in there may be a guest whose record was lost.
///
/// # Errors
/// FAILED_PRECONDITION with its processes, if it has some.
pub(super) async fn vacate<P>(context: &Context<P>, record: &Record) -> Result<(), Fault> {
    match context.jail.groups.leaf(&record.name) {
        Some(leaf) => leaf.vacate().await,
        None => Ok(()),
    }
}

/// Makes it with its limits, for the child to enter. What it may have is told with the layers.
///
/// # Errors
/// FAILED_PRECONDITION if the kernel refuses, or if there is one that has processes.
pub(super) fn make<P>(
    context: &Context<P>,
    record: &Record,
    confined: &mut Confined,
    undo: &mut Undo,
) -> Result<(), Fault> {
    let layers = &confined.jail.layers;
    let Some(leaf) = context.jail.groups.leaf(&record.name).filter(|_| layers.contains(&Layer::ControlGroup))
    else {
        return Ok(());
    };
    let limits = Limits {
        guest: record.spec.memory_bytes,
        vcpus: record.spec.vcpus,
        accelerator: confined.accelerator,
        threads: crate::jail::host::threads(record.spec.vcpus),
        images: confined.images,
        boot: confined.jail.files.iter().map(|file| file.size).sum(),
    };
    let files = limits.files(layers);
    steps::effect(|| "make the group".to_owned(), || leaf.make(&files))?;
    for finding in confined.findings.iter_mut().filter(|finding| finding.holds) {
        if let Some(words) = limits.words(finding.layer) {
            finding.reason = words;
        }
    }
    confined.jail.group = Some(leaf.folder().to_owned());
    undo.group = Some(leaf);
    Ok(())
}
