//! The header of a qcow2 image, as far as it leads to other files or asks for what vmd refuses. Pure.
//!
//! docs/interop/qcow2.txt of QEMU describes the format. A guest does not write headers, but whoever made the image
//! did.

/// An image begins with these.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Bytes from the beginning that hold all that is read here: the largest cluster.
pub const HEAD: u64 = 1 << MAX_CLUSTER_BITS;

/// Longest backing file name that the format allows.
const MAX_BACKING: u32 = 1023;
const MIN_CLUSTER_BITS: u32 = 9;
const MAX_CLUSTER_BITS: u32 = 21;
/// Bytes of the largest table of first level that QEMU takes.
const MAX_L1: u64 = 32 << 20;
const MAX_SNAPSHOTS: u32 = 65536;
const VERSION_2_LENGTH: usize = 72;
const VERSION_3_LENGTH: usize = 104;
/// Incompatible features that QEMU handles by itself: dirty, corrupt, compression type, extended L2 entries.
const KNOWN_FEATURES: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 4;
const EXTERNAL_DATA: u64 = 1 << 2;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes that the guest sees.
    pub virtual_size: u64,
    /// The file that has what this one has not.
    pub backing: Option<Backing>,
}

/// A reference to another image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// As it is written: a path, or something else that QEMU would understand.
    pub name: String,
    /// `None`: QEMU would guess.
    pub format: Option<String>,
}

/// Reads a header from the first `HEAD` bytes of a file, or all of a shorter one.
///
/// # Errors
/// What is wrong with it, or what of it vmd does not take, in words that follow the file's name.
pub fn parse(head: &[u8]) -> Result<Header, String> {
    if head.get(..4) != Some(&MAGIC) {
        return Err("is not a qcow2 image".into());
    }
    let long = |offset: usize| number(head, offset, 8);
    let word = |offset: usize| number(head, offset, 4).map(|value| u32::try_from(value).unwrap_or(u32::MAX));
    let (version, cluster_bits) = (word(4)?, word(20)?);
    if !(MIN_CLUSTER_BITS..=MAX_CLUSTER_BITS).contains(&cluster_bits) {
        return Err(format!("has clusters of 2^{cluster_bits} bytes, which the format does not allow"));
    }
    let cluster = 1_u64 << cluster_bits;
    if word(32)? != 0 {
        return Err("is encrypted, and there is no way to give QEMU the key".into());
    }
    if u64::from(word(36)?) * 8 > MAX_L1 {
        return Err("has a table of first level that is too large".into());
    }
    if word(60)? > MAX_SNAPSHOTS {
        return Err("has too many snapshots".into());
    }
    let (features, length) = match version {
        2 => (0, VERSION_2_LENGTH),
        3 => (long(72)?, usize::try_from(word(100)?).unwrap_or(usize::MAX)),
        other => return Err(format!("is a qcow2 image of version {other}, and QEMU knows 2 and 3")),
    };
    if features & EXTERNAL_DATA != 0 {
        return Err("keeps its data in another file, which vmd does not open".into());
    }
    if features & !KNOWN_FEATURES != 0 {
        return Err(format!("has features that nobody here knows (bits {:#x})", features & !KNOWN_FEATURES));
    }
    if version == 3 && length < VERSION_3_LENGTH || length as u64 > cluster {
        return Err(format!("has a header of {length} bytes, which the format does not allow"));
    }
    let (offset, size) = (long(8)?, word(16)?);
    let virtual_size = long(24)?;
    if offset == 0 || size == 0 {
        return Ok(Header { virtual_size, backing: None });
    }
    if size > MAX_BACKING {
        return Err("has a name of its backing file that is longer than the format allows".into());
    }
    if offset > cluster || offset + u64::from(size) > cluster {
        return Err("has the name of its backing file outside of its first cluster".into());
    }
    let begin = usize::try_from(offset).unwrap_or(usize::MAX);
    let name = bytes(head, begin, size as usize)?;
    let name = std::str::from_utf8(name).map_err(|_| "has a name of its backing file that is not UTF-8")?;
    if name.contains('\0') {
        return Err("has a name of its backing file with a zero in it".into());
    }
    let format = extension(head, length, begin, EXTENSION_BACKING_FORMAT)?;
    let format = format.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    Ok(Header { virtual_size, backing: Some(Backing { name: name.to_owned(), format }) })
}

