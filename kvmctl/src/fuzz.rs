//! What is fuzzed: the words of users. cargo-fuzz calls it from `integration-tests/fuzz`, the test below from mutated
//! seeds.

use crate::parse;
use std::fmt::Display;

/// Taken for something, or refused for a reason of few words.
pub type Outcome = Result<(), String>;

/// A byte for the sort of value, and its text.
///
/// # Errors
/// What is wrong with it, as the user reads it.
pub fn words(data: &[u8]) -> Outcome {
    let (sort, text) = data.split_first().ok_or("empty")?;
    let text = std::str::from_utf8(text).map_err(|_| "no text")?;
    let told = |invalid: parse::Invalid| {
        let told = invalid.to_string();
        assert!(told.len() < 400 + 8 * text.len(), "{told}");
        // The text itself is too different to count reasons by.
        told.split_once('`').map_or(told.as_str(), |(start, _)| start).chars().take(30).collect::<String>()
    };
    match sort % 14 {
        0 => {
            let bytes = parse::size(text).map_err(told)?;
            assert_eq!(parse::size(&parse::size_text(bytes)), Ok(bytes));
        }
        1 => assert_eq!(parse::memory(text).map_err(told)? % parse::MIB, 0),
        2 => _ = parse::duration(text).map_err(told)?,
        3 => {
            let (first, last) = parse::ports(text).map_err(told)?;
            assert!(0 < first && first <= last);
        }
        4 => reads_back(&parse::name(text).map_err(told)?, |text| parse::name(text).ok()),
        5 => reads_back(&parse::mac(text).map_err(told)?, |text| parse::mac(text).ok()),
        6 => assert_eq!(parse::address(text).map_err(told)?, text),
        7 => assert!(parse::path(text).map_err(told)?.starts_with('/')),
        8 => _ = parse::disk(text).map_err(told)?,
        9 => _ = parse::nic(text).map_err(told)?,
        10 => _ = parse::peer(text).map_err(told)?,
        11 => _ = parse::listen(text).map_err(told)?,
        12 => reads_back(&parse::target(text).map_err(told)?, |text| parse::target(text).ok()),
        _ => {
            if let Ok(bits) = parse::rate(text) {
                assert_eq!(parse::rate(&parse::rate_text(bits)), Ok(bits));
            }
            let _ = parse::limit(text).map_err(told)?;
        }
    }
    Ok(())
}

fn reads_back<T: Display + PartialEq>(value: &T, read: impl Fn(&str) -> Option<T>) {
    assert!(read(&value.to_string()).is_some_and(|again| again == *value), "{value} is something else");
}

#[cfg(test)]
mod test {
    use mutate::{Campaign, Form};

    #[test]
    fn words() {
        let tokens = [
            "lan",
            "web",
            "512M",
            "2G",
            "KiB",
            "mac",
            "model",
            "virtio",
            "e1000",
            "ip",
            "groups",
            "filter",
            "off",
            "path",
            "format",
            "qcow2",
            "raw",
            "bus",
            "sata",
            "cache",
            "none",
            "readonly",
            "cdrom",
            "rate-in",
            "10mbit",
            "1gbit",
            "burst",
            "tcp",
            "udp",
            "fd00::1",
            "10.0.0.2",
            "52:54:00:00:00:01",
            "ms",
            "h",
            "8000-8099",
            "18446744073709551615",
            "unix:///",
            "[",
            "]",
            "/",
        ];
        Campaign::new("words", Form::Text).tokens(&tokens).run(super::words);
    }
}
