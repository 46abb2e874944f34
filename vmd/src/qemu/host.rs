//! What this host's QEMU can do.

use crate::{
    config::AccelChoice,
    model::{Accelerator, FileId},
};
use shared::fault::{Fault, Kind};
use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::process::Command;

const KVM: &str = "/dev/kvm";
/// `qemu --version` takes some 50 ms.
const VERSION_DEADLINE: Duration = Duration::from_secs(10);

/// This host's QEMU.
#[derive(Debug)]
pub struct Host {
    choice: AccelChoice,
    binary: PathBuf,
    /// The version of the file that was asked last; an upgrade changes the file.
    version: Mutex<Option<(FileId, String)>>,
}

/// An accelerator, and why it is that one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Which.
    pub accelerator: Accelerator,
    /// Why.
    pub reason: String,
    /// What an operator should know.
    pub warning: Option<String>,
}

impl Host {
    /// `binary` is a path, or a name that is looked up in PATH.
    #[must_use]
    pub fn new(binary: &Path, choice: AccelChoice) -> Self {
        Self { choice, binary: which(binary), version: Mutex::new(None) }
    }

    /// Path of the QEMU binary; as it was given if it was not found.
    #[must_use]
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// The file that the binary is now.
    ///
    /// # Errors
    /// What the file system said.
    pub fn file(&self) -> io::Result<FileId> {
        let meta = fs::metadata(&self.binary)?;
        Ok(FileId {
            device: meta.dev(),
            inode: meta.ino(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            size: meta.size(),
        })
    }

    /// First line of `--version`.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if the binary cannot be run or does not answer.
    pub async fn version(&self) -> Result<String, Fault> {
        let failed = |why: &str| {
            Fault::new(
                Kind::FailedPrecondition,
                "QEMU_UNUSABLE",
                format!("cannot run QEMU, `{}`{why}", self.binary.display()),
            )
            .hint("install qemu-system-x86, or name the binary with --qemu")
        };
        let id = self.file().map_err(|e| failed("").cause(&e))?;
        if let Some((known, version)) = &*self.cached()
            && *known == id
        {
            return Ok(version.clone());
        }
        let output =
            Command::new(&self.binary).arg("--version").stdin(Stdio::null()).kill_on_drop(true).output();
        let output = tokio::time::timeout(VERSION_DEADLINE, output)
            .await
            .map_err(|_| failed(": it does not answer `--version`"))?
            .map_err(|e| failed("").cause(&e))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.lines().next().unwrap_or_default().trim().to_owned();
        if !output.status.success() || version.is_empty() {
            return Err(failed(": `--version` failed"));
        }
        *self.cached() = Some((id, version.clone()));
        Ok(version)
    }

    fn cached(&self) -> std::sync::MutexGuard<'_, Option<(FileId, String)>> {
        self.version.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What machines are run with; looked at anew each time, since modules are loaded and permissions change.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if KVM was asked for and does not work here.
    pub fn accelerator(&self) -> Result<Choice, Fault> {
        let device = fs::OpenOptions::new().read(true).write(true).open(KVM).map(drop);
        let flags = fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| has_virtualisation(&text));
        choose(self.choice, device, flags)
    }
}

/// KVM works only where the device opens and the CPU can: there are hosts whose /dev/kvm opens and whose guests hang.
fn choose(choice: AccelChoice, device: io::Result<()>, flags: bool) -> Result<Choice, Fault> {
    let obstacle = match (device, flags) {
        (Err(error), _) => Some(format!("{KVM} cannot be opened: {error}")),
        (Ok(()), false) => Some(format!("{KVM} is there, but the CPU shows neither vmx nor svm")),
        (Ok(()), true) => None,
    };
    match (choice, obstacle) {
        (AccelChoice::Tcg, _) => Ok(Choice {
            accelerator: Accelerator::Tcg,
            reason: "vmd was started with --accel tcg".into(),
            warning: None,
        }),
        (AccelChoice::Auto | AccelChoice::Kvm, None) => Ok(Choice {
            accelerator: Accelerator::Kvm,
            reason: format!("{KVM} opens and the CPU has hardware virtualisation"),
            warning: None,
        }),
        (AccelChoice::Auto, Some(obstacle)) => Ok(Choice {
            accelerator: Accelerator::Tcg,
            warning: Some(format!(
                "TCG is in use, which is slow and no security boundary, since KVM does not work: {obstacle}"
            )),
            reason: obstacle,
        }),
        (AccelChoice::Kvm, Some(obstacle)) => Err(Fault::new(
            Kind::FailedPrecondition,
            "KVM_UNUSABLE",
            format!("KVM does not work on this host: {obstacle}"),
        )
        .hint("load kvm_intel or kvm_amd, and let vmd's user open /dev/kvm (group kvm)")
        .hint("vmd --accel auto falls back to QEMU's emulation, which is slow")),
    }
}

fn has_virtualisation(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("flags"))
        .is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
}

fn which(binary: &Path) -> PathBuf {
    if binary.components().count() > 1 {
        return std::path::absolute(binary).unwrap_or_else(|_| binary.to_owned());
    }
    std::env::var_os("PATH")
        .iter()
        .flat_map(std::env::split_paths)
        .map(|folder| folder.join(binary))
        .find(|path| path.is_file())
        .unwrap_or_else(|| binary.to_owned())
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn kvm_needs_the_device_and_the_flags() {
        let missing = || Err(io::Error::from_raw_os_error(2));
        let auto = |device, flags| choose(AccelChoice::Auto, device, flags).unwrap();
        assert_eq!(auto(Ok(()), true).accelerator, Accelerator::Kvm);
        for fallback in [auto(Ok(()), false), auto(missing(), true)] {
            assert_eq!(fallback.accelerator, Accelerator::Tcg);
            assert!(fallback.warning.unwrap().contains(&fallback.reason));
        }
        assert_eq!(choose(AccelChoice::Kvm, Ok(()), false).unwrap_err().reason(), "KVM_UNUSABLE");
        assert_eq!(choose(AccelChoice::Tcg, Ok(()), true).unwrap().accelerator, Accelerator::Tcg);
    }

    #[test]
    fn flags_are_whole_words() {
        assert!(has_virtualisation("model name\t: x\nflags\t\t: fpu vmx sse\n"));
        assert!(!has_virtualisation("flags\t\t: fpu vmxx nosvm\nbugs\t: svm\n"));
    }

    #[tokio::test]
    async fn a_missing_qemu_is_named() {
        let host = Host::new(Path::new("/nowhere/qemu"), AccelChoice::Auto);
        let fault = host.version().await.unwrap_err();
        assert!(fault.to_string().contains("/nowhere/qemu"), "{fault}");
        assert!(fault.hints()[0].contains("--qemu"));
    }
}
