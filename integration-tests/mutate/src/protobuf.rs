//! Changes of protobuf messages that leave their lengths right, in a sequence of such messages.
//!
//! The wire format does not tell a message from a string: what can be read as a message is taken for one.

use crate::{Random, form};

#[derive(Clone, Debug)]
enum Content {
    Number(u64),
    Fixed(Vec<u8>),
    Bytes(Vec<u8>),
    Message(Vec<Field>),
}

#[derive(Clone, Debug)]
struct Field {
    number: u64,
    content: Content,
}

/// Deepest nesting that is looked for.
const DEEPEST: usize = 6;

/// The messages of a sequence, each with the byte before its length. What does not fit is the last one's.
fn split(mut input: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut messages = Vec::new();
    while let [sort, low, high, rest @ ..] = input {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        messages.push((*sort, rest[..length].to_vec()));
        input = &rest[length..];
    }
    messages
}

fn join(messages: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut output = Vec::new();
    for (sort, message) in messages {
        let length = message.len().min(usize::from(u16::MAX));
        output.push(*sort);
        output.extend(u16::try_from(length).unwrap_or(u16::MAX).to_le_bytes());
        output.extend(&message[..length]);
    }
    output
}

/// Changes one field of one message, or the sequence.
pub fn mutate(random: &mut Random, input: &mut Vec<u8>, other: &[u8], tokens: &[Vec<u8>]) {
    let mut messages = split(input);
    let others = split(other);
    if messages.is_empty() {
        return form::bytes(random, input, other, tokens);
    }
    let at = random.below(messages.len());
    match random.below(12) {
        0 => drop(messages.remove(at)),
        1 => messages.insert(at, messages[at].clone()),
        2 => messages[at].0 = random.number() as u8,
        3 => {
            let with = random.below(messages.len());
            messages.swap(at, with);
        }
        4 | 5 => {
            let from = random.below(others.len() + 1);
            messages.extend(others.into_iter().skip(from).take(4));
        }
        _ => {
            let mut fields = parse(&messages[at].1, DEEPEST).unwrap_or_default();
            let donor = random.pick(&others).and_then(|(_, bytes)| parse(bytes, DEEPEST)).unwrap_or_default();
            change(random, &mut fields, &donor, tokens);
            messages[at].1 = write(&fields);
        }
    }
    *input = join(&messages);
}

fn change(random: &mut Random, fields: &mut Vec<Field>, donor: &[Field], tokens: &[Vec<u8>]) {
    if fields.is_empty() || random.one_in(12) {
        let number = 1 + random.number() % 16;
        let content = match random.below(3) {
            0 => Content::Number(random.interesting()),
            1 => Content::Bytes(random.pick(tokens).cloned().unwrap_or_default()),
            _ => random.pick(donor).map_or(Content::Message(Vec::new()), |field| field.content.clone()),
        };
        fields.push(Field { number, content });
        return;
    }
    let at = random.below(fields.len());
    match random.below(10) {
        0 => drop(fields.remove(at)),
        1 => fields.insert(at, fields[at].clone()),
        2 => fields[at].number = 1 + random.number() % 20,
        3 => {
            if let Some(field) = random.pick(donor) {
                fields[at] = field.clone();
            }
        }
        _ => match &mut fields[at].content {
            Content::Number(number) => *number = random.interesting(),
            Content::Fixed(bytes) => form::bytes(random, bytes, &[], &[]),
            Content::Bytes(bytes) if random.one_in(2) => {
                *bytes = random.pick(tokens).cloned().unwrap_or_default();
            }
            Content::Bytes(bytes) => form::bytes(random, bytes, &[], tokens),
            Content::Message(fields) => {
                let donor: Vec<_> = donor.iter().flat_map(|field| inner(&field.content)).cloned().collect();
                change(random, fields, &donor, tokens);
            }
        },
    }
}

fn inner(content: &Content) -> &[Field] {
    if let Content::Message(fields) = content { fields } else { &[] }
}

fn varint(input: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = input.split_first()?;
        *input = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn take<'a>(input: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = input.split_at_checked(length)?;
    *input = rest;
    Some(taken)
}

fn parse(mut input: &[u8], deeper: usize) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !input.is_empty() {
        let tag = varint(&mut input)?;
        let content = match tag & 7 {
            0 => Content::Number(varint(&mut input)?),
            1 => Content::Fixed(take(&mut input, 8)?.to_vec()),
            5 => Content::Fixed(take(&mut input, 4)?.to_vec()),
            2 => {
                let length = usize::try_from(varint(&mut input)?).ok()?;
                let bytes = take(&mut input, length)?;
                // Text of letters is rarely meant as a message.
                let text = bytes.first().is_some_and(u8::is_ascii_alphanumeric);
                match parse(bytes, deeper.checked_sub(1)?).filter(|_| !text && !bytes.is_empty()) {
                    Some(fields) => Content::Message(fields),
                    None => Content::Bytes(bytes.to_vec()),
                }
            }
            _ => return None,
        };
        fields.push(Field { number: tag >> 3, content });
    }
    Some(fields)
}

fn put(output: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        output.push(number as u8 | 0x80);
        number >>= 7;
    }
    output.push(number as u8);
}

fn write(fields: &[Field]) -> Vec<u8> {
    let mut output = Vec::new();
    for Field { number, content } in fields {
        let mut tag = |kind: u64| put(&mut output, number << 3 | kind);
        match content {
            Content::Number(value) => {
                tag(0);
                put(&mut output, *value);
            }
            Content::Fixed(bytes) => {
                tag(if bytes.len() == 8 { 1 } else { 5 });
                output.extend(bytes);
            }
            Content::Bytes(bytes) => {
                tag(2);
                put(&mut output, bytes.len() as u64);
                output.extend(bytes);
            }
            Content::Message(fields) => {
                let bytes = write(fields);
                tag(2);
                put(&mut output, bytes.len() as u64);
                output.extend(bytes);
            }
        }
    }
    output
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn what_is_not_changed_is_written_as_it_was() {
        // 1: "networks/lan", 2: { 1: 3, 2: "10.0.0.1/24" }, 3: 300, 4: fixed32
        let message =
            b"\x0a\x0cnetworks/lan\x12\x0f\x08\x03\x12\x0b10.0.0.1/24\x18\xac\x02\x25\x01\x02\x03\x04";
        let fields = parse(message, DEEPEST).unwrap();
        assert!(matches!(&fields[1].content, Content::Message(inner) if inner.len() == 2), "{fields:?}");
        assert_eq!(write(&fields), message);
        let sequence = join(&[(1, message.to_vec()), (7, Vec::new())]);
        assert_eq!(join(&split(&sequence)), sequence);
    }

    #[test]
    fn what_is_changed_is_still_protobuf() {
        let mut random = Random::new(1);
        let message = b"\x0a\x0cnetworks/lan\x12\x0f\x08\x03\x12\x0b10.0.0.1/24".to_vec();
        let mut input = join(&[(1, message)]);
        for _ in 0..1000 {
            mutate(&mut random, &mut input, &[], &[b"token".to_vec()]);
            input.truncate(4096);
        }
        assert!(split(&input).iter().any(|(_, message)| parse(message, 20).is_some()));
    }
}
