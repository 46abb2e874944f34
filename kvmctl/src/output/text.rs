//! Plain text: tables, sheets of aligned lines, and text of others made fit for a terminal.

use comfy_table::{Table, presets::NOTHING};
use std::fmt::Write as _;

/// What stands in a table where there is nothing.
pub const NOTHING_THERE: &str = "-";

/// Columns two spaces apart under upper-case heads; no line ends with a space.
#[must_use]
pub fn table(heads: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(heads.to_vec());
    for row in rows {
        table.add_row(row.iter().map(|cell| clean(cell)).collect::<Vec<_>>());
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// A cell for something that may be missing.
#[must_use]
pub fn or_dash(text: Option<&str>) -> String {
    text.unwrap_or(NOTHING_THERE).to_owned()
}

/// `yes` or `no`.
#[must_use]
pub fn yes_no(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

/// `1 port`, `2 ports`.
#[must_use]
pub fn count(number: impl Into<u64>, noun: &str) -> String {
    let number = number.into();
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Aligned `Key:  value` lines with indented lists below.
#[derive(Debug, Default)]
pub struct Sheet {
    lines: Vec<Line>,
}

#[derive(Debug)]
enum Line {
    Pair(&'static str, String),
    Item(String),
}

impl Sheet {
    /// Adds a line.
    #[must_use]
    pub fn line(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.lines.push(Line::Pair(key, value.into()));
        self
    }

    /// Adds a line if there is a value.
    #[must_use]
    pub fn maybe(self, key: &'static str, value: Option<impl Into<String>>) -> Self {
        match value {
            Some(value) => self.line(key, value),
            None => self,
        }
    }

    /// Adds a head and its items, or nothing if there are none.
    #[must_use]
    pub fn items(mut self, key: &'static str, items: impl IntoIterator<Item = String>) -> Self {
        let items: Vec<_> = items.into_iter().collect();
        if !items.is_empty() {
            self.lines.push(Line::Pair(key, String::new()));
            self.lines.extend(items.into_iter().map(Line::Item));
        }
        self
    }

    /// The lines, without the last line break.
    #[must_use]
    pub fn render(&self) -> String {
        let keys = self.lines.iter().filter_map(|line| match line {
            Line::Pair(key, value) if !value.is_empty() => Some(key.len()),
            _ => None,
        });
        let width = keys.max().unwrap_or(0) + 1;
        let mut out = String::new();
        for line in &self.lines {
            // Writing into a String cannot fail.
            let _ = match line {
                Line::Pair(key, value) if value.is_empty() => writeln!(out, "{key}:"),
                Line::Pair(key, value) => {
                    let value = indented(value, width + 2);
                    writeln!(out, "{:width$}  {value}", format!("{key}:"))
                }
                Line::Item(item) => writeln!(out, "  - {}", indented(item, 4)),
            };
        }
        out.truncate(out.trim_end().len());
        out
    }
}

/// Text of others for a terminal: further lines are indented, control characters are escaped.
#[must_use]
pub fn indented(text: &str, indent: usize) -> String {
    let lines: Vec<_> = text.trim_end().lines().map(clean).collect();
    lines.join(&format!("\n{:indent$}", ""))
}

/// One line of text of others: control characters are escaped, so that a guest's or QEMU's words cannot steer the
/// terminal.
#[must_use]
pub fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_table_is_plain_columns() {
        let rows = [vec!["lan".to_owned(), "nat".to_owned()], vec!["a-long-name".to_owned(), "-".to_owned()]];
        assert_eq!(
            table(&["NAME", "MODE"], rows.into_iter()),
            "NAME         MODE\nlan          nat\na-long-name  -"
        );
        assert_eq!(table(&["NAME", "MODE"], std::iter::empty()), "NAME  MODE");
    }

    #[test]
    fn a_sheet_is_aligned_and_lists_are_below() {
        let sheet = Sheet::default()
            .line("Name", "lan")
            .maybe("Error", None::<String>)
            .line("IPv4 address", "10.0.0.1/24")
            .items("Warnings", ["one".to_owned(), "two\nlines".to_owned()])
            .items("Nothing", []);
        assert_eq!(
            sheet.render(),
            "Name:          lan\nIPv4 address:  10.0.0.1/24\nWarnings:\n  - one\n  - two\n    lines"
        );
    }

    #[test]
    fn the_words_of_others_cannot_steer_the_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\rc"), "a\\u{1b}[2Jb\\rc");
        assert_eq!(indented("one\ntwo\u{7}\n", 2), "one\n  two\\u{7}");
    }

    #[test]
    fn counts_agree_with_their_noun() {
        assert_eq!(count(1_u32, "port"), "1 port");
        assert_eq!(count(0_u32, "port"), "0 ports");
    }
}
