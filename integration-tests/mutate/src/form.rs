//! What inputs look like, and the mutations that suit them.

use crate::{Random, json, protobuf};

/// The form of a target's inputs. Each is also mutated as bytes now and then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Nothing is known of them.
    Bytes,
    /// Words and numbers.
    Text,
    /// One JSON document.
    Json,
    /// Messages one after the other, each a byte for its sort, its length in two bytes, little-endian, and protobuf.
    Requests,
}

impl Form {
    /// A new input of at most `most` bytes.
    #[must_use]
    pub fn mutate(self, random: &mut Random, seeds: &[Vec<u8>], tokens: &[Vec<u8>], most: usize) -> Vec<u8> {
        let mut input = random.pick(seeds).cloned().unwrap_or_default();
        let other = random.pick(seeds).map_or(&[][..], Vec::as_slice);
        // Mostly few changes: each one more makes it likelier that the first check ends it.
        let mut changes = 1 + random.below(2);
        while random.one_in(3) {
            changes += 1;
        }
        if self == Self::Json && !random.one_in(8) {
            json::mutate(random, &mut input, other, (changes, tokens));
            input.truncate(most);
            return input;
        }
        for _ in 0..changes {
            let blindly = random.one_in(8);
            match self {
                Self::Text if !blindly => words(random, &mut input, other, tokens),
                Self::Requests if !blindly => protobuf::mutate(random, &mut input, other, tokens),
                _ => bytes(random, &mut input, other, tokens),
            }
            input.truncate(most);
        }
        input
    }
}

/// A part of `input`; empty only if that is.
fn span(random: &mut Random, input: &[u8]) -> std::ops::Range<usize> {
    let start = random.below(input.len());
    let rest = input.len() - start;
    let length = if random.one_in(4) { random.below(rest) + 1 } else { random.below(rest.min(16)) + 1 };
    start..start + length.min(rest)
}

/// Changes that need no knowledge.
pub fn bytes(random: &mut Random, input: &mut Vec<u8>, other: &[u8], tokens: &[Vec<u8>]) {
    if input.is_empty() {
        input.extend(random.number().to_le_bytes());
        return;
    }
    let at = random.below(input.len());
    match random.below(11) {
        0 => input[at] ^= 1 << random.below(8),
        1 => input[at] = random.number() as u8,
        2 => input[at] = random.interesting() as u8,
        // Lengths, counts and kinds are numbers of two, four or eight bytes.
        3 | 4 => {
            let number = random.interesting();
            let width = 2 << random.below(3);
            let number = if random.one_in(2) { number.to_le_bytes() } else { number.to_be_bytes() };
            let number = if number[0] == 0 { &number[8 - width..] } else { &number[..width] };
            let end = (at + width).min(input.len());
            input[at..end].copy_from_slice(&number[..end - at]);
        }
        5 => input.truncate(at),
        6 => drop(input.drain(span(random, input))),
        7 => {
            let again = input[span(random, input)].to_vec();
            for _ in 0..=random.below(4) {
                input.splice(at..at, again.iter().copied());
            }
        }
        8 => {
            let from = if other.is_empty() { Vec::new() } else { other[span(random, other)].to_vec() };
            input.splice(span(random, input), from);
        }
        9 => {
            let token =
                random.pick(tokens).cloned().unwrap_or_else(|| random.number().to_le_bytes().to_vec());
            input.splice(at..at, token);
        }
        _ => {
            let place = span(random, input);
            let moved: Vec<u8> = input.drain(place).collect();
            let to = random.below(input.len() + 1);
            input.splice(to..to, moved);
        }
    }
}

/// A number as text, right or wrong.
pub fn number(random: &mut Random) -> String {
    let number = random.interesting();
    match random.below(8) {
        0 => format!("-{number}"),
        1 => format!("{number:#x}"),
        2 => format!("0{number}"),
        3 => format!("{number}{}", random.interesting()),
        4 => format!("+{number}"),
        _ => number.to_string(),
    }
}

/// Changes of whole words and of what is between them.
fn words(random: &mut Random, input: &mut Vec<u8>, other: &[u8], tokens: &[Vec<u8>]) {
    let place = word(random, input);
    let Some(place) = place else { return bytes(random, input, other, tokens) };
    match random.below(7) {
        0 => drop(input.splice(place, number(random).into_bytes())),
        1 | 2 => {
            let token = random.pick(tokens).cloned().unwrap_or_default();
            input.splice(place, token);
        }
        3 => {
            let from = word(random, other).map(|range| other[range].to_vec()).unwrap_or_default();
            input.splice(place, from);
        }
        4 => {
            let again = input[place.clone()].to_vec();
            let times = if random.one_in(16) { 1 << random.below(11) } else { 1 + random.below(3) };
            input.splice(place.end..place.end, again.repeat(times));
        }
        5 => {
            const BETWEEN: [&str; 20] = [
                ",",
                ":",
                "=",
                ".",
                "/",
                " ",
                "\n",
                "\t",
                "\"",
                "\\",
                "-",
                "[",
                "{",
                "%",
                "\0",
                "\u{1b}[31m",
                "é",
                "\u{202e}",
                "\r\n",
                ";",
            ];
            let between = BETWEEN[random.below(BETWEEN.len())];
            input.splice(place.end..place.end, between.bytes());
        }
        _ => {
            if let Some(with) = word(random, input).filter(|with| with.start >= place.end) {
                let (first, second) = (input[place.clone()].to_vec(), input[with.clone()].to_vec());
                input.splice(with, first);
                input.splice(place, second);
            }
        }
    }
}

/// A run of letters and digits.
fn word(random: &mut Random, text: &[u8]) -> Option<std::ops::Range<usize>> {
    if text.is_empty() {
        return None;
    }
    let is_word = |at: usize| text.get(at).is_some_and(u8::is_ascii_alphanumeric);
    let from = random.below(text.len());
    let start = (from..text.len()).chain(0..from).find(|at| is_word(*at))?;
    let first = (0..=start).rev().take_while(|at| is_word(*at)).last()?;
    let end = (start..text.len()).find(|at| !is_word(*at)).unwrap_or(text.len());
    Some(first..end)
}