/// The data of a header extension: they begin after the header, and end before the backing file's name.
fn extension(head: &[u8], begin: usize, end: usize, wanted: u32) -> Result<Option<&[u8]>, String> {
    let mut at = begin;
    while at + 8 <= end {
        let (kind, length) =
            (number(head, at, 4)?, usize::try_from(number(head, at + 4, 4)?).unwrap_or(usize::MAX));
        at += 8;
        if kind == 0 {
            break;
        }
        if length > end.saturating_sub(at) {
            return Err("has a header extension that is too long".into());
        }
        if kind == u64::from(wanted) {
            return bytes(head, at, length).map(Some);
        }
        at += length.next_multiple_of(8);
    }
    Ok(None)
}

fn bytes(head: &[u8], offset: usize, length: usize) -> Result<&[u8], String> {
    let end = offset.checked_add(length);
    end.and_then(|end| head.get(offset..end)).ok_or_else(|| "is cut off within its header".to_owned())
}

/// A number of `length` bytes, at most 8, the most significant first.
fn number(head: &[u8], offset: usize, length: usize) -> Result<u64, String> {
    Ok(bytes(head, offset, length)?.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

#[cfg(test)]
pub(super) mod test {
    use super::*;
    use proptest::prelude::*;

    /// An image's header of version 3, with a backing file's name and format unless they are empty.
    pub fn image(backing: &str, format: &str) -> Vec<u8> {
        let mut image = vec![0; 512];
        let mut put =
            |offset: usize, bytes: &[u8]| image[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC);
        put(4, &3_u32.to_be_bytes());
        put(20, &16_u32.to_be_bytes());
        put(24, &(1_u64 << 30).to_be_bytes());
        put(100, &104_u32.to_be_bytes());
        if !format.is_empty() {
            put(104, &EXTENSION_BACKING_FORMAT.to_be_bytes());
            put(108, &u32::try_from(format.len()).unwrap().to_be_bytes());
            put(112, format.as_bytes());
        }
        if !backing.is_empty() {
            put(8, &256_u64.to_be_bytes());
            put(16, &u32::try_from(backing.len()).unwrap().to_be_bytes());
            put(256, backing.as_bytes());
        }
        image
    }

    #[test]
    fn a_header_tells_size_and_backing_file() {
        assert_eq!(parse(&image("", "")).unwrap(), Header { virtual_size: 1 << 30, backing: None });
        let backing = parse(&image("/base", "qcow2")).unwrap().backing.unwrap();
        assert_eq!((backing.name.as_str(), backing.format.as_deref()), ("/base", Some("qcow2")));
        assert_eq!(parse(&image("/base", "")).unwrap().backing.unwrap().format, None);
        let mut second = image("/base", "");
        second[7] = 2;
        assert_eq!(parse(&second).unwrap().backing.unwrap().name, "/base");
    }

    #[test]
    fn what_leads_elsewhere_or_is_unknown_is_refused() {
        let with = |offset: usize, byte: u8| {
            let mut image = image("/base", "raw");
            image[offset] = byte;
            parse(&image).unwrap_err()
        };
        for (offset, byte, word) in [
            (0, b'X', "not a qcow2"),
            (7, 4, "version 4"),
            (23, 8, "clusters"),
            (23, 22, "clusters"),
            (35, 1, "encrypted"),
            (36, 1, "first level"),
            (61, 2, "snapshots"),
            (79, 4, "another file"),
            (79, 32, "bits 0x20"),
            (72, 128, "bits 0x8000000000000000"),
            (103, 1, "header of 1 bytes"),
            (100, 1, "header of"),
            (17, 1, "longer"),
            (11, 1, "outside"),
            (15, 255, "outside"),
            (110, 1, "too long"),
            (258, 0xff, "UTF-8"),
            (258, 0, "zero"),
        ] {
            let why = with(offset, byte);
            assert!(why.contains(word) || offset == 15, "{offset}: {why}");
        }
        assert!(parse(&image("/base", "raw")[..260]).unwrap_err().contains("cut off"));
        assert!(parse(b"QFI\xfb").unwrap_err().contains("cut off"));
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), at in 4..112_usize, byte: u8) {
            let _ = parse(&bytes);
            let mut image = image("/base", "raw");
            image[at] = byte;
            let _ = parse(&image);
            let _ = parse(&[&MAGIC[..], &bytes].concat());
        }
    }
}
