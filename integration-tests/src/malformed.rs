//! Requests that are wrong, made of the API's own descriptors.

use crate::{random::Random, raw::framed};
use prost::Message as _;
use prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};
use std::collections::BTreeMap;

/// Deeper than any decoder goes.
const DEEP: usize = 300;
/// Longer than the daemons take.
const HUGE: usize = (1 << 20) + 1;

/// What is wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Bytes by chance.
    Noise,
    /// The begin of a message.
    Truncated,
    /// Fields in another encoding than theirs.
    WrongTypes,
    /// Groups in groups.
    Deep,
    /// A message over the limit.
    Huge,
    /// Text that is no UTF-8.
    NotText,
    /// A frame that says it is longer or shorter than it is, or compressed.
    WrongFrame,
    /// A message that could be, of values that cannot.
    WrongValues,
}

/// All of them, the cheap ones oftener.
pub const FAULTS: [Fault; 12] = [
    Fault::Noise,
    Fault::Noise,
    Fault::Truncated,
    Fault::Truncated,
    Fault::WrongTypes,
    Fault::WrongTypes,
    Fault::Deep,
    Fault::NotText,
    Fault::WrongFrame,
    Fault::WrongValues,
    Fault::WrongValues,
    Fault::WrongValues,
];

/// One call of the API.
#[derive(Clone, Debug)]
pub struct Method {
    /// `package.Service`.
    pub service: String,
    /// `/package.Service/Method`.
    pub path: String,
    /// The message that it takes, by its full name.
    pub input: String,
    /// Whether it answers with a stream.
    pub stream: bool,
}

/// The API, as its descriptors have it.
#[derive(Debug)]
pub struct Api {
    messages: BTreeMap<String, DescriptorProto>,
    /// All calls, in the order of the files.
    pub methods: Vec<Method>,
}

