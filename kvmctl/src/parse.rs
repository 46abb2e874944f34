//! What users write on the command line, as values: sizes, rates, durations, names, addresses, disks and network cards.
//!
//! Pure: no file is looked at here except that relative paths get the working directory in front.

mod cursor;
mod forward;
mod nic;
mod peer;
mod rate;

pub use cursor::{Cursor, Pattern, Place, cursor, pattern};
pub use forward::{Listen, Target, listen, target};
pub use nic::nic;
pub use peer::{Peer, peer};
pub use rate::{Limit, limit, rate, rate_text};

use proto::vmd::v1::{Disk, DiskBus, DiskCache, DiskMedia};
use shared::{fault::Fault, mac::Mac, name::Name};
use std::{error::Error, fmt, path::PathBuf, time::Duration};

/// Bytes of one mebibyte; memory is given in whole ones.
pub const MIB: u64 = 1 << 20;

/// Text that is not the value it should be. `Display` is the message and, after a blank line, the hint: that is
/// how clap shows it inside its own usage error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    message: String,
    hint: Option<String>,
}

impl Invalid {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

impl Error for Invalid {}

impl From<Fault> for Invalid {
    fn from(fault: Fault) -> Self {
        let hint = (!fault.hints().is_empty()).then(|| fault.hints().join("\nhint: "));
        Self { message: fault.to_string(), hint }
    }
}

/// Splits `512MiB` into `512` and `MiB`.
fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, &text[end..]))
}

/// Bytes: plain, or with K, M, G or T (powers of 1024; `KiB` and `KB` mean the same). Not zero.
///
/// # Errors
/// If it is no size, is zero or does not fit 64 bits.
pub fn size(text: &str) -> Result<u64, Invalid> {
    let wrong = || Invalid::new("not a size").hint("write 512M, 2G, 1024K or a number of bytes");
    let (number, unit) = number_and_unit(text).ok_or_else(wrong)?;
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(wrong()),
    };
    match number.checked_mul(1 << shift) {
        None => Err(Invalid::new("a size above 16 EiB")),
        Some(0) => Err(Invalid::new("a size of zero").hint("write 512M, for example")),
        Some(bytes) => Ok(bytes),
    }
}

/// Guest memory: a size in whole mebibytes.
///
/// # Errors
/// If it is no size, or not a multiple of 1 MiB.
pub fn memory(text: &str) -> Result<u64, Invalid> {
    let bytes = size(text)?;
    if !bytes.is_multiple_of(MIB) {
        return Err(Invalid::new("not a whole number of MiB")
            .hint("a number without a unit means bytes: write 512M for 512 MiB"));
    }
    Ok(bytes)
}

/// Bytes in the largest unit that needs no fraction, so that `size` reads the same number back.
#[must_use]
pub fn size_text(bytes: u64) -> String {
    [(40, "T"), (30, "G"), (20, "M"), (10, "K")]
        .into_iter()
        .find(|(shift, _)| bytes != 0 && bytes.trailing_zeros() >= *shift)
        .map_or_else(|| bytes.to_string(), |(shift, unit)| format!("{}{unit}", bytes >> shift))
}

/// A duration: a whole number and `ms`, `s`, `m` or `h`; at most a year.
///
/// # Errors
/// If it is none of these.
pub fn duration(text: &str) -> Result<Duration, Invalid> {
    const YEAR_MS: u64 = 365 * 24 * 3_600_000;
    let wrong = || Invalid::new("not a duration").hint("write 30s, 500ms, 2m or 1h");
    let (number, unit) = number_and_unit(text).ok_or_else(wrong)?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    number
        .checked_mul(unit_ms)
        .filter(|ms| *ms <= YEAR_MS)
        .map(Duration::from_millis)
        .ok_or_else(|| Invalid::new("longer than a year"))
}

/// A port, or a range of ports as `8000-8099`.
///
/// # Errors
/// If a number is no port, or the range is empty.
pub fn ports(text: &str) -> Result<(u16, u16), Invalid> {
    let port = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        text.parse().ok().filter(|port| digits && *port != 0).ok_or_else(|| {
            Invalid::new("not a port").hint("write a number from 1 to 65535, or two of them as 8000-8099")
        })
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        return Err(Invalid::new("the range is empty").hint(format!("write {last}-{first}")));
    }
    Ok((first, last))
}

/// The name of a network, port, group or machine.
///
/// # Errors
/// If it is not a DNS label.
pub fn name(text: &str) -> Result<Name, Invalid> {
    Ok(text.parse::<Name>()?)
}

/// A guest's MAC address.
///
/// # Errors
/// If it is not a unicast MAC.
pub fn mac(text: &str) -> Result<Mac, Invalid> {
    Ok(text.parse::<Mac>()?)
}

/// A daemon's address, `unix:///path`.
///
/// # Errors
/// If it is anything else.
pub fn address(text: &str) -> Result<String, Invalid> {
    match text.strip_prefix("unix://") {
        Some(path) if path.starts_with('/') && path.len() > 1 => Ok(text.to_owned()),
        _ => Err(Invalid::new("not a daemon's address").hint("write unix:///path/to/socket")),
    }
}

