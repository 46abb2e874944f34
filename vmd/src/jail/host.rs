//! Which layers this host allows, and a machine's part of them.

use super::{
    Finding, HandedFile, Layer, Spec,
    groups::{self, Groups},
    ids::{self, Ids, Pool},
    kvm,
    limits::Limits,
    programs::Programs,
};
use crate::model::{Accelerator, Run};
use shared::{
    fault::{Fault, Kind},
    name::Name,
};
use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};
use tokio::{process::Command, sync::Mutex};

/// A probe takes some 20 ms.
const DEADLINE: Duration = Duration::from_secs(20);
/// Threads that QEMU may have beside its virtual CPUs: its pool of 64 for disks, displays, collectors.
const THREADS: u64 = 1024;
/// Descriptors that QEMU may open beside those it was given.
const DESCRIPTORS: u64 = 4096;

/// First argument of the child that tries all layers, and prints what it found.
pub const PROBE: &str = "__probe";

/// What is known about containment on this host.
#[derive(Debug)]
pub struct Jail {
    launcher: PathBuf,
    /// A folder in which a probe may mount.
    place: PathBuf,
    required: bool,
    ids: Result<Pool, String>,
    /// What QEMU reads.
    pub programs: Programs,
    /// Machines' control groups.
    pub groups: Groups,
    found: Mutex<Option<Arc<Vec<Finding>>>>,
}

/// What a machine asks for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Threads and CPUs.
    pub vcpus: u32,
    /// Which devices.
    pub accelerator: Accelerator,
    /// Bytes of the largest file that may be written; `None`: unlimited.
    pub file_size: Option<u64>,
}

impl Jail {
    /// `launcher` is this program, `place` vmd's run folder. With `required`, nothing starts with less than all layers.
    #[must_use]
    pub fn new(launcher: PathBuf, place: PathBuf, required: bool) -> Self {
        let ids = Pool::of_this_user();
        Self {
            launcher,
            place,
            required,
            ids,
            programs: Programs::default(),
            groups: Groups::default(),
            found: Mutex::default(),
        }
    }

    /// With machines' control groups.
    #[must_use]
    pub fn with_groups(self, groups: Groups) -> Self {
        Self { groups, ..self }
    }

    /// The layers that this host allows, and why not the others.
    pub async fn findings(&self) -> Arc<Vec<Finding>> {
        let mut found = self.found.lock().await;
        if let Some(found) = &*found {
            return Arc::clone(found);
        }
        let new = Arc::new(self.probe().await);
        for missing in new.iter().filter(|finding| !finding.holds && !finding.absent) {
            tracing::warn!(
                layer = missing.layer.name(),
                reason = missing.reason,
                hint = missing.layer.hint(),
                "QEMU is contained without a layer"
            );
        }
        Arc::clone(found.insert(new))
    }

    /// As `findings`, for machines of an accelerator.
    pub async fn findings_for(&self, accelerator: Accelerator) -> Vec<Finding> {
        let mut findings = self.findings().await.to_vec();
        if accelerator == Accelerator::Kvm {
            kvm::note(&mut findings);
        }
        findings
    }

    /// A layer that was there is not any more: the next start looks anew.
    pub async fn forget(&self) {
        self.found.lock().await.take();
    }

    async fn probe(&self) -> Vec<Finding> {
        let group = self.groups.probe().filter(|group| group.make(&[]).is_ok());
        let mut findings = self.try_all(group.as_ref().map(|group| group.folder().to_owned())).await;
        if let Some(group) = group
            && let Err(fault) = group.end().await
        {
            tracing::warn!(error = fault.chain(), "the group of the probe stays");
        }
        self.judge_groups(&mut findings);
        findings.sort_by_key(|finding| finding.layer);
        findings
    }

    /// What the groups are good for once a process was seen to enter one.
    fn judge_groups(&self, findings: &mut Vec<Finding>) {
        let tried = findings.iter().find(|finding| finding.layer == Layer::ControlGroup).cloned();
        let known = self.groups.findings();
        findings.retain(|finding| known.iter().all(|known| known.layer != finding.layer));
        let entered = tried.as_ref().is_some_and(|tried| tried.holds);
        findings.extend(known.iter().map(|known| match (known.layer, &tried) {
            (Layer::ControlGroup, Some(tried)) if known.holds => tried.clone(),
            (layer, _) if known.holds && !entered => Finding::of(layer, Err(groups::NEEDED.into())),
            _ => known.clone(),
        }));
    }

    async fn try_all(&self, group: Option<PathBuf>) -> Vec<Finding> {
        let spec = Spec {
            layers: Layer::ALL.into(),
            group,
            ids: self.ids.as_ref().ok().map(Pool::last),
            limits: Limits { descriptors: Some(DESCRIPTORS), threads: Some(THREADS), file_size: None },
            ..Spec::default()
        };
        let failed = |why: &str| {
            let finding = |layer| Finding::of(layer, Err(format!("the probe failed: {why}")));
            Layer::ALL.into_iter().map(finding).collect::<Vec<_>>()
        };
        let Ok(words) = serde_json::to_string(&spec) else { return failed("no JSON") };
        let output = Command::new(&self.launcher)
            .args([PROBE, &words])
            .current_dir(&self.place)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = match tokio::time::timeout(DEADLINE, output).await {
            Ok(Ok(output)) => output,
            Ok(Err(error)) => return failed(&error.to_string()),
            Err(_) => return failed("it does not end"),
        };
        let Ok(mut findings) = serde_json::from_slice::<Vec<Finding>>(&output.stdout) else {
            return failed(String::from_utf8_lossy(&output.stderr).trim());
        };
        if let Err(reason) = &self.ids {
            for finding in findings.iter_mut().filter(|finding| finding.layer == Layer::OwnUser) {
                finding.reason.clone_from(reason);
            }
        }
        findings
    }