impl Api {
    /// That of both daemons.
    ///
    /// # Panics
    /// If the descriptors cannot be read.
    #[must_use]
    pub fn new() -> Self {
        let set = FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET).expect("descriptors");
        let mut api = Self { messages: BTreeMap::new(), methods: Vec::new() };
        for file in set.file {
            let package = format!(".{}", file.package());
            for message in &file.message_type {
                api.add(&package, message);
            }
            for service in &file.service {
                let name = format!("{}.{}", file.package(), service.name());
                api.methods.extend(service.method.iter().map(|method| Method {
                    service: name.clone(),
                    path: format!("/{name}/{}", method.name()),
                    input: method.input_type().to_owned(),
                    stream: method.server_streaming(),
                }));
            }
        }
        api
    }

    fn add(&mut self, parent: &str, message: &DescriptorProto) {
        let name = format!("{parent}.{}", message.name());
        for nested in &message.nested_type {
            self.add(&name, nested);
        }
        self.messages.insert(name, message.clone());
    }

    /// Whether a message has fields: without, whatever can be decoded is right.
    #[must_use]
    pub fn has_fields(&self, message: &str) -> bool {
        self.messages.get(message).is_some_and(|message| !message.field.is_empty())
    }

    /// A body that is wrong in this way, for a method.
    pub fn body(&self, method: &Method, fault: Fault, random: &mut Random) -> Vec<u8> {
        let input = &method.input;
        match fault {
            Fault::Noise => framed(&noise(random, 200)),
            Fault::Truncated => {
                let mut message = self.message(input, random, 0);
                // A field that begins and does not end.
                message.extend([0x0a, 0x7f]);
                message.extend(noise(random, 20));
                framed(&message)
            }
            Fault::WrongTypes => framed(&self.wrong_types(input, random)),
            Fault::Deep => framed(&vec![0x0b; DEEP]),
            Fault::Huge => framed(&vec![0; HUGE]),
            Fault::NotText => {
                let mut message = self.message(input, random, 0);
                tag(&mut message, 1, 2);
                message.extend([4, b'a', 0xff, 0xc0, 0xaf]);
                framed(&message)
            }
            Fault::WrongFrame => {
                let mut frame = framed(&self.message(input, random, 0));
                match random.below(4) {
                    0 => frame[0] = *random.of(&[1, 2, 0xff]),
                    1 => frame[4] = frame[4].wrapping_add(1),
                    2 => frame.truncate(random.below(5)),
                    _ => frame[1] = 0xff,
                }
                frame
            }
            Fault::WrongValues => framed(&self.message(input, random, 0)),
        }
    }

    /// A message that can be decoded, of values that no request can have.
    fn message(&self, name: &str, random: &mut Random, depth: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let Some(message) = self.messages.get(name) else { return bytes };
        for field in &message.field {
            // Names are always there, and never right.
            let named = matches!(field.name(), "name" | "parent");
            let labels = field.name() == "labels";
            if depth > 4 || !(named || labels || random.once_in(2) || field.r#type() == Type::Message) {
                continue;
            }
            let times = if field.label() == Label::Repeated { random.below(4) } else { 1 };
            for _ in 0..times.max(usize::from(labels)) {
                if labels {
                    // An entry with no key.
                    tag(&mut bytes, number(field), 2);
                    bytes.extend([3, 0x12, 1, b'x']);
                    continue;
                }
                self.field(&mut bytes, field, random, depth);
            }
        }
        bytes
    }

    fn field(&self, bytes: &mut Vec<u8>, field: &FieldDescriptorProto, random: &mut Random, depth: usize) {
        match field.r#type() {
            Type::Message => {
                let inner = self.message(field.type_name(), random, depth + 1);
                tag(bytes, number(field), 2);
                varint(bytes, inner.len() as u64);
                bytes.extend(inner);
            }
            Type::String | Type::Bytes => {
                let text = text(random);
                tag(bytes, number(field), 2);
                varint(bytes, text.len() as u64);
                bytes.extend(text.bytes());
            }
            Type::Fixed64 | Type::Sfixed64 | Type::Double => {
                tag(bytes, number(field), 1);
                bytes.extend(random.next().to_le_bytes());
            }
            Type::Fixed32 | Type::Sfixed32 | Type::Float => {
                tag(bytes, number(field), 5);
                bytes.extend(random.next().to_le_bytes().iter().take(4));
            }
            Type::Bool => {
                tag(bytes, number(field), 0);
                varint(bytes, random.next() % 2);
            }
            _ => {
                let value = *random.of(&[0, 1, 2, 3, 127, 65_535, 1 << 31, u64::MAX, u64::MAX - 4, 1 << 63]);
                tag(bytes, number(field), 0);
                varint(bytes, value);
            }
        }
    }

    /// The message's fields, each in an encoding of another type.
    fn wrong_types(&self, name: &str, random: &mut Random) -> Vec<u8> {
        let mut bytes = Vec::new();
        let fields = self.messages.get(name).map(|message| message.field.clone()).unwrap_or_default();
        let numbers: Vec<u32> =
            if fields.is_empty() { vec![1, 2, 3] } else { fields.iter().map(number).collect() };
        for number in numbers {
            let right =
                match fields.iter().find(|f| self::number(f) == number).map(FieldDescriptorProto::r#type) {
                    Some(Type::Message | Type::String | Type::Bytes) => 2,
                    Some(_) => 0,
                    // Not there: a wire type that does not exist.
                    None => 8,
                };
            // 3 begins a group that nothing ends; 4 ends one that did not begin; 6 and 7 do not exist.
            let wrong: Vec<u8> = [0, 1, 2, 3, 4, 5, 6, 7]
                .into_iter()
                .filter(|kind| *kind != right && (right != 8 || *kind > 2))
                .collect();
            tag(&mut bytes, number, *random.of(&wrong));
            bytes.extend(noise(random, 12));
        }
        // Unknown fields are no mistake: the last thing certainly is one.
        bytes.extend([0xff; 11]);
        bytes
    }
}

impl Default for Api {
    fn default() -> Self {
        Self::new()
    }
}

fn number(field: &FieldDescriptorProto) -> u32 {
    u32::try_from(field.number()).expect("a field's number")
}

fn noise(random: &mut Random, most: usize) -> Vec<u8> {
    (0..=random.below(most)).map(|_| random.next().to_le_bytes()[0]).collect()
}

/// Text that is no name, address, path or number that a request may have.
fn text(random: &mut Random) -> String {
    const WORDS: [&str; 24] = [
        "networks/",
        "networks/../keep",
        "networks/Keep",
        "networks/keep/ports/",
        "networks/keep/ports/a/b",
        "networks//ports/x",
        "groups/",
        "vms/",
        "vms/ keep",
        "vms/keep\0",
        "keep\n--option",
        "-rf",
        "../../etc/passwd",
        "/dev/mem",
        "999.1.1.1/33",
        "fe80::/200",
        "ff:ff:ff:ff:ff:zz",
        "%s%n%p",
        "'; nft flush ruleset; '",
        "\u{202e}\u{0}\u{feff}",
        "{\"json\":1}",
        "\r\n\r\n",
        " ",
        "𝕜𝕖𝕖𝕡",
    ];
    if random.once_in(20) {
        return "x".repeat(1 + random.below(5000)) + "/";
    }
    (*random.of(&WORDS)).to_owned()
}

fn tag(bytes: &mut Vec<u8>, number: u32, kind: u8) {
    varint(bytes, (u64::from(number) << 3) | u64::from(kind));
}

fn varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        bytes.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    bytes.push(value.to_le_bytes()[0]);
}
