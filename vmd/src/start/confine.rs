//! A machine's part of containment: its layers, its user, and the files it is given.

use super::Context;
use crate::{
    jail::{self, Finding, Spec, host::Wanted},
    model::{self, Accelerator, Record},
    qemu::files::{self, OpenDisk, printable_path},
};
use shared::fault::{Fault, Kind};
use std::{fs, os::fd::OwnedFd, path::PathBuf};

/// Bytes that QEMU may write to a file in memory, which is all that there is where no disk is written.
const MEMORY_FILE: u64 = 64 << 20;

/// What the child gets.
pub(super) struct Confined {
    pub jail: Spec,
    /// The open files of `jail`.
    pub files: Vec<OwnedFd>,
    pub accelerator: Accelerator,
    /// Images of disks, with those behind them.
    pub images: u64,
    /// What holds once it is up.
    pub findings: Vec<Finding>,
    /// The machine's spec with the names that kernel and initramfs have for QEMU.
    pub spec: model::Spec,
}

/// Plans it, and opens kernel and initramfs.
///
/// # Errors
/// What cannot be used; a layer that is required and is not to be had; no user id left.
pub(super) async fn confine<P>(
    context: &Context<P>,
    record: &Record,
    accelerator: Accelerator,
    disks: &[OpenDisk],
) -> Result<Confined, Fault> {
    let largest = disks.iter().map(|disk| disk.largest).fold(MEMORY_FILE, u64::max);
    let wanted = Wanted { vcpus: record.spec.vcpus, accelerator, file_size: Some(largest) };
    let (mut jail, findings) = context.jail.plan(&record.name, wanted).await?;
    let program = context.jail.programs.of(context.host.binary()).await?;
    jail.read.clone_from(&program.read);
    jail.libraries.clone_from(&program.libraries);
    let images = disks.iter().map(|disk| 1 + u64::try_from(disk.backing.len()).unwrap_or_default()).sum();
    let mut spec = record.spec.clone();
    let Some(boot) = spec.kernel_boot.as_mut() else {
        return Ok(Confined { jail, files: Vec::new(), accelerator, images, findings, spec });
    };
    let paths = std::iter::once(&mut boot.kernel).chain(&mut boot.initrd);
    let reach = context.reach(record.confined, record.owner);
    let asked = record.spec.kernel_boot.clone();
    // A dead network file system may block for long.
    let open = tokio::task::spawn_blocking(move || {
        asked.as_ref().map(|boot| files::open_boot(boot, &reach)).transpose()
    })
    .await
    .map_err(|e| Fault::internal("the task that opens the kernel died").cause(&e))??
    .unwrap_or_default();
    let own_root = jail.layers.contains(&jail::Layer::Files);
    let mut files = Vec::new();
    for ((file, path), inside) in open.into_iter().zip(paths).zip([jail::KERNEL, jail::INITRD]) {
        // The name without links, since that is what the layers compare.
        let real = fs::canonicalize(&*path).unwrap_or_else(|_| PathBuf::from(&*path));
        jail.files.push(jail::host::handed(&file, &real, inside).map_err(|error| {
            Fault::new(
                Kind::FailedPrecondition,
                "KERNEL_UNUSABLE",
                format!("cannot use `{}`", printable_path(path)),
            )
            .cause(&error)
        })?);
        if own_root {
            inside.clone_into(path);
        }
        files.push(OwnedFd::from(file));
    }
    Ok(Confined { jail, files, accelerator, images, findings, spec })
}