/// A path of this host, made absolute: the daemon has another working directory.
///
/// # Errors
/// If it is empty, is not UTF-8 after that, or there is no working directory.
pub fn path(text: &str) -> Result<String, Invalid> {
    let absolute: PathBuf =
        std::path::absolute(text).map_err(|e| Invalid::new(format!("cannot be made absolute: {e}")))?;
    absolute.into_os_string().into_string().map_err(|_| {
        Invalid::new("the working directory's name is not UTF-8").hint("write the path from the root on")
    })
}

/// Splits at commas; two commas are one literal comma, as in QEMU's options.
fn split_commas(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c == ',' && rest.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    parts
}

/// The suboptions after the first part: `KEY=VALUE` or `KEY`, each of `known` at most once unless it is in `repeated`.
struct Suboptions {
    pairs: Vec<(String, Option<String>)>,
}

impl Suboptions {
    fn new(parts: &[String], known: &[&str], repeated: &[&str]) -> Result<Self, Invalid> {
        let mut pairs: Vec<(String, Option<String>)> = Vec::new();
        for part in parts {
            let (key, value) = match part.split_once('=') {
                Some((key, value)) => (key, Some(value.to_owned())),
                None => (part.as_str(), None),
            };
            if !known.contains(&key) && !repeated.contains(&key) {
                let what =
                    if key.is_empty() { "an empty suboption".into() } else { format!("unknown key `{key}`") };
                let known = [known, repeated].concat().join(", ");
                return Err(Invalid::new(what)
                    .hint(format!("the keys are {known}; a comma in a path is written `,,`")));
            }
            if !repeated.contains(&key) && pairs.iter().any(|(seen, _)| seen == key) {
                return Err(Invalid::new(format!("`{key}` is given twice")));
            }
            pairs.push((key.to_owned(), value));
        }
        Ok(Self { pairs })
    }

    /// The value of `key` if it is given; a key without a value is an error.
    fn value(&self, key: &str) -> Result<Option<&str>, Invalid> {
        self.values(key).next().transpose()
    }

    /// The values of a key that may be repeated.
    fn values(&self, key: &str) -> impl Iterator<Item = Result<&str, Invalid>> {
        self.pairs.iter().filter(move |(k, _)| k == key).map(move |(_, value)| match value {
            Some(value) if !value.is_empty() => Ok(value.as_str()),
            _ => Err(Invalid::new(format!("`{key}` needs a value")).hint(format!("write {key}=VALUE"))),
        })
    }

    /// The value of `key` as one of `choices`, or `default`.
    fn choice<T: Copy>(&self, key: &str, choices: &[(&str, T)], default: T) -> Result<T, Invalid> {
        let Some(value) = self.value(key)? else { return Ok(default) };
        choices.iter().find(|(text, _)| *text == value).map(|(_, choice)| *choice).ok_or_else(|| {
            let known: Vec<_> = choices.iter().map(|(text, _)| *text).collect();
            Invalid::new(format!("`{value}` is not a value of `{key}`"))
                .hint(format!("the values are {}", known.join(", ")))
        })
    }

    /// A switch: absent is off, bare is on, and `=on` and `=off` say so.
    fn switch(&self, key: &str) -> Result<bool, Invalid> {
        match self.pairs.iter().find(|(k, _)| k == key) {
            None => Ok(false),
            Some((_, None)) => Ok(true),
            Some(_) => self.choice(key, &[("on", true), ("off", false)], false),
        }
    }
}

