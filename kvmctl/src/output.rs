//! What goes to standard output, in the format asked for.

pub mod address;
pub mod broken;
pub mod caller;
pub mod containment;
pub mod diagnose;
pub mod event;
pub mod forward;
pub mod group;
pub mod host;
pub mod lease;
pub mod network;
pub mod nic;
pub mod port;
pub mod text;
pub mod time;
pub mod vm;
pub mod watched;

use broken::{Broken, Shown};
use clap::ValueEnum;
use serde::Serialize;
use shared::fault::Fault;
use std::io::{self, Write};
use text::{clean, table};

/// A thing that can be listed and shown.
///
/// Its serde form is a promise to scripts: fields are added, never renamed or removed. A value that is not set is
/// null, enums are lower-case words, sizes are bytes, times are RFC 3339 in UTC with milliseconds.
pub trait Object: Serialize {
    /// Column heads of the list.
    const COLUMNS: &'static [&'static str];

    /// The bare name.
    fn name(&self) -> &str;
    /// One line of the list, a cell for each column.
    fn row(&self) -> Vec<String>;
    /// All of it, for people: lines without the last line break.
    fn sheet(&self) -> String;
    /// What it is, in a few words, for the line after a change: `nat, 192.168.100.1/24`.
    fn summary(&self) -> String;
    /// What an operator should know.
    fn warnings(&self) -> &[String] {
        &[]
    }
    /// What is known if its record cannot be read.
    fn broken(&self) -> Option<Broken<'_>> {
        None
    }
}

/// Why a command ended early.
#[derive(Debug)]
pub enum Stop {
    /// It failed.
    Fault(Fault),
    /// The reader of standard output has seen enough. That is no failure.
    PipeClosed,
    /// It was carried out, and what it printed is bad news.
    Negative,
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::PipeClosed;
        }
        Self::Fault(Fault::internal("cannot write to standard output").cause(&error))
    }
}

/// Answer to a delete.
#[derive(Serialize)]
struct Deleted<'a> {
    name: &'a str,
    deleted: bool,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    #[value(help = None)]
    Table,
    /// One JSON value.
    #[value(help = None)]
    Json,
    /// One YAML document.
    #[value(help = None)]
    Yaml,
    /// Bare names, one a line.
    #[value(help = None)]
    Name,
}

/// Prints results on `out` and remarks on `remarks`.
pub struct Printer<'a> {
    format: Format,
    out: &'a mut dyn Write,
    remarks: &'a mut dyn Write,
}

impl<'a> Printer<'a> {
    /// A printer for one command.
    pub fn new(format: Format, out: &'a mut dyn Write, remarks: &'a mut dyn Write) -> Self {
        Self { format, out, remarks }
    }

    /// Prints a list.
    ///
    /// # Errors
    /// If standard output cannot be written.
    pub fn list<T: Object>(&mut self, objects: &[T]) -> Result<(), Stop> {
        match self.format {
            Format::Table => {
                let rows = objects.iter().map(broken::row);
                self.text(&table(T::COLUMNS, rows))?;
            }
            Format::Name => objects.iter().try_for_each(|object| self.text(object.name()))?,
            Format::Json | Format::Yaml => {
                let shown: Vec<_> = objects.iter().map(Shown::from).collect();
                return self.value(&shown);
            }
        }
        objects.iter().for_each(|object| self.say_broken(object));
        Ok(())
    }

    /// A line has no room for why.
    fn say_broken<T: Object>(&mut self, object: &T) {
        if let Some(Broken { name, network, status, .. }) = object.broken() {
            let on = network.map(|network| format!(" on network `{network}`")).unwrap_or_default();
            self.remark(&format!("warning: `{name}`{on} is broken: {}", status.error));
        }
    }

    /// Prints the column heads of a list that has no end, with one more before them; for people only.
    ///
    /// # Errors
    /// If standard output cannot be written.
    pub fn heading<T: Object>(&mut self, first: &str) -> Result<(), Stop> {
        if self.format != Format::Table {
            return Ok(());
        }
        self.text(&format!("{first}  {}", T::COLUMNS.join("  ")))?;
        Ok(self.out.flush()?)
    }

    /// Whether what is printed is for programs that want everything.
    #[must_use]
    pub fn is_structured(&self) -> bool {
        matches!(self.format, Format::Json | Format::Yaml)
    }

