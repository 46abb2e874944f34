//! From the wire to the model: limits and defaults.

use super::nic;
use crate::model::{Disk, DiskBus, DiskCache, DiskFormat, DiskMedia, KernelBoot, Spec, VncListen};
use proto::vmd::v1 as wire;
use shared::{
    fault::{Fault, Kind},
    name::{Name, printable},
    time::span,
};
use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

const MIB: u64 = 1 << 20;
const MAX_VCPUS: u32 = 255;
/// What QEMU and the kernel can at all address; a host refuses far less by itself.
const MAX_MEMORY: u64 = 1 << 46;
const MAX_DISKS: usize = 32;
const MAX_SATA: usize = 6;
/// COMMAND_LINE_SIZE of x86 is 2048 with the final zero.
const MAX_CMDLINE: usize = 2047;
const MAX_PATH: usize = 4095;
const MAX_CPU_MODEL: usize = 64;
const MAX_LABELS: usize = 64;
const MAX_LABEL_KEY: usize = 63;
const MAX_LABEL_VALUE: usize = 1024;
const DEFAULT_STOP: Duration = Duration::from_secs(30);
const MAX_STOP: Duration = Duration::from_secs(3600);

pub(super) fn invalid(reason: &str, message: impl Into<String>) -> Fault {
    Fault::new(Kind::InvalidArgument, reason, message)
}

/// The name in `vms/NAME`.
///
/// # Errors
/// INVALID_ARGUMENT if it is not of that form.
pub fn resource(text: &str) -> Result<Name, Fault> {
    Name::from_resource(text, super::VMS)
}

/// How long a guest has to shut down.
///
/// # Errors
/// INVALID_ARGUMENT if it is negative or more than an hour.
pub fn stop_timeout(wanted: Option<prost_types::Duration>) -> Result<Duration, Fault> {
    let Some(wanted) = wanted else { return Ok(DEFAULT_STOP) };
    match span(wanted.seconds, wanted.nanos) {
        Some(timeout) if timeout <= MAX_STOP => Ok(timeout),
        _ => Err(invalid("INVALID_TIMEOUT", "the time-out of a stop is not between 0 and 3600 s")
            .hint("to kill the machine at once, set `force`")),
    }
}

/// Labels within their limits.
///
/// # Errors
/// INVALID_ARGUMENT if there are too many, or one is too long or has control characters.
pub fn labels(labels: HashMap<String, String>) -> Result<BTreeMap<String, String>, Fault> {
    if labels.len() > MAX_LABELS {
        return Err(invalid(
            "TOO_MANY_LABELS",
            format!("there are {} labels, and {MAX_LABELS} is the most", labels.len()),
        )
        .hint("keep longer notes outside of vmd"));
    }
    for (key, value) in &labels {
        let why = if key.is_empty() {
            "its key is empty"
        } else if key.len() > MAX_LABEL_KEY {
            "its key is longer than 63 bytes"
        } else if value.len() > MAX_LABEL_VALUE {
            "its value is longer than 1024 bytes"
        } else if key.chars().chain(value.chars()).any(char::is_control) {
            "it contains a control character"
        } else {
            continue;
        };
        return Err(invalid("INVALID_LABEL", format!("label `{}`: {why}", printable(key)))
            .hint("use keys of 1 to 63 bytes and values of up to 1024 bytes, without control characters"));
    }
    Ok(labels.into_iter().collect())
}

/// A spec, checked as far as that is possible without looking at the host.
///
/// # Errors
/// INVALID_ARGUMENT that names the field, the reason and what to write instead.
pub fn spec(spec: wire::VmSpec) -> Result<Spec, Fault> {
    if spec.vcpus > MAX_VCPUS {
        return Err(invalid("INVALID_VCPUS", format!("{} virtual CPUs are too many", spec.vcpus))
            .hint(format!("set `vcpus` to 1 to {MAX_VCPUS}")));
    }
    let memory_bytes = memory(spec.memory_bytes)?;
    let disks = disks(spec.disks)?;
    let nics = nic::parse(spec.nics)?;
    Ok(Spec {
        vcpus: spec.vcpus.max(1),
        memory_bytes,
        cpu_model: cpu_model(spec.cpu_model)?,
        disks,
        kernel_boot: spec.kernel_boot.map(kernel_boot).transpose()?,
        nics,
        vnc: spec.vnc.map(vnc).transpose()?,
    })
}

