//! What root has to make or give away before netd is an ordinary user.

use super::User;
use crate::{config::Config, services};
use shared::{
    fault::{Fault, Kind},
    socket::Prepared,
    store,
};
use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, lchown},
    path::Path,
};

/// Makes the folders and the socket, and gives them to the user. What an earlier netd left there as root is given too,
/// and the servers that it left are ended, which only root can: this netd starts them anew.
pub fn give(config: &Config, user: User, group: Option<u32>) -> Result<Prepared, Fault> {
    for (folder, mode) in [(&config.state_dir, 0o700), (&config.run_dir, 0o711)] {
        make(folder, mode).map_err(|e| failed(folder, &e))?;
    }
    // A netd that runs keeps its folders and its socket.
    let _lock = store::lock(&config.state_dir)?;
    for folder in [&config.run_dir, &config.state_dir] {
        let owner = fs::metadata(folder).map_err(|e| failed(folder, &e))?.uid();
        // Only root has put anything there so far. In the user's own folder it may have left links to files of others.
        if owner == 0 {
            services::end_those_of_others(folder, user.uid);
            hand_over(folder, user).map_err(|e| failed(folder, &e))?;
        }
    }
    Prepared::bind(&config.socket, Some(user.uid), group.or(Some(user.gid)))
}

pub(super) fn make(folder: &Path, mode: u32) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    folder.parent().map_or(Ok(()), fs::create_dir_all)?;
    fs::DirBuilder::new().mode(mode).create(folder)
}

/// Changes the owner of all that an earlier netd left, the folder last: until then nobody else can change what is in it.
fn hand_over(path: &Path, user: User) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            hand_over(&entry?.path(), user)?;
        }
    }
    lchown(path, Some(user.uid), Some(user.gid))
}

fn failed(folder: &Path, error: &io::Error) -> Fault {
    let message = format!("cannot give `{}` to the user of --user", folder.display());
    Fault::new(Kind::FailedPrecondition, "FOLDER", message)
        .cause(error)
        .hint("look whose it is, or choose another with --state-dir and --run-dir")
}
