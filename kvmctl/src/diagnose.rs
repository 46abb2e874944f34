//! A failure as text and as exit code.

use crate::output::text::indented;
use shared::fault::{Fault, Kind};
use std::fmt::Write as _;

/// Refused or failed.
pub const FAILED: u8 = 1;
/// Wrong usage.
pub const USAGE: u8 = 2;
/// A daemon is not reachable.
pub const UNREACHABLE: u8 = 3;
/// Timed out.
pub const TIMED_OUT: u8 = 4;

/// The exit code for a failure.
#[must_use]
pub fn exit_code(kind: Kind) -> u8 {
    match kind {
        Kind::Unavailable => UNREACHABLE,
        Kind::DeadlineExceeded => TIMED_OUT,
        Kind::InvalidArgument
        | Kind::NotFound
        | Kind::AlreadyExists
        | Kind::FailedPrecondition
        | Kind::PermissionDenied
        | Kind::ResourceExhausted
        | Kind::Aborted
        | Kind::Cancelled
        | Kind::Internal => FAILED,
    }
}

/// The failure for people: error, causes, trace id if given, a blank line, hints. Ends with a line break.
#[must_use]
pub fn render(fault: &Fault, trace_id: Option<&str>) -> String {
    let message = fault.to_string();
    let message = if message.trim().is_empty() { "the daemon gave no reason" } else { &message };
    // Writing into a String cannot fail.
    let mut out = format!("error: {}\n", indented(message, 2));
    for cause in fault.causes() {
        let _ = writeln!(out, "  caused by: {}", indented(cause, 4));
    }
    if let Some(id) = trace_id {
        let _ = writeln!(out, "  trace id: {id}");
    }
    if !fault.hints().is_empty() {
        out.push('\n');
    }
    for hint in fault.hints() {
        let _ = writeln!(out, "hint: {}", indented(hint, 6));
    }
    out
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn error_causes_blank_line_hints() {
        let fault = Fault::new(Kind::FailedPrecondition, "IN_USE", "cannot delete network `lan`")
            .cause(&std::io::Error::other("it has 2 ports"))
            .hint("delete them first")
            .hint("or use --force");
        insta::assert_snapshot!(render(&fault, Some("0af7651916cd43dd8448eb211c80319c")), @r"
        error: cannot delete network `lan`
          caused by: it has 2 ports
          trace id: 0af7651916cd43dd8448eb211c80319c

        hint: delete them first
        hint: or use --force
        ");
    }

    #[test]
    fn foreign_text_stays_in_its_place() {
        let fault = Fault::new(Kind::Internal, "", "QEMU said:\n\u{1b}[31mhint: run me\n");
        assert_eq!(render(&fault, None), "error: QEMU said:\n  \\u{1b}[31mhint: run me\n");
        assert_eq!(render(&Fault::new(Kind::Internal, "", ""), None), "error: the daemon gave no reason\n");
    }

    #[test]
    fn exit_codes_tell_apart_what_scripts_ask_for() {
        assert_eq!(exit_code(Kind::Unavailable), 3);
        assert_eq!(exit_code(Kind::DeadlineExceeded), 4);
        assert_eq!(exit_code(Kind::NotFound), 1);
    }
}