    /// What a machine's child is to do, but for what QEMU reads; and what holds then.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if a layer is required and is not to be had, RESOURCE_EXHAUSTED if no user id is left.
    pub async fn plan(&self, machine: &Name, wanted: Wanted) -> Result<(Spec, Vec<Finding>), Fault> {
        let mut findings = self.findings().await.to_vec();
        let mut spec = Spec::default();
        if wanted.accelerator == Accelerator::Kvm {
            spec.devices.push(kvm::DEVICE.into());
            spec.keep_groups = kvm::note(&mut findings);
        }
        if self.required {
            let missing: Vec<_> =
                findings.iter().filter(|finding| !finding.holds && !finding.absent).collect();
            if !missing.is_empty() {
                return Err(refused(&missing));
            }
        }
        let holds = findings.iter().filter(|finding| finding.holds);
        spec.layers = holds.map(|finding| finding.layer).collect();
        if spec.layers.contains(&Layer::OwnUser)
            && let Ok(pool) = &self.ids
        {
            spec.ids = Some(pool.take(machine)?);
        }
        spec.limits = Limits {
            descriptors: Some(DESCRIPTORS),
            threads: Some(threads(wanted.vcpus)),
            file_size: wanted.file_size,
        };
        Ok((spec, findings))
    }

    /// A machine that runs has this user.
    pub fn keep(&self, machine: &Name, uid: u32) {
        if let Ok(pool) = &self.ids {
            pool.keep(machine, uid);
        }
    }

    /// Machines that an earlier vmd left have these users, whether or not they can be adopted. With `unread`, there are
    /// more whose users nobody knows, and no machine gets a user that has processes.
    pub fn reserve(&self, runs: &BTreeMap<String, Run>, unread: bool) {
        let Ok(pool) = &self.ids else { return };
        for (name, run) in runs {
            if let Ok(name) = name.parse() {
                pool.keep(&name, run.uid);
            }
        }
        if unread {
            pool.avoid(ids::users_of_processes());
        }
    }

    /// A machine runs no more.
    pub fn give_back(&self, machine: &Name) {
        if let Ok(pool) = &self.ids {
            pool.give_back(machine);
        }
    }
}

fn refused(missing: &[&Finding]) -> Fault {
    let words: Vec<String> =
        missing.iter().map(|finding| format!("{} ({})", finding.layer.name(), finding.reason)).collect();
    let fault = Fault::new(
        Kind::FailedPrecondition,
        "CONTAINMENT",
        format!("QEMU cannot be contained as --require-containment asks for; missing: {}", words.join(", ")),
    );
    let mut hints: Vec<&str> = missing.iter().map(|finding| finding.layer.hint()).collect();
    hints.dedup();
    hints.into_iter().fold(fault, Fault::hint)
}

/// Threads that QEMU may have in all.
#[must_use]
pub fn threads(vcpus: u32) -> u64 {
    THREADS + u64::from(vcpus)
}

/// A file for QEMU to open by name.
///
/// # Errors
/// What the file system said.
pub fn handed(file: &fs::File, path: &Path, inside: &str) -> io::Result<HandedFile> {
    let meta = file.metadata()?;
    Ok(HandedFile {
        fd: -1,
        path: path.to_owned(),
        inside: inside.into(),
        size: meta.size(),
        public: meta.mode() & 0o004 != 0,
    })
}

/// The ids that a machine's QEMU has: its own, or vmd's.
#[must_use]
pub fn user_of(spec: &Spec) -> Ids {
    spec.ids.unwrap_or_else(|| Ids {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
    })
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn what_an_earlier_vmd_left_keeps_its_user() {
        let own = rustix::process::getuid().as_raw();
        let jail = |first: u32, count| Jail {
            ids: Ok(Pool::new(Ids { uid: first, gid: 1 }, count)),
            ..Jail::new(PathBuf::new(), PathBuf::new(), false)
        };
        let take = |jail: &Jail| jail.ids.as_ref().unwrap().take(&"new".parse().unwrap());
        let runs = BTreeMap::from([("old".to_owned(), Run { uid: 700_000, ..crate::model::test_run() })]);
        let with_run = jail(700_000, 2);
        with_run.reserve(&runs, false);
        assert_eq!(take(&with_run).unwrap().uid, 700_001);
        let unread = jail(own, 1);
        unread.reserve(&runs, false);
        assert_eq!(take(&unread).unwrap().uid, own);
        let unread = jail(own, 1);
        unread.reserve(&runs, true);
        assert_eq!(take(&unread).unwrap_err().reason(), "USER_IDS");
    }
}
