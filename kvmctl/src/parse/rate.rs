//! Bandwidths.

use super::{Invalid, number_and_unit};

/// Units and their powers of ten, the largest first.
const UNITS: [(&str, u64); 3] = [("G", 1_000_000_000), ("M", 1_000_000), ("K", 1_000)];

/// Bits per second: plain, or with K, M or G (powers of 1000, as everywhere in networking). Not zero.
///
/// # Errors
/// If it is no rate, is zero or does not fit 64 bits.
pub fn rate(text: &str) -> Result<u64, Invalid> {
    let wrong = || Invalid::new("not a rate").hint("write 100M or 2G, in bits per second");
    let (number, unit) = number_and_unit(text).ok_or_else(wrong)?;
    let factor = match unit {
        "" => 1,
        unit => UNITS.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(wrong)?.1,
    };
    match number.checked_mul(factor) {
        None => Err(Invalid::new("a rate above 2^64 bits per second")),
        Some(0) => Err(Invalid::new("a rate of zero").hint("leave it out for no limit")),
        Some(rate) => Ok(rate),
    }
}

/// Bits per second in the largest unit that needs no fraction, so that `rate` reads the same number back.
#[must_use]
pub fn rate_text(bits: u64) -> String {
    UNITS
        .into_iter()
        .find(|(_, factor)| bits != 0 && bits.is_multiple_of(*factor))
        .map_or_else(|| bits.to_string(), |(unit, factor)| format!("{}{unit}", bits / factor))
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rates_are_powers_of_1000() {
        for (text, bits) in [
            ("100M", 100_000_000),
            ("2g", 2_000_000_000),
            ("64K", 64_000),
            ("9600", 9_600),
            ("1500K", 1_500_000),
        ] {
            assert_eq!(rate(text), Ok(bits), "{text}");
        }
        for bad in [
            "",
            "M",
            "0",
            "0G",
            "-1",
            "1.5M",
            "1 M",
            "10MB",
            "10Mbit",
            "18446744073709551616",
            "18446744074G",
        ] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_rate_is_shown_as_it_would_be_written() {
        for (bits, text) in [(100_000_000, "100M"), (1_500_000, "1500K"), (9_601, "9601"), (0, "0")] {
            assert_eq!(rate_text(bits), text);
        }
    }

    proptest! {
        #[test]
        fn a_printed_rate_reads_back(number in 1..1_000_000_u64, power in 0..5_u32) {
            let bits = number * 10_u64.pow(3 * power);
            prop_assert_eq!(rate(&rate_text(bits)), Ok(bits));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,30}") {
            let _ = rate(&text);
        }
    }
}
