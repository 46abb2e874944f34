//! Bandwidths.

use super::{Invalid, Suboptions, number_and_unit, size, split_commas};

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

/// A limit of bandwidth, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Not limited.
    None,
    /// Limited.
    Rate {
        /// As `rate` reads them.
        bits_per_second: u64,
        /// Bytes that may pass at once; 0: netd's choice.
        burst_bytes: u32,
    },
}

/// `RATE[,burst=SIZE]`, or `none`.
///
/// # Errors
/// If it is neither, or the burst has 4 GiB or more.
pub fn limit(text: &str) -> Result<Limit, Invalid> {
    if text == "none" {
        return Ok(Limit::None);
    }
    let parts = split_commas(text);
    let (first, rest) = parts.split_first().ok_or_else(|| Invalid::new("the rate is missing"))?;
    let options = Suboptions::new(rest, &["burst"], &[])?;
    let burst = options.value("burst")?.map(size).transpose()?.unwrap_or(0);
    let burst_bytes = u32::try_from(burst).map_err(|_| Invalid::new("a burst of 4 GiB or more"))?;
    Ok(Limit::Rate { bits_per_second: rate(first)?, burst_bytes })
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
    fn a_limit_may_have_a_burst_or_be_none() {
        assert_eq!(limit("none"), Ok(Limit::None));
        let limited = |bits_per_second, burst_bytes| Ok(Limit::Rate { bits_per_second, burst_bytes });
        assert_eq!(limit("20M"), limited(20_000_000, 0));
        assert_eq!(limit("20M,burst=64K"), limited(20_000_000, 65_536));
        for (bad, part) in [
            ("", "not a rate"),
            ("0", "a rate of zero"),
            ("0,burst=64K", "a rate of zero"),
            ("20M,64K", "unknown key"),
            ("20M,burst", "needs a value"),
            ("20M,burst=0", "a size of zero"),
            ("20M,burst=4G", "4 GiB or more"),
            ("none,burst=64K", "not a rate"),
        ] {
            let error = limit(bad).unwrap_err().to_string();
            assert!(error.contains(part), "{bad}: {error}");
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