fn memory(bytes: u64) -> Result<u64, Fault> {
    let why = if bytes == 0 {
        "the machine has no memory"
    } else if !bytes.is_multiple_of(MIB) {
        "the memory is not a multiple of 1 MiB"
    } else if bytes > MAX_MEMORY {
        "the memory is more than 64 TiB"
    } else {
        return Ok(bytes);
    };
    Err(invalid("INVALID_MEMORY", format!("{why} (memory_bytes is {bytes})"))
        .hint("set `memory_bytes` to a multiple of 1048576, such as 536870912 (512 MiB)"))
}

/// The model becomes part of a comma-separated option, so that nothing but these characters may be in it.
fn cpu_model(model: String) -> Result<Option<String>, Fault> {
    if model.is_empty() {
        return Ok(None);
    }
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if model.len() > MAX_CPU_MODEL || !model.bytes().all(fine) {
        return Err(invalid("INVALID_CPU_MODEL", format!("`{}` is not a CPU model", printable(&model)))
            .hint("`qemu-system-x86_64 -cpu help` lists the models; leave it empty for the best one"));
    }
    Ok(Some(model))
}

fn path(text: String, what: &str) -> Result<String, Fault> {
    let why = if text.is_empty() {
        "is missing"
    } else if !text.starts_with('/') {
        "is not absolute"
    } else if text.len() > MAX_PATH {
        "is longer than 4095 bytes"
    } else if text.contains('\0') {
        "contains a zero byte"
    } else {
        return Ok(text);
    };
    Err(invalid("INVALID_PATH", format!("the path of {what}, `{}`, {why}", printable(&text)))
        .hint("write the whole path, beginning with `/`"))
}

pub(super) fn unknown(field: &str, value: i32) -> Fault {
    invalid("UNKNOWN_VALUE", format!("{value} is not a value of `{field}` that this vmd knows"))
        .hint("use a client of the same version as vmd")
}

fn disks(disks: Vec<wire::Disk>) -> Result<Vec<Disk>, Fault> {
    if disks.len() > MAX_DISKS {
        return Err(invalid(
            "TOO_MANY_DISKS",
            format!("there are {} disks, and {MAX_DISKS} is the most", disks.len()),
        )
        .hint("use fewer, larger disks"));
    }
    let disks = disks
        .into_iter()
        .enumerate()
        .map(|(index, one)| disk(one).map_err(|e| e.context(format!("disk {index} is invalid"))))
        .collect::<Result<Vec<_>, _>>()?;
    if disks.iter().filter(|disk| disk.bus == DiskBus::Sata).count() > MAX_SATA {
        return Err(invalid("TOO_MANY_DISKS", format!("more than {MAX_SATA} disks are on the SATA bus"))
            .hint("put disks on the virtio or the SCSI bus"));
    }
    for (index, one) in disks.iter().enumerate() {
        if disks[..index].iter().any(|other| other.path == one.path && !(one.read_only && other.read_only)) {
            return Err(invalid(
                "DUPLICATE_DISK",
                format!("`{}` is in the list of disks twice, and not only to be read", printable(&one.path)),
            )
            .hint("two writers would destroy it: name each file once"));
        }
    }
    Ok(disks)
}