/// `PATH,format=F[,bus=B][,cache=C][,readonly][,media=M]`. PATH may contain `=`; a comma in it is written `,,`.
///
/// # Errors
/// If a part is missing, unknown, given twice or not a value of its key.
pub fn disk(text: &str) -> Result<Disk, Invalid> {
    const KEYS: [&str; 5] = ["format", "bus", "cache", "readonly", "media"];
    let parts = split_commas(text);
    let (first, rest) = parts.split_first().ok_or_else(|| Invalid::new("the path is missing"))?;
    if first.is_empty() {
        return Err(Invalid::new("the path is missing").hint("write PATH,format=qcow2"));
    }
    if KEYS.iter().any(|key| first.strip_prefix(key).is_some_and(|rest| rest.starts_with('='))) {
        return Err(Invalid::new("the path is missing")
            .hint(format!("the path comes first; a file of that name is written ./{first}")));
    }
    let options = Suboptions::new(rest, &KEYS, &[])?;
    let format = options
        .choice("format", &[("raw", Some("raw")), ("qcow2", Some("qcow2"))], None)?
        .ok_or_else(|| {
            Invalid::new("`format` is missing").hint(
                "add format=qcow2 or format=raw: it is never guessed, since a guest can write a header into its \
                 raw disk that makes it look like an image which names files of the host",
            )
        })?;
    let bus = [("virtio", DiskBus::Virtio), ("sata", DiskBus::Sata), ("scsi", DiskBus::Scsi)];
    let cache = [
        ("writeback", DiskCache::Writeback),
        ("none", DiskCache::None),
        ("writethrough", DiskCache::Writethrough),
        ("unsafe", DiskCache::Unsafe),
        ("directsync", DiskCache::Directsync),
    ];
    let media = [("disk", DiskMedia::Disk), ("cdrom", DiskMedia::Cdrom)];
    Ok(Disk {
        path: path(first)?,
        format: format.to_owned(),
        bus: options.choice("bus", &bus, DiskBus::Unspecified)?.into(),
        cache: options.choice("cache", &cache, DiskCache::Unspecified)?.into(),
        read_only: options.switch("readonly")?,
        media: options.choice("media", &media, DiskMedia::Unspecified)?.into(),
    })
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in [
            ("512M", 512 * MIB),
            ("2G", 2048 * MIB),
            ("2GiB", 2048 * MIB),
            ("2gb", 2048 * MIB),
            ("1024K", MIB),
            ("1T", 1 << 40),
            ("1048576", MIB),
            ("7b", 7),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for bad in
            ["", "M", "0", "0G", "-1", "1.5G", "1 G", "1X", "1GiBs", "99999999999999999999", "17179869184G"]
        {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn memory_in_bytes_by_mistake_is_explained() {
        assert_eq!(memory("512M"), Ok(512 * MIB));
        assert!(memory("512").unwrap_err().to_string().contains("write 512M"));
    }

    #[test]
    fn durations_need_a_unit() {
        for (text, ms) in [("30s", 30_000), ("500ms", 500), ("2m", 120_000), ("1h", 3_600_000), ("0s", 0)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "30", "s", "1d", "1.5s", "-1s", "1 s", "9999999h", "18446744073709551615h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_disk_with_everything() {
        let disk = disk("/a=b,,c.img,format=raw,bus=sata,cache=none,readonly,media=cdrom").unwrap();
        assert_eq!(disk.path, "/a=b,c.img");
        assert_eq!(disk.format, "raw");
        assert_eq!(disk.bus(), DiskBus::Sata);
        assert_eq!(disk.cache(), DiskCache::None);
        assert_eq!(disk.media(), DiskMedia::Cdrom);
        assert!(disk.read_only);
    }

    #[test]
    fn a_relative_path_becomes_absolute() {
        let expected = std::env::current_dir().unwrap().join("a.img");
        assert_eq!(disk("a.img,format=raw").unwrap().path, expected.to_str().unwrap());
    }

    #[test]
    fn readonly_is_a_switch() {
        for (text, expected) in
            [("", false), (",readonly", true), (",readonly=on", true), (",readonly=off", false)]
        {
            assert_eq!(disk(&format!("/a,format=raw{text}")).unwrap().read_only, expected, "{text}");
        }
        assert!(disk("/a,format=raw,readonly=maybe").is_err());
    }

    #[test]
    fn disk_errors_name_what_is_wrong() {
        for (text, part) in [
            ("", "path is missing"),
            ("format=raw", "written ./format=raw"),
            ("/a", "never guessed"),
            ("/a,format", "`format` needs a value"),
            ("/a,format=", "`format` needs a value"),
            ("/a,format=vmdk", "the values are raw, qcow2"),
            ("/a,format=raw,speed=9", "unknown key `speed`"),
            ("/a,format=raw,format=raw", "`format` is given twice"),
            ("/a,format=raw,", "an empty suboption"),
            ("/a,format=raw,bus=ide", "`ide` is not a value of `bus`"),
        ] {
            let error = disk(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn addresses_are_unix_urls() {
        assert!(address("unix:///run/x").is_ok());
        for bad in ["", "/run/x", "unix://", "unix:///", "unix://run/x", "http://x"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_printed_size_reads_back(bytes in 1..u64::MAX) {
            prop_assert_eq!(size(&size_text(bytes)), Ok(bytes));
        }

        #[test]
        fn a_printed_round_size_reads_back(number in 1..1_000_000_u64, shift in 0..42_u32) {
            prop_assert_eq!(size(&size_text(number << shift)), Ok(number << shift));
        }

        #[test]
        fn any_path_survives_with_its_commas_doubled(name in "[^\0/]{1,40}") {
            let path = format!("/images/{name}");
            let read = disk(&format!("{},format=qcow2", path.replace(',', ",,"))).unwrap();
            prop_assert_eq!(std::path::Path::new(&read.path), std::path::absolute(&path).unwrap());
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in "\\PC{0,60}") {
            let _ = (size(&text), memory(&text), duration(&text), disk(&text), address(&text));
        }

        #[test]
        fn a_disk_always_has_an_absolute_path_and_a_format(text in "[a-c/,=.]{0,8}(,format=(raw|qcow2))?") {
            if let Ok(disk) = disk(&text) {
                prop_assert!(disk.path.starts_with('/'));
                prop_assert!(disk.format == "raw" || disk.format == "qcow2");
            }
        }
    }
}
