//! What QEMU reads: its binary, its libraries, its folders of firmware and modules.

use shared::fault::{Fault, Kind};
use std::{
    collections::BTreeSet,
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
    process::{Output, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::process::Command;

/// Each question takes some 50 ms.
const DEADLINE: Duration = Duration::from_secs(10);
/// Where modules are that are loaded by name, beside the libraries.
const MODULES: &str = "qemu";

/// A program and what it reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Files and folders, absolute, none beneath another.
    pub read: Vec<PathBuf>,
    /// Folders of the libraries, since the linker's own list of them is not at hand.
    pub libraries: Vec<PathBuf>,
}

type FileId = (PathBuf, u64, u64, i64, i64, u64);

/// Looks programs up, once for each file.
#[derive(Debug, Default)]
pub struct Programs(Mutex<Option<(FileId, Arc<Program>)>>);

impl Programs {
    /// What `binary` reads.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if it cannot be looked at.
    pub async fn of(&self, binary: &Path) -> Result<Arc<Program>, Fault> {
        let failed = |error: &dyn std::error::Error| {
            Fault::new(
                Kind::FailedPrecondition,
                "QEMU_UNUSABLE",
                format!("cannot find out what QEMU, `{}`, reads", binary.display()),
            )
            .cause(error)
        };
        let meta = std::fs::metadata(binary).map_err(|e| failed(&e))?;
        let id = (binary.to_owned(), meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.size());
        if let Some((known, program)) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner)
            && *known == id
        {
            return Ok(Arc::clone(program));
        }
        // The dynamic linker lists what it would load; a program without one prints something else, and has none.
        let libraries = ask(binary, &["--version"], &[("LD_TRACE_LOADED_OBJECTS", "1")]);
        let folders = ask(binary, &["-L", "help"], &[]);
        let (libraries, folders) = tokio::join!(libraries, folders);
        let libraries = linked(&String::from_utf8_lossy(&libraries.map_err(|e| failed(&e))?.stdout));
        let folders = String::from_utf8_lossy(&folders.map_err(|e| failed(&e))?.stdout)
            .lines()
            .filter(|line| line.starts_with('/'))
            .map(|line| plain(Path::new(line)))
            .collect();
        let program = Arc::new(gather(binary, libraries, folders));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((id, Arc::clone(&program)));
        Ok(program)
    }
}

async fn ask(binary: &Path, args: &[&str], environment: &[(&str, &str)]) -> std::io::Result<Output> {
    let output = Command::new(binary)
        .args(args)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    tokio::time::timeout(DEADLINE, output)
        .await
        .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))?
}

/// The files in what a dynamic linker lists: `libx.so => /lib/libx.so (0x1)`, and itself, `/lib64/ld.so (0x1)`.
fn linked(listing: &str) -> Vec<PathBuf> {
    listing
        .lines()
        .filter_map(|line| {
            let (path, _) = line.rsplit_once(" (0x")?;
            let path = path.rsplit_once(" => ").map_or(path, |(_, path)| path).trim();
            path.starts_with('/').then(|| plain(Path::new(path)))
        })
        .collect()
}

fn gather(binary: &Path, libraries: Vec<PathBuf>, folders: Vec<PathBuf>) -> Program {
    let beside: BTreeSet<PathBuf> =
        libraries.iter().filter_map(|library| Some(library.parent()?.to_owned())).collect();
    // Distributions have `/lib` as a name of `/usr/lib`, and QEMU was told one of them.
    let prefix = binary.parent().and_then(Path::parent).unwrap_or(Path::new("/usr"));
    let modules = beside
        .iter()
        .flat_map(|folder| [folder.clone(), prefix.join(folder.strip_prefix("/").unwrap_or(folder))])
        .chain(["lib", "lib64"].map(|folder| prefix.join(folder)))
        .map(|folder| folder.join(MODULES));
    let folders: BTreeSet<PathBuf> =
        folders.into_iter().chain(modules).filter(|path| path.is_dir()).collect();
    let files = libraries.into_iter().chain([binary.to_owned()]);
    let files: BTreeSet<PathBuf> =
        files.filter(|file| !file.ancestors().any(|above| folders.contains(above))).collect();
    let outermost =
        folders.iter().filter(|path| !path.ancestors().skip(1).any(|above| folders.contains(above)));
    Program { read: outermost.cloned().chain(files).collect(), libraries: beside.into_iter().collect() }
}

/// Without `..` and `.`, by the words alone.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            part => plain.push(part),
        }
    }
    plain
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_linkers_listing_is_read() {
        let listing = "\tlinux-vdso.so.1 (0x00007ffe)\n\tlibz.so.1 => /lib/../lib/libz.so.1 (0x00007f)\n\
                       \tlibgone.so => not found\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\nQEMU 7\n";
        assert_eq!(
            linked(listing),
            [PathBuf::from("/lib/libz.so.1"), PathBuf::from("/lib64/ld-linux-x86-64.so.2")]
        );
    }

    #[test]
    fn nothing_is_listed_beneath_a_folder_that_is_listed() {
        let dir = tempfile::tempdir().unwrap();
        let share = dir.path().join("share");
        std::fs::create_dir_all(share.join("deep")).unwrap();
        let program = gather(
            Path::new("/opt/bin/q"),
            vec![share.join("deep/libx.so"), "/lib/liby.so".into()],
            vec![share.clone(), share.join("deep"), "/nowhere/at/all".into()],
        );
        assert!(program.read.contains(&share) && program.read.contains(&PathBuf::from("/lib/liby.so")));
        assert!(program.read.contains(&PathBuf::from("/opt/bin/q")));
        assert!(
            !program.read.contains(&share.join("deep"))
                && !program.read.contains(&share.join("deep/libx.so"))
        );
        assert!(program.libraries.contains(&PathBuf::from("/lib")));
    }

    #[tokio::test]
    async fn a_program_is_looked_up_with_its_libraries() {
        let programs = Programs::default();
        let program = programs.of(Path::new("/bin/cat")).await.unwrap();
        assert!(program.read.iter().any(|path| path.to_string_lossy().contains("libc.so")), "{program:?}");
        assert!(Arc::ptr_eq(&program, &programs.of(Path::new("/bin/cat")).await.unwrap()));
        assert_eq!(programs.of(Path::new("/nowhere/q")).await.unwrap_err().reason(), "QEMU_UNUSABLE");
    }
}