fn disk(disk: wire::Disk) -> Result<Disk, Fault> {
    let format = match disk.format.as_str() {
        "raw" => DiskFormat::Raw,
        "qcow2" => DiskFormat::Qcow2,
        "" => {
            return Err(invalid("INVALID_DISK_FORMAT", "its format is missing")
                .hint("set `format` to `raw` or `qcow2`; it is never guessed from the content"));
        }
        other => {
            return Err(invalid("INVALID_DISK_FORMAT", format!("`{}` is not a format", printable(other)))
                .hint("set `format` to `raw` or `qcow2`; `qemu-img convert` changes a file's format"));
        }
    };
    let media = match wire::DiskMedia::try_from(disk.media).map_err(|e| unknown("media", e.0))? {
        wire::DiskMedia::Unspecified | wire::DiskMedia::Disk => DiskMedia::Disk,
        wire::DiskMedia::Cdrom => DiskMedia::Cdrom,
    };
    Ok(Disk {
        path: path(disk.path, "a disk")?,
        format,
        bus: match wire::DiskBus::try_from(disk.bus).map_err(|e| unknown("bus", e.0))? {
            wire::DiskBus::Unspecified | wire::DiskBus::Virtio => DiskBus::Virtio,
            wire::DiskBus::Sata => DiskBus::Sata,
            wire::DiskBus::Scsi => DiskBus::Scsi,
        },
        cache: match wire::DiskCache::try_from(disk.cache).map_err(|e| unknown("cache", e.0))? {
            wire::DiskCache::Unspecified | wire::DiskCache::Writeback => DiskCache::Writeback,
            wire::DiskCache::None => DiskCache::None,
            wire::DiskCache::Writethrough => DiskCache::Writethrough,
            wire::DiskCache::Unsafe => DiskCache::Unsafe,
            wire::DiskCache::Directsync => DiskCache::Directsync,
        },
        read_only: disk.read_only || media == DiskMedia::Cdrom,
        media,
    })
}

fn kernel_boot(boot: wire::KernelBoot) -> Result<KernelBoot, Fault> {
    let cmdline = boot.cmdline;
    if cmdline.len() > MAX_CMDLINE {
        return Err(invalid(
            "INVALID_CMDLINE",
            format!("the kernel command line has {} bytes, and {MAX_CMDLINE} is the most", cmdline.len()),
        )
        .hint("put longer settings into the initrd"));
    }
    if let Some(bad) = cmdline.chars().find(|c| c.is_control()) {
        return Err(invalid("INVALID_CMDLINE", format!("the kernel command line contains {bad:?}"))
            .hint("separate its words with blanks"));
    }
    Ok(KernelBoot {
        kernel: path(boot.kernel, "the kernel")?,
        initrd: match boot.initrd {
            none if none.is_empty() => None,
            some => Some(path(some, "the initrd")?),
        },
        cmdline,
    })
}

fn vnc(vnc: wire::Vnc) -> Result<VncListen, Fault> {
    Ok(match wire::VncListen::try_from(vnc.listen).map_err(|e| unknown("listen", e.0))? {
        wire::VncListen::Unspecified | wire::VncListen::Unix => VncListen::Unix,
        wire::VncListen::Tcp => VncListen::Tcp,
    })
}

#[cfg(test)]
mod test {
    use super::*;

    fn small() -> wire::VmSpec {
        wire::VmSpec { memory_bytes: 64 * MIB, ..Default::default() }
    }

    fn refused(change: impl FnOnce(&mut wire::VmSpec)) -> Fault {
        let mut wanted = small();
        change(&mut wanted);
        spec(wanted).expect_err("it has to be refused")
    }

    fn raw(path: &str) -> wire::Disk {
        wire::Disk { path: path.into(), format: "raw".into(), ..Default::default() }
    }

    fn nic_with(mac: &str) -> wire::Nic {
        wire::Nic { network: "networks/lan".into(), mac: mac.into(), ..Default::default() }
    }

    #[test]
    fn defaults_are_filled_in() {
        let mut wanted = small();
        wanted.disks = vec![wire::Disk { media: wire::DiskMedia::Cdrom.into(), ..raw("/a.iso") }];
        let got = spec(wanted).unwrap();
        assert_eq!(got.vcpus, 1);
        assert!(got.disks[0].read_only);
        assert_eq!((got.disks[0].bus, got.disks[0].cache), (DiskBus::Virtio, DiskCache::Writeback));
    }

