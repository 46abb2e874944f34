//! Changes of a JSON document that leave it one.

use crate::{Random, form};
use serde_json::{Map, Value};

/// Changes as many values, keys or members; falls back to bytes where the input is no JSON.
pub fn mutate(
    random: &mut Random,
    input: &mut Vec<u8>,
    other: &[u8],
    (changes, tokens): (usize, &[Vec<u8>]),
) {
    let Ok(mut document) = serde_json::from_slice::<Value>(input) else {
        return form::bytes(random, input, other, tokens);
    };
    let mut donor = Value::Null;
    for _ in 0..changes {
        if donor.is_null() && random.one_in(6) {
            donor = serde_json::from_slice(other).unwrap_or(Value::Null);
        }
        change(random, &mut document, &mut donor, tokens);
    }
    *input = document.to_string().into_bytes();
}

fn change(random: &mut Random, document: &mut Value, donor: &mut Value, tokens: &[Vec<u8>]) {
    // Few documents are as deep as to need more.
    let depth = random.below(8);
    let place = descend(random, document, depth);
    match random.below(6) {
        0 => change_members(random, place, tokens),
        1 if !donor.is_null() => {
            let depth = random.below(8);
            *place = descend(random, donor, depth).take();
        }
        2 if random.one_in(8) => {
            let inner = place.take();
            *place = (0..random.below(100)).fold(inner, |inner, _| Value::Array(vec![inner]));
        }
        _ => *place = another(random, place, tokens),
    }
}

/// Goes down by chance.
fn descend<'a>(random: &mut Random, value: &'a mut Value, depth: usize) -> &'a mut Value {
    let members = match value {
        Value::Array(items) => items.len(),
        Value::Object(map) => map.len(),
        _ => 0,
    };
    if depth == 0 || members == 0 {
        return value;
    }
    let at = random.below(members);
    let child = match value {
        Value::Array(items) => &mut items[at],
        Value::Object(map) => match map.values_mut().nth(at) {
            Some(child) => child,
            None => unreachable!("`at` is below the number of members"),
        },
        _ => unreachable!("only these have members"),
    };
    descend(random, child, depth - 1)
}

fn change_members(random: &mut Random, place: &mut Value, tokens: &[Vec<u8>]) {
    match place {
        Value::Array(items) if !items.is_empty() => {
            let at = random.below(items.len());
            match random.below(3) {
                0 => drop(items.remove(at)),
                1 => items.insert(at, items[at].clone()),
                _ => items.reverse(),
            }
        }
        Value::Object(map) if !map.is_empty() => {
            let at = random.below(map.len());
            let key = map.keys().nth(at).cloned().unwrap_or_default();
            let value = map.remove(&key);
            if random.one_in(2) {
                map.insert(token(random, tokens), value.unwrap_or_default());
            }
        }
        other => *other = another(random, other, tokens),
    }
}

fn token(random: &mut Random, tokens: &[Vec<u8>]) -> String {
    random.pick(tokens).map_or_else(|| "x".to_owned(), |token| String::from_utf8_lossy(token).into_owned())
}

/// Mostly of the same type.
fn another(random: &mut Random, value: &Value, tokens: &[Vec<u8>]) -> Value {
    match (value, random.below(8)) {
        (Value::Number(_), 0..5) => random.interesting().into(),
        (Value::Number(_), 5) => random.interesting().cast_signed().into(),
        (Value::Bool(on), 0..7) => (!on).into(),
        (Value::String(_), 0..4) => token(random, tokens).into(),
        (Value::String(text), 4 | 5) => {
            let mut bytes = text.clone().into_bytes();
            form::bytes(random, &mut bytes, &[], tokens);
            String::from_utf8_lossy(&bytes).into_owned().into()
        }
        (_, 6) => Value::Null,
        _ => match random.below(6) {
            0 => Value::Array(Vec::new()),
            1 => Value::Object(Map::new()),
            2 => form::number(random).into(),
            3 => f64::from_bits(random.number()).into(),
            4 => true.into(),
            _ => random.interesting().into(),
        },
    }
}