    /// Prints one object of a list that has no end, at once: a line, or a JSON or YAML value.
    ///
    /// # Errors
    /// If standard output cannot be written.
    pub fn entry<T: Object>(&mut self, object: &T) -> Result<(), Stop> {
        match self.format {
            Format::Table => {
                self.text(&clean(&object.row().join("  ")))?;
                self.say_broken(object);
            }
            Format::Name => self.text(object.name())?,
            Format::Json => {
                let line = serde_json::to_string(object)
                    .map_err(|e| Fault::internal("cannot write the result as JSON").cause(&e))?;
                self.text(&line)?;
            }
            Format::Yaml => {
                self.text("---")?;
                self.value(object)?;
            }
        }
        Ok(self.out.flush()?)
    }

    /// Prints everything about one object.
    ///
    /// # Errors
    /// If standard output cannot be written.
    pub fn show<T: Object>(&mut self, object: &T) -> Result<(), Stop> {
        match self.format {
            Format::Table => self.text(&object.sheet()),
            Format::Name => self.text(object.name()),
            Format::Json | Format::Yaml => self.value(object),
        }
    }

    /// Prints everything about each of several objects; `none` for people if there are none.
    ///
    /// # Errors
    /// If standard output cannot be written.
    pub fn report<T: Object>(&mut self, objects: &[T], none: &str) -> Result<(), Stop> {
        match (self.format, objects) {
            (Format::Table, []) => self.text(none),
            (Format::Table, objects) => {
                let sheets: Vec<_> = objects.iter().map(Object::sheet).collect();
                self.text(&sheets.join("\n\n"))
            }
            _ => self.list(objects),
        }
    }

    /// Prints an object after a change: `network lan created (nat, 192.168.100.1/24)`. Its warnings go to standard
    /// error in every format.
    ///
    /// # Errors
    /// If standard output cannot be written.
    pub fn changed<T: Object>(&mut self, kind: &str, done: &str, object: &T) -> Result<(), Stop> {
        for warning in object.warnings() {
            self.remark(&format!("warning: {warning}"));
        }
        match self.format {
            Format::Table => self.text(&format!("{kind} {} {done} ({})", object.name(), object.summary())),
            Format::Name => self.text(object.name()),
            Format::Json | Format::Yaml => self.value(object),
        }
    }

    /// Prints that an object is gone.
    ///
    /// # Errors
    /// If standard output cannot be written.
    pub fn deleted(&mut self, kind: &str, name: &str) -> Result<(), Stop> {
        match self.format {
            Format::Table => self.text(&format!("{kind} {name} deleted")),
            Format::Name => self.text(name),
            Format::Json | Format::Yaml => self.value(&Deleted { name, deleted: true }),
        }
    }

    /// Says something that is not the result, on standard error. Nobody may be there to read it.
    pub fn remark(&mut self, text: &str) {
        let _ = writeln!(self.remarks, "{}", clean(text));
    }

    /// Puts text of our own on standard error as it is, its line breaks included.
    pub fn verbatim(&mut self, text: &str) {
        let _ = write!(self.remarks, "{text}");
    }

    /// Prints bytes as they are, at once.
    ///
    /// # Errors
    /// If standard output cannot be written.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        self.out.write_all(bytes)?;
        Ok(self.out.flush()?)
    }

    /// Sends what is buffered on its way.
    ///
    /// # Errors
    /// If standard output cannot be written.
    pub fn finish(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn text(&mut self, text: &str) -> Result<(), Stop> {
        Ok(writeln!(self.out, "{text}")?)
    }

    fn value<T: Serialize>(&mut self, value: &T) -> Result<(), Stop> {
        let text = match self.format {
            Format::Yaml => serde_saphyr::to_string(value)
                .map_err(|e| Fault::internal("cannot write the result as YAML").cause(&e))?,
            _ => serde_json::to_string_pretty(value)
                .map_err(|e| Fault::internal("cannot write the result as JSON").cause(&e))?,
        };
        self.text(text.trim_end_matches('\n'))
    }
}

/// An enum value of the wire as the lower-case word after its prefix; `default` for the zero value.
fn word(name: Option<&'static str>, prefix: &str, default: &str) -> String {
    match name.and_then(|name| name.strip_prefix(prefix)) {
        None => "unknown".to_owned(),
        Some("UNSPECIFIED") => default.to_owned(),
        Some(word) => word.to_ascii_lowercase(),
    }
}

/// Text of the wire, where empty means not set.
fn set(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// The last part of a resource name: `lan` of `networks/lan`.
fn last_part(resource: &str) -> String {
    resource.rsplit('/').next().unwrap_or(resource).to_owned()
}