    #[test]
    fn what_is_wrong_is_refused_with_reason_and_hint() {
        let cases: Vec<(&str, Fault)> = vec![
            ("INVALID_MEMORY", refused(|s| s.memory_bytes = 0)),
            ("INVALID_MEMORY", refused(|s| s.memory_bytes = MIB + 1)),
            ("INVALID_MEMORY", refused(|s| s.memory_bytes = u64::MAX / MIB * MIB)),
            ("INVALID_VCPUS", refused(|s| s.vcpus = 256)),
            ("INVALID_CPU_MODEL", refused(|s| s.cpu_model = "host,+vmx".into())),
            ("INVALID_PATH", refused(|s| s.disks = vec![raw("relative")])),
            ("INVALID_PATH", refused(|s| s.disks = vec![raw("")])),
            (
                "INVALID_DISK_FORMAT",
                refused(|s| s.disks = vec![wire::Disk { path: "/a".into(), ..Default::default() }]),
            ),
            ("DUPLICATE_DISK", refused(|s| s.disks = vec![raw("/a"), raw("/a")])),
            ("TOO_MANY_DISKS", refused(|s| s.disks = vec![raw("/a"); 33])),
            (
                "TOO_MANY_DISKS",
                refused(|s| {
                    s.disks = (0..7)
                        .map(|i| wire::Disk { bus: wire::DiskBus::Sata.into(), ..raw(&format!("/{i}")) })
                        .collect();
                }),
            ),
            ("UNKNOWN_VALUE", refused(|s| s.disks = vec![wire::Disk { bus: 99, ..raw("/a") }])),
            ("INVALID_RESOURCE_NAME", refused(|s| s.nics = vec![wire::Nic::default()])),
            ("INVALID_MAC", refused(|s| s.nics = vec![nic_with("01:00:00:00:00:01")])),
            (
                "DUPLICATE_MAC",
                refused(|s| s.nics = vec![nic_with("52:54:00:00:00:01"), nic_with("52:54:00:00:00:01")]),
            ),
            ("TOO_MANY_NICS", refused(|s| s.nics = vec![nic_with(""); 17])),
            (
                "INVALID_CMDLINE",
                refused(|s| {
                    s.kernel_boot = Some(wire::KernelBoot {
                        kernel: "/k".into(),
                        cmdline: "a\nb".into(),
                        ..Default::default()
                    });
                }),
            ),
            (
                "INVALID_CMDLINE",
                refused(|s| {
                    s.kernel_boot = Some(wire::KernelBoot {
                        kernel: "/k".into(),
                        cmdline: "x".repeat(2048),
                        ..Default::default()
                    });
                }),
            ),
            ("INVALID_PATH", refused(|s| s.kernel_boot = Some(wire::KernelBoot::default()))),
        ];
        for (reason, fault) in cases {
            assert_eq!(fault.reason(), reason, "{}", fault.chain());
            assert_eq!(fault.kind(), Kind::InvalidArgument, "{reason}");
            assert!(!fault.hints().is_empty(), "{reason} has no hint");
        }
    }

    #[test]
    fn labels_have_limits() {
        let one = |key: &str, value: &str| labels(HashMap::from([(key.to_owned(), value.to_owned())]));
        assert!(one("owner", "me").is_ok());
        for (key, value) in
            [("", "x"), ("a\n", "x"), ("a", "\u{1b}"), (&*"k".repeat(64), "x"), ("a", &*"v".repeat(1025))]
        {
            assert_eq!(one(key, value).unwrap_err().reason(), "INVALID_LABEL", "{key:?}");
        }
        let many = (0..65).map(|i| (i.to_string(), String::new())).collect();
        assert_eq!(labels(many).unwrap_err().reason(), "TOO_MANY_LABELS");
    }

    #[test]
    fn a_stop_takes_at_most_an_hour() {
        let wanted = |seconds| stop_timeout(Some(prost_types::Duration { seconds, nanos: 0 }));
        assert_eq!(stop_timeout(None).unwrap(), DEFAULT_STOP);
        assert_eq!(wanted(0).unwrap(), Duration::ZERO);
        assert!([3601, -1, i64::MIN].iter().all(|seconds| wanted(*seconds).is_err()));
    }

    #[test]
    fn what_is_shown_is_what_can_be_asked_for_again() {
        let mut wanted = small();
        wanted.disks = vec![raw("/a")];
        wanted.nics = vec![nic_with("52:54:00:AB:00:01"), nic_with("")];
        wanted.vnc = Some(wire::Vnc::default());
        let first = spec(wanted).unwrap();
        assert_eq!(spec(super::super::emit::spec(&first)).unwrap(), first);
    }
}
