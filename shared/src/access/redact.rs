//! Takes the host's paths out of messages that everybody may read.

/// What stands in a path's place.
const INSTEAD: &str = "(a path)";

/// The text without absolute paths. One in quotes may have blanks. Prefixes such as `10.0.0.0/8` and resource names
/// such as `networks/lan` stay.
#[must_use]
pub fn redact(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut before = None;
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        let begins = c == '/'
            && before.is_none_or(|b: char| !(b.is_alphanumeric() || matches!(b, '_' | '-' | '*' | '/')))
            && rest.peek().is_some_and(|next| !ends(*next))
            && !is_prefix_length(rest.clone());
        if begins {
            let quote = before.filter(|b| matches!(b, '`' | '\'' | '"'));
            while rest.next_if(|next| quote.map_or(!ends(*next), |quote| *next != quote)).is_some() {}
            out.push_str(INSTEAD);
            before = None;
            continue;
        }
        out.push(c);
        before = Some(c);
    }
    out
}

/// Whether the rest of a word is the length of an IP prefix, as in `::/64`.
fn is_prefix_length(rest: impl Iterator<Item = char>) -> bool {
    let word: String = rest.take_while(|c| !ends(*c)).take(6).collect();
    let number = word.trim_end_matches(['.', ':', '!', '?']);
    (1..=3).contains(&number.len()) && number.bytes().all(|digit| digit.is_ascii_digit())
}

/// What a path that is not quoted does not go beyond.
fn ends(c: char) -> bool {
    c.is_whitespace() || matches!(c, '`' | '\'' | '"' | ')' | ']' | ',' | ';')
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn paths_go_and_addresses_and_names_stay() {
        for (text, safe) in [
            ("cannot use disk `/srv/my disk.img`: denied", "cannot use disk `(a path)`: denied"),
            ("unix:/run/kvmctl/vnc", "unix:(a path)"),
            ("file=/a/b,readonly=on (/etc/x) ../up", "file=(a path),readonly=on ((a path)) ..(a path)"),
            ("/etc/shadow", "(a path)"),
            ("`/1data/a b.img`, /7/x and /2024", "`(a path)`, (a path) and (a path)"),
        ] {
            assert_eq!(redact(text), safe);
        }
        for same in [
            "10.0.0.0/8 and fd00::/64 and ::/0",
            "fd00::/64: a /48, or no /64.",
            "networks/lan/ports/web-0",
            "1 / 2",
            "and/or",
            "",
        ] {
            assert_eq!(redact(same), same);
        }
    }
}
