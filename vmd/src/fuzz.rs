//! What is fuzzed: each function takes any bytes, and says whether it took them for something, or why not.
//!
//! cargo-fuzz calls them from `integration-tests/fuzz`, the tests below from mutated seeds. What has to hold of what
//! was accepted is asserted in them.

use crate::{
    model::{Disk, DiskBus, DiskCache, DiskFormat, DiskMedia},
    qemu::{files, stderr},
};
use std::{fs, path::Path};
use tempfile::TempDir;

pub use crate::{
    convert::fuzz::specs, qemu::qmp::fuzz::qmp, server::fuzz::vmd_requests, supervisor::fuzz::vmd_records,
};

/// Taken for something, or refused for a reason of few words.
pub type Outcome = Result<(), String>;

/// In memory where that can be: what is durable is not the question here.
pub(crate) fn folder() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).expect("a folder")
}

thread_local! {
    static FOLDER: TempDir = folder();
}

/// A disk image: a byte for its format, and the file.
///
/// # Errors
/// Why it is no such image.
pub fn images(data: &[u8]) -> Outcome {
    let (sort, image) = data.split_first().ok_or("empty")?;
    let path = FOLDER.with(|folder| folder.path().join("image"));
    fs::write(&path, image).map_err(|error| error.to_string())?;
    let format = if sort % 8 == 0 { DiskFormat::Raw } else { DiskFormat::Qcow2 };
    let disk = Disk {
        path: path.display().to_string(),
        format,
        bus: DiskBus::Virtio,
        cache: DiskCache::Writeback,
        read_only: sort % 2 == 0,
        media: DiskMedia::Disk,
    };
    let opened = files::open_disk(&disk, &crate::qemu::reach::Reach::Anywhere);
    assert_eq!(fs::read(&path).ok().as_deref(), Some(image), "the image was changed");
    opened.map_err(|fault| {
        assert!(!fault.hints().is_empty(), "{fault}");
        let told = fault.chain();
        told.split('`').step_by(2).collect::<String>().chars().take(80).collect::<String>()
    })?;
    if format == DiskFormat::Qcow2 {
        assert_eq!(&image[..4], b"QFI\xfb");
        let offset = u64::from_be_bytes(image[8..16].try_into().expect("eight bytes"));
        let length = u32::from_be_bytes(image[16..20].try_into().expect("four bytes"));
        if offset != 0 && length != 0 {
            let name = &image[usize::try_from(offset).expect("it was read")..][..length as usize];
            assert!(Path::new(&*String::from_utf8_lossy(name)).is_absolute(), "{}", name.escape_ascii());
        }
    }
    Ok(())
}

/// What QEMU wrote before it died.
///
/// # Errors
/// If nothing is to be quoted.
pub fn last_words(data: &[u8]) -> Outcome {
    let quoted = stderr::quote(&String::from_utf8_lossy(data));
    assert!(!quoted.chars().any(char::is_control), "{quoted}");
    if quoted.is_empty() { Err("nothing".into()) } else { Ok(()) }
}

#[cfg(test)]
mod test {
    use mutate::{Campaign, Form};

    #[test]
    fn images() {
        let tokens = ["QFI\u{fb}", "/etc/passwd", "json:{", "base.qcow2", "../x"];
        Campaign::new("images", Form::Bytes).tokens(&tokens).run(super::images);
    }

    #[test]
    fn last_words() {
        let tokens = ["qemu-system-x86_64: ", "}: ", "-device {", "\u{1b}[31m", "2025-01-01T00:00:00.0Z "];
        Campaign::new("last_words", Form::Text).tokens(&tokens).run(super::last_words);
    }

    #[test]
    fn qmp() {
        let tokens = [
            "QMP",
            "return",
            "error",
            "desc",
            "event",
            "data",
            "id",
            "SHUTDOWN",
            "STOP",
            "RESUME",
            "BLOCK_IO_ERROR",
            "reason",
            "guest-shutdown",
            "{\"return\":{},\"id\":1}\n",
            "{\"return\":{},\"id\":2}\n",
            "{\"id\":2,\"error\":{}}\n",
            "{\"event\":\"STOP\"}\n",
            "1",
            "2",
            "[[[[",
            "null",
            "\n",
        ];
        Campaign::new("qmp", Form::Text).tokens(&tokens).run(super::qmp);
    }

    #[test]
    fn specs() {
        Campaign::new("specs", Form::Requests).tokens(&TOKENS).run(super::specs);
    }

    #[test]
    fn vmd_requests() {
        Campaign::new("vmd_requests", Form::Requests).tokens(&TOKENS).run(super::vmd_requests);
    }

    #[test]
    fn vmd_records() {
        Campaign::new("vmd_records", Form::Json).tokens(&TOKENS).run(super::vmd_records);
    }

    const TOKENS: [&str; 28] = [
        "vms/web",
        "vms/db",
        "networks/lan",
        "networks/dmz",
        "groups/web",
        "web",
        "qcow2",
        "raw",
        "/dev/null",
        "/etc/hostname",
        "relative",
        "52:54:00:00:00:01",
        "52:54:00:00:00:02",
        "01:00:00:00:00:00",
        "10.0.0.2",
        "fd00::2",
        "host",
        "max,+vmx",
        "a\0b",
        "a\nb",
        "é",
        "console=ttyS0",
        "",
        "running",
        "virtio",
        "stopped",
        "kvm",
        "networks/lan/ports/web-0",
    ];
}
