//! Ethernet addresses of guests.

use crate::{
    fault::{Fault, Kind},
    name::printable,
};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use uuid::Uuid;

/// The address of one guest interface: 48 bits, unicast and not zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac([u8; 6]);

/// Namespace of the UUIDv5 that `Mac::derived` hashes with; any fixed value does.
const NAMESPACE: Uuid = Uuid::from_u128(0x6b76_6d63_746c_4d41_8000_636f_6465_6331);

impl Mac {
    /// The six bytes, in the order they are sent.
    #[must_use]
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// The address made from a name: the same for the same name, in QEMU's locally administered range
    /// `52:54:00`. `salt` picks another one where the first is taken.
    #[must_use]
    pub fn derived(name: &str, salt: u32) -> Self {
        let hash = Uuid::new_v5(&NAMESPACE, format!("{name}\n{salt}").as_bytes());
        let [a, b, c, ..] = *hash.as_bytes();
        Self([0x52, 0x54, 0x00, a, b, c])
    }

    /// An address from its bytes.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if the group bit is set (multicast, broadcast) or all bytes are zero.
    pub fn from_bytes(bytes: [u8; 6]) -> Result<Self, Fault> {
        let wrong = |why: &str| {
            Fault::new(
                Kind::InvalidArgument,
                "INVALID_MAC",
                format!("{} cannot be a guest's MAC: {why}", Hex(bytes)),
            )
            .hint("a locally administered unicast MAC begins with 02, 52:54:00 for example")
        };
        if bytes[0] & 1 == 1 {
            return Err(wrong("it is a group address"));
        }
        if bytes == [0; 6] {
            return Err(wrong("it is all zero"));
        }
        Ok(Self(bytes))
    }
}

struct Hex([u8; 6]);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Hex(self.0), f)
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Hex(self.0), f)
    }
}

impl FromStr for Mac {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let malformed = || {
            Fault::new(
                Kind::InvalidArgument,
                "INVALID_MAC",
                format!("`{}` is not a MAC address", printable(text)),
            )
            .hint("write six pairs of hexadecimal digits, such as 52:54:00:12:34:56")
        };
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(malformed)?;
            // `from_str_radix` alone would also take a sign.
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(malformed());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| malformed())?;
        }
        if parts.next().is_some() {
            return Err(malformed());
        }
        Self::from_bytes(bytes)
    }
}

impl TryFrom<String> for Mac {
    type Error = Fault;

    fn try_from(text: String) -> Result<Self, Fault> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn canonical_text_is_lower_case() {
        assert_eq!("52:54:00:AB:cd:0F".parse::<Mac>().unwrap().to_string(), "52:54:00:ab:cd:0f");
    }

    #[test]
    fn what_no_guest_may_have_is_refused() {
        for bad in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52-54-00-12-34-56",
            "52:54:00:12:34:+6",
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
        ] {
            assert_eq!(bad.parse::<Mac>().unwrap_err().kind(), Kind::InvalidArgument, "{bad}");
        }
    }

    #[test]
    fn derived_addresses_are_stable_and_differ_by_salt() {
        let first = Mac::derived("networks/lan/ports/web-0", 0);
        assert_eq!(first, Mac::derived("networks/lan/ports/web-0", 0));
        assert_ne!(first, Mac::derived("networks/lan/ports/web-0", 1));
        assert!(first.to_string().starts_with("52:54:00:"));
    }

    proptest! {
        #[test]
        fn text_round_trips(bytes in any::<[u8; 6]>()) {
            if let Ok(mac) = Mac::from_bytes(bytes) {
                prop_assert_eq!(mac.to_string().parse::<Mac>().unwrap(), mac);
            }
        }
    }
}
